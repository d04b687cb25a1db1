//! PUBLISH packets that cannot be passed on as they are: the parts that all have, and what is made of one that is malformed.
//!
//! The specification lets a client close the connection on a malformed packet. A broker that passed one on would deliver it again
//! first thing on the next connection, for ever, and with it one publisher would stop everything. So where the length of the frame and
//! the packet identifier are sound, it is a message that can never be delivered, like one that is too large.

use bytes::Bytes;

use super::{CodecError, FixedHeader, Publish, qos_of_bits};
use crate::message::{Body, Qos};

/// Topic and packet identifier of a PUBLISH.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    /// As it came: anything.
    pub topic: &'a [u8],
    /// 0 at QoS 0.
    pub packet_id: u16,
}

/// Finds the head in what follows the fixed header, of which the beginning may be there only; None if the head is not.
pub(super) fn head(header: FixedHeader, body: &[u8]) -> Result<Option<Head<'_>>, CodecError> {
    let qos = qos_of_bits(header.byte1 >> 1 & 0b11).ok_or(CodecError::Flags(header.byte1))?;
    let id_bytes = if qos == Qos::AtMostOnce { 0 } else { 2 };
    let Some((length, rest)) = body.split_first_chunk::<2>() else { return Ok(None) };
    let topic_bytes = usize::from(u16::from_be_bytes(*length));
    if 2 + topic_bytes + id_bytes > header.remaining {
        return Err(CodecError::Length(3));
    }
    let (Some(topic), Some(id)) = (rest.get(..topic_bytes), rest.get(topic_bytes..topic_bytes + id_bytes))
    else {
        return Ok(None);
    };
    let packet_id = id.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id));
    if packet_id == 0 && qos != Qos::AtMostOnce {
        return Err(CodecError::PacketIdZero);
    }
    Ok(Some(Head { topic, packet_id }))
}

/// Whether this is a topic name: not empty, UTF-8, no wildcards, no U+0000 [MQTT-3.3.2-1, MQTT-3.3.2-2, MQTT-1.5.3-2].
pub(super) fn is_topic(topic: &[u8]) -> bool {
    let bad = topic.is_empty() || topic.iter().any(|byte| matches!(byte, 0 | b'+' | b'#'));
    !bad && std::str::from_utf8(topic).is_ok()
}

/// What takes the place of the packet.
pub(super) fn instead(header: FixedHeader, head: Head<'_>, body: Body) -> Publish {
    Publish {
        dup: header.byte1 & 0b1000 != 0,
        qos: qos_of_bits(header.byte1 >> 1 & 0b11).unwrap_or(Qos::AtMostOnce),
        retain: header.byte1 & 1 != 0,
        packet_id: head.packet_id,
        topic: String::from_utf8_lossy(head.topic).replace('\0', "\u{fffd}"),
        body,
        properties: None,
    }
}

/// A packet that is there whole, as bytes of an undeliverable message.
pub(super) fn malformed(header: FixedHeader, frame: &Bytes, error: &CodecError) -> Option<Publish> {
    let packet = frame.slice(header.header_bytes.min(frame.len())..);
    let head = head(header, &packet).ok().flatten()?;
    Some(instead(header, head, Body::Malformed { packet: packet.clone(), reason: error.to_string() }))
}
