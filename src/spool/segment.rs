//! A segment file in bytes: header, frames, and, once it is full, an index of its frames. Tables: docs/spool-format.md.
//!
//! ```text
//! header 40 | frame | frame | ... | index: entry*, topic* | trailer 32
//! ```
//!
//! Pure but for [`Index::load`]. The index is a convenience: whatever it says can be found again by reading the frames,
//! and a segment without one (the newest; or the disk was full) is whole.

use super::FrameId;
use super::record::Fields;
use crate::fs::File;

/// Begins each segment file.
pub const MAGIC: [u8; 8] = *b"TIDESPOO";
/// The version this program writes, and the only one it reads.
pub const VERSION: u32 = 1;
/// Length of a segment's header, bytes.
pub const HEADER_BYTES: u64 = 40;
/// Length of a segment's trailer, bytes.
pub const TRAILER_BYTES: u64 = 32;
/// Length of an index entry, bytes.
pub const ENTRY_BYTES: usize = 40;
/// Begins each trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"TIDEINDX";
/// The end of the file name.
pub const SUFFIX: &str = ".seg";
/// The end of the name of a file that is being written and will replace a segment.
pub const NEW_SUFFIX: &str = ".seg.new";

const NUMBER_DIGITS: usize = 20;
const HEADER_CRC_AT: usize = 36;
const TRAILER_CRC_AT: usize = 20;
const MERGED: u32 = 1;

/// The name of the segment whose first frame has this number.
pub fn file_name(first: FrameId) -> String {
    format!("{:0NUMBER_DIGITS$}{SUFFIX}", first.0)
}

/// The number of the first frame, from the name of a file that ends in `suffix`.
pub fn parse_name(name: &str, suffix: &str) -> Option<FrameId> {
    let digits = name.strip_suffix(suffix)?;
    let all = digits.len() == NUMBER_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok().map(FrameId)).flatten()
}

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The number of its first frame when it was made; also its name.
    pub first: FrameId,
    /// If it replaces several segments: all frames up to this number that still live are in it, and segments that begin
    /// behind `first` and not behind this are left-overs.
    pub merged_to: Option<FrameId>,
}

/// What a file that is named like a segment begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFound {
    /// A segment of this version.
    Sound(Header),
    /// A segment of another version.
    Version(u32),
    /// Damaged, cut off, or something else.
    Damaged,
}

impl Header {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        // Twice, so that a flipped bit is not taken for a format of the future.
        bytes.extend_from_slice(&(!VERSION).to_le_bytes());
        bytes.extend_from_slice(&self.first.0.to_le_bytes());
        bytes.extend_from_slice(&self.merged_to.map_or(0, |last| last.0).to_le_bytes());
        bytes.extend_from_slice(&if self.merged_to.is_some() { MERGED } else { 0 }.to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it.
    pub fn parse(bytes: &[u8]) -> HeaderFound {
        Header::fields(bytes).unwrap_or(HeaderFound::Damaged)
    }

    fn fields(bytes: &[u8]) -> Option<HeaderFound> {
        let mut fields = Fields(bytes);
        let magic = fields.bytes(MAGIC.len())?;
        let (version, inverse) = (fields.u32()?, fields.u32()?);
        if magic != MAGIC || version != !inverse {
            return None;
        }
        if version != VERSION {
            return Some(HeaderFound::Version(version));
        }
        let (first, last, flags, crc) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
        if crc32c::crc32c(bytes.get(..HEADER_CRC_AT)?) != crc {
            return None;
        }
        let merged_to = (flags & MERGED != 0).then_some(FrameId(last));
        Some(HeaderFound::Sound(Header { first: FrameId(first), merged_to }))
    }
}

/// A frame in the index of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub id: FrameId,
    /// Arrival of its oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Where it begins in the file.
    pub offset: u32,
    /// Its length, bytes.
    pub bytes: u32,
    /// How many records.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// Its route: a position in [`Index::topics`].
    pub topic: u32,
}

/// The frames of a segment, by ascending number, without their bodies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// The frames.
    pub entries: Vec<Entry>,
    /// The routes they are of.
    pub topics: Vec<String>,
}

impl Index {
    /// The position of a frame.
    pub fn position(&self, id: FrameId) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    /// The position of a topic, which is entered if it is new.
    pub fn topic(&mut self, topic: &str) -> u32 {
        // The last is the likeliest, and there are few.
        let known = self.topics.iter().rposition(|known| known == topic);
        let position = known.unwrap_or_else(|| {
            self.topics.push(topic.to_owned());
            self.topics.len() - 1
        });
        u32::try_from(position).expect("a segment has fewer than 2^32 bytes, so fewer topics")
    }

    /// Index and trailer for the end of a file whose frames end at `end`.
    pub fn encode(&self, end: u32) -> Vec<u8> {
        let count = |length: usize| u32::try_from(length).expect("a segment has fewer than 2^32 bytes");
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_BYTES + 256);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.id.0.to_le_bytes());
            bytes.extend_from_slice(&entry.oldest_ms.to_le_bytes());
            for field in [entry.offset, entry.bytes, entry.records, entry.messages, entry.topic, 0] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        for topic in &self.topics {
            let length = u16::try_from(topic.len()).expect("topics are limited before they are written");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(topic.as_bytes());
        }
        let mut trailer = Vec::with_capacity(32);
        trailer.extend_from_slice(&end.to_le_bytes());
        trailer.extend_from_slice(&count(bytes.len()).to_le_bytes());
        trailer.extend_from_slice(&count(self.entries.len()).to_le_bytes());
        trailer.extend_from_slice(&count(self.topics.len()).to_le_bytes());
        trailer.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
        trailer.extend_from_slice(&TRAILER_MAGIC);
        bytes.extend_from_slice(&trailer);
        bytes
    }

    /// Reads the index at the end of a file, and where the frames end; None if there is no sound one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(file: &dyn File) -> std::io::Result<Option<(Index, u32)>> {
        let length = file.bytes()?;
        let Some(trailer_at) = length.checked_sub(TRAILER_BYTES).filter(|at| *at >= HEADER_BYTES) else {
            return Ok(None);
        };
        let mut trailer = [0; TRAILER_BYTES as usize];
        file.read_at(&mut trailer, trailer_at)?;
        let Some(about) = Trailer::parse(&trailer) else { return Ok(None) };
        // What the trailer claims is compared with the file before memory is taken for it.
        if u64::from(about.end) + u64::from(about.index_bytes) != trailer_at {
            return Ok(None);
        }
        let mut bytes = vec![0; about.index_bytes as usize];
        let read = file.read_at(&mut bytes, u64::from(about.end))?;
        if read != bytes.len() || crc32c::crc32c(&bytes) != about.crc {
            return Ok(None);
        }
        Ok(Index::parse(&bytes, &about).map(|index| (index, about.end)))
    }

    fn parse(bytes: &[u8], about: &Trailer) -> Option<Index> {
        let mut fields = Fields(bytes);
        let mut index = Index::default();
        let entries = about.entries as usize;
        if entries.checked_mul(ENTRY_BYTES)? > bytes.len() {
            return None;
        }
        index.entries.reserve_exact(entries);
        for _ in 0..entries {
            let (id, oldest_ms) = (FrameId(fields.u64()?), fields.i64()?);
            let (offset, bytes, records, messages, topic) =
                (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
            fields.u32()?;
            let ascending = index.entries.last().is_none_or(|last| last.id < id);
            let inside = offset.checked_add(bytes).is_some_and(|end| end <= about.end);
            if !ascending || !inside || topic >= about.topics {
                return None;
            }
            index.entries.push(Entry { id, oldest_ms, offset, bytes, records, messages, topic });
        }
        for _ in 0..about.topics {
            let length = fields.u16()?;
            let topic = std::str::from_utf8(fields.bytes(usize::from(length))?).ok()?;
            index.topics.push(topic.to_owned());
        }
        Some(index)
    }
}

#[derive(Debug, Clone, Copy)]
struct Trailer {
    end: u32,
    index_bytes: u32,
    entries: u32,
    topics: u32,
    crc: u32,
}

impl Trailer {
    fn parse(bytes: &[u8]) -> Option<Trailer> {
        let mut fields = Fields(bytes);
        let (end, index_bytes, entries) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (topics, crc, own) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let magic = fields.bytes(TRAILER_MAGIC.len())?;
        let sound = magic == TRAILER_MAGIC && crc32c::crc32c(bytes.get(..TRAILER_CRC_AT)?) == own;
        sound.then_some(Trailer { end, index_bytes, entries, topics, crc })
    }
}
