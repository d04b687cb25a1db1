//! One batch on its way: its records, who waits for each of them, and its identity.
//!
//! Invariants:
//! - `tags` has one entry for each record, in the order of the records;
//! - an identity is given once, before the first sending, and kept for life. It is taken away only when it is
//!   certain that nothing of the batch was written (see [`super::partition`]).

use std::time::Instant;

use super::Tag;
use super::partition::ProducerId;
use crate::kafka::compression::Compression;
use crate::kafka::error::ErrorCode;
use crate::kafka::record_batch::{
    BatchBuilder, Identity, NO_TIMESTAMP, Record, RecordRef, SealedBatch, next_sequence, with_record_ref,
};

/// A sealed batch.
#[derive(Debug)]
pub(super) struct Batch<T> {
    /// The records, compressed.
    pub records: SealedBatch,
    /// Who waits for each record.
    pub tags: Vec<T>,
    /// Producer id, epoch and base sequence; None until it is about to be sent for the first time.
    pub identity: Option<Identity>,
    /// Set when the broker refused the batch for what it holds: nothing of it was written.
    pub refusal: Option<Refusal>,
    /// Set when an attempt ended without an answer, so that the batch may have been written.
    pub uncertain: bool,
    /// When its first record came.
    pub opened_at: Instant,
    /// How many records the identity stands for. More than there are where some were lost from the spool: then the
    /// batch cannot be sent with it.
    pub identified_records: i32,
    /// Whether the identity is on the disk, for a batch that is in the spool.
    pub keep: Keep,
    /// It was copied to the spool with this identity, and the copy is not known to be on the disk yet.
    pub copied: Option<Identity>,
    /// An offset of the partition that it lies behind, if it was written; -1 if none is known.
    pub after_offset: i64,
}

/// Where the identity of a batch is kept; see [`Batch::needs_keeping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// In memory only.
    No,
    /// On its way to the disk, under this ticket.
    Asked(u64),
    /// On the disk.
    Yes,
    /// The disk did not take it: sent without, and to be asked again.
    Failed,
}

/// Why a broker refused a batch for what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Kafka error code.
    pub code: i16,
    /// Indices of the culprits where the broker names them (KIP-467), with its words.
    pub culprits: Vec<(i32, Option<String>)>,
    /// The broker's words on the whole batch.
    pub message: Option<String>,
}

/// A record that Kafka will never take.
#[derive(Debug)]
pub(super) struct Culprit<T> {
    pub tag: T,
    pub record: Record,
    pub reason: Option<String>,
}

/// What is left of a refused batch: pieces to send again, and records to give up.
pub(super) struct Pieces<T> {
    pub batches: Vec<Batch<T>>,
    pub culprits: Vec<Culprit<T>>,
}

impl<T: Tag> Batch<T> {
    /// True if its records are in the spool. A batch holds stored records, or others, never both.
    pub fn is_stored(&self) -> bool {
        self.tags.first().is_some_and(|tag| tag.stored().is_some())
    }

    /// True if a copy of it with its present identity is on the way to the disk.
    pub fn is_copied(&self) -> bool {
        self.identity.is_some() && self.copied == self.identity
    }

    /// A stored batch may be sent by the next process, so its identity must be on the disk before it is sent, if the disk takes it.
    pub fn needs_keeping(&self) -> bool {
        matches!(self.keep, Keep::No | Keep::Asked(_)) && self.is_stored()
    }
}

impl<T> Batch<T> {
    /// First sequence behind this batch; None while it has no identity.
    pub fn end_sequence(&self) -> Option<i32> {
        self.identity.map(|identity| next_sequence(identity.base_sequence, self.identified_records))
    }

    /// The producer under which it was sent; None while it has no identity.
    pub fn producer(&self) -> Option<ProducerId> {
        self.identity.map(|of| ProducerId { id: of.producer_id, epoch: of.producer_epoch })
    }

    /// False where records are missing that its identity counts.
    pub fn is_whole(&self) -> bool {
        self.identified_records == self.records.count()
    }

    /// Takes the identity away: nothing was written under it.
    pub fn forget_identity(&mut self) {
        self.identity = None;
        self.identified_records = self.records.count();
        self.keep = Keep::No;
    }

    /// Takes a refused batch apart: named culprits are given up, an only record is the culprit, anything else is
    /// halved, so that the culprit is found in a logarithmic number of sendings while the order is kept. Records
    /// whose time alone is refused lose that and nothing else.
    ///
    /// # Errors
    /// The batch cannot be read back (it was encoded in this process, so its memory is damaged): the batch.
    pub fn take_apart(self, refusal: &Refusal, compression: Compression) -> Result<Pieces<T>, Box<Batch<T>>> {
        let Ok(records) = self.records.records() else { return Err(Box::new(self)) };
        if records.len() != self.tags.len() {
            return Err(Box::new(self));
        }
        let refuses_time = ErrorCode(refusal.code).refuses_time();
        if refuses_time && records.iter().any(|record| record.timestamp_ms != NO_TIMESTAMP) {
            let mut open = OpenBatch::new(self.opened_at);
            for (mut record, tag) in records.into_iter().zip(self.tags) {
                record.timestamp_ms = NO_TIMESTAMP;
                open.append_owned(&record, tag);
            }
            return Ok(Pieces { batches: vec![open.seal(compression)], culprits: Vec::new() });
        }
        let only = records.len() == 1;
        let half = records.len().div_ceil(2);
        let mut pieces = Pieces { batches: Vec::new(), culprits: Vec::new() };
        let mut open: Option<OpenBatch<T>> = None;
        for (index, (record, tag)) in records.into_iter().zip(self.tags).enumerate() {
            let named = refusal.culprits.iter().find(|(at, _)| usize::try_from(*at) == Ok(index));
            if only || named.is_some() {
                let reason = named.and_then(|(_, why)| why.clone()).or_else(|| refusal.message.clone());
                pieces.culprits.push(Culprit { tag, record, reason });
                continue;
            }
            if refusal.culprits.is_empty() && index == half {
                pieces.batches.extend(open.take().map(|batch| batch.seal(compression)));
            }
            open.get_or_insert_with(|| OpenBatch::new(self.opened_at)).append_owned(&record, tag);
        }
        pieces.batches.extend(open.take().map(|batch| batch.seal(compression)));
        Ok(pieces)
    }
}

/// The batch that records are still added to.
#[derive(Debug)]
pub(super) struct OpenBatch<T> {
    builder: BatchBuilder,
    tags: Vec<T>,
    /// When it was begun.
    pub opened_at: Instant,
}

impl<T: Tag> OpenBatch<T> {
    /// True if its records are in the spool.
    pub fn is_stored(&self) -> bool {
        self.tags.first().is_some_and(|tag| tag.stored().is_some())
    }
}

impl<T> OpenBatch<T> {
    /// An empty one.
    pub fn new(opened_at: Instant) -> Self {
        OpenBatch { builder: BatchBuilder::new(), tags: Vec::new(), opened_at }
    }

    /// True if the record fits into `limit_bytes`; an empty batch takes any record, since the broker alone knows
    /// what is too large.
    pub fn has_room(&self, record: &RecordRef<'_>, limit_bytes: usize) -> bool {
        self.tags.is_empty() || self.builder.encoded_bytes_with(record) <= limit_bytes
    }

    /// Adds a record.
    pub fn append(&mut self, record: &RecordRef<'_>, tag: T) {
        self.builder.append(record);
        self.tags.push(tag);
    }

    /// Encoded size so far, bytes.
    pub fn encoded_bytes(&self) -> usize {
        if self.tags.is_empty() { 0 } else { self.builder.encoded_bytes() }
    }

    /// Closes the batch.
    pub fn seal(self, compression: Compression) -> Batch<T> {
        let records = self.builder.seal(compression);
        Batch {
            identified_records: records.count(),
            records,
            tags: self.tags,
            identity: None,
            refusal: None,
            uncertain: false,
            opened_at: self.opened_at,
            keep: Keep::No,
            copied: None,
            after_offset: -1,
        }
    }

    /// The tags, for a process that stops.
    pub fn into_tags(self) -> Vec<T> {
        self.tags
    }

    /// Adds a record that is owned.
    pub fn append_owned(&mut self, record: &Record, tag: T) {
        with_record_ref(record, |record| self.builder.append(record));
        self.tags.push(tag);
    }
}
