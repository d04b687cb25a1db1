//! SASL on a connection: the first time, and again before the broker's session lifetime ends (KIP-368).
//!
//! ```text
//! SaslHandshake -> SaslAuthenticate ... -> requests ... | SaslHandshake -> SaslAuthenticate ... | requests ...
//! ```
//!
//! Between the two bars no other request may be sent (the broker takes none), so requests wait in the writer's channel;
//! answers to earlier requests still come in, and in their order. A broker before Kafka 1.0 takes SASL messages without a
//! header (`bare`), and knows no session lifetime.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, at, never, select_biased};

use super::life::{Life, Need};
use super::socket::Shared;
use super::stream::WriteHalf;
use super::{ConnectionError, ConnectionOptions};
use crate::auth::Token;
use crate::clock;
use crate::kafka::codec::{CodecError, Versions, sasl as wire};
use crate::kafka::error::ErrorCode;
use crate::kafka::sasl::{Credentials, Exchange, SaslError, Step, scram};

/// How long the broker's answers may take when no others are ahead of them. While a request is in flight its owner judges how
/// long that may take: minutes on a slow uplink, and what is behind it takes longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A token that ends this much earlier by the broker than by its endpoint is a clock that somebody should set.
const SKEW_HARMLESS: Duration = Duration::from_secs(5);
/// No mechanism has as many messages; a peer that goes on for ever is none.
const MESSAGES_MAX: usize = 8;

/// What an operator should look at when a broker takes a token for over that its endpoint does not.
pub const CLOCK_AHEAD: &str = "is its clock ahead of the token endpoint's?";

const UNSUPPORTED_MECHANISM: ErrorCode = ErrorCode(33);
/// Name, password or token is refused.
const AUTHENTICATION_FAILED: ErrorCode = ErrorCode(58);
const ILLEGAL_STATE: ErrorCode = ErrorCode(34);

/// Both sides of an authentication.
pub struct Party<'a> {
    pub credentials: &'a Credentials,
    pub versions: &'a Versions,
    pub client_id: &'a str,
    pub peer: SocketAddr,
    /// What was granted to the connection before, if this is not the first time.
    pub before: Option<&'a Life>,
}

/// Authenticates by `exchange`, which sends a frame and gives the answer to it.
pub fn authenticate(
    party: &Party<'_>,
    token: Option<Token>,
    exchange: &mut dyn FnMut(Bytes) -> Result<Bytes, ConnectionError>,
) -> Result<Life, ConnectionError> {
    let serial = token.as_ref().map(Token::serial);
    let outcome = run(party, token, exchange);
    if let Err(ConnectionError::Sasl { source: SaslError::Refused { .. }, .. }) = &outcome
        && let (Credentials::OAuthBearer { tokens, .. }, Some(serial)) = (party.credentials, serial)
    {
        tokens.replace(serial);
    }
    outcome
}

fn run(
    party: &Party<'_>,
    token: Option<Token>,
    exchange: &mut dyn FnMut(Bytes) -> Result<Bytes, ConnectionError>,
) -> Result<Life, ConnectionError> {
    let Party { credentials, versions, client_id, peer, before } = *party;
    let broken = |source: CodecError| ConnectionError::Versions { peer, source };
    let refused = |source: SaslError| ConnectionError::Sasl { peer, source };
    let framed = versions.sasl_authenticate();
    // Negative: the reader tells by that whose answer it is.
    let mut id = i32::MIN;
    let handshake_version = i16::from(framed.is_some());
    let mechanism = credentials.mechanism();
    let frame = wire::handshake_frame(handshake_version, mechanism, id, client_id).map_err(broken)?;
    let answer = wire::decode_handshake(handshake_version, id, &exchange(frame)?).map_err(broken)?;
    match answer.error {
        ErrorCode::NONE => {}
        UNSUPPORTED_MECHANISM => {
            return Err(refused(SaslError::NotOffered { mechanism, offered: answer.mechanisms }));
        }
        ILLEGAL_STATE if before.is_some() => return Err(refused(SaslError::NotAgain)),
        ILLEGAL_STATE => return Err(refused(SaslError::NoSaslHere)),
        AUTHENTICATION_FAILED => {
            return Err(refused(SaslError::Refused {
                mechanism,
                message: AUTHENTICATION_FAILED.to_string(),
            }));
        }
        code => return Err(refused(SaslError::Failed { mechanism, message: code.to_string() })),
    }
    let from = clock::now();
    let serial = token.as_ref().map(Token::serial);
    let nonce = scram::nonce(random(peer)?);
    let (mut sasl, mut message) = Exchange::begin(credentials, token.as_ref(), &nonce).map_err(refused)?;
    for _ in 0..MESSAGES_MAX {
        let (bytes, lifetime_ms) = match framed {
            None => (exchange(wire::bare_frame(&message))?, 0),
            Some(version) => {
                id += 1;
                let frame = wire::authenticate_frame(version, message, id, client_id).map_err(broken)?;
                let answer = wire::decode_authenticate(version, id, &exchange(frame)?).map_err(broken)?;
                if answer.error != ErrorCode::NONE {
                    let said = answer.message.or_else(|| Some(answer.error.to_string()));
                    let is_refusal = answer.error == AUTHENTICATION_FAILED;
                    return Err(refused(if is_refusal { sasl.refused(said) } else { sasl.failed(said) }));
                }
                (answer.bytes, answer.session_lifetime_ms)
            }
        };
        match sasl.next(&bytes).map_err(refused)? {
            Step::Send(next) => message = next,
            Step::Done => return Ok(Life::new(lifetime_ms, from, serial, before)),
        }
    }
    Err(refused(SaslError::Protocol { mechanism, what: "is one of too many" }))
}

/// Random bytes of the operating system: a nonce must not be guessed.
fn random(peer: SocketAddr) -> Result<[u8; scram::NONCE_BYTES], ConnectionError> {
    let mut bytes = [0; scram::NONCE_BYTES];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ConnectionError::Handshake { peer, source: error.into() })?;
    if got < bytes.len() {
        let source = std::io::Error::other("the system gave too few random bytes");
        return Err(ConnectionError::Handshake { peer, source });
    }
    Ok(bytes)
}

/// The writer's side of a connection that is ready.
pub struct Line<'a> {
    pub stream: WriteHalf,
    /// The TLS session has something to say by itself.
    pub wake: Receiver<()>,
    /// The answers to our own requests.
    pub answers: Receiver<Bytes>,
    pub peer: SocketAddr,
    pub options: &'a ConnectionOptions,
    pub versions: Arc<Versions>,
    pub life: Life,
    pub shared: Arc<Shared>,
    /// [`ANSWER_TIMEOUT`].
    pub answer_timeout: Duration,
    /// The operator was told of the broker's clock: once for each connection, not for each token.
    pub clock_told: bool,
}

impl Line<'_> {
    /// Writes requests until the owner has dropped the sending side.
    pub fn write(&mut self, frames: &Receiver<Bytes>) -> Result<(), ConnectionError> {
        let peer = self.peer;
        let lost = |source| ConnectionError::Lost { peer, source };
        loop {
            let now = clock::now();
            match self.life.need(self.options.security.sasl.as_ref(), now) {
                Need::Nothing => {}
                Need::Again(token) => self.authenticate_again(token)?,
                Need::Newer(than) => self.ask_for_newer(than),
                Need::TooLate => return Err(self.too_late()),
            }
            let now = clock::now();
            let look = self.life.wake_at(now).map_or_else(never, at);
            let nothing = never();
            let frames = if self.life.is_over(now) { &nothing } else { frames };
            let frame = select_biased! {
                recv(self.wake) -> _ => None,
                recv(look) -> _ => None,
                recv(frames) -> frame => match frame {
                    Ok(frame) => Some(frame),
                    Err(_) => return Ok(()),
                },
            };
            match frame {
                Some(frame) => {
                    self.shared.asks();
                    self.stream.write_all(&frame).map_err(lost)?;
                }
                None => self.stream.write_pending().map_err(lost)?,
            }
        }
    }

    fn authenticate_again(&mut self, token: Option<Token>) -> Result<(), ConnectionError> {
        let peer = self.peer;
        let lost = |source| ConnectionError::Lost { peer, source };
        let Some(credentials) = &self.options.security.sasl else { return Ok(()) };
        let (client_id, before) = (self.options.client_id.as_str(), Some(&self.life));
        let party = Party { credentials, versions: &self.versions, client_id, peer, before };
        let (stream, answers, shared) = (&mut self.stream, &self.answers, &self.shared);
        let limit = self.answer_timeout;
        let mut exchange = |frame: Bytes| {
            stream.write_all(&frame).map_err(lost)?;
            wait_for_answer(answers, shared, limit).map_err(lost)
        };
        shared.begins_authentication();
        let outcome = authenticate(&party, token.clone(), &mut exchange);
        let end_of_reader = shared.ends_authentication();
        let life = match (outcome, end_of_reader) {
            (Ok(life), None) => life,
            (Ok(_), Some(error)) => return Err(error),
            // What the broker said before it closed the connection counts, and not that it did.
            (Err(error @ ConnectionError::Sasl { .. }), _) => return Err(error),
            (Err(error), end_of_reader) => return Err(end_of_reader.unwrap_or(error)),
        };
        self.life = life;
        log::debug!("authenticated again at {peer}");
        if let (Some(token), Some(end)) = (token, self.life.spent_at()) {
            let ahead = token.expires_at().saturating_duration_since(end);
            if ahead >= SKEW_HARMLESS && !self.clock_told {
                self.clock_told = true;
                let sec = ahead.as_secs();
                log::warn!(
                    "Kafka broker {peer} ends tokens {sec} s early: {CLOCK_AHEAD} Others are fetched in time"
                );
            }
            self.ask_for_newer(token.serial());
        }
        Ok(())
    }

    fn ask_for_newer(&self, than: u64) {
        if let Some(Credentials::OAuthBearer { tokens, .. }) = &self.options.security.sasl {
            tokens.replace(than);
        }
    }

    fn too_late(&self) -> ConnectionError {
        let failure = match &self.options.security.sasl {
            Some(Credentials::OAuthBearer { tokens, .. }) => tokens.failure(),
            _ => None,
        };
        let why = failure.unwrap_or_else(|| match self.life.spent_at() {
            Some(_) => {
                format!("the token endpoint gives none that the broker takes for longer ({CLOCK_AHEAD})")
            }
            None => "the token endpoint has not answered".to_owned(),
        });
        ConnectionError::Sasl { peer: self.peer, source: SaslError::SessionOver(why) }
    }
}

/// Waits until the reader hands over the answer to our own request. The wait begins anew as long as requests of the owner are in
/// flight: he closes the connection when one of them takes too long.
fn wait_for_answer(answers: &Receiver<Bytes>, shared: &Shared, limit: Duration) -> io::Result<Bytes> {
    loop {
        let others_ahead = shared.is_asked();
        match answers.recv_timeout(limit) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) if others_ahead => {}
            Err(RecvTimeoutError::Timeout) => {
                let what = "no answer to the repeated authentication";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "closed during the repeated authentication",
                ));
            }
        }
    }
}

#[cfg(test)]
#[path = "authentication_tests.rs"]
mod tests;
