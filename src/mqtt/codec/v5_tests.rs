use super::*;
use crate::mqtt::codec::{Codec, Version};
use crate::secret::Secret;
use bytes::Bytes;
use proptest::prelude::*;

fn read_one(bytes: &[u8]) -> Result<Option<Packet>, CodecError> {
    let mut input = BytesMut::from(bytes);
    let packet = Codec::new(Version::V5, 1000).read(&mut input)?;
    assert!(packet.is_none() || input.is_empty(), "all of it is taken: {packet:?}");
    Ok(packet)
}

fn publish(properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x01t\x00\x09".to_vec();
    body.push(properties.len() as u8);
    body.extend_from_slice(properties);
    body.extend_from_slice(payload);
    [vec![0x32, body.len() as u8], body].concat()
}

#[test]
fn connect_is_as_the_specification_lays_it_out() {
    let password = Secret::new("pw");
    let connect = Connect {
        client_id: "id",
        login: Some(("me", Some(&password))),
        keep_alive_sec: 30,
        clean_session: false,
        session_expiry_sec: 604_800,
        receive_maximum: 1000,
    };
    let mut output = BytesMut::from(&b"before"[..]);
    Codec::new(Version::V5, 1000).write_connect(&connect, &mut output).unwrap();
    let properties = b"\x08\x11\x00\x09\x3a\x80\x21\x03\xe8";
    let expected = [&b"before\x10\x1f\0\x04MQTT\x05\xc0\0\x1e"[..], properties, b"\0\x02id\0\x02me\0\x02pw"];
    assert_eq!(output, expected.concat());
}

#[test]
fn subscribe_asks_for_what_is_retained_with_a_new_subscription_only() {
    let mut output = BytesMut::new();
    let filters = [("$share/g/a/#", Qos::ExactlyOnce), ("b", Qos::AtMostOnce)];
    Codec::new(Version::V5, 1000).write_subscribe(7, filters.into_iter(), &mut output).unwrap();
    assert_eq!(&output[..], b"\x82\x16\0\x07\0\0\x0c$share/g/a/#\x12\0\x01b\x10");
}

#[test]
fn a_publish_has_its_properties_in_their_order() {
    let properties =
        b"\x01\x01\x02\0\0\0\x05\x26\0\x01k\0\x011\x03\0\x02tx\x26\0\x01k\0\x012\x08\0\x01r\x09\0\x02\0\xff";
    let Ok(Some(Packet::Publish(read))) = read_one(&publish(properties, b"pay")) else { panic!() };
    assert_eq!(read.body, Body::Payload(Bytes::from_static(b"pay")));
    assert_eq!((read.topic.as_str(), read.packet_id), ("t", 9));
    let expected = Properties {
        user: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        content_type: Some("tx".into()),
        response_topic: Some("r".into()),
        correlation_data: Some(Bytes::from_static(b"\0\xff")),
    };
    assert_eq!(read.properties.as_deref(), Some(&expected));
    // The payload format and the expiry are of no use to us.
    let Ok(Some(Packet::Publish(read))) = read_one(&publish(b"\x01\x01\x02\0\0\0\x05", b"")) else {
        panic!()
    };
    assert_eq!(read.properties, None);
}

/// A packet that is taken whole as an undeliverable message of identifier 9.
fn is_malformed(packet: &[u8]) -> bool {
    match read_one(packet) {
        Ok(Some(Packet::Publish(read))) => {
            matches!(&read.body, Body::Malformed { packet: kept, .. } if kept[..] == packet[2..])
                && read.packet_id == 9
        }
        _ => false,
    }
}

#[test]
fn properties_that_end_elsewhere_than_they_say_make_a_message_undeliverable_and_are_not_payload() {
    // The length ends inside the value of a user property: the crate would take the rest from the payload.
    let mut packet = publish(b"\x26\0\x01k\0\x03abc", b"pay");
    packet[7] -= 2;
    assert!(is_malformed(&packet));
    // Subscription identifiers are not asked for; the crate counts each a byte too long.
    assert!(is_malformed(&publish(b"\x0b\x01\x0b\x01\x0b\x01", b"pay")));
    // No such property; text that is not UTF-8.
    assert!(is_malformed(&publish(b"\x7f\x01", b"pay")));
    assert!(is_malformed(&publish(b"\x03\0\x01\xff", b"pay")));
    let packet = publish(b"\x26\0\x01k\0\x01v", b"pay");
    for cut in 3..packet.len() - 3 {
        let mut short = packet[..cut].to_vec();
        short[1] = cut as u8 - 2;
        assert!(read_one(&short).is_err() || is_malformed(&short), "{short:?}");
    }
}

#[test]
fn a_topic_alias_makes_a_message_undeliverable_with_and_without_a_topic() {
    assert!(is_malformed(&publish(b"\x23\0\x01", b"x")));
    assert!(is_malformed(b"\x32\x08\0\0\0\x09\x03\x23\0\x01"));
}

#[test]
fn reason_codes_come_out_as_they_are() {
    let grants = vec![Ok(Qos::AtMostOnce), Ok(Qos::ExactlyOnce), Err(Reason(0x87))];
    assert_eq!(
        read_one(b"\x90\x0c\0\x07\x06\x1f\0\x03why\0\x02\x87"),
        Ok(Some(Packet::SubAck { packet_id: 7, grants }))
    );
    let disconnect = |reason| Ok(Some(Packet::Disconnect(Refusal { reason, said: None })));
    assert_eq!(read_one(b"\xe0\0"), disconnect(Reason::SUCCESS));
    assert_eq!(read_one(b"\xe0\x01\x8e"), disconnect(Reason::TAKEN_OVER));
    assert_eq!(read_one(b"\xe0\x02\x8b\0"), disconnect(Reason(0x8b)));
    // Server moved, with the reference to another.
    let moved = Refusal { reason: Reason(0x9d), said: Some("mqtt2".into()) };
    assert_eq!(read_one(b"\xe0\x0a\x9d\x08\x1c\0\x05mqtt2"), Ok(Some(Packet::Disconnect(moved))));
}

#[test]
fn what_a_server_does_not_send_is_an_error() {
    assert_eq!(read_one(b"\xf0\0"), Err(CodecError::PacketType(15)));
    assert_eq!(read_one(b"\xe1\0"), Err(CodecError::Flags(0xe1)));
    assert_eq!(read_one(b"\x62\x02\0\0"), Err(CodecError::PacketIdZero));
    assert_eq!(read_one(b"\x20\x02\0\x09"), Err(CodecError::Length(2)));
    assert_eq!(read_one(b"\x20\x02\0\0"), Err(CodecError::Length(2)), "accepted in another version");
    let refused = Some(Reason::PROTOCOL_VERSION.into());
    for code in [1, 0x84] {
        let refused =
            Packet::ConnAck { session_present: false, refusal: refused.clone(), limits: Limits::default() };
        assert_eq!(read_one(&[0x20, 2, 0, code]), Ok(Some(refused)));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut input = BytesMut::from(&bytes[..]);
        let mut codec = Codec::new(Version::V5, 100);
        while let Ok(Some(_)) = codec.read(&mut input) {}
    }

    #[test]
    fn a_valid_head_with_arbitrary_rest_never_panics(
        byte1 in prop::sample::select(vec![0x20_u8, 0x30, 0x32, 0x34, 0x62, 0x90, 0xe0]),
        body in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut input = BytesMut::from(&[&[byte1, body.len() as u8], &body[..]].concat()[..]);
        let _ = Codec::new(Version::V5, 1000).read(&mut input);
    }
}
