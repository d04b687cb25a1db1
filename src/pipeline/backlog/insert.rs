//! The way into the spool: records are gathered into chunks, one frame each, and appended together; what the producer has sent
//! and Kafka has not acknowledged is copied along, with its identity.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Backlog, Rejected, Resident, Route};
use crate::kafka::compression::Compression;
use crate::kafka::producer::Producer;
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::{self, BatchBuilder, Record, RecordRef, SealedBatch, with_record_ref};
use crate::message::Settled;
use crate::pipeline::mode::{Event, Mode};
use crate::pipeline::record::HEADER_REPLAYED;
use crate::pipeline::spool_thread::{FrameToKeep, NotKept, SpoolRequest};
use crate::pipeline::waiting::{Place, Waiting};
use crate::spool::{FrameId, Identity, Unreleased};

/// A chunk takes no more: small enough that a frame is restored in one go.
const CHUNK_BYTES: usize = 128 * 1024;
/// Nor more records than this.
const CHUNK_RECORDS: usize = 500;
/// One append takes no more than this, and one chunk.
pub(super) const APPEND_BYTES: usize = 4 * 1024 * 1024;
/// Records gather for this long, so that an fdatasync, which costs a card some 17 KB, is for many.
const GATHER_MAX: Duration = Duration::from_millis(100);
/// A broker with a small window sends nothing more until it has acknowledgements, and goes on as soon as it has: with such a
/// broker, so long a silence ends the gathering, or 20 messages in 100 ms would be all that gets through.
const GATHER_QUIET: Duration = Duration::from_millis(3);
/// Where other routes go straight to Kafka, their acknowledgements wait behind those of gathered records, and with a small
/// window their next messages too: no longer than this.
const GATHER_BESIDE_LIVE: Duration = Duration::from_millis(5);
/// So many bytes are worth an fdatasync of their own.
const GATHER_BYTES: usize = 256 * 1024;
/// Near the end of a backlog, new messages wait so long for the end. Other routes' acknowledgements wait behind theirs.
const CLOSING_FIRST: Duration = Duration::from_millis(100);
/// Or as long as so many appends take: one is under way, an identity is written, and the last frames are read behind both.
const CLOSING_APPENDS: u32 = 3;
/// But no longer than this: Mosquitto's queue of 1,000 messages is full after a second at 1,000 a second.
const CLOSING_MAX: Duration = Duration::from_millis(800);
/// An append that failed is tried again after this long.
pub(super) const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Records of one route that become one frame.
#[derive(Debug)]
pub(super) struct Chunk {
    /// When its first record came.
    pub since: Instant,
    pub records: Records,
    pub waiting: Vec<Waiting>,
}

#[derive(Debug)]
pub(super) enum Records {
    Open(BatchBuilder),
    /// An append of it failed.
    Sealed(SealedBatch),
}

impl Chunk {
    fn has_room(&self, record: &RecordRef<'_>) -> bool {
        match &self.records {
            Records::Open(builder) => {
                builder.count() < CHUNK_RECORDS && builder.encoded_bytes_with(record) <= CHUNK_BYTES
            }
            Records::Sealed(_) => false,
        }
    }

    pub fn seal(self) -> (SealedBatch, Vec<Waiting>) {
        let sealed = match self.records {
            // Keys and header names repeat, so even values that do not compress cost the card less.
            Records::Open(builder) => builder.seal(Compression::Lz4),
            Records::Sealed(sealed) => sealed,
        };
        (sealed, self.waiting)
    }

    /// The records, without the mark of restored ones: they were never stored.
    pub fn into_records(self) -> Vec<(Record, Waiting)> {
        let (sealed, waiting) = self.seal();
        let mut records = sealed.records().expect("a batch that was sealed here can be read back");
        for record in &mut records {
            record.headers.retain(|(name, _)| name != HEADER_REPLAYED);
        }
        records.into_iter().zip(waiting).collect()
    }
}

/// An append that is under way.
#[derive(Debug)]
pub(super) struct PendingAppend {
    since: Instant,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// Records that are nowhere else.
    Inserted { topic: TopicName, since: Instant, records: SealedBatch, waiting: Vec<Waiting> },
    /// A copy of a batch that the producer has.
    Copied { topic: TopicName, key: u64 },
}

impl Backlog {
    /// Puts a record behind all others of its route.
    pub fn insert(&mut self, topic: &TopicName, record: &RecordRef<'_>, waiting: Waiting, now: Instant) {
        let route = self.routes.entry(topic.clone()).or_insert_with(|| Route::new(now));
        if !route.chunks.back().is_some_and(|chunk| chunk.has_room(record)) {
            route.chunks.push_back(Chunk {
                since: now,
                records: Records::Open(BatchBuilder::new()),
                waiting: Vec::new(),
            });
        }
        if let Some(Chunk { records: Records::Open(builder), waiting: all, .. }) = route.chunks.back_mut() {
            let before = builder.encoded_bytes();
            builder.append(record);
            all.push(waiting);
            self.insert_bytes += builder.encoded_bytes() - before;
        }
        self.first_insert.get_or_insert(now);
        self.last_insert = now;
        if let Some(settled_at) = self.settled_at.take() {
            self.window_limited |= now.saturating_duration_since(settled_at) <= GATHER_QUIET;
        }
    }

    /// The route's messages go to the spool from now on: also those that wait in the producer.
    pub(super) fn spool(&mut self, topic: &TopicName, producer: &mut Producer<Waiting>, now: Instant) {
        let route = self.routes.entry(topic.clone()).or_insert_with(|| Route::new(now));
        let was_live = route.mode == Mode::Live;
        if was_live {
            route.mode = route.mode.after(Event::Overdue);
            route.since = now;
            route.progressed = false;
            self.tell_start(topic, producer.holds_up(topic), now);
        }
        if let Some(route) = self.routes.get_mut(topic) {
            route.copy = true;
            route.closing_since = None;
        }
        // Later the producer has only what was sent once, and that is older than what waits in chunks by now: a batch that lost
        // its identity meanwhile is copied as the others are, and stays in front.
        if !was_live {
            return;
        }
        for (mut record, waiting) in producer.take_unsent(topic) {
            if self.options.mark_replayed {
                record.headers.push((HEADER_REPLAYED.to_owned(), Some(Bytes::from_static(b"1"))));
            }
            with_record_ref(&record, |record| self.insert(topic, record, waiting, now));
        }
    }

    /// Begins an append if one is due; else says when one will be.
    pub(super) fn append_if_due(
        &mut self,
        producer: &mut Producer<Waiting>,
        stopping: bool,
        now: Instant,
    ) -> Option<Instant> {
        let copies = self.routes.values().any(|route| route.copy);
        if self.pending.is_some() || (self.first_insert.is_none() && !copies) {
            return None;
        }
        let gathered = self.first_insert.map_or(now, |at| at + GATHER_MAX);
        // Nothing came for half of the time: the broker may be waiting, also one from which messages need longer than the quiet
        // time. If it is not, messages will come during an append, and that says so.
        let silent = self.first_insert.is_some() && self.last_insert + GATHER_MAX / 2 <= now;
        self.window_limited |= gathered <= now && silent;
        let quiet = self.last_insert + GATHER_QUIET;
        let gathered = if self.window_limited { gathered.min(quiet) } else { gathered };
        let gathered = self.live_behind.map_or(gathered, |at| gathered.min(at + GATHER_BESIDE_LIVE));
        let gathered = if copies || stopping || self.insert_bytes >= GATHER_BYTES { now } else { gathered };
        let due = gathered.max(self.append_at.unwrap_or(now));
        if due > now {
            return Some(due);
        }
        self.begin_append(producer, now)
    }

    fn begin_append(&mut self, producer: &mut Producer<Waiting>, now: Instant) -> Option<Instant> {
        let mut frames = Vec::new();
        let mut parts = Vec::new();
        let mut bytes = 0;
        let mut held_until: Option<Instant> = None;
        let topics: Vec<TopicName> = self.routes.keys().cloned().collect();
        for topic in topics {
            let closing = self.routes.get(&topic).and_then(|route| route.closing_since);
            let patience = (self.append_took * CLOSING_APPENDS).clamp(CLOSING_FIRST, CLOSING_MAX);
            if let Some(until) = closing.map(|since| since + patience).filter(|until| *until > now) {
                // The end is found when the modes are looked at.
                let until = until.min(self.modes_at.max(now + Duration::from_millis(1)));
                held_until = Some(held_until.map_or(until, |known| known.min(until)));
                continue;
            }
            if self.routes.get(&topic).is_some_and(|route| route.copy) {
                self.copy_sent(&topic, producer, &mut frames, &mut parts);
            }
            let Some(route) = self.routes.get_mut(&topic) else { continue };
            route.copy = false;
            // It was not the end yet.
            route.closing_since = None;
            while bytes < self.append_bytes
                && let Some(chunk) = route.chunks.pop_front()
            {
                let since = chunk.since;
                let (records, waiting) = chunk.seal();
                let unreleased = waiting.iter().filter_map(Waiting::unreleased).collect();
                let frame = frame(&topic, None, &records, unreleased);
                bytes += frame.body.len();
                frames.push(frame);
                parts.push(Part::Inserted { topic: topic.clone(), since, records, waiting });
            }
            route.appending = parts.last().is_some_and(|part| *part.topic() == topic);
        }
        let left = self.routes.values().any(|route| !route.chunks.is_empty());
        self.first_insert = left.then_some(now);
        self.insert_bytes = 0;
        self.live_behind = None;
        if frames.is_empty() {
            return held_until;
        }
        self.pending = Some(PendingAppend { since: now, parts });
        self.ask(SpoolRequest::Append(frames));
        held_until
    }

    fn copy_sent(
        &mut self,
        topic: &TopicName,
        producer: &mut Producer<Waiting>,
        frames: &mut Vec<FrameToKeep>,
        parts: &mut Vec<Part>,
    ) {
        producer.copy_sent(topic, |batch| {
            let key = self.key();
            for (record, waiting) in (0_u32..).zip(batch.tags.iter_mut()) {
                waiting.copy_to(Place { key, record });
            }
            let sent = batch.identity.map(|identity| (batch.partition, spool_identity(identity)));
            let unreleased = batch.tags.iter().filter_map(Waiting::unreleased).collect();
            let frame = frame(topic, sent, batch.records, unreleased);
            let resident = Resident {
                topic: topic.clone(),
                frame: None,
                records: frame.records,
                remaining: frame.records,
                counted: false,
                bytes: 0,
            };
            self.residents.insert(key, resident);
            frames.push(frame);
            parts.push(Part::Copied { topic: topic.clone(), key });
        });
    }

    pub(super) fn on_appended(
        &mut self,
        result: Result<Vec<FrameId>, NotKept>,
        producer: &mut Producer<Waiting>,
        settling: &mut Vec<Settled>,
        now: Instant,
    ) {
        let Some(pending) = self.pending.take() else { return };
        self.append_took = now.saturating_duration_since(pending.since);
        for part in &pending.parts {
            if let Some(route) = self.routes.get_mut(part.topic()) {
                route.appending = false;
            }
        }
        match result {
            Ok(ids) => {
                self.append_at = None;
                let most = APPEND_BYTES.min(self.options.segment_bytes);
                self.append_bytes = self.append_bytes.saturating_mul(2).clamp(CHUNK_BYTES.min(most), most);
                // What comes while an append lasts does not wait for acknowledgements.
                self.settled_at = self.first_insert.is_none().then_some(now);
                self.window_limited &= self.settled_at.is_some();
                self.on_kept(pending, &ids, producer, settling);
            }
            Err(why) => self.on_not_kept(pending, &why, producer, settling, now),
        }
    }

    fn on_kept(
        &mut self,
        pending: PendingAppend,
        ids: &[FrameId],
        producer: &mut Producer<Waiting>,
        settling: &mut Vec<Settled>,
    ) {
        let before = settling.len();
        let mut copied: Vec<(TopicName, Vec<u64>)> = Vec::new();
        for (part, id) in pending.parts.into_iter().zip(ids) {
            match part {
                Part::Inserted { topic, waiting, .. } => {
                    if let Some(route) = self.routes.get_mut(&topic) {
                        route.unread = true;
                    }
                    self.stored += waiting.len() as u64;
                    waiting.into_iter().for_each(|waiting| self.free(waiting, settling));
                }
                Part::Copied { topic, key } => {
                    self.on_copied(&topic, key, *id);
                    match copied.last_mut().filter(|(known, _)| *known == topic) {
                        Some((_, keys)) => keys.push(key),
                        None => copied.push((topic, vec![key])),
                    }
                }
            }
        }
        let mut replaced = Vec::new();
        for (topic, keys) in copied {
            producer.convert(&topic, |waiting| {
                let freed = waiting.settle_copy(&keys);
                settling.extend(freed.settled);
                replaced.extend(freed.done);
            });
        }
        replaced.into_iter().for_each(|place| self.record_done(place));
        self.counters.spooled.fetch_add((settling.len() - before) as u64, Relaxed);
    }

    fn on_copied(&mut self, topic: &TopicName, key: u64, id: FrameId) {
        let Some(resident) = self.residents.get_mut(&key) else { return };
        resident.frame = Some(id);
        resident.counted = true;
        let (records, remaining) = (resident.records, resident.remaining);
        self.stored += u64::from(remaining);
        if let Some(route) = self.routes.get_mut(topic) {
            route.cursor = id;
            route.in_flight += remaining as usize;
        }
        if remaining == 0 {
            // Kafka was faster.
            self.residents.remove(&key);
            self.done.push((id, records));
        }
    }

    fn on_not_kept(
        &mut self,
        pending: PendingAppend,
        why: &NotKept,
        producer: &mut Producer<Waiting>,
        settling: &mut Vec<Settled>,
        now: Instant,
    ) {
        let (mut chunks, mut bytes) = (0, 0);
        for part in pending.parts.into_iter().rev() {
            if *why == NotKept::Stopped
                && let Some(route) = self.routes.get_mut(part.topic())
            {
                route.unsure_since.get_or_insert(now);
            }
            match part {
                Part::Inserted { topic, since, records, waiting } => {
                    chunks += 1;
                    bytes += records.encoded_bytes();
                    if let Some(route) = self.routes.get_mut(&topic) {
                        let chunk = Chunk { since, records: Records::Sealed(records), waiting };
                        route.chunks.push_front(chunk);
                    }
                }
                Part::Copied { topic, key } => {
                    producer.not_copied(&topic);
                    self.residents.remove(&key);
                    if let Some(route) = self.routes.get_mut(&topic) {
                        route.copy = true;
                    }
                }
            }
        }
        self.first_insert.get_or_insert(now);
        self.insert_bytes += bytes;
        self.on_refused_append(why, chunks, bytes, settling, now);
    }

    /// The backlog is in Kafka's hands: what waited to be appended follows it directly.
    pub(super) fn release(&mut self, topic: &TopicName, producer: &mut Producer<Waiting>, now: Instant) {
        let Some(route) = self.routes.get_mut(topic) else { return };
        let unsure = route.unsure_since.is_some();
        for chunk in std::mem::take(&mut route.chunks) {
            // They have waited since then: that counts for SPOOL_AFTER_MS. But where the disk takes nothing, Kafka gets its time.
            let since = if unsure { now } else { chunk.since };
            let due = since + self.options.after;
            self.overdue_at = Some(self.overdue_at.map_or(due, |known| known.min(due)));
            for (record, waiting) in chunk.into_records() {
                let pushed = with_record_ref(&record, |record| producer.push(topic, record, waiting, since));
                if let Err(waiting) = pushed {
                    let reason = "there are too many Kafka topics already";
                    self.rejected.push(Rejected { topic: topic.clone(), record, waiting, reason });
                }
            }
        }
    }

    /// The process stops: what waits to be appended.
    pub fn abandon(&mut self) -> Vec<Waiting> {
        let chunks = self.routes.values_mut().flat_map(|route| route.chunks.drain(..));
        let mut all: Vec<Waiting> = chunks.flat_map(|chunk| chunk.waiting).collect();
        for part in self.pending.take().into_iter().flat_map(|pending| pending.parts) {
            if let Part::Inserted { waiting, .. } = part {
                all.extend(waiting);
            }
        }
        all.extend(self.take_rejected().into_iter().map(|rejected| rejected.waiting));
        all
    }
}

impl Part {
    fn topic(&self) -> &TopicName {
        match self {
            Part::Inserted { topic, .. } | Part::Copied { topic, .. } => topic,
        }
    }
}

fn frame(
    topic: &TopicName,
    sent: Option<(i32, Identity)>,
    records: &SealedBatch,
    unreleased: Vec<Unreleased>,
) -> FrameToKeep {
    let count = u32::try_from(records.count()).unwrap_or(0);
    FrameToKeep {
        topic: topic.clone(),
        sent,
        records: count,
        messages: count,
        oldest_ms: records.first_timestamp_ms(),
        newest_ms: records.max_timestamp_ms(),
        body: records.encode(record_batch::Identity::NONE),
        unreleased,
    }
}

fn spool_identity(identity: record_batch::Identity) -> Identity {
    Identity {
        producer_id: identity.producer_id,
        epoch: identity.producer_epoch,
        base_sequence: identity.base_sequence,
    }
}
