//! Looking at a spool without touching it, while another process may be writing: for the command line.
//!
//! Nothing is locked, repaired or written. Files may vanish between listing and reading, and the newest may end in a frame that is
//! being written: neither is a fault.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::checkpoint::{self, Contents, Unread};
use super::quarantine::QUARANTINE;
use super::record::{FrameHeader, decode};
use super::recovery::{failed, header, newest};
use super::scan::scan;
use super::segment::{self, Entry, HeaderFound, Index};
use super::{Backlog, FrameId, Given, SpoolError, lock};
use crate::fs::{File, Filesystem, Open};

/// A frame that was looked at.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// Its place.
    pub entry: Entry,
    /// The route.
    pub topic: &'a str,
    /// Whether it is done, and only its file is still there.
    pub done: bool,
    /// What its header says; None if it is damaged.
    pub header: Option<FrameHeader>,
    /// The batches that its records were given to; without the header's, if that was not read.
    pub given: Vec<Given>,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segment files.
    pub segments: u64,
    /// Bytes of all files of the spool.
    pub bytes: u64,
    /// What is not done, by route.
    pub routes: BTreeMap<String, Backlog>,
    /// Files with what is wrong in them.
    pub faults: Vec<String>,
    /// Bytes at the end of the newest segment that are no frame: being written, or torn.
    pub unfinished_bytes: u64,
    /// Copies of damaged parts.
    pub quarantined: u64,
    /// Files that are not the spool's.
    pub foreign: Vec<String>,
}

/// Looks through a spool, and shows each frame to `visit`. With `bodies`, checksums are verified.
///
/// # Errors
/// [`SpoolError::Open`], [`SpoolError::Version`].
pub fn inspect(
    fs: &dyn Filesystem,
    directory: &Path,
    bodies: bool,
    visit: &mut dyn FnMut(&Seen<'_>),
) -> Result<Summary, SpoolError> {
    let mut summary = Summary::default();
    let contents = read_checkpoint(fs, directory, &mut summary)?;
    let mut segments = Vec::new();
    for entry in fs.list(directory).map_err(failed(directory, "listing", "it"))? {
        let name = entry.name.as_str();
        let ours = [lock::NAME, checkpoint::NAME, checkpoint::NEW_NAME].contains(&name)
            || segment::parse_name(name, segment::NEW_SUFFIX).is_some();
        match segment::parse_name(name, segment::SUFFIX) {
            Some(first) if !entry.directory => segments.push(first),
            _ if entry.directory && name == QUARANTINE => {
                let held = fs.list(&directory.join(QUARANTINE)).unwrap_or_default();
                summary.quarantined = held.len() as u64;
                continue;
            }
            _ if ours => {}
            _ => {
                summary.foreign.push(entry.name);
                continue;
            }
        }
        summary.bytes += entry.bytes;
    }
    segments.sort();
    let newest = newest(fs, directory, &segments)?;
    let mut merged_to = FrameId(0);
    for first in segments {
        if first <= merged_to {
            continue;
        }
        let mut look = Look { directory, contents: &contents, bodies, visit, summary: &mut summary };
        if let Some(to) = look.segment(fs, first, newest == Some(first))? {
            merged_to = to;
        }
    }
    Ok(summary)
}

fn read_checkpoint(
    fs: &dyn Filesystem,
    directory: &Path,
    summary: &mut Summary,
) -> Result<Contents, SpoolError> {
    let name = checkpoint::NAME;
    let file = match fs.open(&directory.join(name), Open::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        Err(error) => return Err(failed(directory, "opening", name)(error)),
    };
    let bytes = checkpoint::read(file.as_ref()).map_err(failed(directory, "reading", name))?;
    match checkpoint::parse(&bytes) {
        Ok(contents) => {
            if contents.damaged_bytes > 0 {
                summary.faults.push(format!("{name}: {} damaged bytes", contents.damaged_bytes));
            }
            Ok(contents)
        }
        Err(Unread::Version(version)) => Err(SpoolError::Version { file: name.to_owned(), version }),
        Err(Unread::Damaged) => {
            summary.faults.push(format!("{name}: its header is damaged"));
            Ok(Contents::default())
        }
    }
}

struct Look<'a, 'b> {
    directory: &'a Path,
    contents: &'a Contents,
    bodies: bool,
    visit: &'b mut dyn FnMut(&Seen<'_>),
    summary: &'a mut Summary,
}

impl Look<'_, '_> {
    fn segment(
        &mut self,
        fs: &dyn Filesystem,
        first: FrameId,
        newest: bool,
    ) -> Result<Option<FrameId>, SpoolError> {
        let name = segment::file_name(first);
        let file = match fs.open(&self.directory.join(&name), Open::Read) {
            Ok(file) => file,
            // All of it is done: it was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(self.directory, "opening", &name)(error)),
        };
        let reading = || failed(self.directory, "reading", &name);
        let header = match header(file.as_ref()).map_err(reading())? {
            HeaderFound::Version(version) => return Err(SpoolError::Version { file: name, version }),
            HeaderFound::Sound(header) if header.first == first => Some(header),
            HeaderFound::Sound(_) => {
                self.summary.foreign.push(name);
                return Ok(None);
            }
            HeaderFound::Damaged => None,
        };
        self.summary.segments += 1;
        if header.is_none() && !newest {
            self.summary.faults.push(format!("{name}: its header is damaged"));
        }
        let index = match Index::load(file.as_ref()).map_err(reading())? {
            Some((index, _)) => index,
            None => {
                let before = FrameId(first.0.saturating_sub(1));
                let found = scan(file.as_ref(), before, newest).map_err(reading())?;
                for bad in &found.damaged {
                    self.summary
                        .faults
                        .push(format!("{name}: {} damaged bytes at {}", bad.bytes, bad.offset));
                }
                self.summary.unfinished_bytes += found.torn_bytes;
                found.index
            }
        };
        for entry in &index.entries {
            self.frame(file.as_ref(), &name, &index, entry).map_err(reading())?;
        }
        Ok(header.and_then(|header| header.merged_to))
    }

    fn frame(&mut self, file: &dyn File, name: &str, index: &Index, entry: &Entry) -> io::Result<()> {
        let topic = index.topics.get(entry.topic as usize).map_or("", |topic| topic);
        let done = self.contents.done.contains(entry.id.0);
        let mut header = None;
        if self.bodies {
            let mut bytes = vec![0; entry.bytes as usize];
            let read = file.read_at(&mut bytes, u64::from(entry.offset))?;
            let frame = decode(bytes.get(..read).unwrap_or_default());
            header = frame.ok().filter(|frame| frame.header.id == entry.id).map(|frame| frame.header);
            if header.is_none() {
                let fault = format!("{name}: frame {} at {} is damaged", entry.id.0, entry.offset);
                self.summary.faults.push(fault);
            }
        }
        if !done {
            let backlog = self.summary.routes.entry(topic.to_owned()).or_default();
            backlog.frames += 1;
            backlog.records += u64::from(entry.records);
            backlog.messages += u64::from(entry.messages);
            backlog.bytes += u64::from(entry.bytes);
            backlog.oldest_ms =
                Some(backlog.oldest_ms.map_or(entry.oldest_ms, |known| known.min(entry.oldest_ms)));
        }
        let assigned = self.contents.assigned.get(&entry.id).map_or(&[][..], |given| given);
        let given = header.as_ref().map_or_else(|| assigned.to_vec(), |header| header.given(assigned));
        (self.visit)(&Seen { entry: *entry, topic, done, header, given });
        Ok(())
    }
}
