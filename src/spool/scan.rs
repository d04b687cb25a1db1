//! Finding the frames of a segment that has no sound index, by reading it. Reads only; what follows from it is decided elsewhere.
//!
//! What is known: an append begins only after the one before it was synced, and its first frame says so. Hence, in the newest segment:
//! - something unreadable *before* a frame that begins an append was on the disk once: it is damage;
//! - something unreadable with no such frame behind it belongs to the append that was being written when the power went, and was
//!   never confirmed: it is the torn tail, and with it what was written of the same append behind it.
//!
//! In any other segment everything was synced, so everything unreadable is damage. What is never guessed: a length from a
//! header whose checksum is wrong. The next frame is then found by its magic number and checksum.

use std::io;

use super::FrameId;
use super::record::{FRAME_MAGIC, FrameHeader, HEADER_BYTES, TOPIC_BYTES_MAX};
use super::segment::{self, Entry, Index};
use crate::fs::File;

const CHUNK: usize = 64 * 1024;

/// Bytes of a segment that are no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Where they begin.
    pub offset: u64,
    /// How many, bytes.
    pub bytes: u64,
    /// If the header is sound and only the body is not: the topic, and how many records and MQTT messages.
    pub frame: Option<(String, u32, u32)>,
}

/// What a segment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The sound frames.
    pub index: Index,
    /// Where they end.
    pub end: u64,
    /// Damage between them.
    pub damaged: Vec<Damaged>,
    /// How many bytes behind `end` are a torn tail.
    pub torn_bytes: u64,
    /// How many bytes at the end are what is left of an index.
    pub index_bytes: u64,
}

struct Scan<'a> {
    file: &'a dyn File,
    length: u64,
    found: Scanned,
    /// Unreadable, and not known yet whether damage or torn tail; and how many frames were there before the first.
    open: Vec<Damaged>,
    sure_entries: usize,
    last: FrameId,
}

/// Reads all frames of a segment, bodies included. `before` is a number below that of every frame in it.
///
/// # Errors
/// The file cannot be read: not the same as damage.
pub fn scan(file: &dyn File, before: FrameId, newest: bool) -> io::Result<Scanned> {
    let length = file.bytes()?;
    let found = Scanned { end: segment::HEADER_BYTES, ..Scanned::default() };
    let mut scan = Scan { file, length, found, open: Vec::new(), sure_entries: 0, last: before };
    let mut at = segment::HEADER_BYTES.min(length);
    while at < length {
        at = scan.step(at)?;
    }
    scan.finish(newest)
}

impl Scan<'_> {
    /// Reads what begins here; gives where to go on.
    fn step(&mut self, at: u64) -> io::Result<u64> {
        let Some((header, topic)) = self.header(at)? else {
            let next = self.resynchronise(at + 1)?;
            self.unreadable(Damaged { offset: at, bytes: next - at, frame: None });
            return Ok(next);
        };
        let end = at + header.frame_bytes() as u64;
        if header.first_of_commit {
            self.found.damaged.append(&mut self.open);
        }
        let body_at = at + header.body_at() as u64;
        if end > self.length || self.crc(body_at, end)? != header.body_crc {
            // The length is sound, but if the file ends before, what follows the header is something else.
            let next = if end > self.length { self.resynchronise(at + 1)? } else { end };
            let frame = Some((topic, header.records, header.messages));
            self.last = header.id;
            self.unreadable(Damaged { offset: at, bytes: next - at, frame });
            return Ok(next);
        }
        self.last = header.id;
        let topic = self.found.index.topic(&topic);
        // Segments are far below 4 GiB; a longer file is foreign, and its frames are not taken.
        let (Ok(offset), Ok(bytes)) = (u32::try_from(at), u32::try_from(end - at)) else {
            return Ok(self.length);
        };
        self.found.index.entries.push(Entry {
            id: header.id,
            oldest_ms: header.oldest_ms,
            offset,
            bytes,
            records: header.records,
            messages: header.messages,
            topic,
        });
        Ok(end)
    }

    fn unreadable(&mut self, damaged: Damaged) {
        if self.open.is_empty() {
            self.sure_entries = self.found.index.entries.len();
        }
        self.open.push(damaged);
    }

    /// Whether what is unreadable at the end was the index: as long as the index of these frames, and it does not begin like
    /// another frame. It may be torn without any fault of the disk: nothing waits for it.
    fn is_index(&self, bad: &Damaged) -> io::Result<bool> {
        let mut magic = [0; 4];
        self.file.read_at(&mut magic, bad.offset)?;
        let index = self.found.index.encode(0).len() as u64;
        Ok(bad.frame.is_none() && magic != FRAME_MAGIC.to_le_bytes() && bad.bytes <= index)
    }

    fn finish(mut self, newest: bool) -> io::Result<Scanned> {
        let at_end = self.open.last().filter(|bad| bad.offset + bad.bytes == self.length);
        if let Some(last) = at_end
            && self.is_index(last)?
        {
            self.found.index_bytes = last.bytes;
            self.open.pop();
        }
        if newest && let Some(first) = self.open.first() {
            self.found.index.entries.truncate(self.sure_entries);
            self.found.torn_bytes = self.length - first.offset;
            self.found.end = first.offset;
            self.found.index_bytes = 0;
        } else {
            self.found.damaged.append(&mut self.open);
            let end =
                self.found.index.entries.last().map(|last| u64::from(last.offset) + u64::from(last.bytes));
            self.found.end = end.unwrap_or(segment::HEADER_BYTES);
        }
        Ok(self.found)
    }

    /// The header and topic here, if they are sound and the number is one that can be here.
    fn header(&self, at: u64) -> io::Result<Option<(FrameHeader, String)>> {
        let mut bytes = vec![0; HEADER_BYTES + TOPIC_BYTES_MAX];
        let read = self.file.read_at(&mut bytes, at)?;
        bytes.truncate(read);
        let Ok(header) = FrameHeader::parse(&bytes) else { return Ok(None) };
        let Ok(topic) = header.check_topic(&bytes) else { return Ok(None) };
        let topic = topic.to_owned();
        Ok((header.id > self.last).then_some((header, topic)))
    }

    fn crc(&self, mut at: u64, end: u64) -> io::Result<u32> {
        let mut crc = 0;
        let mut buffer = vec![0; CHUNK];
        while at < end {
            let wanted = usize::try_from(end - at).map_or(CHUNK, |rest| rest.min(CHUNK));
            let chunk = buffer.get_mut(..wanted).unwrap_or_default();
            let read = self.file.read_at(chunk, at)?;
            if read == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, chunk.get(..read).unwrap_or_default());
            at += read as u64;
        }
        Ok(crc)
    }

    /// Where the next sound header begins, from here on; the end of the file if none does.
    fn resynchronise(&self, mut at: u64) -> io::Result<u64> {
        let magic = FRAME_MAGIC.to_le_bytes();
        let mut buffer = vec![0; CHUNK];
        while at < self.length {
            let read = self.file.read_at(&mut buffer, at)?;
            let chunk = buffer.get(..read).unwrap_or_default();
            for position in chunk.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic) {
                let candidate = at + position.0 as u64;
                if self.header(candidate)?.is_some() {
                    return Ok(candidate);
                }
            }
            if read < CHUNK {
                break;
            }
            // A magic number may lie across the border.
            at += (CHUNK - (magic.len() - 1)) as u64;
        }
        Ok(self.length)
    }
}
