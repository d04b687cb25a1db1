//! What is particular to MQTT 5: properties, reason codes, DISCONNECT from the server.
//!
//! The crate's codec does not see to it that properties end where their length says: what follows would be taken for
//! payload, or payload for properties. That is checked here. The topic alias maximum is left at zero, so a PUBLISH always
//! has its topic, and no subscription identifier is asked for, so none may come.
//!
//! No maximum packet size is announced: a broker drops what is larger without telling (section 3.1.2.11.4), and a
//! gateway must not lose silently. What is larger than our limit is read past, recorded and acknowledged instead.
//!
//! Source: MQTT 5.0, OASIS Standard, section 3.

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::v5;
use rumqttc::v5::mqttbytes::{Error, QoS};

use super::{
    CodecError, Connect, FixedHeader, Limits, Packet, Publish, Reason, Refusal, malformed, qos_of_bits,
};
use crate::message::{Body, Properties, Qos};

/// Takes the packet, which is there whole, out of `input`.
pub(super) fn read(header: FixedHeader, input: &mut BytesMut) -> Result<Packet, CodecError> {
    let packet_type = header.packet_type();
    let frame = input.get(..header.frame_bytes()).unwrap_or_default();
    let body = frame.get(header.header_bytes..).unwrap_or_default();
    if let Some(packet) = read_short(packet_type, body)? {
        bytes::Buf::advance(input, header.frame_bytes());
        return Ok(packet);
    }
    let second_byte = body.get(1).copied().unwrap_or_default();
    // The codes of SUBACK stand at its end, one byte each.
    let tail: Vec<u8> = if packet_type == 9 { body.to_vec() } else { Vec::new() };
    let packet = v5::Packet::read(input, None).map_err(|error| match error {
        Error::PacketIdZero => CodecError::PacketIdZero,
        other => malformed(packet_type, &other),
    })?;
    Ok(match packet {
        v5::Packet::PubRel(pubrel) => Packet::PubRel { packet_id: pubrel.pkid },
        v5::Packet::SubAck(suback) => {
            let codes = tail.len().saturating_sub(suback.return_codes.len());
            let codes = tail.get(codes..).unwrap_or_default();
            let grant = |&code: &u8| qos_of_bits(code).ok_or(Reason(code));
            Packet::SubAck { packet_id: suback.pkid, grants: codes.iter().map(grant).collect() }
        }
        v5::Packet::ConnAck(connack) => connack_of(connack, second_byte),
        v5::Packet::Disconnect(disconnect) => {
            let (said, server) =
                disconnect.properties.map(|p| (p.reason_string, p.server_reference)).unwrap_or_default();
            Packet::Disconnect(Refusal {
                reason: Reason(disconnect.reason_code as u8),
                said: said.or(server),
            })
        }
        _ => return Err(CodecError::PacketType(packet_type)),
    })
}

/// Packets that are shorter than the crate takes them to be.
fn read_short(packet_type: u8, body: &[u8]) -> Result<Option<Packet>, CodecError> {
    Ok(match (packet_type, body) {
        (13, _) => Some(Packet::PingResp),
        // Accepted as no version does it.
        (2, [_, _]) => return Err(CodecError::Length(2)),
        (14, []) => Some(Packet::Disconnect(Reason::SUCCESS.into())),
        (14, &[code]) => Some(Packet::Disconnect(Reason(code).into())),
        _ => None,
    })
}

/// What is left of a PUBLISH behind topic, identifier and properties.
fn payload_bytes(header: FixedHeader, body: &[u8]) -> Result<usize, CodecError> {
    let short = || malformed(3, &"it is shorter than its parts");
    let (topic, rest) = body.split_first_chunk::<2>().ok_or_else(short)?;
    let id_bytes = if header.byte1 & 0b0110 == 0 { 0 } else { 2 };
    let properties = rest.get(usize::from(u16::from_be_bytes(*topic)) + id_bytes..).ok_or_else(short)?;
    let mut length = 0_usize;
    for (place, &byte) in properties.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return properties.len().checked_sub(place + 1 + length).ok_or_else(short);
        }
    }
    Err(short())
}

/// Reads a whole PUBLISH, whose topic was checked.
pub(super) fn read_publish(header: FixedHeader, frame: Bytes) -> Result<Publish, CodecError> {
    let payload_bytes = payload_bytes(header, frame.get(header.header_bytes..).unwrap_or_default())?;
    let fixed = v5::FixedHeader::new(header.byte1, header.header_bytes - 1, header.remaining);
    let publish = v5::Publish::read(fixed, frame).map_err(|error| malformed(3, &error))?;
    if publish.payload.len() != payload_bytes {
        return Err(malformed(3, &"its properties do not end where their length says"));
    }
    let topic = String::from_utf8(publish.topic.to_vec()).map_err(|_| CodecError::Topic)?;
    let mut properties = None;
    if let Some(given) = publish.properties {
        if given.topic_alias.is_some() {
            return Err(malformed(3, &"a topic alias, and none was allowed"));
        }
        let kept = Properties {
            user: given.user_properties,
            content_type: given.content_type,
            response_topic: given.response_topic,
            // Views of the read buffer would pin it.
            correlation_data: given.correlation_data.map(|data| super::detach(&data)),
        };
        properties = (kept != Properties::default()).then(|| Box::new(kept));
    }
    Ok(Publish {
        dup: publish.dup,
        qos: match publish.qos {
            QoS::AtMostOnce => Qos::AtMostOnce,
            QoS::AtLeastOnce => Qos::AtLeastOnce,
            QoS::ExactlyOnce => Qos::ExactlyOnce,
        },
        retain: publish.retain,
        packet_id: publish.pkid,
        topic,
        body: Body::Payload(publish.payload),
        properties,
    })
}

fn connack_of(connack: v5::ConnAck, code: u8) -> Packet {
    let mut limits = Limits::default();
    let mut said = None;
    if let Some(given) = connack.properties {
        limits = Limits {
            keep_alive_sec: given.server_keep_alive,
            session_expiry_sec: given.session_expiry_interval,
            packet_bytes_max: given.max_packet_size,
        };
        said = given.reason_string.or(given.server_reference);
    }
    let refusal = (code != 0).then_some(Refusal { reason: Reason(code), said });
    Packet::ConnAck { session_present: connack.session_present, refusal, limits }
}

/// Strings that fit were checked.
pub(super) fn write_connect(connect: &Connect<'_>, output: &mut BytesMut) -> Result<(), CodecError> {
    let properties = v5::ConnectProperties {
        session_expiry_interval: Some(connect.session_expiry_sec),
        receive_maximum: Some(connect.receive_maximum),
        ..v5::ConnectProperties::new()
    };
    let packet = v5::Connect {
        keep_alive: connect.keep_alive_sec,
        client_id: connect.client_id.to_owned(),
        clean_start: connect.clean_session,
        properties: Some(properties),
    };
    let login = connect.login.map(|(user, password)| v5::Login {
        username: user.to_owned(),
        password: password.map(|password| password.expose().to_owned()).unwrap_or_default(),
    });
    // The crate finds the flags by their place from the beginning of the buffer.
    let mut alone = BytesMut::new();
    packet.write(&None, &login, &mut alone).map_err(|error| malformed(1, &error))?;
    output.extend_from_slice(&alone);
    Ok(())
}

pub(super) fn write_subscribe(
    packet_id: u16,
    filters: &[(&str, Qos)],
    output: &mut BytesMut,
) -> Result<(), CodecError> {
    let filter = |&(path, qos): &(&str, Qos)| v5::Filter {
        path: path.to_owned(),
        qos: match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        },
        // A process that starts subscribes again in the session it finds: what is retained came with the first time.
        retain_forward_rule: v5::RetainForwardRule::OnNewSubscribe,
        ..v5::Filter::default()
    };
    let packet =
        v5::Subscribe { pkid: packet_id, filters: filters.iter().map(filter).collect(), properties: None };
    packet.write(output).map(|_bytes| ()).map_err(|error| malformed(8, &error))
}

#[cfg(test)]
#[path = "v5_tests.rs"]
mod tests;
