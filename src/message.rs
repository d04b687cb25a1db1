//! The one type that crosses threads: an MQTT message on its way to Kafka, and the token that decides its
//! acknowledgement.
//!
//! This module knows nothing of sockets, sessions or Kafka. Invariants:
//! - a [`Message`] carries exactly one [`AckToken`], and a token is settled exactly once;
//! - settling is explicit. A token that is dropped unsettled would hold back every later acknowledgement of
//!   the session (MQTT-4.6.0-2), so dropping one panics and ends the process loudly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

/// MQTT quality of service (MQTT 3.1.1, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// QoS 0: no acknowledgement.
    AtMostOnce,
    /// QoS 1: PUBACK.
    AtLeastOnce,
    /// QoS 2: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce,
}

impl Qos {
    /// The number of the specification: 0, 1 or 2.
    pub fn as_u8(self) -> u8 {
        match self {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
            Qos::ExactlyOnce => 2,
        }
    }
}

/// What a PUBLISH packet held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The whole payload.
    Payload(Bytes),
    /// The packet was larger than MQTT_MAX_PACKET_BYTES: read past without being kept.
    Oversized {
        /// Size of the whole packet, bytes.
        packet_bytes: u64,
    },
    /// A PUBLISH of which only length and packet identifier can be trusted: it is no message, and would come again for ever.
    Malformed {
        /// All behind the fixed header.
        packet: Bytes,
        /// What is wrong with it.
        reason: String,
    },
}

impl Body {
    /// What is kept of it, bytes.
    pub fn kept_bytes(&self) -> usize {
        match self {
            Body::Payload(bytes) | Body::Malformed { packet: bytes, .. } => bytes.len(),
            Body::Oversized { .. } => 0,
        }
    }
}

/// What a PUBLISH of MQTT 5 carries for the application beside topic and payload (MQTT 5, section 3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// User properties: in their order, names may repeat.
    pub user: Vec<(String, String)>,
    /// Content type.
    pub content_type: Option<String>,
    /// Response topic.
    pub response_topic: Option<String>,
    /// Correlation data.
    pub correlation_data: Option<Bytes>,
}

impl Properties {
    /// Memory they take, bytes.
    pub fn bytes(&self) -> usize {
        let user = self.user.iter().map(|pair| size_of_val(pair) + pair.0.len() + pair.1.len());
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let data = self.correlation_data.as_ref().map_or(0, Bytes::len);
        size_of::<Self>() + user.sum::<usize>() + text(&self.content_type) + text(&self.response_topic) + data
    }
}

/// An MQTT message on its way to Kafka.
#[derive(Debug)]
pub struct Message {
    /// MQTT topic name: valid UTF-8, no wildcards, no U+0000. Of a malformed packet, what can be read of it.
    pub topic: String,
    /// Payload, or what is known of one that was too large.
    pub body: Body,
    /// What MQTT 5 carries beside; None if there is nothing of it, or for a message that was too large.
    pub properties: Option<Box<Properties>>,
    /// QoS of this delivery.
    pub qos: Qos,
    /// RETAIN flag of this delivery.
    pub retain: bool,
    /// Time of arrival, milliseconds since the Unix epoch by the wall clock (which may be wrong).
    pub received_at_ms: i64,
    /// Hash of client id, packet id, topic, payload and what MQTT 5 carries beside: the same when the broker delivers the message again.
    /// None at QoS 0, which has no packet id and is never delivered again.
    pub delivery_id: Option<u64>,
    /// Decides the acknowledgement.
    pub token: AckToken,
}

/// The duty to acknowledge one message. See the module head.
#[derive(Debug)]
pub struct AckToken {
    /// Number of arrival, from 1, unique while the process lives; 0 at QoS 0 (nothing to acknowledge, but
    /// the memory the message takes is still given back by settling).
    sequence: u64,
    /// Bytes the message takes against the in-hand limit of the session.
    cost_bytes: u32,
    /// See [`AckToken::exactly_once`].
    unreleased: Option<(u16, u64, Arc<AtomicBool>)>,
    live: bool,
}

/// What a settled token says to the MQTT session: the message may be acknowledged and its memory is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Number of arrival; 0 at QoS 0.
    pub sequence: u64,
    /// Bytes given back to the in-hand limit.
    pub cost_bytes: u32,
}

impl AckToken {
    /// A token for the message with this number of arrival (0 at QoS 0).
    pub fn new(sequence: u64, cost_bytes: u32) -> Self {
        AckToken { sequence, cost_bytes, unreleased: None, live: true }
    }

    /// The same for a message of QoS 2: with its packet identifier, the hash that tells it from others under the same one, and what
    /// becomes true when the session in which the identifier means something is lost.
    pub fn exactly_once(mut self, packet_id: u16, delivery_id: u64, void: Arc<AtomicBool>) -> Self {
        self.unreleased = Some((packet_id, delivery_id, void));
        self
    }

    /// Of a message of QoS 2, what has to be remembered until its packet identifier is released. None once its session is lost: the
    /// identifier may be that of another message, which may be equal.
    pub fn unreleased(&self) -> Option<(u16, u64)> {
        let (packet_id, delivery_id, void) = self.unreleased.as_ref()?;
        (!void.load(Ordering::Acquire)).then_some((*packet_id, *delivery_id))
    }

    /// The message is safe: acknowledged by Kafka, or recorded as undeliverable.
    pub fn settle(mut self) -> Settled {
        self.live = false;
        Settled { sequence: self.sequence, cost_bytes: self.cost_bytes }
    }

    /// True at QoS 0: there is nothing to acknowledge.
    pub fn is_at_most_once(&self) -> bool {
        self.sequence == 0
    }

    /// The process stops and the message stays unacknowledged. True if the MQTT broker keeps it and delivers it again;
    /// false at QoS 0, where it is lost.
    pub fn abandon(mut self) -> bool {
        self.live = false;
        self.sequence != 0
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if self.live && !std::thread::panicking() {
            panic!("acknowledgement token {} was dropped without being settled", self.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settling_gives_back_number_and_bytes() {
        assert_eq!(AckToken::new(7, 200).settle(), Settled { sequence: 7, cost_bytes: 200 });
    }

    #[test]
    fn a_token_dropped_unsettled_panics() {
        let dropped = std::panic::catch_unwind(|| drop(AckToken::new(3, 1)));
        assert!(dropped.is_err());
    }

    #[test]
    fn of_a_lost_session_nothing_is_remembered() {
        let void = Arc::new(AtomicBool::new(false));
        let token = AckToken::new(3, 1).exactly_once(7, 70, Arc::clone(&void));
        assert_eq!(token.unreleased(), Some((7, 70)));
        void.store(true, Ordering::Release);
        assert_eq!(token.unreleased(), None);
        token.abandon();
    }

    #[test]
    fn an_abandoned_token_is_quiet() {
        assert!(AckToken::new(3, 1).abandon());
        assert!(!AckToken::new(0, 1).abandon(), "nothing is delivered again at QoS 0");
    }
}
