//! Main's work while the gateway runs: signals, threads that end, the orderly stop, and what the service manager is told.
//!
//! ```text
//! signal or failure -> ingest: stop reading -> publish: finish by the deadline -> ingest: last acknowledgements,
//! DISCONNECT -> end
//! ```
//!
//! Invariants: a stop takes no longer than SHUTDOWN_TIMEOUT_SEC and `GRACE`; a thread that is late is named; a
//! second signal, unless it comes with the first, shortens the deadline to now.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::PipelineError;
use super::ingest::IngestControl;
use super::publish::PublishControl;
use crate::clock;
use crate::mqtt::waker::Waker;
use crate::observe::Observed;
use crate::observe::heartbeat::{Heartbeat, Lookout};
use crate::observe::systemd::Notifier;
use crate::thread::{self, Ending};

/// What ingest gets beyond the deadline, to write the last acknowledgements and a DISCONNECT: longer than it takes
/// for that at most (`ingest::GOODBYE_TIMEOUT`), so that a broker that does not close is not taken for a late thread.
const GRACE: Duration = Duration::from_secs(2);
/// A signal so soon after the first is the same wish told twice: `timeout`, and a terminal with a wrapper between, signal
/// the process and its group.
const SAME_WISH: Duration = Duration::from_millis(500);
/// Two threads that end and a few signals.
const EVENTS_CAPACITY: usize = 16;

/// The threads that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// MQTT.
    Ingest,
    /// Kafka.
    Publish,
    /// The spool.
    Spool,
}

impl Thread {
    /// Its name, in the log and in the process list.
    pub fn name(self) -> &'static str {
        match self {
            Thread::Ingest => "ingest",
            Thread::Publish => "publish",
            Thread::Spool => "spool",
        }
    }
}

enum Event {
    Signal(i32),
    Ended(Thread, Ending),
}

/// See the module head.
pub struct Supervisor {
    events: Receiver<Event>,
    events_to_give: Sender<Event>,
    running: Vec<Thread>,
    timeout: Duration,
    stopping_since: Option<Instant>,
    failure: Option<PipelineError>,
    observed: Observed,
    heartbeat: Heartbeat,
    lookout: Lookout,
    notifier: Option<Notifier>,
    /// Something changed that the service manager waits for.
    changes: Receiver<()>,
    changes_to_give: Sender<()>,
}

impl Supervisor {
    /// Begins to listen for SIGTERM and SIGINT.
    ///
    /// # Errors
    /// The handlers cannot be installed, or their thread cannot be started.
    pub fn start(timeout: Duration, observed: Observed, notifier: Option<Notifier>) -> io::Result<Self> {
        let (events_to_give, events) = bounded(EVENTS_CAPACITY);
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let to_give = events_to_give.clone();
        let listen = move || {
            for signal in signals.forever() {
                // Full means that main has had many signals already; gone, that the process ends.
                let _ = to_give.try_send(Event::Signal(signal));
            }
            Ok(())
        };
        // The listener lives as long as the process: nobody waits for it.
        thread::spawn("signals", listen, |_| {})?;
        // One is enough: main looks at everything.
        let (changes_to_give, changes) = bounded(1);
        Ok(Supervisor {
            notifier,
            changes,
            changes_to_give,
            events,
            events_to_give,
            running: Vec::new(),
            timeout,
            stopping_since: None,
            failure: None,
            heartbeat: observed.heartbeats.join("main", clock::now()),
            lookout: Lookout::new(observed.heartbeats.clone()),
            observed,
        })
    }

    /// Starts a thread that is watched.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn spawn<W>(&mut self, which: Thread, work: W) -> io::Result<()>
    where
        W: FnOnce() -> Result<(), String> + Send + 'static,
    {
        let to_give = self.events_to_give.clone();
        thread::spawn(which.name(), work, move |ending| {
            // Main drops its end only when the process ends.
            let _ = to_give.send(Event::Ended(which, ending));
        })?;
        self.running.push(which);
        Ok(())
    }

    /// Where a thread says that something changed: try to send, and leave it where that cannot be.
    pub fn changes(&self) -> Sender<()> {
        self.changes_to_give.clone()
    }

    /// Waits for a reason to stop, then stops everything in order.
    ///
    /// # Errors
    /// A thread ended by itself, or did not stop in time.
    pub fn watch(
        mut self,
        ingest: &Sender<IngestControl>,
        ingest_waker: &Waker,
        publish: &Sender<PublishControl>,
    ) -> Result<(), PipelineError> {
        // Never without an event: this thread holds a sender.
        match self.next_event(None) {
            Some(Event::Signal(signal)) => info!("{}: stopping", signal_name(signal)),
            Some(Event::Ended(thread, ending)) => self.on_failure(thread, ending),
            None => return Ok(()),
        }
        self.observed.stopping.store(true, Relaxed);
        if let Some(notifier) = &mut self.notifier {
            // Each of the four below may take its grace, and the end itself a moment.
            notifier.stopping(self.timeout + GRACE * 5);
        }
        let stopping_since = clock::now();
        self.stopping_since = Some(stopping_since);
        let stop_by = stopping_since + self.timeout;
        // An order that finds no reader is for a thread that has ended already.
        let _ = ingest.try_send(IngestControl::StopReading);
        ingest_waker.wake();
        let _ = publish.try_send(PublishControl::StopBy(stop_by));
        self.wait_for(Thread::Publish, stop_by + GRACE, publish);
        // Ingest lets go of the spool when the last releases are on the disk.
        ingest_waker.wake();
        // It ends when both have let go of it, after its last write.
        self.wait_for(Thread::Spool, clock::now() + GRACE, publish);
        let _ = ingest.try_send(IngestControl::Finish);
        ingest_waker.wake();
        self.wait_for(Thread::Ingest, clock::now() + GRACE, publish);
        // On a disk that took no releases it had to wait for ingest.
        self.wait_for(Thread::Spool, clock::now() + GRACE, publish);
        self.end()
    }

    /// Waits for an event until that time, or for as long as it takes. None: the time is over.
    fn next_event(&mut self, until: Option<Instant>) -> Option<Event> {
        loop {
            let now = clock::now();
            if let Ok(event) = self.events.try_recv() {
                return Some(event);
            }
            if until.is_some_and(|until| until <= now) {
                return None;
            }
            // This thread is back: it must not find itself late.
            self.heartbeat.works(Duration::ZERO, now);
            let turn_at = self.notifier.as_mut().map(|notifier| notifier.turn(now));
            let look_at = self.lookout.turn(now);
            let at = [until, turn_at, look_at].into_iter().flatten().min();
            let wait = self.heartbeat.waits(at.map(|at| at.saturating_duration_since(now)), now);
            select! {
                recv(self.events) -> event => return event.ok(),
                recv(self.changes) -> _ => {}
                default(wait) => {}
            }
        }
    }

    /// Waits until `which` has ended or the time is over. A second signal ends the waiting for Kafka.
    fn wait_for(&mut self, which: Thread, until: Instant, publish: &Sender<PublishControl>) {
        while self.running.contains(&which) {
            match self.next_event(Some(until)) {
                Some(Event::Signal(_)) if self.stopping_since.is_some_and(|at| at.elapsed() < SAME_WISH) => {}
                Some(Event::Signal(signal)) => {
                    warn!("{} again: stopping now", signal_name(signal));
                    let _ = publish.try_send(PublishControl::StopBy(clock::now()));
                }
                Some(Event::Ended(thread, Ending::Done)) => self.running.retain(|running| *running != thread),
                Some(Event::Ended(thread, ending)) => self.on_failure(thread, ending),
                None => return,
            }
        }
    }

    fn on_failure(&mut self, thread: Thread, ending: Ending) {
        self.running.retain(|running| *running != thread);
        let reason = match ending {
            Ending::Done => "without a reason".to_owned(),
            Ending::Failed(reason) => reason,
            Ending::Panicked(text) => format!("panic: {text}"),
        };
        error!("the {} thread ended: {reason}; stopping", thread.name());
        self.failure.get_or_insert(PipelineError::ThreadEnded { thread: thread.name(), reason });
    }

    fn end(self) -> Result<(), PipelineError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.running.is_empty() {
            info!("stopped");
            return Ok(());
        }
        let threads: Vec<&str> = self.running.iter().map(|thread| thread.name()).collect();
        Err(PipelineError::Late { threads: threads.join(", ") })
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGTERM => "SIGTERM",
        SIGINT => "SIGINT",
        _ => "signal",
    }
}
