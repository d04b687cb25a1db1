//! What a partition does after a failure: who is asked, what the answer means, and when an identity is given up. The
//! rules are those of the [`super::partition`] head; this is the half of its state machine that runs only then.

use std::time::Instant;

use super::Tag;
use super::batch::{Batch, Culprit, Refusal};
use super::partition::{Notice, Partition, Step, View};
use crate::kafka::compression::Compression;
use crate::kafka::record_batch::{Identity, next_sequence};

/// A partition that has had a setback and has not gone on yet.
pub(super) struct Recovery {
    pub not_before: Instant,
    /// The leader has been asked and has not answered.
    pub asked: bool,
    /// The identity is of no more use: take another for what is not written.
    pub retire: bool,
}

impl<T: Tag> Partition<T> {
    /// The question of [`Step::AskProducers`] is on its way.
    pub(super) fn producers_asked(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.asked = true;
        }
    }

    /// The question could not be answered: ask again later.
    pub(super) fn producers_unknown(&mut self, now: Instant, random: f64) {
        if let Some(recovery) = &mut self.recovery {
            recovery.asked = false;
            recovery.not_before = now + self.retry.next_delay(random);
        }
    }

    /// The leader's answer: the last sequence it has written of our producer, or None if it knows nothing of it.
    /// See the module head for what follows from it.
    pub(super) fn producers_answer(
        &mut self,
        last_written: Option<i32>,
        delivered: &mut Vec<T>,
    ) -> Option<Notice> {
        let recovery = self.recovery.take_if(|recovery| recovery.asked)?;
        let Some(last_written) = last_written else {
            let repeat = self.acknowledged && self.queue.iter().any(|batch| batch.uncertain);
            if recovery.retire {
                self.retire();
            }
            return repeat.then_some(Notice::MayRepeat);
        };
        let reached = |batch: &Batch<T>| batch.end_sequence().is_some_and(|end| is_behind(end, last_written));
        let written = self.queue.iter().take_while(|batch| reached(batch)).count();
        let refused = self.queue.iter().take(written).any(|batch| batch.refusal.is_some());
        let expected = next_sequence(last_written, 1);
        let last = written.checked_sub(1).and_then(|at| self.queue.get(at));
        // The leader recognises the last batch of its log; after a restart it may have more than is queued here.
        let recognised = last.is_some_and(|last| last.is_whole() && last.end_sequence() == Some(expected));
        if recognised && !recovery.retire && !refused {
            self.covered = written - 1;
            return None;
        }
        // Written, but it cannot be confirmed by sending it again: others follow it in the log, or it has an identity or a
        // size that Kafka no longer takes.
        for _ in 0..written {
            if let Some(batch) = self.pop_queue() {
                delivered.extend(batch.tags);
            }
        }
        let next = self.queue.front().and_then(|batch| batch.identity);
        if next.is_none() && is_behind(self.next_sequence, last_written) {
            self.next_sequence = expected;
        }
        let gap = written == 0 && next.is_some_and(|identity| identity.base_sequence != expected);
        if gap || recovery.retire {
            self.retire();
        }
        gap.then_some(Notice::AcknowledgedRecordsGone)
    }

    /// Takes the refused head of the queue apart, after [`Step::TakeApart`]. Returns the records to give up, with
    /// the refusal.
    pub(super) fn take_apart(&mut self, codec: Compression) -> Option<(Refusal, Vec<Culprit<T>>)> {
        let mut batch = self.pop_queue()?;
        let refusal = batch.refusal.take()?;
        let identity = batch.identity.filter(|_| !batch.uncertain);
        let culprits = match batch.take_apart(&refusal, codec) {
            Ok(pieces) => {
                for piece in pieces.batches.into_iter().rev() {
                    self.push_front(piece);
                }
                pieces.culprits
            }
            Err(batch) => {
                // Unreadable to ourselves: sent again as it is, it is refused again; never dropped silently.
                self.push_front(*batch);
                Vec::new()
            }
        };
        match identity {
            Some(identity) if self.queue.iter().all(|batch| !batch.uncertain) => self.rewind(identity),
            _ => self.retire(),
        }
        Some((refusal, culprits))
    }

    pub(super) fn recovery_step(&mut self, view: &View) -> Option<Step> {
        let recovery = self.recovery.as_ref()?;
        if view.now < recovery.not_before {
            return Some(Step::WaitUntil(recovery.not_before));
        }
        if recovery.asked {
            return Some(Step::Idle);
        }
        let was_sent = self.queue.front().is_some_and(|batch| batch.identity.is_some());
        if was_sent && view.may_ask {
            return Some(Step::AskProducers);
        }
        if was_sent && (recovery.retire || self.gaps > 0) {
            // Refused without a way to ask. Never lose: send under another identity, at the risk of a repeat.
            self.retire();
        }
        self.recovery = None;
        None
    }

    /// Takes the sequences of a refused batch and of what followed it back. The broker refuses a batch for what it
    /// holds before it looks at its sequence, and what follows with 45, so none of these was written; and no attempt
    /// is unanswered that could still be. A new identity for each refusal would fill the broker's memory.
    fn rewind(&mut self, refused: Identity) {
        self.next_sequence = refused.base_sequence;
        self.covered = 0;
        self.gaps = 0;
        self.queue.iter_mut().for_each(Batch::forget_identity);
    }

    /// Gives the identity up: nothing that is queued was written under it.
    pub(super) fn retire(&mut self) {
        self.retired = self.producer.take().map(|producer| producer.id).or(self.retired);
        self.next_sequence = 0;
        self.acknowledged = false;
        self.proven_at = None;
        self.covered = 0;
        self.gaps = 0;
        for batch in &mut self.queue {
            batch.forget_identity();
            batch.uncertain = false;
        }
    }
}

/// True if a batch that ends before sequence `end` lies at or below `last_written`. Sequences wrap at 2^31, and
/// what is compared is never further apart than a few batches.
fn is_behind(end: i32, last_written: i32) -> bool {
    let distance = (i64::from(last_written) + 1 - i64::from(end)).rem_euclid(1 << 31);
    distance < (1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_told_across_the_wrap_of_sequences() {
        assert!(is_behind(10, 9));
        assert!(is_behind(10, 200));
        assert!(!is_behind(10, 8));
        assert!(is_behind(i32::MAX, 3));
        assert!(is_behind(0, i32::MAX));
        assert!(!is_behind(4, i32::MAX));
    }
}
