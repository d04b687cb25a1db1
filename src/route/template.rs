//! Templates: the Kafka side of a rule (`plant.{1}`) and the record key (`{topic}`).
//!
//! Pure text. Knows filters only by their number of wildcards and by what these captured.
//!
//! Sanitising of a capture in a Kafka topic: a `/` (only `#` captures have them) becomes `.`, every other character
//! outside `[a-zA-Z0-9._-]` becomes `_`, and an empty capture becomes `_`. A result that is no valid Kafka topic name is
//! refused with its reason, never cut. Captures in a key are used as they are: a key is bytes.

use std::fmt;
use std::sync::Arc;

use super::filter::TopicFilter;

/// The longest Kafka topic name, characters.
pub const MAX_KAFKA_TOPIC: usize = 249;

/// Why a text is no Kafka topic name, or no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A Kafka topic name needs a character.
    #[error("the Kafka topic is empty")]
    Empty,
    /// `.` and `..` are folder names to a broker.
    #[error("a Kafka topic is not called . or ..")]
    Dots,
    /// More than 249 characters.
    #[error("the Kafka topic has {0} characters, more than 249")]
    TooLong(usize),
    /// Outside `[a-zA-Z0-9._-]`.
    #[error("a Kafka topic has only letters, digits, '.', '_' and '-', not {0:?}")]
    Character(char),
    /// `{` without its `}`, or the other way round.
    #[error("a brace has no partner (in a key, a literal brace is written {{{{ or }}}})")]
    Brace,
    /// `{what}` that is nothing known.
    #[error("{{{0}}} is unknown here")]
    Unknown(String),
    /// `{3}` for a filter that has less wildcards.
    #[error("{{{number}}} does not exist: the filter has {wildcards} wildcard(s)")]
    NoSuchCapture {
        /// The number asked for.
        number: usize,
        /// How many there are.
        wildcards: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Literal(String),
    /// The whole MQTT topic.
    Topic,
    /// What the wildcard with this number matched, from 1.
    Capture(usize),
}

fn parse_parts(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                literal.push(c);
            }
            '}' => return Err(TemplateError::Brace),
            '{' => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some('}') => break,
                        Some('{') | None => return Err(TemplateError::Brace),
                        Some(other) => name.push(other),
                    }
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(placeholder(name)?);
            }
            other => literal.push(other),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

fn placeholder(name: String) -> Result<Part, TemplateError> {
    if name == "topic" {
        return Ok(Part::Topic);
    }
    // Digits only, without a leading zero: `parse` alone would also take "+1".
    let number = name.starts_with(|c: char| ('1'..='9').contains(&c)).then(|| name.parse::<usize>().ok());
    match number.flatten() {
        Some(number) => Ok(Part::Capture(number)),
        None => Err(TemplateError::Unknown(name)),
    }
}

fn is_kafka_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Checks a whole Kafka topic name (1 to 249 of `[a-zA-Z0-9._-]`, not `.` or `..`).
///
/// # Errors
/// The rule that the name breaks.
pub fn check_kafka_topic(name: &str) -> Result<(), TemplateError> {
    if let Some(c) = name.chars().find(|c| !is_kafka_char(*c)) {
        return Err(TemplateError::Character(c));
    }
    match name {
        "" => Err(TemplateError::Empty),
        "." | ".." => Err(TemplateError::Dots),
        _ if name.len() > MAX_KAFKA_TOPIC => Err(TemplateError::TooLong(name.len())),
        _ => Ok(()),
    }
}

/// A valid Kafka topic name, shared.
///
/// # Errors
/// The rule that the name breaks.
pub fn kafka_topic(name: &str) -> Result<Arc<str>, TemplateError> {
    check_kafka_topic(name).map(|()| Arc::from(name))
}

/// The Kafka side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    text: String,
    parts: Vec<Part>,
    /// The topic itself, if there is nothing to fill in.
    constant: Option<Arc<str>>,
}

impl TopicTemplate {
    /// Parses the Kafka side of a rule with this filter.
    ///
    /// # Errors
    /// It is no template, its fixed text cannot be in a Kafka topic, or it names a capture that the filter has not.
    pub fn parse(text: &str, filter: &TopicFilter) -> Result<Self, TemplateError> {
        let parts = parse_parts(text)?;
        let wildcards = filter.wildcards();
        let mut fixed = 0;
        for part in &parts {
            match part {
                Part::Literal(literal) => {
                    if let Some(c) = literal.chars().find(|c| !is_kafka_char(*c)) {
                        return Err(TemplateError::Character(c));
                    }
                    fixed += literal.len();
                }
                Part::Topic => return Err(TemplateError::Unknown("topic".to_owned())),
                Part::Capture(number) if *number > wildcards => {
                    return Err(TemplateError::NoSuchCapture { number: *number, wildcards });
                }
                // A capture gives at least the one character `_`.
                Part::Capture(_) => fixed += 1,
            }
        }
        if fixed > MAX_KAFKA_TOPIC {
            return Err(TemplateError::TooLong(fixed));
        }
        let is_constant = !parts.iter().any(|part| matches!(part, Part::Capture(_)));
        let constant = if is_constant { Some(kafka_topic(text)?) } else { None };
        Ok(TopicTemplate { text: text.to_owned(), parts, constant })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The Kafka topic, if it is the same for every message.
    pub fn constant(&self) -> Option<&Arc<str>> {
        self.constant.as_ref()
    }

    /// Replaces the content of `out` by the Kafka topic for an MQTT topic that matches the filter.
    ///
    /// # Errors
    /// The result is no Kafka topic name: too long, or `.` or `..`. What is in `out` is then of no use.
    pub fn render(&self, filter: &TopicFilter, topic: &str, out: &mut String) -> Result<(), TemplateError> {
        out.clear();
        let mut length = 0;
        for part in &self.parts {
            match part {
                Part::Literal(literal) => {
                    length += literal.len();
                    out.push_str(literal);
                }
                Part::Capture(number) => {
                    let capture = filter.capture(topic, *number).unwrap_or_default();
                    length += capture.chars().count().max(1);
                    // The rest of a name that is too long anyway is counted, not built: a topic has up to 64 KiB.
                    if length <= MAX_KAFKA_TOPIC {
                        sanitise(capture, out);
                    }
                }
                Part::Topic => {}
            }
        }
        if length > MAX_KAFKA_TOPIC {
            return Err(TemplateError::TooLong(length));
        }
        check_kafka_topic(out)
    }
}

fn sanitise(capture: &str, out: &mut String) {
    if capture.is_empty() {
        out.push('_');
    }
    out.extend(capture.chars().map(|c| match c {
        '/' => '.',
        c if is_kafka_char(c) => c,
        _ => '_',
    }));
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The key of every record (KAFKA_KEY): `{topic}`, `{1}`, literals, `{{` and `}}` for braces; empty for no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate {
    text: String,
    parts: Vec<Part>,
}

impl KeyTemplate {
    /// Parses a key template.
    ///
    /// # Errors
    /// It is no template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(KeyTemplate { text: text.to_owned(), parts: parse_parts(text)? })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether records get a key at all.
    pub fn has_key(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The highest capture number it names; 0 is none.
    pub fn highest_capture(&self) -> usize {
        self.parts.iter().map(|part| if let Part::Capture(n) = part { *n } else { 0 }).max().unwrap_or(0)
    }

    /// Appends the key of a message and says whether it has one. `filter` is that of the rule that matched; where it has
    /// less wildcards than the template names (an exact entry, the default topic), the key is the whole MQTT topic, which
    /// keeps the order of each MQTT topic.
    pub fn render(&self, filter: Option<&TopicFilter>, topic: &str, out: &mut Vec<u8>) -> bool {
        if !self.has_key() {
            return false;
        }
        let highest = self.highest_capture();
        if highest > 0 && filter.is_none_or(|filter| filter.wildcards() < highest) {
            out.extend_from_slice(topic.as_bytes());
            return true;
        }
        for part in &self.parts {
            match part {
                Part::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
                Part::Topic => out.extend_from_slice(topic.as_bytes()),
                Part::Capture(number) => {
                    let capture = filter.and_then(|filter| filter.capture(topic, *number));
                    out.extend_from_slice(capture.unwrap_or_default().as_bytes());
                }
            }
        }
        true
    }
}

impl Default for KeyTemplate {
    fn default() -> Self {
        KeyTemplate { text: "{topic}".to_owned(), parts: vec![Part::Topic] }
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
