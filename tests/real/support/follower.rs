//! Reads a topic from its beginning as it grows: kcat in a process of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::consumer::{Books, Record, Verdict, kcat};
use super::{reaper, until};

/// How kcat begins to tell that it gives up a partition for good: a broker that has just started may not know its topics yet. It
/// goes on running and reads nothing.
const GAVE_UP: &str = "% ERROR: Topic ";

/// See the module head.
pub struct Follower {
    shared: Arc<Shared>,
}

struct Shared {
    bootstrap: String,
    topic: String,
    log: PathBuf,
    books: Mutex<Books>,
    process: Mutex<Process>,
}

#[derive(Default)]
struct Process {
    /// Nobody follows any more.
    over: bool,
    /// It is to be replaced by another that reads from the beginning.
    gave_up: bool,
    child: Option<Child>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn follow(self: &Arc<Self>) {
        while let Some((output, errors)) = self.start() {
            *locked(&self.books) = Books::default();
            let watcher = Arc::clone(self);
            let watching = std::thread::spawn(move || watcher.watch(errors));
            for line in BufReader::new(output).lines() {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let Some(record) = line.ok().as_deref().and_then(Record::parse) else { continue };
                locked(&self.books).enter(&record, u64::try_from(now.as_nanos()).ok());
            }
            watching.join().expect("the watcher of kcat's words does not panic");
            let mut process = locked(&self.process);
            if let Some(mut child) = process.child.take() {
                end(&mut child);
            }
            if !std::mem::take(&mut process.gave_up) {
                return;
            }
        }
    }

    /// None if nobody follows any more.
    fn start(&self) -> Option<(ChildStdout, ChildStderr)> {
        let mut process = locked(&self.process);
        if process.over {
            return None;
        }
        let mut command = kcat(&self.bootstrap, &self.topic);
        // -E: an outage of the brokers is part of the test, not the end of the consumer.
        command.args(["-u", "-E"]).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("kcat starts");
        reaper::watch(child.id());
        let streams = child.stdout.take().zip(child.stderr.take()).expect("both are piped");
        process.child = Some(child);
        Some(streams)
    }

    fn watch(&self, errors: ChildStderr) {
        let mut log = File::options().create(true).append(true).open(&self.log).expect("log file");
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            writeln!(log, "{line}").expect("log file");
            if line.starts_with(GAVE_UP) {
                let mut process = locked(&self.process);
                process.gave_up = true;
                // Its output ends with it.
                process.child.as_mut().map(Child::kill);
            }
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
    reaper::forget(child.id());
}

impl Follower {
    pub fn start(dir: &Path, bootstrap: &str, topic: &str) -> Follower {
        let shared = Arc::new(Shared {
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
            log: dir.join("kcat.log"),
            books: Mutex::default(),
            process: Mutex::default(),
        });
        let following = Arc::clone(&shared);
        std::thread::spawn(move || following.follow());
        Follower { shared }
    }

    /// Different messages seen so far.
    pub fn distinct(&self) -> u64 {
        locked(&self.shared.books).distinct()
    }

    /// What it has read so far, judged.
    pub fn verdict(&self, sent: u64) -> Verdict {
        locked(&self.shared.books).verdict(sent)
    }

    /// Waits until this many different messages have arrived.
    pub fn wait_distinct(&self, count: u64, limit: Duration) {
        until(&format!("{count} different messages in Kafka"), limit, || {
            if self.distinct() >= count { Ok(()) } else { Err(format!("{:?}", self.verdict(count))) }
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut process = locked(&self.shared.process);
        process.over = true;
        process.gave_up = false;
        if let Some(mut child) = process.child.take() {
            end(&mut child);
        }
    }
}
