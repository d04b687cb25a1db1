//! Outages of Kafka with the spool: what was accepted is in Kafka afterwards, once and in order, and the disk is empty again.
//!
//! Mosquitto has its default limits here: a queue of 1,000 messages, which 1,000 messages a second fill in one second.

use std::time::Duration;

use crate::support::flow::{ARRIVE, Flow};
use crate::support::kafka::{Cluster, shared_one};
use crate::support::publisher::Load;
use crate::support::rig::{RATE, Rig};
use crate::support::stage::{seconds, size};
use crate::support::wait::outage;
use crate::support::{Mosquitto, Publisher, SpoolDir, Stage, Version};

/// How long Kafka needs for its start, at the most that is usual: the load must not end before the scenario does.
const KAFKA_STARTS: Duration = Duration::from_secs(8);

/// Kafka is killed and stays away; tidegate is killed twice meanwhile, and once while the spool drains; then Kafka is,
/// while it drains again. tests/real/versions.rs has a shorter outage on every version.
#[test]
fn a_long_outage_with_kills_of_both_sides_loses_and_reorders_nothing() {
    let (before, away, after) = (seconds(4, 120), seconds(15, 360), seconds(5, 104));
    let load = before + away + after + 2 * KAFKA_STARTS;
    let mut rig = Rig::start("spool_outage", Version::V4_3, "", load);
    rig.flows_for(before);
    rig.kafka_is_killed();
    for _ in 0..2 {
        outage(away / 3);
        rig.gateway_is_killed();
    }
    outage(away / 3);
    rig.kafka_comes_back();
    rig.gateway_is_killed_while_draining();
    rig.kafka_is_killed_while_draining();
    rig.end(&format!("Kafka killed, away for {} s, killed again", away.as_secs()));
}

/// What Kafka knows of a producer it forgets after `producer.id.expiration.ms`, a day by default: after that it takes a batch
/// again that it has already. Here it forgets after 3 s: in a start at once, and else at a look every 5 s. It looks every ten minutes by
/// default; a look between its answer and what is sent upon it repeats a batch (docs/decisions/0006, "Not covered"). With one every 500 ms
/// on a busy machine a batch was repeated once, behind the kill of tidegate.
#[test]
fn a_backlog_older_than_kafkas_memory_of_its_producer_is_exact() {
    const FORGETS: &str = "producer.id.expiration.ms=3000\nproducer.id.expiration.check.interval.ms=5000";
    let away = seconds(8, 60);
    let load = away + 2 * KAFKA_STARTS + seconds(6, 30);
    let mut rig = Rig::start("spool_forgotten", Version::V4_3, FORGETS, load);
    rig.flows_for(Duration::from_secs(2));
    rig.kafka_is_stopped();
    outage(away);
    rig.kafka_comes_back();
    rig.kafka_is_killed_while_draining();
    rig.gateway_is_killed_while_draining();
    rig.end(&format!(
        "Kafka away for {} s forgets producers after 3 s; killed once while draining",
        away.as_secs()
    ));
}

/// Kafka's processes stop again and again, for as long as chance says, and nothing else goes wrong: so nothing may repeat.
#[test]
fn a_flapping_kafka_costs_nothing_at_all() {
    let stage = Stage::new("spool_flapping");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = Cluster::start(&stage.dir, 1, "");
    kafka.create(&stage.unique("t"), &kafka.topic());
    let spool = SpoolDir::new(&stage);
    let settings = [("DB_PERSIST_PATH", spool.text())];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let (times, shortest, longest) = (size(5, 60), size(600, 1_000), size(3_000, 20_000));
    let milliseconds = |from: u64, to: u64| Duration::from_millis(fastrand::u64(from..=to));
    let plan: Vec<(Duration, Duration)> =
        (0..times).map(|_| (milliseconds(shortest, longest), milliseconds(300, 2_000))).collect();
    let length: Duration = plan.iter().map(|(frozen, between)| *frozen + *between).sum();
    let total = RATE * (length.as_secs() + 4);
    let load = Load { devices: 50, ..Load::new(&flow.prefix, total, RATE) };
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    flow.follower.wait_distinct(RATE, Duration::from_secs(30));
    for (frozen, between) in &plan {
        kafka.freeze();
        outage(*frozen);
        kafka.thaw();
        outage(*between);
    }
    publisher.finish(Duration::from_secs(60));
    mosquitto.assert_kept_all();
    flow.follower.wait_distinct(total, ARRIVE);
    let disk_after = spool.wait_returned(Duration::from_secs(30));
    let (_, memory_kib) = flow.gateway.process().memory_kib();
    let remark = format!(
        "{times} times SIGSTOP for {shortest} to {longest} ms; memory {memory_kib} KiB at its highest; {disk_after} bytes of \
         disk at the end"
    );
    flow.end_clean(&stage, publisher, &remark);
}

#[test]
fn while_kafka_is_healthy_nothing_is_written_to_the_spool() {
    let stage = Stage::new("spool_healthy");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let spool = SpoolDir::new(&stage);
    let settings = [("DB_PERSIST_PATH", spool.text())];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let (before, written_before) = (spool.files(), flow.gateway.process().written_bytes());
    assert!(!before.is_empty(), "the gateway has not made its spool in {}", spool.path.display());
    let length = seconds(10, 60);
    let load = Load { devices: 50, ..Load::new(&flow.prefix, RATE * length.as_secs(), RATE) };
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    publisher.finish(length + Duration::from_secs(30));
    flow.follower.wait_distinct(publisher.total, Duration::from_secs(10));
    let written = flow.gateway.process().written_bytes() - written_before;
    assert_eq!(spool.files(), before, "the spool's folder was touched while Kafka was healthy");
    let remark = format!(
        "nothing written under DB_PERSIST_PATH in {} s at {RATE} a second; {written} bytes by the whole process, its log",
        length.as_secs()
    );
    flow.end_clean(&stage, publisher, &remark);
    assert_eq!(spool.files().len(), before.len(), "files came at the stop");
}
