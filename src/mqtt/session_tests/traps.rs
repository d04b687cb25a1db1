//! One test for each trap that was met in practice, and for each rule that was seen to be necessary.

use super::*;

#[test]
fn a_message_comes_out_whole_and_with_an_identity_only_if_it_can_come_again() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 9, b"one"), publish(false, 0, b"two")].concat());
    assert_eq!(rig.payloads(), [b"one", b"two"]);
    let (one, two) = (&rig.messages[0], &rig.messages[1]);
    assert_eq!(
        (one.topic.as_str(), one.qos, one.retain, one.received_at_ms),
        ("a/b", Qos::AtLeastOnce, false, 1)
    );
    assert_eq!(one.delivery_id, Some(fingerprint(fingerprint_seed("gateway"), 9, "a/b", &one.body, None)));
    assert_eq!((two.qos, two.delivery_id), (Qos::AtMostOnce, None));
}

#[test]
fn nothing_is_acknowledged_before_it_is_settled_and_then_in_order_many_to_a_write() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 1, b"1"), publish(false, 2, b"2"), publish(false, 3, b"3")].concat());
    assert_eq!(rig.sent(), []);
    rig.settle(1);
    rig.settle(1);
    assert_eq!(rig.sent(), []);
    rig.settle(0);
    assert_eq!(rig.sent(), [1, 2, 3].map(Sent::Puback));
}

#[test]
fn a_packet_of_megabytes_is_taken_and_a_larger_one_does_not_end_in_a_loop() {
    let mut rig = Rig::connected(options());
    let large = vec![7; 5 * 1024 * 1024];
    for chunk in publish(false, 1, &large).chunks(60_000) {
        rig.receive(chunk);
    }
    assert_eq!(rig.payloads(), [&large[..]]);
    rig.settle(0);
    let larger = publish(false, 2, &vec![7; 9 * 1024 * 1024]);
    for chunk in larger.chunks(60_000) {
        rig.receive(chunk);
        assert!(rig.session.input.len() <= 70_000, "it is read past, not gathered");
    }
    assert_eq!(rig.messages[0].body, Body::Oversized { packet_bytes: larger.len() as u64 });
    rig.settle(0);
    assert_eq!(rig.sent(), [1, 2].map(Sent::Puback));
    assert_eq!(rig.session.in_hand(), (0, 0));
    assert!(rig.session.input.capacity() <= INPUT_KEPT_BYTES);
}

#[test]
fn a_lost_session_is_subscribed_again_and_a_kept_one_is_not() {
    let mut rig = Rig::connected(options());
    for (session_present, expected) in [(true, vec![]), (false, vec![Sent::Subscribe(2)])] {
        rig.lose();
        rig.session.open(rig.now).unwrap();
        rig.sent();
        rig.receive(&[0x20, 2, u8::from(session_present), 0]);
        assert_eq!(rig.sent(), expected, "session present: {session_present}");
    }
    rig.events();
    rig.receive(&[0x90, 3, 0, 2, 1]);
    assert_eq!(rig.events(), [Event::Subscribed { granted: 1, refused: 0 }]);
}

#[test]
fn a_kept_session_is_subscribed_once_by_a_new_process_and_again_if_the_suback_was_lost() {
    let mut rig = Rig::new(options());
    for id in [1, 2] {
        rig.session.open(rig.now).unwrap();
        rig.receive(&[0x20, 2, 1, 0]);
        assert_eq!(rig.sent(), [Sent::Connect, Sent::Subscribe(id)]);
        rig.lose();
    }
}

#[test]
fn a_refused_subscription_is_told_and_tried_again_without_dropping_the_connection() {
    let mut rig = Rig::new(options());
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 2, 0, 0, 0x90, 3, 0, 1, 0x80]);
    rig.sent();
    let events = rig.events();
    assert!(
        events
            .contains(&Event::Filter(Verdict::Refused { filter: "a/#".into(), reason: Reason::UNSPECIFIED })),
        "{events:?}"
    );
    assert!(events.contains(&Event::Subscribed { granted: 0, refused: 1 }), "{events:?}");
    for id in [2, 3] {
        rig.pass(60);
        rig.session.on_deadline(rig.now, true).unwrap();
        assert!(rig.sent().contains(&Sent::Subscribe(id)));
        rig.receive(&[0xd0, 0, 0x90, 3, 0, id as u8, if id == 2 { 0x80 } else { 1 }]);
        if id == 2 {
            assert_eq!(rig.events(), [], "told once");
        }
    }
    assert!(rig.events().contains(&Event::Subscribed { granted: 1, refused: 0 }));
}

#[test]
fn a_suback_that_never_comes_ends_the_connection() {
    let mut rig = Rig::new(options());
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 2, 0, 0]);
    rig.pass(10);
    assert_eq!(rig.session.on_deadline(rig.now, true), Err(SessionError::Overdue(Overdue::SubAck)));
}

#[test]
fn a_connack_that_never_comes_ends_the_connection() {
    let mut rig = Rig::new(options());
    rig.session.open(rig.now).unwrap();
    rig.pass(9);
    assert_eq!(rig.session.on_deadline(rig.now, true), Ok(()));
    assert_eq!(rig.session.deadline(), Some(rig.now + Duration::from_secs(1)));
    rig.pass(1);
    assert_eq!(rig.session.on_deadline(rig.now, true), Err(SessionError::Overdue(Overdue::ConnAck)));
}

#[test]
fn a_refused_connection_says_why() {
    let mut rig = Rig::new(options());
    rig.session.open(rig.now).unwrap();
    assert_eq!(rig.try_receive(&[0x20, 2, 0, 4]), Err(SessionError::Refused(Reason::CREDENTIALS.into())));
}

#[test]
fn packets_at_the_wrong_time_end_the_connection() {
    let mut early = Rig::new(options());
    early.session.open(early.now).unwrap();
    assert!(matches!(early.try_receive(&publish(false, 1, b"x")), Err(SessionError::Unexpected(_))));
    assert!(early.messages.is_empty());
    let wrong: [&[u8]; 2] = [&[0x20, 2, 0, 0], &[0x90, 3, 0, 9, 1]];
    for bytes in wrong {
        let mut rig = Rig::connected(options());
        assert!(matches!(rig.try_receive(bytes), Err(SessionError::Unexpected(_))), "{bytes:?}");
    }
}

#[test]
fn messages_before_an_error_in_the_same_bytes_are_in_hand() {
    let mut rig = Rig::connected(options());
    assert!(rig.try_receive(&[publish(false, 1, b"x"), vec![0xf0, 0]].concat()).is_err());
    assert_eq!(rig.payloads(), [b"x"]);
}

#[test]
fn acknowledgements_of_one_connection_are_never_sent_on_another() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 1, b"1"), publish(false, 2, b"2")].concat());
    // One is settled and its PUBACK is still in the buffer, one is settled while there is no connection.
    rig.settle(0);
    rig.lose();
    rig.settle(0);
    rig.connect(false);
    rig.receive(&publish(false, 1, b"another message"));
    assert_eq!(rig.sent(), []);
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Puback(1)]);
}

#[test]
fn ids_of_a_lost_session_are_void_before_the_next_packet_is_parsed() {
    let mut rig = Rig::connected(options());
    rig.receive(&publish(false, 1, b"same"));
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.receive(&[vec![0x20, 2, 0, 0], publish(true, 1, b"same")].concat());
    assert_eq!(rig.payloads(), [b"same", b"same"]);
    rig.sent();
    rig.settle(0);
    assert_eq!(rig.sent(), [], "the first is of the lost session");
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Puback(1)]);
}

#[test]
fn a_redelivery_of_what_is_in_hand_is_passed_on_once_and_acknowledged_once() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 1, b"1"), publish(false, 2, b"2")].concat());
    rig.lose();
    rig.connect(true);
    rig.receive(&[publish(true, 1, b"1"), publish(true, 2, b"2"), publish(false, 3, b"3")].concat());
    assert_eq!(rig.payloads(), [b"1", b"2", b"3"]);
    rig.settle(0);
    rig.settle(0);
    rig.settle(0);
    assert_eq!(rig.sent(), [1, 2, 3].map(Sent::Puback));
    assert_eq!(rig.session.stats().repeats_suppressed, 2);
}

#[test]
fn settled_repeats_at_the_in_flight_limit_make_room_by_themselves() {
    let mut rig = Rig::connected(SessionOptions { in_flight_messages_max: 2, ..options() });
    rig.receive(&[publish(false, 1, b"1"), publish(false, 2, b"2")].concat());
    rig.lose();
    rig.settle(0);
    rig.settle(0);
    rig.connect(true);
    rig.receive(&[publish(true, 1, b"1"), publish(true, 2, b"2"), publish(false, 3, b"3")].concat());
    assert_eq!(rig.payloads(), [b"3"]);
    assert_eq!(rig.sent(), [1, 2].map(Sent::Puback));
}

#[test]
fn any_pubrel_is_answered() {
    let mut rig = Rig::connected(options());
    rig.receive(&[0x62, 2, 0, 42]);
    assert_eq!(rig.sent(), [Sent::Pubcomp(42)]);
}

#[test]
fn unacknowledged_messages_are_bounded_whatever_window_the_broker_keeps() {
    let mut rig = Rig::connected(SessionOptions { in_flight_messages_max: 3, ..options() });
    let five: Vec<u8> = (1..=5).flat_map(|id| publish(false, id, b"x")).collect();
    rig.receive(&five);
    assert_eq!(rig.messages.len(), 3);
    assert!(!rig.session.may_read() && rig.session.has_input());
    rig.settle(0);
    assert!(rig.session.may_read());
    rig.receive(&[]);
    assert_eq!(rig.messages.len(), 3);
}

#[test]
fn messages_and_bytes_in_hand_are_bounded_at_qos_0_too_and_one_large_message_passes() {
    let many: Vec<u8> = (0..10).flat_map(|_| publish(false, 0, &[1; 100])).collect();
    let mut by_count = Rig::connected(SessionOptions { in_hand_messages_max: 4, ..options() });
    by_count.receive(&many);
    assert_eq!(by_count.messages.len(), 4);
    let mut by_bytes = Rig::connected(SessionOptions { in_hand_bytes_max: 500, ..options() });
    by_bytes.receive(&many);
    assert_eq!(by_bytes.messages.len(), 3);
    while !by_bytes.messages.is_empty() {
        by_bytes.settle(0);
    }
    by_bytes.session.input.clear();
    by_bytes.receive(&publish(false, 0, &[1; 5000]));
    assert_eq!(by_bytes.messages.len(), 1);
}

#[test]
fn half_a_packet_of_one_connection_does_not_reach_the_next() {
    for payload in [10, 9 * 1024 * 1024] {
        let mut rig = Rig::connected(options());
        let packet = publish(false, 1, &vec![1; payload]);
        rig.receive(&packet[..packet.len() - 5]);
        rig.lose();
        rig.connect(true);
        rig.receive(&publish(true, 1, b"whole"));
        assert_eq!(rig.payloads(), [b"whole"]);
    }
}

#[test]
fn keep_alive_is_kept_and_nothing_is_overdue_while_back_pressure_pauses_reading() {
    let mut rig = Rig::connected(SessionOptions { in_hand_messages_max: 1, ..options() });
    rig.receive(&publish(false, 0, b"x"));
    for _ in 0..40 {
        let before = rig.now;
        rig.now = rig.session.deadline().unwrap();
        assert!(rig.now - before <= Duration::from_secs(15));
        rig.session.on_deadline(rig.now, false).unwrap();
        assert_eq!(rig.sent(), [Sent::Ping]);
    }
    rig.settle(0);
    rig.session.on_deadline(rig.now, true).unwrap();
    rig.receive(&[0xd0, 0].repeat(40));
    rig.pass(14);
    rig.session.on_deadline(rig.now, true).unwrap();
    assert_eq!(rig.sent(), []);
}

#[test]
fn a_silent_broker_is_given_up_after_a_ping() {
    let mut rig = Rig::connected(options());
    rig.pass(15);
    rig.session.on_deadline(rig.now, true).unwrap();
    assert_eq!(rig.sent(), [Sent::Ping]);
    rig.pass(10);
    assert_eq!(rig.session.on_deadline(rig.now, true), Err(SessionError::Overdue(Overdue::PingResp)));
}

#[test]
fn a_take_over_by_another_client_is_told_once_until_a_connection_lasts() {
    let mut rig = Rig::new(options());
    let mut told = Vec::new();
    for seconds in [1, 1, 1, 1, 1, 11, 1, 1, 1] {
        rig.connect(true);
        rig.pass(seconds);
        rig.lose();
        told.push(rig.events().contains(&Event::TakenOver { times: 3 }));
    }
    assert_eq!(told, [false, false, true, false, false, false, false, false, true]);
}

#[test]
fn connections_that_we_end_or_that_never_were_are_no_take_over() {
    let mut rig = Rig::new(options());
    for _ in 0..5 {
        rig.connect(true);
        rig.session.lost(false, rig.now);
        rig.session.open(rig.now).unwrap();
        rig.lose();
    }
    assert!(!rig.events().iter().any(|event| matches!(event, Event::TakenOver { .. })));
}

#[test]
fn after_stop_reading_acknowledgements_go_on_and_after_goodbye_nothing_does() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 1, b"1"), publish(false, 2, b"2")].concat());
    rig.session.stop_reading(rig.now);
    assert!(!rig.session.may_read());
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Puback(1)]);
    rig.session.say_goodbye(rig.now);
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Disconnect]);
}

#[test]
fn a_flood_of_acknowledgements_asks_for_confirmation_before_its_table_is_full() {
    let mut rig = Rig::connected(options());
    let mut pings = 0;
    for id in 1..=10_000 {
        rig.receive(&publish(false, id, b"x"));
        rig.settle(0);
        for packet in rig.sent() {
            if packet == Sent::Ping {
                pings += 1;
                rig.receive(&[0xd0, 0]);
            }
        }
        assert!(rig.session.redelivery.unconfirmed() <= UNCONFIRMED_MAX / 4);
    }
    assert_eq!(pings, 4);
}

#[test]
fn a_malformed_message_is_acknowledged_when_it_is_recorded_and_does_not_come_for_ever() {
    let mut rig = Rig::connected(options());
    let packet = [0x32, 6, 0, 1, 0xff, 0, 5, 0x78];
    rig.receive(&packet);
    assert_eq!((rig.payloads(), rig.session.stats().malformed), (vec![&b"malformed"[..]], 1));
    rig.lose();
    rig.connect(true);
    rig.receive(&[packet[0] | 8, 6, 0, 1, 0xff, 0, 5, 0x78]);
    rig.receive(&publish(false, 6, b"next"));
    assert_eq!(rig.payloads(), [&b"malformed"[..], b"next"]);
    rig.settle(0);
    rig.settle(0);
    assert_eq!(rig.sent(), [5, 6].map(Sent::Puback));
    assert_eq!(rig.session.in_hand(), (0, 0));
}

#[test]
fn a_broker_that_asks_and_does_not_listen_does_not_fill_the_memory() {
    let mut rig = Rig::connected(options());
    let flood: Vec<u8> = std::iter::repeat_n(pubrel(1), 300_000).flatten().collect();
    rig.receive(&flood);
    assert!(rig.session.output().len() <= OUTPUT_BYTES_MAX + 4);
    assert!(!rig.session.may_read() && !rig.session.may_go_on());
    rig.session.wrote(1000, rig.now);
    assert!(rig.session.may_go_on());
    rig.receive(&[]);
    assert!(!rig.session.may_go_on());
    while !rig.session.output().is_empty() {
        rig.session.wrote(usize::MAX, rig.now);
        rig.receive(&[]);
    }
    assert!(rig.session.may_read() && !rig.session.may_go_on() && !rig.session.has_input());
}
