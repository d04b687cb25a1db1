//! Messages that can never be delivered where they belong: what is written to DEAD_LETTER_TOPIC for each.
//!
//! | header | value |
//! |---|---|
//! | `tidegate.error.reason` | in words |
//! | `tidegate.error.code` | Kafka's error code, where Kafka refused it |
//! | `tidegate.error.topic` | the Kafka topic it was meant for, where one was found |
//! | `tidegate.error.value_bytes` | size of the value or packet, where the value is not here because it is too large |
//! | `mqtt.topic` | the MQTT topic |
//!
//! besides the headers that the record had, or of a message that never became one the properties of MQTT 5, by
//! KAFKA_HEADERS.
//!
//! Invariant: an undeliverable message is written there, or counted and told at ERROR; never dropped silently, and
//! it never holds back another.

use std::time::{Duration, Instant};

use bytes::Bytes;
use log::{error, warn};

use super::record::{HEADER_TOPIC, is_ours};
use crate::kafka::error::ErrorCode;
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::Record;
use crate::observe::throttle::Throttle;

const HEADER_REASON: &str = "tidegate.error.reason";
const HEADER_CODE: &str = "tidegate.error.code";
const HEADER_MEANT_FOR: &str = "tidegate.error.topic";
const HEADER_VALUE_BYTES: &str = "tidegate.error.value_bytes";
/// One line in ten seconds at most, however many messages are undeliverable.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why a message is undeliverable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    /// In words.
    pub text: String,
    /// Kafka's code, where Kafka refused it.
    pub code: Option<ErrorCode>,
    /// The Kafka topic it was meant for.
    pub meant_for: Option<TopicName>,
    /// Size of a value or packet that was too large to keep.
    pub value_bytes: Option<u64>,
}

impl Reason {
    pub fn new(text: impl Into<String>) -> Self {
        Reason { text: text.into(), code: None, meant_for: None, value_bytes: None }
    }
}

/// A message that never became a record.
pub(super) struct Buried<'a> {
    pub mqtt_topic: &'a str,
    pub value: Option<Bytes>,
    /// Those of its properties.
    pub headers: Vec<(String, Option<Bytes>)>,
    pub received_at_ms: i64,
}

/// The letter for a message, under its MQTT topic as key.
pub(super) fn letter(message: Buried<'_>, reason: &Reason) -> Record {
    let Buried { mqtt_topic, value, headers, received_at_ms } = message;
    let key = Some(Bytes::copy_from_slice(mqtt_topic.as_bytes()));
    let record = Record { key, value, headers, timestamp_ms: received_at_ms, offset: -1 };
    with_reason(record, Some(mqtt_topic), reason)
}

/// The letter for a record that Kafka refused: the record itself, and why.
pub(super) fn with_reason(mut record: Record, mqtt_topic: Option<&str>, reason: &Reason) -> Record {
    let has_topic = record.headers.iter().any(|(name, _)| name == HEADER_TOPIC);
    let mut add =
        |name: &str, value: String| record.headers.push((name.to_owned(), Some(Bytes::from(value))));
    if let (false, Some(topic)) = (has_topic, mqtt_topic) {
        add(HEADER_TOPIC, topic.to_owned());
    }
    add(HEADER_REASON, reason.text.clone());
    if let Some(code) = reason.code {
        add(HEADER_CODE, code.to_string());
    }
    if let Some(topic) = &reason.meant_for {
        add(HEADER_MEANT_FOR, topic.to_string());
    }
    if let Some(bytes) = reason.value_bytes {
        add(HEADER_VALUE_BYTES, bytes.to_string());
    }
    record
}

/// The same letter without its value and without what a publisher chose as properties, which may be as long: for a dead-letter topic
/// that has no room for them either.
pub(super) fn without_value(mut letter: Record) -> Record {
    let bytes = letter.value.take().map_or(0, |value| value.len());
    letter.headers.retain(|(name, _)| is_ours(name));
    letter.headers.push((HEADER_VALUE_BYTES.to_owned(), Some(Bytes::from(bytes.to_string()))));
    letter
}

/// Tells the operator, without flooding the log.
#[derive(Debug)]
pub(super) struct Complaints {
    lost: Throttle,
    lettered: Throttle,
    unmatched: Throttle,
}

impl Complaints {
    pub fn new() -> Self {
        let throttle = || Throttle::new(TELL_EVERY);
        Complaints { lost: throttle(), lettered: throttle(), unmatched: throttle() }
    }

    /// A message is lost: there is no dead-letter topic, or it refused the letter.
    pub fn lost(&mut self, subject: &str, reason: &Reason, now: Instant) {
        if let Some(held_back) = self.lost.tell(now) {
            error!("undeliverable and dropped: {subject}: {}{}", reason.text, more(held_back));
        }
    }

    /// A message goes to the dead-letter topic.
    pub fn lettered(&mut self, subject: &str, reason: &Reason, now: Instant) {
        if let Some(held_back) = self.lettered.tell(now) {
            warn!("to the dead-letter topic: {subject}: {}{}", reason.text, more(held_back));
        }
    }

    /// A message matches no rule and there is no default topic.
    pub fn unmatched(&mut self, mqtt_topic: &str, now: Instant) {
        if let Some(held_back) = self.unmatched.tell(now) {
            warn!("no rule matches MQTT topic {mqtt_topic:?}; dropped{}", more(held_back));
        }
    }
}

/// How many were not told of since the last line.
fn more(held_back: u64) -> String {
    if held_back == 0 {
        String::new()
    } else {
        format!(" (and {held_back} more since the last of these lines)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(record: &Record, name: &str) -> Option<String> {
        let found = record.headers.iter().find(|(n, _)| n == name)?;
        Some(String::from_utf8(found.1.clone()?.to_vec()).unwrap())
    }

    #[test]
    fn a_letter_says_why_and_where_from() {
        let reason = Reason {
            code: Some(ErrorCode(10)),
            meant_for: Some("t".into()),
            ..Reason::new("The request included a message larger than the max message size")
        };
        let headers = vec![("unit".to_owned(), Some(Bytes::from_static(b"C")))];
        let value = Some(Bytes::from_static(b"v"));
        let letter = letter(Buried { mqtt_topic: "a/b", value, headers, received_at_ms: 7 }, &reason);
        assert_eq!(header(&letter, "unit").as_deref(), Some("C"));
        assert_eq!(header(&letter, "mqtt.topic").as_deref(), Some("a/b"));
        assert_eq!(header(&letter, HEADER_MEANT_FOR).as_deref(), Some("t"));
        assert!(header(&letter, HEADER_CODE).unwrap().contains("MESSAGE_TOO_LARGE"));
        assert_eq!(letter.timestamp_ms, 7);
    }

    #[test]
    fn a_letter_without_its_value_has_no_properties_either() {
        let text = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let long = ["mqtt.user.mqtt.topic", "mqtt.content_type", "mqtt.correlation_data", "unit"];
        let mut headers: Vec<(String, Option<Bytes>)> =
            long.iter().map(|name| ((*name).to_owned(), text("long"))).collect();
        headers.push(("tidegate.id".to_owned(), text("7")));
        headers.push(("mqtt.qos".to_owned(), text("2")));
        let buried = Buried { mqtt_topic: "a", value: text("v"), headers, received_at_ms: 0 };
        let letter = without_value(letter(buried, &Reason::new("x")));
        let names: Vec<&str> = letter.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tidegate.id", "mqtt.qos", "mqtt.topic", HEADER_REASON, HEADER_VALUE_BYTES]);
    }

    #[test]
    fn a_letter_without_its_value_says_how_large_it_was() {
        let value = Some(Bytes::from_static(b"12345"));
        let buried = Buried { mqtt_topic: "a", value, headers: Vec::new(), received_at_ms: 0 };
        let letter = letter(buried, &Reason::new("x"));
        let letter = without_value(letter);
        assert_eq!(letter.value, None);
        assert_eq!(header(&letter, HEADER_VALUE_BYTES).as_deref(), Some("5"));
    }
}
