//! SASL on a connection: the first time, and again before the broker's session lifetime ends (KIP-368).
//!
//! ```text
//! SaslHandshake -> SaslAuthenticate ... -> requests ... | SaslHandshake -> SaslAuthenticate ... | requests ...
//! ```
//!
//! Between the two bars no other request may be sent (the broker takes none), so requests wait in the writer's channel;
//! answers to earlier requests still come in, and in their order. A broker before Kafka 1.0 takes SASL messages without a
//! header (`bare`), and knows no session lifetime.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, at, never, select_biased};

use super::stream::WriteHalf;
use super::{ConnectionError, ConnectionOptions};
use crate::auth::Token;
use crate::clock;
use crate::kafka::codec::{CodecError, Versions, sasl as wire};
use crate::kafka::error::ErrorCode;
use crate::kafka::sasl::{Credentials, Exchange, SaslError, Step, scram};

/// Authentication is repeated when this part of the session's lifetime is over, in hundredths.
const AGAIN_AT: u32 = 85;
/// Longer lifetimes are taken for this one: its end is a point in time, and there is a last one.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How often it is looked for a newer token, when the one in use is too old to prolong the session.
const LOOK_FOR_TOKEN: Duration = Duration::from_millis(250);
/// The session is given up by us this long before the broker does it, but never before a twentieth of its life is left.
const MARGIN: Duration = Duration::from_millis(500);
/// How long the broker's answers may take while others are ahead of them: as long as any request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// No mechanism has as many messages; a peer that goes on for ever is none.
const MESSAGES_MAX: usize = 8;

const UNSUPPORTED_MECHANISM: ErrorCode = ErrorCode(33);
const ILLEGAL_STATE: ErrorCode = ErrorCode(34);

/// Both sides of an authentication.
pub struct Party<'a> {
    pub credentials: &'a Credentials,
    pub versions: &'a Versions,
    pub client_id: &'a str,
    pub peer: SocketAddr,
}

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
    /// From when on it is too late.
    too_late: Instant,
    /// A token that lives longer than this prolongs it, also if it is the same as before.
    worth: Instant,
}

/// What a [`Life`] asks for now.
enum Need {
    Nothing,
    Again(Option<Token>),
    TooLate,
}

impl Life {
    pub fn endless() -> Life {
        Life { session: None, token: None }
    }

    fn new(lifetime_ms: i64, from: Instant, token: Option<u64>) -> Life {
        let lifetime = u64::try_from(lifetime_ms).ok().filter(|ms| *ms > 0);
        let lifetime = lifetime.map(|ms| Duration::from_millis(ms).min(LIFETIME_MAX));
        let session = lifetime.map(|lifetime| Session {
            again: from + lifetime * AGAIN_AT / 100,
            too_late: from + (lifetime - MARGIN.min(lifetime / 20)),
            worth: from + lifetime + lifetime / 10,
        });
        Life { session, token }
    }

    /// What to do now. The broker ends a session with its token, so that one which does not outlive the session would only
    /// buy what there is already.
    fn need(&self, credentials: Option<&Credentials>, now: Instant) -> Need {
        let Some(session) = self.session.filter(|session| session.again <= now) else { return Need::Nothing };
        let Some(Credentials::OAuthBearer { tokens, .. }) = credentials else { return Need::Again(None) };
        let is_worth_it =
            |token: &Token| Some(token.serial()) != self.token || token.expires_at() > session.worth;
        match tokens.current().filter(is_worth_it) {
            Some(token) => Need::Again(Some(token)),
            None if now < session.too_late => Need::Nothing,
            None => Need::TooLate,
        }
    }

    /// When to look again.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let session = self.session?;
        Some(if session.again > now { session.again } else { (now + LOOK_FOR_TOKEN).min(session.too_late) })
    }
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
        tokens.refused(serial);
    }
    outcome
}

fn run(
    party: &Party<'_>,
    token: Option<Token>,
    exchange: &mut dyn FnMut(Bytes) -> Result<Bytes, ConnectionError>,
) -> Result<Life, ConnectionError> {
    let Party { credentials, versions, client_id, peer } = *party;
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
        ILLEGAL_STATE => return Err(refused(SaslError::NoSaslHere)),
        code => return Err(refused(SaslError::Refused { mechanism, message: code.to_string() })),
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
                    return Err(refused(sasl.refused(said)));
                }
                (answer.bytes, answer.session_lifetime_ms)
            }
        };
        match sasl.next(&bytes).map_err(refused)? {
            Step::Send(next) => message = next,
            Step::Done => return Ok(Life::new(lifetime_ms, from, serial)),
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
                Need::TooLate => return Err(self.too_late()),
            }
            let look = self.life.wake_at(clock::now()).map_or_else(never, at);
            let frame = select_biased! {
                recv(self.wake) -> _ => None,
                recv(look) -> _ => None,
                recv(frames) -> frame => match frame {
                    Ok(frame) => Some(frame),
                    Err(_) => return Ok(()),
                },
            };
            match frame {
                Some(frame) => self.stream.write_all(&frame).map_err(lost)?,
                None => self.stream.write_pending().map_err(lost)?,
            }
        }
    }

    fn authenticate_again(&mut self, token: Option<Token>) -> Result<(), ConnectionError> {
        let peer = self.peer;
        let lost = |source| ConnectionError::Lost { peer, source };
        let Some(credentials) = &self.options.security.sasl else { return Ok(()) };
        let versions = Arc::clone(&self.versions);
        let party = Party { credentials, versions: &versions, client_id: &self.options.client_id, peer };
        let (stream, answers) = (&mut self.stream, &self.answers);
        let mut exchange = |frame: Bytes| {
            stream.write_all(&frame).map_err(lost)?;
            answers.recv_timeout(ANSWER_TIMEOUT).map_err(|error| {
                let kind = match error {
                    RecvTimeoutError::Timeout => std::io::ErrorKind::TimedOut,
                    // The reader has ended, and has told why.
                    RecvTimeoutError::Disconnected => std::io::ErrorKind::UnexpectedEof,
                };
                lost(std::io::Error::new(kind, "no answer to the repeated authentication"))
            })
        };
        self.life = authenticate(&party, token, &mut exchange)?;
        log::debug!("authenticated again at {peer}");
        Ok(())
    }

    fn too_late(&self) -> ConnectionError {
        let why = match &self.options.security.sasl {
            Some(Credentials::OAuthBearer { tokens, .. }) => tokens.failure(),
            _ => None,
        };
        let why = why.unwrap_or_else(|| "the token endpoint has not answered".to_owned());
        ConnectionError::Sasl { peer: self.peer, source: SaslError::SessionOver(why) }
    }
}

#[cfg(test)]
#[path = "authentication_tests.rs"]
mod tests;
