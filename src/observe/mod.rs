//! What the gateway tells about itself: the log, counters, heartbeats, and what is made of them for those who ask by HTTP and for systemd.

pub mod counters;
pub mod heartbeat;
pub mod http;
pub mod log;
pub mod metrics;
pub mod pages;
pub mod systemd;
pub mod throttle;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use self::counters::{MqttCounters, PublishCounters, SpoolCounters};
use self::heartbeat::Heartbeats;

/// All that is observed of a gateway that runs. Clones share it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The MQTT side.
    pub mqtt: Arc<MqttCounters>,
    /// The Kafka side.
    pub publish: Arc<PublishCounters>,
    /// The spool.
    pub spool: Arc<SpoolCounters>,
    /// Which threads go round.
    pub heartbeats: Heartbeats,
    /// The orderly stop has begun.
    pub stopping: Arc<AtomicBool>,
    /// SPOOL_MAX_BYTES.
    pub spool_bytes_max: u64,
    /// When the gateway started.
    pub started_at: Instant,
}

impl Observed {
    /// Nothing has happened yet.
    pub fn new(heartbeats: Heartbeats, spool_bytes_max: u64, now: Instant) -> Observed {
        Observed {
            mqtt: Arc::default(),
            publish: Arc::default(),
            spool: Arc::default(),
            heartbeats,
            stopping: Arc::default(),
            spool_bytes_max,
            started_at: now,
        }
    }
}
