//! How Kafka is talked to: in the clear or by TLS, as nobody or as somebody.

use std::path::PathBuf;
use std::time::Duration;

use super::{Reader, is_pasted, items};
use crate::auth::{ClientAuth, Endpoint, TokenOptions};
use crate::config::variables::VARIABLES;
use crate::config::{KafkaSasl, KafkaSecurity, SecurityProtocol};
use crate::kafka::sasl::{Hash, oauthbearer};
use crate::secret::Secret;
use crate::tls::{self, ClientCertificate, NamedFile, TlsError, TlsOptions};

/// How long one request to the token endpoint may take. A token is fetched long before it is needed.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the seed reads only when SASL_SSL is true; its own .env names them beside SASL_SSL=false.
const OF_THE_SEED: [&str; 3] =
    ["SASL_OAUTHBEARER_CLIENT_ID", "SASL_OAUTHBEARER_CLIENT_SECRET", "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    OAuthBearer,
    Plain,
    Scram(Hash),
}

impl Reader<'_> {
    pub(super) fn kafka_security(&mut self) -> Option<KafkaSecurity> {
        let protocol = self.security_protocol()?;
        let tls = self.kafka_tls(protocol);
        let sasl = self.kafka_sasl(protocol);
        Some(KafkaSecurity { protocol, tls: tls?, sasl: sasl? })
    }

    fn security_protocol(&mut self) -> Option<SecurityProtocol> {
        let yes_or_no =
            [("false", false), ("0", false), ("f", false), ("true", true), ("1", true), ("t", true)];
        let by_seed = self.choice("SASL_SSL", &yes_or_no, &[]);
        let words = SecurityProtocol::ALL.map(|protocol| (protocol.word(), protocol));
        let protocol = if self.given("KAFKA_SECURITY_PROTOCOL").is_some() {
            self.choice("KAFKA_SECURITY_PROTOCOL", &words, &[])?
        } else if by_seed? {
            SecurityProtocol::SaslSsl
        } else {
            SecurityProtocol::Plaintext
        };
        if by_seed? && protocol != SecurityProtocol::SaslSsl {
            let word = protocol.word();
            self.warnings
                .push(format!("SASL_SSL=true has no effect: KAFKA_SECURITY_PROTOCOL is {word}, and counts"));
        }
        if protocol.has_tls() && !tls::IS_BUILT_IN {
            let is_named = self.given("KAFKA_SECURITY_PROTOCOL").is_some();
            let name = if is_named { "KAFKA_SECURITY_PROTOCOL" } else { "SASL_SSL" };
            self.problem(name, TlsError::NotBuiltIn.to_string());
        }
        Some(protocol)
    }

    /// Some(None) where there is to be no TLS.
    fn kafka_tls(&mut self, protocol: SecurityProtocol) -> Option<Option<TlsOptions>> {
        let before = self.problems.len();
        let (certificate, key) = (self.file("KAFKA_CERT_FILE"), self.file("KAFKA_KEY_FILE"));
        let ca_file = self.file("KAFKA_CA_FILE");
        if !protocol.has_tls() {
            self.refuse_without_effect(
                |name| name.starts_with("KAFKA_") && name.ends_with("_FILE"),
                protocol,
            );
            return (self.problems.len() == before).then_some(None);
        }
        let client = self.pair(("KAFKA_CERT_FILE", certificate), ("KAFKA_KEY_FILE", key))?;
        Some(Some(TlsOptions { ca_file, client }))
    }

    /// A certificate and its key: both or none.
    pub(super) fn pair(
        &mut self,
        (certificate_name, certificate): (&'static str, Option<NamedFile>),
        (key_name, key): (&'static str, Option<NamedFile>),
    ) -> Option<Option<ClientCertificate>> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Some(ClientCertificate { certificate, key })),
            (None, None) => Some(None),
            (Some(_), None) => {
                self.problem(key_name, format!("it is required with {certificate_name}"));
                None
            }
            (None, Some(_)) => {
                self.problem(certificate_name, format!("it is required with {key_name}"));
                None
            }
        }
    }

    /// The file that a variable names. Whether it can be read is seen when a connection is opened. A key that stands there
    /// itself is refused, or messages would show it as the path.
    pub(super) fn file(&mut self, name: &'static str) -> Option<NamedFile> {
        let text = self.given(name)?;
        let path = PathBuf::from(text);
        if is_pasted(text) {
            self.problem(name, "expected the path of a file, not what is in it");
        } else if text.contains('\0') {
            self.problem(name, "expected a path without U+0000");
        }
        Some(NamedFile { variable: name, path })
    }

    /// Some(None) where there is to be no SASL.
    fn kafka_sasl(&mut self, protocol: SecurityProtocol) -> Option<Option<KafkaSasl>> {
        let before = self.problems.len();
        if !protocol.has_sasl() {
            let is_sasl = |name: &str| name.starts_with("SASL_") && name != "SASL_SSL";
            self.refuse_without_effect(is_sasl, protocol);
            return (self.problems.len() == before).then_some(None);
        }
        let words = [
            ("OAUTHBEARER", Mechanism::OAuthBearer),
            ("PLAIN", Mechanism::Plain),
            ("SCRAM-SHA-256", Mechanism::Scram(Hash::Sha256)),
            ("SCRAM-SHA-512", Mechanism::Scram(Hash::Sha512)),
        ];
        let kerberos = [("GSSAPI", "Kerberos is not supported")];
        let mechanism = self.choice("SASL_MECHANISM", &words, &kerberos)?;
        let of_passwords = |name: &str| matches!(name, "SASL_USERNAME" | "SASL_PASSWORD");
        let of_tokens = |name: &str| name.starts_with("SASL_OAUTHBEARER_");
        let sasl = if mechanism == Mechanism::OAuthBearer {
            self.refuse_beside_mechanism(of_passwords);
            self.oauthbearer()
        } else {
            self.refuse_beside_mechanism(of_tokens);
            self.password_login(mechanism)
        };
        if !protocol.has_tls()
            && mechanism != Mechanism::Scram(Hash::Sha256)
            && mechanism != Mechanism::Scram(Hash::Sha512)
        {
            let what = if mechanism == Mechanism::Plain { "the password" } else { "the token" };
            self.warnings.push(format!(
                "KAFKA_SECURITY_PROTOCOL is SASL_PLAINTEXT: {what} travels to Kafka unencrypted; SASL_SSL protects it"
            ));
        }
        Some(Some(sasl?))
    }

    fn password_login(&mut self, mechanism: Mechanism) -> Option<KafkaSasl> {
        let user = self.required("SASL_USERNAME", "a user name");
        let password = self.required_secret("SASL_PASSWORD");
        let (user, password) = (user?, password?);
        for (name, value) in [("SASL_USERNAME", user.as_str()), ("SASL_PASSWORD", password.expose())] {
            // RFC 4616: it is what separates them.
            if value.contains('\0') {
                self.problem(name, "expected no U+0000 in it");
            }
        }
        Some(match mechanism {
            Mechanism::Scram(hash) => KafkaSasl::Scram { hash, user, password },
            Mechanism::Plain | Mechanism::OAuthBearer => KafkaSasl::Plain { user, password },
        })
    }

    fn required_secret(&mut self, name: &str) -> Option<Secret> {
        let value = self.raw(name).map(Secret::new);
        if value.is_none() {
            self.required(name, "a secret");
        }
        value
    }

    fn oauthbearer(&mut self) -> Option<KafkaSasl> {
        let endpoint = self.token_endpoint();
        let client_id = self.required("SASL_OAUTHBEARER_CLIENT_ID", "the client id at the token endpoint");
        let client_secret = self.required_secret("SASL_OAUTHBEARER_CLIENT_SECRET");
        let words = [("post", ClientAuth::Post), ("basic", ClientAuth::Basic)];
        let client_auth = self.choice("SASL_OAUTHBEARER_CLIENT_AUTH", &words, &[]);
        let scope = self.text("SASL_OAUTHBEARER_SCOPE").map(str::to_owned);
        let ca_file = self.file("SASL_OAUTHBEARER_CA_FILE");
        let extensions = self.extensions();
        let token = TokenOptions {
            endpoint: endpoint?,
            client_id: client_id?,
            client_secret: client_secret?,
            scope,
            ca_file,
            client_auth: client_auth?,
            timeout: TOKEN_TIMEOUT,
        };
        Some(KafkaSasl::OAuthBearer { token, extensions: extensions? })
    }

    fn token_endpoint(&mut self) -> Option<Endpoint> {
        const NAME: &str = "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI";
        let text = self.required(NAME, "https://HOST[:PORT]/PATH")?;
        let endpoint = match Endpoint::parse(&text) {
            Ok(endpoint) => endpoint,
            Err(expected) => {
                self.problem(NAME, expected);
                return None;
            }
        };
        if endpoint.is_https() && !tls::IS_BUILT_IN {
            self.problem(NAME, TlsError::NotBuiltIn.to_string());
        }
        if !endpoint.is_https() {
            if self.given("SASL_OAUTHBEARER_CA_FILE").is_some() {
                self.problem("SASL_OAUTHBEARER_CA_FILE", format!("it has no effect with http in {NAME}"));
            }
            if !endpoint.is_loopback() {
                self.warnings.push(format!(
                    "{NAME} is http: the client secret and the tokens travel unencrypted; https protects them"
                ));
            }
        }
        Some(endpoint)
    }

    fn extensions(&mut self) -> Option<Vec<(String, String)>> {
        const NAME: &str = "SASL_OAUTHBEARER_EXTENSIONS";
        let list = self.text(NAME).unwrap_or_default().to_owned();
        let mut extensions = Vec::new();
        for item in items(&list) {
            let parsed = item.split_once('=').ok_or("expected key=value,...").and_then(|(name, value)| {
                oauthbearer::check_extension(name, value).map(|()| (name.to_owned(), value.to_owned()))
            });
            match parsed {
                Ok(extension) => extensions.push(extension),
                Err(expected) => {
                    self.problem(NAME, expected);
                    return None;
                }
            }
        }
        Some(extensions)
    }

    /// A setting is never ignored: what has no effect is refused.
    fn refuse_without_effect(&mut self, is_it: impl Fn(&str) -> bool, protocol: SecurityProtocol) {
        let is_off = self.raw("SASL_SSL").is_some_and(|text| text.trim().eq_ignore_ascii_case("false"));
        for variable in VARIABLES.iter().filter(|variable| is_it(variable.name)) {
            if self.given(variable.name).is_none() {
                continue;
            }
            if is_off && OF_THE_SEED.contains(&variable.name) {
                self.warnings.push(format!("{} has no effect: SASL_SSL is false", variable.name));
                continue;
            }
            let word = protocol.word();
            self.problem(
                variable.name,
                format!(
                    "it has no effect, as KAFKA_SECURITY_PROTOCOL is {word}: leave it out, or set another"
                ),
            );
        }
    }

    fn refuse_beside_mechanism(&mut self, is_it: impl Fn(&str) -> bool) {
        let mechanism = self.text("SASL_MECHANISM").unwrap_or_default().to_owned();
        for variable in VARIABLES.iter().filter(|variable| is_it(variable.name)) {
            // What has a default is not given by being read.
            if self.given(variable.name).is_some() {
                let expected = format!("it has no effect, as SASL_MECHANISM is {mechanism}: leave it out");
                self.problem(variable.name, expected);
            }
        }
    }
}
