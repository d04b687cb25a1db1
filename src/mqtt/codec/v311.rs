//! What is particular to MQTT 3.1.1.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{self, Error, QoS, v4};

use super::{
    CodecError, Connect, FixedHeader, Limits, Packet, Publish, REMAINING_LENGTH_MAX, Reason, malformed,
};
use crate::message::{Body, Qos};

/// Takes the packet, which is there whole, out of `input`.
pub(super) fn read(header: FixedHeader, input: &mut BytesMut) -> Result<Packet, CodecError> {
    let packet_type = header.packet_type();
    if packet_type == 2 && header.remaining != 2 {
        return Err(CodecError::Length(packet_type));
    }
    let packet = v4::Packet::read(input, REMAINING_LENGTH_MAX).map_err(|error| match error {
        Error::PacketIdZero => CodecError::PacketIdZero,
        other => malformed(packet_type, &other),
    })?;
    Ok(match packet {
        v4::Packet::PubRel(pubrel) => Packet::PubRel { packet_id: pubrel.pkid },
        v4::Packet::PingResp => Packet::PingResp,
        v4::Packet::SubAck(suback) => Packet::SubAck {
            packet_id: suback.pkid,
            grants: suback
                .return_codes
                .into_iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(qos) => Ok(qos_from_crate(qos)),
                    v4::SubscribeReasonCode::Failure => Err(Reason::UNSPECIFIED),
                })
                .collect(),
        },
        v4::Packet::ConnAck(connack) => Packet::ConnAck {
            session_present: connack.session_present,
            refusal: Reason::of_return_code(connack.code as u8).map(Into::into),
            limits: Limits::default(),
        },
        _ => return Err(CodecError::PacketType(packet_type)),
    })
}

/// Reads a whole PUBLISH, whose topic was checked.
pub(super) fn read_publish(header: FixedHeader, frame: Bytes) -> Result<Publish, CodecError> {
    let fixed = mqttbytes::FixedHeader::new(header.byte1, header.header_bytes - 1, header.remaining);
    let publish = v4::Publish::read(fixed, frame).map_err(|error| malformed(3, &error))?;
    Ok(Publish {
        dup: publish.dup,
        qos: qos_from_crate(publish.qos),
        retain: publish.retain,
        packet_id: publish.pkid,
        topic: publish.topic,
        body: Body::Payload(publish.payload),
        properties: None,
    })
}

/// Strings that fit were checked.
pub(super) fn write_connect(connect: &Connect<'_>, output: &mut BytesMut) -> Result<(), CodecError> {
    let mut packet = v4::Connect::new(connect.client_id);
    packet.keep_alive = connect.keep_alive_sec;
    packet.clean_session = connect.clean_session;
    packet.login = connect.login.map(|(user, password)| v4::Login {
        username: user.to_owned(),
        password: password.map(|password| password.expose().to_owned()).unwrap_or_default(),
    });
    packet.write(output).map(|_bytes| ()).map_err(|error| malformed(1, &error))
}

pub(super) fn write_subscribe(
    packet_id: u16,
    filters: &[(&str, Qos)],
    output: &mut BytesMut,
) -> Result<(), CodecError> {
    let filter =
        |&(filter, qos): &(&str, Qos)| v4::SubscribeFilter::new(filter.to_owned(), qos_to_crate(qos));
    let filters = filters.iter().map(filter).collect();
    let packet = v4::Subscribe { pkid: packet_id, filters };
    packet.write(output).map(|_bytes| ()).map_err(|error| malformed(8, &error))
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
