//! Safe before acknowledged (guarantee G1), in order of arrival (MQTT-4.6.0-2), within bounds (G5), without
//! starving the session (G8).

use std::time::Duration;

use rumqttc::mqttbytes::QoS;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::{MqttBroker, encode, ids, numbered, publish};
use crate::support::process::Setup;
use crate::support::wait;

#[test]
fn a_puback_goes_out_only_after_kafkas_acknowledgement() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldAfter(gate.clone()));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "held", 5);
    kafka.wait_for_values("t", 0, &["held"]);
    link.assert_no_puback(wait::WATCH);
    gate.open();
    link.wait_for_pubacks(&[5]);
    gateway.assert_quiet();
}

#[test]
fn pubacks_keep_the_order_of_arrival_though_partitions_answer_in_another() {
    let kafka = Cluster::start_as(Release::V4, 2).topic("slow", 1).topic("fast", 1);
    kafka.move_leader("fast", 0, 2);
    let mqtt = MqttBroker::start();
    let gate = Gate::default();
    kafka.when(Api::Produce, 1, Act::HoldBefore(gate.clone()), |call| call.topic == "slow");
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("s/#:slow,f/#:fast").start();
    let link = mqtt.session();
    link.publish("s/1", "s1", 30);
    link.publish("f/1", "f1", 10);
    link.publish("f/2", "f2", 20);
    kafka.wait_for_values("fast", 0, &["f1", "f2"]);
    link.assert_no_puback(wait::WATCH);
    gate.open();
    link.wait_for_pubacks(&[30, 10, 20]);
}

#[test]
fn a_topic_that_is_held_does_not_hold_another_topics_records() {
    let kafka = Cluster::start_as(Release::V4, 2).topic("slow", 1).topic("fast", 1);
    kafka.move_leader("fast", 0, 2);
    let mqtt = MqttBroker::start();
    let gate = Gate::default();
    kafka.when(Api::Produce, 1, Act::HoldBefore(gate.clone()), |call| call.topic == "slow");
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("s/#:slow,f/#:fast").start();
    let link = mqtt.session();
    link.publish("s/1", "s", 1);
    let values = numbered("f", 200);
    link.publish_all("f/1", &values, 2);
    kafka.wait_for_values("fast", 0, &values);
    gate.open();
    link.wait_for_pubacks(&ids(1, 201));
}

#[test]
fn never_more_than_five_batches_of_a_partition_are_in_flight() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    let values = numbered("v", 60);
    link.publish("a/b", &values[0], 1);
    link.wait_for_pubacks(&[1]);
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    for (value, id) in values.iter().zip(1..).skip(1) {
        // One by one, so that each could have been a batch of its own.
        link.publish("a/b", value, id);
        if id <= 6 {
            kafka.wait_for_seen(usize::from(id));
        }
    }
    wait::holds(wait::WATCH, "five batches in flight behind the first", || match kafka.seen().len() {
        6 => Ok(()),
        other => Err(other),
    });
    gate.open();
    link.wait_for_pubacks(&ids(1, 60));
    assert_eq!(kafka.values("t", 0), values);
    assert_eq!(kafka.in_flight_max("t", 0), 5);
    let batches = kafka.appended("t", 0).len();
    assert!(batches < 15, "what gathered meanwhile goes in few batches, not in {batches}");
}

#[test]
fn no_more_than_the_receive_maximum_is_in_hand_and_the_rest_follows_in_order() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_RECEIVE_MAXIMUM", "10").start();
    let link = mqtt.session();
    let values = numbered("v", 500);
    link.publish_all("a/b", &values, 1);
    let in_kafkas_hands = || kafka.seen().iter().map(|batch| batch.batch.records.len()).sum::<usize>();
    kafka.wait_for_seen(1);
    wait::holds(wait::WATCH, "at most ten under way", || match in_kafkas_hands() {
        count if count <= 10 => Ok(()),
        more => Err(more),
    });
    gate.open();
    link.wait_for_pubacks(&ids(1, 500));
    assert_eq!(kafka.values("t", 0), values);
}

#[test]
fn keep_alive_is_kept_while_kafka_never_answers() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_KEEP_ALIVE_SEC", "1").start();
    let link = mqtt.session();
    link.publish_all("a/b", &numbered("v", 20), 1);
    wait::until("four PINGREQs", || if link.pings() >= 4 { Ok(()) } else { Err(link.pings()) });
    assert!(gateway.is_running() && link.is_open() && link.pubacks().is_empty());
    gate.open();
    link.wait_for_pubacks(&ids(1, 20));
}

#[test]
fn a_flood_of_qos_0_is_held_back_at_the_socket_and_memory_stays_bounded() {
    flood(QoS::AtMostOnce);
}

#[test]
fn a_flood_of_qos_1_is_held_back_at_the_socket_and_memory_stays_bounded() {
    flood(QoS::AtLeastOnce);
}

/// What loopback's own buffers may take, both ends, and the gateway's share on top.
const TAKEN_AT_MOST: usize = 96 << 20;

fn flood(qos: QoS) {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("MQTT_KEEP_ALIVE_SEC", "1")
        .set("MQTT_RECEIVE_MAXIMUM", "100")
        .start();
    let link = mqtt.session();
    let payload = vec![b'x'; 4096];
    let packet = |index: usize| {
        let pkid = if qos == QoS::AtMostOnce { 0 } else { (index % 60_000) as u16 + 1 };
        encode(&publish("a/b", &payload, qos, pkid, false))
    };
    let bytes: Vec<u8> = (0..40_000).flat_map(packet).collect();
    let taken = link.flood(&bytes, Duration::from_secs(2));
    assert!(taken < TAKEN_AT_MOST, "the gateway took {taken} of {} bytes", bytes.len());
    let resident = gateway.resident_bytes();
    assert!(resident < 64 << 20, "resident memory is {resident} bytes");
    // The answers cannot be read now: that must not be taken for a dead link.
    let pings = link.pings();
    wait::until("two more PINGREQs of a full gateway", || {
        if link.pings() >= pings + 2 { Ok(()) } else { Err(link.pings()) }
    });
    // Longer than a broker is given to answer.
    link.assert_open_for(Duration::from_secs(12));
    assert!(gateway.is_running());
    gate.open();
    kafka.heal();
}
