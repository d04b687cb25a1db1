//! Waiting: always for a condition, always with a deadline, and a failure says what was seen last.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks every 20 ms until `probe` succeeds; panics after `limit` with what it said last.
pub fn until<T, E: Display>(what: &str, limit: Duration, probe: impl FnMut() -> Result<T, E>) -> T {
    until_every(Duration::from_millis(20), what, limit, probe)
}

/// The same, asking less often: where asking takes a process or much reading.
pub fn until_every<T, E: Display>(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= deadline => {
                panic!("waited {} s for {what}; seen last: {seen}", limit.as_secs_f64())
            }
            Err(_) => sleep(pause),
        }
    }
}

/// Lets this much time pass, as a part of a scenario ("Kafka is frozen for 20 s"), never to wait for something.
pub fn outage(length: Duration) {
    sleep(length);
}
