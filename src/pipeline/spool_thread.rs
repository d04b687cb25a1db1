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
//! - with nothing to do it wakes up for its heartbeat only.

mod request;
mod unreadable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{error, info, warn};

use crate::clock;
use crate::error::chain;
use crate::kafka::protocol::TopicName;
use crate::mqtt::waker::Waker;
use crate::observe::counters::SpoolCounters;
use crate::observe::heartbeat::Heartbeat;
use crate::observe::throttle::Throttle;
use crate::spool::{FrameId, Limit, Loss, NewFrame, Report, SpoolError, Store};

pub use self::request::{FrameToKeep, FramesRead, GivenUp, NotKept, ReadFrames, SpoolReply, SpoolRequest};

/// Requests and replies that may wait: one of each kind, with room to spare.
pub const CHANNEL_CAPACITY: usize = 8;
/// What Kafka has taken is written down after this long at the latest, one small write for all of it. After a crash the rest is
/// asked of Kafka.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(250);
/// A spool that is stopped is opened again this often, and a release that could not be written is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Near a limit small appends fit and large ones do not: it is one episode until none was refused for so long.
const FULL_FOR: Duration = Duration::from_secs(5);
/// No disk should need so long for an append: the MQTT broker's queue grows meanwhile (Mosquitto's holds 1,000 messages).
const SLOW: Duration = Duration::from_millis(500);
/// What the disk may need for a request and the thread still counts as alive. As long as the kernel's own limit for a task that hangs in
/// a disk (kernel.hung_task_timeout_secs), because a restart does not mend a disk; see [`disk_limit`].
const DISK_LIMIT: Duration = Duration::from_secs(120);
/// A slow disk is told this often.
const TELL_SLOW_EVERY: Duration = Duration::from_secs(60);

/// Tells ingest that its releases are durable.
pub struct Released {
    /// One for each [`SpoolRequest::Release`].
    pub answers: Sender<()>,
    /// Wakes it.
    pub waker: Waker,
}

/// See the module head.
pub struct SpoolThread {
    store: Box<dyn Store>,
    requests: Receiver<SpoolRequest>,
    replies: Sender<SpoolReply>,
    released: Option<Released>,
    /// Releases that could not be written yet, and when they are tried again.
    owed: Option<(Vec<u16>, Instant)>,
    /// When the oldest acknowledgement came that is not written down.
    undone_since: Option<Instant>,
    /// Since when a limit is reached, and when it was last.
    full: Option<(Instant, Instant)>,
    /// Since when the spool is stopped, and when it is to be opened again.
    stopped: Option<(Instant, Instant)>,
    /// What cannot be read, by segment and frame: since when, and when that was tried last.
    unreadable: BTreeMap<(FrameId, Option<FrameId>), (Instant, Instant)>,
    /// Frames that publish has and that are not done: records and messages. With their segment they are not lost.
    given_out: BTreeMap<FrameId, (TopicName, u32, u32)>,
    slow_throttle: Throttle,
    watched: Watched,
}

/// How the thread is watched from outside.
#[derive(Debug)]
pub struct Watched {
    /// What it says of itself.
    pub counters: Arc<SpoolCounters>,
    /// That it goes round.
    pub heartbeat: Heartbeat,
    /// How long a request may take; see [`disk_limit`].
    pub disk_limit: Duration,
}

/// How long the disk may need for a request. Merging and appending write a segment at the most: a second for each MiB of it, which the
/// slowest card does.
pub fn disk_limit(segment_bytes: u64) -> Duration {
    DISK_LIMIT + Duration::from_secs(segment_bytes >> 20)
}

impl SpoolThread {
    /// A thread that has not started.
    pub fn new(
        store: Box<dyn Store>,
        requests: Receiver<SpoolRequest>,
        replies: Sender<SpoolReply>,
        released: Option<Released>,
        watched: Watched,
    ) -> SpoolThread {
        SpoolThread {
            store,
            requests,
            replies,
            released,
            owed: None,
            undone_since: None,
            full: None,
            stopped: None,
            unreadable: BTreeMap::new(),
            given_out: BTreeMap::new(),
            slow_throttle: Throttle::new(TELL_SLOW_EVERY),
            watched,
        }
    }

    /// Runs until nobody can ask any more, then writes down what is done.
    ///
    /// # Errors
    /// None: a disk that fails is told and tried again.
    pub fn run(mut self) -> Result<(), String> {
        loop {
            let checkpoint_at = self.undone_since.map(|since| since + CHECKPOINT_AFTER);
            let owed_at = self.owed.as_ref().map(|(_, at)| *at);
            let due = [checkpoint_at, owed_at].into_iter().flatten().min();
            self.count();
            let now = clock::now();
            let wait = due.map(|at| at.saturating_duration_since(now));
            let request = self.requests.recv_timeout(self.watched.heartbeat.waits(wait, now));
            self.watched.heartbeat.works(self.watched.disk_limit, clock::now());
            match request {
                Ok(request) => {
                    if let Some(reply) = self.carry_out(request, clock::now()) {
                        self.tell_damage();
                        // Publish is gone: so is the channel of requests.
                        let _ = self.replies.send(reply);
                    }
                    self.do_what_is_due();
                }
                Err(RecvTimeoutError::Timeout) => self.do_what_is_due(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.checkpoint();
                    return Ok(());
                }
            }
        }
    }

    fn count(&self) {
        let (counters, total) = (&self.watched.counters, self.store.total());
        counters.bytes.store(self.store.bytes(), Relaxed);
        counters.backlog_records.store(total.records, Relaxed);
        counters.backlog_bytes.store(total.bytes, Relaxed);
        counters.open.store(self.stopped.is_none(), Relaxed);
        counters.full.store(self.full.is_some(), Relaxed);
    }

    fn do_what_is_due(&mut self) {
        if self.undone_since.is_some_and(|since| since.elapsed() >= CHECKPOINT_AFTER) {
            self.checkpoint();
        }
        if let Some((numbers, _)) = self.owed.take_if(|(_, at)| *at <= clock::now()) {
            self.release(numbers);
        }
    }

    fn release(&mut self, numbers: Vec<u16>) {
        let done = self.working().and_then(|()| match self.store.release(&numbers) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(&error, clock::now())),
        });
        match (done, &self.released) {
            (Ok(()), Some(released)) => {
                // Ingest is gone when the process stops.
                let _ = released.answers.try_send(());
                released.waker.wake();
            }
            (Ok(()), None) => {}
            (Err(_), _) => self.owed = Some((numbers, clock::now() + REOPEN_EVERY)),
        }
    }

    fn carry_out(&mut self, request: SpoolRequest, now: Instant) -> Option<SpoolReply> {
        Some(match request {
            SpoolRequest::Release(numbers) => {
                self.release(numbers);
                return None;
            }
            SpoolRequest::Append(frames) => {
                let (result, dropped) = self.append(&frames, now);
                let given_up = GivenUp { losses: dropped, ranges: self.store.take_dropped_ranges() };
                SpoolReply::Appended { result, given_up }
            }
            SpoolRequest::Keep { ticket, assignments } => {
                let result = self.working().and_then(|()| match self.store.assign(&assignments) {
                    Ok(()) => Ok(()),
                    Err(error) => Err(self.failed(&error, now)),
                });
                SpoolReply::Kept { ticket, result }
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
                SpoolReply::Done
            }
        })
    }

    fn append(&mut self, frames: &[FrameToKeep], now: Instant) -> (Result<Vec<FrameId>, NotKept>, Vec<Loss>) {
        if let Err(error) = self.working() {
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
                if self.stopped.is_none() {
                    error!("{}: nothing more is acknowledged by it until it is opened again", chain(error));
                }
                let since = self.stopped.map_or(now, |(since, _)| since);
                self.stopped = Some((since, now + REOPEN_EVERY));
                NotKept::Stopped
            }
        }
    }

    /// Opens the spool again if it was stopped.
    fn working(&mut self) -> Result<(), NotKept> {
        let Some((since, retry_at)) = self.stopped else { return Ok(()) };
        let now = clock::now();
        if now < retry_at {
            return Err(NotKept::Stopped);
        }
        match self.store.reopen() {
            Ok(report) => {
                warn!("the spool is open again after {:.1} s", since.elapsed().as_secs_f32());
                tell(&report);
                self.stopped = None;
                Ok(())
            }
            Err(_) => {
                // Told when it stopped; the next attempt says nothing new.
                self.stopped = Some((since, now + REOPEN_EVERY));
                Err(NotKept::Stopped)
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
        if self.working().is_err() {
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
