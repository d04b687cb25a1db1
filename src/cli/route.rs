//! `tidegate route TOPIC`: which rule, which Kafka topic, which key. Reaches nothing.

use std::io::Write;

use super::CliError;
use crate::config::Config;
use crate::observe::log::one_line;
use crate::route::{Decision, Router, RuleId, TopicName};

pub(super) fn route(config: &Config, topics: &[String], out: &mut dyn Write) -> Result<(), CliError> {
    let mut router = Router::new(config.routes.rules.clone());
    for topic in topics {
        let name = TopicName::parse(topic).map_err(|error| CliError::NoTopic(topic.clone(), error))?;
        let topic = name.as_str();
        writeln!(out, "{}", one_line(topic))?;
        match router.route(topic) {
            Decision::Route { rule, kafka_topic } => {
                let from = rule.map_or("DEFAULT_KAFKA_TOPIC".to_owned(), |id| described(&router, id));
                writeln!(out, "  rule         {from}")?;
                writeln!(out, "  Kafka topic  {kafka_topic}")?;
                let mut key = Vec::new();
                let key = if router.render_key(rule, topic, &mut key) {
                    format!("\"{}\"", String::from_utf8_lossy(&key).escape_debug())
                } else {
                    "none".to_owned()
                };
                writeln!(out, "  key          {key}")?;
            }
            Decision::Unmatched => writeln!(out, "  no rule matches: dropped and counted")?,
            Decision::Refused { rule, error } => {
                writeln!(out, "  rule         {}", described(&router, rule))?;
                let fate = match &config.routes.dead_letter_topic {
                    Some(topic) => format!("goes to {topic}"),
                    None => "dropped and counted".to_owned(),
                };
                writeln!(out, "  undeliverable, {fate}: {error}")?;
            }
        }
    }
    Ok(())
}

fn described(router: &Router, id: RuleId) -> String {
    match router.rules().get(id) {
        Some(rule) => {
            format!("{} entry {}, {}", rule.kind.variable(), rule.position, one_line(&rule.to_string()))
        }
        None => String::new(),
    }
}
