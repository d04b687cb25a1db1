//! The producer against brokers that stay wrong: frozen, slow, refusing for ever, or without a topic they had. Each
//! test says with a function what a broker answers; no answer means that the broker is silent from there on.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::{Action, LinkEvent, Producer, ProducerOptions};
use crate::kafka::compression::Compression;
use crate::kafka::protocol::{
    Broker, InitProducerIdResponse, MetadataResponse, PartitionMetadata, PartitionOffset, PartitionProducers,
    ProduceRequest, ProduceResponse, ProduceResult, ProducerState, Request, Response, TopicMetadata,
    TopicName,
};
use crate::kafka::record_batch::{Identity, RecordRef, decode_batches};

/// A request on its way, and when it was sent.
type Waiting = (Instant, Request);

struct Stage {
    start: Instant,
    now: Instant,
    producer: Producer<u64>,
    links: BTreeMap<u64, (i32, VecDeque<Waiting>)>,
    delivered: Vec<u64>,
    refused: Vec<u64>,
    pushed: u64,
    polls: usize,
}

impl Stage {
    fn new() -> Self {
        let now = Instant::now();
        let options = ProducerOptions {
            bootstrap: vec![("b0".into(), 9092)],
            acks: -1,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 1 << 20,
            seed: 7,
        };
        Stage {
            start: now,
            now,
            producer: Producer::new(options, now),
            links: BTreeMap::new(),
            delivered: Vec::new(),
            refused: Vec::new(),
            pushed: 0,
            polls: 0,
        }
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn push(&mut self, topic: &str, key: &str) {
        let value = self.pushed.to_be_bytes();
        let record =
            RecordRef { key: Some(key.as_bytes()), value: Some(&value), headers: &[], timestamp_ms: 1 };
        self.producer.push(&topic.into(), &record, self.pushed, self.now).unwrap();
        self.pushed += 1;
    }

    fn poll(&mut self) -> Option<Instant> {
        self.polls += 1;
        let wake_at = self.producer.poll(self.now);
        while let Some(action) = self.producer.next_action() {
            match action {
                Action::Open { link, host, .. } => {
                    let broker = host.trim_start_matches('b').parse().unwrap();
                    self.links.insert(link, (broker, VecDeque::new()));
                    self.producer.on_event(LinkEvent::Ready { link, describes_producers: true }, self.now);
                }
                Action::Send { link, request } => {
                    if let Some((_, requests)) = self.links.get_mut(&link) {
                        requests.push_back((self.now, request));
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

    /// Runs for a time, or until everything is settled. A step of time is what the producer asks for, and at most
    /// ten milliseconds, which is also how often a silent broker is asked again.
    fn run(&mut self, limit: Duration, mut answer: impl FnMut(i32, &Waiting, Instant) -> Option<Response>) {
        let until = self.now + limit;
        while self.now < until {
            let wake_at = self.poll();
            let mut any = false;
            for link in self.links.keys().copied().collect::<Vec<_>>() {
                let Some((broker, requests)) = self.links.get_mut(&link) else { continue };
                let Some(response) = requests.front().and_then(|oldest| answer(*broker, oldest, self.now))
                else {
                    continue;
                };
                requests.pop_front();
                any = true;
                self.producer.on_event(LinkEvent::Response { link, response }, self.now);
            }
            if self.producer.pending() == 0 && !any {
                return;
            }
            let step = self.now + if any { Duration::from_millis(1) } else { Duration::from_millis(10) };
            self.now = wake_at.map_or(step, |at| at.clamp(self.now + Duration::from_micros(100), step));
        }
    }
}

fn metadata(brokers: i32, topics: &[(&str, i16, &[i32])]) -> Response {
    Response::Metadata(MetadataResponse {
        brokers: (0..brokers).map(|id| Broker { id, host: format!("b{id}"), port: 9092 }).collect(),
        topics: topics
            .iter()
            .map(|(name, error, leaders)| TopicMetadata {
                name: (*name).into(),
                error: *error,
                partitions: (0..)
                    .zip(*leaders)
                    .map(|(index, leader)| PartitionMetadata {
                        index,
                        error: 0,
                        leader: *leader,
                        leader_epoch: 0,
                    })
                    .collect(),
            })
            .collect(),
    })
}

fn producer_id(id: i64) -> Response {
    Response::InitProducerId(InitProducerIdResponse { error: 0, producer_id: id, producer_epoch: 0 })
}

fn led_by(leader: i32) -> Response {
    metadata(2, &[("t", 0, &[leader])])
}

fn state(last_sequence: i32) -> ProducerState {
    ProducerState { producer_id: 1, producer_epoch: 0, last_sequence }
}

fn identity_of(produce: &ProduceRequest) -> Identity {
    decode_batches(produce.batches[0].records.clone()).next().unwrap().unwrap().identity
}

fn produced(request: &ProduceRequest, code: i16) -> Response {
    let results = request.batches.iter().map(|batch| ProduceResult {
        topic: batch.topic.clone(),
        partition: batch.partition,
        error: code,
        base_offset: -1,
        record_errors: Vec::new(),
        message: None,
    });
    Response::Produce(ProduceResponse { throttle_ms: 0, results: results.collect() })
}

fn describe(request: &Request, error: i16, producers: &[ProducerState]) -> Response {
    let Request::DescribeProducers(topics) = request else { panic!("not a question: {request:?}") };
    let all = topics.iter().flat_map(|(topic, partitions)| partitions.iter().map(move |p| (topic, *p)));
    Response::DescribeProducers(
        all.map(|(topic, partition)| PartitionProducers {
            topic: topic.clone(),
            partition,
            error,
            producers: producers.to_vec(),
        })
        .collect(),
    )
}

/// An empty partition.
fn empty(request: &Request) -> Response {
    match request {
        Request::ListOffsets(asked) => {
            let none = |(topic, partition): &(TopicName, i32)| PartitionOffset {
                topic: topic.clone(),
                partition: *partition,
                error: 0,
                offset: -1,
            };
            Response::ListOffsets(asked.partitions.iter().map(none).collect())
        }
        other => panic!("nothing of an empty partition is read: {other:?}"),
    }
}

/// A broker that does what it should for these topics.
fn ordinary(request: &Request, brokers: i32, topics: &[(&str, i16, &[i32])]) -> Response {
    match request {
        Request::Metadata(_) => metadata(brokers, topics),
        Request::InitProducerId => producer_id(1),
        Request::Produce(produce) => produced(produce, 0),
        Request::DescribeProducers(_) => describe(request, 0, &[]),
        other => empty(other),
    }
}

#[test]
fn a_broker_that_freezes_with_a_question_does_not_hold_back_the_others() {
    // Both the metadata and the producer id are asked of the first broker, and it freezes with them.
    for frozen_from in [Duration::ZERO, Duration::from_millis(1)] {
        let mut stage = Stage::new();
        let topics: &[(&str, i16, &[i32])] = &[("t", 0, &[1]), ("new", 0, &[1])];
        stage.push("t", "k");
        if frozen_from.is_zero() {
            stage.run(Duration::from_secs(5), |_, (_, request), _| Some(ordinary(request, 2, topics)));
            assert_eq!(stage.delivered.len(), 1);
        } else {
            // Only the metadata is answered: the producer id is what it freezes with.
            stage.run(Duration::from_secs(1), |broker, (_, request), _| {
                (broker == 1 || matches!(request, Request::Metadata(_))).then(|| ordinary(request, 2, topics))
            });
        }
        stage.push("new", "k");
        let before = stage.elapsed();
        stage.run(Duration::from_secs(60), |broker, (_, request), _| {
            (broker == 1).then(|| ordinary(request, 2, topics))
        });
        assert_eq!(stage.producer.pending(), 0);
        let took = stage.elapsed() - before;
        assert!(took < Duration::from_secs(10), "the others waited for {took:?}");
    }
}

#[test]
fn records_of_partitions_that_a_new_topic_of_the_same_name_does_not_have_are_delivered() {
    let old: &[(&str, i16, &[i32])] = &[("t", 0, &[0, 0, 0, 0, 0, 0])];
    let new: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let mut stage = Stage::new();
    for number in 0..20 {
        stage.push("t", &format!("k{number}"));
    }
    stage.run(Duration::from_secs(5), |_, (_, request), _| Some(ordinary(request, 1, old)));
    assert_eq!(stage.delivered.len(), 20);
    for number in 0..60 {
        stage.push("t", &format!("k{}", number % 20));
    }
    let mut written = Vec::new();
    stage.run(Duration::from_secs(120), |_, (_, request), _| match request {
        Request::Produce(produce) => {
            let known = produce.batches.iter().all(|batch| batch.partition == 0);
            if known {
                for batch in &produce.batches {
                    let batch = decode_batches(batch.records.clone()).next().unwrap().unwrap();
                    written.extend(batch.records().unwrap().into_iter().map(|r| (r.key, r.value)));
                }
            }
            Some(Response::Produce(ProduceResponse {
                throttle_ms: 0,
                results: produce
                    .batches
                    .iter()
                    .map(|batch| ProduceResult {
                        topic: batch.topic.clone(),
                        partition: batch.partition,
                        error: if batch.partition == 0 { 0 } else { 3 },
                        base_offset: -1,
                        record_errors: Vec::new(),
                        message: None,
                    })
                    .collect(),
            }))
        }
        Request::DescribeProducers(topics) => {
            let mut answers = Vec::new();
            for (topic, partitions) in topics {
                for partition in partitions {
                    let error = if *partition == 0 { 0 } else { 3 };
                    answers.push(PartitionProducers {
                        topic: topic.clone(),
                        partition: *partition,
                        error,
                        producers: Vec::new(),
                    });
                }
            }
            Some(Response::DescribeProducers(answers))
        }
        other => Some(ordinary(other, 1, new)),
    });
    assert_eq!(stage.producer.pending(), 0, "records of the lost partitions wait for ever");
    assert_eq!(stage.delivered.len(), 80);
    for number in 0..20 {
        let key = format!("k{number}");
        let of_key: Vec<_> =
            written.iter().filter(|(k, _)| k.as_deref() == Some(key.as_bytes())).map(|(_, v)| v).collect();
        assert!(of_key.is_sorted(), "key {key} is out of order");
    }
}

#[test]
fn a_deleted_topic_is_asked_for_so_that_kafka_may_create_it_again() {
    let there: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let gone: &[(&str, i16, &[i32])] = &[("t", 3, &[])];
    let mut stage = Stage::new();
    stage.push("t", "k");
    stage.run(Duration::from_secs(5), |_, (_, request), _| Some(ordinary(request, 1, there)));
    stage.push("t", "k");
    let mut created = false;
    stage.run(Duration::from_secs(60), |_, (_, request), _| {
        Some(match request {
            Request::Metadata(asked) => {
                created |= asked.create_missing;
                metadata(1, if created { there } else { gone })
            }
            Request::Produce(produce) => produced(produce, if created { 0 } else { 3 }),
            Request::DescribeProducers(_) => describe(request, if created { 0 } else { 3 }, &[]),
            Request::InitProducerId => producer_id(2),
            other => empty(other),
        })
    });
    assert_eq!(stage.producer.pending(), 0, "it was never asked for with the right to create it");
}

#[test]
fn an_uplink_that_needs_longer_than_the_timeout_for_one_request_makes_progress() {
    let topics: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let mut stage = Stage::new();
    stage.push("t", "k");
    // Every Produce request takes 70 s on the wire, and starts again with a new connection.
    stage.run(Duration::from_secs(1800), |_, (sent_at, request), now| {
        let slow = matches!(request, Request::Produce(_));
        (!slow || now >= *sent_at + Duration::from_secs(70)).then(|| ordinary(request, 1, topics))
    });
    assert_eq!(stage.producer.pending(), 0, "nothing was delivered in half an hour");
}

#[test]
fn a_producer_id_that_is_refused_for_ever_does_not_make_the_producer_spin() {
    for code in [47, 59, 90] {
        let topics: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
        let mut stage = Stage::new();
        let mut id = 0;
        let mut requests = 0;
        stage.push("t", "k");
        stage.run(Duration::from_secs(60), |_, (_, request), _| {
            requests += 1;
            Some(match request {
                Request::Produce(produce) => produced(produce, code),
                Request::InitProducerId => {
                    id += 1;
                    producer_id(id)
                }
                other => ordinary(other, 1, topics),
            })
        });
        assert_eq!(stage.producer.pending(), 1);
        assert!(requests < 600, "{requests} requests in a minute");
    }
}

#[test]
fn what_never_gets_better_does_not_make_the_producer_spin() {
    type Answer = fn(&Waiting) -> Option<Response>;
    const TOPICS: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let cases: [(&str, Answer); 9] = [
        ("silent", |_| None),
        ("topic missing", |(_, r)| Some(ordinary(r, 1, &[("t", 3, &[])]))),
        ("topic refused", |(_, r)| Some(ordinary(r, 1, &[("t", 29, &[])]))),
        ("no leader", |(_, r)| Some(ordinary(r, 1, &[("t", 0, &[-1])]))),
        ("leader unknown", |(_, r)| Some(ordinary(r, 1, &[("t", 0, &[9])]))),
        ("no brokers", |(_, r)| Some(ordinary(r, 0, TOPICS))),
        ("nothing said of the topic", |(_, r)| Some(ordinary(r, 1, &[]))),
        ("no producer id", |(_, r)| match r {
            Request::InitProducerId => Some(Response::InitProducerId(InitProducerIdResponse {
                error: 14,
                producer_id: -1,
                producer_epoch: -1,
            })),
            other => Some(ordinary(other, 1, TOPICS)),
        }),
        ("not the leader", |(_, r)| match r {
            Request::Produce(produce) => Some(produced(produce, 6)),
            other => Some(ordinary(other, 1, TOPICS)),
        }),
    ];
    for (what, answer) in cases {
        let mut stage = Stage::new();
        stage.push("t", "k");
        let mut requests = 0;
        stage.run(Duration::from_secs(60), |_, waiting, _| {
            let response = answer(waiting);
            requests += usize::from(response.is_some());
            response
        });
        assert_eq!(stage.producer.pending(), 1, "{what}");
        // Ten a second, and the stage's own steps of 10 ms.
        assert!(requests < 600, "{what}: {requests} requests in a minute");
        assert!(stage.polls < 6000 + 4 * requests + 600, "{what}: {} polls in a minute", stage.polls);
    }
}

#[test]
fn the_answer_of_a_leader_that_was_left_is_not_taken_for_the_answer_of_the_new_one() {
    // Broker 0 freezes with a question; broker 1 leads; when it is asked in its turn, the answer of broker 0 comes
    // first, from a time before broker 1 wrote anything.
    let mut stage = Stage::new();
    stage.push("t", "k");
    stage.run(Duration::from_secs(5), |_, (_, request), _| Some(ordinary(request, 2, &[("t", 0, &[0])])));
    // A failure, and the question about it, which broker 0 does not answer any more.
    stage.push("t", "k");
    let mut failed = false;
    stage.run(Duration::from_secs(1), |_, (_, request), _| match request {
        Request::Produce(produce) => {
            failed = true;
            Some(produced(produce, 19))
        }
        Request::DescribeProducers(_) if failed => None,
        Request::Metadata(_) => Some(led_by(0)),
        other => Some(ordinary(other, 2, &[])),
    });
    let mut last = 0;
    let (mut fail_next, mut question_open, mut slow) = (false, false, false);
    let mut identities = Vec::new();
    for round in 0..2 {
        if round == 1 {
            for _ in 0..3 {
                stage.push("t", "k");
            }
            fail_next = true;
        }
        stage.run(Duration::from_secs(8), |broker, (_, request), _| match (broker, request) {
            (0, Request::DescribeProducers(_)) => question_open.then(|| describe(request, 0, &[state(0)])),
            (0, _) => None,
            (_, Request::Metadata(_)) => Some(led_by(1)),
            (_, Request::Produce(produce)) => {
                let identity = identity_of(produce);
                identities.push(identity);
                if fail_next {
                    fail_next = false;
                    slow = true;
                    // Written, and said not to be.
                    last = identity.base_sequence + 2;
                    return Some(produced(produce, 7));
                }
                last = last.max(identity.base_sequence);
                Some(produced(produce, 0))
            }
            // The new leader takes its time, so that the old one is first.
            (_, Request::DescribeProducers(_)) if slow => {
                question_open = true;
                None
            }
            (_, Request::InitProducerId) => Some(producer_id(2)),
            (_, Request::DescribeProducers(_)) => Some(describe(request, 0, &[state(last)])),
            (_, other) => Some(ordinary(other, 2, &[])),
        });
        (question_open, slow) = (false, false);
    }
    stage.run(Duration::from_secs(60), |broker, (_, request), _| match (broker, request) {
        (0, _) => None,
        (_, Request::Metadata(_)) => Some(led_by(1)),
        (_, Request::Produce(produce)) => {
            identities.push(identity_of(produce));
            Some(produced(produce, 0))
        }
        (_, Request::DescribeProducers(_)) => Some(describe(request, 0, &[state(last)])),
        (_, Request::InitProducerId) => Some(producer_id(2)),
        (_, other) => Some(ordinary(other, 2, &[])),
    });
    assert_eq!(stage.producer.pending(), 0);
    assert!(identities.len() > 2 && identities.iter().all(|i| i.producer_id == 1), "{identities:?}");
}

#[test]
fn records_whose_time_kafka_refuses_are_written_without_one_in_order() {
    let topics: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let mut stage = Stage::new();
    let mut written = Vec::new();
    let mut refusals = 0;
    let mut id = 0;
    for round in 1..=10 {
        for _ in 0..5 {
            stage.push("t", "k");
        }
        stage.run(Duration::from_secs(5), |_, (_, request), _| match request {
            Request::Produce(produce) => {
                let batch = decode_batches(produce.batches[0].records.clone()).next().unwrap().unwrap();
                let records = batch.records().unwrap();
                if records.iter().any(|record| record.timestamp_ms >= 0) {
                    refusals += 1;
                    return Some(produced(produce, 32));
                }
                written.extend(records.into_iter().map(|record| record.value.unwrap()));
                Some(produced(produce, 0))
            }
            Request::InitProducerId => {
                id += 1;
                Some(producer_id(id))
            }
            other => Some(ordinary(other, 1, topics)),
        });
        stage.run(Duration::from_millis(100), |_, (_, request), _| Some(ordinary(request, 1, topics)));
        assert_eq!((stage.delivered.len(), stage.refused.len()), (round * 5, 0));
    }
    let expected: Vec<_> = (0..50_u64).map(|value| value.to_be_bytes().to_vec()).collect();
    assert_eq!(written, expected);
    assert_eq!(refusals, 1, "the next records do not ask for it");
}

#[test]
fn copies_of_records_whose_partition_goes_meanwhile_are_noted_when_they_are_on_the_disk() {
    let old: &[(&str, i16, &[i32])] = &[("t", 0, &[0, 0, 0, 0, 0, 0])];
    let new: &[(&str, i16, &[i32])] = &[("t", 0, &[0])];
    let mut stage = Stage::new();
    for number in 0..20 {
        stage.push("t", &format!("k{number}"));
    }
    let silent = |request: &Request| matches!(request, Request::Produce(_));
    let mut sent = 0;
    stage.run(Duration::from_secs(1), |_, (_, request), _| {
        sent += u32::from(silent(request));
        (!silent(request)).then(|| ordinary(request, 1, old))
    });
    assert!(sent > 0);
    let (topic, mut copied, mut converted) = ("t".into(), Vec::new(), Vec::new());
    stage.producer.copy_sent(&topic, |batch| copied.extend(batch.tags.iter().copied()));
    // Longer than it takes to believe it.
    stage.run(Duration::from_secs(400), |_, (_, request), _| match request {
        Request::Produce(produce) if produce.batches.iter().any(|batch| batch.partition > 0) => {
            Some(produced(produce, 3))
        }
        Request::Produce(_) => None,
        Request::DescribeProducers(_) => Some(describe(request, 3, &[])),
        other => Some(ordinary(other, 1, new)),
    });
    stage.producer.convert(&topic, |tag| converted.push(*tag));
    converted.extend(&stage.delivered);
    copied.sort_unstable();
    converted.sort_unstable();
    assert_eq!(converted, copied);
}
