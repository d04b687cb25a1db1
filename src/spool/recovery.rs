//! What is done at the start, and only then: find out what is there, repair what a crash left, say what was cut and skipped.
//!
//! - Known: the checkpoint; of each segment but the newest, that all of it was synced; of the newest, what the head of [`scan`]
//!   says. The newest segment may also have lost its header (it was made and never synced).
//! - Cut: the torn tail of the newest segment, which was never confirmed.
//! - Skipped, counted, and copied to the quarantine: damage anywhere else.
//! - Removed: segments whose frames are all done; those that a merged segment replaces; files that were being written anew; empty ones.
//! - Set aside, whole: files of which not even the header is what it should be.
//! - Left alone and named: files with other names. Refused: a newer format.
//!
//! Afterwards the newest segment and the checkpoint are written again, byte for byte, and synced, so that they stay what they
//! were found to be: after a sync that failed, what is read from the page cache may not be on the disk, and no later sync brings it
//! there unless it is written again. A disk that is full and writes nothing in place (copy on write) does not take that: the spool
//! opens without, and says so, as only giving frames out makes room. The newest segment is closed: the next append begins a new one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{Catalog, Segment};
use super::checkpoint::{self, Checkpoint, Contents, Unread};
use super::quarantine::{QUARANTINE, quarantine, set_aside};
use super::report::Report;
use super::scan::{Damaged, scan};
use super::segment::{self, Header, HeaderFound, Index};
use super::{FrameId, Given, Loss, SpoolError, lock};
use crate::fs::{File, Filesystem, Open};

/// What is known for certain when the spool is opened again in the same process.
#[derive(Debug, Clone, Copy)]
pub struct Confirmed {
    /// The number after the last frame that was confirmed.
    pub next: FrameId,
    /// Where in the checkpoint file something may be that was not, bytes.
    pub checkpoint_to: Option<u64>,
}

/// What recovery gives.
#[derive(Debug)]
pub struct Recovered {
    /// Segments and counters.
    pub catalog: Catalog,
    /// The checkpoint file.
    pub checkpoint: Checkpoint,
    /// What it said; what is assigned, of frames that are not done only.
    pub contents: Contents,
    /// The next frame's number.
    pub next: FrameId,
    /// For the operator.
    pub report: Report,
    /// Numbers that need no further word: of segments whose frames are all done, and those before the first segment when nothing
    /// tells where the numbers began.
    pub finished: Vec<(u64, u64)>,
}

struct Recovery<'a> {
    fs: &'a Arc<dyn Filesystem>,
    directory: &'a Path,
    confirmed: Option<Confirmed>,
    catalog: Catalog,
    contents: Contents,
    has_checkpoint: bool,
    report: Report,
    highest: FrameId,
    assigned: BTreeMap<FrameId, Vec<Given>>,
    finished: Vec<(u64, u64)>,
}

/// Opens a directory that this process has locked. The catalog that is filled has no segments yet.
///
/// # Errors
/// [`SpoolError::Open`], [`SpoolError::Version`].
pub fn recover(
    fs: &Arc<dyn Filesystem>,
    directory: &Path,
    confirmed: Option<Confirmed>,
    catalog: Catalog,
) -> Result<Recovered, SpoolError> {
    let mut recovery = Recovery {
        fs,
        directory,
        confirmed,
        catalog,
        contents: Contents::default(),
        has_checkpoint: false,
        report: Report::default(),
        highest: FrameId(0),
        assigned: BTreeMap::new(),
        finished: Vec::new(),
    };
    let names = recovery.names()?;
    let checkpoint = recovery.read_checkpoint()?;
    let mut merged_to = FrameId(0);
    let newest = newest(fs.as_ref(), directory, &names)?;
    for first in names {
        if first <= merged_to {
            recovery.remove(first)?;
        } else if let Some(last) = recovery.read_segment(first, newest == Some(first))? {
            merged_to = last;
        }
    }
    recovery.finish(checkpoint)
}

/// An error of opening.
pub(super) fn failed<'a>(
    directory: &'a Path,
    doing: &'static str,
    file: &'a str,
) -> impl FnOnce(io::Error) -> SpoolError + 'a {
    move |source| SpoolError::Open {
        directory: directory.display().to_string(),
        doing,
        file: file.to_owned(),
        source,
    }
}

/// The newest segment of these, which ascend: a foreign file may have a higher number, and another process may remove some.
pub(super) fn newest(
    fs: &dyn Filesystem,
    directory: &Path,
    names: &[FrameId],
) -> Result<Option<FrameId>, SpoolError> {
    for first in names.iter().rev() {
        let name = segment::file_name(*first);
        let file = match fs.open(&directory.join(&name), Open::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(failed(directory, "opening", &name))?,
        };
        let header = header(file.as_ref()).map_err(failed(directory, "reading", &name))?;
        if !matches!(header, HeaderFound::Sound(header) if header.first != *first) {
            return Ok(Some(*first));
        }
    }
    Ok(None)
}

/// What a segment file begins with.
pub(super) fn header(file: &dyn File) -> io::Result<HeaderFound> {
    let mut head = [0; segment::HEADER_BYTES as usize];
    let read = file.read_at(&mut head, 0)?;
    Ok(Header::parse(head.get(..read).unwrap_or_default()))
}

/// Writes what is there once more.
fn rewrite(file: &dyn File, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let chunk = buffer.get_mut(..wanted).unwrap_or_default();
        let read = file.read_at(chunk, at)?;
        file.write_at(chunk.get(..read).unwrap_or_default(), at)?;
        at += read.max(1) as u64;
    }
    Ok(())
}

impl Recovery<'_> {
    fn failed<'a>(&'a self, doing: &'static str, file: &'a str) -> impl FnOnce(io::Error) -> SpoolError + 'a {
        failed(self.directory, doing, file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The segments by their names, ascending; unfinished files are removed, foreign ones noted.
    fn names(&mut self) -> Result<Vec<FrameId>, SpoolError> {
        let entries = self.fs.list(self.directory).map_err(self.failed("listing", "it"))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.name.as_str();
            let ours = name == lock::NAME || name == checkpoint::NAME;
            if let Some(first) = segment::parse_name(name, segment::SUFFIX).filter(|_| !entry.directory) {
                names.push(first);
            } else if name == checkpoint::NEW_NAME || segment::parse_name(name, segment::NEW_SUFFIX).is_some()
            {
                self.fs.remove(&self.path(name)).map_err(self.failed("removing", name))?;
            } else if !(ours || entry.directory && name == QUARANTINE) {
                self.report.foreign.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn read_checkpoint(&mut self) -> Result<Option<Box<dyn File>>, SpoolError> {
        let name = checkpoint::NAME;
        let file = match self.fs.open(&self.path(name), Open::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("opening", name)(error)),
        };
        let mut bytes = checkpoint::read(file.as_ref()).map_err(self.failed("reading", name))?;
        if let Some(to) = self.confirmed.and_then(|confirmed| confirmed.checkpoint_to) {
            bytes.truncate(usize::try_from(to).unwrap_or(usize::MAX));
        }
        match checkpoint::parse(&bytes) {
            Ok(contents) => {
                self.report.checkpoint_damaged_bytes = contents.damaged_bytes;
                self.report.checkpoint_cut_bytes = bytes.len() as u64 - contents.end;
                self.contents = contents;
                self.contents.noted = self.contents.unreleased.numbers();
                self.has_checkpoint = true;
                // Also when it is not longer: it may have been cut before, and the cut lost with a sync that failed.
                file.set_bytes(self.contents.end).map_err(self.failed("cutting", name))?;
                self.rewrite(file.as_ref(), name, self.contents.end)?;
                Ok(Some(file))
            }
            Err(Unread::Version(version)) => Err(SpoolError::Version { file: name.to_owned(), version }),
            Err(Unread::Damaged) => {
                self.set_aside(name)?;
                Ok(None)
            }
        }
    }

    /// Writes a file once more and syncs it.
    fn rewrite(&mut self, file: &dyn File, name: &str, end: u64) -> Result<(), SpoolError> {
        let written = rewrite(file, end).map_err(|error| ("writing", error));
        match written.and_then(|()| file.sync_data().map_err(|error| ("syncing", error))) {
            Ok(()) => Ok(()),
            Err((_, error)) if crate::fs::is_no_room(&error) => {
                self.report.not_rewritten.push(name.to_owned());
                Ok(())
            }
            Err((doing, error)) => Err(self.failed(doing, name)(error)),
        }
    }

    fn remove(&mut self, first: FrameId) -> Result<(), SpoolError> {
        let name = segment::file_name(first);
        self.fs.remove(&self.path(&name)).map_err(self.failed("removing", &name))?;
        self.report.removed += 1;
        Ok(())
    }

    /// Keeps a file apart that is not what its name says. A segment may stay where it is if there is no room for a folder: the
    /// number is not used then.
    fn set_aside(&mut self, name: &str) -> Result<(), SpoolError> {
        match set_aside(self.fs.as_ref(), self.directory, name) {
            Ok(()) => self.report.set_aside.push(name.to_owned()),
            Err(error) if crate::fs::is_no_room(&error) && name != checkpoint::NAME => {
                self.report.foreign.push(name.to_owned());
            }
            Err(error) => return Err(self.failed("setting aside", name)(error)),
        }
        Ok(())
    }

    /// Reads one segment into the catalog; gives up to where it replaces others.
    fn read_segment(&mut self, first: FrameId, newest: bool) -> Result<Option<FrameId>, SpoolError> {
        let name = segment::file_name(first);
        let file = self.fs.open(&self.path(&name), Open::Write).map_err(self.failed("opening", &name))?;
        let header = match header(file.as_ref()).map_err(self.failed("reading", &name))? {
            HeaderFound::Version(version) => return Err(SpoolError::Version { file: name, version }),
            HeaderFound::Sound(header) if header.first == first => Some(header),
            HeaderFound::Sound(_) => {
                self.report.foreign.push(name);
                return Ok(None);
            }
            HeaderFound::Damaged => None,
        };
        let index = Index::load(file.as_ref()).map_err(self.failed("reading", &name))?;
        // On opening again, the index may be of frames that were never confirmed.
        let confirmed = |index: &Index| {
            let next = self.confirmed.map_or(FrameId(u64::MAX), |confirmed| confirmed.next);
            index.entries.last().is_none_or(|last| last.id < next)
        };
        let merged_to = header.and_then(|header| header.merged_to);
        let damaged_before = self.report.damaged.len();
        let (index, end, sealed) = match index {
            Some((index, end)) if header.is_some() && confirmed(&index) => (index, u64::from(end), true),
            _ => match self.read_frames(file.as_ref(), &name, first, header.is_some(), newest)? {
                Some(read) => read,
                None => return Ok(None),
            },
        };
        if index.entries.is_empty() && merged_to.is_none() {
            // Nothing of its first append remained, so its numbers were never given out.
            self.remove(first)?;
            return Ok(None);
        }
        if newest {
            file.sync_data().map_err(self.failed("syncing", &name))?;
        }
        let bytes = file.bytes().map_err(self.failed("reading", &name))?;
        let last = index.entries.last().map_or(first, |last| last.id).max(merged_to.unwrap_or(first));
        self.note_missing(first);
        let end = u32::try_from(end).unwrap_or(u32::MAX);
        if self.report.damaged.len() > damaged_before {
            self.forget_damaged(first, last, &index);
        }
        self.enter(Segment::new(first, last, bytes, end, sealed), &index);
        Ok(merged_to)
    }

    /// Reads a segment without an index, repairs it, and closes it. None if nothing remains of it.
    fn read_frames(
        &mut self,
        file: &dyn File,
        name: &str,
        first: FrameId,
        has_header: bool,
        newest: bool,
    ) -> Result<Option<(Index, u64, bool)>, SpoolError> {
        let length = file.bytes().map_err(self.failed("reading", name))?;
        let before = FrameId(first.0.saturating_sub(1));
        let mut found = scan(file, before, newest).map_err(self.failed("reading", name))?;
        if let Some(confirmed) = self.confirmed
            && let Some(cut) = found.index.entries.iter().position(|entry| entry.id >= confirmed.next)
        {
            found.end = found.index.entries.get(cut).map_or(found.end, |entry| u64::from(entry.offset));
            found.torn_bytes = length - found.end;
            found.index.entries.truncate(cut);
            found.damaged.retain(|damaged| damaged.offset < found.end);
        }
        if !has_header && found.index.entries.is_empty() {
            if length == 0 {
                // Made and never synced.
                self.remove(first)?;
            } else {
                // That, or not ours at all.
                self.set_aside(name)?;
            }
            return Ok(None);
        }
        if !has_header {
            let header = Header { first, merged_to: None }.encode();
            quarantine(self.fs.as_ref(), self.directory, file, name, 0, segment::HEADER_BYTES);
            file.write_at(&header, 0).map_err(self.failed("repairing", name))?;
            self.report.damaged.push((name.to_owned(), 0, segment::HEADER_BYTES));
        }
        self.note_damage(file, name, &found.damaged, newest);
        if found.torn_bytes > 0 {
            quarantine(self.fs.as_ref(), self.directory, file, name, found.end, found.torn_bytes);
            self.report.cut = Some((name.to_owned(), found.torn_bytes));
        }
        file.set_bytes(found.end).map_err(self.failed("cutting", name))?;
        if newest {
            // Synced before the index is written: a segment with an index is not written again at the next start.
            self.rewrite(file, name, found.end)?;
        }
        let sealed = self.seal(file, name, &found.index, found.end)?;
        Ok(Some((found.index, found.end, sealed)))
    }

    fn note_damage(&mut self, file: &dyn File, name: &str, damaged: &[Damaged], newest: bool) {
        for bad in damaged {
            quarantine(self.fs.as_ref(), self.directory, file, name, bad.offset, bad.bytes);
            self.report.damaged.push((name.to_owned(), bad.offset, bad.bytes));
            if let Some((topic, records, messages)) = &bad.frame {
                self.report.lost.push(Loss {
                    topic: topic.clone(),
                    frames: 1,
                    records: u64::from(*records),
                    messages: u64::from(*messages),
                });
            }
        }
        self.report.indexes_rebuilt += u64::from(!newest);
    }

    /// Writes the index behind the frames; false if there is no room for it.
    fn seal(&self, file: &dyn File, name: &str, index: &Index, end: u64) -> Result<bool, SpoolError> {
        let Ok(end_32) = u32::try_from(end) else { return Ok(false) };
        let sealed = match file.write_at(&index.encode(end_32), end) {
            Ok(()) => true,
            Err(error) if crate::fs::is_no_room(&error) => {
                file.set_bytes(end).map_err(self.failed("cutting", name))?;
                false
            }
            Err(error) => return Err(self.failed("writing", name)(error)),
        };
        file.sync_data().map_err(self.failed("syncing", name))?;
        Ok(sealed)
    }

    /// Numbers between the segments so far and this one, of which the checkpoint does not know that they are done.
    fn note_missing(&mut self, next: FrameId) {
        // Without a checkpoint nobody knows where the numbers began.
        if self.highest.0 == 0 && !self.has_checkpoint {
            self.finished.push((1, next.0.saturating_sub(1)));
            return;
        }
        if next.0 > self.highest.0 + 1 {
            self.report.missing.extend(self.contents.done.gaps(self.highest.0 + 1, next.0 - 1));
        }
    }

    /// A note counts with its frame: one that is damaged inside the segment is not there, and Kafka may never have had it. In a sound
    /// segment that was merged, frames are missing because they were done.
    fn forget_damaged(&mut self, first: FrameId, last: FrameId, index: &Index) {
        let done = &self.contents.done;
        let there = |id: FrameId| done.contains(id.0) || index.position(id).is_some();
        self.contents.unreleased.retain(|id| !(first..=last).contains(&id) || there(id));
    }

    fn enter(&mut self, segment: Segment, index: &Index) {
        let (first, last, highest) = (segment.first, segment.last, self.highest);
        let done = &self.contents.done;
        // A number that was seen before is a copy: of two files with the same frames, the merged one comes first.
        self.catalog.add(segment, index, |id| done.contains(id.0) || id <= highest);
        let segment = self.catalog.segment(first);
        for (id, all) in self.contents.assigned.range(first..=last) {
            let live = |at: &usize| segment.is_some_and(|segment| !segment.is_done(*at));
            let entry = index.position(*id).filter(live).and_then(|at| index.entries.get(at));
            let Some(records) = entry.map(|entry| entry.records) else { continue };
            let mut all = all.clone();
            all.retain_mut(|given| {
                given.records.truncate(records);
                !given.records.is_empty()
            });
            if !all.is_empty() {
                self.assigned.insert(*id, all);
            }
        }
        self.highest = self.highest.max(last);
    }

    fn finish(mut self, file: Option<Box<dyn File>>) -> Result<Recovered, SpoolError> {
        self.note_missing(
            self.contents.next.max(self.confirmed.map_or(FrameId(0), |confirmed| confirmed.next)),
        );
        let done = self.catalog.segments().filter(|segment| segment.live_frames == 0);
        let done: Vec<(u64, u64)> = done.map(|segment| (segment.first.0, segment.last.0)).collect();
        for (first, _) in &done {
            self.catalog.remove(FrameId(*first));
            self.remove(FrameId(*first))?;
        }
        self.fs.sync_dir(self.directory).map_err(self.failed("syncing", "it"))?;
        let all = self.catalog.segments();
        self.report.segments = all.count() as u64;
        self.report.frames = self.catalog.segments().map(|segment| segment.live_frames).sum();
        self.report.records = self.catalog.routes().iter().map(|(_, backlog)| backlog.records).sum();
        let was_there = self.report.set_aside.iter().any(|name| name == checkpoint::NAME);
        self.report.checkpoint_lost =
            !self.has_checkpoint && self.report.segments > 0 && (was_there || self.catalog_begins_late());
        let next = FrameId(self.highest.0 + 1).max(self.contents.next);
        let next = next.max(self.confirmed.map_or(FrameId(1), |confirmed| confirmed.next));
        self.contents.assigned = self.assigned;
        // A note is written before its frames: they may never have come.
        let missing = &self.report.missing;
        let is_missing = |id: FrameId| missing.iter().any(|(first, last)| (*first..=*last).contains(&id.0));
        self.contents.unreleased.retain(|id| id < next && !is_missing(id));
        let checkpoint = Checkpoint::new(Arc::clone(self.fs), self.directory, file, self.contents.end);
        Ok(Recovered {
            catalog: self.catalog,
            checkpoint,
            contents: self.contents,
            next,
            report: self.report,
            finished: [self.finished, done].concat(),
        })
    }

    /// A spool that never had a checkpoint begins with frame 1.
    fn catalog_begins_late(&self) -> bool {
        self.catalog.segments().next().is_some_and(|oldest| oldest.first > FrameId(1))
    }
}
