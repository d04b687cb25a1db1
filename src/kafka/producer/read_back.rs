//! Reading the partition itself, where its leader no longer knows what our producer has written: the headers of the batches
//! in the log say whose they are.
//!
//! ```text
//! asked, unknown -> [ListOffsets by time] -> Fetch ... Fetch -> the end that the first answer named
//!                    no offset is known                 |
//!                                                       v
//!                     found: delivered, with all before it; not found: sent again under the same identity
//! ```
//!
//! Invariant: the leader is one and the same from the first answer to the last; with another one it begins anew. Only what is
//! replicated is given out by Fetch, so what is found is safe.

use std::time::Instant;

use bytes::Bytes;

use super::Tag;
use super::batch::Batch;
use super::partition::{Notice, Partition, Step, View};
use crate::kafka::protocol::{
    FetchPartition, FetchRequest, ListOffsetsRequest, OffsetAt, Request, TopicName,
};
use crate::kafka::record_batch::{NO_TIMESTAMP, decode_batches};

/// One answer brings this much, or one batch if that is larger.
const READ_BYTES_MAX: i32 = 1 << 20;
/// Where a time is all that is known, so much earlier is begun: the topic may have the broker's times
/// (message.timestamp.type), whose clock is another.
const CLOCKS_DIFFER_MS: i64 = 5 * 60 * 1000;

/// What the partition wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Where to begin.
    Offset(OffsetAt),
    /// Batches from this offset on.
    From(i64),
}

/// How far a partition has been read back.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ReadBack {
    /// Where to go on; None until that is known.
    next: Option<i64>,
    /// The oldest offset known was of no use, so it is looked for by time.
    by_time: bool,
    /// The high watermark of the first answer.
    end: Option<i64>,
    /// How many batches of the queue are known to be written.
    found: usize,
    /// The highest offset at which one was found.
    found_at: i64,
}

/// One answer of [`Read::From`].
pub(super) struct Fetched {
    pub high_watermark: i64,
    pub records: Bytes,
}

impl Read {
    /// The request for one partition.
    pub fn request(self, topic: TopicName, partition: i32) -> Request {
        match self {
            Read::Offset(at) => {
                Request::ListOffsets(ListOffsetsRequest { partitions: vec![(topic, partition)], at })
            }
            // What is there is there: nothing is waited for.
            Read::From(offset) => Request::Fetch(FetchRequest {
                max_wait_ms: 0,
                min_bytes: 0,
                max_bytes: READ_BYTES_MAX,
                partitions: vec![FetchPartition { topic, partition, offset, max_bytes: READ_BYTES_MAX }],
            }),
        }
    }
}

impl<T: Tag> Partition<T> {
    /// Begins to read back.
    pub(super) fn begin_reading(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.reading = Some(ReadBack { found_at: -1, ..ReadBack::default() });
        }
    }

    /// The next request of a read-back; None if none is under way.
    pub(super) fn read_step(&self, view: &View) -> Option<Step> {
        let reading = self.recovery.as_ref()?.reading?;
        if !view.may_read {
            return Some(Step::CannotRead);
        }
        let oldest = self.ours().next();
        let after = oldest.map_or(-1, |batch| batch.after_offset);
        let read = match reading.next {
            Some(offset) => Read::From(offset),
            None if after >= 0 && !reading.by_time => Read::From(after),
            None => Read::Offset(oldest.map_or(OffsetAt::Earliest, begin_of)),
        };
        Some(Step::ReadBack(read))
    }

    /// The answer to [`Read::Offset`].
    pub(super) fn offset_answer(&mut self, ticket: u64, offset: i64, delivered: &mut Vec<T>) {
        let Some(reading) = self.answered(ticket) else { return };
        reading.next = Some(offset);
        if offset < 0 {
            // Nothing is there that is young enough.
            self.end_reading(delivered);
        }
    }

    /// The answer to [`Read::From`].
    pub(super) fn read_answer(
        &mut self,
        ticket: u64,
        fetched: Fetched,
        now: Instant,
        random: f64,
        delivered: &mut Vec<T>,
    ) {
        let Some(reading) = self.answered(ticket) else { return };
        let mut reading = *reading;
        let end = reading.end.unwrap_or(fetched.high_watermark).min(fetched.high_watermark);
        reading.end = Some(end);
        let before = reading.next;
        for batch in decode_batches(fetched.records) {
            let behind = match &batch {
                Ok(batch) => batch.next_offset(),
                // Damaged, or of a time before identities: stepped over.
                Err(error) => error.offset().saturating_add(1),
            };
            reading.next = reading.next.max(Some(behind));
            let Ok(batch) = batch else { continue };
            // Compaction may have thinned the records out; the offsets still tell how many there were.
            let records = batch.last_offset_delta.saturating_add(1);
            let same =
                |ours: &Batch<T>| ours.identity == Some(batch.identity) && ours.identified_records == records;
            if let Some(at) = self.ours().position(same) {
                reading.found = reading.found.max(at + 1);
                reading.found_at = batch.base_offset;
            }
        }
        let start = self.ours().next().map_or(0, |batch| batch.after_offset);
        let is_end = reading.next.unwrap_or(start) >= end || reading.found == self.ours().count();
        let retry = self.retry.next_delay(random);
        let Some(recovery) = &mut self.recovery else { return };
        recovery.reading = Some(reading);
        if is_end {
            self.retry.reset();
            self.end_reading(delivered);
        } else if reading.next == before {
            // A quota, or a replica that is behind.
            recovery.not_before = now + retry;
        } else {
            self.retry.reset();
        }
    }

    /// The offset is not in the log: it was deleted meanwhile, or the topic was made anew.
    pub(super) fn out_of_range(&mut self, ticket: u64, now: Instant, random: f64) {
        let Some(reading) = self.answered(ticket) else { return };
        let again = std::mem::replace(&mut reading.by_time, true);
        reading.next = None;
        if again {
            self.retry_recovery(now, random);
        }
    }

    /// Reading is refused: what is not known to be written is sent again.
    pub(super) fn cannot_read(&mut self) {
        if let Some(recovery) = self.recovery.take_if(|recovery| recovery.reading.is_some()) {
            if recovery.retire {
                self.retire();
            }
            self.notices.push(Notice::MayRepeat);
        }
    }

    /// As [`Partition::cannot_read`], told by an answer.
    pub(super) fn read_denied(&mut self, ticket: u64) {
        if self.answered(ticket).is_some() {
            self.cannot_read();
        }
    }

    /// The read-back whose request had this ticket; it is not waited for any more.
    fn answered(&mut self, ticket: u64) -> Option<&mut ReadBack> {
        let recovery = self.recovery.as_mut().filter(|recovery| recovery.asked == Some(ticket))?;
        recovery.asked = None;
        recovery.reading.as_mut()
    }

    fn end_reading(&mut self, delivered: &mut Vec<T>) {
        let Some(recovery) = self.recovery.take() else { return };
        let (found, found_at) = recovery.reading.map_or((0, -1), |reading| (reading.found, reading.found_at));
        for _ in 0..found {
            if let Some(batch) = self.pop_queue() {
                delivered.extend(batch.tags);
            }
        }
        self.acknowledged_offset = self.acknowledged_offset.max(found_at);
        if recovery.retire {
            self.retire();
        }
    }
}

/// Where a batch can lie of which nothing but its time is known.
fn begin_of<T>(batch: &Batch<T>) -> OffsetAt {
    match batch.records.first_timestamp_ms() {
        NO_TIMESTAMP => OffsetAt::Earliest,
        time_ms => OffsetAt::Timestamp(time_ms.saturating_sub(CLOCKS_DIFFER_MS).max(0)),
    }
}
