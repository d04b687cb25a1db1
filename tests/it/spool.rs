//! The spool on a real filesystem: killed at any moment, frozen directories of version 1, the command line.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tidegate::fs::StdFs;
use tidegate::spool::{
    Assignment, DiskSpool, FrameId, Given, Identity, NewFrame, Options, Report, SpoolError, Store,
};

use crate::support::wait;

const KILLS: u64 = 200;

/// The program that is killed, built if only this test was.
fn child() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--example", "spool_child"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the example is built");
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/spool_child")
}

fn options() -> Options {
    Options { segment_bytes: 16 * 1024, free_bytes_min: 0, ..Options::default() }
}

fn open_at_once(directory: &Path) -> Result<(DiskSpool, Report), SpoolError> {
    DiskSpool::open(Arc::new(StdFs), directory, options())
}

/// A process that another test is starting holds what was locked here until it runs its own program.
fn open(directory: &Path) -> Result<(DiskSpool, Report), SpoolError> {
    wait::until("the spool is free", || match open_at_once(directory) {
        Err(SpoolError::Locked(_)) => Err("locked"),
        opened => Ok(opened),
    })
}

fn all(spool: &mut DiskSpool) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for (topic, _) in spool.routes() {
        let frames = spool.next(&topic, FrameId(0), usize::MAX).unwrap();
        found.extend(frames.iter().map(|frame| frame.id.0));
    }
    found
}

#[test]
fn killed_at_200_random_points_nothing_confirmed_is_lost_and_nothing_done_is_back() {
    let home = tempfile::tempdir().unwrap();
    let (program, directory) = (child(), home.path().join("spool"));
    let mut live = BTreeSet::new();
    let mut unsure = BTreeSet::new();
    for seed in 0..KILLS {
        let mut process = Command::new(&program)
            .args(["churn", directory.to_str().unwrap(), &seed.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // Lines, not time: however slow the machine is, each run gets somewhere else.
        let stop_at = 1 + seed * 7919 % 97;
        let mut read = 0;
        let mut told = Vec::new();
        for line in lines.by_ref().map_while(Result::ok) {
            assert!(!line.starts_with('#') || line.contains("cut"), "{line}");
            told.push(line);
            read += 1;
            if read == stop_at {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        assert!(read >= stop_at, "it ran until it was killed: {told:?}");
        let mut done = Vec::new();
        for line in told {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["a", first, last] => live.extend(first.parse::<u64>().unwrap()..=last.parse().unwrap()),
                ["d", id] => done.push(id.parse::<u64>().unwrap()),
                ["c"] => done.drain(..).for_each(|id| {
                    live.remove(&id);
                }),
                _ => {}
            }
        }
        done.iter().for_each(|id| {
            live.remove(id);
        });
        unsure.extend(done);
        let (mut spool, report) = open(&directory).unwrap();
        assert_eq!((&report.damaged[..], &report.missing[..]), (&[][..], &[][..]), "run {seed}");
        let found = all(&mut spool);
        assert!(live.is_subset(&found), "run {seed} lost {:?}", live.difference(&found));
        let highest = live.last().copied().unwrap_or(0);
        let back: Vec<&u64> =
            found.difference(&live).filter(|id| **id <= highest && !unsure.contains(id)).collect();
        assert!(back.is_empty(), "run {seed}: {back:?} were done");
        unsure.clear();
        live = found;
        // It stays small enough for 200 runs.
        if live.len() > 500 {
            let half: Vec<FrameId> = live.iter().take(live.len() / 2).map(|id| FrameId(*id)).collect();
            spool.ack(&half);
            spool.checkpoint().unwrap();
            live = all(&mut spool);
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spool-v1").join(name)
}

/// A copy of a frozen directory: opening changes it.
fn thawed(name: &str, home: &Path) -> PathBuf {
    let to = home.join(name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// What every fixture holds when it is whole: 12 frames in three segments, of which 1 and 2 are done.
const WHOLE: std::ops::RangeInclusive<u64> = 3..=12;

/// The base sequences of the batches that each of a frame's three records was given to. Frame 4 was sent before it was kept, 5 was
/// given to a batch of its own later, and then a record of 4 and two of 7 to one together.
fn sequences(id: u64) -> [Option<i32>; 3] {
    match id {
        4 => [Some(30), Some(30), Some(36)],
        5 => [Some(33); 3],
        7 => [Some(36), Some(36), None],
        _ => [None; 3],
    }
}

fn body(id: u64) -> Vec<u8> {
    format!("body of frame {id}, ").into_bytes().repeat(48)
}

/// Makes what is frozen in `healthy`. To freeze a new version: `TIDEGATE_MAKE_FIXTURES=1 cargo test --test it spool::fixtures_are_as_they_were_made`
fn make(directory: &Path) {
    let options = Options { segment_bytes: 4096, free_bytes_min: 0, ..Options::default() };
    let (mut spool, _) = DiskSpool::open(Arc::new(StdFs), directory, options).unwrap();
    for id in 1..=12 {
        let body = body(id);
        let topic = if id % 3 == 0 { "humidity" } else { "temperature" };
        let identity = (id == 4).then_some(Identity { producer_id: 4001, epoch: 1, base_sequence: 30 });
        let partition = identity.map(|_| 2);
        let (oldest_ms, newest_ms) = (1_700_000_000_000 + id as i64, 1_700_000_001_000 + id as i64);
        let frame = NewFrame {
            topic,
            partition,
            identity,
            records: 3,
            messages: 2,
            oldest_ms,
            newest_ms,
            body: &body,
            unreleased: &[],
        };
        spool.append(&[frame]).unwrap();
    }
    let assignment = |id, base_sequence, after_offset, records: &[u32]| {
        let identity = Identity { producer_id: 4001, epoch: 1, base_sequence };
        let records = records.iter().copied().collect();
        let given = Given { partition: 2, identity, batch_records: 3, after_offset, records };
        Assignment { id: FrameId(id), given }
    };
    spool.assign(&[assignment(5, 33, -1, &[0, 1, 2])]).unwrap();
    spool.assign(&[assignment(4, 36, 170, &[2]), assignment(7, 36, 170, &[0, 1])]).unwrap();
    spool.ack(&[FrameId(1), FrameId(2)]);
    spool.checkpoint().unwrap();
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn check_frames(directory: &Path, expected: &[u64]) -> Report {
    let (mut spool, report) = open(directory).unwrap();
    let mut found = BTreeSet::new();
    for (topic, _) in spool.routes() {
        for frame in spool.next(&topic, FrameId(0), usize::MAX).unwrap() {
            assert_eq!(&frame.body[..], body(frame.id.0), "frame {}", frame.id.0);
            assert_eq!((frame.records, frame.messages), (3, 2));
            assert_eq!(frame.topic, if frame.id.0 % 3 == 0 { "humidity" } else { "temperature" });
            let of = |record: u32| frame.given.iter().find(|given| given.records.contains(record));
            let found_sequences = [0, 1, 2].map(|at| of(at).map(|given| given.identity.base_sequence));
            assert_eq!(found_sequences, sequences(frame.id.0), "frame {}", frame.id.0);
            found.insert(frame.id.0);
        }
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    spool.checkpoint().unwrap();
    report
}

fn segment(first: u64) -> String {
    format!("{first:020}.seg")
}

#[test]
fn fixtures_are_as_they_were_made() {
    let home = tempfile::tempdir().unwrap();
    let made = home.path().join("healthy");
    make(&made);
    if std::env::var_os("TIDEGATE_MAKE_FIXTURES").is_some() {
        freeze(&made);
    }
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&made), names(&fixture("healthy")));
    for name in names(&made) {
        let same = fs::read(made.join(&name)).unwrap() == fs::read(fixture("healthy").join(&name)).unwrap();
        assert!(same, "{name:?}: version 1 is written otherwise than when it was frozen: raise the version");
    }
}

fn freeze(made: &Path) {
    let copy = |name: &str| {
        let to = fixture(name);
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(made).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    };
    copy("healthy");
    let newest = segment(9);
    let torn = copy("torn-tail").join(&newest);
    let bytes = fs::read(&torn).unwrap();
    fs::write(&torn, &bytes[..bytes.len() - 100]).unwrap();
    flip(&copy("flipped-bit").join(segment(5)), 200);
    fs::remove_file(copy("missing-segment").join(segment(5))).unwrap();
    let future = copy("future-version").join(&newest);
    let mut bytes = fs::read(&future).unwrap();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(!2_u32).to_le_bytes());
    fs::write(&future, bytes).unwrap();
    fs::write(copy("foreign-file").join("snap.0000.generating"), b"not ours").unwrap();
}

#[test]
fn a_healthy_directory_is_read_whole_and_without_a_word() {
    let home = tempfile::tempdir().unwrap();
    let report = check_frames(&thawed("healthy", home.path()), &WHOLE.collect::<Vec<_>>());
    assert_eq!(report.lines(), Vec::<String>::new());
}

#[test]
fn a_torn_tail_is_cut_and_said() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("torn-tail", home.path());
    let report = check_frames(&directory, &(3..=11).collect::<Vec<_>>());
    // The checkpoint was written after frame 12: that it is gone is no crash's doing, and said.
    assert_eq!(report.missing, [(12, 12)]);
    let [line, _] = &report.lines()[..] else { panic!("{report:?}") };
    assert!(line.starts_with(&segment(9)) && line.contains("cut"), "{line}");
    assert_eq!(check_frames(&directory, &(3..=11).collect::<Vec<_>>()).lines(), Vec::<String>::new(), "once");
}

#[test]
fn a_flipped_bit_costs_one_frame_which_is_counted_and_kept_apart() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("flipped-bit", home.path());
    let (mut spool, _) = open(&directory).unwrap();
    assert_eq!(spool.backlog("temperature").frames, 6);
    all(&mut spool);
    let damage = spool.take_damage();
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].topic.as_str(), damage[0].records, damage[0].messages), ("temperature", 3, 2));
    assert_eq!(spool.backlog("temperature").frames, 5);
    assert_eq!(fs::read_dir(directory.join("quarantine")).unwrap().count(), 1);
    drop(spool);
    check_frames(&directory, &[3, 4, 6, 7, 8, 9, 10, 11, 12]);
}

#[test]
fn a_missing_segment_is_said_once_and_the_rest_is_delivered() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("missing-segment", home.path());
    let (mut spool, report) = open(&directory).unwrap();
    assert_eq!(report.missing, [(5, 8)]);
    assert_eq!(all(&mut spool).into_iter().collect::<Vec<_>>(), [3, 4, 9, 10, 11, 12]);
    spool.checkpoint().unwrap();
    drop(spool);
    assert_eq!(open(&directory).unwrap().1.missing, []);
}

fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn a_newer_format_is_refused_in_one_sentence_and_nothing_is_changed() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("future-version", home.path());
    let before = contents(&directory);
    let Err(error) = open(&directory) else { panic!("it opened") };
    assert!(matches!(error, SpoolError::Version { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("start the version that wrote it"));
    assert_eq!(contents(&directory), before);
}

#[test]
fn a_foreign_file_is_named_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("foreign-file", home.path());
    let report = check_frames(&directory, &WHOLE.collect::<Vec<_>>());
    assert_eq!(report.foreign, ["snap.0000.generating"]);
    assert_eq!(fs::read(directory.join("snap.0000.generating")).unwrap(), b"not ours");
}

fn tidegate(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_command_line_looks_while_another_process_has_the_lock_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let directory = thawed("healthy", home.path());
    let before = contents(&directory);
    let lock = tidegate::fs::Filesystem::lock(&StdFs, &directory.join("lock")).unwrap();
    assert!(lock.is_some());
    let Err(error) = open_at_once(&directory) else { panic!("it opened twice") };
    assert!(error.to_string().contains("belongs to another running tidegate"), "{error}");
    let path = directory.to_str().unwrap();
    let (code, text) = tidegate(&["spool", "status", path]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("temperature: 18 records of 12 messages in 6 frames"), "{text}");
    let (code, text) = tidegate(&["spool", "verify", path]);
    assert!(code == 0 && text.contains("every checksum is right"), "{text}");
    let (_, text) = tidegate(&["spool", "dump", path]);
    let has = |id: &str, end: &str| text.lines().any(|line| line.starts_with(id) && line.ends_with(end));
    assert!(has("3 ", " waiting - humidity"), "{text}");
    assert!(has("4 ", " waiting 2/4001:1:30/3/-1/0-1;2/4001:1:36/3/170/2 temperature"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("1 ") && line.contains(" done ")), "{text}");
    assert_eq!(contents(&directory), before);
    let (code, text) = tidegate(&["spool", "verify", fixture("flipped-bit").to_str().unwrap()]);
    assert!(code == 1 && text.contains("frame 5 at 40 is damaged"), "{text}");
}
