//! A secured site with something wrong in it (issue 5): "Wrong secret, wrong audience, wrong CA, wrong host name, expired certificate,
//! endpoint unreachable: message, exit code of `check`, behaviour of `run`; nothing secret in any log at trace."

use std::time::Duration;

use crate::support::certs::{Authority, text};
use crate::support::consumer::judge_topic;
use crate::support::flow::UNLIMITED;
use crate::support::forward::Forward;
use crate::support::publisher::Load;
use crate::support::secrets::{WRONG, assert_tells_nothing};
use crate::support::secured::{AUDIENCE, password};
use crate::support::site::{SECRET, Site, TOKENS, Way, shared_site};
use crate::support::{Gateway, Mosquitto, Publisher, Stage, until};

type Mend = Box<dyn FnOnce(&Site, &mut Gateway)>;

/// Something that is wrong, what it is called, and how it is mended.
struct Fault {
    name: &'static str,
    /// What `check` and the log say of it.
    words: &'static str,
    gateway: Gateway,
    topic: String,
    mend: Mend,
}

/// `run` goes on and keeps what comes in its spool; when the fault is mended everything arrives, once, in order. Each fault has a
/// gateway of its own, all get the same messages.
#[test]
fn what_is_wrong_is_named_and_outlived() {
    let stage = Stage::new("faults");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let site = shared_site();
    let filter = format!("{}/#", stage.unique("d"));
    let mut faults = tokens_at_fault(&stage, &mosquitto, &site);
    faults.extend(certificates_at_fault(&stage, &mosquitto, &site));
    faults.push(password_at_fault(&stage, &mosquitto, &site));
    for fault in &mut faults {
        let (code, said) = fault.gateway.check();
        assert_eq!(code, Some(1), "{}: {said}", fault.name);
        assert!(said.contains(fault.words), "{}: no {:?} in: {said}", fault.name, fault.words);
        assert_tells_nothing(fault.name, &said);
        fault.gateway.up_and_subscribed(&mosquitto, &filter);
    }
    let load = Load::new(&stage.unique("d"), 2_000, 500);
    Publisher::start(&stage, &mosquitto, &load).finish(Duration::from_secs(60));
    for fault in &mut faults {
        keeps_all(fault, &site, load.total);
    }
    for Fault { name, mut gateway, topic, mend, .. } in faults {
        mend(&site, &mut gateway);
        site.arrive(&topic, load.total, &gateway);
        gateway.stop_in_order();
        let verdict = judge_topic(&site.kafka.bootstrap(), &topic, load.total);
        assert!(verdict.is_clean(load.total), "{name}: {verdict:?}");
        assert_tells_nothing(name, &gateway.log_text());
        stage.report(load.total, &verdict, &format!("{name}, until it was mended"));
    }
}

/// It runs, its spool has everything, its log says why, and Kafka has got nothing.
fn keeps_all(fault: &mut Fault, site: &Site, sent: u64) {
    let (name, words) = (fault.name, fault.words);
    until(&format!("{name} to keep all"), Duration::from_secs(30), || {
        let kept = fault.gateway.spool().waiting();
        if kept == sent { Ok(()) } else { Err(format!("{kept} are kept\n{}", fault.gateway.log_tail())) }
    });
    fault.gateway.assert_runs();
    let complaints = fault.gateway.complaints().join("\n");
    assert!(complaints.contains(words), "{name}: no {words:?} in: {complaints}");
    assert_eq!(site.kafka.end_offset(&fault.topic), 0, "{name}");
}

fn tokens_at_fault(stage: &Stage, mosquitto: &Mosquitto, site: &Site) -> Vec<Fault> {
    let fault = |name: &'static str, words: &'static str, settings: &[(&str, &str)], mend: Mend| {
        let (gateway, topic) = site.gateway(stage, name, mosquitto, &TOKENS);
        let gateway = settings.iter().fold(gateway, |gateway, (name, value)| gateway.set(name, value));
        Fault { name, words, gateway, topic, mend }
    };
    site.keycloak.create_client("late", SECRET, AUDIENCE);
    let late = [("SASL_OAUTHBEARER_CLIENT_ID", "late"), ("SASL_OAUTHBEARER_CLIENT_SECRET", WRONG)];
    let mend_secret = Box::new(|site: &Site, _: &mut Gateway| site.keycloak.set_secret("late", WRONG));
    site.keycloak.create_client("elsewhere", SECRET, "elsewhere");
    let elsewhere = [("SASL_OAUTHBEARER_CLIENT_ID", "elsewhere")];
    let mend_audience =
        Box::new(|site: &Site, _: &mut Gateway| site.keycloak.add_audience("elsewhere", AUDIENCE));
    let forward = Forward::prepare();
    let port = |port: u16| format!(":{port}/");
    let uri = site.keycloak.token_uri().replace(&port(site.keycloak.secure_port()), &port(forward.port()));
    let away = [("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", uri.as_str())];
    let mend_endpoint =
        Box::new(move |site: &Site, _: &mut Gateway| forward.begin(site.keycloak.secure_port()));
    let (wrong_ca, mend_ca) = wrong_authority(stage, "endpoint");
    let other_ca = [("SASL_OAUTHBEARER_CA_FILE", wrong_ca.as_str())];
    vec![
        fault("wrong-secret", "refuses client id or secret", &late, mend_secret),
        fault("wrong-audience", "authentication is refused by the broker", &elsewhere, mend_audience),
        fault("endpoint-away", "cannot be reached", &away, mend_endpoint),
        fault("endpoint-of-another-ca", "is from an unknown authority", &other_ca, mend_ca),
    ]
}

/// A CA file with an authority that nobody here has, and how it gets the right one while the gateway runs.
fn wrong_authority(stage: &Stage, name: &str) -> (String, Mend) {
    let file = Authority::new(&stage.dir, &format!("another-for-{name}")).file;
    let path = text(&file).to_owned();
    let mend = move |site: &Site, _: &mut Gateway| {
        std::fs::copy(&site.authority.file, &file).expect("CA file");
    };
    (path, Box::new(mend))
}

fn certificates_at_fault(stage: &Stage, mosquitto: &Mosquitto, site: &Site) -> Vec<Fault> {
    let fault = |name: &'static str, words: &'static str, listener: &'static str| {
        let way = Way { listener, protocol: "SSL", mechanism: "" };
        let (gateway, topic) = site.gateway(stage, name, mosquitto, &way);
        let mend = Box::new(move |site: &Site, _: &mut Gateway| {
            let right = site.authority.server("right", &["localhost", "kafka.example"]);
            site.kafka.set_certificate(listener, &right.both);
        });
        Fault { name, words, gateway, topic, mend }
    };
    let scram = Way { listener: "PASSWORDS", protocol: "SASL_SSL", mechanism: "SCRAM-SHA-512" };
    let (gateway, topic) = site.gateway(stage, "wrong-ca", mosquitto, &scram);
    let (wrong_ca, mend) = wrong_authority(stage, "kafka");
    let gateway = gateway.set("KAFKA_CA_FILE", &wrong_ca);
    vec![
        fault("wrong-host-name", "is not for the host name localhost, but for kafka.example", "STRANGER"),
        fault("expired-certificate", "has expired", "EXPIRED"),
        Fault { name: "wrong-ca", words: "is from an unknown authority", gateway, topic, mend },
    ]
}

/// A password is read at the start: the operator mends it and starts tidegate again.
fn password_at_fault(stage: &Stage, mosquitto: &Mosquitto, site: &Site) -> Fault {
    let scram = Way { listener: "PASSWORDS", protocol: "SASL_SSL", mechanism: "SCRAM-SHA-256" };
    let (gateway, topic) = site.gateway(stage, "wrong-password", mosquitto, &scram);
    let file = stage.dir.join("password");
    std::fs::write(&file, WRONG).expect("password file");
    let gateway = gateway.set("SASL_PASSWORD", "").set("SASL_PASSWORD_FILE", text(&file));
    let mend = Box::new(move |_: &Site, gateway: &mut Gateway| {
        std::fs::write(&file, password("SCRAM-SHA-256")).expect("password file");
        gateway.stop_in_order();
        gateway.up();
    });
    Fault { name: "wrong-password", words: "authentication is refused by the broker", gateway, topic, mend }
}
