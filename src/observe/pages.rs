//! What is answered to who asks by HTTP: `/metrics`, `/healthz` and `/readyz`.
//!
//! Knows nothing of HTTP but status codes. Reads counters only: asking holds up nobody.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Observed, metrics};
use crate::clock;

/// `Content-Type` of the pages for people and probes.
const PLAIN: &str = "text/plain; charset=utf-8";

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// 200, or 503.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Page {
    fn plain(status: u16, lines: &[String]) -> Page {
        let body = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        Page { status, content_type: PLAIN, body }
    }
}

/// The page at a path; None: there is none.
pub fn page(of: &Observed, path: &str) -> Option<Page> {
    match path {
        "/metrics" => {
            let body = metrics::text(of);
            Some(Page { status: 200, content_type: metrics::CONTENT_TYPE, body })
        }
        "/healthz" => Some(health(of, clock::now())),
        "/readyz" => Some(readiness(of, clock::now())),
        _ => None,
    }
}

/// Whether the process works: every thread goes round.
fn health(of: &Observed, now: Instant) -> Page {
    let late = of.heartbeats.late(now);
    if late.is_empty() {
        return Page::plain(200, &["healthy".to_owned()]);
    }
    let lines: Vec<String> = late.iter().map(ToString::to_string).collect();
    Page::plain(503, &lines)
}

/// Whether messages flow.
fn readiness(of: &Observed, now: Instant) -> Page {
    let reasons = unready(of, now);
    let (status, mut lines) =
        if reasons.is_empty() { (200, vec!["ready".to_owned()]) } else { (503, reasons) };
    lines.extend(notes(of).into_iter().map(|note| format!("note: {note}")));
    Page::plain(status, &lines)
}

/// Why messages do not flow; empty: they do.
pub fn unready(of: &Observed, now: Instant) -> Vec<String> {
    let mut reasons = Vec::new();
    if of.stopping.load(Relaxed) {
        reasons.push("stopping");
    }
    if !of.mqtt.connected.load(Relaxed) {
        reasons.push("MQTT: not connected");
    } else if !of.mqtt.subscribed.load(Relaxed) {
        reasons.push("MQTT: not every subscription is accepted");
    }
    if !of.spool.open.load(Relaxed) {
        reasons.push("spool: not open");
    } else if of.spool.full.load(Relaxed) {
        reasons.push("spool: full");
    }
    let late = of.heartbeats.late(now);
    reasons.into_iter().map(str::to_owned).chain(late.iter().map(ToString::to_string)).collect()
}

/// What is not as usual and holds nothing up.
fn notes(of: &Observed) -> Vec<String> {
    let mut notes = Vec::new();
    if !of.publish.connected.load(Relaxed) {
        notes.push("Kafka: not connected; messages go to the spool".to_owned());
    }
    let backlog = of.spool.backlog_records.load(Relaxed);
    if backlog > 0 {
        notes.push(format!("spool: {backlog} records wait for Kafka"));
    }
    let parked = of.publish.routes.parked.load(Relaxed);
    if parked > 0 {
        notes.push(format!("Kafka: {parked} topics are refused or missing; their messages go to the spool"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::heartbeat::{EVERY, GRACE, Heartbeats};

    fn observed() -> Observed {
        let now = clock::now();
        Observed::new(Heartbeats::new(None, now), 1 << 30, now)
    }

    fn ready(observed: &Observed) -> (u16, String) {
        let page = page(observed, "/readyz").unwrap();
        (page.status, page.body)
    }

    #[test]
    fn ready_when_subscribed_and_the_spool_is_open_and_else_each_reason_is_a_line() {
        let observed = observed();
        let (status, body) = ready(&observed);
        assert_eq!(status, 503);
        assert!(body.starts_with("MQTT: not connected\nspool: "), "{body}");
        observed.spool.open.store(true, Relaxed);
        observed.mqtt.connected.store(true, Relaxed);
        let (status, body) = ready(&observed);
        assert_eq!(status, 503);
        assert!(body.starts_with("MQTT: not every subscription is accepted\nnote: Kafka: "), "{body}");
        observed.mqtt.subscribed.store(true, Relaxed);
        observed.publish.connected.store(true, Relaxed);
        assert_eq!(ready(&observed), (200, "ready\n".to_owned()));
        observed.spool.full.store(true, Relaxed);
        assert_eq!(ready(&observed), (503, "spool: full\n".to_owned()));
        observed.spool.full.store(false, Relaxed);
        observed.stopping.store(true, Relaxed);
        assert_eq!(ready(&observed), (503, "stopping\n".to_owned()));
    }

    #[test]
    fn kafka_being_away_is_said_and_is_no_reason() {
        let observed = observed();
        observed.spool.open.store(true, Relaxed);
        observed.mqtt.connected.store(true, Relaxed);
        observed.mqtt.subscribed.store(true, Relaxed);
        observed.spool.backlog_records.store(12, Relaxed);
        observed.publish.routes.parked.store(1, Relaxed);
        let (status, body) = ready(&observed);
        assert_eq!(status, 200);
        assert!(body.starts_with("ready\nnote: Kafka: not connected"), "{body}");
        assert!(body.contains("note: spool: 12 records") && body.contains("note: Kafka: 1 topics"), "{body}");
    }

    #[test]
    fn healthy_while_every_thread_goes_round() {
        let observed = observed();
        let now = clock::now();
        let spool = observed.heartbeats.join("spool", now);
        assert_eq!(health(&observed, now).status, 200);
        let later = now + EVERY + GRACE * 2;
        let page = health(&observed, later);
        assert_eq!(page.status, 503);
        assert_eq!(page.body, "the spool thread hangs: it is 10 s late\n");
        assert!(readiness(&observed, later).body.contains("the spool thread hangs"));
        spool.waits(None, later);
        assert_eq!(health(&observed, later).body, "healthy\n");
    }

    #[test]
    fn there_are_three_pages() {
        let observed = observed();
        assert!(page(&observed, "/metrics").unwrap().body.contains("tidegate_build_info"));
        for path in ["/", "", "/metrics/", "/Metrics", "/readyz/x", "*"] {
            assert_eq!(page(&observed, path), None, "{path}");
        }
    }
}
