//! The ingest thread: owns the MQTT connection, both directions of it, and the session.
//!
//! ```text
//!  socket <--> Session --Vec<Message>--> publish
//!                 ^----- Vec<Settled>---- publish (+ waker)
//! ```
//!
//! One thread waits in poll(2) for the socket, for the waker and for the next deadline, so the session needs no
//! lock. It never waits for anything else: names are resolved and connections made on a helper thread, and its
//! channels are never full (next paragraph). So keep-alive holds whatever else is slow.
//!
//! Invariant: each batch in either channel holds at least one message that is in hand, and the session takes in
//! no more than `in_hand_messages_max`; so channels with at least that capacity always have room.
//!
//! What the messages are for is not known here.

mod tell;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use log::{error, info, warn};

use super::spool_thread::SpoolRequest;

use crate::backoff::Backoff;
use crate::clock;
use crate::error::chain;
use crate::message::{Message, Settled};
use crate::mqtt::codec::Reason;
use crate::mqtt::session::{Session, SessionError, SessionOptions};
use crate::mqtt::transport::{self, ConnectError, Connection, Endpoint, ReadOutcome, Ready};
use crate::mqtt::waker::Waker;
use crate::observe::counters::MqttCounters;
use crate::observe::heartbeat::Heartbeat;
use crate::spool::Forget;
use crate::thread;

/// First and longest pause between attempts: what came up last is found within the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// A connection that lasted this long starts the pauses from the first again.
const LASTED: Duration = Duration::from_secs(10);

/// While the broker cannot be reached, say so this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How long the goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads in a row before settlements are looked at again.
const READS_IN_A_ROW: usize = 8;

/// What the supervisor asks for. Send it, then wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngestControl {
    /// Take nothing more in; acknowledge what is settled.
    StopReading,
    /// Write the last acknowledgements and DISCONNECT, then end.
    Finish,
}

/// What the thread is made of.
#[derive(Debug)]
pub struct Ingest {
    /// The broker.
    pub endpoint: Endpoint,
    /// The session.
    pub options: SessionOptions,
    /// Where messages go. Capacity: at least `options.in_hand_messages_max`. Taken and dropped when told to stop
    /// reading, which tells the next thread that no more will come.
    pub messages: Option<Sender<Vec<Message>>>,
    /// What is safe. Capacity: at least `options.in_hand_messages_max`. Send, then wake.
    pub settled: Receiver<Vec<Settled>>,
    /// Where releases of QoS 2 are made durable; as the session's options say.
    pub releases: Option<ReleaseLine>,
    /// What to do. A closed channel means [`IngestControl::Finish`].
    pub control: Receiver<IngestControl>,
    /// Wakes this thread.
    pub waker: Waker,
    /// What is counted.
    pub counters: Arc<MqttCounters>,
    /// That it goes round.
    pub heartbeat: Heartbeat,
    /// Told when the subscriptions are accepted or refused; a hint, which is left out where it cannot be given.
    pub subscribed: Sender<()>,
}

/// The way to the spool and back, for releases of QoS 2.
#[derive(Debug)]
pub struct ReleaseLine {
    /// Dropped when nothing is left to be released and nothing more can come, or with the thread: the spool ends when nobody can ask any
    /// more.
    pub requests: Option<Sender<SpoolRequest>>,
    /// One for each request: what is durable.
    pub answers: Receiver<Vec<u16>>,
}

type Connected = Result<Connection, ConnectError>;

enum Link {
    Waiting { until: Instant },
    Connecting { result: Receiver<Connected> },
    Up { connection: Connection, since: Instant },
    Stopped,
}

/// Why a connection ended.
enum Loss {
    Session(SessionError),
    Io(io::Error),
    Closed,
}

impl Loss {
    fn by_peer(&self) -> bool {
        match self {
            Loss::Closed => true,
            Loss::Io(error) => {
                matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
            }
            Loss::Session(error) => matches!(error, SessionError::Ended(_)),
        }
    }
}

struct State {
    ingest: Ingest,
    session: Session,
    link: Link,
    backoff: Backoff,
    stopping: bool,
    finishing: bool,
    /// Publish has ended: nothing more is settled.
    all_settled: bool,
    /// The broker accepted the present connection.
    accepted: bool,
    batch: Vec<Message>,
    outage: Option<Outage>,
    told_refusal: Option<Reason>,
}

/// An outage that has been reported.
struct Outage {
    failures: u64,
    report_at: Instant,
}

impl Ingest {
    /// The thread's body. Returns when told to finish.
    ///
    /// # Errors
    /// The next thread is gone, or the operating system fails us. Tokens are abandoned: the broker delivers
    /// again what is not acknowledged.
    pub fn run(self) -> Result<(), String> {
        let session = Session::new(self.options.clone());
        let mut state = State {
            session,
            link: Link::Waiting { until: clock::now() },
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX),
            stopping: false,
            finishing: false,
            all_settled: false,
            accepted: false,
            batch: Vec::new(),
            outage: None,
            told_refusal: None,
            ingest: self,
        };
        let result = state.run();
        for message in state.batch.drain(..) {
            message.token.abandon();
        }
        state.ingest.counters.connected.store(false, Relaxed);
        state.ingest.counters.subscribed.store(false, Relaxed);
        result
    }
}

impl State {
    fn run(&mut self) -> Result<(), String> {
        while !self.finishing {
            self.advance_link()?;
            let ready = self.wait().map_err(|error| format!("cannot wait for the MQTT socket: {error}"))?;
            if ready.woken {
                self.ingest.waker.acknowledge();
            }
            self.take_settled();
            self.take_control();
            let served = self.take_released().and_then(|()| self.serve(ready));
            if let Err(loss) = served {
                self.lost(&loss);
            }
            self.ask_for_releases()?;
            self.hand_on()?;
            self.tell();
        }
        self.goodbye();
        Ok(())
    }

    /// Begins or ends an attempt to connect.
    fn advance_link(&mut self) -> Result<(), String> {
        match &self.link {
            Link::Waiting { .. } if self.stopping => self.link = Link::Stopped,
            Link::Waiting { until } if *until <= clock::now() => {
                let (sender, result) = bounded(1);
                let (endpoint, waker) = (self.ingest.endpoint.clone(), self.ingest.waker.clone());
                let attempt = move || {
                    // Nobody takes it if the gateway stopped meanwhile.
                    let _ = sender.send(transport::connect(&endpoint));
                    Ok(())
                };
                // Not joined: it ends by itself, and a name that takes minutes must not hold up a stop.
                thread::spawn("mqtt-connect", attempt, move |_| waker.wake())
                    .map_err(|error| format!("cannot start a thread to connect to MQTT: {error}"))?;
                self.link = Link::Connecting { result };
            }
            Link::Connecting { result } => match result.try_recv() {
                Ok(Ok(connection)) => self.up(connection),
                Ok(Err(error)) => self.failed(&chain(&error)),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.failed("the attempt ended without a result"),
            },
            Link::Waiting { .. } | Link::Up { .. } | Link::Stopped => {}
        }
        Ok(())
    }

    fn up(&mut self, connection: Connection) {
        let since = clock::now();
        self.link = Link::Up { connection, since };
        if let Err(error) = self.session.open(since) {
            self.lost(&Loss::Session(error));
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let now = clock::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let (connection, timeout) = match &self.link {
            Link::Waiting { until: at } => (None, Some(until(*at))),
            Link::Connecting { .. } | Link::Stopped => (None, None),
            Link::Up { connection, .. } => {
                let (read, write) = (self.session.may_read(), !self.session.output().is_empty());
                (Some((connection, read, write)), self.session.deadline().map(until))
            }
        };
        let timeout = self.ingest.heartbeat.waits(timeout, now);
        transport::wait(&self.ingest.waker, connection, Some(timeout))
    }

    fn take_settled(&mut self) {
        let mut any = false;
        loop {
            match self.ingest.settled.try_recv() {
                Ok(settled) => self.session.settle(&settled, clock::now()),
                Err(end) => {
                    self.all_settled |= end == TryRecvError::Disconnected;
                    break;
                }
            }
            any = true;
        }
        if any {
            self.count();
        }
    }

    fn take_released(&mut self) -> Result<(), Loss> {
        if let Some(line) = &self.ingest.releases
            && let Ok(durable) = line.answers.try_recv()
        {
            self.session.released(&durable, clock::now()).map_err(Loss::Session)?;
        }
        Ok(())
    }

    fn ask_for_releases(&mut self) -> Result<(), String> {
        let Some(line) = &mut self.ingest.releases else { return Ok(()) };
        if self.stopping && self.all_settled && self.session.releases_are_idle() {
            line.requests = None;
        }
        let Some(requests) = &line.requests else { return Ok(()) };
        let Some(forget) = self.session.take_releases(clock::now()) else { return Ok(()) };
        let forget = forget.into_iter().map(|(number, content)| Forget { number, content }).collect();
        match requests.try_send(SpoolRequest::Release(forget)) {
            Err(TrySendError::Full(_)) => Err("the channel to the spool is full".to_owned()),
            // The process stops, or will: the spool's end is reported on its own.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    fn take_control(&mut self) {
        loop {
            match self.ingest.control.try_recv() {
                Ok(IngestControl::StopReading) => {
                    self.stopping = true;
                    self.session.stop_reading(clock::now());
                }
                Ok(IngestControl::Finish) | Err(TryRecvError::Disconnected) => {
                    self.finishing = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// Reads, parses, keeps time and writes.
    fn serve(&mut self, ready: Ready) -> Result<(), Loss> {
        let Link::Up { connection, .. } = &mut self.link else { return Ok(()) };
        let session = &mut self.session;
        if session.has_input() && session.may_read() {
            // What a limit had stopped.
            session.receive(&[], clock::now(), clock::unix_ms(), &mut self.batch).map_err(Loss::Session)?;
        }
        let mut reads = if ready.readable { READS_IN_A_ROW } else { 0 };
        let mut drained = !ready.readable;
        while reads > 0 && !drained && session.may_read() {
            reads -= 1;
            match connection.read().map_err(Loss::Io)? {
                ReadOutcome::Bytes(bytes) => {
                    // Asking again after a short read is a system call for nothing, at worst for each message.
                    drained = bytes.len() < transport::READ_BYTES;
                    session
                        .receive(bytes, clock::now(), clock::unix_ms(), &mut self.batch)
                        .map_err(Loss::Session)?;
                }
                ReadOutcome::Empty => drained = true,
                ReadOutcome::Closed => return Err(Loss::Closed),
            }
        }
        let now = clock::now();
        if session.deadline().is_some_and(|at| at <= now) {
            session.on_deadline(now, drained).map_err(Loss::Session)?;
        }
        if !session.output().is_empty() || connection.wants_write() {
            let count = connection.write(session.output()).map_err(Loss::Io)?;
            session.wrote(count, clock::now());
            if session.may_go_on() {
                // The output was full: nothing else would bring us back to what was received.
                let batch = &mut self.batch;
                session.receive(&[], clock::now(), clock::unix_ms(), batch).map_err(Loss::Session)?;
            }
        }
        Ok(())
    }

    fn hand_on(&mut self) -> Result<(), String> {
        let messages = if self.stopping { self.ingest.messages.take() } else { self.ingest.messages.clone() };
        let Some(messages) = messages.filter(|_| !self.batch.is_empty()) else { return Ok(()) };
        self.count();
        let batch = std::mem::take(&mut self.batch);
        messages.try_send(batch).map_err(|error| {
            let (reason, batch) = match error {
                TrySendError::Full(batch) => {
                    ("the channel to publish is smaller than the in-hand limit", batch)
                }
                TrySendError::Disconnected(batch) => ("the publish thread is gone", batch),
            };
            self.batch = batch;
            reason.to_owned()
        })
    }

    fn count(&self) {
        let (stats, counters) = (self.session.stats(), &self.ingest.counters);
        let (in_hand_messages, in_hand_bytes) = self.session.in_hand();
        counters.received.store(stats.received, Relaxed);
        counters.acknowledged.store(stats.acknowledged, Relaxed);
        counters.repeats_suppressed.store(stats.repeats_suppressed, Relaxed);
        counters.possible_repeats.store(stats.possible_repeats, Relaxed);
        counters.oversized.store(stats.oversized, Relaxed);
        counters.malformed.store(stats.malformed, Relaxed);
        counters.in_hand_messages.store(in_hand_messages as u64, Relaxed);
        counters.in_hand_bytes.store(in_hand_bytes, Relaxed);
    }

    /// An attempt that did not come to CONNACK.
    fn failed(&mut self, reason: &str) {
        self.ingest.counters.connect_failures.fetch_add(1, Relaxed);
        let now = clock::now();
        let endpoint = &self.ingest.endpoint;
        match &mut self.outage {
            None => {
                warn!("MQTT broker {endpoint} cannot be used, trying again: {reason}");
                self.outage = Some(Outage { failures: 1, report_at: now + REPORT_INTERVAL });
            }
            Some(outage) => {
                outage.failures += 1;
                if outage.report_at <= now {
                    warn!(
                        "MQTT broker {endpoint} still cannot be used after {} attempts: {reason}",
                        outage.failures
                    );
                    outage.report_at = now + REPORT_INTERVAL;
                }
            }
        }
        self.pause(now);
    }

    fn pause(&mut self, now: Instant) {
        self.link = Link::Waiting { until: now + self.backoff.next_delay(fastrand::f64()) };
    }

    fn lost(&mut self, loss: &Loss) {
        let now = clock::now();
        let Link::Up { since, .. } = &self.link else { return };
        let lasted = now.saturating_duration_since(*since);
        // CONNACK and the end may have come in one read.
        self.tell();
        self.session.lost(loss.by_peer(), now);
        self.ingest.counters.connected.store(false, Relaxed);
        self.ingest.counters.subscribed.store(false, Relaxed);
        let reason = match loss {
            Loss::Session(error) => chain(error),
            Loss::Io(error) => chain(error),
            Loss::Closed => "closed by the broker".to_owned(),
        };
        if let Loss::Session(SessionError::Refused(refusal)) = loss
            && refusal.reason.needs_operator()
            && self.told_refusal.replace(refusal.reason) != Some(refusal.reason)
        {
            error!(
                "MQTT broker {}: {refusal}; check MQTT_VERSION, MQTT_CLIENT_ID, MQTT_USER_NAME and MQTT_USER_PASSWORD; trying again",
                self.ingest.endpoint
            );
        }
        if !std::mem::take(&mut self.accepted) {
            self.failed(&reason);
            return;
        }
        warn!("MQTT connection lost after {} s: {reason}", lasted.as_secs());
        self.ingest.counters.connections_lost.fetch_add(1, Relaxed);
        if lasted >= LASTED {
            self.backoff.reset();
        }
        self.pause(now);
    }

    /// The last acknowledgements, DISCONNECT, and the end of the stream. What still comes in is read and dropped
    /// (it is not acknowledged): closing a socket with unread input resets the connection, and the broker may
    /// then throw away the PUBACKs it has not read.
    fn goodbye(&mut self) {
        let deadline = clock::now() + GOODBYE_TIMEOUT;
        // What was settled before we were told to finish is in the channel by now.
        self.take_settled();
        self.session.say_goodbye(clock::now());
        self.count();
        let Link::Up { connection, .. } = &mut self.link else { return };
        let mut shut = false;
        loop {
            // Once shut for writing, even writing nothing is an error.
            if !shut {
                match connection.write(self.session.output()) {
                    Ok(count) => self.session.wrote(count, clock::now()),
                    Err(error) => {
                        warn!("MQTT connection broke before the last acknowledgements: {error}");
                        return;
                    }
                }
                shut = self.session.output().is_empty();
                if shut {
                    connection.finish_writing();
                }
            }
            let left = deadline.saturating_duration_since(clock::now());
            let waited = transport::wait(&self.ingest.waker, Some((connection, true, !shut)), Some(left));
            let Ok(ready) = waited else { return };
            if ready.woken {
                self.ingest.waker.acknowledge();
            }
            if left.is_zero() {
                warn!("MQTT broker did not close within {GOODBYE_TIMEOUT:?} of DISCONNECT");
                return;
            }
            if ready.readable && !matches!(connection.read(), Ok(ReadOutcome::Bytes(_) | ReadOutcome::Empty))
            {
                info!("MQTT disconnected");
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
