//! A log line that may come for every message is told once, then at most once in an interval with the number of
//! times it was held back. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// See the module head.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    told_at: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// At most one line in this interval.
    pub fn new(interval: Duration) -> Self {
        Throttle { interval, told_at: None, held_back: 0 }
    }

    /// Some if the line is to be told now, with how many were held back since the last one.
    pub fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < self.interval) {
            self.held_back += 1;
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_first_and_counts_what_it_holds_back() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Duration::from_secs(10));
        assert_eq!(throttle.tell(start), Some(0));
        assert_eq!(throttle.tell(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.tell(start + Duration::from_secs(9)), None);
        assert_eq!(throttle.tell(start + Duration::from_secs(10)), Some(2));
    }
}
