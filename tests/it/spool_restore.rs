//! Restoring: dead letters in the spool, routes that do not move beside others, and how much memory it takes.

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::{spool_look, wait};

const INVALID_RECORD: i16 = 87;
const NOT_ENOUGH_REPLICAS: i16 = 19;
/// A process without a backlog has some 10 MiB in a test's build.
const MEMORY_MAX: u64 = 48 << 20;

/// Kafka refuses the record, and does not answer for the dead letter, which is in the spool in the end.
struct HeldLetter {
    mqtt: MqttBroker,
    kafka: Cluster,
    gate: Gate,
    setup: Setup,
    gateway: Gateway,
    _link: Link,
}

impl HeldLetter {
    fn start() -> HeldLetter {
        let mqtt = MqttBroker::start();
        let kafka = Cluster::start_as(Release::V4, 2).topic("t", 1).topic("dead", 1);
        kafka.move_leader("dead", 0, 2);
        let bad = Act::BadRecords(INVALID_RECORD, vec![0]);
        kafka.when(Api::Produce, usize::MAX, bad, |call| call.topic == "t");
        let gate = Gate::default();
        kafka.when(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()), |call| call.topic == "dead");
        let setup = Setup::new(&mqtt, &kafka).spooling().wildcards("a/#:t").set("DEAD_LETTER_TOPIC", "dead");
        let gateway = setup.again().start();
        let link = mqtt.session();
        link.publish("a/b", "bad", 1);
        link.wait_for_pubacks(&[1]);
        wait::holds(wait::WATCH, "one copy of the letter", || match spool_look::waiting(&setup, "dead") {
            1 => Ok(()),
            other => Err(other),
        });
        HeldLetter { mqtt, kafka, gate, setup, gateway, _link: link }
    }

    fn let_go(&self) {
        self.kafka.heal();
        self.gate.open();
    }

    fn assert_delivered_once(&self) {
        spool_look::wait_until_empty(&self.setup);
        assert_eq!(self.kafka.values("dead", 0), ["bad"]);
    }
}

#[test]
fn a_dead_letter_in_flight_when_kafka_goes_away_is_stored_once_and_done_when_kafka_has_it() {
    let held = HeldLetter::start();
    held.let_go();
    held.assert_delivered_once();
}

#[test]
fn a_dead_letter_in_the_spool_is_delivered_once_after_a_kill() {
    let held = HeldLetter::start();
    held.gateway.signal(rustix::process::Signal::KILL);
    held.kafka.restart(2);
    held.let_go();
    let _next = held.setup.again().start();
    let _link = held.mqtt.resume();
    held.assert_delivered_once();
}

/// Two topics with a backlog, of which `t` does not move beyond its first record once Kafka is back.
fn check_stuck_beside_other(stop_its_broker: bool) {
    let mqtt = MqttBroker::start();
    let kafka = Cluster::start_as(Release::V4, 2).topic("t", 1).topic("other", 1);
    kafka.move_leader("other", 0, 2);
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let setup = Setup::new(&mqtt, &kafka).spooling().wildcards("a/#:t,o/#:other");
    let few = [("INVOKE_LATENCY_SEC", "1"), ("INVOKE_MAX_GOROUTINE", "50"), ("INVOKE_MIN_GOROUTINE", "10")];
    let gateway = few.iter().fold(setup, |setup, (name, value)| setup.set(name, value)).start();
    let link = mqtt.session();
    let (values, others) = (numbered("v", 400), numbered("o", 400));
    for turn in 0..20 {
        let (part, first) = (turn * 20..(turn + 1) * 20, 1 + turn as u16 * 40);
        link.publish_all("a/b", &values[part.clone()], first);
        link.publish_all("o/1", &others[part], first + 20);
        link.wait_for_pubacks(&ids(1, usize::from(first) + 39));
    }
    kafka.heal();
    kafka.when(Api::Produce, usize::MAX, Act::Error(NOT_ENOUGH_REPLICAS), |call| {
        let first = |batch: &crate::support::kafka_log::Batch| {
            batch.records.iter().any(|record| record.text() == "v0")
        };
        call.topic == "t" && !call.batch.is_some_and(first)
    });
    gate.open();
    if stop_its_broker {
        gateway.wait_for_log("DEBUG", &["topic t:", "frames read"]);
        kafka.stop(1);
    }
    kafka.wait_for_values("other", 0, &others);
    assert!(kafka.values("t", 0).len() < values.len(), "it was to be stuck");
}

#[test]
fn a_topic_whose_replicas_are_missing_does_not_keep_another_from_being_restored() {
    check_stuck_beside_other(false);
}

#[test]
fn a_topic_whose_broker_is_down_does_not_keep_another_from_being_restored() {
    check_stuck_beside_other(true);
}

/// 90 MB in the spool, of as many topics; Kafka takes nothing of it for a while.
fn check_memory(topics: usize) {
    const COUNT: usize = 100;
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    (0..topics).for_each(|number| kafka.add_topic(&format!("s-{number}"), 1));
    kafka.stop(1);
    let setup = Setup::new(&mqtt, &kafka).spooling().wildcards("a/+:s-{1}").set("INVOKE_LATENCY_SEC", "1");
    let gateway = setup.again().start();
    let link = mqtt.session();
    let mut rng = fastrand::Rng::with_seed(9);
    for number in 0..COUNT {
        let value: String = (0..900_000).map(|_| rng.alphanumeric()).collect();
        link.publish(&format!("a/{}", number % topics), &value, 1 + number as u16);
        link.wait_for_pubacks(&ids(1, number + 1));
    }
    drop(gateway);
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    kafka.restart(1);
    let gateway = setup.again().start();
    let _link = mqtt.resume();
    gateway.wait_for_log("DEBUG", &["frames read"]);
    wait::holds(3 * wait::WATCH, "little memory", || match gateway.resident_bytes() {
        bytes if bytes < MEMORY_MAX => Ok(()),
        bytes => Err(format!("{} MiB", bytes >> 20)),
    });
    gate.open();
    spool_look::wait_until_empty(&setup);
    let delivered: usize = (0..topics).map(|number| kafka.values(&format!("s-{number}"), 0).len()).sum();
    assert_eq!(delivered, COUNT);
}

#[test]
fn large_messages_are_restored_in_little_memory() {
    check_memory(1);
}

#[test]
fn large_messages_of_many_topics_are_restored_in_little_memory() {
    check_memory(100);
}
