//! What a record's way back says of it: who waits for it, and which try it is.

use crate::kafka::producer::Tag;
use crate::message::{AckToken, Settled};
use crate::spool::Unreleased;

/// A record in the spool, by the names of this process: `key` stands for its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The frame; see [`super::backlog`].
    pub key: u64,
    /// Position of the record in it.
    pub record: u32,
}

/// Who waits for a record.
#[derive(Debug)]
pub enum Owner {
    /// The MQTT session.
    Session(AckToken),
    /// The MQTT session; and the record is being copied to the spool.
    Copied(AckToken, Place),
    /// The spool: MQTT has its acknowledgement.
    Spool(Place),
}

/// Which try a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The record itself.
    Record,
    /// Refused, and written as a dead letter.
    Letter,
    /// The dead letter was refused as well; written without its value.
    LetterWithoutValue,
}

/// See the module head.
#[derive(Debug)]
pub struct Waiting {
    /// Who waits.
    pub owner: Owner,
    /// Which try.
    pub stage: Stage,
    /// For the dead letter that it may become; None where there is no topic for those, which saves the copy.
    pub mqtt_topic: Option<Box<str>>,
}

/// What has become of a record that is safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// The MQTT session may acknowledge it.
    pub settled: Option<Settled>,
    /// It is done in the spool.
    pub done: Option<Place>,
}

impl Waiting {
    /// The record is safe, or known to be lost: nobody waits for it any more.
    pub fn free(self) -> Freed {
        match self.owner {
            Owner::Session(token) => Freed { settled: Some(token.settle()), done: None },
            Owner::Copied(token, place) => Freed { settled: Some(token.settle()), done: Some(place) },
            Owner::Spool(place) => Freed { settled: None, done: Some(place) },
        }
    }

    /// The process stops. True if somebody keeps the message: the MQTT broker, or the spool.
    pub fn abandon(self) -> bool {
        match self.owner {
            Owner::Session(token) | Owner::Copied(token, _) => token.abandon(),
            Owner::Spool(_) => true,
        }
    }

    /// True while MQTT has no acknowledgement for it.
    pub fn is_unsettled(&self) -> bool {
        !matches!(self.owner, Owner::Spool(_))
    }

    /// True for a message that MQTT never wants acknowledged.
    pub fn is_at_most_once(&self) -> bool {
        match &self.owner {
            Owner::Session(token) | Owner::Copied(token, _) => token.is_at_most_once(),
            Owner::Spool(_) => false,
        }
    }

    /// Of a message of QoS 2 that MQTT waits for, what has to be remembered until its packet identifier is released.
    pub fn unreleased(&self) -> Option<Unreleased> {
        match &self.owner {
            Owner::Session(token) | Owner::Copied(token, _) => {
                token.unreleased().map(|(number, content)| Unreleased { number, content })
            }
            Owner::Spool(_) => None,
        }
    }

    /// Notes that the record is being copied to the spool; one that is there already stays as it is.
    pub fn copy_to(&mut self, place: Place) {
        take_owner(&mut self.owner, |owner| match owner {
            Owner::Session(token) | Owner::Copied(token, _) => Owner::Copied(token, place),
            spool @ Owner::Spool(_) => spool,
        });
    }

    /// The copies with these keys are on the disk: MQTT gets its acknowledgement, and the spool is who waits.
    pub fn settle_copy(&mut self, keys: &[u64]) -> Option<Settled> {
        let mut settled = None;
        take_owner(&mut self.owner, |owner| match owner {
            Owner::Copied(token, place) if keys.contains(&place.key) => {
                settled = Some(token.settle());
                Owner::Spool(place)
            }
            other => other,
        });
        settled
    }
}

/// Replaces an owner by what becomes of it.
fn take_owner(owner: &mut Owner, become_of: impl FnOnce(Owner) -> Owner) {
    // A place that is nobody's, for as long as the function runs.
    let taken = std::mem::replace(owner, Owner::Spool(Place { key: u64::MAX, record: 0 }));
    *owner = become_of(taken);
}

impl Tag for Waiting {
    type Stored = Place;

    /// A dead letter of a stored record is none itself: its frame belongs to another topic.
    fn stored(&self) -> Option<Place> {
        match (&self.owner, self.stage) {
            (Owner::Spool(place), Stage::Record) => Some(*place),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(owner: Owner) -> Waiting {
        Waiting { owner, stage: Stage::Record, mqtt_topic: None }
    }

    #[test]
    fn a_copied_record_is_stored_only_once_the_copy_is_on_the_disk() {
        let place = Place { key: 3, record: 1 };
        let mut record = waiting(Owner::Session(AckToken::new(7, 10)));
        record.copy_to(place);
        assert_eq!(record.settle_copy(&[4]), None, "another copy");
        assert_eq!((record.stored(), record.is_unsettled()), (None, true));
        assert_eq!(record.settle_copy(&[3]).map(|settled| settled.sequence), Some(7));
        assert_eq!((record.stored(), record.is_unsettled()), (Some(place), false));
        assert_eq!(record.settle_copy(&[3]), None);
        assert_eq!(record.free(), Freed { settled: None, done: Some(place) });
    }

    #[test]
    fn a_record_that_kafka_takes_while_it_is_copied_frees_both() {
        let place = Place { key: 3, record: 1 };
        let mut record = waiting(Owner::Session(AckToken::new(7, 10)));
        record.copy_to(place);
        let freed = record.free();
        assert_eq!((freed.settled.map(|settled| settled.sequence), freed.done), (Some(7), Some(place)));
    }
}
