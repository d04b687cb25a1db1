//! What the disk does not give: tried for a while, then given up whole and exactly.

use std::time::{Duration, Instant};

use log::error;

use super::SpoolThread;
use crate::error::chain;
use crate::spool::{FrameId, GaveUp, Loss, SpoolError};

/// What the disk does not give is tried for this long before it is counted as lost.
pub(super) const UNREADABLE_FOR: Duration = Duration::from_secs(30);

impl SpoolThread {
    /// A disk that does not give a frame may give it later; what never comes must not hold up the rest for ever.
    pub(super) fn on_unreadable(
        &mut self,
        error: &SpoolError,
        what: (FrameId, Option<FrameId>),
        now: Instant,
    ) {
        // Where nobody tried for so long, it is another episode.
        self.unreadable.retain(|_, (_, last)| now.saturating_duration_since(*last) < UNREADABLE_FOR);
        let since = self.unreadable.get(&what).map(|(since, _)| *since);
        if since.is_none() {
            error!("{}; trying again for {} s", chain(error), UNREADABLE_FOR.as_secs());
        }
        let since = since.unwrap_or(now);
        self.unreadable.insert(what, (since, now));
        // A disk that takes nothing either may be away as a whole: it is waited for.
        if now.saturating_duration_since(since) < UNREADABLE_FOR || self.stopped.is_some() {
            return;
        }
        match self.store.give_up(what.0, what.1) {
            Ok(gave_up) => {
                self.unreadable.remove(&what);
                self.undone_since.get_or_insert(now);
                self.tell_gave_up(error, gave_up);
            }
            // It cannot be set aside either, or its index was readable when this began: tried for as long again.
            Err(SpoolError::Unreadable { .. }) => drop(self.unreadable.remove(&what)),
            Err(error) => {
                self.failed(&error, now);
            }
        }
    }

    fn tell_gave_up(&self, error: &SpoolError, gave_up: GaveUp) {
        let GaveUp { first, last, losses } = gave_up;
        for Loss { topic, frames, records, messages } in losses {
            let mut left = (frames, records, messages);
            // What publish has is not lost. What was acknowledged while the index could not be read counts as lost all the same.
            for (_, records, messages) in
                self.given_out.range(first..=last).map(|(_, out)| out).filter(|(out, ..)| **out == *topic)
            {
                left.0 = left.0.saturating_sub(1);
                left.1 = left.1.saturating_sub(u64::from(*records));
                left.2 = left.2.saturating_sub(u64::from(*messages));
            }
            if left.0 > 0 {
                error!(
                    "{topic}: {}: given up, {} records of {} messages in {} frames are lost",
                    chain(error),
                    left.1,
                    left.2,
                    left.0
                );
            }
        }
    }
}
