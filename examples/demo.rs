//! The demo: a real Mosquitto, a real Apache Kafka, tidegate, both clients, and a Kafka that freezes in the middle.
//! Run it with `make demo`, which fetches and builds what it needs.
#![allow(clippy::print_stdout, reason = "a demo shows")]

#[path = "../tests/real/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::consumer::judge;
use support::process::{Process, built};
use support::publisher::Load;
use support::{Cluster, Gateway, Mosquitto, Publisher, Stage, read_all};

const TOTAL: u64 = 20_000;
const RATE: u64 = 1_000;
const FREEZE: Duration = Duration::from_secs(5);
const TOPIC: &str = "demo";

/// Set by Ctrl-C and SIGTERM.
struct Stop(Arc<AtomicBool>);

/// Unwinds to `main` when the user has had enough, so that everything is stopped on the way.
struct Interrupted;

impl Stop {
    fn new() -> Stop {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            // A second one does not wait: the reaper stops what is left.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
                .expect("a signal can be caught");
            signal_hook::flag::register(signal, Arc::clone(&flag)).expect("a signal can be caught");
        }
        Stop(flag)
    }

    fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Looks every 100 ms until `done`, for `limit` at most.
    fn wait(&self, limit: Duration, mut done: impl FnMut() -> bool) -> Result<(), Interrupted> {
        let deadline = Instant::now() + limit;
        while !done() && Instant::now() < deadline {
            self.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.check()
    }
}

fn say(text: &str) {
    println!("demo: {text}");
}

/// subscriber-kafka, counting; its lines are shown as they come.
fn subscribe(stage: &Stage, kafka: &Cluster) -> (Process, Process) {
    let count = {
        let mut command = built("subscriber-kafka");
        command.env("KAFKA_BROKER", kafka.bootstrap()).env("TOPIC_LIST", TOPIC).env("FROM", "beginning");
        command.args(["--verify", "--expect", &TOTAL.to_string(), "--idle-sec", "30"]);
        Process::start("subscriber", &stage.dir, &mut command)
    };
    // A second one prints the first records, so that one can see them.
    let mut command = built("subscriber-kafka");
    command.env("KAFKA_BROKER", kafka.bootstrap()).env("TOPIC_LIST", TOPIC).env("FROM", "beginning");
    command.args(["--expect", "3"]);
    (count, Process::start("first-records", &stage.dir, &mut command))
}

fn show_lines(log: &std::path::Path, shown: &mut usize) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    for line in text.lines().skip(*shown) {
        println!("    {line}");
        *shown += 1;
    }
}

fn demo(stop: &Stop) -> Result<bool, Interrupted> {
    let stage = Stage::new("demo");
    say("starting Mosquitto and Apache Kafka on free ports (some seconds)");
    let mosquitto = Mosquitto::start(&stage.dir, "max_queued_messages 0");
    let kafka = Cluster::start(&stage.dir, 1, "");
    stop.check()?;
    kafka.create(TOPIC, &kafka.topic());
    say(&format!("Mosquitto is on port {}, Kafka on {}", mosquitto.port, kafka.bootstrap()));
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &format!("devices/#:{TOPIC}"));
    gateway.up_and_subscribed(&mosquitto, "devices/#");
    say(&format!("tidegate runs and has subscribed to devices/#, which goes to the Kafka topic {TOPIC}"));
    stop.check()?;

    let (mut subscriber, mut first) = subscribe(&stage, &kafka);
    let load = Load::new("devices", TOTAL, RATE);
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    say(&format!(
        "publisher-mqtt sends {TOTAL} messages of 200 bytes, {RATE} a second, QoS 1, from 100 devices"
    ));
    stop.wait(Duration::from_secs(20), || first.ended().is_some())?;
    say("the first that came out of Kafka:");
    for record in first.log_text().lines().filter(|line| line.contains("\"seq\"")).take(3) {
        println!("    {}...", record.split(",\"pad\"").next().unwrap_or(record));
    }

    say("what subscriber-kafka --verify counts (received in Kafka, each second):");
    let mut shown = 0;
    let watch = |length: Duration, shown: &mut usize, done: &mut dyn FnMut() -> bool| {
        stop.wait(length, || {
            show_lines(&subscriber_log(&stage), shown);
            done()
        })
    };
    watch(Duration::from_secs(5), &mut shown, &mut || false)?;
    let healthy = latency(&stage);
    say(&format!(
        "now Kafka is frozen for {} s (SIGSTOP), while the devices go on sending.",
        FREEZE.as_secs()
    ));
    say("tidegate acknowledges nothing that Kafka does not have, so the messages wait in Mosquitto:");
    kafka.freeze();
    let outcome = watch(FREEZE, &mut shown, &mut || false);
    kafka.thaw();
    outcome?;
    say("Kafka goes on. What waited comes through, in order:");
    watch(Duration::from_secs(60), &mut shown, &mut || subscriber.ended().is_some())?;
    let counted = subscriber.ended().is_some_and(|status| status.success());
    stop.wait(Duration::from_secs(30), || publisher.is_done())?;
    gateway.stop_in_order();
    summary(&stage, &kafka, counted, &healthy)
}

fn subscriber_log(stage: &Stage) -> std::path::PathBuf {
    stage.dir.join("subscriber.log")
}

/// What subscriber-kafka said last about latency.
fn latency(stage: &Stage) -> String {
    let log = std::fs::read_to_string(subscriber_log(stage)).unwrap_or_default();
    let last = log.lines().rev().find_map(|line| line.split_once("latency "));
    last.map_or("unknown", |(_, text)| text).to_owned()
}

/// The last word has kcat, a consumer that is not ours.
fn summary(stage: &Stage, kafka: &Cluster, counted: bool, healthy: &str) -> Result<bool, Interrupted> {
    let verdict = judge(&read_all(&kafka.bootstrap(), TOPIC), TOTAL);
    let count = &verdict.summary;
    println!();
    println!("    sent          {TOTAL}");
    println!("    received      {} (read again by kcat)", count.received);
    println!("    lost          {}", count.lost);
    println!("    duplicates    {}", count.duplicates);
    println!("    out of order  {}", count.out_of_order);
    println!("    latency       {healthy} before the freeze");
    println!("                  {} with the {} s of the freeze", latency(stage), FREEZE.as_secs());
    println!();
    let good = counted && count.is_clean() && verdict.wrong_key == 0;
    say(if good {
        "nothing was lost, repeated or reordered."
    } else {
        "this is not what tidegate promises!"
    });
    Ok(good)
}

fn main() -> ExitCode {
    let stop = Stop::new();
    let outcome = demo(&stop);
    say("everything that was started is stopped");
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Interrupted) => ExitCode::from(130),
    }
}
