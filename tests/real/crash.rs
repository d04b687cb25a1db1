//! tidegate ends, in order or not, under load, and starts again on its persistent session.

use std::time::Duration;

use crate::support::consumer::judge;
use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::{shared_one, shared_three};
use crate::support::publisher::Load;
use crate::support::stage::size;
use crate::support::{Mosquitto, Publisher, Stage, read_all};

/// Messages that may be unacknowledged at once, and so may come again after a kill.
const WINDOW: u64 = 100;

#[test]
fn killed_under_load_loses_nothing_and_repeats_at_most_the_window() {
    let stage = Stage::new("killed");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_three();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let window = WINDOW.to_string();
    let settings = [("MQTT_RECEIVE_MAXIMUM", window.as_str())];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let kills = size(4, 10);
    let rate = size(1_000, 5_000);
    let total = rate * (2 + 2 * kills);
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, total, rate));
    for kill in 1..=kills {
        // A random moment within the second after a part of the load has arrived.
        flow.follower.wait_distinct(kill * rate * 2 - rate, ARRIVE);
        crate::support::wait::outage(Duration::from_millis(fastrand::u64(0..1_000)));
        flow.gateway.kill();
        flow.gateway.up();
    }
    publisher.finish(Duration::from_secs(300));
    flow.follower.wait_distinct(total, ARRIVE);
    flow.gateway.stop_in_order();
    let verdict = judge(&read_all(&flow.bootstrap, &flow.topic), total);
    let summary = &verdict.summary;
    assert_eq!((summary.lost, summary.out_of_order, summary.moved), (0, 0, 0), "{verdict:?}");
    assert!(summary.duplicates <= kills * WINDOW, "{verdict:?}");
    stage.report(total, &verdict, &format!("{kills} times kill -9, window {WINDOW}"));
}

#[test]
fn stopped_in_order_under_load_and_started_again_repeats_nothing() {
    let stage = Stage::new("stopped");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[]);
    let rate = size(1_000, 5_000);
    let publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, rate * 10, rate));
    for part in [2, 5] {
        flow.follower.wait_distinct(rate * part, ARRIVE);
        flow.gateway.stop_in_order();
        flow.gateway.up();
    }
    flow.end_clean(&stage, publisher, "SIGTERM twice, started again");
}
