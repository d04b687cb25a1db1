//! Reading batches: from a fetch response, from our own sealed batches, from a fuzzer.

use bytes::Bytes;

use super::{CONTROL, HEADER_BYTES, Identity, LENGTH_END, LOG_APPEND_TIME, MAGIC, Record, TRANSACTIONAL, at};
use crate::kafka::compression::{Compression, CompressionError};

/// The most that the records of one fetched batch may become when decompressed, bytes. Brokers take batches of
/// 1 MiB unless told otherwise; this is room for the largest settings in use, and the end of a bomb.
pub const DECOMPRESSED_BYTES_MAX: usize = 128 << 20;

/// The smallest record: length, attributes, two deltas, null key, null value, no headers.
const RECORD_BYTES_MIN: usize = 7;

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The batch is older than Kafka 0.11 writes: skip it, or convert the topic.
    #[error("record batch at offset {offset} has format {magic}, only format 2 is supported")]
    UnsupportedFormat {
        /// Base offset of the batch.
        offset: i64,
        /// Its magic byte.
        magic: u8,
    },
    /// The checksum does not match: damaged on the broker's disk or on the way. Fetch again, or skip it.
    #[error("record batch at offset {offset} is damaged: its checksum is wrong")]
    WrongChecksum {
        /// Base offset of the batch.
        offset: i64,
    },
    /// The bytes are no record batch.
    #[error("record batch at offset {offset} is malformed: {what}")]
    Malformed {
        /// Base offset of the batch.
        offset: i64,
        /// What is wrong.
        what: &'static str,
    },
    /// The records cannot be decompressed.
    #[error("records of the batch at offset {offset} cannot be decompressed")]
    Compression {
        /// Base offset of the batch.
        offset: i64,
        /// Why.
        #[source]
        source: CompressionError,
    },
}

impl DecodeError {
    /// Base offset of the batch.
    pub fn offset(&self) -> i64 {
        match self {
            DecodeError::UnsupportedFormat { offset, .. }
            | DecodeError::WrongChecksum { offset }
            | DecodeError::Malformed { offset, .. }
            | DecodeError::Compression { offset, .. } => *offset,
        }
    }
}

/// A batch whose header was read and whose checksum is right. Its records are decoded when asked for.
#[derive(Debug, Clone)]
pub struct DecodedBatch {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of the last record, whether compaction left it or not, minus the first.
    pub last_offset_delta: i32,
    /// Who wrote it, with which sequence.
    pub identity: Identity,
    /// Number of records.
    pub count: i32,
    /// The records are markers of the transaction coordinator, not data.
    pub is_control: bool,
    /// Part of a transaction, which may have been aborted.
    pub is_transactional: bool,
    /// The newest timestamp, milliseconds since the Unix epoch.
    pub max_timestamp_ms: i64,
    compression_attributes: i16,
    log_append_time: bool,
    first_timestamp_ms: i64,
    body: Bytes,
}

impl DecodedBatch {
    /// The offset behind the batch: where the next one begins.
    pub fn next_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta)).saturating_add(1)
    }

    /// The records, as slices of the fetched bytes where the batch is not compressed.
    ///
    /// # Errors
    /// The records are malformed, compressed by a codec this client does not have, or larger than
    /// [`DECOMPRESSED_BYTES_MAX`].
    pub fn records(&self) -> Result<Vec<Record>, DecodeError> {
        let compression = Compression::from_attributes(self.compression_attributes)
            .map_err(|source| DecodeError::Compression { offset: self.base_offset, source })?;
        RecordsBody {
            bytes: self.body.clone(),
            compression,
            decompressed_bytes_max: DECOMPRESSED_BYTES_MAX,
            count: self.count,
            base_offset: self.base_offset,
            first_timestamp_ms: self.first_timestamp_ms,
            append_time_ms: self.log_append_time.then_some(self.max_timestamp_ms),
        }
        .records()
    }
}

/// The batches of a fetch response, in order. A last batch that is cut short is skipped (a broker fills the byte
/// limit of a fetch to the brim). A batch that cannot be read is an error and the next one follows it, unless
/// its length is no length: then the error is the last item.
pub fn decode_batches(bytes: Bytes) -> impl Iterator<Item = Result<DecodedBatch, DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let offset = i64::from_be_bytes(field(&rest, 0)?);
        let length = i32::from_be_bytes(field(&rest, at::LENGTH)?);
        let magic = u8::from_be_bytes(field(&rest, at::MAGIC)?);
        // The smallest message of the old formats counts 14 bytes; less cannot be stepped over safely.
        let Some(length) = usize::try_from(length).ok().filter(|length| *length >= 14) else {
            rest.clear();
            return Some(Err(DecodeError::Malformed { offset, what: "its length is too small" }));
        };
        let end = length.saturating_add(LENGTH_END);
        if end > rest.len() {
            rest.clear();
            return None;
        }
        let batch = rest.split_to(end);
        Some(decode_batch(offset, magic, batch))
    })
}

fn decode_batch(base_offset: i64, magic: u8, batch: Bytes) -> Result<DecodedBatch, DecodeError> {
    if magic != MAGIC {
        return Err(DecodeError::UnsupportedFormat { offset: base_offset, magic });
    }
    let short = || DecodeError::Malformed { offset: base_offset, what: "it is shorter than its header" };
    if batch.len() < HEADER_BYTES {
        return Err(short());
    }
    let crc = u32::from_be_bytes(field(&batch, at::CRC).ok_or_else(short)?);
    if crc != crc32c::crc32c(batch.get(at::ATTRIBUTES..).ok_or_else(short)?) {
        return Err(DecodeError::WrongChecksum { offset: base_offset });
    }
    let attributes = i16::from_be_bytes(field(&batch, at::ATTRIBUTES).ok_or_else(short)?);
    let last_offset_delta = i32::from_be_bytes(field(&batch, at::LAST_OFFSET_DELTA).ok_or_else(short)?);
    if base_offset < 0 || last_offset_delta < 0 {
        return Err(DecodeError::Malformed { offset: base_offset, what: "its offsets are negative" });
    }
    Ok(DecodedBatch {
        base_offset,
        last_offset_delta,
        identity: Identity {
            producer_id: i64::from_be_bytes(field(&batch, at::PRODUCER_ID).ok_or_else(short)?),
            producer_epoch: i16::from_be_bytes(field(&batch, at::PRODUCER_EPOCH).ok_or_else(short)?),
            base_sequence: i32::from_be_bytes(field(&batch, at::BASE_SEQUENCE).ok_or_else(short)?),
        },
        count: i32::from_be_bytes(field(&batch, at::COUNT).ok_or_else(short)?),
        is_control: attributes & CONTROL != 0,
        is_transactional: attributes & TRANSACTIONAL != 0,
        max_timestamp_ms: i64::from_be_bytes(field(&batch, at::MAX_TIMESTAMP).ok_or_else(short)?),
        compression_attributes: attributes,
        log_append_time: attributes & LOG_APPEND_TIME != 0,
        first_timestamp_ms: i64::from_be_bytes(field(&batch, at::FIRST_TIMESTAMP).ok_or_else(short)?),
        body: batch.slice(HEADER_BYTES..),
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The records of a batch and what their deltas are relative to.
pub(super) struct RecordsBody {
    pub bytes: Bytes,
    pub compression: Compression,
    pub decompressed_bytes_max: usize,
    pub count: i32,
    pub base_offset: i64,
    pub first_timestamp_ms: i64,
    /// Set by the broker for all records of the batch.
    pub append_time_ms: Option<i64>,
}

impl RecordsBody {
    pub fn records(self) -> Result<Vec<Record>, DecodeError> {
        let offset = self.base_offset;
        let bytes = self
            .compression
            .decompress(&self.bytes, self.decompressed_bytes_max)
            .map_err(|source| DecodeError::Compression { offset, source })?;
        let count = usize::try_from(self.count)
            .map_err(|_| DecodeError::Malformed { offset, what: "its number of records is negative" })?;
        // The bytes that are there bound the allocation, not the number that is announced.
        let mut records = Vec::with_capacity(count.min(bytes.len() / RECORD_BYTES_MIN));
        let mut cursor = Cursor { rest: bytes };
        for _ in 0..count {
            let record = self.record(&mut cursor).ok_or(DecodeError::Malformed {
                offset,
                what: "a record is cut short or has a wrong length",
            })?;
            records.push(record);
        }
        if !cursor.rest.is_empty() {
            return Err(DecodeError::Malformed { offset, what: "bytes are left behind its last record" });
        }
        Ok(records)
    }

    fn record(&self, cursor: &mut Cursor) -> Option<Record> {
        let length = cursor.length()?;
        let mut cursor = Cursor { rest: cursor.take(length)? };
        cursor.take(1)?; // attributes of the record: none are defined
        let timestamp_delta_ms = cursor.varint()?;
        let offset_delta = cursor.varint()?;
        let key = cursor.nullable()?;
        let value = cursor.nullable()?;
        let header_count = cursor.length()?;
        let mut headers = Vec::new();
        for _ in 0..header_count {
            let name = cursor.nullable()??;
            let value = cursor.nullable()?;
            headers.push((String::from_utf8_lossy(&name).into_owned(), value));
        }
        cursor.rest.is_empty().then(|| Record {
            key,
            value,
            headers,
            timestamp_ms: self
                .append_time_ms
                .unwrap_or_else(|| self.first_timestamp_ms.wrapping_add(timestamp_delta_ms)),
            offset: self.base_offset.wrapping_add(offset_delta),
        })
    }
}

/// Reads varints and slices; None at the first thing that does not fit.
struct Cursor {
    rest: Bytes,
}

impl Cursor {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.rest.len()).then(|| self.rest.split_to(length))
    }

    fn varint(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let _ = self.rest.split_to(index + 1);
                return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    /// The outer None is an error, the inner one is null.
    fn nullable(&mut self) -> Option<Option<Bytes>> {
        match self.varint()? {
            -1 => Some(None),
            length => Some(Some(self.take(usize::try_from(length).ok()?)?)),
        }
    }
}
