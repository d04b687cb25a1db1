//! The way out of the spool: frames are read in order, the batches of an earlier process are put together again, and records are
//! given to the producer, as many as may be in flight.

use std::time::{Duration, Instant};

use bytes::Bytes;
use log::{debug, error};

use super::{Backlog, Rejected, Resident, Route, STUCK_AFTER};
use crate::kafka::producer::{KeptBatch, Producer, SentBefore, TopicState};
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::{self, Record, decode_batches, with_record_ref};
use crate::pipeline::mode::Mode;
use crate::pipeline::spool_thread::{FramesRead, ReadFrames, SpoolRequest};
use crate::pipeline::waiting::{Place, Waiting};
use crate::spool::{Assignment, Frame, Given, Identity, RecordSet};

/// Read at once for one route, at the most: a frame or a few.
const READ_BYTES: usize = 256 * 1024;
/// Read at once for all routes together, and one frame more.
const READ_BYTES_ALL: usize = 1024 * 1024;
/// Records of routes that drain which were read and are not in Kafka take no more memory than this, and a read.
const RESIDENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The same for routes that Kafka refuses: a frame of each is tried from time to time.
const PARKED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What the disk did not give is asked for again after this long.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Records of one batch of an earlier process.
#[derive(Debug)]
pub(super) struct SentGroup {
    partition: i32,
    identity: Identity,
    batch_records: u32,
    after_offset: i64,
    records: Vec<(Record, Place)>,
}

impl Backlog {
    /// Asks for more of the backlog if few of it are in flight. Says when a route may be asked for that may not be now.
    pub(super) fn refill(&mut self, now: Instant) -> Option<Instant> {
        if self.reading {
            return None;
        }
        let (mut draining, mut parked) = (0, 0);
        for route in self.routes.values() {
            match route.mode {
                // The last of a backlog may be on its way still.
                Mode::Draining | Mode::Live => draining += route.resident_bytes,
                Mode::Parked => parked += route.resident_bytes,
                Mode::Spooling => {}
            }
        }
        let wanted = |route: &Route| {
            let may = match route.mode {
                // No route takes more than it leaves for the others: one that is stuck does not keep them from being restored.
                Mode::Draining => route.resident_bytes < RESIDENT_BYTES_MAX.saturating_sub(draining),
                // With nothing in the producer, nothing else would tell that the topic is taken again.
                Mode::Parked => route.in_flight == 0 && parked < PARKED_BYTES_MAX,
                Mode::Live | Mode::Spooling => false,
            };
            let few = route.restored.is_empty() && route.in_flight < self.options.in_flight_min;
            route.unread && ((may && few) || route.is_gathering())
        };
        let mut topics: Vec<(u64, &TopicName)> = Vec::new();
        let mut later: Option<Instant> = None;
        for (topic, route) in self.routes.iter().filter(|(_, route)| wanted(route)) {
            if route.attempt_at <= now {
                topics.push((route.read_turn, topic));
            } else {
                later = Some(later.map_or(route.attempt_at, |known| known.min(route.attempt_at)));
            }
        }
        if topics.is_empty() {
            return later;
        }
        // One read brings so many bytes and no more: those who had none of the last one come first.
        topics.sort_unstable();
        let records = (self.options.in_flight_max / topics.len()).max(1);
        let records_max = u32::try_from(records).unwrap_or(u32::MAX);
        let read = topics.iter().map(|(_, topic)| {
            let route = self.routes.get(*topic);
            let after = route.map_or_else(Default::default, |route| route.cursor);
            let probe = route.is_some_and(|route| route.mode == Mode::Parked && !route.is_gathering());
            let (bytes_max, records_max) = if probe { (1, 1) } else { (READ_BYTES, records_max) };
            ReadFrames { topic: (*topic).clone(), after, bytes_max, records_max }
        });
        let routes = read.collect();
        self.reading = true;
        self.ask(SpoolRequest::Read { routes, bytes_max: READ_BYTES_ALL });
        later
    }

    pub(super) fn on_read(&mut self, read: FramesRead, now: Instant) {
        let FramesRead { topic, frames, caught_up } = read;
        let unreadable = frames.is_empty() && !caught_up;
        let given = frames.iter().any(|frame| !frame.given.is_empty());
        debug!(
            "topic {topic}: {} frames read, {} records; all of them: {caught_up}",
            frames.len(),
            frames.iter().map(|frame| u64::from(frame.records)).sum::<u64>()
        );
        let mut caught_up = caught_up;
        for frame in frames {
            // What compresses well is larger than what was read: the rest is read again.
            let full =
                |route: &Route| !route.is_gathering() && route.resident_bytes >= RESIDENT_BYTES_MAX / 2;
            if self.routes.get(&topic).is_some_and(full) {
                caught_up = false;
                break;
            }
            self.take_frame(&topic, frame);
        }
        self.read_turns += 1;
        let read_turn = self.read_turns;
        let Some(route) = self.routes.get_mut(&topic) else { return };
        route.read_turn = read_turn;
        // What was appended meanwhile says so when it is answered.
        route.unread = !caught_up;
        if unreadable {
            route.attempt_at = now + READ_AGAIN;
            return;
        }
        // Batches of an earlier process are gathered whole, however many records may be in flight: no more than that process had.
        // Identities were given in order, so frames without one end them.
        route.gathering &= given && !caught_up;
        // What was read goes to the producer now, and then nothing is left but what is being appended.
        if caught_up && route.mode == Mode::Draining {
            route.closing_since.get_or_insert(now);
        }
    }

    /// Takes a frame apart: records of batches that were sent before, and others.
    fn take_frame(&mut self, topic: &TopicName, frame: Frame) {
        let key = self.key();
        let records = match records_of(&frame.body) {
            Ok(records) => records,
            Err(reason) => {
                error!(
                    "frame {} of {topic} in the spool is no batch of records and is lost: {reason}",
                    frame.id.0
                );
                self.done.push((frame.id, frame.records));
                Vec::new()
            }
        };
        let Some(route) = self.routes.get_mut(topic) else { return };
        route.cursor = frame.id;
        let remaining = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let bytes = records.iter().map(record_bytes).sum();
        if remaining == 0 {
            return;
        }
        for (at, record) in (0_u32..).zip(records) {
            let place = Place { key, record: at };
            match frame.given.iter().find(|given| given.records.contains(at)) {
                Some(given) => group(&mut route.sent_before, given).records.push((record, place)),
                None => route.restored.push_back((record, place)),
            }
        }
        route.resident_bytes += bytes;
        let (topic, records) = (topic.clone(), frame.records);
        let resident = Resident { topic, frame: Some(frame.id), records, remaining, counted: true, bytes };
        self.residents.insert(key, resident);
    }

    /// Gives the producer as many records as may be in flight. Says when there may be more, where that is a matter of time.
    pub(super) fn push_restored(
        &mut self,
        producer: &mut Producer<Waiting>,
        now: Instant,
    ) -> Option<Instant> {
        // One that does not move must not use up what the others may have.
        let moves =
            |route: &&Route| matches!(route.mode, Mode::Draining | Mode::Live) && !route.is_stuck(now);
        let draining = self.routes.values().filter(moves);
        let in_flight: usize = draining.map(|route| route.in_flight).sum();
        let mut room = self.options.in_flight_max.saturating_sub(in_flight);
        let ready: Vec<TopicName> = self
            .routes
            .iter()
            .filter(|(_, route)| matches!(route.mode, Mode::Draining | Mode::Parked) && !route.gathering)
            .filter(|(_, route)| !route.restored.is_empty() || !route.sent_before.is_empty())
            .map(|(topic, _)| topic.clone())
            .collect();
        if ready.is_empty() {
            return None;
        }
        self.earn(now);
        for (position, topic) in ready.iter().enumerate() {
            self.push_sent_before(topic, producer, now);
            let others = ready.len() - position;
            let share = self.share(topic, room, others, now);
            let pushed = self.push_some(topic, share, producer, now);
            room = room.saturating_sub(pushed);
            self.allowance -= pushed as f64;
        }
        let waits = self.options.restore_per_sec.is_some() && self.allowance < 1.0;
        let left = ready.iter().any(|topic| self.routes.get(topic).is_some_and(|r| !r.restored.is_empty()));
        match left {
            true if waits && room > 0 => Some(now + Duration::from_millis(20)),
            // A route may be found to be stuck by then.
            true if room == 0 => Some(now + STUCK_AFTER / 4),
            _ => None,
        }
    }

    /// How many records of this route may be pushed now. What one route does not use is for the next.
    fn share(&self, topic: &TopicName, room: usize, others: usize, now: Instant) -> usize {
        let stuck = self.routes.get(topic).is_some_and(|route| route.is_stuck(now));
        let share = if stuck { 0 } else { (room / others).max(1).min(room) };
        if self.options.restore_per_sec.is_none() {
            return share;
        }
        let allowance = self.allowance as usize;
        share.min((allowance / others).max(allowance.min(1)))
    }

    /// Adds what the time since the last call allows (SPOOL_RESTORE_PER_SEC).
    fn earn(&mut self, now: Instant) {
        let Some(rate) = self.options.restore_per_sec.map(f64::from) else { return };
        let earned = now.saturating_duration_since(self.allowed_at).as_secs_f64() * rate;
        // A tenth of a second's worth at once, so that a pause does not become a burst.
        self.allowance = (self.allowance + earned).min((rate / 10.0).max(1.0));
        self.allowed_at = now;
    }

    fn push_sent_before(&mut self, topic: &TopicName, producer: &mut Producer<Waiting>, now: Instant) {
        let Some(route) = self.routes.get_mut(topic) else { return };
        for group in std::mem::take(&mut route.sent_before) {
            let SentGroup { partition, identity, batch_records, after_offset, records } = group;
            if route.in_flight == 0 {
                route.progress_at = now;
            }
            route.in_flight += records.len();
            let batch = SentBefore {
                identity: kafka_identity(identity),
                batch_records: i32::try_from(batch_records).unwrap_or(i32::MAX),
                after_offset,
                records: records
                    .into_iter()
                    .map(|(record, place)| (record, Waiting::for_spool(place)))
                    .collect(),
            };
            if let Err(batch) = producer.push_sent(topic, partition, batch, now) {
                for (record, waiting) in batch.records {
                    self.rejected.push(too_many_topics(topic, record, waiting));
                }
            }
        }
    }

    fn push_some(
        &mut self,
        topic: &TopicName,
        share: usize,
        producer: &mut Producer<Waiting>,
        now: Instant,
    ) -> usize {
        let Some(route) = self.routes.get_mut(topic) else { return 0 };
        let count = share.min(route.restored.len());
        if route.in_flight == 0 {
            route.progress_at = now;
        }
        route.in_flight += count;
        for (record, place) in route.restored.drain(..count) {
            let waiting = Waiting::for_spool(place);
            let pushed = with_record_ref(&record, |record| producer.push(topic, record, waiting, now));
            if let Err(waiting) = pushed {
                self.rejected.push(too_many_topics(topic, record, waiting));
            }
        }
        count
    }

    /// Carries out the producer's wish to have identities on the disk.
    pub fn keep(&mut self, ticket: u64, batches: &[KeptBatch<Place>]) {
        let mut assignments: Vec<Assignment> = Vec::new();
        for batch in batches {
            let from = assignments.len();
            for place in &batch.stored {
                // A frame that is done needs no identity any more.
                let Some(id) = self.residents.get(&place.key).and_then(|resident| resident.frame) else {
                    continue;
                };
                let known = assignments.iter_mut().skip(from).rev().find(|known| known.id == id);
                if let Some(known) = known {
                    known.given.records.insert(place.record);
                    continue;
                }
                let mut records = RecordSet::new();
                records.insert(place.record);
                let given = Given {
                    partition: batch.partition,
                    identity: Identity {
                        producer_id: batch.identity.producer_id,
                        epoch: batch.identity.producer_epoch,
                        base_sequence: batch.identity.base_sequence,
                    },
                    batch_records: u32::try_from(batch.records).unwrap_or(0),
                    after_offset: batch.after_offset,
                    records,
                };
                assignments.push(Assignment { id, given });
            }
        }
        self.keeps.push_back((ticket, assignments));
        self.ask_pending();
    }

    /// Whether a route that is not live can be restored now.
    pub(super) fn can_restore(state: TopicState) -> bool {
        matches!(state, TopicState::Ready | TopicState::Impossible)
    }
}

/// The group of a batch that was sent before.
fn group<'a>(groups: &'a mut Vec<SentGroup>, given: &Given) -> &'a mut SentGroup {
    let same = |group: &SentGroup| group.partition == given.partition && group.identity == given.identity;
    let position = groups.iter().rposition(same).unwrap_or_else(|| {
        groups.push(SentGroup {
            partition: given.partition,
            identity: given.identity,
            batch_records: given.batch_records,
            after_offset: given.after_offset,
            records: Vec::new(),
        });
        groups.len() - 1
    });
    groups.get_mut(position).expect("it was found, or pushed")
}

/// Memory of a record, about.
fn record_bytes(record: &Record) -> usize {
    let fields = [&record.key, &record.value].into_iter().flatten().map(Bytes::len).sum::<usize>();
    fields + size_of::<Record>()
}

fn records_of(body: &Bytes) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    for batch in decode_batches(body.clone()) {
        let batch = batch.and_then(|batch| batch.records());
        records.extend(batch.map_err(|error| crate::error::chain(&error))?);
    }
    Ok(records)
}

fn too_many_topics(topic: &TopicName, record: Record, waiting: Waiting) -> Rejected {
    Rejected { topic: topic.clone(), record, waiting, reason: "there are too many Kafka topics already" }
}

fn kafka_identity(identity: Identity) -> record_batch::Identity {
    record_batch::Identity {
        producer_id: identity.producer_id,
        producer_epoch: identity.epoch,
        base_sequence: identity.base_sequence,
    }
}
