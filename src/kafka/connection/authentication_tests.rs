//! When a session is prolonged, and with which token.

use super::*;
use crate::secret::Secret;

fn credentials(token: &str) -> Credentials {
    Credentials::OAuthBearer { tokens: crate::auth::TokenSource::fixed(token), extensions: Vec::new() }
}

fn is_again(need: &Need) -> bool {
    matches!(need, Need::Again(_))
}

#[test]
fn a_session_without_end_asks_for_nothing() {
    let now = clock::now();
    for life in
        [Life::endless(), Life::new(0, now, None), Life::new(-1, now, None), Life::new(i64::MIN, now, None)]
    {
        assert!(matches!(life.need(None, now + Duration::from_secs(1 << 30)), Need::Nothing));
        assert_eq!(life.wake_at(now), None);
    }
}

#[test]
fn a_password_is_shown_again_when_most_of_the_session_is_over() {
    let now = clock::now();
    let life = Life::new(45_000, now, None);
    let plain = Credentials::Plain { user: "u".to_owned(), password: Secret::new("p") };
    assert!(matches!(life.need(Some(&plain), now + Duration::from_secs(38)), Need::Nothing));
    assert!(is_again(&life.need(Some(&plain), now + Duration::from_secs(39))));
    assert_eq!(life.wake_at(now), Some(now + Duration::from_millis(38_250)));
}

#[test]
fn the_same_token_prolongs_a_session_that_it_outlives() {
    let now = clock::now();
    let life = Life::new(45_000, now, Some(1));
    assert!(is_again(&life.need(Some(&credentials("t")), now + Duration::from_secs(39))));
}

#[test]
fn a_session_as_long_as_its_token_waits_for_a_newer_one_and_is_given_up_before_the_broker_does_it() {
    let now = clock::now();
    let year = 366 * 86_400;
    let life = Life::new(year * 1000, now, Some(1));
    let most = now + Duration::from_secs(u64::try_from(year).unwrap() * 86 / 100);
    assert!(matches!(life.need(Some(&credentials("t")), most), Need::Nothing));
    assert_eq!(life.wake_at(most), Some(most + LOOK_FOR_TOKEN));
    let other = Life { token: Some(7), ..life };
    assert!(is_again(&other.need(Some(&credentials("t")), most)), "token 1 is newer than what was shown");
    let same = Life { token: Some(1), ..other };
    let end = now + Duration::from_secs(u64::try_from(year).unwrap());
    assert!(matches!(same.need(Some(&credentials("t")), end - MARGIN), Need::TooLate));
}

#[test]
fn the_longest_lifetime_is_no_overflow() {
    let now = clock::now();
    assert!(Life::new(i64::MAX, now, None).wake_at(now).is_some());
}
