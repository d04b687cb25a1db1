//! Publish's side of the spool: which routes have a backlog, what of it is on its way to Kafka, and what is asked of the spool
//! thread. Owned by the publish thread; no I/O but the channel.
//!
//! ```text
//!  message of a held route --insert--> chunks --Append--> spool --Read--> restored --push--> producer --Done--> spool
//!  overdue batches in the producer --copy---^                                 ^ at most INVOKE_MAX_GOROUTINE
//! ```
//!
//! Invariants:
//! - for one route, what is in the producer was accepted before what is in the spool behind `cursor`, and that before what is in
//!   `chunks`: that order is the order of arrival (G3);
//! - a message is settled when its frame is on the disk, or Kafka has it; never before;
//! - at most one Append, one Keep, one Read and one Done is without an answer (see [`super::spool_thread`]);
//! - memory: `chunks` holds what is in hand; what is resident of the spool is bounded by INVOKE_MAX_GOROUTINE and, for what was
//!   in flight when Kafka went away, by the in-hand limit.

mod full;
mod given_up;
mod insert;
mod restore;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{error, info};

use self::given_up::TELL_EVERY;
use self::insert::{Chunk, PendingAppend, RETRY_EVERY};
use self::restore::SentGroup;
use super::mode::Mode;
use super::spool_thread::{SpoolReply, SpoolRequest};
use super::waiting::{Freed, Place, Waiting};
use crate::kafka::producer::Producer;
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::Record;
use crate::message::Settled;
use crate::observe::counters::PublishCounters;
use crate::observe::throttle::Throttle;
use crate::spool::{Assignment, FrameId};

/// How the spool is used.
#[derive(Debug, Clone)]
pub struct BacklogOptions {
    /// What is not acknowledged for this long goes to the spool (SPOOL_AFTER_MS).
    pub after: Duration,
    /// How often, at the longest, a restore is attempted (INVOKE_LATENCY_SEC).
    pub latency: Duration,
    /// Most stored records in flight to Kafka (INVOKE_MAX_GOROUTINE).
    pub in_flight_max: usize,
    /// The spool is read again when fewer are in flight (INVOKE_MIN_GOROUTINE).
    pub in_flight_min: usize,
    /// Most stored records a second (SPOOL_RESTORE_PER_SEC); None: no limit.
    pub restore_per_sec: Option<u32>,
    /// Records that waited in the spool are marked (KAFKA_HEADERS: replayed).
    pub mark_replayed: bool,
    /// The spool is in memory: the end of the process is the end of it.
    pub in_memory: bool,
    /// Size of a segment (SPOOL_SEGMENT_BYTES). An append larger than that would make one that is larger, and drop-oldest gives up
    /// whole segments.
    pub segment_bytes: usize,
    /// Routes that have a backlog at the start.
    pub found: Vec<TopicName>,
}

/// A frame of which records are in the producer, or were and are done.
#[derive(Debug)]
struct Resident {
    topic: TopicName,
    /// None while it is being appended.
    frame: Option<FrameId>,
    /// Records of the whole frame.
    records: u32,
    /// Records that are not done.
    remaining: u32,
    /// They count as in flight.
    counted: bool,
    /// Memory of its records that were read; 0 for a copy of what the producer has.
    bytes: usize,
}

/// A route with a backlog.
#[derive(Debug)]
struct Route {
    mode: Mode,
    /// Since when it is in this mode.
    since: Instant,
    /// Kafka has taken a record of it since then.
    progressed: bool,
    /// What came and is not being appended yet.
    chunks: VecDeque<Chunk>,
    /// What the producer has sent of it is to be copied with the next append.
    copy: bool,
    /// A part of the append that is under way is of this route.
    appending: bool,
    /// Since when frames of it may be in the spool that were never confirmed: until those are cut off, the messages in them must not
    /// reach Kafka another way, or a process that starts now would deliver them again, behind newer ones.
    unsure_since: Option<Instant>,
    /// All frames up to this one are resident, or done.
    cursor: FrameId,
    /// There are frames behind the cursor.
    unread: bool,
    /// Batches of an earlier process, while they are gathered from their frames.
    sent_before: Vec<SentGroup>,
    /// More of them may come with the next frames.
    gathering: bool,
    /// Read and not given to the producer yet.
    restored: VecDeque<(Record, Place)>,
    /// Stored records that are in the producer.
    in_flight: usize,
    /// Stored records of it that were done, as far as was noted, and when that was.
    done_records: u64,
    done_noted: u64,
    progress_at: Instant,
    /// Memory of the frames that were read and are not done.
    resident_bytes: usize,
    /// Counts up: when it was read last.
    read_turn: u64,
    /// Since when the spool was read to its end, but for an append that is under way: new messages wait for a moment, so that the
    /// backlog comes to an end under a steady load.
    closing_since: Option<Instant>,
    /// A parked route with nothing in the producer is tried from this time on; one that cannot be read, too.
    attempt_at: Instant,
}

impl Route {
    fn new(now: Instant) -> Route {
        Route {
            mode: Mode::Live,
            since: now,
            progressed: false,
            chunks: VecDeque::new(),
            copy: false,
            appending: false,
            unsure_since: None,
            cursor: FrameId(0),
            unread: false,
            sent_before: Vec::new(),
            gathering: false,
            restored: VecDeque::new(),
            in_flight: 0,
            done_records: 0,
            done_noted: 0,
            progress_at: now,
            resident_bytes: 0,
            read_turn: 0,
            closing_since: None,
            attempt_at: now,
        }
    }

    /// A part of a batch of an earlier process was read: the rest is wanted whatever the limits are.
    fn is_gathering(&self) -> bool {
        self.gathering && !self.sent_before.is_empty() && matches!(self.mode, Mode::Draining | Mode::Parked)
    }

    /// Kafka has taken nothing of what is in flight for a while, though it takes the topic.
    fn is_stuck(&self, now: Instant) -> bool {
        self.in_flight > 0 && now.saturating_duration_since(self.progress_at) >= STUCK_AFTER
    }

    /// Until when it waits for frames that were never confirmed to be cut off. A disk that stays dead must not hold up a Kafka that
    /// is there, nor the other routes' acknowledgements behind this one's.
    fn unsure_until(&self, now: Instant) -> Option<Instant> {
        self.unsure_since.map(|since| since + UNSURE_FOR).filter(|until| *until > now)
    }

    /// Nothing of it is in the spool but what is in the producer, and nothing is on the way there.
    fn is_read_out(&self) -> bool {
        !self.unread
            && !self.appending
            && !self.copy
            && self.restored.is_empty()
            && self.sent_before.is_empty()
    }
}

/// A record that cannot be kept or delivered where it belongs.
#[derive(Debug)]
pub struct Rejected {
    /// The Kafka topic it was meant for.
    pub topic: TopicName,
    /// The record.
    pub record: Record,
    /// Who waits for it.
    pub waiting: Waiting,
    /// Why.
    pub reason: &'static str,
}

/// See the module head.
pub struct Backlog {
    options: BacklogOptions,
    requests: Sender<SpoolRequest>,
    counters: Arc<PublishCounters>,
    routes: HashMap<TopicName, Route>,
    residents: HashMap<u64, Resident>,
    next_key: u64,
    pending: Option<PendingAppend>,
    /// How long the last append took, with what the spool thread had to do before.
    append_took: Duration,
    /// After a failure the next append waits until then.
    append_at: Option<Instant>,
    /// An append takes no more than this, and one chunk: less after one that was too much for what is left of the spool.
    append_bytes: usize,
    /// When the oldest and the newest record came that wait to be appended, and how many bytes there are.
    first_insert: Option<Instant>,
    last_insert: Instant,
    insert_bytes: usize,
    /// When the first record for Kafka came behind one that waits to be appended: its acknowledgement waits for that one's.
    live_behind: Option<Instant>,
    /// When an append was answered during which nothing had come.
    settled_at: Option<Instant>,
    /// The MQTT broker seems to wait for acknowledgements before it sends more.
    window_limited: bool,
    keeps: VecDeque<(u64, Vec<Assignment>)>,
    keeping: bool,
    reading: bool,
    read_turns: u64,
    /// When to ask again for identities that were not kept.
    keep_again_at: Option<Instant>,
    /// Frames that are done, with their records: to be told to the spool, and told and not answered.
    done: Vec<(FrameId, u32)>,
    telling_done: Vec<(FrameId, u32)>,
    parked: Vec<(TopicName, bool)>,
    finishing: bool,
    /// When to look for overdue records.
    overdue_at: Option<Instant>,
    /// The modes were looked at; not again before this.
    modes_at: Instant,
    /// Stored records that may be sent now, where there is a limit a second.
    allowance: f64,
    allowed_at: Instant,
    rejected: Vec<Rejected>,
    /// Records that this process stored and that are not done.
    stored: u64,
    /// An outage that was told: since when, and how many messages were stored until then.
    episode: Option<(Instant, u64)>,
    given_up: u64,
    given_up_told: u64,
    given_up_throttle: Throttle,
    keep_throttle: Throttle,
}

/// A route that has not moved for this long does not count among those that share what may be in flight.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// So long a route that could be live waits for a disk that failed: that is opened again after a second at first.
const UNSURE_FOR: Duration = Duration::from_secs(3);

impl Backlog {
    /// A backlog of the routes that were found.
    pub fn new(
        options: BacklogOptions,
        requests: Sender<SpoolRequest>,
        counters: Arc<PublishCounters>,
        now: Instant,
    ) -> Backlog {
        let found = options.found.iter().map(|topic| {
            let route = Route { mode: Mode::Spooling, unread: true, gathering: true, ..Route::new(now) };
            (topic.clone(), route)
        });
        let routes: HashMap<TopicName, Route> = found.collect();
        let episode = (!routes.is_empty()).then_some((now, 0));
        Backlog {
            routes,
            requests,
            counters,
            residents: HashMap::new(),
            next_key: 1,
            pending: None,
            append_took: Duration::ZERO,
            append_at: None,
            append_bytes: insert::APPEND_BYTES.min(options.segment_bytes),
            first_insert: None,
            last_insert: now,
            insert_bytes: 0,
            live_behind: None,
            settled_at: None,
            window_limited: false,
            keeps: VecDeque::new(),
            keeping: false,
            reading: false,
            read_turns: 0,
            keep_again_at: None,
            done: Vec::new(),
            telling_done: Vec::new(),
            parked: Vec::new(),
            finishing: false,
            overdue_at: None,
            modes_at: now,
            allowance: 0.0,
            allowed_at: now,
            rejected: Vec::new(),
            stored: 0,
            episode,
            given_up: 0,
            given_up_told: 0,
            given_up_throttle: Throttle::new(TELL_EVERY),
            keep_throttle: Throttle::new(TELL_EVERY),
            options,
        }
    }

    /// The routes that were found at the start.
    pub fn found(&self) -> &[TopicName] {
        &self.options.found
    }

    /// True if a new message of this route goes to the spool.
    pub fn holds(&self, topic: &TopicName) -> bool {
        !self.routes.is_empty() && self.routes.get(topic).is_some_and(|route| route.mode != Mode::Live)
    }

    /// A record was given to the producer that is not stored.
    pub fn watch(&mut self, now: Instant) {
        self.overdue_at.get_or_insert(now + self.options.after);
        if self.first_insert.is_some() {
            self.live_behind.get_or_insert(now);
        }
    }

    /// True if nothing is in the spool, and nothing on its way there.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.pending.is_none()
    }

    /// True if it is lost with the process.
    pub fn is_in_memory(&self) -> bool {
        self.options.in_memory
    }

    /// Records that are lost with the process, though MQTT has their acknowledgement.
    pub fn lost_with_process(&self) -> u64 {
        if self.options.in_memory { self.stored } else { 0 }
    }

    /// True if [`Backlog::take_rejected`] has something to give.
    pub fn has_rejected(&self) -> bool {
        !self.rejected.is_empty()
    }

    /// The process ends in order: what is done and was not asked for yet goes to the spool thread, which writes it down before it
    /// ends.
    pub fn hand_over_done(&mut self) {
        if !self.done.is_empty() {
            let frames = self.done.drain(..).map(|(frame, _)| frame).collect();
            self.ask(SpoolRequest::Done { frames, parked: Vec::new() });
        }
    }

    /// Takes what cannot be kept or delivered.
    pub fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// A record is safe, or known to be lost.
    pub fn free(&mut self, waiting: Waiting, settling: &mut Vec<Settled>) {
        let Freed { settled, done } = waiting.free();
        settling.extend(settled);
        done.into_iter().for_each(|place| self.record_done(place));
    }

    fn record_done(&mut self, place: Place) {
        // A copy that failed has no resident: the record was never in the spool.
        let Some(resident) = self.residents.get_mut(&place.key) else { return };
        resident.remaining = resident.remaining.saturating_sub(1);
        let counted = resident.counted;
        if let Some(route) = self.routes.get_mut(&resident.topic) {
            route.progressed = true;
            route.done_records += 1;
            route.in_flight = route.in_flight.saturating_sub(usize::from(counted));
        }
        if counted {
            self.stored = self.stored.saturating_sub(1);
            self.counters.restored.fetch_add(1, Relaxed);
        }
        if resident.remaining == 0
            && let Some(frame) = resident.frame
        {
            if let Some(route) = self.routes.get_mut(&resident.topic) {
                route.resident_bytes = route.resident_bytes.saturating_sub(resident.bytes);
            }
            self.done.push((frame, resident.records));
            self.residents.remove(&place.key);
        }
    }

    fn key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    /// Takes in an answer of the spool thread.
    pub fn on_reply(
        &mut self,
        reply: SpoolReply,
        producer: &mut Producer<Waiting>,
        settling: &mut Vec<Settled>,
        now: Instant,
    ) {
        self.modes_at = now;
        match reply {
            SpoolReply::Appended { result, given_up } => {
                self.note_given_up(&given_up, now);
                self.on_appended(result, producer, settling, now);
            }
            SpoolReply::Kept { ticket, result } => {
                self.keeping = false;
                if result.is_ok() {
                    producer.kept(ticket, now);
                } else {
                    self.tell_unkept(now);
                    producer.unkept(ticket, now);
                    self.keep_again_at = Some(now + RETRY_EVERY);
                }
            }
            SpoolReply::Reopened => {
                self.routes.values_mut().for_each(|route| route.unsure_since = None);
                self.append_at = self.append_at.map(|at| at.min(now));
            }
            SpoolReply::Read(read) => {
                self.reading = false;
                read.into_iter().for_each(|frames| self.on_read(frames, now));
            }
            SpoolReply::Done => {
                self.finishing = false;
                self.telling_done.clear();
                // There may be room now.
                self.append_at = self.append_at.map(|at| at.min(now));
            }
        }
    }

    /// Waiting for the disk instead would stop what makes room on it.
    fn tell_unkept(&mut self, now: Instant) {
        if self.keep_throttle.tell(now).is_some() {
            error!(
                "the spool's disk does not take the identities of batches: they are sent without, and a crash before it \
                 does may repeat what is in flight"
            );
        }
    }

    /// What Kafka refuses is told where it is refused, and a topic that is being created is nothing unexpected.
    fn tell_start(&mut self, topic: &TopicName, held_up: bool, now: Instant) {
        if self.episode.is_none() {
            if held_up {
                info!("Kafka does not take topic {topic} yet: messages of such topics go to the spool");
            } else {
                log::warn!(
                    "Kafka has not acknowledged records for topic {topic} for {} ms: messages of such topics go to the spool",
                    self.options.after.as_millis()
                );
            }
            self.episode = Some((now, self.counters.spooled.load(Relaxed)));
        }
    }

    fn tell_end(&mut self, now: Instant) {
        if !self.routes.is_empty() {
            return;
        }
        if let Some((since, stored)) = self.episode.take() {
            let stored = self.counters.spooled.load(Relaxed) - stored;
            let took = now.saturating_duration_since(since).as_secs_f32();
            info!("the backlog is delivered: {stored} messages were stored in {took:.1} s");
        }
        self.tell_given_up();
    }
}

#[cfg(test)]
mod tests;
