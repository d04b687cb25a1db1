//! A service manager's side of sd_notify(3): a socket, and what came in by it, with the time.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Setup;
use super::wait;

/// A state as it came in.
#[derive(Debug, Clone)]
pub struct Told {
    pub at: Instant,
    pub state: String,
}

/// Listens for as long as the test runs.
pub struct Manager {
    path: String,
    told: Arc<Mutex<Vec<Told>>>,
    _folder: tempfile::TempDir,
}

impl Manager {
    pub fn start() -> Manager {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be made in a temporary folder");
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let keep = Arc::clone(&told);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                let (at, text) = (Instant::now(), String::from_utf8_lossy(&bytes[..length]).into_owned());
                let states = text.lines().map(|line| Told { at, state: line.to_owned() });
                keep.lock().unwrap().extend(states);
            }
        });
        let path = path.to_str().expect("a temporary path is text").to_owned();
        Manager { path, told, _folder: folder }
    }

    /// As a service of this manager.
    pub fn of(&self, setup: Setup) -> Setup {
        setup.set("NOTIFY_SOCKET", &self.path)
    }

    /// Everything it was told so far.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// What it was told that begins so.
    pub fn told_of(&self, what: &str) -> Vec<Told> {
        self.told().into_iter().filter(|told| told.state.starts_with(what)).collect()
    }

    pub fn wait_for(&self, what: &str) -> Told {
        self.wait_for_within(wait::PATIENCE, what)
    }

    pub fn wait_for_within(&self, limit: Duration, what: &str) -> Told {
        wait::until_within(limit, &format!("the service manager to be told {what}"), || {
            self.told_of(what).first().cloned().ok_or_else(|| format!("{:?}", self.told()))
        })
    }

    /// Waits for one more of these than there were.
    pub fn wait_for_more(&self, what: &str) {
        let before = self.told_of(what).len();
        wait::until(&format!("another {what}"), || {
            if self.told_of(what).len() > before { Ok(()) } else { Err(format!("{before}")) }
        });
    }
}
