//! A spool as seen from outside: its files, and what `tidegate spool status` says of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::process::tidegate;
use super::{Gateway, Stage, until};

/// What an empty spool may keep: its lock and a checkpoint, which is written anew above 64 KiB.
const EMPTY_BYTES: u64 = 128 * 1024;

pub struct SpoolDir {
    pub path: PathBuf,
}

impl SpoolDir {
    /// A folder of the test's own, which the gateway makes.
    pub fn new(stage: &Stage) -> SpoolDir {
        SpoolDir { path: stage.dir.join("spool") }
    }

    /// The value of DB_PERSIST_PATH.
    pub fn text(&self) -> &str {
        self.path.to_str().expect("a temporary path is text")
    }

    /// Every file in it, by its path, with its size and when it was changed last.
    pub fn files(&self) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                // A segment may be removed while we look.
                match fs::metadata(&path) {
                    Ok(about) if about.is_dir() => folders.push(path),
                    Ok(about) => {
                        found.insert(path, (about.len(), about.modified().ok()));
                    }
                    Err(_) => {}
                }
            }
        }
        found
    }

    pub fn bytes(&self) -> u64 {
        self.files().values().map(|(bytes, _)| bytes).sum()
    }

    pub fn segments(&self) -> Vec<PathBuf> {
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
        self.files().into_keys().filter(is_segment).collect()
    }

    /// What `tidegate spool status` prints, and how long it took.
    pub fn status(&self) -> (String, Duration) {
        let from = Instant::now();
        let output = tidegate().args(["spool", "status"]).arg(&self.path).output();
        let output = output.expect("tidegate starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tidegate spool status: {}\n{errors}", output.status);
        (String::from_utf8_lossy(&output.stdout).into_owned(), from.elapsed())
    }

    /// Records that wait in it, of all topics, by `tidegate spool status`.
    pub fn waiting(&self) -> u64 {
        let (text, _) = self.status();
        let counts = text.lines().filter_map(|line| {
            let (before, _) = line.split_once(" records of ")?;
            before.rsplit(' ').next()?.parse::<u64>().ok()
        });
        counts.sum()
    }

    /// Waits until nothing is in it and the disk has its bytes back; the bytes that remain.
    pub fn wait_returned(&self, limit: Duration) -> u64 {
        until("the spool to be empty", limit, || {
            let (segments, bytes) = (self.segments(), self.bytes());
            if segments.is_empty() && bytes <= EMPTY_BYTES {
                Ok(bytes)
            } else {
                Err(format!("{bytes} bytes, segments {segments:?}"))
            }
        })
    }
}

/// The highest that was seen of memory and disk, over the several lives of a gateway.
#[derive(Debug, Default, Clone, Copy)]
pub struct Peaks {
    pub memory_kib: u64,
    pub disk_bytes: u64,
}

impl Peaks {
    /// Looks; before a kill, or the life's peak is gone.
    pub fn look(&mut self, gateway: &mut Gateway, spool: &SpoolDir) {
        self.memory_kib = self.memory_kib.max(gateway.process().memory_kib().1);
        self.disk_bytes = self.disk_bytes.max(spool.bytes());
    }
}

/// Starts the gateway with a small file system of its own at `path`, which no other process sees and which goes when it
/// ends. A mount needs root, of the machine or of a user namespace.
///
/// # Panics
/// Neither can be had: a test that cannot run fails.
pub fn on_small_disk(gateway: Gateway, path: &Path, bytes: u64) -> Gateway {
    const SCRIPT: &str =
        r#"mount -t tmpfs -o size="$1",mode=755 tidegate-spool "$2" && shift 2 && exec "$@""#;
    fs::create_dir_all(path).expect("folder for a mount");
    let path = path.to_str().expect("a temporary path is text");
    let starter = |flags: &str| -> Vec<String> {
        ["unshare", flags, "sh", "-c", SCRIPT, "sh", &bytes.to_string(), path].map(str::to_owned).to_vec()
    };
    let mut refused = String::new();
    for flags in ["-Urm", "-m"] {
        let before = starter(flags);
        let tried = super::process::installed("unshare").args(&before[1..]).arg("true").output();
        let tried = tried.expect("unshare starts");
        if tried.status.success() {
            return gateway.started_by(before);
        }
        refused += &String::from_utf8_lossy(&tried.stderr);
    }
    panic!(
        "this test needs a small file system, and mounting one is refused here: run it as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1)\n{refused}"
    );
}

/// The same folder as the gateway that was started [`on_small_disk`] sees it.
pub fn seen_by(gateway: &mut Gateway, path: &Path) -> SpoolDir {
    let root = PathBuf::from(format!("/proc/{}/root", gateway.process().id()));
    SpoolDir { path: root.join(path.strip_prefix("/").expect("an absolute path")) }
}
