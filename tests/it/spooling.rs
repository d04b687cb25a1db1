//! Kafka is away, and messages go through the spool: each is in Kafka once and in order (guarantees G1 to G3), over
//! outages, kills and stops, whatever the way it took.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

/// Above a limit of the gateway's, for a loaded machine.
const MARGIN: Duration = Duration::from_secs(5);

/// What outlives the gateway: the brokers and the folder of the spool.
struct Ring {
    mqtt: MqttBroker,
    kafka: Cluster,
    home: tempfile::TempDir,
}

impl Ring {
    fn new(kafka: Cluster) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        Ring { mqtt: MqttBroker::start(), kafka, home }
    }

    /// With the topic `t` of one partition.
    fn of_one_topic() -> Self {
        Ring::new(Cluster::start().topic("t", 1))
    }

    fn spool(&self) -> PathBuf {
        self.home.path().join("spool")
    }

    /// Spooling, in the same folder each time.
    fn setup(&self) -> Setup {
        let spool = self.spool().display().to_string();
        Setup::new(&self.mqtt, &self.kafka).spooling().wildcards("a/#:t").set("DB_PERSIST_PATH", &spool)
    }

    /// From now on Kafka writes and answers nothing, until the gate opens and [`Cluster::heal`].
    fn hold(&self) -> Gate {
        let gate = Gate::default();
        self.kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
        gate
    }

    fn release(&self, gate: &Gate) {
        self.kafka.heal();
        gate.open();
    }

    fn segments(&self) -> Vec<String> {
        let names = fs::read_dir(self.spool()).into_iter().flatten().map_while(Result::ok);
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".seg")).collect()
    }

    fn wait_for_an_empty_spool(&self) {
        wait::until("no segment in the spool", || {
            let segments = self.segments();
            if segments.is_empty() { Ok(()) } else { Err(format!("{segments:?}")) }
        });
    }

    /// The values and nothing behind them, while it is watched.
    fn assert_settled(&self, topic: &str, values: &[String]) {
        self.kafka.wait_for_values(topic, 0, values);
        self.wait_for_an_empty_spool();
        wait::holds(wait::WATCH, "nothing is delivered again", || match self.kafka.values(topic, 0).len() {
            count if count == values.len() => Ok(()),
            count => Err(format!("{count} records, {} messages", values.len())),
        });
    }
}

/// QoS 1, the packet ids from `first` on, and all of them acknowledged.
fn publish_and_settle(link: &Link, topic: &str, values: &[String], first: u16) {
    link.publish_all(topic, values, first);
    let so_far = usize::from(first) - 1;
    link.wait_for_pubacks(&ids(1, so_far + values.len()));
}

fn kill(mut gateway: Gateway) {
    gateway.signal(Signal::KILL);
    gateway.wait_for_exit(MARGIN);
}

#[test]
fn while_kafka_holds_messages_are_acknowledged_and_afterwards_all_is_in_kafka_once_and_the_spool_is_empty() {
    let ring = Ring::of_one_topic();
    let gate = ring.hold();
    let _gateway = ring.setup().start();
    let link = ring.mqtt.session();
    let values = numbered("v", 900);
    for (index, part) in values.chunks(300).enumerate() {
        publish_and_settle(&link, "a/b", part, 1 + 300 * index as u16);
    }
    assert!(ring.kafka.values("t", 0).is_empty());
    assert!(!ring.segments().is_empty());
    ring.release(&gate);
    ring.assert_settled("t", &values);
}

#[test]
fn a_batch_that_was_written_and_not_answered_before_a_kill_is_not_repeated_by_the_next_start() {
    for restarts in [false, true] {
        let ring = Ring::of_one_topic();
        let gate = Gate::default();
        ring.kafka.next(Api::Produce, usize::MAX, Act::HoldAfter(gate.clone()));
        let gateway = ring.setup().start();
        let link = ring.mqtt.session();
        let values = numbered("v", 400);
        link.publish("a/b", &values[0], 1);
        ring.kafka.wait_for_values("t", 0, &values[..1]);
        publish_and_settle(&link, "a/b", &values[1..], 2);
        let written = ring.kafka.values("t", 0).len();
        assert!(0 < written && written < values.len(), "Kafka has {written}, some of it");
        kill(gateway);
        if restarts {
            // What still lies in its socket it never reads, and it remembers the last batch only.
            ring.kafka.restart(1);
        }
        ring.release(&gate);
        let _next = ring.setup().start();
        let _link = ring.mqtt.resume();
        ring.assert_settled("t", &values);
    }
}

#[test]
fn killed_again_and_again_while_it_drains_each_message_is_delivered_once_in_order() {
    let ring = Ring::of_one_topic();
    let gate = ring.hold();
    let gateway = ring.setup().start();
    let link = ring.mqtt.session();
    let values = numbered("v", 900);
    link.publish("a/b", &values[0], 1);
    link.wait_for_pubacks(&[1]);
    publish_and_settle(&link, "a/b", &values[1..], 2);
    ring.kafka.stop(1);
    kill(gateway);
    ring.release(&gate);
    ring.kafka.restart(1);
    for _ in 0..6 {
        let before = ring.kafka.values("t", 0).len();
        let gateway = ring.setup().set("SPOOL_RESTORE_PER_SEC", "200").start();
        let _link = ring.mqtt.resume();
        wait::until("some of it is drained", || {
            let now = ring.kafka.values("t", 0).len();
            if now > before + 20 { Ok(()) } else { Err(format!("{now}")) }
        });
        kill(gateway);
    }
    assert!(ring.kafka.values("t", 0).len() < values.len(), "the kills came while it drained");
    let _gateway = ring.setup().start();
    let _link = ring.mqtt.resume();
    ring.assert_settled("t", &values);
}

#[test]
fn new_messages_come_behind_the_backlog_of_their_route_and_another_route_does_not_wait() {
    let ring = Ring::new(Cluster::start_as(Release::V4, 2).topic("t", 1).topic("other", 1));
    ring.kafka.move_leader("other", 0, 2);
    let gate = Gate::default();
    ring.kafka.when(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()), |call| call.topic == "t");
    let setup = ring.setup().wildcards("a/#:t,o/#:other").set("SPOOL_RESTORE_PER_SEC", "1000");
    let _gateway = setup.start();
    let link = ring.mqtt.session();
    let (values, others) = (numbered("v", 1200), numbered("o", 40));
    link.publish("a/b", &values[0], 1);
    ring.kafka.wait_for_seen(1);
    link.publish_all("a/b", &values[1..600], 2);
    // `t` is held, and none of it is acknowledged but by the spool.
    link.publish_all("o/1", &others[..20], 601);
    ring.kafka.wait_for_values("other", 0, &others[..20]);
    link.wait_for_pubacks(&ids(1, 620));
    assert!(ring.kafka.values("t", 0).is_empty());
    ring.release(&gate);
    wait::until("the backlog begins to drain", || {
        let count = ring.kafka.values("t", 0).len();
        if count > 1 { Ok(()) } else { Err(count) }
    });
    assert!(ring.kafka.values("t", 0).len() < 600, "there is still a backlog");
    for (index, part) in values[600..].chunks(100).enumerate() {
        publish_and_settle(&link, "a/b", part, 621 + 100 * index as u16);
    }
    link.publish_all("o/1", &others[20..], 1221);
    ring.kafka.wait_for_values("other", 0, &others);
    ring.assert_settled("t", &values);
    for record in ring.kafka.records("other", 0) {
        assert_eq!(record.header("tidegate.replayed"), None, "{record:?} went straight to Kafka");
    }
}

#[test]
fn sigterm_while_kafka_is_away_ends_in_time_all_acknowledged_and_the_next_start_delivers() {
    for held in [true, false] {
        let ring = Ring::of_one_topic();
        let gate = ring.hold();
        if !held {
            ring.kafka.stop(1);
        }
        let mut gateway = ring.setup().set("SHUTDOWN_TIMEOUT_SEC", "3").start();
        let link = ring.mqtt.session();
        let values = numbered("v", 300);
        publish_and_settle(&link, "a/b", &values[..200], 1);
        // These may still be in hand when the signal comes.
        link.publish_all("a/b", &values[200..], 201);
        wait::until("the last are on their way", || {
            let count = link.pubacks().len();
            if count > 200 { Ok(()) } else { Err(count) }
        });
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.wait_for_exit(Duration::from_secs(3) + MARGIN).code(), Some(0));
        link.expect_disconnect();
        link.wait_for_pubacks(&ids(1, 300));
        assert!(gateway.log_of("ERROR").is_empty(), "nothing is lost: {:?}", gateway.log_of("ERROR"));
        ring.kafka.stop(1);
        ring.release(&gate);
        ring.kafka.restart(1);
        let _next = ring.setup().start();
        let _link = ring.mqtt.resume();
        ring.assert_settled("t", &values);
    }
}
