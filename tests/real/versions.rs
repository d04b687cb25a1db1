//! The matrix of Kafka versions (issue 5, item 6): every one of them is started, restarted under load, killed and away, and what
//! was published is in it afterwards, once and in order, in each compression. One row of the report a version.

use std::time::Duration;

use crate::support::consumer::judge_topic;
use crate::support::flow::{ARRIVE, UNLIMITED};
use crate::support::rig::Rig;
use crate::support::stage::{seconds, size};
use crate::support::wait::outage;
use crate::support::{Gateway, Version, until};

/// How long Kafka needs to stop and start, about: the load must not end long before the scenario does.
const KAFKA_RESTARTS: Duration = Duration::from_secs(7);
/// As in tests/real/support/rig.rs: so that there is something left to be interrupted.
const RESTORED_PER_SEC: u64 = 6_000;

/// A gateway beside the rig's own, for the same messages, to a topic of its own: it lives through what Kafka does and is not
/// killed, so nothing at all may repeat.
struct Beside {
    codec: &'static str,
    topic: String,
    gateway: Gateway,
}

impl Beside {
    fn start(rig: &Rig, codec: &'static str) -> Beside {
        let topic = rig.stage.unique(codec);
        rig.kafka.create(&topic, &rig.kafka.topic());
        let filter = format!("{}/#", rig.flow.prefix);
        let routes = format!("{filter}:{topic}");
        let mut gateway = Gateway::new_as(&rig.stage, codec, &rig.mosquitto, &rig.kafka.bootstrap(), &routes)
            .set("KAFKA_COMPRESSION", codec)
            .set("SPOOL_RESTORE_PER_SEC", &size(RESTORED_PER_SEC, 0).to_string());
        gateway.up_and_subscribed(&rig.mosquitto, &filter);
        Beside { codec, topic, gateway }
    }

    /// Everything is there, once and in order.
    fn end(mut self, rig: &Rig, sent: u64) {
        until(&format!("{sent} messages in {}", self.codec), ARRIVE, || {
            let has = rig.kafka.end_offset(&self.topic);
            let enough = u64::try_from(has).is_ok_and(|has| has >= sent);
            if enough { Ok(()) } else { Err(format!("Kafka has {has}\n{}", self.gateway.log_text())) }
        });
        self.gateway.stop_in_order();
        let verdict = judge_topic(&rig.kafka.bootstrap(), &self.topic, sent);
        assert!(verdict.is_clean(sent), "{} of {sent}: {verdict:?}", self.codec);
        assert!(verdict.replayed > 0, "{}: no record says it was stored: {verdict:?}", self.codec);
    }
}

/// Kafka is stopped in order and started; then it is killed while the spool drains, and stays away; and tidegate is killed
/// while the spool drains again.
fn goes_through(version: Version) {
    let (before, away, after) = (seconds(1, 20), seconds(3, 60), seconds(2, 20));
    let name = format!("kafka_{}", version.name().replace('.', "_"));
    // Four gateways and a starting Kafka keep two cores busy: how long Mosquitto's own queue lasts is not what is tested here.
    let mut rig = Rig::prepare(&name, version, "", UNLIMITED);
    let beside = ["gzip", "snappy", "lz4"].map(|codec| Beside::start(&rig, codec));
    rig.load_begins(before + away + after + 2 * KAFKA_RESTARTS);
    rig.flows_for(before);
    rig.kafka_restarts();
    rig.wait_draining();
    rig.kafka_is_killed();
    outage(away);
    rig.kafka_comes_back();
    rig.gateway_is_killed_while_draining();
    let (settled, sent) = (rig.settle(), rig.sent());
    for gateway in beside {
        gateway.end(&rig, sent);
    }
    let what = format!(
        "Kafka {}: restarted under load, killed and away for {} s; the same in gzip, snappy and lz4, which repeated nothing",
        version.name(),
        away.as_secs()
    );
    rig.account(&settled, &what);
}

/// Without DescribeProducers (docs/guarantees.md says what is weaker): the partition itself is read back.
#[test]
fn kafka_0_11() {
    goes_through(Version::V0_11);
}

#[test]
fn kafka_2_8() {
    goes_through(Version::V2_8);
}

#[test]
fn kafka_3_9() {
    goes_through(Version::V3_9);
}

#[test]
fn kafka_4_1() {
    goes_through(Version::V4_1);
}

#[test]
fn kafka_4_3() {
    goes_through(Version::V4_3);
}
