//! Tokens for OAUTHBEARER: fetched by the client-credentials grant (RFC 6749 section 4.4), and kept fresh.
//!
//! ```text
//!                 current, wait                      POST
//!  connections -----------------> TokenSource <--- token thread ----------> token endpoint
//!                 refused ----------------------------> |
//! ```
//!
//! One thread owns the token: it fetches, refreshes at 80 % of its life (also when nothing is sent), and tries again with
//! backoff while the endpoint is away. Nobody on the data path waits for it: a connection being opened waits on its own
//! thread, and without a token it counts as failed, so that Kafka is away and the spool takes over.
//!
//! Knows nothing of Kafka. Invariants:
//! - the client secret and the token are in no log, no error and no debug output;
//! - everything has an end: each step of a request has a time limit, and a response a size limit;
//! - a token is not given out after its life.

mod date;
mod endpoint;
mod jwt;
mod token_thread;

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::observe::heartbeat::Heartbeats;
use crate::secret::Secret;
use crate::tls::NamedFile;

pub use self::endpoint::{Endpoint, FetchError, fetch};

/// How the client proves who it is to the token endpoint (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// By the header `Authorization: Basic`.
    Basic,
    /// By `client_id` and `client_secret` in the body.
    Post,
}

/// How tokens are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// Where.
    pub endpoint: Endpoint,
    /// Who asks.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// For what; the endpoint's default without it.
    pub scope: Option<String>,
    /// The authorities that the endpoint is checked against; the system's without it.
    pub ca_file: Option<NamedFile>,
    /// How it proves who it is.
    pub client_auth: ClientAuth,
    /// How long a request may take in all.
    pub timeout: Duration,
}

/// See [`TokenSource::patience`].
const MOMENT: Duration = Duration::from_secs(2);

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    value: Secret,
    serial: u64,
    expires_at: Instant,
}

impl Token {
    /// The token itself, for the one place that sends it.
    pub fn value(&self) -> &Secret {
        &self.value
    }

    /// Its number among those of this process.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The end of its life.
    pub fn expires_at(&self) -> Instant {
        self.expires_at
    }
}

/// Where connections get the newest token. Clones share it; when the last is dropped, the token thread ends.
#[derive(Clone)]
pub struct TokenSource {
    shared: Arc<Shared>,
    /// How long the first token is waited for: one request, and a moment more, so that its failure is heard of.
    patience: Duration,
    /// Held only to be dropped: its end is what ends the token thread.
    _owners: Arc<Owners>,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    token: Option<Token>,
    /// Why there is no (new) token: what the last try said. None before the first has ended.
    failure: Option<String>,
    /// The number of a token that is to be replaced: a broker has refused it.
    refused: Option<u64>,
    /// How far this machine's clock is ahead of the endpoint's, seconds, where it matters.
    clock_ahead_sec: Option<i64>,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each field is whole by itself, whatever panicked while it was held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Owners(Arc<Shared>);

impl Drop for Owners {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl TokenSource {
    fn over(shared: Arc<Shared>, patience: Duration) -> TokenSource {
        TokenSource { _owners: Arc::new(Owners(Arc::clone(&shared))), shared, patience }
    }

    /// Starts the token thread and returns at once; by `heartbeats` it is seen whether the thread goes round.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(options: TokenOptions, heartbeats: &Heartbeats) -> io::Result<TokenSource> {
        let shared = Arc::new(Shared::default());
        let patience = options.timeout + MOMENT;
        token_thread::start(options, Arc::clone(&shared), heartbeats.join("token", clock::now()))?;
        Ok(TokenSource::over(shared, patience))
    }

    /// A source with one token for a year: for tests.
    pub fn fixed(token: &str) -> TokenSource {
        let shared = Arc::new(Shared::default());
        let expires_at = clock::now() + Duration::from_secs(365 * 86_400);
        shared.lock().token = Some(Token { value: Secret::new(token), serial: 1, expires_at });
        TokenSource::over(shared, Duration::ZERO)
    }

    /// The newest token, if there is one and its life is not over.
    pub fn current(&self) -> Option<Token> {
        let state = self.shared.lock();
        state.token.clone().filter(|token| token.expires_at > clock::now())
    }

    /// The longest time that [`wait`](Self::wait) takes.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The newest token; if there is none, waits until there is one, or until a try to get one fails.
    ///
    /// # Errors
    /// Why there is none.
    pub fn wait(&self) -> Result<Token, String> {
        let deadline = clock::now() + self.patience;
        let mut state = self.shared.lock();
        loop {
            let now = clock::now();
            if let Some(token) = state.token.as_ref().filter(|token| token.expires_at > now) {
                return Ok(token.clone());
            }
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return Err("the token endpoint has not answered yet".to_owned());
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells that this token is of no more use: a broker refuses it, or takes it for over. Another one is fetched at once, unless
    /// that was done just before.
    pub fn replace(&self, serial: u64) {
        self.shared.lock().refused = Some(serial);
        self.shared.changed.notify_all();
    }

    /// What is wrong with this machine's clock, in words, by what the endpoint said last.
    pub fn clock_fault(&self) -> Option<String> {
        self.shared.lock().clock_ahead_sec.map(token_thread::clock_fault)
    }

    /// What the last try to get a token said, if it failed.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }
}

#[cfg(test)]
mod tests;
