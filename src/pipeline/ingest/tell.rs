//! What the session has to say, for the log and the counters.

use std::sync::atomic::Ordering::Relaxed;

use log::{error, info, warn};

use super::State;
use crate::mqtt::codec::Limits;
use crate::mqtt::session::{Event, SessionOptions};
use crate::mqtt::subscription::Verdict;

impl State {
    /// Logs and counts what the session has to say.
    pub(super) fn tell(&mut self) {
        let counters = &self.ingest.counters;
        while let Some(event) = self.session.next_event() {
            match event {
                Event::Connected { session_present, limits } => {
                    self.accepted = true;
                    self.told_refusal = None;
                    counters.connects.fetch_add(1, Relaxed);
                    counters.connected.store(true, Relaxed);
                    let failures = self.outage.take().map_or(0, |outage| outage.failures);
                    let endpoint = &self.ingest.endpoint;
                    let session = if session_present { "resumed" } else { "new" };
                    info!(
                        "MQTT connected to {endpoint}, session {session}, after {failures} failed attempts"
                    );
                    tell_limits(&limits, &self.ingest.options);
                }
                Event::Subscribed { granted, refused } => {
                    counters.subscribed.store(refused == 0, Relaxed);
                    let _ = self.ingest.subscribed.try_send(());
                    info!("MQTT subscribed: {granted} filters, {refused} refused");
                }
                Event::HeldUp => warn!(
                    "nothing is subscribed yet: the spool's disk must first take it that the MQTT broker's old session is void; trying \
                     again every second"
                ),
                Event::Filter(Verdict::Refused { filter, reason }) => {
                    error!(
                        "MQTT broker refuses the subscription to {filter}: {reason}; asking again every minute"
                    );
                }
                Event::Filter(Verdict::Accepted(filter)) => {
                    info!("MQTT broker accepts the subscription to {filter} now");
                }
                Event::Filter(Verdict::Downgraded { filter, asked, granted }) => {
                    let (asked, granted) = (asked.as_u8(), granted.as_u8());
                    error!(
                        "MQTT broker delivers {filter} with QoS {granted} and not {asked}: messages can be lost"
                    );
                }
                Event::TakenOver { times } => error!(
                    "MQTT broker closed {times} connections in a row soon after accepting them: most likely another client \
                     uses MQTT_CLIENT_ID {:?}; give each its own",
                    self.ingest.options.client_id
                ),
            }
        }
    }
}

/// What the broker decided otherwise than it was asked (MQTT 5).
fn tell_limits(limits: &Limits, options: &SessionOptions) {
    if let Some(seconds) = limits.keep_alive_sec.filter(|seconds| *seconds != options.keep_alive_sec) {
        info!("MQTT broker wants a keep-alive of {seconds} s");
    }
    if let Some(seconds) = limits.session_expiry_sec.filter(|seconds| *seconds < options.session_expiry_sec) {
        warn!(
            "MQTT broker keeps the session for {seconds} s only, not for MQTT_SESSION_EXPIRY_SEC={}: what it queues is lost \
             when tidegate is away for longer",
            options.session_expiry_sec
        );
    }
}
