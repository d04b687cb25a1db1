//! OAUTHBEARER's two messages (RFC 7628 section 3.1, KIP-255).

use crate::secret::Secret;

/// The client's first message: no channel binding, no authorization identity, the token, the extensions.
pub fn first_message(token: &Secret, extensions: &[(String, String)]) -> Vec<u8> {
    let mut message = format!("n,,\x01auth=Bearer {}\x01", token.expose());
    for (name, value) in extensions {
        message.push_str(&format!("{name}={value}\x01"));
    }
    message.push('\x01');
    message.into_bytes()
}

/// Why the server does not take the token: its JSON in words (RFC 7628 section 3.2.2).
pub fn refusal(message: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(message) else { return String::new() };
    let words = ["status", "scope", "openid-configuration"].into_iter().filter_map(|name| {
        let value: String = json.get(name)?.as_str()?.chars().take(200).collect();
        Some(format!("{name} {value}"))
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Whether SASL extensions may be sent so: names are letters, `auth` is the token's own; values are printable
/// (RFC 7628 section 3.1, as Kafka's `OAuthBearerClientInitialResponse` checks it).
///
/// # Errors
/// What was expected.
pub fn check_extension(name: &str, value: &str) -> Result<(), &'static str> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic()) || name == "auth" {
        return Err("expected extension names of letters, not auth");
    }
    if value.is_empty()
        || !value.chars().all(|c| c.is_ascii_graphic() || matches!(c, ' ' | '\t' | '\r' | '\n'))
    {
        return Err("expected extension values of printable ASCII");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_that_of_the_rfc() {
        // RFC 7628 section 4.1, without its authorization identity; host and port travel as extensions.
        let token = Secret::new("vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==");
        let extensions = [("host", "server.example.com"), ("port", "143")];
        let extensions: Vec<_> = extensions.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let expected: &[u8] = b"n,,\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\
                                host=server.example.com\x01port=143\x01\x01";
        assert_eq!(first_message(&token, &extensions), expected);
        assert_eq!(first_message(&Secret::new("t"), &[]), b"n,,\x01auth=Bearer t\x01\x01");
    }

    #[test]
    fn a_refusal_is_told_in_words() {
        let json =
            br#"{"status":"invalid_token","scope":"example_scope","openid-configuration":"https://h/c"}"#;
        let expected = "status invalid_token, scope example_scope, openid-configuration https://h/c";
        assert_eq!(refusal(json), expected);
        assert_eq!(refusal(b"nonsense"), "");
    }

    #[test]
    fn extensions_are_checked() {
        assert_eq!(check_extension("logicalCluster", "lkc-1"), Ok(()));
        for (name, value) in [("", "x"), ("auth", "x"), ("a-b", "x"), ("a", ""), ("a", "\x01"), ("a", "ü")] {
            assert!(check_extension(name, value).is_err(), "{name}={value}");
        }
    }
}
