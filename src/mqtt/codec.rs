//! MQTT packets of both versions, from bytes and to bytes: this module alone names the MQTT crate.
//!
//! The crate's codec cuts packets out of a buffer and parses them. What it leaves out is done here: reserved
//! bits, packet identifier 0, topic names that are none, packets a server may not send, the size limit before
//! anything is allocated, and PUBLISH packets above that limit, which are read past without being kept.
//!
//! [`Packet`] and the `write_*` methods carry nothing that belongs to one protocol version: `v311` and `v5` are what
//! differs, so that MQTT 5 is a second codec and not a second session. This module knows no session: whether a packet may
//! come *now* is decided by [`super::session`].
//!
//! Source: MQTT 3.1.1 and 5.0, OASIS Standards, sections 2 and 3; numbers in brackets are conformance statements of 3.1.1.

mod publish;
mod v311;
mod v5;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

pub use super::reason::{Reason, Refusal};
use crate::message::{Body, Properties, Qos};
use crate::secret::Secret;

/// The largest remaining length MQTT can express, bytes (section 2.2.3).
const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// Protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

/// A packet a server may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The answer to CONNECT.
    ConnAck {
        /// The broker kept the session: its packet identifiers and subscriptions still hold.
        session_present: bool,
        /// None: accepted.
        refusal: Option<Refusal>,
        /// What the broker has decided for this connection.
        limits: Limits,
    },
    /// A message.
    Publish(Publish),
    /// The sender's release of a QoS 2 message.
    PubRel {
        /// Packet identifier.
        packet_id: u16,
    },
    /// The answer to SUBSCRIBE.
    SubAck {
        /// Packet identifier of the SUBSCRIBE.
        packet_id: u16,
        /// For each filter of the SUBSCRIBE the QoS granted, or why it is refused.
        grants: Vec<Result<Qos, Reason>>,
    },
    /// The answer to PINGREQ.
    PingResp,
    /// The broker ends the connection, and says why (MQTT 5).
    Disconnect(Refusal),
}

/// What CONNACK of MQTT 5 says of the connection (section 3.2.2.3); None: as asked for, or without limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// The keep-alive to use instead of the one asked for, seconds.
    pub keep_alive_sec: Option<u16>,
    /// How long the session is kept, seconds.
    pub session_expiry_sec: Option<u32>,
    /// The largest packet that the broker takes, bytes.
    pub packet_bytes_max: Option<u32>,
}

/// A PUBLISH packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The broker has (tried to have) sent this before.
    pub dup: bool,
    /// QoS of this delivery.
    pub qos: Qos,
    /// RETAIN flag.
    pub retain: bool,
    /// Packet identifier; 0 at QoS 0, which has none.
    pub packet_id: u16,
    /// Topic name: not empty, no wildcards, no U+0000. Of a malformed packet, what can be read of it.
    pub topic: String,
    /// Payload; a view of the input buffer.
    pub body: Body,
    /// What MQTT 5 carries beside the payload; None if there is nothing of it.
    pub properties: Option<Box<Properties>>,
}

/// What is wrong with the bytes of a peer. There is one thing to do: close the connection (section 4.8).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Reserved bits of the fixed header are not as the specification wants them [MQTT-2.2.2-2].
    #[error("fixed header {0:#04x} has wrong reserved flags")]
    Flags(u8),
    /// A packet type that only clients send, or one we never asked for.
    #[error("a server must not send packet type {0} here")]
    PacketType(u8),
    /// A length longer than four bytes, or one that does not fit the packet type.
    #[error("packet type {0} has a wrong length")]
    Length(u8),
    /// Larger than the limit and not a PUBLISH.
    #[error("packet type {packet_type} of {bytes} bytes is larger than the limit")]
    TooLarge {
        /// Packet type.
        packet_type: u8,
        /// Whole packet, bytes.
        bytes: u64,
    },
    /// Packet identifier 0 [MQTT-2.3.1-1].
    #[error("packet identifier 0")]
    PacketIdZero,
    /// Empty, with a wildcard, with U+0000, or not UTF-8 [MQTT-3.3.2-1, MQTT-3.3.2-2, MQTT-1.5.3-2]. Told of a message, not of the peer.
    #[error("invalid topic name")]
    Topic,
    /// CONNACK with reserved acknowledge flags.
    #[error("CONNACK has wrong reserved flags")]
    ConnAckFlags,
    /// The codec's own complaint.
    #[error("malformed packet type {packet_type}: {reason}")]
    Malformed {
        /// Packet type.
        packet_type: u8,
        /// What the codec says.
        reason: String,
    },
}

/// What CONNECT says.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    /// Client identifier.
    pub client_id: &'a str,
    /// User name and password.
    pub login: Option<(&'a str, Option<&'a Secret>)>,
    /// Keep-alive, seconds; 0 is off.
    pub keep_alive_sec: u16,
    /// Ask the broker to forget the session.
    pub clean_session: bool,
    /// How long the broker shall keep the session after the connection, seconds (MQTT 5).
    pub session_expiry_sec: u32,
    /// Messages that the broker may send without an acknowledgement (MQTT 5).
    pub receive_maximum: u16,
}

/// Cuts packets out of the bytes of one connection, and writes packets.
#[derive(Debug)]
pub struct Codec {
    version: Version,
    max_packet_bytes: u32,
    skip: Option<Skip>,
}

/// A PUBLISH above the limit while its payload is read past.
#[derive(Debug)]
struct Skip {
    publish: Publish,
    left: usize,
}

/// The fixed header (section 2.2).
#[derive(Debug, Clone, Copy)]
struct FixedHeader {
    byte1: u8,
    header_bytes: usize,
    remaining: usize,
}

impl FixedHeader {
    fn packet_type(self) -> u8 {
        self.byte1 >> 4
    }

    fn frame_bytes(self) -> usize {
        self.header_bytes + self.remaining
    }
}

impl Codec {
    /// A codec for one connection at a time. PUBLISH packets of more than `max_packet_bytes` come out as
    /// [`Body::Oversized`].
    pub fn new(version: Version, max_packet_bytes: u32) -> Self {
        Codec { version, max_packet_bytes, skip: None }
    }

    /// Forgets half a packet: the connection is another one.
    pub fn reset(&mut self) {
        self.skip = None;
    }

    /// Takes the next packet out of `input`; None if it is not there yet.
    ///
    /// Needs in `input` at most a whole packet of the limit, or 65,544 bytes of one that is larger: what a
    /// length announces costs nothing until its bytes have come.
    ///
    /// # Errors
    /// The peer broke the protocol: close the connection.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, CodecError> {
        if self.skip.is_some() {
            return Ok(self.read_past(input));
        }
        let Some(header) = fixed_header(input, self.version)? else { return Ok(None) };
        check_header(header, self.version)?;
        if header.frame_bytes() > self.max_packet_bytes as usize {
            return self.begin_skip(header, input);
        }
        if input.len() < header.frame_bytes() {
            return Ok(None);
        }
        let mut frame = input.split_to(header.frame_bytes());
        if header.packet_type() == 2 {
            let body = frame.get(header.header_bytes..).unwrap_or_default();
            if body.first().is_none_or(|flags| flags & !1 != 0) {
                return Err(CodecError::ConnAckFlags);
            }
            if let Some(packet) = refused_in_another_version(self.version, body) {
                return Ok(Some(packet));
            }
        }
        if header.packet_type() == 3 {
            return self.read_publish(header, frame.freeze()).map(Some);
        }
        let packet = match self.version {
            Version::V311 => v311::read(header, &mut frame)?,
            Version::V5 => v5::read(header, &mut frame)?,
        };
        match packet {
            Packet::PubRel { packet_id: 0 } | Packet::SubAck { packet_id: 0, .. } => {
                Err(CodecError::PacketIdZero)
            }
            packet => Ok(Some(packet)),
        }
    }

    fn read_publish(&self, header: FixedHeader, frame: Bytes) -> Result<Packet, CodecError> {
        let body = frame.get(header.header_bytes..).unwrap_or_default();
        let head = publish::head(header, body)?.ok_or(CodecError::Length(3))?;
        let read = match self.version {
            _ if !publish::is_topic(head.topic) => Err(CodecError::Topic),
            Version::V311 => v311::read_publish(header, frame.clone()),
            Version::V5 => v5::read_publish(header, frame.clone()),
        };
        let publish = read.or_else(|error| publish::malformed(header, &frame, &error).ok_or(error))?;
        Ok(Packet::Publish(publish))
    }

    fn begin_skip(
        &mut self,
        header: FixedHeader,
        input: &mut BytesMut,
    ) -> Result<Option<Packet>, CodecError> {
        let packet_bytes = header.frame_bytes() as u64;
        if header.packet_type() != 3 {
            return Err(CodecError::TooLarge { packet_type: header.packet_type(), bytes: packet_bytes });
        }
        let body = input.get(header.header_bytes..).unwrap_or_default();
        let Some(head) = publish::head(header, body)? else { return Ok(None) };
        let publish = publish::instead(header, head, Body::Oversized { packet_bytes });
        self.skip = Some(Skip { publish, left: header.frame_bytes() });
        Ok(self.read_past(input))
    }

    fn read_past(&mut self, input: &mut BytesMut) -> Option<Packet> {
        let skip = self.skip.as_mut()?;
        let here = skip.left.min(input.len());
        input.advance(here);
        skip.left -= here;
        if skip.left > 0 {
            return None;
        }
        self.skip.take().map(|skip| Packet::Publish(skip.publish))
    }

    /// Writes CONNECT.
    ///
    /// # Errors
    /// A string does not fit the packet: a fault of the configuration.
    pub fn write_connect(&self, connect: &Connect<'_>, output: &mut BytesMut) -> Result<(), CodecError> {
        let fits = |text: &str| text.len() <= usize::from(u16::MAX);
        let login_fits = connect
            .login
            .is_none_or(|(user, password)| fits(user) && password.is_none_or(|secret| fits(secret.expose())));
        if !fits(connect.client_id) || !login_fits {
            return Err(CodecError::Length(1));
        }
        match self.version {
            Version::V311 => v311::write_connect(connect, output),
            Version::V5 => v5::write_connect(connect, output),
        }
    }

    /// Writes SUBSCRIBE.
    ///
    /// # Errors
    /// A filter does not fit the packet: a fault of the configuration.
    pub fn write_subscribe<'f>(
        &self,
        packet_id: u16,
        filters: impl Iterator<Item = (&'f str, Qos)>,
        output: &mut BytesMut,
    ) -> Result<(), CodecError> {
        let filters: Vec<(&str, Qos)> = filters.collect();
        if filters.iter().any(|(filter, _)| filter.len() > usize::from(u16::MAX)) {
            return Err(CodecError::Length(8));
        }
        match self.version {
            Version::V311 => v311::write_subscribe(packet_id, &filters, output),
            Version::V5 => v5::write_subscribe(packet_id, &filters, output),
        }
    }

    /// Writes PUBACK. Four bytes, which in MQTT 5 mean success (section 3.4.2.1).
    pub fn write_puback(&self, packet_id: u16, output: &mut BytesMut) {
        let [high, low] = packet_id.to_be_bytes();
        output.extend_from_slice(&[0x40, 2, high, low]);
    }

    /// Writes PUBREC. Four bytes.
    pub fn write_pubrec(&self, packet_id: u16, output: &mut BytesMut) {
        let [high, low] = packet_id.to_be_bytes();
        output.extend_from_slice(&[0x50, 2, high, low]);
    }

    /// Writes PUBCOMP. Four bytes.
    pub fn write_pubcomp(&self, packet_id: u16, output: &mut BytesMut) {
        let [high, low] = packet_id.to_be_bytes();
        output.extend_from_slice(&[0x70, 2, high, low]);
    }

    /// Writes PINGREQ. Two bytes.
    pub fn write_pingreq(&self, output: &mut BytesMut) {
        output.extend_from_slice(&[0xc0, 0]);
    }

    /// Writes DISCONNECT. Two bytes.
    pub fn write_disconnect(&self, output: &mut BytesMut) {
        output.extend_from_slice(&[0xe0, 0]);
    }
}

/// A CONNACK that is not laid out as in our version, or has a code of another one: a refusal, if it is one, all the same.
fn refused_in_another_version(version: Version, body: &[u8]) -> Option<Packet> {
    let code = *body.get(1)?;
    let reason = match (version, body.len()) {
        (_, 2) if code >= Reason::UNSPECIFIED.0 => Reason(code),
        (Version::V5, 2) => Reason::of_return_code(code)?,
        (Version::V311, 3..) if code >= Reason::UNSPECIFIED.0 => Reason(code),
        _ => return None,
    };
    Some(Packet::ConnAck { session_present: false, refusal: Some(reason.into()), limits: Limits::default() })
}

/// What the crate says is wrong.
fn malformed(packet_type: u8, reason: &dyn std::fmt::Display) -> CodecError {
    CodecError::Malformed { packet_type, reason: reason.to_string() }
}

/// The fixed header, once it is there whole.
fn fixed_header(input: &[u8], version: Version) -> Result<Option<FixedHeader>, CodecError> {
    let Some((&byte1, rest)) = input.split_first() else { return Ok(None) };
    let mut remaining = 0_usize;
    for (place, &byte) in rest.iter().take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some(FixedHeader { byte1, header_bytes: 2 + place, remaining }));
        }
    }
    // A wrong first byte is an error now and not when a length happens to arrive.
    check_flags(byte1, version)?;
    if rest.len() >= 4 { Err(CodecError::Length(byte1 >> 4)) } else { Ok(None) }
}

/// Reserved flags, and packets that a server does not send to a client that only subscribes.
fn check_flags(byte1: u8, version: Version) -> Result<(), CodecError> {
    let flags = byte1 & 0x0f;
    let expected = match byte1 >> 4 {
        // PUBLISH: any but QoS 3 [MQTT-3.3.1-4], and no DUP at QoS 0 [MQTT-3.3.1-2].
        3 => {
            let qos = flags >> 1 & 0b11;
            return if qos == 3 || (qos == 0 && flags & 0b1000 != 0) {
                Err(CodecError::Flags(byte1))
            } else {
                Ok(())
            };
        }
        6 => 0b0010,
        2 | 9 | 13 => 0,
        14 if version == Version::V5 => 0,
        other => return Err(CodecError::PacketType(other)),
    };
    if flags == expected { Ok(()) } else { Err(CodecError::Flags(byte1)) }
}

fn check_header(header: FixedHeader, version: Version) -> Result<(), CodecError> {
    check_flags(header.byte1, version)?;
    let fits = match (header.packet_type(), version) {
        // A broker that does not speak our version refuses by a CONNACK of its own.
        (2, _) | (6, Version::V5) => header.remaining >= 2,
        (6, Version::V311) => header.remaining == 2,
        (13, _) => header.remaining == 0,
        (14, _) => true,
        // SUBACK: an identifier and at least one code. PUBLISH: a topic of at least one byte.
        _ => header.remaining >= 3,
    };
    if fits { Ok(()) } else { Err(CodecError::Length(header.packet_type())) }
}

fn qos_of_bits(bits: u8) -> Option<Qos> {
    match bits {
        0 => Some(Qos::AtMostOnce),
        1 => Some(Qos::AtLeastOnce),
        2 => Some(Qos::ExactlyOnce),
        _ => None,
    }
}

/// A payload in memory of its own. A view would pin the whole read buffer for as long as one small message
/// of it is in hand: with one slow topic among many, tens of thousands of times the size of what is kept.
pub fn detach(payload: &Bytes) -> Bytes {
    Bytes::copy_from_slice(payload)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
