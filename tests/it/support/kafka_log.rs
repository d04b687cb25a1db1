//! A partition's log with the idempotence of real brokers, as established by experiment on Kafka 2.8, 3.9 and
//! 4.3: the last five batches of a producer are recognised and answered with their first offset, a gap is
//! refused, an unknown producer is accepted at any sequence, a restarted broker remembers the last batch only.
//!
//! The decoder is written from the format's description (<https://kafka.apache.org/documentation/#recordbatch>)
//! and shares nothing with the gateway's encoder.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;

use bytes::Bytes;

pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
pub const INVALID_PRODUCER_EPOCH: i16 = 47;

const REMEMBERED_BATCHES: usize = 5;

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: i64,
    pub producer_id: i64,
    pub epoch: i16,
    pub sequence: i32,
}

impl Record {
    /// The value as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The header's value as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        Some(String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned())
    }
}

/// Who a batch is: what a broker compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_sequence: i32,
    pub count: i32,
}

impl Identity {
    fn last_sequence(&self) -> i32 {
        add(self.first_sequence, self.count - 1)
    }
}

/// Sequences wrap from 2^31 - 1 to 0.
fn add(sequence: i32, count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) % (1_i64 << 31)) as i32
}

/// A record batch as it was received.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub identity: Identity,
    /// Offsets are relative to the batch until it is appended.
    pub records: Vec<Record>,
    /// 0 none, 1 gzip, 2 snappy, 3 lz4.
    pub compression: u8,
    /// From the attributes on: what its checksum covers.
    pub body: Bytes,
    pub size_bytes: usize,
}

impl Batch {
    /// Decodes exactly one batch.
    pub fn decode(bytes: &Bytes) -> Result<Self, String> {
        let mut from = Cursor(bytes);
        let _base_offset = from.i64()?;
        let length = from.i32()?;
        if length as usize + 12 != bytes.len() {
            return Err(format!("batch length {length} in {} bytes: not exactly one batch", bytes.len()));
        }
        let _leader_epoch = from.i32()?;
        let magic = from.take(1)?[0];
        if magic != 2 {
            return Err(format!("magic {magic}"));
        }
        let crc = from.i32()? as u32;
        let body = bytes.slice(bytes.len() - from.0.len()..);
        if crc32c::crc32c(&body) != crc {
            return Err(format!("checksum {crc:08x} is not that of the batch"));
        }
        let attributes = from.i16()?;
        let last_offset_delta = from.i32()?;
        let first_timestamp = from.i64()?;
        let max_timestamp = from.i64()?;
        let identity = Identity {
            producer_id: from.i64()?,
            epoch: from.i16()?,
            first_sequence: from.i32()?,
            count: from.i32()?,
        };
        let compression = (attributes & 0b111) as u8;
        let plain = decompress(compression, from.0)?;
        let mut from = Cursor(&plain);
        let mut records = Vec::new();
        for index in 0..identity.count {
            let record = decode_record(&mut from, first_timestamp, index, identity)
                .map_err(|error| format!("record {index}: {error}"))?;
            records.push(record);
        }
        if !from.0.is_empty() {
            return Err(format!("{} bytes behind the last record", from.0.len()));
        }
        if last_offset_delta != identity.count - 1 {
            return Err(format!("last offset delta {last_offset_delta} of {} records", identity.count));
        }
        let newest = records.iter().map(|record| record.timestamp_ms).max();
        if newest != Some(max_timestamp) {
            return Err(format!("max timestamp {max_timestamp}, newest record {newest:?}"));
        }
        Ok(Batch { identity, records, compression, body, size_bytes: bytes.len() })
    }
}

fn decode_record(
    from: &mut Cursor,
    first_timestamp: i64,
    index: i32,
    identity: Identity,
) -> Result<Record, String> {
    let length = from.varint()?;
    let mut from = Cursor(from.take(usize::try_from(length).map_err(|_| "negative length")?)?);
    let _attributes = from.take(1)?;
    let timestamp_ms = first_timestamp + from.varint()?;
    let offset = from.varint()?;
    if offset != i64::from(index) {
        return Err(format!("offset delta {offset}"));
    }
    let key = from.nullable()?.map(<[u8]>::to_vec);
    let value = from.nullable()?.map(<[u8]>::to_vec);
    let mut headers = Vec::new();
    for _ in 0..from.varint()? {
        let name = from.nullable()?.ok_or("a header without a name")?;
        let name = String::from_utf8(name.to_vec()).map_err(|error| error.to_string())?;
        headers.push((name, from.nullable()?.map(<[u8]>::to_vec)));
    }
    if !from.0.is_empty() {
        return Err(format!("{} bytes behind the headers", from.0.len()));
    }
    let sequence = if identity.producer_id < 0 { -1 } else { add(identity.first_sequence, index) };
    let Identity { producer_id, epoch, .. } = identity;
    Ok(Record { offset, key, value, headers, timestamp_ms, producer_id, epoch, sequence })
}

fn decompress(codec: u8, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    match codec {
        0 => plain.extend_from_slice(bytes),
        1 => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).map_err(|e| e.to_string())?),
        2 => plain = unsnap(bytes)?,
        3 => drop(
            lz4_flex::frame::FrameDecoder::new(bytes).read_to_end(&mut plain).map_err(|e| e.to_string())?,
        ),
        other => return Err(format!("compression {other}")),
    }
    Ok(plain)
}

/// Snappy as the Java client writes it (16 bytes of head, then blocks with their length), or one bare block.
fn unsnap(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let Some(mut rest) = bytes.strip_prefix(b"\x82SNAPPY\x00").and_then(|rest| rest.get(8..)) else {
        return snap::raw::Decoder::new().decompress_vec(bytes).map_err(|error| error.to_string());
    };
    let mut plain = Vec::new();
    while !rest.is_empty() {
        let mut from = Cursor(rest);
        let length = from.i32()? as usize;
        let block = from.take(length)?;
        plain.extend(snap::raw::Decoder::new().decompress_vec(block).map_err(|error| error.to_string())?);
        rest = from.0;
    }
    Ok(plain)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) =
            self.0.split_at_checked(count).ok_or(format!("{count} bytes wanted, {} left", self.0.len()))?;
        self.0 = rest;
        Ok(head)
    }

    fn i16(&mut self) -> Result<i16, String> {
        Ok(i16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn i64(&mut self) -> Result<i64, String> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().unwrap()))
    }

    /// Zigzag.
    fn varint(&mut self) -> Result<i64, String> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err("a varint without an end".into())
    }

    fn nullable(&mut self) -> Result<Option<&'a [u8]>, String> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(usize::try_from(length).map_err(|_| format!("length {length}"))?).map(Some),
        }
    }
}

/// What the leader remembers of one producer.
#[derive(Debug, Clone)]
struct Producer {
    epoch: i16,
    batches: VecDeque<(Identity, i64)>,
}

/// One partition.
#[derive(Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
    /// Every batch written, with the offset of its first record.
    pub appended: Vec<(i64, Batch)>,
    producers: BTreeMap<i64, Producer>,
}

/// What became of a batch.
#[derive(Debug, PartialEq)]
pub enum Appended {
    /// Written, or recognised: the offset of its first record.
    At(i64),
    /// Recognised by its identity though its bytes are others: the broker drops it, so the records are lost.
    Mistaken(i64),
    /// Not written: the error code.
    Refused(i16),
}

impl Log {
    /// Appends by a real leader's rules.
    pub fn append(&mut self, batch: Batch) -> Appended {
        let identity = batch.identity;
        if identity.producer_id < 0 {
            return Appended::At(self.write(batch));
        }
        if let Some(producer) = self.producers.get_mut(&identity.producer_id) {
            if identity.epoch < producer.epoch {
                return Appended::Refused(INVALID_PRODUCER_EPOCH);
            }
            if identity.epoch > producer.epoch {
                if identity.first_sequence != 0 {
                    return Appended::Refused(OUT_OF_ORDER_SEQUENCE_NUMBER);
                }
                *producer = Producer { epoch: identity.epoch, batches: VecDeque::new() };
            } else if let Some((_, offset)) = producer.batches.iter().find(|(known, _)| *known == identity) {
                let offset = *offset;
                let same = self.appended.iter().any(|(at, known)| *at == offset && known.body == batch.body);
                return if same { Appended::At(offset) } else { Appended::Mistaken(offset) };
            } else if let Some((last, _)) = producer.batches.back()
                && add(last.last_sequence(), 1) != identity.first_sequence
            {
                return Appended::Refused(OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
        }
        let offset = self.write(batch);
        let fresh = Producer { epoch: identity.epoch, batches: VecDeque::new() };
        let producer = self.producers.entry(identity.producer_id).or_insert(fresh);
        producer.batches.push_back((identity, offset));
        if producer.batches.len() > REMEMBERED_BATCHES {
            producer.batches.pop_front();
        }
        Appended::At(offset)
    }

    fn write(&mut self, mut batch: Batch) -> i64 {
        let base = self.records.len() as i64;
        for record in &mut batch.records {
            record.offset += base;
        }
        self.records.extend(batch.records.iter().cloned());
        self.appended.push((base, batch));
        base
    }

    /// Only the last batch of each producer is remembered: what a restart leaves.
    pub fn restart(&mut self) {
        for producer in self.producers.values_mut() {
            let last = producer.batches.len().saturating_sub(1);
            producer.batches.drain(..last);
        }
    }

    /// Nothing is remembered: what expiry leaves.
    pub fn forget_producers(&mut self) {
        self.producers.clear();
    }

    /// Producer id, epoch, last sequence.
    pub fn producers(&self) -> Vec<(i64, i16, i32)> {
        let last = |producer: &Producer| producer.batches.back().map_or(-1, |(last, _)| last.last_sequence());
        self.producers.iter().map(|(&id, producer)| (id, producer.epoch, last(producer))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first_sequence: i32, count: i32) -> Batch {
        let identity = Identity { producer_id: 7, epoch: 0, first_sequence, count };
        let record = |index| Record {
            offset: i64::from(index),
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: 0,
            producer_id: 7,
            epoch: 0,
            sequence: add(first_sequence, index),
        };
        let records = (0..count).map(record).collect();
        let body = Bytes::from(format!("{first_sequence}+{count}"));
        Batch { identity, records, compression: 0, body, size_bytes: 0 }
    }

    #[test]
    fn recognises_the_last_five_batches_and_refuses_the_sixth_back() {
        let mut log = Log::default();
        for first in 0..6 {
            assert_eq!(log.append(batch(first * 2, 2)), Appended::At(i64::from(first) * 2));
        }
        for first in 1..6 {
            assert_eq!(log.append(batch(first * 2, 2)), Appended::At(i64::from(first) * 2));
        }
        assert_eq!(log.append(batch(0, 2)), Appended::Refused(45));
        assert_eq!(log.append(batch(13, 2)), Appended::Refused(45), "a gap");
        assert_eq!(log.append(batch(10, 1)), Appended::Refused(45), "another count");
        assert_eq!(log.records.len(), 12);
        log.restart();
        assert_eq!(log.append(batch(8, 2)), Appended::Refused(45), "forgotten by the restart");
        assert_eq!(log.append(batch(10, 2)), Appended::At(10));
        assert_eq!(log.producers(), [(7, 0, 11)]);
    }

    #[test]
    fn sequences_wrap() {
        assert_eq!(add(i32::MAX, 1), 0);
        assert_eq!(add(i32::MAX - 1, 3), 1);
    }
}
