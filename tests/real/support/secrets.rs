//! The search for secrets in what tidegate wrote (guarantee G9).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::secured::{USER, password};
use super::site::{CLIENT, SECRET};

/// The secret of the site's client after a rotation.
pub const ROTATED: &str = "edge-rotated-77c0";
/// One that is nobody's.
pub const WRONG: &str = "edge-wrong-4d2a";

/// Panics if a password, a client's secret, one of them as it is sent in base64, or a token is in this text.
pub fn assert_tells_nothing(what: &str, text: &str) {
    let passwords = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].map(password);
    for secret in passwords.iter().map(String::as_str).chain([SECRET, ROTATED, WRONG]) {
        assert!(!text.contains(secret), "{what} tells {secret}");
        for pair in [format!("{CLIENT}:{secret}"), format!("\0{USER}\0{secret}")] {
            let coded = STANDARD.encode(&pair);
            assert!(!text.contains(&coded), "{what} tells {pair:?} as {coded}");
        }
    }
    // What each JSON Web Token begins with: {" in base64.
    assert!(!text.contains("eyJ"), "{what} tells a token");
}
