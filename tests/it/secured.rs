//! Secured clusters: TLS, mTLS, every SASL mechanism, tokens that are refreshed and refused, sessions that end.

use std::time::Duration;

use crate::support::certificates::Authority;
use crate::support::guard::{Door, Guard, Rules};
use crate::support::kafka_broker::{Act, Api, Cluster, Gate, dead_address};
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;
use crate::support::token_endpoint::{Answer, TokenEndpoint};
use crate::support::wait;

pub const YEARS: (i32, i32) = (2020, 2090);
pub const SECRET: &str = "hunter2-in-no-log";

/// A scripted broker behind a guard.
pub struct Site {
    pub mqtt: MqttBroker,
    pub kafka: Cluster,
    pub guard: Guard,
}

pub fn site(rules: Rules) -> Site {
    let (mqtt, kafka) = (MqttBroker::start(), Cluster::start().topic("t", 1));
    let guard = Guard::start(kafka.port(), rules);
    kafka.advertise_port(guard.port);
    Site { mqtt, kafka, guard }
}

impl Site {
    pub fn setup(&self, protocol: &str) -> Setup {
        Setup::new(&self.mqtt, &self.kafka)
            .set("KAFKA_BROKER", &format!("127.0.0.1:{}", self.guard.port))
            .set("KAFKA_SECURITY_PROTOCOL", protocol)
            .set("LOG_LVL", "trace")
            .wildcards("a/#:t")
    }

    pub fn with_tokens(&self, protocol: &str, endpoint: &TokenEndpoint) -> Setup {
        self.setup(protocol)
            .set("SASL_OAUTHBEARER_CLIENT_ID", "edge")
            .set("SASL_OAUTHBEARER_CLIENT_SECRET", SECRET)
            .set("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", &endpoint.url())
    }
}

/// What `check` says of Kafka; MQTT is not there, so that a test can still take the gateway's first connection.
pub fn check(setup: &Setup) -> String {
    let nobody = dead_address();
    let (_, port) = nobody.rsplit_once(':').unwrap();
    let output = setup.again().set("MQTT_BROKER_PORT", port).run(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("Kafka ")).expect("check tells of Kafka");
    line.to_owned()
}

pub fn rules(door: Door) -> Rules {
    Rules {
        tls: None,
        door,
        lifetime: Duration::ZERO,
        bare: false,
        token_life: Duration::ZERO,
        hangs_up: false,
    }
}

/// One message goes through, and nothing secret is in the log.
pub fn passes(site: &Site, setup: Setup) {
    let gateway = setup.start();
    let link = site.mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert_eq!(site.kafka.values("t", 0), ["x"]);
    gateway.assert_quiet();
    assert!(gateway.log().iter().all(|line| !line.contains(SECRET)), "{:#?}", gateway.log());
}

#[test]
fn tls_with_a_ca_file() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let site = site(Rules { tls: Some(ca.server("127.0.0.1", YEARS, None)), ..rules(Door::Open) });
    passes(&site, site.setup("SSL").set("KAFKA_CA_FILE", ca.ca()));
}

#[test]
fn mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, clients) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "clients"));
    let tls = ca.server("127.0.0.1", YEARS, Some(&clients));
    let site = site(Rules { tls: Some(tls), ..rules(Door::Open) });
    let (certificate, key) = clients.client("edge-7");
    let setup = site.setup("SSL").set("KAFKA_CA_FILE", ca.ca());
    let said = check(&setup);
    assert!(said.contains("asks for a client certificate, and none is configured"), "{said}");
    passes(&site, setup.set("KAFKA_CERT_FILE", &certificate).set("KAFKA_KEY_FILE", &key));
}

#[test]
fn plain_and_scram_let_in_who_knows_the_password() {
    for bare in [false, true] {
        let plain = Door::Plain { user: "edge", password: SECRET };
        for (mechanism, door) in
            [("PLAIN", plain), ("SCRAM-SHA-256", Door::Scram { user: "edge", password: SECRET })]
        {
            let site = site(Rules { bare, ..rules(door) });
            let setup = site
                .setup("SASL_PLAINTEXT")
                .set("SASL_MECHANISM", mechanism)
                .set("SASL_USERNAME", "edge")
                .set("SASL_PASSWORD", SECRET);
            let said = check(&setup.again().set("SASL_PASSWORD", "wrong-one"));
            let expected = format!("{mechanism} authentication is refused by the broker");
            assert!(said.contains(&expected) && !said.contains("wrong-one"), "{said}");
            let gateway = setup.start();
            let link = site.mqtt.session();
            link.publish("a/b", "x", 1);
            link.wait_for_pubacks(&[1]);
            assert!(gateway.log().iter().all(|line| !line.contains(SECRET)), "{:#?}", gateway.log());
            assert_eq!(site.guard.seen().refused, 1);
        }
    }
}

#[test]
fn a_mechanism_that_the_broker_does_not_have_is_told_with_those_it_has() {
    let site = site(rules(Door::Scram { user: "edge", password: SECRET }));
    let setup = site
        .setup("SASL_PLAINTEXT")
        .set("SASL_MECHANISM", "PLAIN")
        .set("SASL_USERNAME", "edge")
        .set("SASL_PASSWORD", SECRET);
    let said = check(&setup);
    assert!(said.contains("the broker does not offer PLAIN but SCRAM-SHA-256: set SASL_MECHANISM"), "{said}");
}

#[test]
fn oauthbearer_over_tls_with_a_token_endpoint_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let endpoint = TokenEndpoint::start(Answer::Token(600), Some(ca.server("127.0.0.1", YEARS, None)));
    let door = Door::Tokens(endpoint.accepted());
    let site = site(Rules { tls: Some(ca.server("127.0.0.1", YEARS, None)), ..rules(door) });
    let setup = site
        .with_tokens("SASL_SSL", &endpoint)
        .unset("KAFKA_SECURITY_PROTOCOL")
        .set("SASL_SSL", "true")
        .set("KAFKA_CA_FILE", ca.ca())
        .set("SASL_OAUTHBEARER_CA_FILE", ca.ca())
        .set("SASL_OAUTHBEARER_SCOPE", "kafka write")
        .set("SASL_OAUTHBEARER_EXTENSIONS", "logicalCluster=lkc-1,poolId=p");
    passes(&site, setup);
    let asked = endpoint.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let expected =
        format!("grant_type=client_credentials&scope=kafka+write&client_id=edge&client_secret={SECRET}");
    assert_eq!((asked[0].body.as_str(), &asked[0].authorization), (expected.as_str(), &None));
    assert_eq!(site.guard.seen().extensions, ["logicalCluster=lkc-1", "poolId=p"]);
}

#[test]
fn the_client_may_show_its_secret_by_header() {
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let site = site(rules(Door::Tokens(endpoint.accepted())));
    let setup = site.with_tokens("SASL_PLAINTEXT", &endpoint).set("SASL_OAUTHBEARER_CLIENT_AUTH", "basic");
    let said = check(&setup);
    assert!(said.contains(": reached, 1 broker"), "{said}");
    let asked = endpoint.asked();
    assert_eq!(asked[0].body, "grant_type=client_credentials");
    assert!(asked[0].authorization.as_ref().is_some_and(|header| header.starts_with("Basic ")), "{asked:?}");
}

#[test]
fn a_session_is_prolonged_on_the_same_connection_before_it_ends() {
    let endpoint = TokenEndpoint::start(Answer::Token(2), None);
    let lifetime = Duration::from_millis(1500);
    let site = site(Rules { lifetime, ..rules(Door::Tokens(endpoint.accepted())) });
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    let link = site.mqtt.session();
    let mut sent = Vec::new();
    let until = std::time::Instant::now() + Duration::from_secs(8);
    while std::time::Instant::now() < until {
        let id = sent.len() as u16 + 1;
        link.publish("a/b", format!("{id}"), id);
        link.wait_for_pubacks(&(1..=id).collect::<Vec<_>>());
        sent.push(id.to_string());
    }
    assert_eq!(site.kafka.values("t", 0), sent, "each once and in order");
    let seen = site.guard.seen();
    assert_eq!((seen.expired, seen.refused), (0, 0), "{seen:?}");
    let most = seen.let_in.iter().filter(|(connection, _)| *connection == seen.let_in[0].0).count();
    assert!(most >= 4, "the first connection authenticates again and again: {seen:?}");
    assert!(seen.connections <= 2, "a bootstrap connection and the broker's: {seen:?}");
    let warnings: Vec<String> =
        gateway.log_of("WARN").into_iter().filter(|line| !line.contains("unencrypted")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

#[test]
fn an_endpoint_that_is_away_makes_kafka_away_and_the_spool_takes_over() {
    let endpoint = TokenEndpoint::start(Answer::Say(503, "{\"error\":\"down\"}".to_owned()), None);
    let site = site(rules(Door::Tokens(endpoint.accepted())));
    let mut gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).spooling().start();
    let link = site.mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    assert!(site.kafka.values("t", 0).is_empty());
    gateway.wait_for_log("WARN", &["the token endpoint has a fault of its own: 503 down; trying again"]);
    gateway.wait_for_log("WARN", &["cannot authenticate at", "there is no token for Kafka"]);
    assert!(gateway.is_running());
    endpoint.answer(Answer::Token(600));
    site.kafka.wait_for_values("t", 0, &["x"]);
    gateway.wait_for_log("INFO", &["the token endpoint gives tokens again"]);
}

#[test]
fn each_fault_of_the_endpoint_has_its_own_words() {
    let nonsense = "<html>login</html>".to_owned();
    let refused =
        "{\"error\":\"unauthorized_client\",\"error_description\":\"Invalid client hunter2-in-no-log\"}";
    for (answer, words) in [
        (
            Answer::Say(401, refused.to_owned()),
            "refuses client id or secret: 401 unauthorized_client: Invalid client ***",
        ),
        (Answer::Say(500, String::new()), "has a fault of its own: 500"),
        (Answer::Say(404, String::new()), "answered 404: is SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI right?"),
        (Answer::Say(200, nonsense), "is no token: it is not JSON"),
        (Answer::Say(200, "{}".to_owned()), "is no token: it has no access_token"),
        (Answer::Close, "cannot be reached"),
        (Answer::Say(200, "{\"access_token\":\"x\",\"expires_in\":0}".to_owned()), "has expired"),
    ] {
        let endpoint = TokenEndpoint::start(answer, None);
        let site = site(rules(Door::Tokens(endpoint.accepted())));
        let said = check(&site.with_tokens("SASL_PLAINTEXT", &endpoint));
        assert!(said.contains("NOT reached") && said.contains(words), "{words}: {said}");
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[test]
fn what_is_wrong_with_the_way_to_the_endpoint_is_told_by_check() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "other"));
    let absent = folder.path().join("absent.pem").to_str().unwrap().to_owned();
    for (server, ca_file, words) in [
        (ca.server("127.0.0.1", YEARS, None), other.ca(), "unknown authority: SASL_OAUTHBEARER_CA_FILE"),
        (
            ca.server("other.test", YEARS, None),
            ca.ca(),
            "is not for the host name 127.0.0.1, but for other.test",
        ),
        (ca.server("127.0.0.1", (2001, 2002), None), ca.ca(), "has expired"),
        (ca.server("127.0.0.1", YEARS, None), &absent, "the file of SASL_OAUTHBEARER_CA_FILE"),
    ] {
        let endpoint = TokenEndpoint::start(Answer::Token(600), Some(server));
        let site = site(rules(Door::Tokens(endpoint.accepted())));
        let setup = site.with_tokens("SASL_PLAINTEXT", &endpoint).set("SASL_OAUTHBEARER_CA_FILE", ca_file);
        let said = check(&setup);
        assert!(said.contains("the token endpoint") && said.contains(words), "{words}: {said}");
        assert!(endpoint.asked().is_empty(), "the secret goes to nobody whose certificate is not accepted");
    }
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let site = site(rules(Door::Tokens(endpoint.accepted())));
    for (url, words) in [
        (format!("http://{}/token", dead_address()), "cannot be reached: Connection refused"),
        (format!("https://127.0.0.1:{}/token", endpoint.port), "it may not speak TLS on this port"),
    ] {
        let setup = site.with_tokens("SASL_PLAINTEXT", &endpoint);
        let setup = setup.set("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", &url);
        let setup =
            if url.starts_with("https") { setup.set("SASL_OAUTHBEARER_CA_FILE", ca.ca()) } else { setup };
        let said = check(&setup);
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_slow_endpoint_is_told_and_waited_for() {
    let endpoint = TokenEndpoint::start(Answer::Nothing, None);
    let site = site(rules(Door::Tokens(endpoint.accepted())));
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    gateway.wait_for_log("WARN", &["the token endpoint", "did not answer within 10 s"]);
    endpoint.answer(Answer::Token(600));
    gateway.wait_for_log("INFO", &["the token endpoint gives tokens again"]);
    gateway.wait_for_log("INFO", &["connected to Kafka by"]);
}

#[test]
fn a_session_is_prolonged_while_an_answer_is_due() {
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let lifetime = Duration::from_secs(3);
    let site = site(Rules { lifetime, ..rules(Door::Tokens(endpoint.accepted())) });
    let _gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    let link = site.mqtt.session();
    link.publish("a/b", "1", 1);
    link.wait_for_pubacks(&[1]);
    // The broker holds an answer until the session's time is nearly over: SASL comes behind it.
    let gate = Gate::default();
    site.kafka.next(Api::Produce, 1, Act::HoldAfter(gate.clone()));
    link.publish("a/b", "2", 2);
    site.kafka.wait_for_values("t", 0, &["1", "2"]);
    let in_all = site.guard.seen().let_in.len();
    wait::holds(Duration::from_millis(2700), "the answer is held", || Ok::<(), String>(()));
    link.publish("a/b", "3", 3);
    gate.open();
    link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(site.kafka.values("t", 0), ["1", "2", "3"]);
    wait::until("a second authentication", || {
        let seen = site.guard.seen();
        if seen.let_in.len() > in_all { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let seen = site.guard.seen();
    assert_eq!((seen.expired, seen.connections <= 2), (0, true), "{seen:?}");
}

#[test]
fn a_refused_token_is_replaced_and_the_refusal_told() {
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let site = site(rules(Door::Tokens(std::sync::Arc::default())));
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    gateway.wait_for_log("WARN", &["OAUTHBEARER authentication is refused by the broker", "invalid_token"]);
    endpoint.wait_for_asked(2);
    assert!(gateway.log().iter().all(|line| !line.contains("token-1") && !line.contains(SECRET)));
}

#[test]
fn what_is_wrong_with_tls_is_told_by_check_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "other"));
    let absent = folder.path().join("absent.pem").to_str().unwrap().to_owned();
    for (server, ca_file, words) in [
        (ca.server("127.0.0.1", YEARS, None), other.ca(), "is from an unknown authority: KAFKA_CA_FILE"),
        (
            ca.server("other.test", YEARS, None),
            ca.ca(),
            "is not for the host name 127.0.0.1, but for other.test",
        ),
        (ca.server("127.0.0.1", (2001, 2002), None), ca.ca(), "has expired"),
        (ca.server("127.0.0.1", (2089, 2090), None), ca.ca(), "is not valid yet"),
        (ca.server("127.0.0.1", YEARS, None), &absent, "the file of KAFKA_CA_FILE"),
    ] {
        let site = site(Rules { tls: Some(server), ..rules(Door::Open) });
        let said = check(&site.setup("SSL").set("KAFKA_CA_FILE", ca_file));
        assert!(said.contains(words), "{words}: {said}");
    }
    // Plain text to a TLS listener, and TLS to a plain one.
    let site = site(Rules { tls: Some(ca.server("127.0.0.1", YEARS, None)), ..rules(Door::Open) });
    let said = check(&site.setup("PLAINTEXT"));
    assert!(said.contains("it speaks TLS on this port"), "{said}");
    let plain = Setup::new(&site.mqtt, &site.kafka).wildcards("a/#:t").set("KAFKA_SECURITY_PROTOCOL", "SSL");
    let said = check(&plain);
    assert!(said.contains("it may not speak TLS on this port"), "{said}");
}

#[test]
fn a_renewed_ca_file_counts_at_the_next_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, old) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "old"));
    let site = site(Rules { tls: Some(ca.server("127.0.0.1", YEARS, None)), ..rules(Door::Open) });
    let file = folder.path().join("trusted.pem");
    std::fs::copy(&old.ca_file, &file).unwrap();
    let gateway = site.setup("SSL").set("KAFKA_CA_FILE", file.to_str().unwrap()).start();
    gateway.wait_for_log("WARN", &["unknown authority"]);
    let link = site.mqtt.session();
    link.publish("a/b", "x", 1);
    std::fs::copy(&ca.ca_file, &file).unwrap();
    link.wait_for_pubacks(&[1]);
    wait::until("the record", || if site.kafka.values("t", 0) == ["x"] { Ok(()) } else { Err("not yet") });
}

#[test]
fn large_messages_go_through_tls_and_the_subscriber_reads_them_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let door = Door::Plain { user: "edge", password: SECRET };
    let site = site(Rules { tls: Some(ca.server("127.0.0.1", YEARS, None)), ..rules(door) });
    let secured = [
        ("KAFKA_CA_FILE", ca.ca()),
        ("SASL_MECHANISM", "PLAIN"),
        ("SASL_USERNAME", "edge"),
        ("SASL_PASSWORD", SECRET),
    ];
    let setup = secured.iter().fold(site.setup("SASL_SSL"), |setup, (name, value)| setup.set(name, value));
    let gateway = setup.start();
    let link = site.mqtt.session();
    let payloads: Vec<String> = (0..5_u8).map(|n| char::from(b'a' + n).to_string().repeat(300_000)).collect();
    for (payload, id) in payloads.iter().zip(1..) {
        link.publish("a/b", payload, id);
    }
    link.wait_for_pubacks(&[1, 2, 3, 4, 5]);
    assert_eq!(site.kafka.values("t", 0), payloads);
    gateway.assert_quiet();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_subscriber-kafka"))
        .env_clear()
        .current_dir(folder.path())
        .env("KAFKA_BROKER", format!("127.0.0.1:{}", site.guard.port))
        .env("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
        .env("TOPIC_LIST", "t")
        .envs(secured)
        .args(["--from", "beginning", "--expect", "5", "--idle-sec", "20"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !said.contains(SECRET), "{said}");
    let read = String::from_utf8(output.stdout).unwrap();
    for payload in &payloads {
        assert!(read.contains(payload), "{said}");
    }
}
