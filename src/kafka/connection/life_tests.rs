//! When a session is prolonged, and with which token.

use super::*;
use crate::clock;
use crate::secret::Secret;

fn credentials(token: &str) -> Credentials {
    Credentials::OAuthBearer { tokens: crate::auth::TokenSource::fixed(token), extensions: Vec::new() }
}

/// Of a first authentication.
fn of(lifetime_ms: i64, from: Instant, token: Option<u64>) -> Life {
    Life::new(lifetime_ms, from, token, None)
}

fn is_again(need: &Need) -> bool {
    matches!(need, Need::Again(_))
}

#[test]
fn a_session_without_end_asks_for_nothing() {
    let now = clock::now();
    for life in [Life::endless(), of(0, now, None), of(-1, now, None), of(i64::MIN, now, None)] {
        assert!(matches!(life.need(None, now + Duration::from_secs(1 << 30)), Need::Nothing));
        assert_eq!(life.wake_at(now), None);
    }
}

#[test]
fn a_password_is_shown_again_when_most_of_the_session_is_over() {
    let now = clock::now();
    let life = of(45_000, now, None);
    let plain = Credentials::Plain { user: "u".to_owned(), password: Secret::new("p") };
    assert!(matches!(life.need(Some(&plain), now + Duration::from_secs(38)), Need::Nothing));
    assert!(is_again(&life.need(Some(&plain), now + Duration::from_secs(39))));
    assert_eq!(life.wake_at(now), Some(now + Duration::from_millis(38_250)));
}

#[test]
fn the_same_token_prolongs_a_session_that_it_outlives() {
    let now = clock::now();
    let life = of(45_000, now, Some(1));
    assert!(is_again(&life.need(Some(&credentials("t")), now + Duration::from_secs(39))));
}

#[test]
fn a_session_as_long_as_its_token_waits_for_a_newer_one_and_is_given_up_before_the_broker_does_it() {
    let now = clock::now();
    let year = 366 * 86_400;
    let life = of(year * 1000, now, Some(1));
    let most = now + Duration::from_secs(u64::try_from(year).unwrap() * 86 / 100);
    assert!(matches!(life.need(Some(&credentials("t")), most), Need::Newer(1)));
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
    assert!(of(i64::MAX, now, None).wake_at(now).is_some());
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_token_that_moves_the_end_by_nothing_is_not_shown_again() {
    // A broker whose clock is 90 s ahead, and a token of 300 s.
    let start = clock::now();
    let first = of(210_000, start, Some(1));
    let again = start + 178_500 * MS;
    assert!(is_again(&first.need(Some(&credentials("t")), again)), "it may be the broker's longest session");
    assert_eq!(first.spent_at(), None);
    let second = Life::new(31_500, again, Some(1), Some(&first));
    assert_eq!(second.spent_at(), Some(start + 210_000 * MS));
    let later = again + 27_000 * MS;
    assert!(matches!(second.need(Some(&credentials("t")), later), Need::Newer(1)));
    assert!(matches!(second.need(Some(&credentials("t")), start + 209_900 * MS), Need::TooLate));
    // The one fixed token of the test has number 1: to a session of token 7 it is a newer one.
    let of_another = Life { token: Some(7), ..second };
    assert!(is_again(&of_another.need(Some(&credentials("t")), later)));
    // One that moves the end is as good as before.
    let longest = of(45_000, start, Some(1));
    let prolonged = Life::new(45_000, start + 38_250 * MS, Some(1), Some(&longest));
    assert_eq!(prolonged.spent_at(), None);
}

#[test]
fn authentication_is_not_repeated_within_a_second_and_requests_wait_for_it() {
    let now = clock::now();
    let life = of(700, now, Some(7));
    let tokens = credentials("t");
    assert!(matches!(life.need(Some(&tokens), now + 690 * MS), Need::Nothing));
    assert!(!life.is_over(now + 600 * MS) && life.is_over(now + 665 * MS));
    assert_eq!(life.wake_at(now), Some(now + 665 * MS));
    assert_eq!(life.wake_at(now + 665 * MS), Some(now + AGAIN_MIN));
    assert!(is_again(&life.need(Some(&tokens), now + AGAIN_MIN)), "the broker takes it, also late");
    let plain = Credentials::Plain { user: "u".to_owned(), password: Secret::new("p") };
    assert!(is_again(&of(700, now, None).need(Some(&plain), now + AGAIN_MIN)));
}

#[test]
fn no_lifetime_where_there_was_one_is_a_token_that_is_over() {
    let now = clock::now();
    let first = of(2000, now, Some(1));
    let second = Life::new(0, now + 1700 * MS, Some(1), Some(&first));
    assert!(second.is_over(now + 1700 * MS));
    assert_eq!(second.unlimited_token(), None);
    assert!(matches!(second.need(Some(&credentials("t")), now + 2800 * MS), Need::TooLate));
    // At a broker that knows no lifetimes it is for ever; only the token's number is kept.
    assert_eq!(of(0, now, Some(1)).unlimited_token(), Some(1));
    assert_eq!(of(0, now, None).unlimited_token(), None);
    let plain = Life::new(0, now, None, Some(&of(2000, now, None)));
    assert!(!plain.is_over(now + 3_600_000 * MS));
}
