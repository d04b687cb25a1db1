//! A process that uses the spool and nothing else, for tests that kill it and for experiments/sled-power-loss.
//!
//! `fill DIR COUNT`: COUNT records of 220 bytes, 64 to a call; prints `acked N` after each call, as sled's half of the experiment does.
//! `count DIR`: how many records are there. `churn DIR SEED`: appends, reads, acknowledges and checkpoints until it is killed, and
//! prints what was confirmed, a line each: `a FIRST LAST` appended, `d ID` done and checkpointed.

#![allow(clippy::indexing_slicing, reason = "it is a test: a panic is how it fails")]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate::fs::StdFs;
use tidegate::spool::{DiskSpool, FrameId, NewFrame, Options, SpoolError, Store};
use tidegate::thread::pause;

const TOPICS: [&str; 3] = ["alpha", "beta", "gamma"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["fill", directory, count] => fill(directory, count.parse()?),
        ["count", directory] => count(directory),
        ["churn", directory, seed] => churn(directory, seed.parse()?),
        _ => Err("usage: spool_child fill DIR COUNT | count DIR | churn DIR SEED".into()),
    }
}

fn open(directory: &str, segment_bytes: u32) -> Result<DiskSpool, Box<dyn Error>> {
    let options = Options { segment_bytes, free_bytes_min: 0, ..Options::default() };
    // A process that was started a moment ago by whoever had the spool before holds the lock until it runs its own program.
    let until = Instant::now() + Duration::from_secs(10);
    let (spool, report) = loop {
        match DiskSpool::open(Arc::new(StdFs), Path::new(directory), options) {
            Err(SpoolError::Locked(_)) if Instant::now() < until => pause(Duration::from_millis(5)),
            opened => break opened?,
        }
    };
    for line in report.lines() {
        println!("# {line}");
    }
    Ok(spool)
}

fn frame<'a>(topic: &'a str, body: &'a [u8]) -> NewFrame<'a> {
    NewFrame {
        topic,
        partition: None,
        identity: None,
        records: 1,
        messages: 1,
        oldest_ms: 0,
        newest_ms: 0,
        body,
        unreleased: &[],
    }
}

fn fill(directory: &str, count: u32) -> Result<(), Box<dyn Error>> {
    let mut spool = open(directory, 8 << 20)?;
    let body = [7; 220];
    let mut out = std::io::stdout();
    for n in 1..=count / 64 {
        spool.append(&vec![frame("t", &body); 64])?;
        writeln!(out, "acked {}", n * 64)?;
        out.flush()?;
    }
    std::process::abort();
}

fn count(directory: &str) -> Result<(), Box<dyn Error>> {
    let spool = open(directory, 8 << 20)?;
    println!("{}", spool.routes().iter().map(|(_, backlog)| backlog.records).sum::<u64>());
    Ok(())
}

fn churn(directory: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let mut spool = open(directory, 16 * 1024)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut out = std::io::stdout();
    loop {
        let bodies: Vec<Vec<u8>> = (0..random.usize(1..20)).map(|_| vec![1; random.usize(0..400)]).collect();
        let frames: Vec<NewFrame<'_>> =
            bodies.iter().map(|body| frame(TOPICS[random.usize(0..TOPICS.len())], body)).collect();
        let ids = spool.append(&frames)?.ids;
        writeln!(out, "a {} {}", ids[0].0, ids[ids.len() - 1].0)?;
        if random.u8(0..3) > 0 {
            continue;
        }
        let topic = TOPICS[random.usize(0..TOPICS.len())];
        let frames = spool.next(topic, FrameId(0), random.usize(0..20_000))?;
        let done: Vec<FrameId> = frames.iter().map(|frame| frame.id).collect();
        spool.ack(&done);
        // Said before, so that what is checkpointed is known even if the next line is never printed.
        done.iter().try_for_each(|id| writeln!(out, "d {}", id.0))?;
        spool.checkpoint()?;
        writeln!(out, "c")?;
    }
}
