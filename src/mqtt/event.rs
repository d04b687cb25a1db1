//! What the session tells the outside: events, each once, and counts. Data only.

use super::codec::Limits;
use super::subscription::Verdict;

/// What somebody outside should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// CONNACK.
    Connected {
        /// The broker kept the session.
        session_present: bool,
        /// What the broker decided for this connection (MQTT 5).
        limits: Limits,
    },
    /// All SUBACKs are in.
    Subscribed {
        /// Filters the broker delivers.
        granted: usize,
        /// Filters it refuses.
        refused: usize,
    },
    /// Nothing is subscribed yet: the disk does not take it that identifiers of the session before are void. Told once for each
    /// connection.
    HeldUp,
    /// Something about one filter.
    Filter(Verdict),
    /// The broker closed several connections in a row soon after accepting them: most likely another client
    /// uses the same client id. Told once, until a connection lasts.
    TakenOver {
        /// How many in a row.
        times: u32,
    },
}

/// What went through, since the session object was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Messages handed on.
    pub received: u64,
    /// PUBACKs and PUBRECs put into the output.
    pub acknowledged: u64,
    /// Repeats that were not handed on.
    pub repeats_suppressed: u64,
    /// Messages handed on that may be repeats.
    pub possible_repeats: u64,
    /// Messages above the size limit.
    pub oversized: u64,
    /// PUBLISH packets of which only length and packet identifier can be trusted.
    pub malformed: u64,
}
