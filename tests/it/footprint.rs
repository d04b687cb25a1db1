//! Nothing to do costs nothing: in no state does a thread go round and round. Memory is small when idle.

use std::time::Duration;

use rumqttc::mqttbytes::QoS;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, dead_address};
use crate::support::mqtt_broker::{MqttBroker, encode, numbered, publish};
use crate::support::process::Setup;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

#[test]
fn idle_and_healthy() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    gateway.assert_idle("idle");
    assert!(gateway.resident_bytes() < 24 << 20, "{} bytes, unoptimised", gateway.resident_bytes());
}

#[test]
fn everything_down() {
    let (mqtt, kafka) = brokers();
    kafka.stop(1);
    let dead = dead_address();
    let port = dead.rsplit(':').next().unwrap();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_BROKER_PORT", port).start();
    gateway.wait_for_log("WARN", &["MQTT"]);
    gateway.assert_idle("everything down");
}

#[test]
fn kafka_down_with_messages_in_hand() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    kafka.stop(1);
    link.publish_all("a/b", &numbered("v", 100), 1);
    gateway.wait_for_log("WARN", &["Kafka"]);
    gateway.assert_idle("Kafka down");
}

#[test]
fn full_and_waiting_for_kafka() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("MQTT_RECEIVE_MAXIMUM", "20")
        .set("MQTT_KEEP_ALIVE_SEC", "1")
        .start();
    let link = mqtt.session();
    let packet = |id| encode(&publish("a/b", [b'x'; 1000], QoS::AtLeastOnce, id, false));
    let bytes: Vec<u8> = (1..=20_000).flat_map(packet).collect();
    link.flood(&bytes, Duration::from_millis(500));
    gateway.assert_idle("full");
    // The broker gives up a connection that is paused: nobody reads its end, and that must not spin either.
    link.cut();
    gateway.assert_idle("full, and the connection closed");
    gate.open();
    kafka.heal();
}

#[test]
fn an_mqtt_broker_that_reads_nothing() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.freeze();
    let values = numbered("v", 2000);
    link.publish_all("a/b", &values, 1);
    kafka.wait_for_values("t", 0, &values);
    gateway.assert_idle("a frozen MQTT broker");
}

#[test]
fn topics_that_are_missing_or_refused() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("refused", 1));
    kafka.set_topic_error("refused", 29);
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:missing,b/#:refused").start();
    let link = mqtt.session();
    link.publish_all("a/b", &numbered("v", 50), 1);
    link.publish_all("b/b", &numbered("v", 50), 51);
    gateway.wait_for_log("ERROR", &["refused"]);
    gateway.assert_idle("missing and refused topics");
}

#[test]
fn half_a_packet() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    let bytes = encode(&publish("a/b", [b'x'; 5000], QoS::AtLeastOnce, 1, false));
    link.send_raw(&bytes[..2500]);
    gateway.assert_idle("half a packet");
    link.send_raw(&bytes[2500..]);
    link.wait_for_pubacks(&[1]);
}
