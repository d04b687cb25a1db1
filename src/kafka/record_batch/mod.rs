//! Record batches, format v2: what is written to Kafka and read from it.
//!
//! Source: KIP-98 and <https://kafka.apache.org/documentation/#recordbatch>.
//!
//! ```text
//!  0 base offset         i64      27 first timestamp     i64
//!  8 batch length        i32      35 max timestamp       i64
//! 12 leader epoch        i32      43 producer id         i64
//! 16 magic = 2           i8       51 producer epoch      i16
//! 17 CRC32C of the rest  u32      53 base sequence       i32
//! 21 attributes          i16      57 record count        i32
//! 23 last offset delta   i32      61 records, together compressed or not
//!
//! record: length, attributes i8, timestamp delta, offset delta, key, value, header count, (name, value)*
//!         (every number a zigzag varint; bytes are length and content, length -1 is null)
//! ```
//!
//! This module knows nothing of sockets, topics or partitions. Invariants:
//! - a sealed batch keeps its records and their number for life, so that the same identity always stands for the
//!   same bytes (design: exact replay);
//! - a length or count found on the wire never sizes an allocation, and no input panics;
//! - header names may repeat and keep their order.

mod decode;
mod encode;

pub use decode::{DECOMPRESSED_BYTES_MAX, DecodeError, DecodedBatch, decode_batches};
pub use encode::{BatchBuilder, SealedBatch};

use bytes::Bytes;

/// Size of the header of a batch, bytes.
pub const HEADER_BYTES: usize = 61;

/// Where the fields of the header begin.
mod at {
    pub const LENGTH: usize = 8;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_OFFSET_DELTA: usize = 23;
    pub const FIRST_TIMESTAMP: usize = 27;
    pub const MAX_TIMESTAMP: usize = 35;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const BASE_SEQUENCE: usize = 53;
    pub const COUNT: usize = 57;
}

/// The time of a record that has none; brokers take it whatever times they refuse.
pub const NO_TIMESTAMP: i64 = -1;

/// The magic byte of format v2.
const MAGIC: u8 = 2;
/// Bytes that the length field does not count: itself and the base offset.
const LENGTH_END: usize = 12;
/// Attribute bit: the broker set the timestamps (the topic has message.timestamp.type=LogAppendTime).
const LOG_APPEND_TIME: i16 = 1 << 3;
/// Attribute bit: part of a transaction.
const TRANSACTIONAL: i16 = 1 << 4;
/// Attribute bit: the records are markers of the transaction coordinator, not data.
const CONTROL: i16 = 1 << 5;

/// A record to be appended; borrowed, so that appending copies it once.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Key; decides partition and compaction.
    pub key: Option<&'a [u8]>,
    /// Value; None is a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Headers in order; names may repeat.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Create time, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Headers in order. A name that is not UTF-8 is read with replacement characters, as the Java client does.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Create time, or the broker's append time if the topic says so; milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Offset in the partition; in a batch that was not sent yet: index in the batch.
    pub offset: i64,
}

/// What makes the broker recognise a batch that is sent again (KIP-98). Together with the number of records it is
/// given once, before the batch is first sent, and never to another batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Producer id; -1 without idempotence.
    pub producer_id: i64,
    /// Producer epoch; -1 without idempotence.
    pub producer_epoch: i16,
    /// Sequence of the first record in its partition; -1 without idempotence.
    pub base_sequence: i32,
}

impl Identity {
    /// A batch that is not deduplicated.
    pub const NONE: Identity = Identity { producer_id: -1, producer_epoch: -1, base_sequence: -1 };
}

/// The sequence after a batch of `count` records that begins at `base`: behind `i32::MAX` comes 0.
pub fn next_sequence(base: i32, count: i32) -> i32 {
    let next = (i64::from(base) + i64::from(count)).rem_euclid(1 << 31);
    i32::try_from(next).expect("a number below 2^31 is an i32")
}

/// Lends an owned record. A null header value, which tidegate never writes, becomes an empty one.
pub fn with_record_ref<R>(record: &Record, use_it: impl FnOnce(&RecordRef<'_>) -> R) -> R {
    let empty: &[u8] = &[];
    let headers: Vec<(&str, &[u8])> = record
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or(empty)))
        .collect();
    use_it(&RecordRef {
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: &headers,
        timestamp_ms: record.timestamp_ms,
    })
}

#[cfg(test)]
mod tests;
