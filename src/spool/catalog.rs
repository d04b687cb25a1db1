//! What is in the spool, without the bodies: segments, which of their frames are done, and counters per route. Pure.
//!
//! Invariants: a route's counters are the sums over segments of its frames that are not done; what it holds of its share while Kafka
//! refuses it is the sum over those of them that were stored while it was parked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::checkpoint::Ranges;
use super::segment::{Entry, Index};
use super::{Backlog, FrameId, Loss};

/// A route's position in [`Catalog`].
pub type RouteId = u32;

/// What a route has in one segment that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The route.
    pub route: RouteId,
    /// Frames.
    pub frames: u32,
    /// Records in them.
    pub records: u64,
    /// MQTT messages in them.
    pub messages: u64,
    /// Their length, bytes.
    pub bytes: u64,
    /// Of these, what was stored while the route was parked.
    pub parked_bytes: u64,
    /// Arrival of the oldest record, done or not.
    pub oldest_ms: i64,
}

/// A segment file.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The number of its first frame: its name.
    pub first: FrameId,
    /// The number of the last frame that it is responsible for.
    pub last: FrameId,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Where its frames end.
    pub end: u32,
    /// Whether it has its index.
    pub sealed: bool,
    /// How many frames it has, done or not.
    pub frames: usize,
    /// How many are not done.
    pub live_frames: u64,
    /// Their length, bytes.
    pub live_bytes: u64,
    done: Vec<u64>,
    shares: Vec<Share>,
}

impl Segment {
    /// A segment without frames; its file is `bytes` long.
    pub fn new(first: FrameId, last: FrameId, bytes: u64, end: u32, sealed: bool) -> Segment {
        Segment {
            first,
            last,
            bytes,
            end,
            sealed,
            frames: 0,
            live_frames: 0,
            live_bytes: 0,
            done: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Whether the frame at this position is done, or was never confirmed: a file may hold more than was counted in.
    pub fn is_done(&self, position: usize) -> bool {
        position >= self.frames
            || self.done.get(position / 64).is_none_or(|word| word & (1 << (position % 64)) != 0)
    }

    /// What a route has here.
    pub fn share(&self, route: RouteId) -> Option<&Share> {
        let position = self.shares.binary_search_by_key(&route, |share| share.route).ok()?;
        self.shares.get(position).filter(|share| share.frames > 0)
    }

    fn push(&mut self, entry: &Entry, route: RouteId, done: bool, parked: bool) {
        if self.frames.is_multiple_of(64) {
            self.done.push(0);
        }
        if done && let Some(word) = self.done.last_mut() {
            *word |= 1 << (self.frames % 64);
        }
        self.frames += 1;
        if done {
            return;
        }
        self.live_frames += 1;
        self.live_bytes += u64::from(entry.bytes);
        let position = match self.shares.binary_search_by_key(&route, |share| share.route) {
            Ok(position) => position,
            Err(position) => {
                let oldest_ms = entry.oldest_ms;
                let new =
                    Share { route, frames: 0, records: 0, messages: 0, bytes: 0, parked_bytes: 0, oldest_ms };
                self.shares.insert(position, new);
                position
            }
        };
        if let Some(share) = self.shares.get_mut(position) {
            share.frames += 1;
            share.records += u64::from(entry.records);
            share.messages += u64::from(entry.messages);
            share.bytes += u64::from(entry.bytes);
            share.parked_bytes += if parked { u64::from(entry.bytes) } else { 0 };
            share.oldest_ms = share.oldest_ms.min(entry.oldest_ms);
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Total {
    frames: u64,
    records: u64,
    messages: u64,
    bytes: u64,
}

/// Whether a route is limited to a share, and what it holds of it.
#[derive(Debug, Clone, Default)]
struct Parking {
    parked: bool,
    /// The first frame that was stored since it was parked last.
    from: Option<u64>,
    /// The frames that were stored while it was parked, done or not; no other frame of the route lies between.
    stored: Ranges,
    /// Length of those that are not done, bytes.
    bytes: u64,
}

impl Parking {
    fn set(&mut self, parked: bool) {
        self.parked = parked;
        self.from = None;
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.bytes == 0 {
            self.stored.clear();
        }
    }

    /// A new frame of the route is stored.
    fn note(&mut self, id: FrameId) {
        if self.parked {
            self.tidy();
            self.stored.insert(*self.from.get_or_insert(id.0), id.0);
        }
    }
}

/// See the module head.
#[derive(Debug, Default)]
pub struct Catalog {
    positions: HashMap<Arc<str>, RouteId>,
    names: Vec<Arc<str>>,
    totals: Vec<Total>,
    parkings: Vec<Parking>,
    segments: BTreeMap<FrameId, Segment>,
    bytes: u64,
}

impl Catalog {
    /// The position of a route, which is entered if it is new.
    pub fn route(&mut self, topic: &str) -> RouteId {
        if let Some(known) = self.positions.get(topic) {
            return *known;
        }
        let route = RouteId::try_from(self.names.len()).expect("each route took a topic's bytes of memory");
        let name: Arc<str> = topic.into();
        self.positions.insert(Arc::clone(&name), route);
        self.names.push(name);
        self.totals.push(Total::default());
        self.parkings.push(Parking::default());
        route
    }

    /// The position of a route that is known.
    pub fn known_route(&self, topic: &str) -> Option<RouteId> {
        self.positions.get(topic).copied()
    }

    /// The routes of an index's topics.
    pub fn routes_of(&mut self, index: &Index) -> Vec<RouteId> {
        index.topics.iter().map(|topic| self.route(topic)).collect()
    }

    /// A route's name.
    pub fn name(&self, route: RouteId) -> &str {
        self.names.get(route as usize).map_or("", |name| name)
    }

    /// Adds a segment with its frames; `is_done` says which of them count no more.
    pub fn add(&mut self, segment: Segment, index: &Index, is_done: impl Fn(FrameId) -> bool) {
        let first = segment.first;
        let routes = self.routes_of(index);
        self.bytes += segment.bytes;
        self.segments.insert(first, segment);
        for entry in &index.entries {
            let route = routes.get(entry.topic as usize).copied().unwrap_or_default();
            self.enter(first, entry, route, is_done(entry.id));
        }
    }

    /// Adds a new frame to a segment.
    pub fn push(&mut self, segment: FrameId, entry: &Entry, route: RouteId) {
        if let Some(parking) = self.parkings.get_mut(route as usize) {
            parking.note(entry.id);
        }
        self.enter(segment, entry, route, false);
    }

    fn enter(&mut self, segment: FrameId, entry: &Entry, route: RouteId, done: bool) {
        let Some(segment) = self.segments.get_mut(&segment) else { return };
        let parking = self.parkings.get_mut(route as usize);
        let parking = parking.filter(|parking| !done && parking.stored.contains(entry.id.0));
        segment.push(entry, route, done, parking.is_some());
        segment.last = segment.last.max(entry.id);
        if !done && let Some(total) = self.totals.get_mut(route as usize) {
            total.frames += 1;
            total.records += u64::from(entry.records);
            total.messages += u64::from(entry.messages);
            total.bytes += u64::from(entry.bytes);
        }
        if let Some(parking) = parking {
            parking.bytes += u64::from(entry.bytes);
        }
    }

    /// Marks a frame done; false if it was.
    pub fn finish(&mut self, segment: FrameId, position: usize, entry: &Entry, route: RouteId) -> bool {
        let Some(segment) = self.segments.get_mut(&segment) else { return false };
        if segment.is_done(position) {
            return false;
        }
        if let Some(word) = segment.done.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
        segment.live_frames -= 1;
        segment.live_bytes -= u64::from(entry.bytes);
        let parking = self.parkings.get_mut(route as usize);
        let parking = parking.filter(|parking| parking.stored.contains(entry.id.0));
        let parked_bytes = if parking.is_some() { u64::from(entry.bytes) } else { 0 };
        if let Ok(at) = segment.shares.binary_search_by_key(&route, |share| share.route)
            && let Some(share) = segment.shares.get_mut(at)
        {
            share.frames -= 1;
            share.records -= u64::from(entry.records);
            share.messages -= u64::from(entry.messages);
            share.bytes -= u64::from(entry.bytes);
            share.parked_bytes -= parked_bytes;
        }
        if let Some(total) = self.totals.get_mut(route as usize) {
            total.frames -= 1;
            total.records -= u64::from(entry.records);
            total.messages -= u64::from(entry.messages);
            total.bytes -= u64::from(entry.bytes);
        }
        if let Some(parking) = parking {
            parking.bytes -= parked_bytes;
        }
        true
    }

    /// Takes a segment out; what was not done in it counts no more.
    pub fn remove(&mut self, segment: FrameId) {
        let Some(segment) = self.segments.remove(&segment) else { return };
        self.bytes -= segment.bytes;
        for share in &segment.shares {
            if let Some(total) = self.totals.get_mut(share.route as usize) {
                total.frames -= u64::from(share.frames);
                total.records -= share.records;
                total.messages -= share.messages;
                total.bytes -= share.bytes;
            }
            if let Some(parking) = self.parkings.get_mut(share.route as usize) {
                parking.bytes -= share.parked_bytes;
            }
        }
    }

    /// What would be lost with a segment, by route.
    pub fn losses(&self, segment: FrameId) -> Vec<Loss> {
        let Some(segment) = self.segments.get(&segment) else { return Vec::new() };
        let live = segment.shares.iter().filter(|share| share.frames > 0);
        live.map(|share| Loss {
            topic: self.name(share.route).to_owned(),
            frames: u64::from(share.frames),
            records: share.records,
            messages: share.messages,
        })
        .collect()
    }

    /// The segment has its index now, or got longer.
    pub fn resize(&mut self, segment: FrameId, bytes: u64, end: u32, sealed: bool) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            self.bytes = self.bytes - segment.bytes + bytes;
            segment.bytes = bytes;
            segment.end = end;
            segment.sealed = sealed;
        }
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.values()
    }

    /// The segments that may have frames behind this one, oldest first.
    pub fn segments_behind(&self, after: FrameId) -> impl Iterator<Item = &Segment> {
        let from = self.segment_of(after).map_or(after, |segment| segment.first);
        self.segments.range(from..).map(|(_, segment)| segment)
    }

    /// The segment that is responsible for a frame.
    pub fn segment_of(&self, id: FrameId) -> Option<&Segment> {
        self.segments.range(..=id).next_back().map(|(_, segment)| segment).filter(|at| id <= at.last)
    }

    /// A segment.
    pub fn segment(&self, first: FrameId) -> Option<&Segment> {
        self.segments.get(&first)
    }

    /// Length of all segments, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Limits a route to its share, or lifts that.
    pub fn park(&mut self, topic: &str, parked: bool) {
        let route = self.route(topic);
        if let Some(parking) = self.parkings.get_mut(route as usize) {
            parking.set(parked);
        }
    }

    /// Routes that are parked: names, and what they hold of their shares, bytes.
    pub fn parked(&self) -> impl Iterator<Item = (&str, u64)> {
        let parked = self.names.iter().zip(&self.parkings).filter(|(_, parking)| parking.parked);
        parked.map(|(name, parking)| (&**name, parking.bytes))
    }

    /// What a route has.
    pub fn backlog(&self, topic: &str) -> Backlog {
        let route = self.known_route(topic);
        let total = route.and_then(|route| self.totals.get(route as usize)).copied().unwrap_or_default();
        let oldest = |route| self.segments.values().find_map(|segment| segment.share(route));
        let oldest = route.filter(|_| total.frames > 0).and_then(oldest);
        Backlog {
            frames: total.frames,
            records: total.records,
            messages: total.messages,
            bytes: total.bytes,
            oldest_ms: oldest.map(|share| share.oldest_ms),
        }
    }

    /// Every route that has something.
    pub fn routes(&self) -> Vec<(String, Backlog)> {
        let all = self.names.iter().zip(&self.totals).filter(|(_, total)| total.frames > 0);
        all.map(|(name, _)| (name.to_string(), self.backlog(name))).collect()
    }

    /// What all routes have together; without the oldest.
    pub fn total(&self) -> Backlog {
        let mut all = Backlog::default();
        for total in &self.totals {
            all.frames += total.frames;
            all.records += total.records;
            all.messages += total.messages;
            all.bytes += total.bytes;
        }
        all
    }

    /// A catalog without segments in which the same routes are parked, and the same frames count as stored while they were.
    pub fn emptied(&self) -> Catalog {
        Catalog {
            positions: self.positions.clone(),
            names: self.names.clone(),
            totals: vec![Total::default(); self.totals.len()],
            parkings: self.parkings.iter().map(|parking| Parking { bytes: 0, ..parking.clone() }).collect(),
            ..Catalog::default()
        }
    }
}
