//! The spool against a model of what it promises, on a disk that loses power (`fs::simulation`).
//!
//! The model knows no files. It knows what was confirmed, what was acknowledged, and what of that was checkpointed, and from
//! that what must be given out, what must not, and what may (only after a crash: acknowledged but not checkpointed; written but
//! never confirmed).
//!
//! More cases: `PROPTEST_CASES=10000 cargo test --release --lib spool::model`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fs::Filesystem;
use crate::fs::simulation::MemFs;

const DIRECTORY: &str = "/spool";
const TOPICS: [&str; 4] = ["alpha", "beta", "gamma", "a-topic-with-a-longer-name"];

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<(usize, usize, bool)>),
    Assign { nth: usize, count: usize },
    Ack { nth: usize, count: usize, route: Option<usize> },
    Checkpoint,
    Park { route: usize, parked: bool },
    Reopen,
    Restart,
    PowerLoss,
    FailSync(u32),
    FailWrite(u32),
    Room(Option<u64>),
}

fn action() -> impl Strategy<Value = Action> {
    let frame = (0..TOPICS.len(), prop_oneof![4 => 0..300_usize, 1 => 300..3000_usize], any::<bool>());
    prop_oneof![
        12 => prop::collection::vec(frame, 1..6).prop_map(Action::Append),
        3 => (0..50_usize, 1..5_usize).prop_map(|(nth, count)| Action::Assign { nth, count }),
        8 => (0..50_usize, 1..40_usize, prop::option::of(0..TOPICS.len()))
            .prop_map(|(nth, count, route)| Action::Ack { nth, count, route }),
        5 => Just(Action::Checkpoint),
        1 => (0..TOPICS.len(), any::<bool>()).prop_map(|(route, parked)| Action::Park { route, parked }),
        1 => Just(Action::Reopen),
        2 => Just(Action::Restart),
        3 => Just(Action::PowerLoss),
        1 => (0..4_u32).prop_map(Action::FailSync),
        1 => (0..4_u32).prop_map(Action::FailWrite),
        1 => prop::option::of(0..6000_u64).prop_map(Action::Room),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    topic: usize,
    body: Vec<u8>,
    partition: Option<i32>,
    identity: Option<Identity>,
}

#[derive(Debug, Default)]
struct Model {
    /// Confirmed and not acknowledged: must be given out.
    live: BTreeMap<u64, Known>,
    /// Acknowledged since the last checkpoint: may be back after a crash.
    acked: BTreeMap<u64, Known>,
    /// Written and never confirmed: may be there after a crash.
    limbo: Vec<(u64, Known)>,
    /// Identities written and never confirmed, by frame.
    limbo_identities: BTreeMap<u64, Vec<(i32, Identity)>>,
    /// Every number that was ever confirmed.
    highest: u64,
    stamp: u64,
    identities: i32,
    /// Whether the disk was ever full.
    tight: bool,
}

struct Run {
    fs: MemFs,
    options: Options,
    spool: Option<DiskSpool>,
    model: Model,
}

impl Run {
    fn new(seed: u64, options: Options) -> Run {
        let fs = MemFs::new(seed);
        let mut run = Run { fs, options, spool: None, model: Model::default() };
        run.open();
        run
    }

    fn spool(&mut self) -> &mut DiskSpool {
        self.spool.as_mut().unwrap()
    }

    fn open(&mut self) -> Report {
        self.spool = None;
        // A fault that was waiting may hit the opening; then it is tried again, as a service manager would.
        for _ in 0..8 {
            match DiskSpool::open(Arc::new(self.fs.clone()), Path::new(DIRECTORY), self.options) {
                Ok((spool, report)) => {
                    self.spool = Some(spool);
                    return report;
                }
                Err(error @ (SpoolError::Locked(_) | SpoolError::Version { .. })) => panic!("{error}"),
                Err(_) => {}
            }
        }
        panic!("the spool does not open");
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Append(frames) => self.append(frames),
            Action::Assign { nth, count } => self.assign(*nth, *count),
            Action::Ack { nth, count, route } => self.ack(*nth, *count, *route),
            Action::Checkpoint => match self.spool().checkpoint() {
                Ok(()) => self.model.acked.clear(),
                Err(SpoolError::Full { .. }) => {}
                Err(_) => self.reopen(),
            },
            Action::Park { route, parked } => self.spool().park(TOPICS[*route], *parked),
            Action::Reopen => self.reopen(),
            Action::Restart => self.after_crash(false),
            Action::PowerLoss => self.after_crash(true),
            Action::FailSync(after) => self.fs.fail_sync_after(*after),
            Action::FailWrite(after) => self.fs.fail_write_after(*after),
            Action::Room(room) => {
                let capacity = room.map(|room| self.fs.used() + room);
                self.fs.set_capacity(capacity);
                self.model.tight |= capacity.is_some();
            }
        }
        self.check_exactly();
    }

    fn append(&mut self, wanted: &[(usize, usize, bool)]) {
        let mut known = Vec::new();
        for (topic, bytes, sent) in wanted {
            self.model.stamp += 1;
            let mut body = self.model.stamp.to_le_bytes().to_vec();
            body.extend((0..*bytes).map(|at| (at * 7 + *bytes) as u8));
            let identity = sent.then(|| self.identity());
            known.push(Known { topic: *topic, body, partition: identity.map(|_| 3), identity });
        }
        let frames: Vec<NewFrame<'_>> = known.iter().map(new_frame).collect();
        let before = self.spool().next.0 - 1;
        match self.spool.as_mut().unwrap().append(&frames) {
            Ok(appended) => {
                assert_eq!(appended.ids.len(), known.len());
                for (id, known) in appended.ids.iter().zip(known) {
                    assert!(id.0 > self.model.highest, "numbers ascend and are not used twice");
                    self.model.highest = id.0;
                    self.model.live.insert(id.0, known);
                }
                self.dropped(&appended.dropped, true);
            }
            Err(SpoolError::Full { .. }) => {
                let lost = self.spool().take_damage();
                self.dropped(&lost, false);
                self.in_limbo(before, known);
            }
            Err(SpoolError::Poisoned { .. }) => {
                self.in_limbo(before, known);
                let lost = self.spool().take_damage();
                self.dropped(&lost, false);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn in_limbo(&mut self, before: u64, known: Vec<Known>) {
        self.model.limbo.extend((before + 1..).zip(known));
    }

    /// What had to go: the oldest frames, and as many as was said. If the append failed all the same, a crash may bring them back.
    fn dropped(&mut self, losses: &[Loss], durable: bool) {
        if losses.is_empty() {
            return;
        }
        let seen: BTreeSet<u64> = self.seen().into_keys().collect();
        let gone: Vec<u64> = self.model.live.keys().copied().filter(|id| !seen.contains(id)).collect();
        if let (Some(last), Some(first)) = (gone.last(), seen.first()) {
            assert!(last < first, "the oldest go first");
        }
        for (topic, name) in TOPICS.iter().enumerate() {
            let of_topic = gone.iter().filter(|id| self.model.live[id].topic == topic).count() as u64;
            let told: u64 = losses.iter().filter(|loss| loss.topic == *name).map(|loss| loss.frames).sum();
            assert_eq!(told, of_topic, "the loss of {name} is told exactly");
        }
        for id in gone {
            let known = self.model.live.remove(&id).unwrap();
            if !durable {
                self.model.acked.insert(id, known);
            }
        }
    }

    fn identity(&mut self) -> Identity {
        self.model.identities += 1;
        Identity { producer_id: 77, epoch: 1, base_sequence: self.model.identities }
    }

    fn assign(&mut self, nth: usize, count: usize) {
        let ids: Vec<u64> = self.model.live.keys().copied().skip(nth).take(count).collect();
        let given: Vec<Assignment> = ids
            .iter()
            .map(|id| Assignment { id: FrameId(*id), partition: 9, identity: self.identity() })
            .collect();
        match self.spool().assign(&given) {
            Ok(()) => {
                for given in given {
                    let known = self.model.live.get_mut(&given.id.0).unwrap();
                    known.partition = Some(given.partition);
                    known.identity = Some(given.identity);
                    self.model.limbo_identities.remove(&given.id.0);
                }
            }
            Err(_) => {
                for given in given {
                    let unsure = self.model.limbo_identities.entry(given.id.0).or_default();
                    unsure.push((given.partition, given.identity));
                }
            }
        }
    }

    fn ack(&mut self, nth: usize, count: usize, route: Option<usize>) {
        let live = self.model.live.iter().filter(|(_, known)| route.is_none_or(|route| known.topic == route));
        let ids: Vec<u64> = live.map(|(id, _)| *id).skip(nth).take(count).collect();
        let frames: Vec<FrameId> = ids.iter().map(|id| FrameId(*id)).collect();
        self.spool().ack(&frames);
        for id in ids {
            let known = self.model.live.remove(&id).unwrap();
            self.model.acked.insert(id, known);
        }
    }

    /// In the same process nothing comes back and nothing unconfirmed appears.
    fn reopen(&mut self) {
        for attempt in 0.. {
            match self.spool().reopen() {
                Ok(report) => {
                    assert_eq!(report.missing, []);
                    break;
                }
                Err(error) => assert!(attempt < 8, "{error}"),
            }
        }
        self.model.limbo.clear();
        self.model.limbo_identities.clear();
    }

    fn after_crash(&mut self, power_loss: bool) {
        self.spool = None;
        if power_loss {
            self.fs.power_loss();
        }
        let report = self.open();
        assert_eq!(report.damaged, [], "nothing that was confirmed is damaged");
        assert_eq!(report.checkpoint_damaged_bytes, 0);
        // On a full disk a segment may go without a record of it.
        assert!(self.model.tight || !report.checkpoint_lost, "{report:?}");
        let seen = self.seen();
        for (id, known) in &self.model.live {
            let found = seen.get(id).unwrap_or_else(|| panic!("frame {id} is lost: {report:?}"));
            let mut allowed = vec![known.clone()];
            for (partition, identity) in self.model.limbo_identities.get(id).into_iter().flatten() {
                allowed.push(Known {
                    partition: Some(*partition),
                    identity: Some(*identity),
                    ..known.clone()
                });
            }
            assert!(allowed.contains(found), "frame {id} is {found:?} and not one of {allowed:?}");
        }
        // Numbers of which the disk keeps no trace may be given again: nothing that is kept names them.
        let mut highest = 0;
        for (id, found) in &seen {
            let limbo = self.model.limbo.iter().any(|(at, known)| at == id && known == found);
            let acked = self.model.acked.contains_key(id);
            assert!(
                limbo || acked || self.model.live.contains_key(id),
                "frame {id} came from nowhere, or back"
            );
            highest = highest.max(*id);
        }
        // What is there now is synced, and so confirmed.
        self.model.highest = highest;
        self.model.live = seen;
        self.model.acked.clear();
        self.model.limbo.clear();
        self.model.limbo_identities.clear();
    }

    /// All that is given out, read in small pieces.
    fn seen(&mut self) -> BTreeMap<u64, Known> {
        let spool = self.spool.as_mut().unwrap();
        let mut seen = BTreeMap::new();
        for (topic, name) in TOPICS.iter().enumerate() {
            let mut after = FrameId(0);
            loop {
                let frames = spool.next(name, after, 700).unwrap();
                let Some(last) = frames.last() else { break };
                let read: usize = frames[..frames.len() - 1].iter().map(|frame| frame.body.len()).sum();
                assert!(read < 700, "no more than asked for");
                let end = last.id;
                for frame in frames {
                    assert!(frame.id > after, "in order");
                    after = frame.id;
                    assert_eq!((frame.topic.as_str(), frame.records), (*name, frame.body.len() as u32));
                    let (partition, identity) = (frame.partition, frame.identity);
                    let known = Known { topic, body: frame.body.to_vec(), partition, identity };
                    assert_eq!(seen.insert(frame.id.0, known), None, "once");
                }
                assert_eq!(after, end);
            }
        }
        seen
    }

    /// While nothing crashes, exactly what is live is given out, and the counters say so.
    fn check_exactly(&mut self) {
        let seen = self.seen();
        assert_eq!(seen, self.model.live);
        for (topic, name) in TOPICS.iter().enumerate() {
            let own: Vec<&Known> = seen.values().filter(|known| known.topic == topic).collect();
            let backlog = self.spool().backlog(name);
            assert_eq!(backlog.frames, own.len() as u64);
            assert_eq!(backlog.records, own.iter().map(|known| known.body.len() as u64).sum::<u64>());
            let bytes: usize =
                own.iter().map(|known| new_frame(known)).map(|frame| record::frame_bytes(&frame)).sum();
            assert_eq!(backlog.bytes, bytes as u64);
        }
        let files = self.fs.list(Path::new(DIRECTORY)).unwrap();
        let on_disk: u64 = files
            .iter()
            .filter(|file| !file.directory && !file.name.ends_with(".new"))
            .map(|file| file.bytes)
            .sum();
        if !self.spool().poisoned {
            assert_eq!(self.spool().bytes(), on_disk, "what it says it takes: {files:?}");
        }
    }
}

fn new_frame(known: &Known) -> NewFrame<'_> {
    NewFrame {
        topic: TOPICS[known.topic],
        partition: known.partition,
        identity: known.identity,
        records: known.body.len() as u32,
        messages: 1,
        oldest_ms: 1000,
        newest_ms: 2000,
        body: &known.body,
    }
}

fn run(seed: u64, options: Options, actions: &[Action]) {
    let mut run = Run::new(seed, options);
    for action in actions {
        run.act(action);
    }
    // In the end all can be given out and the disk be given back.
    run.fs.heal();
    if run.spool().poisoned {
        run.reopen();
    }
    let all: Vec<FrameId> = run.model.live.keys().map(|id| FrameId(*id)).collect();
    run.spool().ack(&all);
    run.spool().checkpoint().unwrap();
    let left = run.fs.list(Path::new(DIRECTORY)).unwrap();
    let segments = left.iter().filter(|file| file.name.ends_with(segment::SUFFIX)).count();
    assert_eq!(segments, 0, "{left:?}");
}

fn options(bytes_max: u64, policy: Policy) -> Options {
    Options { bytes_max, free_bytes_min: 0, segment_bytes: 4096, policy }
}

proptest! {
    #[test]
    fn what_was_confirmed_is_given_out_in_order_until_it_is_acknowledged_whatever_the_disk_does(
        seed in any::<u64>(),
        cap in prop_oneof![Just(1 << 40), Just(30_000_u64), Just(80_000)],
        drop_oldest in any::<bool>(),
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let policy = if drop_oldest { Policy::DropOldest } else { Policy::Block };
        run(seed, options(cap, policy), &actions);
    }
}
