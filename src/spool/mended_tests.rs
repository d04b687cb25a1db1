//! Named cases of what a review found: what a crash brings back, what is kept apart, what is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inspect::inspect;
use super::*;
use crate::fs::simulation::MemFs;

const DIRECTORY: &str = "/spool";

fn options() -> Options {
    Options { bytes_max: 1 << 30, free_bytes_min: 0, segment_bytes: 4096, policy: Policy::Block }
}

fn open(fs: &MemFs) -> (DiskSpool, Report) {
    DiskSpool::open(Arc::new(fs.clone()), Path::new(DIRECTORY), options()).unwrap()
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn frame(body: &[u8]) -> NewFrame<'_> {
    NewFrame {
        topic: "a",
        partition: None,
        identity: None,
        records: 4,
        messages: 1,
        oldest_ms: 5,
        newest_ms: 6,
        body,
        unreleased: &[],
    }
}

fn ids(store: &mut dyn Store) -> Vec<u64> {
    store.next("a", FrameId(0), usize::MAX).unwrap().iter().map(|frame| frame.id.0).collect()
}

fn set_aside(fs: &MemFs, name: &str) -> Option<Vec<u8>> {
    fs.get(&path(quarantine::QUARANTINE).join(name))
}

/// The first of two frames fits, and is whole in the file until that is made shorter.
#[test]
fn what_a_full_disk_refused_does_not_come_back_after_a_power_loss() {
    for seed in 0..50 {
        for first in [0, 1] {
            let fs = MemFs::new(seed);
            let (mut spool, _) = open(&fs);
            (0..first).for_each(|_| drop(spool.append(&[frame(b"kept")]).unwrap()));
            fs.set_capacity(Some(fs.used() + 1500));
            fs.set_overstated(10_000);
            let refused = spool.append(&[frame(&[1; 500]), frame(&[2; 1500])]);
            assert!(matches!(refused, Err(SpoolError::Full { limit: Limit::Disk, .. })), "{refused:?}");
            drop(spool);
            fs.heal();
            fs.power_loss();
            assert_eq!(ids(&mut open(&fs).0), (1..=first).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}

#[test]
fn a_file_that_is_no_segment_is_set_aside_whole_however_full_disk_and_quarantine_are() {
    let fs = MemFs::new(1);
    drop(open(&fs).0.append(&[frame(b"first")]).unwrap());
    let garbage = vec![7; 17 << 20];
    let name = segment::file_name(FrameId(7));
    fs.put(&path(&name), &garbage);
    fs.set_capacity(Some(fs.used()));
    let (mut spool, report) = open(&fs);
    assert_eq!(ids(&mut spool), [1]);
    assert!(set_aside(&fs, &name) == Some(garbage.clone()), "all of it");
    assert!(fs.get(&path(&name)).is_none());
    let said = report.lines();
    assert!(said.iter().any(|line| line.contains(&name) && line.contains("quarantine/")), "{said:?}");
    // Another one under the same name does not replace it.
    drop(spool);
    fs.put(&path(&name), b"another");
    drop(open(&fs));
    assert!(set_aside(&fs, &name) == Some(garbage));
    assert_eq!(set_aside(&fs, &format!("{name}.1")).as_deref(), Some(&b"another"[..]));
}

#[test]
fn a_checkpoint_whose_header_is_damaged_is_set_aside_and_that_is_said() {
    let fs = MemFs::new(1);
    let (mut spool, _) = open(&fs);
    spool.append(&[frame(b"one"), frame(b"two")]).unwrap();
    spool.ack(&[FrameId(1)]);
    spool.checkpoint().unwrap();
    drop(spool);
    fs.corrupt(&path(checkpoint::NAME), 3, 1);
    let damaged = fs.get(&path(checkpoint::NAME));
    fs.set_capacity(Some(fs.used()));
    let (mut spool, report) = open(&fs);
    assert_eq!(ids(&mut spool), [1, 2], "what was done is given out again");
    assert_eq!(set_aside(&fs, checkpoint::NAME), damaged);
    assert!(report.lines().iter().any(|line| line.contains("may be sent again")), "{:?}", report.lines());
}

#[test]
fn an_append_in_progress_is_no_fault_though_a_foreign_file_has_a_higher_number() {
    let fs = MemFs::new(1);
    let (mut spool, _) = open(&fs);
    spool.append(&[frame(b"first")]).unwrap();
    let newest = path(&segment::file_name(FrameId(1)));
    let whole = fs.get(&newest).unwrap();
    spool.append(&[frame(b"second")]).unwrap();
    let longer = fs.get(&newest).unwrap();
    fs.put(&newest, &longer[..longer.len() - 3]);
    fs.put(&path(&segment::file_name(FrameId(9))), &whole);
    let looked = inspect(&fs, Path::new(DIRECTORY), true, &mut |_| ()).unwrap();
    assert_eq!(looked.faults, Vec::<String>::new());
    assert_eq!(looked.unfinished_bytes, (longer.len() - whole.len() - 3) as u64);
    assert_eq!(looked.foreign, [segment::file_name(FrameId(9))]);
}

#[test]
fn identities_alone_do_not_make_the_checkpoint_longer_and_longer() {
    let fs = MemFs::new(1);
    let (mut spool, _) = open(&fs);
    spool.append(&[frame(b"one"), frame(b"two")]).unwrap();
    for round in 0..4000 {
        let identity = Identity { producer_id: 9, epoch: 0, base_sequence: round };
        let given =
            Given { partition: 1, identity, batch_records: 4, after_offset: 7, records: RecordSet::all(4) };
        spool.assign(&[Assignment { id: FrameId(1), given }]).unwrap();
    }
    let length = fs.get(&path(checkpoint::NAME)).unwrap().len();
    assert!(length < 70 * 1024, "{length}");
    drop(spool);
    fs.power_loss();
    let frames = open(&fs).0.next("a", FrameId(0), usize::MAX).unwrap();
    assert_eq!(frames[0].given[0].identity.base_sequence, 3999);
}
