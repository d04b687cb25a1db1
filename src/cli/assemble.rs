//! From the validated configuration to the options of each part, and the two questions that `check` asks of the
//! brokers. The only place that knows the names on both sides.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};

use crate::auth::TokenSource;
use crate::clock;
use crate::config::{self, Config, KafkaSasl, MqttQos, MqttVersion};
use crate::error::chain;
use crate::fs::StdFs;
use crate::kafka::client::{Client, ClientOptions};
use crate::kafka::compression::Compression;
use crate::kafka::connection::{ConnectionOptions, Security};
use crate::kafka::error::ErrorCode;
use crate::kafka::producer::ProducerOptions;
use crate::kafka::sasl::Credentials;
use crate::message::Qos;
use crate::mqtt::codec::Version;
use crate::mqtt::probe::probe;
use crate::mqtt::session::SessionOptions;
use crate::mqtt::transport::Endpoint;
use crate::observe::Observed;
use crate::observe::heartbeat::Heartbeats;
use crate::observe::http::{Pages, Server};
use crate::observe::pages::page;
use crate::observe::systemd::Notifier;
use crate::pipeline::backlog::BacklogOptions;
use crate::pipeline::publish::PublishOptions;
use crate::pipeline::record::HeaderChoice;
use crate::pipeline::spool_thread::disk_limit;
use crate::pipeline::{self, IN_HAND_BYTES_MAX, IN_HAND_MESSAGES_MAX, PipelineOptions};
use crate::route::{Router, Rules};
use crate::spool::{self, DiskSpool, MemorySpool, SpoolError, Store};
use crate::thread;
use crate::tls::{ClientCertificate, NamedFile, TlsOptions};

/// What the gateway is called in Kafka's logs and quotas.
const KAFKA_CLIENT_ID: &str = "tidegate";
/// For each address of a broker, and then for the handshake.
const KAFKA_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read back may be a batch of the largest KAFKA_BATCH_BYTES, and a broker gives a whole batch however little is asked
/// for. Everything else is smaller: metadata of ten thousand topics is a few MiB.
const KAFKA_RESPONSE_BYTES_MAX: u32 = (64 + 1) * 1024 * 1024;
/// How long a start waits for the spool or the address of a process that is ending, and how often it looks.
const LOCKED_FOR: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(50);
/// How often an address that cannot be had is tried after that.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// How long `check` waits for Kafka, beyond the wait for a token.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the gateway.
///
/// # Errors
/// See [`SpoolError`] and [`pipeline::PipelineError`].
pub fn run(config: Config, router: Router) -> Result<(), Box<dyn Error>> {
    let service = config::service();
    let heartbeats = Heartbeats::new(service.watchdog, clock::now());
    let observed = Observed::new(heartbeats.clone(), config.spool.bytes_max, clock::now());
    // First: who asks is answered also while a large spool is opened.
    if let Some(address) = config.run.http_listen {
        serve(address, observed.clone())?;
    }
    // All of the spool may have to be read.
    let limit = disk_limit(config.spool.bytes_max);
    let notifier = service
        .notifies
        .then(|| Notifier::start(observed.clone(), service.watchdog, limit, sd_notify::notify, clock::now()));
    let opening = heartbeats.join("main", clock::now());
    opening.works(limit, clock::now());
    let spool = open_spool(&config.spool)?;
    drop(opening);
    let publish = PublishOptions {
        headers: HeaderChoice {
            id: config.kafka.headers.id,
            topic: config.kafka.headers.topic,
            qos: config.kafka.headers.qos,
            retain: config.kafka.headers.retain,
            replayed: config.kafka.headers.replayed,
            properties: config.kafka.headers.properties,
        },
        dead_letter_topic: config.routes.dead_letter_topic.clone(),
        producer: producer_options(&config.kafka),
        connection: connection_options(&config.kafka, &heartbeats)?,
        backlog: backlog_options(&config, spool.as_ref()),
        router,
    };
    let options = PipelineOptions {
        endpoint: endpoint(&config.mqtt),
        session: SessionOptions {
            unreleased: spool.unreleased().into_iter().map(|one| (one.number, one.content)).collect(),
            hold_releases: config.spool.directory.is_some(),
            ..session_options(&config.mqtt, &config.routes.rules)
        },
        publish,
        spool,
        shutdown_timeout: config.run.shutdown_timeout,
        observed,
        notifier,
    };
    info!(
        "tidegate {}: MQTT {} as {:?}, {} filters; Kafka {} by {}",
        env!("CARGO_PKG_VERSION"),
        config.mqtt.broker,
        config.mqtt.client_id,
        options.session.filters.len(),
        config.kafka.brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        config.kafka.security.protocol.word()
    );
    Ok(pipeline::run(options)?)
}

/// Serves the pages for as long as the process lives. A fault there, or an address that is taken, is no reason to stop the messages:
/// probes notice it.
fn serve(address: SocketAddr, observed: Observed) -> io::Result<()> {
    let pages: Pages = Box::new(move |path| page(&observed, path));
    thread::spawn(
        "http",
        move || listen(address).serve(&pages),
        |ending| {
            error!("the http thread ended ({ending:?}): nothing is served until a restart");
        },
    )?;
    Ok(())
}

/// Waits for the address. A process that was killed may hold it for a moment longer than it lives; one of an interface may come with that.
fn listen(address: SocketAddr) -> Server {
    let tell_at = clock::now() + LOCKED_FOR;
    let mut told = false;
    loop {
        match Server::bind(address) {
            Ok(server) => {
                info!("HTTP on http://{}: /metrics, /healthz, /readyz", server.address());
                return server;
            }
            Err(error) if !told && clock::now() >= tell_at => {
                told = true;
                error!(
                    "cannot listen on {address}: {error}; nobody can ask how the gateway is until that is free: or give HTTP_LISTEN \
                     another address, or `off`"
                );
            }
            Err(_) => {}
        }
        thread::pause(if told { LISTEN_AGAIN } else { LOCK_AGAIN });
    }
}

/// Connects to the MQTT broker as the gateway would, without disturbing a gateway that runs.
///
/// # Errors
/// What keeps the broker from being used, in words.
pub fn reach_mqtt(config: &Config) -> Result<String, String> {
    let session = session_options(&config.mqtt, &config.routes.rules);
    let report = probe(&endpoint(&config.mqtt), &session).map_err(|error| chain(&error))?;
    Ok(format!("accepts client {:?} after {} ms", config.mqtt.client_id, report.connack_after.as_millis()))
}

/// Asks Kafka for the topics that the configuration names; creates none.
///
/// # Errors
/// What keeps the cluster from being used, in words.
pub fn reach_kafka(config: &Config) -> Result<String, String> {
    let heartbeats = Heartbeats::new(None, clock::now());
    let connection = connection_options(&config.kafka, &heartbeats).map_err(|error| error.to_string())?;
    let tokens = match &connection.security.sasl {
        Some(Credentials::OAuthBearer { tokens, .. }) => Some(tokens.clone()),
        _ => None,
    };
    // A token that does not come is waited for as long as it takes to hear why.
    let timeout = CHECK_TIMEOUT + tokens.as_ref().map_or(Duration::ZERO, TokenSource::patience);
    let found = look_at_kafka(config, ClientOptions { connection, timeout });
    // `run` logs it; `check` has no log.
    match tokens.and_then(|tokens| tokens.clock_fault()) {
        Some(fault) => {
            found.map(|what| format!("{what}; {fault}")).map_err(|what| format!("{what}; {fault}"))
        }
        None => found,
    }
}

fn look_at_kafka(config: &Config, options: ClientOptions) -> Result<String, String> {
    let mut client = Client::connect(&bootstrap(&config.kafka), options).map_err(|error| chain(&error))?;
    let rules = &config.routes.rules;
    let constant = rules.all().iter().filter_map(|rule| rule.target.constant());
    let named = constant.chain(rules.default_topic()).chain(&config.routes.dead_letter_topic);
    let mut topics: Vec<&str> = named.map(AsRef::as_ref).collect();
    topics.sort_unstable();
    topics.dedup();
    let metadata = client.metadata(Some(&topics)).map_err(|error| chain(&error))?;
    let mut found = match metadata.brokers.len() {
        1 => "1 broker".to_owned(),
        brokers => format!("{brokers} brokers"),
    };
    for topic in &metadata.topics {
        let state = match ErrorCode(topic.error) {
            ErrorCode::NONE => format!("{} partitions", topic.partitions.len()),
            ErrorCode::UNKNOWN_TOPIC => "does not exist yet".to_owned(),
            code => code.to_string(),
        };
        found.push_str(&format!("; topic {}: {state}", topic.name));
    }
    Ok(found)
}

/// Opens the spool and says what was found in it.
fn open_spool(spool: &config::Spool) -> Result<Box<dyn Store>, SpoolError> {
    let options = spool::Options {
        bytes_max: spool.bytes_max,
        free_bytes_min: spool.free_bytes_min,
        segment_bytes: spool.segment_bytes,
        policy: match spool.full {
            config::SpoolFull::Block => spool::Policy::Block,
            config::SpoolFull::DropOldest => spool::Policy::DropOldest,
        },
    };
    match &spool.directory {
        Some(directory) => {
            let (spool, report) = open_when_free(directory, options)?;
            info!("spool: {}", directory.display());
            pipeline::spool_thread::tell(&report);
            Ok(Box::new(spool))
        }
        None => {
            warn!(
                "DB_PERSIST_PATH is not set: what Kafka has not taken is held in memory, and a crash or power loss loses it"
            );
            Ok(Box::new(MemorySpool::new(options)))
        }
    }
}

/// A process that was killed may hold its lock for a moment longer than it lives.
fn open_when_free(
    directory: &Path,
    options: spool::Options,
) -> Result<(DiskSpool, spool::Report), SpoolError> {
    let until = clock::now() + LOCKED_FOR;
    loop {
        match DiskSpool::open(Arc::new(StdFs), directory, options) {
            Err(SpoolError::Locked(_)) if clock::now() < until => thread::pause(LOCK_AGAIN),
            opened => return opened,
        }
    }
}

fn backlog_options(config: &Config, spool: &dyn Store) -> BacklogOptions {
    BacklogOptions {
        after: config.spool.after,
        latency: config.restore.latency,
        in_flight_max: config.restore.max_in_flight as usize,
        in_flight_min: config.restore.min_in_flight as usize,
        restore_per_sec: Some(config.spool.restore_per_sec).filter(|rate| *rate > 0),
        mark_replayed: config.kafka.headers.replayed,
        in_memory: config.spool.directory.is_none(),
        segment_bytes: config.spool.segment_bytes as usize,
        found: spool.routes().into_iter().map(|(topic, _)| topic.into()).collect(),
    }
}

fn endpoint(mqtt: &config::Mqtt) -> Endpoint {
    let named = |variable, path: &Path| NamedFile { variable, path: path.to_owned() };
    let tls = mqtt.tls.as_ref().map(|tls| TlsOptions {
        ca_file: tls.ca_file.as_deref().map(|path| named("MQTT_CA_FILE", path)),
        client: tls.client.as_ref().map(|(certificate, key)| ClientCertificate {
            certificate: named("MQTT_CERT_FILE", certificate),
            key: named("MQTT_KEY_FILE", key),
        }),
    });
    Endpoint { host: mqtt.broker.host.clone(), port: mqtt.broker.port, tls }
}

fn session_options(mqtt: &config::Mqtt, rules: &Rules) -> SessionOptions {
    let qos = match mqtt.qos {
        MqttQos::AtMostOnce => Qos::AtMostOnce,
        MqttQos::AtLeastOnce => Qos::AtLeastOnce,
        MqttQos::ExactlyOnce => Qos::ExactlyOnce,
    };
    let in_flight = usize::from(mqtt.receive_maximum);
    SessionOptions {
        client_id: mqtt.client_id.clone(),
        login: mqtt.user_name.clone().map(|name| (name, mqtt.password.clone())),
        keep_alive_sec: u16::try_from(mqtt.keep_alive.as_secs()).unwrap_or(u16::MAX),
        clean_session: false,
        version: match mqtt.version {
            MqttVersion::V311 => Version::V311,
            MqttVersion::V5 => Version::V5,
        },
        session_expiry_sec: mqtt.session_expiry_sec,
        unreleased: Vec::new(),
        hold_releases: false,
        filters: rules.subscriptions().into_iter().map(|filter| (filter.to_owned(), qos)).collect(),
        max_packet_bytes: mqtt.max_packet_bytes,
        in_flight_messages_max: in_flight,
        in_hand_messages_max: IN_HAND_MESSAGES_MAX.max(in_flight),
        in_hand_bytes_max: IN_HAND_BYTES_MAX,
    }
}

fn producer_options(kafka: &config::Kafka) -> ProducerOptions {
    ProducerOptions {
        bootstrap: bootstrap(kafka),
        acks: match kafka.acks {
            config::Acks::All => -1,
            config::Acks::Leader => 1,
        },
        compression: match kafka.compression {
            config::Compression::None => Compression::None,
            config::Compression::Gzip => Compression::Gzip,
            config::Compression::Snappy => Compression::Snappy,
            config::Compression::Lz4 => Compression::Lz4,
        },
        linger: kafka.linger,
        batch_bytes: usize::try_from(kafka.batch_bytes).unwrap_or(usize::MAX),
        seed: fastrand::u64(..),
    }
}

fn bootstrap(kafka: &config::Kafka) -> Vec<(String, u16)> {
    kafka.brokers.iter().map(|broker| (broker.host.clone(), broker.port)).collect()
}

fn connection_options(kafka: &config::Kafka, heartbeats: &Heartbeats) -> io::Result<ConnectionOptions> {
    Ok(ConnectionOptions {
        client_id: KAFKA_CLIENT_ID.to_owned(),
        connect_timeout: KAFKA_CONNECT_TIMEOUT,
        response_max_bytes: KAFKA_RESPONSE_BYTES_MAX,
        security: security(&kafka.security, heartbeats)?,
    })
}

/// What protects the connections to Kafka. With OAUTHBEARER this starts the token thread, which ends with the last
/// connection's options and is watched by `heartbeats`.
///
/// # Errors
/// The operating system refuses a thread.
pub fn security(security: &config::KafkaSecurity, heartbeats: &Heartbeats) -> io::Result<Security> {
    let sasl = match security.sasl.clone() {
        None => None,
        Some(KafkaSasl::Plain { user, password }) => Some(Credentials::Plain { user, password }),
        Some(KafkaSasl::Scram { hash, user, password }) => Some(Credentials::Scram { hash, user, password }),
        Some(KafkaSasl::OAuthBearer { token, extensions }) => {
            Some(Credentials::OAuthBearer { tokens: TokenSource::start(token, heartbeats)?, extensions })
        }
    };
    Ok(Security { tls: security.tls.clone(), sasl })
}
