//! What may have been written, where nobody tells: the leader must not be asked, nor the partition be read (no READ on the topic,
//! or a broker before DescribeProducers and no READ).
//!
//! ```text
//! ListOffsets, the end (needs no READ) -> the oldest is sent again -+- taken ---------------> delivered, with all before it
//!                                              ^                    +- OUT_OF_ORDER_SEQUENCE
//!                                              +---- the next one --+
//! ```
//!
//! A leader recognises the last five batches of a producer, or the last one, and refuses older ones as out of sequence: so the
//! batches are sent again from the oldest on until one is recognised, which proves all before it. A batch of which records are
//! missing cannot be sent under its identity, and is proven in the same way.
//!
//! Invariant: nothing is taken for written but on proof. A leader that has forgotten the producer meanwhile takes any sequence, and
//! would write a batch of which the ones before are not there. What it recognises lies below the end that was asked before
//! anything was sent; what it writes does not. What is not proven is sent again under another identity, and told.

use super::Tag;
use super::partition::{InFlight, Notice, Partition, Step, View};
use super::read_back::Why;
use crate::kafka::error::Class;

/// A search that is under way.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Search {
    /// High watermark before anything was sent; None until it is known.
    pub end: Option<i64>,
    /// How many batches at the head of the queue were refused as out of sequence, or are not whole.
    passed: usize,
}

impl Search {
    /// The end is known.
    pub fn up_to(self, end: i64) -> Search {
        Search { end: Some(end), ..self }
    }

    /// What comes now is looked for from the head of the queue again.
    pub fn begin_again(self) -> Search {
        Search { passed: 0, ..self }
    }
}

impl<T: Tag> Partition<T> {
    /// The next step of a search, which begins with this if none is under way. None: what is to be sent is known.
    pub(super) fn search_step(&mut self, view: &View) -> Option<Step> {
        let search = *self.search.get_or_insert_default();
        if search.end.is_none() {
            self.begin_reading(Why::Search);
            return self.read_step(view);
        }
        match self.next_to_send(search.passed) {
            Some(at) => self.covered = at,
            None => self.give_up(),
        }
        self.recovery = None;
        None
    }

    /// The answer to what is in flight is an error: true if the search goes on behind it. With anything but the refusal of the
    /// sequence it begins again, with the end that it had: what it sent may have been written, and then proves nothing.
    pub(super) fn search_on(&mut self, class: Class) -> bool {
        let goes_on = class == Class::SequenceUnknown && self.tickets_in_flight() == 1;
        let passed = self.in_flight.len();
        self.search = self.search.map(|search| Search { passed: if goes_on { passed } else { 0 }, ..search });
        goes_on && self.search.is_some()
    }

    /// A batch was taken. What was doubtful when the search began and is not settled yet is looked for in the same way.
    pub(super) fn search_settled(&mut self) {
        let doubtful = self.ours().any(|batch| batch.uncertain);
        self.search = self.search.filter(|_| doubtful).map(Search::begin_again);
    }

    /// The head of the queue is not whole, and nothing in the queue is known to be written.
    pub(super) fn pass_incomplete(&mut self) {
        match self.search {
            Some(_) => match self.next_to_send(0) {
                Some(at) => self.covered = at,
                None => self.give_up(),
            },
            // Not in the log: a batch with fewer records must not take its place.
            None => self.retire(),
        }
    }

    /// Where the first batch is behind so many that can be sent under its identity. It proves something only if it may have been
    /// written.
    fn next_to_send(&self, passed: usize) -> Option<usize> {
        if passed == 0 && self.ours().next().is_some_and(|head| head.is_whole()) {
            return Some(0);
        }
        let mut doubtful =
            self.ours().take_while(|batch| batch.uncertain && batch.refusal.is_none()).skip(passed);
        doubtful.position(|batch| batch.is_whole()).map(|at| passed + at)
    }

    /// Never lose: what may have been written is sent under another identity, at the risk of a repeat.
    pub(super) fn give_up(&mut self) {
        self.tell_repeats();
        self.retire();
    }

    /// What is uncertain may be written twice.
    pub(super) fn tell_repeats(&mut self) {
        let uncertain = self.ours().filter(|batch| batch.uncertain).count();
        if uncertain > 0 {
            self.notices.push(Notice::MayRepeat(uncertain));
        }
    }

    /// Notes where Kafka says that the batch of this ticket lies; to be called before its answer is noted. `repeated`: it says
    /// that it had it already.
    pub(super) fn written_at(&mut self, ticket: u64, base_offset: i64, repeated: bool) {
        let sent = |sent: &InFlight<T>| sent.ticket == ticket && sent.answer.is_none();
        let Some(at) = self.in_flight.iter().rposition(sent) else { return };
        let records = self.in_flight.get(at).map_or(0, |sent| sent.batch.identified_records);
        if base_offset >= 0 {
            self.acknowledged_offset = base_offset.saturating_add(i64::from(records)).saturating_sub(1);
        }
        let was_there = |end| repeated || (0..end).contains(&base_offset);
        if self.search.is_some_and(|search| !search.end.is_some_and(was_there)) {
            self.take_back_covered(at);
        }
    }

    /// What is in flight was written just now and proves nothing of the batches before it.
    fn take_back_covered(&mut self, sent: usize) {
        if sent == 0 {
            return;
        }
        let sent = self.in_flight.split_off(sent);
        let covered = std::mem::replace(&mut self.in_flight, sent);
        self.notices.push(Notice::MayRepeat(covered.len()));
        for sent in covered.into_iter().rev() {
            let mut batch = sent.batch;
            batch.forget_identity();
            batch.uncertain = false;
            self.push_front(batch);
        }
        self.leave_identity();
    }
}
