//! The spool against a model of what it promises: on a disk that loses power (`fs::simulation`), and in memory.
//!
//! The model knows no files. It knows what was confirmed, what was acknowledged, and what of that was checkpointed, and from
//! that what must be given out, what must not, and what may (only after a crash: acknowledged but not checkpointed; written but
//! never confirmed).
//!
//! More cases: `PROPTEST_CASES=10000 cargo test --release --lib spool::model`.

mod found;
mod model;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fs::Filesystem;
use crate::fs::simulation::MemFs;
use model::{Known, Model};

const DIRECTORY: &str = "/spool";
const TOPICS: [&str; 4] = ["alpha", "beta", "gamma", "a-topic-with-a-longer-name"];

/// Of an assignment: frames by position behind the nth, masks of their records, and whether another batch begins.
/// Whatever there is under these numbers.
fn any_of(numbers: &[u16]) -> Vec<Forget> {
    numbers.iter().map(|&number| Forget { number, content: None }).collect()
}

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<(usize, usize, bool)>),
    Assign {
        nth: usize,
        picks: Vec<(usize, u64, bool)>,
    },
    Ack {
        nth: usize,
        count: usize,
        route: Option<usize>,
    },
    Checkpoint,
    Release(Vec<u16>),
    Park {
        route: usize,
        parked: bool,
    },
    Reopen,
    Restart,
    PowerLoss,
    FailSync(u32),
    FailWrite(u32),
    Room(Option<u64>),
    /// The counter of free space says so much more than there is.
    Overstate(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let frame = (0..TOPICS.len(), prop_oneof![4 => 0..300_usize, 1 => 300..3000_usize], any::<bool>());
    let mask = prop_oneof![1 => Just(0), 2 => Just(u64::MAX), 3 => (0..64_u32).prop_map(|at| 1 << at), 6 => any::<u64>()];
    let pick = (0..5_usize, mask, any::<bool>());
    prop_oneof![
        12 => prop::collection::vec(frame, 1..6).prop_map(Action::Append),
        5 => (prop_oneof![3 => Just(0), 1 => 0..50_usize], prop::collection::vec(pick, 1..6))
            .prop_map(|(nth, picks)| Action::Assign { nth, picks }),
        8 => (0..50_usize, 1..40_usize, prop::option::of(0..TOPICS.len()))
            .prop_map(|(nth, count, route)| Action::Ack { nth, count, route }),
        5 => Just(Action::Checkpoint),
        4 => prop::collection::vec(0..7_u16, 1..4).prop_map(Action::Release),
        2 => (0..TOPICS.len(), any::<bool>()).prop_map(|(route, parked)| Action::Park { route, parked }),
        1 => Just(Action::Reopen),
        2 => Just(Action::Restart),
        3 => Just(Action::PowerLoss),
        1 => (0..4_u32).prop_map(Action::FailSync),
        1 => (0..4_u32).prop_map(Action::FailWrite),
        1 => prop::option::of(0..6000_u64).prop_map(Action::Room),
        1 => (0..6000_u64).prop_map(Action::Overstate),
    ]
}

#[derive(Debug)]
struct Run {
    fs: MemFs,
    options: Options,
    spool: Option<DiskSpool>,
    model: Model,
    /// Written and never confirmed: may be there after a crash.
    limbo: Vec<(u64, Known)>,
    /// An assignment that was written and never confirmed: all or none of it may be there after a crash.
    limbo_assigned: Vec<Assignment>,
    /// Released, and never confirmed.
    limbo_released: Vec<u16>,
    /// Whether the disk was ever full.
    tight: bool,
}

impl Run {
    fn new(seed: u64, options: Options) -> Run {
        let (fs, model) = (MemFs::new(seed), Model::default());
        let (limbo, limbo_assigned) = (Vec::new(), Vec::new());
        let limbo_released = Vec::new();
        let mut run =
            Run { fs, options, spool: None, model, limbo, limbo_assigned, limbo_released, tight: false };
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
        let spool = self.spool.as_mut().unwrap();
        match action {
            Action::Append(frames) => self.append(frames),
            Action::Assign { nth, picks } => self.assign(*nth, picks),
            Action::Ack { nth, count, route } => self.model.ack(spool, *nth, *count, *route),
            Action::Checkpoint => match spool.checkpoint() {
                Ok(()) => self.model.acked.clear(),
                Err(SpoolError::Full { .. }) => {}
                Err(_) => self.reopen(),
            },
            Action::Release(numbers) => match spool.release(&any_of(numbers)) {
                Ok(()) => self.model.unreleased.retain(|number, _| !numbers.contains(number)),
                Err(SpoolError::Full { .. }) => {}
                Err(_) => {
                    self.limbo_released.extend(numbers);
                    self.reopen();
                }
            },
            Action::Park { route, parked } => self.model.park(spool, *route, *parked),
            Action::Reopen => self.reopen(),
            Action::Restart => self.after_crash(false),
            Action::PowerLoss => self.after_crash(true),
            Action::FailSync(after) => self.fs.fail_sync_after(*after),
            Action::FailWrite(after) => self.fs.fail_write_after(*after),
            Action::Room(room) => {
                let capacity = room.map(|room| self.fs.used() + room);
                self.fs.set_capacity(capacity);
                self.tight |= capacity.is_some();
            }
            Action::Overstate(bytes) => self.fs.set_overstated(*bytes),
        }
        self.check_exactly();
    }

    fn append(&mut self, wanted: &[(usize, usize, bool)]) {
        let spool = self.spool.as_mut().unwrap();
        let next = spool.next.0;
        let free = self.fs.free_bytes(Path::new(DIRECTORY)).unwrap();
        let room = (spool.bytes() + free).min(self.options.bytes_max);
        match self.model.append(spool, wanted, room) {
            // What was refused for want of room is not there, not even after a power loss.
            Ok(()) | Err((SpoolError::Full { .. }, _)) => {}
            Err((SpoolError::Poisoned { .. }, known)) => self.limbo.extend((next..).zip(known)),
            Err((error, _)) => panic!("{error}"),
        }
    }

    fn assign(&mut self, nth: usize, picks: &[(usize, u64, bool)]) {
        let spool = self.spool.as_mut().unwrap();
        let stopped = spool.poisoned;
        match self.model.assign(spool, nth, picks) {
            // Without room the file is what it was; a spool that is stopped does not write.
            Ok(()) | Err((SpoolError::Full { .. }, _)) => {}
            Err((SpoolError::Poisoned { .. }, _)) if stopped => {}
            Err((SpoolError::Poisoned { .. }, asked)) => {
                assert_eq!(self.limbo_assigned, [], "it stopped at the first");
                self.limbo_assigned = asked;
            }
            Err((error, _)) => panic!("{error}"),
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
        let unconfirmed = std::mem::take(&mut self.limbo);
        self.check_unreleased(&unconfirmed, false);
        self.limbo_assigned.clear();
    }

    /// What is remembered as unreleased was confirmed and not released; nothing else, ever. And all of that, but where something was
    /// under way: then to forget is the safe side.
    fn check_unreleased(&mut self, unconfirmed: &[(u64, Known)], after_crash: bool) {
        let limbo: Vec<Unreleased> = unconfirmed.iter().flat_map(|(_, known)| known.unreleased()).collect();
        let found = self.spool.as_ref().unwrap().unreleased();
        for one in &found {
            let known = self.model.unreleased.get(&one.number) == Some(&one.content);
            assert!(known || (after_crash && limbo.contains(one)), "{one:?} would swallow another message");
        }
        for (number, content) in &self.model.unreleased {
            let there = found.contains(&Unreleased { number: *number, content: *content });
            let doubt = limbo.iter().any(|one| one.number == *number) || self.limbo_released.contains(number);
            assert!(there || doubt || self.tight, "{number} is forgotten");
        }
        self.model.unreleased = found.into_iter().map(|one| (one.number, one.content)).collect();
        self.limbo_released.clear();
    }

    fn after_crash(&mut self, power_loss: bool) {
        self.spool = None;
        self.model.forget_parked();
        if power_loss {
            self.fs.power_loss();
        }
        let report = self.open();
        assert_eq!(report.damaged, [], "nothing that was confirmed is damaged");
        assert_eq!(report.checkpoint_damaged_bytes, 0);
        // On a full disk a segment may go without a record of it.
        assert!(self.tight || !report.checkpoint_lost, "{report:?}");
        let seen = self.model.seen(self.spool.as_mut().unwrap());
        let lost = self.model.live.keys().find(|id| !seen.contains_key(id));
        assert_eq!(lost, None, "a frame is lost: {report:?}");
        // Numbers of which the disk keeps no trace may be given again: nothing that is kept names them.
        let old = |id| self.model.live.get(id).or_else(|| self.model.acked.get(id));
        for (id, found) in &seen {
            let limbo = self.limbo.iter().any(|(at, known)| at == id && known == found);
            assert!(limbo || old(id).is_some(), "frame {id} came from nowhere, or back");
        }
        let otherwise = |assigned: &[Assignment]| -> Vec<(u64, &Known, Known)> {
            let each = seen.iter().filter_map(|(id, found)| {
                let mut known = old(id).cloned()?;
                let own = assigned.iter().filter(|assignment| assignment.id.0 == *id);
                own.for_each(|assignment| known.give(&assignment.given));
                (known != *found).then_some((*id, found, known))
            });
            each.collect()
        };
        let (before, after) = (otherwise(&[]), otherwise(&self.limbo_assigned));
        assert!(before.is_empty() || after.is_empty(), "neither as before {before:?} nor as after {after:?}");
        // What is there now is synced, and so confirmed.
        self.model.highest = seen.last_key_value().map_or(0, |(id, _)| *id);
        self.model.live = seen;
        self.model.acked.clear();
        // Of what was never confirmed, only what is in a frame that is there.
        let unconfirmed = std::mem::take(&mut self.limbo);
        let there: Vec<(u64, Known)> = unconfirmed
            .iter()
            .filter(|(id, known)| self.model.live.get(id).is_some_and(|found| found.body == known.body))
            .cloned()
            .collect();
        let gone = unconfirmed.iter().filter(|(id, _)| !there.iter().any(|(at, _)| at == id));
        for one in gone.flat_map(|(_, known)| known.unreleased()) {
            assert!(!self.spool().unreleased().contains(&one), "{one:?} is of a frame that is not there");
        }
        self.check_unreleased(&unconfirmed, true);
        self.limbo_assigned.clear();
    }

    fn check_exactly(&mut self) {
        let spool = self.spool.as_mut().unwrap();
        self.model.check_exactly(spool);
        let live = |id: &FrameId| self.model.live.contains_key(&id.0);
        assert!(spool.assigned.keys().all(live), "no more is held than is not done: {:?}", spool.assigned);
        let unreleased = spool.unreleased().into_iter().map(|one| (one.number, one.content));
        assert_eq!(unreleased.collect::<BTreeMap<_, _>>(), self.model.unreleased);
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
    assert!(run.spool().assigned.is_empty());
    let left = run.fs.list(Path::new(DIRECTORY)).unwrap();
    let segments = left.iter().filter(|file| file.name.ends_with(segment::SUFFIX)).count();
    assert_eq!(segments, 0, "{left:?}");
}

/// Bits of the checkpoint flip while no process runs. What is told of it afterwards is less than before; that nothing is lost is
/// all that is asked, and that repeats are told.
fn run_flipped(seed: u64, actions: &[Action], flips: &[(prop::sample::Index, u32)]) {
    let mut run = Run::new(seed, options(1 << 40, Policy::Block));
    let mut ever: BTreeMap<u64, Known> = BTreeMap::new();
    let whole = |action: &&Action| {
        use Action::*;
        matches!(action, Append(_) | Assign { .. } | Ack { .. } | Checkpoint | Release(_) | Reopen)
    };
    for action in actions.iter().filter(whole) {
        run.act(action);
        ever.extend(run.model.live.iter().map(|(id, known)| (*id, known.clone())));
    }
    run.spool = None;
    let checkpoint = Path::new(DIRECTORY).join(checkpoint::NAME);
    let Some(length) = run.fs.get(&checkpoint).map(|bytes| bytes.len()) else { return };
    flips.iter().for_each(|(at, bit)| assert!(run.fs.corrupt(&checkpoint, at.index(length), 1 << bit)));
    let report = match DiskSpool::open(Arc::new(run.fs.clone()), Path::new(DIRECTORY), run.options) {
        Ok((spool, report)) => {
            run.spool = Some(spool);
            report
        }
        // Two flips may make a newer version of it.
        Err(error @ SpoolError::Version { .. }) => {
            return assert!(!crate::error::chain(&error).contains('\n'), "one sentence: {error}");
        }
        Err(error) => panic!("{error}"),
    };
    let seen = run.model.seen(run.spool.as_mut().unwrap());
    let lost = run.model.live.keys().find(|id| !seen.contains_key(id));
    assert_eq!(lost, None, "a frame is lost: {report:?}");
    for (id, found) in &seen {
        assert!(ever.get(id).is_some_and(|known| known.body == found.body), "frame {id} came from nowhere");
    }
    let not_written_down = |id: &u64| run.model.live.contains_key(id) || run.model.acked.contains_key(id);
    let told = report.checkpoint_damaged_bytes + report.checkpoint_cut_bytes > 0 || report.checkpoint_lost;
    assert!(told || seen.keys().all(not_written_down), "repeats that are not told: {report:?}");
    // What is stored from now on is neither taken for done nor lost.
    let next = run.spool.as_mut().unwrap().next.0;
    assert!(seen.last_key_value().is_none_or(|(last, _)| *last < next));
    (run.model.live, run.model.highest) = (seen, next - 1);
    run.model.acked.clear();
    run.model.unreleased =
        run.spool().unreleased().into_iter().map(|one| (one.number, one.content)).collect();
    for action in [Action::Append(vec![(0, 9, false), (1, 9, true)]), Action::Checkpoint] {
        run.act(&action);
    }
    run.open();
    // What is remembered of messages that may be delivered again is not asked here.
    run.model.unreleased =
        run.spool().unreleased().into_iter().map(|one| (one.number, one.content)).collect();
    run.check_exactly();
}

/// The spool in memory knows no crash and no fault; else it promises the same.
fn run_in_memory(options: Options, actions: &[Action]) {
    let (mut spool, mut model) = (MemorySpool::new(options), Model::default());
    for action in actions {
        match action {
            Action::Append(frames) => match model.append(&mut spool, frames, options.bytes_max) {
                Ok(()) | Err((SpoolError::Full { .. }, _)) => {}
                Err((error, _)) => panic!("{error}"),
            },
            Action::Assign { nth, picks } => model.assign(&mut spool, *nth, picks).unwrap(),
            Action::Ack { nth, count, route } => model.ack(&mut spool, *nth, *count, *route),
            Action::Checkpoint => spool.checkpoint().unwrap(),
            Action::Park { route, parked } => model.park(&mut spool, *route, *parked),
            _ => {}
        }
        model.check_exactly(&mut spool);
        let bytes: u64 = spool.routes().iter().map(|(_, backlog)| backlog.bytes).sum();
        assert_eq!(spool.bytes(), bytes);
        assert!(bytes <= options.bytes_max);
    }
    let all: Vec<FrameId> = model.live.keys().map(|id| FrameId(*id)).collect();
    spool.ack(&all);
    assert_eq!((spool.bytes(), spool.routes()), (0, vec![]));
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

    #[test]
    fn whatever_bits_of_the_checkpoint_flip_the_spool_starts_and_loses_nothing(
        seed in any::<u64>(),
        actions in prop::collection::vec(action(), 1..60),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..6),
    ) {
        run_flipped(seed, &actions, &flips);
    }

    #[test]
    fn in_memory_the_same_is_given_out(
        cap in prop_oneof![Just(1 << 40), Just(5_000_u64), Just(30_000)],
        drop_oldest in any::<bool>(),
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let policy = if drop_oldest { Policy::DropOldest } else { Policy::Block };
        run_in_memory(options(cap, policy), &actions);
    }
}
