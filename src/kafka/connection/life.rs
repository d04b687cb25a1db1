//! How long what is authenticated may be used, and when to authenticate again (KIP-368). Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::auth::Token;
use crate::kafka::sasl::Credentials;

/// Authentication is repeated when this part of the session's lifetime is over, in hundredths.
const AGAIN_AT: u32 = 85;
/// But no sooner: Kafka takes it once a second at most (`MIN_REAUTH_INTERVAL_ONE_SECOND_NANOS`), and answers ILLEGAL_SASL_STATE.
const AGAIN_MIN: Duration = Duration::from_millis(1100);
/// A repeated authentication that moves the end of the session by less was in vain: the end is that of the token.
const MOVED_MIN: Duration = Duration::from_secs(1);
/// Longer lifetimes are taken for this one: its end is a point in time, and there is a last one.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How often it is looked for a newer token, when the one in use is too old to prolong the session.
const LOOK_FOR_TOKEN: Duration = Duration::from_millis(250);
/// The session is given up by us this long before the broker does it, but never before a twentieth of its life is left.
const MARGIN: Duration = Duration::from_millis(500);

/// How long what is authenticated may be used.
#[derive(Debug)]
pub struct Life {
    /// None: for ever.
    session: Option<Session>,
    /// The token that was shown.
    token: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    /// From when on to authenticate again.
    again: Instant,
    /// From when on no request may be sent.
    too_late: Instant,
    end: Instant,
    /// A token that lives longer than this prolongs it, also if it is the same as before. None: only another one does.
    worth: Option<Instant>,
}

/// What a [`Life`] asks for now.
#[derive(Debug)]
pub enum Need {
    Nothing,
    Again(Option<Token>),
    /// A newer token than this one.
    Newer(u64),
    TooLate,
}

impl Life {
    pub fn endless() -> Life {
        Life { session: None, token: None }
    }

    /// What the broker grants from now on; `before` is what it had granted to this connection, if this is a repeated
    /// authentication.
    pub fn new(lifetime_ms: i64, from: Instant, token: Option<u64>, before: Option<&Life>) -> Life {
        let told = u64::try_from(lifetime_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        let had = before.and_then(|before| before.session);
        let lifetime = match told {
            Some(lifetime) => Some(lifetime.min(LIFETIME_MAX)),
            // Where there was an end before, none means that the token is over by the broker's clock.
            None if had.is_some() && token.is_some() => Some(Duration::ZERO),
            None => None,
        };
        let is_same = token.is_some() && before.is_some_and(|before| before.token == token);
        let session = lifetime.map(|lifetime| {
            let end = from + lifetime;
            let in_vain = lifetime.is_zero() || is_same && had.is_some_and(|had| end < had.end + MOVED_MIN);
            Session {
                again: from + (lifetime * AGAIN_AT / 100).max(AGAIN_MIN),
                too_late: end - MARGIN.min(lifetime / 20),
                end,
                worth: (!in_vain).then(|| end + lifetime / 10),
            }
        });
        Life { session, token }
    }

    /// What to do now. The broker ends a session with its token, so that one which does not outlive the session would only
    /// buy what there is already.
    pub fn need(&self, credentials: Option<&Credentials>, now: Instant) -> Need {
        let Some(session) = self.session.filter(|session| session.again <= now) else { return Need::Nothing };
        let Some(Credentials::OAuthBearer { tokens, .. }) = credentials else { return Need::Again(None) };
        let outlives = |token: &Token| session.worth.is_some_and(|worth| token.expires_at() > worth);
        let is_worth_it = |token: &Token| Some(token.serial()) != self.token || outlives(token);
        match (tokens.current().filter(is_worth_it), self.token) {
            (Some(token), _) => Need::Again(Some(token)),
            (None, Some(shown)) if now < session.too_late => Need::Newer(shown),
            (None, _) => Need::TooLate,
        }
    }

    /// Whether the session is over, so that a request would cost the connection; a repeated authentication would not.
    pub fn is_over(&self, now: Instant) -> bool {
        self.session.is_some_and(|session| session.too_late <= now)
    }

    /// When to look again.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let session = self.session?;
        Some(match (session.again > now, session.too_late > now) {
            (true, true) => session.again.min(session.too_late),
            (true, false) => session.again,
            (false, _) => (now + LOOK_FOR_TOKEN).min(session.too_late),
        })
    }

    /// The token's number, if a token was taken and the broker told no end of the session.
    pub fn unlimited_token(&self) -> Option<u64> {
        self.token.filter(|_| self.session.is_none())
    }

    /// The end of the session, if it is that of its token by the broker's clock, so that no later end is to be had with it.
    pub fn spent_at(&self) -> Option<Instant> {
        self.session.filter(|session| session.worth.is_none()).map(|session| session.end)
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
