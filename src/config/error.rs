//! What is wrong with a configuration, all at once. No problem ever holds a secret.

use std::fmt;

/// The most of a value that a message shows, characters: a list of thousands of topics would bury the other problems.
const MAX_SHOWN: usize = 120;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable that is to be changed (or the file that cannot be read).
    pub variable: String,
    /// What it holds, fit to be shown; None when it is not set or is a secret.
    pub value: Option<String>,
    /// What is wrong and what is expected.
    pub expected: String,
}

impl Problem {
    pub(super) fn new(variable: &str, value: Option<&str>, expected: impl Into<String>) -> Self {
        let value = value.map(|value| shown(variable, value));
        Problem { variable: variable.to_owned(), value, expected: expected.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} is \"{value}\": {}", self.variable, self.expected),
            None => write!(f, "{}: {}", self.variable, self.expected),
        }
    }
}

/// A value fit to be shown: one line, not too long, and without what may be a password in an address.
pub(super) fn shown(variable: &str, value: &str) -> String {
    let safe = match variable {
        "MQTT_BROKER_URL" | "KAFKA_BROKER" | "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI" => without_userinfo(value),
        _ => value.to_owned(),
    };
    let mut text: String = safe.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if safe.chars().count() > MAX_SHOWN {
        text.push_str("...");
    }
    text
}

/// Everything up to the last `@` but a scheme may be a password: a password may itself hold `@`, `/` and `,`.
fn without_userinfo(value: &str) -> String {
    match value.rsplit_once('@') {
        None => value.to_owned(),
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                format!("{scheme}://***@{host}")
            }
            _ => format!("***@{host}"),
        },
    }
}

/// Every problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "configuration: {one}"),
            many => {
                write!(f, "configuration: {} problems", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_broker_address_is_not_shown() {
        for (url, safe) in [
            ("mqtt://user:hunter2@host:1883", "mqtt://***@host:1883"),
            ("user:hunter2@host", "***@host"),
            ("mqtt://user:hun@ter/2@host", "mqtt://***@host"),
            ("a:9092,u:hunter2@b:9092", "***@b:9092"),
            ("mqtt://host", "mqtt://host"),
        ] {
            assert_eq!(shown("MQTT_BROKER_URL", url), safe);
            assert_eq!(shown("KAFKA_BROKER", url), safe);
            assert_eq!(shown("SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI", url), safe);
        }
        assert_eq!(shown("KAFKA_KEY", "a@b"), "a@b");
    }

    #[test]
    fn a_value_is_shown_in_one_line_and_not_at_any_length() {
        assert_eq!(shown("X", "a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(shown("X", &"x".repeat(500)).len(), MAX_SHOWN + 3);
    }

    #[test]
    fn all_problems_are_told() {
        let one = Problem::new("A", Some("x"), "expected y");
        let two = Problem::new("B", None, "it is required");
        assert_eq!(ConfigErrors(vec![one.clone()]).to_string(), "configuration: A is \"x\": expected y");
        let text = ConfigErrors(vec![one, two]).to_string();
        assert_eq!(text, "configuration: 2 problems\n  A is \"x\": expected y\n  B: it is required");
    }
}
