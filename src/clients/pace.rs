//! How many messages are due by now, for a publisher that keeps a rate without a timer for each message.

use std::time::Duration;

/// A fixed rate, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as the broker takes them.
    FlatOut,
    /// So many messages each second.
    PerSecond(f64),
}

impl Pace {
    /// From the two settings: a rate overrides the interval, and 0 of either means flat out.
    pub fn new(rate: Option<f64>, interval_ms: u64) -> Pace {
        match rate {
            Some(rate) if rate > 0.0 => Pace::PerSecond(rate),
            Some(_) => Pace::FlatOut,
            None if interval_ms == 0 => Pace::FlatOut,
            None => Pace::PerSecond(1000.0 / interval_ms as f64),
        }
    }

    /// How many messages should have been sent `elapsed` after the start.
    pub fn due(self, elapsed: Duration) -> u64 {
        match self {
            Pace::FlatOut => u64::MAX,
            // The first is due at once. A float is converted with saturation.
            Pace::PerSecond(rate) => (elapsed.as_secs_f64() * rate) as u64 + 1,
        }
    }

    /// How long after the start message number `count` (from 0) is due.
    pub fn due_at(self, count: u64) -> Duration {
        match self {
            Pace::FlatOut => Duration::ZERO,
            Pace::PerSecond(rate) => {
                Duration::try_from_secs_f64(count as f64 / rate).unwrap_or(Duration::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_overrides_the_interval() {
        assert_eq!(Pace::new(Some(5000.0), 100), Pace::PerSecond(5000.0));
        assert_eq!(Pace::new(None, 100), Pace::PerSecond(10.0));
        assert_eq!(Pace::new(Some(0.0), 100), Pace::FlatOut);
        assert_eq!(Pace::new(None, 0), Pace::FlatOut);
    }

    #[test]
    fn the_first_message_is_due_at_once_and_the_rest_evenly() {
        let pace = Pace::PerSecond(10.0);
        assert_eq!(pace.due(Duration::ZERO), 1);
        assert_eq!(pace.due(Duration::from_millis(999)), 10);
        assert_eq!(pace.due_at(10), Duration::from_secs(1));
    }
}
