//! Secured clusters that misbehave: clocks that differ, refusals in the middle of a session, brokers that stop, endpoints that
//! are silent. What is told of it, and that it is outlived.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::secured::{SECRET, Site, YEARS, check, passes, rules, site};
use crate::support::certificates::Authority;
use crate::support::guard::{Door, Rules};
use crate::support::token_endpoint::{Answer, TokenEndpoint};
use crate::support::wait;

/// Publishes one message after the other for a time, each acknowledged before the next. Gives what was sent.
fn publish_for(span: Duration, site: &Site) -> Vec<String> {
    let link = site.mqtt.session();
    let mut sent = Vec::new();
    let until = Instant::now() + span;
    while Instant::now() < until {
        let id = sent.len() as u16 + 1;
        link.publish("a/b", format!("{id}"), id);
        link.wait_for_pubacks(&(1..=id).collect::<Vec<_>>());
        sent.push(id.to_string());
    }
    sent
}

#[test]
fn a_broker_whose_clock_is_ahead_gets_a_new_token_on_the_same_connection() {
    // By the broker a token lives 3 s, by the endpoint 9: it would be refreshed after 7.
    let endpoint = TokenEndpoint::start(Answer::Token(9), None);
    let token_life = Duration::from_secs(3);
    let site = site(Rules { token_life, ..rules(Door::Tokens(endpoint.accepted())) });
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    // Tokens are replaced every 5 s at most: not so long that the second would have to be.
    let sent = publish_for(Duration::from_millis(5500), &site);
    assert_eq!(site.kafka.values("t", 0), sent, "each once and in order");
    let seen = site.guard.seen();
    assert_eq!((seen.expired, seen.refused), (0, 0), "{seen:?}");
    assert!(seen.connections <= 2, "a bootstrap connection and the broker's: {seen:?}");
    assert!(seen.let_in.iter().any(|(_, token)| token == "token-2"), "{seen:?}");
    gateway.wait_for_log("WARN", &["is its clock ahead of the token endpoint's?"]);
}

#[test]
fn a_token_that_is_over_by_the_brokers_clock_is_replaced() {
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let token_life = Duration::from_secs(300);
    let site = site(Rules { token_life, ..rules(Door::Tokens(endpoint.accepted())) });
    site.guard.spend("token-1");
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    let link = site.mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    gateway.wait_for_log("WARN", &["is its clock ahead of the token endpoint's?"]);
}

#[test]
fn an_endpoint_that_gives_the_same_token_again_is_asked_for_a_newer_one() {
    let token = "{\"access_token\":\"the-same\",\"expires_in\":9}".to_owned();
    let endpoint = TokenEndpoint::start(Answer::Say(200, token), None);
    let accepted = Arc::new(Mutex::new(vec!["the-same".to_owned()]));
    let token_life = Duration::from_secs(3);
    let site = site(Rules { token_life, ..rules(Door::Tokens(accepted)) });
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    gateway.wait_for_log("WARN", &["the authenticated session ends, and there is no newer token"]);
    let seen = site.guard.seen();
    // Twice on one connection: at the start, and once to see that it does not help.
    let most = seen.let_in.iter().filter(|(connection, _)| *connection == seen.let_in[0].0).count();
    assert!(most <= 2, "{seen:?}");
}

#[test]
fn a_refusal_in_the_middle_of_a_session_is_told() {
    let endpoint = TokenEndpoint::start(Answer::Token(600), None);
    let lifetime = Duration::from_secs(2);
    let site = site(Rules { lifetime, ..rules(Door::Tokens(endpoint.accepted())) });
    let gateway = site.with_tokens("SASL_PLAINTEXT", &endpoint).start();
    let link = site.mqtt.session();
    link.publish("a/b", "x", 1);
    link.wait_for_pubacks(&[1]);
    endpoint.accepted().lock().unwrap().clear();
    let words = ["OAUTHBEARER authentication is refused by the broker", "invalid_token"];
    gateway.wait_for_log("WARN", &words);
    let lost: Vec<String> = gateway
        .log_of("WARN")
        .into_iter()
        .filter(|line| line.contains("no answer to the repeated"))
        .collect();
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn the_subscriber_does_not_hammer_a_broker_that_refuses_its_password() {
    let site = site(rules(Door::Plain { user: "edge", password: SECRET }));
    let mut subscriber = Command::new(env!("CARGO_BIN_EXE_subscriber-kafka"))
        .env_clear()
        .current_dir(site.setup("SASL_PLAINTEXT").folder())
        .envs([
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("SASL_MECHANISM", "PLAIN"),
            ("TOPIC_LIST", "t"),
        ])
        .envs([("SASL_USERNAME", "edge"), ("SASL_PASSWORD", "wrong-one")])
        .env("KAFKA_BROKER", format!("127.0.0.1:{}", site.guard.port))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait::until("the refusal", || if site.guard.seen().refused > 0 { Ok(()) } else { Err("none yet") });
    wait::holds(wait::WATCH * 2, "no other try", || {
        let refused = site.guard.seen().refused;
        if refused == 1 { Ok(()) } else { Err(refused) }
    });
    subscriber.kill().unwrap();
    let said = String::from_utf8(subscriber.wait_with_output().unwrap().stderr).unwrap();
    assert!(
        said.contains("warning: KAFKA_SECURITY_PROTOCOL is SASL_PLAINTEXT: the password travels"),
        "{said}"
    );
    assert!(
        said.contains("PLAIN authentication is refused by the broker") && !said.contains("wrong-one"),
        "{said}"
    );
}

#[test]
fn a_broker_that_stops_in_the_middle_of_an_authentication_refuses_nobody() {
    let door = Door::Plain { user: "edge", password: SECRET };
    for (bare, refused) in [(false, false), (true, true)] {
        let site = site(Rules { bare, hangs_up: true, ..rules(door.clone()) });
        let setup = site
            .setup("SASL_PLAINTEXT")
            .set("SASL_MECHANISM", "PLAIN")
            .set("SASL_USERNAME", "edge")
            .set("SASL_PASSWORD", SECRET);
        let said = check(&setup);
        // Brokers before Kafka 1.0 have no other way to say no.
        assert_eq!(said.contains("refused"), refused, "{said}");
        assert!(said.contains("it closed the connection"), "{said}");
    }
}

#[test]
fn check_waits_for_a_silent_endpoint_and_says_which_step_it_hangs_in() {
    let endpoint = TokenEndpoint::start(Answer::Nothing, None);
    let site = site(rules(Door::Tokens(endpoint.accepted())));
    let said = check(&site.with_tokens("SASL_PLAINTEXT", &endpoint));
    assert!(said.contains(&format!("{} did not answer within 10 s", endpoint.url())), "{said}");
}

#[test]
fn check_tells_that_the_clock_is_wrong() {
    let claims = URL_SAFE_NO_PAD.encode("{\"iat\":1000,\"exp\":1600}");
    let token = format!("e30.{claims}.c2ln");
    let endpoint = TokenEndpoint::start(Answer::Say(200, format!("{{\"access_token\":\"{token}\"}}")), None);
    let site = site(rules(Door::Tokens(Arc::new(Mutex::new(vec![token])))));
    let said = check(&site.with_tokens("SASL_PLAINTEXT", &endpoint));
    assert!(
        said.contains(": reached, ") && said.contains("s ahead of the token endpoint's: set it right"),
        "{said}"
    );
}

#[test]
fn an_unreadable_authority_of_a_bundle_does_not_spoil_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bundle = write("bundle.pem", format!("{garbage}{}", std::fs::read_to_string(ca.ca()).unwrap()));
    let alone = write("alone.pem", garbage.to_owned());
    let tls = || Some(ca.server("127.0.0.1", YEARS, None));
    let endpoint = TokenEndpoint::start(Answer::Token(600), tls());
    let site = site(Rules { tls: tls(), ..rules(Door::Tokens(endpoint.accepted())) });
    let setup = |kafka: &str, tokens: &str| {
        site.with_tokens("SASL_SSL", &endpoint)
            .set("KAFKA_CA_FILE", kafka)
            .set("SASL_OAUTHBEARER_CA_FILE", tokens)
    };
    let said = check(&setup(&alone, &bundle));
    assert!(said.contains("KAFKA_CA_FILE") && said.contains("no certificate that can be read"), "{said}");
    let said = check(&setup(&bundle, &alone));
    let words = ["SASL_OAUTHBEARER_CA_FILE", "no certificate that can be read"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    passes(&site, setup(&bundle, &bundle));
}
