//! One frame in bytes: a batch of records for one route. The table is in docs/spool-format.md; a test ties both together.
//!
//! Pure. Knows nothing of files. Invariants: little-endian; a length that was read never sizes an allocation before it was
//! compared with what is there; header and body have a checksum each, so that a frame can be passed over without its body.

use bytes::Bytes;

use super::{FrameId, Given, Identity, NewFrame, RecordSet};

/// Begins each frame: `TGFR`.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TGFR");
/// Length of a frame's header without the topic, bytes.
pub const HEADER_BYTES: usize = 72;
/// Longest topic, bytes. Kafka's limit is 249.
pub const TOPIC_BYTES_MAX: usize = 1024;
/// Longest body, bytes: half more than the largest MQTT packet that the gateway can be told to take (MQTT_MAX_PACKET_BYTES), and than
/// the largest Kafka batch (KAFKA_BATCH_BYTES), which are 64 MiB; far below what 32 bits hold.
pub const BODY_BYTES_MAX: usize = 96 * 1024 * 1024;

const CRC_AT: usize = 4;
const CRC_END: usize = 8;
const FIRST_OF_COMMIT: u16 = 1;
const HAS_PARTITION: u16 = 2;
const HAS_IDENTITY: u16 = 4;
const KNOWN_FLAGS: u16 = FIRST_OF_COMMIT | HAS_PARTITION | HAS_IDENTITY;

/// Reads little-endian fields one after another; None when there are no more bytes.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// The next field.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next field.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next field.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next field.
    pub fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_le_bytes)
    }

    /// The next field.
    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    /// The next field.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

/// What the fixed part of a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHeader {
    /// Its number.
    pub id: FrameId,
    /// CRC32C of the fixed part from byte 8 and of the topic.
    pub header_crc: u32,
    /// Length of the body, bytes.
    pub body_bytes: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
    /// Arrival of the oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Arrival of the newest record, milliseconds since 1970.
    pub newest_ms: i64,
    /// How many records.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// The Kafka partition, if it was chosen.
    pub partition: Option<i32>,
    /// What it was sent with, if it was.
    pub identity: Option<Identity>,
    /// Whether an append began with it.
    pub first_of_commit: bool,
    /// Length of the topic, bytes.
    pub topic_bytes: u16,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end before the frame does.
    #[error("it is cut off")]
    Short,
    /// The magic number is missing.
    #[error("no frame begins here")]
    NoFrame,
    /// The checksum of the header is wrong.
    #[error("the checksum of its header is wrong")]
    HeaderCrc,
    /// The header is sound and says what cannot be.
    #[error("its header says what cannot be")]
    Invalid,
    /// The checksum of the body is wrong.
    #[error("the checksum of its body is wrong")]
    BodyCrc,
}

impl FrameHeader {
    /// Reads the fixed part. Its checksum also covers the topic: [`FrameHeader::check_topic`].
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        let mut fields = Fields(bytes);
        if fields.u32().ok_or(FrameError::Short)? != FRAME_MAGIC {
            return Err(FrameError::NoFrame);
        }
        let (header, flags) = FrameHeader::fields(fields).ok_or(FrameError::Short)?;
        let sane = flags & !KNOWN_FLAGS == 0
            && are_countable(header.records, header.frame_bytes())
            && header.body_bytes as usize <= BODY_BYTES_MAX
            && usize::from(header.topic_bytes) <= TOPIC_BYTES_MAX;
        if sane { Ok(header) } else { Err(FrameError::Invalid) }
    }

    fn fields(mut fields: Fields<'_>) -> Option<(FrameHeader, u16)> {
        let (header_crc, body_bytes, body_crc) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (id, oldest_ms, newest_ms) = (FrameId(fields.u64()?), fields.i64()?, fields.i64()?);
        let (records, messages) = (fields.u32()?, fields.u32()?);
        let (producer_id, base_sequence, partition) = (fields.i64()?, fields.i32()?, fields.i32()?);
        let (epoch, flags, topic_bytes, _) = (fields.i16()?, fields.u16()?, fields.u16()?, fields.u16()?);
        let identity = Identity { producer_id, epoch, base_sequence };
        let header = FrameHeader {
            id,
            header_crc,
            body_bytes,
            body_crc,
            oldest_ms,
            newest_ms,
            records,
            messages,
            partition: (flags & HAS_PARTITION != 0).then_some(partition),
            identity: (flags & HAS_IDENTITY != 0).then_some(identity),
            first_of_commit: flags & FIRST_OF_COMMIT != 0,
            topic_bytes,
        };
        Some((header, flags))
    }

    /// Checks the header, given its bytes with the topic behind them, and gives the topic.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn check_topic<'a>(&self, bytes: &'a [u8]) -> Result<&'a str, FrameError> {
        let end = HEADER_BYTES + usize::from(self.topic_bytes);
        let covered = bytes.get(CRC_END..end).ok_or(FrameError::Short)?;
        if crc32c::crc32c(covered) != self.header_crc {
            return Err(FrameError::HeaderCrc);
        }
        let topic = bytes.get(HEADER_BYTES..end).ok_or(FrameError::Short)?;
        std::str::from_utf8(topic).map_err(|_| FrameError::Invalid)
    }

    /// Length of header and topic, bytes.
    pub fn body_at(&self) -> usize {
        HEADER_BYTES + usize::from(self.topic_bytes)
    }

    /// Length of the whole frame, bytes.
    pub fn frame_bytes(&self) -> usize {
        self.body_at() + self.body_bytes as usize
    }

    /// The batches that its records were given to: all to that of the header, and then as assigned.
    pub fn given(&self, assigned: &[Given]) -> Vec<Given> {
        let mut all = Vec::with_capacity(assigned.len() + 1);
        if let (Some(partition), Some(identity)) = (self.partition, self.identity) {
            whole(partition, identity, self.records).add_to(&mut all);
        }
        assigned.iter().for_each(|given| given.clone().add_to(&mut all));
        all
    }
}

/// The batch of a frame that was sent as a whole.
pub fn whole(partition: i32, identity: Identity, records: u32) -> Given {
    Given { partition, identity, batch_records: records, after_offset: -1, records: RecordSet::all(records) }
}

/// Whether the set of so many records takes no more memory than the frame: a number that was read must not size more than
/// was there to be read.
fn are_countable(records: u32, frame_bytes: usize) -> bool {
    records.div_ceil(8) as usize <= frame_bytes
}

/// Whether a frame is of a size that is taken.
pub fn fits(frame: &NewFrame<'_>) -> bool {
    frame.body.len() <= BODY_BYTES_MAX
        && frame.topic.len() <= TOPIC_BYTES_MAX
        && are_countable(frame.records, frame_bytes(frame))
}

/// Length of the frame on the disk, bytes.
pub fn frame_bytes(frame: &NewFrame<'_>) -> usize {
    HEADER_BYTES + frame.topic.len() + frame.body.len()
}

/// Writes header and topic; the body follows them as it is.
pub fn encode_header(id: FrameId, frame: &NewFrame<'_>, first_of_commit: bool, to: &mut Vec<u8>) {
    let from = to.len();
    let mut flags = if first_of_commit { FIRST_OF_COMMIT } else { 0 };
    flags |= if frame.partition.is_some() { HAS_PARTITION } else { 0 };
    flags |= if frame.identity.is_some() { HAS_IDENTITY } else { 0 };
    let nobody = Identity { producer_id: -1, epoch: -1, base_sequence: -1 };
    let identity = frame.identity.unwrap_or(nobody);
    let length = |bytes: usize| u32::try_from(bytes).expect("lengths are limited before they are written");
    let topic_bytes = u16::try_from(frame.topic.len()).expect("topics are limited before they are written");
    to.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    to.extend_from_slice(&[0; CRC_END - CRC_AT]);
    to.extend_from_slice(&length(frame.body.len()).to_le_bytes());
    to.extend_from_slice(&crc32c::crc32c(frame.body).to_le_bytes());
    to.extend_from_slice(&id.0.to_le_bytes());
    to.extend_from_slice(&frame.oldest_ms.to_le_bytes());
    to.extend_from_slice(&frame.newest_ms.to_le_bytes());
    to.extend_from_slice(&frame.records.to_le_bytes());
    to.extend_from_slice(&frame.messages.to_le_bytes());
    to.extend_from_slice(&identity.producer_id.to_le_bytes());
    to.extend_from_slice(&identity.base_sequence.to_le_bytes());
    to.extend_from_slice(&frame.partition.unwrap_or(-1).to_le_bytes());
    to.extend_from_slice(&identity.epoch.to_le_bytes());
    to.extend_from_slice(&flags.to_le_bytes());
    to.extend_from_slice(&topic_bytes.to_le_bytes());
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(frame.topic.as_bytes());
    let crc = to.get(from + CRC_END..).map_or(0, crc32c::crc32c);
    if let Some(place) = to.get_mut(from + CRC_AT..from + CRC_END) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// A frame whose checksums are right, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedFrame<'a> {
    /// The fixed part.
    pub header: FrameHeader,
    /// The route.
    pub topic: &'a str,
    /// Where in the bytes the body is.
    pub body: &'a [u8],
}

/// Reads one frame from the beginning of the bytes; what follows it is ignored.
///
/// # Errors
/// See [`FrameError`].
pub fn decode(bytes: &[u8]) -> Result<DecodedFrame<'_>, FrameError> {
    let header = FrameHeader::parse(bytes)?;
    let topic = header.check_topic(bytes)?;
    let body = bytes.get(header.body_at()..header.frame_bytes()).ok_or(FrameError::Short)?;
    if crc32c::crc32c(body) != header.body_crc {
        return Err(FrameError::BodyCrc);
    }
    Ok(DecodedFrame { header, topic, body })
}

/// A frame as it is given out, with what was assigned to it.
///
/// # Errors
/// See [`FrameError`].
pub fn frame(bytes: Bytes, assigned: &[Given]) -> Result<super::Frame, FrameError> {
    let decoded = decode(&bytes)?;
    let header = &decoded.header;
    let frame = super::Frame {
        id: header.id,
        topic: decoded.topic.to_owned(),
        given: header.given(assigned),
        records: header.records,
        messages: header.messages,
        oldest_ms: header.oldest_ms,
        newest_ms: header.newest_ms,
        body: bytes.slice(header.body_at()..header.frame_bytes()),
    };
    Ok(frame)
}
