//! Kafka stays wrong for long: the operator is told what is wrong, and is told once.

use crate::support::kafka_broker::{Act, Api, Cluster};
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;

#[test]
fn a_topic_that_was_missing_long_before_its_first_record_is_reported_when_one_waits_for_it() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let gateway = Setup::new(&mqtt, &kafka).set("TOPIC_LIST", "a/b:absent").start();
    let link = mqtt.session();
    // It is asked for ahead of its first record, again and again.
    kafka.wait_for_requests(Api::Metadata, 7);
    assert!(gateway.log_of("ERROR").is_empty(), "nothing waits for it");
    link.publish("a/b", "v0", 1);
    gateway.wait_for_log("ERROR", &["absent", "cannot be written"]);
    kafka.add_topic("absent", 1);
    link.wait_for_pubacks(&[1]);
}

#[test]
fn a_broker_that_ends_each_connection_at_its_first_request_is_not_told_each_time() {
    // What a plaintext client meets at a listener with SASL: versions are negotiated, and then it is thrown out.
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    kafka.next(Api::Metadata, usize::MAX, Act::CloseBefore);
    kafka.next(Api::InitProducerId, usize::MAX, Act::CloseBefore);
    let gateway = Setup::new(&mqtt, &kafka).set("TOPIC_LIST", "a/b:t").start();
    let _link = mqtt.session();
    kafka.wait_for_requests(Api::ApiVersions, 8);
    let told = gateway.log().into_iter().filter(|line| line.contains("Kafka") && !line.contains("DEBUG"));
    let told: Vec<String> = told.collect();
    assert!(told.len() <= 4, "{told:#?}");
    assert!(!gateway.log_of("WARN").is_empty());
}
