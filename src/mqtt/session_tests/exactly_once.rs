//! QoS 2: what is passed on once, what is answered, and what is forgotten when.

use super::*;

#[test]
fn pubrec_goes_out_when_the_message_is_safe_in_order_of_arrival_beside_pubacks() {
    let mut rig = Rig::connected(options());
    rig.receive(
        &[publish_once(false, 1, b"1"), publish(false, 2, b"2"), publish_once(false, 3, b"3")].concat(),
    );
    assert_eq!(rig.messages[0].qos, Qos::ExactlyOnce);
    assert!(rig.messages[0].delivery_id.is_some());
    rig.settle(2);
    rig.settle(1);
    assert_eq!(rig.sent(), []);
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Pubrec(1), Sent::Puback(2), Sent::Pubrec(3)]);
    rig.receive(&[pubrel(1), pubrel(3)].concat());
    assert_eq!(rig.sent(), [Sent::Pubcomp(1), Sent::Pubcomp(3)]);
    assert_eq!(rig.session.unreleased(), 0);
}

#[test]
fn a_redelivery_before_pubrel_is_not_passed_on_and_gets_its_pubrec() {
    let mut rig = Rig::connected(options());
    rig.receive(&publish_once(false, 7, b"x"));
    rig.lose();
    rig.connect(true);
    rig.receive(&publish_once(true, 7, b"x"));
    assert_eq!((rig.payloads().len(), rig.sent()), (1, vec![]), "in hand");
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Pubrec(7)]);
    for _ in 0..2 {
        rig.lose();
        rig.connect(true);
        rig.receive(&publish_once(true, 7, b"x"));
        assert_eq!((rig.payloads().len(), rig.sent()), (0, vec![Sent::Pubrec(7)]), "the PUBREC was lost");
    }
    assert_eq!((rig.session.stats().repeats_suppressed, rig.session.stats().possible_repeats), (3, 0));
}

#[test]
fn after_a_pubrec_only_pubrel_comes_and_it_is_answered_on_any_connection() {
    let mut rig = Rig::connected(options());
    rig.receive(&publish_once(false, 7, b"x"));
    rig.settle(0);
    rig.sent();
    for _ in 0..2 {
        rig.lose();
        rig.connect(true);
        rig.receive(&pubrel(7));
        assert_eq!(rig.sent(), [Sent::Pubcomp(7)], "known or not");
    }
    rig.receive(&publish_once(false, 7, b"x"));
    assert_eq!(rig.payloads(), [b"x"], "a new message");
}

#[test]
fn in_a_new_session_an_old_identifier_is_a_new_message_even_in_one_read_with_connack() {
    let mut rig = Rig::connected(options());
    rig.receive(&publish_once(false, 7, b"x"));
    rig.settle(0);
    rig.sent();
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.receive(&[vec![0x20, 2, 0, 0], publish_once(true, 7, b"x")].concat());
    assert_eq!(rig.payloads(), [b"x"]);
}

#[test]
fn messages_that_wait_for_their_pubrel_do_not_stop_the_reading_which_brings_it() {
    let mut rig = Rig::connected(SessionOptions { in_flight_messages_max: 2, ..options() });
    for id in 1..=50 {
        rig.receive(&publish_once(false, id, b"x"));
        rig.settle(0);
    }
    assert!(rig.session.may_read());
    assert_eq!((rig.sent().len(), rig.session.unreleased()), (50, 50));
    (1..=50).for_each(|id| rig.receive(&pubrel(id)));
    assert_eq!((rig.sent().len(), rig.session.unreleased()), (50, 0));
}

#[test]
fn a_subscription_of_qos_2_takes_any_qos() {
    let mut rig = Rig::connected(options());
    rig.receive(&[publish(false, 0, b"0"), publish(false, 1, b"1"), publish_once(false, 2, b"2")].concat());
    assert_eq!(rig.messages.iter().map(|message| message.qos.as_u8()).collect::<Vec<_>>(), [0, 1, 2]);
    (0..3).for_each(|_| rig.settle(0));
    assert_eq!(rig.sent(), [Sent::Puback(1), Sent::Pubrec(2)]);
}

/// As with a spool on a disk.
fn holding(unreleased: Vec<(u16, u64)>) -> SessionOptions {
    SessionOptions { hold_releases: true, unreleased, ..options() }
}

fn id_of(id: u16, payload: &'static [u8]) -> u64 {
    fingerprint(
        fingerprint_seed("gateway"),
        id,
        "a/b",
        &Body::Payload(bytes::Bytes::from_static(payload)),
        None,
    )
}

#[test]
fn with_a_disk_pubcomp_waits_for_the_release_and_goes_out_on_its_connection_only() {
    let mut rig = Rig::connected(holding(Vec::new()));
    rig.receive(&publish_once(false, 7, b"x"));
    rig.settle(0);
    assert_eq!(rig.sent(), [Sent::Pubrec(7)]);
    rig.receive(&pubrel(7));
    assert_eq!((rig.sent(), rig.releases()), (vec![], Some(vec![7])));
    rig.lose();
    rig.released();
    rig.connect(true);
    assert_eq!(rig.sent(), [], "the broker will ask again");
    rig.receive(&pubrel(7));
    assert_eq!(rig.releases(), Some(vec![7]));
    rig.released();
    assert_eq!(rig.sent(), [Sent::Pubcomp(7)]);
}

#[test]
fn what_an_earlier_process_made_safe_is_not_passed_on_until_it_is_released() {
    let mut rig = Rig::new(holding(vec![(7, id_of(7, b"x")), (8, id_of(8, b"y"))]));
    rig.connect(true);
    rig.receive(
        &[publish_once(true, 7, b"x"), publish_once(true, 8, b"other"), publish_once(false, 9, b"z")]
            .concat(),
    );
    assert_eq!(rig.payloads(), [&b"other"[..], b"z"], "another content is another message");
    assert_eq!(rig.releases(), Some(vec![8]), "what was stored of it is forgotten");
    rig.released();
    (0..2).for_each(|_| rig.settle(0));
    assert_eq!(rig.sent(), [7, 8, 9].map(Sent::Pubrec));
    rig.receive(&pubrel(7));
    rig.releases().unwrap();
    rig.released();
    rig.receive(&publish_once(false, 7, b"x"));
    assert_eq!(rig.payloads(), [b"x"], "the identifier's next message may be equal");
}

#[test]
fn a_lost_session_is_forgotten_on_the_disk_before_anything_is_subscribed_or_read() {
    let mut rig = Rig::new(holding(vec![(7, id_of(7, b"x"))]));
    for _ in 0..2 {
        rig.session.open(rig.now).unwrap();
        rig.sent();
        // The second time the broker has the session that it made the first time.
        rig.receive(&[vec![0x20, 2, 0, 0], publish_once(true, 7, b"x")].concat());
        assert_eq!((rig.sent(), rig.payloads().len(), rig.session.may_read()), (vec![], 0, false));
        rig.lose();
    }
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.receive(&[vec![0x20, 2, 1, 0], publish_once(true, 7, b"x")].concat());
    assert_eq!(rig.payloads().len(), 0);
    assert_eq!(rig.releases(), Some(vec![7]));
    rig.released();
    assert_eq!(rig.sent(), [Sent::Subscribe(1)]);
    rig.receive(&[]);
    assert_eq!(rig.payloads(), [b"x"]);
}

#[test]
fn what_is_in_hand_of_a_lost_session_is_forgotten_when_it_is_safe() {
    let mut rig = Rig::connected(holding(Vec::new()));
    rig.receive(&publish_once(false, 7, b"x"));
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 2, 0, 0]);
    assert_eq!(rig.releases(), Some(vec![7]));
    rig.released();
    // It goes to the spool only now, with its identifier.
    rig.settle(0);
    assert_eq!(rig.releases(), Some(vec![7]));
}

#[test]
fn a_new_message_equal_to_what_an_earlier_process_stored_is_passed_on_though_the_session_is_kept() {
    // The earlier process was killed between CONNACK of a new session and the disk's word that the old one is void.
    let mut rig = Rig::new(holding(vec![(7, id_of(7, b"x"))]));
    rig.connect(true);
    rig.receive(&publish_once(false, 7, b"x"));
    assert_eq!((rig.payloads(), rig.session.stats().possible_repeats), (vec![&b"x"[..]], 1));
}

#[test]
fn what_an_earlier_process_stored_is_known_on_later_connections_only_if_the_session_is_shown_to_be_the_old_one()
 {
    for proven in [false, true] {
        let mut rig = Rig::new(holding(vec![(7, id_of(7, b"x")), (8, id_of(8, b"y"))]));
        rig.connect(true);
        if proven {
            rig.receive(&publish_once(true, 8, b"y"));
        }
        rig.lose();
        rig.connect(true);
        rig.receive(&publish_once(true, 7, b"x"));
        assert_eq!(rig.payloads().is_empty(), proven, "a new session's message may have been lost meanwhile");
        assert_eq!(rig.session.stats().possible_repeats, u64::from(!proven));
    }
}

/// The broker made a new session, and its CONNACK never came here.
fn with_a_connack_missed(mut rig: Rig) -> Rig {
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.receive(&[0x20, 2, 1, 0]);
    rig
}

#[test]
fn after_a_connack_that_never_came_all_is_subscribed_again() {
    let mut rig = with_a_connack_missed(Rig::connected(options()));
    assert_eq!(rig.sent(), [Sent::Subscribe(2)], "the session may be a new one");
    rig.receive(&[0x90, 3, 0, 2, 1]);
    rig.lose();
    rig.connect(true);
    assert_eq!(rig.sent(), [], "once");
}

#[test]
fn half_a_connect_or_a_refused_one_makes_no_session() {
    let mut rig = Rig::connected(options());
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.session.wrote(5, rig.now);
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    assert!(rig.try_receive(&[0x20, 2, 0, 3]).is_err());
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.receive(&[0x20, 2, 1, 0]);
    assert_eq!(rig.sent(), [], "each SUBSCRIBE brings the retained messages again");
}

#[test]
fn what_was_known_before_a_connack_that_never_came_is_in_doubt() {
    for (qos, packet) in [(1, publish as fn(bool, u16, &[u8]) -> Vec<u8>), (2, publish_once)] {
        let rig = || {
            let mut rig = Rig::connected(options());
            rig.receive(&[packet(false, 7, b"x"), packet(false, 8, b"y")].concat());
            rig = with_a_connack_missed(rig);
            rig.messages.drain(..).for_each(|message| {
                message.token.abandon();
            });
            rig
        };
        // A new session has nothing to deliver again before it is subscribed.
        let mut old = rig();
        old.receive(&packet(true, 7, b"x"));
        old.lose();
        old.connect(true);
        old.receive(&packet(true, 8, b"y"));
        assert_eq!((old.payloads().len(), old.session.stats().repeats_suppressed), (0, 2), "QoS {qos}");
        // Without DUP it may be a message of the new one; so may it with DUP on a later connection.
        let mut new = rig();
        new.receive(&packet(false, 7, b"x"));
        new.lose();
        new.connect(true);
        new.receive(&packet(true, 8, b"y"));
        assert_eq!((new.payloads().len(), new.session.stats().possible_repeats), (2, 2), "QoS {qos}");
        // Known since, and not in doubt.
        new.receive(&packet(true, 7, b"x"));
        assert_eq!(new.payloads().len(), 2);
    }
}

#[test]
fn releases_under_way_when_the_session_is_lost_are_waited_for_as_well() {
    let mut rig = Rig::connected(holding(Vec::new()));
    rig.receive(&publish_once(false, 7, b"x"));
    rig.settle(0);
    rig.receive(&pubrel(7));
    assert_eq!(rig.releases(), Some(vec![7]));
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.sent();
    rig.receive(&[0x20, 2, 0, 0]);
    assert_eq!((rig.sent(), rig.session.may_read()), (vec![], false), "7 is on the disk still");
    rig.released();
    assert_eq!((rig.sent(), rig.session.may_read()), (vec![Sent::Subscribe(2)], true));
}

#[test]
fn a_disk_that_takes_nothing_holds_back_what_it_remembers_and_says_so_in_a_new_session() {
    let mut rig = Rig::connected(holding(Vec::new()));
    rig.receive(&[pubrel(1), pubrel(2)].concat());
    assert_eq!(rig.releases(), Some(vec![1, 2]));
    rig.session.released(&[2], rig.now).unwrap();
    assert_eq!(rig.sent(), [Sent::Pubcomp(2)]);
    rig.receive(&pubrel(3));
    assert_eq!(rig.releases(), Some(vec![3]), "1 is for later");
    rig.released();
    assert_eq!(rig.sent(), [Sent::Pubcomp(3)]);
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 2, 0, 0]);
    rig.events();
    for round in 0..3 {
        rig.now = rig.session.deadline().unwrap();
        assert_eq!(rig.releases(), Some(vec![1]));
        rig.session.released(&[], rig.now).unwrap();
        assert_eq!(rig.events().contains(&Event::HeldUp), round == 0, "told once");
    }
    rig.now = rig.session.deadline().unwrap();
    rig.releases();
    rig.released();
    assert_eq!(rig.sent(), [Sent::Connect, Sent::Subscribe(2)]);
}

#[test]
fn a_message_in_hand_of_a_lost_session_is_not_remembered_under_its_identifier() {
    let mut rig = Rig::connected(holding(Vec::new()));
    rig.receive(&publish_once(false, 7, b"x"));
    assert!(rig.messages[0].token.unreleased().is_some());
    rig.lose();
    rig.session.open(rig.now).unwrap();
    rig.receive(&[0x20, 2, 0, 0]);
    rig.releases();
    rig.released();
    rig.receive(&publish_once(false, 7, b"x"));
    let remembered: Vec<bool> =
        rig.messages.iter().map(|message| message.token.unreleased().is_some()).collect();
    assert_eq!(remembered, [false, true], "the second has the identifier now");
}
