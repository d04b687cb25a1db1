//! The two clocks. Nothing else in the crate reads the time, so that pure cores can be given any time by a test.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock: for deadlines and durations.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, milliseconds since the Unix epoch: for record timestamps only. It may be wrong (a board
/// without a battery starts in the past), so nothing in the gateway decides by it.
pub fn unix_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        // Before 1970: Kafka refuses negative timestamps, so the epoch itself is the nearest that is valid.
        Err(_) => 0,
    }
}

/// The wall clock, nanoseconds since the Unix epoch: for the latency figures of the client programs only.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
