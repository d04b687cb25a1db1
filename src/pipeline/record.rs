//! How a message becomes a Kafka record: headers by KAFKA_HEADERS, payload as it is, time of arrival as timestamp.
//!
//! | header | value |
//! |---|---|
//! | `tidegate.id` | 16 hexadecimal digits, the same when the MQTT broker delivers the message again; QoS 1 only |
//! | `mqtt.topic` | the MQTT topic, UTF-8 |
//! | `mqtt.qos` | `0` or `1` |
//! | `mqtt.retain` | `0` or `1` |
//! | `tidegate.replayed` | `1` on a record that waited in the spool before it was sent for the first time |

use crate::kafka::record_batch::RecordRef;
use crate::message::Qos;

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
        use_it(&RecordRef {
            key,
            value,
            headers: headers.get(..count).unwrap_or_default(),
            timestamp_ms: facts.received_at_ms,
        })
    }
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
    fn headers_of(choice: HeaderChoice, delivery_id: Option<u64>) -> Vec<(String, Vec<u8>)> {
        let facts = Facts {
            topic: "a/b",
            qos: Qos::AtLeastOnce,
            retain: true,
            received_at_ms: 5,
            delivery_id,
            replayed: true,
        };
        choice.with_record(&facts, None, None, |record| {
            record.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect()
        })
    }

    #[test]
    fn headers_are_those_that_were_chosen() {
        let all = HeaderChoice { id: true, topic: true, qos: true, retain: true, replayed: true };
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
    fn a_message_without_an_id_gets_no_id_header() {
        assert_eq!(headers_of(HeaderChoice { id: true, ..HeaderChoice::default() }, None), []);
    }
}
