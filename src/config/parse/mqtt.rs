//! The MQTT side.

use super::{Reader, parse_host_port};
use crate::config::{HostPort, Mqtt, MqttQos, MqttTls, MqttVersion};
use crate::secret::Secret;

/// The port of MQTT over TLS (IANA `secure-mqtt`).
const TLS_PORT: u16 = 8883;

/// What MQTT_BROKER_URL says.
#[derive(Debug)]
pub(in crate::config) struct BrokerUrl {
    /// Host name or address.
    pub host: String,
    /// Port, if there is one.
    pub port: Option<u16>,
    /// `mqtts://`.
    pub tls: bool,
}

impl Reader<'_> {
    pub(super) fn mqtt(&mut self) -> Option<Mqtt> {
        let broker = self.mqtt_broker();
        let tls = self.mqtt_tls(broker.as_ref().map(|(_, tls)| *tls));
        let client_id = self.client_id();
        let user_name = self.raw("MQTT_USER_NAME").map(str::to_owned);
        if user_name.as_ref().is_some_and(|name| !fits_mqtt_string(name)) {
            self.problem("MQTT_USER_NAME", "expected at most 65535 bytes without U+0000");
        }
        let password = self.raw("MQTT_USER_PASSWORD").map(Secret::new);
        if password.as_ref().is_some_and(|secret| secret.expose().len() > crate::route::filter::MAX_BYTES) {
            self.problem("MQTT_USER_PASSWORD", "expected at most 65535 bytes");
        }
        if password.is_some() && user_name.is_none() {
            // MQTT-3.1.2-22: without a user name there is no password.
            self.problem("MQTT_USER_NAME", "it is required with MQTT_USER_PASSWORD");
        }
        if let Some((broker, false)) = &broker
            && password.is_some()
            && !is_this_machine(&broker.host)
        {
            self.warnings.push(
                "MQTT_BROKER_URL has no TLS: MQTT_USER_PASSWORD travels unencrypted; mqtts:// protects it"
                    .to_owned(),
            );
        }
        let levels = [("0", MqttQos::AtMostOnce), ("1", MqttQos::AtLeastOnce), ("2", MqttQos::ExactlyOnce)];
        let qos = self.choice("MQTT_QOS", &levels, &[]);
        let versions = [("3.1.1", MqttVersion::V311), ("5", MqttVersion::V5), ("5.0", MqttVersion::V5)];
        let version = self.choice("MQTT_VERSION", &versions, &[]);
        let session_expiry_sec = self.session_expiry_sec();
        let keep_alive = self.seconds("MQTT_KEEP_ALIVE_SEC", 1, 65_535);
        let receive_maximum = self.number("MQTT_RECEIVE_MAXIMUM", 1, 65_535) as u16;
        // MQTT allows 256 MiB (section 2.2.3), but a record must fit into a Kafka request (socket.request.max.bytes,
        // 100 MiB), and twice into the memory of a small board.
        let max_packet_bytes = self.number("MQTT_MAX_PACKET_BYTES", 1024, 67_108_864) as u32;
        Some(Mqtt {
            broker: broker?.0,
            tls,
            client_id: client_id?,
            user_name,
            password,
            qos: qos?,
            version: version?,
            session_expiry_sec,
            keep_alive,
            receive_maximum,
            max_packet_bytes,
        })
    }

    pub(super) fn is_mqtt_5(&self) -> bool {
        matches!(self.text("MQTT_VERSION"), Some("5" | "5.0"))
    }

    fn session_expiry_sec(&mut self) -> u32 {
        if self.given("MQTT_SESSION_EXPIRY_SEC").is_some() && !self.is_mqtt_5() {
            self.problem("MQTT_SESSION_EXPIRY_SEC", "it needs MQTT_VERSION=5: leave it out");
        }
        // 0 would end the session with each connection, and what was not acknowledged with it.
        self.number("MQTT_SESSION_EXPIRY_SEC", 1, u64::from(u32::MAX)) as u32
    }

    fn client_id(&mut self) -> Option<String> {
        let what = "an identity that stays the same over restarts";
        let id = self.required("MQTT_CLIENT_ID", what)?;
        if !fits_mqtt_string(&id) {
            self.problem("MQTT_CLIENT_ID", "expected at most 65535 bytes without U+0000");
        }
        Some(id)
    }

    fn mqtt_broker(&mut self) -> Option<(HostPort, bool)> {
        let named_port = self.raw("MQTT_BROKER_PORT").is_some();
        let port = self.number("MQTT_BROKER_PORT", 1, 65_535) as u16;
        let url =
            self.required("MQTT_BROKER_URL", "HOST, HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT")?;
        match parse_broker_url(&url) {
            Ok(BrokerUrl { port: Some(in_url), .. }) if named_port && in_url != port => {
                let expected = format!("MQTT_BROKER_URL says port {in_url}: expected the same port or none");
                self.problem("MQTT_BROKER_PORT", expected);
                None
            }
            Ok(BrokerUrl { tls: true, .. }) if !crate::tls::IS_BUILT_IN => {
                self.problem("MQTT_BROKER_URL", "this build has no TLS (cargo feature `tls`)");
                None
            }
            Ok(BrokerUrl { host, port: in_url, tls }) => {
                let standard = if tls && !named_port { TLS_PORT } else { port };
                Some((HostPort { host, port: in_url.unwrap_or(standard) }, tls))
            }
            Err(expected) => {
                self.problem("MQTT_BROKER_URL", expected);
                None
            }
        }
    }

    /// The files of TLS; without `mqtts://` there must be none.
    fn mqtt_tls(&mut self, url_has_tls: Option<bool>) -> Option<MqttTls> {
        let file = |reader: &mut Self, name| reader.file(name).map(|file| file.path);
        let ca_file = file(self, "MQTT_CA_FILE");
        let pair = (file(self, "MQTT_CERT_FILE"), file(self, "MQTT_KEY_FILE"));
        if url_has_tls == Some(false) {
            for name in ["MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"] {
                if self.text(name).is_some() {
                    self.problem(name, "it needs mqtts:// in MQTT_BROKER_URL");
                }
            }
        }
        let client = match pair {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                self.problem("MQTT_KEY_FILE", "it is required with MQTT_CERT_FILE");
                None
            }
            (None, Some(_)) => {
                self.problem("MQTT_CERT_FILE", "it is required with MQTT_KEY_FILE");
                None
            }
        };
        (url_has_tls == Some(true)).then_some(MqttTls { ca_file, client })
    }
}

/// Where nobody listens in between.
fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Section 1.5.3: a string is at most 65535 bytes and has no U+0000.
fn fits_mqtt_string(text: &str) -> bool {
    text.len() <= crate::route::filter::MAX_BYTES && !text.contains('\0')
}

/// Parses MQTT_BROKER_URL.
pub(in crate::config) fn parse_broker_url(url: &str) -> Result<BrokerUrl, String> {
    let (tls, rest) = match url.split_once("://") {
        None => (false, url),
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => (false, rest),
            "mqtts" | "ssl" | "tls" => (true, rest),
            "ws" | "wss" => {
                return Err("MQTT over websockets is not supported: expected mqtt://HOST:PORT".to_owned());
            }
            _ => return Err("expected HOST, HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT".to_owned()),
        },
    };
    if rest.contains('@') {
        return Err(
            "expected no user name and password in it: they go into MQTT_USER_NAME and MQTT_USER_PASSWORD"
                .into(),
        );
    }
    let (host, port) = parse_host_port(rest.strip_suffix('/').unwrap_or(rest))?;
    Ok(BrokerUrl { host, port, tls })
}
