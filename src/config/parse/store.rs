//! What is stored while Kafka is away, and how it is restored.

use std::path::PathBuf;
use std::time::Duration;

use super::Reader;
use crate::config::{Restore, Spool, SpoolFull};

/// SPOOL_MAX_BYTES that is not set, where the spool is in memory: a board has 512 MB of it.
const IN_MEMORY_BYTES: u64 = 64 << 20;
/// SPOOL_MAX_BYTES, at the least.
const BYTES_LEAST: u64 = 1 << 20;
/// 1 PiB: more than any disk at the edge has, and sums of such numbers cannot overflow.
const BYTES_MOST: u64 = 1 << 50;
/// Room comes back by whole segments, and `drop-oldest` gives up a whole one: with few of them that would be all at once.
const SEGMENTS_LEAST: u64 = 4;

impl Reader<'_> {
    pub(super) fn restore(&mut self) -> Restore {
        let latency = self.seconds("INVOKE_LATENCY_SEC", 1, 86_400);
        let before = self.problems.len();
        let max_in_flight = self.number("INVOKE_MAX_GOROUTINE", 1, 1_000_000) as u32;
        let mut min_in_flight = self.number("INVOKE_MIN_GOROUTINE", 1, 1_000_000) as u32;
        if min_in_flight > max_in_flight && self.problems.len() == before {
            if self.given("INVOKE_MIN_GOROUTINE").is_some() {
                let expected = format!("expected at most INVOKE_MAX_GOROUTINE, which is {max_in_flight}");
                self.problem("INVOKE_MIN_GOROUTINE", expected);
            } else {
                min_in_flight = max_in_flight;
            }
        }
        Restore { latency, max_in_flight, min_in_flight }
    }

    pub(super) fn spool(&mut self) -> Option<Spool> {
        let directory = self.text("DB_PERSIST_PATH").map(PathBuf::from);
        if self.text("DB_PERSIST_PATH").is_some_and(|path| path.contains('\0')) {
            self.problem("DB_PERSIST_PATH", "expected a path without U+0000");
        }
        let after_ms = self.number("SPOOL_AFTER_MS", 50, 3_600_000);
        let (bytes_max, segment_bytes) = self.spool_sizes(directory.is_none());
        let free_bytes_min = self.number("SPOOL_MIN_FREE_BYTES", 0, BYTES_MOST);
        let words = [("block", SpoolFull::Block), ("drop-oldest", SpoolFull::DropOldest)];
        let full = self.choice("SPOOL_FULL", &words, &[]);
        let restore_per_sec = self.number("SPOOL_RESTORE_PER_SEC", 0, 1_000_000) as u32;
        Some(Spool {
            directory,
            after: Duration::from_millis(after_ms),
            bytes_max,
            free_bytes_min,
            segment_bytes,
            full: full?,
            restore_per_sec,
        })
    }

    /// SPOOL_MAX_BYTES and SPOOL_SEGMENT_BYTES.
    fn spool_sizes(&mut self, in_memory: bool) -> (u64, u32) {
        let before = self.problems.len();
        let bytes_max = if in_memory && self.given("SPOOL_MAX_BYTES").is_none() {
            IN_MEMORY_BYTES
        } else {
            self.number("SPOOL_MAX_BYTES", BYTES_LEAST, BYTES_MOST)
        };
        let mut segment_bytes = self.number("SPOOL_SEGMENT_BYTES", 64 << 10, 1 << 30);
        let most = bytes_max / SEGMENTS_LEAST;
        if segment_bytes > most && self.problems.len() == before {
            if self.given("SPOOL_SEGMENT_BYTES").is_some() {
                let expected =
                    format!("expected at most {most}, a quarter of SPOOL_MAX_BYTES, which is {bytes_max}");
                self.problem("SPOOL_SEGMENT_BYTES", expected);
            } else {
                segment_bytes = most;
            }
        }
        (bytes_max, segment_bytes as u32)
    }
}
