//! Which threads still go round their loops. Each thread promises, before it waits or begins something long, when it will be back;
//! who asks sees the promises that were broken.
//!
//! ```text
//!  ingest, publish, spool, token, main --promise--> Heartbeats <--late?-- /healthz, the watchdog
//! ```
//!
//! Knows nothing of what the threads do. Invariants: a promise is one store, so a turn of a loop costs nothing; a thread with nothing to
//! do wakes up once in [`EVERY`] for it; a thread that has ended in order is not missed, one that panicked is missed for ever.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{error, info};

/// An idle thread wakes up this often, to show that it can: four threads make one wake-up a second, which is 0.01 % of a core.
pub const EVERY: Duration = Duration::from_secs(5);
/// No thread wakes up more often for it, however short a watchdog's time is.
const EVERY_MIN: Duration = Duration::from_millis(20);
/// A turn of a loop takes milliseconds; so much late may a loaded board or one that swaps make it.
pub const GRACE: Duration = Duration::from_secs(10);

/// In place of a time: the thread has ended in order.
const ENDED: u64 = u64::MAX;
/// In place of a time: the thread panicked.
const PANICKED: u64 = 0;

/// The promises of all threads of a gateway. Clones share them.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Times are told from here on: one number holds a promise.
    origin: Instant,
    every: Duration,
    grace: Duration,
    beats: Mutex<Vec<Arc<Beat>>>,
}

#[derive(Debug)]
struct Beat {
    name: &'static str,
    /// Milliseconds after the origin.
    back_by: AtomicU64,
}

/// Tells the log of threads that are late, once an episode, and of their return.
#[derive(Debug)]
pub struct Lookout {
    heartbeats: Heartbeats,
    late_since: Option<Instant>,
    told: bool,
}

/// One thread's end. When it is dropped the thread has ended.
#[derive(Debug)]
pub struct Heartbeat {
    shared: Arc<Shared>,
    beat: Arc<Beat>,
}

/// A thread that has not kept its promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The thread's name.
    pub thread: &'static str,
    /// For how long; None: it panicked.
    pub by: Option<Duration>,
}

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.by {
            Some(by) => {
                write!(f, "the {} thread hangs: it is {:.0} s late", self.thread, by.as_secs_f64().ceil())
            }
            None => write!(f, "the {} thread has failed", self.thread),
        }
    }
}

impl Heartbeats {
    /// Nobody has promised anything yet. A watchdog that wants a sign within `watchdog` makes the threads quicker: a thread that hangs
    /// must be found before half of it is over.
    pub fn new(watchdog: Option<Duration>, now: Instant) -> Heartbeats {
        let (mut every, mut grace) = (EVERY, GRACE);
        if let Some(watchdog) = watchdog {
            every = every.min(watchdog / 8).max(EVERY_MIN);
            grace = grace.min(watchdog / 4);
        }
        Heartbeats { shared: Arc::new(Shared { origin: now, every, grace, beats: Mutex::default() }) }
    }

    /// A thread that is to be missed when it does not come back; it has not been started yet.
    pub fn join(&self, name: &'static str, now: Instant) -> Heartbeat {
        let beat = Arc::new(Beat { name, back_by: AtomicU64::new(ENDED) });
        self.beats().push(Arc::clone(&beat));
        let heartbeat = Heartbeat { shared: Arc::clone(&self.shared), beat };
        heartbeat.waits(None, now);
        heartbeat
    }

    /// The threads that should be back and are not.
    pub fn late(&self, now: Instant) -> Vec<Late> {
        let now = self.shared.since_origin(now);
        let late = |beat: &Arc<Beat>| {
            let back_by = beat.back_by.load(Relaxed);
            let by = (back_by != PANICKED).then(|| Duration::from_millis(now.saturating_sub(back_by)));
            (back_by < now).then_some(Late { thread: beat.name, by })
        };
        self.beats().iter().filter_map(late).collect()
    }

    fn beats(&self) -> MutexGuard<'_, Vec<Arc<Beat>>> {
        // A list that only grows is whole whatever panicked.
        self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookout {
    /// Nothing is late yet.
    pub fn new(heartbeats: Heartbeats) -> Lookout {
        Lookout { heartbeats, late_since: None, told: false }
    }

    /// Looks, and says when it wants to look again, if that is sooner than a thread with nothing to do comes round.
    pub fn turn(&mut self, now: Instant) -> Option<Instant> {
        let late = self.heartbeats.late(now);
        let Some(first) = late.first() else {
            self.late_since = None;
            if std::mem::take(&mut self.told) {
                info!("every thread goes round again");
            }
            return None;
        };
        let tell_at = *self.late_since.get_or_insert(now) + self.heartbeats.shared.patience();
        if self.told || now < tell_at {
            return (!self.told).then_some(tell_at);
        }
        self.told = true;
        error!("{first}; unless it comes back, a service manager with a watchdog restarts the process");
        None
    }
}

impl Shared {
    /// For so long a thread must have been late before anything is said of it. After the whole process was stopped (SIGSTOP, a frozen
    /// container) all are, until they have waited out what was left of their wait.
    fn patience(&self) -> Duration {
        (self.every * 2).max(Duration::from_secs(1))
    }

    /// Milliseconds, at least 1.
    fn since_origin(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin).as_millis();
        u64::try_from(since).unwrap_or(ENDED).clamp(1, ENDED - 1)
    }
}

impl Heartbeat {
    /// The thread is about to wait, for `wanted` at the most: gives how long it may.
    pub fn waits(&self, wanted: Option<Duration>, now: Instant) -> Duration {
        let every = self.shared.every;
        let wait = wanted.map_or(every, |wanted| wanted.min(every));
        self.back_within(wait, now);
        wait
    }

    /// The thread is about to do something that may take as long as `limit` and still be in order.
    pub fn works(&self, limit: Duration, now: Instant) {
        self.back_within(limit, now);
    }

    fn back_within(&self, span: Duration, now: Instant) {
        let by = now.checked_add(span.saturating_add(self.shared.grace));
        self.beat.back_by.store(by.map_or(ENDED - 1, |by| self.shared.since_origin(by)), Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let how = if std::thread::panicking() { PANICKED } else { ENDED };
        self.beat.back_by.store(how, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_thread_that_comes_back_is_not_late_and_one_that_does_not_is_named() {
        let start = Instant::now();
        let beats = Heartbeats::new(None, start);
        let (one, two) = (beats.join("one", start), beats.join("two", start));
        let mut now = start;
        for _ in 0..20 {
            now += one.waits(None, now);
            two.waits(Some(SECOND), now);
            assert_eq!(beats.late(now), []);
        }
        assert_eq!(one.waits(Some(SECOND * 60), now), EVERY);
        assert_eq!(beats.late(now + SECOND + GRACE), []);
        let late = beats.late(now + SECOND + GRACE + SECOND);
        assert_eq!(late, [Late { thread: "two", by: Some(SECOND) }]);
        assert_eq!(late[0].to_string(), "the two thread hangs: it is 1 s late");
        two.waits(None, now + SECOND * 15);
        assert_eq!(beats.late(now + SECOND * 15), []);
    }

    #[test]
    fn a_thread_is_told_when_it_was_late_for_a_while_and_once() {
        let start = Instant::now();
        let beats = Heartbeats::new(Some(SECOND * 30), start);
        let one = beats.join("one", start);
        let mut lookout = Lookout::new(beats.clone());
        assert_eq!(lookout.turn(start), None);
        let late = start + SECOND * 12;
        let tell_at = lookout.turn(late).unwrap();
        assert!(
            !lookout.told && tell_at > late && tell_at < start + SECOND * 20,
            "before the watchdog's time is over"
        );
        one.waits(None, late + SECOND);
        assert_eq!((lookout.turn(late + SECOND), lookout.told), (None, false), "the process was stopped");
        let late = late + SECOND * 13;
        let tell_at = lookout.turn(late).unwrap();
        assert_eq!((lookout.turn(tell_at), lookout.told), (None, true));
        assert_eq!((lookout.turn(tell_at + SECOND), lookout.told), (None, true));
        one.waits(None, tell_at + SECOND * 2);
        assert_eq!((lookout.turn(tell_at + SECOND * 2), lookout.told), (None, false));
    }

    #[test]
    fn a_long_work_that_was_told_is_no_hang_until_its_limit() {
        let start = Instant::now();
        let beats = Heartbeats::new(Some(SECOND * 30), start);
        let disk = beats.join("disk", start);
        disk.works(SECOND * 120, start);
        assert_eq!(beats.late(start + SECOND * 120), []);
        assert_eq!(beats.late(start + SECOND * 140).len(), 1);
    }

    #[test]
    fn a_hang_is_found_within_half_of_the_watchdogs_time() {
        for watchdog in [SECOND, SECOND * 30, SECOND * 3600] {
            let start = Instant::now();
            let beats = Heartbeats::new(Some(watchdog), start);
            let _one = beats.join("one", start);
            assert_eq!(beats.late(start + watchdog / 2).len(), 1, "{watchdog:?}");
        }
    }

    #[test]
    fn who_has_ended_is_not_missed_but_who_panicked_is() {
        let start = Instant::now();
        let beats = Heartbeats::new(None, start);
        drop(beats.join("ended", start));
        let panics = beats.join("panics", start);
        std::thread::spawn(move || {
            let _panics = panics;
            panic!("on purpose");
        })
        .join()
        .unwrap_err();
        let late = beats.late(start + SECOND * 3600);
        assert_eq!(late, [Late { thread: "panics", by: None }]);
        assert_eq!(late[0].to_string(), "the panics thread has failed");
    }

    #[test]
    fn a_limit_without_end_does_not_wrap() {
        let start = Instant::now();
        let beats = Heartbeats::new(None, start);
        let one = beats.join("one", start);
        one.works(Duration::MAX, start);
        assert_eq!(beats.late(start + SECOND), []);
    }
}
