//! A backlog on a disk and behind an MQTT broker of given speeds, in simulated time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::{Backlog, BacklogOptions};
use crate::kafka::compression::Compression;
use crate::kafka::producer::{Action, LinkEvent, Producer, ProducerOptions};
use crate::kafka::protocol::{
    Broker, InitProducerIdResponse, MetadataResponse, PartitionMetadata, PartitionProducers, ProduceRequest,
    ProduceResponse, ProduceResult, Request, Response, TopicMetadata, TopicName,
};
use crate::kafka::record_batch::RecordRef;
use crate::message::{AckToken, Settled};
use crate::pipeline::mode::Mode;
use crate::pipeline::spool_thread::{FrameToKeep, FramesRead, GivenUp, NotKept, SpoolReply, SpoolRequest};
use crate::pipeline::waiting::{Place, Waiting};
use crate::spool::{Frame, FrameId, Loss, MemorySpool, NewFrame, Options, Store};

const MS: Duration = Duration::from_millis(1);
/// The publish thread turns as often as something happens; here, so often in a millisecond.
const TURNS: usize = 4;

/// Everything around a [`Backlog`] of one topic.
struct World {
    now: Instant,
    topic: TopicName,
    backlog: Backlog,
    producer: Producer<Waiting>,
    store: MemorySpool,
    requests: Receiver<SpoolRequest>,
    /// How long a write takes, until it is on the disk.
    write: Duration,
    disk_free_at: Instant,
    replies: VecDeque<(Instant, SpoolReply)>,
    kafka_answers: bool,
    answers: VecDeque<(Instant, u64, Response)>,
    settled: Vec<Settled>,
    sent: u64,
    /// What the next appends come to.
    refusals: VecDeque<NotKept>,
    /// Frames whose identities the disk does not take; the first refusal is the last that Kafka answers for.
    unkept: Option<Vec<FrameId>>,
}

impl World {
    fn new(write: Duration) -> World {
        let now = Instant::now();
        let topic: TopicName = Arc::from("t");
        let (ask, requests) = bounded(8);
        let options = BacklogOptions {
            after: Duration::from_millis(500),
            latency: Duration::from_secs(10),
            in_flight_max: 1000,
            in_flight_min: 50,
            restore_per_sec: None,
            mark_replayed: false,
            in_memory: false,
            segment_bytes: 8 << 20,
            found: Vec::new(),
        };
        let producer_options = ProducerOptions {
            bootstrap: vec![("b".to_owned(), 1)],
            acks: -1,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 1 << 20,
            seed: 1,
        };
        let mut producer = Producer::new(producer_options, now);
        producer.prepare(&topic, now);
        World {
            now,
            topic,
            backlog: Backlog::new(options, ask, Arc::default(), now),
            producer,
            store: MemorySpool::new(Options { bytes_max: 1 << 30, ..Options::default() }),
            requests,
            write,
            disk_free_at: now,
            replies: VecDeque::new(),
            kafka_answers: true,
            answers: VecDeque::new(),
            settled: Vec::new(),
            sent: 0,
            refusals: VecDeque::new(),
            unkept: None,
        }
    }

    fn publish(&mut self) {
        self.sent += 1;
        let record = RecordRef { key: Some(b"k"), value: Some(b"value"), headers: &[], timestamp_ms: 1 };
        let waiting = Waiting::for_session(AckToken::new(self.sent, 1), None);
        if self.backlog.holds(&self.topic) {
            self.backlog.insert(&self.topic, &record, waiting, self.now);
        } else {
            self.backlog.watch(self.now);
            self.producer.push(&self.topic, &record, waiting, self.now).unwrap();
        }
    }

    /// A millisecond passes.
    fn pass(&mut self) {
        for _ in 0..TURNS {
            self.now += MS / TURNS as u32;
            let now = self.now;
            while let Some((_, reply)) = self.replies.pop_front_if(|(due, _)| *due <= now) {
                self.backlog.on_reply(reply, &mut self.producer, &mut self.settled, now);
            }
            while self.kafka_answers
                && let Some((_, link, response)) = self.answers.pop_front_if(|(due, ..)| *due <= now)
            {
                self.producer.on_event(LinkEvent::Response { link, response }, now);
            }
            let mut delivered = Vec::new();
            self.producer.take_delivered(&mut delivered);
            delivered.into_iter().for_each(|waiting| self.backlog.free(waiting, &mut self.settled));
            self.backlog.turn(&mut self.producer, false, now);
            self.producer.poll(now);
            while let Some(action) = self.producer.next_action() {
                self.carry_out(action);
            }
            while let Ok(request) = self.requests.try_recv() {
                let reply = self.spool(request);
                self.replies.push_back((self.disk_free_at, reply));
            }
        }
    }

    fn carry_out(&mut self, action: Action<super::Place>) {
        match action {
            Action::Open { link, .. } => {
                self.producer.on_event(LinkEvent::Ready { link, describes_producers: true }, self.now);
            }
            Action::Send { link, request } => {
                self.answers.push_back((self.now + MS, link, answer(&request, &self.topic)));
            }
            Action::Close { .. } => panic!("nothing here lasts long enough"),
            Action::Keep { ticket, batches } => self.backlog.keep(ticket, &batches),
        }
    }

    /// What the spool thread does: in the order of asking.
    fn spool(&mut self, request: SpoolRequest) -> SpoolReply {
        self.disk_free_at = self.disk_free_at.max(self.now);
        match request {
            SpoolRequest::Append(frames) => {
                self.disk_free_at += self.write;
                if let Some(why) = self.refusals.pop_front() {
                    return SpoolReply::Appended { result: Err(why), given_up: GivenUp::default() };
                }
                let new: Vec<NewFrame<'_>> = frames.iter().map(FrameToKeep::as_new).collect();
                let ids = self.store.append(&new).unwrap().ids;
                SpoolReply::Appended { result: Ok(ids), given_up: GivenUp::default() }
            }
            SpoolRequest::Keep { ticket, assignments } => {
                self.disk_free_at += self.write;
                if let Some(unkept) = self.unkept.as_mut().filter(|unkept| unkept.is_empty()) {
                    unkept.extend(assignments.iter().map(|assignment| assignment.id));
                    self.kafka_answers = false;
                    return SpoolReply::Kept { ticket, result: Err(NotKept::Full { parked: None }) };
                }
                self.store.assign(&assignments).unwrap();
                SpoolReply::Kept { ticket, result: Ok(()) }
            }
            SpoolRequest::Read { routes, .. } => {
                let read = routes.into_iter().map(|read| {
                    let (bytes_max, records_max) = (read.bytes_max, read.records_max);
                    let frames =
                        self.store.next_within(&read.topic, read.after, bytes_max, records_max).unwrap();
                    let last = frames.last().map_or(read.after, |frame| frame.id);
                    let caught_up = self.store.next(&read.topic, last, 1).unwrap().is_empty();
                    FramesRead { topic: read.topic, frames, caught_up }
                });
                SpoolReply::Read(read.collect())
            }
            SpoolRequest::Release(_) => panic!("nothing here is of QoS 2"),
            SpoolRequest::Done { frames, .. } => {
                self.store.ack(&frames);
                SpoolReply::Done
            }
        }
    }

    fn stored(&self) -> u64 {
        self.backlog.counters.spooled.load(Relaxed)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = self.producer.abandon().into_iter().chain(self.backlog.abandon());
        left.for_each(|waiting| _ = waiting.abandon());
    }
}

fn answer(request: &Request, topic: &TopicName) -> Response {
    match request {
        Request::Metadata(_) => Response::Metadata(MetadataResponse {
            brokers: vec![Broker { id: 1, host: "b".to_owned(), port: 1 }],
            topics: vec![TopicMetadata {
                name: topic.clone(),
                error: 0,
                partitions: vec![PartitionMetadata { index: 0, error: 0, leader: 1, leader_epoch: 0 }],
            }],
        }),
        Request::InitProducerId => {
            Response::InitProducerId(InitProducerIdResponse { error: 0, producer_id: 5, producer_epoch: 0 })
        }
        Request::Produce(produce) => Response::Produce(written(produce)),
        Request::DescribeProducers(_) => Response::DescribeProducers(vec![PartitionProducers {
            topic: topic.clone(),
            partition: 0,
            error: 0,
            producers: Vec::new(),
        }]),
        other => panic!("{other:?}"),
    }
}

fn written(produce: &ProduceRequest) -> ProduceResponse {
    let results = produce.batches.iter().map(|batch| ProduceResult {
        topic: batch.topic.clone(),
        partition: batch.partition,
        error: 0,
        base_offset: 1,
        record_errors: Vec::new(),
        message: None,
    });
    ProduceResponse { throttle_ms: 0, results: results.collect() }
}

/// 1,000 messages a second; Kafka is silent for two seconds. How many messages of the last second were stored, 10 s later.
fn stored_after_an_outage(write: Duration) -> u64 {
    let mut world = World::new(write);
    let mut before = 0;
    for ms in 0..13_000 {
        world.kafka_answers = !(1_000..3_000).contains(&ms);
        if ms == 12_000 {
            before = world.stored();
        }
        world.publish();
        world.pass();
    }
    assert!(world.stored() > 1_000, "the outage went through the spool");
    world.stored() - before
}

#[test]
fn a_backlog_comes_to_an_end_under_a_steady_load_however_slow_the_disk() {
    for write_ms in [2, 20, 50, 90, 150] {
        let stored = stored_after_an_outage(MS * write_ms);
        assert_eq!(stored, 0, "a write of {write_ms} ms: still stored, of the last 1000");
    }
}

/// Kafka is silent. The MQTT broker has at most so many messages without acknowledgement, and sends `away` after it got those.
/// How many messages are stored in the last of ten seconds.
fn stored_a_second(window: usize, away: Duration, write: Duration) -> u64 {
    let mut world = World::new(write);
    world.kafka_answers = false;
    // When the broker learns of acknowledgements.
    let mut acknowledged: VecDeque<(Instant, usize)> = VecDeque::from([(world.now, window)]);
    let mut before = 0;
    for ms in 0..10_000 {
        if ms == 9_000 {
            before = world.stored();
        }
        let now = world.now;
        while let Some((_, count)) = acknowledged.pop_front_if(|(due, _)| *due <= now) {
            (0..count).for_each(|_| world.publish());
        }
        world.pass();
        let count = world.settled.drain(..).count();
        acknowledged.push_back((world.now + away, count));
    }
    world.stored() - before
}

#[test]
fn a_window_of_twenty_is_not_slowed_to_the_gathering_however_far_the_broker_is() {
    for away_ms in [0, 2, 6, 10] {
        let rate = stored_a_second(20, MS * away_ms, 4 * MS);
        // Quiet time, write and way are all that a round takes.
        let expected = 20 * 1000 / u64::from(3 + 4 + away_ms + 3);
        assert!(rate >= expected, "{away_ms} ms away: {rate} a second, not {expected}");
    }
}

/// An outage begins, and the first append of it fails; Kafka is back before the next. In how many milliseconds after the failure is
/// the route live?
fn live_after_a_failed_append(reopened_after: Option<usize>) -> Option<usize> {
    let mut world = World::new(MS);
    let mut failed_at = None;
    for ms in 0..8_000 {
        world.kafka_answers = !(1_000..1_600).contains(&ms);
        if ms < 1_500 {
            world.publish();
        }
        // Until it is reopened nothing is taken; the last is for what is tried by the publisher.
        if ms == 1_400 {
            world.refusals = (0..100).map(|_| NotKept::Stopped).collect();
        }
        if failed_at.is_none() && world.refusals.len() == 99 {
            failed_at = Some(ms);
        }
        if let Some(failed_at) = failed_at
            && reopened_after.is_some_and(|after| failed_at + after == ms)
        {
            world.refusals.clear();
            world.replies.push_back((world.now, SpoolReply::Reopened));
        }
        world.pass();
        let mode = world.backlog.routes.get(&world.topic).map_or(Mode::Live, |route| route.mode);
        if let Some(failed_at) = failed_at
            && mode == Mode::Live
            && world.settled.len() == 1_500
        {
            return Some(ms - failed_at);
        }
    }
    None
}

#[test]
fn after_a_failed_append_nothing_goes_past_the_spool_until_it_is_open_again_but_for_no_longer_than_three_seconds()
 {
    let live = live_after_a_failed_append(Some(1_000)).unwrap();
    assert!((1_000..2_000).contains(&live), "{live} ms with a disk that works again after a second");
    let live = live_after_a_failed_append(None).unwrap();
    assert!((3_000..4_200).contains(&live), "{live} ms with a disk that is dead");
}

#[test]
fn identities_that_the_disk_did_not_take_are_kept_as_soon_as_it_does_though_kafka_is_silent() {
    let mut world = World::new(MS);
    for ms in 0..6_000 {
        world.kafka_answers =
            !(1_000..3_000).contains(&ms) && world.unkept.as_ref().is_none_or(Vec::is_empty);
        if ms == 2_500 {
            world.unkept = Some(Vec::new());
        }
        if ms < 2_900 {
            world.publish();
        }
        world.pass();
    }
    let unkept = world.unkept.clone().unwrap();
    assert!(!unkept.is_empty(), "a backlog is on its way");
    let stored = world.store.next("t", FrameId(0), usize::MAX).unwrap();
    let given = |id: &FrameId| stored.iter().any(|frame: &Frame| frame.id == *id && !frame.given.is_empty());
    assert!(unkept.iter().all(given), "{unkept:?}");
}

/// The unparking is on its way to the spool behind an append that the spool still holds against the share.
#[test]
fn what_a_route_is_refused_that_is_not_parked_any_more_is_stored_a_moment_later() {
    let mut world = World::new(MS);
    for ms in 0..4_000 {
        world.kafka_answers = ms < 1_000;
        if ms == 2_000 {
            world.refusals = (0..3).map(|_| NotKept::Full { parked: Some("t".to_owned()) }).collect();
        }
        if ms < 2_500 {
            world.publish();
        }
        world.pass();
        assert!(!world.backlog.has_rejected(), "at {ms} ms");
    }
    assert_eq!((world.settled.len(), world.refusals.len()), (2_500, 0));
}

/// Four records of a frame that was read: two are in Kafka, two on their way. The spool gives up the frame, and one that is done of
/// which it has not heard yet, and one that nobody has read.
#[test]
fn of_what_is_given_up_only_what_was_never_read_counts() {
    let mut world = World::new(MS);
    let (now, topic) = (world.now, world.topic.clone());
    world.backlog.watch(now);
    let mut builder = crate::kafka::record_batch::BatchBuilder::new();
    for value in [b"1", b"2", b"3", b"4"] {
        builder.append(&RecordRef { key: None, value: Some(value), headers: &[], timestamp_ms: 1 });
    }
    let body = builder.seal(Compression::None).encode(crate::kafka::record_batch::Identity::NONE);
    let frame = |id| Frame {
        id: FrameId(id),
        topic: "t".to_owned(),
        given: Vec::new(),
        records: 4,
        messages: 4,
        oldest_ms: 1,
        newest_ms: 1,
        body: body.clone(),
    };
    let route = super::Route { mode: Mode::Draining, ..super::Route::new(now) };
    world.backlog.routes.insert(topic.clone(), route);
    let frames = vec![frame(1), frame(2)];
    world.backlog.on_read(FramesRead { topic, frames, caught_up: true }, now);
    let first = world.backlog.residents.iter().find(|(_, resident)| resident.frame == Some(FrameId(1)));
    let first = *first.unwrap().0;
    let second = *world.backlog.residents.keys().find(|key| **key != first).unwrap();
    let done = [(first, 0), (first, 1), (first, 2), (first, 3), (second, 0), (second, 1)];
    for (key, record) in done {
        world.backlog.free(Waiting::for_spool(Place { key, record }), &mut world.settled);
    }
    let give_up = |world: &mut World, frames: u64| {
        let loss = Loss { topic: "t".to_owned(), frames, records: frames * 4, messages: frames * 4 };
        let given_up = GivenUp { losses: vec![loss], ranges: vec![(FrameId(1), FrameId(frames))] };
        let reply = SpoolReply::Appended { result: Err(NotKept::Stopped), given_up };
        world.backlog.on_reply(reply, &mut world.producer, &mut world.settled, now);
        world.backlog.given_up
    };
    assert_eq!(give_up(&mut world, 2), 0, "delivered, or on its way");
    world.backlog.ask_pending();
    assert_eq!(give_up(&mut world, 2), 0, "the spool is being told of it");
    assert_eq!(give_up(&mut world, 3), 4, "of the third nothing was read");
    while world.requests.try_recv().is_ok() {}
}
