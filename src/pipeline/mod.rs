//! The gateway itself: the only place that knows of MQTT, routing and Kafka at once, and the only wiring.
//!
//! ```text
//!            messages (in hand limit)                requests          sockets
//!   ingest -------------------------> publish --------------------> Kafka writers
//!   (MQTT) <------------------------- (producer) <----------------- Kafka readers
//!            settled, + wake-up                     answers
//!      ^                                ^
//!      +---------- control -------------+------------ main: signals, supervision
//! ```
//!
//! Invariants:
//! - what is in hand (read from MQTT and not settled) is bounded by the session, and both channels between ingest
//!   and publish hold more batches than there can be messages in hand. So neither thread ever waits for the other,
//!   and the cycle between them cannot deadlock;
//! - a thread that ends without having been told to ends the process, in order, with exit code 1;
//! - nothing is acknowledged to MQTT that has not come back settled.

pub mod backlog;
mod dead_letter;
pub mod ingest;
pub mod mode;
pub mod publish;
pub mod record;
pub mod spool_thread;
pub mod supervise;
pub mod waiting;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crossbeam_channel::bounded;

use self::ingest::{Ingest, ReleaseLine};
use self::publish::{Publish, PublishChannels, PublishOptions};
use self::spool_thread::{Released, SpoolThread, Watched};
use self::supervise::{Supervisor, Thread};
use crate::clock;
use crate::mqtt::session::SessionOptions;
use crate::mqtt::transport::Endpoint;
use crate::mqtt::waker::Waker;
use crate::observe::Observed;
use crate::observe::systemd::Notifier;
use crate::spool::Store;

/// Most messages of any QoS in hand: 70 ms of a full-speed load, and 2 MB at 200 bytes a message.
pub const IN_HAND_MESSAGES_MAX: usize = 8192;
/// Most bytes in hand. With what batches and buffers add, the process stays below 48 MiB whatever Kafka does (`tests/it/spool_restore.rs`).
pub const IN_HAND_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Orders that may wait for a thread; main sends two at most.
const CONTROL_CAPACITY: usize = 4;

/// How the gateway works: the whole configuration, in the terms of each part.
pub struct PipelineOptions {
    /// The MQTT broker.
    pub endpoint: Endpoint,
    /// The MQTT session.
    pub session: SessionOptions,
    /// The Kafka side.
    pub publish: PublishOptions,
    /// The spool, open.
    pub spool: Box<dyn Store>,
    /// How long an orderly stop may take.
    pub shutdown_timeout: Duration,
    /// Where all threads tell what they do.
    pub observed: Observed,
    /// Tells the service manager; None: there is none.
    pub notifier: Option<Notifier>,
}

/// Why the gateway ended though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The operating system refused a thread, an event descriptor or a signal handler: try again later.
    #[error("cannot start the {part}")]
    Start {
        /// What could not be started.
        part: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread ended: a defect, or another process's doing. Restart.
    #[error("the {thread} thread ended: {reason}")]
    ThreadEnded {
        /// Its name.
        thread: &'static str,
        /// What it left as its last words.
        reason: String,
    },
    /// Threads did not stop in time; what they held stays unacknowledged.
    #[error("these threads did not stop in time: {threads}; what they held stays unacknowledged")]
    Late {
        /// Names.
        threads: String,
    },
}

/// Runs the gateway until a signal stops it, or a thread fails.
///
/// # Errors
/// See [`PipelineError`]; an orderly stop by a signal is none.
pub fn run(options: PipelineOptions) -> Result<(), PipelineError> {
    let started = |part| move |source| PipelineError::Start { part, source };
    let in_hand = options.session.in_hand_messages_max.max(1);
    let (messages_to_give, inbox) = bounded(in_hand);
    let (settled_to_give, settled) = bounded(in_hand);
    let (ingest_orders, ingest_control) = bounded(CONTROL_CAPACITY);
    let (publish_orders, publish_control) = bounded(CONTROL_CAPACITY);
    let waker = Waker::new().map_err(started("wake-up descriptor"))?;
    let observed = options.observed;
    observed.spool.open.store(true, Relaxed);
    let heartbeat = |thread: Thread| observed.heartbeats.join(thread.name(), clock::now());

    let mut supervisor = Supervisor::start(options.shutdown_timeout, observed.clone(), options.notifier)
        .map_err(started("signal handler"))?;
    let (spool, spool_requests) = bounded(spool_thread::CHANNEL_CAPACITY);
    let (spool_replies_to_give, spool_replies) = bounded(spool_thread::CHANNEL_CAPACITY);
    // Ingest has one batch of releases under way at a time.
    let (released_to_give, released) = bounded(1);
    let tells = options.session.hold_releases;
    let tells = tells.then(|| Released { answers: released_to_give, waker: waker.clone() });
    let releases = tells.is_some().then(|| ReleaseLine { requests: Some(spool.clone()), answers: released });
    let watched = Watched {
        counters: observed.spool.clone(),
        heartbeat: heartbeat(Thread::Spool),
        disk_limit: spool_thread::disk_limit(options.publish.backlog.segment_bytes as u64),
    };
    let store = SpoolThread::new(options.spool, spool_requests, spool_replies_to_give, tells, watched);
    supervisor.spawn(Thread::Spool, move || store.run()).map_err(started("spool thread"))?;
    let publish = Publish::new(
        PublishChannels {
            inbox,
            settled: settled_to_give,
            waker: waker.clone(),
            control: publish_control,
            spool,
            spool_replies,
        },
        options.publish,
        observed.publish.clone(),
        heartbeat(Thread::Publish),
    );
    supervisor.spawn(Thread::Publish, move || publish.run()).map_err(started("publish thread"))?;
    let ingest = Ingest {
        endpoint: options.endpoint,
        options: options.session,
        messages: Some(messages_to_give),
        settled,
        releases,
        control: ingest_control,
        waker: waker.clone(),
        counters: observed.mqtt.clone(),
        subscribed: supervisor.changes(),
        heartbeat: heartbeat(Thread::Ingest),
    };
    supervisor.spawn(Thread::Ingest, move || ingest.run()).map_err(started("ingest thread"))?;

    let result = supervisor.watch(&ingest_orders, &waker, &publish_orders);
    log::info!("{}; {}", observed.mqtt, observed.publish);
    result
}
