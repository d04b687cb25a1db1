//! Limits: how much the spool takes, what parked routes may hold, and where room comes from.
//!
//! The cap and the floor of free space are for all routes together: in an outage every route may need all of it. A route that
//! Kafka refuses while it takes the others ("parked") is another matter: it waits for a person, perhaps for days. Each parked
//! route may hold a quarter of the cap and all of them half, so that half is there for the next outage; where the disk has less room
//! than the cap, a quarter and half of that. That is asked of the frames that are not done; what is done and pinned by them goes when room is needed ([`super::compact`]).
//!
//! Only what was stored while the route was parked counts: for some seconds after an outage Kafka may not know its topics, and the
//! outage's backlog may be far more than a share. Of a route that is parked again and again, all such times count, as long as what
//! was stored in them is not done. Nothing is parked when the spool is opened.

use std::collections::BTreeMap;

use super::record::frame_bytes;
use super::writer::add_loss;
use super::{DiskSpool, Limit, Loss, NewFrame, Policy, SpoolError};

/// A parked route may hold what there is room for divided by this.
const PARKED_ONE: u64 = 4;
/// All parked routes may hold what there is room for divided by this.
const PARKED_ALL: u64 = 2;

/// Whether parked routes would hold more than their share: the one that would.
///
/// `room` is what the spool may take, `held` what each parked route holds of its share, `asked` what it would get, bytes.
pub fn over_share(room: u64, held: &BTreeMap<&str, u64>, asked: &BTreeMap<&str, u64>) -> Option<String> {
    let mut all: u64 = held.values().sum();
    for (topic, bytes) in asked {
        let Some(own) = held.get(topic) else { continue };
        all += bytes;
        if own + bytes > room / PARKED_ONE || all > room / PARKED_ALL {
            return Some((*topic).to_owned());
        }
    }
    None
}

/// The shares as they are asked for by frames. A copy of what was sent has no part in them: nothing else could be done with it, and
/// there are few, but the acknowledgements of all routes wait for it.
pub fn asked<'a>(frames: &[NewFrame<'a>]) -> BTreeMap<&'a str, u64> {
    let mut asked = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.identity.is_none()) {
        *asked.entry(frame.topic).or_default() += frame_bytes(frame) as u64;
    }
    asked
}

impl DiskSpool {
    pub(super) fn check_shares(&mut self, frames: &[NewFrame<'_>]) -> Result<(), SpoolError> {
        let asked = asked(frames);
        if !self.catalog.parked().any(|(topic, _)| asked.contains_key(topic)) {
            return Ok(());
        }
        let room = self.room()?;
        let held: BTreeMap<&str, u64> = self.catalog.parked().collect();
        match over_share(room, &held, &asked) {
            Some(topic) => Err(SpoolError::Full { limit: Limit::Parked, topic: Some(topic) }),
            None => Ok(()),
        }
    }

    /// Makes room for this many bytes, by merging and, if that is the policy, by giving up old segments.
    pub(super) fn make_room(&mut self, need: u64, dropped: &mut Vec<Loss>) -> Result<(), SpoolError> {
        while let Some(limit) = self.limit(need)? {
            if self.remove_finished_if_any()? || self.compact()? {
                continue;
            }
            let helps = self.options.policy == Policy::DropOldest && self.dropping_helps(need)?;
            if !helps || !self.drop_oldest(dropped)? {
                return Err(SpoolError::Full { limit, topic: None });
            }
        }
        Ok(())
    }

    /// What the spool may take: SPOOL_MAX_BYTES, or what is there and what the disk has room for, if that is less.
    fn room(&mut self) -> Result<u64, SpoolError> {
        let used = self.catalog.bytes() + self.checkpoint.bytes();
        let all = used.saturating_add(self.free_bytes()?).saturating_sub(self.options.free_bytes_min);
        Ok(all.min(self.options.bytes_max))
    }

    fn free_bytes(&mut self) -> Result<u64, SpoolError> {
        let free = self.fs.free_bytes(&self.directory);
        free.map_err(|error| self.poison("asking for the free space of", "the directory".to_owned(), error))
    }

    /// The limit that this many bytes more would be beyond.
    fn limit(&mut self, need: u64) -> Result<Option<Limit>, SpoolError> {
        let used = self.catalog.bytes() + self.checkpoint.bytes();
        if used.saturating_add(need) > self.options.bytes_max {
            return Ok(Some(Limit::Bytes));
        }
        let free = self.free_bytes()?;
        Ok((free < self.options.free_bytes_min.saturating_add(need)).then_some(Limit::FreeBytes))
    }

    /// Whether there would be room if the spool were empty.
    fn dropping_helps(&mut self, need: u64) -> Result<bool, SpoolError> {
        let all = self.catalog.bytes();
        let fits = self.checkpoint.bytes().saturating_add(need) <= self.options.bytes_max;
        Ok(fits && self.free_bytes()?.saturating_add(all) >= self.options.free_bytes_min.saturating_add(need))
    }

    fn remove_finished_if_any(&mut self) -> Result<bool, SpoolError> {
        if !self.catalog.segments().any(|segment| segment.live_frames == 0) {
            return Ok(false);
        }
        match self.finish_checkpoint() {
            Ok(()) => Ok(true),
            Err(SpoolError::Full { .. }) => {
                Ok(!self.catalog.segments().any(|segment| segment.live_frames == 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up the oldest segment; false if there is none.
    pub(super) fn drop_oldest(&mut self, dropped: &mut Vec<Loss>) -> Result<bool, SpoolError> {
        let Some((first, last)) = self.catalog.segments().next().map(|oldest| (oldest.first, oldest.last))
        else {
            return Ok(false);
        };
        // They are done with from here on, whatever happens below: what is told as lost does not come back.
        self.catalog.losses(first).into_iter().for_each(|loss| add_loss(dropped, loss));
        self.dropped_ranges.insert(first.0, last.0);
        self.finish_range(first.0, last.0);
        match self.finish_checkpoint() {
            // Where there is no room for the record, the removal stands alone.
            Ok(()) | Err(SpoolError::Full { .. }) => {}
            Err(error) => return Err(error),
        }
        // Its index could not be read.
        if self.catalog.segment(first).is_some() {
            self.remove_segments(&[first])?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_route_gets_a_quarter_and_all_of_them_half() {
        let asked = |list: &[(&'static str, u64)]| list.iter().copied().collect::<BTreeMap<&str, u64>>();
        let held = asked(&[("a", 20), ("b", 25), ("c", 0)]);
        assert_eq!(over_share(100, &held, &asked(&[("a", 5)])), None);
        assert_eq!(over_share(100, &held, &asked(&[("a", 6)])), Some("a".to_owned()));
        assert_eq!(over_share(100, &held, &asked(&[("live", 1000)])), None, "others are not limited");
        assert_eq!(over_share(100, &held, &asked(&[("a", 5), ("c", 1)])), Some("c".to_owned()));
    }
}
