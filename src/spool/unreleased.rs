//! Messages that their sender may deliver again under a number until it has released the number: of each, the number and what was in
//! it. Pure; the bytes are records of the checkpoint (docs/spool-format.md).
//!
//! - A *note* is written before the frames that it names: with the frames, by one append, comes what is known of their senders. It
//!   counts only once its frames are there: an append that failed leaves a note of numbers that come again, so a note voids all
//!   that was noted before for its first frame and those behind it.
//! - A *release* is durable before the sender hears of it. After that the sender may use the number for another message, which may
//!   even be equal, and what is remembered of the old one would swallow it: that would be a loss. So of two doubts, to forget is
//!   the safe one: where a record of the checkpoint is damaged, all is forgotten.

use std::collections::BTreeMap;

use super::FrameId;
use super::checkpoint::encode_record;
use super::record::Fields;

/// Kind of a note.
pub(super) const KIND_NOTED: u32 = 3;
/// Kind of a release.
pub(super) const KIND_RELEASED: u32 = 4;

/// A message that may be delivered again until its number is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreleased {
    /// The sender's number.
    pub number: u16,
    /// A hash of all that tells it from another message under the same number.
    pub content: u64,
}

/// What is to be forgotten: the newest message under a number, or that only if it is this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forget {
    /// The sender's number.
    pub number: u16,
    /// As of [`Unreleased::content`]; None: whatever it is.
    pub content: Option<u64>,
}

/// The newest message of each number that is not released: 65,536 at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    newest: BTreeMap<u16, (FrameId, u64)>,
    /// Notes on the disk name no frame with this number or a higher one.
    noted_below: FrameId,
    /// What the newest note names, until its frames are there. If their append fails, a crash may show them all the same.
    unconfirmed: BTreeMap<u16, u64>,
}

/// A note of frames from `first` on; see the module head.
pub fn encode_noted<'a>(
    first: FrameId,
    noted: impl IntoIterator<Item = (FrameId, &'a Unreleased)>,
) -> Vec<u8> {
    let mut payload = first.0.to_le_bytes().to_vec();
    for (frame, Unreleased { number, content }) in noted {
        payload.extend_from_slice(&frame.0.to_le_bytes());
        payload.extend_from_slice(&content.to_le_bytes());
        payload.extend_from_slice(&number.to_le_bytes());
    }
    encode_record(KIND_NOTED, &payload)
}

/// Releases numbers of messages in frames below `next`.
pub fn encode_released(next: FrameId, numbers: &[u16]) -> Vec<u8> {
    let mut payload = next.0.to_le_bytes().to_vec();
    numbers.iter().for_each(|number| payload.extend_from_slice(&number.to_le_bytes()));
    encode_record(KIND_RELEASED, &payload)
}

impl Table {
    /// What a note says.
    pub(super) fn apply_noted(&mut self, payload: &mut Fields<'_>) -> Option<()> {
        let first = FrameId(payload.u64()?);
        self.newest.retain(|_, (frame, _)| *frame < first);
        self.noted_below = first;
        while let (Some(frame), Some(content), Some(number)) = (payload.u64(), payload.u64(), payload.u16()) {
            self.newest.insert(number, (FrameId(frame), content));
            self.noted_below = self.noted_below.max(FrameId(frame.saturating_add(1)));
        }
        Some(())
    }

    /// What a release says.
    pub(super) fn apply_released(&mut self, payload: &mut Fields<'_>) -> Option<()> {
        let next = FrameId(payload.u64()?);
        while let Some(number) = payload.u16() {
            if self.newest.get(&number).is_some_and(|(frame, _)| *frame < next) {
                self.newest.remove(&number);
            }
        }
        Some(())
    }

    /// Forgets what is of frames that are not there.
    pub(super) fn retain(&mut self, there: impl Fn(FrameId) -> bool) {
        self.newest.retain(|_, (frame, _)| there(*frame));
    }

    /// Forgets what `known` does not have: in one process, what was forgotten once does not come back.
    pub(super) fn retain_known(&mut self, known: &Table) {
        self.newest.retain(|number, one| known.newest.get(number) == Some(one));
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.newest.clear();
    }

    /// Frames from `first` on were noted, with these messages, and are about to be appended.
    pub(super) fn noted<'a>(
        &mut self,
        first: FrameId,
        frames: usize,
        messages: impl Iterator<Item = &'a Unreleased>,
    ) {
        self.noted_below = FrameId(first.0 + frames as u64);
        self.unconfirmed = messages.map(|one| (one.number, one.content)).collect();
    }

    /// Whether notes on the disk name frames from `next` on, which will be others.
    pub(super) fn is_noted_beyond(&self, next: FrameId) -> bool {
        self.noted_below > next
    }

    /// A frame with this message is there.
    pub(super) fn add(&mut self, frame: FrameId, unreleased: &Unreleased) {
        self.newest.insert(unreleased.number, (frame, unreleased.content));
    }

    /// The numbers of those that there is something of, or may be after a crash; `next` is the next frame's number.
    pub(super) fn known(&self, asked: &[Forget], next: FrameId) -> Vec<u16> {
        let is_known = |asked: &&Forget| {
            let matches = |content: u64| asked.content.is_none_or(|wanted| wanted == content);
            let there = self.newest.get(&asked.number).map(|(_, content)| *content);
            let perhaps = self.unconfirmed.get(&asked.number).filter(|_| self.is_noted_beyond(next)).copied();
            there.into_iter().chain(perhaps).any(matches)
        };
        asked.iter().filter(is_known).map(|asked| asked.number).collect()
    }

    /// A release of these numbers, of all frames that notes on the disk name.
    pub(super) fn encode_release(&self, next: FrameId, numbers: &[u16]) -> Vec<u8> {
        encode_released(self.noted_below.max(next), numbers)
    }

    /// They are released.
    pub(super) fn release(&mut self, numbers: &[u16]) {
        for number in numbers {
            self.newest.remove(number);
            self.unconfirmed.remove(number);
        }
    }

    /// A release of those of these numbers that are not here; nothing if there are none.
    pub(super) fn release_of_others(&self, noted: &[u16], next: FrameId) -> Vec<u8> {
        let others: Vec<u16> =
            noted.iter().copied().filter(|number| !self.newest.contains_key(number)).collect();
        if others.is_empty() { Vec::new() } else { encode_released(next, &others) }
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.newest.keys().copied().collect()
    }

    /// All that is not released.
    pub fn all(&self) -> impl Iterator<Item = (FrameId, Unreleased)> + '_ {
        self.newest.iter().map(|(&number, &(frame, content))| (frame, Unreleased { number, content }))
    }

    /// The same as one note, for a checkpoint that is written anew.
    pub(super) fn summary(&mut self, next: FrameId) -> Vec<u8> {
        self.noted_below = next;
        let all: Vec<(FrameId, Unreleased)> = self.all().collect();
        if all.is_empty() {
            return Vec::new();
        }
        // A note voids from its first frame on: this one names older frames, and stands before any other.
        encode_noted(next, all.iter().map(|(frame, unreleased)| (*frame, unreleased)))
    }
}
