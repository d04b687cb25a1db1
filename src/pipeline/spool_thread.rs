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
//! - with nothing to do it wakes up for its heartbeat only; a spool that is stopped is something to do (`stopped`).

mod request;
mod stopped;
mod unreadable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{error, info, warn};

use self::stopped::Stopped;
use crate::clock;
use crate::kafka::protocol::TopicName;
use crate::mqtt::waker::Waker;
use crate::observe::counters::SpoolCounters;
use crate::observe::heartbeat::Heartbeat;
use crate::observe::throttle::Throttle;
use crate::spool::{Assignment, Forget, FrameId, Limit, Loss, NewFrame, Report, SpoolError, Store};

pub use self::request::{FrameToKeep, FramesRead, GivenUp, NotKept, ReadFrames, SpoolReply, SpoolRequest};

/// Requests and replies that may wait: one of each kind, with room to spare.
pub const CHANNEL_CAPACITY: usize = 8;
/// What Kafka has taken is written down after this long at the latest, one small write for all of it. After a crash the rest is
/// asked of Kafka.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(250);
/// Near a limit small appends fit and large ones do not: it is one episode until none was refused for so long.
const FULL_FOR: Duration = Duration::from_secs(5);
/// No disk should need so long for an append: the MQTT broker's queue grows meanwhile (Mosquitto's holds 1,000 messages).
const SLOW: Duration = Duration::from_millis(500);
/// What the disk may need for a request and the thread still counts as alive. As long as the kernel's own limit for a task that hangs in
/// a disk (kernel.hung_task_timeout_secs), because a restart does not mend a disk; see [`disk_limit`].
const DISK_LIMIT: Duration = Duration::from_secs(120);
/// A slow disk is told this often.
const TELL_SLOW_EVERY: Duration = Duration::from_secs(60);

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
            undone_since: None,
            full: None,
            stopped: None,
            keep_later: None,
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
            self.count();
            let now = clock::now();
            let wait = self.wake_at().map(|at| at.saturating_duration_since(now));
            let request = self.requests.recv_timeout(self.watched.heartbeat.waits(wait, now));
            self.at_work();
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

    /// One request may take as long as the limit of the disk from now on.
    fn at_work(&self) {
        self.watched.heartbeat.works(self.watched.disk_limit, clock::now());
    }

    fn count(&self) {
        let (counters, total) = (&self.watched.counters, self.store.total());
        counters.bytes.store(self.store.bytes(), Relaxed);
        counters.backlog_records.store(total.records, Relaxed);
        counters.backlog_bytes.store(total.bytes, Relaxed);
        counters.open.store(self.stopped.is_none(), Relaxed);
        counters.full.store(self.full.is_some(), Relaxed);
    }

    /// When there is something to do without being asked.
    fn wake_at(&self) -> Option<Instant> {
        let checkpoint_at = self.undone_since.map(|since| since + CHECKPOINT_AFTER);
        let reopen_at = self.stopped.map(|stopped| stopped.retry_at);
        [checkpoint_at, reopen_at].into_iter().flatten().min()
    }

    fn do_what_is_due(&mut self, now: Instant) {
        self.at_work();
        if let Some(reply) = self.reopen_if_due(now) {
            let _ = self.replies.send(reply);
        }
        // What is refused is tried again every second: nothing has been for so long, and nothing more may come to be stored. What waits
        // behind a disk that stalls is not known yet.
        let quiet = self.requests.is_empty();
        if quiet && self.full.is_some_and(|(_, last)| now.saturating_duration_since(last) >= FULL_FOR) {
            self.tell_room();
        }
        if self.undone_since.is_some_and(|since| now.saturating_duration_since(since) >= CHECKPOINT_AFTER) {
            self.at_work();
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
                SpoolReply::Done
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
