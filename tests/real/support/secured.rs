//! Listeners of a broker that ask who is there: by token, password or certificate, with TLS and without.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::certs::{Identity, text};
use super::{Cluster, Keycloak};

/// Tokens must be for this.
pub const AUDIENCE: &str = "kafka";
/// The user of PLAIN and SCRAM, and a password of each, so that no mechanism is taken for another.
pub const USER: &str = "edge";

/// What a broker has beyond its listener without security.
#[derive(Default)]
pub struct Secured {
    pub listeners: Vec<Listener>,
    /// Lines for server.properties that all listeners share.
    pub config: String,
    pub java: Vec<String>,
    pub format: Vec<String>,
}

pub struct Listener {
    /// In capitals; tests ask for its address by it.
    pub name: &'static str,
    protocol: &'static str,
    /// Settings, to be prefixed with the listener's name.
    settings: Vec<(String, String)>,
}

/// The password of [`USER`] with this mechanism.
pub fn password(mechanism: &str) -> String {
    format!("pass-{}-9f3c", mechanism.to_lowercase())
}

impl Listener {
    /// TLS with this certificate, and nothing asked of the client.
    pub fn tls(name: &'static str, server: &Identity) -> Listener {
        let settings = certificate(server);
        Listener { name, protocol: "SSL", settings }
    }

    /// TLS for clients whose certificate is of this authority.
    pub fn mutual_tls(name: &'static str, server: &Identity, authority: &Path) -> Listener {
        let mut listener = Listener::tls(name, server);
        let more = [
            ("ssl.client.auth", "required"),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", text(authority)),
        ];
        listener.settings.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        listener
    }

    /// PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, with TLS if there is a certificate.
    pub fn passwords(name: &'static str, server: Option<&Identity>) -> Listener {
        let mut settings = server.map(certificate).unwrap_or_default();
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let plain = format!("{plain} user_{USER}=\"{}\";", password("PLAIN"));
        settings.extend([
            ("sasl.enabled.mechanisms".to_owned(), "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()),
            ("plain.sasl.jaas.config".to_owned(), plain),
            ("scram-sha-256.sasl.jaas.config".to_owned(), scram.to_owned()),
            ("scram-sha-512.sasl.jaas.config".to_owned(), scram.to_owned()),
        ]);
        let protocol = if server.is_some() { "SASL_SSL" } else { "SASL_PLAINTEXT" };
        Listener { name, protocol, settings }
    }

    /// OAUTHBEARER with TLS: a session ends after `session`, unless the client authenticates again (KIP-368).
    pub fn tokens(name: &'static str, server: &Identity, session: Duration) -> Listener {
        let module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;";
        let handler = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler";
        let mut settings = certificate(server);
        settings.extend([
            ("sasl.enabled.mechanisms".to_owned(), "OAUTHBEARER".to_owned()),
            ("oauthbearer.sasl.jaas.config".to_owned(), module.to_owned()),
            ("oauthbearer.sasl.server.callback.handler.class".to_owned(), handler.to_owned()),
            ("oauthbearer.connections.max.reauth.ms".to_owned(), session.as_millis().to_string()),
        ]);
        Listener { name, protocol: "SASL_SSL", settings }
    }
}

fn certificate(server: &Identity) -> Vec<(String, String)> {
    let settings = [("ssl.keystore.type", "PEM"), ("ssl.keystore.location", text(&server.both))];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

impl Secured {
    /// Users of SCRAM are known from the first start on.
    pub fn new(listeners: Vec<Listener>) -> Secured {
        let scram = ["SCRAM-SHA-256", "SCRAM-SHA-512"];
        let users = scram.map(|mechanism| {
            ["--add-scram".to_owned(), format!("{mechanism}=[name={USER},password={}]", password(mechanism))]
        });
        Secured { listeners, format: users.concat(), ..Secured::default() }
    }

    /// Tokens are checked with the keys of this Keycloak, which must run when Kafka starts.
    pub fn with_keycloak(mut self, keycloak: &Keycloak) -> Secured {
        let uri = keycloak.keys_uri();
        self.config = format!(
            "sasl.oauthbearer.jwks.endpoint.url={uri}\nsasl.oauthbearer.expected.audience={AUDIENCE}\n"
        );
        self.java = vec![format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={uri}")];
        self
    }

    /// Lines for server.properties; nothing if there are no listeners.
    pub fn properties(&self, plain: u16, controller: u16, ports: &[u16]) -> String {
        if self.listeners.is_empty() {
            return String::new();
        }
        let mut listeners =
            format!("listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}");
        let mut advertised = format!("advertised.listeners=PLAINTEXT://127.0.0.1:{plain}");
        let mut protocols =
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
        let mut settings = String::new();
        for (listener, port) in self.listeners.iter().zip(ports) {
            let name = listener.name;
            listeners += &format!(",{name}://127.0.0.1:{port}");
            advertised += &format!(",{name}://localhost:{port}");
            protocols += &format!(",{name}:{}", listener.protocol);
            for (setting, value) in &listener.settings {
                writeln!(settings, "listener.name.{}.{setting}={value}", name.to_lowercase())
                    .expect("a String can be written to");
            }
        }
        format!("{listeners}\n{advertised}\n{protocols}\n{settings}{}", self.config)
    }

    /// host:port of a listener of the one broker.
    pub fn address(&self, kafka: &Cluster, name: &str) -> String {
        let at = self.listeners.iter().position(|listener| listener.name == name);
        let at = at.unwrap_or_else(|| panic!("no listener {name}"));
        format!("localhost:{}", kafka.brokers[0].secured_ports[at])
    }
}
