//! The thread that owns the token: fetches, refreshes, tries again. What it does next is decided by [`Schedule`], which is
//! pure.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::endpoint::{self, FetchError, Fetched};
use super::{Shared, Token, TokenOptions};
use crate::backoff::Backoff;
use crate::clock;
use crate::error::{chain, kind};
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
        run(&options, &shared, &mut endpoint::fetch, &heartbeat);
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

/// How a token is got: what the endpoint says to these options and the wall clock in seconds.
type Fetch<'a> = &'a mut dyn FnMut(&TokenOptions, i64) -> Result<Fetched, FetchError>;

fn run(options: &TokenOptions, shared: &Shared, fetch: Fetch<'_>, heartbeat: &Heartbeat) {
    let mut schedule = Schedule::new();
    let mut telling = Telling::default();
    let mut serials = 1..;
    while wait_until_due(&mut schedule, shared, heartbeat) {
        // Its life has begun when the answer comes, at the latest when it was asked for.
        let asked_at = clock::now();
        heartbeat.works(options.timeout, asked_at);
        // A panic in here must not be the end of all tokens: it counts as a try that failed.
        let fetched = thread::contain(|| fetch(options, clock::unix_ms().div_euclid(1000)))
            .unwrap_or_else(|what| Err(FetchError::Defect { what }));
        let now = clock::now();
        match fetched {
            Ok(fetched) => {
                telling.succeeded(fetched.clock_ahead_sec);
                schedule.fetched(fetched.life, asked_at, now);
                let mut state = shared.lock();
                // An endpoint may give the same token again: it is none that a broker would prefer.
                let same = state.token.as_ref().filter(|token| token.value == fetched.token);
                let serial = same.map(Token::serial).or_else(|| serials.next()).unwrap_or(u64::MAX);
                debug!("token {serial} from {}, for {} s", options.endpoint, fetched.life.as_secs());
                let expires_at = asked_at + fetched.life;
                state.token = Some(Token { value: fetched.token, serial, expires_at });
                state.clock_ahead_sec = fetched.clock_ahead_sec;
                state.failure = None;
                state.refused = None;
            }
            Err(error) => {
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

    fn fetched(&mut self, life: Duration, asked_at: Instant, now: Instant) {
        self.backoff.reset();
        self.due = (asked_at + life * REFRESH_AT / 100).max(now + REFRESH_MIN);
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
    /// What kind of failure was told, and when.
    failing: Option<(String, Instant)>,
    skew_told: Option<i64>,
}

impl Telling {
    fn failed(&mut self, text: &str, now: Instant) {
        let kind = kind(text);
        match &self.failing {
            Some((told, at)) if *told == kind && now.saturating_duration_since(*at) < TELL_AGAIN => {
                debug!("{text}");
            }
            _ => {
                warn!("{text}; trying again");
                self.failing = Some((kind, now));
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
            warn!("{}", clock_fault(ahead));
            self.skew_told = Some(ahead);
        }
    }
}

/// What an operator is told of a clock that is so many seconds ahead.
pub(super) fn clock_fault(ahead_sec: i64) -> String {
    let direction = if ahead_sec > 0 { "ahead of" } else { "behind" };
    let seconds = ahead_sec.unsigned_abs();
    format!("this machine's clock is {seconds} s {direction} the token endpoint's: set it right")
}

#[cfg(test)]
#[path = "token_thread_tests.rs"]
mod tests;
