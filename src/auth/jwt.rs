//! What a token says of its own life, if it is a JWT (RFC 7519 section 4.1). It is not verified: that is the broker's part.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The times in a token, seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claims {
    /// Not to be accepted from here on.
    pub exp: Option<i64>,
    /// Not to be accepted before.
    pub nbf: Option<i64>,
    /// When it was made.
    pub iat: Option<i64>,
}

/// The claims of a JWT; nothing of a token that is none.
pub fn claims(token: &str) -> Claims {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Claims::default();
    };
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')) else { return Claims::default() };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Claims::default() };
    // NumericDate may have a fraction.
    let time = |name: &str| {
        let value = json.get(name)?;
        value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
    };
    Claims { exp: time("exp"), nbf: time("nbf"), iat: time("iat") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7519() {
        // Section 3.1.
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                     eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
                     dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(claims(token), Claims { exp: Some(1_300_819_380), nbf: None, iat: None });
    }

    #[test]
    fn what_is_no_jwt_says_nothing() {
        for token in ["", "opaque", "a.b", "a.b.c", "a.e30.c.d", "a.!!.c", "a.W10.c"] {
            assert_eq!(claims(token), Claims::default(), "{token}");
        }
    }
}
