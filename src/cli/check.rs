//! `tidegate check`: what would be subscribed, where it would go, where the spool is, what is doubtful, and whether both
//! brokers are there.

use std::io::{self, Write};

use super::{CliError, Hooks, Reach, warnings};
use crate::config::{Config, Spool};
use crate::fs::is_writable_dir;
use crate::observe::log::one_line;
use crate::route::{Router, Rules};

pub(super) fn check(config: &Config, hooks: &Hooks<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let router = Router::new(config.routes.rules.clone());
    writeln!(out, "configuration: valid")?;
    write_routes(config, router.rules(), out)?;
    let spool = write_spool(&config.spool, out)?;
    for warning in warnings(config, &router) {
        writeln!(out, "warning: {}", one_line(&warning))?;
    }
    let mqtt = write_reached("MQTT", &config.mqtt.broker.to_string(), hooks.reach_mqtt, config, out)?;
    let brokers: Vec<String> = config.kafka.brokers.iter().map(ToString::to_string).collect();
    let kafka = write_reached("Kafka", &brokers.join(","), hooks.reach_kafka, config, out)?;
    match (mqtt && kafka, spool) {
        (false, _) => Err(CliError::Unreachable),
        (true, false) => Err(CliError::SpoolUnusable),
        (true, true) => Ok(()),
    }
}

fn write_routes(config: &Config, rules: &Rules, out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<[String; 4]> = rules
        .all()
        .iter()
        .map(|rule| {
            [
                rule.kind.variable().to_owned(),
                one_line(rule.filter.subscription()).into_owned(),
                rule.target.to_string(),
                key_of(rules, rule.filter.wildcards()),
            ]
        })
        .collect();
    writeln!(out, "subscriptions: {}, at QoS {}", rules.subscriptions().len(), config.mqtt.qos.as_u8())?;
    let head = ["list", "subscribed", "Kafka topic", "key"].map(str::to_owned);
    let width = |column: usize| {
        let cells = std::iter::once(&head).chain(&rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let [list, subscribed, kafka] = [width(0), width(1), width(2)];
    for [one, two, three, four] in std::iter::once(&head).chain(&rows) {
        writeln!(out, "  {one:list$}  {two:subscribed$}  {three:kafka$}  {four}")?;
    }
    let or_dropped =
        |topic: Option<&std::sync::Arc<str>>| topic.map_or("dropped and counted".into(), |t| t.to_string());
    writeln!(out, "no rule matches: {}", or_dropped(rules.default_topic()))?;
    writeln!(out, "undeliverable: {}", or_dropped(config.routes.dead_letter_topic.as_ref()))
}

/// Gives whether the spool's directory can be used. One that is not there yet is made by `run`.
fn write_spool(spool: &Spool, out: &mut dyn Write) -> io::Result<bool> {
    let at = match &spool.directory {
        Some(directory) => one_line(&directory.display().to_string()).into_owned(),
        None => "in memory: a crash or power loss loses what Kafka has not taken".to_owned(),
    };
    writeln!(out, "spool: {at}; at most {} bytes; when full: {}", spool.bytes_max, spool.full.word())?;
    match spool.directory.as_deref().map(is_writable_dir) {
        Some(Err(reason)) => {
            writeln!(out, "spool: its directory can NOT be used, {}", one_line(&reason.to_string()))?;
            Ok(false)
        }
        Some(Ok(_)) | None => Ok(true),
    }
}

/// The key that records of a rule with this many wildcards get; see `KeyTemplate::render`.
fn key_of(rules: &Rules, wildcards: usize) -> String {
    let key = rules.key();
    if !key.has_key() {
        "none".to_owned()
    } else if key.highest_capture() > wildcards {
        "{topic}".to_owned()
    } else {
        one_line(key.text()).into_owned()
    }
}

fn write_reached(
    what: &str,
    address: &str,
    reach: Reach<'_>,
    config: &Config,
    out: &mut dyn Write,
) -> io::Result<bool> {
    // Reaching may take seconds: the operator sees what is being waited for.
    write!(out, "{what} {address}: ")?;
    out.flush()?;
    let result = reach(config);
    match &result {
        Ok(found) => writeln!(out, "reached, {}", one_line(found))?,
        Err(reason) => writeln!(out, "NOT reached, {}", one_line(reason))?,
    }
    Ok(result.is_ok())
}
