//! Nothing goes wrong: what arrives, where, and how it looks.

use std::time::{SystemTime, UNIX_EPOCH};

use rumqttc::mqttbytes::QoS;

use crate::support::kafka_broker::{Api, Cluster, Release};
use crate::support::mqtt_broker::{MqttBroker, ids, numbered, publish};
use crate::support::process::Setup;

#[test]
fn a_message_becomes_a_record_and_is_acknowledged_without_a_warning() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("sensors", 1));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("plant/#:sensors").start();
    let link = mqtt.session();
    let before = unix_ms();
    link.publish("plant/7/temperature", "21.5", 11);
    link.wait_for_pubacks(&[11]);
    let records = kafka.records("sensors", 0);
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(record.value.as_deref(), Some(&b"21.5"[..]));
    assert_eq!(record.key.as_deref(), Some(&b"plant/7/temperature"[..]), "the key is the MQTT topic");
    assert!((before..=unix_ms()).contains(&record.timestamp_ms), "the timestamp is the time of arrival");
    assert!(
        record.header("tidegate.id").is_some(),
        "a record carries an id by default: {:?}",
        record.headers
    );
    gateway.assert_quiet();
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[test]
fn connect_asks_for_the_persistent_session_with_the_configured_identity() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("MQTT_USER_NAME", "edge")
        .set("MQTT_USER_PASSWORD", "pass-7")
        .set("MQTT_KEEP_ALIVE_SEC", "17")
        .start();
    let connect = mqtt.accept().expect_connect();
    assert_eq!(connect.client_id, "ring-gateway");
    assert!(!connect.clean_session);
    assert_eq!(connect.keep_alive, 17);
    let login = connect.login.expect("a login was configured");
    assert_eq!((login.username.as_str(), login.password.as_str()), ("edge", "pass-7"));
}

#[test]
fn subscribes_to_every_rule_at_qos_1_and_to_shared_filters_as_they_are() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka)
        .set("TOPIC_LIST", "exact/one:t,exact/two:t")
        .wildcards("wild/+/x:t,$share/group/shared/#:t")
        .start();
    let link = mqtt.accept();
    link.expect_connect();
    link.connack(false, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
    let mut filters = Vec::new();
    while filters.len() < 4 {
        filters.extend(link.expect_subscribe().filters);
    }
    assert!(filters.iter().all(|filter| filter.qos == QoS::AtLeastOnce), "{filters:?}");
    let mut paths: Vec<&str> = filters.iter().map(|filter| filter.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["$share/group/shared/#", "exact/one", "exact/two", "wild/+/x"]);
}

#[test]
fn exact_rules_come_first_and_captures_name_the_topic() {
    let kafka = Cluster::start().topic("exact", 1).topic("site-north", 1).topic("shared", 1);
    let mqtt = MqttBroker::start();
    let _gateway = Setup::new(&mqtt, &kafka)
        .set("TOPIC_LIST", "site/north/special:exact")
        .wildcards("site/+/#:site-{1},$share/g/common/#:shared")
        .start();
    let link = mqtt.session();
    link.publish("site/north/special", "exact", 1);
    link.publish("site/north/other", "capture", 2);
    link.publish("common/x", "shared", 3);
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(kafka.values("exact", 0), ["exact"]);
    assert_eq!(kafka.values("site-north", 0), ["capture"]);
    assert_eq!(kafka.values("shared", 0), ["shared"]);
}

#[test]
fn qos_0_is_delivered_and_not_acknowledged() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    let values = numbered("v", 100);
    values.iter().for_each(|value| link.publish_unacknowledged("a/b", value));
    kafka.wait_for_values("t", 0, &values);
    assert_eq!(link.pubacks(), [0_u16; 0]);
    gateway.assert_quiet();
}

#[test]
fn an_empty_payload_is_an_empty_value_and_not_a_tombstone() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "", 1);
    link.wait_for_pubacks(&[1]);
    assert_eq!(kafka.records("t", 0)[0].value, Some(Vec::new()));
}

#[test]
fn thousands_of_messages_keep_their_order_by_topic_and_are_acknowledged_in_order() {
    const COUNT: usize = 6_000;
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start_as(Release::V4, 2).topic("t", 3));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("d/#:t").start();
    let link = mqtt.session();
    for number in 0..COUNT {
        let device = number % 17;
        let packet =
            publish(&format!("d/{device}"), format!("{number}"), QoS::AtLeastOnce, number as u16 + 1, false);
        link.send(&packet);
    }
    link.wait_for_pubacks(&ids(1, COUNT));
    let mut total = 0;
    let mut partition_of = std::collections::BTreeMap::new();
    for partition in 0..3 {
        let mut last = std::collections::BTreeMap::new();
        for record in kafka.records("t", partition) {
            total += 1;
            let key = record.key.clone().unwrap();
            let number: i64 = record.text().parse().unwrap();
            assert!(
                last.insert(key.clone(), number).is_none_or(|before| before < number),
                "order of {key:?}"
            );
            assert_eq!(
                *partition_of.entry(key).or_insert(partition),
                partition,
                "a key stays on its partition"
            );
        }
        assert!(kafka.in_flight_max("t", partition) <= 5);
    }
    assert_eq!(total, COUNT);
    gateway.assert_quiet();
}

#[test]
fn every_codec_can_be_read_by_another_decoder() {
    for (codec, number) in [("none", 0), ("gzip", 1), ("snappy", 2), ("lz4", 3)] {
        let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
        let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("KAFKA_COMPRESSION", codec).start();
        let link = mqtt.session();
        let values: Vec<String> =
            (0..50).map(|index| format!("{index} {}", "compressible ".repeat(40))).collect();
        link.publish_all("a/b", &values, 1);
        link.wait_for_pubacks(&ids(1, values.len()));
        assert_eq!(kafka.values("t", 0), values, "{codec}");
        let used: Vec<u8> = kafka.appended("t", 0).iter().map(|batch| batch.compression).collect();
        assert!(used.contains(&number), "{codec}: attributes of the batches {used:?}");
    }
}

#[test]
fn key_and_headers_are_as_configured() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/+/c:t")
        .set("KAFKA_KEY", "device-{1}")
        .set("KAFKA_HEADERS", "topic,qos,retain")
        .start();
    let link = mqtt.session();
    link.publish("a/9/c", "x", 1);
    link.wait_for_pubacks(&[1]);
    let record = &kafka.records("t", 0)[0];
    assert_eq!(record.key.as_deref(), Some(&b"device-9"[..]));
    assert_eq!(record.header("mqtt.topic").as_deref(), Some("a/9/c"));
    assert_eq!(record.header("mqtt.qos").as_deref(), Some("1"));
    assert!(record.header("mqtt.retain").is_some(), "{:?}", record.headers);
    assert_eq!(record.header("tidegate.id"), None);
}

#[test]
fn works_with_each_release_of_kafka_in_versions_it_offers() {
    // The brokers note a version that was not offered, and fail the test at its end.
    for release in [Release::V0_11, Release::V2_7, Release::V2_8, Release::V4] {
        let (mqtt, kafka) = (MqttBroker::start(), Cluster::start_as(release, 1).topic("t", 1));
        let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
        let link = mqtt.session();
        link.publish_all("a/b", &numbered("v", 30), 1);
        link.wait_for_pubacks(&ids(1, 30));
        assert_eq!(kafka.values("t", 0), numbered("v", 30), "{release:?}");
        assert!(kafka.requests(Api::InitProducerId) >= 1, "{release:?}: the producer is idempotent");
    }
}

#[test]
fn a_message_no_rule_matches_goes_to_the_default_topic_or_is_acknowledged_and_dropped() {
    for default in [Some("unmatched"), None] {
        let kafka = Cluster::start().topic("t", 1).topic("unmatched", 1);
        let mqtt = MqttBroker::start();
        let mut setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t");
        if let Some(default) = default {
            setup = setup.set("DEFAULT_KAFKA_TOPIC", default);
        }
        let _gateway = setup.start();
        let link = mqtt.session();
        link.publish("a/b", "matched", 1);
        link.publish("elsewhere", "unmatched", 2);
        link.publish("a/b", "after", 3);
        link.wait_for_pubacks(&[1, 2, 3]);
        assert_eq!(kafka.values("t", 0), ["matched", "after"]);
        assert_eq!(kafka.values("unmatched", 0).len(), usize::from(default.is_some()));
    }
}
