//! The main job: everything published arrives in Kafka once, in order, whatever the brokers go through.

use std::time::Duration;

use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::{Cluster, shared_one, shared_three};
use crate::support::publisher::Load;
use crate::support::stage::{seconds, size};
use crate::support::wait::outage;
use crate::support::{Mosquitto, Publisher, Stage};

#[test]
fn qos_1_arrives_once_and_in_order_and_nothing_is_complained_about() {
    let stage = Stage::new("qos_1");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let load = Load::new(&flow.prefix, size(20_000, 100_000), 5_000);
    let publisher = Publisher::start(&stage, &mosquitto, &load);
    let gateway = flow.end_clean(&stage, publisher, "one broker");
    assert_eq!(gateway.complaints(), Vec::<String>::new(), "a healthy run logs no WARN");
}

#[test]
fn qos_0_arrives_once_and_in_order() {
    let stage = Stage::new("qos_0");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let load = Load { qos: 0, ..Load::new(&flow.prefix, size(20_000, 100_000), 5_000) };
    let publisher = Publisher::start(&stage, &mosquitto, &load);
    flow.end_clean(&stage, publisher, "one broker");
}

#[test]
fn the_defaults_of_mosquitto_are_enough_while_kafka_is_healthy() {
    let stage = Stage::new("mosquitto_defaults");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let load = Load::new(&flow.prefix, size(5_000, 50_000), 500);
    let publisher = Publisher::start(&stage, &mosquitto, &load);
    flow.end_clean(&stage, publisher, "window 20, queue 1000");
}

#[test]
fn three_brokers_three_partitions() {
    let stage = Stage::new("three_brokers");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_three();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let load = Load::new(&flow.prefix, size(20_000, 100_000), 5_000);
    let publisher = Publisher::start(&stage, &mosquitto, &load);
    flow.end_clean(&stage, publisher, "3 partitions, 3 replicas");
}

#[test]
fn the_leader_of_a_partition_is_stopped_and_started_under_load() {
    let stage = Stage::new("leader_stopped");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let mut kafka = shared_three();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let rate = size(1_000, 5_000);
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, rate * 20, rate));
    flow.follower.wait_distinct(rate * 2, ARRIVE);
    let leader = kafka.leader_of(&topic, 0);
    leader.down();
    leader.up();
    kafka.wait_in_sync(&topic, 3);
    flow.end_clean(&stage, publisher, "SIGTERM, then started again");
}

#[test]
fn the_leader_of_a_partition_is_killed_under_load() {
    let stage = Stage::new("leader_killed");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let mut kafka = shared_three();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let rate = size(1_000, 5_000);
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, rate * 20, rate));
    flow.follower.wait_distinct(rate * 2, ARRIVE);
    let leader = kafka.leader_of(&topic, 0);
    leader.kill();
    leader.up();
    kafka.wait_in_sync(&topic, 3);
    flow.end_clean(&stage, publisher, "kill -9, then started again");
}

/// Kafka's processes stop dead, with their connections open, and go on later.
fn frozen(name: &str, pause: Duration) {
    let stage = Stage::new(name);
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = Cluster::start(&stage.dir, 1, "");
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let (rate, total) = (size(1_000, 5_000), size(15_000, 100_000));
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, total, rate));
    flow.follower.wait_distinct(rate * 2, ARRIVE);
    kafka.freeze();
    outage(pause);
    kafka.thaw();
    flow.end_clean(&stage, publisher, &format!("SIGSTOP for {} s", pause.as_secs()));
}

#[test]
fn kafka_is_frozen_for_20_seconds_under_load() {
    frozen("kafka_frozen", Duration::from_secs(20));
}

#[test]
fn kafka_is_frozen_for_longer_than_its_own_time_limits() {
    // 45 s is beyond the 30 s that a producer's requests are commonly given.
    frozen("kafka_frozen_long", seconds(45, 90));
}

#[test]
fn mosquitto_is_restarted_twice_under_load() {
    let stage = Stage::new("mosquitto_restarted");
    let config = format!("{UNLIMITED}\npersistence true");
    let mut mosquitto = Mosquitto::start(&stage.dir, &config);
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let rate = size(1_000, 5_000);
    let total = rate * 20;
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, total, rate));
    for part in [total / 4, total / 2] {
        flow.follower.wait_distinct(part, ARRIVE);
        mosquitto.down();
        mosquitto.up();
    }
    // What the publisher itself had to repeat carries its connection number and is counted apart.
    flow.end_clean(&stage, publisher, "persistence on, two restarts");
}
