//! The configuration: from what the user wrote in environment variables to a valid [`Config`], or to all of its
//! problems at once.
//!
//! ```text
//! environment, .env, --env-file, secret files -> Variables -> validate -> Config + warnings | ConfigErrors
//!            (source: reads)                                  (parse: pure)
//! ```
//!
//! The only reader of the environment; it never changes it. Knows rules and topics (`route`) and what options others take, nothing of sessions
//! or connections. Invariants: a [`Config`] is valid as a whole; no secret is in an error, a warning or debug output.

pub mod document;
mod error;
mod parse;
mod service;
mod source;
pub mod variables;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use error::{ConfigErrors, Problem};
use log::LevelFilter;
pub use service::{Service, service};
pub use source::Variables;

use crate::auth::TokenOptions;
use crate::kafka::sasl::Hash;
use crate::route::Rules;
use crate::secret::Secret;
use crate::tls::TlsOptions;

/// Read in DEVELOP, in the working directory.
const DOT_ENV: &str = ".env";

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The process.
    pub run: Run,
    /// The MQTT side.
    pub mqtt: Mqtt,
    /// The Kafka side.
    pub kafka: Kafka,
    /// Which message goes where.
    pub routes: Routes,
    /// How stored messages are restored.
    pub restore: Restore,
    /// Where messages are stored while Kafka does not take them.
    pub spool: Spool,
    /// What the operator is to be told at start, one line each, at WARN.
    pub warnings: Vec<String>,
}

/// See [`Config::run`].
#[derive(Debug, Clone)]
pub struct Run {
    /// RUN_MODE.
    pub mode: RunMode,
    /// LOG_LVL.
    pub log_level: LogLevel,
    /// SHUTDOWN_TIMEOUT_SEC.
    pub shutdown_timeout: Duration,
    /// HTTP_LISTEN; None: off.
    pub http_listen: Option<SocketAddr>,
}

/// RUN_MODE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunMode {
    /// `.env` of the working directory is read.
    Develop,
    /// It is not.
    Production,
}

/// LOG_LVL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what ends the process.
    Panic,
    /// Only what ends the process.
    Fatal,
    /// Data lost, or an operator must act.
    Error,
    /// Unexpected, recovered.
    Warn,
    /// What the gateway does, not for each message.
    Info,
    /// For each message.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// What is logged. With panic and fatal nothing: what ends the process is printed by `main`, not logged.
    pub fn filter(self) -> LevelFilter {
        match self {
            LogLevel::Panic | LogLevel::Fatal => LevelFilter::Off,
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        }
    }
}

/// See [`Config::mqtt`].
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// MQTT_BROKER_URL and MQTT_BROKER_PORT.
    pub broker: HostPort,
    /// `mqtts://`; None: no TLS.
    pub tls: Option<MqttTls>,
    /// MQTT_CLIENT_ID.
    pub client_id: String,
    /// MQTT_USER_NAME.
    pub user_name: Option<String>,
    /// MQTT_USER_PASSWORD; only with a user name.
    pub password: Option<Secret>,
    /// MQTT_QOS, of the subscriptions.
    pub qos: MqttQos,
    /// MQTT_VERSION.
    pub version: MqttVersion,
    /// MQTT_SESSION_EXPIRY_SEC, at least 1; no effect with MQTT 3.1.1.
    pub session_expiry_sec: u32,
    /// MQTT_KEEP_ALIVE_SEC: 1 to 65535 s.
    pub keep_alive: Duration,
    /// MQTT_RECEIVE_MAXIMUM: most messages in hand, at least 1.
    pub receive_maximum: u16,
    /// MQTT_MAX_PACKET_BYTES: largest packet that is kept.
    pub max_packet_bytes: u32,
}

/// TLS to the MQTT broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MqttTls {
    /// MQTT_CA_FILE; the system's authorities without it.
    pub ca_file: Option<PathBuf>,
    /// MQTT_CERT_FILE and MQTT_KEY_FILE.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// MQTT_QOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttQos {
    /// 0.
    AtMostOnce,
    /// 1.
    AtLeastOnce,
    /// 2.
    ExactlyOnce,
}

/// MQTT_VERSION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1.
    V311,
    /// 5.
    V5,
}

impl MqttQos {
    /// The number of the specification.
    pub fn as_u8(self) -> u8 {
        match self {
            MqttQos::AtMostOnce => 0,
            MqttQos::AtLeastOnce => 1,
            MqttQos::ExactlyOnce => 2,
        }
    }
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// See [`Config::kafka`].
#[derive(Debug, Clone)]
pub struct Kafka {
    /// KAFKA_BROKER: the bootstrap list, not empty.
    pub brokers: Vec<HostPort>,
    /// How it is talked to.
    pub security: KafkaSecurity,
    /// KAFKA_COMPRESSION.
    pub compression: Compression,
    /// KAFKA_LINGER_MS; zero is adaptive.
    pub linger: Duration,
    /// KAFKA_BATCH_BYTES: largest batch.
    pub batch_bytes: u32,
    /// KAFKA_ACKS.
    pub acks: Acks,
    /// KAFKA_HEADERS.
    pub headers: Headers,
}

/// KAFKA_SECURITY_PROTOCOL with what it needs.
#[derive(Debug, Clone)]
pub struct KafkaSecurity {
    /// As it was named, or as SASL_SSL has it.
    pub protocol: SecurityProtocol,
    /// KAFKA_CA_FILE, KAFKA_CERT_FILE and KAFKA_KEY_FILE, where the protocol has TLS.
    pub tls: Option<TlsOptions>,
    /// Where the protocol has SASL.
    pub sasl: Option<KafkaSasl>,
}

/// KAFKA_SECURITY_PROTOCOL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProtocol {
    /// Neither.
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without TLS.
    SaslPlaintext,
    /// Both.
    SaslSsl,
}

impl SecurityProtocol {
    /// All of them.
    pub const ALL: [SecurityProtocol; 4] = [
        SecurityProtocol::Plaintext,
        SecurityProtocol::Ssl,
        SecurityProtocol::SaslPlaintext,
        SecurityProtocol::SaslSsl,
    ];

    /// As it is written in the environment.
    pub fn word(self) -> &'static str {
        match self {
            SecurityProtocol::Plaintext => "PLAINTEXT",
            SecurityProtocol::Ssl => "SSL",
            SecurityProtocol::SaslPlaintext => "SASL_PLAINTEXT",
            SecurityProtocol::SaslSsl => "SASL_SSL",
        }
    }

    /// Whether connections are encrypted.
    pub fn has_tls(self) -> bool {
        matches!(self, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl)
    }

    /// Whether the client says by SASL who it is.
    pub fn has_sasl(self) -> bool {
        matches!(self, SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl)
    }
}

/// SASL_MECHANISM with what it needs.
#[derive(Debug, Clone)]
pub enum KafkaSasl {
    /// PLAIN.
    Plain {
        /// SASL_USERNAME.
        user: String,
        /// SASL_PASSWORD.
        password: Secret,
    },
    /// SCRAM-SHA-256 or SCRAM-SHA-512.
    Scram {
        /// Which.
        hash: Hash,
        /// SASL_USERNAME.
        user: String,
        /// SASL_PASSWORD.
        password: Secret,
    },
    /// OAUTHBEARER.
    OAuthBearer {
        /// How tokens are fetched.
        token: TokenOptions,
        /// SASL_OAUTHBEARER_EXTENSIONS.
        extensions: Vec<(String, String)>,
    },
}

/// KAFKA_COMPRESSION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4 frames.
    Lz4,
}

/// KAFKA_ACKS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// Every in-sync replica (-1).
    All,
    /// The leader (1): weakens the guarantee that what is acknowledged survives.
    Leader,
}

/// KAFKA_HEADERS: which headers a record gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Headers {
    /// The delivery id.
    pub id: bool,
    /// The MQTT topic.
    pub topic: bool,
    /// The QoS of the delivery.
    pub qos: bool,
    /// The RETAIN flag of the delivery.
    pub retain: bool,
    /// A mark on restored records, `tidegate.replayed`. Those that were sent to Kafka once before they were stored keep
    /// their bytes and have none.
    pub replayed: bool,
    /// User properties, content type, response topic and correlation data of MQTT 5; only with it.
    pub properties: bool,
}

/// See [`Config::routes`].
#[derive(Debug, Clone)]
pub struct Routes {
    /// TOPIC_LIST, WILDCARD_TOPIC_LIST, KAFKA_KEY and DEFAULT_KAFKA_TOPIC.
    pub rules: Rules,
    /// DEAD_LETTER_TOPIC.
    pub dead_letter_topic: Option<Arc<str>>,
}

/// See [`Config::restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// INVOKE_LATENCY_SEC: a restore is attempted at the longest every so often while there is a backlog, and at once when
    /// Kafka is seen to be back.
    pub latency: Duration,
    /// INVOKE_MAX_GOROUTINE: most stored messages in flight.
    pub max_in_flight: u32,
    /// INVOKE_MIN_GOROUTINE, at most `max_in_flight`: refilled from the store when fewer are in flight.
    pub min_in_flight: u32,
}

/// See [`Config::spool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// DB_PERSIST_PATH; in memory without it.
    pub directory: Option<PathBuf>,
    /// SPOOL_AFTER_MS: what Kafka has not acknowledged for this long is stored.
    pub after: Duration,
    /// SPOOL_MAX_BYTES, at least 1 MiB.
    pub bytes_max: u64,
    /// SPOOL_MIN_FREE_BYTES: what is left free on the disk. No effect in memory.
    pub free_bytes_min: u64,
    /// SPOOL_SEGMENT_BYTES, at most a quarter of `bytes_max`.
    pub segment_bytes: u32,
    /// SPOOL_FULL.
    pub full: SpoolFull,
    /// SPOOL_RESTORE_PER_SEC: most stored messages sent per second; 0 is no limit.
    pub restore_per_sec: u32,
}

/// SPOOL_FULL: what happens when the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolFull {
    /// Nothing more is read from MQTT.
    Block,
    /// The oldest stored messages are lost, and counted.
    DropOldest,
}

impl SpoolFull {
    /// As it is written in the environment.
    pub fn word(self) -> &'static str {
        match self {
            SpoolFull::Block => "block",
            SpoolFull::DropOldest => "drop-oldest",
        }
    }
}

impl HostPort {
    /// Parses `host`, `host:port`, `[ipv6]` or `[ipv6]:port`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let (host, port) = parse::parse_host_port(text)?;
        Ok(HostPort { host, port: port.unwrap_or(default_port) })
    }

    /// Parses what MQTT_BROKER_URL may hold: the same, also as `mqtt://` or `tcp://` URL, without TLS.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse_mqtt_url(text: &str, default_port: u16) -> Result<Self, String> {
        let parse::BrokerUrl { host, port, tls } = parse::parse_broker_url(text)?;
        if tls {
            return Err("expected mqtt://HOST:PORT: this client has no TLS".to_owned());
        }
        Ok(HostPort { host, port: port.unwrap_or(default_port) })
    }
}

/// The variables as [`Config::load`] reads them, not validated, and what the user is to be warned of: for the clients, which
/// have variables of their own.
///
/// # Errors
/// What could not be read.
pub fn gather(env_file: Option<&Path>) -> Result<(Variables, Vec<String>), ConfigErrors> {
    let mut problems = Vec::new();
    let mut variables = source::process(&mut problems);
    let warnings = source::complete(&mut variables, env_file, Path::new(DOT_ENV), &mut problems);
    if problems.is_empty() { Ok((variables, warnings)) } else { Err(ConfigErrors(problems)) }
}

/// HTTP_LISTEN alone, read as [`Config::load`] reads it: for who asks a gateway, and may not read its secrets.
///
/// # Errors
/// What could not be read, or is wrong with it.
pub fn http_listen(env_file: Option<&Path>) -> Result<Option<SocketAddr>, ConfigErrors> {
    let mut problems = Vec::new();
    let mut variables = source::process(&mut problems);
    // What is wrong with the other variables is for `check`; a probe must not fail by it.
    if !variables.contains_key("HTTP_LISTEN") {
        problems.clear();
        source::add_files(&mut variables, env_file, Path::new(DOT_ENV), &mut problems);
        if !problems.is_empty() && !variables.contains_key("HTTP_LISTEN") {
            return Err(ConfigErrors(problems));
        }
    }
    parse::http_listen(&variables)
}

/// How Kafka is talked to, by these variables, and what the user is to be warned of: for the clients.
///
/// # Errors
/// All problems.
pub fn kafka_security(variables: &Variables) -> Result<(KafkaSecurity, Vec<String>), ConfigErrors> {
    parse::security(variables)
}

impl Config {
    /// Validates variables, wherever they are from. Reads nothing.
    ///
    /// # Errors
    /// All problems.
    pub fn from_variables(variables: &Variables) -> Result<Self, ConfigErrors> {
        parse::validate(variables, Vec::new())
    }

    /// Reads and validates the configuration: the process environment, then what it leaves open from `env_file` (which
    /// must exist), or else from `.env` in the working directory (which need not) unless RUN_MODE is PRODUCTION.
    ///
    /// # Errors
    /// All problems, those of reading among them.
    pub fn load(env_file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let process = source::process(&mut problems);
        Self::load_from(process, env_file, Path::new(DOT_ENV), problems)
    }

    fn load_from(
        mut variables: Variables,
        env_file: Option<&Path>,
        dot_env: &Path,
        mut problems: Vec<Problem>,
    ) -> Result<Self, ConfigErrors> {
        let warnings = source::complete(&mut variables, env_file, dot_env, &mut problems);
        let mut config = parse::validate(&variables, problems)?;
        config.warnings.splice(0..0, warnings);
        Ok(config)
    }
}
