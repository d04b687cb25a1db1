//! The MQTT side fails: cuts, lost sessions, refusals, broken packets. Nothing is lost, nothing is doubled, and
//! nothing is acknowledged on a connection it did not come from.

use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, SubscribeReasonCode};

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, dead_address};
use crate::support::mqtt_broker::{Link, MqttBroker, encode, ids, numbered, publish};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

fn start(mqtt: &MqttBroker, kafka: &Cluster) -> Gateway {
    Setup::new(mqtt, kafka).wildcards("a/#:t").start()
}

#[test]
fn redelivery_of_what_is_in_hand_is_written_once_and_acknowledged_on_the_new_connection() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    let values = numbered("v", 8);
    first.publish_all("a/b", &values, 1);
    kafka.wait_for_seen(1);
    first.cut();
    let second = mqtt.resume();
    values.iter().zip(1..).for_each(|(value, id)| second.redeliver("a/b", value, id));
    second.assert_no_puback(wait::WATCH);
    gate.open();
    second.wait_for_pubacks(&ids(1, 8));
    assert_eq!(kafka.values("t", 0), values);
    assert_eq!(first.pubacks(), [0_u16; 0]);
}

#[test]
fn what_kafka_acknowledged_while_mqtt_was_away_is_not_written_again_when_redelivered() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    let values = numbered("v", 8);
    first.publish_all("a/b", &values, 1);
    kafka.wait_for_seen(1);
    first.cut();
    // The gateway has noticed the cut when it connects again; only then does Kafka answer.
    let second = mqtt.accept();
    second.expect_connect();
    gate.open();
    kafka.wait_for_values("t", 0, &values);
    second.connack(true, ConnectReturnCode::Success);
    values.iter().zip(1..).for_each(|(value, id)| second.redeliver("a/b", value, id));
    second.wait_for_pubacks(&ids(1, 8));
    second.publish("a/b", "next", 9);
    kafka.wait_for_values("t", 0, &[values, vec!["next".into()]].concat());
}

#[test]
fn two_cuts_in_a_row_change_nothing() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let _gateway = start(&mqtt, &kafka);
    let values = numbered("v", 6);
    let link = mqtt.session();
    link.publish_all("a/b", &values, 1);
    kafka.wait_for_seen(1);
    link.cut();
    let link = mqtt.resume();
    link.redeliver("a/b", &values[0], 1);
    link.redeliver("a/b", &values[1], 2);
    link.cut();
    let link = mqtt.resume();
    values.iter().zip(1..).for_each(|(value, id)| link.redeliver("a/b", value, id));
    gate.open();
    link.wait_for_pubacks(&ids(1, 6));
    assert_eq!(kafka.values("t", 0), values);
}

#[test]
fn in_a_new_session_the_same_packet_id_is_another_message_and_not_acknowledged_by_the_old_one() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    // With an acknowledgement behind it the producer sends the second batch before the first is answered.
    first.publish("a/b", "warm", 1);
    first.wait_for_pubacks(&[1]);
    let (old, new) = (Gate::default(), Gate::default());
    let is = |wanted: &'static str| {
        move |call: &crate::support::kafka_broker::Call| {
            call.batch.is_some_and(|batch| batch.records.iter().any(|record| record.text() == wanted))
        }
    };
    kafka.when(Api::Produce, 1, Act::HoldAfter(old.clone()), is("old"));
    kafka.when(Api::Produce, 1, Act::HoldBefore(new.clone()), is("new"));
    first.publish("a/b", "old", 1);
    kafka.wait_for_seen(2);
    first.cut();
    let second = mqtt.session();
    second.publish("a/b", "new", 1);
    kafka.wait_for_seen(3);
    old.open();
    kafka.wait_for_values("t", 0, &["warm", "old"]);
    second.assert_no_puback(wait::WATCH);
    new.open();
    second.wait_for_pubacks(&[1]);
    kafka.wait_for_values("t", 0, &["warm", "old", "new"]);
}

#[test]
fn the_same_message_published_twice_in_a_resumed_session_is_written_twice() {
    // Same topic, payload and id, but the first was acknowledged and DUP is not set: another message.
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    first.publish("a/b", "same", 1);
    first.wait_for_pubacks(&[1]);
    first.publish("a/b", "same", 1);
    first.wait_for_pubacks(&[1, 1]);
    first.cut();
    let second = mqtt.resume();
    second.publish("a/b", "same", 1);
    second.wait_for_pubacks(&[1]);
    assert_eq!(kafka.values("t", 0), ["same"; 3]);
}

/// Brings the gateway to believe that this broker goes round all packet ids: long ascending, though ids behind are
/// known to be free. Gives the next packet id and the values so far.
fn go_round(link: &Link) -> (u16, Vec<String>) {
    let values = numbered("warm", 200);
    link.publish_all("a/b", &values[..10], 1);
    link.wait_for_pubacks(&ids(1, 10));
    wait_for_a_ping(link);
    link.publish_all("a/b", &values[10..], 11);
    link.wait_for_pubacks(&ids(1, 200));
    wait_for_a_ping(link);
    (201, values)
}

/// Packets are worked in order: the answer to a PINGREQ tells the gateway that its PUBACKs arrived.
fn wait_for_a_ping(link: &Link) {
    let pings = link.pings();
    wait::until("a PINGREQ behind the PUBACKs", || if link.pings() > pings { Ok(()) } else { Err(pings) });
}

#[test]
fn a_puback_that_was_lost_in_the_cut_is_sent_again_and_nothing_is_written_twice() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    let (next, mut all) = go_round(&first);
    first.freeze();
    let values = numbered("v", 5);
    first.publish_all("a/b", &values, next);
    all.extend(values.iter().cloned());
    kafka.wait_for_values("t", 0, &all);
    first.cut();
    let second = mqtt.resume();
    values.iter().zip(next..).for_each(|(value, id)| second.redeliver("a/b", value, id));
    second.wait_for_pubacks(&ids(next, 5));
    second.publish("a/b", "next", next + 5);
    all.push("next".into());
    kafka.wait_for_values("t", 0, &all);
}

#[test]
fn a_message_like_one_whose_puback_arrived_is_not_taken_for_its_redelivery() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let first = mqtt.session();
    first.publish("a/b", "same", 1);
    first.wait_for_pubacks(&[1]);
    wait_for_a_ping(&first);
    first.cut();
    // Another message under the freed packet id, lost on its first way.
    let second = mqtt.resume();
    second.redeliver("a/b", "same", 1);
    second.wait_for_pubacks(&[1]);
    kafka.wait_for_values("t", 0, &["same", "same"]);
}

#[test]
fn a_lost_session_is_subscribed_again() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    mqtt.session().cut();
    // `session` waits for the SUBSCRIBE.
    let again = mqtt.session();
    again.publish("a/b", "x", 1);
    again.wait_for_pubacks(&[1]);
}

#[test]
fn a_refused_subscription_is_reported_by_its_filter_and_tried_again() {
    let (mqtt, kafka) = brokers();
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t,forbidden/#:t").start();
    let link = mqtt.accept();
    link.mute_subscribes();
    link.expect_connect();
    link.connack(false, ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    let code = |filter: &rumqttc::mqttbytes::v4::SubscribeFilter| match filter.path.as_str() {
        "forbidden/#" => SubscribeReasonCode::Failure,
        _ => SubscribeReasonCode::Success(filter.qos),
    };
    let codes: Vec<SubscribeReasonCode> = subscribe.filters.iter().map(code).collect();
    assert!(codes.contains(&SubscribeReasonCode::Failure), "one SUBSCRIBE for all: {subscribe:?}");
    link.suback(subscribe.pkid, &codes);
    gateway.wait_for_log("ERROR", &["forbidden/#"]);
    // What was granted flows meanwhile.
    link.publish("a/b", "x", 1);
    kafka.wait_for_values("t", 0, &["x"]);
    // Tried again at the latest with the next connection, though the session is kept.
    link.cut();
    let link = mqtt.resume();
    let again = link.expect_subscribe();
    assert!(again.filters.iter().any(|filter| filter.path == "forbidden/#"), "{again:?}");
}

#[test]
fn each_refusal_of_connect_is_named_and_tried_again() {
    let refusals = [
        (ConnectReturnCode::RefusedProtocolVersion, "MQTT_VERSION"),
        (ConnectReturnCode::BadClientId, "client id"),
        (ConnectReturnCode::ServiceUnavailable, "unavailable"),
        (ConnectReturnCode::BadUserNamePassword, "user name or password"),
        (ConnectReturnCode::NotAuthorized, "authori"),
    ];
    for (code, word) in refusals {
        let (mqtt, kafka) = brokers();
        let gateway = start(&mqtt, &kafka);
        let refused = mqtt.accept();
        refused.expect_connect();
        refused.connack(false, code);
        wait::until(&format!("{code:?} to be reported with `{word}`"), || {
            let lines = [gateway.log_of("WARN"), gateway.log_of("ERROR")].concat();
            if lines.iter().any(|line| line.contains(word)) { Ok(()) } else { Err(format!("{lines:?}")) }
        });
        let link = mqtt.session();
        link.publish("a/b", "x", 1);
        link.wait_for_pubacks(&[1]);
    }
}

#[test]
fn being_taken_over_again_and_again_is_reported_with_the_client_id_setting() {
    let (mqtt, kafka) = brokers();
    let gateway = start(&mqtt, &kafka);
    mqtt.session().cut();
    for _ in 0..3 {
        let link = mqtt.resume();
        // The other client connects a moment later: by then the session is up.
        link.publish("a/b", "x", 1);
        link.wait_for_pubacks(&[1]);
        link.cut();
    }
    gateway.wait_for_log("ERROR", &["MQTT_CLIENT_ID"]);
}

#[test]
fn a_broker_that_stops_answering_pings_is_left_and_found_again() {
    let (mqtt, kafka) = brokers();
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_KEEP_ALIVE_SEC", "1").start();
    let dead = mqtt.session();
    dead.mute_pings();
    dead.wait_for_end();
    let link = mqtt.resume();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert!(!gateway.log_of("WARN").is_empty(), "a recovered fault is a WARN");
}

#[test]
fn a_broker_that_never_answers_connect_is_left_and_found_again() {
    let (mqtt, kafka) = brokers();
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_KEEP_ALIVE_SEC", "1").start();
    let dead = mqtt.accept();
    dead.expect_connect();
    dead.wait_for_end();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
}

#[test]
fn nothing_of_a_packet_cut_in_the_middle_reaches_the_next_connection() {
    let whole = encode(&publish("a/b", "cut short", QoS::AtLeastOnce, 2, false));
    for cut_at in [1, 2, 4, whole.len() - 1] {
        let (mqtt, kafka) = brokers();
        let _gateway = start(&mqtt, &kafka);
        let link = mqtt.session();
        link.publish("a/b", "before", 1);
        link.wait_for_pubacks(&[1]);
        link.send_raw(&whole[..cut_at]);
        link.cut();
        let link = mqtt.resume();
        link.publish("a/b", "after", 2);
        link.wait_for_pubacks(&[2]);
        assert_eq!(kafka.values("t", 0), ["before", "after"], "cut at byte {cut_at}");
    }
}

#[test]
fn a_packet_in_crumbs_is_one_message() {
    let (mqtt, kafka) = brokers();
    let gateway = start(&mqtt, &kafka);
    let link = mqtt.session();
    for byte in encode(&publish("a/b", "crumbs", QoS::AtLeastOnce, 2, false)) {
        link.send_raw(&[byte]);
    }
    link.wait_for_pubacks(&[2]);
    assert_eq!(kafka.values("t", 0), ["crumbs"]);
    gateway.assert_quiet();
}

#[test]
fn each_protocol_error_ends_the_connection_and_not_the_gateway() {
    let broken: [(&str, &[u8]); 7] = [
        ("reserved packet type 15", b"\xf0\x02\x00\x00"),
        ("reserved packet type 0", b"\x00\x00"),
        ("remaining length of five bytes", b"\x30\xff\xff\xff\xff\x7f"),
        ("packet id 0", b"\x32\x07\x00\x03a/b\x00\x00"),
        ("QoS 3", b"\x36\x08\x00\x03a/b\x00\x01x"),
        ("topic longer than the packet", b"\x32\x05\x00\x30a/b"),
        ("a CONNECT from the broker", b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x1e\x00\x00"),
    ];
    for (what, bytes) in broken {
        let (mqtt, kafka) = brokers();
        let mut gateway = start(&mqtt, &kafka);
        let link = mqtt.session();
        link.publish("a/b", "before", 7);
        link.wait_for_pubacks(&[7]);
        link.send_raw(bytes);
        link.wait_for_end();
        let link = mqtt.resume();
        link.publish("a/b", "after", 8);
        link.wait_for_pubacks(&[8]);
        assert_eq!(kafka.values("t", 0), ["before", "after"], "{what}");
        assert!(gateway.is_running(), "{what}");
        assert!(!gateway.log_of("WARN").is_empty(), "{what}: a recovered fault is a WARN");
    }
}

/// A broker that passes such a thing on delivers it again first thing on each connection: to close it would stop everybody.
#[test]
fn a_malformed_message_goes_to_the_dead_letter_topic_and_is_acknowledged() {
    let broken: [(&str, &[u8]); 3] = [
        ("wildcard in a topic name", b"\x32\x08\x00\x03a/#\x00\x01x"),
        ("U+0000 in a topic name", b"\x32\x08\x00\x03a/\x00\x00\x02x"),
        ("topic that is not UTF-8", b"\x32\x08\x00\x03a/\xff\x00\x03x"),
    ];
    for dead_letters in [true, false] {
        let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1).topic("dead", 1));
        let mut setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t");
        if dead_letters {
            setup = setup.set("DEAD_LETTER_TOPIC", "dead");
        }
        let gateway = setup.start();
        let link = mqtt.session();
        for (_, bytes) in broken {
            link.send_raw(bytes);
        }
        link.publish("a/b", "next", 7);
        link.wait_for_pubacks(&[1, 2, 3, 7]);
        assert_eq!(kafka.values("t", 0), ["next"]);
        if dead_letters {
            let letters = kafka.records("dead", 0);
            assert_eq!(letters.len(), 3);
            for letter in letters {
                let reason = letter.header("tidegate.error.reason").unwrap();
                assert!(reason.contains("malformed PUBLISH") && reason.contains("topic name"), "{reason}");
            }
        }
        let level = if dead_letters { "WARN" } else { "ERROR" };
        assert!(!gateway.log_of(level).is_empty());
    }
}

#[test]
fn a_publish_before_connack_is_a_protocol_error() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let link = mqtt.accept();
    link.expect_connect();
    link.publish("a/b", "too early", 1);
    link.wait_for_end();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert_eq!(kafka.values("t", 0), ["x"]);
}

#[test]
fn a_packet_announced_too_large_and_never_sent_takes_no_memory() {
    let (mqtt, kafka) = brokers();
    let gateway = start(&mqtt, &kafka);
    let link = mqtt.session();
    let before = gateway.resident_bytes();
    // 256 MiB less one byte, the most MQTT can announce.
    link.send_raw(b"\x32\xff\xff\xff\x7f\x00\x03a/b\x00\x01");
    link.send_raw(&vec![b'x'; 2 << 20]);
    wait::holds(wait::WATCH, "little memory taken", || {
        let grown = gateway.resident_bytes().saturating_sub(before);
        if grown < 16 << 20 { Ok(()) } else { Err(format!("{grown} bytes more")) }
    });
    link.cut();
    let link = mqtt.resume();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert_eq!(kafka.values("t", 0), ["x"]);
}

#[test]
fn connection_attempts_back_off() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let start = std::time::Instant::now();
    for _ in 0..5 {
        mqtt.accept().cut();
    }
    let span = start.elapsed();
    assert!(span > Duration::from_millis(400), "five refused connections in {span:?}: it hammers");
    mqtt.session();
}

#[test]
fn unexpected_acknowledgements_do_no_harm() {
    let (mqtt, kafka) = brokers();
    let mut gateway = start(&mqtt, &kafka);
    let link = mqtt.session();
    link.send(&Packet::PingResp);
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert!(gateway.is_running());
}

#[test]
fn a_pubrel_of_an_older_session_is_completed() {
    let (mqtt, kafka) = brokers();
    let _gateway = start(&mqtt, &kafka);
    let link = mqtt.session();
    link.release(&[77]);
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
}

#[test]
fn a_subscription_granted_at_qos_0_is_reported() {
    let (mqtt, kafka) = brokers();
    let gateway = start(&mqtt, &kafka);
    let link = mqtt.accept();
    link.mute_subscribes();
    link.expect_connect();
    link.connack(false, ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    link.suback(subscribe.pkid, &[SubscribeReasonCode::Success(QoS::AtMostOnce)]);
    gateway.wait_for_log("ERROR", &["a/#", "QoS 0"]);
    link.publish_unacknowledged("a/b", "x");
    kafka.wait_for_values("t", 0, &["x"]);
}

#[test]
fn whatever_comes_up_last_messages_flow_within_seconds() {
    for mqtt_first in [true, false] {
        let (idle, kafka) = brokers();
        let address = dead_address();
        let (host, port) = address.split_once(':').unwrap();
        kafka.stop(1);
        let mut gateway = Setup::new(&idle, &kafka)
            .wildcards("a/#:t")
            .set("MQTT_BROKER_URL", host)
            .set("MQTT_BROKER_PORT", port)
            .start();
        gateway.wait_for_log("WARN", &["MQTT"]);
        wait::holds(Duration::from_secs(2), "it stays up with everything down", || {
            if gateway.is_running() { Ok(()) } else { Err("ended") }
        });
        let up = || {
            let mqtt = MqttBroker::start_at(&address);
            let link = mqtt.session();
            (mqtt, link)
        };
        let (_mqtt, link) = if mqtt_first {
            let up = up();
            up.1.publish("a/b", "x", 1);
            kafka.restart(1);
            up
        } else {
            kafka.restart(1);
            let up = up();
            up.1.publish("a/b", "x", 1);
            up
        };
        wait::until_within(Duration::from_secs(5), "the first message", || {
            if link.pubacks() == [1] { Ok(()) } else { Err("no PUBACK") }
        });
        assert_eq!(kafka.values("t", 0), ["x"], "mqtt_first {mqtt_first}");
    }
}

#[test]
fn a_topic_with_line_breaks_forges_no_line_of_the_log() {
    let (mqtt, kafka) = brokers();
    let gateway = start(&mqtt, &kafka);
    let link = mqtt.session();
    link.publish("x\n2026-01-01T00:00:00Z ERROR tidegate forged\u{1b}[2J", "v", 1);
    // Either taken as a topic nobody wants, or refused as a control character: in no case a line of its own.
    wait::until("a WARN about it", || {
        let lines = gateway.log_of("WARN");
        if lines.is_empty() { Err("none") } else { Ok(()) }
    });
    assert_eq!(gateway.log_of("ERROR"), Vec::<String>::new());
    assert!(gateway.log().iter().all(|line| !line.contains('\u{1b}')));
}
