//! kill -9 with messages in the spool, at the moments that matter: nothing is lost, and nothing is written twice but what the MQTT
//! broker delivers again.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, SeenBatch};
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::{spool_look, wait};

const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

fn brokers() -> (MqttBroker, Cluster, Setup) {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SPOOL_AFTER_MS", "200");
    (mqtt, kafka, setup)
}

fn kill(mut gateway: Gateway) {
    gateway.signal(Signal::KILL);
    gateway.wait_for_exit(wait::PATIENCE);
}

/// Kafka works again, and forgets what it has not written.
fn bring_back(kafka: &Cluster, gate: &Gate) {
    kafka.heal();
    kafka.restart(1);
    gate.open();
}

/// Publishes the values one by one, each a batch of its own, as far as there are to be any: up to five in flight.
fn fill_the_flight(kafka: &Cluster, link: &Link, values: &[String], first: u16) {
    for (value, id) in values.iter().zip(first..) {
        link.publish("a/b", value, id);
        wait::until(&format!("a batch with {value}"), || {
            let has = |seen: &SeenBatch| seen.batch.records.iter().any(|record| record.text() == *value);
            let seen = kafka.seen();
            if seen.iter().any(has) { Ok(()) } else { Err(format!("{} batches", seen.len())) }
        });
    }
}

#[test]
fn killed_while_kafka_is_held_and_started_when_it_is_back() {
    let (mqtt, kafka, setup) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let gateway = setup.again().start();
    let link = mqtt.session();
    let values = numbered("v", 320);
    link.publish_all("a/b", &values[..300], 1);
    link.wait_for_pubacks(&ids(1, 300));
    kill(gateway);
    bring_back(&kafka, &gate);
    let gateway = setup.again().start();
    let link = mqtt.resume();
    // They come behind what is stored.
    link.publish_all("a/b", &values[300..], 301);
    kafka.wait_for_values("t", 0, &values);
    link.wait_for_pubacks(&ids(301, 20));
    spool_look::wait_until_empty(&setup);
    assert_eq!(gateway.log_of("ERROR"), Vec::<String>::new());
}

#[test]
fn killed_several_times_without_kafka_everything_is_there_once() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let values = numbered("v", 200);
    for (round, chunk) in values.chunks(50).enumerate() {
        let gateway = setup.again().start();
        let link = if round == 0 { mqtt.session() } else { mqtt.resume() };
        let first = round as u16 * 50 + 1;
        link.publish_all("a/b", chunk, first);
        link.wait_for_pubacks(&ids(first, 50));
        kill(gateway);
    }
    kafka.restart(1);
    let _gateway = setup.again().start();
    let _link = mqtt.resume();
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
}

#[test]
fn killed_again_and_again_while_draining() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let gateway = setup.again().start();
    let link = mqtt.session();
    let values = numbered("v", 600);
    link.publish_all("a/b", &values[..500], 1);
    link.wait_for_pubacks(&ids(1, 500));
    kill(gateway);
    kafka.restart(1);
    let written = |wanted: usize| {
        wait::until(&format!("{wanted} records in Kafka"), || {
            let found = kafka.values("t", 0);
            assert_eq!(found, values[..found.len()], "once, in order");
            if found.len() >= wanted { Ok(found.len()) } else { Err(found.len()) }
        })
    };
    let mut published = 500;
    for round in 0..6 {
        let gateway = setup.again().set("SPOOL_RESTORE_PER_SEC", "100").start();
        let link = mqtt.resume();
        // New messages go behind the rest of the backlog.
        let first = published as u16 + 1;
        link.publish_all("a/b", &values[published..published + 10], first);
        link.wait_for_pubacks(&ids(first, 10));
        published += 10;
        let count = written(kafka.values("t", 0).len() + 15);
        if round % 2 == 1 {
            // The last that Kafka wrote it does not say.
            kafka.next(Api::Produce, 1, Act::Silent);
            written(count + 1);
        }
        assert!(kafka.values("t", 0).len() < published, "there is a backlog to be killed with");
        kill(gateway);
        kafka.heal();
    }
    let gateway = setup.again().start();
    let _link = mqtt.resume();
    kafka.wait_for_values("t", 0, &values[..published]);
    spool_look::wait_until_empty(&setup);
    assert_eq!(gateway.log_of("ERROR"), Vec::<String>::new());
}

/// What becomes of what the process that is killed had sent and Kafka had not worked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Held {
    /// Kafka restarts.
    Forgotten,
    /// Worked while the next process sends the same batches.
    WorkedMeanwhile,
    /// Worked when that has been answered.
    WorkedAfterwards,
}

/// `written` of the five batches in flight are in Kafka's log, unanswered; the others are not.
fn killed_with_five_in_flight(written: usize, held: Held) {
    eprintln!("{written} of five written, {held:?}");
    let (mqtt, kafka, setup) = brokers();
    let gateway = setup.again().start();
    let link = mqtt.session();
    let values = numbered("v", 30);
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_values("t", 0, &values[..1]);
    link.wait_for_pubacks(&[1]);
    let gate = Gate::default();
    kafka.next(Api::Produce, written, Act::Silent);
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    fill_the_flight(&kafka, &link, &values[1..6], 2);
    kafka.wait_for_values("t", 0, &values[..=written]);
    // Behind them, never sent.
    link.publish_all("a/b", &values[6..], 7);
    link.wait_for_pubacks(&ids(1, 30));
    kill(gateway);
    kafka.heal();
    if held == Held::Forgotten {
        bring_back(&kafka, &gate);
    }
    let asked = kafka.requests(Api::DescribeProducers);
    // The next start is not answered before it is seen what it asks.
    let describe = Gate::default();
    kafka.next(Api::DescribeProducers, usize::MAX, Act::HoldBefore(describe.clone()));
    let produced = kafka.requests(Api::Produce);
    let gateway = setup.again().start();
    let _link = mqtt.resume();
    kafka.wait_for_requests(Api::DescribeProducers, asked + 1);
    assert_eq!(kafka.requests(Api::Produce), produced, "it asks before it sends anything again");
    kafka.heal();
    describe.open();
    if held == Held::WorkedMeanwhile {
        gate.open();
    }
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
    gate.open();
    wait::holds(wait::WATCH, "nothing is written twice", || match kafka.values("t", 0) {
        found if found == values => Ok(()),
        found => Err(format!("{found:?}")),
    });
    assert_eq!(gateway.log_of("ERROR"), Vec::<String>::new());
}

#[test]
fn killed_after_kafka_wrote_and_before_it_answered() {
    (1..=5).for_each(|written| killed_with_five_in_flight(written, Held::WorkedMeanwhile));
}

#[test]
fn killed_and_what_was_under_way_is_worked_last_of_all() {
    (1..=4).for_each(|written| killed_with_five_in_flight(written, Held::WorkedAfterwards));
}

#[test]
fn killed_after_kafka_wrote_and_kafka_restarted_as_well() {
    (1..=5).for_each(|written| killed_with_five_in_flight(written, Held::Forgotten));
}

#[test]
fn stopped_while_draining_it_ends_at_once_and_the_next_start_goes_on() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let slow = || setup.again().set("SPOOL_RESTORE_PER_SEC", "100").set("SHUTDOWN_TIMEOUT_SEC", "60");
    let mut gateway = slow().start();
    let mut link = mqtt.session();
    let values = numbered("v", 400);
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, 400));
    kafka.restart(1);
    for _ in 0..3 {
        let wanted = kafka.values("t", 0).len() + 20;
        wait::until("some of the backlog in Kafka", || {
            let count = kafka.values("t", 0).len();
            if count >= wanted { Ok(()) } else { Err(count) }
        });
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait_for_exit(Duration::from_secs(2)).code(), Some(0));
        assert!(kafka.values("t", 0).len() < values.len(), "it did not wait for all of it");
        gateway = slow().start();
        link = mqtt.resume();
    }
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
    assert_eq!(link.pubacks(), [0_u16; 0]);
}

#[test]
fn killed_before_the_acknowledgement_what_is_delivered_again_is_all_that_may_be_twice() {
    let (mqtt, kafka, setup) = brokers();
    kafka.next(Api::Produce, usize::MAX, Act::Silent);
    let gateway = setup.again().set("SPOOL_AFTER_MS", "60000").start();
    let link = mqtt.session();
    link.publish("a/b", "v0", 1);
    kafka.wait_for_values("t", 0, &["v0"]);
    assert_eq!(link.pubacks(), [0_u16; 0]);
    kill(gateway);
    kafka.heal();
    let _gateway = setup.again().start();
    let link = mqtt.resume();
    link.redeliver("a/b", "v0", 1);
    link.publish("a/b", "v1", 2);
    link.wait_for_pubacks(&[1, 2]);
    kafka.wait_for_values("t", 0, &["v0", "v0", "v1"]);
}

/// A batch of which the spool has a part only, and a whole one behind it: both are written, and sending the second again proves it.
#[test]
fn killed_after_kafka_wrote_a_batch_that_began_with_records_that_are_done() {
    let (mqtt, kafka, setup) = brokers();
    kafka.stop(1);
    let gateway = setup.again().set("KAFKA_BATCH_BYTES", "20000").start();
    let link = mqtt.session();
    let values: Vec<String> = (0..40).map(|number| format!("v{number} {}", "x".repeat(900))).collect();
    // Two frames, and the second batch begins within the second of them.
    link.publish_all("a/b", &values[..10], 1);
    link.wait_for_pubacks(&ids(1, 10));
    link.publish_all("a/b", &values[10..], 11);
    link.wait_for_pubacks(&ids(1, 40));
    let last = values[39].clone();
    kafka.when(Api::Produce, usize::MAX, Act::Silent, move |call| {
        call.batch.is_some_and(|batch| batch.records.iter().any(|record| record.text() == last))
    });
    kafka.restart(1);
    kafka.wait_for_values("t", 0, &values);
    assert!(kafka.appended("t", 0).len() > 1, "more than one batch");
    wait::until("the first frame to be done", || {
        let left = spool_look::waiting(&setup, "t");
        if left == 30 { Ok(()) } else { Err(left) }
    });
    kill(gateway);
    kafka.heal();
    let _gateway = setup.again().start();
    let _link = mqtt.resume();
    spool_look::wait_until_empty(&setup);
    assert_eq!(kafka.values("t", 0), values);
}

/// The next start does not know the topic's partitions while it is refused, and forgot with what the batch had been sent.
#[test]
fn killed_after_kafka_wrote_and_refused_at_the_next_start() {
    let (mqtt, kafka, setup) = brokers();
    let gateway = setup.again().start();
    let link = mqtt.session();
    let values = numbered("v", 20);
    kafka.next(Api::Produce, usize::MAX, Act::Silent);
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_values("t", 0, &values[..1]);
    link.publish_all("a/b", &values[1..], 2);
    link.wait_for_pubacks(&ids(1, 20));
    kill(gateway);
    kafka.heal();
    kafka.set_topic_error("t", TOPIC_AUTHORIZATION_FAILED);
    let gateway = setup.again().set("INVOKE_LATENCY_SEC", "1").start();
    let _link = mqtt.resume();
    gateway.wait_for_log("DEBUG", &["topic t:", "to Parked"]);
    // Longer than INVOKE_LATENCY_SEC, after which it tries.
    kafka.wait_for_requests(Api::Metadata, kafka.requests(Api::Metadata) + 2);
    kafka.set_topic_error("t", 0);
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
    assert_eq!(kafka.values("t", 0), values);
}

#[test]
fn killed_with_a_refused_topic_it_is_parked_again_and_others_are_delivered() {
    let mqtt = MqttBroker::start();
    let kafka = Cluster::start().topic("t", 1).topic("other", 1);
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t,o/#:other").set("SPOOL_AFTER_MS", "200");
    kafka.stop(1);
    kafka.set_topic_error("t", TOPIC_AUTHORIZATION_FAILED);
    let gateway = setup.again().start();
    let link = mqtt.session();
    let (values, others) = (numbered("v", 40), numbered("o", 40));
    link.publish_all("a/b", &values, 1);
    link.publish_all("o/1", &others[..20], 41);
    link.wait_for_pubacks(&ids(1, 60));
    kill(gateway);
    kafka.restart(1);
    let gateway = setup.again().start();
    let link = mqtt.resume();
    kafka.wait_for_values("other", 0, &others[..20]);
    gateway.wait_for_log("DEBUG", &["topic t:", "to Parked"]);
    link.publish_all("o/1", &others[20..], 61);
    kafka.wait_for_values("other", 0, &others);
    link.wait_for_pubacks(&ids(61, 20));
    kill(gateway);
    let gateway = setup.again().start();
    let _link = mqtt.resume();
    gateway.wait_for_log("ERROR", &["TOPIC_AUTHORIZATION_FAILED"]);
    assert_eq!(spool_look::waiting(&setup, "t"), 40);
    kafka.set_topic_error("t", 0);
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
}
