//! Rules: what TOPIC_LIST and WILDCARD_TOPIC_LIST say, valid as a whole.
//!
//! Knows nothing of environment variables beyond the names of these two lists. Invariants of [`Rules`]: exact rules come
//! first and have no wildcards; no two rules of one list compare with the same filter and go to different Kafka topics.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::filter::TopicFilter;
use super::template::{KeyTemplate, TopicTemplate};

/// The most levels a filter of a rule may have. The specification sets no limit; this one bounds the depth of every
/// walk through the table, and it is the one Mosquitto has for topics, so no message from there can need more.
pub const MAX_LEVELS: usize = 200;

/// Which list a rule is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// TOPIC_LIST: looked up before any wildcard.
    Exact,
    /// WILDCARD_TOPIC_LIST: the first that matches wins.
    Wildcard,
}

impl RuleKind {
    /// The name of the variable that holds the list.
    pub fn variable(self) -> &'static str {
        match self {
            RuleKind::Exact => "TOPIC_LIST",
            RuleKind::Wildcard => "WILDCARD_TOPIC_LIST",
        }
    }
}

/// One entry of a list: `filter:kafka`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which list it is from.
    pub kind: RuleKind,
    /// Its place in its list, from 1.
    pub position: usize,
    /// The MQTT side.
    pub filter: TopicFilter,
    /// The Kafka side.
    pub target: TopicTemplate,
}

impl Rule {
    /// Whether two rules send every message to the same Kafka topic.
    pub fn same_target(&self, other: &Rule) -> bool {
        match (self.target.constant(), other.target.constant()) {
            (Some(one), Some(two)) => one == two,
            // The same template of the same filter; that of another filter captures something else.
            _ => self.target.text() == other.target.text() && self.filter.matched() == other.filter.matched(),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.filter, self.target)
    }
}

/// The number of a rule within its [`Rules`], from 0: exact rules first, then wildcards in the order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub(super) u32);

impl RuleId {
    /// The number as an index into [`Rules::all`], for counters per rule.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is wrong with an entry among the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// An exact entry with `+` or `#`.
    #[error("entry {entry:?} has a wildcard: it belongs into WILDCARD_TOPIC_LIST")]
    WildcardInExact {
        /// The list.
        variable: &'static str,
        /// The entry.
        entry: String,
    },
    /// Two entries for one filter.
    #[error("entries {first:?} and {second:?} send the same filter to different Kafka topics")]
    Contradiction {
        /// The list.
        variable: &'static str,
        /// The earlier entry.
        first: String,
        /// The later entry.
        second: String,
    },
    /// More than [`MAX_LEVELS`] levels.
    #[error("entry {position} has more than 200 levels")]
    TooDeep {
        /// The list.
        variable: &'static str,
        /// Its place in the list, from 1.
        position: usize,
    },
    /// No rule has the capture that the key names.
    #[error("{{{number}}} does not exist: no filter of WILDCARD_TOPIC_LIST has that many wildcards")]
    KeyCapture {
        /// The number.
        number: usize,
    },
}

impl RuleError {
    /// The variable that is to be changed.
    pub fn variable(&self) -> &'static str {
        match self {
            RuleError::WildcardInExact { variable, .. }
            | RuleError::Contradiction { variable, .. }
            | RuleError::TooDeep { variable, .. } => variable,
            RuleError::KeyCapture { .. } => "KAFKA_KEY",
        }
    }
}

/// All rules, the key and the default topic: what a [`Router`](super::Router) is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    key: KeyTemplate,
    default_topic: Option<Arc<str>>,
}

impl Rules {
    /// Puts rules together; the order within each kind is kept.
    ///
    /// # Errors
    /// Everything that is wrong among them, not only the first.
    pub fn new(
        mut rules: Vec<Rule>,
        key: KeyTemplate,
        default_topic: Option<Arc<str>>,
    ) -> Result<Self, Vec<RuleError>> {
        rules.sort_by_key(|rule| rule.kind);
        let mut said = HashSet::new();
        // What is said twice is kept once: it would be subscribed once anyway, and its overlaps told twice.
        rules.retain(|rule| said.insert((rule.kind, rule.to_string())));
        let mut errors = Vec::new();
        let mut seen: HashMap<(RuleKind, &str), &Rule> = HashMap::new();
        for rule in &rules {
            let variable = rule.kind.variable();
            if rule.kind == RuleKind::Exact && rule.filter.has_wildcards() {
                errors.push(RuleError::WildcardInExact { variable, entry: rule.to_string() });
            }
            if rule.filter.levels().count() > MAX_LEVELS {
                errors.push(RuleError::TooDeep { variable, position: rule.position });
            }
            match seen.get(&(rule.kind, rule.filter.matched())) {
                Some(first) if !first.same_target(rule) => errors.push(RuleError::Contradiction {
                    variable,
                    first: first.to_string(),
                    second: rule.to_string(),
                }),
                Some(_) => {}
                None => {
                    seen.insert((rule.kind, rule.filter.matched()), rule);
                }
            }
        }
        let number = key.highest_capture();
        if number > 0 && !rules.iter().any(|rule| rule.filter.wildcards() >= number) {
            errors.push(RuleError::KeyCapture { number });
        }
        if errors.is_empty() { Ok(Rules { rules, key, default_topic }) } else { Err(errors) }
    }

    /// All rules: exact ones first, then wildcards, each in the order of its list.
    pub fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule with this number.
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.index())
    }

    /// The key template.
    pub fn key(&self) -> &KeyTemplate {
        &self.key
    }

    /// Where messages go that no rule matches.
    pub fn default_topic(&self) -> Option<&Arc<str>> {
        self.default_topic.as_ref()
    }

    /// What to subscribe to, each once, in the order of the rules.
    pub fn subscriptions(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        self.rules.iter().map(|rule| rule.filter.subscription()).filter(|text| seen.insert(*text)).collect()
    }

    /// Subscriptions that match the same topics by the same filter, shared and not or shared in two groups: the MQTT broker delivers
    /// what matches once for each. The first, and each further one.
    pub fn subscribed_twice(&self) -> Vec<(&str, &str)> {
        let mut first: HashMap<&str, &str> = HashMap::new();
        let mut twice = Vec::new();
        for filter in self.rules.iter().map(|rule| &rule.filter) {
            let text = filter.subscription();
            let known = *first.entry(filter.matched()).or_insert(text);
            if known != text && !twice.contains(&(known, text)) {
                twice.push((known, text));
            }
        }
        twice
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
pub(super) mod tests;
