//! Packet identifiers of QoS 2 that are released: which the broker may hear of, and which must be forgotten on the disk first. Pure.
//!
//! While the process lives, the session remembers what came under an identifier. Over a crash the spool does, and a message that it
//! remembers too long would swallow the identifier's next one, which may be equal. So, where there is a spool on a disk:
//! - PUBCOMP, after which the broker may use the identifier again, waits until the release is durable;
//! - in a new session, in which all identifiers are void, nothing is subscribed and read before that is durable.
//!
//! Invariants: one batch is under way at a time; a PUBCOMP goes out only on the connection of its PUBREL.

use std::collections::VecDeque;

#[derive(Debug, Clone, Copy)]
struct Release {
    packet_id: u16,
    /// PUBCOMP is waited for on the present connection.
    answer: bool,
    /// All identifiers of the session are void.
    void: bool,
}

/// See the module head.
#[derive(Debug)]
pub struct Releases {
    /// Somebody makes them durable; else they are at once.
    hold: bool,
    waiting: VecDeque<Release>,
    under_way: Vec<Release>,
}

impl Releases {
    /// With `hold`, what [`Releases::take`] gives must come back by [`Releases::done`].
    pub fn new(hold: bool) -> Self {
        Releases { hold, waiting: VecDeque::new(), under_way: Vec::new() }
    }

    /// A PUBREL came. True: PUBCOMP may go out at once.
    pub fn pubrel(&mut self, packet_id: u16) -> bool {
        self.push(Release { packet_id, answer: true, void: false });
        !self.hold
    }

    /// What was remembered under this identifier is of no use any more.
    pub fn forget(&mut self, packet_id: u16) {
        self.push(Release { packet_id, answer: false, void: false });
    }

    /// The session with these identifiers is lost.
    pub fn void(&mut self, packet_ids: Vec<u16>) {
        packet_ids.into_iter().for_each(|packet_id| {
            self.push(Release { packet_id, answer: false, void: true });
        });
    }

    fn push(&mut self, release: Release) {
        if self.hold {
            self.waiting.push_back(release);
        }
    }

    /// Identifiers of a lost session are not forgotten yet.
    pub fn is_voiding(&self) -> bool {
        self.waiting.iter().chain(&self.under_way).any(|release| release.void)
    }

    /// What is to be made durable now; None while a batch is under way, or when there is nothing.
    pub fn take(&mut self) -> Option<Vec<u16>> {
        if !self.under_way.is_empty() || self.waiting.is_empty() {
            return None;
        }
        self.under_way = self.waiting.drain(..).collect();
        Some(self.under_way.iter().map(|release| release.packet_id).collect())
    }

    /// The batch is durable: the identifiers whose PUBCOMP goes out.
    pub fn done(&mut self) -> Vec<u16> {
        let answered = std::mem::take(&mut self.under_way).into_iter().filter(|release| release.answer);
        answered.map(|release| release.packet_id).collect()
    }

    /// Nothing is sent on one connection for another: the broker sends PUBREL again.
    pub fn connection_lost(&mut self) {
        for release in self.waiting.iter_mut().chain(&mut self.under_way) {
            release.answer = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pubcomp_waits_for_the_disk_one_batch_at_a_time() {
        let mut releases = Releases::new(true);
        assert!(!releases.pubrel(1));
        assert_eq!(releases.take(), Some(vec![1]));
        releases.pubrel(2);
        releases.forget(3);
        assert_eq!(releases.take(), None, "one is under way");
        assert_eq!(releases.done(), [1]);
        assert_eq!(releases.take(), Some(vec![2, 3]));
        assert_eq!((releases.done(), releases.take()), (vec![2], None));
    }

    #[test]
    fn a_lost_connection_loses_the_answers_and_not_the_releases() {
        let mut releases = Releases::new(true);
        releases.pubrel(1);
        releases.take();
        releases.pubrel(2);
        releases.connection_lost();
        assert_eq!((releases.done(), releases.take(), releases.done()), (vec![], Some(vec![2]), vec![]));
    }

    #[test]
    fn a_lost_session_is_void_when_the_disk_says_so() {
        let mut releases = Releases::new(true);
        releases.void(vec![4, 5]);
        assert!(releases.is_voiding());
        assert_eq!(releases.take(), Some(vec![4, 5]));
        releases.connection_lost();
        assert!(releases.is_voiding());
        releases.done();
        assert!(!releases.is_voiding());
        releases.void(Vec::new());
        assert!(!releases.is_voiding());
    }

    #[test]
    fn without_a_spool_on_a_disk_nothing_waits() {
        let mut releases = Releases::new(false);
        assert!(releases.pubrel(1));
        releases.void(vec![1]);
        assert_eq!((releases.take(), releases.is_voiding()), (None, false));
    }
}
