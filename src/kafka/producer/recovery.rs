//! What a partition does after a failure: who is asked, what the answer means, and when an identity is given up. The
//! rules are those of the [`super::partition`] head; this is the half of its state machine that runs only then.

use std::time::Instant;

use super::Tag;
use super::batch::{Batch, Culprit, Refusal};
use super::partition::{Notice, Partition, ProducerId, Step, View};
use super::read_back::{ReadBack, Why};
use crate::kafka::compression::Compression;
use crate::kafka::record_batch::{Identity, next_sequence};

/// A partition that has had a setback and has not gone on yet.
pub(super) struct Recovery {
    pub not_before: Instant,
    /// The leader has been asked under this ticket and has not answered; 0 until the ticket is known.
    pub asked: Option<u64>,
    /// The identity is of no more use: take another for what is not written.
    pub retire: bool,
    /// The leader does not know; the partition is being read back.
    pub reading: Option<ReadBack>,
}

impl Recovery {
    pub fn new(not_before: Instant, retire: bool) -> Self {
        Recovery { not_before, asked: None, retire, reading: None }
    }
}

/// What the leader says of our producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It knows nothing of it: nothing was written, or it has forgotten.
    Nothing,
    /// It knows an earlier epoch of it: under ours nothing was written.
    Earlier,
    /// It knows a later epoch of it: under ours nothing can be written any more.
    Later,
    /// The last sequence that was written.
    Last(i32),
}

impl<T: Tag> Partition<T> {
    /// A question is on its way.
    pub(super) fn question_asked(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.asked = Some(0);
        }
    }

    /// The question that is on its way has this ticket.
    pub(super) fn question_sent(&mut self, ticket: u64) {
        if let Some(recovery) = self.recovery.as_mut().filter(|recovery| recovery.asked == Some(0)) {
            recovery.asked = Some(ticket);
        }
    }

    /// The question could not be answered: ask again later, from the beginning.
    pub(super) fn question_unanswered(&mut self, ticket: u64, now: Instant, random: f64) {
        if self.recovery.as_ref().is_some_and(|recovery| recovery.asked == Some(ticket)) {
            self.retry_recovery(now, random);
        }
    }

    /// Begins the recovery anew, after a pause.
    pub(super) fn retry_recovery(&mut self, now: Instant, random: f64) {
        if let Some(recovery) = &mut self.recovery {
            recovery.asked = None;
            recovery.reading = None;
            recovery.not_before = now + self.retry.next_delay(random);
        }
    }

    /// The batches at the head of the queue that have an identity of the present producer.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Batch<T>> {
        self.queue.iter().take_while(|batch| batch.identity.is_some() && batch.producer() == self.producer)
    }

    /// The leader's answer; see the module head for what follows from it.
    pub(super) fn producers_answer(&mut self, ticket: u64, told: Told, delivered: &mut Vec<T>) {
        let Some(recovery) = self.recovery.as_mut().filter(|recovery| recovery.asked == Some(ticket)) else {
            return;
        };
        recovery.asked = None;
        recovery.retire |= told == Told::Later;
        let retire = recovery.retire;
        // It may have forgotten what was never acknowledged, too: what counts is the age of the records.
        let cannot_know = matches!(told, Told::Nothing | Told::Later);
        if cannot_know && self.ours().any(|batch| batch.uncertain) {
            return self.begin_reading(Why::Forgotten);
        }
        self.recovery = None;
        match told {
            Told::Last(last_written) => self.settle_written(last_written, retire, delivered),
            _ if retire => self.retire(),
            _ => {}
        }
    }

    fn settle_written(&mut self, last_written: i32, retire: bool, delivered: &mut Vec<T>) {
        let reached =
            |batch: &&Batch<T>| batch.end_sequence().is_some_and(|end| is_behind(end, last_written));
        let written = self.ours().take_while(reached).count();
        let refused = self.queue.iter().take(written).any(|batch| batch.refusal.is_some());
        let expected = next_sequence(last_written, 1);
        let last = written.checked_sub(1).and_then(|at| self.queue.get(at));
        // The leader recognises the last batch of its log; after a restart it may have more than is queued here.
        let recognised = last.is_some_and(|last| last.is_whole() && last.end_sequence() == Some(expected));
        if recognised && !retire && !refused {
            self.covered = written - 1;
            return;
        }
        // Written, but it cannot be confirmed by sending it again: others follow it in the log, or it has an identity or a
        // size that Kafka no longer takes.
        for _ in 0..written {
            if let Some(batch) = self.pop_queue() {
                delivered.extend(batch.tags);
            }
        }
        let next = self.ours().next().and_then(|batch| batch.identity);
        if next.is_none() && is_behind(self.next_sequence, last_written) {
            self.next_sequence = expected;
        }
        let gap = written == 0 && next.is_some_and(|identity| identity.base_sequence != expected);
        // Of an earlier process's batches some may be missing here for other reasons.
        if gap && !self.adopted {
            self.notices.push(Notice::AcknowledgedRecordsGone);
        }
        if gap || retire {
            self.retire();
        }
    }

    /// Takes the refused head of the queue apart, after [`Step::TakeApart`]. Returns the records to give up, with
    /// the refusal.
    pub(super) fn take_apart(&mut self, codec: Compression) -> Option<(Refusal, Vec<Culprit<T>>)> {
        let mut batch = self.pop_queue()?;
        let refusal = batch.refusal.take()?;
        let identity = batch.identity.filter(|_| !batch.uncertain && batch.producer() == self.producer);
        let on_disk = |batch: &Batch<T>| batch.is_stored() || batch.copied.is_some();
        let mut on_the_disk = on_disk(&batch);
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
        let mut others = self.queue.iter().filter(|batch| batch.producer() == self.producer);
        let certain = others.all(|batch| !batch.uncertain);
        on_the_disk |= self.queue.iter().any(on_disk);
        match identity {
            Some(identity) if certain && !on_the_disk => self.rewind(identity),
            _ => self.renew(),
        }
        Some((refusal, culprits))
    }

    pub(super) fn recovery_step(&mut self, view: &View) -> Option<Step> {
        let recovery = self.recovery.as_ref()?;
        if view.now < recovery.not_before {
            return Some(Step::WaitUntil(recovery.not_before));
        }
        if recovery.asked.is_some() {
            return Some(Step::Idle);
        }
        if recovery.reading.is_some() {
            return self.read_step(view);
        }
        let refused = recovery.retire;
        let lost = refused || self.gaps > 0;
        let was_sent = self.queue.front().is_some_and(|batch| batch.identity.is_some());
        if was_sent && view.may_ask {
            self.search = None;
            return Some(Step::AskProducers);
        }
        let searching = self.search.is_some();
        // Without a way to ask the leader is trusted to recognise what is sent again, as long as it is fresh.
        let doubtful = |batch: &Batch<T>| batch.uncertain && (lost || searching || batch.is_stored());
        let doubtful = was_sent && self.ours().any(doubtful);
        if doubtful && view.may_read && !searching {
            self.begin_reading(Why::Unasked { lost });
            return self.read_step(view);
        }
        if doubtful && !refused {
            return self.search_step(view);
        }
        if was_sent && lost {
            self.give_up();
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
        self.forget_identities();
    }

    /// Goes on under the next epoch of the producer id, from sequence 0. Sequences that are noted on the disk must not stand
    /// for other records, or the next process would take these for those; and a late attempt of the epoch before is refused
    /// once something of the new one is written. Costs neither a question nor the broker's memory.
    fn renew(&mut self) {
        let next = self
            .producer
            .filter(|_| !self.adopted)
            .and_then(|producer| Some(ProducerId { epoch: producer.epoch.checked_add(1)?, ..producer }));
        match next {
            Some(next) => {
                self.forget_identities();
                self.begin_identity(Some(next));
            }
            None => self.retire(),
        }
    }

    /// Gives the identity up: nothing that is queued was written under it.
    pub(super) fn retire(&mut self) {
        self.forget_identities();
        self.leave_identity();
    }

    /// Batches of other producers keep what they have: they are another question.
    fn forget_identities(&mut self) {
        let ours = self.producer;
        for batch in self.queue.iter_mut().filter(|batch| batch.producer() == ours) {
            batch.forget_identity();
            batch.uncertain = false;
        }
    }

    /// The next batch gets an identity of another producer id.
    pub(super) fn leave_identity(&mut self) {
        let own = self.producer.filter(|_| !self.adopted).map(|producer| producer.id);
        self.retired = own.or(self.retired);
        self.begin_identity(None);
    }

    /// From here on this is the identity; nothing is known of it.
    pub(super) fn begin_identity(&mut self, producer: Option<ProducerId>) {
        self.producer = producer;
        self.adopted = false;
        self.next_sequence = 0;
        self.proven_at = None;
        self.covered = 0;
        self.search = None;
        self.gaps = 0;
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
    use crate::kafka::record_batch::RecordRef;

    #[test]
    fn what_was_written_is_told_across_the_wrap_of_sequences() {
        assert!(is_behind(10, 9));
        assert!(is_behind(10, 200));
        assert!(!is_behind(10, 8));
        assert!(is_behind(i32::MAX, 3));
        assert!(is_behind(0, i32::MAX));
        assert!(!is_behind(4, i32::MAX));
    }

    /// What the old leader had written, the new one may lack; and if it knows nothing of the producer, it takes any sequence.
    #[test]
    fn the_word_of_a_leader_is_worth_nothing_with_the_next_one() {
        let now = Instant::now();
        let mut partition = Partition::<u64>::new();
        partition.set_leader(Some(1), now);
        partition.producer = Some(ProducerId { id: 1, epoch: 0 });
        for tag in 0..3 {
            let record = RecordRef { key: None, value: Some(b"x"), headers: &[], timestamp_ms: 1 };
            partition.append(&record, tag, now, 1, Compression::None);
        }
        partition.seal_open(Compression::None);
        let mut queue = std::mem::take(&mut partition.queue);
        for batch in &mut queue {
            partition.identify(batch);
            batch.uncertain = true;
        }
        partition.queue = queue;
        partition.recovery = Some(Recovery { asked: Some(5), ..Recovery::new(now, false) });
        partition.producers_answer(5, Told::Last(1), &mut Vec::new());
        assert_eq!((partition.covered, partition.recovery.is_none()), (1, true));
        partition.set_leader(Some(2), now);
        assert_eq!((partition.covered, partition.recovery.is_some()), (0, true));
    }
}
