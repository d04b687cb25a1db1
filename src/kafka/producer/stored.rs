//! The partition's dealings with the spool: what goes there, what comes from there, and identities that must be on the disk
//! before a stored batch is sent.
//!
//! ```text
//! sent and unacknowledged --copy_sent--> spool --convert--> the same batch, stored: it stays here and is retried
//! not sent                --take_unsent--> spool           it comes back in its turn
//! spool --push_sent--> a batch of an earlier process, with its identity: the leader is asked before it is sent
//! ```
//!
//! Invariant: in a queue, batches with an identity come before those without, and stored ones before others.

use std::time::Instant;

use super::Tag;
use super::batch::{Batch, Keep, OpenBatch};
use super::partition::Partition;
use super::recovery::Recovery;
use crate::kafka::compression::Compression;
use crate::kafka::record_batch::{Identity, Record, SealedBatch};

/// A stored batch whose identity must be kept.
pub(super) struct Kept<A> {
    pub identity: Identity,
    pub records: i32,
    pub after_offset: i64,
    pub stored: Vec<A>,
}

/// A batch that may have been sent by an earlier process.
#[derive(Debug)]
pub struct SentBefore<T> {
    /// What it was given then.
    pub identity: Identity,
    /// How many records it had. More than there are, where the spool has lost some.
    pub batch_records: i32,
    /// An offset of the partition that it lies behind, if it was written; -1 if none is known.
    pub after_offset: i64,
    /// Its records, in order.
    pub records: Vec<(Record, T)>,
}

impl<T: Tag> Batch<T> {
    /// What is to be kept of it, if it is not.
    fn ask_to_keep(&mut self, ticket: u64) -> Option<Kept<T::Stored>> {
        let identity = self.identity.filter(|_| self.keep == Keep::No)?;
        self.keep = Keep::Asked(ticket);
        Some(Kept {
            identity,
            records: self.identified_records,
            after_offset: self.after_offset,
            stored: self.tags.iter().filter_map(Tag::stored).collect(),
        })
    }
}

impl<T: Tag> Partition<T> {
    /// Adds a batch of an earlier process behind all others.
    pub fn push_sent(&mut self, sent: SentBefore<T>, codec: Compression, now: Instant) {
        self.seal_open(codec);
        let mut open = OpenBatch::new(now);
        sent.records.into_iter().for_each(|(record, tag)| open.append_owned(&record, tag));
        let batch = Batch {
            identity: Some(sent.identity),
            identified_records: sent.batch_records,
            after_offset: sent.after_offset,
            uncertain: true,
            keep: Keep::Yes,
            ..open.seal(codec)
        };
        self.queued_bytes += batch.records.encoded_bytes();
        self.queue.push_back(batch);
    }

    /// Takes over the producer id of a batch of an earlier process that is next, once nothing of another is in flight. True
    /// if that is to be waited for.
    pub(super) fn adopt(&mut self, now: Instant) -> bool {
        let next = self.queue.front().and_then(Batch::producer);
        let Some(next) = next.filter(|next| self.producer != Some(*next)) else { return false };
        if !self.in_flight.is_empty() {
            return true;
        }
        // A sequence of our own that was used here is not known any more when this is over.
        self.leave_identity();
        self.begin_identity(Some(next));
        self.adopted = true;
        self.recovery = Some(Recovery::new(now, false));
        false
    }

    /// Gives identities to the stored batches at the head of the queue, after [`super::partition::Step::Keep`]. They are sent
    /// when [`Partition::kept`] says that these are on the disk. What is in flight already comes first.
    pub fn keep_identities(&mut self, ticket: u64, codec: Compression) -> Vec<Kept<T::Stored>> {
        if self.open.as_ref().is_some_and(OpenBatch::is_stored) {
            self.seal_open(codec);
        }
        let mut kept = Vec::new();
        let in_flight = self.in_flight.iter_mut().map(|sent| &mut sent.batch);
        in_flight.filter(|batch| batch.is_stored()).for_each(|batch| kept.extend(batch.ask_to_keep(ticket)));
        let mut queue = std::mem::take(&mut self.queue);
        for batch in queue.iter_mut().take_while(|batch| batch.is_stored() && batch.refusal.is_none()) {
            self.identify(batch);
            if batch.producer() != self.producer {
                break;
            }
            kept.extend(batch.ask_to_keep(ticket));
        }
        self.queue = queue;
        kept
    }

    /// The identities that were given under this ticket are on the disk, or the disk did not take them.
    pub(super) fn kept(&mut self, ticket: u64, keep: Keep) {
        let in_flight = self.in_flight.iter_mut().map(|sent| &mut sent.batch);
        for batch in in_flight.chain(&mut self.queue).filter(|batch| batch.keep == Keep::Asked(ticket)) {
            batch.keep = keep;
        }
    }

    /// Identities that the disk did not take are to be kept after all. True if there are any.
    pub(super) fn keep_again(&mut self) -> bool {
        let in_flight = self.in_flight.iter_mut().map(|sent| &mut sent.batch);
        let mut any = false;
        for batch in in_flight.chain(&mut self.queue).filter(|batch| batch.keep == Keep::Failed) {
            batch.keep = Keep::No;
            any = true;
        }
        any
    }

    /// When the oldest record came that is not stored.
    pub fn oldest_unstored(&self) -> Option<Instant> {
        let sent = self.in_flight.iter().map(|sent| &sent.batch);
        let sealed = sent.chain(&self.queue).find(|batch| !batch.is_stored()).map(|batch| batch.opened_at);
        let open = || self.open.as_ref().filter(|open| !open.is_stored()).map(|open| open.opened_at);
        sealed.or_else(open)
    }

    /// Takes out what was never sent and is not stored, in order.
    pub fn take_unsent(&mut self, codec: Compression) -> Vec<(Record, T)> {
        if self.open.as_ref().is_some_and(|open| !open.is_stored()) {
            self.seal_open(codec);
        }
        let unsent = |batch: &Batch<T>| {
            !batch.is_stored() && batch.identity.is_none() && !batch.uncertain && batch.refusal.is_none()
        };
        let kept = self.queue.len() - self.queue.iter().rev().take_while(|batch| unsent(batch)).count();
        let taken = self.queue.split_off(kept);
        let mut records = Vec::new();
        for batch in taken {
            self.queued_bytes -= batch.records.encoded_bytes();
            let read = batch.records.records().expect("a batch that was sealed here can be read back");
            records.extend(read.into_iter().zip(batch.tags));
        }
        records
    }

    /// All that waits or is in flight, with the records, for a partition that is no more.
    pub fn into_records(mut self) -> Vec<(Record, T)> {
        self.seal_open(Compression::None);
        let batches = self.in_flight.iter().map(|sent| &sent.batch).chain(&self.queue);
        let records: Vec<Record> = batches
            .flat_map(|batch| batch.records.records().expect("a batch that was sealed here can be read back"))
            .collect();
        records.into_iter().zip(self.abandon()).collect()
    }

    /// Lends each batch that was sent and is not stored, in order, to be copied to the spool.
    pub fn copy_sent(
        &mut self,
        codec: Compression,
        mut lend: impl FnMut(&SealedBatch, Option<Identity>, &mut [T]),
    ) {
        // Records of a partition that is no more were placed here anew.
        if self.open.as_ref().is_some_and(|open| !open.is_stored()) {
            self.seal_open(codec);
        }
        let sent = self.in_flight.iter_mut().map(|sent| &mut sent.batch);
        for batch in sent.chain(&mut self.queue).filter(|batch| !batch.is_stored()) {
            batch.copied = Some(batch.identity.unwrap_or(Identity::NONE));
            lend(&batch.records, batch.identity, &mut batch.tags);
        }
    }

    /// The copies are on the disk: lends every tag, to be made one of a stored record.
    pub fn convert(&mut self, mut lend: impl FnMut(&mut T)) {
        self.copying = false;
        let sent = self.in_flight.iter_mut().map(|sent| &mut sent.batch);
        for batch in sent.chain(&mut self.queue) {
            batch.tags.iter_mut().for_each(&mut lend);
            if let Some(copied) = batch.copied.take()
                && batch.identity == Some(copied)
            {
                batch.keep = Keep::Yes;
            }
        }
    }
}
