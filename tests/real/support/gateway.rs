//! tidegate itself: the real executable with a clean environment.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use super::process::{Process, installed, tail, tidegate};
use super::{Mosquitto, SpoolDir, Stage};

pub struct Gateway {
    pub client_id: String,
    /// Of its log.
    name: String,
    env: BTreeMap<String, String>,
    dir: std::path::PathBuf,
    /// A program and arguments that end by starting tidegate in their place; none.
    before: Vec<String>,
    process: Option<Process>,
}

impl Gateway {
    /// What it is told; nothing is started yet. `routes` is a WILDCARD_TOPIC_LIST.
    pub fn new(stage: &Stage, mosquitto: &Mosquitto, bootstrap: &str, routes: &str) -> Gateway {
        Gateway::new_as(stage, "tidegate", mosquitto, bootstrap, routes)
    }

    /// One of several in a test, told apart by its name.
    pub fn new_as(
        stage: &Stage,
        name: &str,
        mosquitto: &Mosquitto,
        bootstrap: &str,
        routes: &str,
    ) -> Gateway {
        let client_id = stage.unique(name);
        let spool = stage.dir.join(format!("{client_id}-spool"));
        let spool = spool.to_str().expect("a temporary path is text");
        let env = [
            ("RUN_MODE", "PRODUCTION"),
            ("LOG_LVL", "info"),
            ("MQTT_BROKER_URL", "127.0.0.1"),
            ("MQTT_BROKER_PORT", &mosquitto.port.to_string()),
            ("MQTT_CLIENT_ID", &client_id),
            ("WILDCARD_TOPIC_LIST", routes),
            ("KAFKA_BROKER", bootstrap),
            ("DB_PERSIST_PATH", spool),
            ("HTTP_LISTEN", "off"),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let (name, dir) = (name.to_owned(), stage.dir.clone());
        Gateway { client_id, name, env, dir, before: Vec::new(), process: None }
    }

    /// Started by another program, which must become tidegate by `exec "$@"`: so it is the same process.
    pub fn started_by(mut self, before: Vec<String>) -> Gateway {
        self.before = before;
        self
    }

    /// Sets a variable; an empty value takes it away.
    pub fn set(mut self, name: &str, value: &str) -> Gateway {
        if value.is_empty() {
            self.env.remove(name);
        } else {
            self.env.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    pub fn up(&mut self) {
        let mut command = tidegate();
        if let [program, arguments @ ..] = self.before.as_slice() {
            let mut starter = installed(program);
            starter.args(arguments).arg(command.get_program()).args(command.get_args());
            command = starter;
        }
        command.envs(&self.env).env("RUST_BACKTRACE", "1");
        self.process = Some(Process::start(&self.name, &self.dir, &mut command));
    }

    /// `tidegate check` in the same environment: its exit code, and all it wrote.
    pub fn check(&self) -> (Option<i32>, String) {
        let output = tidegate().arg("check").envs(&self.env).output().expect("tidegate starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Starts it and waits until the broker says that it has subscribed.
    pub fn up_and_subscribed(&mut self, mosquitto: &Mosquitto, filter: &str) {
        self.up();
        mosquitto.wait_subscribed(&self.client_id, filter, Duration::from_secs(20));
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("tidegate was started")
    }

    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Panics if it is not running any more.
    pub fn assert_runs(&mut self) {
        let ended = self.process().ended();
        assert!(ended.is_none(), "tidegate has ended: {ended:?}\n{}", self.process().log_text());
    }

    /// SIGTERM; it must end by itself within `limit`.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.assert_runs();
        self.process().terminate(limit)
    }

    /// SIGTERM; it must end in order within its SHUTDOWN_TIMEOUT_SEC.
    pub fn stop_in_order(&mut self) {
        let status = self.stop(Duration::from_secs(15));
        assert!(status.success(), "tidegate: {status}\n{}", self.process().log_text());
    }

    pub fn log_text(&self) -> String {
        self.process.as_ref().map(Process::log_text).unwrap_or_default()
    }

    /// Its DB_PERSIST_PATH.
    pub fn spool(&self) -> SpoolDir {
        SpoolDir { path: self.env["DB_PERSIST_PATH"].clone().into() }
    }

    /// The last lines of the log, for a failure.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(|process| tail(&process.log, 20)).unwrap_or_default()
    }

    /// Lines of the log at WARN or ERROR.
    pub fn complaints(&self) -> Vec<String> {
        self.log_text()
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR") || line.contains("panicked"))
            .map(str::to_owned)
            .collect()
    }

    /// [`Gateway::complaints`] but for two: that Kafka, or the spool's disk, took half a second for some message. A busy machine does that,
    /// and it is not what most tests are about.
    pub fn complaints_but_of_slowness(&self) -> Vec<String> {
        let slow = ["has not acknowledged records for topic", "the spool's disk took"];
        let is_slow = |line: &String| slow.iter().any(|words| line.contains(words));
        self.complaints().into_iter().filter(|line| !is_slow(line)).collect()
    }
}
