//! How a message becomes a Kafka record: headers by KAFKA_HEADERS, payload as it is, time of arrival as timestamp.
//!
//! | header | value |
//! |---|---|
//! | `tidegate.id` | 16 hexadecimal digits, the same when the MQTT broker delivers the message again; QoS 1 and 2 |
//! | `mqtt.topic` | the MQTT topic, UTF-8 |
//! | `mqtt.qos` | `0`, `1` or `2` |
//! | `mqtt.retain` | `0` or `1` |
//! | `tidegate.replayed` | `1` on a record that waited in the spool before it was sent for the first time |
//! | `mqtt.content_type`, `mqtt.response_topic`, `mqtt.correlation_data` | what MQTT 5 says beside the payload |
//! | names of user properties | user properties of MQTT 5, in their order, repeated names repeated |
//!
//! The names are a publisher's to choose. One that begins like ours (`tidegate.`, `mqtt.`) gets [`USER_PREFIX`] before it, so
//! that no publisher can forge a header of ours.

use std::borrow::Cow;

use bytes::Bytes;

use crate::kafka::record_batch::RecordRef;
use crate::message::{Properties, Qos};

/// Name of the header that holds a message's id.
pub const HEADER_ID: &str = "tidegate.id";
/// Name of the header that holds the MQTT topic.
pub const HEADER_TOPIC: &str = "mqtt.topic";
/// Name of the header that holds the QoS of the delivery.
pub const HEADER_QOS: &str = "mqtt.qos";
/// Name of the header that holds the RETAIN flag of the delivery.
pub const HEADER_RETAIN: &str = "mqtt.retain";

/// Name of the header that marks a record that waited in the spool.
pub const HEADER_REPLAYED: &str = "tidegate.replayed";

/// Names of the headers that hold what MQTT 5 says beside the payload.
pub const HEADER_CONTENT_TYPE: &str = "mqtt.content_type";
/// See [`HEADER_CONTENT_TYPE`].
pub const HEADER_RESPONSE_TOPIC: &str = "mqtt.response_topic";
/// See [`HEADER_CONTENT_TYPE`].
pub const HEADER_CORRELATION_DATA: &str = "mqtt.correlation_data";

/// Stands before the name of a user property that begins like a header of ours.
pub const USER_PREFIX: &str = "mqtt.user.";

/// Whether a header is one of ours that a publisher has no part in: short, whatever was published.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("tidegate.") || matches!(name, HEADER_TOPIC | HEADER_QOS | HEADER_RETAIN)
}

/// Which headers a record gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderChoice {
    /// `tidegate.id`.
    pub id: bool,
    /// `mqtt.topic`.
    pub topic: bool,
    /// `mqtt.qos`.
    pub qos: bool,
    /// `mqtt.retain`.
    pub retain: bool,
    /// `tidegate.replayed`.
    pub replayed: bool,
    /// Properties of MQTT 5.
    pub properties: bool,
}

/// What a record says of its message besides key and value.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// MQTT topic.
    pub topic: &'a str,
    /// QoS of the delivery.
    pub qos: Qos,
    /// RETAIN flag of the delivery.
    pub retain: bool,
    /// Time of arrival, milliseconds since the Unix epoch.
    pub received_at_ms: i64,
    /// See [`crate::message::Message::delivery_id`].
    pub delivery_id: Option<u64>,
    /// It goes to the spool.
    pub replayed: bool,
    /// What MQTT 5 carries beside the payload.
    pub properties: Option<&'a Properties>,
}

const HEADERS_MAX: usize = 5;

impl HeaderChoice {
    /// Lends the record that a message becomes.
    pub fn with_record<R>(
        self,
        facts: &Facts<'_>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        use_it: impl FnOnce(&RecordRef<'_>) -> R,
    ) -> R {
        let id = facts.delivery_id.map(hex);
        let mut headers: [(&str, &[u8]); HEADERS_MAX] = [("", &[]); HEADERS_MAX];
        let mut count = 0;
        let mut add = |name: &'static str, value| {
            if let Some(slot) = headers.get_mut(count) {
                *slot = (name, value);
                count += 1;
            }
        };
        if let (true, Some(id)) = (self.id, &id) {
            add(HEADER_ID, id);
        }
        if self.topic {
            add(HEADER_TOPIC, facts.topic.as_bytes());
        }
        if self.qos {
            add(HEADER_QOS, qos_digit(facts.qos));
        }
        if self.retain {
            add(HEADER_RETAIN, if facts.retain { b"1" } else { b"0" });
        }
        if self.replayed && facts.replayed {
            add(HEADER_REPLAYED, b"1");
        }
        let timestamp_ms = facts.received_at_ms;
        let ours = headers.get(..count).unwrap_or_default();
        let Some(properties) = facts.properties.filter(|_| self.properties) else {
            return use_it(&RecordRef { key, value, headers: ours, timestamp_ms });
        };
        let theirs = named(properties);
        let theirs = theirs.iter().map(|(name, value)| (name.as_ref(), *value));
        let headers: Vec<(&str, &[u8])> = ours.iter().copied().chain(theirs).collect();
        use_it(&RecordRef { key, value, headers: &headers, timestamp_ms })
    }

    /// The headers of the properties alone, for a message that never became a record.
    pub fn of_properties(self, properties: Option<&Properties>) -> Vec<(String, Option<Bytes>)> {
        let owned =
            |(name, value): (Cow<'_, str>, &[u8])| (name.into_owned(), Some(Bytes::copy_from_slice(value)));
        properties.filter(|_| self.properties).into_iter().flat_map(named).map(owned).collect()
    }
}

/// The headers that properties become, in this order.
fn named(properties: &Properties) -> Vec<(Cow<'_, str>, &[u8])> {
    let single = [
        (HEADER_CONTENT_TYPE, properties.content_type.as_deref().map(str::as_bytes)),
        (HEADER_RESPONSE_TOPIC, properties.response_topic.as_deref().map(str::as_bytes)),
        (HEADER_CORRELATION_DATA, properties.correlation_data.as_deref()),
    ];
    let single = single.into_iter().filter_map(|(name, value)| Some((Cow::Borrowed(name), value?)));
    let mut headers: Vec<(Cow<'_, str>, &[u8])> = single.collect();
    for (name, value) in &properties.user {
        let is_ours = name.starts_with("tidegate.") || name.starts_with("mqtt.");
        let name =
            if is_ours { Cow::Owned(format!("{USER_PREFIX}{name}")) } else { Cow::Borrowed(name.as_str()) };
        headers.push((name, value.as_bytes()));
    }
    headers
}

fn qos_digit(qos: Qos) -> &'static [u8] {
    match qos {
        Qos::AtMostOnce => b"0",
        Qos::AtLeastOnce => b"1",
        Qos::ExactlyOnce => b"2",
    }
}

/// Sixteen hexadecimal digits, without the allocation of `format!`: this runs for every message.
fn hex(id: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (index, digit) in digits.iter_mut().enumerate() {
        let nibble = (id >> (60 - 4 * index)) as u8 & 0x0f;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties() -> Properties {
        let user = [("unit", "C"), ("tidegate.id", "forged"), ("unit", "K"), ("mqtt.topic", "x")];
        Properties {
            user: user.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            content_type: Some("text/plain".into()),
            response_topic: Some("answer/here".into()),
            correlation_data: Some(Bytes::from_static(b"\0\xff")),
        }
    }

    fn headers_of(choice: HeaderChoice, delivery_id: Option<u64>) -> Vec<(String, Vec<u8>)> {
        let facts = Facts {
            topic: "a/b",
            qos: Qos::AtLeastOnce,
            retain: true,
            received_at_ms: 5,
            delivery_id,
            replayed: true,
            properties: Some(&properties()),
        };
        choice.with_record(&facts, None, None, |record| {
            record.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect()
        })
    }

    #[test]
    fn headers_are_those_that_were_chosen() {
        let all = HeaderChoice {
            id: true,
            topic: true,
            qos: true,
            retain: true,
            replayed: true,
            properties: false,
        };
        let expected = [
            (HEADER_ID, "00000000000000ff"),
            (HEADER_TOPIC, "a/b"),
            (HEADER_QOS, "1"),
            (HEADER_RETAIN, "1"),
            (HEADER_REPLAYED, "1"),
        ];
        let expected: Vec<_> =
            expected.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect();
        assert_eq!(headers_of(all, Some(255)), expected);
        assert_eq!(headers_of(HeaderChoice::default(), Some(255)), []);
    }

    #[test]
    fn properties_keep_their_order_and_repeated_names_and_forge_nothing() {
        let choice = HeaderChoice { id: true, properties: true, ..HeaderChoice::default() };
        let expected: [(&str, &[u8]); 8] = [
            (HEADER_ID, b"0000000000000001"),
            (HEADER_CONTENT_TYPE, b"text/plain"),
            (HEADER_RESPONSE_TOPIC, b"answer/here"),
            (HEADER_CORRELATION_DATA, b"\0\xff"),
            ("unit", b"C"),
            ("mqtt.user.tidegate.id", b"forged"),
            ("unit", b"K"),
            ("mqtt.user.mqtt.topic", b"x"),
        ];
        let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())).collect();
        assert_eq!(headers_of(choice, Some(1)), expected);
        let alone = choice.of_properties(Some(&properties()));
        let alone: Vec<_> = alone.into_iter().map(|(name, value)| (name, value.unwrap().to_vec())).collect();
        assert_eq!(alone, expected[1..]);
        assert_eq!(HeaderChoice::default().of_properties(Some(&properties())), []);
    }

    #[test]
    fn a_message_without_an_id_gets_no_id_header() {
        assert_eq!(headers_of(HeaderChoice { id: true, ..HeaderChoice::default() }, None), []);
    }
}
