//! Counters that one thread writes and others read. They decide nothing, so relaxed ordering is enough.

use std::sync::atomic::{AtomicBool, AtomicU64};

/// The MQTT side; written by the ingest thread.
#[derive(Debug, Default)]
pub struct MqttCounters {
    /// Messages handed on.
    pub received: AtomicU64,
    /// PUBACKs sent.
    pub acknowledged: AtomicU64,
    /// Messages the broker delivered again that were not handed on again.
    pub repeats_suppressed: AtomicU64,
    /// Messages handed on that may have been handed on before; nobody can tell.
    pub possible_repeats: AtomicU64,
    /// Messages above the size limit.
    pub oversized: AtomicU64,
    /// Connections the broker accepted.
    pub connects: AtomicU64,
    /// Attempts that did not come that far.
    pub connect_failures: AtomicU64,
    /// Accepted connections that ended otherwise than by our DISCONNECT.
    pub connections_lost: AtomicU64,
    /// Messages in hand: received and not settled.
    pub in_hand_messages: AtomicU64,
    /// Bytes of them.
    pub in_hand_bytes: AtomicU64,
    /// The broker accepted the present connection.
    pub connected: AtomicBool,
    /// All SUBACKs of the present connection are in, and none refused a filter.
    pub subscribed: AtomicBool,
}
