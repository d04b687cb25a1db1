//! The idempotent producer: takes records, gives them back delivered or refused, and gives none up in between.
//!
//! What it does not know: sockets, threads, the clock. Its owner tells it the time and what happened on the
//! connections ([`LinkEvent`]) and carries out its [`Action`]s. So the whole of it is tested against a simulated
//! cluster, second by second, in microseconds.
//!
//! Invariants:
//! - every tag that is pushed comes back exactly once: delivered, refused, or abandoned at the end;
//! - there is no limit of retries and no local timeout that gives up on a batch whose fate is unknown;
//! - for one partition, records are written in the order of pushing (`partition`);
//! - its memory is bounded by its owner: it holds what has been pushed and has not come back.
//!
//! Batching is by what is in flight (adaptive linger): with nothing in flight on a connection a record goes out at
//! once; otherwise records gather until the answer comes, [`GATHER_BYTES`] are there, or [`GATHER_MAX`] is over.

mod batch;
mod cluster;
mod links;
mod partition;
mod pump;
mod questions;
mod read_back;
mod recovery;
mod search;
#[cfg(test)]
mod simulation;
mod spooling;
mod stored;
mod topic;

pub use self::spooling::{CopiedBatch, KeptBatch, TopicState};
pub use self::stored::SentBefore;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use log::warn;

use self::cluster::Cluster;
use self::partition::ProducerId;
use self::topic::{Early, PartitionAt, Topic};
use super::compression::Compression;
use super::error::ErrorCode;
use super::partitioner::{Sticky, partition_for_key};
use super::protocol::{Request, Response, TopicName};
use super::record_batch::{NO_TIMESTAMP, Record, RecordRef};

/// With a request in flight, this much gathered for its broker goes out without waiting for the answer.
pub const GATHER_BYTES: usize = 64 * 1024;
/// With a request in flight, a record waits at most this long for company: on a slow link the answer is far away.
pub const GATHER_MAX: Duration = Duration::from_millis(2);
/// A right that was refused is tried again after this long.
const RIGHTS_RETRY: Duration = Duration::from_secs(300);
/// Most topics: a capture in a topic template could otherwise make any number of them.
pub const TOPICS_MAX: usize = 10_000;

/// How the producer works.
#[derive(Debug, Clone)]
pub struct ProducerOptions {
    /// Addresses to start from: host and port.
    pub bootstrap: Vec<(String, u16)>,
    /// -1: all in-sync replicas; 1: the leader only.
    pub acks: i16,
    /// Codec of the batches.
    pub compression: Compression,
    /// Least time a record waits for company; zero is adaptive (module head).
    pub linger: Duration,
    /// Largest batch, bytes before compression. A larger record goes in a batch of its own.
    pub batch_bytes: usize,
    /// Seed of the jitter.
    pub seed: u64,
}

/// What the owner wants back for each record. A record that is *stored* is kept by the owner on the disk too, so that the
/// next process may send it: see [`Action::Keep`].
pub trait Tag {
    /// Names a stored record.
    type Stored: std::fmt::Debug;
    /// The name of the stored record; None while it is not stored.
    fn stored(&self) -> Option<Self::Stored>;
}

/// What the owner is to do.
#[derive(Debug)]
pub enum Action<S> {
    /// Open a connection and report on it under this number.
    Open {
        /// Number of the link.
        link: u64,
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Send a request on a link.
    Send {
        /// Number of the link.
        link: u64,
        /// The request.
        request: Request,
    },
    /// Close a link; nothing more is reported on it.
    Close {
        /// Number of the link.
        link: u64,
    },
    /// Put the identities of stored batches on the disk, then call [`Producer::kept`]; they are sent then.
    Keep {
        /// To be given back.
        ticket: u64,
        /// The batches.
        batches: Vec<KeptBatch<S>>,
    },
}

/// What happened on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Connected and versions negotiated.
    Ready {
        /// Number of the link.
        link: u64,
        /// The broker knows DescribeProducers (KIP-664).
        describes_producers: bool,
    },
    /// The answer to the oldest request without one.
    Response {
        /// Number of the link.
        link: u64,
        /// The answer.
        response: Response,
    },
    /// The connection could not be made, or ended.
    Closed {
        /// Number of the link.
        link: u64,
        /// Why, in words.
        reason: String,
        /// The broker has refused our credentials: the longest pause before they are tried again.
        refusal: Option<Duration>,
    },
}

/// A record that Kafka will never take.
#[derive(Debug)]
pub struct RefusedRecord<T> {
    /// Who waits for it.
    pub tag: T,
    /// The topic it was for.
    pub topic: TopicName,
    /// The record.
    pub record: Record,
    /// Kafka's error code.
    pub code: ErrorCode,
    /// Kafka's words, or ours.
    pub reason: String,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProducerStats {
    /// Records that Kafka has acknowledged.
    pub delivered: u64,
    /// Records refused for good.
    pub refused: u64,
    /// Runs of batches that had to be sent again.
    pub setbacks: u64,
    /// Batches that may have been written twice because Kafka had forgotten the producer.
    pub possible_repeats: u64,
    /// Produce requests sent.
    pub requests: u64,
    /// Batches sent.
    pub batches: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// Not asked yet, or to be asked again from this time.
    WantedFrom(Instant),
    /// Asked under this ticket.
    Asked(u64),
    Known(ProducerId),
}

/// See the module head. `T` is whatever the owner wants back for each record.
pub struct Producer<T: Tag> {
    options: ProducerOptions,
    cluster: Cluster,
    topics: Vec<Topic<T>>,
    by_name: HashMap<TopicName, usize>,
    /// Partitions that may have something to send, in order of becoming so.
    listed: VecDeque<PartitionAt>,
    identity: Identity,
    /// The broker refuses idempotent producers to this user.
    idempotence_denied: bool,
    newest: Option<ProducerId>,
    /// The ticket of the question that is open.
    metadata_asked: Option<u64>,
    /// No topic is due for metadata before this time.
    metadata_at: Instant,
    /// The leaders of all partitions.
    wanted_nodes: Vec<i32>,
    next_ticket: u64,
    pending: usize,
    rng: fastrand::Rng,
    actions: VecDeque<Action<T::Stored>>,
    /// Partitions that wait for their identities to be kept, by ticket.
    keeping: BTreeMap<u64, Vec<PartitionAt>>,
    keep_ticket: Option<u64>,
    /// What the pump has gathered for the next [`Action::Keep`].
    to_keep: Vec<(PartitionAt, KeptBatch<T::Stored>)>,
    delivered: Vec<T>,
    refused: Vec<RefusedRecord<T>>,
    stats: ProducerStats,
    /// Earliest time at which a partition has something to do.
    wake_at: Option<Instant>,
    /// A time by both clocks, if the owner tells.
    wall_clock: Option<(Instant, i64)>,
    /// A topic that Kafka refuses has records that wait for it: see [`Producer::overdue`].
    held_topic: bool,
}

impl<T: Tag> Producer<T> {
    /// A producer that knows nothing yet.
    pub fn new(options: ProducerOptions, now: Instant) -> Self {
        Producer {
            cluster: Cluster::new(options.bootstrap.clone(), now),
            rng: fastrand::Rng::with_seed(options.seed),
            options,
            topics: Vec::new(),
            by_name: HashMap::new(),
            listed: VecDeque::new(),
            identity: Identity::WantedFrom(now),
            idempotence_denied: false,
            newest: None,
            metadata_asked: None,
            metadata_at: now,
            wanted_nodes: Vec::new(),
            next_ticket: 1,
            pending: 0,
            actions: VecDeque::new(),
            keeping: BTreeMap::new(),
            keep_ticket: None,
            to_keep: Vec::new(),
            delivered: Vec::new(),
            refused: Vec::new(),
            stats: ProducerStats::default(),
            wake_at: None,
            wall_clock: None,
            held_topic: false,
        }
    }

    /// Tells what the time of day is, milliseconds since the Unix epoch. Kafka forgets a producer by the times of its records:
    /// with this, old ones are sent one batch at a time.
    pub fn set_wall_clock(&mut self, now: Instant, unix_ms: i64) {
        self.wall_clock = Some((now, unix_ms));
    }

    /// Asks for the topic's partitions ahead of its first record. Does not create the topic.
    pub fn prepare(&mut self, topic: &TopicName, now: Instant) {
        self.topic_index(topic, now);
    }

    /// Takes a record. It comes back by [`Producer::take_delivered`] or [`Producer::take_refused`].
    ///
    /// # Errors
    /// There are [`TOPICS_MAX`] topics already and this is another: the tag.
    pub fn push(&mut self, topic: &TopicName, record: &RecordRef<'_>, tag: T, now: Instant) -> Result<(), T> {
        let Some(index) = self.topic_index(topic, now) else { return Err(tag) };
        let Some(found) = self.topics.get_mut(index) else { return Err(tag) };
        self.pending += 1;
        self.held_topic |= found.is_held();
        if found.want_creation(now) {
            self.metadata_at = self.metadata_at.min(now);
        }
        if found.slots.is_empty() {
            found.waiting.push_back(Early::Record(owned(record), tag, now));
        } else {
            self.place(index, record, tag, now);
        }
        Ok(())
    }

    /// Records that have neither come back nor been abandoned.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Topics that it knows or asks for.
    pub fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Moves the tags of delivered records to the end of `into`, in the order of delivery.
    pub fn take_delivered(&mut self, into: &mut Vec<T>) {
        into.append(&mut self.delivered);
    }

    /// Takes the records that were refused for good.
    pub fn take_refused(&mut self) -> Vec<RefusedRecord<T>> {
        std::mem::take(&mut self.refused)
    }

    /// True if [`Producer::take_refused`] has something to give.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// The next thing to do, after [`Producer::poll`].
    pub fn next_action(&mut self) -> Option<Action<T::Stored>> {
        self.actions.pop_front()
    }

    /// Counts since the start.
    pub fn stats(&self) -> ProducerStats {
        self.stats
    }

    /// True while a broker is connected and answers.
    pub fn is_connected(&self, now: Instant) -> bool {
        self.cluster.any_healthy(now).is_some()
    }

    /// Gives back every tag that has not come back: the process stops.
    pub fn abandon(&mut self) -> Vec<T> {
        let mut tags = Vec::new();
        for topic in &mut self.topics {
            tags.extend(topic.waiting.drain(..).flat_map(Early::into_records).map(|(_, tag)| tag));
            for slot in &mut topic.slots {
                tags.extend(slot.partition.abandon());
            }
        }
        self.pending = 0;
        tags
    }

    /// Adds a record to its partition, whose topic is known.
    fn place(&mut self, index: usize, record: &RecordRef<'_>, tag: T, now: Instant) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let count = i32::try_from(topic.slots.len()).unwrap_or(i32::MAX);
        let chosen = match record.key {
            Some(key) => partition_for_key(key, count),
            None => topic.sticky.partition(&topic.available, self.rng.u32(..)).unwrap_or(0),
        };
        let partition = usize::try_from(chosen).unwrap_or(0);
        let mut record = *record;
        if topic.is_timeless(now) {
            record.timestamp_ms = NO_TIMESTAMP;
        }
        let Some(slot) = topic.slots.get_mut(partition) else { return };
        slot.partition.append(&record, tag, now, self.options.batch_bytes, self.options.compression);
        if !slot.listed {
            slot.listed = true;
            self.listed.push_back(PartitionAt { topic: index, partition });
        }
    }

    fn topic_index(&mut self, name: &TopicName, now: Instant) -> Option<usize> {
        if let Some(index) = self.by_name.get(name) {
            return Some(*index);
        }
        if self.topics.len() >= TOPICS_MAX {
            return None;
        }
        let index = self.topics.len();
        self.topics.push(Topic::new(name.clone(), Sticky::new(), now));
        self.by_name.insert(name.clone(), index);
        self.metadata_at = self.metadata_at.min(now);
        Some(index)
    }

    /// Notes what happened on a link.
    pub fn on_event(&mut self, event: LinkEvent, now: Instant) {
        match event {
            LinkEvent::Ready { link, describes_producers } => {
                self.cluster.on_ready(link, describes_producers, now);
                // Partitions whose leader this is may send now; so may what was waiting for any broker.
                self.wake_at = Some(now);
            }
            LinkEvent::Closed { link, reason, refusal } => {
                let random = self.rng.f64();
                let node = self.cluster.links.get(&link).and_then(|link| link.node);
                let unanswered = self.cluster.on_closed(link, &reason, refusal, random, now);
                self.on_unanswered(unanswered, now);
                self.suspect_leaders(now, |leader| Some(leader) == node);
            }
            LinkEvent::Response { link, response } => self.on_response(link, response, now),
        }
    }

    /// Does all that can be done now; then [`Producer::next_action`] says what the owner is to do, and the return
    /// value when to call again at the latest.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        self.close_stale_links(now);
        self.open_links(now);
        self.ask_metadata(now);
        self.pump(now);
        self.ask_producer_id(now);
        self.next_deadline(now)
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let may_ask = self.metadata_asked.is_none() && self.cluster.any_healthy(now).is_some();
        let metadata = may_ask.then_some(self.metadata_at);
        [self.wake_at, metadata, self.cluster.next_deadline(now)].into_iter().flatten().min()
    }

    fn ticket(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    /// Told once; asked again from time to time, since rights can be granted.
    fn deny_idempotence(&mut self, code: ErrorCode, now: Instant) {
        if !std::mem::replace(&mut self.idempotence_denied, true) {
            warn!(
                "Kafka refuses an idempotent producer ({code}): records are sent one batch at a time, and a batch \
                 whose answer is lost may be written twice; grant WRITE on the topics (Kafka 2.8 and later) or \
                 IDEMPOTENT_WRITE on the cluster"
            );
        }
        self.identity = Identity::WantedFrom(now + RIGHTS_RETRY);
    }

    fn refuse(&mut self, topic: &TopicName, record: Record, tag: T, code: ErrorCode, reason: String) {
        self.pending -= 1;
        self.stats.refused += 1;
        self.refused.push(RefusedRecord { tag, topic: topic.clone(), record, code, reason });
    }

    fn find_wanted_nodes(&mut self) {
        let slots = self.topics.iter().flat_map(|topic| &topic.slots);
        let leaders: BTreeSet<i32> = slots.filter_map(|slot| slot.partition.leader).collect();
        self.wanted_nodes = leaders.into_iter().collect();
    }
}

fn owned(record: &RecordRef<'_>) -> Record {
    let copy = bytes::Bytes::copy_from_slice;
    Record {
        key: record.key.map(copy),
        value: record.value.map(copy),
        headers: record.headers.iter().map(|(name, value)| ((*name).to_owned(), Some(copy(value)))).collect(),
        timestamp_ms: record.timestamp_ms,
        offset: -1,
    }
}
