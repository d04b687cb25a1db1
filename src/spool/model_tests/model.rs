//! What a store promises, without files: what was confirmed, and what became of it. The same for a disk and for memory.
//!
//! Of each record it is known to which batch it was given last, by a number; sets of records are the store's own business.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A frame as the model knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub topic: usize,
    pub body: Vec<u8>,
    /// Of each record, the number of the batch; 0 is none.
    pub batches: Vec<i32>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    /// Confirmed and not acknowledged: must be given out.
    pub live: BTreeMap<u64, Known>,
    /// Acknowledged since the last checkpoint: may be back after a crash.
    pub acked: BTreeMap<u64, Known>,
    /// By number, the newest message that was confirmed and is not released.
    pub unreleased: BTreeMap<u16, u64>,
    /// Every number that was ever confirmed.
    pub highest: u64,
    /// Routes that are parked.
    parked: BTreeSet<usize>,
    /// Stored while their route was parked: what of these is live counts for its share.
    while_parked: BTreeSet<u64>,
    /// Batches, but for the records in them; a number is a position plus 1, and the base sequence.
    batches: Vec<Given>,
    stamp: u64,
}

/// So that most sets end within a word and some at its border, and a few frames have no records.
fn record_count(body: &[u8]) -> u32 {
    body.len() as u32 % 130
}

fn identity(base_sequence: i32) -> Identity {
    Identity { producer_id: 77, epoch: 1, base_sequence }
}

impl Known {
    /// As it is appended, sent as this batch or not yet.
    fn new_frame<'a>(&'a self, sent: Option<i32>, unreleased: &'a [Unreleased]) -> NewFrame<'a> {
        NewFrame {
            topic: TOPICS[self.topic],
            partition: sent.map(|_| 3),
            identity: sent.map(identity),
            records: record_count(&self.body),
            messages: 1,
            oldest_ms: 1000,
            newest_ms: 2000,
            body: &self.body,
            unreleased,
        }
    }

    /// Of some frames, messages that may be delivered again: few numbers, so that they come again, and contents that are unique.
    pub fn unreleased(&self) -> Vec<Unreleased> {
        let stamp = self.body.first_chunk::<8>().map_or(0, |stamp| u64::from_le_bytes(*stamp));
        let one = |salt: u64| Unreleased { number: ((stamp + salt) % 7) as u16, content: stamp * 2 + salt };
        (0..stamp % 3).map(one).collect()
    }

    /// As it would be after an assignment.
    pub fn give(&mut self, given: &Given) {
        for (at, batch) in self.batches.iter_mut().enumerate() {
            if given.records.contains(at as u32) {
                *batch = given.identity.base_sequence;
            }
        }
    }
}

impl Model {
    pub fn park(&mut self, store: &mut dyn Store, route: usize, parked: bool) {
        store.park(TOPICS[route], parked);
        if parked {
            self.parked.insert(route)
        } else {
            self.parked.remove(&route)
        };
    }

    /// In a new process nothing is parked, and what is there counts for no share.
    pub fn forget_parked(&mut self) {
        self.parked.clear();
        self.while_parked.clear();
    }

    /// The routes of these frames, of which none was sent, that would hold more than a parked route may, or than all of them may.
    fn over_share(&self, frames: &[&Known], room: u64) -> BTreeSet<usize> {
        let bytes = |known: &Known| record::frame_bytes(&known.new_frame(None, &[])) as u64;
        let counted = self.live.iter().filter(|(id, _)| self.while_parked.contains(id));
        let all: Vec<&Known> = counted.map(|(_, known)| known).chain(frames.iter().copied()).collect();
        let held = |route: usize| -> u64 {
            all.iter().filter(|known| known.topic == route).map(|known| bytes(known)).sum()
        };
        let asked: BTreeSet<usize> = frames.iter().map(|known| known.topic).collect();
        let asked: BTreeSet<usize> = asked.intersection(&self.parked).copied().collect();
        let all_over = self.parked.iter().map(|route| held(*route)).sum::<u64>() > room / 2;
        asked.into_iter().filter(|route| all_over || held(*route) > room / 4).collect()
    }

    /// Appends; an error is given with the frames that were not confirmed. `room` is what the store may take, bytes.
    pub fn append(
        &mut self,
        store: &mut dyn Store,
        wanted: &[(usize, usize, bool)],
        room: u64,
    ) -> Result<(), (SpoolError, Vec<Known>)> {
        let (mut known, mut sent_as) = (Vec::new(), Vec::new());
        for (topic, bytes, sent) in wanted {
            self.stamp += 1;
            let mut body = self.stamp.to_le_bytes().to_vec();
            body.extend((0..*bytes).map(|at| (at * 7 + *bytes) as u8));
            let records = record_count(&body);
            let number = self.batches.len() as i32 + 1;
            if *sent {
                let empty = RecordSet::new();
                self.batches.push(Given { records: empty, ..record::whole(3, identity(number), records) });
            }
            sent_as.push(sent.then_some(number));
            let batches = vec![if *sent { number } else { 0 }; records as usize];
            known.push(Known { topic: *topic, body, batches });
        }
        let unreleased: Vec<Vec<Unreleased>> = known.iter().map(Known::unreleased).collect();
        let each = known.iter().zip(&sent_as).zip(&unreleased);
        let frames: Vec<NewFrame<'_>> =
            each.map(|((known, sent), unreleased)| known.new_frame(*sent, unreleased)).collect();
        let appended = store.append(&frames);
        let unsent = known.iter().zip(&sent_as).filter(|(_, sent)| sent.is_none());
        let unsent: Vec<&Known> = unsent.map(|(known, _)| known).collect();
        let over = self.over_share(&unsent, room);
        match appended {
            Ok(appended) => {
                assert_eq!(over, BTreeSet::new(), "a parked route has no more than its share");
                assert_eq!(appended.ids.len(), known.len());
                for (id, known) in appended.ids.iter().zip(known) {
                    assert!(id.0 > self.highest, "numbers ascend and are not used twice");
                    self.highest = id.0;
                    if self.parked.contains(&known.topic) {
                        self.while_parked.insert(id.0);
                    }
                    let unreleased = known.unreleased().into_iter();
                    self.unreleased.extend(unreleased.map(|one| (one.number, one.content)));
                    self.live.insert(id.0, known);
                }
                self.dropped(store, &appended.dropped, true);
                Ok(())
            }
            Err(error) => {
                if let SpoolError::Full { limit: Limit::Parked, topic } = &error {
                    let told = TOPICS.iter().position(|name| Some(*name) == topic.as_deref());
                    assert!(told.is_some_and(|route| over.contains(&route)), "{topic:?} of {over:?}");
                }
                let lost = store.take_damage();
                self.dropped(store, &lost, false);
                Err((error, known))
            }
        }
    }

    /// What had to go: the oldest frames, and as many and those as was said. If the append failed all the same, a crash may
    /// bring them back.
    fn dropped(&mut self, store: &mut dyn Store, losses: &[Loss], durable: bool) {
        let ranges = store.take_dropped_ranges();
        assert!(ranges.windows(2).all(|two| two[0].1 < two[1].0), "{ranges:?} ascend");
        if losses.is_empty() && ranges.is_empty() {
            return;
        }
        let seen: BTreeSet<u64> = self.seen(store).into_keys().collect();
        let gone: Vec<u64> = self.live.keys().copied().filter(|id| !seen.contains(id)).collect();
        if let (Some(last), Some(first)) = (gone.last(), seen.first()) {
            assert!(last < first, "the oldest go first");
        }
        let told = |id: &u64| ranges.iter().any(|(first, last)| (first.0..=last.0).contains(id));
        assert!(gone.iter().all(told), "{ranges:?} name all of {gone:?}");
        assert!(!seen.iter().any(told), "{ranges:?} name none that is there");
        for (topic, name) in TOPICS.iter().enumerate() {
            let of_topic = gone.iter().filter(|id| self.live[id].topic == topic).count() as u64;
            let told: u64 = losses.iter().filter(|loss| loss.topic == *name).map(|loss| loss.frames).sum();
            assert_eq!(told, of_topic, "the loss of {name} is told exactly");
        }
        for id in gone {
            let known = self.live.remove(&id).unwrap();
            if !durable {
                self.acked.insert(id, known);
            }
        }
    }

    /// Gives records to batches. Some frames are done or never were, some sets are empty or name records that are not there, some
    /// frames are named twice; a batch may have records of several frames. An error is given with what was asked of live frames.
    pub fn assign(
        &mut self,
        store: &mut dyn Store,
        nth: usize,
        picks: &[(usize, u64, bool)],
    ) -> Result<(), (SpoolError, Vec<Assignment>)> {
        let mut asked = Vec::new();
        for (step, mask, new_batch) in picks {
            let live = self.live.keys().copied().nth(nth + step);
            let id = live.unwrap_or(*step as u64 * self.highest / 2);
            if *new_batch || asked.is_empty() {
                let number = self.batches.len() as i32 + 1;
                self.batches.push(Given {
                    partition: number % 7,
                    identity: identity(number),
                    batch_records: mask.count_ones(),
                    after_offset: i64::from(number) * 10 - 11,
                    records: RecordSet::new(),
                });
            }
            let records =
                (0..140_u32).filter(|at| mask.rotate_left(at / 64) & (1 << (at % 64)) != 0).collect();
            let given = Given { records, ..self.batches.last().unwrap().clone() };
            asked.push(Assignment { id: FrameId(id), given });
        }
        match store.assign(&asked) {
            Ok(()) => {
                for Assignment { id, given } in &asked {
                    if let Some(known) = self.live.get_mut(&id.0) {
                        known.give(given);
                    }
                }
                Ok(())
            }
            Err(error) => {
                asked.retain(|assignment| self.live.contains_key(&assignment.id.0));
                Err((error, asked))
            }
        }
    }

    pub fn ack(&mut self, store: &mut dyn Store, nth: usize, count: usize, route: Option<usize>) {
        let live = self.live.iter().filter(|(_, known)| route.is_none_or(|route| known.topic == route));
        let ids: Vec<u64> = live.map(|(id, _)| *id).skip(nth).take(count).collect();
        let frames: Vec<FrameId> = ids.iter().map(|id| FrameId(*id)).collect();
        store.ack(&frames);
        for id in ids {
            let known = self.live.remove(&id).unwrap();
            self.acked.insert(id, known);
        }
    }

    /// All that is given out, read in small pieces.
    pub fn seen(&self, store: &mut dyn Store) -> BTreeMap<u64, Known> {
        let mut seen = BTreeMap::new();
        for (topic, name) in TOPICS.iter().enumerate() {
            let mut after = FrameId(0);
            loop {
                let frames = store.next(name, after, 700).unwrap();
                let Some(last) = frames.last() else { break };
                let read: usize = frames[..frames.len() - 1].iter().map(|frame| frame.body.len()).sum();
                assert!(read < 700, "no more than asked for");
                let end = last.id;
                for frame in frames {
                    assert!(frame.id > after, "in order");
                    after = frame.id;
                    assert_eq!((frame.topic.as_str(), frame.records), (*name, record_count(&frame.body)));
                    assert_eq!(seen.insert(frame.id.0, self.known(topic, &frame)), None, "once");
                }
                assert_eq!(after, end);
            }
        }
        seen
    }

    fn known(&self, topic: usize, frame: &Frame) -> Known {
        let mut batches = vec![0; frame.records as usize];
        for given in &frame.given {
            let number = given.identity.base_sequence;
            let batch = &self.batches[number as usize - 1];
            assert_eq!(&Given { records: batch.records.clone(), ..given.clone() }, batch);
            assert!(!given.records.is_empty(), "none is empty: {frame:?}");
            for at in given.records.iter() {
                assert_eq!(
                    std::mem::replace(&mut batches[at as usize], number),
                    0,
                    "in one batch: {frame:?}"
                );
            }
        }
        Known { topic, body: frame.body.to_vec(), batches }
    }

    /// While nothing crashes, exactly what is live is given out, and the counters say so.
    pub fn check_exactly(&self, store: &mut dyn Store) {
        let seen = self.seen(store);
        assert_eq!(seen, self.live);
        for (topic, name) in TOPICS.iter().enumerate() {
            let own: Vec<NewFrame<'_>> = seen
                .values()
                .filter(|known| known.topic == topic)
                .map(|known| known.new_frame(None, &[]))
                .collect();
            let backlog = store.backlog(name);
            assert_eq!(backlog.frames, own.len() as u64);
            assert_eq!(backlog.records, own.iter().map(|frame| u64::from(frame.records)).sum::<u64>());
            let bytes: usize = own.iter().map(record::frame_bytes).sum();
            assert_eq!(backlog.bytes, bytes as u64);
        }
    }
}
