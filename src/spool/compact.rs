//! Merging neighbouring segments that are mostly done into one: what a parked route's few frames would otherwise pin.
//!
//! Why not a segment file per route: an append of 50 routes would be 50 fdatasyncs instead of one, each some 17 KB of device writes
//! (docs/decisions/0008-segmented-log.md).
//!
//! A merge writes at most as much as it gives back, and is made only when room is needed: most segments are done soon after their
//! first frames. It is one rename: the new file has the name of the first segment and says up to which number it replaces the
//! others, which are removed after it; what is left of them after a power loss is recognised by that.

use std::io;

use super::catalog::Segment;
use super::record::decode;
use super::segment::{self, Entry, Header, Index, file_name};
use super::{DiskSpool, FrameId, SpoolError};
use crate::fs::{Open, is_no_room};

/// Neighbours to be merged: at least half of their bytes are given back, and the result is no longer than a segment.
fn choose<'a>(closed: impl Iterator<Item = &'a Segment>, segment_bytes: u64) -> Vec<FrameId> {
    let (mut best, mut best_gain) = (Vec::new(), 0);
    let (mut run, mut live, mut bytes): (Vec<FrameId>, u64, u64) = (Vec::new(), 0, 0);
    for segment in closed {
        let own = segment.live_bytes + segment.live_frames * segment::ENTRY_BYTES as u64;
        if own * 2 > segment.bytes || live + own > segment_bytes {
            (run, live, bytes) = (Vec::new(), 0, 0);
        }
        if own * 2 > segment.bytes {
            continue;
        }
        run.push(segment.first);
        live += own;
        bytes += segment.bytes;
        let gain = bytes - live.min(bytes);
        // Headers, topics and trailers are small, but what was just merged must not be worth merging again.
        if gain > best_gain && gain > bytes / 2 + 4096.min(segment_bytes / 4) {
            best_gain = gain;
            best = run.clone();
        }
    }
    best
}

impl DiskSpool {
    /// Merges once, where it gives back most; false if nothing is to be gained.
    pub(super) fn compact(&mut self) -> Result<bool, SpoolError> {
        let active = self.active.as_ref().map(|active| active.first);
        let closed = self.catalog.segments().filter(|segment| Some(segment.first) != active);
        let chosen = choose(closed, u64::from(self.options.segment_bytes));
        let (Some(first), Some(last)) = (chosen.first().copied(), chosen.last().copied()) else {
            return Ok(false);
        };
        let to = self.catalog.segment(last).map_or(last, |segment| segment.last);
        let name = format!("{:020}{}", first.0, segment::NEW_SUFFIX);
        let path = self.directory.join(&name);
        // Left over from a failure before.
        match self.fs.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.poison("removing", name, error));
            }
            _ => {}
        }
        let merged = match self.merge(&chosen, Header { first, merged_to: Some(to) }, &path) {
            Ok(Some(merged)) => merged,
            Ok(None) => {
                let _ = self.fs.remove(&path);
                return Ok(false);
            }
            Err(error) if is_no_room(&error) => {
                let _ = self.fs.remove(&path);
                return Ok(false);
            }
            Err(error) => return Err(self.poison("merging to", name, error)),
        };
        if let Err(error) = self.fs.rename(&path, &self.directory.join(file_name(first))) {
            return Err(self.poison("renaming", name, error));
        }
        // What is read from here on is the new file, whether or not its name is durable yet.
        for segment in &chosen {
            self.forget(*segment);
            self.catalog.remove(*segment);
        }
        let (index, end, bytes) = merged;
        self.catalog.add(Segment::new(first, to, bytes, end, true), &index, |_| false);
        let synced = self.fs.sync_dir(&self.directory);
        synced.map_err(|error| self.poison("syncing the directory of", name, error))?;
        self.remove_files(chosen.get(1..).unwrap_or_default())?;
        Ok(true)
    }

    /// Writes the frames that are not done to a new file, durably. None if a segment cannot be read now.
    fn merge(
        &mut self,
        chosen: &[FrameId],
        header: Header,
        path: &std::path::Path,
    ) -> io::Result<Option<(Index, u32, u64)>> {
        let file = self.fs.open(path, Open::Create)?;
        file.write_at(&header.encode(), 0)?;
        let mut index = Index::default();
        let mut at = segment::HEADER_BYTES;
        for segment in chosen {
            let Ok(loaded) = self.loaded(*segment) else { return Ok(None) };
            let entries: Vec<(usize, Entry, String)> = loaded
                .index
                .entries
                .iter()
                .enumerate()
                .map(|(position, entry)| {
                    let topic = loaded.index.topics.get(entry.topic as usize);
                    (position, *entry, topic.cloned().unwrap_or_default())
                })
                .collect();
            for (position, entry, topic) in entries {
                if self.catalog.segment(*segment).is_none_or(|segment| segment.is_done(position)) {
                    continue;
                }
                let Ok(loaded) = self.loaded(*segment) else { return Ok(None) };
                let mut bytes = vec![0; entry.bytes as usize];
                match loaded.file.read_at(&mut bytes, u64::from(entry.offset)) {
                    Ok(read) => bytes.truncate(read),
                    Err(_) => return Ok(None),
                }
                // A damaged frame is found now instead of when it is read.
                if !decode(&bytes).is_ok_and(|frame| frame.header.id == entry.id && frame.topic == topic) {
                    self.damaged(*segment, position, &entry, topic);
                    continue;
                }
                file.write_at(&bytes, at)?;
                let offset = u32::try_from(at).map_err(io::Error::other)?;
                let topic = index.topic(&topic);
                index.entries.push(Entry { offset, topic, ..entry });
                at += u64::from(entry.bytes);
            }
        }
        let end = u32::try_from(at).map_err(io::Error::other)?;
        let encoded = index.encode(end);
        file.write_at(&encoded, at)?;
        file.sync_data()?;
        Ok(Some((index, end, at + encoded.len() as u64)))
    }
}
