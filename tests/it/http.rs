//! HTTP_LISTEN: what the pages say, that they say it in time, and that who asks badly disturbs nobody.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::http::{self, connect, get, metrics, send, wait_for};
use crate::support::kafka_broker::{Act, Api, Cluster, Gate};
use crate::support::mqtt_broker::{MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

fn brokers() -> (MqttBroker, Cluster) {
    (MqttBroker::start(), Cluster::start().topic("t", 1))
}

fn setup(mqtt: &MqttBroker, kafka: &Cluster) -> Setup {
    Setup::new(mqtt, kafka).wildcards("a/#:t").set("HTTP_LISTEN", "127.0.0.1:0")
}

/// Waits until a metric has this value.
fn wait_for_metric(address: &str, name: &str, value: f64) {
    wait::until(&format!("{name} to be {value}"), || {
        let found = metrics(address).get(name).copied();
        if found == Some(value) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn the_counts_agree_with_what_was_sent() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    link.publish_all("a/b", &numbered("v", 30), 1);
    link.publish("none/of/ours", "x", 31);
    link.wait_for_pubacks(&ids(1, 31));
    wait_for_metric(&address, "tidegate_mqtt_acknowledged_messages_total", 31.0);
    let all = metrics(&address);
    for (name, value) in [
        ("tidegate_mqtt_received_messages_total", 31.0),
        ("tidegate_kafka_delivered_records_total", 30.0),
        ("tidegate_unmatched_messages_total", 1.0),
        ("tidegate_mqtt_connects_total", 1.0),
        ("tidegate_mqtt_connected", 1.0),
        ("tidegate_mqtt_subscribed", 1.0),
        ("tidegate_in_hand_messages", 0.0),
        ("tidegate_kafka_connected", 1.0),
        ("tidegate_routes{mode=\"live\"}", 1.0),
        ("tidegate_routes{mode=\"spooling\"}", 0.0),
        ("tidegate_spool_open", 1.0),
        ("tidegate_spool_full", 0.0),
        ("tidegate_spool_backlog_records", 0.0),
        ("tidegate_spool_stored_messages_total", 0.0),
        ("tidegate_spool_limit_bytes", 1_073_741_824.0),
        ("tidegate_late_threads", 0.0),
    ] {
        assert_eq!(all.get(name), Some(&value), "{name}: {all:#?}");
    }
    assert!(all["tidegate_kafka_connections"] >= 1.0 && all["tidegate_kafka_requests_total"] >= 1.0);
    let resident = all["process_resident_memory_bytes"];
    assert!((resident - gateway.resident_bytes() as f64).abs() < f64::from(8 << 20), "{resident}");
    assert_eq!(get(&address, "/healthz").body, "healthy\n");
    assert_eq!(get(&address, "/readyz").body, "ready\n");
    let warnings = gateway.log_of("WARN");
    assert!(warnings.len() == 1 && warnings[0].contains("none/of/ours"), "{warnings:?}");
}

#[test]
fn an_outage_of_kafka_is_told_and_is_no_reason_to_be_unready() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).spooling().start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    // On a loaded machine the first may go by the spool.
    wait_for_metric(&address, "tidegate_routes{mode=\"live\"}", 1.0);
    let before = metrics(&address);
    kafka.stop(1);
    link.publish_all("a/b", &numbered("v", 20), 2);
    link.wait_for_pubacks(&ids(1, 21));
    wait_for_metric(&address, "tidegate_spool_backlog_records", 20.0);
    wait_for_metric(&address, "tidegate_routes{mode=\"spooling\"}", 1.0);
    let all = metrics(&address);
    assert_eq!(all["tidegate_routes{mode=\"live\"}"], 0.0, "{all:#?}");
    let rise = |all: &BTreeMap<String, f64>, name: &str| all[name] - before[name];
    assert_eq!(rise(&all, "tidegate_spool_stored_messages_total"), 20.0);
    assert!(all["tidegate_spool_backlog_bytes"] > 20.0, "{all:#?}");
    assert!(all["tidegate_spool_bytes"] >= all["tidegate_spool_backlog_bytes"], "{all:#?}");
    let ready = wait_for(&address, "/readyz", 200, "note: Kafka: not connected");
    assert!(ready.body.starts_with("ready\n") && ready.body.contains("20 records wait"), "{}", ready.body);
    kafka.restart(1);
    wait_for_metric(&address, "tidegate_spool_backlog_records", 0.0);
    wait_for_metric(&address, "tidegate_routes{mode=\"live\"}", 1.0);
    wait_for(&address, "/readyz", 200, "ready");
    let all = metrics(&address);
    assert_eq!(all["tidegate_kafka_connected"], 1.0);
    // What the producer had when Kafka went away is stored as a copy, and not read from there.
    let restored = rise(&all, "tidegate_spool_restored_records_total");
    assert!((0.0..=20.0).contains(&restored), "{restored}");
    assert_eq!(rise(&all, "tidegate_kafka_delivered_records_total"), 20.0);
}

#[test]
fn a_topic_that_kafka_refuses_is_counted_as_parked() {
    let (mqtt, kafka) = brokers();
    kafka.set_topic_error("t", 29);
    let gateway = setup(&mqtt, &kafka).spooling().start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    wait_for_metric(&address, "tidegate_routes{mode=\"parked\"}", 1.0);
    wait_for(&address, "/readyz", 200, "note: Kafka: 1 topics are refused");
}

#[test]
fn ready_only_when_subscribed_and_no_more_when_the_connection_is_lost() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    wait_for(&address, "/readyz", 503, "MQTT: not connected\n");
    assert_eq!(get(&address, "/healthz").status, 200, "the process works all the same");
    let link = mqtt.accept();
    link.expect_connect();
    link.mute_subscribes();
    link.connack(false, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
    let subscribe = link.expect_subscribe();
    wait_for(&address, "/readyz", 503, "MQTT: not every subscription is accepted\n");
    let code = rumqttc::mqttbytes::v4::SubscribeReasonCode::Success(rumqttc::mqttbytes::QoS::AtLeastOnce);
    link.suback(subscribe.pkid, &[code]);
    wait_for(&address, "/readyz", 200, "ready\n");
    link.cut();
    wait_for(&address, "/readyz", 503, "MQTT: not connected\n");
    let link = mqtt.resume();
    wait_for(&address, "/readyz", 200, "ready\n");
    let _ = link;
}

#[test]
fn a_full_spool_and_a_stop_are_reasons() {
    let (mqtt, kafka) = brokers();
    let gate = Gate::default();
    let mut gateway = setup(&mqtt, &kafka)
        .spooling()
        .set("SPOOL_MAX_BYTES", "1048576")
        .set("SPOOL_SEGMENT_BYTES", "65536")
        .set("SHUTDOWN_TIMEOUT_SEC", "60")
        .start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    kafka.next(Api::Produce, usize::MAX, Act::HoldBefore(gate.clone()));
    // Nothing that a codec makes much smaller.
    let mut rng = fastrand::Rng::with_seed(7);
    for id in 1..=80 {
        link.publish("a/b", (0..20_000).map(|_| rng.alphanumeric()).collect::<String>(), id);
    }
    wait_for(&address, "/readyz", 503, "spool: full\n");
    wait_for_metric(&address, "tidegate_spool_full", 1.0);
    gateway.signal(Signal::TERM);
    wait_for(&address, "/readyz", 503, "stopping\n");
    kafka.heal();
    gate.open();
    assert_eq!(gateway.wait_for_exit(wait::PATIENCE).code(), Some(0));
}

#[test]
fn only_get_and_head_of_the_three_pages_are_served() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    let _link = mqtt.session();
    wait_for(&address, "/readyz", 200, "ready");
    for (request, status) in [
        ("GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("HEAD /nothing HTTP/1.0\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 405),
        ("DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1} this is TLS, or so", 400),
    ] {
        let answer = send(&address, request.as_bytes());
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
    }
    let refused = send(&address, b"PUT /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(refused.head.contains("\r\nAllow: GET, HEAD"), "{}", refused.head);
    gateway.assert_quiet();
}

#[test]
fn who_asks_badly_disturbs_nobody() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    // A megabyte of header, in one line and in many; a megabyte of nothing; and a body behind a refusal.
    let long = [b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    assert_eq!(send(&address, &long).status, 431);
    let many = [b"GET /metrics HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(200_000)].concat();
    assert_eq!(send(&address, &many).status, 431);
    assert_eq!(send(&address, &vec![0; 1 << 20]).status, 400);
    assert_eq!(send(&address, &[b"GET /".as_slice(), &vec![b'x'; 1 << 20]].concat()).status, 414);
    // A hundred that say nothing, and some that say a byte now and then and never end their header.
    let idle: Vec<_> = (0..100).map(|_| connect(&address)).collect();
    let slow: Vec<_> = (0..10).map(|_| connect(&address)).collect();
    let start = Instant::now();
    let mut asked = 0_u32;
    let mut published = 0_u16;
    while start.elapsed() < Duration::from_secs(7) {
        for mut stream in &slow {
            // Those that the gateway has closed cannot be written to any more.
            let _ = stream.write_all(if asked == 0 { b"GET /metrics HTTP/1.1\r\n" } else { b"X" });
        }
        let before = Instant::now();
        assert_eq!(get(&address, "/healthz").status, 200);
        assert!(before.elapsed() < Duration::from_secs(3), "answered after {:?}", before.elapsed());
        asked += 1;
        if asked % 50 == 1 {
            published += 1;
            link.publish("a/b", "x", published);
            link.wait_for_pubacks(&ids(1, usize::from(published)));
        }
    }
    assert!(asked > 50, "{asked} answers in 7 s");
    // None has got an answer but that it is too long, which some may be by now.
    for stream in idle.iter().chain(&slow) {
        stream.set_nonblocking(false).unwrap();
        let mut bytes = Vec::new();
        let end = std::io::Read::read_to_end(&mut { stream }, &mut bytes);
        let refused = bytes.starts_with(b"HTTP/1.1 431 ");
        assert!(end.is_err() || bytes.is_empty() || refused, "{}", String::from_utf8_lossy(&bytes));
    }
    gateway.assert_quiet();
}

#[test]
fn asking_all_the_time_costs_no_thread_and_nothing_is_left_open() {
    let (mqtt, kafka) = brokers();
    let mut gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    for _ in 0..300 {
        assert_eq!(get(&address, "/metrics").status, 200);
    }
    wait::until("all connections are closed", || {
        let open = gateway.descriptors();
        if open < 40 { Ok(()) } else { Err(open) }
    });
    gateway.assert_idle("after many requests");
}

#[test]
fn an_address_that_is_taken_costs_the_pages_alone_and_only_until_it_is_free() {
    let (mqtt, kafka) = brokers();
    // Of loopback's other addresses, where no test beside this one may take the port in between.
    let taken = TcpListener::bind("127.83.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("HTTP_LISTEN", &address).start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    gateway.wait_for_log("ERROR", &[&address, "HTTP_LISTEN", "off", "in use"]);
    drop(taken);
    assert_eq!(http::address(&gateway), address);
    wait_for(&address, "/readyz", 200, "ready");
    assert_eq!(gateway.log_of("ERROR").len(), 1, "told once");
}

#[test]
fn a_request_has_its_time_however_slowly_it_comes_in() {
    let (mqtt, kafka) = brokers();
    let gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    let begin = Instant::now();
    let streams: Vec<_> = (0..5).map(|_| connect(&address)).collect();
    for stream in &streams {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    let mut open: Vec<_> = streams.iter().collect();
    wait::until("all to be closed", || {
        open.retain(|stream| {
            let mut stream: &std::net::TcpStream = stream;
            let read = stream.write_all(b"X").and_then(|()| stream.read(&mut [0; 16]));
            match read {
                Ok(0) => false,
                Ok(_) => panic!("answered"),
                Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        });
        if open.is_empty() { Ok(()) } else { Err(format!("{} are open", open.len())) }
    });
    assert!(begin.elapsed() > Duration::from_secs(4), "they had no time: {:?}", begin.elapsed());
    gateway.assert_quiet();
}

/// `tidegate health`, with nothing but HTTP_LISTEN: code and what it says.
fn health(listen: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let arguments = [&["health"], arguments].concat();
    let output =
        Setup::empty().set("HTTP_LISTEN", listen).set("http_proxy", "http://127.0.0.1:1").run(&arguments);
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(out.lines().count() + error.lines().count(), 1, "one line: {out}{error}");
    (output.status.code(), out + &error)
}

#[test]
fn health_does_not_take_another_program_for_tidegate() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    });
    let (code, said) = health(&address, &[]);
    assert!(code == Some(1) && said.contains("another program"), "{code:?} {said}");
    answers.join().unwrap();
}

#[test]
fn health_asks_the_running_gateway_and_needs_one_variable() {
    let (mqtt, kafka) = brokers();
    let mut gateway: Gateway = setup(&mqtt, &kafka).start();
    let address = http::address(&gateway);
    assert_eq!(health(&address, &[]), (Some(0), "healthy\n".to_owned()));
    let (code, said) = health(&address, &["--ready"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("tidegate: not ready: MQTT: not connected"), "{said}");
    let _link = mqtt.session();
    wait_for(&address, "/readyz", 200, "ready");
    let (code, said) = health(&address.replace("127.0.0.1", "0.0.0.0"), &["--ready"]);
    assert!(code == Some(0) && said.starts_with("ready"), "{code:?} {said}");
    gateway.signal(Signal::KILL);
    gateway.wait_for_exit(wait::PATIENCE);
    let (code, said) = health(&address, &[]);
    assert!(code == Some(1) && said.contains("does not answer"), "{code:?} {said}");
    let (code, said) = health("off", &[]);
    assert!(code == Some(1) && said.contains("HTTP_LISTEN is off"), "{code:?} {said}");
    let (code, said) = health("127.0.0.1:0", &[]);
    assert!(code == Some(1) && said.contains("port 0"), "{code:?} {said}");
    let (code, said) = health("nonsense", &[]);
    assert!(code == Some(1) && said.contains("expected ADDRESS:PORT"), "{code:?} {said}");
}
