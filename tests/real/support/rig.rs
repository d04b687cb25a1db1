//! What the outage tests of the spool share: a load through Mosquitto with its default queue, a gateway with a spool, a
//! Kafka that goes and comes back, and the account of it.

use std::time::{Duration, Instant};

use super::consumer::Verdict;
use super::flow::{ARRIVE, Flow};
use super::publisher::Load;
use super::spool::Peaks;
use super::stage::{seconds, size};
use super::{Cluster, Gateway, Mosquitto, Publisher, SpoolDir, Stage, Version, until};

/// Messages per second.
pub const RATE: u64 = 1_000;
/// Messages that may be unacknowledged at once, and so may come twice after a kill. The limit is ours: Mosquitto 2.0.11 sends
/// the whole queue of a session that is resumed, whatever its max_inflight_messages (20) says.
pub const WINDOW: u64 = 100;
/// So many are restored a second in everyday runs, so that a backlog of seconds drains slowly enough to be interrupted. In
/// full runs there is enough of it: no limit.
const RESTORED_PER_SEC: u64 = 6_000;
/// What Kafka must have got behind an outage to be sure that the spool is draining: more than was on its way before.
const DRAINED: i64 = 500;

pub struct Rig {
    pub stage: Stage,
    pub mosquitto: Mosquitto,
    pub kafka: Cluster,
    pub spool: SpoolDir,
    pub flow: Flow,
    pub peaks: Peaks,
    /// None until the load begins.
    publisher: Option<Publisher>,
    /// How often the gateway was started.
    starts: usize,
    /// How long the gateway was away at each kill: beyond a second Mosquitto's queue is full.
    pauses: Vec<Duration>,
    /// What Kafka had before it went away last, or when draining was seen last.
    had: i64,
    /// When it came back last, and what waited then.
    back: Option<(Instant, u64)>,
}

/// What was seen when the load had ended and everything had arrived.
pub struct Settled {
    /// From Kafka's last return until the backlog was gone.
    catches_up: Duration,
    disk_after: u64,
}

impl Rig {
    /// Everything started, and a load of so many seconds begun from 50 devices.
    pub fn start(name: &str, version: Version, config: &str, load: Duration) -> Rig {
        // Mosquitto with its default queue: what it would drop is a loss, and tidegate is to prevent it.
        let mut rig = Rig::prepare(name, version, config, "");
        rig.load_begins(load);
        rig
    }

    /// Everything started but the load; `queue` is for mosquitto.conf.
    pub fn prepare(name: &str, version: Version, config: &str, queue: &str) -> Rig {
        let stage = Stage::new(name);
        let mosquitto = Mosquitto::start(&stage.dir, queue);
        let kafka = Cluster::start_version(version, &stage.dir, 1, config);
        kafka.create(&stage.unique("t"), &kafka.topic());
        let spool = SpoolDir::new(&stage);
        let restored = size(RESTORED_PER_SEC, 0).to_string();
        let window = WINDOW.to_string();
        let settings = [
            ("DB_PERSIST_PATH", spool.text()),
            ("SPOOL_RESTORE_PER_SEC", &restored),
            ("MQTT_RECEIVE_MAXIMUM", &window),
        ];
        let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
        let peaks = Peaks::default();
        Rig {
            stage,
            mosquitto,
            kafka,
            spool,
            flow,
            peaks,
            publisher: None,
            starts: 1,
            pauses: Vec::new(),
            had: 0,
            back: None,
        }
    }

    pub fn load_begins(&mut self, length: Duration) {
        let load = Load { devices: 50, ..Load::new(&self.flow.prefix, RATE * length.as_secs(), RATE) };
        self.publisher = Some(Publisher::start(&self.stage, &self.mosquitto, &load));
    }

    /// How many messages the load has in all.
    pub fn sent(&self) -> u64 {
        self.publisher.as_ref().expect("a load has begun").total
    }

    /// The load flows for this long.
    pub fn flows_for(&self, length: Duration) {
        let count = self.flow.follower.distinct() + RATE * length.as_secs();
        self.flow.follower.wait_distinct(count, length + ARRIVE);
    }

    pub fn kafka_is_killed(&mut self) {
        self.had = self.kafka.end_offset(&self.flow.topic);
        self.kafka.kill();
    }

    pub fn kafka_is_stopped(&mut self) {
        self.had = self.kafka.end_offset(&self.flow.topic);
        self.kafka.down();
    }

    /// Stopped in order and started at once. The start takes seconds; what comes meanwhile is in the spool.
    pub fn kafka_restarts(&mut self) {
        self.kafka_is_stopped();
        self.kafka.up_again();
    }

    pub fn kafka_comes_back(&mut self) {
        self.peaks.look(&mut self.flow.gateway, &self.spool);
        let waiting = self.spool.waiting();
        assert!(waiting > 0, "Kafka was away and nothing is in the spool\n{}", self.flow.gateway.log_text());
        self.kafka.up_again();
        self.back = Some((Instant::now(), waiting));
    }

    /// kill -9, and started again on its session and its spool.
    pub fn gateway_is_killed(&mut self) {
        self.peaks.look(&mut self.flow.gateway, &self.spool);
        self.kill_and_start(Instant::now());
    }

    fn kill_and_start(&mut self, away_from: Instant) {
        self.flow.gateway.kill();
        self.start_again();
        self.pauses.push(away_from.elapsed());
    }

    /// Stopped in order, and started again; how long that took until it was back at Mosquitto.
    pub fn gateway_is_restarted(&mut self) -> Duration {
        self.peaks.look(&mut self.flow.gateway, &self.spool);
        self.flow.gateway.stop_in_order();
        self.start_again()
    }

    /// Starts it and waits until it is back at Mosquitto, which takes this long.
    fn start_again(&mut self) -> Duration {
        let from = Instant::now();
        self.flow.gateway.up();
        self.starts += 1;
        let (client, connections) = (self.flow.gateway.client_id.clone(), self.starts);
        until("tidegate to be back at Mosquitto", Duration::from_secs(20), || {
            let seen = self.mosquitto.connections_of(&client);
            if seen >= connections { Ok(from.elapsed()) } else { Err(self.flow.gateway.log_text()) }
        })
    }

    /// Waits until stored records come out of the spool; there must be more of them.
    pub fn wait_draining(&mut self) {
        let enough = self.had + DRAINED;
        self.had = until("the spool to drain", ARRIVE, || {
            let has = self.kafka.end_offset(&self.flow.topic);
            if has >= enough { Ok(has) } else { Err(format!("Kafka has {has}, not {enough}")) }
        });
    }

    /// kill -9 while the spool drains, which is shown by what is left in it.
    pub fn gateway_is_killed_while_draining(&mut self) {
        self.wait_draining();
        self.peaks.look(&mut self.flow.gateway, &self.spool);
        let frozen = Instant::now();
        self.flow.gateway.process().freeze();
        let left = self.spool.waiting();
        assert!(left > 0, "all was drained before the kill: the test came too late");
        self.kill_and_start(frozen);
    }

    /// Kafka is killed while the spool drains, and comes back.
    pub fn kafka_is_killed_while_draining(&mut self) {
        self.wait_draining();
        self.kafka_is_killed();
        let left = self.spool.waiting();
        assert!(left > 0, "all was drained before Kafka was killed: the test came too late");
        self.kafka_comes_back();
    }

    /// Waits until the backlog is gone, the load has ended, all of it is in Kafka and the disk is empty.
    pub fn settle(&mut self) -> Settled {
        let (back, _) = self.back.expect("Kafka was away");
        // Behind its backlog a route goes on by itself, while the load still comes.
        let catches_up = until("the backlog to drain", seconds(90, 400), || {
            // The files, not `spool status`: a process every 20 ms would slow down what is timed.
            if self.spool.segments().is_empty() { Ok(back.elapsed()) } else { Err(self.spool.bytes()) }
        });
        let publisher = self.publisher.as_mut().expect("a load has begun");
        publisher.finish(seconds(120, 900));
        println!("tidegate was away for {:?} at its kills", self.pauses);
        self.mosquitto.assert_kept_all();
        self.flow.follower.wait_distinct(publisher.total, ARRIVE);
        let disk_after = self.spool.wait_returned(Duration::from_secs(30));
        self.peaks.look(&mut self.flow.gateway, &self.spool);
        Settled { catches_up, disk_after }
    }

    /// [`Rig::settle`] and [`Rig::account`].
    pub fn end(mut self, what: &str) -> (Verdict, Gateway) {
        let settled = self.settle();
        self.account(&settled, what)
    }

    /// Counts: nothing lost, nothing out of order, and twice at most what each kill explains.
    pub fn account(self, settled: &Settled, what: &str) -> (Verdict, Gateway) {
        let (_, waited) = self.back.expect("Kafka was away");
        let sent = self.sent();
        let (verdict, gateway) = self.flow.end(self.publisher.expect("a load has begun"));
        verdict.assert_clean_but_for(self.pauses.len() as u64 * WINDOW);
        assert!(verdict.replayed > 0, "no record says it was stored: {verdict:?}");
        let remark = format!(
            "{what}; {} times kill -9 of tidegate, window {WINDOW}; memory {} KiB at its highest; disk {} bytes at its \
             highest, {} at the end; {waited} records gone {:.1} s after Kafka's last return; {} were stored",
            self.pauses.len(),
            self.peaks.memory_kib,
            self.peaks.disk_bytes,
            settled.disk_after,
            settled.catches_up.as_secs_f64(),
            verdict.replayed,
        );
        self.stage.report(sent, &verdict, &remark);
        (verdict, gateway)
    }
}
