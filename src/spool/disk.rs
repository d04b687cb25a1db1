//! The spool on a disk: opening it, acknowledgements, identities. Appending, reading and making room are in the neighbours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::Catalog;
use super::checkpoint::{Checkpoint, Ranges, WriteError, encode_assigned, encode_done};
use super::reader::Cache;
use super::recovery::{Confirmed, Recovered, failed, recover};
use super::report::Report;
use super::segment::file_name;
use super::unreleased::{Forget, Table, Unreleased, encode_noted};
use super::writer::Active;
use super::{
    Appended, Assignment, Backlog, Frame, FrameId, GaveUp, Given, Limit, Loss, NewFrame, Options, SpoolError,
    Store,
};
use super::{checkpoint, lock};
use crate::fs::{Filesystem, Lock};

/// A spool in a directory. See [`super`].
#[derive(Debug)]
pub struct DiskSpool {
    pub(super) fs: Arc<dyn Filesystem>,
    pub(super) directory: PathBuf,
    pub(super) options: Options,
    pub(super) catalog: Catalog,
    pub(super) active: Option<Active>,
    pub(super) cache: Cache,
    pub(super) checkpoint: Checkpoint,
    /// Done since the last checkpoint.
    pub(super) pending: Ranges,
    /// Done, but their segment's index could not be read to count them.
    pub(super) deferred: Vec<FrameId>,
    /// Batches that records were given to since their frame was appended, of frames that are not done.
    pub(super) assigned: BTreeMap<FrameId, Vec<Given>>,
    /// Messages that may be delivered again.
    pub(super) unreleased: Table,
    /// A release, to be written before what is done: notes on the disk that are forgotten, because their frames are missing. Once these
    /// are done, the next start would take the notes for sound.
    forgotten: Vec<u8>,
    pub(super) next: FrameId,
    pub(super) poisoned: bool,
    pub(super) damage: Vec<Loss>,
    /// Given up to make room, and not taken yet.
    pub(super) dropped_ranges: Ranges,
    _lock: Box<dyn Lock>,
}

impl DiskSpool {
    /// Opens the spool in a directory, which is made if it does not exist.
    ///
    /// # Errors
    /// [`SpoolError::Locked`], [`SpoolError::Version`], [`SpoolError::Open`]: each a reason to end the start.
    pub fn open(
        fs: Arc<dyn Filesystem>,
        directory: &Path,
        options: Options,
    ) -> Result<(DiskSpool, Report), SpoolError> {
        fs.create_dir(directory).map_err(failed(directory, "making", "it"))?;
        let lock = lock::take(fs.as_ref(), directory)?;
        let recovered = recover(&fs, directory, None, Catalog::default())?;
        let segment_bytes = options.segment_bytes.clamp(4096, 1 << 30);
        let mut pending = Ranges::default();
        // Once told, they are not told again.
        let told = recovered.report.missing.iter().chain(&recovered.finished);
        told.for_each(|(first, last)| pending.insert(*first, *last));
        let Recovered { catalog, checkpoint, contents, next, report, .. } = recovered;
        let forgotten = contents.unreleased.release_of_others(&contents.noted, next);
        let spool = DiskSpool {
            fs,
            directory: directory.to_owned(),
            options: Options { segment_bytes, ..options },
            catalog,
            active: None,
            cache: Cache::default(),
            checkpoint,
            pending,
            deferred: Vec::new(),
            assigned: contents.assigned,
            unreleased: contents.unreleased,
            forgotten,
            next,
            poisoned: false,
            damage: Vec::new(),
            dropped_ranges: Ranges::default(),
            _lock: lock,
        };
        Ok((spool, report))
    }

    /// Stops the spool.
    pub(super) fn poison(&mut self, doing: &'static str, file: String, source: std::io::Error) -> SpoolError {
        self.poisoned = true;
        SpoolError::Poisoned { doing, file, source: Some(source) }
    }

    pub(super) fn check_poison(&self) -> Result<(), SpoolError> {
        if !self.poisoned {
            return Ok(());
        }
        Err(SpoolError::Poisoned {
            doing: "an earlier write to",
            file: "the directory".to_owned(),
            source: None,
        })
    }

    fn written(&mut self, result: Result<(), WriteError>) -> Result<(), SpoolError> {
        match result {
            Ok(()) => Ok(()),
            Err(WriteError::Full) => Err(SpoolError::Full { limit: Limit::Disk, topic: None }),
            Err(WriteError::Unknown(doing, source)) => {
                Err(self.poison(doing, checkpoint::NAME.to_owned(), source))
            }
        }
    }

    /// Counts a frame as done; false if that cannot be said now.
    fn finish(&mut self, id: FrameId) -> bool {
        let Some(first) = self.catalog.segment_of(id).map(|segment| segment.first) else { return true };
        let Ok(loaded) = self.loaded(first) else { return false };
        let Some(position) = loaded.index.position(id) else { return true };
        let Some(entry) = loaded.index.entries.get(position).copied() else { return true };
        let route = loaded.routes.get(entry.topic as usize).copied().unwrap_or_default();
        if self.catalog.finish(first, position, &entry, route) {
            self.assigned.remove(&id);
            self.pending.insert(id.0, id.0);
        }
        true
    }

    /// How many records a frame has; None if it is done, or not there.
    fn live_records(&mut self, id: FrameId) -> Result<Option<u32>, SpoolError> {
        let Some(first) = self.catalog.segment_of(id).map(|segment| segment.first) else { return Ok(None) };
        let index = &self.loaded(first)?.index;
        let Some(position) = index.position(id) else { return Ok(None) };
        let records = index.entries.get(position).map(|entry| entry.records);
        let live = self.catalog.segment(first).is_some_and(|segment| !segment.is_done(position));
        Ok(records.filter(|_| live))
    }

    /// Writes down what is done.
    pub(super) fn write_pending(&mut self) -> Result<(), SpoolError> {
        if !self.pending.is_empty() {
            let records = [&self.forgotten[..], &encode_done(self.next, &self.pending)].concat();
            let written = self.checkpoint.append(&records);
            self.written(written)?;
            self.pending.clear();
            self.forgotten.clear();
        }
        Ok(())
    }

    /// Writes down what is done and removes segments of which all is.
    pub(super) fn finish_checkpoint(&mut self) -> Result<(), SpoolError> {
        // The whole range: merging left out what was done by then, and no number may be missed later.
        for segment in self.catalog.segments().filter(|segment| segment.live_frames == 0) {
            self.pending.insert(segment.first.0, segment.last.0);
        }
        match self.write_pending() {
            Ok(()) => self.remove_finished(),
            Err(SpoolError::Full { .. }) => {
                // Without room for the record, the removal of a file is the record: it makes room for the rest.
                self.remove_finished()?;
                self.write_pending()
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the files of segments of which all frames are done.
    fn remove_finished(&mut self) -> Result<(), SpoolError> {
        let finished: Vec<FrameId> = self
            .catalog
            .segments()
            .filter(|segment| segment.live_frames == 0)
            .map(|segment| segment.first)
            .collect();
        self.remove_segments(&finished)
    }

    /// Removes segments, durably.
    pub(super) fn remove_segments(&mut self, segments: &[FrameId]) -> Result<(), SpoolError> {
        for first in segments {
            self.forget(*first);
        }
        self.remove_files(segments)?;
        for first in segments {
            // Of one whose index could not be read nobody asked frame by frame.
            if let Some(last) = self.catalog.segment(*first).map(|segment| segment.last) {
                self.forget_assigned(*first, last);
            }
            self.catalog.remove(*first);
        }
        Ok(())
    }

    /// Drops the batches that records of these frames were given to.
    pub(super) fn forget_assigned(&mut self, first: FrameId, last: FrameId) {
        let ids: Vec<FrameId> = self.assigned.range(first..=last).map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| drop(self.assigned.remove(id)));
    }

    /// Removes segments' files, durably.
    pub(super) fn remove_files(&mut self, segments: &[FrameId]) -> Result<(), SpoolError> {
        for first in segments {
            let name = file_name(*first);
            if let Err(error) = self.fs.remove(&self.directory.join(&name)) {
                return Err(self.poison("removing", name, error));
            }
        }
        if segments.is_empty() {
            return Ok(());
        }
        let synced = self.fs.sync_dir(&self.directory);
        synced.map_err(|error| self.poison("syncing the directory of", "the segments".to_owned(), error))
    }

    /// Drops what is open of a segment.
    pub(super) fn forget(&mut self, first: FrameId) {
        self.cache.forget(first);
        self.active.take_if(|active| active.first == first);
    }

    /// Counts what there is of a range of frames as done.
    pub(super) fn finish_range(&mut self, first: u64, last: u64) {
        self.pending.insert(first, last);
        let segments: Vec<FrameId> = self
            .catalog
            .segments_behind(FrameId(first))
            .take_while(|segment| segment.first.0 <= last)
            .map(|segment| segment.first)
            .collect();
        for segment in segments {
            let Ok(loaded) = self.loaded(segment) else { continue };
            let inside = loaded.index.entries.iter().map(|entry| entry.id);
            let ids: Vec<FrameId> = inside.filter(|id| (first..=last).contains(&id.0)).collect();
            self.ack(&ids);
        }
    }

    /// All that is done, and all that is assigned, in two records.
    fn summary(&mut self) -> Option<Vec<u8>> {
        let mut done = Ranges::default();
        let mut next = 1;
        let segments: Vec<(FrameId, FrameId, bool)> = self
            .catalog
            .segments()
            .map(|segment| (segment.first, segment.last, segment.live_frames < segment.frames as u64))
            .collect();
        for (first, last, mixed) in segments {
            if first.0 > next {
                done.insert(next, first.0 - 1);
            }
            next = last.0 + 1;
            if !mixed {
                continue;
            }
            let entries: Vec<FrameId> =
                self.loaded(first).ok()?.index.entries.iter().map(|entry| entry.id).collect();
            let segment = self.catalog.segment(first)?;
            for (position, id) in
                entries.iter().enumerate().filter(|(position, _)| segment.is_done(*position))
            {
                // Numbers that the segment does not have are between two that are done: one range for both.
                let from = position.checked_sub(1).filter(|before| segment.is_done(*before));
                let from = from.and_then(|before| entries.get(before)).map_or(id.0, |before| before.0 + 1);
                done.insert(from, id.0);
            }
        }
        done.insert(next, self.next.0.saturating_sub(1));
        let mut records = encode_done(self.next, &done);
        if !self.assigned.is_empty() {
            let each = self.assigned.iter().flat_map(|(id, all)| all.iter().map(|given| (*id, given)));
            records.extend(encode_assigned(each));
        }
        records.extend(self.unreleased.summary(self.next));
        Some(records)
    }

    /// Writes the checkpoint anew if it has grown; the long file serves as well.
    fn shorten_checkpoint(&mut self) -> Result<(), SpoolError> {
        if self.checkpoint.is_grown()
            && let Some(records) = self.summary()
        {
            match self.checkpoint.replace(&records) {
                Err(WriteError::Full) => {}
                other => {
                    self.written(other)?;
                    self.pending.clear();
                    self.forgotten.clear();
                }
            }
        }
        Ok(())
    }

    /// Notes the unreleased messages of frames that are about to be appended. Without room for the note they go without, which
    /// may repeat them after a crash: false. But notes of an append that failed must not be taken for these frames, nor may an older
    /// message be remembered under the number of a newer one.
    pub(super) fn note_unreleased(&mut self, frames: &[NewFrame<'_>]) -> Result<bool, SpoolError> {
        let stale = self.unreleased.is_noted_beyond(self.next);
        if !stale && frames.iter().all(|frame| frame.unreleased.is_empty()) {
            return Ok(true);
        }
        let forget = |one: &Unreleased| Forget { number: one.number, content: None };
        let numbers = || frames.iter().flat_map(|frame| frame.unreleased).map(forget).collect::<Vec<_>>();
        let numbered = (self.next.0..).map(FrameId).zip(frames);
        let each = numbered.flat_map(|(id, frame)| frame.unreleased.iter().map(move |one| (id, one)));
        let written = self.checkpoint.append(&encode_noted(self.next, each));
        match self.written(written) {
            Ok(()) => {
                let messages = frames.iter().flat_map(|frame| frame.unreleased);
                self.unreleased.noted(self.next, frames.len(), messages);
                Ok(true)
            }
            Err(SpoolError::Full { .. })
                if !stale && self.unreleased.known(&numbers(), self.next).is_empty() =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Store for DiskSpool {
    fn append(&mut self, frames: &[NewFrame<'_>]) -> Result<Appended, SpoolError> {
        self.append_frames(frames)
    }

    fn assign(&mut self, assignments: &[Assignment]) -> Result<(), SpoolError> {
        self.check_poison()?;
        let mut live = Vec::with_capacity(assignments.len());
        for Assignment { id, given } in assignments {
            let mut given = given.clone();
            match self.live_records(*id) {
                Ok(Some(records)) => given.records.truncate(records),
                // Not given up yet: it may be read again, and what was sent of it must be known then.
                Err(_) if !self.deferred.contains(id) => {}
                Ok(None) | Err(_) => continue,
            }
            if !given.records.is_empty() {
                live.push((*id, given));
            }
        }
        if live.is_empty() {
            return Ok(());
        }
        // Before and not after: what fails here gives nothing.
        self.shorten_checkpoint()?;
        let result = self.checkpoint.append(&encode_assigned(live.iter().map(|(id, given)| (*id, given))));
        self.written(result)?;
        live.into_iter().for_each(|(id, given)| given.add_to(self.assigned.entry(id).or_default()));
        Ok(())
    }

    fn unreleased(&self) -> Vec<Unreleased> {
        self.unreleased.all().map(|(_, unreleased)| unreleased).collect()
    }

    fn remembers(&self, forget: &Forget) -> bool {
        !self.unreleased.known(std::slice::from_ref(forget), self.next).is_empty()
    }

    fn release(&mut self, forget: &[Forget]) -> Result<(), SpoolError> {
        let known = self.unreleased.known(forget, self.next);
        if known.is_empty() {
            return Ok(());
        }
        self.check_poison()?;
        let written = self.checkpoint.append(&self.unreleased.encode_release(self.next, &known));
        self.written(written)?;
        self.unreleased.release(&known);
        self.shorten_checkpoint()
    }

    fn ack(&mut self, ids: &[FrameId]) {
        for id in ids {
            if !self.finish(*id) {
                self.deferred.push(*id);
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), SpoolError> {
        self.check_poison()?;
        let deferred = std::mem::take(&mut self.deferred);
        self.ack(&deferred);
        self.finish_checkpoint()?;
        self.shorten_checkpoint()
    }

    fn next_within(
        &mut self,
        topic: &str,
        after: FrameId,
        bytes_max: usize,
        records_max: u32,
    ) -> Result<Vec<Frame>, SpoolError> {
        self.next_frames(topic, after, bytes_max, records_max)
    }

    fn give_up(&mut self, segment: FrameId, frame: Option<FrameId>) -> Result<GaveUp, SpoolError> {
        self.check_poison()?;
        match frame {
            Some(id) => self.give_up_frame(segment, id),
            None => self.give_up_segment(segment),
        }
    }

    fn backlog(&self, topic: &str) -> Backlog {
        self.catalog.backlog(topic)
    }

    fn routes(&self) -> Vec<(String, Backlog)> {
        self.catalog.routes()
    }

    fn total(&self) -> Backlog {
        self.catalog.total()
    }

    fn bytes(&self) -> u64 {
        self.catalog.bytes() + self.checkpoint.bytes()
    }

    fn park(&mut self, topic: &str, parked: bool) {
        self.catalog.park(topic, parked);
    }

    fn take_damage(&mut self) -> Vec<Loss> {
        std::mem::take(&mut self.damage)
    }

    fn take_dropped_ranges(&mut self) -> Vec<(FrameId, FrameId)> {
        let ranges = std::mem::take(&mut self.dropped_ranges);
        ranges.iter().map(|(first, last)| (FrameId(first), FrameId(last))).collect()
    }

    fn reopen(&mut self) -> Result<Report, SpoolError> {
        self.poisoned = true;
        self.active = None;
        self.cache = Cache::default();
        let confirmed = Confirmed { next: self.next, checkpoint_to: self.checkpoint.unconfirmed_from() };
        let Recovered { catalog, checkpoint, contents, next, mut report, finished } =
            recover(&self.fs, &self.directory, Some(confirmed), self.catalog.emptied())?;
        // What was done and could not be written down is not missing.
        let missing = report.missing.iter().flat_map(|(first, last)| self.pending.gaps(*first, *last));
        report.missing = missing.collect();
        self.catalog = catalog;
        self.checkpoint = checkpoint;
        self.assigned = contents.assigned;
        let known = std::mem::replace(&mut self.unreleased, contents.unreleased);
        self.unreleased.retain_known(&known);
        self.forgotten = self.unreleased.release_of_others(&contents.noted, next);
        self.next = next;
        self.poisoned = false;
        // What was acknowledged and not yet written down is still done.
        let pending = std::mem::take(&mut self.pending);
        for (first, last) in pending.iter().chain(report.missing.iter().copied()).chain(finished) {
            self.finish_range(first, last);
        }
        Ok(report)
    }
}
