//! The producer, a model of the spool, and a process that dies at any moment: what is stored is written once and in order.
//!
//! The spool here is what the next process finds: frames in order, the identities that were kept for their records, and
//! which frames are done, as far as that was written down. Requests of a dead process may still be carried out, at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{Action, KeptBatch, LinkEvent, Producer, ProducerOptions, SentBefore, Tag};
use super::broker::{Fate, SimCluster};
use super::{Step as Common, any_fate};
use crate::kafka::compression::Compression;
use crate::kafka::protocol::Request;
use crate::kafka::record_batch::{Identity, Record, RecordRef};

mod named;

#[derive(Debug, Clone, Copy)]
pub(super) struct Rec {
    value: u64,
    stored: bool,
}

impl Tag for Rec {
    type Stored = u64;
    fn stored(&self) -> Option<u64> {
        self.stored.then_some(self.value)
    }
}

/// The batch that a record was given to.
#[derive(Debug, Clone, Copy)]
struct Given {
    partition: i32,
    identity: Identity,
    records: i32,
    after_offset: i64,
}

/// What is on the disk.
#[derive(Debug, Default)]
struct Spool {
    frames: Vec<Vec<u64>>,
    given: BTreeMap<u64, Given>,
    finished: BTreeSet<usize>,
}

/// Copies of what the producer has sent, on their way to the disk, and what it had not sent.
#[derive(Debug, Default)]
struct Append {
    copies: Vec<(Option<Given>, Vec<u64>)>,
    taken: Vec<u64>,
}

pub(super) struct World {
    pub now: Instant,
    pub cluster: SimCluster,
    pub producer: Producer<Rec>,
    links: BTreeMap<u64, (i32, VecDeque<Request>)>,
    /// Of dead processes, by link.
    late: Vec<VecDeque<(i32, Request)>>,
    /// One of them was carried out since this process started.
    was_late: bool,
    spool: Spool,
    keeps: VecDeque<(u64, Vec<KeptBatch<u64>>)>,
    append: Option<Append>,
    /// What has come back to this process.
    done: BTreeSet<u64>,
    unstored: BTreeSet<u64>,
    lost: BTreeSet<u64>,
    pushed: u64,
    repeats: u64,
    describes_producers: bool,
}

/// How a process dies.
#[derive(Debug, Clone, Copy)]
struct Crash {
    /// How many requests of each link are carried out at once; what happens to the others later.
    carried_out: usize,
    others_are_late: bool,
    /// Identities that were to be kept reached the disk.
    kept: bool,
    /// Frames whose being done was written down, by the bits of their numbers.
    finished: u64,
    /// Frames that are not there any more.
    lost: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Common(Common),
    /// Records that come from the spool, in frames of this size.
    Store(u64, usize),
    /// What the producer has goes to the spool.
    Copy,
    Copied,
    Kept,
    Crash(Crash),
    Late(usize),
    Expire(usize),
}

impl World {
    pub fn new(brokers: i32, partitions: i32) -> Self {
        let now = Instant::now();
        World {
            now,
            cluster: SimCluster::new(brokers, partitions),
            producer: start(now),
            links: BTreeMap::new(),
            late: Vec::new(),
            was_late: false,
            spool: Spool::default(),
            keeps: VecDeque::new(),
            append: None,
            done: BTreeSet::new(),
            unstored: BTreeSet::new(),
            lost: BTreeSet::new(),
            pushed: 0,
            repeats: 0,
            describes_producers: true,
        }
    }

    fn push_value(&mut self, value: u64, stored: bool) {
        let (key, bytes) = (key(value), value.to_be_bytes());
        let record = RecordRef { key: Some(&key), value: Some(&bytes), headers: &[], timestamp_ms: 1 };
        let topic = self.cluster.topic.clone();
        self.producer.push(&topic, &record, Rec { value, stored }, self.now).unwrap();
    }

    fn push(&mut self, count: u64) {
        // While an append is under way, new records wait for it.
        for _ in 0..if self.append.is_some() { 0 } else { count } {
            self.unstored.insert(self.pushed);
            self.push_value(self.pushed, false);
            self.pushed += 1;
        }
    }

    pub fn store(&mut self, count: u64, frame: usize) {
        if !self.unstored.is_empty() || self.append.is_some() {
            return self.push(count);
        }
        let values: Vec<u64> = (self.pushed..self.pushed + count).collect();
        self.pushed += count;
        self.spool.frames.extend(values.chunks(frame).map(<[u64]>::to_vec));
        values.into_iter().for_each(|value| self.push_value(value, true));
    }

    fn copy(&mut self) {
        if self.append.is_some() || self.unstored.is_empty() {
            return;
        }
        let topic = self.cluster.topic.clone();
        let taken = self.producer.take_unsent(&topic).into_iter().map(|(_, tag)| tag.value).collect();
        let mut append = Append { taken, ..Append::default() };
        self.producer.copy_sent(&topic, |batch| {
            let (partition, records) = (batch.partition, batch.records.count());
            let given = |identity| Given { partition, identity, records, after_offset: -1 };
            let values = batch.tags.iter().map(|tag| tag.value).collect();
            append.copies.push((batch.identity.map(given), values));
        });
        self.append = Some(append);
    }

    fn copied(&mut self) {
        let Some(Append { copies, taken }) = self.append.take() else { return };
        for (given, values) in copies {
            self.spool.given.extend(
                given
                    .into_iter()
                    .flat_map(|given| values.iter().map(move |value| (*value, given)).collect::<Vec<_>>()),
            );
            values.iter().for_each(|value| assert!(self.unstored.remove(value) || self.done.contains(value)));
            self.spool.frames.push(values);
        }
        self.producer.convert(&self.cluster.topic.clone(), |tag| tag.stored = true);
        self.spool.frames.extend(taken.chunks(3).map(<[u64]>::to_vec));
        for value in taken {
            self.unstored.remove(&value);
            self.push_value(value, true);
        }
    }

    fn keep_front(&mut self) -> Option<u64> {
        let (ticket, batches) = self.keeps.pop_front()?;
        for batch in batches {
            let KeptBatch { partition, identity, records, after_offset, stored, .. } = batch;
            let given = Given { partition, identity, records, after_offset };
            self.spool.given.extend(stored.into_iter().map(|value| (value, given)));
        }
        Some(ticket)
    }

    fn kept(&mut self) {
        if let Some(ticket) = self.keep_front() {
            self.producer.kept(ticket, self.now);
        }
    }

    fn crash(&mut self, crash: Crash) {
        for (_, (broker, requests)) in std::mem::take(&mut self.links) {
            let mut requests: VecDeque<(i32, Request)> = requests
                .into_iter()
                .filter(|r| matches!(r, Request::Produce(_)))
                .map(|r| (broker, r))
                .collect();
            for (broker, request) in requests.drain(..crash.carried_out.min(requests.len())) {
                self.cluster.handle(broker, &request, Fate::BreakAfter);
            }
            if crash.others_are_late {
                self.late.push(requests);
            }
        }
        // The next process comes later than replicas need.
        self.cluster.replicate();
        self.cluster.partitions.iter_mut().for_each(|partition| partition.told = false);
        while crash.kept && self.keep_front().is_some() {}
        self.keeps.clear();
        self.append = None;
        self.was_late = false;
        self.unstored.clear();
        let bit = |bits: u64, frame: usize| bits & (1 << (frame % 64)) != 0;
        for (at, frame) in self.spool.frames.iter().enumerate() {
            let done = frame.iter().all(|value| self.done.contains(value));
            if done && bit(crash.finished, at) {
                self.spool.finished.insert(at);
            } else if bit(crash.lost, at) && !self.spool.finished.contains(&at) {
                self.spool.finished.insert(at);
                self.lost.extend(frame);
            }
        }
        self.repeats += self.producer.stats().possible_repeats;
        self.done.clear();
        self.producer = start(self.now);
        self.restore();
        self.poll();
    }

    fn restore(&mut self) {
        let mut groups: Vec<(Given, Vec<u64>)> = Vec::new();
        let mut others = Vec::new();
        for (at, frame) in self.spool.frames.iter().enumerate() {
            for value in frame.iter().filter(|_| !self.spool.finished.contains(&at)) {
                match self.spool.given.get(value) {
                    Some(given) => {
                        let same = |(known, _): &&mut (Given, Vec<u64>)| {
                            known.partition == given.partition && known.identity == given.identity
                        };
                        match groups.iter_mut().rfind(same) {
                            Some((_, values)) => values.push(*value),
                            None => groups.push((*given, vec![*value])),
                        }
                    }
                    None => others.push(*value),
                }
            }
        }
        let topic = self.cluster.topic.clone();
        for (given, values) in groups {
            let record = |value: u64| Record {
                key: Some(key(value).to_vec().into()),
                value: Some(value.to_be_bytes().to_vec().into()),
                headers: Vec::new(),
                timestamp_ms: 1,
                offset: -1,
            };
            let records = values.into_iter().map(|value| (record(value), Rec { value, stored: true }));
            let batch = SentBefore {
                identity: given.identity,
                batch_records: given.records,
                after_offset: given.after_offset,
                records: records.collect(),
            };
            self.producer.push_sent(&topic, given.partition, batch, self.now).unwrap();
        }
        others.into_iter().for_each(|value| self.push_value(value, true));
    }

    pub fn poll(&mut self) -> Option<Instant> {
        self.producer.set_wall_clock(self.now, 1_700_000_000_000);
        let wake_at = self.producer.poll(self.now);
        while let Some(action) = self.producer.next_action() {
            match action {
                Action::Open { link, host, .. } => {
                    let broker = host.trim_start_matches('b').parse().unwrap();
                    self.links.insert(link, (broker, VecDeque::new()));
                    let describes_producers = self.describes_producers;
                    self.producer.on_event(LinkEvent::Ready { link, describes_producers }, self.now);
                }
                Action::Send { link, request } => {
                    if let Some((_, requests)) = self.links.get_mut(&link) {
                        requests.push_back(request);
                    }
                }
                Action::Close { link } => {
                    self.links.remove(&link);
                }
                Action::Keep { ticket, batches } => self.keeps.push_back((ticket, batches)),
            }
        }
        let mut back = Vec::new();
        self.producer.take_delivered(&mut back);
        let poison = self.cluster.poison;
        assert!(back.iter().all(|tag| Some(tag.value) != poison), "what is refused is taken for written");
        for refused in self.producer.take_refused() {
            assert_eq!(Some(refused.tag.value), self.cluster.poison);
            back.push(refused.tag);
        }
        for tag in back {
            assert!(self.done.insert(tag.value), "{tag:?} came back twice");
            self.unstored.remove(&tag.value);
        }
        wake_at
    }

    pub fn answer(&mut self, pick: usize, fate: Fate) {
        let busy = self.links.iter().filter(|(_, (_, requests))| !requests.is_empty());
        let busy: Vec<u64> = busy.map(|(id, _)| *id).collect();
        let Some(link) = busy.get(pick % busy.len().max(1)).copied() else { return };
        let (broker, requests) = self.links.get_mut(&link).unwrap();
        let (broker, request) = (*broker, requests.pop_front().unwrap());
        let event = match self.cluster.handle(broker, &request, fate) {
            Some(response) => LinkEvent::Response { link, response },
            None => {
                let (_, rest) = self.links.remove(&link).unwrap();
                for request in rest.iter().filter(|_| fate == Fate::BreakAfter) {
                    self.cluster.handle(broker, request, Fate::BreakAfter);
                }
                LinkEvent::Closed { link, reason: "broken".into(), refusal: None }
            }
        };
        self.producer.on_event(event, self.now);
    }

    fn restart(&mut self, broker: i32) {
        self.cluster.restart(broker);
        let links: Vec<u64> =
            self.links.iter().filter(|(_, (b, _))| *b == broker).map(|(id, _)| *id).collect();
        for link in links {
            self.links.remove(&link);
            self.producer
                .on_event(LinkEvent::Closed { link, reason: "restart".into(), refusal: None }, self.now);
        }
    }

    fn late(&mut self, pick: usize) {
        self.late.retain(|requests| !requests.is_empty());
        let at = pick % self.late.len().max(1);
        if let Some((broker, request)) = self.late.get_mut(at).and_then(VecDeque::pop_front) {
            self.cluster.handle(broker, &request, Fate::BreakAfter);
            self.cluster.replicate();
            self.was_late = true;
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Common(Common::Push(count)) => self.push(count),
            Step::Common(Common::Answer(pick, fate)) => self.answer(pick, fate),
            Step::Common(Common::Wait(ms)) => self.now += Duration::from_millis(ms),
            Step::Common(Common::MoveLeader(partition, lose)) => self.cluster.move_leader(partition, lose),
            Step::Common(Common::Restart(broker)) => self.restart(broker),
            Step::Store(count, frame) => self.store(count, frame),
            Step::Copy => self.copy(),
            Step::Copied => self.copied(),
            Step::Kept => self.kept(),
            Step::Crash(crash) => self.crash(crash),
            Step::Late(pick) => self.late(pick),
            // What comes late to a partition that has forgotten is written again, whatever anybody does; and what came
            // late after the question is as good as unknown if it is forgotten at once.
            Step::Expire(partition) if !self.was_late && self.late.iter().all(VecDeque::is_empty) => {
                self.cluster.expire(partition);
            }
            Step::Expire(_) => {}
        }
        self.poll();
    }

    pub fn heal(&mut self) {
        for _ in 0..20_000 {
            let wake_at = self.poll();
            if self.append.is_some() {
                self.copied();
            } else if !self.keeps.is_empty() {
                self.kept();
            } else if self.links.values().any(|(_, requests)| !requests.is_empty()) {
                self.answer(0, Fate::Normal);
            } else if self.producer.pending() == 0 {
                return;
            } else {
                self.now = wake_at.unwrap_or(self.now).max(self.now + Duration::from_millis(1));
            }
        }
        panic!("{} records are still pending", self.producer.pending());
    }

    /// Answers everything until such a request is next on the first busy link.
    pub fn run_until(&mut self, next: impl Fn(&Request) -> bool) -> bool {
        for _ in 0..1000 {
            let wake_at = self.poll();
            let busy = self.links.values().find_map(|(_, requests)| requests.front());
            if busy.is_some_and(&next) {
                return true;
            }
            if busy.is_some() {
                self.answer(0, Fate::Normal);
            } else if !self.keeps.is_empty() {
                self.kept();
            } else {
                self.now = wake_at.unwrap_or(self.now).max(self.now + Duration::from_millis(1));
            }
        }
        false
    }

    pub fn cannot_describe_producers(&mut self) {
        self.describes_producers = false;
    }

    pub fn die_with_its_requests_carried_out(&mut self) {
        self.crash(Crash { carried_out: 9, others_are_late: false, kept: true, finished: 0, lost: 0 });
    }

    /// Frames of which this was written down are done, or lost, by the bits of their numbers.
    pub fn die(&mut self, finished: u64, lost: u64) {
        self.crash(Crash { carried_out: 0, others_are_late: false, kept: true, finished, lost });
    }

    pub fn written(&self) -> Vec<u64> {
        self.cluster.partitions.iter().flat_map(super::broker::SimPartition::values).collect()
    }

    /// Everything is written, and if something is written twice, that was told.
    pub fn assert_nothing_lost(&self) {
        let written = self.written();
        let once: BTreeSet<u64> = written.iter().copied().collect();
        let stored = self.spool.frames.iter().flatten().filter(|value| !self.lost.contains(value));
        let missing: Vec<u64> = stored.copied().filter(|value| !once.contains(value)).collect();
        assert!(missing.is_empty(), "not written: {missing:?}");
        let told = self.repeats + self.producer.stats().possible_repeats;
        assert!(told > 0 || once.len() == written.len(), "something is written twice: {written:?}");
    }

    pub fn assert_exact(&self) {
        let stored: BTreeSet<u64> = self.spool.frames.iter().flatten().copied().collect();
        for partition in &self.cluster.partitions {
            let of_it: Vec<u64> =
                partition.values().into_iter().filter(|value| stored.contains(value)).collect();
            assert!(of_it.is_sorted(), "out of order: {of_it:?}");
        }
        let written = self.written();
        let once: BTreeSet<u64> = written.iter().copied().collect();
        assert_eq!(once.len(), written.len(), "something is written twice: {written:?}");
        let missing: Vec<u64> =
            stored.difference(&once).filter(|value| !self.lost.contains(value)).copied().collect();
        let poison: Vec<u64> =
            self.cluster.poison.into_iter().filter(|value| missing.contains(value)).collect();
        assert_eq!(missing, poison, "every stored record is written");
        assert_eq!(self.repeats + self.producer.stats().possible_repeats, 0);
    }
}

fn start(now: Instant) -> Producer<Rec> {
    let options = ProducerOptions {
        bootstrap: vec![("b0".into(), 9092)],
        acks: -1,
        compression: Compression::None,
        linger: Duration::ZERO,
        batch_bytes: 200,
        seed: 7,
    };
    Producer::new(options, now)
}

fn key(value: u64) -> [u8; 2] {
    [b'k', (value % 5) as u8]
}

fn any_common() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1_u64..12).prop_map(Common::Push),
        16 => (0_usize..4, any_fate()).prop_map(|(pick, fate)| Common::Answer(pick, fate)),
        2 => (0_u64..2000).prop_map(Common::Wait),
        1 => (0_usize..2, any::<bool>()).prop_map(|(partition, lose)| Common::MoveLeader(partition, lose)),
        1 => (0_i32..2).prop_map(Common::Restart),
    ]
    .prop_map(Step::Common)
}

fn any_crash(late: bool, lost: bool) -> impl Strategy<Value = Step> {
    let lost = if lost { prop_oneof![Just(0), any::<u64>()].boxed() } else { Just(0).boxed() };
    (0_usize..6, any::<bool>(), any::<bool>(), any::<u64>(), lost).prop_map(
        move |(carried_out, others, kept, finished, lost)| {
            Step::Crash(Crash { carried_out, others_are_late: late && others, kept, finished, lost })
        },
    )
}

fn any_step(late: bool, expire: u32, lost: bool) -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => any_common(),
        4 => (1_u64..20, 1_usize..5).prop_map(|(count, frame)| Step::Store(count, frame)),
        6 => Just(Step::Kept),
        1 => Just(Step::Copy),
        1 => Just(Step::Copied),
        2 => any_crash(late, lost),
        1 => (0_usize..4).prop_map(Step::Late),
        expire => (0_usize..2).prop_map(Step::Expire),
    ]
}

fn run(world: &mut World, steps: Vec<Step>) {
    steps.into_iter().for_each(|step| world.step(step));
    world.heal();
    // The last process found nothing wrong; the next one finds all that is not written down as done, and nothing to do.
    let nothing = Crash { carried_out: 0, others_are_late: false, kept: true, finished: 0, lost: 0 };
    world.crash(nothing);
    world.heal();
    world.assert_exact();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_stored_record_is_written_once_and_in_order(
        steps in prop::collection::vec(any_step(true, 0, false), 1..120)
    ) {
        run(&mut World::new(2, 2), steps);
    }

    #[test]
    fn a_producer_that_is_forgotten_at_any_time_repeats_nothing(
        steps in prop::collection::vec(any_step(true, 2, false), 1..120)
    ) {
        run(&mut World::new(2, 2), steps);
    }

    #[test]
    fn a_refused_record_is_never_taken_for_one_that_was_written(
        steps in prop::collection::vec(any_step(true, 1, false), 1..80), poison in 0_u64..30
    ) {
        let mut world = World::new(2, 2);
        world.cluster.poison = Some(poison);
        world.store(30, 4);
        run(&mut world, steps);
    }

    #[test]
    fn what_the_spool_has_lost_makes_nothing_else_repeat(
        steps in prop::collection::vec(any_step(false, 1, true), 1..120)
    ) {
        run(&mut World::new(2, 2), steps);
    }

    #[test]
    fn a_broker_that_cannot_be_asked_gets_no_repeat_after_a_crash(
        steps in prop::collection::vec(any_step(true, 0, false), 1..120)
    ) {
        let mut world = World::new(2, 2);
        world.describes_producers = false;
        run(&mut world, steps);
    }

    #[test]
    fn without_read_nothing_is_lost_and_what_may_repeat_is_told(
        steps in prop::collection::vec(any_step(true, 0, false), 1..120)
    ) {
        let mut world = World::new(2, 2);
        world.cluster.describe_code = 29;
        world.cluster.read_code = 29;
        steps.into_iter().for_each(|step| world.step(step));
        world.heal();
        world.die(0, 0);
        world.heal();
        world.assert_nothing_lost();
    }
}
