//! What a service manager sees: READY, STATUS, WATCHDOG and STOPPING at the right moments; and what the journal gets.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, SubscribeReasonCode};
use rustix::process::Signal;

use crate::support::http::{self, wait_for};
use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
use crate::support::manager::Manager;
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::Setup;
use crate::support::wait;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

fn none_of(manager: &Manager, what: &str) -> Result<(), String> {
    let told = manager.told_of(what);
    if told.is_empty() { Ok(()) } else { Err(format!("{told:?}")) }
}

#[test]
fn ready_is_told_once_at_the_suback_and_never_before() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let gateway = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t")).start();
    manager.wait_for("STATUS=MQTT: not connected");
    let link = mqtt.accept();
    link.expect_connect();
    link.mute_subscribes();
    link.connack(false, ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    wait::holds(wait::WATCH, "READY waits for the SUBACK", || none_of(&manager, "READY"));
    assert!(!manager.told_of("EXTEND_TIMEOUT_USEC=").is_empty(), "the start may take its time");
    link.suback(subscribe.pkid, &[SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
    let ready = manager.wait_for_within(Duration::from_secs(3), "READY=1");
    let status = manager.wait_for("STATUS=0 messages/s from MQTT");
    assert!(status.at >= ready.at);
    link.cut();
    let _link = mqtt.resume();
    gateway.wait_for_log("INFO", &["MQTT connected", "resumed"]);
    wait::holds(wait::WATCH, "READY comes once", || match manager.told_of("READY").len() {
        1 => Ok(()),
        other => Err(other),
    });
    assert_eq!(manager.told_of("WATCHDOG").len(), 0, "nobody asked for it");
}

#[test]
fn a_refused_subscription_is_not_ready() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let gateway = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t")).start();
    let link = mqtt.accept();
    link.expect_connect();
    link.mute_subscribes();
    link.connack(false, ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    link.suback(subscribe.pkid, &[SubscribeReasonCode::Failure]);
    gateway.wait_for_log("ERROR", &["refuses the subscription"]);
    wait::holds(wait::WATCH, "READY does not come", || none_of(&manager, "READY"));
    manager.wait_for("STATUS=MQTT: not every subscription is accepted");
}

#[test]
fn the_status_has_rates_and_the_backlog() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let gateway = manager.of(Setup::new(&mqtt, &kafka).spooling().wildcards("a/#:t")).start();
    let link = mqtt.session();
    manager.wait_for("READY=1");
    link.publish_all("a/b", &numbered("v", 100), 1);
    link.wait_for_pubacks(&ids(1, 100));
    wait::until("a status with a rate", || {
        let rates = manager.told_of("STATUS=");
        let found = rates.iter().any(|told| {
            let number = told.state.trim_start_matches("STATUS=").split(' ').next();
            number.and_then(|number| number.parse::<u64>().ok()).is_some_and(|rate| rate > 0)
                && told.state.ends_with("no backlog")
        });
        if found { Ok(()) } else { Err(format!("{rates:?}")) }
    });
    kafka.stop(1);
    link.publish_all("a/b", &numbered("v", 20), 101);
    link.wait_for_pubacks(&ids(1, 120));
    wait::until("a status with the backlog", || {
        let told = manager.told_of("STATUS=");
        let parts = ["backlog 20 records, spool 0.0 MB", "Kafka: not connected"];
        let found = told.iter().any(|told| parts.iter().all(|part| told.state.contains(part)));
        if found { Ok(()) } else { Err(format!("{told:?}")) }
    });
    assert!(manager.told_of("STATUS=").iter().all(|told| told.state.len() < 200), "one short line");
    assert_eq!(gateway.log_of("ERROR"), [""; 0]);
}

#[test]
fn the_watchdog_is_fed_at_half_of_its_time_also_when_nothing_happens() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let setup = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t")).set("WATCHDOG_USEC", "2000000");
    let mut gateway = setup.start();
    let _link = mqtt.session();
    manager.wait_for("READY=1");
    let (begin, before) = (Instant::now(), manager.told_of("WATCHDOG=1").len());
    wait::holds(Duration::from_secs(6), "the gateway runs", || {
        if gateway.is_running() { Ok(()) } else { Err("ended") }
    });
    let fed: Vec<_> = manager.told_of("WATCHDOG=1").into_iter().skip(before).collect();
    // Once a second; on a machine that is slow for a moment somewhat later.
    let mut times = vec![begin];
    times.extend(fed.iter().map(|told| told.at));
    times.push(Instant::now());
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < Duration::from_secs(3), "{longest:?} without a sign of life: {fed:?}");
    assert!(fed.len() as u64 <= begin.elapsed().as_secs() + 2, "{fed:?}");
    gateway.assert_idle("with a short watchdog");
    gateway.assert_quiet();
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let setup = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t"));
    let gateway = setup.set("WATCHDOG_USEC", "200000").set("WATCHDOG_PID", "1").start();
    let _link = mqtt.session();
    manager.wait_for("READY=1");
    wait::holds(wait::WATCH, "no sign of life", || none_of(&manager, "WATCHDOG"));
    gateway.assert_quiet();
}

/// A thread that hangs for real: it writes a line to a log that nobody reads, and the pipe is full.
#[test]
fn the_watchdog_starves_when_the_ingest_thread_hangs_and_is_fed_again_when_it_is_back() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let filter = "x".repeat(60_000);
    let setup = manager
        .of(Setup::new(&mqtt, &kafka).wildcards(&format!("{filter}/#:t")))
        .set("HTTP_LISTEN", "127.0.0.1:0")
        .set("WATCHDOG_USEC", "2000000");
    let (mut gateway, stderr) = setup.start_with_own_stderr(|_| None);
    // The system decides the least; this is far below the length of the line.
    rustix::pipe::fcntl_setpipe_size(&stderr, 4096).expect("a pipe can be made smaller");
    let mut log = BufReader::new(stderr);
    let address = http::address_in(&mut log);
    let link = mqtt.accept();
    link.expect_connect();
    link.mute_subscribes();
    link.connack(false, ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    manager.wait_for_more("WATCHDOG=1");
    wait_for(&address, "/healthz", 200, "healthy");
    // The refusal is told with the filter, which the pipe does not hold.
    link.suback(subscribe.pkid, &[SubscribeReasonCode::Failure]);
    wait_for(&address, "/healthz", 503, "the ingest thread hangs");
    let starved_at = manager.told_of("WATCHDOG=1").len();
    wait::holds(Duration::from_secs(4), "no more signs of life", || {
        match manager.told_of("WATCHDOG=1").len() - starved_at {
            0 => Ok(()),
            others => Err(others),
        }
    });
    assert!(gateway.is_running(), "it is systemd that ends it, by its watchdog");
    // Somebody reads the log again.
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).map(|_| rest)
    });
    manager.wait_for_more("WATCHDOG=1");
    wait_for(&address, "/healthz", 200, "healthy");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit(wait::PATIENCE).code(), Some(0));
    let rest = reader.join().unwrap().unwrap();
    let told: Vec<&str> = rest.lines().filter(|line| line.contains(" thread hangs: ")).collect();
    assert!(told.iter().any(|line| line.contains("ERROR") && line.contains("the ingest thread")), "{told:?}");
}

/// A thread that hangs for real in a file: a FIFO that nobody writes, where the authorities should be.
#[cfg(feature = "tls")]
#[test]
fn the_watchdog_starves_when_the_token_thread_hangs() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let setup = manager
        .of(Setup::new(&mqtt, &kafka).wildcards("a/#:t"))
        .set("HTTP_LISTEN", "127.0.0.1:0")
        .set("WATCHDOG_USEC", "2000000")
        .set("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
        .set("SASL_OAUTHBEARER_CLIENT_ID", "edge")
        .set("SASL_OAUTHBEARER_CLIENT_SECRET", "secret")
        .set("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "https://127.0.0.1:1/token")
        .set("SASL_OAUTHBEARER_CA_FILE", "ca.pem");
    let fifo = setup.folder().join("ca.pem");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let gateway = setup.start();
    let address = http::address(&gateway);
    let _link = mqtt.session();
    manager.wait_for("READY=1");
    manager.wait_for_more("WATCHDOG=1");
    // A request may take its time, and does not count as hanging while it does.
    gateway.wait_for_log("ERROR", &["the token thread hangs", "restarts the process"]);
    let starved_at = manager.told_of("WATCHDOG=1").len();
    assert!(starved_at >= 5, "it had the time of a request: {starved_at}");
    wait_for(&address, "/healthz", 503, "the token thread hangs");
    wait::holds(Duration::from_secs(3), "no more signs of life", || {
        match manager.told_of("WATCHDOG=1").len() - starved_at {
            0 => Ok(()),
            others => Err(others),
        }
    });
    // Opened for writing and closed at once: the reader finds an empty file, which is a failure of another kind.
    drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    manager.wait_for_more("WATCHDOG=1");
    gateway.wait_for_log("WARN", &["SASL_OAUTHBEARER_CA_FILE"]);
    gateway.wait_for_log("INFO", &["every thread goes round again"]);
}

#[test]
fn a_stop_is_told_at_once_with_its_time_and_the_watchdog_is_fed_meanwhile() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let gate = Gate::default();
    let setup = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t"));
    let mut gateway = setup.set("WATCHDOG_USEC", "1000000").set("SHUTDOWN_TIMEOUT_SEC", "30").start();
    let link = mqtt.session();
    manager.wait_for("READY=1");
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    link.publish("a/b", "x", 1);
    kafka.wait_for_seen(1);
    assert_eq!(manager.told_of("STOPPING").len(), 0);
    gateway.signal(Signal::TERM);
    manager.wait_for_within(Duration::from_secs(5), "STOPPING=1");
    manager.wait_for("STATUS=stopping");
    let extended = manager.wait_for("EXTEND_TIMEOUT_USEC=40000000");
    for _ in 0..4 {
        manager.wait_for_more("WATCHDOG=1");
    }
    assert!(gateway.is_running(), "it waits for Kafka");
    kafka.heal();
    gate.open();
    assert_eq!(gateway.wait_for_exit(wait::PATIENCE).code(), Some(0));
    let last = manager.told().last().unwrap().clone();
    assert!(last.at > extended.at);
    gateway.assert_quiet();
}

#[test]
fn a_process_that_was_stopped_as_a_whole_is_not_taken_for_one_that_hangs() {
    let (mqtt, kafka) = brokers();
    let manager = Manager::start();
    let setup = manager.of(Setup::new(&mqtt, &kafka).wildcards("a/#:t")).set("WATCHDOG_USEC", "1000000");
    let mut gateway = setup.start();
    let _link = mqtt.session();
    manager.wait_for("READY=1");
    gateway.signal(Signal::STOP);
    wait::holds(Duration::from_secs(2), "it is stopped", || {
        if gateway.is_running() { Ok(()) } else { Err("ended") }
    });
    gateway.signal(Signal::CONT);
    manager.wait_for_more("WATCHDOG=1");
    manager.wait_for_more("WATCHDOG=1");
    gateway.assert_quiet();
}

#[test]
fn without_a_manager_or_with_one_that_is_gone_it_runs() {
    let (mqtt, kafka) = brokers();
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("NOTIFY_SOCKET", "/nowhere/at/all");
    let gateway = setup.start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    gateway.wait_for_log("WARN", &["NOTIFY_SOCKET"]);
    assert_eq!(gateway.log_of("WARN").len(), 1, "told once");
}

/// What stands in JOURNAL_STREAM for this descriptor.
fn journal_stream(of: &std::os::fd::OwnedFd) -> String {
    let about = std::fs::File::from(of.try_clone().unwrap()).metadata().unwrap();
    format!("{}:{}", about.dev(), about.ino())
}

#[test]
fn the_journal_gets_priorities_and_no_time() {
    let (mqtt, kafka) = brokers();
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").unset("DB_PERSIST_PATH");
    let (mut gateway, stderr) =
        setup.start_with_own_stderr(|stderr| Some(("JOURNAL_STREAM", journal_stream(stderr))));
    let _link = mqtt.session();
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let warning = lines.find(|line| line.contains("DB_PERSIST_PATH is not set")).expect("it is told");
    assert!(warning.starts_with("<4>WARN tidegate::cli::assemble "), "{warning}");
    let subscribed = lines.find(|line| line.contains("MQTT subscribed")).expect("it is told");
    assert!(subscribed.starts_with("<6>INFO tidegate::pipeline"), "{subscribed}");
    gateway.signal(Signal::TERM);
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().all(|line| line.starts_with("<6>") || line.starts_with("<7>")), "{rest:#?}");
    assert_eq!(gateway.wait_for_exit(wait::PATIENCE).code(), Some(0));
}

#[test]
fn a_stream_that_is_not_the_journal_gets_the_time_and_an_end_is_an_error_in_the_journal() {
    let (mqtt, kafka) = brokers();
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("JOURNAL_STREAM", "1:2");
    let gateway = setup.start();
    let line = gateway.wait_for_log("INFO", &["tidegate"]);
    assert!(line.starts_with("20") && line.contains("Z INFO "), "{line}");
    let broken = Setup::new(&mqtt, &kafka).set("MQTT_QOS", "3");
    let (mut gateway, stderr) =
        broken.start_with_own_stderr(|stderr| Some(("JOURNAL_STREAM", journal_stream(stderr))));
    let lines: Vec<String> = BufReader::new(stderr).lines().map_while(Result::ok).collect();
    assert_eq!(gateway.wait_for_exit(wait::PATIENCE).code(), Some(2));
    assert!(lines.len() >= 3 && lines.iter().all(|line| line.starts_with("<3>")), "{lines:#?}");
}
