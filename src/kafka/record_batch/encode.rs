//! Building batches: records straight into one buffer, sealed once, stamped with an identity when sent.

use bytes::Bytes;

use super::decode::{DecodeError, RecordsBody};
use super::{HEADER_BYTES, Identity, LENGTH_END, MAGIC, Record, RecordRef, at};
use crate::kafka::compression::Compression;

/// A batch that still takes records.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// The encoded records, without the header of the batch.
    records: Vec<u8>,
    count: usize,
    first_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

/// Sizes of a record that has to be measured before it is written, because its length comes first.
struct Measured {
    offset_delta: i64,
    timestamp_delta_ms: i64,
    /// Bytes behind the length field.
    body_bytes: usize,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for this many encoded bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        BatchBuilder { records: Vec::with_capacity(bytes.saturating_sub(HEADER_BYTES)), ..Self::default() }
    }

    /// Appends a record. The caller keeps the batch below its limit (far below 2 GiB) by
    /// [`encoded_bytes_with`](Self::encoded_bytes_with).
    pub fn append(&mut self, record: &RecordRef<'_>) {
        let measured = self.measure(record);
        if self.count == 0 {
            self.first_timestamp_ms = record.timestamp_ms;
            self.max_timestamp_ms = record.timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
        self.count += 1;

        let out = &mut self.records;
        out.reserve(measured.body_bytes + VARINT_BYTES_MAX);
        put_length(out, measured.body_bytes);
        out.push(0); // attributes of the record: none are defined
        put_varint(out, measured.timestamp_delta_ms);
        put_varint(out, measured.offset_delta);
        put_nullable(out, record.key);
        put_nullable(out, record.value);
        put_length(out, record.headers.len());
        for (name, value) in record.headers {
            put_nullable(out, Some(name.as_bytes()));
            put_nullable(out, Some(value));
        }
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the batch with its header and before compression, bytes.
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES + self.records.len()
    }

    /// What [`encoded_bytes`](Self::encoded_bytes) would be with this record too.
    pub fn encoded_bytes_with(&self, record: &RecordRef<'_>) -> usize {
        let body_bytes = self.measure(record).body_bytes;
        self.encoded_bytes() + length_bytes(body_bytes) + body_bytes
    }

    /// Timestamp of the first record, milliseconds since the Unix epoch; 0 in an empty batch.
    pub fn first_timestamp_ms(&self) -> i64 {
        self.first_timestamp_ms
    }

    /// Closes the batch: from here on its records never change. Records that the codec does not make smaller, or
    /// cannot encode, stay as they are: a batch says of itself how it is compressed.
    pub fn seal(self, compression: Compression) -> SealedBatch {
        let uncompressed_bytes = self.records.len();
        let smaller = match compression {
            Compression::None => None,
            _ => compression.compress(&self.records).ok().filter(|body| body.len() < uncompressed_bytes),
        };
        let compression = if smaller.is_some() { compression } else { Compression::None };
        SealedBatch {
            body: smaller.unwrap_or_else(|| Bytes::from(self.records)),
            uncompressed_bytes,
            compression,
            count: i32::try_from(self.count).expect("2^31 records would be a batch of more than 14 GB"),
            first_timestamp_ms: self.first_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
        }
    }

    fn measure(&self, record: &RecordRef<'_>) -> Measured {
        let offset_delta = self.count as i64;
        // Wrapping, like the reader's addition: the pair is exact for any two timestamps.
        let timestamp_delta_ms =
            if self.count == 0 { 0 } else { record.timestamp_ms.wrapping_sub(self.first_timestamp_ms) };
        let headers: usize = record
            .headers
            .iter()
            .map(|(name, value)| field_bytes(name.as_bytes()) + field_bytes(value))
            .sum();
        let body_bytes = 1
            + varint_bytes(timestamp_delta_ms)
            + varint_bytes(offset_delta)
            + record.key.map_or(1, field_bytes)
            + record.value.map_or(1, field_bytes)
            + length_bytes(record.headers.len())
            + headers;
        Measured { offset_delta, timestamp_delta_ms, body_bytes }
    }
}

/// A batch whose records are fixed. Cloning it copies no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBatch {
    body: Bytes,
    uncompressed_bytes: usize,
    compression: Compression,
    count: i32,
    first_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl SealedBatch {
    /// Number of records.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// The timestamp of the first record, milliseconds since the Unix epoch.
    pub fn first_timestamp_ms(&self) -> i64 {
        self.first_timestamp_ms
    }

    /// The newest timestamp, milliseconds since the Unix epoch: a broker forgets a producer by it.
    pub fn max_timestamp_ms(&self) -> i64 {
        self.max_timestamp_ms
    }

    /// Size as sent, bytes.
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// The complete batch as Produce takes it. The same identity gives the same bytes.
    pub fn encode(&self, identity: Identity) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        let length = self.encoded_bytes() - LENGTH_END;
        out.extend_from_slice(&0i64.to_be_bytes()); // base offset: the broker's to give
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&(-1i32).to_be_bytes()); // leader epoch: the broker's to give
        out.push(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.compression.attribute_bits().to_be_bytes());
        out.extend_from_slice(&(self.count - 1).to_be_bytes());
        out.extend_from_slice(&self.first_timestamp_ms.to_be_bytes());
        out.extend_from_slice(&self.max_timestamp_ms.to_be_bytes());
        out.extend_from_slice(&identity.producer_id.to_be_bytes());
        out.extend_from_slice(&identity.producer_epoch.to_be_bytes());
        out.extend_from_slice(&identity.base_sequence.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&self.body);
        let crc = crc32c::crc32c(out.get(at::ATTRIBUTES..).unwrap_or_default());
        if let Some(field) = out.get_mut(at::CRC..at::ATTRIBUTES) {
            field.copy_from_slice(&crc.to_be_bytes());
        }
        Bytes::from(out)
    }

    /// The records, as slices of the batch where it is not compressed: for splitting it, or for dead letters.
    /// Their offsets are their indices.
    ///
    /// # Errors
    /// None that this program can cause: the batch was made by [`BatchBuilder::seal`].
    pub fn records(&self) -> Result<Vec<Record>, DecodeError> {
        RecordsBody {
            bytes: self.body.clone(),
            compression: self.compression,
            decompressed_bytes_max: self.uncompressed_bytes,
            count: self.count,
            base_offset: 0,
            first_timestamp_ms: self.first_timestamp_ms,
            append_time_ms: None,
        }
        .records()
    }
}

/// The longest varint: 64 bits in groups of 7.
const VARINT_BYTES_MAX: usize = 10;

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn varint_bytes(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn length_bytes(length: usize) -> usize {
    varint_bytes(length as i64)
}

fn field_bytes(field: &[u8]) -> usize {
    length_bytes(field.len()) + field.len()
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_varint(out, length as i64);
}

fn put_nullable(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        Some(field) => {
            put_length(out, field.len());
            out.extend_from_slice(field);
        }
        None => put_varint(out, -1),
    }
}
