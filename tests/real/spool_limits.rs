//! The limits of the spool: a full disk, a route that Kafka refuses, memory in place of a disk, and millions of records.

use std::time::{Duration, Instant};

use crate::support::consumer::judge_topic;
use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::{Cluster, RULES, TopicSpec};
use crate::support::publisher::Load;
use crate::support::spool::{on_small_disk, seen_by};
use crate::support::stage::{is_full, seconds, size};
use crate::support::wait::outage;
use crate::support::{
    Follower, Gateway, Mosquitto, Publisher, SpoolDir, Stage, read_all, until, until_every,
};

/// MQTT_RECEIVE_MAXIMUM by default: what may come twice after a kill, where Mosquitto has no limit of its own.
const RECEIVE_MAXIMUM: u64 = 1_000;

/// Lines at ERROR about the spool.
fn spool_errors(gateway: &Gateway) -> Vec<String> {
    let about = |line: &String| line.contains("ERROR") && line.contains("the spool");
    gateway.complaints().into_iter().filter(about).collect()
}

/// How many messages the log says were given up: what each line at ERROR names, before "messages dropped".
fn dropped(gateway: &Gateway) -> u64 {
    let count = |line: String| -> Option<u64> {
        let (before, _) = line.split_once(" messages dropped")?;
        before.rsplit(' ').next()?.parse().ok()
    };
    spool_errors(gateway).into_iter().filter_map(count).sum()
}

/// Kafka goes away, and more comes than the disk has room for.
struct FullDisk {
    stage: Stage,
    _mosquitto: Mosquitto,
    kafka: Cluster,
    flow: Flow,
    publisher: Publisher,
    spool: SpoolDir,
    disk_bytes: u64,
}

impl FullDisk {
    fn start(name: &str, policy: &str) -> FullDisk {
        let stage = Stage::new(name);
        let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
        let mut kafka = Cluster::start(&stage.dir, 1, "");
        kafka.create(&stage.unique("t"), &kafka.topic());
        let disk_bytes = size(4 << 20, 16 << 20);
        let path = SpoolDir::new(&stage).path;
        let mut flow = Flow::start_with(&stage, &mosquitto, &kafka.bootstrap(), |gateway| {
            let gateway = on_small_disk(gateway, &path, disk_bytes);
            // No limit but the disk itself.
            let gateway = gateway.set("SPOOL_MAX_BYTES", "1000000000").set("SPOOL_MIN_FREE_BYTES", "0");
            let gateway = gateway.set("SPOOL_SEGMENT_BYTES", "262144").set("SPOOL_FULL", policy);
            gateway.set("DB_PERSIST_PATH", path.to_str().expect("a temporary path is text"))
        });
        let spool = seen_by(&mut flow.gateway, &path);
        let load = Load::new(&flow.prefix, size(40_000, 200_000), size(4_000, 5_000));
        let mut publisher = Publisher::start(&stage, &mosquitto, &load);
        flow.follower.wait_distinct(load.rate, ARRIVE);
        kafka.kill();
        publisher.finish(seconds(60, 120));
        until("an ERROR about the full spool", Duration::from_secs(60), || {
            let known = !spool_errors(&flow.gateway).is_empty();
            if known { Ok(()) } else { Err(flow.gateway.log_text()) }
        });
        flow.gateway.assert_runs();
        FullDisk { stage, _mosquitto: mosquitto, kafka, flow, publisher, spool, disk_bytes }
    }

    /// Counts; the disk is empty again. The same process did it all: a restart would have lost the mount.
    fn end(mut self, lost: u64, what: &str) {
        let after = self.spool.wait_returned(Duration::from_secs(30));
        self.flow.gateway.stop_in_order();
        let sent = self.publisher.total;
        let verdict = judge_topic(&self.flow.bootstrap, &self.flow.topic, sent);
        let summary = &verdict.summary;
        assert_eq!((summary.lost, summary.duplicates, summary.out_of_order), (lost, 0, 0), "{verdict:?}");
        let disk = self.disk_bytes >> 20;
        self.stage.report(
            sent,
            &verdict,
            &format!("disk of {disk} MiB full, {after} bytes at the end; {what}"),
        );
    }
}

#[test]
fn a_full_disk_blocks_and_nothing_is_lost() {
    let mut full = FullDisk::start("spool_full_block", "block");
    // An outage that lasts is told once.
    outage(Duration::from_secs(3));
    assert_eq!(spool_errors(&full.flow.gateway).len(), 1, "ERROR once an episode");
    full.kafka.up_again();
    full.flow.follower.wait_distinct(full.publisher.total, ARRIVE);
    full.end(0, "SPOOL_FULL=block: Mosquitto held the rest");
}

#[test]
fn a_full_disk_drops_the_oldest_and_says_exactly_how_many() {
    let mut full = FullDisk::start("spool_full_drop", "drop-oldest");
    full.kafka.up_again();
    until("each message to be in Kafka or told as dropped", ARRIVE, || {
        let (came, dropped) = (full.flow.follower.distinct(), dropped(&full.flow.gateway));
        let sum = came + dropped;
        if sum >= full.publisher.total { Ok(()) } else { Err(format!("{came} came, {dropped} dropped")) }
    });
    let lost = dropped(&full.flow.gateway);
    assert!(lost > 0, "the disk was to be too small");
    full.end(lost, "SPOOL_FULL=drop-oldest: as many lost as the log says");
}

/// Three routes that Kafka will not take, and one beside them that must not notice.
#[test]
fn what_kafka_refuses_waits_for_the_operator_and_delays_nobody() {
    let stage = Stage::new("spool_parked");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = Cluster::start(&stage.dir, 1, RULES);
    let names = ["good", "denied", "missing", "large", "dead"].map(|name| stage.unique(name));
    let [good, denied, missing, large, dead] = &names;
    for topic in [good, denied, dead] {
        kafka.create(topic, &kafka.topic());
    }
    kafka.create(large, &TopicSpec { configs: vec![("max.message.bytes", "20000")], ..kafka.topic() });
    kafka.deny_writing(denied);
    let spool = SpoolDir::new(&stage);
    let routes = format!("good/#:{good},denied/#:{denied},missing/#:{missing},large/#:{large}");
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &routes)
        .set("DB_PERSIST_PATH", spool.text())
        .set("DEAD_LETTER_TOPIC", dead);
    gateway.up_and_subscribed(&mosquitto, "large/#");
    let follower = Follower::start(&stage.dir, &kafka.bootstrap(), good);

    let length = size(10, 60);
    let load = |prefix: &str, rate: u64| Load { devices: 20, ..Load::new(prefix, rate * length, rate) };
    let start = |load: &Load| Publisher::start_as(&stage, &load.prefix, &mosquitto, load);
    let loads = [load("good", 500), load("denied", 100), load("missing", 100), load("large", 100)];
    let mut publishers = loads.each_ref().map(start);
    follower.wait_distinct(500, ARRIVE);
    let one = Load { payload_bytes: 60_000, total: 1, ..load("large", 1) };
    let mut too_large = Publisher::start_as(&stage, "too-large", &mosquitto, &one);
    for publisher in publishers.iter_mut().chain([&mut too_large]) {
        publisher.finish(Duration::from_secs(length + 30));
    }
    mosquitto.assert_kept_all();
    // Not delayed: it has all, though the operator has done nothing yet.
    follower.wait_distinct(500 * length, Duration::from_secs(5));
    let (p50_us, p99_us, _) = follower.verdict(500 * length).summary.latency_us;
    assert!(p99_us < 1_000_000, "p99 of the good route: {} ms", p99_us / 1000);
    assert_eq!(kafka.end_offset(denied), 0, "nobody may write there");
    let held = spool.waiting();
    assert!(held > 0 && kafka.partition_count(missing) == 0, "{held} held");
    gateway.assert_runs();

    kafka.allow_again(denied);
    kafka.create(missing, &kafka.topic());
    let took = all_arrive(&stage, &kafka, &[(denied, 100 * length), (missing, 100 * length)]);
    let disk_after = spool.wait_returned(Duration::from_secs(30));
    gateway.stop_in_order();
    assert_eq!(read_all(&kafka.bootstrap(), dead).len(), 1, "the large record is a dead letter");
    for (topic, load) in names.iter().zip(&loads) {
        let verdict = judge_topic(&kafka.bootstrap(), topic, load.total);
        verdict.assert_clean(load.total);
        let remark = format!(
            "{held} held for routes that Kafka refused, there {took:.1} s after the repair; good route p50 {:.1}, p99 {:.1} ms; \
             {disk_after} bytes at the end",
            p50_us as f64 / 1000.0,
            p99_us as f64 / 1000.0
        );
        stage.report(load.total, &verdict, &format!("{topic}: {remark}"));
    }
}

/// Seconds until the last of these topics has what it is to get.
fn all_arrive(stage: &Stage, kafka: &Cluster, topics: &[(&String, u64)]) -> f64 {
    let from = Instant::now();
    for (topic, count) in topics {
        Follower::start(&stage.dir, &kafka.bootstrap(), topic).wait_distinct(*count, ARRIVE);
    }
    from.elapsed().as_secs_f64()
}

#[test]
fn without_a_folder_memory_holds_an_outage_and_the_start_says_what_that_means() {
    let stage = Stage::new("spool_memory");
    let mosquitto = Mosquitto::start(&stage.dir, "");
    let kafka = Cluster::start(&stage.dir, 1, "");
    kafka.create(&stage.unique("t"), &kafka.topic());
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[("DB_PERSIST_PATH", "")]);
    let warned = flow.gateway.complaints();
    let told = |line: &String| line.contains("WARN") && line.contains("DB_PERSIST_PATH");
    assert!(warned.iter().any(told), "no WARN that a crash loses what waits: {warned:?}");
    let (rate, away) = (1_000, seconds(10, 60));
    let total = rate * (away.as_secs() + 6);
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new(&flow.prefix, total, rate));
    flow.follower.wait_distinct(2 * rate, ARRIVE);
    kafka.freeze();
    outage(away);
    kafka.thaw();
    publisher.finish(Duration::from_secs(60));
    mosquitto.assert_kept_all();
    flow.follower.wait_distinct(total, ARRIVE);
    let (_, memory_kib) = flow.gateway.process().memory_kib();
    let remark =
        format!("in memory: SIGSTOP for {} s; memory {memory_kib} KiB at its highest", away.as_secs());
    flow.end_clean(&stage, publisher, &remark);
}

/// A gateway whose Kafka is away and that has taken all of a load into its spool.
struct Filled {
    stage: Stage,
    _mosquitto: Mosquitto,
    kafka: Cluster,
    gateway: Gateway,
    spool: SpoolDir,
    topic: String,
    /// Bytes written by the process for each byte of payload.
    written: f64,
}

impl Filled {
    /// `rate` 0 is as fast as it goes.
    fn fill(name: &str, total: u64, rate: u64) -> Filled {
        let stage = Stage::new(name);
        // The publisher, not Mosquitto's window, is to be what limits.
        let mosquitto = Mosquitto::start(&stage.dir, &format!("{UNLIMITED}\nmax_inflight_messages 0"));
        let mut kafka = Cluster::start(&stage.dir, 1, "");
        let topic = stage.unique("t");
        kafka.create(&topic, &kafka.topic());
        let spool = SpoolDir::new(&stage);
        let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &format!("d/#:{topic}"))
            .set("DB_PERSIST_PATH", spool.text());
        gateway.up_and_subscribed(&mosquitto, "d/#");
        kafka.down();
        let written_before = gateway.process().written_bytes();
        let load = Load { devices: 50, ..Load::new("d", total, rate) };
        let mut publisher = Publisher::start(&stage, &mosquitto, &load);
        publisher.finish(seconds(120, 600));
        let pause = Duration::from_millis(500);
        until_every(pause, "all of it to be in the spool", seconds(60, 300), || {
            let waiting = spool.waiting();
            if waiting >= total { Ok(()) } else { Err(format!("{waiting} of {total}")) }
        });
        let written = gateway.process().written_bytes() - written_before;
        let written = written as f64 / (total * load.payload_bytes as u64) as f64;
        Filled { stage, _mosquitto: mosquitto, kafka, gateway, spool, topic, written }
    }

    /// Kafka comes back; seconds from the first record out of the spool to the last.
    fn drain(&mut self, total: u64) -> f64 {
        self.kafka.up_again();
        until("the first restored record", ARRIVE, || {
            if self.kafka.end_offset(&self.topic) > 0 { Ok(()) } else { Err("none") }
        });
        let from = Instant::now();
        until("the last restored record", seconds(120, 600), || {
            let has = self.kafka.end_offset(&self.topic);
            if has >= total as i64 { Ok(from.elapsed().as_secs_f64()) } else { Err(has) }
        })
    }
}

#[test]
fn millions_of_records_wait_in_little_memory_and_come_out_fast() {
    let total = size(200_000, 2_000_000);
    let mut filled = Filled::fill("spool_millions", total, 0);
    let disk = filled.spool.bytes();
    let (_, filling_kib) = filled.gateway.process().memory_kib();
    filled.gateway.kill();
    let (_, looked) = filled.spool.status();
    let from = Instant::now();
    filled.gateway.up();
    let connections = || filled._mosquitto.connections_of(&filled.gateway.client_id);
    until("the gateway to be back", Duration::from_secs(30), || {
        if connections() >= 2 { Ok(()) } else { Err("not connected") }
    });
    let reopened = from.elapsed();
    let took = filled.drain(total);
    let (_, draining_kib) = filled.gateway.process().memory_kib();
    let disk_after = filled.spool.wait_returned(Duration::from_secs(30));
    filled.gateway.stop_in_order();
    let verdict = judge_topic(&filled.kafka.bootstrap(), &filled.topic, total);
    // The last may be in the spool and not yet acknowledged when the kill comes.
    verdict.assert_clean_but_for(RECEIVE_MAXIMUM);
    let rate = total as f64 / took;
    filled.stage.report(
        total,
        &verdict,
        &format!(
            "memory {filling_kib} KiB filling, {draining_kib} draining; status in {:.2} s, at Mosquitto again {:.2} s after \
             the start; drained at {rate:.0} a second; disk {disk} bytes, {disk_after} at the end; written per byte of \
             payload, flat out: {:.2}",
            looked.as_secs_f64(),
            reopened.as_secs_f64(),
            filled.written
        ),
    );
    if is_full() {
        // The release criteria hold for the release executable, which the full runs use.
        assert!(filling_kib.max(draining_kib) < 16 * 1024, "more than 16 MiB of memory");
        assert!(reopened < Duration::from_secs(1), "reopening took {reopened:?}");
        assert!(rate >= 100_000.0, "drained at {rate:.0} a second only");
    }
}

#[test]
fn what_is_written_for_each_byte_of_payload() {
    let total = 5_000 * size(6, 60);
    let mut filled = Filled::fill("spool_written", total, 5_000);
    let took = filled.drain(total);
    let disk_after = filled.spool.wait_returned(Duration::from_secs(30));
    filled.gateway.stop_in_order();
    let verdict = judge_topic(&filled.kafka.bootstrap(), &filled.topic, total);
    verdict.assert_clean(total);
    let written = filled.written;
    let remark = format!(
        "at 5000 a second {written:.2} bytes written per byte of payload, log included; drained in {took:.1} s; {disk_after} \
         bytes at the end"
    );
    filled.stage.report(total, &verdict, &remark);
    if is_full() {
        assert!(written < 1.3, "{written:.2} bytes were written for each byte of payload");
    }
}
