//! What a session is told, and how a connection of it can end. Data only.

use thiserror::Error;

use crate::message::Qos;
use crate::mqtt::codec::{CodecError, Version};
use crate::mqtt::liveness::Overdue;
use crate::mqtt::reason::Refusal;
use crate::secret::Secret;

/// What a session is told once.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Client identifier: the identity of the persistent session.
    pub client_id: String,
    /// User name and password.
    pub login: Option<(String, Option<Secret>)>,
    /// Keep-alive, seconds; 0 is off.
    pub keep_alive_sec: u16,
    /// Ask for a session that ends with the connection.
    pub clean_session: bool,
    /// Protocol version.
    pub version: Version,
    /// How long the broker shall keep the session, seconds (MQTT 5); not with `clean_session`.
    pub session_expiry_sec: u32,
    /// Filters as subscribed (with `$share/group/`), and the QoS asked for.
    pub filters: Vec<(String, Qos)>,
    /// Larger PUBLISH packets come out as `Body::Oversized`.
    pub max_packet_bytes: u32,
    /// Messages of QoS 1 and 2 that may be without PUBACK or PUBREC on a connection.
    pub in_flight_messages_max: usize,
    /// Messages of any QoS that may be in hand.
    pub in_hand_messages_max: usize,
    /// Packet identifiers and fingerprints of messages of QoS 2 that an earlier process made safe and that may not be released.
    pub unreleased: Vec<(u16, u64)>,
    /// Releases must be made durable ([`super::Session::take_releases`]) before the broker hears of them.
    pub hold_releases: bool,
    /// Bytes that may be in hand; one message goes over it, so that a large one is never stuck.
    pub in_hand_bytes_max: u64,
}

/// Why a connection must be closed. All but [`SessionError::Refused`] and faults of the configuration heal by
/// connecting again; those too are tried again, for the broker may be the one that is mended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The broker refused the connection.
    #[error("connection refused")]
    Refused(#[source] Refusal),
    /// The broker ended the connection and said why (MQTT 5).
    #[error("ended by the broker")]
    Ended(#[source] Refusal),
    /// The bytes are not MQTT as a server may send it.
    #[error("the broker broke the protocol")]
    Codec(#[from] CodecError),
    /// A packet that may not come now.
    #[error("the broker broke the protocol: {0}")]
    Unexpected(&'static str),
    /// The broker did not answer, or did not read.
    #[error(transparent)]
    Overdue(Overdue),
}
