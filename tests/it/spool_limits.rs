//! A spool that is full: with `block` nothing is lost and MQTT waits, with `drop-oldest` the oldest go and their number is told.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::{spool_look, wait};

const MAX_BYTES: u64 = 1 << 20;
const COUNT: usize = 500;
const UNKNOWN_TOPIC: i16 = 3;
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

/// Nothing that a codec makes much smaller; together twice what the spool takes.
fn values() -> Vec<String> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..COUNT)
        .map(|number| (0..4096).map(|_| rng.alphanumeric()).collect::<String>() + &number.to_string())
        .collect()
}

fn start(mqtt: &MqttBroker, kafka: &Cluster, full: &str) -> (Setup, Gateway, Link) {
    let setup = Setup::new(mqtt, kafka)
        .wildcards("a/#:t,o/#:other")
        .set("SPOOL_AFTER_MS", "100")
        .set("SPOOL_MAX_BYTES", &MAX_BYTES.to_string())
        .set("SPOOL_SEGMENT_BYTES", "65536")
        .set("SPOOL_FULL", full);
    let gateway = setup.again().start();
    (setup, gateway, mqtt.session())
}

fn bytes_on_disk(setup: &Setup) -> u64 {
    let folder = setup.folder().join(spool_look::FOLDER);
    // A segment may go between the two looks.
    fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().metadata().ok())
        .map(|data| data.len())
        .sum()
}

/// Kafka comes back after a long outage and for some seconds does not know its topics yet. The outage's backlog is far more
/// than a topic that Kafka refuses may hold.
#[test]
fn after_an_outage_a_moment_without_metadata_loses_nothing() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let (_setup, gateway, link) = start(&mqtt, &kafka, "block");
    let values = &values()[..120];
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_values("t", 0, &values[..1]);
    kafka.stop(1);
    link.publish_all("a/b", &values[1..100], 2);
    link.wait_for_pubacks(&ids(1, 100));
    kafka.set_topic_error("t", UNKNOWN_TOPIC);
    kafka.restart(1);
    gateway.wait_for_log("DEBUG", &["topic t", "to Parked"]);
    link.publish_all("a/b", &values[100..], 101);
    link.wait_for_pubacks(&ids(1, 120));
    kafka.set_topic_error("t", 0);
    kafka.wait_for_values("t", 0, values);
}

/// Kafka is being started, says for a moment that it does not know the topic, and then is away for hours: that is an outage, in
/// which a route may need all of the spool, not a topic that Kafka refuses.
#[test]
fn a_refused_topic_has_all_of_the_spool_again_when_kafka_goes_away() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let (_setup, gateway, link) = start(&mqtt, &kafka, "block");
    let values = &values()[..120];
    kafka.set_topic_error("t", UNKNOWN_TOPIC);
    link.publish("a/b", &values[0], 1);
    gateway.wait_for_log("DEBUG", &["topic t", "to Parked"]);
    kafka.stop(1);
    gateway.wait_for_log("DEBUG", &["topic t", "Parked to Spooling"]);
    link.publish_all("a/b", &values[1..], 2);
    link.wait_for_pubacks(&ids(1, 120));
    kafka.set_topic_error("t", 0);
    kafka.restart(1);
    kafka.wait_for_values("t", 0, values);
    assert_eq!(gateway.log_of("ERROR").iter().filter(|line| line.contains("share")).count(), 0);
}

/// MQTT_MAX_PACKET_BYTES may be 64 MiB.
#[test]
fn the_largest_messages_are_stored_and_hold_nobody_back() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1).topic("other", 1));
    kafka.stop(1);
    let setup = Setup::new(&mqtt, &kafka)
        .spooling()
        .wildcards("a/#:t,o/#:other")
        .set("MQTT_MAX_PACKET_BYTES", "67108864");
    let gateway = setup.again().start();
    let link = mqtt.session();
    let mut rng = fastrand::Rng::with_seed(5);
    let largest: String = (0..(64 << 20) - 64).map(|_| rng.alphanumeric()).collect();
    link.publish("a/b", &largest, 1);
    link.publish("o/1", "small", 2);
    link.wait_for_pubacks(&ids(1, 2));
    assert_eq!((spool_look::waiting(&setup, "t"), spool_look::waiting(&setup, "other")), (1, 1));
    assert_eq!(gateway.log_of("ERROR"), Vec::<String>::new());
}

#[test]
fn full_and_blocking_holds_acknowledgements_back_and_loses_nothing() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    kafka.stop(1);
    let (setup, gateway, link) = start(&mqtt, &kafka, "block");
    let values = values();
    // More at once than the spool takes: what fits is stored.
    link.publish_all("a/b", &values, 1);
    gateway.wait_for_log("ERROR", &["the spool is full", "SPOOL_MAX_BYTES"]);
    wait::until("a spool that is nearly full", || {
        let acknowledged = link.pubacks().len();
        if acknowledged > COUNT / 3 { Ok(()) } else { Err(acknowledged) }
    });
    wait::until("all that fits", || {
        let acknowledged = link.pubacks().len();
        let stored = spool_look::waiting(&setup, "t");
        if stored > acknowledged { Err(format!("{acknowledged} of {stored}")) } else { Ok(()) }
    });
    let acknowledged = link.pubacks().len();
    assert!(acknowledged < COUNT, "{acknowledged}");
    wait::holds(wait::WATCH, "no more PUBACKs", || match link.pubacks().len() {
        count if count == acknowledged => Ok(()),
        other => Err(format!("{other}, before {acknowledged}")),
    });
    assert!(spool_look::waiting(&setup, "t") >= acknowledged);
    assert!(bytes_on_disk(&setup) <= MAX_BYTES, "{}", bytes_on_disk(&setup));
    kafka.restart(1);
    kafka.wait_for_values("t", 0, &values);
    link.wait_for_pubacks(&ids(1, COUNT));
    gateway.wait_for_log("INFO", &["the spool has room again"]);
    spool_look::wait_until_empty(&setup);
    let errors = gateway.log_of("ERROR");
    assert!(errors.len() == 1 && errors.iter().all(|line| line.contains("the spool is full")), "{errors:#?}");
}

#[test]
fn full_and_stopped_the_mqtt_broker_keeps_the_rest() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    kafka.stop(1);
    let (setup, mut gateway, link) = start(&mqtt, &kafka, "block");
    let values = values();
    link.publish_all("a/b", &values, 1);
    gateway.wait_for_log("ERROR", &["the spool is full"]);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
    link.expect_disconnect();
    let acknowledged = link.pubacks().len();
    assert!(acknowledged < COUNT, "{acknowledged}");
    assert_eq!(spool_look::waiting(&setup, "t"), acknowledged, "what is acknowledged is stored, and no more");
    gateway.wait_for_log("WARN", &["the MQTT broker keeps them"]);
    kafka.restart(1);
    let _next = setup.start();
    let link = mqtt.resume();
    for (value, id) in values.iter().zip(1..).skip(acknowledged) {
        link.redeliver("a/b", value, id);
    }
    kafka.wait_for_values("t", 0, &values);
}

#[test]
fn full_and_dropping_gives_up_the_oldest_and_tells_how_many() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    kafka.stop(1);
    let (setup, gateway, link) = start(&mqtt, &kafka, "drop-oldest");
    let values = values();
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, COUNT));
    assert!(bytes_on_disk(&setup) <= MAX_BYTES, "{}", bytes_on_disk(&setup));
    kafka.restart(1);
    spool_look::wait_until_empty(&setup);
    gateway.wait_for_log("INFO", &["the backlog is delivered"]);
    let found = kafka.values("t", 0);
    let lost = COUNT - found.len();
    // The first were in flight when Kafka went, and may have come in spite of that: those behind them are what went.
    let expected: Vec<&String> = values.iter().filter(|value| found.contains(value)).collect();
    assert_eq!(found.iter().collect::<Vec<_>>(), expected, "once, in order");
    assert!(lost > 0 && found.len() > COUNT / 4, "{lost} lost");
    assert_eq!(found.last(), values.last(), "the newest are kept");
    let told = gateway.wait_for_log("ERROR", &["drop-oldest", &format!("{lost} since the start")]);
    assert_eq!(gateway.log_of("ERROR").last(), Some(&told));
}

#[test]
fn a_parked_route_has_its_share_and_does_not_hold_back_another() {
    let (mqtt, kafka) =
        (MqttBroker::start(), Cluster::start().topic("t", 1).topic("other", 1).topic("dead", 1));
    kafka.set_topic_error("t", TOPIC_AUTHORIZATION_FAILED);
    let setup = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t,o/#:other")
        .set("SPOOL_AFTER_MS", "100")
        .set("SPOOL_MAX_BYTES", &MAX_BYTES.to_string())
        .set("SPOOL_SEGMENT_BYTES", "65536")
        .set("DEAD_LETTER_TOPIC", "dead");
    let _gateway = setup.again().start();
    let link = mqtt.session();
    let values = values();
    link.publish_all("a/b", &values, 1);
    link.wait_for_pubacks(&ids(1, COUNT));
    // What its share does not take goes to the dead letters.
    let stored = spool_look::waiting(&setup, "t");
    wait::until("the rest in the dead letters", || {
        let letters = kafka.values("dead", 0).len();
        if letters == COUNT - stored { Ok(()) } else { Err(format!("{letters}, and {stored} stored")) }
    });
    assert!(stored > 0 && stored < COUNT, "{stored}");
    link.publish("o/1", "o", COUNT as u16 + 1);
    kafka.wait_for_values("other", 0, &["o"]);
    link.wait_for_pubacks(&ids(1, COUNT + 1));
    kafka.set_topic_error("t", 0);
    kafka.wait_for_values("t", 0, &values[..stored]);
    assert_eq!(kafka.values("dead", 0), values[stored..]);
    spool_look::wait_until_empty(&setup);
}

#[test]
fn what_was_sent_and_cannot_be_stored_stays_in_front_of_what_came_later_when_kafka_refuses_a_record() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("SPOOL_AFTER_MS", "500")
        // Nothing can be stored.
        .set("SPOOL_MIN_FREE_BYTES", "1125899906842624")
        .start();
    let link = mqtt.session();
    let mut values = numbered("v", 12);
    values[1] = "culprit ".repeat(600);
    link.publish("a/b", &values[0], 1);
    kafka.wait_for_values("t", 0, &values[..1]);
    kafka.set_message_max_bytes(3000);
    let (refused, again) = (Gate::default(), Gate::default());
    kafka.next(Api::Produce, 1, Act::HoldBefore(refused.clone()));
    // Behind the refusal, the next batch is sent again with another identity, and has no answer: the one behind it is
    // as if it had never been sent.
    let is_again =
        |call: &crate::support::kafka_broker::Call| call.batch.is_some_and(|batch| batch.identity.epoch > 0);
    kafka.when(Api::Produce, 1, Act::HoldBefore(again.clone()), is_again);
    link.publish("a/b", &values[1], 2);
    kafka.wait_for_seen(2);
    for part in [2..4, 4..6] {
        link.publish_all("a/b", &values[part.clone()], 1 + part.start as u16);
        // Longer than records gather: a batch of its own.
        wait::holds(wait::WATCH / 10, "nothing is acknowledged", || match link.pubacks().len() {
            1 => Ok(()),
            other => Err(other),
        });
    }
    gateway.wait_for_log("ERROR", &["the spool is full"]);
    link.publish_all("a/b", &values[6..], 7);
    wait::holds(wait::WATCH, "these wait to be stored", || match link.pubacks().len() {
        1 => Ok(()),
        other => Err(other),
    });
    refused.open();
    gateway.wait_for_log("ERROR", &["MESSAGE_TOO_LARGE"]);
    wait::holds(wait::WATCH, "the second is held", || match kafka.values("t", 0).len() {
        1 => Ok(()),
        other => Err(other),
    });
    again.open();
    values.remove(1);
    kafka.wait_for_values("t", 0, &values);
    link.wait_for_pubacks(&ids(1, 12));
}

/// Two refused topics have used up what such may have; a third is refused while the spool is full.
#[test]
fn a_refused_topic_without_a_share_left_costs_no_processor_and_holds_nothing() {
    let mqtt = MqttBroker::start();
    let topics = ["p1", "p2", "c", "d", "e"];
    let kafka = topics.iter().fold(Cluster::start_as(Release::V4, 3), |kafka, topic| kafka.topic(topic, 1));
    kafka.move_leader("d", 0, 2);
    kafka.move_leader("e", 0, 3);
    kafka.set_topic_error("p1", TOPIC_AUTHORIZATION_FAILED);
    kafka.set_topic_error("p2", TOPIC_AUTHORIZATION_FAILED);
    let setup = Setup::new(&mqtt, &kafka)
        .spooling()
        .wildcards("p1/#:p1,p2/#:p2,c/#:c,d/#:d,e/#:e")
        .set("SPOOL_MAX_BYTES", &MAX_BYTES.to_string())
        .set("SPOOL_SEGMENT_BYTES", "65536");
    let mut gateway = setup.again().start();
    let link = mqtt.session();
    let values = values();
    link.publish("c/1", "first", 1);
    kafka.wait_for_values("c", 0, &["first"]);
    link.publish_all("p1/1", &values[..80], 2);
    link.publish_all("p2/1", &values[..80], 82);
    link.wait_for_pubacks(&ids(1, 161));
    // The rest of the spool is taken by a topic whose broker is down.
    kafka.stop(2);
    link.publish_all("d/1", &values[..200], 162);
    gateway.wait_for_log("ERROR", &["the spool is full"]);
    kafka.when(Api::Produce, usize::MAX, Act::Error(TOPIC_AUTHORIZATION_FAILED), |call| call.topic == "c");
    link.publish("c/1", "second", 362);
    gateway.wait_for_log("DEBUG", &["topic c", "to Parked"]);
    gateway.assert_idle("full, and a refused topic's message has no place");
    // There is room again, and another topic wants it.
    kafka.restart(2);
    kafka.wait_for_values("d", 0, &values[..200]);
    kafka.stop(3);
    link.publish("e/1", "stored", 363);
    link.wait_for_pubacks(&ids(1, 363));
}
