//! Counters that one thread writes and others read. They decide nothing, so relaxed ordering is enough.

use std::sync::atomic::Ordering::Relaxed;
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
    /// PUBLISH packets of which only length and packet identifier can be trusted.
    pub malformed: AtomicU64,
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

impl std::fmt::Display for MqttCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} messages received, {} acknowledged to MQTT, {} repeats suppressed, {} possible repeats",
            self.received.load(Relaxed),
            self.acknowledged.load(Relaxed),
            self.repeats_suppressed.load(Relaxed),
            self.possible_repeats.load(Relaxed)
        )
    }
}

/// The Kafka side; written by the publish thread.
#[derive(Debug, Default)]
pub struct PublishCounters {
    /// Records that Kafka has acknowledged, dead letters included.
    pub delivered: AtomicU64,
    /// Messages that no rule matches, dropped.
    pub unmatched: AtomicU64,
    /// Messages written to the dead-letter topic.
    pub dead_lettered: AtomicU64,
    /// Messages that could not be delivered anywhere, dropped.
    pub undeliverable: AtomicU64,
    /// Runs of batches that had to be sent again.
    pub setbacks: AtomicU64,
    /// Batches that may have been written twice.
    pub possible_repeats: AtomicU64,
    /// Produce requests sent.
    pub requests: AtomicU64,
    /// Messages that were acknowledged to MQTT because they are in the spool.
    pub spooled: AtomicU64,
    /// Stored records that Kafka has acknowledged.
    pub restored: AtomicU64,
    /// Records that SPOOL_FULL=drop-oldest gave up.
    pub given_up: AtomicU64,
    /// Messages of QoS 0 dropped because the spool was full.
    pub dropped_at_most_once: AtomicU64,
    /// Connections to Kafka that are open, or being opened.
    pub connections: AtomicU64,
    /// A broker is connected and answers.
    pub connected: AtomicBool,
    /// Routes (Kafka topics) by how their messages travel.
    pub routes: RouteCounters,
}

/// How many routes are in which mode (`pipeline::mode`).
#[derive(Debug, Default)]
pub struct RouteCounters {
    /// Straight to Kafka.
    pub live: AtomicU64,
    /// To the spool: Kafka cannot take them now.
    pub spooling: AtomicU64,
    /// From the spool to Kafka, and new messages behind that.
    pub draining: AtomicU64,
    /// To the spool: Kafka refuses the topic, or it is missing.
    pub parked: AtomicU64,
}

impl std::fmt::Display for PublishCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} records delivered to Kafka in {} requests, {} unmatched, {} dead letters, {} undeliverable, {} setbacks, \
             {} possible repeats; {} messages stored, {} records restored, {} given up, {} of QoS 0 dropped",
            self.delivered.load(Relaxed),
            self.requests.load(Relaxed),
            self.unmatched.load(Relaxed),
            self.dead_lettered.load(Relaxed),
            self.undeliverable.load(Relaxed),
            self.setbacks.load(Relaxed),
            self.possible_repeats.load(Relaxed),
            self.spooled.load(Relaxed),
            self.restored.load(Relaxed),
            self.given_up.load(Relaxed),
            self.dropped_at_most_once.load(Relaxed)
        )
    }
}

/// The spool; written by the spool thread.
#[derive(Debug, Default)]
pub struct SpoolCounters {
    /// Bytes of all its files.
    pub bytes: AtomicU64,
    /// Records that Kafka does not have yet.
    pub backlog_records: AtomicU64,
    /// Bytes of their frames.
    pub backlog_bytes: AtomicU64,
    /// It is open: what is appended is kept.
    pub open: AtomicBool,
    /// Its limit is reached and appends are refused.
    pub full: AtomicBool,
}
