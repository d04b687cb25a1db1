//! A scripted Kafka cluster: several brokers on ports of their own over one set of logs. It behaves as real
//! brokers do until a test tells it otherwise, request by request. What a client must never do (a second payload
//! under a used identity, a bad checksum, a wrong batch count) is noted and fails the test at its end.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use super::kafka_log::{Batch, Identity, Log, Record};
use super::{kafka_wire, wait};

/// API keys of the Kafka protocol.
#[allow(clippy::enum_variant_names, reason = "the names are the protocol's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Api {
    Produce = 0,
    Fetch = 1,
    ListOffsets = 2,
    Metadata = 3,
    ApiVersions = 18,
    InitProducerId = 22,
    DescribeProducers = 61,
}

impl Api {
    pub fn of(key: i16) -> Option<Api> {
        use Api::*;
        let all = [Produce, Fetch, ListOffsets, Metadata, ApiVersions, InitProducerId, DescribeProducers];
        all.into_iter().find(|api| *api as i16 == key)
    }
}

/// Which versions of which requests the brokers speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// 0.11: the first with record batches v2; answers an ApiVersions it does not know with error 35.
    V0_11,
    /// 2.7: no DescribeProducers.
    V2_7,
    /// 2.8.
    V2_8,
    /// 4.x: the oldest versions are gone. (Produce v13, which names topics by id, is not offered.)
    V4,
}

impl Release {
    pub fn versions(self) -> Vec<(Api, i16, i16)> {
        use Api::*;
        match self {
            Release::V0_11 => vec![
                (Produce, 0, 3),
                (Fetch, 0, 5),
                (ListOffsets, 0, 2),
                (Metadata, 0, 4),
                (ApiVersions, 0, 1),
                (InitProducerId, 0, 0),
            ],
            Release::V2_7 => vec![
                (Produce, 0, 8),
                (Fetch, 0, 12),
                (ListOffsets, 0, 5),
                (Metadata, 0, 9),
                (ApiVersions, 0, 3),
                (InitProducerId, 0, 4),
            ],
            Release::V2_8 => vec![
                (Produce, 0, 9),
                (Fetch, 0, 12),
                (ListOffsets, 0, 6),
                (Metadata, 0, 11),
                (ApiVersions, 0, 3),
                (InitProducerId, 0, 4),
                (DescribeProducers, 0, 0),
            ],
            Release::V4 => vec![
                (Produce, 3, 12),
                (Fetch, 4, 17),
                (ListOffsets, 1, 10),
                (Metadata, 0, 13),
                (ApiVersions, 0, 4),
                (InitProducerId, 0, 5),
                (DescribeProducers, 0, 0),
            ],
        }
    }
}

/// Opens once, for all who wait at it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }
}

/// What happens to one request instead of the ordinary.
#[derive(Clone)]
pub enum Act {
    /// This error code for every partition (or the whole); nothing is written.
    Error(i16),
    /// This error code, naming the records at fault (KIP-467); nothing is written.
    BadRecords(i16, Vec<i32>),
    /// Written, and yet this error code: the outcome is unknown to the client.
    AppendThenError(i16),
    /// Nothing happens until the gate opens, then the ordinary.
    HoldBefore(Gate),
    /// Written, answered when the gate opens.
    HoldAfter(Gate),
    /// The connection ends, nothing is written.
    CloseBefore,
    /// Written, and the connection ends instead of an answer.
    CloseAfter,
    /// Written, and the connection answers nothing any more; what follows on it is worked.
    Silent,
    /// Written, answered under another correlation id.
    WrongCorrelation,
    /// Written, answered with a length of nearly 2 GiB.
    HugeLength,
    /// Written, answered with bytes that are no answer.
    Garbage,
    /// Written, answered with an answer cut short, in a frame of its true length.
    Truncated,
}

type Predicate = Box<dyn Fn(&Call) -> bool + Send>;

pub(super) struct Rule {
    api: Api,
    when: Predicate,
    act: Act,
    left: usize,
}

/// What a rule is asked about.
pub struct Call<'a> {
    /// For Produce: the topic and the one batch the question is about.
    pub topic: &'a str,
    pub batch: Option<&'a Batch>,
}

/// One batch as it came in, written or not.
#[derive(Debug, Clone)]
pub struct SeenBatch {
    pub node: i32,
    pub topic: String,
    pub partition: i32,
    pub batch: Batch,
}

impl SeenBatch {
    pub fn identity(&self) -> Identity {
        self.batch.identity
    }
}

#[derive(Default)]
pub(super) struct Partition {
    pub leader: i32,
    pub leader_epoch: i32,
    pub log: Log,
    pub in_flight: usize,
    pub in_flight_max: usize,
}

#[derive(Default)]
pub(super) struct Topic {
    /// Error code in Metadata and Produce; 0 is none.
    pub error: i16,
    pub partitions: Vec<Partition>,
}

pub(super) struct Node {
    pub id: i32,
    pub port: u16,
    pub up: bool,
    /// How often it was stopped: what a stopped broker held is not written afterwards.
    pub stops: usize,
    pub connections: Vec<TcpStream>,
}

pub(super) struct State {
    pub release: Release,
    pub nodes: Vec<Node>,
    pub topics: BTreeMap<String, Topic>,
    pub rules: Vec<Rule>,
    pub requests: Vec<(i32, Api, i16)>,
    pub seen: Vec<SeenBatch>,
    pub violations: Vec<String>,
    pub next_producer_id: i64,
    pub message_max_bytes: usize,
    pub connections_made: usize,
    pub advertised_host: String,
    /// Of every broker, instead of its own: where a guard stands in front of the one there is.
    pub advertised_port: Option<u16>,
    /// Stopped, and metadata does not know.
    pub unnoticed: Vec<i32>,
}

impl State {
    pub fn stops(&self, node: i32) -> usize {
        self.nodes.iter().find(|known| known.id == node).map_or(0, |known| known.stops)
    }

    /// The act of the first rule that fits, used up by one.
    pub fn act(&mut self, api: Api, call: &Call) -> Option<Act> {
        let fits = |rule: &&mut Rule| rule.left > 0 && rule.api == api && (rule.when)(call);
        let rule = self.rules.iter_mut().find(fits)?;
        rule.left -= 1;
        Some(rule.act.clone())
    }

    pub fn partition(&mut self, topic: &str, partition: i32) -> Option<&mut Partition> {
        self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(partition).ok()?)
    }
}

pub(super) type Shared = Arc<Mutex<State>>;

/// The cluster.
pub struct Cluster {
    state: Shared,
    gates: Mutex<Vec<Gate>>,
}

impl Cluster {
    /// One broker like Kafka 4, without topics.
    pub fn start() -> Self {
        Cluster::start_as(Release::V4, 1)
    }

    /// Brokers with node ids 1, 2, and so on.
    pub fn start_as(release: Release, brokers: i32) -> Self {
        let listeners: Vec<(i32, TcpListener)> = (1..=brokers)
            .map(|id| (id, TcpListener::bind("127.0.0.1:0").expect("loopback has a free port")))
            .collect();
        let node = |(id, listener): &(i32, TcpListener)| Node {
            id: *id,
            port: listener.local_addr().unwrap().port(),
            up: true,
            stops: 0,
            connections: Vec::new(),
        };
        let state = Arc::new(Mutex::new(State {
            release,
            nodes: listeners.iter().map(node).collect(),
            topics: BTreeMap::new(),
            rules: Vec::new(),
            requests: Vec::new(),
            seen: Vec::new(),
            violations: Vec::new(),
            next_producer_id: 1000,
            message_max_bytes: 1_048_588,
            connections_made: 0,
            advertised_host: "127.0.0.1".to_owned(),
            advertised_port: None,
            unnoticed: Vec::new(),
        }));
        for (id, listener) in listeners {
            let state = Arc::clone(&state);
            thread::spawn(move || kafka_wire::accept(id, &listener, &state));
        }
        Cluster { state, gates: Mutex::default() }
    }

    pub fn bootstrap(&self) -> String {
        let state = self.lock();
        let hosts: Vec<String> = state.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        hosts.join(",")
    }

    /// Metadata names the brokers by this host.
    pub fn advertise(&self, host: &str) {
        self.lock().advertised_host = host.to_owned();
    }

    /// Metadata names the broker by this port.
    #[cfg(feature = "tls")]
    pub fn advertise_port(&self, port: u16) {
        self.lock().advertised_port = Some(port);
    }

    /// The port of the first broker.
    #[cfg(feature = "tls")]
    pub fn port(&self) -> u16 {
        self.lock().nodes[0].port
    }

    /// A topic whose partitions are led by the brokers in turn.
    pub fn topic(self, name: &str, partitions: usize) -> Self {
        self.add_topic(name, partitions);
        self
    }

    pub fn add_topic(&self, name: &str, partitions: usize) {
        let mut state = self.lock();
        let nodes = state.nodes.len();
        let partition =
            |index: usize| Partition { leader: (index % nodes) as i32 + 1, ..Partition::default() };
        let partitions = (0..partitions).map(partition).collect();
        state.topics.insert(name.to_owned(), Topic { error: 0, partitions });
    }

    /// Refuses the topic with this error code in Metadata and Produce; 0 ends that.
    pub fn set_topic_error(&self, name: &str, error: i16) {
        self.lock().topics.get_mut(name).expect("the test made the topic").error = error;
    }

    pub fn set_message_max_bytes(&self, bytes: usize) {
        self.lock().message_max_bytes = bytes;
    }

    /// The next `times` requests of this kind, on whatever they are about.
    pub fn next(&self, api: Api, times: usize, act: Act) {
        self.when(api, times, act, |_| true);
    }

    /// The next `times` requests of this kind that fit.
    pub fn when(&self, api: Api, times: usize, act: Act, when: impl Fn(&Call) -> bool + Send + 'static) {
        if let Act::HoldBefore(gate) | Act::HoldAfter(gate) = &act {
            self.gates.lock().unwrap().push(gate.clone());
        }
        self.lock().rules.push(Rule { api, when: Box::new(when), act, left: times });
    }

    /// From now on everything is ordinary.
    pub fn heal(&self) {
        self.lock().rules.clear();
    }

    pub fn move_leader(&self, topic: &str, partition: i32, node: i32) {
        let mut state = self.lock();
        let partition = state.partition(topic, partition).expect("the test made the partition");
        partition.leader = node;
        partition.leader_epoch += 1;
    }

    /// The broker ends its connections and takes no more, but metadata names it as before.
    pub fn stop_unnoticed(&self, node: i32) {
        self.lock().unnoticed.push(node);
        self.stop(node);
    }

    /// The broker ends its connections and takes no more; its partitions have no other leader.
    pub fn stop(&self, node: i32) {
        let mut state = self.lock();
        let node = state.nodes.iter_mut().find(|known| known.id == node).expect("the test made the broker");
        node.up = false;
        node.stops += 1;
        for connection in node.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    pub fn is_up(&self, node: i32) -> bool {
        self.lock().nodes.iter().any(|known| known.id == node && known.up)
    }

    /// Up again, remembering the last batch of each producer only.
    pub fn restart(&self, node: i32) {
        self.stop(node);
        let mut state = self.lock();
        for topic in state.topics.values_mut() {
            topic
                .partitions
                .iter_mut()
                .filter(|known| known.leader == node)
                .for_each(|led| led.log.restart());
        }
        state.nodes.iter_mut().filter(|known| known.id == node).for_each(|known| known.up = true);
    }

    /// The partition forgets every producer, as expiry makes it.
    pub fn forget_producers(&self, topic: &str, partition: i32) {
        self.lock().partition(topic, partition).expect("the test made the partition").log.forget_producers();
    }

    pub fn records(&self, topic: &str, partition: i32) -> Vec<Record> {
        let mut state = self.lock();
        state.partition(topic, partition).map(|known| known.log.records.clone()).unwrap_or_default()
    }

    /// The values in the partition, as text, in order of offset.
    pub fn values(&self, topic: &str, partition: i32) -> Vec<String> {
        self.records(topic, partition).iter().map(Record::text).collect()
    }

    /// Every batch written to the partition.
    pub fn appended(&self, topic: &str, partition: i32) -> Vec<Batch> {
        let mut state = self.lock();
        let known = state.partition(topic, partition).expect("the test made the partition");
        known.log.appended.iter().map(|(_, batch)| batch.clone()).collect()
    }

    /// Waits until the partition holds exactly these values, in this order.
    pub fn wait_for_values<T: AsRef<str>>(&self, topic: &str, partition: i32, expected: &[T]) {
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        wait::until(&format!("{} records in {topic}/{partition}", expected.len()), || {
            let values = self.values(topic, partition);
            let so_far = values.len().min(expected.len());
            assert_eq!(values, expected[..so_far], "in {topic}/{partition}: more, or others, than expected");
            if values.len() == expected.len() { Ok(()) } else { Err(format!("{} of them", values.len())) }
        });
    }

    /// Every batch that came in, written or not.
    pub fn seen(&self) -> Vec<SeenBatch> {
        self.lock().seen.clone()
    }

    /// Waits until this many batches have come in.
    pub fn wait_for_seen(&self, count: usize) -> Vec<SeenBatch> {
        wait::until(&format!("{count} batches"), || {
            let seen = self.seen();
            if seen.len() >= count { Ok(seen) } else { Err(format!("{}", seen.len())) }
        })
    }

    /// How many requests of this kind came in.
    pub fn requests(&self, api: Api) -> usize {
        self.lock().requests.iter().filter(|(_, known, _)| *known == api).count()
    }

    pub fn wait_for_requests(&self, api: Api, count: usize) {
        wait::until(&format!("{count} {api:?} requests"), || {
            let seen = self.requests(api);
            if seen >= count { Ok(()) } else { Err(seen) }
        });
    }

    /// Versions in which requests of this kind came in.
    pub fn versions_used(&self, api: Api) -> Vec<i16> {
        let state = self.lock();
        let of_api = state.requests.iter().filter(|(_, known, _)| *known == api);
        let mut versions: Vec<i16> = of_api.map(|(_, _, version)| *version).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    pub fn connections_made(&self) -> usize {
        self.lock().connections_made
    }

    /// The most batches of the partition that were ever sent and not yet answered.
    pub fn in_flight_max(&self, topic: &str, partition: i32) -> usize {
        self.lock().partition(topic, partition).expect("the test made the partition").in_flight_max
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nobody waits at a gate for ever.
        self.gates.lock().unwrap().iter().for_each(Gate::open);
        if thread::panicking() {
            let state = self.lock();
            eprintln!(
                "---- what Kafka saw: {} requests, {} batches ----",
                state.requests.len(),
                state.seen.len()
            );
            let from = state.seen.len().saturating_sub(40);
            for seen in &state.seen[from..] {
                eprintln!("node {} {}/{} {:?}", seen.node, seen.topic, seen.partition, seen.batch.identity);
            }
            let last: VecDeque<_> = state.requests.iter().rev().take(40).collect();
            eprintln!("last requests, newest first: {last:?}; violations: {:?}", state.violations);
        } else {
            let violations = self.lock().violations.clone();
            assert!(violations.is_empty(), "what a client must never do: {violations:#?}");
        }
    }
}

/// An address of loopback where nobody listens, and that no other test is given meanwhile: they are all at 127.0.0.1.
pub fn dead_address() -> String {
    let host = std::net::Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255));
    let listener = TcpListener::bind((host, 0)).expect("loopback has a free port");
    listener.local_addr().unwrap().to_string()
}
