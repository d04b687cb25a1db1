//! The seed program's environment: it starts unchanged, and routes as the seed's description says.

use std::time::Duration;

use crate::support::kafka::shared_one;
use crate::support::{Follower, Gateway, Mosquitto, Publisher, Stage, read_all};

#[test]
fn the_settings_of_the_seed_program_start_unchanged() {
    let stage = Stage::new("seed");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = shared_one();
    let topic = |name: &str| stage.unique(name);
    for name in ["one", "two"] {
        kafka.create(&topic(name), &kafka.topic());
    }
    let (one, two) = (topic("one"), topic("two"));
    let wildcards = format!("wild/+/x:{one},wild/#:{two}");
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &wildcards)
        .set("RUN_MODE", "DEVELOP")
        .set("TOPIC_LIST", &format!("test/1:{one},test/2:{two}"))
        .set("INVOKE_LATENCY_SEC", "10")
        .set("INVOKE_MAX_GOROUTINE", "1000")
        .set("INVOKE_MIN_GOROUTINE", "50")
        .set("SASL_SSL", "false");
    gateway.up_and_subscribed(&mosquitto, "wild/#");
    mosquitto.wait_subscribed(&gateway.client_id, "test/2", Duration::from_secs(5));

    // Exact topics; the first wildcard that matches; the wildcard behind it.
    let expected = [("test/1", &one), ("test/2", &two), ("wild/1/x", &one), ("wild/1/y", &two)];
    let mut publisher = Publisher::start_topics(&stage, &mosquitto, expected.map(|(topic, _)| topic), 400);
    publisher.finish(Duration::from_secs(20));
    for kafka_topic in [&one, &two] {
        Follower::start(&stage.dir, &kafka.bootstrap(), kafka_topic)
            .wait_distinct(200, Duration::from_secs(20));
    }
    gateway.stop_in_order();
    for kafka_topic in [&one, &two] {
        let records = read_all(&kafka.bootstrap(), kafka_topic);
        assert_eq!(records.len(), 200, "{kafka_topic}");
        for record in &records {
            let wanted = expected.iter().find(|(topic, _)| *topic == record.key).map(|(_, topic)| *topic);
            assert_eq!(wanted, Some(kafka_topic), "{record:?}");
        }
    }
}
