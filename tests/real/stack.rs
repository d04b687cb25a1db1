//! The stage itself: what the other tests rely on, without tidegate.

use std::time::Duration;

use crate::support::kafka::{Cluster, shared_one, shared_three};
use crate::support::publisher::Load;
use crate::support::{Mosquitto, Publisher, Stage, read_all};

#[test]
fn a_publisher_reaches_mosquitto_and_kafka_is_ready() {
    let stage = Stage::new("stack_ready");
    let mosquitto = Mosquitto::start(&stage.dir, "max_queued_messages 0");
    let kafka = shared_one();
    kafka.create("stack-ready", &kafka.topic());
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new("s", 20_000, 0));
    publisher.finish(Duration::from_secs(60));
    assert!(read_all(&kafka.bootstrap(), "stack-ready").is_empty());
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back() {
    let stage = Stage::new("stack_leader");
    let mut kafka = shared_three();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let id = kafka.leader_of(&topic, 0).id;
    kafka.leader_of(&topic, 0).kill();
    crate::support::until("another leader", Duration::from_secs(30), || {
        let now = kafka.leader_of(&topic, 0).id;
        if now > 0 && now != id { Ok(()) } else { Err(format!("{now}")) }
    });
    let killed = kafka.brokers.iter_mut().find(|broker| broker.id == id).unwrap();
    killed.up();
    kafka.wait_in_sync(&topic, 3);
}

#[test]
fn a_frozen_broker_goes_on() {
    let stage = Stage::new("stack_freeze");
    let kafka = Cluster::start(&stage.dir, 1, "");
    kafka.freeze();
    kafka.thaw();
    kafka.create("after", &kafka.topic());
}
