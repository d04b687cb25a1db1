//! KAFKA_SECURITY_PROTOCOL and all that belongs to it.

use super::*;
use crate::auth::ClientAuth;
use crate::config::{KafkaSasl, SecurityProtocol};
use crate::kafka::sasl::Hash;

const TOKEN: [(&str, &str); 4] = [
    ("SASL_SSL", "true"),
    ("SASL_OAUTHBEARER_CLIENT_ID", "edge"),
    ("SASL_OAUTHBEARER_CLIENT_SECRET", "hunter2"),
    ("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "https://keycloak.example/realms/gateway/token"),
];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&TOKEN[..], more].concat()
}

#[test]
fn sasl_ssl_of_the_seed_means_tls_and_oauthbearer() {
    let config = valid(&with(&[]));
    let security = &config.kafka.security;
    assert_eq!(security.protocol, SecurityProtocol::SaslSsl);
    assert!(security.tls.is_some());
    let Some(KafkaSasl::OAuthBearer { token, extensions }) = &security.sasl else { panic!("{security:?}") };
    assert_eq!((token.client_id.as_str(), token.client_secret.expose()), ("edge", "hunter2"));
    assert_eq!((token.client_auth, &token.scope, extensions.len()), (ClientAuth::Post, &None, 0));
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn each_protocol_and_mechanism_is_understood() {
    let plain = valid(&[]);
    assert_eq!(plain.kafka.security.protocol, SecurityProtocol::Plaintext);
    let mtls = valid(&[
        ("KAFKA_SECURITY_PROTOCOL", "ssl"),
        ("KAFKA_CA_FILE", "/ca"),
        ("KAFKA_CERT_FILE", "/cert"),
        ("KAFKA_KEY_FILE", "/key"),
    ]);
    let tls = mtls.kafka.security.tls.expect("TLS");
    assert_eq!(tls.ca_file.expect("CA").variable, "KAFKA_CA_FILE");
    assert_eq!(tls.client.expect("mTLS").key.path.to_str(), Some("/key"));
    for (word, hash) in [("scram-sha-256", Hash::Sha256), ("SCRAM-SHA-512", Hash::Sha512)] {
        let config = valid(&[
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("SASL_MECHANISM", word),
            ("SASL_USERNAME", "user"),
            ("SASL_PASSWORD", "hunter2"),
        ]);
        assert!(
            matches!(config.kafka.security.sasl, Some(KafkaSasl::Scram { hash: found, .. }) if found == hash)
        );
        assert!(config.warnings.is_empty(), "SCRAM protects the password: {:?}", config.warnings);
    }
    let config = valid(&[
        ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
        ("SASL_MECHANISM", "PLAIN"),
        ("SASL_USERNAME", "user"),
        ("SASL_PASSWORD", "hunter2"),
    ]);
    assert!(matches!(config.kafka.security.sasl, Some(KafkaSasl::Plain { .. })));
    assert!(config.warnings.iter().any(|warning| warning.contains("travels to Kafka unencrypted")));
    let config = valid(&with(&[
        ("SASL_OAUTHBEARER_SCOPE", "kafka"),
        ("SASL_OAUTHBEARER_CLIENT_AUTH", "basic"),
        ("SASL_OAUTHBEARER_EXTENSIONS", "logicalCluster=lkc-1,poolId=p"),
        ("SASL_OAUTHBEARER_CA_FILE", "/ca"),
    ]));
    let Some(KafkaSasl::OAuthBearer { token, extensions }) = config.kafka.security.sasl else { panic!() };
    assert_eq!((token.client_auth, token.scope.as_deref()), (ClientAuth::Basic, Some("kafka")));
    assert_eq!(extensions.len(), 2);
    assert_eq!(token.ca_file.expect("CA").variable, "SASL_OAUTHBEARER_CA_FILE");
}

#[test]
fn the_named_protocol_overrides_what_the_seed_knows() {
    let config = valid(&[("SASL_SSL", "true"), ("KAFKA_SECURITY_PROTOCOL", "SSL")]);
    let security = &config.kafka.security;
    assert!(security.protocol == SecurityProtocol::Ssl && security.sasl.is_none());
    let told = "SASL_SSL=true has no effect: KAFKA_SECURITY_PROTOCOL is SSL, and counts";
    assert!(config.warnings.iter().any(|warning| warning == told), "{:?}", config.warnings);
}

#[test]
fn what_is_missing_or_has_no_effect_is_told_by_name() {
    let sasl = ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL");
    for (settings, name, what) in [
        (
            vec![("KAFKA_SECURITY_PROTOCOL", "TLS")],
            "KAFKA_SECURITY_PROTOCOL",
            "expected one of PLAINTEXT, SSL",
        ),
        (vec![("SASL_SSL", "perhaps")], "SASL_SSL", "expected one of"),
        (vec![sasl, ("SASL_MECHANISM", "GSSAPI")], "SASL_MECHANISM", "Kerberos is not supported"),
        (vec![("KAFKA_CA_FILE", "/x")], "KAFKA_CA_FILE", "has no effect"),
        (vec![("SASL_MECHANISM", "PLAIN")], "SASL_MECHANISM", "has no effect"),
        (
            vec![("KAFKA_SECURITY_PROTOCOL", "SSL"), ("KAFKA_CERT_FILE", "/x")],
            "KAFKA_KEY_FILE",
            "required with KAFKA_CERT_FILE",
        ),
        (
            vec![("KAFKA_SECURITY_PROTOCOL", "SSL"), ("KAFKA_KEY_FILE", "/x")],
            "KAFKA_CERT_FILE",
            "required with KAFKA_KEY_FILE",
        ),
        (with(&[("SASL_USERNAME", "u")]), "SASL_USERNAME", "has no effect, as SASL_MECHANISM is OAUTHBEARER"),
        (
            with(&[("SASL_OAUTHBEARER_CLIENT_AUTH", "jwt")]),
            "SASL_OAUTHBEARER_CLIENT_AUTH",
            "expected one of post, basic",
        ),
        (with(&[("SASL_OAUTHBEARER_EXTENSIONS", "auth=x")]), "SASL_OAUTHBEARER_EXTENSIONS", "not auth"),
        (
            with(&[("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "keycloak")]),
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI",
            "https://",
        ),
        (
            with(&[("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "https://u:hunter2@h/t")]),
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI",
            "no user name",
        ),
    ] {
        let told = problem(&settings);
        assert!(told.starts_with(name) && told.contains(what), "{settings:?}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    let all = Config::from_variables(&Variables::from_iter(
        [("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")].map(|(name, value)| (name.to_owned(), value.to_owned())),
    ))
    .unwrap_err()
    .to_string();
    for name in ["CLIENT_ID", "CLIENT_SECRET", "TOKEN_ENDPOINT_URI"] {
        assert!(all.contains(&format!("SASL_OAUTHBEARER_{name}: it is required")), "{all}");
    }
}

#[test]
fn an_endpoint_without_tls_is_warned_of_unless_it_is_this_machine() {
    let near = ("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "http://127.0.0.1:8080/token");
    assert!(valid(&with(&[near])).warnings.is_empty());
    let far = ("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "http://keycloak.example/token");
    let warnings = valid(&with(&[far])).warnings;
    assert!(warnings.iter().any(|warning| warning.contains("travel unencrypted")), "{warnings:?}");
}

#[test]
fn the_security_of_kafka_is_read_alone_for_the_clients() {
    let read = |settings: &[(&str, &str)]| {
        let owned = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        crate::config::kafka_security(&Variables::from_iter(owned)).unwrap()
    };
    let (security, warnings) = read(&[("KAFKA_SECURITY_PROTOCOL", "SSL")]);
    assert!(security.tls.is_some() && warnings.is_empty(), "{warnings:?}");
    let plain = [
        ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
        ("SASL_MECHANISM", "PLAIN"),
        ("SASL_USERNAME", "u"),
        ("SASL_PASSWORD", "p"),
    ];
    let (_, warnings) = read(&plain);
    assert!(warnings.concat().contains("travels to Kafka unencrypted"), "{warnings:?}");
}
