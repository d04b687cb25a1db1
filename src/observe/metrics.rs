//! The metrics: one table of names and help texts, from which `/metrics` and `docs/metrics.md` are made, so that neither can drift.
//!
//! Source of the format: the Prometheus text format 0.0.4, written by `prometheus-client`. Names follow its practice: one prefix, base
//! units last, `_total` for what only goes up. Knows nothing of HTTP. Invariant: no label value comes from outside (a topic is chosen by
//! a publisher), so the number of time series is fixed.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Observed;
use super::counters::{MqttCounters, PublishCounters, SpoolCounters};
use crate::clock;
use crate::fs;

/// The `Content-Type` of [`text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// One metric.
pub struct Metric {
    /// Its name; a counter's ends in `_total`.
    pub name: &'static str,
    /// What it counts, without a full stop.
    pub help: &'static str,
    source: Source,
}

/// Where its value is.
enum Source {
    Mqtt(fn(&MqttCounters) -> &AtomicU64),
    MqttFlag(fn(&MqttCounters) -> &AtomicBool),
    Publish(fn(&PublishCounters) -> &AtomicU64),
    PublishFlag(fn(&PublishCounters) -> &AtomicBool),
    Spool(fn(&SpoolCounters) -> &AtomicU64),
    SpoolFlag(fn(&SpoolCounters) -> &AtomicBool),
    /// None: it is not known, and there is no such line.
    Of(fn(&Observed) -> Option<u64>),
    Routes,
    Build,
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Metric {
    const fn new(name: &'static str, help: &'static str, source: Source) -> Metric {
        Metric { name, help, source }
    }

    /// A counter only goes up; a gauge goes up and down.
    pub fn is_counter(&self) -> bool {
        self.name.ends_with("_total")
    }

    /// The name of its label, if it has one.
    pub fn label(&self) -> Option<&'static str> {
        match self.source {
            Source::Routes => Some("mode"),
            Source::Build => Some("version"),
            _ => None,
        }
    }

    /// Its values, each with that of its label.
    fn values(&self, of: &Observed) -> Vec<(&'static str, u64)> {
        let flag = |flag: &AtomicBool| u64::from(flag.load(Relaxed));
        let one = match self.source {
            Source::Mqtt(get) => Some(get(&of.mqtt).load(Relaxed)),
            Source::MqttFlag(get) => Some(flag(get(&of.mqtt))),
            Source::Publish(get) => Some(get(&of.publish).load(Relaxed)),
            Source::PublishFlag(get) => Some(flag(get(&of.publish))),
            Source::Spool(get) => Some(get(&of.spool).load(Relaxed)),
            Source::SpoolFlag(get) => Some(flag(get(&of.spool))),
            Source::Of(get) => get(of),
            Source::Routes => {
                let routes = &of.publish.routes;
                let modes = [
                    ("live", &routes.live),
                    ("spooling", &routes.spooling),
                    ("draining", &routes.draining),
                    ("parked", &routes.parked),
                ];
                return modes.map(|(mode, count)| (mode, count.load(Relaxed))).to_vec();
            }
            Source::Build => return vec![(env!("CARGO_PKG_VERSION"), 1)],
        };
        one.map(|value| ("", value)).into_iter().collect()
    }
}

use Source::{Build, Mqtt, MqttFlag, Of, Publish, PublishFlag, Routes, Spool, SpoolFlag};

/// Every metric, in the order of the page.
pub const METRICS: &[Metric] = &[
    Metric::new("tidegate_mqtt_received_messages_total", "Messages taken from MQTT", Mqtt(|c| &c.received)),
    Metric::new(
        "tidegate_mqtt_acknowledged_messages_total",
        "Messages acknowledged to MQTT (PUBACK, or PUBREC at QoS 2)",
        Mqtt(|c| &c.acknowledged),
    ),
    Metric::new(
        "tidegate_mqtt_suppressed_repeats_total",
        "Messages that the MQTT broker delivered again and that were not passed on again",
        Mqtt(|c| &c.repeats_suppressed),
    ),
    Metric::new(
        "tidegate_mqtt_possible_repeats_total",
        "Messages passed on that may have been passed on before an interruption",
        Mqtt(|c| &c.possible_repeats),
    ),
    Metric::new(
        "tidegate_mqtt_oversized_messages_total",
        "Messages larger than MQTT_MAX_PACKET_BYTES",
        Mqtt(|c| &c.oversized),
    ),
    Metric::new(
        "tidegate_mqtt_malformed_packets_total",
        "PUBLISH packets that cannot be read, dead-lettered",
        Mqtt(|c| &c.malformed),
    ),
    Metric::new(
        "tidegate_mqtt_connects_total",
        "Connections that the MQTT broker accepted",
        Mqtt(|c| &c.connects),
    ),
    Metric::new(
        "tidegate_mqtt_connect_failures_total",
        "Attempts to connect to the MQTT broker that failed",
        Mqtt(|c| &c.connect_failures),
    ),
    Metric::new(
        "tidegate_mqtt_lost_connections_total",
        "Accepted MQTT connections that ended otherwise than by our DISCONNECT",
        Mqtt(|c| &c.connections_lost),
    ),
    Metric::new(
        "tidegate_mqtt_connected",
        "1 while the MQTT broker has accepted the connection",
        MqttFlag(|c| &c.connected),
    ),
    Metric::new(
        "tidegate_mqtt_subscribed",
        "1 while every subscription is accepted by the MQTT broker",
        MqttFlag(|c| &c.subscribed),
    ),
    Metric::new(
        "tidegate_in_hand_messages",
        "Messages taken from MQTT that are neither in Kafka nor in the spool yet",
        Mqtt(|c| &c.in_hand_messages),
    ),
    Metric::new("tidegate_in_hand_bytes", "Size of the messages in hand", Mqtt(|c| &c.in_hand_bytes)),
    Metric::new(
        "tidegate_unmatched_messages_total",
        "Messages that no rule matches, dropped",
        Publish(|c| &c.unmatched),
    ),
    Metric::new(
        "tidegate_kafka_delivered_records_total",
        "Records that Kafka has acknowledged, dead letters included",
        Publish(|c| &c.delivered),
    ),
    Metric::new("tidegate_kafka_requests_total", "Produce requests sent to Kafka", Publish(|c| &c.requests)),
    Metric::new(
        "tidegate_kafka_setbacks_total",
        "Runs of batches that had to be sent to Kafka again",
        Publish(|c| &c.setbacks),
    ),
    Metric::new(
        "tidegate_kafka_possible_repeats_total",
        "Batches that may be in Kafka twice",
        Publish(|c| &c.possible_repeats),
    ),
    Metric::new(
        "tidegate_kafka_connections",
        "Connections to Kafka brokers, open or being opened",
        Publish(|c| &c.connections),
    ),
    Metric::new(
        "tidegate_kafka_connected",
        "1 while a Kafka broker is connected and answers",
        PublishFlag(|c| &c.connected),
    ),
    Metric::new("tidegate_routes", "Kafka topics in use, by how their messages travel", Routes),
    Metric::new(
        "tidegate_dead_letters_total",
        "Messages written to the dead-letter topic",
        Publish(|c| &c.dead_lettered),
    ),
    Metric::new(
        "tidegate_undeliverable_messages_total",
        "Messages that could be delivered nowhere, dropped",
        Publish(|c| &c.undeliverable),
    ),
    Metric::new(
        "tidegate_spool_stored_messages_total",
        "Messages acknowledged to MQTT because they are in the spool",
        Publish(|c| &c.spooled),
    ),
    Metric::new(
        "tidegate_spool_restored_records_total",
        "Stored records that Kafka has acknowledged",
        Publish(|c| &c.restored),
    ),
    Metric::new(
        "tidegate_spool_given_up_records_total",
        "Stored records that SPOOL_FULL=drop-oldest gave up",
        Publish(|c| &c.given_up),
    ),
    Metric::new(
        "tidegate_spool_dropped_messages_total",
        "Messages of QoS 0 dropped because the spool was full",
        Publish(|c| &c.dropped_at_most_once),
    ),
    Metric::new(
        "tidegate_spool_backlog_records",
        "Stored records that Kafka does not have yet",
        Spool(|c| &c.backlog_records),
    ),
    Metric::new("tidegate_spool_backlog_bytes", "Size of the stored records", Spool(|c| &c.backlog_bytes)),
    Metric::new("tidegate_spool_bytes", "Size of the spool", Spool(|c| &c.bytes)),
    Metric::new(
        "tidegate_spool_limit_bytes",
        "Most that the spool may take (SPOOL_MAX_BYTES)",
        Of(|of| Some(of.spool_bytes_max)),
    ),
    Metric::new("tidegate_spool_open", "1 while what is given to the spool is kept", SpoolFlag(|c| &c.open)),
    Metric::new(
        "tidegate_spool_full",
        "1 while the spool refuses messages because a limit is reached",
        SpoolFlag(|c| &c.full),
    ),
    Metric::new(
        "tidegate_late_threads",
        "Threads that hang or have failed; with one, /healthz says no",
        Of(|of| Some(of.heartbeats.late(clock::now()).len() as u64)),
    ),
    Metric::new(
        "tidegate_uptime_seconds",
        "Time since the start",
        Of(|of| Some(clock::now().saturating_duration_since(of.started_at).as_secs())),
    ),
    Metric::new("tidegate_build_info", "1, with the version of tidegate", Build),
    Metric::new(
        "process_resident_memory_bytes",
        "Resident memory of the process",
        Of(|_| fs::resident_bytes()),
    ),
];

/// `/metrics`.
pub fn text(of: &Observed) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Table(of.clone())));
    let mut text = String::with_capacity(8 * 1024);
    match prometheus_text::encode(&mut text, &registry) {
        Ok(()) => text,
        // A value that the format cannot hold, and there is none: nothing is better than a half.
        Err(fmt::Error) => String::new(),
    }
}

#[derive(Debug)]
struct Table(Observed);

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let values = metric.values(&self.0);
            if values.is_empty() {
                continue;
            }
            // The encoder puts the end of a counter's name back.
            let name = metric.name.strip_suffix("_total").unwrap_or(metric.name);
            let kind = if metric.is_counter() { MetricType::Counter } else { MetricType::Gauge };
            let mut of_metric = encoder.encode_descriptor(name, metric.help, None, kind)?;
            match metric.label() {
                Some(label) => {
                    for (label_value, value) in values {
                        write(metric, value, of_metric.encode_family(&[(label, label_value)])?)?;
                    }
                }
                None => {
                    let value = values.first().map_or(0, |(_, value)| *value);
                    write(metric, value, of_metric)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &Metric, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    if metric.is_counter() {
        ConstCounter::new(value).encode(encoder)
    } else {
        ConstGauge::new(value).encode(encoder)
    }
}

/// The table of `docs/metrics.md`, in Markdown.
pub fn markdown() -> String {
    let mut text = "| metric | type | meaning |\n|---|---|---|\n".to_owned();
    for metric in METRICS {
        let kind = if metric.is_counter() { "counter" } else { "gauge" };
        let label = metric.label().map(|label| format!("{{{label}}}")).unwrap_or_default();
        text.push_str(&format!("| `{}{label}` | {kind} | {} |\n", metric.name, metric.help));
    }
    text
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
