//! The log: one line an event on stderr, `2026-11-23T20:29:24.123Z INFO tidegate::cli message`.
//!
//! Knows nothing of what is logged. Invariants: an event is one line whatever it holds (topics are chosen by
//! publishers, and must not be able to forge a line or steer a terminal); RUST_LOG and colours have no effect.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write as _;

use log::{LevelFilter, SetLoggerError};

/// Targets that get the level asked for: ours. Dependencies are held at WARN, or their chatter hides ours at DEBUG.
const OWN_TARGETS: &[&str] = &["tidegate", "publisher_mqtt", "subscriber_kafka"];

/// Sets up the log of the process, once.
///
/// # Errors
/// A log was set up before.
pub fn init(own: LevelFilter) -> Result<(), SetLoggerError> {
    let mut builder = env_logger::Builder::new();
    builder.target(env_logger::Target::Stderr).filter_level(own.min(LevelFilter::Warn));
    for target in OWN_TARGETS {
        builder.filter_module(target, own);
    }
    builder.format(|out, record| {
        let time = out.timestamp_millis();
        let line = line(&time, record.level(), record.target(), record.args());
        out.write_all(line.as_bytes())
    });
    builder.try_init()
}

fn line(time: &dyn fmt::Display, level: log::Level, target: &str, message: &fmt::Arguments<'_>) -> String {
    let mut line = format!("{time} {level} {target} ");
    let mut text = Escaping(&mut line);
    if text.write_fmt(*message).is_err() {
        line.push_str("(a value of this event could not be formatted)");
    }
    line.push('\n');
    line
}

struct Escaping<'a>(&'a mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(&one_line(text));
        Ok(())
    }
}

/// The text without line breaks, terminal controls and marks that turn the direction of writing: each such character
/// stands as its escape.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmful(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_topic_holds() {
        let topic = "a\n2026-01-01T00:00:00.000Z ERROR tidegate forged\r\u{1b}[31m\u{2028}\u{202e}\u{85}\0";
        let line = line(&"T", log::Level::Warn, "tidegate::route", &format_args!("topic {topic} ends"));
        assert_eq!(line.lines().count(), 1);
        assert!(line.ends_with(" ends\n"));
        assert!(!line.trim_end_matches('\n').contains(is_harmful), "{line:?}");
        assert!(line.starts_with("T WARN tidegate::route topic a\\n2026"), "{line:?}");
    }

    #[test]
    fn ordinary_text_is_left_as_it_is() {
        assert!(matches!(one_line("Küche/temp \\ 21 °C"), Cow::Borrowed("Küche/temp \\ 21 °C")));
    }
}
