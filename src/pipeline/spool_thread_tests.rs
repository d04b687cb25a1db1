//! What cannot be read or written, with the time passed in: nothing waits.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::bounded;

use super::unreadable::UNREADABLE_FOR;
use super::*;
use crate::fs::Filesystem;
use crate::fs::simulation::MemFs;
use crate::observe::heartbeat::Heartbeats;
use crate::spool::{DiskSpool, Identity, Options, Unreleased, segment};

fn watched() -> Watched {
    let heartbeat = Heartbeats::new(None, clock::now()).join("spool", clock::now());
    Watched { counters: Arc::default(), heartbeat, disk_limit: disk_limit(8 << 20) }
}

const DIRECTORY: &str = "/spool";
const SECOND: Duration = Duration::from_secs(1);

fn path(first: u64) -> std::path::PathBuf {
    Path::new(DIRECTORY).join(segment::file_name(FrameId(first)))
}

fn open(fs: &MemFs) -> DiskSpool {
    let options = Options { free_bytes_min: 0, segment_bytes: 4096, ..Options::default() };
    DiskSpool::open(Arc::new(fs.clone()), Path::new(DIRECTORY), options).unwrap().0
}

/// Frames 1 to 12, of `a` and `b` in turn, two in a segment, in a process that has read none yet.
fn thread(fs: &MemFs) -> SpoolThread {
    let mut spool = open(fs);
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
    SpoolThread::new(Box::new(open(fs)), requests, replies, None, watched())
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
fn full_is_over_when_nothing_was_refused_for_a_while_although_nothing_is_stored_any_more() {
    let fs = MemFs::new(1);
    let mut thread = thread(&fs);
    let begin = clock::now().checked_sub(SECOND * 60).unwrap();
    thread.failed(&SpoolError::Full { limit: Limit::Bytes, topic: None }, begin);
    thread.do_what_is_due(begin + SECOND * 4);
    thread.count();
    assert!(thread.watched.counters.full.load(Relaxed));
    thread.do_what_is_due(begin + SECOND * 6);
    thread.count();
    assert!(!thread.watched.counters.full.load(Relaxed));
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

fn assignment(frame: u64) -> Assignment {
    let given = crate::spool::Given {
        partition: 0,
        identity: Identity { producer_id: 1, epoch: 0, base_sequence: 0 },
        batch_records: 6,
        after_offset: -1,
        records: crate::spool::RecordSet::all(3),
    };
    Assignment { id: FrameId(frame), given }
}

/// The frames of which the next process knows the batch.
fn known_to_the_next(thread: SpoolThread, fs: &MemFs) -> Vec<u64> {
    drop(thread);
    fs.power_loss();
    let mut spool = open(fs);
    let frames = [spool.next("a", FrameId(0), usize::MAX), spool.next("b", FrameId(0), usize::MAX)];
    let frames = frames.into_iter().flat_map(Result::unwrap).filter(|frame| !frame.given.is_empty());
    frames.map(|frame| frame.id.0).collect()
}

#[test]
fn identities_for_what_cannot_be_read_now_are_kept_with_the_others() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    let third = fs.get(&path(5)).unwrap();
    fs.remove(&path(5)).unwrap();
    let assignments = vec![assignment(5), assignment(9)];
    let reply = thread.carry_out(SpoolRequest::Keep { ticket: 1, assignments }, begin);
    assert!(matches!(reply, Some(SpoolReply::Kept { result: Ok(()), .. })), "{reply:?}");
    assert!(thread.stopped.is_none());
    assert_eq!(read(&mut thread, "a", 0, begin), [1, 3]);
    fs.put(&path(5), &third);
    assert_eq!(known_to_the_next(thread, &fs), [5, 9]);
}

#[test]
fn identities_wait_for_a_spool_that_has_just_stopped_to_be_opened_again_once() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    fs.fail_sync_after(0);
    let keep = |frame| SpoolRequest::Keep { ticket: frame, assignments: vec![assignment(frame)] };
    assert!(thread.carry_out(keep(9), begin).is_none(), "no answer yet");
    assert_eq!(thread.wake_at(), Some(begin + SECOND));
    let reply = thread.reopen_if_due(begin + SECOND);
    assert!(matches!(reply, Some(SpoolReply::Kept { ticket: 9, result: Ok(()) })), "{reply:?}");
    // Where that fails nobody waits any longer.
    fs.fail_sync_after(0);
    assert!(thread.carry_out(keep(10), begin).is_none());
    fs.set_read_only(true);
    let reply = thread.reopen_if_due(begin + SECOND);
    let failed = Err(NotKept::Stopped);
    assert!(
        matches!(&reply, Some(SpoolReply::Kept { ticket: 10, result }) if *result == failed),
        "{reply:?}"
    );
    let reply = thread.carry_out(keep(11), begin + SECOND);
    assert!(
        matches!(&reply, Some(SpoolReply::Kept { ticket: 11, result }) if *result == failed),
        "{reply:?}"
    );
    fs.set_read_only(false);
    assert_eq!(known_to_the_next(thread, &fs).first(), Some(&9));
}

#[test]
fn a_disk_that_stays_dead_is_tried_less_and_less_often() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let mut thread = thread(&fs);
    fs.fail_sync_after(0);
    assert!(
        thread.carry_out(SpoolRequest::Keep { ticket: 1, assignments: vec![assignment(1)] }, begin).is_none()
    );
    fs.set_read_only(true);
    let (mut at, mut pauses) = (begin, Vec::new());
    for _ in 0..6 {
        let next = thread.wake_at().unwrap();
        pauses.push((next - at).as_secs());
        at = next;
        thread.do_what_is_due(at);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
    fs.set_read_only(false);
    thread.reopen_at_the_end(at);
    assert_eq!(thread.wake_at(), None, "the last moment is used");
}

/// It is done without being asked, so it is promised where it is done.
#[test]
fn a_spool_that_is_being_opened_again_counts_as_alive() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let (mut thread, heartbeats) = (thread(&fs), Heartbeats::new(None, begin));
    thread.watched.heartbeat = heartbeats.join("spool", begin);
    assert_eq!(heartbeats.late(begin + SECOND * 60).len(), 1);
    fs.fail_sync_after(0);
    let keep = SpoolRequest::Keep { ticket: 1, assignments: vec![assignment(1)] };
    assert!(thread.carry_out(keep, begin).is_none());
    assert!(thread.working(begin + SECOND).is_ok());
    assert_eq!(heartbeats.late(begin + SECOND * 60), []);
    assert_eq!(heartbeats.late(begin + SECOND * 300).len(), 1);
}

/// Nobody asks for anything after a failed append: Kafka takes its messages the other way.
#[test]
fn frames_of_an_append_that_failed_are_cut_off_without_being_asked_for() {
    let (fs, begin) = (MemFs::new(1), clock::now());
    let (requests, reopened) = (bounded(1).1, bounded(1));
    let mut thread = SpoolThread::new(Box::new(open(&fs)), requests, reopened.0, None, watched());
    let frame = |body: &'static [u8]| FrameToKeep {
        topic: "a".into(),
        sent: None,
        records: 1,
        messages: 1,
        oldest_ms: 1,
        newest_ms: 1,
        body: Bytes::from_static(body),
        unreleased: Vec::new(),
    };
    let (first, _) = thread.append(&[frame(b"first")], begin);
    assert_eq!(first, Ok(vec![FrameId(1)]));
    fs.fail_sync_after(0);
    let (second, _) = thread.append(&[frame(b"second")], begin);
    assert_eq!(second, Err(NotKept::Stopped));
    let due = thread.wake_at().unwrap();
    assert!(due <= begin + 2 * SECOND, "it wakes up by itself");
    thread.do_what_is_due(due);
    assert!(matches!(reopened.1.try_recv(), Ok(SpoolReply::Reopened)));
    assert_eq!(thread.wake_at(), None);
    drop(thread);
    let mut spool = open(&fs);
    let frames = spool.next("a", FrameId(0), usize::MAX).unwrap();
    assert_eq!(frames.iter().map(|frame| frame.id.0).collect::<Vec<_>>(), [1]);
}

/// A thread on an empty spool, and where it tells of releases.
fn releasing(fs: &MemFs) -> (SpoolThread, crossbeam_channel::Receiver<Vec<u16>>) {
    let options = Options { free_bytes_min: 0, ..Options::default() };
    let spool = DiskSpool::open(Arc::new(fs.clone()), Path::new(DIRECTORY), options).unwrap().0;
    let (requests, replies) = (bounded(1).1, bounded(1).0);
    let (answers, told) = bounded(1);
    let released = Released { answers, waker: Waker::new().unwrap() };
    (SpoolThread::new(Box::new(spool), requests, replies, Some(released), watched()), told)
}

fn keep(thread: &mut SpoolThread, number: u16, content: u64, now: Instant) -> bool {
    let frame = FrameToKeep {
        topic: "a".into(),
        sent: None,
        records: 1,
        messages: 1,
        oldest_ms: 5,
        newest_ms: 6,
        body: Bytes::from_static(b"body"),
        unreleased: vec![Unreleased { number, content }],
    };
    let reply = thread.carry_out(SpoolRequest::Append(vec![frame]), now);
    matches!(reply, Some(SpoolReply::Appended { result: Ok(_), .. }))
}

#[test]
fn a_spool_that_is_stopped_holds_back_only_what_it_remembers() {
    let (fs, now) = (MemFs::new(1), clock::now());
    let (mut thread, told) = releasing(&fs);
    assert!(keep(&mut thread, 7, 70, now));
    // The note is on the disk, and of the frame nobody knows.
    fs.fail_sync_after(1);
    assert!(!keep(&mut thread, 8, 80, now), "this one may be there after a crash");
    let mut release = |numbers: &[u16], at: Instant| {
        let forget = numbers.iter().map(|&number| Forget { number, content: None }).collect();
        thread.carry_out(SpoolRequest::Release(forget), at);
        told.try_recv().unwrap()
    };
    assert_eq!(release(&[9, 7, 8, 10], now), [9, 10], "Kafka may have all of them");
    // It is opened again meanwhile, and cuts what nobody knows of.
    assert_eq!(release(&[7, 8], now + Duration::from_secs(2)), [7, 8]);
    drop(thread);
    assert_eq!(releasing(&fs).0.store.unreleased(), []);
}

#[test]
fn an_orphan_takes_nothing_of_the_message_that_has_its_identifier_now() {
    let (fs, now) = (MemFs::new(1), clock::now());
    let (mut thread, told) = releasing(&fs);
    for content in [70, 71] {
        assert!(keep(&mut thread, 7, content, now));
    }
    for (content, left) in [(70, vec![Unreleased { number: 7, content: 71 }]), (71, vec![])] {
        let forget = vec![Forget { number: 7, content: Some(content) }];
        thread.carry_out(SpoolRequest::Release(forget), now);
        assert_eq!((told.try_recv().unwrap(), thread.store.unreleased()), (vec![7], left));
    }
}
