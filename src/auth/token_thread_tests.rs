//! When tokens are fetched, what becomes of those that are fetched, and what is told of failures.

use super::*;
use proptest::prelude::*;

use crate::observe::heartbeat::Heartbeats;
use crate::secret::Secret;

#[test]
fn a_token_is_refreshed_at_four_fifths_of_its_life() {
    let now = clock::now();
    let mut schedule = Schedule::new();
    schedule.fetched(Duration::from_secs(60), now, now);
    assert_eq!(schedule.due() - now, Duration::from_secs(48));
    schedule.fetched(Duration::from_millis(10), now, now);
    assert_eq!(schedule.due() - now, REFRESH_MIN);
}

#[test]
fn a_refused_token_is_replaced_at_once_but_not_without_end() {
    let now = clock::now();
    let mut schedule = Schedule::new();
    schedule.fetched(Duration::from_secs(600), now, now);
    schedule.refused(now);
    assert_eq!(schedule.due(), now);
    schedule.fetched(Duration::from_secs(600), now, now);
    schedule.refused(now + Duration::from_secs(1));
    assert_eq!(schedule.due(), now + REFUSED_AGAIN);
}

proptest! {
    /// Whatever happens in whatever order, a request is never due more often than its limits allow.
    #[test]
    fn no_endpoint_is_hammered(steps in proptest::collection::vec((0..3_u8, 0..100_u64, 0..10_000_u64), 1..200)) {
        let start = clock::now();
        let mut now = start;
        let mut schedule = Schedule::new();
        schedule.due = start;
        let mut requests = 0_u64;
        for (kind, life_sec, pause_ms) in steps {
            now += Duration::from_millis(pause_ms);
            if kind == 2 {
                schedule.refused(now);
            }
            if schedule.due() <= now {
                requests += 1;
                match kind {
                    0 => schedule.fetched(Duration::from_secs(life_sec), now, now),
                    _ => schedule.failed(0.0, now),
                }
                prop_assert!(schedule.due() >= now + RETRY_FIRST / 2);
            }
        }
        let most = (now - start).as_millis() as u64 / 250 + 1;
        prop_assert!(requests <= most + most, "{requests} in {:?}", now - start);
    }
}

fn options() -> TokenOptions {
    TokenOptions {
        endpoint: super::super::Endpoint::parse("https://h/t").unwrap(),
        client_id: "edge".to_owned(),
        client_secret: Secret::new("hunter2"),
        scope: None,
        ca_file: None,
        client_auth: super::super::ClientAuth::Post,
        timeout: Duration::from_secs(10),
    }
}

fn heartbeat() -> Heartbeat {
    Heartbeats::new(None, clock::now()).join("token", clock::now())
}

type Answer = Box<dyn FnOnce(&Shared) -> Result<Fetched, FetchError>>;

/// Runs the thread's work here with these answers, one after the other; ends it behind the last.
fn run_with(answers: Vec<Answer>) -> Shared {
    let shared = Shared::default();
    let mut answers = answers.into_iter();
    let mut left = answers.len();
    let mut fetch = |_: &TokenOptions, _| {
        left -= 1;
        shared.lock().over = left == 0;
        answers.next().unwrap()(&shared)
    };
    run(&options(), &shared, &mut fetch, &heartbeat());
    shared
}

fn token(value: &str, life: Duration) -> Result<Fetched, FetchError> {
    Ok(Fetched { token: Secret::new(value), life, clock_ahead_sec: None })
}

#[test]
fn a_panic_is_a_failed_try_and_a_token_comes_afterwards() {
    let minute = Duration::from_secs(60);
    let shared = run_with(vec![
        Box::new(|_| panic!("a defect of the test")),
        Box::new(move |shared| {
            let failure = shared.lock().failure.clone().expect("the try has failed");
            assert!(failure.contains("a defect of the test"), "{failure}");
            token("t", minute)
        }),
    ]);
    let state = shared.lock();
    assert_eq!(state.token.as_ref().map(Token::serial), Some(1));
    assert_eq!(state.failure, None);
}

#[test]
fn the_same_token_keeps_its_number() {
    let short = Duration::from_millis(1);
    let serial = |shared: &Shared| shared.lock().token.as_ref().map(Token::serial);
    let shared = run_with(vec![
        Box::new(move |_| token("a", short)),
        Box::new(move |shared| {
            assert_eq!(serial(shared), Some(1));
            token("a", short)
        }),
        Box::new(move |shared| {
            assert_eq!(serial(shared), Some(1), "the same as before");
            token("b", short)
        }),
    ]);
    assert_eq!(serial(&shared), Some(2));
}

#[test]
fn a_life_begins_when_the_token_is_asked_for() {
    let mut answered = None;
    let shared = Shared::default();
    let mut fetch = |_: &TokenOptions, _| {
        shared.lock().over = true;
        let asked = clock::now();
        while clock::now() < asked + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        answered = Some(clock::now());
        token("t", Duration::from_secs(60))
    };
    run(&options(), &shared, &mut fetch, &heartbeat());
    let expires_at = shared.lock().token.as_ref().unwrap().expires_at();
    assert!(expires_at <= answered.unwrap() + Duration::from_secs(60) - Duration::from_millis(20));
}

#[test]
fn other_seconds_are_no_other_failure() {
    let now = clock::now();
    let mut telling = Telling::default();
    telling.failed("a token that has expired 9 s ago", now);
    let told_at = |telling: &Telling| telling.failing.as_ref().map(|(_, at)| *at);
    telling.failed("a token that has expired 11 s ago", now + Duration::from_secs(2));
    assert_eq!(told_at(&telling), Some(now), "it is the same");
    telling.failed("refused", now + Duration::from_secs(3));
    assert_eq!(told_at(&telling), Some(now + Duration::from_secs(3)));
    telling.failed("refused", now + Duration::from_secs(3) + TELL_AGAIN);
    assert_eq!(told_at(&telling), Some(now + Duration::from_secs(3) + TELL_AGAIN));
}
