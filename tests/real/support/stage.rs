//! One test's folder, its turn on the machine, and the account it gives.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::process::tail;
use super::{Verdict, reaper};

/// Brokers and load together take two cores: tests of real brokers run one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A test at work. Keep it for as long as the test lasts.
pub struct Stage {
    pub name: String,
    pub dir: PathBuf,
    started: Instant,
    _turn: MutexGuard<'static, ()>,
}

/// The folder of this run. Removed at the end, unless something failed.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let dir = tempfile::Builder::new()
            .prefix("tidegate-real-")
            .disable_cleanup(true)
            .tempdir()
            .expect("a temporary folder");
        reaper::remove_dir(dir.path());
        dir.path().to_owned()
    })
}

/// `count` different ports that are free at this moment. They lie below those that the system gives to outgoing connections (from 32768),
/// one of which could have the port of a broker that is down for a while.
pub fn free_ports(count: usize) -> Vec<u16> {
    let free = || TcpListener::bind(("127.0.0.1", fastrand::u16(15_000..32_000))).ok();
    let sockets: Vec<TcpListener> = std::iter::repeat_with(free).take(10_000).flatten().take(count).collect();
    assert_eq!(sockets.len(), count, "free ports between 15000 and 32000");
    sockets.iter().map(|socket| socket.local_addr().expect("a bound socket has an address").port()).collect()
}

/// True in the full acceptance runs (`make acceptance`), whose executables are built for release.
pub fn is_full() -> bool {
    std::env::var_os("TIDEGATE_REAL_FULL").is_some()
}

/// The number for everyday runs, or the one of the full acceptance runs.
pub fn size(everyday: u64, full: u64) -> u64 {
    if is_full() { full } else { everyday }
}

/// A duration in seconds, chosen like [`size`].
pub fn seconds(everyday: u64, full: u64) -> Duration {
    Duration::from_secs(size(everyday, full))
}

impl Stage {
    /// Waits for this test's turn.
    pub fn new(name: &str) -> Stage {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = root().join(name);
        fs::create_dir_all(&dir).expect("folder for a test");
        Stage { name: name.to_owned(), dir, started: Instant::now(), _turn: turn }
    }

    /// A name that no other test uses, for topics and client ids.
    pub fn unique(&self, part: &str) -> String {
        format!("{}-{part}", self.name.replace('_', "-"))
    }

    /// One line about a test that passed, also into the file TIDEGATE_REAL_REPORT for `make acceptance`.
    pub fn report(&self, sent: u64, verdict: &Verdict, remark: &str) {
        let summary = &verdict.summary;
        let repeated = match summary.repeated_by_publisher {
            0 => String::new(),
            count => format!("; the publisher itself repeated {count}"),
        };
        let line = format!(
            "| {} | {sent} | {} | {} | {} | {} | {:.0} s | {remark}{repeated} |",
            self.name.replace('_', " "),
            summary.received,
            summary.lost,
            summary.duplicates,
            summary.out_of_order,
            self.started.elapsed().as_secs_f64(),
        );
        println!("{line}");
        if let Some(file) = std::env::var_os("TIDEGATE_REAL_REPORT") {
            let mut file = fs::File::options().append(true).create(true).open(file).expect("report file");
            writeln!(file, "{line}").expect("report file");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        reaper::keep_dir();
        println!("\n{} failed; all logs are kept in {}", self.name, root().display());
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for log in entries.flatten().map(|entry| entry.path()) {
            if log.extension().is_some_and(|extension| extension == "log") {
                println!("--- {}\n{}", log.display(), tail(&log, 25));
            }
        }
    }
}
