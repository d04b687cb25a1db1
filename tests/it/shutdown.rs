//! Stopping: in order, in time, acknowledging nothing that is not safe.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, dead_address};
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::Setup;
use crate::support::wait;

/// Above SHUTDOWN_TIMEOUT_SEC, for a loaded machine.
const MARGIN: Duration = Duration::from_secs(5);

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

#[test]
fn sigterm_and_sigint_stop_an_idle_gateway_at_once_with_a_disconnect_and_code_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mqtt, kafka) = brokers();
        let mut gateway =
            Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "60").start();
        let link = mqtt.session();
        link.publish("a/b", "x", 1);
        link.wait_for_pubacks(&[1]);
        gateway.signal(signal);
        let status = gateway.wait_for_exit(Duration::from_secs(5));
        assert_eq!(status.code(), Some(0), "{signal:?}");
        link.expect_disconnect();
        gateway.assert_quiet();
    }
}

#[test]
fn sigterm_while_kafka_holds_ends_in_time_and_leaves_the_messages_unacknowledged() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "2").start();
    let link = mqtt.session();
    link.publish_all("a/b", &numbered("v", 12), 1);
    kafka.wait_for_seen(1);
    gateway.signal(Signal::TERM);
    let status = gateway.wait_for_exit(Duration::from_secs(2) + MARGIN);
    assert_eq!(status.code(), Some(0), "asked to stop, it stopped");
    assert_eq!(link.pubacks(), [0_u16; 0]);
    link.expect_disconnect();
    let warnings = gateway.log_of("WARN");
    assert!(warnings.iter().any(|line| line.contains("12")), "how many stay unacknowledged: {warnings:?}");
}

#[test]
fn sigterm_waits_for_what_kafka_still_answers_and_acknowledges_it() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "20").start();
    let link = mqtt.session();
    let values = numbered("v", 12);
    link.publish_all("a/b", &values, 1);
    kafka.wait_for_seen(1);
    // All twelve are in hand: a ping goes through after them, or the watch is over.
    gateway.signal(Signal::TERM);
    wait::holds(
        wait::WATCH,
        "it waits for Kafka",
        || {
            if gateway.is_running() { Ok(()) } else { Err("ended") }
        },
    );
    gate.open();
    let status = gateway.wait_for_exit(MARGIN);
    assert_eq!(status.code(), Some(0));
    link.expect_disconnect();
    let acknowledged = link.pubacks();
    assert_eq!(acknowledged, ids(1, acknowledged.len()));
    assert_eq!(kafka.values("t", 0)[..acknowledged.len()], values[..acknowledged.len()]);
    assert!(!acknowledged.is_empty(), "what Kafka acknowledged in time is acknowledged");
}

#[test]
fn a_second_signal_does_not_wait_for_kafka() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "120").start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    kafka.wait_for_seen(1);
    gateway.signal(Signal::TERM);
    wait::holds(wait::WATCH, "the first signal waits for Kafka", || {
        if gateway.is_running() { Ok(()) } else { Err("ended") }
    });
    gateway.signal(Signal::TERM);
    gateway.wait_for_exit(MARGIN * 2);
    assert_eq!(link.pubacks(), [0_u16; 0]);
}

#[test]
fn a_signal_told_twice_at_once_still_waits_for_kafka() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "60").start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    kafka.wait_for_seen(1);
    // Two signals of different number: of the same, the kernel may make one.
    gateway.signal(Signal::TERM);
    gateway.signal(Signal::INT);
    wait::holds(
        wait::WATCH,
        "it waits for Kafka",
        || {
            if gateway.is_running() { Ok(()) } else { Err("ended") }
        },
    );
    gate.open();
    assert_eq!(gateway.wait_for_exit(MARGIN).code(), Some(0));
    assert_eq!(link.pubacks(), [1]);
}

#[test]
fn with_everything_down_it_stays_up_and_sigterm_ends_it_at_once() {
    let (mqtt, kafka) = brokers();
    let (mqtt_host, kafka_host) = (dead_address(), dead_address());
    let port = mqtt_host.rsplit(':').next().unwrap();
    let mut gateway = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("MQTT_BROKER_PORT", port)
        .set("KAFKA_BROKER", &kafka_host)
        .set("SHUTDOWN_TIMEOUT_SEC", "60")
        .start();
    gateway.wait_for_log("WARN", &[]);
    wait::holds(Duration::from_secs(2), "it stays up", || {
        if gateway.is_running() { Ok(()) } else { Err("ended") }
    });
    gateway.signal(Signal::TERM);
    let status = gateway.wait_for_exit(MARGIN);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_mqtt_broker_that_does_not_close_after_disconnect_makes_no_failure_of_a_clean_stop() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.keep_open();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit(MARGIN).code(), Some(0));
    link.expect_disconnect();
}

#[test]
fn sigterm_while_connecting_ends_it_at_once() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "60").start();
    let link = mqtt.accept();
    link.expect_connect();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit(MARGIN).code(), Some(0));
}

#[test]
fn sigterm_while_the_mqtt_broker_reads_nothing_ends_it_in_time() {
    let (mqtt, kafka) = brokers();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("SHUTDOWN_TIMEOUT_SEC", "2").start();
    let link = mqtt.session();
    link.freeze();
    link.publish_all("a/b", &numbered("v", 500), 1);
    kafka.wait_for_values("t", 0, &numbered("v", 500));
    gateway.signal(Signal::TERM);
    let status = gateway.wait_for_exit(Duration::from_secs(2) + MARGIN);
    assert_eq!(status.code(), Some(0));
    link.thaw();
    link.wait_for_pubacks(&ids(1, 500));
}

#[test]
fn a_kill_loses_nothing_that_was_not_acknowledged_and_the_next_start_takes_it_up() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    let mut gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish_all("a/b", &numbered("v", 10), 1);
    link.wait_for_pubacks(&ids(1, 10));
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    link.publish_all("a/b", &["v10", "v11"], 11);
    kafka.wait_for_seen(2);
    kafka.stop(1);
    gateway.signal(Signal::KILL);
    assert_eq!(gateway.wait_for_exit(MARGIN).signal(), Some(9));
    assert_eq!(link.pubacks(), ids(1, 10));
    kafka.heal();
    gate.open();
    kafka.restart(1);
    let _next = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.resume();
    link.redeliver("a/b", "v10", 11);
    link.redeliver("a/b", "v11", 12);
    link.wait_for_pubacks(&[11, 12]);
    assert_eq!(kafka.values("t", 0), numbered("v", 12));
}
