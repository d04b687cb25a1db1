//! The spool without a disk (DB_PERSIST_PATH is absent): the same rules, and the end of the process is the end of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::checkpoint::Ranges;
use super::quota::{asked, over_share};
use super::record::{fits, frame_bytes, whole};
use super::report::Report;
use super::unreleased::Forget;
use super::writer::add_loss;
use super::{
    Appended, Assignment, Backlog, Frame, FrameId, GaveUp, Limit, Loss, NewFrame, Options, Policy,
    SpoolError, Store, Unreleased,
};

#[derive(Debug, Default)]
struct Route {
    backlog: Backlog,
    frames: BTreeMap<FrameId, Frame>,
    parked: bool,
    /// Stored while it was parked, and their length, bytes.
    while_parked: BTreeSet<FrameId>,
    parked_bytes: u64,
}

/// A spool in memory. Its cap is [`Options::bytes_max`], counted as on a disk.
#[derive(Debug)]
pub struct MemorySpool {
    options: Options,
    routes: BTreeMap<String, Route>,
    by_id: BTreeMap<FrameId, String>,
    bytes: u64,
    next: FrameId,
    dropped_ranges: Ranges,
}

impl MemorySpool {
    /// An empty one.
    pub fn new(options: Options) -> MemorySpool {
        MemorySpool {
            options,
            routes: BTreeMap::new(),
            by_id: BTreeMap::new(),
            bytes: 0,
            next: FrameId(1),
            dropped_ranges: Ranges::default(),
        }
    }

    fn remove(&mut self, id: FrameId) -> Option<Frame> {
        let topic = self.by_id.remove(&id)?;
        let route = self.routes.get_mut(&topic)?;
        let frame = route.frames.remove(&id)?;
        let bytes = bytes_of(&frame);
        let backlog = &mut route.backlog;
        backlog.frames -= 1;
        backlog.records -= u64::from(frame.records);
        backlog.messages -= u64::from(frame.messages);
        backlog.bytes -= bytes;
        if route.while_parked.remove(&id) {
            route.parked_bytes -= bytes;
        }
        self.bytes -= bytes;
        if route.frames.is_empty() && !route.parked {
            self.routes.remove(&topic);
        }
        Some(frame)
    }

    fn drop_oldest(&mut self, dropped: &mut Vec<Loss>) -> bool {
        let oldest = self.by_id.first_key_value().map(|(id, _)| *id);
        let Some(frame) = oldest.and_then(|id| self.remove(id)) else { return false };
        let (records, messages) = (u64::from(frame.records), u64::from(frame.messages));
        // One range, however many were done in between: nothing below the oldest is there any more.
        let before = self.dropped_ranges.iter().next_back().map_or(frame.id.0, |(_, last)| last + 1);
        self.dropped_ranges.insert(before, frame.id.0);
        add_loss(dropped, Loss { topic: frame.topic, frames: 1, records, messages });
        true
    }
}

fn bytes_of(frame: &Frame) -> u64 {
    (super::record::HEADER_BYTES + frame.topic.len() + frame.body.len()) as u64
}

impl Store for MemorySpool {
    fn append(&mut self, frames: &[NewFrame<'_>]) -> Result<Appended, SpoolError> {
        if let Some(frame) = frames.iter().find(|frame| !fits(frame)) {
            return Err(SpoolError::TooLarge { topic: frame.topic.to_owned(), bytes: frame.body.len() });
        }
        let parked = self.routes.iter().filter(|(_, route)| route.parked);
        let held: BTreeMap<&str, u64> =
            parked.map(|(topic, route)| (topic.as_str(), route.parked_bytes)).collect();
        if let Some(topic) = over_share(self.options.bytes_max, &held, &asked(frames)) {
            return Err(SpoolError::Full { limit: Limit::Parked, topic: Some(topic) });
        }
        let need: u64 = frames.iter().map(|frame| frame_bytes(frame) as u64).sum();
        let mut dropped = Vec::new();
        while self.bytes + need > self.options.bytes_max {
            let helps = self.options.policy == Policy::DropOldest && need <= self.options.bytes_max;
            if !helps || !self.drop_oldest(&mut dropped) {
                return Err(SpoolError::Full { limit: Limit::Bytes, topic: None });
            }
        }
        let mut ids = Vec::with_capacity(frames.len());
        for new in frames {
            let mut given = Vec::new();
            if let (Some(partition), Some(identity)) = (new.partition, new.identity) {
                whole(partition, identity, new.records).add_to(&mut given);
            }
            let frame = Frame {
                id: self.next,
                topic: new.topic.to_owned(),
                given,
                records: new.records,
                messages: new.messages,
                oldest_ms: new.oldest_ms,
                newest_ms: new.newest_ms,
                body: Bytes::copy_from_slice(new.body),
            };
            let route = self.routes.entry(frame.topic.clone()).or_default();
            route.backlog.frames += 1;
            route.backlog.records += u64::from(frame.records);
            route.backlog.messages += u64::from(frame.messages);
            route.backlog.bytes += bytes_of(&frame);
            if route.parked {
                route.while_parked.insert(frame.id);
                route.parked_bytes += bytes_of(&frame);
            }
            self.bytes += bytes_of(&frame);
            self.by_id.insert(frame.id, frame.topic.clone());
            route.frames.insert(frame.id, frame);
            ids.push(self.next);
            self.next.0 += 1;
        }
        Ok(Appended { ids, dropped })
    }

    fn assign(&mut self, assignments: &[Assignment]) -> Result<(), SpoolError> {
        for Assignment { id, given } in assignments {
            let route = self.by_id.get(id).and_then(|topic| self.routes.get_mut(topic));
            if let Some(frame) = route.and_then(|route| route.frames.get_mut(id)) {
                let mut given = given.clone();
                given.records.truncate(frame.records);
                given.add_to(&mut frame.given);
            }
        }
        Ok(())
    }

    /// What is remembered here ends with the process, and its owner remembers it as long.
    fn unreleased(&self) -> Vec<Unreleased> {
        Vec::new()
    }

    fn remembers(&self, _forget: &Forget) -> bool {
        false
    }

    fn release(&mut self, _forget: &[Forget]) -> Result<(), SpoolError> {
        Ok(())
    }

    fn ack(&mut self, ids: &[FrameId]) {
        ids.iter().for_each(|id| {
            self.remove(*id);
        });
    }

    fn checkpoint(&mut self) -> Result<(), SpoolError> {
        Ok(())
    }

    fn next_within(
        &mut self,
        topic: &str,
        after: FrameId,
        bytes_max: usize,
        records_max: u32,
    ) -> Result<Vec<Frame>, SpoolError> {
        let Some(route) = self.routes.get(topic) else { return Ok(Vec::new()) };
        let (mut room, mut records) = (bytes_max, records_max);
        let behind = route.frames.range(FrameId(after.0.saturating_add(1))..).map(|(_, frame)| frame);
        let frames = behind.take_while(|frame| {
            let taken = room > 0 && records > 0;
            room = room.saturating_sub(frame.body.len().max(1));
            records = records.saturating_sub(frame.records);
            taken
        });
        Ok(frames.cloned().collect())
    }

    fn give_up(&mut self, _: FrameId, _: Option<FrameId>) -> Result<GaveUp, SpoolError> {
        Ok(GaveUp::default())
    }

    fn backlog(&self, topic: &str) -> Backlog {
        let Some(route) = self.routes.get(topic) else { return Backlog::default() };
        let oldest_ms = route.frames.first_key_value().map(|(_, frame)| frame.oldest_ms);
        Backlog { oldest_ms, ..route.backlog }
    }

    fn routes(&self) -> Vec<(String, Backlog)> {
        let all = self.routes.iter().filter(|(_, route)| route.backlog.frames > 0);
        all.map(|(topic, _)| (topic.clone(), self.backlog(topic))).collect()
    }

    fn total(&self) -> Backlog {
        let mut total = Backlog::default();
        for Route { backlog, .. } in self.routes.values() {
            total.frames += backlog.frames;
            total.records += backlog.records;
            total.messages += backlog.messages;
            total.bytes += backlog.bytes;
        }
        total
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn park(&mut self, topic: &str, parked: bool) {
        self.routes.entry(topic.to_owned()).or_default().parked = parked;
        self.routes.retain(|_, route| route.parked || route.backlog.frames > 0);
    }

    fn take_damage(&mut self) -> Vec<Loss> {
        Vec::new()
    }

    fn take_dropped_ranges(&mut self) -> Vec<(FrameId, FrameId)> {
        let ranges = std::mem::take(&mut self.dropped_ranges);
        ranges.iter().map(|(first, last)| (FrameId(first), FrameId(last))).collect()
    }

    fn reopen(&mut self) -> Result<Report, SpoolError> {
        Ok(Report::default())
    }
}
