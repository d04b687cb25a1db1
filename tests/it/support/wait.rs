//! Waiting: on a condition, with a deadline, telling what was last seen. The only place in the tests that
//! sleeps, and it sleeps between looks, never instead of one.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; nothing waits this long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long something that must not happen is watched for.
pub const WATCH: Duration = Duration::from_millis(700);

const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// Looks until the probe has a value. An `Err` says what was seen instead.
pub fn until<T, S: Display>(what: &str, probe: impl FnMut() -> Result<T, S>) -> T {
    until_within(PATIENCE, what, probe)
}

/// [`until`] with a deadline of the caller's.
pub fn until_within<T, S: Display>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, S>,
) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > limit => {
                panic!("waited {limit:?} for: {what}; last seen: {seen}")
            }
            Err(_) => thread::sleep(BETWEEN_LOOKS),
        }
    }
}

/// Looks all through `span` that the condition holds. An `Err` says what was seen instead.
pub fn holds<S: Display>(span: Duration, what: &str, mut probe: impl FnMut() -> Result<(), S>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(seen) = probe() {
            panic!("must hold: {what}; after {:?} seen: {seen}", start.elapsed());
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}

#[test]
fn waiting_tells_what_was_last_seen() {
    let mut looks = 0;
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until_within(Duration::from_millis(20), "a value", || -> Result<(), String> {
            looks += 1;
            Err(format!("look {looks}"))
        })
    }));
    let text = *waited.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("for: a value; last seen: look "), "{text}");
    assert!(looks > 1, "{looks}");
}
