//! One test for each bug that was found, named after what was seen.

use std::time::Duration;

use crate::support::kafka_broker::{Cluster, Release};
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;
use crate::support::wait;

/// The producer asked for metadata after a failed batch only. With nothing in flight when the leader died, what was
/// published next waited for the look at the metadata that comes every five minutes.
#[test]
fn a_leader_that_dies_while_idle_is_replaced_within_seconds() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start_as(Release::V4, 2).topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "before", 1);
    link.wait_for_pubacks(&[1]);
    kafka.stop(1);
    kafka.move_leader("t", 0, 2);
    link.publish("a/b", "after", 2);
    wait::until_within(Duration::from_secs(5), "the PUBACK", || {
        if link.pubacks() == [1, 2] { Ok(()) } else { Err(format!("{:?}", link.pubacks())) }
    });
}

/// As above, but the cluster notices the death later than the gateway: metadata still names the dead leader once.
#[test]
fn a_dead_leader_that_metadata_still_names_is_asked_about_again() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start_as(Release::V4, 2).topic("t", 1));
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").start();
    let link = mqtt.session();
    link.publish("a/b", "before", 1);
    link.wait_for_pubacks(&[1]);
    kafka.stop_unnoticed(1);
    link.publish("a/b", "after", 2);
    link.assert_open_for(Duration::from_secs(3));
    kafka.move_leader("t", 0, 2);
    wait::until_within(Duration::from_secs(5), "the PUBACK", || {
        if link.pubacks() == [1, 2] { Ok(()) } else { Err(format!("{:?}", link.pubacks())) }
    });
}
