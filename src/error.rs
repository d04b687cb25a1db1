//! How an error is shown: once, with all its causes, in one line.

use std::error::Error;

/// The error and its causes, each after a colon.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What an error says, without its numbers: two texts that differ only in seconds or ports tell the same. For deciding whether
/// something was told before.
pub fn kind(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_make_no_other_kind() {
        assert_eq!(kind("expired 9 s ago"), kind("expired 10 s ago"));
        assert_ne!(kind("expired 9 s ago"), kind("refused 9 s ago"));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn every_cause_is_told_once() {
        let text = chain(&Outer(std::fmt::Error));
        assert_eq!(text, format!("outer: {}", std::fmt::Error));
    }
}
