//! A disk that failed: the spool is stopped, and is opened again after a second, then less and less often until that succeeds, whether
//! or not anybody asks. Until then a segment may hold frames of an append that failed. Nobody has their numbers, their messages may go to Kafka another way
//! meanwhile, and a process that starts would take them for a backlog: opening again cuts them.

use std::time::{Duration, Instant};

use log::{error, warn};

use super::{NotKept, SpoolReply, SpoolThread, disk_limit, tell};
use crate::clock;
use crate::error::chain;
use crate::spool::{Assignment, SpoolError};

/// A spool that is stopped is opened again after this long. Each attempt that fails doubles it, and it counts from the end of that: an
/// attempt may take long, nothing else is answered meanwhile, and it writes.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(10);

/// A spool that is stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    /// Since when.
    since: Instant,
    /// When it is to be opened again.
    pub retry_at: Instant,
    /// How long it waits for that; more than [`REOPEN_AFTER`] if it was tried since, and failed.
    pause: Duration,
}

impl SpoolThread {
    /// Notes and tells, once an episode, that the disk failed.
    pub(super) fn stop(&mut self, error: &SpoolError, now: Instant) {
        if self.stopped.is_none() {
            error!("{}: nothing more is acknowledged by it until it is opened again", chain(error));
        }
        let (since, pause) =
            self.stopped.map_or((now, REOPEN_AFTER), |stopped| (stopped.since, stopped.pause));
        self.stopped = Some(Stopped { since, retry_at: now + pause, pause });
    }

    /// Opens the spool again if it was stopped and that is due.
    pub(super) fn working(&mut self, now: Instant) -> Result<(), NotKept> {
        let Some(stopped) = self.stopped else { return Ok(()) };
        if now < stopped.retry_at {
            return Err(NotKept::Stopped);
        }
        let begin = clock::now();
        // It reads all that is there, at a second for each MiB at the worst; what comes after it has its own time.
        self.watched.heartbeat.works(disk_limit(self.store.bytes()).max(self.watched.disk_limit), begin);
        let reopened = self.store.reopen();
        self.at_work();
        match reopened {
            Ok(report) => {
                let took = now.saturating_duration_since(stopped.since);
                warn!("the spool is open again after {:.1} s", took.as_secs_f32());
                tell(&report);
                self.stopped = None;
                // Where there is no room for it, or nobody to read it, it would change nothing.
                let _ = self.replies.try_send(SpoolReply::Reopened);
                Ok(())
            }
            Err(_) => {
                // Told when it stopped; the next attempt says nothing new.
                let pause = (stopped.pause * 2).min(REOPEN_AFTER_MAX);
                self.stopped = Some(Stopped { retry_at: now + begin.elapsed() + pause, pause, ..stopped });
                Err(NotKept::Stopped)
            }
        }
    }

    /// The last attempt of this process: what was not confirmed must not be found by the next.
    pub(super) fn reopen_at_the_end(&mut self, now: Instant) {
        self.stopped.iter_mut().for_each(|stopped| stopped.retry_at = now);
        let _ = self.working(now);
    }

    fn is_untried(&self) -> bool {
        self.stopped.is_some_and(|stopped| stopped.pause == REOPEN_AFTER)
    }

    /// Keeps identities. A spool that has just stopped is opened again once before it is said that they are not kept: that answer lets
    /// their batches be sent all the same.
    pub(super) fn keep(
        &mut self,
        ticket: u64,
        assignments: Vec<Assignment>,
        now: Instant,
    ) -> Option<SpoolReply> {
        let result = self.try_keep(&assignments, now);
        if result == Err(NotKept::Stopped) && self.is_untried() {
            self.keep_later = Some((ticket, assignments));
            return None;
        }
        Some(SpoolReply::Kept { ticket, result })
    }

    fn try_keep(&mut self, assignments: &[Assignment], now: Instant) -> Result<(), NotKept> {
        self.working(now)?;
        self.store.assign(assignments).map_err(|error| self.failed(&error, now))
    }

    /// Opens the spool again if that is due, and answers who waited for that.
    pub(super) fn reopen_if_due(&mut self, now: Instant) -> Option<SpoolReply> {
        let _ = self.working(now);
        let untried = self.is_untried();
        let (ticket, assignments) = self.keep_later.take_if(|_| !untried)?;
        Some(SpoolReply::Kept { ticket, result: self.try_keep(&assignments, now) })
    }
}
