//! MQTT 5 in the session: what CONNACK decides, reason codes, DISCONNECT from the server.

use super::super::codec::Limits;
use super::*;

fn options_5() -> SessionOptions {
    SessionOptions { version: Version::V5, session_expiry_sec: 600, ..options() }
}

fn publish_5(qos: u8, dup: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    publish_in(Version::V5, qos, dup, id, payload)
}

/// With a connection whose CONNACK has these properties.
fn connected(properties: &[u8]) -> Rig {
    let mut rig = Rig::new(options_5());
    open(&mut rig, false, properties);
    rig
}

fn open(rig: &mut Rig, session_present: bool, properties: &[u8]) {
    rig.session.open(rig.now).unwrap();
    assert_eq!(rig.sent(), [Sent::Connect]);
    let length = properties.len() as u8;
    let mut connack = vec![0x20, 3 + length, u8::from(session_present), 0, length];
    connack.extend_from_slice(properties);
    rig.receive(&connack);
    for packet in rig.sent() {
        let Sent::Subscribe(id) = packet else { panic!("{packet:?}") };
        let [high, low] = id.to_be_bytes();
        rig.receive(&[0x90, 4, high, low, 0, 2]);
    }
}

#[test]
fn what_connack_decides_is_told_and_its_keep_alive_is_kept() {
    // Server keep alive 8 s, session expiry 60 s, maximum packet size 1000.
    let mut rig = connected(b"\x13\x00\x08\x11\x00\x00\x00\x3c\x27\x00\x00\x03\xe8");
    let limits =
        Limits { keep_alive_sec: Some(8), session_expiry_sec: Some(60), packet_bytes_max: Some(1000) };
    assert_eq!(rig.events()[0], Event::Connected { session_present: false, limits });
    rig.pass(6);
    rig.session.on_deadline(rig.now, true).unwrap();
    assert_eq!(rig.sent(), [Sent::Ping], "three quarters of 8 s, not of the 20 s that were asked for");
}

#[test]
fn redeliveries_of_qos_1_and_2_are_known_as_with_3_1_1() {
    let mut rig = connected(b"");
    rig.receive(&[publish_5(1, false, 1, b"one"), publish_5(2, false, 2, b"two")].concat());
    assert_eq!(rig.payloads(), [b"one", b"two"]);
    let user = &rig.messages[0].properties.as_ref().unwrap().user;
    assert_eq!(user, &[("n".to_owned(), "v".to_owned())]);
    rig.lose();
    open(&mut rig, true, b"");
    rig.receive(&[publish_5(1, true, 1, b"one"), publish_5(2, true, 2, b"two")].concat());
    assert_eq!(rig.messages.len(), 2);
    (0..2).for_each(|_| rig.settle(0));
    assert_eq!(rig.sent(), [Sent::Puback(1), Sent::Pubrec(2)]);
    // PUBREL with a reason code and without properties.
    rig.receive(&[0x62, 3, 0, 2, 0]);
    assert_eq!(rig.sent(), [Sent::Pubcomp(2)]);
    assert_eq!(rig.session.stats().repeats_suppressed, 2);
}

#[test]
fn a_refused_connection_says_why_in_the_brokers_words() {
    let mut rig = Rig::new(options_5());
    rig.session.open(rig.now).unwrap();
    let said = Some("no such user".to_owned());
    let refused = SessionError::Refused(Refusal { reason: Reason::CREDENTIALS, said });
    let connack = b"\x20\x12\x00\x86\x0f\x1f\x00\x0cno such user";
    assert_eq!(rig.try_receive(connack), Err(refused));
}

#[test]
fn a_broker_without_mqtt_5_is_told_as_such() {
    let mut rig = Rig::new(options_5());
    rig.session.open(rig.now).unwrap();
    assert_eq!(
        rig.try_receive(&[0x20, 2, 0, 1]),
        Err(SessionError::Refused(Reason::PROTOCOL_VERSION.into()))
    );
}

#[test]
fn a_refused_filter_has_its_reason() {
    let mut rig = Rig::new(options_5());
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 3, 0, 0, 0, 0x90, 4, 0, 1, 0, 0x9e]);
    let refused = Verdict::Refused { filter: "a/#".into(), reason: Reason(0x9e) };
    assert!(rig.events().contains(&Event::Filter(refused)));
}

#[test]
fn disconnect_from_the_server_ends_the_connection_with_its_reason_and_counts_as_taken_over() {
    let mut rig = Rig::new(options_5());
    for times in 1..=SHORT_CONNECTIONS {
        open(&mut rig, true, b"");
        assert_eq!(
            rig.try_receive(&[0xe0, 1, 0x8e]),
            Err(SessionError::Ended(Reason::TAKEN_OVER.into())),
            "{times}"
        );
        rig.lose();
    }
    assert!(rig.events().contains(&Event::TakenOver { times: SHORT_CONNECTIONS }));
    open(&mut rig, true, b"");
    // Server shutting down, with a reason string.
    let ended = rig.try_receive(b"\xe0\x08\x8b\x06\x1f\x00\x03bye");
    let refusal = Refusal { reason: Reason(0x8b), said: Some("bye".into()) };
    assert_eq!(ended, Err(SessionError::Ended(refusal)));
}
