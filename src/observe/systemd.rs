//! What systemd is told (sd_notify(3)): that the gateway is ready, how it does, that its threads go round, that it stops.
//!
//! ```text
//!  main: turn, now and then --> Notifier --READY, STATUS, WATCHDOG, STOPPING--> NOTIFY_SOCKET
//! ```
//!
//! [`Notifier`] decides from counters and heartbeats and the time it is given; the sending is a function it is given. Invariants: READY comes
//! once, when every subscription is accepted and the spool is open; WATCHDOG comes only while no thread is late; what could not be sent is
//! sent again; a start that waits for the MQTT broker is extended for as long as it takes, because a restart would not make it shorter.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::warn;
use sd_notify::NotifyState;

use super::{Observed, pages};

/// The status is told this often, if it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// A start that is not over yet is told to go on this often, and for how long.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
const EXTEND_BY: Duration = Duration::from_secs(60);
/// While a thread is late, or the manager cannot be told, it is tried this often, in parts of the watchdog's time: one that comes back
/// late is in time still.
const LOOK_AGAIN: u32 = 16;
/// Nothing is looked at more often, however short the watchdog's time is.
const LOOK_MIN: Duration = Duration::from_millis(20);

/// Sends states to the service manager: `sd_notify::notify`, which sends to NOTIFY_SOCKET.
pub type Send = fn(&[NotifyState<'_>]) -> io::Result<()>;

/// See the module head.
#[derive(Debug)]
pub struct Notifier {
    observed: Observed,
    watchdog: Option<Duration>,
    send: Send,
    ready: bool,
    stopping: bool,
    /// The socket does not work: that was told.
    broken: bool,
    extend_at: Instant,
    status_at: Instant,
    watchdog_at: Instant,
    told: String,
    counted: Counted,
}

/// Counts at some time, for the rates.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    received: u64,
    delivered: u64,
}

impl Notifier {
    /// Tells that the gateway starts, which may take `limit` until [`Notifier::turn`] is called for the first time.
    pub fn start(
        observed: Observed,
        watchdog: Option<Duration>,
        limit: Duration,
        send: Send,
        now: Instant,
    ) -> Notifier {
        let counted = Counted::of(&observed, now);
        let mut notifier = Notifier {
            observed,
            watchdog,
            send,
            ready: false,
            stopping: false,
            broken: false,
            extend_at: now,
            status_at: now,
            watchdog_at: now,
            told: String::new(),
            counted,
        };
        notifier.tell(&[NotifyState::Status("starting"), NotifyState::Custom(&extension(limit))]);
        notifier
    }

    /// Tells what is due, and gives the time of the next call at the latest; another before that does no harm.
    pub fn turn(&mut self, now: Instant) -> Instant {
        if !self.ready && !self.stopping && self.is_started() {
            self.status_at = now + STATUS_EVERY;
            let status = self.status(now);
            self.ready = self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
            self.told = status;
        }
        let mut next = self.tell_status(now);
        if !self.ready && !self.stopping {
            next = next.min(self.extend(now));
        }
        if let Some(watchdog) = self.watchdog {
            next = next.min(self.feed(watchdog, now));
        }
        next
    }

    /// A spool that is full at once is no reason to call the start unfinished: it is open, and its state is told.
    fn is_started(&self) -> bool {
        let mqtt = &self.observed.mqtt;
        mqtt.connected.load(Relaxed)
            && mqtt.subscribed.load(Relaxed)
            && self.observed.spool.open.load(Relaxed)
    }

    /// Tells that the stop has begun, and how long it may take.
    pub fn stopping(&mut self, limit: Duration) {
        self.stopping = true;
        "stopping".clone_into(&mut self.told);
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping"),
            NotifyState::Custom(&extension(limit)),
        ]);
    }

    fn tell_status(&mut self, now: Instant) -> Instant {
        if self.status_at <= now {
            self.status_at = now + STATUS_EVERY;
            let status = self.status(now);
            if status != self.told && self.tell(&[NotifyState::Status(&status)]) {
                self.told = status;
            }
        }
        self.status_at
    }

    /// One line: what hinders, or what goes through; and what waits.
    fn status(&mut self, now: Instant) -> String {
        if self.stopping {
            return "stopping".to_owned();
        }
        let before = std::mem::replace(&mut self.counted, Counted::of(&self.observed, now));
        let mut parts = pages::unready(&self.observed, now);
        if parts.is_empty() {
            let (received, delivered) = before.rates(&self.counted);
            parts.push(format!("{received} messages/s from MQTT, {delivered} records/s to Kafka"));
        }
        let spool = &self.observed.spool;
        match spool.backlog_records.load(Relaxed) {
            0 => parts.push("no backlog".to_owned()),
            records => {
                let megabytes = spool.bytes.load(Relaxed) as f64 / 1e6;
                parts.push(format!("backlog {records} records, spool {megabytes:.1} MB"));
            }
        }
        if !self.observed.publish.connected.load(Relaxed) {
            parts.push("Kafka: not connected".to_owned());
        }
        parts.join("; ")
    }

    fn extend(&mut self, now: Instant) -> Instant {
        if self.extend_at <= now {
            self.extend_at = now + EXTEND_EVERY;
            // A start that hangs is not extended.
            if self.observed.heartbeats.late(now).is_empty() {
                self.tell(&[NotifyState::Custom(&extension(EXTEND_BY))]);
            }
        }
        self.extend_at
    }

    fn feed(&mut self, watchdog: Duration, now: Instant) -> Instant {
        if self.watchdog_at > now {
            return self.watchdog_at;
        }
        let fed = self.observed.heartbeats.late(now).is_empty() && self.tell(&[NotifyState::Watchdog]);
        let part = if fed { 2 } else { LOOK_AGAIN };
        self.watchdog_at = now + (watchdog / part).max(LOOK_MIN);
        self.watchdog_at
    }

    /// False: it did not get there.
    fn tell(&mut self, states: &[NotifyState<'_>]) -> bool {
        let sent = (self.send)(states);
        match &sent {
            Ok(()) => self.broken = false,
            Err(error) if !std::mem::replace(&mut self.broken, true) => {
                warn!("the service manager cannot be told anything (NOTIFY_SOCKET), trying again: {error}");
            }
            Err(_) => {}
        }
        sent.is_ok()
    }
}

/// In words of its own: the crate's has room for 71 minutes only, and a spool of many GB on a slow card takes longer to read.
fn extension(by: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", by.as_micros())
}

impl Counted {
    fn of(observed: &Observed, at: Instant) -> Counted {
        let received = observed.mqtt.received.load(Relaxed);
        Counted { at, received, delivered: observed.publish.delivered.load(Relaxed) }
    }

    /// Messages and records a second between the two.
    fn rates(&self, later: &Counted) -> (u64, u64) {
        let millis = later.at.saturating_duration_since(self.at).as_millis().max(1);
        let rate = |from: u64, to: u64| {
            let rate = u128::from(to.saturating_sub(from)) * 1000 / millis;
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        (rate(self.received, later.received), rate(self.delivered, later.delivered))
    }
}

#[cfg(test)]
#[path = "systemd_tests.rs"]
mod tests;
