//! Apache Kafka: one broker or three, each broker and controller in one (KRaft), one quorum. Before KRaft: brokers and a
//! ZooKeeper.

use std::fmt::Write;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::kafka_version::Version;
use super::process::{Process, tail};
use super::secured::Secured;
use super::stage::{free_ports, root};
use super::zookeeper::{self, SESSION_MS, ZooKeeper};
use super::{kafka_wire, until};

/// Lines for server.properties: a broker that knows rules of access, and lets everybody in where there is none.
pub const RULES: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                         allow.everyone.if.no.acl.found=true";

/// A cluster that needs longer than this does not come.
const START_LIMIT: Duration = Duration::from_secs(120);

pub struct Cluster {
    pub brokers: Vec<Broker>,
    pub version: Version,
    dir: PathBuf,
    /// Where a ZooKeeper is to listen, if there is one.
    zookeeper_port: Option<u16>,
    zookeeper: Option<ZooKeeper>,
}

pub struct Broker {
    /// Node id, from 1.
    pub id: i32,
    pub port: u16,
    /// Of its further listeners, in their order.
    pub secured_ports: Vec<u16>,
    version: Version,
    dir: PathBuf,
    zookeeper_port: Option<u16>,
    /// Arguments of its JVM, and of its storage tool.
    java: Vec<String>,
    format: Vec<String>,
    process: Option<Process>,
}

/// A topic to create.
#[derive(Clone)]
pub struct TopicSpec {
    pub partitions: i32,
    pub replicas: i16,
    pub configs: Vec<(&'static str, &'static str)>,
}

impl Cluster {
    /// Starts `count` brokers; `config` are lines for each server.properties beyond the needed ones.
    pub fn start(dir: &Path, count: usize, config: &str) -> Cluster {
        Cluster::start_version(Version::V4_3, dir, count, config)
    }

    /// The same of another version.
    pub fn start_version(version: Version, dir: &Path, count: usize, config: &str) -> Cluster {
        Cluster::start_all(version, dir, count, config, &Secured::default())
    }

    /// One broker with further listeners beside the one without security, by which the test itself asks and reads.
    pub fn start_secured(dir: &Path, secured: &Secured) -> Cluster {
        Cluster::start_all(Version::V4_3, dir, 1, "", secured)
    }

    fn start_all(version: Version, dir: &Path, count: usize, config: &str, secured: &Secured) -> Cluster {
        for attempt in 1..=3 {
            let dir = dir.join(format!("kafka-{attempt}"));
            let mut cluster = Cluster::prepare_version(version, &dir, count, config, secured);
            if cluster.try_up() {
                return cluster;
            }
            // Somebody took a port between our look and the bind: all again, on others.
        }
        panic!("Kafka {} did not start in three attempts; its logs are in {}", version.name(), dir.display());
    }

    /// Chooses ports and writes folders, and starts nothing yet.
    pub fn prepare(dir: &Path, count: usize, config: &str) -> Cluster {
        Cluster::prepare_version(Version::V4_3, dir, count, config, &Secured::default())
    }

    fn prepare_version(
        version: Version,
        dir: &Path,
        count: usize,
        config: &str,
        secured: &Secured,
    ) -> Cluster {
        let ports = free_ports(2 * count);
        let (ports, controllers) = ports.split_at(count);
        let zookeeper_port = version.has_zookeeper().then(|| controllers[0]);
        let broker = |id: usize| {
            let dir = dir.join(format!("broker-{id}"));
            fs::create_dir_all(&dir).expect("folder for a broker");
            let mut text = String::new();
            let secured_ports = free_ports(secured.listeners.len());
            let roles = match zookeeper_port {
                Some(zookeeper) => zookeeper_roles(id, ports[id - 1], zookeeper),
                None => kraft_roles(id, ports[id - 1], controllers),
            };
            let common = common_properties(count, &dir);
            // What comes later replaces what came before.
            let more = [config.to_owned(), secured.properties(ports[id - 1], controllers[0], &secured_ports)];
            for line in roles.iter().chain(&common).chain(&more) {
                writeln!(text, "{line}").expect("a String can be written to");
            }
            fs::write(dir.join("server.properties"), text).expect("server.properties");
            let (java, format) = (secured.java.clone(), secured.format.clone());
            let (id, port) = (id as i32, ports[id - 1]);
            Broker { id, port, secured_ports, version, dir, zookeeper_port, java, format, process: None }
        };
        let brokers = (1..=count).map(broker).collect();
        Cluster { brokers, version, dir: dir.to_owned(), zookeeper_port, zookeeper: None }
    }

    /// Formats what is new, starts all and waits; false if one ended, as it does when its port is taken.
    fn try_up(&mut self) -> bool {
        if let (Some(port), None) = (self.zookeeper_port, &self.zookeeper) {
            self.zookeeper = ZooKeeper::start(self.version, &self.dir.join("zookeeper"), port);
            if self.zookeeper.is_none() {
                return false;
            }
        }
        let mut formats: Vec<Process> = self
            .brokers
            .iter()
            .filter(|broker| !self.version.has_zookeeper() && !broker.dir.join("data").exists())
            .map(Broker::format)
            .collect();
        for format in &mut formats {
            let status = format.wait(START_LIMIT);
            assert!(status.success(), "Kafka's storage tool: {status}\n{}", format.log_text());
        }
        for broker in &mut self.brokers {
            broker.launch();
        }
        let count = self.brokers.len();
        until("Kafka to start", START_LIMIT, || {
            if let Some(at) = self.brokers.iter_mut().position(Broker::has_ended) {
                let log = tail(&self.brokers[at].log(), 40);
                assert!(log.contains("already in use"), "Kafka ended at its start\n{log}");
                return Ok(false);
            }
            for broker in &self.brokers {
                // It answers by one listener while another finds its port taken, and ends then.
                if !broker.secured_ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
                    return Err("not all listeners are there".to_owned());
                }
                if tail(&broker.log(), 500).contains("Unable to start acceptor") {
                    return Ok(false);
                }
                let seen = kafka_wire::broker_count(broker.port)?;
                if seen < count {
                    return Err(format!("broker {} sees {seen} of {count}", broker.id));
                }
            }
            Ok(true)
        })
    }

    /// Starts all that [`Cluster::prepare`] prepared, on the ports that were chosen then.
    pub fn up(&mut self) {
        assert!(self.try_up(), "Kafka cannot start: a port it was given before is taken");
    }

    /// host:port,... for clients.
    pub fn bootstrap(&self) -> String {
        let hosts: Vec<String> =
            self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect();
        hosts.join(",")
    }

    /// A port of a broker that runs.
    fn live_port(&self) -> u16 {
        let live = self.brokers.iter().find(|broker| broker.process.is_some());
        live.expect("a broker runs").port
    }

    /// Three partitions, as many replicas as brokers.
    pub fn topic(&self) -> TopicSpec {
        TopicSpec { partitions: 3, replicas: self.brokers.len() as i16, configs: Vec::new() }
    }

    /// Creates a topic and waits until all its partitions have a leader and all replicas are in sync.
    pub fn create(&self, name: &str, spec: &TopicSpec) {
        let port = self.live_port();
        kafka_wire::create_topic(port, name, spec).unwrap_or_else(|error| panic!("creating {name}: {error}"));
        self.wait_in_sync(name, spec.replicas as usize);
    }

    /// Waits until each partition of the topic has a leader and this many replicas in sync.
    pub fn wait_in_sync(&self, topic: &str, replicas: usize) {
        until(&format!("{topic} to be in sync"), Duration::from_secs(60), || {
            let leaders = kafka_wire::leaders(self.live_port(), topic)?;
            let good = !leaders.is_empty() && leaders.iter().all(|(id, isr)| *id > 0 && *isr == replicas);
            if good { Ok(()) } else { Err(format!("(leader, in sync) {leaders:?}")) }
        });
    }

    /// How many partitions the topic has; 0 if it is not there.
    pub fn partition_count(&self, topic: &str) -> usize {
        kafka_wire::leaders(self.live_port(), topic).map_or(0, |leaders| leaders.len())
    }

    /// The broker that leads this partition.
    pub fn leader_of(&mut self, topic: &str, partition: usize) -> &mut Broker {
        let id = kafka_wire::leaders(self.live_port(), topic).expect("metadata")[partition].0;
        self.brokers.iter_mut().find(|broker| broker.id == id).expect("the leader is one of ours")
    }

    /// How many records the topic has been given, by its end offsets. For a cluster of one.
    pub fn end_offset(&self, topic: &str) -> i64 {
        let port = self.live_port();
        let seen = kafka_wire::leaders(port, topic).and_then(|leaders| {
            let partitions = i32::try_from(leaders.len()).map_err(|error| error.to_string())?;
            kafka_wire::end_offset(port, topic, partitions)
        });
        // It has just come back: not yet leader.
        seen.unwrap_or(0)
    }

    /// Nobody may write to this topic any more.
    pub fn deny_writing(&self, topic: &str) {
        let denied = kafka_wire::deny_writing(self.live_port(), topic);
        denied.unwrap_or_else(|error| panic!("denying {topic}: {error}"));
    }

    /// Takes all access rules of this topic away.
    pub fn allow_again(&self, topic: &str) {
        let allowed = kafka_wire::delete_acls(self.live_port(), topic);
        allowed.unwrap_or_else(|error| panic!("allowing {topic}: {error}"));
    }

    /// The first broker shows the certificate of `file` by its listener `name` from now on.
    pub fn set_certificate(&self, name: &str, file: &Path) {
        let setting = format!("listener.name.{}.ssl.keystore.location", name.to_lowercase());
        let file = file.to_str().expect("a temporary path is text");
        let set = kafka_wire::set_broker_config(self.live_port(), self.brokers[0].id, &setting, file);
        set.unwrap_or_else(|error| panic!("{setting}: {error}"));
    }

    /// How often the first broker has refused to let somebody in.
    pub fn failed_logins(&self) -> usize {
        let log = fs::read_to_string(self.brokers[0].log()).unwrap_or_default();
        log.lines().filter(|line| line.contains("Failed authentication with")).count()
    }

    /// Kills all brokers, which are there no more for a client. A ZooKeeper stays.
    pub fn kill(&mut self) {
        self.brokers.iter_mut().for_each(Broker::kill);
    }

    /// Stops all brokers in order. A ZooKeeper stays.
    pub fn down(&mut self) {
        self.brokers.iter_mut().for_each(Broker::down);
    }

    /// Starts all brokers again on their ports and data.
    pub fn up_again(&mut self) {
        self.brokers.iter_mut().for_each(Broker::up);
    }

    pub fn freeze(&self) {
        self.zookeeper.iter().for_each(ZooKeeper::freeze);
        self.brokers.iter().filter_map(|broker| broker.process.as_ref()).for_each(Process::freeze);
    }

    pub fn thaw(&self) {
        self.zookeeper.iter().for_each(ZooKeeper::thaw);
        self.brokers.iter().filter_map(|broker| broker.process.as_ref()).for_each(Process::thaw);
    }
}

/// Broker and controller in one.
fn kraft_roles(id: usize, port: u16, controllers: &[u16]) -> Vec<String> {
    let voters: Vec<String> =
        controllers.iter().zip(1..).map(|(port, id)| format!("{id}@127.0.0.1:{port}")).collect();
    let controller = controllers[id - 1];
    vec![
        "process.roles=broker,controller".into(),
        format!("node.id={id}"),
        format!("controller.quorum.voters={}", voters.join(",")),
        format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"),
        "controller.listener.names=CONTROLLER".into(),
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".into(),
        // A killed broker is noticed in seconds, and two cores are not kept busy by idle brokers.
        "broker.session.timeout.ms=6000".into(),
        "broker.heartbeat.interval.ms=1000".into(),
    ]
}

fn zookeeper_roles(id: usize, port: u16, zookeeper: u16) -> Vec<String> {
    vec![
        format!("broker.id={id}"),
        format!("zookeeper.connect=127.0.0.1:{zookeeper}"),
        format!("zookeeper.session.timeout.ms={SESSION_MS}"),
        format!("listeners=PLAINTEXT://127.0.0.1:{port}"),
    ]
}

fn common_properties(count: usize, dir: &Path) -> Vec<String> {
    vec![
        format!("log.dirs={}/data", dir.display()),
        // Tests create what they need, so that a missing topic is a missing topic.
        "auto.create.topics.enable=false".into(),
        format!("default.replication.factor={count}"),
        format!("min.insync.replicas={}", if count > 1 { 2 } else { 1 }),
        format!("offsets.topic.replication.factor={count}"),
        "offsets.topic.num.partitions=1".into(),
        format!("transaction.state.log.replication.factor={count}"),
        "transaction.state.log.min.isr=1".into(),
        // The default reserves half of our small heap for a cleaner that has nothing to do.
        "log.cleaner.dedupe.buffer.size=8388608".into(),
        "log.cleaner.threads=1".into(),
    ]
}

impl Broker {
    fn format(&self) -> Process {
        let tool =
            ["kafka.tools.StorageTool", "format", "-t", "dGlkZWdhdGUtdGVzdC1jbA", "-c", "server.properties"];
        let mut command = self.version.java(&tool);
        command.args(&self.format);
        Process::start("format", &self.dir, &mut command)
    }

    fn launch(&mut self) {
        // By its whole path: so a list of processes tells the brokers of several runs apart.
        let main: Vec<&str> = self.java.iter().map(String::as_str).chain(["kafka.Kafka"]).collect();
        let mut command = self.version.java(&main);
        command.arg(self.dir.join("server.properties"));
        self.process = Some(Process::start("kafka", &self.dir, &mut command));
    }

    fn log(&self) -> PathBuf {
        self.dir.join("kafka.log")
    }

    fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_some())
    }

    /// Starts it again on its port and data.
    pub fn up(&mut self) {
        if let Some(zookeeper) = self.zookeeper_port {
            zookeeper::wait_forgotten(zookeeper, self.id);
        }
        self.launch();
        let port = self.port;
        until("a broker to come back", START_LIMIT, || {
            let ended = self.process.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "the broker ended: {ended:?}\n{}", tail(&self.log(), 20));
            kafka_wire::broker_count(port)
                .and_then(|count| if count > 0 { Ok(()) } else { Err("alone".into()) })
        });
    }

    /// SIGTERM: it hands its partitions over and stops.
    pub fn down(&mut self) {
        self.process.take().expect("the broker runs").terminate(Duration::from_secs(60));
    }

    pub fn kill(&mut self) {
        self.process.take().expect("the broker runs").kill();
    }
}

/// The broker that tests share which do not harm it: its start costs seconds.
pub fn shared_one() -> MutexGuard<'static, Cluster> {
    static ONE: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = ONE.get_or_init(|| Mutex::new(Cluster::start(&root().join("shared-one"), 1, "")));
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The three brokers that tests share which leave them running and in sync.
pub fn shared_three() -> MutexGuard<'static, Cluster> {
    static THREE: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = THREE.get_or_init(|| Mutex::new(Cluster::start(&root().join("shared-three"), 3, "")));
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}
