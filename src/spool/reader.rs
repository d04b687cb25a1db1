//! Giving frames out: per route, in order, with checksums verified.
//!
//! A segment's index says where a route's frames are, so that a route passes over the frames of others without reading them. A few
//! indexes are held ([`Cache`]): routes that drain together read the same segments.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::RouteId;
use super::quarantine::{quarantine, set_aside};
use super::record::frame;
use super::scan::scan;
use super::segment::{Entry, Index, file_name};
use super::{DiskSpool, Frame, FrameId, GaveUp, Loss, SpoolError};
use crate::fs::{File, Filesystem, Open};

/// How many closed segments are held open with their indexes: routes that drain are rarely further apart. With 8 MiB and frames
/// of one 200-byte record an index is 1.2 MB, with frames of a hundred records 16 KB.
const HELD: usize = 4;

/// An open segment with its index.
#[derive(Debug)]
pub struct Loaded {
    /// Its frames.
    pub index: Index,
    /// The routes of the index's topics.
    pub routes: Vec<RouteId>,
    /// For reading.
    pub file: Box<dyn File>,
}

/// The segments that are held open, the last used at the end.
#[derive(Debug, Default)]
pub struct Cache(Vec<(FrameId, Loaded)>);

impl Cache {
    /// Closes a segment.
    pub fn forget(&mut self, first: FrameId) {
        self.0.retain(|(held, _)| *held != first);
    }

    /// Holds a segment; the one not used for longest goes.
    pub fn hold(&mut self, first: FrameId, loaded: Loaded) {
        if self.0.len() >= HELD {
            self.0.remove(0);
        }
        self.0.push((first, loaded));
    }

    fn touch(&mut self, first: FrameId) -> bool {
        let Some(position) = self.0.iter().position(|(held, _)| *held == first) else { return false };
        let held = self.0.remove(position);
        self.0.push(held);
        true
    }
}

/// The index of a closed segment: as it was written, or found again.
pub(super) fn load(
    fs: &Arc<dyn Filesystem>,
    path: &Path,
    first: FrameId,
) -> std::io::Result<(Index, Box<dyn File>)> {
    let file = fs.open(path, Open::Read)?;
    let index = match Index::load(file.as_ref())? {
        Some((index, _)) => index,
        None => scan(file.as_ref(), FrameId(first.0.saturating_sub(1)), false)?.index,
    };
    Ok((index, file))
}

impl DiskSpool {
    /// A segment with its index.
    pub(super) fn loaded(&mut self, first: FrameId) -> Result<&Loaded, SpoolError> {
        let active = self.active.as_ref().is_some_and(|active| active.first == first);
        if !active && !self.cache.touch(first) {
            let name = file_name(first);
            let (index, file) = load(&self.fs, &self.directory.join(&name), first).map_err(|source| {
                SpoolError::Unreadable { segment: first, frame: None, file: name, source }
            })?;
            let routes = self.catalog.routes_of(&index);
            self.cache.hold(first, Loaded { index, routes, file });
        }
        let active = self.active.as_ref().filter(|_| active).map(|active| &active.loaded);
        let held = self.cache.0.last().map(|(_, loaded)| loaded);
        Ok(active.or(held).expect("it is the active one, or the last that was touched or held"))
    }

    pub(super) fn next_frames(
        &mut self,
        topic: &str,
        after: FrameId,
        bytes_max: usize,
        records_max: u32,
    ) -> Result<Vec<Frame>, SpoolError> {
        let Some(route) = self.catalog.known_route(topic) else { return Ok(Vec::new()) };
        let segments: Vec<FrameId> = {
            let behind = self.catalog.segments_behind(after);
            behind.filter(|segment| segment.share(route).is_some()).map(|segment| segment.first).collect()
        };
        let mut found = Vec::new();
        let (mut room, mut records) = (bytes_max, records_max);
        for first in segments {
            let positions = match self.positions(first, route, after) {
                Ok(positions) => positions,
                Err(_) if !found.is_empty() => return Ok(found),
                Err(error) => return Err(error),
            };
            for position in positions {
                if room == 0 || records == 0 {
                    return Ok(found);
                }
                match self.read(first, position) {
                    Ok(Some(frame)) => {
                        room = room.saturating_sub(frame.body.len().max(1));
                        records = records.saturating_sub(frame.records);
                        found.push(frame);
                    }
                    Ok(None) => {}
                    // What was read so far is worth giving out; the next call meets the error again.
                    Err(_) if !found.is_empty() => return Ok(found),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// Where in a segment the frames of a route behind `after` are that are not done.
    fn positions(
        &mut self,
        first: FrameId,
        route: RouteId,
        after: FrameId,
    ) -> Result<Vec<usize>, SpoolError> {
        let loaded = self.loaded(first)?;
        let topic = loaded.routes.iter().position(|known| *known == route);
        let Some(topic) = topic.and_then(|topic| u32::try_from(topic).ok()) else { return Ok(Vec::new()) };
        let from = loaded.index.entries.partition_point(|entry| entry.id <= after);
        let behind = loaded.index.entries.iter().enumerate().skip(from);
        let positions: Vec<usize> =
            behind.filter(|(_, entry)| entry.topic == topic).map(|(position, _)| position).collect();
        let segment = self.catalog.segment(first);
        Ok(positions.into_iter().filter(|at| segment.is_some_and(|segment| !segment.is_done(*at))).collect())
    }

    /// Reads a frame; None if it is damaged, which is then on record.
    fn read(&mut self, first: FrameId, position: usize) -> Result<Option<Frame>, SpoolError> {
        let unreadable = |id| {
            move |source| SpoolError::Unreadable {
                segment: first,
                frame: Some(id),
                file: file_name(first),
                source,
            }
        };
        let loaded = self.loaded(first)?;
        let Some(entry) = loaded.index.entries.get(position).copied() else { return Ok(None) };
        let mut bytes = vec![0; entry.bytes as usize];
        let read = loaded.file.read_at(&mut bytes, u64::from(entry.offset)).map_err(unreadable(entry.id))?;
        bytes.truncate(read);
        let topic = loaded.index.topics.get(entry.topic as usize).cloned().unwrap_or_default();
        let assigned = self.assigned.get(&entry.id).map_or(&[][..], |given| given);
        match frame(Bytes::from(bytes), assigned) {
            Ok(frame) if frame.id == entry.id && frame.topic == topic => Ok(Some(frame)),
            _ => {
                self.damaged(first, position, &entry, topic);
                Ok(None)
            }
        }
    }

    /// See [`super::Store::give_up`].
    pub(super) fn give_up_frame(&mut self, segment: FrameId, id: FrameId) -> Result<GaveUp, SpoolError> {
        let loaded = self.loaded(segment)?;
        let Some(position) = loaded.index.position(id) else { return Ok(GaveUp::default()) };
        let Some(entry) = loaded.index.entries.get(position).copied() else { return Ok(GaveUp::default()) };
        let topic = loaded.index.topics.get(entry.topic as usize).cloned().unwrap_or_default();
        // Counted by itself, not with the damage that is yet to be told.
        let damage = std::mem::take(&mut self.damage);
        self.damaged(segment, position, &entry, topic);
        let losses = std::mem::replace(&mut self.damage, damage);
        Ok(GaveUp { first: id, last: id, losses })
    }

    /// See [`super::Store::give_up`].
    pub(super) fn give_up_segment(&mut self, first: FrameId) -> Result<GaveUp, SpoolError> {
        let Some(last) = self.catalog.segment(first).map(|segment| segment.last) else {
            return Ok(GaveUp::default());
        };
        if self.loaded(first).is_ok() {
            return Ok(GaveUp::default());
        }
        let losses = self.catalog.losses(first);
        let name = file_name(first);
        // Set aside before its numbers are written down as done, or the next start would take it for finished and remove it.
        if let Err(source) = set_aside(self.fs.as_ref(), &self.directory, &name) {
            return Err(SpoolError::Unreadable { segment: first, frame: None, file: name, source });
        }
        self.pending.insert(first.0, last.0);
        self.deferred.retain(|id| !(first..=last).contains(id));
        self.forget_assigned(first, last);
        self.forget(first);
        self.catalog.remove(first);
        Ok(GaveUp { first, last, losses })
    }

    /// Copies a damaged frame to the quarantine, counts it, and passes over it from now on.
    pub(super) fn damaged(&mut self, first: FrameId, position: usize, entry: &Entry, topic: String) {
        let (fs, directory) = (Arc::clone(&self.fs), self.directory.clone());
        if let Ok(loaded) = self.loaded(first) {
            let (offset, bytes) = (u64::from(entry.offset), u64::from(entry.bytes));
            quarantine(fs.as_ref(), &directory, loaded.file.as_ref(), &file_name(first), offset, bytes);
        }
        let route = self.catalog.route(&topic);
        if !self.catalog.finish(first, position, entry, route) {
            return;
        }
        self.assigned.remove(&entry.id);
        self.pending.insert(entry.id.0, entry.id.0);
        let (records, messages) = (u64::from(entry.records), u64::from(entry.messages));
        match self.damage.iter_mut().find(|loss| loss.topic == topic) {
            Some(loss) => {
                loss.frames += 1;
                loss.records += records;
                loss.messages += messages;
            }
            None => self.damage.push(Loss { topic, frames: 1, records, messages }),
        }
    }
}
