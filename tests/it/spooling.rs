//! Kafka is away, and messages go through the spool: each is in Kafka once and in order (guarantees G1 to G3), over
//! outages, kills and stops, whatever the way it took.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::{spool_look, wait};

const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

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
        if !self.kafka.is_up(1) {
            self.kafka.restart(1);
        }
    }

    /// Kafka takes nothing: it holds what it is sent, or cannot be reached, so that nothing is sent.
    fn outage(&self, reachable: bool) -> Gate {
        if !reachable {
            self.kafka.stop(1);
        }
        self.hold()
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
    ring.kafka.stop(1);
    let gateway = ring.setup().start();
    let link = ring.mqtt.session();
    let values = numbered("v", 1500);
    publish_and_settle(&link, "a/b", &values, 1);
    kill(gateway);
    ring.kafka.restart(1);
    for _ in 0..8 {
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
fn killed_while_batches_of_an_earlier_kill_are_unanswered_nothing_is_repeated_or_lost() {
    let ring = Ring::of_one_topic();
    let values = numbered("v", 600);
    let mut session = Some(ring.setup().start());
    let link = ring.mqtt.session();
    for (turn, part) in values.chunks(200).enumerate() {
        // Some of it is written without an answer, and the rest not even written.
        let (written, held) = (Gate::default(), Gate::default());
        ring.kafka.next(Api::Produce, 1, Act::HoldAfter(written.clone()));
        ring.kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(held.clone()));
        let link = if turn == 0 { &link } else { &ring.mqtt.resume() };
        link.publish("a/b", &part[0], 1);
        link.wait_for_pubacks(&[1]);
        publish_and_settle(link, "a/b", &part[1..], 2);
        kill(session.take().expect("there is a gateway"));
        ring.kafka.restart(1);
        ring.release(&held);
        written.open();
        session = Some(ring.setup().start());
    }
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

/// `t` is refused when this begins, and taken after `heal`; `other` is not refused.
fn check_refused_topic(ring: &Ring, heal: impl Fn()) {
    // There is nothing to wait for: SPOOL_AFTER_MS does not count.
    let setup = ring.setup().set("SPOOL_AFTER_MS", "3600000").set("INVOKE_LATENCY_SEC", "1");
    let gateway = setup.wildcards("a/#:t,o/#:other").start();
    let link = ring.mqtt.session();
    let (values, others) = (numbered("v", 400), numbered("o", 400));
    for turn in 0..4 {
        let (part, first) = (turn * 100..(turn + 1) * 100, 1 + turn as u16 * 200);
        link.publish_all("a/b", &values[part.clone()], first);
        publish_and_settle(&link, "o/1", &others[part.clone()], first + 100);
        ring.kafka.wait_for_values("other", 0, &others[..part.end]);
    }
    gateway.wait_for_log("ERROR", &["topic t", "TOPIC_AUTHORIZATION_FAILED"]);
    assert!(ring.kafka.values("t", 0).is_empty());
    heal();
    ring.assert_settled("t", &values);
}

#[test]
fn a_topic_that_may_not_be_written_and_later_may_holds_no_other_and_is_delivered_once_in_order() {
    let ring = Ring::new(Cluster::start_as(Release::V4, 2).topic("t", 1).topic("other", 1));
    // An act is a whole request's: the other topic has a broker of its own.
    ring.kafka.move_leader("other", 0, 2);
    ring.kafka
        .when(Api::Produce, usize::MAX, Act::Error(TOPIC_AUTHORIZATION_FAILED), |call| call.topic == "t");
    check_refused_topic(&ring, || ring.kafka.heal());
}

#[test]
fn a_topic_that_may_not_even_be_seen_and_later_may_holds_no_other_and_is_delivered_once_in_order() {
    let ring = Ring::new(Cluster::start().topic("t", 1).topic("other", 1));
    ring.kafka.set_topic_error("t", TOPIC_AUTHORIZATION_FAILED);
    check_refused_topic(&ring, || ring.kafka.set_topic_error("t", 0));
}

#[test]
fn sigterm_while_kafka_is_away_ends_in_time_all_acknowledged_and_the_next_start_delivers() {
    for reachable in [true, false] {
        let ring = Ring::of_one_topic();
        let gate = ring.outage(reachable);
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
        let _next = ring.setup().start();
        let _link = ring.mqtt.resume();
        ring.assert_settled("t", &values);
    }
}

#[test]
fn a_stored_record_that_is_too_large_for_kafka_goes_to_the_dead_letters_and_its_neighbours_to_their_topic() {
    for reachable in [true, false] {
        let ring = Ring::new(Cluster::start().topic("t", 1).topic("dead", 1));
        let gate = ring.outage(reachable);
        let _gateway = ring.setup().set("DEAD_LETTER_TOPIC", "dead").start();
        let link = ring.mqtt.session();
        let mut values = numbered("v", 120);
        values[77] = "culprit ".repeat(600);
        link.publish("a/b", &values[0], 1);
        link.wait_for_pubacks(&[1]);
        publish_and_settle(&link, "a/b", &values[1..], 2);
        ring.kafka.set_message_max_bytes(3000);
        ring.release(&gate);
        let culprit = values.remove(77);
        ring.assert_settled("t", &values);
        let dead = ring.kafka.records("dead", 0);
        assert_eq!(dead.len(), 1, "{dead:?}");
        assert_eq!(dead[0].header("tidegate.error.topic").as_deref(), Some("t"));
        assert_eq!(dead[0].header("tidegate.error.value_bytes"), Some(culprit.len().to_string()));
    }
}

#[test]
fn without_a_folder_an_outage_is_held_in_memory_and_delivered_once() {
    for reachable in [true, false] {
        let ring = Ring::of_one_topic();
        let gate = ring.outage(reachable);
        let gateway = ring.setup().unset("DB_PERSIST_PATH").start();
        gateway.wait_for_log("WARN", &["DB_PERSIST_PATH is not set"]);
        let link = ring.mqtt.session();
        let values = numbered("v", 600);
        link.publish("a/b", &values[0], 1);
        link.wait_for_pubacks(&[1]);
        publish_and_settle(&link, "a/b", &values[1..], 2);
        ring.release(&gate);
        ring.assert_settled("t", &values);
        gateway.wait_for_log("INFO", &["the backlog is delivered"]);
    }
}

#[test]
fn what_waited_in_the_spool_is_marked_and_what_went_straight_to_kafka_is_not() {
    let ring = Ring::of_one_topic();
    let gateway = ring.setup().start();
    let link = ring.mqtt.session();
    let values = numbered("v", 120);
    publish_and_settle(&link, "a/b", &values[..10], 1);
    ring.kafka.wait_for_values("t", 0, &values[..10]);
    ring.kafka.stop(1);
    publish_and_settle(&link, "a/b", &values[10..110], 11);
    ring.kafka.restart(1);
    gateway.wait_for_log("INFO", &["the backlog is delivered"]);
    publish_and_settle(&link, "a/b", &values[110..], 111);
    ring.assert_settled("t", &values);
    let records = ring.kafka.records("t", 0);
    let marked = |index: &usize| records[*index].header("tidegate.replayed").as_deref() == Some("1");
    let marked: Vec<usize> = (0..records.len()).filter(marked).collect();
    assert_eq!(marked, (10..110).collect::<Vec<_>>());
}

#[test]
fn a_folder_that_another_running_gateway_has_ends_the_start_with_one_sentence() {
    let ring = Ring::of_one_topic();
    let mut first = ring.setup().start();
    let link = ring.mqtt.session();
    let mut second = ring.setup().set("MQTT_CLIENT_ID", "another").start();
    assert_eq!(second.wait_for_exit(Duration::from_secs(2) + MARGIN).code(), Some(1));
    let log = second.log();
    let told = log.iter().filter(|line| line.contains("belongs to another running tidegate")).count();
    assert_eq!(told, 1, "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
    assert!(first.is_running());
    publish_and_settle(&link, "a/b", &numbered("v", 3), 1);
    ring.kafka.wait_for_values("t", 0, &numbered("v", 3));
}

/// A disk that does not give a segment now is asked again soon, though nothing else happens.
#[test]
fn a_segment_that_cannot_be_read_for_a_moment_is_read_again_and_nothing_is_lost() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    kafka.stop(1);
    let setup = Setup::new(&mqtt, &kafka)
        .spooling()
        .wildcards("a/#:t")
        .set("SPOOL_SEGMENT_BYTES", "65536")
        .set("INVOKE_LATENCY_SEC", "600");
    let gateway = setup.again().start();
    let link = mqtt.session();
    let mut rng = fastrand::Rng::with_seed(3);
    let value =
        |number: usize| (0..4096).map(|_| rng.alphanumeric()).collect::<String>() + &number.to_string();
    let values: Vec<String> = (0..200).map(value).collect();
    for (part, from) in values.chunks(5).zip((1_u16..).step_by(5)) {
        link.publish_all("a/b", part, from);
        link.wait_for_pubacks(&ids(1, usize::from(from) + 4));
    }
    let mut segments = spool_look::segments(&setup);
    segments.sort();
    let second = setup.folder().join(spool_look::FOLDER).join(&segments[1]);
    let away = setup.folder().join("away");
    fs::rename(&second, &away).unwrap();
    kafka.restart(1);
    gateway.wait_for_log("ERROR", &[&segments[1], "cannot be read", "trying again"]);
    fs::rename(&away, &second).unwrap();
    kafka.wait_for_values("t", 0, &values);
    spool_look::wait_until_empty(&setup);
}
