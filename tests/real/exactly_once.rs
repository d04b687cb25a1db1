//! QoS 2 with the spool on a disk: what was stored does not come twice, though tidegate is killed and Mosquitto delivers it again.

use std::time::Duration;

use crate::support::consumer::judge_topic;
use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::Cluster;
use crate::support::publisher::Load;
use crate::support::stage::{seconds, size};
use crate::support::wait::outage;
use crate::support::{Mosquitto, Publisher, SpoolDir, Stage, Version, until};

/// Messages that may be without PUBREC at once.
const WINDOW: u64 = 100;

/// Kafka is away while tidegate is killed ten times: everything goes to the spool, so nothing may repeat. At QoS 1 each kill may repeat
/// the window here: what is on the disk and not acknowledged yet. Each restart of Mosquitto may: 2.0.11 then delivers again
/// without DUP, and that is a new message (docs/guarantees.md).
fn killed_in_an_outage(name: &str, version: &str, restarts: bool) {
    const KILLS: u32 = 10;
    let stage = Stage::new(name);
    let mut mosquitto = Mosquitto::start(&stage.dir, &format!("{UNLIMITED}\npersistence true"));
    let mut kafka = Cluster::start_version(Version::V4_3, &stage.dir, 1, "");
    kafka.create(&stage.unique("t"), &kafka.topic());
    let spool = SpoolDir::new(&stage);
    let window = WINDOW.to_string();
    let settings = [
        ("MQTT_VERSION", version),
        ("MQTT_QOS", "2"),
        ("MQTT_RECEIVE_MAXIMUM", window.as_str()),
        ("DB_PERSIST_PATH", spool.text()),
    ];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let rate = 1_000;
    let between = seconds(1, 5);
    let total = rate * (6 + u64::from(KILLS) * between.as_secs());
    let load = Load { qos: 2, devices: 50, ..Load::new(&flow.prefix, total, rate) };
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    flow.follower.wait_distinct(2 * rate, ARRIVE);
    kafka.kill();
    // What was on its way to Kafka goes to the spool first; a kill before that is the other test's.
    until("messages in the spool", Duration::from_secs(20), || match spool.waiting() {
        0 => Err("none"),
        _ => Ok(()),
    });
    outage(Duration::from_millis(1_500));
    let mut restarted = 0;
    for kill in 1..=KILLS {
        outage(between / 2 + between.mul_f64(fastrand::f64() / 2.0));
        if restarts && kill % 4 == 2 {
            mosquitto.down();
            mosquitto.up();
            restarted += 1;
        }
        flow.gateway.kill();
        flow.gateway.up();
    }
    let stored = spool.waiting();
    kafka.up_again();
    publisher.finish(seconds(120, 300));
    flow.follower.wait_distinct(total, ARRIVE);
    let disk_after = spool.wait_returned(Duration::from_secs(30));
    flow.gateway.stop_in_order();
    let verdict = judge_topic(&flow.bootstrap, &flow.topic, total);
    let remark = format!(
        "MQTT {version} at QoS 2, {rate}/s, Kafka away: {KILLS} times kill -9, Mosquitto restarted {restarted} times; {stored} records were stored, \
         disk {disk_after} bytes at the end"
    );
    stage.report(total, &verdict, &remark);
    assert!(stored > size(3_000, 20_000), "{stored} stored");
    verdict.assert_clean_but_for(restarted * WINDOW);
}

#[test]
fn stored_at_qos_2_nothing_repeats_over_ten_kills_with_mqtt_3() {
    killed_in_an_outage("qos_2_stored", "3.1.1", false);
}

#[test]
fn stored_at_qos_2_nothing_repeats_over_ten_kills_with_mqtt_5() {
    killed_in_an_outage("qos_2_stored_5", "5", false);
}

#[test]
fn mosquitto_restarted_as_well_repeats_at_most_what_it_delivers_without_dup() {
    killed_in_an_outage("qos_2_restarted", "3.1.1", true);
}
