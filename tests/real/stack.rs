//! The stage itself: what the other tests rely on, without tidegate.

use std::time::Duration;

use tidegate::clients::payload::Payload;

use crate::support::certs::text;
use crate::support::consumer::{Record, judge};
use crate::support::kafka::{Cluster, RULES, shared_one, shared_three};
use crate::support::process::installed;
use crate::support::publisher::Load;
use crate::support::secured::{USER, password};
use crate::support::site::{CLIENT, SECRET, shared_site};
use crate::support::{Mosquitto, Publisher, Stage, Version, read_all};

#[test]
fn a_publisher_reaches_mosquitto_and_kafka_is_ready() {
    let stage = Stage::new("stack_ready");
    let mosquitto = Mosquitto::start(&stage.dir, "max_queued_messages 0");
    let kafka = shared_one();
    kafka.create("stack-ready", &kafka.topic());
    let mut publisher = Publisher::start(&stage, &mosquitto, &Load::new("s", 20_000, 0));
    publisher.finish(Duration::from_secs(60));
    assert!(read_all(&kafka.bootstrap(), "stack-ready").is_empty());
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back() {
    let stage = Stage::new("stack_leader");
    let mut kafka = shared_three();
    let topic = stage.unique("t");
    kafka.create(&topic, &kafka.topic());
    let id = kafka.leader_of(&topic, 0).id;
    kafka.leader_of(&topic, 0).kill();
    crate::support::until("another leader", Duration::from_secs(30), || {
        let now = kafka.leader_of(&topic, 0).id;
        if now > 0 && now != id { Ok(()) } else { Err(format!("{now}")) }
    });
    let killed = kafka.brokers.iter_mut().find(|broker| broker.id == id).unwrap();
    killed.up();
    kafka.wait_in_sync(&topic, 3);
}

#[test]
fn a_frozen_broker_goes_on() {
    let stage = Stage::new("stack_freeze");
    let kafka = Cluster::start(&stage.dir, 1, "");
    kafka.freeze();
    kafka.thaw();
    kafka.create("after", &kafka.topic());
}

#[test]
fn a_rule_of_access_keeps_writers_out_until_it_is_taken_away() {
    let stage = Stage::new("stack_rules");
    let kafka = Cluster::start(&stage.dir, 1, RULES);
    kafka.create("ruled", &kafka.topic());
    let message = stage.dir.join("message");
    std::fs::write(&message, "m").unwrap();
    let write = || {
        let mut kcat = installed("kcat");
        kcat.args(["-P", "-b", &kafka.bootstrap(), "-t", "ruled", "-X", "message.timeout.ms=5000"]);
        let output = kcat.arg(&message).output().expect("kcat starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(write().0, "nobody is kept out yet, or any more");
    kafka.deny_writing("ruled");
    let (written, errors) = write();
    assert!(!written && errors.contains("authorization failed"), "{errors}");
    assert_eq!(read_all(&kafka.bootstrap(), "ruled").len(), 1);
    kafka.allow_again("ruled");
    assert!(write().0, "nobody is kept out yet, or any more");
    assert_eq!(read_all(&kafka.bootstrap(), "ruled").len(), 2);
    assert_eq!(kafka.end_offset("ruled"), 2);
}

/// By each way that kcat knows, and not with a wrong password or without a certificate: what refuses tidegate then is not the stage.
#[test]
fn a_secured_site_lets_in_whom_it_should() {
    let _stage = Stage::new("stack_site");
    let site = shared_site();
    let client = site.authority.client("kcat");
    let logs_in = |listener: &str, settings: &[&str]| {
        let mut kcat = installed("kcat");
        kcat.args(["-L", "-m", "5", "-b", &site.address(listener)]);
        kcat.args(["-X", &format!("ssl.ca.location={}", text(&site.authority.file))]);
        for setting in settings {
            kcat.args(["-X", setting]);
        }
        let output = kcat.output().expect("kcat starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (listener, protocol) in [("PASSWORDS", "sasl_ssl"), ("CLEAR", "sasl_plaintext")] {
        let protocol = format!("security.protocol={protocol}");
        let plain = [&protocol, "sasl.mechanism=PLAIN", "sasl.username=edge"];
        let right = format!("sasl.password={}", password("PLAIN"));
        let (good, errors) = logs_in(listener, &[&plain[..], &[&right]].concat());
        assert!(good, "{listener}: {errors}");
        let (good, errors) = logs_in(listener, &[&plain[..], &["sasl.password=wrong"]].concat());
        assert!(!good && errors.contains("Authentication failed"), "{listener}: {errors}");
    }
    let certificate = format!("ssl.certificate.location={}", text(&client.certificate));
    let key = format!("ssl.key.location={}", text(&client.key));
    let (good, errors) = logs_in("MUTUAL", &["security.protocol=ssl", &certificate, &key]);
    assert!(good, "{errors}");
    assert!(!logs_in("MUTUAL", &["security.protocol=ssl"]).0, "without a certificate");
    assert!(site.keycloak.token(CLIENT, SECRET).is_ok());
    assert!(site.keycloak.token(CLIENT, "wrong").is_err());
}

/// librdkafka before 2.6.1 repeats its nonce, which Kafka refuses since CVE-2024-56128: here Kafka's own client is the witness.
#[test]
fn a_secured_site_knows_its_users_of_scram() {
    let stage = Stage::new("stack_scram");
    let site = shared_site();
    let logs_in = |mechanism: &str, password: &str| {
        let file = stage.dir.join("client.properties");
        let module = "org.apache.kafka.common.security.scram.ScramLoginModule";
        let lines = format!(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism={mechanism}\nrequest.timeout.ms=10000\n\
             sasl.jaas.config={module} required username=\"{USER}\" password=\"{password}\";\n"
        );
        std::fs::write(&file, lines).expect("client.properties");
        let address = site.address("CLEAR");
        let tool = ["kafka.admin.ConfigCommand", "--describe", "--entity-type", "topics"];
        let client = ["--bootstrap-server", &address, "--command-config", text(&file)];
        let output = Version::V4_3.java(&[&tool[..], &client].concat()).output().expect("java starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let (good, errors) = logs_in(mechanism, &password(mechanism));
        assert!(good, "{mechanism}: {errors}");
    }
    let (good, errors) = logs_in("SCRAM-SHA-512", &password("SCRAM-SHA-256"));
    assert!(!good && errors.contains("invalid credentials"), "{errors}");
}

/// The judge must be able to condemn: a clean delivery passes, and each way of spoiling it is named.
#[test]
fn the_judge_notices_what_is_lost_repeated_swapped_or_under_a_wrong_key() {
    let record = |device: &str, seq: u64| {
        let payload = Payload { run: "r".into(), device: device.into(), conn: 1, seq, t_ns: 0 };
        let value = String::from_utf8(payload.encode(0)).unwrap();
        Record { partition: 0, offset: 0, timestamp_ms: 0, key: device.into(), headers: String::new(), value }
    };
    let clean: Vec<Record> = (1..=10).flat_map(|seq| [record("a", seq), record("b", seq)]).collect();
    assert!(judge(&clean, 20).is_clean(20));
    let spoilt = |spoil: &dyn Fn(&mut Vec<Record>)| {
        let mut records = clean.clone();
        spoil(&mut records);
        let verdict = judge(&records, 20);
        assert!(!verdict.is_clean(20), "spoilt and not noticed");
        format!("{verdict:?}")
    };
    assert!(spoilt(&|records| drop(records.remove(7))).contains("lost: 1"));
    assert!(spoilt(&|records| drop(records.pop())).contains("lost: 1"));
    assert!(spoilt(&|records| records.push(record("a", 3))).contains("duplicates: 1"));
    assert!(spoilt(&|records| records.swap(2, 4)).contains("out_of_order: 1"));
    assert!(spoilt(&|records| records[4].key = "b".into()).contains("wrong_key: 1"));
    assert!(spoilt(&|records| records[4].partition = 1).contains("moved: 1"));
}
