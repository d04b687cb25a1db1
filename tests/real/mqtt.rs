//! MQTT beyond 3.1.1 at QoS 1 (issue 5, items 3 and 4): MQTT 5, shared subscriptions, QoS 2, TLS with a certificate of our own.

use std::time::Duration;

use crate::support::certs::{Authority, text};
use crate::support::consumer::judge_topic;
use crate::support::flow::{ARRIVE, Flow, UNLIMITED};
use crate::support::kafka::shared_one;
use crate::support::process::installed;
use crate::support::publisher::Load;
use crate::support::stage::{seconds, size};
use crate::support::{Follower, Gateway, Mosquitto, Publisher, Stage, read_all, until};

/// Messages that may be unacknowledged at once, and so may come again after a kill.
const WINDOW: u64 = 100;

/// "MQTT 5 user properties seen in Kafka headers by kcat."
/// What Mosquitto may have in flight when it is stopped, with its max_inflight_messages of 20.
const RESTART_REPEATS: u64 = 100;

#[test]
fn user_properties_and_content_type_are_headers_of_the_record() {
    let stage = Stage::new("mqtt_5_properties");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let settings = [("MQTT_VERSION", "5"), ("KAFKA_HEADERS", "id,properties")];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let mut publish = installed("mosquitto_pub");
    publish.args(["-V", "5", "-q", "1", "-h", "127.0.0.1", "-p", &mosquitto.port.to_string()]);
    publish.args(["-t", &format!("{}/1", flow.prefix), "-m", "21.5"]);
    publish.args(["-D", "publish", "content-type", "text/plain"]);
    for (name, value) in [("site", "north"), ("unit", "celsius"), ("site", "again")] {
        publish.args(["-D", "publish", "user-property", name, value]);
    }
    let output = publish.output().expect("mosquitto_pub starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = until("the message in Kafka", ARRIVE, || {
        let records = read_all(&kafka.bootstrap(), &flow.topic);
        if records.is_empty() { Err(flow.gateway.log_tail()) } else { Ok(records) }
    });
    flow.gateway.stop_in_order();
    let [record] = records.as_slice() else { panic!("one message became {records:?}") };
    assert_eq!(record.value, "21.5");
    let headers: Vec<&str> =
        record.headers.split(',').filter(|header| !header.starts_with("tidegate.id=")).collect();
    let mut sorted = headers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["mqtt.content_type=text/plain", "site=again", "site=north", "unit=celsius"]);
    let sites: Vec<&&str> = headers.iter().filter(|header| header.starts_with("site=")).collect();
    assert_eq!(sites, [&"site=north", &"site=again"], "a repeated name keeps its order");
    assert_eq!(flow.gateway.complaints_but_of_slowness(), Vec::<String>::new());
}

/// "Two gateways on one shared subscription: each message once." The broker deals out the messages of a device to both, so their order is
/// kept in each gateway only (docs/guarantees.md).
#[test]
fn two_gateways_on_a_shared_subscription_take_each_message_once() {
    let stage = Stage::new("mqtt_5_shared");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let (prefix, bootstrap) = (stage.unique("d"), kafka.bootstrap());
    let filter = format!("$share/gateways/{prefix}/#");
    let mut gateways = ["one", "two"].map(|name| {
        let mut gateway = Gateway::new_as(&stage, name, &mosquitto, &bootstrap, &format!("{filter}:{topic}"))
            .set("MQTT_VERSION", "5");
        gateway.up_and_subscribed(&mosquitto, &filter);
        gateway
    });
    let total = size(10_000, 100_000);
    let follower = Follower::start(&stage.dir, &bootstrap, &topic);
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new(&prefix, total, 2_000));
    publisher.finish(seconds(60, 120));
    follower.wait_distinct(total, ARRIVE);
    let mut shares = Vec::new();
    for gateway in &mut gateways {
        gateway.stop_in_order();
        assert_eq!(gateway.complaints_but_of_slowness(), Vec::<String>::new());
        shares.push(mosquitto.connections_of(&gateway.client_id));
    }
    assert_eq!(shares, [1, 1], "both stayed");
    let verdict = judge_topic(&bootstrap, &topic, total);
    let summary = &verdict.summary;
    assert_eq!((summary.lost, summary.duplicates, summary.received), (0, 0, total), "{verdict:?}");
    stage.report(
        total,
        &verdict,
        "MQTT 5, two gateways on one shared subscription: order is each gateway's own",
    );
}

/// "QoS 2 with Mosquitto restarted and tidegate killed -9 ten times: 0 lost; what is guaranteed about duplicates, shown": as many as
/// were in hand at each kill.
fn exactly_once(name: &str, version: &str) {
    let stage = Stage::new(name);
    let mut mosquitto = Mosquitto::start(&stage.dir, &format!("{UNLIMITED}\npersistence true"));
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let window = WINDOW.to_string();
    let settings = [("MQTT_VERSION", version), ("MQTT_QOS", "2"), ("MQTT_RECEIVE_MAXIMUM", window.as_str())];
    let mut flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &settings);
    let (kills, rate) = (10, size(500, 2_000));
    let total = rate * (2 + 2 * kills);
    let load = Load { qos: 2, ..Load::new(&flow.prefix, total, rate) };
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    for kill in 1..=kills {
        // A random moment within the second after a part of the load has arrived.
        flow.follower.wait_distinct(kill * rate * 2 - rate, ARRIVE);
        if kill % 4 == 2 {
            mosquitto.down();
            mosquitto.up();
        }
        crate::support::wait::outage(Duration::from_millis(fastrand::u64(0..1_000)));
        flow.gateway.kill();
        flow.gateway.up();
    }
    publisher.finish(seconds(120, 300));
    flow.follower.wait_distinct(total, ARRIVE);
    flow.gateway.stop_in_order();
    let verdict = judge_topic(&flow.bootstrap, &flow.topic, total);
    verdict.assert_clean_but_for(kills * WINDOW);
    let remark = format!(
        "MQTT {version} at QoS 2; {kills} times kill -9, window {WINDOW}; Mosquitto restarted 3 times"
    );
    stage.report(total, &verdict, &remark);
}

#[test]
fn qos_2_survives_kills_and_restarts_with_mqtt_3() {
    exactly_once("qos_2", "3.1.1");
}

#[test]
fn qos_2_survives_kills_and_restarts_with_mqtt_5() {
    exactly_once("qos_2_mqtt_5", "5");
}

/// While the process lives nothing at all repeats, whatever the broker goes through.
#[test]
fn qos_2_repeats_nothing_while_tidegate_lives() {
    let stage = Stage::new("qos_2_lives");
    let mut mosquitto = Mosquitto::start(&stage.dir, &format!("{UNLIMITED}\npersistence true"));
    let kafka = shared_one();
    kafka.create(&stage.unique("t"), &kafka.topic());
    let flow = Flow::start(&stage, &mosquitto, &kafka.bootstrap(), &[("MQTT_QOS", "2")]);
    let rate = size(1_000, 2_000);
    let load = Load { qos: 2, ..Load::new(&flow.prefix, rate * 10, rate) };
    let publisher = Publisher::start(&stage, &mosquitto, &load);
    for part in [load.total / 4, load.total / 2] {
        flow.follower.wait_distinct(part, ARRIVE);
        mosquitto.down();
        mosquitto.up();
    }
    flow.end_clean(&stage, publisher, "QoS 2, Mosquitto restarted twice");
}

/// "mTLS against real Mosquitto", over a restart of it. A certificate of another authority is refused and said so, and the right one
/// laid down in its place is taken up at the next try.
#[test]
fn mqtt_by_tls_with_a_certificate_of_our_own() {
    let stage = Stage::new("mqtts");
    let authority = Authority::new(&stage.dir, "authority");
    let another = Authority::new(&stage.dir, "another");
    let server = authority.server("mosquitto", &["localhost"]);
    let (client, stranger) = (authority.client("tidegate"), another.client("stranger"));
    let config = format!("{UNLIMITED}\npersistence true");
    let mut mosquitto = Mosquitto::start_secured(&stage.dir, &server, &authority, &config);
    let kafka = shared_one();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let (prefix, bootstrap) = (stage.unique("d"), kafka.bootstrap());
    let (certificate, key) = (stage.dir.join("ours.pem"), stage.dir.join("ours.key"));
    let lay_down = |identity: &crate::support::certs::Identity| {
        std::fs::copy(&identity.certificate, &certificate).expect("PEM file");
        std::fs::copy(&identity.key, &key).expect("PEM file");
    };
    lay_down(&stranger);
    let port = mosquitto.secure_port.expect("a port for TLS");
    let mut gateway = Gateway::new(&stage, &mosquitto, &bootstrap, &format!("{prefix}/#:{topic}"))
        .set("MQTT_BROKER_URL", "mqtts://localhost")
        .set("MQTT_BROKER_PORT", &port.to_string())
        .set("MQTT_CA_FILE", text(&authority.file))
        .set("MQTT_CERT_FILE", text(&certificate))
        .set("MQTT_KEY_FILE", text(&key));
    let (code, said) = gateway.check();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("refuses the client certificate"), "{said}");
    gateway.up();
    until("a WARN of the certificate", Duration::from_secs(20), || {
        let complaints = gateway.complaints().join("\n");
        if complaints.contains("refuses the client certificate") { Ok(()) } else { Err(complaints) }
    });
    lay_down(&client);
    mosquitto.wait_subscribed(&gateway.client_id, &format!("{prefix}/#"), ARRIVE);
    let (code, said) = gateway.check();
    assert_eq!(code, Some(0), "{said}");
    let follower = Follower::start(&stage.dir, &bootstrap, &topic);
    // Only after some thousand messages is tidegate sure of how this broker gives out packet identifiers, and so of each repeat.
    let load = Load::new(&prefix, 10_000, 2_000);
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    follower.wait_distinct(load.total / 2, ARRIVE);
    mosquitto.down();
    mosquitto.up();
    publisher.finish(Duration::from_secs(60));
    follower.wait_distinct(load.total, ARRIVE);
    gateway.stop_in_order();
    let verdict = judge_topic(&bootstrap, &topic, load.total);
    // A restarted Mosquitto delivers some of what was in flight without DUP (docs/guarantees.md).
    verdict.assert_clean_but_for(RESTART_REPEATS);
    stage.report(load.total, &verdict, "mqtts with a client certificate, Mosquitto restarted");
}
