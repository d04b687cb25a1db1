//! Appending: all frames of a call to one segment, one fdatasync, and for a new segment one of the directory.
//!
//! A segment is closed before a call that would make it longer than SPOOL_SEGMENT_BYTES, so it is that long, or as long as one call. By
//! then all of it is synced: only the newest segment can have a torn tail ([`super::scan`]).

use std::collections::HashMap;
use std::io;

use super::catalog::{RouteId, Segment};
use super::reader::Loaded;
use super::record::{encode_header, fits, frame_bytes};
use super::segment::{self, Entry, Header, Index, file_name};
use super::{Appended, DiskSpool, FrameId, Limit, Loss, NewFrame, Policy, SpoolError};
use crate::fs::{Open, is_no_room};

/// Most bytes of one append: the longest frame, and what a caller gathers while one fdatasync lasts, which is a fraction of it.
pub const APPEND_BYTES_MAX: u64 = 192 * 1024 * 1024;
/// Small frames are gathered to writes of this size.
const WRITE_BYTES: usize = 256 * 1024;

/// The newest segment, open for appending.
#[derive(Debug)]
pub struct Active {
    /// Its name.
    pub first: FrameId,
    /// Its file and frames.
    pub loaded: Loaded,
    locals: HashMap<RouteId, u32>,
    /// Where the last confirmed frame ends.
    end: u64,
}

impl DiskSpool {
    pub(super) fn append_frames(&mut self, frames: &[NewFrame<'_>]) -> Result<Appended, SpoolError> {
        self.check_poison()?;
        if frames.is_empty() {
            return Ok(Appended::default());
        }
        let mut need = segment::HEADER_BYTES;
        for frame in frames {
            need += frame_bytes(frame) as u64;
            if !fits(frame) || need > APPEND_BYTES_MAX {
                return Err(SpoolError::TooLarge { topic: frame.topic.to_owned(), bytes: frame.body.len() });
            }
        }
        self.check_shares(frames)?;
        let mut dropped = Vec::new();
        match self.append_within_limits(frames, need, &mut dropped) {
            Ok(ids) => Ok(Appended { ids, dropped }),
            Err(error) => {
                // Told with the damage: they are gone all the same.
                dropped.into_iter().for_each(|loss| add_loss(&mut self.damage, loss));
                Err(error)
            }
        }
    }

    fn append_within_limits(
        &mut self,
        frames: &[NewFrame<'_>],
        need: u64,
        dropped: &mut Vec<Loss>,
    ) -> Result<Vec<FrameId>, SpoolError> {
        let mut noted = false;
        loop {
            self.make_room(need, dropped)?;
            // What was refused for want of room is tried again with more of it.
            let note = if noted { Ok(true) } else { self.note_unreleased(frames) };
            let written = note.and_then(|done| {
                noted = done;
                self.write(frames, need)
            });
            match written {
                // The disk is full before its counters say so: give up old ones if that is the policy.
                Err(SpoolError::Full { limit: Limit::Disk, .. })
                    if self.options.policy == Policy::DropOldest && self.drop_oldest(dropped)? => {}
                result => return result,
            }
        }
    }

    fn write(&mut self, frames: &[NewFrame<'_>], need: u64) -> Result<Vec<FrameId>, SpoolError> {
        let limit = u64::from(self.options.segment_bytes);
        if self.active.as_ref().is_some_and(|active| active.end + need > limit) {
            self.close_active()?;
        }
        let new = self.active.is_none();
        let begun = match self.active.take() {
            Some(active) => Ok(active),
            None => self.begin(),
        };
        let name = file_name(begun.as_ref().map_or(self.next, |active| active.first));
        let (file_end, result) = match &begun {
            Ok(active) => (active.end, self.write_frames(active, frames)),
            Err(_) => (0, Ok(0)),
        };
        let (active, result) = match begun {
            Ok(active) => (Some(active), result),
            Err(error) => (None, Err(error)),
        };
        match result {
            Ok(end) => {
                let active = active.expect("frames were written to it");
                self.confirm(active, name, frames, new, end)
            }
            Err(error) => Err(self.roll_back(active, name, new, file_end, error)),
        }
    }

    fn begin(&mut self) -> io::Result<Active> {
        let (first, file) = loop {
            match self.fs.open(&self.directory.join(file_name(self.next)), Open::Create) {
                // Somebody else's file: it is left alone, and the number is used up.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.pending.insert(self.next.0, self.next.0);
                    self.next.0 += 1;
                }
                file => break (self.next, file?),
            }
        };
        let loaded = Loaded { index: Index::default(), routes: Vec::new(), file };
        Ok(Active { first, loaded, locals: HashMap::new(), end: 0 })
    }

    /// Writes header, if the file is new, and frames; gives where they end.
    fn write_frames(&self, active: &Active, frames: &[NewFrame<'_>]) -> io::Result<u64> {
        let file = active.loaded.file.as_ref();
        let mut buffer = Vec::new();
        let mut at = active.end;
        if at == 0 {
            buffer = Header { first: active.first, merged_to: None }.encode();
        }
        let flush = |buffer: &mut Vec<u8>, at: &mut u64| -> io::Result<()> {
            file.write_at(buffer, *at)?;
            *at += buffer.len() as u64;
            buffer.clear();
            Ok(())
        };
        for (position, frame) in frames.iter().enumerate() {
            encode_header(FrameId(self.next.0 + position as u64), frame, position == 0, &mut buffer);
            if frame.body.len() < WRITE_BYTES {
                buffer.extend_from_slice(frame.body);
            } else {
                flush(&mut buffer, &mut at)?;
                file.write_at(frame.body, at)?;
                at += frame.body.len() as u64;
            }
            if buffer.len() >= WRITE_BYTES {
                flush(&mut buffer, &mut at)?;
            }
        }
        flush(&mut buffer, &mut at)?;
        Ok(at)
    }

    /// Syncs, and counts the frames in.
    fn confirm(
        &mut self,
        mut active: Active,
        name: String,
        frames: &[NewFrame<'_>],
        new: bool,
        end: u64,
    ) -> Result<Vec<FrameId>, SpoolError> {
        let synced = active.loaded.file.sync_data().map_err(|error| ("syncing", error));
        let synced = synced.and_then(|()| match new {
            true => self.fs.sync_dir(&self.directory).map_err(|error| ("syncing the directory of", error)),
            false => Ok(()),
        });
        if let Err((doing, error)) = synced {
            return Err(self.poison(doing, name, error));
        }
        let first = active.first;
        let end_32 = u32::try_from(end).expect("segments are limited to 1 GiB and one append");
        if new {
            self.catalog.add(Segment::new(first, first, 0, end_32, false), &Index::default(), |_| false);
        }
        let mut ids = Vec::with_capacity(frames.len());
        let mut at = active.end.max(segment::HEADER_BYTES);
        for frame in frames {
            let bytes = frame_bytes(frame) as u64;
            let route = self.catalog.route(frame.topic);
            let topic = *active.locals.entry(route).or_insert_with(|| {
                active.loaded.routes.push(route);
                active.loaded.index.topics.push(frame.topic.to_owned());
                u32::try_from(active.loaded.routes.len() - 1).expect("fewer topics than bytes")
            });
            let entry = Entry {
                id: self.next,
                oldest_ms: frame.oldest_ms,
                offset: u32::try_from(at).expect("it ends before the segment does"),
                bytes: u32::try_from(bytes).expect("frames are limited"),
                records: frame.records,
                messages: frame.messages,
                topic,
            };
            active.loaded.index.entries.push(entry);
            self.catalog.push(first, &entry, route);
            for unreleased in frame.unreleased {
                self.unreleased.add(self.next, unreleased);
            }
            ids.push(self.next);
            self.next.0 += 1;
            at += bytes;
        }
        self.catalog.resize(first, end, end_32, false);
        active.end = end;
        self.active = Some(active);
        Ok(ids)
    }

    /// Makes the file what it was before a write that failed, durably: whole frames may have been written, whose messages go to
    /// Kafka another way now, and a power loss must not bring them back.
    fn roll_back(
        &mut self,
        active: Option<Active>,
        name: String,
        new: bool,
        end: u64,
        error: io::Error,
    ) -> SpoolError {
        let undone = match &active {
            Some(_) if new => {
                let removed = self.fs.remove(&self.directory.join(&name));
                removed.and_then(|()| self.fs.sync_dir(&self.directory))
            }
            Some(active) => {
                let file = &active.loaded.file;
                file.set_bytes(end).and_then(|()| file.sync_data())
            }
            None => Ok(()),
        };
        if undone.is_err() || !is_no_room(&error) {
            return self.poison("writing", name, error);
        }
        self.active = active.filter(|_| !new);
        SpoolError::Full { limit: Limit::Disk, topic: None }
    }

    /// Gives the newest segment its index; the next append begins another.
    pub(super) fn close_active(&mut self) -> Result<(), SpoolError> {
        let Some(active) = self.active.take() else { return Ok(()) };
        let Active { first, loaded, end, .. } = active;
        let end_32 = u32::try_from(end).expect("segments are limited to 1 GiB and one append");
        let index = loaded.index.encode(end_32);
        let written = match loaded.file.write_at(&index, end) {
            Ok(()) => loaded.file.sync_data().map(|()| index.len() as u64),
            // It serves without: what is in it can be read from the frames.
            Err(error) if is_no_room(&error) => loaded.file.set_bytes(end).map(|()| 0),
            Err(error) => Err(error),
        };
        match written {
            Ok(bytes) => {
                self.catalog.resize(first, end + bytes, end_32, bytes > 0);
                self.cache.hold(first, loaded);
                Ok(())
            }
            Err(error) => Err(self.poison("closing", file_name(first), error)),
        }
    }
}

/// Adds a loss to those of its route.
pub(super) fn add_loss(losses: &mut Vec<Loss>, loss: Loss) {
    match losses.iter_mut().find(|known| known.topic == loss.topic) {
        Some(known) => {
            known.frames += loss.frames;
            known.records += loss.records;
            known.messages += loss.messages;
        }
        None => losses.push(loss),
    }
}
