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
    assert_eq!(told(text), None, "{what} tells it");
}

/// The first secret that is in this text.
pub fn told(text: &str) -> Option<String> {
    let passwords = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].map(password);
    let secrets = passwords.into_iter().chain([SECRET, ROTATED, WRONG].map(str::to_owned));
    let forms = secrets.flat_map(|secret| {
        let coded = [format!("{CLIENT}:{secret}"), format!("\0{USER}\0{secret}")];
        coded.map(|pair| STANDARD.encode(pair)).into_iter().chain([secret])
    });
    // What each JSON Web Token begins with: {" in base64.
    forms.chain(["eyJ".to_owned()]).find(|form| text.contains(form.as_str()))
}
