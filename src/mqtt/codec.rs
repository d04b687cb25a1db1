//! MQTT 3.1.1 packets, from bytes and to bytes: the only file that names the MQTT crate.
//!
//! The crate's codec cuts packets out of a buffer and parses them. What it leaves out is done here: reserved
//! bits, packet identifier 0, topic names that are none, packets a server may not send, the size limit before
//! anything is allocated, and PUBLISH packets above that limit, which are read past without being kept.
//!
//! [`Packet`] and the `write_*` methods carry nothing that belongs to one protocol version, so that MQTT 5 is a
//! second codec and not a second session. This module knows no session: whether a packet may come *now* is
//! decided by [`super::session`].
//!
//! Source: MQTT 3.1.1, OASIS Standard, sections 2 and 3; numbers in brackets are its conformance statements.

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes::{QoS, v4};
use thiserror::Error;

use crate::message::{Body, Qos};
use crate::secret::Secret;

/// The largest remaining length MQTT can express, bytes (section 2.2.3).
const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// A packet a server may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The answer to CONNECT.
    ConnAck {
        /// The broker kept the session: its packet identifiers and subscriptions still hold.
        session_present: bool,
        /// None: accepted.
        refusal: Option<Refusal>,
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
        /// For each filter of the SUBSCRIBE the QoS granted; None: refused.
        grants: Vec<Option<Qos>>,
    },
    /// The answer to PINGREQ.
    PingResp,
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
    /// Topic name: not empty, no wildcards, no U+0000.
    pub topic: String,
    /// Payload; a view of the input buffer.
    pub body: Body,
}

/// Why the broker refused the connection (section 3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Code 1.
    #[error("the broker does not speak MQTT 3.1.1")]
    ProtocolVersion,
    /// Code 2.
    #[error("the broker does not accept this client id")]
    ClientId,
    /// Code 3.
    #[error("the broker says its service is unavailable")]
    Unavailable,
    /// Code 4.
    #[error("the broker refused the user name or password")]
    Credentials,
    /// Code 5.
    #[error("the broker says this client is not authorised")]
    NotAuthorised,
}

impl Refusal {
    /// Nothing changes until an operator changes something; otherwise waiting may help.
    pub fn needs_operator(self) -> bool {
        self != Refusal::Unavailable
    }
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
    /// Empty, with a wildcard, with U+0000, or not UTF-8 [MQTT-3.3.2-1, MQTT-3.3.2-2, MQTT-1.5.3-2].
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
}

/// Cuts packets out of the bytes of one connection, and writes packets.
#[derive(Debug)]
pub struct Codec {
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
    pub fn new(max_packet_bytes: u32) -> Self {
        Codec { max_packet_bytes, skip: None }
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
        let Some(header) = fixed_header(input)? else { return Ok(None) };
        check_header(header)?;
        if header.frame_bytes() > self.max_packet_bytes as usize {
            return self.begin_skip(header, input);
        }
        if input.len() < header.frame_bytes() {
            return Ok(None);
        }
        if header.packet_type() == 2 && input.get(header.header_bytes).is_none_or(|flags| flags & !1 != 0) {
            return Err(CodecError::ConnAckFlags);
        }
        let packet = v4::Packet::read(input, REMAINING_LENGTH_MAX).map_err(|error| match error {
            rumqttc::mqttbytes::Error::PacketIdZero => CodecError::PacketIdZero,
            rumqttc::mqttbytes::Error::TopicNotUtf8 => CodecError::Topic,
            other => CodecError::Malformed { packet_type: header.packet_type(), reason: other.to_string() },
        })?;
        from_crate(packet, header.packet_type()).map(Some)
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
        let qos = qos_of_bits(header.byte1 >> 1 & 0b11).ok_or(CodecError::Flags(header.byte1))?;
        let body = input.get(header.header_bytes..).unwrap_or_default();
        let Some((length, rest)) = body.split_first_chunk::<2>() else { return Ok(None) };
        let topic_bytes = usize::from(u16::from_be_bytes(*length));
        let id_bytes = if qos == Qos::AtMostOnce { 0 } else { 2 };
        if 2 + topic_bytes + id_bytes > header.remaining {
            return Err(CodecError::Length(3));
        }
        let (Some(topic), Some(id)) =
            (rest.get(..topic_bytes), rest.get(topic_bytes..topic_bytes + id_bytes))
        else {
            return Ok(None);
        };
        let topic = std::str::from_utf8(topic).map_err(|_| CodecError::Topic)?.to_owned();
        check_topic(&topic)?;
        let packet_id = id.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id));
        if packet_id == 0 && qos != Qos::AtMostOnce {
            return Err(CodecError::PacketIdZero);
        }
        let publish = Publish {
            dup: header.byte1 & 0b1000 != 0,
            qos,
            retain: header.byte1 & 1 != 0,
            packet_id,
            topic,
            body: Body::Oversized { packet_bytes },
        };
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
        let login = connect.login.map(|(user, password)| v4::Login {
            username: user.to_owned(),
            password: password.map(|password| password.expose().to_owned()).unwrap_or_default(),
        });
        let fits = |text: &str| text.len() <= usize::from(u16::MAX);
        let login_fits = login.as_ref().is_none_or(|login| fits(&login.username) && fits(&login.password));
        if !fits(connect.client_id) || !login_fits {
            return Err(CodecError::Length(1));
        }
        let mut packet = v4::Connect::new(connect.client_id);
        packet.keep_alive = connect.keep_alive_sec;
        packet.clean_session = connect.clean_session;
        packet.login = login;
        written(1, packet.write(output))
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
        let filters: Vec<v4::SubscribeFilter> = filters
            .map(|(filter, qos)| v4::SubscribeFilter::new(filter.to_owned(), qos_to_crate(qos)))
            .collect();
        if filters.iter().any(|filter| filter.path.len() > usize::from(u16::MAX)) {
            return Err(CodecError::Length(8));
        }
        written(8, v4::Subscribe { pkid: packet_id, filters }.write(output))
    }

    /// Writes PUBACK. Four bytes.
    pub fn write_puback(&self, packet_id: u16, output: &mut BytesMut) {
        let [high, low] = packet_id.to_be_bytes();
        output.extend_from_slice(&[0x40, 2, high, low]);
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

fn written(packet_type: u8, result: Result<usize, rumqttc::mqttbytes::Error>) -> Result<(), CodecError> {
    result.map(|_bytes| ()).map_err(|error| CodecError::Malformed { packet_type, reason: error.to_string() })
}

/// The fixed header, once it is there whole.
fn fixed_header(input: &[u8]) -> Result<Option<FixedHeader>, CodecError> {
    let Some((&byte1, rest)) = input.split_first() else { return Ok(None) };
    let mut remaining = 0_usize;
    for (place, &byte) in rest.iter().take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some(FixedHeader { byte1, header_bytes: 2 + place, remaining }));
        }
    }
    // A wrong first byte is an error now and not when a length happens to arrive.
    check_flags(byte1)?;
    if rest.len() >= 4 { Err(CodecError::Length(byte1 >> 4)) } else { Ok(None) }
}

/// Reserved flags, and packets that a server does not send to a client that only subscribes.
fn check_flags(byte1: u8) -> Result<(), CodecError> {
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
        other => return Err(CodecError::PacketType(other)),
    };
    if flags == expected { Ok(()) } else { Err(CodecError::Flags(byte1)) }
}

fn check_header(header: FixedHeader) -> Result<(), CodecError> {
    check_flags(header.byte1)?;
    let fits = match header.packet_type() {
        2 | 6 => header.remaining == 2,
        13 => header.remaining == 0,
        // SUBACK: an identifier and at least one code. PUBLISH: a topic of at least one byte.
        _ => header.remaining >= 3,
    };
    if fits { Ok(()) } else { Err(CodecError::Length(header.packet_type())) }
}

fn check_topic(topic: &str) -> Result<(), CodecError> {
    let bad = topic.is_empty() || topic.bytes().any(|byte| matches!(byte, 0 | b'+' | b'#'));
    if bad { Err(CodecError::Topic) } else { Ok(()) }
}

fn from_crate(packet: v4::Packet, packet_type: u8) -> Result<Packet, CodecError> {
    let packet = match packet {
        v4::Packet::Publish(publish) => {
            check_topic(&publish.topic)?;
            Packet::Publish(Publish {
                dup: publish.dup,
                qos: qos_from_crate(publish.qos),
                retain: publish.retain,
                packet_id: publish.pkid,
                topic: publish.topic,
                body: Body::Payload(publish.payload),
            })
        }
        v4::Packet::PubRel(pubrel) => Packet::PubRel { packet_id: pubrel.pkid },
        v4::Packet::PingResp => Packet::PingResp,
        v4::Packet::SubAck(suback) => Packet::SubAck {
            packet_id: suback.pkid,
            grants: suback
                .return_codes
                .into_iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(qos) => Some(qos_from_crate(qos)),
                    v4::SubscribeReasonCode::Failure => None,
                })
                .collect(),
        },
        v4::Packet::ConnAck(connack) => Packet::ConnAck {
            session_present: connack.session_present,
            refusal: match connack.code {
                v4::ConnectReturnCode::Success => None,
                v4::ConnectReturnCode::RefusedProtocolVersion => Some(Refusal::ProtocolVersion),
                v4::ConnectReturnCode::BadClientId => Some(Refusal::ClientId),
                v4::ConnectReturnCode::ServiceUnavailable => Some(Refusal::Unavailable),
                v4::ConnectReturnCode::BadUserNamePassword => Some(Refusal::Credentials),
                v4::ConnectReturnCode::NotAuthorized => Some(Refusal::NotAuthorised),
            },
        },
        _ => return Err(CodecError::PacketType(packet_type)),
    };
    match packet {
        Packet::PubRel { packet_id: 0 } | Packet::SubAck { packet_id: 0, .. } => {
            Err(CodecError::PacketIdZero)
        }
        packet => Ok(packet),
    }
}

fn qos_of_bits(bits: u8) -> Option<Qos> {
    match bits {
        0 => Some(Qos::AtMostOnce),
        1 => Some(Qos::AtLeastOnce),
        2 => Some(Qos::ExactlyOnce),
        _ => None,
    }
}

fn qos_from_crate(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn qos_to_crate(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
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
