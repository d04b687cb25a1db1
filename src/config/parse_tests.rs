use std::path::Path;
use std::time::Duration;

use crate::config::{
    Acks, Compression, Config, ConfigErrors, Headers, LogLevel, MqttQos, MqttTls, MqttVersion, RunMode,
    Spool, SpoolFull, Variables,
};
use crate::route::{Decision, Router};

/// The example environment of the program that tidegate follows, as its README has it.
const SEED: &[(&str, &str)] = &[
    ("RUN_MODE", "PRODUCTION"),
    ("MQTT_BROKER_URL", "127.0.0.1"),
    ("MQTT_BROKER_PORT", "1883"),
    ("MQTT_CLIENT_ID", "arafat"),
    ("MQTT_USER_NAME", "user"),
    ("MQTT_USER_PASSWORD", "12345678"),
    ("LOG_LVL", "info"),
    ("TOPIC_LIST", "default:default-kafka,custom:custom-kafka,dev_arafat:dev_arafat"),
    ("WILDCARD_TOPIC_LIST", "default/+/mqtt:custom-kafka,default/kc/#:general"),
    ("INVOKE_LATENCY_SEC", "10"),
    ("INVOKE_MAX_GOROUTINE", "1000"),
    ("INVOKE_MIN_GOROUTINE", "50"),
    ("KAFKA_BROKER", "localhost:9092"),
    ("SASL_SSL", "false"),
];

const SMALLEST: &[(&str, &str)] = &[
    ("MQTT_BROKER_URL", "broker"),
    ("MQTT_CLIENT_ID", "edge"),
    ("TOPIC_LIST", "a:b"),
    ("KAFKA_BROKER", "kafka"),
];

fn variables(base: &[(&str, &str)], changes: &[(&str, &str)]) -> Variables {
    base.iter().chain(changes).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn with(changes: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::from_variables(&variables(SMALLEST, changes))
}

fn valid(changes: &[(&str, &str)]) -> Config {
    with(changes).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The one problem of a configuration, as it is told.
fn problem(changes: &[(&str, &str)]) -> String {
    let errors = with(changes).map(|_| ()).expect_err(&format!("{changes:?} should be refused"));
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.0[0].to_string()
}

fn kafka_topic(router: &mut Router, topic: &str) -> Option<String> {
    match router.route(topic) {
        Decision::Route { kafka_topic, .. } => Some(kafka_topic.to_string()),
        _ => None,
    }
}

#[test]
fn the_env_file_of_the_seed_names_a_token_endpoint_that_sasl_ssl_false_leaves_unused() {
    let endpoint = [
        ("SASL_OAUTHBEARER_CLIENT_ID", "dev"),
        ("SASL_OAUTHBEARER_CLIENT_SECRET", "hunter2"),
        ("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", "https://keycloak.example/token"),
    ];
    let config = Config::from_variables(&variables(SEED, &endpoint)).unwrap();
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    assert!(!config.warnings.concat().contains("hunter2"));
    // Without the word false nobody has said that authentication is not wanted.
    assert_eq!(with(&endpoint).map(|_| ()).unwrap_err().0.len(), 3);
    assert!(problem(&[("SASL_SSL", "false"), ("SASL_USERNAME", "u")]).contains("has no effect"));
}

#[test]
fn the_example_environment_of_the_seed_is_valid_unchanged() {
    let config = Config::from_variables(&variables(SEED, &[])).unwrap();
    assert_eq!(config.run.mode, RunMode::Production);
    assert_eq!(config.run.log_level, LogLevel::Info);
    assert_eq!(config.mqtt.broker.to_string(), "127.0.0.1:1883");
    assert_eq!(config.mqtt.client_id, "arafat");
    assert_eq!(config.mqtt.user_name.as_deref(), Some("user"));
    assert_eq!(config.mqtt.password.as_ref().map(|secret| secret.expose()), Some("12345678"));
    assert_eq!(config.kafka.brokers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["localhost:9092"]);
    assert_eq!(config.restore.latency.as_secs(), 10);
    assert_eq!((config.restore.max_in_flight, config.restore.min_in_flight), (1000, 50));
    assert_eq!(config.warnings, Vec::<String>::new());
    let subscriptions = config.routes.rules.subscriptions();
    assert_eq!(subscriptions, ["default", "custom", "dev_arafat", "default/+/mqtt", "default/kc/#"]);
}

#[test]
fn the_example_environment_of_the_seed_routes_as_its_text_says() {
    let config = Config::from_variables(&variables(SEED, &[])).unwrap();
    let mut router = Router::new(config.routes.rules.clone());
    for (topic, expected) in [
        ("default", Some("default-kafka")),
        ("custom", Some("custom-kafka")),
        ("dev_arafat", Some("dev_arafat")),
        ("default/room/mqtt", Some("custom-kafka")),
        ("default/kc", Some("general")),
        ("default/kc/a/b", Some("general")),
        // It ends in both wildcards: the first mapped Kafka topic gets it.
        ("default/kc/mqtt", Some("custom-kafka")),
        ("default/room/other", None),
        ("custom/room", None),
    ] {
        assert_eq!(kafka_topic(&mut router, topic).as_deref(), expected, "{topic}");
    }
    let overlaps = router.overlaps(9);
    assert_eq!(overlaps.total, 1, "{overlaps:?}");
    let named: Vec<String> = overlaps
        .listed
        .iter()
        .flat_map(|pair| [pair.first, pair.second])
        .map(|id| router.rules().get(id).unwrap().to_string())
        .collect();
    assert_eq!(named, ["default/+/mqtt:custom-kafka", "default/kc/#:general"]);
}

#[test]
fn panic_and_fatal_leave_only_what_ends_the_process() {
    use log::LevelFilter;
    assert_eq!(LogLevel::Panic.filter(), LevelFilter::Off);
    assert_eq!(LogLevel::Fatal.filter(), LevelFilter::Off);
    assert_eq!(LogLevel::Error.filter(), LevelFilter::Error);
    assert_eq!(LogLevel::Trace.filter(), LevelFilter::Trace);
}

#[test]
fn what_is_left_out_is_as_documented() {
    let config = valid(&[]);
    assert_eq!(config.run.mode, RunMode::Develop);
    assert_eq!(config.run.shutdown_timeout.as_secs(), 10);
    assert_eq!(config.mqtt.broker.to_string(), "broker:1883");
    assert!(config.mqtt.user_name.is_none() && config.mqtt.password.is_none());
    assert_eq!(config.mqtt.qos, MqttQos::AtLeastOnce);
    assert_eq!(config.mqtt.keep_alive.as_secs(), 30);
    assert_eq!((config.mqtt.receive_maximum, config.mqtt.max_packet_bytes), (1000, 8 << 20));
    assert_eq!(config.kafka.brokers[0].to_string(), "kafka:9092");
    assert_eq!((config.kafka.compression, config.kafka.acks), (Compression::None, Acks::All));
    assert_eq!((config.kafka.linger.as_millis(), config.kafka.batch_bytes), (0, 1 << 20));
    assert_eq!(config.kafka.headers, Headers { id: true, replayed: true, ..Headers::default() });
    assert_eq!(config.routes.rules.key().text(), "{topic}");
    assert!(config.routes.rules.default_topic().is_none() && config.routes.dead_letter_topic.is_none());
    assert_eq!((config.restore.max_in_flight, config.restore.min_in_flight), (1000, 50));
}

#[test]
fn an_empty_value_is_none_but_an_empty_key_is_no_key() {
    let config =
        valid(&[("DB_PERSIST_PATH", ""), ("MQTT_QOS", " "), ("MQTT_USER_NAME", ""), ("KAFKA_KEY", "")]);
    assert_eq!(config.mqtt.qos, MqttQos::AtLeastOnce);
    assert!(config.mqtt.user_name.is_none());
    assert_eq!(config.spool.directory, None);
    assert!(!config.routes.rules.key().has_key());
}

#[test]
fn the_broker_url_has_the_forms_that_users_have() {
    for (url, port, expected) in [
        ("host", "", "host:1883"),
        ("host", "1884", "host:1884"),
        ("host:1885", "", "host:1885"),
        ("host:1885", "1885", "host:1885"),
        ("mqtt://host", "", "host:1883"),
        ("MQTT://host:1885/", "", "host:1885"),
        ("tcp://10.0.0.1:1885", "", "10.0.0.1:1885"),
        ("[::1]:1885", "", "[::1]:1885"),
        ("mqtt://[fe80::1]", "1885", "[fe80::1]:1885"),
        ("::1", "", "[::1]:1883"),
        ("mqtts://host", "", "host:8883"),
        ("mqtts://host", "1883", "host:1883"),
        ("SSL://host:1884", "", "host:1884"),
    ] {
        let config = valid(&[("MQTT_BROKER_URL", url), ("MQTT_BROKER_PORT", port)]);
        assert_eq!(config.mqtt.broker.to_string(), expected, "{url} {port}");
    }
}

#[test]
fn a_broker_url_that_cannot_be_served_is_refused_with_the_reason() {
    for (url, reason) in [
        ("ws://host", "websockets"),
        ("http://host", "expected HOST"),
        ("mqtt://", "expected HOST"),
        ("host:", "port from 1 to 65535"),
        ("host:0", "port from 1 to 65535"),
        ("host:99999", "port from 1 to 65535"),
        ("host/path", "expected HOST"),
        ("[::1", "expected HOST"),
        ("two hosts", "expected HOST"),
    ] {
        let told = problem(&[("MQTT_BROKER_URL", url)]);
        assert!(told.contains(reason) && told.contains(url), "{url}: {told}");
    }
    let told = problem(&[("MQTT_BROKER_URL", "host:1"), ("MQTT_BROKER_PORT", "2")]);
    assert!(told.starts_with("MQTT_BROKER_PORT is \"2\": MQTT_BROKER_URL says port 1"), "{told}");
}

#[test]
fn no_secret_is_in_an_error_or_in_debug_output() {
    let url = problem(&[("MQTT_BROKER_URL", "mqtt://user:hunter2@host")]);
    let brokers = problem(&[("KAFKA_BROKER", "user:hunter2@host:9092")]);
    let nameless = problem(&[("MQTT_USER_PASSWORD", "hunter2")]);
    let sasl = problem(&[("SASL_PASSWORD", "hunter2")]);
    let long = problem(&[("MQTT_USER_NAME", "user"), ("MQTT_USER_PASSWORD", &"hunter2".repeat(10_000))]);
    let config = format!("{:?}", valid(&[("MQTT_USER_NAME", "user"), ("MQTT_USER_PASSWORD", "hunter2")]));
    for text in [url, brokers, nameless, sasl, long, config] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_password_that_travels_unencrypted_to_another_machine_is_warned_of() {
    let login = [("MQTT_USER_NAME", "user"), ("MQTT_USER_PASSWORD", "hunter2")];
    for (url, warned) in [
        ("mqtt://broker", true),
        ("10.0.0.1", true),
        ("mqtts://broker", false),
        ("localhost", false),
        ("127.0.0.1:1884", false),
        ("mqtt://[::1]", false),
    ] {
        let warnings = valid(&[&login[..], &[("MQTT_BROKER_URL", url)]].concat()).warnings.concat();
        assert_eq!(warnings.contains("MQTT_USER_PASSWORD travels unencrypted"), warned, "{url}: {warnings}");
        assert!(!warnings.contains("hunter2"));
    }
    assert!(valid(&login[..1]).warnings.is_empty(), "there is no password");
}

#[test]
fn the_files_of_mqtt_tls_need_mqtts_and_certificate_and_key_each_other() {
    let tls = [("MQTT_BROKER_URL", "mqtts://host")];
    assert_eq!(valid(&tls).mqtt.tls, Some(MqttTls::default()));
    assert_eq!(valid(&[]).mqtt.tls, None);
    let files = [("MQTT_CA_FILE", "ca.pem"), ("MQTT_CERT_FILE", "cert.pem"), ("MQTT_KEY_FILE", "key.pem")];
    let expected =
        MqttTls { ca_file: Some("ca.pem".into()), client: Some(("cert.pem".into(), "key.pem".into())) };
    assert_eq!(valid(&[&tls[..], &files].concat()).mqtt.tls, Some(expected));
    assert!(problem(&files[..1]).contains("MQTT_CA_FILE is \"ca.pem\": it needs mqtts://"));
    assert!(problem(&[tls[0], files[1]]).contains("MQTT_KEY_FILE: it is required with MQTT_CERT_FILE"));
    assert!(problem(&[tls[0], files[2]]).contains("MQTT_CERT_FILE: it is required with MQTT_KEY_FILE"));
}

#[test]
fn mqtt_5_and_qos_2_are_taken() {
    let config = valid(&[("MQTT_VERSION", "5"), ("MQTT_QOS", "2"), ("KAFKA_HEADERS", "properties")]);
    assert_eq!((config.mqtt.version, config.mqtt.qos), (MqttVersion::V5, MqttQos::ExactlyOnce));
    assert_eq!(config.mqtt.session_expiry_sec, 604_800);
    assert_eq!(config.kafka.headers, Headers { properties: true, ..Headers::default() });
    let for_ever = valid(&[("MQTT_VERSION", "5"), ("MQTT_SESSION_EXPIRY_SEC", "4294967295")]);
    assert_eq!(for_ever.mqtt.session_expiry_sec, u32::MAX);
    let none = problem(&[("MQTT_VERSION", "5"), ("MQTT_SESSION_EXPIRY_SEC", "0")]);
    assert!(none.contains("from 1 to 4294967295"), "{none}");
}

#[test]
fn the_bootstrap_list_takes_several_brokers_and_names_the_bad_ones() {
    let config = valid(&[("KAFKA_BROKER", "a:1, b ,[::1]:9093,,")]);
    let brokers: Vec<String> = config.kafka.brokers.iter().map(ToString::to_string).collect();
    assert_eq!(brokers, ["a:1", "b:9092", "[::1]:9093"]);
    assert!(problem(&[("KAFKA_BROKER", "a:1,b:x")]).starts_with("KAFKA_BROKER is \"b:x\""));
    assert!(problem(&[("KAFKA_BROKER", "PLAINTEXT://a:1")]).contains("without a scheme"));
    assert!(problem(&[("KAFKA_BROKER", ",")]).contains("expected host:port"));
}

#[test]
fn http_is_on_loopback_unless_it_is_told_otherwise() {
    let listen = |value| valid(&[("HTTP_LISTEN", value)]).run.http_listen.map(|address| address.to_string());
    assert_eq!(listen("").as_deref(), Some("127.0.0.1:9464"), "empty is as not set");
    assert_eq!(listen("Off"), None);
    for (value, address) in [
        ("localhost:9000", "127.0.0.1:9000"),
        ("0.0.0.0:0", "0.0.0.0:0"),
        (" [::]:9464 ", "[::]:9464"),
        ("10.0.0.7:80", "10.0.0.7:80"),
    ] {
        assert_eq!(listen(value).as_deref(), Some(address), "{value}");
    }
    for value in ["9464", ":9464", "127.0.0.1", "::1:9464x", "gateway:9464", "127.0.0.1:65536", "on", "none"]
    {
        let told = problem(&[("HTTP_LISTEN", value)]);
        assert!(told.contains(&format!("HTTP_LISTEN is \"{value}\": expected ADDRESS:PORT")), "{told}");
    }
}

#[test]
fn a_value_out_of_its_range_is_refused_with_what_is_expected() {
    for (name, value, expected) in [
        ("MQTT_QOS", "3", "expected one of 0, 1, 2"),
        ("MQTT_VERSION", "3.1", "expected one of 3.1.1, 5"),
        ("MQTT_SESSION_EXPIRY_SEC", "600", "it needs MQTT_VERSION=5"),
        ("KAFKA_HEADERS", "id,properties", "properties needs MQTT_VERSION=5"),
        ("MQTT_KEEP_ALIVE_SEC", "0", "from 1 to 65535"),
        ("MQTT_KEEP_ALIVE_SEC", "65536", "from 1 to 65535"),
        ("MQTT_RECEIVE_MAXIMUM", "0", "from 1 to 65535"),
        ("MQTT_MAX_PACKET_BYTES", "8MiB", "a whole number"),
        ("MQTT_BROKER_PORT", "-1", "a whole number"),
        ("KAFKA_COMPRESSION", "zstd", "zstd is not supported; expected none, gzip, snappy, lz4"),
        ("KAFKA_ACKS", "0", "nothing would be known to be safe"),
        ("KAFKA_ACKS", "2", "expected one of all, -1, 1"),
        ("KAFKA_LINGER_MS", "0.5", "a whole number"),
        ("KAFKA_BATCH_BYTES", "1", "from 1024"),
        ("KAFKA_HEADERS", "id,none", "none alone"),
        ("KAFKA_HEADERS", "colour", "expected any of"),
        ("KAFKA_KEY", "{1}", "no filter of WILDCARD_TOPIC_LIST"),
        ("KAFKA_KEY", "{", "brace"),
        ("RUN_MODE", "TEST", "expected one of DEVELOP, PRODUCTION"),
        ("LOG_LVL", "loud", "expected one of panic"),
        ("DEFAULT_KAFKA_TOPIC", "a b", "has only letters"),
        ("DEAD_LETTER_TOPIC", "..", ". or .."),
        ("SHUTDOWN_TIMEOUT_SEC", "0", "from 1"),
        ("INVOKE_LATENCY_SEC", "0", "from 1"),
        ("INVOKE_MIN_GOROUTINE", "1001", "at most INVOKE_MAX_GOROUTINE, which is 1000"),
        ("DB_PERSIST_PATH", "a\0b", "U+0000"),
        ("SPOOL_AFTER_MS", "49", "from 50 to 3600000"),
        ("SPOOL_AFTER_MS", "3600001", "from 50 to 3600000"),
        ("SPOOL_MAX_BYTES", "1048575", "from 1048576 to 1125899906842624"),
        ("SPOOL_MAX_BYTES", "1GiB", "a whole number"),
        ("SPOOL_MIN_FREE_BYTES", "-1", "from 0 to"),
        ("SPOOL_SEGMENT_BYTES", "65535", "from 65536 to 1073741824"),
        ("SPOOL_SEGMENT_BYTES", "1073741825", "from 65536 to 1073741824"),
        (
            "SPOOL_SEGMENT_BYTES",
            "16777217",
            "at most 16777216, a quarter of SPOOL_MAX_BYTES, which is 67108864",
        ),
        ("SPOOL_FULL", "drop", "expected one of block, drop-oldest"),
        ("SPOOL_RESTORE_PER_SEC", "1000001", "from 0 to 1000000"),
        ("MQTT_USER_NAME", "a\0b", "U+0000"),
        ("TOPIC_LIST", "no colon", "a colon between"),
        ("TOPIC_LIST", "a/+:b", "WILDCARD_TOPIC_LIST"),
        ("TOPIC_LIST", "a:b,a:c", "different Kafka topics"),
        ("TOPIC_LIST", "a:{1}", "the filter has 0 wildcard(s)"),
        ("TOPIC_LIST", ",", "nothing to subscribe to"),
        ("WILDCARD_TOPIC_LIST", "a/b+:c", "+ stands alone"),
        ("WILDCARD_TOPIC_LIST", "a/+:c{2}", "the filter has 1 wildcard(s)"),
        ("WILDCARD_TOPIC_LIST", ":c", "it is empty"),
    ] {
        let told = problem(&[(name, value)]);
        assert!(told.starts_with(name) && told.contains(expected), "{told}");
    }
}

#[test]
fn lists_are_split_at_the_last_colon_and_tolerate_blanks_and_empty_items() {
    let config = valid(&[("TOPIC_LIST", ",a:b:c, urn:x:y:z ,,"), ("WILDCARD_TOPIC_LIST", "s/+:t.{1},")]);
    let rules: Vec<String> = config.routes.rules.all().iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["a:b:c", "urn:x:y:z", "s/+:t.{1}"]);
    assert_eq!(config.routes.rules.all()[0].filter.matched(), "a:b");
}

#[test]
fn all_problems_are_told_at_once() {
    let errors =
        Config::from_variables(&variables(&[], &[("MQTT_QOS", "7"), ("KAFKA_BROKERS", "x")])).unwrap_err();
    let named: Vec<&str> = errors.0.iter().map(|problem| problem.variable.as_str()).collect();
    assert_eq!(named, ["MQTT_BROKER_URL", "MQTT_CLIENT_ID", "MQTT_QOS", "KAFKA_BROKER", "TOPIC_LIST"]);
    assert!(errors.to_string().contains("(KAFKA_BROKERS is set: was KAFKA_BROKER meant?)"), "{errors}");
}

#[test]
fn a_smaller_maximum_lowers_the_minimum_that_is_not_set() {
    assert_eq!(valid(&[("INVOKE_MAX_GOROUTINE", "10")]).restore.min_in_flight, 10);
}

#[test]
fn the_spool_is_in_memory_unless_it_has_a_directory_and_is_smaller_there() {
    let in_memory = Spool {
        directory: None,
        after: Duration::from_millis(500),
        bytes_max: 64 << 20,
        free_bytes_min: 64 << 20,
        segment_bytes: 8 << 20,
        full: SpoolFull::Block,
        restore_per_sec: 0,
    };
    assert_eq!(valid(&[]).spool, in_memory);
    assert_eq!(valid(&[("DB_PERSIST_PATH", " "), ("SPOOL_MAX_BYTES", " ")]).spool, in_memory);
    let on_disk = valid(&[("DB_PERSIST_PATH", "/var/lib/tidegate")]).spool;
    assert_eq!(on_disk.directory.as_deref(), Some(Path::new("/var/lib/tidegate")));
    assert_eq!(on_disk, Spool { directory: on_disk.directory.clone(), bytes_max: 1 << 30, ..in_memory });
    assert_eq!(valid(&[("SPOOL_MAX_BYTES", "1073741824")]).spool.bytes_max, 1 << 30, "what is set is taken");
}

#[test]
fn every_setting_of_the_spool_is_taken_up_to_its_limits() {
    let spool = valid(&[
        ("DB_PERSIST_PATH", "spool"),
        ("SPOOL_AFTER_MS", "50"),
        ("SPOOL_MAX_BYTES", "1048576"),
        ("SPOOL_MIN_FREE_BYTES", "0"),
        ("SPOOL_SEGMENT_BYTES", "262144"),
        ("SPOOL_FULL", "Drop-Oldest"),
        ("SPOOL_RESTORE_PER_SEC", "1000000"),
    ])
    .spool;
    let expected = Spool {
        directory: Some("spool".into()),
        after: Duration::from_millis(50),
        bytes_max: 1 << 20,
        free_bytes_min: 0,
        segment_bytes: 256 << 10,
        full: SpoolFull::DropOldest,
        restore_per_sec: 1_000_000,
    };
    assert_eq!(spool, expected);
    let largest = valid(&[("SPOOL_MAX_BYTES", "1125899906842624"), ("SPOOL_SEGMENT_BYTES", "1073741824")]);
    assert_eq!((largest.spool.bytes_max, largest.spool.segment_bytes), (1 << 50, 1 << 30));
}

#[test]
fn a_smaller_spool_lowers_the_segment_that_is_not_set() {
    assert_eq!(valid(&[("SPOOL_MAX_BYTES", "1048576")]).spool.segment_bytes, 256 << 10);
    let told = problem(&[("SPOOL_MAX_BYTES", "1048576"), ("SPOOL_SEGMENT_BYTES", "262145")]);
    assert!(told.starts_with("SPOOL_SEGMENT_BYTES is \"262145\": expected at most 262144"), "{told}");
    // A size that is wrong by itself is the only problem: the quarter of it means nothing.
    assert!(
        problem(&[("SPOOL_MAX_BYTES", "1"), ("SPOOL_SEGMENT_BYTES", "8388608")]).starts_with("SPOOL_MAX")
    );
}

#[test]
fn a_misspelt_name_weak_acks_and_a_filter_subscribed_twice_are_warned_of() {
    let config = valid(&[("WILDCARD_TOPIC_LIST", "+/c:x,$share/g/+/c:x")]);
    assert!(
        config.warnings[0].starts_with("+/c and $share/g/+/c are two subscriptions"),
        "{:?}",
        config.warnings
    );
    let config = valid(&[("KAFKA_ACK", "all"), ("KAFKA_HOME", "/opt/kafka")]);
    assert_eq!(config.warnings, ["KAFKA_ACK is set and is no variable of tidegate: was KAFKA_ACKS meant?"]);
    let config = valid(&[("KAFKA_ACKS", "1")]);
    assert_eq!(config.kafka.acks, Acks::Leader);
    assert!(config.warnings[0].starts_with("KAFKA_ACKS is 1"), "{:?}", config.warnings);
}

#[test]
fn words_are_taken_in_any_case() {
    let config = valid(&[
        ("LOG_LVL", "WARN"),
        ("KAFKA_COMPRESSION", "LZ4"),
        ("KAFKA_HEADERS", "Topic, QoS"),
        ("SASL_SSL", "False"),
    ]);
    assert_eq!((config.run.log_level, config.kafka.compression), (LogLevel::Warn, Compression::Lz4));
    assert_eq!(config.kafka.headers, Headers { topic: true, qos: true, ..Headers::default() });
    assert_eq!(valid(&[("KAFKA_HEADERS", "none")]).kafka.headers, Headers::default());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn no_value_makes_validation_panic_or_shows_a_password(
        name in proptest::sample::select(crate::config::variables::VARIABLES.iter().map(|v| v.name).collect::<Vec<_>>()),
        value in "[a-z0-9:,@/+#{}$\\[\\] \0]{0,24}",
    ) {
        let told = match with(&[("MQTT_USER_NAME", "u"), ("MQTT_USER_PASSWORD", "HUNTER"), (name, &value)]) {
            Ok(config) => format!("{config:?}"),
            Err(errors) => errors.to_string(),
        };
        proptest::prop_assert!(!told.contains("HUNTER"));
    }
}

#[cfg(feature = "tls")]
#[path = "security_tests.rs"]
mod security;

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_refuses_what_wants_it_in_one_sentence() {
    for (name, value) in [("SASL_SSL", "true"), ("KAFKA_SECURITY_PROTOCOL", "SSL")] {
        let errors = with(&[(name, value)]).map(|_| ()).unwrap_err().to_string();
        let expected =
            format!("{name} is \"{value}\": this build of tidegate has no TLS (cargo feature `tls`)");
        assert!(errors.contains(&expected), "{errors}");
    }
}
