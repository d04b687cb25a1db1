//! Configuration: all problems at once, each naming its variable; exit code 2; `.env` in development only; and no
//! secret anywhere (guarantee G9).

use std::fs;

use crate::support::kafka_broker::Cluster;
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;
use crate::support::wait;

fn refused(setup: &Setup) -> String {
    let output = setup.run(&[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "errors go to stderr: {:?}", String::from_utf8_lossy(&output.stdout));
    stderr
}

#[test]
fn all_problems_are_reported_at_once() {
    let setup = Setup::empty()
        .set("RUN_MODE", "STAGING")
        .set("LOG_LVL", "loud")
        .set("MQTT_BROKER_PORT", "70000")
        .set("MQTT_KEEP_ALIVE_SEC", "soon")
        .set("TOPIC_LIST", "no-colon")
        .set("WILDCARD_TOPIC_LIST", "a/#/b:t,ok/+:bad topic!")
        .set("KAFKA_COMPRESSION", "brotli")
        .set("SASL_SSL", "perhaps");
    let stderr = refused(&setup);
    let expected = [
        "RUN_MODE",
        "STAGING",
        "LOG_LVL",
        "loud",
        "MQTT_BROKER_URL",
        "MQTT_BROKER_PORT",
        "70000",
        "MQTT_CLIENT_ID",
        "MQTT_KEEP_ALIVE_SEC",
        "soon",
        "TOPIC_LIST",
        "no-colon",
        "WILDCARD_TOPIC_LIST",
        "a/#/b",
        "bad topic!",
        "KAFKA_BROKER",
        "KAFKA_COMPRESSION",
        "brotli",
        "SASL_SSL",
        "perhaps",
    ];
    let missing: Vec<&str> = expected.into_iter().filter(|word| !stderr.contains(word)).collect();
    assert!(missing.is_empty(), "not in the report: {missing:?}\n{stderr}");
}

#[test]
fn each_wrong_value_is_refused_by_its_name() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let wrong = [
        ("MQTT_BROKER_URL", "ftp://host"),
        ("MQTT_BROKER_PORT", "0"),
        ("MQTT_CLIENT_ID", ""),
        ("MQTT_QOS", "3"),
        ("MQTT_VERSION", "4"),
        ("MQTT_RECEIVE_MAXIMUM", "0"),
        ("MQTT_RECEIVE_MAXIMUM", "65536"),
        ("MQTT_MAX_PACKET_BYTES", "-1"),
        ("KAFKA_BROKER", "host:port"),
        ("KAFKA_LINGER_MS", "x"),
        ("KAFKA_ACKS", "2"),
        ("KAFKA_KEY", "{nonsense}"),
        ("KAFKA_HEADERS", "id,colour"),
        ("DEFAULT_KAFKA_TOPIC", "not/valid"),
        ("DEAD_LETTER_TOPIC", ".."),
        ("SHUTDOWN_TIMEOUT_SEC", "never"),
        ("SPOOL_AFTER_MS", "49"),
        ("SPOOL_MAX_BYTES", "1000000"),
        ("SPOOL_MIN_FREE_BYTES", "64MiB"),
        ("SPOOL_SEGMENT_BYTES", "16777217"),
        ("SPOOL_FULL", "drop-newest"),
        ("SPOOL_RESTORE_PER_SEC", "-1"),
        ("WILDCARD_TOPIC_LIST", "a/+:t-{2}"),
        ("WILDCARD_TOPIC_LIST", "a+/b:t"),
        ("TOPIC_LIST", "a/+:t"),
        ("TOPIC_LIST", &format!("a:{}", "x".repeat(250))),
    ];
    for (name, value) in wrong {
        let setup = Setup::new(&mqtt, &kafka).unset("DB_PERSIST_PATH").wildcards("ok/#:t").set(name, value);
        let stderr = refused(&setup);
        assert!(stderr.contains(name), "{name}={value}: {stderr}");
        assert!(value.len() > 100 || stderr.contains(value), "the value of {name}={value}: {stderr}");
    }
}

#[test]
fn no_secret_is_in_any_output() {
    const SECRET: &str = "s3cr3t-never-shown";
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let with_secrets = |setup: Setup| {
        setup
            .set("MQTT_USER_NAME", "edge")
            .set("MQTT_USER_PASSWORD", SECRET)
            .set("LOG_LVL", "trace")
            .wildcards("a/#:t")
    };
    // A healthy run with everything logged.
    let gateway = with_secrets(Setup::new(&mqtt, &kafka)).start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert!(gateway.log().iter().all(|line| !line.contains(SECRET)), "{:#?}", gateway.log());
    // Refused for other reasons, with secrets in every place that takes one.
    for arguments in [&[][..], &["check"], &["route", "a/b"]] {
        let setup = with_secrets(Setup::new(&mqtt, &kafka))
            .set("SASL_OAUTHBEARER_CLIENT_SECRET", SECRET)
            .set("SASL_PASSWORD", SECRET)
            .set("SASL_SSL", "perhaps")
            .set("MQTT_BROKER_URL", &format!("mqtt://edge:{SECRET}@127.0.0.1"));
        let output = setup.run(arguments);
        assert_ne!(output.status.code(), Some(0));
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains(SECRET), "{arguments:?}: {text}");
        }
    }
}

#[test]
fn a_secret_is_read_from_a_file_without_its_last_newline() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("MQTT_USER_NAME", "edge");
    fs::write(setup.folder().join("password"), "from a file\n").unwrap();
    let path = setup.folder().join("password").to_str().unwrap().to_owned();
    let _gateway = setup.set("MQTT_USER_PASSWORD_FILE", &path).start();
    let connect = mqtt.accept().expect_connect();
    assert_eq!(connect.login.map(|login| login.password).as_deref(), Some("from a file"));
}

#[test]
fn a_secret_file_that_cannot_be_read_is_a_configuration_error() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let setup = Setup::new(&mqtt, &kafka)
        .wildcards("a/#:t")
        .set("MQTT_USER_NAME", "edge")
        .set("MQTT_USER_PASSWORD_FILE", "absent-file");
    let stderr = refused(&setup);
    assert!(stderr.contains("MQTT_USER_PASSWORD_FILE"), "{stderr}");
    // Somebody may have put the secret itself where its file is to be named.
    assert!(!stderr.contains("absent-file"), "{stderr}");
}

#[test]
fn development_reads_the_env_file_and_production_does_not() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let without_mode =
        || Setup::new(&mqtt, &kafka).unset("RUN_MODE").unset("MQTT_CLIENT_ID").wildcards("a/#:t");
    let env = "MQTT_CLIENT_ID=from-env-file\n";

    let setup = without_mode();
    fs::write(setup.folder().join(".env"), env).unwrap();
    let _development = setup.start();
    assert_eq!(mqtt.accept().expect_connect().client_id, "from-env-file");

    let setup = without_mode().set("RUN_MODE", "PRODUCTION");
    fs::write(setup.folder().join(".env"), env).unwrap();
    assert!(refused(&setup).contains("MQTT_CLIENT_ID"));
}

#[test]
fn the_environment_wins_over_the_env_file_and_a_named_file_is_read_in_any_mode() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let setup =
        Setup::new(&mqtt, &kafka).unset("MQTT_CLIENT_ID").set("KAFKA_KEY", "{topic}").wildcards("a/+:t");
    fs::write(setup.folder().join("site.env"), "MQTT_CLIENT_ID=named\nWILDCARD_TOPIC_LIST=other/#:t\n")
        .unwrap();
    let output = setup.run(&["--env-file", "site.env", "route", "a/b"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("a/+"), "{stdout}");
}

#[test]
fn the_settings_of_the_seed_program_start_unchanged() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t1", 1).topic("t2", 1));
    let _gateway = Setup::new(&mqtt, &kafka)
        .set("TOPIC_LIST", "test/topic1:t1,test/topic2:t2")
        .set("WILDCARD_TOPIC_LIST", "wild/+/x:t1,wild/#:t2")
        .set("INVOKE_LATENCY_SEC", "10")
        .set("INVOKE_MAX_GOROUTINE", "1000")
        .set("INVOKE_MIN_GOROUTINE", "50")
        .set("SASL_SSL", "false")
        .start();
    let link = mqtt.session();
    link.publish("test/topic1", "a", 1);
    link.publish("wild/1/x", "b", 2);
    link.publish("wild/1/y", "c", 3);
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(kafka.values("t1", 0), ["a", "b"]);
    assert_eq!(kafka.values("t2", 0), ["c"]);
}

#[test]
fn one_warning_for_each_overlapping_pair_of_rules() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1).topic("u", 1));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/+/x:t,a/#:u,b/#:t").start();
    let link = mqtt.session();
    for id in 1..=20 {
        link.publish("a/1/x", "v", id);
    }
    kafka.wait_for_values("t", 0, &["v"; 20]);
    let line = gateway.wait_for_log("WARN", &["a/+/x", "a/#"]);
    let warnings = gateway.log_of("WARN");
    assert_eq!(warnings, [line]);
}

#[test]
fn the_log_level_is_obeyed() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let gateway = Setup::new(&mqtt, &kafka).wildcards("a/#:t").set("LOG_LVL", "info").start();
    let link = mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    wait::until("an INFO line", || {
        if gateway.log_of("INFO").is_empty() { Err(format!("{:?}", gateway.log())) } else { Ok(()) }
    });
    assert!(gateway.log_of("DEBUG").is_empty() && gateway.log_of("TRACE").is_empty());
    assert!(gateway.log().iter().all(|line| !line.contains("a/b")), "nothing per message above DEBUG");
}

#[test]
fn a_key_that_stands_where_its_path_belongs_is_not_shown() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let pasted = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----";
    let in_one_line = "-----BEGIN PRIVATE KEY----- hunter2 -----END PRIVATE KEY-----";
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t");
    for key in [pasted, in_one_line, "x\nhunter2"] {
        for (variable, others) in [
            ("KAFKA_KEY_FILE", &[("KAFKA_SECURITY_PROTOCOL", "SSL"), ("KAFKA_CERT_FILE", "/c")][..]),
            ("KAFKA_KEY_FILE", &[("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")]),
            ("MQTT_KEY_FILE", &[("MQTT_BROKER_URL", "mqtts://127.0.0.1"), ("MQTT_CERT_FILE", "/c")]),
            ("MQTT_KEY_FILE", &[("MQTT_BROKER_URL", "mqtt://127.0.0.1")]),
        ] {
            let setup = others.iter().fold(setup.again(), |setup, (name, value)| setup.set(name, value));
            let stderr = refused(&setup.set(variable, key));
            let told = format!("{variable}: expected the path of a file");
            assert!(stderr.contains(&told) && !stderr.contains("hunter2"), "{stderr}");
        }
    }
}

#[test]
fn a_password_that_a_comma_cuts_is_not_shown() {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start());
    let setup = Setup::new(&mqtt, &kafka).wildcards("a/#:t");
    for list in ["user:hunt,er2@b:9092", "a:9092,user:hunt,er2@b:9092"] {
        let stderr = refused(&setup.again().set("KAFKA_BROKER", list));
        assert!(stderr.contains("KAFKA_BROKER: expected") && !stderr.contains("hunt"), "{stderr}");
    }
}
