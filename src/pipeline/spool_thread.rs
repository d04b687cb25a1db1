//! The spool thread: owns the spool, and does what publish asks of it, in the order of asking. Inserting, reading for restoring and
//! deleting share it, because they share one owner: the log and its checkpoint (docs/decisions/0009).
//!
//! ```text
//!   publish --Append, Keep, Read, Done--> spool thread --replies--> publish
//!   ingest  --Release-----------------------^      +--released, + wake-up--> ingest
//! ```
//!
//! What it does not know: Kafka, MQTT, what a record is.
//!
//! Invariants:
//! - an Append or Keep is answered with success only after fdatasync has returned;
//! - publish and ingest have at most one request of each kind without an answer, so neither channel is ever full, and what publish gathers
//!   meanwhile makes the next append larger: that is the group commit;
//! - with nothing to do it does not wake up; a spool that is stopped is something to do (`stopped`).

mod stopped;
mod unreadable;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{error, info, warn};

use self::stopped::Stopped;
use crate::clock;
use crate::kafka::protocol::TopicName;
use crate::mqtt::waker::Waker;
use crate::observe::throttle::Throttle;
use crate::spool::{
    Assignment, Forget, Frame, FrameId, Identity, Limit, Loss, NewFrame, Report, SpoolError, Store,
    Unreleased,
};

/// Requests and replies that may wait: one of each kind, with room to spare.
pub const CHANNEL_CAPACITY: usize = 8;
/// What Kafka has taken is written down after this long at the latest, one small write for all of it. After a crash the rest is
/// asked of Kafka.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(250);
/// Near a limit small appends fit and large ones do not: it is one episode until none was refused for so long.
const FULL_FOR: Duration = Duration::from_secs(5);
/// No disk should need so long for an append: the MQTT broker's queue grows meanwhile (Mosquitto's holds 1,000 messages).
const SLOW: Duration = Duration::from_millis(500);
/// A slow disk is told this often.
const TELL_SLOW_EVERY: Duration = Duration::from_secs(60);

/// A frame to be kept.
#[derive(Debug, Clone)]
pub struct FrameToKeep {
    /// The route.
    pub topic: TopicName,
    /// Where it was sent to, if it was.
    pub sent: Option<(i32, Identity)>,
    /// How many records.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// Arrival of the oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Arrival of the newest record, milliseconds since 1970.
    pub newest_ms: i64,
    /// The records.
    pub body: Bytes,
    /// Of its messages those that MQTT may deliver again until their packet identifier is released (QoS 2).
    pub unreleased: Vec<Unreleased>,
}

impl FrameToKeep {
    /// As the store takes it.
    pub fn as_new(&self) -> NewFrame<'_> {
        NewFrame {
            topic: &self.topic,
            partition: self.sent.map(|(partition, _)| partition),
            identity: self.sent.map(|(_, identity)| identity),
            records: self.records,
            messages: self.messages,
            oldest_ms: self.oldest_ms,
            newest_ms: self.newest_ms,
            body: &self.body,
            unreleased: &self.unreleased,
        }
    }
}

/// Which frames are wanted.
#[derive(Debug, Clone)]
pub struct ReadFrames {
    /// The route.
    pub topic: TopicName,
    /// Behind this frame.
    pub after: FrameId,
    /// Enough once there are so many bytes.
    pub bytes_max: usize,
    /// Enough once there are so many records.
    pub records_max: u32,
}

/// What publish asks for.
#[derive(Debug)]
pub enum SpoolRequest {
    /// Keep these frames, all or none.
    Append(Vec<FrameToKeep>),
    /// Keep identities of frames.
    Keep {
        /// To be given back.
        ticket: u64,
        /// The identities.
        assignments: Vec<Assignment>,
    },
    /// Give out frames.
    Read {
        /// Of these routes, the first ones first.
        routes: Vec<ReadFrames>,
        /// Enough for all together once there are so many bytes: the routes that are left have no part in the answer.
        bytes_max: usize,
    },
    /// These packet identifiers are released; ingest is told at once which of them are durable now.
    Release(Vec<Forget>),
    /// Frames that are in Kafka, and routes that Kafka refuses or takes again.
    Done {
        /// Frames.
        frames: Vec<FrameId>,
        /// Routes.
        parked: Vec<(TopicName, bool)>,
    },
}

/// Why nothing was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotKept {
    /// A limit is reached, for a parked route or for all.
    Full {
        /// The route whose share is used up, if it is that.
        parked: Option<String>,
    },
    /// A frame of this route is larger than the spool ever takes.
    TooLarge {
        /// The route.
        topic: String,
    },
    /// The disk failed; try again later.
    Stopped,
}

/// Frames of a route.
#[derive(Debug)]
pub struct FramesRead {
    /// The route.
    pub topic: TopicName,
    /// Its frames, ascending.
    pub frames: Vec<Frame>,
    /// There were no more behind them.
    pub caught_up: bool,
}

/// What drop-oldest gave up.
#[derive(Debug, Default)]
pub struct GivenUp {
    /// What went, by route.
    pub losses: Vec<Loss>,
    /// Frame numbers, first and last; some may be on their way to Kafka all the same.
    pub ranges: Vec<(FrameId, FrameId)>,
}

/// An answer.
#[derive(Debug)]
pub enum SpoolReply {
    /// To [`SpoolRequest::Append`].
    Appended {
        /// The frames' numbers, in order.
        result: Result<Vec<FrameId>, NotKept>,
        /// What had to go.
        given_up: GivenUp,
    },
    /// To [`SpoolRequest::Keep`].
    Kept {
        /// As asked.
        ticket: u64,
        /// Whether they are on the disk.
        result: Result<(), NotKept>,
    },
    /// To [`SpoolRequest::Read`].
    Read(Vec<FramesRead>),
    /// To nothing: the spool was stopped and is open again. Nothing is in it of appends that failed.
    Reopened,
    /// To [`SpoolRequest::Done`]: how many bytes the spool takes now.
    Done {
        /// Bytes.
        bytes: u64,
    },
}

/// Tells ingest which of its releases are durable.
pub struct Released {
    /// One for each [`SpoolRequest::Release`]: those that are; the others may be asked for again.
    pub answers: Sender<Vec<u16>>,
    /// Wakes it.
    pub waker: Waker,
}

/// See the module head.
pub struct SpoolThread {
    store: Box<dyn Store>,
    requests: Receiver<SpoolRequest>,
    replies: Sender<SpoolReply>,
    released: Option<Released>,
    /// When the oldest acknowledgement came that is not written down.
    undone_since: Option<Instant>,
    /// Since when a limit is reached, and when it was last.
    full: Option<(Instant, Instant)>,
    /// The spool is stopped.
    stopped: Option<Stopped>,
    /// Identities that wait for it to be opened again once.
    keep_later: Option<(u64, Vec<Assignment>)>,
    /// What cannot be read, by segment and frame: since when, and when that was tried last.
    unreadable: BTreeMap<(FrameId, Option<FrameId>), (Instant, Instant)>,
    /// Frames that publish has and that are not done: records and messages. With their segment they are not lost.
    given_out: BTreeMap<FrameId, (TopicName, u32, u32)>,
    slow_throttle: Throttle,
}

impl SpoolThread {
    /// A thread that has not started.
    pub fn new(
        store: Box<dyn Store>,
        requests: Receiver<SpoolRequest>,
        replies: Sender<SpoolReply>,
        released: Option<Released>,
    ) -> SpoolThread {
        SpoolThread {
            store,
            requests,
            replies,
            released,
            undone_since: None,
            full: None,
            stopped: None,
            keep_later: None,
            unreadable: BTreeMap::new(),
            given_out: BTreeMap::new(),
            slow_throttle: Throttle::new(TELL_SLOW_EVERY),
        }
    }

    /// Runs until nobody can ask any more, then writes down what is done.
    ///
    /// # Errors
    /// None: a disk that fails is told and tried again.
    pub fn run(mut self) -> Result<(), String> {
        loop {
            let request = match self.wake_at() {
                Some(at) => self.requests.recv_deadline(at),
                None => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match request {
                Ok(request) => {
                    if let Some(reply) = self.carry_out(request, clock::now()) {
                        self.tell_damage();
                        // Publish is gone: so is the channel of requests.
                        let _ = self.replies.send(reply);
                    }
                    self.do_what_is_due(clock::now());
                }
                Err(RecvTimeoutError::Timeout) => self.do_what_is_due(clock::now()),
                Err(RecvTimeoutError::Disconnected) => {
                    self.reopen_at_the_end(clock::now());
                    self.checkpoint();
                    return Ok(());
                }
            }
        }
    }

    /// When there is something to do without being asked.
    fn wake_at(&self) -> Option<Instant> {
        let checkpoint_at = self.undone_since.map(|since| since + CHECKPOINT_AFTER);
        let reopen_at = self.stopped.map(|stopped| stopped.retry_at);
        [checkpoint_at, reopen_at].into_iter().flatten().min()
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if let Some(reply) = self.reopen_if_due(now) {
            let _ = self.replies.send(reply);
        }
        if self.undone_since.is_some_and(|since| now.saturating_duration_since(since) >= CHECKPOINT_AFTER) {
            self.checkpoint();
        }
    }

    /// What the spool has nothing of is released whatever the disk does: Kafka may take everything meanwhile, and the MQTT broker must
    /// not wait for a disk that nobody needs.
    fn release(&mut self, forget: Vec<Forget>, now: Instant) {
        let (known, mut done): (Vec<Forget>, Vec<Forget>) =
            forget.into_iter().partition(|forget| self.store.remembers(forget));
        if self.make_durable(&known, now) {
            done.extend(known);
        }
        if let Some(released) = &self.released {
            // Ingest is gone when the process stops.
            let _ = released.answers.try_send(done.iter().map(|forget| forget.number).collect());
            released.waker.wake();
        }
    }

    fn make_durable(&mut self, forget: &[Forget], now: Instant) -> bool {
        if forget.is_empty() {
            return true;
        }
        let done = self.working(now).and_then(|()| match self.store.release(forget) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(&error, now)),
        });
        done.is_ok()
    }

    fn carry_out(&mut self, request: SpoolRequest, now: Instant) -> Option<SpoolReply> {
        Some(match request {
            SpoolRequest::Release(forget) => {
                self.release(forget, now);
                return None;
            }
            SpoolRequest::Append(frames) => {
                let (result, dropped) = self.append(&frames, now);
                let given_up = GivenUp { losses: dropped, ranges: self.store.take_dropped_ranges() };
                SpoolReply::Appended { result, given_up }
            }
            SpoolRequest::Keep { ticket, assignments } => {
                return self.keep(ticket, assignments, now);
            }
            SpoolRequest::Read { routes, bytes_max } => {
                let (mut read, mut bytes) = (Vec::new(), 0);
                for route in routes {
                    if bytes >= bytes_max {
                        break;
                    }
                    let frames = self.read(route, now);
                    bytes += frames.frames.iter().map(|frame| frame.body.len()).sum::<usize>();
                    read.push(frames);
                }
                SpoolReply::Read(read)
            }
            SpoolRequest::Done { frames, parked } => {
                for (topic, parked) in parked {
                    self.store.park(&topic, parked);
                }
                self.done(&frames);
                SpoolReply::Done { bytes: self.store.bytes() }
            }
        })
    }

    fn append(&mut self, frames: &[FrameToKeep], now: Instant) -> (Result<Vec<FrameId>, NotKept>, Vec<Loss>) {
        if let Err(error) = self.working(now) {
            return (Err(error), Vec::new());
        }
        let new: Vec<NewFrame<'_>> = frames.iter().map(FrameToKeep::as_new).collect();
        let from = clock::now();
        let appended = self.store.append(&new);
        self.tell_slow(from.elapsed());
        match appended {
            Ok(appended) => {
                self.tell_room();
                // Of what was sent, publish has the records.
                for (id, frame) in appended.ids.iter().zip(frames).filter(|(_, frame)| frame.sent.is_some()) {
                    self.given_out.insert(*id, (frame.topic.clone(), frame.records, frame.messages));
                }
                (Ok(appended.ids), appended.dropped)
            }
            Err(error) => (Err(self.failed(&error, now)), self.store.take_damage()),
        }
    }

    fn tell_slow(&mut self, took: Duration) {
        if took < SLOW {
            return;
        }
        if let Some(others) = self.slow_throttle.tell(clock::now()) {
            warn!(
                "the spool's disk took {:.1} s to keep messages ({others} more such waits before): MQTT waits meanwhile",
                took.as_secs_f32()
            );
        }
    }

    /// Tells that a limit is not reached any more.
    fn tell_room(&mut self) {
        let store = &self.store;
        let over =
            |(_, last): &mut (Instant, Instant)| last.elapsed() >= FULL_FOR || store.routes().is_empty();
        if let Some((since, _)) = self.full.take_if(over) {
            info!("the spool has room again after {:.1} s", since.elapsed().as_secs_f32());
        }
    }

    /// Notes and tells a failure, once an episode.
    fn failed(&mut self, error: &SpoolError, now: Instant) -> NotKept {
        match error {
            SpoolError::Unreadable { segment, frame, .. } => {
                self.on_unreadable(error, (*segment, *frame), now);
                NotKept::Stopped
            }
            SpoolError::Full { limit: Limit::Parked, topic } => NotKept::Full { parked: topic.clone() },
            SpoolError::Full { .. } => {
                if self.full.is_none() {
                    error!(
                        "{error}: MQTT messages stay unacknowledged until there is room; QoS 0 is dropped"
                    );
                }
                self.full = Some((self.full.map_or(now, |(since, _)| since), now));
                NotKept::Full { parked: None }
            }
            SpoolError::TooLarge { topic, .. } => NotKept::TooLarge { topic: topic.clone() },
            _ => {
                self.stop(error, now);
                NotKept::Stopped
            }
        }
    }

    fn read(&mut self, read: ReadFrames, now: Instant) -> FramesRead {
        let ReadFrames { topic, after, bytes_max, records_max } = read;
        let frames = match self.store.next_within(&topic, after, bytes_max, records_max) {
            Ok(frames) => frames,
            Err(error) => {
                self.failed(&error, now);
                return FramesRead { topic, frames: Vec::new(), caught_up: false };
            }
        };
        for frame in &frames {
            self.given_out.insert(frame.id, (topic.clone(), frame.records, frame.messages));
        }
        let last = frames.last().map_or(after, |frame| frame.id);
        let caught_up = self.store.next(&topic, last, 1).is_ok_and(|more| more.is_empty());
        FramesRead { topic, frames, caught_up }
    }

    fn done(&mut self, frames: &[FrameId]) {
        if frames.is_empty() {
            return;
        }
        for id in frames {
            self.given_out.remove(id);
        }
        self.store.ack(frames);
        self.undone_since.get_or_insert_with(clock::now);
    }

    fn checkpoint(&mut self) {
        self.undone_since = None;
        if self.working(clock::now()).is_err() {
            self.undone_since = Some(clock::now());
            return;
        }
        match self.store.checkpoint() {
            Ok(()) => self.tell_room(),
            Err(error) => {
                self.failed(&error, clock::now());
                self.undone_since = Some(clock::now());
            }
        }
    }

    fn tell_damage(&mut self) {
        for Loss { topic, frames, records, messages } in self.store.take_damage() {
            error!(
                "{topic}: {records} records of {messages} messages in {frames} damaged frames of the spool are lost"
            );
        }
    }
}

/// Says what was found when the spool was opened.
pub fn tell(report: &Report) {
    if report.frames > 0 {
        info!("the spool holds {} records in {} frames", report.records, report.frames);
    }
    for line in report.lines() {
        warn!("spool: {line}");
    }
}

#[cfg(test)]
#[path = "spool_thread_tests.rs"]
mod tests;
