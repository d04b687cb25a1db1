//! The log: one line an event on stderr, `2026-11-23T20:29:24.123Z INFO tidegate::cli message`; where stderr goes to the journal, which has
//! a time and a priority of its own, `<6>INFO tidegate::cli message` (sd-daemon(3)), so that `journalctl -p warning` works.
//!
//! Knows nothing of what is logged. Invariants: an event is one line whatever it holds (topics are chosen by
//! publishers, and must not be able to forge a line or steer a terminal); RUST_LOG and colours have no effect.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use log::{LevelFilter, SetLoggerError};

use crate::fs;

/// Targets that get the level asked for: ours. Dependencies are held at WARN, or their chatter hides ours at DEBUG.
const OWN_TARGETS: &[&str] = &["tidegate", "publisher_mqtt", "subscriber_kafka"];

/// How a line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// With the time.
    Plain,
    /// With the priority, for the journal.
    Journal,
}

impl Style {
    /// The style for stderr, if `journal` is the stream (device and inode) that goes to the journal: stderr may have been led elsewhere.
    pub fn of_stderr(journal: Option<(u64, u64)>) -> Style {
        let stderr = journal.and_then(|_| fs::identity_of(io::stderr()).ok());
        if journal.is_some() && stderr == journal { Style::Journal } else { Style::Plain }
    }

    /// What a line that ends the process begins with.
    pub fn of_the_end(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Journal => "<3>",
        }
    }
}

/// Sets up the log of the process, once; `own` is the level of our own targets.
///
/// # Errors
/// A log was set up before.
pub fn init(own: LevelFilter, style: Style) -> Result<(), SetLoggerError> {
    let mut builder = env_logger::Builder::new();
    builder.target(env_logger::Target::Stderr).filter_level(own.min(LevelFilter::Warn));
    for target in OWN_TARGETS {
        builder.filter_module(target, own);
    }
    builder.format(move |out, record| {
        let line = match style {
            Style::Plain => {
                let time = format!("{} ", out.timestamp_millis());
                line(&time, record.level(), record.target(), record.args())
            }
            Style::Journal => line(priority(record.level()), record.level(), record.target(), record.args()),
        };
        out.write_all(line.as_bytes())
    });
    builder.try_init()
}

/// As syslog(3) numbers them.
fn priority(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "<3>",
        log::Level::Warn => "<4>",
        log::Level::Info => "<6>",
        log::Level::Debug | log::Level::Trace => "<7>",
    }
}

fn line(head: &str, level: log::Level, target: &str, message: &fmt::Arguments<'_>) -> String {
    let mut line = format!("{head}{level} {target} ");
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
        let line = line("T ", log::Level::Warn, "tidegate::route", &format_args!("topic {topic} ends"));
        assert_eq!(line.lines().count(), 1);
        assert!(line.ends_with(" ends\n"));
        assert!(!line.trim_end_matches('\n').contains(is_harmful), "{line:?}");
        assert!(line.starts_with("T WARN tidegate::route topic a\\n2026"), "{line:?}");
    }

    #[test]
    fn stderr_is_the_journal_only_if_it_is_the_stream_that_was_named() {
        let stderr = fs::identity_of(io::stderr()).unwrap();
        assert_eq!(Style::of_stderr(Some(stderr)), Style::Journal);
        assert_eq!(Style::of_stderr(Some((stderr.0, stderr.1 + 1))), Style::Plain);
        assert_eq!(Style::of_stderr(None), Style::Plain);
    }

    #[test]
    fn ordinary_text_is_left_as_it_is() {
        assert!(matches!(one_line("Küche/temp \\ 21 °C"), Cow::Borrowed("Küche/temp \\ 21 °C")));
    }
}
