//! The thread that owns the token: fetches, refreshes, tries again. What it does next is decided by [`Schedule`], which is
//! pure.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::{Shared, Token, TokenOptions, endpoint};
use crate::backoff::Backoff;
use crate::clock;
use crate::error::chain;
use crate::observe::heartbeat::Heartbeat;
use crate::thread::{self, Ending};

/// A token is refreshed when this part of its life is over, in hundredths: the rest is for an endpoint that is away.
const REFRESH_AT: u32 = 80;
/// Tokens are not asked for more often, however short their life.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// Pauses between tries while the endpoint does not give one.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A token that brokers refuse is replaced at most so often: it may be the audience that is wrong, and the next is too.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// The same failure is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

pub(super) fn start(options: TokenOptions, shared: Arc<Shared>, heartbeat: Heartbeat) -> io::Result<()> {
    let at_end = Arc::clone(&shared);
    let work = move || {
        run(&options, &shared, &heartbeat);
        Ok(())
    };
    // Not joined: it may sit in a request, and nobody waits for a token at the end.
    thread::spawn("token", work, move |ending| {
        if let Ending::Panicked(what) | Ending::Failed(what) = ending {
            log::error!("the token thread failed: {what}; no new token can be fetched");
            at_end.lock().failure = Some("the token thread failed".to_owned());
            at_end.changed.notify_all();
        }
    })?;
    Ok(())
}

fn run(options: &TokenOptions, shared: &Shared, heartbeat: &Heartbeat) {
    let mut schedule = Schedule::new();
    let mut telling = Telling::default();
    let mut serial = 0;
    while wait_until_due(&mut schedule, shared, heartbeat) {
        heartbeat.works(options.timeout, clock::now());
        match endpoint::fetch(options, clock::unix_ms().div_euclid(1000)) {
            Ok(fetched) => {
                let now = clock::now();
                serial += 1;
                telling.succeeded(fetched.clock_ahead_sec);
                debug!("token {serial} from {}, for {} s", options.endpoint, fetched.life.as_secs());
                schedule.fetched(fetched.life, now);
                let mut state = shared.lock();
                state.token = Some(Token { value: fetched.token, serial, expires_at: now + fetched.life });
                state.failure = None;
                state.refused = None;
            }
            Err(error) => {
                let now = clock::now();
                let text = chain(&error);
                telling.failed(&text, now);
                schedule.failed(fastrand::f64(), now);
                shared.lock().failure = Some(text);
            }
        }
        shared.changed.notify_all();
    }
}

/// False when nobody wants tokens any more.
fn wait_until_due(schedule: &mut Schedule, shared: &Shared, heartbeat: &Heartbeat) -> bool {
    let mut state = shared.lock();
    loop {
        if state.over {
            return false;
        }
        let now = clock::now();
        let current = state.token.as_ref().map(Token::serial);
        if let Some(refused) = state.refused.take()
            && Some(refused) == current
        {
            schedule.refused(now);
        }
        let left = schedule.due().saturating_duration_since(now);
        if left.is_zero() {
            return true;
        }
        let waited = shared.changed.wait_timeout(state, heartbeat.waits(Some(left), now));
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// When the next request is due.
#[derive(Debug)]
struct Schedule {
    due: Instant,
    backoff: Backoff,
    replaced_at: Option<Instant>,
}

impl Schedule {
    fn new() -> Schedule {
        Schedule { due: clock::now(), backoff: Backoff::new(RETRY_FIRST, RETRY_MAX), replaced_at: None }
    }

    fn due(&self) -> Instant {
        self.due
    }

    fn fetched(&mut self, life: Duration, now: Instant) {
        self.backoff.reset();
        self.due = now + (life * REFRESH_AT / 100).max(REFRESH_MIN);
    }

    fn failed(&mut self, random: f64, now: Instant) {
        self.due = now + self.backoff.next_delay(random);
    }

    fn refused(&mut self, now: Instant) {
        let earliest = self.replaced_at.map_or(now, |at| (at + REFUSED_AGAIN).max(now));
        if earliest < self.due {
            self.due = earliest;
            self.replaced_at = Some(earliest);
        }
    }
}

/// What the operator is told: each failure once, then now and then; when it works again; a clock that is wrong.
#[derive(Debug, Default)]
struct Telling {
    failing: Option<(String, Instant)>,
    skew_told: Option<i64>,
}

impl Telling {
    fn failed(&mut self, text: &str, now: Instant) {
        match &self.failing {
            Some((told, at)) if told == text && now.saturating_duration_since(*at) < TELL_AGAIN => {
                debug!("{text}");
            }
            _ => {
                warn!("{text}; trying again");
                self.failing = Some((text.to_owned(), now));
            }
        }
    }

    fn succeeded(&mut self, ahead_sec: Option<i64>) {
        if self.failing.take().is_some() {
            info!("the token endpoint gives tokens again");
        }
        let Some(ahead) = ahead_sec else {
            self.skew_told = None;
            return;
        };
        // Once for each wrong time, not for each second that it drifts.
        if self.skew_told.is_none_or(|told| told.saturating_sub(ahead).saturating_abs() > 60) {
            let direction = if ahead > 0 { "ahead of" } else { "behind" };
            let seconds = ahead.unsigned_abs();
            warn!("this machine's clock is {seconds} s {direction} the token endpoint's: set it right");
            self.skew_told = Some(ahead);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_refreshed_at_four_fifths_of_its_life() {
        let now = clock::now();
        let mut schedule = Schedule::new();
        schedule.fetched(Duration::from_secs(60), now);
        assert_eq!(schedule.due() - now, Duration::from_secs(48));
        schedule.fetched(Duration::from_millis(10), now);
        assert_eq!(schedule.due() - now, REFRESH_MIN);
    }

    #[test]
    fn a_refused_token_is_replaced_at_once_but_not_without_end() {
        let now = clock::now();
        let mut schedule = Schedule::new();
        schedule.fetched(Duration::from_secs(600), now);
        schedule.refused(now);
        assert_eq!(schedule.due(), now);
        schedule.fetched(Duration::from_secs(600), now);
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
                        0 => schedule.fetched(Duration::from_secs(life_sec), now),
                        _ => schedule.failed(0.0, now),
                    }
                    prop_assert!(schedule.due() >= now + RETRY_FIRST / 2);
                }
            }
            let most = (now - start).as_millis() as u64 / 250 + 1;
            prop_assert!(requests <= most + most, "{requests} in {:?}", now - start);
        }
    }
}
