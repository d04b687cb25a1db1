//! One partition's way to Kafka: what waits, what is in flight, and what to do when an answer is an error or
//! never comes. Pure: knows nothing of connections, topics or time but what it is told.
//!
//! ```text
//! append -> open batch -> queue -> in flight -> delivered
//!                           ^          |
//!                           +-recovery-+   error or no answer: back to the head of the queue, identity kept
//! ```
//!
//! Invariants (design: exact replay; KIP-98; KIP-664):
//! - batches are sent in order of arrival, and a batch that was sent keeps its identity until it is certain that
//!   it was not written;
//! - at most [`WINDOW`] batches are in flight: the broker recognises a resent batch among the last five;
//! - until a batch is acknowledged under an identity, only one is in flight. A leader that knows nothing of a
//!   producer accepts any sequence, so a second batch could be written ahead of a first one that failed;
//! - an acknowledged batch proves all before it under the same identity: the leader takes a sequence only behind
//!   its predecessor, and acks=all confirms the log up to it;
//! - after any unknown outcome the leader is asked what it has written (DescribeProducers) before anything is
//!   sent again, because a restarted broker remembers only the last batch of each producer. What it has is not
//!   taken as delivered on its word (it may not be replicated yet): the last of these batches is sent again, and
//!   its acknowledgement settles them all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Tag;
use super::batch::{Batch, Keep, OpenBatch, Refusal};
use super::read_back::Read;
use super::recovery::Recovery;
use super::search::Search;
use crate::backoff::Backoff;
use crate::kafka::compression::Compression;
use crate::kafka::error::{Class, ErrorCode};
use crate::kafka::record_batch::{Identity, NO_TIMESTAMP, RecordRef, next_sequence};

/// Most batches in flight for a partition; see the module head.
pub(super) const WINDOW: usize = 5;
/// How long an acknowledgement keeps the window open: well below any sane producer.id.expiration.ms.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// Kafka forgets a producer by the times of its records: from half of producer.id.expiration.ms's default on, care is taken.
pub(super) const FORGOTTEN_FROM_MS: i64 = 12 * 3600 * 1000;
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long a partition rests that an operator must open again (not authorised).
const PARKED: Duration = Duration::from_secs(5);
/// How often a sequence may be refused in a row before the identity is given up: a way out of a state that
/// should not exist, instead of asking for ever.
const GAPS_MAX: u32 = 3;

/// A producer id and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub id: i64,
    pub epoch: i16,
}

/// The answer to a batch that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Written and replicated as acks asks.
    Written,
    /// An error code, with what the broker says.
    Failed(Refusal),
    /// The connection ended, or the leader moved away, before an answer came.
    Unknown,
}

/// What the partition needs next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing to do until something happens.
    Idle,
    /// Nothing to do before this time.
    WaitUntil(Instant),
    /// A producer id other than the retired one.
    NeedsProducerId,
    /// Ask the leader what this producer has written: then call [`Partition::question_asked`].
    AskProducers,
    /// Read the partition itself: then call [`Partition::question_asked`].
    ReadBack(Read),
    /// The partition would be read, and must not be: call [`Partition::cannot_read`].
    CannotRead,
    /// The head of the queue was refused: call [`Partition::take_apart`].
    TakeApart,
    /// Stored batches are next, or are in flight with an identity that is not kept: their identities must be kept first. Call [`Partition::keep_identities`].
    Keep,
    /// A batch may be sent: call [`Partition::send`].
    Send,
}

/// What the partition must know of the world around it to find its next step.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub now: Instant,
    /// The newest producer id; None until it is known.
    pub producer: Option<ProducerId>,
    /// False where the broker refuses idempotent producers: no identities, one batch in flight.
    pub idempotent: bool,
    /// The leader can be asked with DescribeProducers, and has answered before.
    pub can_ask: bool,
    /// The leader may be asked: it knows how, and has not refused.
    pub may_ask: bool,
    /// The partition may be read: that has not been refused.
    pub may_read: bool,
    /// Milliseconds since the Unix epoch; None if the owner does not tell.
    pub wall_ms: Option<i64>,
    /// Records wait at least this long for company.
    pub linger: Duration,
    /// The connection would rather gather than send a part-filled batch now.
    pub gather: bool,
    pub compression: Compression,
}

/// How a run of batches failed, for the log and for what else is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setback {
    /// First error code; None where the answer never came.
    pub code: Option<ErrorCode>,
}

/// Things that must be told to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Kafka no longer has records that it acknowledged (unclean leader election, truncation).
    AcknowledgedRecordsGone,
    /// Nobody can tell whether so many batches were written, and they are sent again.
    MayRepeat(usize),
}

pub(super) struct InFlight<T> {
    pub(super) batch: Batch<T>,
    pub(super) ticket: u64,
    pub(super) answer: Option<Answer>,
}

/// A stored batch that is in flight with an identity that the disk does not have: it was taken apart or sent anew while its
/// copy was on the way there.
fn is_unkept<T: Tag>(sent: &InFlight<T>) -> bool {
    sent.batch.keep == Keep::No && sent.batch.identity.is_some() && sent.batch.is_stored()
}

/// See the module head.
pub(super) struct Partition<T> {
    /// Node id of the leader.
    pub leader: Option<i32>,
    pub(super) queue: VecDeque<Batch<T>>,
    pub(super) open: Option<OpenBatch<T>>,
    pub(super) in_flight: VecDeque<InFlight<T>>,
    pub(super) producer: Option<ProducerId>,
    /// Our own producer id that must not be used again here.
    pub(super) retired: Option<i64>,
    /// The producer is one of an earlier process, which may have used sequences of it for batches that nobody knows: no new
    /// batch may have one.
    pub(super) adopted: bool,
    pub(super) next_sequence: i32,
    pub(super) proven_at: Option<Instant>,
    pub(super) recovery: Option<Recovery>,
    /// How many batches at the head of the queue are confirmed by sending only the one behind them.
    pub(super) covered: usize,
    /// Nobody can tell what was written, and it is found out by sending.
    pub(super) search: Option<Search>,
    /// From [`Partition::copy_sent`] until the copies are on the disk: what was not copied as it is now waits.
    pub(super) copying: bool,
    pub(super) gaps: u32,
    pub(super) retry: Backoff,
    /// The offset of the newest record that Kafka has acknowledged, -1 if none. Not the highest: a topic may be made anew.
    pub(super) acknowledged_offset: i64,
    pub(super) queued_bytes: usize,
    /// For the operator, to be taken with [`Partition::take_notices`].
    pub(super) notices: Vec<Notice>,
}

impl<T: Tag> Partition<T> {
    pub fn new() -> Self {
        Partition {
            leader: None,
            queue: VecDeque::new(),
            open: None,
            in_flight: VecDeque::new(),
            producer: None,
            retired: None,
            adopted: false,
            next_sequence: 0,
            proven_at: None,
            recovery: None,
            covered: 0,
            search: None,
            copying: false,
            gaps: 0,
            retry: Backoff::new(RETRY_FIRST, RETRY_MAX),
            acknowledged_offset: -1,
            queued_bytes: 0,
            notices: Vec::new(),
        }
    }

    /// Adds a record behind all others.
    pub fn append(
        &mut self,
        record: &RecordRef<'_>,
        tag: T,
        now: Instant,
        limit_bytes: usize,
        codec: Compression,
    ) {
        let stored = tag.stored().is_some();
        let fits = |open: &OpenBatch<T>| open.is_stored() == stored && open.has_room(record, limit_bytes);
        if self.open.as_ref().is_some_and(|open| !fits(open)) {
            self.seal_open(codec);
        }
        let open = self.open.get_or_insert_with(|| OpenBatch::new(now));
        let before = open.encoded_bytes();
        open.append(record, tag);
        self.queued_bytes += open.encoded_bytes() - before;
    }

    /// Bytes that wait to be sent.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// True if something waits to be sent, or to be kept.
    pub fn has_work(&self) -> bool {
        self.open.is_some() || !self.queue.is_empty() || self.in_flight.iter().any(is_unkept)
    }

    /// What an operator must be told.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// The identity under which the leader is asked.
    pub fn producer(&self) -> Option<ProducerId> {
        self.producer
    }

    /// The tickets of what is in flight and unanswered.
    pub fn unanswered(&self) -> impl Iterator<Item = u64> + '_ {
        self.in_flight.iter().filter(|sent| sent.answer.is_none()).map(|sent| sent.ticket)
    }

    /// Notes the leader that metadata names. A question to the one before is as good as lost, and so is its answer: what that
    /// one had written, this one may lack, and if it knows nothing of the producer it would take the last without the others.
    pub fn set_leader(&mut self, leader: Option<i32>, now: Instant) {
        if self.leader == leader {
            return;
        }
        self.leader = leader;
        self.proven_at = None;
        let told = self.covered > 0 || self.search.is_some();
        if told && self.in_flight.is_empty() {
            self.covered = 0;
            self.search = self.search.map(Search::begin_again);
            self.recovery.get_or_insert_with(|| Recovery::new(now, false));
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.asked = None;
            recovery.reading = None;
        }
    }

    /// The next step; see [`Step`].
    pub fn step(&mut self, view: &View) -> Step {
        if view.idempotent && self.in_flight.iter().any(is_unkept) {
            return Step::Keep;
        }
        if self.in_flight.iter().any(|sent| sent.answer.is_some()) {
            return Step::Idle; // A failed run comes back whole before anything else is sent.
        }
        if self.adopt(view.now) {
            return Step::Idle;
        }
        if let Some(step) = self.recovery_step(view) {
            return step;
        }
        if self.queue.is_empty() {
            match self.open_step(view) {
                Some(step) => return step,
                None => self.seal_open(view.compression),
            }
        }
        let Some(head) = self.queue.front() else { return Step::Idle };
        if head.refusal.is_some() {
            return if self.in_flight.is_empty() { Step::TakeApart } else { Step::Idle };
        }
        if self.tickets_in_flight() >= self.window(view) {
            return Step::Idle;
        }
        // What the leader has written is only confirmed by the one that is sent.
        if self.covered == 0 && !head.is_whole() {
            if !self.in_flight.is_empty() {
                return Step::Idle;
            }
            self.pass_incomplete();
        }
        let Some(head) = self.queue.front() else { return Step::Idle };
        if head.identity.is_none() && view.idempotent && self.adopted {
            if !self.in_flight.is_empty() {
                return Step::Idle;
            }
            self.leave_identity();
        }
        let Some(head) = self.queue.front() else { return Step::Idle };
        if head.identity.is_none() && view.idempotent && self.producer.is_none() {
            let usable = view.producer.filter(|producer| Some(producer.id) != self.retired);
            let Some(producer) = usable else { return Step::NeedsProducerId };
            self.begin_identity(Some(producer));
        }
        let next = self.queue.get(self.covered).filter(|_| view.idempotent);
        if next.is_some_and(|next| self.copying && !next.is_stored() && !next.is_copied()) {
            return Step::Idle; // On the disk it is about to be there without this identity.
        }
        match next.filter(|next| next.needs_keeping()).map(|next| next.keep) {
            Some(Keep::Asked(_)) => Step::Idle,
            Some(_) => Step::Keep,
            None => Step::Send,
        }
    }

    /// Sends the head of the queue, after [`Step::Send`]: the encoded batch, now in flight under `ticket`.
    pub fn send(&mut self, ticket: u64) -> Option<Bytes> {
        for _ in 0..std::mem::take(&mut self.covered) {
            if let Some(batch) = self.pop_queue() {
                self.in_flight.push_back(InFlight { batch, ticket, answer: None });
            }
        }
        let mut batch = self.pop_queue()?;
        self.identify(&mut batch);
        let identity = batch.identity.unwrap_or(Identity::NONE);
        let bytes = batch.records.encode(identity);
        self.in_flight.push_back(InFlight { batch, ticket, answer: None });
        Some(bytes)
    }

    /// Gives the batch the next sequences, if it has none and there is a producer id.
    pub(super) fn identify(&mut self, batch: &mut Batch<T>) {
        if let (None, Some(producer)) = (batch.identity, self.producer.filter(|_| !self.adopted)) {
            let base_sequence = self.next_sequence;
            self.next_sequence = next_sequence(base_sequence, batch.records.count());
            // In the spool a record keeps the time that Kafka refused: by that it is not found.
            let timeless = batch.records.first_timestamp_ms() == NO_TIMESTAMP;
            batch.after_offset = self.acknowledged_offset.max(if timeless { 0 } else { -1 });
            batch.identity =
                Some(Identity { producer_id: producer.id, producer_epoch: producer.epoch, base_sequence });
        }
    }

    /// Notes the answer to what was sent under `ticket`. Stale tickets are ignored.
    pub fn answer(&mut self, ticket: u64, answer: &Answer) {
        let mut last = None;
        for (index, sent) in self.in_flight.iter_mut().enumerate() {
            if sent.ticket == ticket && sent.answer.is_none() {
                sent.answer = Some(answer.clone());
                last = Some(index);
            }
        }
        // Only the last batch of a ticket was really sent; those that it covers share a success, but a refusal
        // of it says nothing of them.
        if let (Answer::Failed(_), Some(last)) = (answer, last) {
            for sent in self.in_flight.iter_mut().take(last).filter(|sent| sent.ticket == ticket) {
                sent.answer = Some(Answer::Unknown);
            }
        }
    }

    /// Takes out what is delivered, in order, into `delivered`. If the rest of what was in flight has failed and
    /// all answers are in, puts it back to the head of the queue and says why.
    pub fn collect(&mut self, now: Instant, random: f64, delivered: &mut Vec<T>) -> Option<Setback> {
        self.collect_delivered(now, delivered);
        let failed = self.in_flight.iter().any(|sent| sent.answer.is_some());
        if !failed || self.in_flight.iter().any(|sent| sent.answer.is_none()) {
            return None;
        }
        let code = self.in_flight.iter().find_map(|sent| match &sent.answer {
            Some(Answer::Failed(refusal)) => Some(ErrorCode(refusal.code)),
            _ => None,
        });
        let class = code.map_or(Class::Retriable, ErrorCode::class);
        let searching = self.search_on(class);
        self.put_back();
        let delay = match class {
            Class::TopicRefused | Class::ClientRefused => PARKED,
            // Taking it apart is progress; another producer id may be none.
            Class::RecordRefused => Duration::ZERO,
            _ if searching => Duration::ZERO,
            _ => self.retry.next_delay(random),
        };
        self.gaps = if class == Class::SequenceUnknown && !searching { self.gaps + 1 } else { 0 };
        let retire = class == Class::ProducerRefused || self.gaps >= GAPS_MAX;
        self.proven_at = None;
        self.recovery = Some(Recovery::new(now + delay, retire));
        Some(Setback { code })
    }

    /// All that waits or is in flight, for a process that stops.
    pub fn abandon(&mut self) -> Vec<T> {
        let sent = std::mem::take(&mut self.in_flight).into_iter().flat_map(|sent| sent.batch.tags);
        let queued = std::mem::take(&mut self.queue).into_iter().flat_map(|batch| batch.tags);
        let open = self.open.take().map(OpenBatch::into_tags).unwrap_or_default();
        self.queued_bytes = 0;
        sent.chain(queued).chain(open).collect()
    }

    fn open_step(&self, view: &View) -> Option<Step> {
        let Some(open) = &self.open else { return Some(Step::Idle) };
        if view.gather {
            return Some(Step::Idle);
        }
        let due = open.opened_at + view.linger;
        (view.now < due).then_some(Step::WaitUntil(due))
    }

    fn window(&self, view: &View) -> usize {
        let proven = self.proven_at.is_some_and(|at| view.now.saturating_duration_since(at) < PROVEN_FOR);
        let old = |at: i64| view.wall_ms.is_some_and(|now| now.saturating_sub(at) > FORGOTTEN_FROM_MS);
        // Its producer may be forgotten between two batches, and then the second could be written without the first.
        let old = self.queue.front().is_some_and(|batch| old(batch.records.max_timestamp_ms()));
        if proven && !old && view.can_ask && view.idempotent { WINDOW } else { 1 }
    }

    pub(super) fn tickets_in_flight(&self) -> usize {
        let mut count = 0;
        let mut last = None;
        for sent in &self.in_flight {
            if last != Some(sent.ticket) {
                count += 1;
                last = Some(sent.ticket);
            }
        }
        count
    }

    fn collect_delivered(&mut self, now: Instant, delivered: &mut Vec<T>) {
        let is_refused = |sent: &InFlight<T>| match &sent.answer {
            Some(Answer::Failed(refusal)) => ErrorCode(refusal.code).class() == Class::RecordRefused,
            _ => false,
        };
        let certain = self.in_flight.iter().take_while(|sent| !is_refused(sent));
        let proven = certain
            .enumerate()
            .filter(|(_, sent)| sent.answer == Some(Answer::Written))
            .last()
            .map_or(0, |(index, _)| index + 1);
        // Without an identity a later batch proves nothing of an earlier one; then only one is in flight anyway.
        for sent in self.in_flight.drain(..proven) {
            delivered.extend(sent.batch.tags);
        }
        if proven > 0 {
            self.proven_at = Some(now);
            self.gaps = 0;
            self.retry.reset();
            self.search_settled();
        }
    }

    fn put_back(&mut self) {
        while let Some(sent) = self.in_flight.pop_back() {
            let mut batch = sent.batch;
            match sent.answer {
                Some(Answer::Failed(refusal)) => match ErrorCode(refusal.code).class() {
                    Class::RecordRefused => batch.refusal = Some(refusal),
                    Class::TopicRefused | Class::SequenceUnknown | Class::ProducerRefused => {}
                    _ => batch.uncertain = true,
                },
                _ => batch.uncertain = true,
            }
            self.push_front(batch);
        }
    }

    pub(super) fn seal_open(&mut self, codec: Compression) {
        if let Some(open) = self.open.take() {
            self.queued_bytes -= open.encoded_bytes();
            let batch = open.seal(codec);
            self.queued_bytes += batch.records.encoded_bytes();
            self.queue.push_back(batch);
        }
    }

    pub(super) fn pop_queue(&mut self) -> Option<Batch<T>> {
        let batch = self.queue.pop_front()?;
        self.queued_bytes -= batch.records.encoded_bytes();
        Some(batch)
    }

    pub(super) fn push_front(&mut self, batch: Batch<T>) {
        self.queued_bytes += batch.records.encoded_bytes();
        self.queue.push_front(batch);
    }
}
