//! What cannot be read, with the time passed in: nothing waits.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::bounded;

use super::unreadable::UNREADABLE_FOR;
use super::*;
use crate::fs::Filesystem;
use crate::fs::simulation::MemFs;
use crate::observe::heartbeat::Heartbeats;
use crate::spool::{Assignment, DiskSpool, Identity, Options, segment};

fn watched() -> Watched {
    let heartbeat = Heartbeats::new(None, clock::now()).join("spool", clock::now());
    Watched { counters: Arc::default(), heartbeat, disk_limit: disk_limit(8 << 20) }
}

const DIRECTORY: &str = "/spool";
const SECOND: Duration = Duration::from_secs(1);

fn path(first: u64) -> std::path::PathBuf {
    Path::new(DIRECTORY).join(segment::file_name(FrameId(first)))
}

/// Frames 1 to 12, of `a` and `b` in turn, two in a segment, in a process that has read none yet.
fn thread(fs: &MemFs) -> SpoolThread {
    let options = Options { free_bytes_min: 0, segment_bytes: 4096, ..Options::default() };
    let open = || DiskSpool::open(Arc::new(fs.clone()), Path::new(DIRECTORY), options).unwrap().0;
    let mut spool = open();
    let body = [1; 1900];
    for number in 0..12 {
        let topic = if number % 2 == 0 { "a" } else { "b" };
        let (partition, identity, records, messages) = (None, None, 3, 2);
        let (oldest_ms, newest_ms, body) = (5, 6, &body[..]);
        let unreleased = &[];
        let frame = NewFrame {
            topic,
            partition,
            identity,
            records,
            messages,
            oldest_ms,
            newest_ms,
            body,
            unreleased,
        };
        spool.append(&[frame]).unwrap();
    }
    drop(spool);
    let (requests, replies) = (bounded(1).1, bounded(1).0);
    SpoolThread::new(Box::new(open()), requests, replies, None, watched())
}

/// The frames that a route gets behind this one.
fn read(thread: &mut SpoolThread, topic: &str, after: u64, now: Instant) -> Vec<u64> {
    let read = ReadFrames {
        topic: topic.into(),
        after: FrameId(after),
        bytes_max: usize::MAX,
        records_max: u32::MAX,
    };
    thread.read(read, now).frames.iter().map(|frame| frame.id.0).collect()
}

#[test]
fn a_segment_that_cannot_be_read_is_given_up_after_a_while_and_the_rest_is_given_out() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    let third = fs.get(&path(5)).unwrap();
    fs.remove(&path(5)).unwrap();
    assert_eq!(read(&mut thread, "a", 0, begin), [1, 3], "what is in front of it");
    for second in 0..30 {
        assert_eq!(read(&mut thread, "a", 3, begin + SECOND * second), [0_u64; 0]);
    }
    assert_eq!(thread.store.backlog("b").frames, 6);
    fs.put(&path(5), &third);
    fs.set_fail_reads(true);
    assert_eq!(read(&mut thread, "a", 3, begin + UNREADABLE_FOR), [0_u64; 0]);
    fs.set_fail_reads(false);
    assert_eq!(read(&mut thread, "a", 3, begin + UNREADABLE_FOR), [7, 9, 11]);
    assert_eq!(
        read(&mut thread, "b", 0, begin + UNREADABLE_FOR),
        [2, 4, 8, 10, 12],
        "also for another route"
    );
    let set_aside = Path::new(DIRECTORY).join("quarantine").join(segment::file_name(FrameId(5)));
    assert_eq!((fs.get(&path(5)), fs.get(&set_aside)), (None, Some(third)));
    // The next start does not miss what was given up.
    thread.checkpoint();
    let report = thread.store.reopen().unwrap();
    assert_eq!((report.missing, report.frames), (vec![], 10));
}

#[test]
fn a_segment_that_can_be_read_again_in_time_loses_nothing() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    let first = fs.get(&path(1)).unwrap();
    fs.remove(&path(1)).unwrap();
    for second in 0..30 {
        assert_eq!(read(&mut thread, "b", 0, begin + SECOND * second), [0_u64; 0]);
    }
    fs.put(&path(1), &first);
    assert_eq!(read(&mut thread, "b", 0, begin + UNREADABLE_FOR), [2, 4, 6, 8, 10, 12]);
    // Much later it is another episode.
    let later = begin + UNREADABLE_FOR * 3;
    fs.remove(&path(1)).unwrap();
    assert_eq!(read(&mut thread, "a", 0, later), [0_u64; 0], "it is not held open any more");
    fs.put(&path(1), &first);
    assert_eq!(read(&mut thread, "a", 0, later + SECOND), [1, 3, 5, 7, 9, 11]);
}

#[test]
fn a_frame_that_cannot_be_read_is_given_up_alone() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    assert_eq!(read(&mut thread, "a", 9, begin), [11], "its segment is open");
    fs.set_fail_reads(true);
    for second in 0..=30 {
        assert_eq!(read(&mut thread, "b", 10, begin + SECOND * second), [0_u64; 0]);
    }
    fs.set_fail_reads(false);
    assert_eq!(thread.store.backlog("b").frames, 5);
    assert_eq!(read(&mut thread, "a", 0, begin + SECOND * 31), [1, 3, 5, 7, 9, 11]);
}

#[test]
fn identities_for_what_cannot_be_read_do_not_stop_the_spool() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    fs.remove(&path(5)).unwrap();
    let given = crate::spool::Given {
        partition: 0,
        identity: Identity { producer_id: 1, epoch: 0, base_sequence: 0 },
        batch_records: 3,
        after_offset: -1,
        records: crate::spool::RecordSet::all(3),
    };
    let assignments = vec![Assignment { id: FrameId(5), given }];
    let reply = thread.carry_out(SpoolRequest::Keep { ticket: 1, assignments }, begin);
    assert!(matches!(reply, Some(SpoolReply::Kept { result: Err(NotKept::Stopped), .. })), "{reply:?}");
    assert!(thread.stopped.is_none());
    assert_eq!(read(&mut thread, "a", 0, begin), [1, 3]);
}
