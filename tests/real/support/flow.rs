//! A route through everything: Mosquitto, tidegate, a topic, and a reader behind it.

use std::time::Duration;

use super::consumer::judge_topic;
use super::stage::seconds;
use super::{Follower, Gateway, Mosquitto, Publisher, Stage, Verdict};

/// A queue without limit: what the broker itself would drop is no measure of the gateway.
pub const UNLIMITED: &str = "max_queued_messages 0";
/// For what is still on its way when the load has ended: outages are over by then.
pub const ARRIVE: Duration = Duration::from_secs(90);

/// A gateway from `PREFIX/#` to one topic, subscribed, with a reader behind it.
pub struct Flow {
    pub gateway: Gateway,
    pub follower: Follower,
    pub bootstrap: String,
    pub topic: String,
    pub prefix: String,
}

impl Flow {
    /// Starts all of it; the topic is there already.
    pub fn start(stage: &Stage, mosquitto: &Mosquitto, bootstrap: &str, settings: &[(&str, &str)]) -> Flow {
        Flow::start_with(stage, mosquitto, bootstrap, |gateway| {
            settings.iter().fold(gateway, |gateway, (name, value)| gateway.set(name, value))
        })
    }

    /// The same, with the gateway changed before its start.
    pub fn start_with(
        stage: &Stage,
        mosquitto: &Mosquitto,
        bootstrap: &str,
        change: impl FnOnce(Gateway) -> Gateway,
    ) -> Flow {
        let (prefix, topic) = (stage.unique("d"), stage.unique("t"));
        let mut gateway = change(Gateway::new(stage, mosquitto, bootstrap, &format!("{prefix}/#:{topic}")));
        gateway.up_and_subscribed(mosquitto, &format!("{prefix}/#"));
        let follower = Follower::start(&stage.dir, bootstrap, &topic);
        Flow { gateway, follower, bootstrap: bootstrap.to_owned(), topic, prefix }
    }

    /// Waits for the load to arrive, stops the gateway in order and reads the topic afresh.
    pub fn end(mut self, mut publisher: Publisher) -> (Verdict, Gateway) {
        publisher.finish(seconds(120, 600));
        self.follower.wait_distinct(publisher.total, ARRIVE);
        self.gateway.stop_in_order();
        (judge_topic(&self.bootstrap, &self.topic, publisher.total), self.gateway)
    }

    /// [`Flow::end`] with everything once, in order, under its key.
    pub fn end_clean(self, stage: &Stage, publisher: Publisher, remark: &str) -> Gateway {
        let sent = publisher.total;
        let (verdict, gateway) = self.end(publisher);
        verdict.assert_clean(sent);
        stage.report(sent, &verdict, remark);
        gateway
    }
}
