//! The command line: what it says, where, and with which exit code (0 clean, 1 runtime failure, 2 configuration).

use std::process::Output;

use crate::support::kafka_broker::{Cluster, dead_address};
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ended(output: &Output, code: i32) -> (String, String) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
    (stdout, stderr)
}

/// Of the design's table: what there is from the first release on.
pub const VARIABLES: [&str; 43] = [
    "RUN_MODE",
    "MQTT_BROKER_URL",
    "MQTT_BROKER_PORT",
    "MQTT_CLIENT_ID",
    "MQTT_USER_NAME",
    "MQTT_USER_PASSWORD",
    "MQTT_QOS",
    "MQTT_VERSION",
    "MQTT_KEEP_ALIVE_SEC",
    "MQTT_SESSION_EXPIRY_SEC",
    "MQTT_RECEIVE_MAXIMUM",
    "MQTT_MAX_PACKET_BYTES",
    "LOG_LVL",
    "TOPIC_LIST",
    "WILDCARD_TOPIC_LIST",
    "INVOKE_LATENCY_SEC",
    "INVOKE_MAX_GOROUTINE",
    "INVOKE_MIN_GOROUTINE",
    "KAFKA_BROKER",
    "SASL_SSL",
    "SASL_OAUTHBEARER_CLIENT_ID",
    "SASL_OAUTHBEARER_CLIENT_SECRET",
    "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI",
    "DB_PERSIST_PATH",
    "SPOOL_AFTER_MS",
    "SPOOL_MAX_BYTES",
    "SPOOL_MIN_FREE_BYTES",
    "SPOOL_SEGMENT_BYTES",
    "SPOOL_FULL",
    "SPOOL_RESTORE_PER_SEC",
    "KAFKA_SECURITY_PROTOCOL",
    "SASL_MECHANISM",
    "SASL_USERNAME",
    "SASL_PASSWORD",
    "KAFKA_COMPRESSION",
    "KAFKA_LINGER_MS",
    "KAFKA_BATCH_BYTES",
    "KAFKA_ACKS",
    "KAFKA_KEY",
    "KAFKA_HEADERS",
    "DEFAULT_KAFKA_TOPIC",
    "DEAD_LETTER_TOPIC",
    "SHUTDOWN_TIMEOUT_SEC",
];

#[test]
fn help_names_every_variable() {
    let (help, _) = ended(&Setup::empty().run(&["--help"]), 0);
    let missing: Vec<&str> = VARIABLES.into_iter().filter(|name| !help.contains(name)).collect();
    assert!(missing.is_empty(), "not in --help: {missing:?}\n{help}");
}

#[test]
fn version_is_that_of_the_crate() {
    for arguments in [["version"], ["--version"]] {
        let (stdout, _) = ended(&Setup::empty().run(&arguments), 0);
        assert!(stdout.contains(env!("CARGO_PKG_VERSION")), "{arguments:?}: {stdout}");
    }
}

#[test]
fn an_unknown_command_is_a_configuration_error() {
    let (_, stderr) = ended(&Setup::empty().run(&["chek"]), 2);
    assert!(stderr.contains("chek"), "{stderr}");
}

#[test]
fn route_tells_rule_topic_and_key() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let setup = Setup::new(&mqtt, &kafka)
        .set("TOPIC_LIST", "site/north/special:exact")
        .wildcards("site/+/#:site-{1}")
        .set("KAFKA_KEY", "k-{1}");
    let (stdout, _) = ended(&setup.run(&["route", "site/south/x"]), 0);
    for part in ["site/+/#", "site-south", "k-south"] {
        assert!(stdout.contains(part), "`{part}` in: {stdout}");
    }
    let (stdout, _) = ended(&setup.run(&["route", "site/north/special"]), 0);
    assert!(stdout.contains("exact"), "{stdout}");
}

#[test]
fn route_of_an_invalid_topic_says_so() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let setup = Setup::new(&mqtt, &kafka).wildcards("site/+/#:t");
    let output = setup.run(&["route", "site/+/x"]);
    assert_ne!(output.status.code(), Some(0), "a topic name holds no wildcard");
    assert!(text(&output.stderr).contains("site/+/x"), "{}", text(&output.stderr));
}

#[test]
fn check_reaches_both_brokers_and_tells_what_would_go_where() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup = Setup::new(&mqtt, &kafka).set("TOPIC_LIST", "one/two:t").wildcards("a/#:t");
    let output = std::thread::scope(|scope| {
        let run = scope.spawn(|| setup.run(&["check"]));
        let link = mqtt.accept();
        let connect = link.expect_connect();
        // Not the gateway's own id with its session: the running gateway must not be taken over by a check.
        assert!(
            connect.client_id != "ring-gateway",
            "check connects as {}, which would take over the running gateway",
            connect.client_id
        );
        link.connack(false, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
        run.join().unwrap()
    });
    let (stdout, _) = ended(&output, 0);
    for part in ["one/two", "a/#", "t"] {
        assert!(stdout.contains(part), "`{part}` in: {stdout}");
    }
}

#[test]
fn check_fails_with_code_1_when_a_broker_cannot_be_reached_and_names_it() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let dead = dead_address();
    let port = dead.rsplit(':').next().unwrap();
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_BROKER_PORT", port);
    let output = setup.run(&["check"]);
    let all = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{all}");
    assert!(all.contains(port), "{all}");
}

/// What `check` says of the spool with these settings, and the code it ends with.
fn check_of_the_spool(changes: &[(&str, &str)]) -> (String, Option<i32>) {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup = Setup::new(&mqtt, &kafka).unset("DB_PERSIST_PATH").wildcards("a/#:t");
    std::fs::write(setup.folder().join("file"), "").unwrap();
    let setup = changes.iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let output = std::thread::scope(|scope| {
        let run = scope.spawn(|| setup.run(&["check"]));
        let link = mqtt.accept();
        link.expect_connect();
        link.connack(false, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
        run.join().unwrap()
    });
    let all = text(&output.stdout) + &text(&output.stderr);
    let lines = all.lines().filter(|line| line.contains("spool")).collect::<Vec<_>>().join("\n");
    assert!(!setup.folder().join("spool").exists(), "check makes nothing");
    (lines, output.status.code())
}

#[test]
fn check_tells_where_the_spool_is_and_whether_it_can_be_used() {
    assert_eq!(
        check_of_the_spool(&[]),
        (
            "spool: in memory: a crash or power loss loses what Kafka has not taken; at most 67108864 bytes; when full: block"
                .to_owned(),
            Some(0)
        )
    );
    let on_disk = [("DB_PERSIST_PATH", "spool"), ("SPOOL_FULL", "drop-oldest")];
    assert_eq!(
        check_of_the_spool(&on_disk),
        ("spool: spool; at most 1073741824 bytes; when full: drop-oldest".to_owned(), Some(0))
    );
    let (told, code) = check_of_the_spool(&[("DB_PERSIST_PATH", "file")]);
    assert!(told.contains("it is not a directory") && told.contains("DB_PERSIST_PATH"), "{told}");
    assert_eq!(code, Some(1));
}

#[test]
fn check_with_a_wrong_configuration_has_code_2() {
    let output = Setup::empty().set("RUN_MODE", "PRODUCTION").run(&["check"]);
    ended(&output, 2);
}
