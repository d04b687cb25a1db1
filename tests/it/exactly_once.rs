//! QoS 2 by packets: PUBREC when the message is safe, a redelivery before PUBREL passed on once, PUBREL always answered,
//! identifiers void with their session.

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

fn brokers() -> (MqttBroker, Cluster, Setup) {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_QOS", "2");
    (mqtt, kafka, setup)
}

fn held(kafka: &Cluster) -> Gate {
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    gate
}

#[test]
fn pubrec_comes_when_kafka_has_the_message_and_pubrel_ends_it() {
    let (mqtt, kafka, setup) = brokers();
    let gate = held(&kafka);
    let gateway = setup.set("KAFKA_HEADERS", "id,qos").start();
    let link = mqtt.accept();
    link.expect_connect();
    link.connack(false, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    assert_eq!(subscribe.filters[0].qos, rumqttc::mqttbytes::QoS::ExactlyOnce);
    let values = numbered("v", 5);
    values.iter().zip(1..).for_each(|(value, id)| link.publish_once("a/b", value, id));
    link.assert_no_pubrec(wait::WATCH);
    gate.open();
    link.wait_for_pubrecs(&ids(1, 5));
    link.release(&ids(1, 5));
    // The identifiers are free for other messages, equal ones too.
    values.iter().zip(1..).for_each(|(value, id)| link.publish_once("a/b", value, id));
    link.wait_for_pubrecs(&[ids(1, 5), ids(1, 5)].concat());
    kafka.wait_for_values("t", 0, &[values.clone(), values].concat());
    let records = kafka.records("t", 0);
    assert_eq!(records[0].header("mqtt.qos").as_deref(), Some("2"));
    assert!(records[0].header("tidegate.id").is_some());
    gateway.assert_quiet();
}

#[test]
fn redelivered_before_and_after_its_pubrec_a_message_is_written_once() {
    let (mqtt, kafka, setup) = brokers();
    let gate = held(&kafka);
    let _gateway = setup.start();
    let first = mqtt.session();
    let values = numbered("v", 6);
    values.iter().zip(1..).for_each(|(value, id)| first.publish_once("a/b", value, id));
    kafka.wait_for_seen(1);
    first.cut();
    // In hand: no PUBREC was ever made.
    let second = mqtt.resume();
    values.iter().zip(1..).for_each(|(value, id)| second.redeliver_once("a/b", value, id));
    second.assert_no_pubrec(wait::WATCH);
    gate.open();
    second.wait_for_pubrecs(&ids(1, 6));
    second.cut();
    // The PUBRECs were lost for the broker: it delivers again; for the last two it was only the PUBCOMP.
    let third = mqtt.resume();
    values[..4].iter().zip(1..).for_each(|(value, id)| third.redeliver_once("a/b", value, id));
    third.wait_for_pubrecs(&ids(1, 4));
    third.release(&[5, 6, 1, 2, 3, 4, 99]);
    third.publish_once("a/b", "next", 1);
    kafka.wait_for_values("t", 0, &[values, vec!["next".into()]].concat());
}

#[test]
fn in_a_new_session_an_identifier_is_another_message_though_all_is_equal() {
    let (mqtt, kafka, setup) = brokers();
    let _gateway = setup.start();
    let first = mqtt.session();
    first.publish_once("a/b", "x", 1);
    first.wait_for_pubrecs(&[1]);
    first.cut();
    let second = mqtt.session();
    second.redeliver_once("a/b", "x", 1);
    second.wait_for_pubrecs(&[1]);
    kafka.wait_for_values("t", 0, &["x", "x"]);
    second.release(&[1]);
}

#[test]
fn a_mixture_of_qos_is_answered_each_in_its_way_and_in_order() {
    let (mqtt, kafka, setup) = brokers();
    let _gateway = setup.start();
    let link = mqtt.session();
    for round in 0..20_u16 {
        link.publish_unacknowledged("a/b", format!("zero{round}"));
        link.publish("a/b", format!("one{round}"), 2 * round + 1);
        link.publish_once("a/b", format!("two{round}"), 2 * round + 2);
    }
    let of = |parity: u16| (0..20).map(|round| 2 * round + parity).collect::<Vec<u16>>();
    link.wait_for_pubacks(&of(1));
    link.wait_for_pubrecs(&of(2));
    let expected: Vec<String> =
        (0..20).flat_map(|n| ["zero", "one", "two"].map(|kind| format!("{kind}{n}"))).collect();
    kafka.wait_for_values("t", 0, &expected);
}

#[test]
fn in_the_spool_a_message_is_safe_and_its_redelivery_is_not_stored_again() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let _gateway = setup.spooling().start();
    let first = mqtt.session();
    let values = numbered("v", 8);
    values.iter().zip(1..).for_each(|(value, id)| first.publish_once("a/b", value, id));
    first.wait_for_pubrecs(&ids(1, 8));
    first.cut();
    let second = mqtt.resume();
    values.iter().zip(1..).for_each(|(value, id)| second.redeliver_once("a/b", value, id));
    second.wait_for_pubrecs(&ids(1, 8));
    second.release(&ids(1, 8));
    kafka.restart(1);
    second.publish_once("a/b", "next", 9);
    kafka.wait_for_values("t", 0, &[values, vec!["next".into()]].concat());
}

fn kill(mut gateway: Gateway) {
    gateway.signal(Signal::KILL);
    gateway.wait_for_exit(wait::PATIENCE);
}

#[test]
fn killed_with_messages_in_the_spool_their_redeliveries_are_not_stored_again() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let values = numbered("v", 30);
    let setup = setup.spooling();
    let gateway = setup.again().start();
    let link = mqtt.session();
    values.iter().zip(1..).for_each(|(value, id)| link.publish_once("a/b", value, id));
    link.wait_for_pubrecs(&ids(1, 30));
    // Of some the broker has heard, and released them; of others the PUBREC never arrived.
    link.release(&ids(1, 10));
    kill(gateway);
    let gateway = setup.again().start();
    let link = mqtt.resume();
    link.release(&ids(11, 5));
    values[15..].iter().zip(16..).for_each(|(value, id)| link.redeliver_once("a/b", value, id));
    link.wait_for_pubrecs(&ids(16, 15));
    kill(gateway);
    // Once more, and Kafka is back meanwhile: the frames are gone, what is not released is still known.
    kafka.restart(1);
    let gateway = setup.again().start();
    let link = mqtt.resume();
    kafka.wait_for_values("t", 0, &values);
    crate::support::spool_look::wait_until_empty(&setup);
    kill(gateway);
    let _gateway = setup.again().start();
    let link_again = mqtt.resume();
    values[20..].iter().zip(21..).for_each(|(value, id)| link_again.redeliver_once("a/b", value, id));
    link_again.wait_for_pubrecs(&ids(21, 10));
    link_again.release(&ids(16, 15));
    link_again.publish_once("a/b", &values[29], 30);
    link_again.wait_for_pubrecs(&[ids(21, 10), vec![30]].concat());
    kafka.wait_for_values("t", 0, &[values.clone(), vec![values[29].clone()]].concat());
    drop(link);
}

#[test]
fn after_a_release_an_equal_message_under_the_same_identifier_is_no_redelivery_even_after_a_kill() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let setup = setup.spooling();
    let gateway = setup.again().start();
    let link = mqtt.session();
    link.publish_once("a/b", "x", 1);
    link.wait_for_pubrecs(&[1]);
    link.release(&[1]);
    kill(gateway);
    // The broker sent the next message, which is equal, to a process that died before it was safe: so DUP is set.
    let gateway = setup.again().start();
    let link = mqtt.resume();
    link.redeliver_once("a/b", "x", 1);
    link.wait_for_pubrecs(&[1]);
    kill(gateway);
    // In a new session all is void.
    let _gateway = setup.again().start();
    let link = mqtt.session();
    link.redeliver_once("a/b", "x", 1);
    link.wait_for_pubrecs(&[1]);
    kafka.restart(1);
    kafka.wait_for_values("t", 0, &["x", "x", "x"]);
}
