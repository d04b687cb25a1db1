//! How messages of one route (a Kafka topic) travel: the modes and what leads from one to another. Pure.
//!
//! ```text
//!            Overdue                Reachable
//!   Live ------------> Spooling ------------> Draining
//!    ^                    ^  <------------      |  |
//!    |                    |     Unreachable     |  |
//!    |                    |                     |  |
//!    |          Refused   v       Refused       v  |
//!    |                  Parked <----------------+  |
//!    |       Unreachable: Spooling                 |
//!    |       Accepted: Draining                    |
//!    +---------------------------------------------+
//!                  Emptied
//! ```
//!
//! In every mode but Live, new messages go to the spool, behind what is there. A route is Parked only while Kafka answers: in an
//! outage every route may need all of the spool.

/// See the module head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Straight to Kafka.
    #[default]
    Live,
    /// Kafka cannot take it now: to the spool.
    Spooling,
    /// Kafka takes the backlog; new messages queue behind it, in the spool.
    Draining,
    /// Kafka refuses the topic, or it is missing: an operator must act. To the spool, up to a share of it.
    Parked,
}

/// What happened to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A message was not acknowledged for SPOOL_AFTER_MS, or there is a backlog at the start.
    Overdue,
    /// Kafka can be reached, and has taken what was retried.
    Reachable,
    /// Kafka cannot be reached any more.
    Unreachable,
    /// Kafka refuses the topic, or says that it does not exist.
    Refused,
    /// Kafka takes a topic that it had refused.
    Accepted,
    /// All of the backlog is in Kafka's hands: what comes next queues behind it there.
    Emptied,
}

impl Mode {
    /// The mode after an event. An event that says nothing in this mode leaves it.
    pub fn after(self, event: Event) -> Mode {
        match (self, event) {
            (Mode::Live, Event::Overdue) | (Mode::Draining | Mode::Parked, Event::Unreachable) => {
                Mode::Spooling
            }
            (Mode::Spooling, Event::Reachable) | (Mode::Parked, Event::Accepted) => Mode::Draining,
            (Mode::Spooling | Mode::Draining, Event::Refused) => Mode::Parked,
            (Mode::Draining, Event::Emptied) => Mode::Live,
            (mode, _) => mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_to_spooling() {
        assert_eq!(Mode::Live.after(Event::Overdue), Mode::Spooling);
    }

    #[test]
    fn spooling_to_draining() {
        assert_eq!(Mode::Spooling.after(Event::Reachable), Mode::Draining);
    }

    #[test]
    fn spooling_to_parked() {
        assert_eq!(Mode::Spooling.after(Event::Refused), Mode::Parked);
    }

    #[test]
    fn draining_to_spooling() {
        assert_eq!(Mode::Draining.after(Event::Unreachable), Mode::Spooling);
    }

    #[test]
    fn draining_to_parked() {
        assert_eq!(Mode::Draining.after(Event::Refused), Mode::Parked);
    }

    #[test]
    fn draining_to_live() {
        assert_eq!(Mode::Draining.after(Event::Emptied), Mode::Live);
    }

    #[test]
    fn parked_to_draining() {
        assert_eq!(Mode::Parked.after(Event::Accepted), Mode::Draining);
    }

    #[test]
    fn parked_to_spooling() {
        assert_eq!(Mode::Parked.after(Event::Unreachable), Mode::Spooling);
    }

    #[test]
    fn nothing_else_changes_a_mode() {
        use Event::*;
        let edges = [
            (Mode::Live, vec![Overdue]),
            (Mode::Spooling, vec![Reachable, Refused]),
            (Mode::Draining, vec![Unreachable, Refused, Emptied]),
            (Mode::Parked, vec![Unreachable, Accepted]),
        ];
        for (mode, leave) in edges {
            for event in [Overdue, Reachable, Unreachable, Refused, Accepted, Emptied] {
                assert_eq!(mode.after(event) != mode, leave.contains(&event), "{mode:?} {event:?}");
            }
        }
    }
}
