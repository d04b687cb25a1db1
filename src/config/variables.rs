//! The table of environment variables: the single source for `--help`, `docs/configuration.md` and the check for misspelt names.
//!
//! Knows nothing of parsing: what a value must look like is in `super::parse`.

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Under which heading it is documented.
    pub group: Group,
    /// What it decides and what it may hold, in one or two sentences.
    pub meaning: &'static str,
    /// What holds when it is not set.
    pub default: Standard,
    /// Whether its value is never shown, and may be read from the file that NAME_FILE names.
    pub secret: bool,
    /// The first version of tidegate that has it.
    pub since: &'static str,
}

/// What holds when a variable is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// It must be set.
    Required,
    /// Nothing: what it would add is absent.
    None,
    /// As if it were set to this.
    Value(&'static str),
}

impl Standard {
    /// As it stands in the documentation.
    pub fn text(self) -> &'static str {
        match self {
            Standard::Required => "required",
            Standard::None => "none",
            Standard::Value(value) => value,
        }
    }
}

/// Headings of the documentation, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The process.
    General,
    /// The MQTT side.
    Mqtt,
    /// Which message goes where.
    Routes,
    /// The Kafka side.
    Kafka,
    /// What is stored while Kafka is away.
    Store,
}

impl Group {
    /// All headings.
    pub const ALL: [Group; 5] = [Group::General, Group::Mqtt, Group::Routes, Group::Kafka, Group::Store];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::General => "General",
            Group::Mqtt => "MQTT",
            Group::Routes => "Routes",
            Group::Kafka => "Kafka",
            Group::Store => "Store and restore",
        }
    }
}

const fn here(group: Group, name: &'static str, default: Standard, meaning: &'static str) -> Variable {
    Variable { name, group, meaning, default, secret: false, since: "0.1.0" }
}

const fn secret(variable: Variable) -> Variable {
    Variable { secret: true, ..variable }
}

use Group::{General, Kafka, Mqtt, Routes, Store};
use Standard::{None as Nothing, Required, Value};

/// Every variable, in the order of the documentation.
pub const VARIABLES: &[Variable] = &[
    here(
        General,
        "RUN_MODE",
        Value("DEVELOP"),
        "DEVELOP reads `.env` from the working directory, PRODUCTION does not.",
    ),
    here(
        General,
        "LOG_LVL",
        Value("info"),
        "panic, fatal, error, warn, info, debug or trace. With panic and fatal only what ends the process is printed.",
    ),
    here(
        General,
        "SHUTDOWN_TIMEOUT_SEC",
        Value("10"),
        "How long a stop may take, seconds (1 to 3600). What Kafka has not acknowledged by then stays unacknowledged.",
    ),
    here(
        General,
        "HTTP_LISTEN",
        Value("127.0.0.1:9464"),
        "Address of /metrics, /healthz and /readyz, ADDRESS:PORT as 127.0.0.1:9464 or [::]:9464, or off. Port 0 is any free one, \
         which the log tells. There is no authentication (docs/metrics.md).",
    ),
    here(
        Mqtt,
        "MQTT_BROKER_URL",
        Required,
        "HOST, HOST:PORT, mqtt://HOST[:PORT], or mqtts://HOST[:PORT] for TLS (tcp:// and ssl:// mean the same); an IPv6 address \
         stands in brackets. User name and password have variables of their own.",
    ),
    here(
        Mqtt,
        "MQTT_BROKER_PORT",
        Value("1883"),
        "Port, if MQTT_BROKER_URL has none; with mqtts:// the default is 8883.",
    ),
    here(
        Mqtt,
        "MQTT_CLIENT_ID",
        Required,
        "Identity of the persistent session. It must stay the same over restarts, and no two clients may share it.",
    ),
    here(Mqtt, "MQTT_USER_NAME", Nothing, "User name."),
    secret(here(Mqtt, "MQTT_USER_PASSWORD", Nothing, "Password; needs MQTT_USER_NAME.")),
    here(
        Mqtt,
        "MQTT_QOS",
        Value("1"),
        "QoS of the subscriptions: 0, 1 or 2. 1 is right for most: docs/guarantees.md says what 2 adds.",
    ),
    here(Mqtt, "MQTT_VERSION", Value("3.1.1"), "Protocol version: 3.1.1 or 5."),
    here(Mqtt, "MQTT_KEEP_ALIVE_SEC", Value("30"), "Keep-alive, seconds (1 to 65535)."),
    here(
        Mqtt,
        "MQTT_SESSION_EXPIRY_SEC",
        Value("604800"),
        "How long the broker keeps the session while tidegate is away, seconds (1 to 4294967295, which is for ever). MQTT 5 \
         only: with 3.1.1 the broker's own setting decides.",
    ),
    here(
        Mqtt,
        "MQTT_RECEIVE_MAXIMUM",
        Value("1000"),
        "Most messages received and not yet acknowledged (1 to 65535); beyond it, nothing more is read.",
    ),
    here(
        Mqtt,
        "MQTT_MAX_PACKET_BYTES",
        Value("8388608"),
        "Largest packet, bytes (1024 to 67108864). A larger one is read past without being kept, recorded as \
         undeliverable, acknowledged and counted.",
    ),
    here(
        Mqtt,
        "MQTT_CA_FILE",
        Nothing,
        "PEM file of the authorities that the MQTT broker's certificate is checked against; the system's without it. Its host \
         name is always checked. Read anew for each connection, as are the next two.",
    ),
    here(
        Mqtt,
        "MQTT_CERT_FILE",
        Nothing,
        "PEM file of the client certificate for MQTT, with those between it and its authority.",
    ),
    here(Mqtt, "MQTT_KEY_FILE", Nothing, "PEM file of its key, not encrypted."),
    here(
        Routes,
        "TOPIC_LIST",
        Nothing,
        "`mqtt:kafka,...`: exact MQTT topics, looked up before any wildcard. Split at the last colon.",
    ),
    here(
        Routes,
        "WILDCARD_TOPIC_LIST",
        Nothing,
        "`filter:kafka,...` with + and #: the first that matches wins, and each pair that overlaps is warned of once. \
         {1}, {2}.. in the Kafka topic stand for what each wildcard matched. `$share/group/filter` is subscribed as \
         such and matched as `filter`.",
    ),
    here(
        Routes,
        "DEFAULT_KAFKA_TOPIC",
        Nothing,
        "Kafka topic of messages that no entry matches. Without it they are dropped and counted.",
    ),
    here(
        Routes,
        "DEAD_LETTER_TOPIC",
        Nothing,
        "Kafka topic of records that cannot be delivered, with reason headers. Without it they are dropped and counted.",
    ),
    here(
        Routes,
        "KAFKA_KEY",
        Value("{topic}"),
        "Record key: {topic}, {1}.., literals, {{ and }} for braces; set and empty for none. Where the entry has no such \
         capture, the key is the MQTT topic.",
    ),
    here(
        Routes,
        "KAFKA_HEADERS",
        Value("id,replayed"),
        "Which record headers: any of id, topic, qos, retain, replayed, properties; or none. id is the same when the MQTT broker \
         delivers again. replayed marks restored records with tidegate.replayed; those sent to Kafka once before they were \
         stored have no mark. properties (MQTT 5): user properties under their own names, mqtt.content_type, \
         mqtt.response_topic, mqtt.correlation_data.",
    ),
    here(
        Kafka,
        "KAFKA_BROKER",
        Required,
        "Bootstrap list `host:port,...`; an IPv6 address stands in brackets. Port 9092 if absent.",
    ),
    here(
        Kafka,
        "SASL_SSL",
        Value("false"),
        "true: TLS and SASL (SASL_SSL), by default with OAUTHBEARER. KAFKA_SECURITY_PROTOCOL overrides it.",
    ),
    here(
        Kafka,
        "KAFKA_SECURITY_PROTOCOL",
        Nothing,
        "PLAINTEXT, SSL (TLS), SASL_PLAINTEXT or SASL_SSL. Without it SASL_SSL if SASL_SSL is true, else PLAINTEXT.",
    ),
    here(
        Kafka,
        "KAFKA_COMPRESSION",
        Value("none"),
        "none, gzip, snappy or lz4. zstd is refused: it needs a C library.",
    ),
    here(
        Kafka,
        "KAFKA_LINGER_MS",
        Value("0"),
        "How long a batch waits to grow, milliseconds (0 to 10000). 0 is adaptive: send at once while the connection has \
         room, gather while it has not.",
    ),
    here(
        Kafka,
        "KAFKA_BATCH_BYTES",
        Value("1048576"),
        "Largest batch, bytes (1024 to 67108864). Not above the broker's message.max.bytes, which is 1048588 by default.",
    ),
    here(
        Kafka,
        "KAFKA_ACKS",
        Value("all"),
        "all (or -1): every in-sync replica. 1: the leader alone, which loses what it had when it dies. 0 is refused: \
         nothing would be known to be safe.",
    ),
    here(
        Kafka,
        "KAFKA_CA_FILE",
        Nothing,
        "PEM file of the authorities that the Kafka brokers are checked against; the system's without it. Like the next two it \
         is read for each new connection.",
    ),
    here(
        Kafka,
        "KAFKA_CERT_FILE",
        Nothing,
        "PEM file of the client certificate for Kafka (mTLS), followed by those between it and its authority.",
    ),
    here(
        Kafka,
        "KAFKA_KEY_FILE",
        Nothing,
        "PEM file of the key of KAFKA_CERT_FILE: PKCS#8, PKCS#1 or SEC1, not encrypted.",
    ),
    here(
        Kafka,
        "SASL_MECHANISM",
        Value("OAUTHBEARER"),
        "OAUTHBEARER, PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. No effect without SASL.",
    ),
    here(Kafka, "SASL_USERNAME", Nothing, "User name for PLAIN and SCRAM."),
    secret(here(Kafka, "SASL_PASSWORD", Nothing, "Password for PLAIN and SCRAM.")),
    here(Kafka, "SASL_OAUTHBEARER_CLIENT_ID", Nothing, "Client id at the token endpoint."),
    secret(here(Kafka, "SASL_OAUTHBEARER_CLIENT_SECRET", Nothing, "Client secret at the token endpoint.")),
    here(
        Kafka,
        "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI",
        Nothing,
        "Where tokens are fetched by the client-credentials grant (RFC 6749 section 4.4): https://HOST[:PORT]/PATH. http is \
         taken too, and warned of if it is not this machine.",
    ),
    here(Kafka, "SASL_OAUTHBEARER_SCOPE", Nothing, "Scope asked for; the endpoint's default without it."),
    here(
        Kafka,
        "SASL_OAUTHBEARER_CLIENT_AUTH",
        Value("post"),
        "How the client proves who it is to the token endpoint: post (client_id and client_secret in the body) or basic (the \
         Authorization header).",
    ),
    here(
        Kafka,
        "SASL_OAUTHBEARER_EXTENSIONS",
        Nothing,
        "SASL extensions (KIP-342), passed through to the brokers: key=value,...",
    ),
    here(
        Kafka,
        "SASL_OAUTHBEARER_CA_FILE",
        Nothing,
        "PEM file of the authorities that the token endpoint is checked against; the system's without it.",
    ),
    here(
        Store,
        "DB_PERSIST_PATH",
        Nothing,
        "Directory of the spool, which holds what Kafka does not take; it is made if it is not there. Without it the spool \
         is in memory, and a crash or power loss loses what Kafka has not taken.",
    ),
    here(
        Store,
        "SPOOL_AFTER_MS",
        Value("500"),
        "What Kafka has not acknowledged for this long goes to the spool, milliseconds (50 to 3600000). Messages for a topic that \
         Kafka refuses or does not create go there at once.",
    ),
    here(
        Store,
        "SPOOL_MAX_BYTES",
        Value("1073741824"),
        "Size limit of the spool, bytes (1048576 to 1125899906842624). Without DB_PERSIST_PATH the default is 67108864, \
         because it is memory.",
    ),
    here(
        Store,
        "SPOOL_MIN_FREE_BYTES",
        Value("67108864"),
        "Free space that the spool leaves on its disk, bytes (0 to 1125899906842624). No effect without DB_PERSIST_PATH.",
    ),
    here(
        Store,
        "SPOOL_SEGMENT_BYTES",
        Value("8388608"),
        "Size of a segment file, bytes (65536 to 1073741824); not above a quarter of SPOOL_MAX_BYTES, to which the default \
         is lowered.",
    ),
    here(
        Store,
        "SPOOL_FULL",
        Value("block"),
        "What happens when the spool is full. block: nothing more is read from MQTT. drop-oldest: the oldest stored \
         messages are lost and counted.",
    ),
    here(
        Store,
        "SPOOL_RESTORE_PER_SEC",
        Value("0"),
        "Most stored messages sent per second while a backlog is restored (0 to 1000000); 0 is no limit.",
    ),
    here(
        Store,
        "INVOKE_LATENCY_SEC",
        Value("10"),
        "How often, at the longest, a restore is attempted while there is a backlog, seconds (1 to 86400). When Kafka is \
         seen to be back, it is attempted at once.",
    ),
    here(
        Store,
        "INVOKE_MAX_GOROUTINE",
        Value("1000"),
        "Most stored messages in flight to Kafka (1 to 1000000).",
    ),
    here(
        Store,
        "INVOKE_MIN_GOROUTINE",
        Value("50"),
        "Refill from the store when fewer stored messages are in flight (1 to 1000000); not above INVOKE_MAX_GOROUTINE, to \
         which the default is lowered.",
    ),
];

/// The variable with this name.
pub fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// The secret that `NAME_FILE` gives the value of, if `name` is such a variable.
pub fn secret_of_file(name: &str) -> Option<&'static Variable> {
    find(name.strip_suffix("_FILE")?).filter(|variable| variable.secret)
}

/// Prefixes of our variables: a name that begins so and is unknown may be a slip of the pen.
const PREFIXES: &[&str] = &[
    "MQTT_",
    "KAFKA_",
    "SPOOL_",
    "SASL_",
    "INVOKE_",
    "TOPIC_",
    "WILDCARD_",
    "DEFAULT_KAFKA",
    "DEAD_LETTER",
    "DB_PERSIST",
    "SHUTDOWN_TIMEOUT",
    "HTTP_LISTEN",
];

/// The known name that an unknown one most likely means: at most two letters away. A host's own KAFKA_HOME or
/// MQTT_SERVICE_HOST is left in peace.
pub fn suggestion(name: &str) -> Option<String> {
    let upper = name.to_uppercase();
    if find(name).is_some()
        || secret_of_file(name).is_some()
        || !PREFIXES.iter().any(|prefix| upper.starts_with(prefix))
    {
        return None;
    }
    let files =
        VARIABLES.iter().filter(|variable| variable.secret).map(|variable| format!("{}_FILE", variable.name));
    VARIABLES
        .iter()
        .map(|variable| variable.name.to_owned())
        .chain(files)
        .map(|known| (distance(&upper, &known), known))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes.
fn distance(one: &str, two: &str) -> usize {
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(two.bytes()) {
            let best = (diagonal + usize::from(a != b)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_once() {
        let mut names: Vec<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_slip_of_the_pen_gets_a_suggestion() {
        for (wrong, right) in [
            ("KAFKA_BROKERS", "KAFKA_BROKER"),
            ("MQTT_USERNAME", "MQTT_USER_NAME"),
            ("MQTT_CLIENTID", "MQTT_CLIENT_ID"),
            ("mqtt_qos", "MQTT_QOS"),
            ("WILDCARD_TOPICS_LIST", "WILDCARD_TOPIC_LIST"),
            ("TOPIC_LISTS", "TOPIC_LIST"),
            ("MQTT_USER_PASSWORD_FIL", "MQTT_USER_PASSWORD_FILE"),
            ("INVOKE_MAX_GOROUTINES", "INVOKE_MAX_GOROUTINE"),
            ("SPOOL_MAX_BYTE", "SPOOL_MAX_BYTES"),
            ("SPOOL_RESTORE_PER_SECS", "SPOOL_RESTORE_PER_SEC"),
            ("DB_PERSISTPATH", "DB_PERSIST_PATH"),
            ("HTTP_LISTENS", "HTTP_LISTEN"),
        ] {
            assert_eq!(suggestion(wrong).as_deref(), Some(right), "{wrong}");
        }
    }

    #[test]
    fn a_name_that_is_known_or_of_somebody_else_gets_none() {
        for name in [
            "MQTT_QOS",
            "KAFKA_HOME",
            "KAFKA_HEAP_OPTS",
            "MQTT_SERVICE_HOST",
            "PATH",
            "MQTT_USER_PASSWORD_FILE",
        ] {
            assert_eq!(suggestion(name), None, "{name}");
        }
    }

    #[test]
    fn only_a_secret_is_read_from_a_file() {
        assert_eq!(secret_of_file("MQTT_USER_PASSWORD_FILE").map(|v| v.name), Some("MQTT_USER_PASSWORD"));
        assert_eq!(secret_of_file("MQTT_QOS_FILE"), None);
        assert_eq!(secret_of_file("KAFKA_KEY_FILE"), None);
    }

    #[test]
    fn the_distance_counts_letters_changed_added_and_left_out() {
        assert_eq!((distance("", "ab"), distance("ab", ""), distance("kitten", "sitting")), (2, 2, 3));
    }
}
