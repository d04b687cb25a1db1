//! The producer against a simulated cluster: whatever happens, every record is written once and in order.

mod broker;
mod outages;
mod read_back;
mod restarts;
mod without_read;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use self::broker::{Fate, SimCluster};
use super::{Action, LinkEvent, Producer, ProducerOptions, Tag};
use crate::kafka::compression::Compression;
use crate::kafka::protocol::Request;
use crate::kafka::record_batch::RecordRef;

/// Records that are not stored.
impl Tag for u64 {
    type Stored = ();
    fn stored(&self) -> Option<()> {
        None
    }
}

struct World {
    now: Instant,
    cluster: SimCluster,
    producer: Producer<u64>,
    /// Open links: the broker behind each, and what it has been asked and not answered.
    links: BTreeMap<u64, (i32, VecDeque<Request>)>,
    delivered: Vec<u64>,
    refused: Vec<u64>,
    pushed: u64,
    most_in_flight: usize,
}

impl World {
    fn new(brokers: i32, partitions: i32) -> Self {
        let now = Instant::now();
        let options = ProducerOptions {
            bootstrap: vec![("dead".into(), 1), ("b0".into(), 9092)],
            acks: -1,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 300,
            seed: 7,
        };
        World {
            now,
            cluster: SimCluster::new(brokers, partitions),
            producer: Producer::new(options, now),
            links: BTreeMap::new(),
            delivered: Vec::new(),
            refused: Vec::new(),
            pushed: 0,
            most_in_flight: 0,
        }
    }

    fn push(&mut self, count: u64) {
        for _ in 0..count {
            let value = self.pushed.to_be_bytes();
            let key = [b'k', (self.pushed % 5) as u8];
            let record = RecordRef { key: Some(&key), value: Some(&value), headers: &[], timestamp_ms: 1 };
            let topic = self.cluster.topic.clone();
            self.producer.push(&topic, &record, self.pushed, self.now).unwrap();
            self.pushed += 1;
        }
    }

    /// Lets the producer act, and carries out what it asks, without answering.
    fn poll(&mut self) -> Option<Instant> {
        let wake_at = self.producer.poll(self.now);
        while let Some(action) = self.producer.next_action() {
            match action {
                Action::Open { link, host, .. } => {
                    let event = match host.strip_prefix('b').and_then(|id| id.parse().ok()) {
                        Some(broker) => {
                            self.links.insert(link, (broker, VecDeque::new()));
                            LinkEvent::Ready { link, describes_producers: true }
                        }
                        None => LinkEvent::Closed { link, reason: "no such host".into(), refusal: None },
                    };
                    self.producer.on_event(event, self.now);
                }
                Action::Send { link, request } => {
                    if let Some((_, requests)) = self.links.get_mut(&link) {
                        requests.push_back(request);
                        let produces = requests.iter().filter(|r| matches!(r, Request::Produce(_))).count();
                        self.most_in_flight = self.most_in_flight.max(produces);
                    }
                }
                Action::Close { link } => {
                    self.links.remove(&link);
                }
                Action::Keep { .. } => unreachable!("nothing here is stored"),
            }
        }
        self.producer.take_delivered(&mut self.delivered);
        self.refused.extend(self.producer.take_refused().into_iter().map(|refused| refused.tag));
        wake_at
    }

    /// Answers the oldest request of the `pick`-th busy link.
    fn answer(&mut self, pick: usize, fate: Fate) {
        let busy: Vec<u64> =
            self.links.iter().filter(|(_, (_, requests))| !requests.is_empty()).map(|(id, _)| *id).collect();
        let Some(link) = busy.get(pick % busy.len().max(1)).copied() else { return };
        let (broker, requests) = self.links.get_mut(&link).unwrap();
        let (broker, request) = (*broker, requests.pop_front().unwrap());
        let event = match self.cluster.handle(broker, &request, fate) {
            Some(response) => LinkEvent::Response { link, response },
            None => {
                // What was sent behind it may still be carried out: the socket had it.
                let (_, rest) = self.links.remove(&link).unwrap();
                if fate == Fate::BreakAfter {
                    for request in rest {
                        self.cluster.handle(broker, &request, Fate::BreakAfter);
                    }
                }
                LinkEvent::Closed { link, reason: "broken".into(), refusal: None }
            }
        };
        self.producer.on_event(event, self.now);
    }

    /// Everything works again: runs until all is settled.
    fn heal(&mut self) {
        for _ in 0..20_000 {
            let wake_at = self.poll();
            let busy = self.links.values().any(|(_, requests)| !requests.is_empty());
            if self.producer.pending() == 0 && !busy {
                return;
            }
            if self.links.values().any(|(_, requests)| !requests.is_empty()) {
                self.answer(0, Fate::Normal);
            } else {
                self.now = wake_at.unwrap_or(self.now).max(self.now + Duration::from_millis(1));
            }
        }
        panic!("{} records are still pending", self.producer.pending());
    }

    fn assert_exact(&self) {
        let mut delivered = self.delivered.clone();
        delivered.extend(&self.refused);
        delivered.sort_unstable();
        assert_eq!(delivered, (0..self.pushed).collect::<Vec<_>>(), "every tag comes back once");
        let mut written = Vec::new();
        for partition in &self.cluster.partitions {
            let values = partition.values();
            for key in 0..5 {
                let of_key: Vec<u64> = values.iter().copied().filter(|value| value % 5 == key).collect();
                assert!(of_key.is_sorted(), "out of order: {of_key:?}");
            }
            written.extend(values);
        }
        written.sort_unstable();
        let expected: Vec<u64> = (0..self.pushed).filter(|value| !self.refused.contains(value)).collect();
        assert_eq!(written, expected, "every record is written once");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64),
    Answer(usize, Fate),
    Wait(u64),
    MoveLeader(usize, bool),
    Restart(i32),
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Normal),
        2 => Just(Fate::BreakBefore),
        2 => Just(Fate::BreakAfter),
        2 => prop_oneof![Just(6), Just(19), Just(3), Just(5), Just(-1), Just(56)].prop_map(Fate::Refuse),
        2 => prop_oneof![Just(7), Just(20)].prop_map(Fate::CarryOutAndSay),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..30).prop_map(Step::Push),
        12 => (0_usize..4, any_fate()).prop_map(|(pick, fate)| Step::Answer(pick, fate)),
        2 => (0_u64..2000).prop_map(Step::Wait),
        1 => (0_usize..3, any::<bool>()).prop_map(|(partition, lose)| Step::MoveLeader(partition, lose)),
        1 => (0_i32..3).prop_map(Step::Restart),
    ]
}

fn run(world: &mut World, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Push(count) => world.push(count),
            Step::Answer(pick, fate) => world.answer(pick, fate),
            Step::Wait(ms) => world.now += Duration::from_millis(ms),
            Step::MoveLeader(partition, lose) => world.cluster.move_leader(partition, lose),
            Step::Restart(broker) => {
                world.cluster.restart(broker);
                let links: Vec<u64> =
                    world.links.iter().filter(|(_, (b, _))| *b == broker).map(|(id, _)| *id).collect();
                for link in links {
                    world.links.remove(&link);
                    let event = LinkEvent::Closed { link, reason: "restart".into(), refusal: None };
                    world.producer.on_event(event, world.now);
                }
            }
        }
        world.poll();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_record_is_written_once_and_in_order(
        steps in prop::collection::vec(any_step(), 1..120)
    ) {
        let mut world = World::new(3, 3);
        run(&mut world, steps);
        world.heal();
        world.assert_exact();
        prop_assert_eq!(world.producer.stats().possible_repeats, 0);
    }

    #[test]
    fn a_refused_record_is_found_and_all_others_are_written(
        steps in prop::collection::vec(any_step(), 1..60), poison in 0_u64..40
    ) {
        let mut world = World::new(2, 2);
        world.cluster.poison = Some(poison);
        world.push(40);
        run(&mut world, steps.into_iter().map(|step| match step {
            Step::MoveLeader(partition, lose) => Step::MoveLeader(partition % 2, lose),
            Step::Restart(broker) => Step::Restart(broker % 2),
            other => other,
        }).collect());
        world.heal();
        world.assert_exact();
        prop_assert_eq!(&world.refused, &vec![poison]);
    }
}

#[test]
fn a_record_goes_out_at_once_when_nothing_is_in_flight() {
    let mut world = World::new(1, 1);
    world.push(1);
    world.heal();
    world.push(1);
    world.poll();
    assert!(world.links.values().any(|(_, requests)| matches!(requests.front(), Some(Request::Produce(_)))));
}

#[test]
fn only_one_batch_is_in_flight_until_the_first_is_acknowledged_then_five() {
    let mut world = World::new(1, 1);
    world.push(400);
    let produces = |world: &World| {
        world.links.values().flat_map(|(_, r)| r).filter(|r| matches!(r, Request::Produce(_))).count()
    };
    while produces(&world) == 0 {
        world.answer(0, Fate::Normal);
        world.poll();
        world.now += Duration::from_millis(10);
    }
    world.poll();
    assert_eq!(produces(&world), 1);
    world.heal();
    world.push(400);
    for _ in 0..10 {
        world.poll();
        world.now += Duration::from_millis(10);
    }
    assert_eq!(produces(&world), 5);
    world.heal();
    world.assert_exact();
}

#[test]
fn a_restarted_broker_that_remembers_only_the_last_of_five_batches_gets_no_repeat() {
    let mut world = World::new(1, 1);
    world.push(10);
    world.heal();
    world.push(400);
    for _ in 0..8 {
        world.poll();
        world.now += Duration::from_millis(5);
    }
    assert!(world.most_in_flight >= 3, "several batches are in flight");
    world.answer(0, Fate::BreakAfter);
    world.cluster.restart(0);
    world.heal();
    world.assert_exact();
}

#[test]
fn without_the_right_to_ask_one_batch_is_in_flight_and_retries_are_exact() {
    let mut world = World::new(1, 1);
    world.cluster.describe_code = 29;
    for _ in 0..10 {
        world.push(50);
        world.poll();
        world.answer(0, Fate::BreakAfter);
        world.cluster.restart(0);
        world.heal();
    }
    assert_eq!(world.most_in_flight, 1);
    world.assert_exact();
}

#[test]
fn a_producer_id_that_kafka_forgets_or_fences_is_replaced() {
    for code in [59, 47, 90] {
        let mut world = World::new(1, 1);
        world.push(10);
        world.heal();
        world.push(10);
        world.poll();
        world.answer(0, Fate::Refuse(code));
        world.heal();
        world.assert_exact();
    }
}

#[test]
fn an_abandoned_producer_gives_every_tag_back() {
    let mut world = World::new(1, 1);
    world.push(25);
    world.poll();
    let mut tags = world.producer.abandon();
    tags.sort_unstable();
    assert_eq!(tags, (0..25).collect::<Vec<_>>());
}
