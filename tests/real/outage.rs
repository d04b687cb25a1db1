//! Brokers that are not there: at the start, for long, or without the topic.

use std::time::{Duration, Instant};

use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::{Cluster, shared_one};
use crate::support::publisher::Load;
use crate::support::stage::{seconds, size};
use crate::support::wait::outage;
use crate::support::{Follower, Gateway, Mosquitto, Publisher, Stage, read_all, until};

/// The promise: so long after the last broker is up, messages flow.
const FLOWS_WITHIN: Duration = Duration::from_secs(5);
/// Long enough for backoffs to have grown to their longest.
const ALL_DOWN: Duration = Duration::from_secs(12);

/// Starts tidegate with nothing there, brings both brokers up, and counts the seconds until a message is through.
fn start_with_everything_down(name: &str, kafka_first: bool) {
    let stage = Stage::new(name);
    let mut mosquitto = Mosquitto::prepare(&stage.dir, UNLIMITED);
    let mut kafka = Cluster::prepare(&stage.dir.join("kafka"), 1, "auto.create.topics.enable=true");
    let (prefix, topic) = (stage.unique("d"), stage.unique("t"));
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &format!("{prefix}/#:{topic}"));
    gateway.up();
    outage(ALL_DOWN);
    gateway.assert_runs();
    if kafka_first {
        kafka.up();
        kafka.create(&topic, &kafka.topic());
        outage(ALL_DOWN);
        mosquitto.up();
    } else {
        mosquitto.up();
        outage(ALL_DOWN);
        kafka.up();
    }
    let last_up = Instant::now();
    mosquitto.wait_subscribed(&gateway.client_id, &format!("{prefix}/#"), FLOWS_WITHIN);
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new(&prefix, 100, 0));
    publisher.finish(Duration::from_secs(10));
    if !kafka_first {
        // Created here and not before: that Kafka is up is what the clock runs from.
        until("the topic", Duration::from_secs(5), || {
            if kafka.partition_count(&topic) > 0 { Ok(()) } else { Err("nothing") }
        });
    }
    let follower = Follower::start(&stage.dir, &kafka.bootstrap(), &topic);
    follower.wait_distinct(100, Duration::from_secs(10));
    let took = last_up.elapsed();
    assert!(took <= FLOWS_WITHIN, "flows only {took:?} after the last broker was up\n{}", gateway.log_text());
    gateway.assert_runs();
    gateway.stop_in_order();
    let verdict = crate::support::consumer::judge(&read_all(&kafka.bootstrap(), &topic), 100);
    verdict.assert_clean(100);
    stage.report(100, &verdict, &format!("flows {:.1} s after the last broker", took.as_secs_f64()));
}

#[test]
fn everything_down_then_mqtt_then_kafka() {
    start_with_everything_down("start_mqtt_kafka", false);
}

#[test]
fn everything_down_then_kafka_then_mqtt() {
    start_with_everything_down("start_kafka_mqtt", true);
}

/// Acknowledgements go out in order (MQTT-4.6.0-2), so without a spool what waits for its topic takes room in the
/// MQTT window, and others flow through what is left of it: here 200 wait and 600 pass, in a window of 1000.
#[test]
fn a_missing_topic_is_waited_for_while_others_flow_through_the_rest_of_the_window() {
    let stage = Stage::new("missing_topic");
    let mosquitto = Mosquitto::start(&stage.dir, &format!("{UNLIMITED}\nmax_inflight_messages 0"));
    let kafka = shared_one();
    let (there, missing) = (stage.unique("there"), stage.unique("missing"));
    kafka.create(&there, &kafka.topic());
    let routes = format!("m/#:{missing},t/#:{there}");
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &routes);
    gateway.up_and_subscribed(&mosquitto, "t/#");
    let mut to_missing = Publisher::start(&stage, &mosquitto, &Load::new("m", 200, 0));
    to_missing.finish(Duration::from_secs(30));
    let follower = Follower::start(&stage.dir, &kafka.bootstrap(), &there);
    let mut to_there = Publisher::start(&stage, &mosquitto, &Load::new("t", 600, 300));
    to_there.finish(Duration::from_secs(30));
    follower.wait_distinct(600, ARRIVE);
    gateway.assert_runs();

    kafka.create(&missing, &kafka.topic());
    let follower = Follower::start(&stage.dir, &kafka.bootstrap(), &missing);
    follower.wait_distinct(200, ARRIVE);
    gateway.stop_in_order();
    for (topic, sent) in [(&there, 600), (&missing, 200)] {
        let verdict = crate::support::consumer::judge(&read_all(&kafka.bootstrap(), topic), sent);
        verdict.assert_clean(sent);
        stage.report(sent, &verdict, topic);
    }
}

#[test]
fn kafka_is_away_for_long_with_memory_bounded_and_the_mqtt_session_alive() {
    let stage = Stage::new("kafka_away");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let mut kafka = Cluster::start(&stage.dir, 1, "");
    kafka.create(&stage.unique("t"), &kafka.topic());
    let settings = [("MQTT_KEEP_ALIVE_SEC", "5")];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let (away, rate) = (seconds(45, 300), size(500, 1_000));
    let total = rate * (away.as_secs() + 10);
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, total, rate));
    flow.follower.wait_distinct(rate, ARRIVE);
    let (before_kib, _) = flow.gateway.process().memory_kib();
    kafka.brokers.iter_mut().for_each(|broker| broker.down());
    outage(away);
    let (during_kib, _) = flow.gateway.process().memory_kib();
    kafka.up();
    // As long again at the most: Mosquitto has it all queued.
    flow.follower.wait_distinct(total, away + ARRIVE);
    let (_, highest_kib) = flow.gateway.process().memory_kib();
    let connections = mosquitto.connections_of(&flow.gateway.client_id);
    assert_eq!(connections, 1, "the MQTT session was lost\n{}", mosquitto.log_text());
    assert!(highest_kib < 64 * 1024, "tidegate took {highest_kib} KiB");
    let remark = format!(
        "Kafka down for {} s; memory {before_kib} KiB before, {during_kib} during, {highest_kib} at its highest",
        away.as_secs()
    );
    flow.end_clean(&stage, publisher, &remark);
}
