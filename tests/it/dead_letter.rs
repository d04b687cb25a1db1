//! What Kafka refuses for good, or what is too large to take in, goes to DEAD_LETTER_TOPIC with the reason, is
//! acknowledged, and holds nothing else back (guarantee G6).

use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
use crate::support::kafka_log::Record;
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::Setup;
use crate::support::wait;

const INVALID_RECORD: i16 = 87;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1).topic("dead", 1))
}

/// All header names and values in one line, to look for words in.
fn headers(record: &Record) -> String {
    let one = |(name, value): &(String, Option<Vec<u8>>)| {
        format!("{name}={}", String::from_utf8_lossy(value.as_deref().unwrap_or_default()))
    };
    record.headers.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn only_the_record_that_is_too_large_is_refused_and_the_order_of_the_others_is_kept() {
    let (mqtt, kafka) = brokers();
    kafka.set_message_max_bytes(3000);
    let is_t = |call: &crate::support::kafka_broker::Call| call.topic == "t";
    let gate = Gate::default();
    kafka.when(Api::Produce, 1, Act::HoldBefore(gate.clone()), is_t);
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    let mut values = numbered("v", 60);
    values[37] = "culprit ".repeat(600);
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_seen(1);
    link.publish_all("a/b", &values[1..], 2);
    gate.open();
    link.wait_for_pubacks(&ids(1, 60));
    let culprit = values.remove(37);
    assert_eq!(kafka.values("t", 0), values);
    // The culprit is larger than any topic takes here, the dead letters' too: the letter tells how large it was.
    let dead = kafka.records("dead", 0);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].value, None);
    let headers = headers(&dead[0]);
    assert_eq!(dead[0].key.as_deref(), Some(&b"a/b"[..]));
    for part in ["MESSAGE_TOO_LARGE", "tidegate.error.topic=t", &culprit.len().to_string()] {
        assert!(headers.contains(part), "`{part}` in {headers}");
    }
}

#[test]
fn a_record_refused_as_invalid_is_named_by_the_broker_and_alone_goes_to_the_dead_letters() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    // The broker points at the record by its index in the batch, as long as the batch holds it.
    for index in 0..200 {
        kafka.when(Api::Produce, usize::MAX, Act::BadRecords(INVALID_RECORD, vec![index]), move |call| {
            let at = |record: &Record| record.text() == "bad";
            call.topic == "t"
                && call.batch.is_some_and(|batch| batch.records.iter().position(at) == Some(index as usize))
        });
    }
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    let mut values = numbered("v", 50);
    values[23] = "bad".into();
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_seen(1);
    link.publish_all("a/b", &values[1..], 2);
    gate.open();
    link.wait_for_pubacks(&ids(1, 50));
    values.remove(23);
    assert_eq!(kafka.values("t", 0), values);
    let dead = kafka.records("dead", 0);
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].text(), "bad");
    let headers = headers(&dead[0]);
    assert_eq!(dead[0].key.as_deref(), Some(&b"a/b"[..]), "key and headers are kept");
    for part in ["INVALID_RECORD", "scripted: this record is bad", "tidegate.error.topic=t", "tidegate.id="] {
        assert!(headers.contains(part), "`{part}` in {headers}");
    }
    assert!(gateway.log_of("ERROR").len() <= 1, "{:?}", gateway.log_of("ERROR"));
}

#[test]
fn a_refused_record_named_by_nobody_is_found_and_the_others_flow() {
    // Before KIP-467 the broker does not say which record is at fault.
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    kafka.when(Api::Produce, usize::MAX, Act::Error(INVALID_RECORD), |call| {
        let has_bad = |record: &Record| record.text() == "bad";
        call.topic == "t" && call.batch.is_some_and(|batch| batch.records.iter().any(has_bad))
    });
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    let mut values = numbered("v", 50);
    values[23] = "bad".into();
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_seen(1);
    link.publish_all("a/b", &values[1..], 2);
    gate.open();
    link.wait_for_pubacks(&ids(1, 50));
    values.remove(23);
    assert_eq!(kafka.values("t", 0), values);
    assert_eq!(kafka.values("dead", 0), ["bad"]);
}

#[test]
fn without_a_dead_letter_topic_a_refused_record_is_logged_and_acknowledged() {
    let (mqtt, kafka) = brokers();
    kafka.when(Api::Produce, usize::MAX, Act::Error(INVALID_RECORD), |call| {
        call.batch.is_some_and(|batch| batch.records.iter().any(|record| record.text() == "bad"))
    });
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "before", 1);
    link.publish("a/b", "bad", 2);
    link.publish("a/b", "after", 3);
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(kafka.values("t", 0), ["before", "after"]);
    gateway.wait_for_log("ERROR", &["INVALID_RECORD"]);
}

#[test]
fn a_packet_above_the_limit_is_read_past_recorded_and_acknowledged_in_its_turn() {
    let (mqtt, kafka) = brokers();
    let _gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("DEAD_LETTER_TOPIC", "dead")
        .set("MQTT_MAX_PACKET_BYTES", "2048")
        .start();
    let link = mqtt.session();
    link.publish("a/b", "before", 1);
    link.publish("a/large", "x".repeat(3 << 20), 2);
    link.publish("a/b", "after", 3);
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(kafka.values("t", 0), ["before", "after"]);
    let dead = kafka.records("dead", 0);
    assert_eq!(dead.len(), 1);
    let headers = headers(&dead[0]);
    assert!(headers.contains("a/large"), "the MQTT topic: {headers}");
    assert!(dead[0].text().len() < 2048, "the payload was not kept");
}

#[test]
fn a_payload_that_mqtt_takes_and_kafka_does_not_holds_nothing_back() {
    let (mqtt, kafka) = brokers();
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    link.publish("a/b", "before", 1);
    link.publish("a/b", vec![b'x'; 3 << 20], 2);
    link.publish("a/b", "after", 3);
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(kafka.values("t", 0), ["before", "after"]);
    let dead = kafka.records("dead", 0);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header("tidegate.error.value_bytes"), Some((3 << 20).to_string()));
}

#[test]
fn a_message_whose_kafka_topic_cannot_be_named_goes_to_the_dead_letters() {
    let (mqtt, kafka) = brokers();
    let _gateway =
        Setup::new(&mqtt, &kafka).wildcards("c/+:cap-{1},a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    let long = format!("c/{}", "x".repeat(300));
    link.publish(&long, "v", 1);
    link.publish("a/b", "after", 2);
    link.wait_for_pubacks(&[1, 2]);
    assert_eq!(kafka.values("t", 0), ["after"]);
    let dead = kafka.records("dead", 0);
    assert_eq!((dead.len(), dead[0].text().as_str()), (1, "v"));
    assert_eq!(dead[0].header("mqtt.topic"), Some(long));
}

#[test]
fn packets_at_the_limit_pass() {
    let (mqtt, kafka) = brokers();
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_MAX_PACKET_BYTES", "2048").start();
    let link = mqtt.session();
    // 1 byte of type, 2 of length, 2 + 3 of topic, 2 of packet id.
    let largest = "x".repeat(2048 - 10);
    link.publish("a/b", &largest, 1);
    link.publish("a/b", format!("{largest}y"), 2);
    link.wait_for_pubacks(&[1, 2]);
    assert_eq!(kafka.values("t", 0), [largest]);
}

#[test]
fn a_dead_letter_that_is_refused_too_is_logged_and_acknowledged() {
    let (mqtt, kafka) = brokers();
    kafka.when(Api::Produce, usize::MAX, Act::Error(INVALID_RECORD), |call| {
        let is_bad = |record: &Record| record.text() == "bad";
        call.topic == "dead" || call.batch.is_some_and(|batch| batch.records.iter().any(is_bad))
    });
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    link.publish("a/b", "bad", 1);
    link.publish("a/b", "after", 2);
    link.wait_for_pubacks(&[1, 2]);
    assert_eq!(kafka.values("t", 0), ["after"]);
    gateway.wait_for_log("ERROR", &["dead", "INVALID_RECORD"]);
}

#[test]
fn an_acknowledgement_waits_for_the_dead_letter_to_be_durable() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.when(Api::Produce, 1, Act::HoldAfter(gate.clone()), |call| call.topic == "dead");
    kafka.when(Api::Produce, usize::MAX, Act::Error(INVALID_RECORD), |call| call.topic == "t");
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead").start();
    let link = mqtt.session();
    link.publish("a/b", "bad", 1);
    kafka.wait_for_values("dead", 0, &["bad"]);
    link.assert_no_puback(wait::WATCH);
    gate.open();
    link.wait_for_pubacks(&[1]);
}
