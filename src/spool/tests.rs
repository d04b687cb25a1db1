//! Named cases: limits, faults of the disk, damage, parked routes, and that the spool in memory keeps the same rules.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fs::Filesystem;
use crate::fs::simulation::MemFs;

const DIRECTORY: &str = "/spool";

fn options() -> Options {
    Options { bytes_max: 100_000, free_bytes_min: 0, segment_bytes: 4096, policy: Policy::Block }
}

fn open(fs: &MemFs, options: Options) -> Result<(DiskSpool, Report), SpoolError> {
    DiskSpool::open(Arc::new(fs.clone()), Path::new(DIRECTORY), options)
}

fn new(fs: &MemFs) -> DiskSpool {
    open(fs, options()).unwrap().0
}

fn frame<'a>(topic: &'a str, body: &'a [u8]) -> NewFrame<'a> {
    NewFrame {
        topic,
        partition: None,
        identity: None,
        records: 2,
        messages: 1,
        oldest_ms: 5,
        newest_ms: 6,
        body,
        unreleased: &[],
    }
}

fn ids(store: &mut dyn Store, topic: &str) -> Vec<u64> {
    let frames = store.next(topic, FrameId(0), usize::MAX).unwrap();
    frames.iter().map(|frame| frame.id.0).collect()
}

fn segment_files(fs: &MemFs) -> Vec<String> {
    let entries = fs.list(Path::new(DIRECTORY)).unwrap();
    entries.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(segment::SUFFIX)).collect()
}

#[test]
fn one_append_is_one_fdatasync_however_many_frames() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.append(&[frame("a", b"first")]).unwrap();
    let before = fs.syncs();
    spool.append(&[frame("a", b"x"), frame("b", b"y"), frame("c", b"z")]).unwrap();
    assert_eq!(fs.syncs() - before, 1);
}

#[test]
fn nothing_is_written_while_nothing_is_spooled() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.checkpoint().unwrap();
    assert_eq!(ids(&mut spool, "a"), [0_u64; 0]);
    assert_eq!(fs.written(), 0);
}

#[test]
fn a_failed_sync_stops_the_spool_until_it_is_reopened_and_nothing_unconfirmed_appears() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.append(&[frame("a", b"kept")]).unwrap();
    fs.fail_sync_after(0);
    let refused = spool.append(&[frame("a", b"not confirmed")]);
    assert!(matches!(refused, Err(SpoolError::Poisoned { source: Some(_), .. })));
    assert!(matches!(spool.append(&[frame("a", b"later")]), Err(SpoolError::Poisoned { .. })), "no more Ok");
    assert!(matches!(spool.checkpoint(), Err(SpoolError::Poisoned { .. })));
    spool.reopen().unwrap();
    assert_eq!(ids(&mut spool, "a"), [1]);
    assert_eq!(spool.append(&[frame("a", b"again")]).unwrap().ids, [FrameId(2)]);
}

#[test]
fn a_full_disk_refuses_and_the_same_process_goes_on_when_room_returns() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.append(&[frame("a", &[1; 500])]).unwrap();
    fs.set_capacity(Some(fs.used() + 300));
    for _ in 0..3 {
        let refused = spool.append(&[frame("a", &[2; 1000])]);
        assert!(matches!(&refused, Err(SpoolError::Full { topic: None, .. })), "{refused:?}");
    }
    assert_eq!(ids(&mut spool, "a"), [1]);
    fs.set_capacity(None);
    assert_eq!(spool.append(&[frame("a", &[3; 1000])]).unwrap().ids, [FrameId(2)]);
    drop(spool);
    fs.power_loss();
    assert_eq!(ids(&mut new(&fs), "a"), [1, 2]);
}

#[test]
fn a_spool_on_a_full_disk_opens_and_gives_its_space_back() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    for _ in 0..20 {
        spool.append(&[frame("a", &[1; 900])]).unwrap();
    }
    drop(spool);
    fs.set_capacity(Some(fs.used()));
    let mut spool = new(&fs);
    let all: Vec<FrameId> = ids(&mut spool, "a").into_iter().map(FrameId).collect();
    assert_eq!(all.len(), 20);
    spool.ack(&all);
    spool.checkpoint().unwrap();
    assert_eq!(segment_files(&fs), Vec::<String>::new());
}

#[test]
fn a_full_disk_that_copies_on_write_opens_and_gives_its_space_back() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    for _ in 0..10 {
        spool.append(&[frame("a", &[1; 900])]).unwrap();
    }
    spool.ack(&[FrameId(10)]);
    spool.checkpoint().unwrap();
    drop(spool);
    fs.set_copy_on_write(true);
    fs.set_capacity(Some(fs.used()));
    let (mut spool, report) = open(&fs, options()).unwrap();
    let newest = segment::file_name(FrameId(9));
    assert_eq!(report.not_rewritten, [checkpoint::NAME, &newest], "{report:?}");
    assert_eq!(ids(&mut spool, "a"), (1..=9).collect::<Vec<_>>());
    spool.ack(&(1..=9).map(FrameId).collect::<Vec<_>>());
    spool.checkpoint().unwrap();
    assert_eq!(segment_files(&fs), Vec::<String>::new());
}

/// Files that are named like the next segments and are none are left alone, and nothing is missing.
#[test]
fn foreign_files_with_the_names_of_the_next_segments_do_not_stop_the_spool() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.append(&[frame("a", b"first")]).unwrap();
    let path = |number| Path::new(DIRECTORY).join(segment::file_name(FrameId(number)));
    let foreign = fs.get(&path(1)).unwrap();
    drop(spool);
    fs.put(&path(2), &foreign);
    fs.put(&path(3), b"a letter");
    let (mut spool, report) = open(&fs, options()).unwrap();
    assert_eq!(report.foreign, [segment::file_name(FrameId(2))]);
    fs.put(&path(4), b"another");
    for _ in 0..2 {
        spool.append(&[frame("a", &[1; 3000])]).unwrap();
    }
    assert_eq!(ids(&mut spool, "a"), [1, 3, 5]);
    assert_eq!((fs.get(&path(2)).unwrap(), fs.get(&path(4)).unwrap()), (foreign, b"another".to_vec()));
    spool.checkpoint().unwrap();
    drop(spool);
    fs.power_loss();
    let (mut spool, report) = open(&fs, options()).unwrap();
    assert_eq!(report.missing, []);
    assert_eq!(ids(&mut spool, "a"), [1, 3, 5]);
}

#[test]
fn at_the_cap_block_refuses_and_drop_oldest_tells_exactly_what_went() {
    let fs = MemFs::new(1);
    let small = Options { bytes_max: 10_000, ..options() };
    let (mut spool, _) = open(&fs, small).unwrap();
    let mut kept = 0;
    while spool.append(&[frame("a", &[1; 900])]).is_ok() {
        kept += 1;
    }
    assert!(spool.bytes() <= 10_000 && spool.bytes() > 8_000, "{}", spool.bytes());
    drop(spool);
    let (mut spool, _) = open(&fs, Options { policy: Policy::DropOldest, ..small }).unwrap();
    let appended = spool.append(&[frame("b", &[1; 900])]).unwrap();
    let [loss] = &appended.dropped[..] else { panic!("{appended:?}") };
    assert_eq!((loss.topic.as_str(), loss.records, loss.messages), ("a", loss.frames * 2, loss.frames));
    let left = ids(&mut spool, "a");
    assert_eq!(left, (loss.frames + 1..=kept).collect::<Vec<_>>(), "the oldest, as many as told");
    drop(spool);
    fs.power_loss();
    assert_eq!(ids(&mut open(&fs, small).unwrap().0, "a"), left, "and they do not come back");
}

#[test]
fn what_can_never_fit_drops_nothing() {
    let fs = MemFs::new(1);
    let (mut spool, _) =
        open(&fs, Options { bytes_max: 5000, policy: Policy::DropOldest, ..options() }).unwrap();
    spool.append(&[frame("a", b"kept")]).unwrap();
    assert!(matches!(spool.append(&[frame("a", &[1; 6000])]), Err(SpoolError::Full { .. })));
    assert_eq!(ids(&mut spool, "a"), [1]);
    let too_large = vec![0; record::BODY_BYTES_MAX + 1];
    assert!(matches!(spool.append(&[frame("a", &too_large)]), Err(SpoolError::TooLarge { .. })));
}

#[test]
fn the_floor_of_free_space_is_left() {
    let fs = MemFs::new(1);
    fs.set_capacity(Some(20_000));
    let (mut spool, _) = open(&fs, Options { free_bytes_min: 12_000, ..options() }).unwrap();
    while spool.append(&[frame("a", &[1; 900])]).is_ok() {}
    let free = fs.free_bytes(Path::new(DIRECTORY)).unwrap();
    assert!((12_000..14_000).contains(&free), "{free}");
}

#[test]
fn a_parked_route_pins_no_segments_and_cannot_fill_the_spool() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.park("parked", true);
    let mut parked = Vec::new();
    let mut refused = 0;
    for _ in 0..400 {
        match spool.append(&[frame("parked", &[1; 100])]) {
            Ok(appended) => parked.extend(appended.ids.iter().map(|id| id.0)),
            Err(SpoolError::Full { limit: Limit::Parked, topic }) => {
                assert_eq!(topic.as_deref(), Some("parked"));
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        let live = spool.append(&[frame("live", &[2; 1500])]).unwrap().ids;
        spool.ack(&live);
        spool.checkpoint().unwrap();
    }
    assert!(refused > 100, "{refused}");
    assert!(spool.backlog("parked").bytes <= 25_000);
    assert_eq!(ids(&mut spool, "parked"), parked, "merging keeps all of them, in order");
    drop(spool);
    fs.power_loss();
    assert_eq!(ids(&mut new(&fs), "parked"), parked);
}

/// Stores frames of a route until one is refused; gives how many were stored and the limit.
fn fill(store: &mut dyn Store, topic: &str) -> (u64, Limit) {
    for count in 0.. {
        match store.append(&[frame(topic, &[1; 1000])]) {
            Ok(_) => {}
            Err(SpoolError::Full { limit, .. }) => return (count, limit),
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

#[test]
fn what_a_route_stored_before_it_was_parked_counts_for_no_share() {
    let fs = MemFs::new(1);
    let mut disk = new(&fs);
    let mut memory = MemorySpool::new(options());
    for spool in [&mut disk as &mut dyn Store, &mut memory] {
        let outage: Vec<FrameId> =
            (0..40).map(|_| spool.append(&[frame("a", &[1; 1000])]).unwrap().ids[0]).collect();
        spool.park("a", true);
        let (stored, limit) = fill(spool, "a");
        assert_eq!((stored, limit), (23, Limit::Parked), "a quarter, on top of the outage's backlog");
        // Reopened, taken for a moment, refused again: what was stored while it was refused counts still, and nothing else.
        spool.reopen().unwrap();
        spool.park("a", false);
        spool.append(&[frame("a", &[1; 1000])]).unwrap();
        spool.park("a", true);
        assert_eq!(fill(spool, "a"), (0, Limit::Parked));
        spool.ack(&outage);
        assert_eq!(
            fill(spool, "a"),
            (0, Limit::Parked),
            "what is done of the outage makes no room in the share"
        );
        spool.ack(&[FrameId(41), FrameId(42)]);
        assert_eq!(fill(spool, "a"), (2, Limit::Parked));
    }
}

#[test]
fn a_parked_route_leaves_room_for_others_where_the_disk_has_less_than_the_cap() {
    let fs = MemFs::new(1);
    let limits = Options { bytes_max: 10_000_000, free_bytes_min: 20_000, ..options() };
    let (mut spool, _) = open(&fs, limits).unwrap();
    fs.set_capacity(Some(fs.used() + 120_000));
    spool.park("bad", true);
    assert_eq!(fill(&mut spool, "bad"), (23, Limit::Parked), "a quarter of what there is room for");
    let (stored, limit) = fill(&mut spool, "good");
    assert_eq!(limit, Limit::FreeBytes);
    assert!(stored > 60, "{stored}");
    assert_eq!(fill(&mut spool, "bad"), (0, Limit::Parked), "no more when the disk is full");
}

fn set(positions: &[u32]) -> RecordSet {
    positions.iter().copied().collect()
}

fn given(base_sequence: i32, positions: &[u32]) -> Given {
    let identity = Identity { producer_id: 9, epoch: 0, base_sequence };
    Given { partition: 1, identity, batch_records: 5, after_offset: 70, records: set(positions) }
}

fn assignment(id: u64, base_sequence: i32, positions: &[u32]) -> Assignment {
    Assignment { id: FrameId(id), given: given(base_sequence, positions) }
}

/// What the records of a route's frames were given to, by frame.
fn all_given(store: &mut dyn Store, topic: &str) -> Vec<(u64, Vec<Given>)> {
    let frames = store.next(topic, FrameId(0), usize::MAX).unwrap();
    frames.into_iter().map(|frame| (frame.id.0, frame.given)).collect()
}

#[test]
fn records_given_to_batches_later_are_found_again_and_the_later_batch_wins() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    let sent = Identity { producer_id: 9, epoch: 0, base_sequence: 1 };
    let first = NewFrame { partition: Some(3), identity: Some(sent), records: 4, ..frame("a", b"sent") };
    spool.append(&[first, NewFrame { records: 70, ..frame("a", b"not sent") }]).unwrap();
    spool.append(&[NewFrame { partition: Some(3), ..frame("a", b"only a partition") }]).unwrap();
    let whole = |positions: &[u32]| Given {
        partition: 3,
        identity: sent,
        batch_records: 4,
        after_offset: -1,
        records: set(positions),
    };
    assert_eq!(all_given(&mut spool, "a")[0].1, [whole(&[0, 1, 2, 3])]);
    let syncs = fs.syncs();
    spool
        .assign(&[assignment(1, 20, &[3]), assignment(2, 20, &[0, 64, 69]), assignment(2, 30, &[1, 2])])
        .unwrap();
    assert_eq!(fs.syncs() - syncs, 2, "the file, which is new, and its directory");
    spool.assign(&[assignment(2, 40, &[2, 69]), assignment(2, 50, &[1, 2])]).unwrap();
    let expected = vec![
        (1, vec![whole(&[0, 1, 2]), given(20, &[3])]),
        (2, vec![given(20, &[0, 64]), given(40, &[69]), given(50, &[1, 2])]),
        (3, vec![]),
    ];
    assert_eq!(all_given(&mut spool, "a"), expected);
    spool.reopen().unwrap();
    assert_eq!(all_given(&mut spool, "a"), expected);
    drop(spool);
    fs.power_loss();
    let mut spool = new(&fs);
    assert_eq!(all_given(&mut spool, "a"), expected);
    spool.assign(&[assignment(1, 60, &[0, 1, 2, 3])]).unwrap();
    assert_eq!(all_given(&mut spool, "a")[0].1, [given(60, &[0, 1, 2, 3])]);
}

#[test]
fn what_is_not_there_is_passed_over_and_nothing_of_it_is_kept() {
    let fs = MemFs::new(1);
    let mut disk = new(&fs);
    let mut memory = MemorySpool::new(options());
    for spool in [&mut disk as &mut dyn Store, &mut memory] {
        spool.append(&[frame("a", b"one"), frame("a", b"two")]).unwrap();
        spool.ack(&[FrameId(1)]);
        let beyond = [
            assignment(1, 4, &[0]),
            assignment(2, 4, &[2, 5000]),
            assignment(2, 4, &[]),
            assignment(3, 4, &[0]),
        ];
        spool.assign(&beyond).unwrap();
        assert_eq!(all_given(spool, "a"), [(2, vec![])]);
        spool.assign(&[assignment(2, 5, &[1, 2, 4_000_000]), assignment(7, 5, &[0])]).unwrap();
        assert_eq!(all_given(spool, "a"), [(2, vec![given(5, &[1])])]);
    }
    assert_eq!(disk.assigned.len(), 1);
    disk.ack(&[FrameId(2)]);
    assert!(disk.assigned.is_empty(), "no longer than the frame is not done");
}

#[test]
fn batches_of_records_outlive_merging_and_a_checkpoint_that_is_written_anew() {
    let fs = MemFs::new(5);
    let mut spool = new(&fs);
    let mut kept = Vec::new();
    for round in 0..1200_i32 {
        let id = spool.append(&[NewFrame { records: 9, ..frame("a", &[1; 90]) }]).unwrap().ids[0];
        spool.assign(&[assignment(id.0, round, &[1, 8]), assignment(id.0, round + 5000, &[8])]).unwrap();
        if round % 40 == 0 {
            kept.push((id.0, vec![given(round, &[1]), given(round + 5000, &[8])]));
        } else {
            spool.ack(&[id]);
        }
        let live = spool.append(&[frame("live", &[2; 1500])]).unwrap().ids;
        spool.ack(&live);
        spool.checkpoint().unwrap();
    }
    let length = fs.get(&Path::new(DIRECTORY).join(checkpoint::NAME)).unwrap().len();
    assert!(length < 70 * 1024, "{length}");
    assert!(segment_files(&fs).len() < 20, "they were merged");
    assert_eq!((all_given(&mut spool, "a"), spool.assigned.len()), (kept.clone(), kept.len()));
    drop(spool);
    fs.power_loss();
    assert_eq!(all_given(&mut new(&fs), "a"), kept);
}

#[test]
fn what_was_given_up_is_told_by_number_once_also_when_the_append_fails() {
    let fs = MemFs::new(1);
    let dropping = Options { bytes_max: 12_000, policy: Policy::DropOldest, ..options() };
    let (mut spool, _) = open(&fs, dropping).unwrap();
    let mut dropped = Vec::new();
    while dropped.is_empty() {
        let id = spool.append(&[frame("a", &[1; 900])]).unwrap().ids[0].0;
        spool.assign(&[assignment(id, 1, &[0])]).unwrap();
        dropped = spool.take_dropped_ranges();
    }
    let left = ids(&mut spool, "a");
    assert_eq!(dropped, [(FrameId(1), FrameId(left[0] - 1))]);
    assert_eq!(spool.assigned.len(), left.len(), "of what is gone nothing is kept");
    assert_eq!(spool.take_dropped_ranges(), []);
    // It has to give up some, and then the file's creation fails.
    fs.fail_write_after(1);
    let failed = spool.append(&[frame("a", &[1; 8000])]);
    assert!(matches!(failed, Err(SpoolError::Poisoned { .. })), "{failed:?}");
    let [(first, last)] = spool.take_dropped_ranges()[..] else {
        panic!("one range, as they were neighbours")
    };
    spool.reopen().unwrap();
    assert_eq!(first.0, left[0]);
    assert_eq!(ids(&mut spool, "a"), left.into_iter().filter(|id| *id > last.0).collect::<Vec<_>>());

    let mut spool = MemorySpool::new(Options { bytes_max: 500, ..dropping });
    spool
        .append(&[frame("a", &[1; 20]), frame("b", &[1; 20]), frame("a", &[1; 20]), frame("b", &[1; 20])])
        .unwrap();
    spool.ack(&[FrameId(2)]);
    spool.append(&[frame("b", &[1; 300])]).unwrap();
    assert_eq!(spool.take_dropped_ranges(), [(FrameId(1), FrameId(3))]);
    assert_eq!((spool.take_dropped_ranges(), ids(&mut spool, "b")), (vec![], vec![4, 5]));
}

#[test]
fn a_checkpoint_that_grew_is_written_anew_and_says_the_same() {
    let fs = MemFs::new(3);
    let (mut spool, _) = open(&fs, Options { bytes_max: 10 << 20, ..options() }).unwrap();
    let mut left = Vec::new();
    let mut longest = 0;
    for round in 0..1500_u64 {
        let appended = spool.append(&[frame("a", &[1; 40]), frame("b", &[1; 40])]).unwrap().ids;
        if round % 50 == 0 {
            left.push(appended[1].0);
        } else {
            spool.ack(&appended[1..]);
        }
        spool.ack(&appended[..1]);
        spool.checkpoint().unwrap();
        let length = fs.get(&Path::new(DIRECTORY).join(checkpoint::NAME)).map_or(0, |bytes| bytes.len());
        longest = longest.max(length);
    }
    assert!(longest < 70 * 1024, "{longest}");
    assert_eq!((ids(&mut spool, "a"), ids(&mut spool, "b")), (vec![], left.clone()));
    drop(spool);
    fs.power_loss();
    let mut spool = new(&fs);
    assert_eq!((ids(&mut spool, "a"), ids(&mut spool, "b")), (vec![], left));
}

#[test]
fn a_note_counts_with_its_frame_and_not_if_that_is_damaged() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    for (number, body) in [(7, b"one"), (8, b"two"), (9, b"six")] {
        let unreleased = &[Unreleased { number, content: u64::from(number) }];
        spool.append(&[NewFrame { unreleased, ..frame("a", body) }]).unwrap();
    }
    spool.ack(&[FrameId(1)]);
    spool.checkpoint().unwrap();
    drop(spool);
    let file = Path::new(DIRECTORY).join(&segment_files(&fs)[0]);
    let mut bytes = fs.get(&file).unwrap();
    let at = bytes.windows(3).position(|window| window == b"two").unwrap();
    bytes[at] ^= 1;
    fs.put(&file, &bytes);
    let numbers: Vec<u16> = new(&fs).unreleased().iter().map(|one| one.number).collect();
    assert_eq!(numbers, [7, 9], "8 is lost here, so it must be taken when it is delivered again");
}

#[test]
fn a_read_only_disk_and_a_locked_directory_are_refused_in_one_sentence() {
    let fs = MemFs::new(1);
    let first = new(&fs);
    let locked = open(&fs, options()).err().unwrap();
    assert!(locked.to_string().contains("belongs to another running tidegate"), "{locked}");
    drop(first);
    fs.set_read_only(true);
    let refused = crate::error::chain(&open(&fs, options()).err().unwrap());
    assert!(refused.starts_with("the spool in /spool cannot be used: locking lock failed: "), "{refused}");
}

#[test]
fn a_read_error_is_no_damage() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    spool.append(&[frame("a", b"one")]).unwrap();
    fs.set_fail_reads(true);
    let failed = spool.next("a", FrameId(0), 100);
    assert!(
        matches!(failed, Err(SpoolError::Unreadable { segment: FrameId(1), frame: Some(FrameId(1)), .. })),
        "{failed:?}"
    );
    assert_eq!(spool.take_damage(), []);
    fs.set_fail_reads(false);
    assert_eq!(ids(&mut spool, "a"), [1]);
}

#[test]
fn a_lost_checkpoint_is_said_and_everything_is_given_out_again() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    for _ in 0..10 {
        spool.append(&[frame("a", &[1; 900])]).unwrap();
    }
    spool.ack(&(1..=6).map(FrameId).collect::<Vec<_>>());
    spool.checkpoint().unwrap();
    drop(spool);
    fs.remove(&Path::new(DIRECTORY).join(checkpoint::NAME)).unwrap();
    let (mut spool, report) = open(&fs, options()).unwrap();
    assert!(report.checkpoint_lost, "{report:?}");
    assert_eq!(ids(&mut spool, "a"), [5, 6, 7, 8, 9, 10], "what is left of the segments");
}

#[test]
fn in_memory_the_same_rules_hold() {
    let mut spool = MemorySpool::new(Options { bytes_max: 1000, ..options() });
    spool.append(&[frame("a", &[1; 100]), frame("b", &[1; 100]), frame("a", &[1; 100])]).unwrap();
    spool.assign(&[assignment(3, 4, &[0]), assignment(3, 5, &[0, 1])]).unwrap();
    assert_eq!((ids(&mut spool, "a"), ids(&mut spool, "b")), (vec![1, 3], vec![2]));
    assert_eq!(spool.next("a", FrameId(1), 1).unwrap()[0].given, [given(5, &[0, 1])]);
    assert!(matches!(
        spool.append(&[frame("a", &[1; 600])]),
        Err(SpoolError::Full { limit: Limit::Bytes, .. })
    ));
    spool.ack(&[FrameId(1), FrameId(1)]);
    spool.checkpoint().unwrap();
    assert_eq!((spool.backlog("a").frames, spool.backlog("a").records), (1, 2));
    spool.append(&[frame("a", &[1; 500])]).unwrap();
    assert_eq!(ids(&mut spool, "a"), [3, 4]);
    let mut dropping = MemorySpool::new(Options { bytes_max: 500, policy: Policy::DropOldest, ..options() });
    dropping.append(&[frame("a", &[1; 200])]).unwrap();
    let appended = dropping.append(&[frame("b", &[1; 300])]).unwrap();
    assert_eq!(appended.dropped, [Loss { topic: "a".to_owned(), frames: 1, records: 2, messages: 1 }]);
}

proptest! {
    #[test]
    fn whatever_bits_flip_the_spool_opens_and_gives_out_only_what_was_put_in_in_order(
        flips in prop::collection::vec((0..6_usize, any::<prop::sample::Index>(), 0..8_u32), 1..6),
        sizes in prop::collection::vec(0..1500_usize, 1..30),
    ) {
        let fs = MemFs::new(7);
        let mut spool = new(&fs);
        let bodies: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, bytes)| vec![n as u8; *bytes]).collect();
        for body in &bodies {
            spool.append(&[frame("a", body)]).unwrap();
        }
        drop(spool);
        let files = segment_files(&fs);
        for (file, at, bit) in &flips {
            let path = Path::new(DIRECTORY).join(&files[file % files.len()]);
            let length = fs.get(&path).unwrap().len();
            fs.corrupt(&path, at.index(length), 1 << bit);
        }
        for _ in 0..2 {
            let mut spool = new(&fs);
            let frames = spool.next("a", FrameId(0), usize::MAX).unwrap();
            for frame in &frames {
                prop_assert_eq!(&frame.body[..], &bodies[frame.id.0 as usize - 1][..]);
            }
            prop_assert!(frames.windows(2).all(|two| two[0].id < two[1].id));
            // A flip costs one frame at the most: each is an append of its own, so none is taken along by a torn tail.
            prop_assert!(frames.len() + flips.len() >= bodies.len(), "{} of {}", frames.len(), bodies.len());
            prop_assert_eq!(spool.backlog("a").frames, frames.len() as u64);
        }
    }
}

/// What can be read is given out, though a later segment cannot be read now.
#[test]
fn frames_before_a_segment_that_cannot_be_read_are_given_out() {
    let fs = MemFs::new(1);
    let mut spool = new(&fs);
    for _ in 0..3 {
        spool.append(&[frame("a", &[1; 3000])]).unwrap();
    }
    drop(spool);
    let mut spool = new(&fs);
    fs.remove(&Path::new(DIRECTORY).join(segment::file_name(FrameId(2)))).unwrap();
    assert_eq!(ids(&mut spool, "a"), [1]);
    assert!(matches!(spool.next("a", FrameId(1), 1), Err(SpoolError::Unreadable { .. })));
}
