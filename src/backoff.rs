//! Exponential backoff with jitter, pure: the random number is an argument.
//!
//! Source of the shape: "full jitter" keeps many gateways from coming back in step after a common outage, while
//! the floor of half the interval keeps one gateway from hammering.

use std::time::Duration;

/// Delays that double from `first` up to `max`; each is drawn between half and the whole of its interval.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first`, doubling, never above `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff { first, max, next: first }
    }

    /// The next delay. `random` is uniform in [0, 1).
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let interval = self.next;
        self.next = (interval * 2).min(self.max);
        interval.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// Start again from `first`: the last try succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_limit_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let delays: Vec<u128> = (0..4).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0).as_millis(), 50);
    }
}
