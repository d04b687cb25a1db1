use super::*;
use proptest::prelude::*;
use rumqttc::mqttbytes::v4;

const LIMIT: u32 = 1000;

fn read_all(bytes: &[u8]) -> Result<Vec<Packet>, CodecError> {
    let mut input = BytesMut::from(bytes);
    let mut codec = Codec::new(Version::V311, LIMIT);
    let mut packets = Vec::new();
    while let Some(packet) = codec.read(&mut input)? {
        packets.push(packet);
    }
    Ok(packets)
}

fn fails(bytes: &[u8]) -> CodecError {
    read_all(bytes).unwrap_err()
}

/// A PUBLISH written by the specification's table and not by the code under test.
fn publish(byte1: u8, topic: &[u8], id: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic);
    body.extend(id.iter().flat_map(|id| id.to_be_bytes()));
    body.extend_from_slice(payload);
    let mut packet = vec![byte1];
    let mut left = body.len();
    loop {
        packet.push((left % 128) as u8 | if left > 127 { 0x80 } else { 0 });
        left /= 128;
        if left == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

#[test]
fn reads_each_packet_of_a_server() {
    let mut bytes = vec![0x20, 2, 1, 0, 0x90, 4, 0, 7, 1, 0x80, 0xd0, 0, 0x62, 2, 0, 9];
    bytes.extend(publish(0b0011_1011, b"a/b", Some(258), b"xy"));
    bytes.extend(publish(0b0011_0000, b"c", None, b""));
    let message = |dup, qos, retain, packet_id, topic: &str, payload: &'static [u8]| {
        let body = Body::Payload(Bytes::from_static(payload));
        let topic = topic.into();
        Packet::Publish(Publish { dup, qos, retain, packet_id, topic, body, properties: None })
    };
    assert_eq!(
        read_all(&bytes).unwrap(),
        [
            Packet::ConnAck { session_present: true, refusal: None, limits: Limits::default() },
            Packet::SubAck { packet_id: 7, grants: vec![Ok(Qos::AtLeastOnce), Err(Reason::UNSPECIFIED)] },
            Packet::PingResp,
            Packet::PubRel { packet_id: 9 },
            message(true, Qos::AtLeastOnce, true, 258, "a/b", b"xy"),
            message(false, Qos::AtMostOnce, false, 0, "c", b""),
        ]
    );
}

#[test]
fn each_refusal_of_connack_is_told_apart() {
    let refusals = (1..=5).map(|code| match read_all(&[0x20, 2, 0, code]).unwrap()[..] {
        [Packet::ConnAck { refusal: Some(ref refusal), .. }] => refusal.reason,
        _ => panic!("code {code}"),
    });
    let expected = [
        Reason::PROTOCOL_VERSION,
        Reason::CLIENT_ID,
        Reason::UNAVAILABLE,
        Reason::CREDENTIALS,
        Reason::NOT_AUTHORISED,
    ];
    assert!(refusals.eq(expected));
    assert!(matches!(fails(&[0x20, 2, 0, 6]), CodecError::Malformed { packet_type: 2, .. }));
    // As brokers answer that speak MQTT 5 only, in the layout of either.
    for connack in [&[0x20, 3, 0, 0x84, 0][..], &[0x20, 2, 0, 0x84], b"\x20\x09\0\x84\x06\x1f\0\x03why"] {
        match read_all(connack).unwrap()[..] {
            [Packet::ConnAck { refusal: Some(ref refusal), .. }] => {
                assert_eq!(refusal.reason, Reason::PROTOCOL_VERSION)
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn wrong_reserved_flags_are_errors() {
    for byte1 in [0x21, 0x92, 0xd1, 0x60, 0x63] {
        assert_eq!(fails(&[byte1, 2, 0, 1]), CodecError::Flags(byte1), "{byte1:#x}");
    }
    // QoS 3; DUP at QoS 0; CONNACK's own reserved flags.
    assert_eq!(fails(&publish(0b0011_0110, b"a", Some(1), b"")), CodecError::Flags(0x36));
    assert_eq!(fails(&publish(0b0011_1000, b"a", None, b"")), CodecError::Flags(0x38));
    assert_eq!(fails(&[0x20, 2, 2, 0]), CodecError::ConnAckFlags);
}

#[test]
fn packets_a_server_never_sends_us_are_errors() {
    for packet_type in [0, 1, 4, 5, 7, 8, 10, 11, 12, 14, 15] {
        assert_eq!(fails(&[packet_type << 4, 0]), CodecError::PacketType(packet_type));
    }
}

#[test]
fn packet_id_zero_is_an_error() {
    assert_eq!(fails(&publish(0x32, b"a", Some(0), b"")), CodecError::PacketIdZero);
    assert_eq!(fails(&publish(0x32, b"a", Some(0), &[0; 2000])), CodecError::PacketIdZero);
    assert_eq!(fails(&[0x62, 2, 0, 0]), CodecError::PacketIdZero);
    assert_eq!(fails(&[0x90, 3, 0, 0, 0]), CodecError::PacketIdZero);
}

#[test]
fn a_message_whose_topic_name_is_none_is_undeliverable_and_keeps_its_identifier() {
    for (topic, shown) in
        [(&b""[..], ""), (b"a/+", "a/+"), (b"#", "#"), (b"a\0b", "a\u{fffd}b"), (b"\xff", "\u{fffd}")]
    {
        let packet = publish(0x3b, topic, Some(5), b"pay");
        let whole = Bytes::copy_from_slice(&packet[2..]);
        let [Packet::Publish(read), Packet::PingResp] =
            &read_all(&[&packet[..], &[0xd0, 0]].concat()).unwrap()[..]
        else {
            panic!("{topic:?}")
        };
        assert_eq!((read.packet_id, read.qos, read.dup, read.retain), (5, Qos::AtLeastOnce, true, true));
        assert_eq!(read.body, Body::Malformed { packet: whole, reason: CodecError::Topic.to_string() });
        assert_eq!(read.topic, shown);
        let large = publish(0x32, topic, Some(5), &[0; 2000]);
        let [Packet::Publish(read)] = &read_all(&large).unwrap()[..] else { panic!("{topic:?}, large") };
        assert_eq!((read.packet_id, read.topic.as_str()), (5, shown));
        assert_eq!(read.body, Body::Oversized { packet_bytes: large.len() as u64 });
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    assert_eq!(fails(&[0x20, 3, 0, 0, 0]), CodecError::Length(2));
    assert_eq!(fails(&[0xd0, 1, 0]), CodecError::Length(13));
    assert_eq!(fails(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]), CodecError::Length(3));
    // A topic longer than its packet, below and above the limit.
    assert_eq!(fails(&[0x30, 4, 0, 9, b'a', b'b']), CodecError::Length(3));
    assert_eq!(fails(&[0x32, 4, 0, 1, b'a', 0]), CodecError::Length(3), "no identifier");
    assert_eq!(fails(&[0x30, 0xe9, 0x07, 0xff, 0xff, b'a']), CodecError::Length(3));
}

#[test]
fn a_large_packet_that_is_no_publish_is_refused_before_it_comes() {
    assert!(matches!(fails(&[0x90, 0xff, 0xff, 0xff, 0x7f]), CodecError::TooLarge { packet_type: 9, .. }));
}

#[test]
fn a_publish_above_the_limit_is_read_past_and_known_and_what_follows_is_read() {
    let mut bytes = publish(0x3b, b"big/one", Some(77), &vec![7; 5000]);
    let packet_bytes = bytes.len() as u64;
    bytes.extend(publish(0x30, b"next", None, b"1"));
    let packets = read_all(&bytes).unwrap();
    let Packet::Publish(first) = &packets[0] else { panic!() };
    assert_eq!(first.body, Body::Oversized { packet_bytes });
    assert_eq!((first.topic.as_str(), first.packet_id, first.dup, first.retain), ("big/one", 77, true, true));
    assert!(matches!(&packets[1], Packet::Publish(next) if next.topic == "next"));
}

#[test]
fn the_limit_is_of_the_whole_packet_and_inclusive() {
    let exact = publish(0x30, b"t", None, &vec![0; LIMIT as usize - 3 - 3]);
    assert_eq!(exact.len(), LIMIT as usize);
    let packets = read_all(&exact).unwrap();
    assert!(matches!(&packets[0], Packet::Publish(p) if matches!(p.body, Body::Payload(_))));
    let over = publish(0x30, b"t", None, &vec![0; LIMIT as usize - 3 - 2]);
    assert!(
        matches!(&read_all(&over).unwrap()[0], Packet::Publish(p) if matches!(p.body, Body::Oversized { .. }))
    );
}

#[test]
fn two_hundred_fifty_six_mebibytes_announced_and_never_sent_cost_nothing() {
    for limit in [LIMIT, u32::MAX] {
        let mut codec = Codec::new(Version::V311, limit);
        let mut input = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, b'a'][..]);
        assert_eq!(codec.read(&mut input), Ok(None));
        assert!(input.capacity() < 1024);
    }
}

#[test]
fn half_a_large_packet_is_forgotten_on_reset() {
    let mut codec = Codec::new(Version::V311, LIMIT);
    let bytes = publish(0x30, b"a", None, &[0; 2000]);
    assert_eq!(codec.read(&mut BytesMut::from(&bytes[..1500])), Ok(None));
    codec.reset();
    assert_eq!(codec.read(&mut BytesMut::from(&[0xd0, 0][..])), Ok(Some(Packet::PingResp)));
}

fn connect(client_id: &str) -> Connect<'_> {
    Connect {
        client_id,
        login: None,
        keep_alive_sec: 0,
        clean_session: true,
        session_expiry_sec: 3600,
        receive_maximum: 20,
    }
}

#[test]
fn connect_is_as_the_specification_lays_it_out() {
    let mut output = BytesMut::new();
    let password = Secret::new("pw");
    let login = Some(("me", Some(&password)));
    let connect_with_login = Connect { login, keep_alive_sec: 30, clean_session: false, ..connect("id") };
    Codec::new(Version::V311, LIMIT).write_connect(&connect_with_login, &mut output).unwrap();
    assert_eq!(&output[..], b"\x10\x16\0\x04MQTT\x04\xc0\0\x1e\0\x02id\0\x02me\0\x02pw");
    let long = "x".repeat(65_536);
    let connect = connect(&long);
    assert_eq!(
        Codec::new(Version::V311, LIMIT).write_connect(&connect, &mut output),
        Err(CodecError::Length(1))
    );
}

#[test]
fn the_small_packets_are_as_the_crate_writes_them() {
    let codec = Codec::new(Version::V311, LIMIT);
    let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
    codec.write_puback(513, &mut ours);
    codec.write_pubrec(258, &mut ours);
    codec.write_pubcomp(2, &mut ours);
    codec.write_pingreq(&mut ours);
    codec.write_disconnect(&mut ours);
    v4::PubAck::new(513).write(&mut theirs).unwrap();
    v4::PubRec::new(258).write(&mut theirs).unwrap();
    v4::PubComp::new(2).write(&mut theirs).unwrap();
    v4::PingReq.write(&mut theirs).unwrap();
    v4::Disconnect.write(&mut theirs).unwrap();
    assert_eq!(ours, theirs);
}

#[test]
fn detached_payloads_are_equal_and_pin_nothing() {
    let buffer = Bytes::from(vec![1; 64]);
    let kept = detach(&buffer.slice(3..5));
    assert_eq!(kept, [1, 1][..]);
    assert!(buffer.try_into_mut().is_ok(), "the buffer is free for the next read");
}

proptest! {
    #[test]
    fn cutting_the_stream_anywhere_changes_nothing(
        sizes in prop::collection::vec(0_usize..1500, 1..6),
        cuts in prop::collection::vec(1_usize..40, 1..50),
    ) {
        let bytes: Vec<u8> = sizes.iter().enumerate()
            .flat_map(|(i, size)| publish(0x32, b"a/b", Some(i as u16 + 1), &vec![i as u8; *size])).collect();
        let whole = read_all(&bytes).unwrap();
        let mut codec = Codec::new(Version::V311, LIMIT);
        let (mut input, mut packets, mut rest) = (BytesMut::new(), Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            input.extend_from_slice(now);
            rest = later;
            while let Some(packet) = codec.read(&mut input).unwrap() {
                packets.push(packet);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(packets, whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_all(&bytes);
    }
}
