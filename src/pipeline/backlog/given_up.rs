//! What drop-oldest gave up: counted and told.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::error;

use super::Backlog;
use crate::pipeline::spool_thread::GivenUp;
use crate::spool::FrameId;

/// What drop-oldest gives up is told this often.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(10);

impl Backlog {
    /// Counts what drop-oldest gave up: records of frames that were never read. The spool counts whole frames, and those that it
    /// does not know to be done. Of a frame that was read, each record is in Kafka, or is in memory and goes there all the same;
    /// so is one of which the spool has not heard yet that it is done: a reply to an append is handled before one to what was
    /// asked later.
    pub(super) fn note_given_up(&mut self, given_up: &GivenUp, now: Instant) {
        let told: u64 = given_up.losses.iter().map(|loss| loss.records).sum();
        let dropped = |frame: FrameId| given_up.ranges.iter().any(|(a, b)| (*a..=*b).contains(&frame));
        let resident =
            self.residents.values().filter_map(|resident| Some((resident.frame?, resident.records)));
        let done = self.done.iter().chain(&self.telling_done).copied();
        let had = resident.chain(done).filter(|(frame, _)| dropped(*frame));
        let lost = told.saturating_sub(had.map(|(_, records)| u64::from(records)).sum());
        if lost == 0 {
            return;
        }
        self.given_up += lost;
        self.stored = self.stored.saturating_sub(lost);
        self.counters.given_up.store(self.given_up, Relaxed);
        if self.given_up_throttle.tell(now).is_some() {
            self.tell_given_up();
        }
    }

    /// Tells what was given up and not told yet.
    pub fn tell_given_up(&mut self) {
        if self.given_up > self.given_up_told {
            error!(
                "the spool is full (SPOOL_FULL=drop-oldest): {} messages dropped, the oldest there were; {} since the start",
                self.given_up - self.given_up_told,
                self.given_up
            );
            self.given_up_told = self.given_up;
        }
    }
}
