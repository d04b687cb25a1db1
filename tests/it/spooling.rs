//! Kafka is away, and messages go through the spool: each is in Kafka once and in order (guarantees G1 to G3), over
//! outages, kills and stops, whatever the way it took.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
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
