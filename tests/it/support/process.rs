//! The executable as a user would start it: a clean environment, its stderr kept and shown when the test fails,
//! killed when the test ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::kafka_broker::Cluster;
use super::mqtt_broker::MqttBroker;
use super::wait;

/// What the gateway is started with: environment and arguments. Starts in an empty folder of its own.
pub struct Setup {
    variables: BTreeMap<String, String>,
    folder: Arc<tempfile::TempDir>,
}

impl Setup {
    /// Nothing set at all.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Setup { variables: BTreeMap::new(), folder: Arc::new(folder) }
    }

    /// Set to reach these brokers, in production mode, with the whole log and quick shutdown. What Kafka does not take stays in
    /// hand and unacknowledged, so that a PUBACK tells what Kafka has; see [`Setup::spooling`].
    pub fn new(mqtt: &MqttBroker, kafka: &Cluster) -> Self {
        Setup::empty()
            .set("RUN_MODE", "PRODUCTION")
            .set("LOG_LVL", "debug")
            .set("MQTT_BROKER_URL", "127.0.0.1")
            .set("MQTT_BROKER_PORT", &mqtt.port().to_string())
            .set("MQTT_CLIENT_ID", "ring-gateway")
            .set("KAFKA_BROKER", &kafka.bootstrap())
            .set("SHUTDOWN_TIMEOUT_SEC", "5")
            .set("DB_PERSIST_PATH", "spool")
            .set("SPOOL_MIN_FREE_BYTES", "0")
            .set("HTTP_LISTEN", "off")
            .set("SPOOL_AFTER_MS", "3600000")
    }

    /// The same, in the same folder: for the next start, and for looking at what a gateway leaves there.
    pub fn again(&self) -> Self {
        Setup { variables: self.variables.clone(), folder: Arc::clone(&self.folder) }
    }

    /// What Kafka does not take goes to the spool in its folder, soon.
    pub fn spooling(self) -> Self {
        self.set("SPOOL_AFTER_MS", "100")
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// WILDCARD_TOPIC_LIST.
    pub fn wildcards(self, list: &str) -> Self {
        self.set("WILDCARD_TOPIC_LIST", list)
    }

    /// The folder it is started in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments).env_clear().envs(&self.variables).current_dir(self.folder());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the gateway.
    pub fn start(self) -> Gateway {
        let mut child = self.command(&[]).spawn().expect("the executable was built for this test");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            keep_lines(child.stderr.take().expect("stderr was piped"), "", &lines),
            keep_lines(child.stdout.take().expect("stdout was piped"), "stdout: ", &lines),
        ];
        Gateway { child, lines, readers, _folder: self.folder }
    }

    /// Starts the gateway with a stderr that the test reads itself; `variable` may set one more that depends on it.
    pub fn start_with_own_stderr(
        self,
        variable: impl FnOnce(&OwnedFd) -> Option<(&'static str, String)>,
    ) -> (Gateway, PipeReader) {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        let writer = OwnedFd::from(writer);
        let mut command = self.command(&[]);
        command.envs(variable(&writer)).stdout(Stdio::null()).stderr(writer);
        let child = command.spawn().expect("the executable was built for this test");
        (Gateway { child, lines: Arc::default(), readers: Vec::new(), _folder: self.folder }, reader)
    }

    /// Runs a command that ends by itself and gives its output.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut child = self.command(arguments).spawn().expect("the executable was built for this test");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            keep_lines(child.stdout.take().expect("stdout was piped"), "", &lines),
            keep_lines(child.stderr.take().expect("stderr was piped"), "", &errors),
        ];
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > wait::PATIENCE {
                let _ = child.kill();
                panic!("`tidegate {arguments:?}` did not end; stdout {lines:?}, stderr {errors:?}");
            }
            thread::yield_now();
        };
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let joined = |lines: &Mutex<Vec<String>>| {
            lines.lock().unwrap().iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
        };
        Output { status, stdout: joined(&lines), stderr: joined(&errors) }
    }
}

fn keep_lines(
    from: impl std::io::Read + Send + 'static,
    prefix: &'static str,
    lines: &Arc<Mutex<Vec<String>>>,
) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            lines.lock().unwrap().push(format!("{prefix}{}", String::from_utf8_lossy(&line)));
        }
    })
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    _folder: Arc<tempfile::TempDir>,
}

impl Gateway {
    /// Everything it has written so far, line by line.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Lines of this level. The level is a word of its own near the head of a line.
    pub fn log_of(&self, level: &str) -> Vec<String> {
        let is_of = |line: &String| line.split([' ', '[', ']']).take(6).any(|word| word == level);
        self.log().into_iter().filter(is_of).collect()
    }

    /// Waits for a line of this level that holds all the parts.
    pub fn wait_for_log(&self, level: &str, parts: &[&str]) -> String {
        wait::until(&format!("a line of {level} with {parts:?}"), || {
            let lines = self.log_of(level);
            let found = lines.iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned();
            found.ok_or_else(|| format!("{lines:#?}"))
        })
    }

    pub fn assert_quiet(&self) {
        let loud = [self.log_of("WARN"), self.log_of("ERROR")].concat();
        assert!(loud.is_empty(), "a healthy run logs no WARN or ERROR: {loud:#?}");
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id is not zero");
        kill_process(pid, signal).expect("the process is ours");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let status = wait::until_within(limit, "the gateway to exit", || {
            self.child.try_wait().unwrap().ok_or("still running")
        });
        // Both pipes are at their end now: every line is in the log.
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status
    }

    /// Time on a processor since the start, all threads.
    pub fn processor_time(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of_thread = |thread: fs::DirEntry| -> Option<u64> {
            // A thread may end between the two looks.
            let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            schedstat.split_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(threads.map_while(Result::ok).filter_map(of_thread).sum())
    }

    /// Panics if it computes all the time though there is nothing to do.
    pub fn assert_idle(&mut self, what: &str) {
        const SPAN: Duration = Duration::from_secs(2);
        let before = self.processor_time();
        assert!(!before.is_zero(), "the system tells how long threads have run");
        wait::holds(SPAN, "the gateway runs", || if self.is_running() { Ok(()) } else { Err("ended") });
        let used = self.processor_time().saturating_sub(before);
        assert!(used < SPAN / 20, "{what}: {used:?} of processor time in {SPAN:?}");
    }

    /// Files and sockets that are open now.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Resident memory now, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a live process has VmRSS");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- what the gateway wrote ----");
            let lines = self.log();
            // Enough of both ends to see how it began and what it did last.
            let skipped = lines.len().saturating_sub(400);
            for (number, line) in lines.iter().enumerate() {
                if number < 100 || number >= 100 + skipped {
                    eprintln!("{line}");
                }
            }
            eprintln!("---- end ({skipped} lines left out) ----");
        }
    }
}
