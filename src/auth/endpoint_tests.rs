//! URLs, forms, and what a response means by which clock.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;

#[test]
fn urls_are_parsed() {
    let endpoint = Endpoint::parse("https://keycloak.example:8443/realms/x/token").unwrap();
    assert!(endpoint.is_https() && !endpoint.is_loopback());
    for near in ["http://localhost/t", "http://127.0.0.1:8080/t", "http://[::1]/t"] {
        assert!(Endpoint::parse(near).unwrap().is_loopback(), "{near}");
    }
    for wrong in
        ["", "keycloak", "ftp://h/t", "https://", "https:///t", "https://u:p@h/t", "https://h:/t", "/t"]
    {
        assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_port_that_is_none_is_refused_and_not_taken_for_the_default() {
    for wrong in
        ["kc:84430", "kc:8443x", "kc:0", "kc:+80", "kc:", "[::1]:99999", "[::1]x", "[::1]:", "[::1]:8443x"]
    {
        assert!(Endpoint::parse(&format!("https://{wrong}/t")).is_err(), "{wrong}");
    }
    for right in ["kc", "kc:8443", "kc:65535", "[::1]", "[::1]:8443", "10.0.0.1:1"] {
        assert!(Endpoint::parse(&format!("https://{right}/t")).is_ok(), "{right}");
    }
}

#[test]
fn each_status_has_its_own_words() {
    let mut options = TokenOptions {
        endpoint: Endpoint::parse("https://h/t").unwrap(),
        client_id: "edge".to_owned(),
        client_secret: Secret::new("hunter2"),
        scope: Some("kafka".to_owned()),
        ca_file: None,
        client_auth: ClientAuth::Post,
        timeout: Duration::from_secs(1),
    };
    let said = |status: u16, error: &str, options: &TokenOptions| {
        let body = format!("{{\"error\":\"{error}\"}}");
        unsuccessful(status, body.as_bytes(), options).to_string()
    };
    for (status, error, words) in [
        (400, "invalid_client", "refuses client id or secret: 400 invalid_client"),
        (400, "unauthorized_client", "refuses client id or secret: 400 unauthorized_client"),
        (401, "anything", "refuses client id or secret: 401 anything"),
        (400, "invalid_scope", "does not grant the scope (SASL_OAUTHBEARER_SCOPE): 400 invalid_scope"),
        (400, "unsupported_grant_type", "does not take the request for a token: 400 unsupported_grant_type"),
        (403, "access_denied", "forbids this client to have a token: 403 access_denied"),
        (429, "slow_down", "is asked too often: 429 slow_down"),
        (503, "x", "has a fault of its own: 503 x"),
        (404, "x", "is SASL_OAUTHBEARER_TOKEN_ENDPOINT_URI right?"),
    ] {
        let told = said(status, error, &options);
        assert!(told.contains(words), "{told}");
    }
    options.scope = None;
    assert!(said(400, "invalid_scope", &options).contains("SASL_OAUTHBEARER_SCOPE is not set"));
    assert!(unsuccessful(400, b"no JSON", &options).to_string().contains("refuses client id or secret: 400"));
}

#[test]
fn forms_are_encoded() {
    assert_eq!(form("a b&c=d+e%/é*-._"), "a+b%26c%3Dd%2Be%25%2F%C3%A9*-._");
}

fn jwt(claims: &str) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn response(claims: &str, more: &str) -> Vec<u8> {
    format!("{{\"access_token\":\"{}\"{more}}}", jwt(claims)).into_bytes()
}

const NOW: i64 = 1_800_000_000;

#[test]
fn a_life_is_the_shorter_of_what_is_told_and_what_is_in_the_token() {
    let life = |claims: &str, more: &str| {
        read_token(&response(claims, more), Some(NOW), NOW).unwrap().life.as_secs()
    };
    assert_eq!(life(&format!("{{\"exp\":{}}}", NOW + 60), ",\"expires_in\":300"), 60);
    assert_eq!(life(&format!("{{\"exp\":{}}}", NOW + 600), ",\"expires_in\":300"), 300);
    assert_eq!(life("{}", ",\"expires_in\":\"299\""), 299);
    assert_eq!(life(&format!("{{\"exp\":{}}}", NOW + 60), ""), 60);
    assert_eq!(life("{}", ""), LIFE_UNTOLD.as_secs());
}

#[test]
fn a_wrong_clock_here_is_told_and_does_not_matter() {
    let body =
        response(&format!("{{\"iat\":{NOW},\"nbf\":{NOW},\"exp\":{}}}", NOW + 60), ",\"expires_in\":60");
    for (here, ahead) in [(NOW, None), (NOW + 5, None), (NOW + 86_400, Some(86_400)), (0, Some(-NOW))] {
        for date in [Some(NOW), None] {
            let fetched = read_token(&body, date, here).unwrap();
            assert_eq!((fetched.life.as_secs(), fetched.clock_ahead_sec), (60, ahead));
        }
    }
}

#[test]
fn a_token_that_is_over_or_for_later_is_told_with_the_seconds() {
    let said = |claims: String, date| read_token(&response(&claims, ""), date, NOW).unwrap_err().to_string();
    let over = said(format!("{{\"exp\":{}}}", NOW - 30), Some(NOW));
    assert_eq!(over, "the token endpoint gave a token that has expired 30 s ago");
    let later = said(format!("{{\"nbf\":{},\"exp\":{}}}", NOW + 90, NOW + 100), Some(NOW));
    assert_eq!(later, "the token endpoint gave a token that is not valid for another 90 s");
    let by_ours = said(format!("{{\"exp\":{}}}", NOW - 30), None);
    assert!(by_ours.ends_with("30 s ago (by this machine's clock, which may be wrong)"), "{by_ours}");
}

#[test]
fn what_is_no_token_is_told() {
    for (body, what) in [
        ("", "it is not JSON"),
        ("[]", "it has no access_token"),
        ("{\"access_token\":7}", "it has no access_token"),
        ("{\"access_token\":\"\"}", "it has no access_token"),
        ("{\"access_token\":\"a\\u0001b\"}", "its access_token has characters that no token has"),
        ("{\"access_token\":\"a\",\"token_type\":\"mac\"}", "its token_type is not Bearer"),
    ] {
        let said = read_token(body.as_bytes(), None, NOW).unwrap_err().to_string();
        assert!(said.ends_with(what), "{body}: {said}");
    }
}

proptest! {
    #[test]
    fn no_response_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), date in any::<Option<i32>>()) {
        let _ = read_token(&body, date.map(i64::from), NOW);
    }

    #[test]
    fn no_claims_make_it_panic(exp in any::<i64>(), nbf in any::<i64>(), iat in any::<i64>(), told in any::<f64>()) {
        let body = response(&format!("{{\"exp\":{exp},\"nbf\":{nbf},\"iat\":{iat}}}"), &format!(",\"expires_in\":{told:?}"));
        let _ = read_token(&body, None, NOW);
        let _ = read_token(&body, Some(NOW), NOW);
    }
}
