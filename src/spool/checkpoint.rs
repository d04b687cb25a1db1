//! The checkpoint file: which frames are done, and which batches their records were given to after they were
//! appended. Tables: docs/spool-format.md.
//!
//! It is a log too: each call adds one record and syncs it. When it has grown, it is written anew as a summary and renamed over
//! the old one. Before it exists nothing is done: a spool that only keeps has none.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::Fields;
use super::segment::{HeaderFound, VERSION};
use super::unreleased::{self, Table};
use super::{FrameId, Given, Identity, RecordSet};
use crate::fs::{File, Filesystem, Open};

/// Name of the file.
pub const NAME: &str = "checkpoint";
/// Name while it is written anew.
pub const NEW_NAME: &str = "checkpoint.new";
/// Begins the file.
pub const MAGIC: [u8; 8] = *b"TIDECHKP";
/// Begins each record: `TGCK`.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"TGCK");
/// Length of the file's header, bytes.
pub const HEADER_BYTES: usize = 24;
/// Length of a record's header, bytes.
pub const RECORD_HEADER_BYTES: usize = 16;
/// A summary is written when the file is longer than this, and than four times the last summary.
pub const GROWN_BYTES: u64 = 64 * 1024;

const KIND_DONE: u32 = 1;
const KIND_ASSIGNED: u32 = 2;
/// A file longer than this is not ours: a summary of a full spool is some hundred KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Numbers as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds all numbers from `first` to `last`, both included.
    pub fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut from, mut to) = (first, last);
        // What overlaps or touches becomes one range.
        while let Some((&start, &end)) = self.0.range(..=to.saturating_add(1)).next_back() {
            if end.saturating_add(1) < from {
                break;
            }
            self.0.remove(&start);
            from = from.min(start);
            to = to.max(end);
        }
        self.0.insert(from, to);
    }

    /// Whether the number is in.
    pub fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, end)| *end >= number)
    }

    /// What is missing between `first` and `last`.
    pub fn gaps(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = first;
        let before = self.0.range(..first).next_back().filter(|(_, end)| **end >= first);
        for (&start, &end) in before.into_iter().chain(self.0.range(first..=last.max(first))) {
            if start > at {
                found.push((at, start - 1));
            }
            at = at.max(end.saturating_add(1));
        }
        if at <= last {
            found.push((at, last));
        }
        found
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a checkpoint file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Frames that are done; also the numbers of removed segments.
    pub done: Ranges,
    /// Batches that records were given to, by frame; frames that are done may be among them.
    pub assigned: BTreeMap<FrameId, Vec<Given>>,
    /// Messages that may be delivered again, of frames that may be there or not.
    pub unreleased: Table,
    /// Their numbers, before recovery passed over those whose frames are missing.
    pub noted: Vec<u16>,
    /// No frame has been given this number or a higher one, as far as the file knows.
    pub next: FrameId,
    /// Where the last sound record ends, bytes.
    pub end: u64,
    /// Bytes before that which are no sound record.
    pub damaged_bytes: u64,
}

/// Why a checkpoint file is not read.
#[derive(Debug)]
pub enum Unread {
    /// A newer program wrote it.
    Version(u32),
    /// Its header is damaged, or it is something else.
    Damaged,
}

/// The header.
pub fn encode_header() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(!VERSION).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The header of a file that begins like this; the first number in a sound one means nothing.
fn parse_header(bytes: &[u8]) -> Option<HeaderFound> {
    let mut fields = Fields(bytes);
    let magic = fields.bytes(MAGIC.len())?;
    let (version, inverse) = (fields.u32()?, fields.u32()?);
    if magic != MAGIC || version != !inverse {
        return None;
    }
    if version != VERSION {
        return Some(HeaderFound::Version(version));
    }
    let (_, crc) = (fields.u32()?, fields.u32()?);
    let sound = crc32c::crc32c(bytes.get(..HEADER_BYTES - 4)?) == crc;
    sound.then_some(HeaderFound::Damaged)
}

pub(super) fn encode_record(kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("summaries are far below 4 GiB");
    let mut covered = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len());
    covered.extend_from_slice(&RECORD_MAGIC.to_le_bytes());
    covered.extend_from_slice(&[0; 4]);
    covered.extend_from_slice(&length.to_le_bytes());
    covered.extend_from_slice(&kind.to_le_bytes());
    covered.extend_from_slice(payload);
    let crc = covered.get(8..).map_or(0, crc32c::crc32c);
    if let Some(place) = covered.get_mut(4..8) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    covered
}

/// A record that says which frames are done, and the next number.
pub fn encode_done(next: FrameId, done: &Ranges) -> Vec<u8> {
    let mut payload = next.0.to_le_bytes().to_vec();
    for (first, last) in done.iter() {
        payload.extend_from_slice(&first.to_le_bytes());
        payload.extend_from_slice(&last.to_le_bytes());
    }
    encode_record(KIND_DONE, &payload)
}

/// A record that gives records of frames to batches; a later one for the same records of a frame wins.
pub fn encode_assigned<'a>(assigned: impl IntoIterator<Item = (FrameId, &'a Given)>) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, given) in assigned {
        let records = given.records.to_bytes();
        let length = u32::try_from(records.len()).expect("a bit for each of at most 2^32 positions");
        payload.extend_from_slice(&id.0.to_le_bytes());
        payload.extend_from_slice(&given.identity.producer_id.to_le_bytes());
        payload.extend_from_slice(&given.after_offset.to_le_bytes());
        payload.extend_from_slice(&given.partition.to_le_bytes());
        payload.extend_from_slice(&given.identity.base_sequence.to_le_bytes());
        payload.extend_from_slice(&given.batch_records.to_le_bytes());
        payload.extend_from_slice(&given.identity.epoch.to_le_bytes());
        payload.extend_from_slice(&[0; 2]);
        payload.extend_from_slice(&length.to_le_bytes());
        payload.extend_from_slice(&records);
    }
    encode_record(KIND_ASSIGNED, &payload)
}

fn decode_assigned(from: &mut Fields<'_>) -> Option<(FrameId, Given)> {
    let (id, producer_id, after_offset) = (FrameId(from.u64()?), from.i64()?, from.i64()?);
    let (partition, base_sequence, batch_records) = (from.i32()?, from.i32()?, from.u32()?);
    let (epoch, _, length) = (from.i16()?, from.u16()?, from.u32()?);
    let records = RecordSet::from_bytes(from.bytes(length as usize)?);
    let identity = Identity { producer_id, epoch, base_sequence };
    Some((id, Given { partition, identity, batch_records, after_offset, records }))
}

/// Reads a whole file. What is no sound record is passed over: a record behind it counts, as each was synced before the next
/// was written. Damage at the very end is the record that was being written.
pub fn parse(bytes: &[u8]) -> Result<Contents, Unread> {
    match parse_header(bytes) {
        Some(HeaderFound::Version(version)) => return Err(Unread::Version(version)),
        None => return Err(Unread::Damaged),
        Some(_) => {}
    }
    let mut contents = Contents { end: HEADER_BYTES as u64, ..Contents::default() };
    let mut at = HEADER_BYTES;
    let mut skipped = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= RECORD_HEADER_BYTES) {
        match apply_record(rest, &mut contents) {
            Some(length) => {
                at += length;
                if skipped > 0 {
                    // A release may be among what is damaged: to forget is safe, to remember is not. This record counts.
                    contents.unreleased.clear();
                    apply_record(rest, &mut contents);
                }
                contents.damaged_bytes += skipped;
                skipped = 0;
                contents.end = at as u64;
            }
            None => {
                at += 1;
                skipped += 1;
            }
        }
    }
    Ok(contents)
}

fn apply_record(bytes: &[u8], to: &mut Contents) -> Option<usize> {
    let mut fields = Fields(bytes);
    if fields.u32()? != RECORD_MAGIC {
        return None;
    }
    let (crc, length, kind) = (fields.u32()?, fields.u32()? as usize, fields.u32()?);
    let mut payload = Fields(fields.bytes(length)?);
    let end = RECORD_HEADER_BYTES + length;
    if crc32c::crc32c(bytes.get(8..end)?) != crc {
        return None;
    }
    match kind {
        KIND_DONE => {
            to.next = to.next.max(FrameId(payload.u64()?));
            while let (Some(first), Some(last)) = (payload.u64(), payload.u64()) {
                to.done.insert(first, last);
            }
        }
        KIND_ASSIGNED => {
            while let Some((id, given)) = decode_assigned(&mut payload) {
                // Even if its frame never became durable, the number is not used again: it has an identity.
                to.next = to.next.max(FrameId(id.0.saturating_add(1)));
                if !given.records.is_empty() {
                    given.add_to(to.assigned.entry(id).or_default());
                }
            }
        }
        unreleased::KIND_NOTED => to.unreleased.apply_noted(&mut payload)?,
        unreleased::KIND_RELEASED => to.unreleased.apply_released(&mut payload)?,
        // A kind of a later revision of this version: it must be one that may be passed over.
        _ => {}
    }
    Some(end)
}

/// Reads the file's contents.
///
/// # Errors
/// The file cannot be read, or is longer than can be ours.
pub fn read(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = file.bytes()?;
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too long to be a checkpoint"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// The open file.
#[derive(Debug)]
pub struct Checkpoint {
    fs: Arc<dyn Filesystem>,
    directory: PathBuf,
    file: Option<Box<dyn File>>,
    end: u64,
    summary_bytes: u64,
    unconfirmed_from: Option<u64>,
}

/// How a write failed.
#[derive(Debug)]
pub enum WriteError {
    /// There was no room; the file is as it was.
    Full,
    /// It is unknown what is on the disk.
    Unknown(&'static str, io::Error),
}

impl Checkpoint {
    /// For a directory whose checkpoint file is `file`, sound up to `end`, or does not exist.
    pub fn new(fs: Arc<dyn Filesystem>, directory: &Path, file: Option<Box<dyn File>>, end: u64) -> Self {
        let directory = directory.to_owned();
        // How much of it is a summary is not known: a long one is written anew once.
        Checkpoint { fs, directory, file, end, summary_bytes: 0, unconfirmed_from: None }
    }

    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Where in the file something may be that was never confirmed.
    pub fn unconfirmed_from(&self) -> Option<u64> {
        self.unconfirmed_from
    }

    /// Whether a summary is worth writing.
    pub fn is_grown(&self) -> bool {
        self.end > GROWN_BYTES && self.end > self.summary_bytes.saturating_mul(4)
    }

    /// Adds a record, durably.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn append(&mut self, record: &[u8]) -> Result<(), WriteError> {
        let result = match &self.file {
            Some(file) => add(file.as_ref(), record, self.end).map(|()| self.end += record.len() as u64),
            None => self.replace(record),
        };
        // When there was no room, the file was made what it was before.
        if matches!(result, Err(WriteError::Unknown(..))) {
            self.unconfirmed_from = Some(self.end);
        }
        result
    }

    /// Writes the file anew with these records.
    ///
    /// # Errors
    /// See [`WriteError`]. After `Full` the old file is as it was.
    pub fn replace(&mut self, records: &[u8]) -> Result<(), WriteError> {
        let unknown = |doing| move |error| WriteError::Unknown(doing, error);
        let path = self.directory.join(NEW_NAME);
        // Left over from a failure before.
        match self.fs.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(WriteError::Unknown("removing", error));
            }
            _ => {}
        }
        let mut bytes = encode_header();
        bytes.extend_from_slice(records);
        let written = self.fs.open(&path, Open::Create).and_then(|file| {
            file.write_at(&bytes, 0)?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(error) if crate::fs::is_no_room(&error) => {
                let _ = self.fs.remove(&path);
                return Err(WriteError::Full);
            }
            Err(error) => return Err(WriteError::Unknown("writing", error)),
        };
        file.sync_data().map_err(unknown("syncing"))?;
        self.fs.rename(&path, &self.directory.join(NAME)).map_err(unknown("renaming"))?;
        self.fs.sync_dir(&self.directory).map_err(unknown("syncing the directory of"))?;
        self.end = bytes.len() as u64;
        self.summary_bytes = self.end;
        self.file = Some(file);
        Ok(())
    }
}

fn add(file: &dyn File, record: &[u8], at: u64) -> Result<(), WriteError> {
    if let Err(error) = file.write_at(record, at) {
        return match file.set_bytes(at) {
            Ok(()) if crate::fs::is_no_room(&error) => Err(WriteError::Full),
            _ => Err(WriteError::Unknown("writing", error)),
        };
    }
    file.sync_data().map_err(|error| WriteError::Unknown("syncing", error))
}
