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

/// Where the record itself is in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    No,
    /// It is being copied to this place.
    Copying(Place),
    /// It is there, on the disk.
    At(Place),
}

/// See the module head.
#[derive(Debug)]
pub struct Waiting {
    /// The MQTT session waits for it; None once that has its acknowledgement.
    token: Option<AckToken>,
    stored: Stored,
    /// Records in the spool that this one, their dead letter, takes the place of: they are done when it is safe.
    replaced: Vec<Place>,
    /// Which try.
    pub stage: Stage,
    /// For the dead letter that it may become; None where there is no topic for those, which saves the copy.
    pub mqtt_topic: Option<Box<str>>,
}

/// What has become of a record that is safe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// The MQTT session may acknowledge it.
    pub settled: Option<Settled>,
    /// What is done in the spool.
    pub done: Vec<Place>,
}

impl Waiting {
    /// A record for which the MQTT session waits.
    pub fn for_session(token: AckToken, mqtt_topic: Option<Box<str>>) -> Waiting {
        let (stored, replaced) = (Stored::No, Vec::new());
        Waiting { token: Some(token), stored, replaced, stage: Stage::Record, mqtt_topic }
    }

    /// A record of the spool; MQTT has its acknowledgement.
    pub fn for_spool(place: Place) -> Waiting {
        let (stored, replaced) = (Stored::At(place), Vec::new());
        Waiting { token: None, stored, replaced, stage: Stage::Record, mqtt_topic: None }
    }

    /// What waits for the dead letter of this record: the same, and its place in the spool, where the letter is not.
    pub fn into_letter(mut self, stage: Stage) -> Waiting {
        if let Stored::Copying(place) | Stored::At(place) = self.stored {
            self.replaced.push(place);
        }
        Waiting { stored: Stored::No, stage, ..self }
    }

    /// The record is safe, or known to be lost: nobody waits for it any more.
    pub fn free(self) -> Freed {
        let mut done = self.replaced;
        if let Stored::Copying(place) | Stored::At(place) = self.stored {
            done.push(place);
        }
        Freed { settled: self.token.map(AckToken::settle), done }
    }

    /// The process stops. True if somebody keeps the message: the MQTT broker, or the spool.
    pub fn abandon(self) -> bool {
        self.token.is_none_or(AckToken::abandon)
    }

    /// True while MQTT has no acknowledgement for it.
    pub fn is_unsettled(&self) -> bool {
        self.token.is_some()
    }

    /// True for a message that MQTT never wants acknowledged.
    pub fn is_at_most_once(&self) -> bool {
        self.token.as_ref().is_some_and(AckToken::is_at_most_once)
    }

    /// Of a message of QoS 2 that MQTT waits for, what has to be remembered until its packet identifier is released.
    pub fn unreleased(&self) -> Option<Unreleased> {
        let (number, content) = self.token.as_ref()?.unreleased()?;
        Some(Unreleased { number, content })
    }

    /// Notes that the record is being copied to the spool; one that is there already stays as it is.
    pub fn copy_to(&mut self, place: Place) {
        if !matches!(self.stored, Stored::At(_)) {
            self.stored = Stored::Copying(place);
        }
    }

    /// The copies with these keys are on the disk: MQTT gets its acknowledgement, and the copy is what waits.
    pub fn settle_copy(&mut self, keys: &[u64]) -> Freed {
        match self.stored {
            Stored::Copying(place) if keys.contains(&place.key) => {
                self.stored = Stored::At(place);
                let done = std::mem::take(&mut self.replaced);
                Freed { settled: self.token.take().map(AckToken::settle), done }
            }
            _ => Freed::default(),
        }
    }
}

impl Tag for Waiting {
    type Stored = Place;

    fn stored(&self) -> Option<Place> {
        match self.stored {
            Stored::At(place) => Some(place),
            Stored::No | Stored::Copying(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { key: 3, record: 1 };

    fn fresh() -> Waiting {
        Waiting::for_session(AckToken::new(7, 10), None)
    }

    #[test]
    fn a_copied_record_is_stored_only_once_the_copy_is_on_the_disk() {
        let mut record = fresh();
        record.copy_to(PLACE);
        assert_eq!(record.settle_copy(&[4]), Freed::default(), "another copy");
        assert_eq!((record.stored(), record.is_unsettled()), (None, true));
        assert_eq!(record.settle_copy(&[3]).settled.map(|settled| settled.sequence), Some(7));
        assert_eq!((record.stored(), record.is_unsettled()), (Some(PLACE), false));
        assert_eq!(record.settle_copy(&[3]), Freed::default());
        assert_eq!(record.free(), Freed { settled: None, done: vec![PLACE] });
    }

    #[test]
    fn a_record_that_kafka_takes_while_it_is_copied_frees_both() {
        let mut record = fresh();
        record.copy_to(PLACE);
        let freed = record.free();
        assert_eq!((freed.settled.map(|settled| settled.sequence), freed.done), (Some(7), vec![PLACE]));
    }

    #[test]
    fn a_letter_that_is_stored_ends_what_it_is_the_letter_of_and_is_a_stored_record_itself() {
        let mut letter = Waiting::for_spool(PLACE).into_letter(Stage::Letter);
        assert_eq!(letter.stored(), None, "its record is in the spool, the letter is not");
        let copy = Place { key: 9, record: 0 };
        letter.copy_to(copy);
        assert_eq!(letter.settle_copy(&[9]), Freed { settled: None, done: vec![PLACE] });
        assert_eq!(letter.stored(), Some(copy));
        assert_eq!(letter.free(), Freed { settled: None, done: vec![copy] });
    }

    #[test]
    fn a_letter_of_a_record_that_was_being_copied_waits_for_both() {
        let mut record = fresh();
        record.copy_to(PLACE);
        let mut letter = record.into_letter(Stage::Letter);
        assert_eq!(letter.settle_copy(&[3]), Freed::default(), "the copy was the record's");
        let copy = Place { key: 9, record: 0 };
        letter.copy_to(copy);
        let freed = letter.into_letter(Stage::LetterWithoutValue).free();
        assert_eq!((freed.settled.map(|settled| settled.sequence), freed.done), (Some(7), vec![PLACE, copy]));
    }
}
