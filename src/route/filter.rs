//! Topic names and topic filters as the MQTT specification has them (3.1.1 and 5, section 4.7; shared
//! subscriptions: 5, section 4.8.2). Both are parsed types: an invalid one cannot exist.
//!
//! Knows nothing of Kafka, of rules, or of how thousands of filters are matched at once (`table`).
//! Matching here goes level by level and is the plain reading of the specification; the table is tested against it.

use std::fmt;

/// The longest topic name or filter, bytes of UTF-8 (MQTT-4.7.3-3).
pub const MAX_BYTES: usize = 65_535;

/// Why a text is no topic name or no topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// MQTT-4.7.3-1.
    #[error("it is empty; a topic has at least one character")]
    Empty,
    /// MQTT-4.7.3-2.
    #[error("it contains the character U+0000")]
    Null,
    /// MQTT-4.7.3-3.
    #[error("it is longer than 65535 bytes")]
    TooLong,
    /// MQTT-4.7.1-1: only a filter may have them.
    #[error("a topic name has no wildcards (+ or #)")]
    WildcardInName,
    /// MQTT-4.7.1-2.
    #[error("# stands alone in the last level of a filter")]
    MisplacedHash,
    /// MQTT-4.7.1-3 (5: MQTT-4.7.1-2).
    #[error("+ stands alone in its level")]
    MisplacedPlus,
    /// MQTT-4.8.2-1 and -2.
    #[error("a shared subscription is $share/GROUP/FILTER, with a group that has no +, # or /")]
    MalformedShare,
}

fn check_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        Err(TopicError::Empty)
    } else if text.len() > MAX_BYTES {
        Err(TopicError::TooLong)
    } else if text.contains('\0') {
        Err(TopicError::Null)
    } else {
        Ok(())
    }
}

/// A valid MQTT topic name: what a PUBLISH packet carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(String);

impl TopicName {
    /// Parses a topic name.
    ///
    /// # Errors
    /// The rule of section 4.7 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        if text.contains(['+', '#']) {
            return Err(TopicError::WildcardInName);
        }
        Ok(TopicName(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A valid MQTT topic filter, shared (`$share/group/filter`) or not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter {
    subscription: String,
    /// Where the part that is matched begins: 0, or behind `$share/group/`.
    matched_at: usize,
}

impl TopicFilter {
    /// Parses a topic filter.
    ///
    /// # Errors
    /// The rule of section 4.7 or 4.8.2 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        let matched_at = match text.strip_prefix("$share/") {
            None => 0,
            Some(rest) => {
                let (group, filter) = rest.split_once('/').ok_or(TopicError::MalformedShare)?;
                if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
                    return Err(TopicError::MalformedShare);
                }
                text.len() - filter.len()
            }
        };
        let filter = TopicFilter { subscription: text.to_owned(), matched_at };
        check_wildcards(filter.matched())?;
        Ok(filter)
    }

    /// What is sent in SUBSCRIBE: the whole text, with `$share/group/` if there is one.
    pub fn subscription(&self) -> &str {
        &self.subscription
    }

    /// What topic names are compared with: the text without `$share/group/`.
    pub fn matched(&self) -> &str {
        self.subscription.get(self.matched_at..).unwrap_or_default()
    }

    /// The levels of [`matched`](Self::matched).
    pub fn levels(&self) -> std::str::Split<'_, char> {
        self.matched().split('/')
    }

    /// Whether it has a `+` or a `#`.
    pub fn has_wildcards(&self) -> bool {
        self.wildcards() > 0
    }

    /// How many wildcards it has: captures are numbered from 1 to this.
    pub fn wildcards(&self) -> usize {
        self.levels().filter(|level| matches!(*level, "+" | "#")).count()
    }

    /// Whether a topic name matches. The name is taken to be valid.
    pub fn matches(&self, topic: &str) -> bool {
        // MQTT-4.7.2-1: a filter that begins with a wildcard matches no topic that begins with $.
        if topic.starts_with('$') && self.matched().starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in self.levels() {
            match (level, names.next()) {
                // # includes the parent level, so that it also matches when no name is left.
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (literal, Some(name)) if literal == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// What the wildcard with this number (from 1) matched in a topic that matches. A `+` captures its level, which may
    /// be empty; a `#` the rest of the topic with its slashes, empty when it matched the parent level.
    /// None when there is no such wildcard.
    pub fn capture<'t>(&self, topic: &'t str, number: usize) -> Option<&'t str> {
        let mut rest = Some(topic);
        let mut seen = 0;
        for level in self.levels() {
            let (name, behind) = match rest {
                None => ("", None),
                Some(text) => match text.split_once('/') {
                    Some((name, behind)) => (name, Some(behind)),
                    None => (text, None),
                },
            };
            if level == "+" || level == "#" {
                seen += 1;
                if seen == number {
                    return Some(if level == "#" { rest.unwrap_or_default() } else { name });
                }
            }
            rest = behind;
        }
        None
    }

    /// Whether the wildcard with this number (from 1) is a `#`.
    pub fn is_multi_level(&self, number: usize) -> bool {
        self.wildcards() == number && self.matched().ends_with('#')
    }
}

fn check_wildcards(filter: &str) -> Result<(), TopicError> {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(TopicError::MisplacedHash);
        }
        if level.contains('+') && level != "+" {
            return Err(TopicError::MisplacedPlus);
        }
    }
    Ok(())
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.subscription)
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
pub(super) mod tests;
