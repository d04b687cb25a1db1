//! Reading the partition itself, where its leader no longer knows what our producer has written: the headers of the batches
//! in the log say whose they are.
//!
//! ```text
//! asked, unknown -> ListOffsets, the end -> [ListOffsets by time] -> Fetch ... Fetch -> the end
//!                                            no offset is known             |
//!                                                                           v
//!                                         found: delivered, with all before it; not found: sent again under the same identity
//! ```
//!
//! Invariants:
//! - the leader is one and the same from the first answer to the last; with another one it begins anew;
//! - the end is asked for, not taken from Fetch: the high watermark of a new leader may lie below what it has taken over from the
//!   one before. Fetch says nothing of that; ListOffsets is refused meanwhile (KIP-207, Kafka 2.2; 78, or 5 to old versions);
//! - only what is replicated is given out by Fetch, so what is found is safe.

use std::time::Instant;

use bytes::Bytes;

use super::Tag;
use super::batch::Batch;
use super::partition::{FORGOTTEN_FROM_MS, Partition, Step, View};
use super::recovery::Recovery;
use super::search::Search;
use crate::kafka::protocol::{
    FetchPartition, FetchRequest, ListOffsetsRequest, OffsetAt, Request, TopicName,
};
use crate::kafka::record_batch::{NO_TIMESTAMP, decode_batches};

/// One answer brings this much, or one batch if that is larger.
const READ_BYTES_MAX: i32 = 1 << 20;
/// Where a time is all that is known, so much earlier is begun: the topic may have the broker's times
/// (message.timestamp.type), whose clock is another.
const CLOCKS_DIFFER_MS: i64 = 5 * 60 * 1000;
/// Where everything is to be read, so many offsets before the end are enough: what is looked for is young, and a partition may hold
/// days of reading for a slow uplink.
const EVERYTHING_OFFSETS_MAX: i64 = 1_000_000;

/// What the partition wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Where to begin.
    Offset(OffsetAt),
    /// Batches from this offset on.
    From(i64),
}

/// Why a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The leader knows nothing of the producer, or of its epoch.
    Forgotten,
    /// The leader cannot be asked. `lost`: it has refused a sequence, so what is not found gets another identity.
    Unasked { lost: bool },
    /// Only the end is looked for: see [`super::search`].
    Search,
}

/// How far a partition has been read back.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadBack {
    why: Why,
    /// An offset that what is looked for lies behind; -1 if none is known.
    after: i64,
    /// Where to go on; None until that is known.
    next: Option<i64>,
    /// The oldest offset known is not in the log, so it is looked for by time.
    out_of_range: bool,
    /// The first offset of the log, where it was asked for.
    log_start: Option<i64>,
    /// The time of the records may not be the one that they have in the log.
    odd_time: bool,
    /// By time nothing was found: everything is read.
    everything: bool,
    /// The high watermark before anything was read.
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
    pub(super) fn begin_reading(&mut self, why: Why) {
        let after = self.ours().next().map_or(-1, |oldest| oldest.after_offset);
        // What this process was acknowledged lies before it too, and is the younger news: the topic may have been made anew.
        let known = self.acknowledged_offset;
        let after = if known < 0 { after } else { after.min(known) };
        if let Some(recovery) = &mut self.recovery {
            recovery.reading = Some(ReadBack {
                why,
                after,
                next: None,
                out_of_range: false,
                log_start: None,
                odd_time: false,
                everything: false,
                end: None,
                found: 0,
                found_at: -1,
            });
        }
    }

    /// The next request of a read-back; None if none is under way.
    pub(super) fn read_step(&mut self, view: &View) -> Option<Step> {
        let oldest = self.ours().next().map(|batch| batch.records.first_timestamp_ms());
        let reading = self.recovery.as_mut()?.reading.as_mut()?;
        if !view.may_read && reading.why != Why::Search {
            return Some(Step::CannotRead);
        }
        let time_ms = oldest.unwrap_or(NO_TIMESTAMP);
        reading.odd_time = view.wall_ms.is_some_and(|now| is_odd(time_ms, now));
        Some(Step::ReadBack(reading.wanted(time_ms)))
    }

    /// The answer to [`Read::Offset`].
    pub(super) fn offset_answer(&mut self, ticket: u64, offset: i64, delivered: &mut Vec<T>) {
        let Some(reading) = self.answered(ticket) else { return };
        if reading.end.is_none() {
            reading.end = Some(offset.max(0));
            if reading.why == Why::Search {
                self.search = self.search.map(|search| search.up_to(offset.max(0)));
                self.recovery.iter_mut().for_each(|recovery| recovery.reading = None);
            }
        } else if reading.wants_log_start() {
            reading.log_start = Some(offset.max(0));
        } else if offset < 0 {
            // Nothing is there that is young enough.
            self.end_reading(delivered);
        } else {
            reading.next = Some(offset);
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
        let end = reading.end.unwrap_or(fetched.high_watermark);
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
        let is_end = reading.position() >= end || reading.found == self.ours().count();
        let is_stuck = !is_end && reading.next == before;
        if is_stuck {
            // A quota, or a replica that is behind; or the end is that of a topic that is no more.
            reading.end = None;
        }
        let retry = self.retry.next_delay(random);
        let Some(recovery) = &mut self.recovery else { return };
        recovery.reading = Some(reading);
        if is_end {
            self.retry.reset();
            self.end_reading(delivered);
        } else if is_stuck {
            recovery.not_before = now + retry;
        } else {
            self.retry.reset();
        }
    }

    /// The offset is not in the log: it was deleted meanwhile, or the topic was made anew.
    pub(super) fn out_of_range(&mut self, ticket: u64, now: Instant, random: f64) {
        let Some(reading) = self.answered(ticket) else { return };
        let again = std::mem::replace(&mut reading.out_of_range, true);
        (reading.next, reading.end) = (None, None);
        if again {
            self.retry_recovery(now, random);
        }
    }

    /// Reading is refused: what is not known to be written is sent again.
    pub(super) fn cannot_read(&mut self) {
        let Some(recovery) = self.recovery.take_if(|recovery| recovery.reading.is_some()) else { return };
        match recovery.reading.map(|reading| reading.why) {
            Some(Why::Unasked { .. }) if !recovery.retire => {
                self.search_instead(recovery);
            }
            Some(Why::Forgotten) if !recovery.retire => self.tell_repeats(),
            _ => self.give_up(),
        }
    }

    fn search_instead(&mut self, recovery: Recovery) {
        self.search = Some(Search::default());
        self.recovery = Some(Recovery { reading: None, ..recovery });
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
        let Some(mut recovery) = self.recovery.take() else { return };
        let Some(reading) = recovery.reading else { return };
        if reading.may_lie_before() {
            recovery.reading = Some(ReadBack { everything: true, next: None, ..reading });
            self.recovery = Some(recovery);
            return;
        }
        if reading.is_contradicted() && !recovery.retire {
            return self.search_instead(recovery);
        }
        for _ in 0..reading.found {
            if let Some(batch) = self.pop_queue() {
                delivered.extend(batch.tags);
            }
        }
        if reading.found_at >= 0 {
            self.acknowledged_offset = reading.found_at;
        }
        if reading.may_be_deleted() {
            self.tell_repeats();
        }
        if recovery.retire || reading.why == (Why::Unasked { lost: true }) {
            self.retire();
        }
    }
}

impl ReadBack {
    fn wanted(&self, time_ms: i64) -> Read {
        match self.next {
            _ if self.end.is_none() => Read::Offset(OffsetAt::Latest),
            Some(offset) => Read::From(offset),
            None if self.wants_log_start() => Read::Offset(OffsetAt::Earliest),
            None if self.everything || (self.after >= 0 && !self.out_of_range) => Read::From(self.position()),
            None => Read::Offset(begin_of(time_ms)),
        }
    }

    /// Up to here it is read.
    fn position(&self) -> i64 {
        let begin =
            self.log_start.filter(|_| self.everything).map_or(self.after, |start| start.max(self.late()));
        self.next.unwrap_or(begin)
    }

    /// Where a reading of everything begins at the earliest.
    fn late(&self) -> i64 {
        self.end.unwrap_or_default().saturating_sub(EVERYTHING_OFFSETS_MAX)
    }

    fn wants_log_start(&self) -> bool {
        self.log_start.is_none() && (self.everything || (self.out_of_range && self.after >= 0))
    }

    /// It was not found, and was looked for by a time only that it need not have in the log.
    fn may_lie_before(&self) -> bool {
        let by_time = self.after < 0 || self.out_of_range;
        by_time && self.odd_time && self.found == 0 && !self.everything && self.why == Why::Forgotten
    }

    /// The leader has refused a sequence, so it knows the producer, and nothing of it was found by time.
    fn is_contradicted(&self) -> bool {
        let by_time = self.after < 0 || self.out_of_range;
        by_time && self.found == 0 && self.why == (Why::Unasked { lost: true })
    }

    /// What is behind the offset that was known is not in the log any more, or what was to be read is too much.
    fn may_be_deleted(&self) -> bool {
        if self.everything && self.found == 0 && self.log_start.is_some_and(|start| start < self.late()) {
            return true;
        }
        let is_trusted = self.why == (Why::Unasked { lost: false });
        !is_trusted
            && self.out_of_range
            && self.after >= 0
            && self.log_start.is_some_and(|start| start > self.after + 1)
    }
}

/// Where a batch can lie of which nothing but its time is known.
fn begin_of(time_ms: i64) -> OffsetAt {
    match time_ms {
        NO_TIMESTAMP => OffsetAt::Earliest,
        time_ms => OffsetAt::Timestamp(time_ms.saturating_sub(CLOCKS_DIFFER_MS).max(0)),
    }
}

/// True if the log may have another time for it. A topic with the broker's times has, and if our clock is fast, an earlier one.
/// There the leader remembers a producer for a day (producer.id.expiration.ms) whatever our clock says: if it has forgotten it,
/// the record is old.
fn is_odd(time_ms: i64, now_ms: i64) -> bool {
    let age = now_ms.saturating_sub(time_ms);
    time_ms != NO_TIMESTAMP && !(-CLOCKS_DIFFER_MS..=FORGOTTEN_FROM_MS).contains(&age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_large_partition_the_end_is_read_and_the_rest_may_hold_it() {
        let reading = ReadBack {
            why: Why::Forgotten,
            after: -1,
            next: None,
            out_of_range: false,
            log_start: Some(7),
            odd_time: true,
            everything: true,
            end: Some(5_000_000),
            found: 0,
            found_at: -1,
        };
        assert!(matches!(reading.wanted(0), Read::From(4_000_000)));
        assert!(reading.may_be_deleted());
        let small = ReadBack { end: Some(1_000_000), ..reading };
        assert!(matches!(small.wanted(0), Read::From(7)) && !small.may_be_deleted());
    }
}
