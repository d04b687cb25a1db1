//! What Kafka does not take goes to the spool, is acknowledged, and is delivered once, in order: also by the next process.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

/// A gateway whose spool outlives it.
fn start(mqtt: &MqttBroker, kafka: &Cluster, spool: &Path) -> Gateway {
    let spool = spool.to_str().expect("a temporary folder has a plain name");
    Setup::new(mqtt, kafka).wildcards("a/#:t").spooling().set("DB_PERSIST_PATH", spool).start()
}

/// Waits until no segment is left.
fn wait_until_empty(spool: &Path) {
    wait::until("the spool to be empty", || {
        let names = std::fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        if left.iter().any(|name| name.ends_with(".seg")) { Err(left.join(", ")) } else { Ok(()) }
    });
}

#[test]
fn a_message_that_kafka_does_not_answer_is_acknowledged_from_the_disk_and_written_once() {
    let (mqtt, kafka) = brokers();
    let (gate, spool) = (Gate::default(), tempfile::tempdir().unwrap());
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let gateway = start(&mqtt, &kafka, spool.path());
    let link = mqtt.session();
    let values = numbered("v", 30);
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, 30));
    assert!(kafka.values("t", 0).is_empty(), "Kafka has taken nothing yet");
    gateway.wait_for_log("WARN", &["go to the spool"]);
    gate.open();
    kafka.wait_for_values("t", 0, &values);
    wait_until_empty(spool.path());
    gateway.wait_for_log("INFO", &["the backlog is delivered"]);
}

#[test]
fn what_was_written_and_not_answered_is_not_written_again_by_the_next_process() {
    let (mqtt, kafka) = brokers();
    let (gate, spool) = (Gate::default(), tempfile::tempdir().unwrap());
    // Written, and the answer never comes.
    kafka.next(Api::Produce, 1, Act::HoldAfter(gate.clone()));
    let mut gateway = start(&mqtt, &kafka, spool.path());
    let link = mqtt.session();
    let values = numbered("v", 20);
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, 20));
    gateway.signal(Signal::KILL);
    gateway.wait_for_exit(Duration::from_secs(5));
    gate.open();
    let _next = start(&mqtt, &kafka, spool.path());
    let _link = mqtt.resume();
    kafka.wait_for_values("t", 0, &values);
    wait_until_empty(spool.path());
    assert_eq!(kafka.values("t", 0), values, "once, in order");
}

#[test]
fn a_stop_while_kafka_is_away_leaves_nothing_unacknowledged_and_the_next_start_delivers_it() {
    let (mqtt, kafka) = brokers();
    let (gate, spool) = (Gate::default(), tempfile::tempdir().unwrap());
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let mut gateway = start(&mqtt, &kafka, spool.path());
    let link = mqtt.session();
    let values = numbered("v", 12);
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, 12));
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
    link.expect_disconnect();
    kafka.heal();
    gate.open();
    let _next = start(&mqtt, &kafka, spool.path());
    let _link = mqtt.resume();
    kafka.wait_for_values("t", 0, &values);
    wait_until_empty(spool.path());
    assert_eq!(kafka.values("t", 0), values, "once, in order");
}

#[test]
fn records_that_waited_before_they_were_sent_are_marked_and_come_behind_the_others() {
    let (mqtt, kafka) = brokers();
    let (gate, spool) = (Gate::default(), tempfile::tempdir().unwrap());
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let _gateway = start(&mqtt, &kafka, spool.path());
    let link = mqtt.session();
    link.publish("a/b", "sent", 1);
    link.wait_for_pubacks(&[1]);
    link.publish("a/b", "stored", 2);
    link.wait_for_pubacks(&[1, 2]);
    gate.open();
    kafka.wait_for_values("t", 0, &["sent", "stored"]);
    let marks: Vec<Option<String>> =
        kafka.records("t", 0).iter().map(|record| record.header("tidegate.replayed")).collect();
    assert_eq!(marks, [None, Some("1".to_owned())]);
}
