//! What connections see of the token.

use std::net::TcpListener;

use super::*;
use crate::observe::heartbeat::Heartbeats;

fn options(url: &str) -> TokenOptions {
    TokenOptions {
        endpoint: Endpoint::parse(url).unwrap(),
        client_id: "edge".to_owned(),
        client_secret: Secret::new("hunter2"),
        scope: None,
        ca_file: None,
        client_auth: ClientAuth::Post,
        timeout: Duration::from_millis(200),
    }
}

#[test]
fn who_waits_for_a_token_hears_why_there_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    let tokens = TokenSource::start(options(&url), &Heartbeats::new(None, clock::now())).unwrap();
    let why = tokens.wait().unwrap_err();
    assert!(why.contains("did not answer within 0 s"), "{why}");
    assert!(tokens.current().is_none());
    assert_eq!(tokens.failure(), Some(why));
}

#[test]
fn waiting_has_an_end() {
    let shared = Arc::new(Shared::default());
    let tokens = TokenSource::over(shared, Duration::ZERO);
    let why = tokens.wait().unwrap_err();
    assert_eq!(why, "the token endpoint has not answered yet");
}

#[test]
fn a_token_is_not_given_out_after_its_life() {
    let tokens = TokenSource::fixed("t");
    assert_eq!(tokens.wait().unwrap().serial(), 1);
    tokens.shared.lock().token.as_mut().unwrap().expires_at = clock::now();
    assert!(tokens.current().is_none());
    assert!(tokens.wait().is_err());
}

#[test]
fn the_last_clone_ends_the_thread() {
    let tokens = TokenSource::fixed("t");
    let shared = Arc::clone(&tokens.shared);
    let other = tokens.clone();
    drop(tokens);
    assert!(!shared.lock().over);
    drop(other);
    assert!(shared.lock().over);
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let tokens = TokenSource::fixed("token-of-mine");
    let token = tokens.current();
    let text = format!("{tokens:?} {token:?} {:?} {:?}", tokens.shared, options("https://h/t"));
    assert!(!text.contains("token-of-mine") && !text.contains("hunter2"), "{text}");
}
