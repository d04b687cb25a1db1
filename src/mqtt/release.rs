//! Packet identifiers of QoS 2 that are released: which the broker may hear of, and which must be forgotten on the disk first. Pure.
//!
//! While the process lives, the session remembers what came under an identifier. Over a crash the spool does, and a message that it
//! remembers too long would swallow the identifier's next one, which may be equal. So, where there is a spool on a disk:
//! - PUBCOMP, after which the broker may use the identifier again, waits until the release is durable;
//! - in a new session, in which all identifiers are void, nothing is subscribed and read before that is durable: of the identifiers
//!   that the session knew, and of all whose release was not durable when it was lost.
//!
//! The spool says at once which it has nothing of, so a disk that takes nothing holds back only what it remembers; those are asked
//! for again.
//!
//! Invariants: one batch is under way at a time; PUBCOMPs of a batch go out in the order of their PUBRELs; a PUBCOMP goes out only on the connection of its PUBREL; an identifier waits once
//! however often it is named, so there are no more than identifiers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::redelivery::Orphan;

/// What the disk did not take is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is to be forgotten: the newest message under the identifier; of an orphan only if it is that one.
pub type ToForget = (u16, Option<u64>);

#[derive(Debug, Clone, Copy)]
struct Release {
    /// Its place among all that ever came.
    order: u64,
    /// Only if it is the message with this fingerprint; None: whatever it is.
    fingerprint: Option<u64>,
    /// PUBCOMP is waited for on the present connection.
    answer: bool,
    /// It is of a session that is lost.
    void: bool,
}

/// See the module head.
#[derive(Debug)]
pub struct Releases {
    /// Somebody makes them durable; else they are at once.
    hold: bool,
    waiting: BTreeMap<u16, Release>,
    /// In order.
    under_way: Vec<(u16, Release)>,
    /// The disk did not take these.
    refused: BTreeMap<u16, Release>,
    again_at: Option<Instant>,
    /// Any of them is of a session that is lost: asked for each packet.
    voiding: bool,
    pushed: u64,
}

impl Releases {
    /// With `hold`, what [`Releases::take`] gives must come back by [`Releases::done`].
    pub fn new(hold: bool) -> Self {
        let (waiting, refused) = (BTreeMap::new(), BTreeMap::new());
        Releases { hold, waiting, under_way: Vec::new(), refused, again_at: None, voiding: false, pushed: 0 }
    }

    /// A PUBREL came. True: PUBCOMP may go out at once.
    pub fn pubrel(&mut self, packet_id: u16) -> bool {
        self.push(packet_id, None, true, false);
        !self.hold
    }

    /// What was remembered of this message is of no use any more.
    pub fn forget(&mut self, orphan: Orphan) {
        self.push(orphan.packet_id, Some(orphan.fingerprint), false, false);
    }

    /// The session with these identifiers is lost. What was on its way to be released is of it as well, and not durable.
    pub fn void(&mut self, packet_ids: Vec<u16>) {
        packet_ids.into_iter().for_each(|packet_id| self.push(packet_id, None, false, true));
        self.all_mut().for_each(|release| release.void = true);
        self.voiding = !self.is_idle();
    }

    fn push(&mut self, packet_id: u16, fingerprint: Option<u64>, answer: bool, void: bool) {
        if self.hold {
            self.pushed += 1;
            let release = Release { order: self.pushed, fingerprint, answer, void };
            add(&mut self.waiting, packet_id, release);
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Release> {
        let Releases { waiting, under_way, refused, .. } = self;
        let under_way = under_way.iter_mut().map(|(_, release)| release);
        waiting.values_mut().chain(under_way).chain(refused.values_mut())
    }

    /// Identifiers of a lost session are not forgotten yet.
    pub fn is_voiding(&self) -> bool {
        self.voiding
    }

    /// Nothing is left to be made durable.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty() && self.refused.is_empty()
    }

    /// When something is to be tried again.
    pub fn deadline(&self) -> Option<Instant> {
        self.again_at.filter(|_| self.under_way.is_empty())
    }

    /// What is to be made durable now; None while a batch is under way, or when there is nothing.
    pub fn take(&mut self, now: Instant) -> Option<Vec<ToForget>> {
        if !self.under_way.is_empty() {
            return None;
        }
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            for (packet_id, release) in std::mem::take(&mut self.refused) {
                add(&mut self.waiting, packet_id, release);
            }
        }
        if self.waiting.is_empty() {
            return None;
        }
        self.under_way = std::mem::take(&mut self.waiting).into_iter().collect();
        self.under_way.sort_by_key(|(_, release)| release.order);
        Some(self.under_way.iter().map(|(packet_id, release)| (*packet_id, release.fingerprint)).collect())
    }

    /// Of the batch these are durable; the others are tried again. Gives the identifiers whose PUBCOMP goes out.
    pub fn done(&mut self, durable: &[u16], now: Instant) -> Vec<u16> {
        let durable: BTreeSet<u16> = durable.iter().copied().collect();
        let mut answered = Vec::new();
        for (packet_id, release) in std::mem::take(&mut self.under_way) {
            if !durable.contains(&packet_id) {
                add(&mut self.refused, packet_id, release);
                self.again_at.get_or_insert(now + AGAIN_AFTER);
            } else if release.answer {
                answered.push(packet_id);
            }
        }
        self.voiding = self.voiding && self.all_mut().any(|release| release.void);
        answered
    }

    /// Nothing is sent on one connection for another: the broker sends PUBREL again.
    pub fn connection_lost(&mut self) {
        self.all_mut().for_each(|release| release.answer = false);
    }
}

/// Two for one identifier become one that does both. Of two messages all is forgotten that there is under the identifier: to forget
/// is the safe side.
fn add(to: &mut BTreeMap<u16, Release>, packet_id: u16, release: Release) {
    to.entry(packet_id)
        .and_modify(|known| {
            known.order = known.order.min(release.order);
            known.answer |= release.answer;
            known.void |= release.void;
            known.fingerprint = known.fingerprint.filter(|known| Some(*known) == release.fingerprint);
        })
        .or_insert(release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphan(packet_id: u16, fingerprint: u64) -> Orphan {
        Orphan { packet_id, fingerprint }
    }

    #[test]
    fn pubcomp_waits_for_the_disk_one_batch_at_a_time() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        assert!(!releases.pubrel(1));
        assert_eq!(releases.take(now), Some(vec![(1, None)]));
        releases.pubrel(9);
        releases.pubrel(2);
        releases.forget(orphan(3, 30));
        assert_eq!(releases.take(now), None, "one is under way");
        assert_eq!(releases.done(&[1], now), [1]);
        assert_eq!(releases.take(now), Some(vec![(9, None), (2, None), (3, Some(30))]));
        assert_eq!(
            (releases.done(&[2, 3, 9], now), releases.take(now)),
            (vec![9, 2], None),
            "in their order"
        );
        assert!(releases.is_idle());
    }

    #[test]
    fn a_lost_connection_loses_the_answers_and_not_the_releases() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        releases.pubrel(1);
        releases.take(now);
        releases.pubrel(2);
        releases.connection_lost();
        assert_eq!(releases.done(&[1], now), [0_u16; 0]);
        assert_eq!(releases.take(now), Some(vec![(2, None)]));
        assert_eq!(releases.done(&[2], now), [0_u16; 0]);
    }

    #[test]
    fn a_lost_session_is_void_when_the_disk_says_so() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        releases.void(vec![4, 5]);
        assert!(releases.is_voiding());
        assert_eq!(releases.take(now), Some(vec![(4, None), (5, None)]));
        releases.connection_lost();
        assert!(releases.is_voiding());
        releases.done(&[4, 5], now);
        assert!(!releases.is_voiding());
        releases.void(Vec::new());
        assert!(!releases.is_voiding());
    }

    #[test]
    fn what_was_under_way_when_the_session_was_lost_is_void_too() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        releases.pubrel(1);
        releases.take(now);
        releases.connection_lost();
        releases.void(Vec::new());
        assert!(releases.is_voiding());
        releases.done(&[1], now);
        assert!(!releases.is_voiding());
    }

    #[test]
    fn what_the_disk_does_not_take_is_tried_again_and_holds_nothing_else_up() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        (1..=3).for_each(|id| assert!(!releases.pubrel(id)));
        releases.take(now);
        assert_eq!(releases.done(&[1, 3], now), [1, 3]);
        releases.pubrel(4);
        assert_eq!(releases.take(now), Some(vec![(4, None)]));
        assert_eq!((releases.done(&[4], now), releases.take(now)), (vec![4], None));
        let again = releases.deadline().unwrap();
        assert_eq!(releases.take(again), Some(vec![(2, None)]));
        assert_eq!(releases.deadline(), None);
        assert_eq!((releases.done(&[2], again), releases.is_idle()), (vec![2], true));
    }

    #[test]
    fn an_identifier_waits_once_however_often_it_is_named() {
        let (mut releases, now) = (Releases::new(true), Instant::now());
        for _ in 0..1000 {
            releases.pubrel(1);
            releases.forget(orphan(1, 10));
        }
        releases.forget(orphan(2, 20));
        releases.forget(orphan(2, 20));
        releases.forget(orphan(3, 30));
        releases.forget(orphan(3, 31));
        assert_eq!(releases.take(now), Some(vec![(1, None), (2, Some(20)), (3, None)]));
        assert_eq!(releases.done(&[1, 2, 3], now), [1]);
    }

    #[test]
    fn without_a_spool_on_a_disk_nothing_waits() {
        let mut releases = Releases::new(false);
        assert!(releases.pubrel(1));
        releases.void(vec![1]);
        assert_eq!((releases.take(Instant::now()), releases.is_voiding()), (None, false));
    }
}
