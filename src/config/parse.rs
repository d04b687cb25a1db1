//! From variables as the user wrote them to a valid [`Config`]: pure, and it goes on after a problem, so that
//! all are told at once.
//!
//! An empty value is the same as none, as container tools pass `X=` for "not given"; KAFKA_KEY alone may be empty.

mod mqtt;
mod security;
mod store;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) use self::mqtt::{BrokerUrl, parse_broker_url};
use super::error::{ConfigErrors, Problem};
use super::source::Variables;
use super::variables::{self, Standard};
use super::{
    Acks, Compression, Config, Headers, HostPort, Kafka, KafkaSecurity, LogLevel, Routes, Run, RunMode,
};
use crate::route::{KeyTemplate, Rule, RuleKind, Rules, TopicFilter, TopicTemplate, kafka_topic};

/// The port of Kafka when the bootstrap list names none.
const KAFKA_PORT: u16 = 9092;

/// Reads the variables and gathers what is wrong with them.
struct Reader<'a> {
    variables: &'a Variables,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// Validates variables. `problems` are those that were met while the variables were gathered.
pub(super) fn validate(variables: &Variables, problems: Vec<Problem>) -> Result<Config, ConfigErrors> {
    let mut reader = Reader { variables, problems, warnings: Vec::new() };
    reader.warn_of_misspelt_names();
    let run = reader.run();
    let mqtt = reader.mqtt();
    let kafka = reader.kafka();
    let routes = reader.routes();
    let restore = reader.restore();
    let spool = reader.spool();
    let Reader { problems, warnings, .. } = reader;
    match (mqtt, kafka, routes, spool) {
        (Some(mqtt), Some(kafka), Some(routes), Some(spool)) if problems.is_empty() => {
            Ok(Config { run, mqtt, kafka, routes, restore, spool, warnings })
        }
        _ => Err(ConfigErrors(problems)),
    }
}

/// What [`super::kafka_security`] is about.
pub(super) fn security(variables: &Variables) -> Result<(KafkaSecurity, Vec<String>), ConfigErrors> {
    let mut reader = Reader { variables, problems: Vec::new(), warnings: Vec::new() };
    match reader.kafka_security() {
        Some(security) if reader.problems.is_empty() => Ok((security, reader.warnings)),
        _ => Err(ConfigErrors(reader.problems)),
    }
}

/// What [`super::http_listen`] is about.
pub(super) fn http_listen(variables: &Variables) -> Result<Option<SocketAddr>, ConfigErrors> {
    let mut reader = Reader { variables, problems: Vec::new(), warnings: Vec::new() };
    let address = reader.http_listen();
    if reader.problems.is_empty() { Ok(address) } else { Err(ConfigErrors(reader.problems)) }
}

impl Reader<'_> {
    /// The value as it was written, unless it is empty.
    fn raw(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value without surrounding blanks, unless nothing is left of it.
    fn given(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim).filter(|value| !value.is_empty())
    }

    /// The same, or the default from the table. None when there is neither.
    fn text(&self, name: &str) -> Option<&str> {
        let standard = match variables::find(name).map(|variable| variable.default) {
            Some(Standard::Value(value)) => Some(value),
            _ => None,
        };
        self.given(name).or(standard)
    }

    fn problem(&mut self, name: &str, expected: impl Into<String>) {
        let secret = variables::find(name).is_some_and(|variable| variable.secret);
        let pasted = |value: &&str| name.ends_with("_FILE") && is_pasted(value);
        let value = self.text(name).filter(|value| !secret && !pasted(value));
        let problem = Problem::new(name, value, expected);
        self.problems.push(problem);
    }

    fn required(&mut self, name: &str, what: &str) -> Option<String> {
        let value = self.text(name).map(str::to_owned);
        if value.is_none() {
            let misspelt =
                self.variables.keys().find(|key| variables::suggestion(key).as_deref() == Some(name));
            let hint = misspelt.map(|key| format!(" ({} is set: was {name} meant?)", key.escape_debug()));
            self.problem(name, format!("it is required: expected {what}{}", hint.unwrap_or_default()));
        }
        value
    }

    /// A whole number within limits.
    fn number(&mut self, name: &str, least: u64, most: u64) -> u64 {
        let number = self.text(name).and_then(|text| text.parse::<u64>().ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => number,
            None => {
                self.problem(name, format!("expected a whole number from {least} to {most}"));
                least
            }
        }
    }

    fn seconds(&mut self, name: &str, least: u64, most: u64) -> Duration {
        Duration::from_secs(self.number(name, least, most))
    }

    /// One of several words, in any case. `refused` are words that are understood and refused, with the reason.
    fn choice<T: Copy>(&mut self, name: &str, words: &[(&str, T)], refused: &[(&str, &str)]) -> Option<T> {
        let text = self.text(name)?.to_ascii_lowercase();
        if let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
            return Some(*value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let names = names.join(", ");
        match refused.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
            Some((_, reason)) => self.problem(name, format!("{reason}; expected {names}")),
            None => self.problem(name, format!("expected one of {names}")),
        }
        None
    }

    fn warn_of_misspelt_names(&mut self) {
        let warn = |name: &String| {
            let meant = variables::suggestion(name)?;
            let name = name.escape_debug();
            Some(format!("{name} is set and is no variable of tidegate: was {meant} meant?"))
        };
        self.warnings.extend(self.variables.keys().filter_map(warn));
    }

    fn run(&mut self) -> Run {
        let modes = [("DEVELOP", RunMode::Develop), ("PRODUCTION", RunMode::Production)];
        let levels = [
            ("panic", LogLevel::Panic),
            ("fatal", LogLevel::Fatal),
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ];
        Run {
            mode: self.choice("RUN_MODE", &modes, &[]).unwrap_or(RunMode::Develop),
            log_level: self.choice("LOG_LVL", &levels, &[]).unwrap_or(LogLevel::Info),
            shutdown_timeout: self.seconds("SHUTDOWN_TIMEOUT_SEC", 1, 3600),
            http_listen: self.http_listen(),
        }
    }

    /// An address and no name: a start must not wait for a name server.
    fn http_listen(&mut self) -> Option<SocketAddr> {
        let text = self.text("HTTP_LISTEN")?.to_ascii_lowercase();
        if text == "off" {
            return None;
        }
        let text = text.strip_prefix("localhost:").map_or(text.clone(), |port| format!("127.0.0.1:{port}"));
        let address = text.parse().ok();
        if address.is_none() {
            self.problem("HTTP_LISTEN", "expected ADDRESS:PORT (an IPv6 address in brackets), or off");
        }
        address
    }

    fn kafka(&mut self) -> Option<Kafka> {
        let brokers = self.kafka_brokers();
        let security = self.kafka_security();
        let codecs = [
            ("none", Compression::None),
            ("gzip", Compression::Gzip),
            ("snappy", Compression::Snappy),
            ("lz4", Compression::Lz4),
        ];
        let compression = self.choice("KAFKA_COMPRESSION", &codecs, &[("zstd", "zstd is not supported")]);
        let unsafe_acks =
            [("0", "with 0 nothing would be known to be safe before it is acknowledged to MQTT")];
        let words = [("all", Acks::All), ("-1", Acks::All), ("1", Acks::Leader)];
        let acks = self.choice("KAFKA_ACKS", &words, &unsafe_acks);
        if acks == Some(Acks::Leader) {
            let loss = "a message is acknowledged to MQTT when the leader alone has it, and is lost if that broker dies";
            self.warnings.push(format!("KAFKA_ACKS is 1: {loss}; all is safe"));
        }
        let linger_ms = self.number("KAFKA_LINGER_MS", 0, 10_000);
        let batch_bytes = self.number("KAFKA_BATCH_BYTES", 1024, 64 << 20) as u32;
        let headers = self.headers();
        Some(Kafka {
            brokers: brokers?,
            security: security?,
            compression: compression?,
            linger: Duration::from_millis(linger_ms),
            batch_bytes,
            acks: acks?,
            headers: headers?,
        })
    }

    fn kafka_brokers(&mut self) -> Option<Vec<HostPort>> {
        let list = self.required("KAFKA_BROKER", "host:port,...")?;
        let mut brokers = Vec::new();
        // A password in the list may itself hold commas: then each item may be a piece of it.
        let may_show = !list.contains('@');
        for item in items(&list) {
            let parsed = if item.contains("://") {
                Err("expected host:port without a scheme".to_owned())
            } else {
                parse_host_port(item)
            };
            match parsed {
                Ok((host, port)) => brokers.push(HostPort { host, port: port.unwrap_or(KAFKA_PORT) }),
                Err(expected) => {
                    let problem = Problem::new("KAFKA_BROKER", may_show.then_some(item), expected);
                    self.problems.push(problem);
                }
            }
        }
        if brokers.is_empty() && items(&list).next().is_none() {
            self.problem("KAFKA_BROKER", "expected host:port,...");
        }
        (!brokers.is_empty()).then_some(brokers)
    }

    fn headers(&mut self) -> Option<Headers> {
        let text = self.text("KAFKA_HEADERS").unwrap_or_default().to_ascii_lowercase();
        let words: BTreeSet<&str> = items(&text).collect();
        let mut headers = Headers::default();
        for word in &words {
            match *word {
                "id" => headers.id = true,
                "topic" => headers.topic = true,
                "qos" => headers.qos = true,
                "retain" => headers.retain = true,
                "replayed" => headers.replayed = true,
                "properties" if self.is_mqtt_5() => headers.properties = true,
                "none" if words.len() == 1 => {}
                "properties" => {
                    self.problem("KAFKA_HEADERS", "properties needs MQTT_VERSION=5");
                    return None;
                }
                _ => {
                    self.problem(
                        "KAFKA_HEADERS",
                        "expected any of id, topic, qos, retain, replayed, properties; or none alone",
                    );
                    return None;
                }
            }
        }
        Some(headers)
    }

    fn routes(&mut self) -> Option<Routes> {
        let before = self.problems.len();
        let mut rules = self.rules(RuleKind::Exact);
        rules.extend(self.rules(RuleKind::Wildcard));
        if rules.is_empty() && self.problems.len() == before {
            self.problem(
                "TOPIC_LIST",
                "there is nothing to subscribe to: expected entries in it or in WILDCARD_TOPIC_LIST",
            );
        }
        let default_topic = self.kafka_topic("DEFAULT_KAFKA_TOPIC");
        let dead_letter_topic = self.kafka_topic("DEAD_LETTER_TOPIC");
        let key = self.key();
        let is_whole = self.problems.len() == before;
        match Rules::new(rules, key, default_topic) {
            Ok(rules) => {
                for (first, second) in rules.subscribed_twice() {
                    self.warnings.push(format!(
                        "{first} and {second} are two subscriptions to the same topics: each message comes twice and is written twice; \
                         take one out"
                    ));
                }
                is_whole.then_some(Routes { rules, dead_letter_topic })
            }
            Err(errors) => {
                for error in errors {
                    // Without all entries it is not known whether one of them has the capture that the key names.
                    if is_whole || !matches!(error, crate::route::RuleError::KeyCapture { .. }) {
                        self.problems.push(Problem::new(error.variable(), None, error.to_string()));
                    }
                }
                None
            }
        }
    }

    fn rules(&mut self, kind: RuleKind) -> Vec<Rule> {
        let name = kind.variable();
        let list = self.text(name).unwrap_or_default().to_owned();
        let mut rules = Vec::new();
        for (item, position) in items(&list).zip(1..) {
            match parse_rule(kind, position, item) {
                Ok(rule) => rules.push(rule),
                Err(reason) => self.problems.push(Problem::new(name, Some(item), reason)),
            }
        }
        rules
    }

    fn kafka_topic(&mut self, name: &str) -> Option<std::sync::Arc<str>> {
        match kafka_topic(self.text(name)?) {
            Ok(topic) => Some(topic),
            Err(error) => {
                self.problem(name, error.to_string());
                None
            }
        }
    }

    fn key(&mut self) -> KeyTemplate {
        // The one variable whose empty value is not the same as none.
        let Some(text) = self.variables.get("KAFKA_KEY") else { return KeyTemplate::default() };
        match KeyTemplate::parse(text) {
            Ok(key) => key,
            Err(error) => {
                self.problem("KAFKA_KEY", error.to_string());
                KeyTemplate::default()
            }
        }
    }
}

/// Whether a value is the content of a PEM file rather than its path: what it holds may be a key, and is not to be shown.
fn is_pasted(value: &str) -> bool {
    value.contains(['\n', '\r']) || value.contains("-----BEGIN")
}

/// The items of a list; empty ones do not count, so that a trailing comma is no mistake.
fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn parse_rule(kind: RuleKind, position: usize, item: &str) -> Result<Rule, String> {
    // At the last colon: an MQTT topic may hold colons, a Kafka topic may not.
    let (filter, target) =
        item.rsplit_once(':').ok_or("expected MQTT topic and Kafka topic with a colon between")?;
    let (filter, target) = (filter.trim(), target.trim());
    let filter = TopicFilter::parse(filter).map_err(|error| format!("the MQTT topic: {error}"))?;
    let target = TopicTemplate::parse(target, &filter).map_err(|error| error.to_string())?;
    Ok(Rule { kind, position, filter, target })
}

/// `host`, `host:port`, `[ipv6]`, `[ipv6]:port`, or an IPv6 address alone.
pub(super) fn parse_host_port(text: &str) -> Result<(String, Option<u16>), String> {
    let expected = || "expected HOST or HOST:PORT (an IPv6 address in brackets)".to_owned();
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, behind) = rest.split_once(']').ok_or_else(expected)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| expected())?;
        match behind.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if behind.is_empty() => (host, None),
            None => return Err(expected()),
        }
    } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_host_char = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(is_host_char) {
        return Err(expected());
    }
    match port {
        None => Ok((host.to_owned(), None)),
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 => Ok((host.to_owned(), Some(number))),
            _ => Err("expected a port from 1 to 65535 behind the colon".to_owned()),
        },
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
