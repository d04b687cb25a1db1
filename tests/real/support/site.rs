//! A secured site: an authority, a Keycloak, and a broker with a listener for each way to log in. Its start costs half a minute, so
//! tests share it which leave it whole.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::certs::{Authority, Identity, text};
use super::flow::ARRIVE;
use super::secured::{AUDIENCE, Listener, Secured, USER, password};
use super::stage::{root, seconds};
use super::{Cluster, Gateway, Keycloak, Mosquitto, Stage, until};

/// The client of Keycloak that may do everything.
pub const CLIENT: &str = "edge";
/// Its secret, until a test changes it and changes it back.
pub const SECRET: &str = "edge-secret-5e1b";

pub struct Site {
    pub dir: PathBuf,
    pub authority: Authority,
    /// Of Kafka and Keycloak, for localhost.
    pub server: Identity,
    pub keycloak: Keycloak,
    pub kafka: Cluster,
    secured: Secured,
}

impl Site {
    fn start(dir: &Path) -> Site {
        let authority = Authority::new(&dir.join("certificates"), "authority");
        let server = authority.server("server", &["localhost"]);
        let stranger = authority.server("stranger", &["kafka.example"]);
        let expired = authority.expired_server("expired", &["localhost"]);
        let keycloak = Keycloak::start(dir, &server, token_life());
        keycloak.create_client(CLIENT, SECRET, AUDIENCE);
        let listeners = vec![
            Listener::tokens("TOKENS", &server, session_life()),
            Listener::passwords("PASSWORDS", Some(&server)),
            Listener::passwords("CLEAR", None),
            Listener::mutual_tls("MUTUAL", &server, &authority.file),
            // Of secured_faults.rs alone, which mends them.
            Listener::tls("STRANGER", &stranger),
            Listener::tls("EXPIRED", &expired),
        ];
        let secured = Secured::new(listeners).with_keycloak(&keycloak);
        let kafka = Cluster::start_secured(dir, &secured);
        Site { dir: dir.to_owned(), authority, server, keycloak, kafka, secured }
    }

    /// host:port of a listener.
    pub fn address(&self, listener: &str) -> String {
        self.secured.address(&self.kafka, listener)
    }

    /// The port of a listener.
    pub fn port(&self, listener: &str) -> u16 {
        let address = self.address(listener);
        address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("host:port")
    }

    /// Waits until Kafka has so many records of a topic of this gateway.
    pub fn arrive(&self, topic: &str, count: u64, gateway: &Gateway) {
        until(&format!("{count} messages in {topic}"), ARRIVE, || {
            let has = self.kafka.end_offset(topic);
            let enough = u64::try_from(has).is_ok_and(|has| has >= count);
            if enough { Ok(()) } else { Err(format!("Kafka has {has}\n{}", gateway.log_tail())) }
        });
    }

    /// A gateway from the devices of the stage's prefix `d` to a topic of its own, by one of the listeners, with the authority as the only one it trusts.
    /// It writes down everything it ever says.
    pub fn gateway(&self, stage: &Stage, name: &str, mosquitto: &Mosquitto, way: &Way) -> (Gateway, String) {
        let topic = stage.unique(name);
        self.kafka.create(&topic, &self.kafka.topic());
        let routes = format!("{}/#:{topic}", stage.unique("d"));
        let gateway = Gateway::new_as(stage, name, mosquitto, &self.address(way.listener), &routes)
            .set("LOG_LVL", "trace")
            .set("KAFKA_SECURITY_PROTOCOL", way.protocol)
            .set("SASL_MECHANISM", way.mechanism);
        let gateway = match way.protocol {
            "SASL_PLAINTEXT" => gateway,
            _ => gateway.set("KAFKA_CA_FILE", text(&self.authority.file)),
        };
        let gateway = match way.mechanism {
            "" => gateway,
            "OAUTHBEARER" => gateway
                .set("SASL_OAUTHBEARER_CLIENT_ID", CLIENT)
                .set("SASL_OAUTHBEARER_CLIENT_SECRET", SECRET)
                .set("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", &self.keycloak.token_uri())
                .set("SASL_OAUTHBEARER_CA_FILE", text(&self.authority.file)),
            mechanism => gateway.set("SASL_USERNAME", USER).set("SASL_PASSWORD", &password(mechanism)),
        };
        (gateway, topic)
    }
}

/// How a gateway logs in.
pub struct Way {
    pub listener: &'static str,
    pub protocol: &'static str,
    /// Empty without SASL.
    pub mechanism: &'static str,
}

pub const TOKENS: Way = Way { listener: "TOKENS", protocol: "SASL_SSL", mechanism: "OAUTHBEARER" };

/// How long a token of the site is valid.
pub fn token_life() -> Duration {
    seconds(20, 60)
}

/// connections.max.reauth.ms of the site.
pub fn session_life() -> Duration {
    seconds(15, 45)
}

/// The site that tests share.
pub fn shared_site() -> MutexGuard<'static, Site> {
    static SITE: OnceLock<Mutex<Site>> = OnceLock::new();
    let site = SITE.get_or_init(|| Mutex::new(Site::start(&root().join("site"))));
    site.lock().unwrap_or_else(PoisonError::into_inner)
}
