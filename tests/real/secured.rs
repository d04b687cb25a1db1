//! A secured site (issue 5): tokens from Keycloak, passwords, certificates, and everything that can be wrong with them.
//!
//! The judge reads by the broker's listener without security: what arrived is counted, not how the judge logs in.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::certs::text;
use crate::support::consumer::judge_topic;
use crate::support::flow::UNLIMITED;
use crate::support::publisher::Load;
use crate::support::secrets::{ROTATED, assert_tells_nothing, told};
use crate::support::site::{CLIENT, SECRET, Site, TOKENS, Way, session_life, shared_site, token_life};
use crate::support::stage::seconds;
use crate::support::wait::outage;
use crate::support::{Gateway, Mosquitto, Publisher, Stage};

/// Messages a second.
const RATE: u64 = 500;

#[test]
fn the_search_for_secrets_finds_them() {
    let header = STANDARD.encode(format!("{CLIENT}:{SECRET}"));
    let found = |text: &str| told(&format!("before {text} after"));
    assert_eq!(found(SECRET).as_deref(), Some(SECRET));
    assert_eq!(found(&header), Some(header));
    assert_eq!(found("eyJhbGciOi").as_deref(), Some("eyJ"));
    assert_eq!(found("nothing"), None);
}

/// "SCRAM and PLAIN against real brokers. mTLS against real [...] Kafka": each login beside the others, for the same messages, and
/// Kafka is stopped and started under the load, so that each logs in again.
#[test]
fn each_password_and_a_certificate_log_in_to_kafka_and_do_so_again() {
    let stage = Stage::new("logins");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let mut site = shared_site();
    let client = site.authority.client("tidegate-client");
    let way = |listener, protocol, mechanism| Way { listener, protocol, mechanism };
    let ways = [
        ("plain-tls", way("PASSWORDS", "SASL_SSL", "PLAIN")),
        ("scram-256-tls", way("PASSWORDS", "SASL_SSL", "SCRAM-SHA-256")),
        ("scram-512-tls", way("PASSWORDS", "SASL_SSL", "SCRAM-SHA-512")),
        ("plain", way("CLEAR", "SASL_PLAINTEXT", "PLAIN")),
        ("scram-256", way("CLEAR", "SASL_PLAINTEXT", "SCRAM-SHA-256")),
        ("scram-512", way("CLEAR", "SASL_PLAINTEXT", "SCRAM-SHA-512")),
        ("certificate", way("MUTUAL", "SSL", "")),
        ("token", TOKENS),
    ];
    let filter = format!("{}/#", stage.unique("d"));
    let mut gateways = Vec::new();
    for (name, way) in ways {
        let (mut gateway, topic) = site.gateway(&stage, name, &mosquitto, &way);
        if way.listener == "MUTUAL" {
            gateway = gateway
                .set("KAFKA_CERT_FILE", text(&client.certificate))
                .set("KAFKA_KEY_FILE", text(&client.key));
        }
        let (code, text) = gateway.check();
        assert_eq!(code, Some(0), "{name}: {text}");
        assert_tells_nothing(name, &text);
        gateway.up_and_subscribed(&mosquitto, &filter);
        gateways.push((name, gateway, topic));
    }
    let load = Load::new(&stage.unique("d"), RATE * 15, RATE);
    let mut publisher = Publisher::start(&stage, &mosquitto, &load);
    site.arrive(&gateways[0].2, RATE, &gateways[0].1);
    site.kafka.down();
    site.kafka.up_again();
    publisher.finish(Duration::from_secs(60));
    for (name, gateway, topic) in &mut gateways {
        site.arrive(topic, load.total, gateway);
        gateway.stop_in_order();
        let verdict = judge_topic(&site.kafka.bootstrap(), topic, load.total);
        assert!(verdict.is_clean(load.total), "{name}: {verdict:?}");
        assert_tells_nothing(name, &gateway.log_text());
        stage.report(load.total, &verdict, &format!("login by {name}; Kafka restarted under load"));
    }
}

/// "Token life 60 s, connections.max.reauth.ms=45000: 15 minutes with idle gaps and a 2-minute Keycloak outage and a secret
/// rotation: 0 lost, 0 duplicates, no authentication error while Keycloak is up." At full size that; everyday with shorter lives.
#[test]
fn tokens_and_sessions_end_and_begin_again_through_idleness_an_outage_of_keycloak_and_a_rotation() {
    let stage = Stage::new("oauthbearer");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let mut site = shared_site();
    let secret = stage.dir.join("secret");
    std::fs::write(&secret, SECRET).expect("secret file");
    let (gateway, topic) = site.gateway(&stage, "tidegate", &mosquitto, &TOKENS);
    let gateway = gateway
        .set("SASL_OAUTHBEARER_CLIENT_SECRET", "")
        .set("SASL_OAUTHBEARER_CLIENT_SECRET_FILE", text(&secret));
    let mut run = Tokens { stage, mosquitto, gateway, topic, sent: 0, loads: 0 };
    let filter = format!("{}/#", run.stage.unique("d"));
    run.gateway.up_and_subscribed(&run.mosquitto, &filter);
    let refusals = site.kafka.failed_logins();

    run.load(&site, seconds(3, 60));
    run.stays_idle(&site, seconds(25, 150));
    run.load(&site, seconds(3, 60));
    assert_eq!(
        run.gateway.complaints_but_of_slowness(),
        Vec::<String>::new(),
        "Keycloak was up all the time"
    );

    // Keycloak is away for longer than its last token is valid.
    let away = seconds(25, 120);
    site.keycloak.down();
    let mut publisher = run.begin(RATE * (away.as_secs() + 5));
    outage(away);
    run.gateway.assert_runs();
    site.keycloak.up();
    publisher.finish(away + Duration::from_secs(60));
    site.arrive(&run.topic, run.sent, &run.gateway);
    let complaints = run.gateway.complaints_but_of_slowness();
    assert!(!complaints.is_empty(), "Keycloak was away and nothing was said");

    // A rotation: the new secret is laid down, and a restart in order takes it up.
    run.load(&site, seconds(1, 60));
    std::fs::write(&secret, ROTATED).expect("secret file");
    site.keycloak.set_secret(CLIENT, ROTATED);
    assert!(site.keycloak.token(CLIENT, SECRET).is_err(), "the old secret is still good");
    let mut publisher = run.begin(RATE * 5);
    run.gateway.stop_in_order();
    run.gateway.up();
    publisher.finish(Duration::from_secs(60));
    site.arrive(&run.topic, run.sent, &run.gateway);
    run.stays_idle(&site, seconds(25, 150));
    run.load(&site, seconds(3, 300));
    site.keycloak.set_secret(CLIENT, SECRET);

    run.gateway.stop_in_order();
    assert_eq!(
        run.gateway.complaints_but_of_slowness(),
        complaints,
        "nothing new is complained about when Keycloak is back"
    );
    assert_eq!(site.kafka.failed_logins(), refusals, "Kafka refused nobody");
    assert_tells_nothing("the log", &run.gateway.log_text());
    let verdict = judge_topic(&site.kafka.bootstrap(), &run.topic, run.sent);
    verdict.assert_clean(run.sent);
    let remark = format!(
        "tokens of {} s, sessions of {} s, Keycloak away for {} s, secret rotated",
        token_life().as_secs(),
        session_life().as_secs(),
        away.as_secs()
    );
    run.stage.report(run.sent, &verdict, &remark);
}

/// The gateway of the test above, and what it was sent.
struct Tokens {
    stage: Stage,
    mosquitto: Mosquitto,
    gateway: Gateway,
    topic: String,
    sent: u64,
    loads: u64,
}

impl Tokens {
    fn begin(&mut self, total: u64) -> Publisher {
        self.loads += 1;
        self.sent += total;
        let name = format!("publisher-{}", self.loads);
        Publisher::start_as(
            &self.stage,
            &name,
            &self.mosquitto,
            &Load::new(&self.stage.unique("d"), total, RATE),
        )
    }

    /// A load of this length, and everything has arrived.
    fn load(&mut self, site: &Site, length: Duration) {
        let mut publisher = self.begin(RATE * length.as_secs());
        publisher.finish(length + Duration::from_secs(30));
        site.arrive(&self.topic, self.sent, &self.gateway);
    }

    /// Nothing is sent for this long, which is longer than tokens and sessions live; and the connections to Kafka are the same
    /// ones afterwards: the session was renewed (KIP-368), not begun anew.
    fn stays_idle(&mut self, site: &Site, length: Duration) {
        let before = self.gateway.process().connections_to(site.port("TOKENS"));
        assert!(!before.is_empty(), "no connection to Kafka");
        outage(length);
        let after = self.gateway.process().connections_to(site.port("TOKENS"));
        assert_eq!(
            before, after,
            "connections to Kafka by their ports, before and after {length:?} of idleness"
        );
    }
}
