//! What the spool costs on this disk: `cargo bench --bench spool`. Set TMPDIR to the disk that is meant.
//!
//! 220-byte bodies; a frame per 100 records unless said otherwise. "Written" is what the process handed to the file system, by
//! /proc/self/io; memory is the resident peak, by /proc/self/status.

#![allow(missing_docs, reason = "a benchmark has no users")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tidegate::fs::StdFs;
use tidegate::spool::{DiskSpool, FrameId, NewFrame, Options, Store};

const RECORD_BYTES: usize = 220;
const RECORDS: u32 = 2_000_000;
const IN_FRAME: u32 = 100;

fn open(directory: &Path) -> DiskSpool {
    let options = Options { free_bytes_min: 0, bytes_max: 4 << 30, ..Options::default() };
    DiskSpool::open(Arc::new(StdFs), directory, options).expect("the bench has the directory").0
}

fn frame<'a>(topic: &'a str, records: u32, body: &'a [u8]) -> NewFrame<'a> {
    NewFrame {
        topic,
        partition: None,
        identity: None,
        records,
        messages: records,
        oldest_ms: 0,
        newest_ms: 0,
        body,
        unreleased: &[],
    }
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).expect("this is Linux");
    let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel tells it");
    line.split_whitespace().nth(1).and_then(|value| value.parse().ok()).expect("it is a number")
}

fn written() -> u64 {
    field("/proc/self/io", "wchar:")
}

fn to_device() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

fn peak_mb() -> f64 {
    field("/proc/self/status", "VmHWM:") as f64 / 1024.0
}

/// Records per second when so many records, in one frame, are appended and synced together.
fn append(directory: &Path, records: u32, rounds: u32) {
    let mut spool = open(directory);
    let body = vec![7; RECORD_BYTES * records as usize];
    let (before, device, start) = (written(), to_device(), Instant::now());
    for _ in 0..rounds {
        spool.append(&[frame("t", records, &body)]).expect("there is room");
    }
    let seconds = start.elapsed().as_secs_f64();
    let payload = f64::from(rounds * records) * RECORD_BYTES as f64;
    println!(
        "append and sync per {records}: {:.0} records/s, {:.3} bytes written and {:.2} to the device per byte",
        f64::from(rounds * records) / seconds,
        (written() - before) as f64 / payload,
        (to_device() - device) as f64 / payload,
    );
}

fn main() {
    let home = tempfile::tempdir().expect("a temporary directory");
    for (records, rounds) in [(1, 2_000), (64, 2_000), (1024, 500)] {
        append(&home.path().join(format!("append-{records}")), records, rounds);
    }
    for in_frame in [IN_FRAME, 1] {
        backlog(&home.path().join(format!("backlog-{in_frame}")), in_frame);
    }
}

fn backlog(directory: &Path, in_frame: u32) {
    println!("{RECORDS} records in the spool, {in_frame} in a frame, 50 routes:");
    let body = vec![7; RECORD_BYTES * in_frame as usize];
    let topics: Vec<String> = (0..50).map(|n| format!("topic-{n}")).collect();
    let mut spool = open(directory);
    let start = Instant::now();
    let frames: Vec<NewFrame<'_>> = topics.iter().map(|topic| frame(topic, in_frame, &body)).collect();
    let mut left = RECORDS;
    while left > 0 {
        spool.append(&frames).expect("there is room");
        left = left.saturating_sub(in_frame * 50);
    }
    println!("  filled in {:.2} s, peak {:.1} MB", start.elapsed().as_secs_f64(), peak_mb());
    drop(spool);
    // Closes the newest segment, as after a kill.
    drop(open(directory));
    let start = Instant::now();
    let mut spool = open(directory);
    println!("  opened in {:.1} ms, peak {:.1} MB", start.elapsed().as_secs_f64() * 1e3, peak_mb());
    let start = Instant::now();
    let mut after = vec![FrameId(0); topics.len()];
    let mut drained = 0_u64;
    while drained < u64::from(RECORDS) {
        for (topic, after) in topics.iter().zip(&mut after) {
            let frames = spool.next(topic, *after, 64 * 1024).expect("it can be read");
            drained += frames.iter().map(|frame| u64::from(frame.records)).sum::<u64>();
            let ids: Vec<FrameId> = frames.iter().map(|frame| frame.id).collect();
            spool.ack(&ids);
            *after = ids.last().copied().unwrap_or(*after);
        }
        spool.checkpoint().expect("it can be written");
    }
    let rate = drained as f64 / start.elapsed().as_secs_f64();
    println!("  drained at {rate:.0} records/s, peak {:.1} MB, {} bytes left", peak_mb(), spool.bytes());
}
