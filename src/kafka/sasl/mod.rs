//! SASL mechanisms: who this client is, and the messages by which it says so. Pure: no socket, no clock; a nonce and a
//! token are arguments.
//!
//! PLAIN (RFC 4616), SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677), OAUTHBEARER (RFC 7628, KIP-255). How the
//! messages travel is told in [`super::connection`]. Invariants:
//! - no secret is in an error or in debug output;
//! - with SCRAM the server is trusted only after its signature is verified: one that does not know the password is refused.

pub mod oauthbearer;
pub mod scram;

use std::fmt;

use crate::auth::{Token, TokenSource};
use crate::secret::Secret;

pub use self::scram::Hash;

/// Who this client is.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// User name and password as they are.
    Plain {
        /// User name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// User name and password, neither of which is sent in a form that could be used again.
    Scram {
        /// Which hash function.
        hash: Hash,
        /// User name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// The newest token.
    OAuthBearer {
        /// Where tokens are from.
        tokens: TokenSource,
        /// SASL extensions (KIP-342), passed through.
        extensions: Vec<(String, String)>,
    },
}

impl Credentials {
    /// The mechanism's name as it is registered.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Credentials::Plain { .. } => "PLAIN",
            Credentials::Scram { hash: Hash::Sha256, .. } => "SCRAM-SHA-256",
            Credentials::Scram { hash: Hash::Sha512, .. } => "SCRAM-SHA-512",
            Credentials::OAuthBearer { .. } => "OAUTHBEARER",
        }
    }
}

/// Why the messages of a mechanism come to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// The broker has other mechanisms.
    #[error("the broker does not offer {mechanism}{}: set SASL_MECHANISM", offers(offered))]
    NotOffered {
        /// The one asked for.
        mechanism: &'static str,
        /// Those it has.
        offered: Vec<String>,
    },
    /// The listener has no SASL.
    #[error("this listener does not take SASL: set KAFKA_SECURITY_PROTOCOL, or use another port")]
    NoSaslHere,
    /// The broker takes no repeated authentication now.
    #[error(
        "the broker does not take a repeated authentication (ILLEGAL_SASL_STATE): its sessions have no end, or the last one \
         was less than a second ago"
    )]
    NotAgain,
    /// Name, password or token is refused.
    #[error("{mechanism} authentication is refused by the broker{}", said(message))]
    Refused {
        /// The mechanism.
        mechanism: &'static str,
        /// The broker's own words.
        message: String,
    },
    /// The broker could not carry it out: that says nothing of name, password or token.
    #[error("{mechanism} authentication failed at the broker{}", said(message))]
    Failed {
        /// The mechanism.
        mechanism: &'static str,
        /// The broker's own words.
        message: String,
    },
    /// There is no token to show.
    #[error("there is no token for Kafka: {0}")]
    NoToken(String),
    /// The session's time is over, and what would prolong it did not come.
    #[error("the authenticated session ends, and there is no newer token: {0}")]
    SessionOver(String),
    /// The server's messages are not what the RFC says.
    #[error("{mechanism}: the broker's message {what}")]
    Protocol {
        /// The mechanism.
        mechanism: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The server cannot prove that it knows the password: it is not the one it should be.
    #[error(
        "{mechanism}: the broker could not prove that it knows the password of this user; it is not trusted"
    )]
    WrongServerSignature {
        /// The mechanism.
        mechanism: &'static str,
    },
}

/// The most that is told of a broker's words, characters.
const SAID_MAX: usize = 200;

fn offers(mechanisms: &[String]) -> String {
    let names: String = mechanisms.join(", ").chars().take(SAID_MAX).collect();
    if names.is_empty() { String::new() } else { format!(" but {names}") }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// One authentication.
pub struct Exchange {
    mechanism: &'static str,
    state: State,
    /// What must not be in a message, although the broker repeats it.
    secret: Secret,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

enum State {
    /// Everything is said with the first message.
    Said,
    Scram(Box<scram::Client>),
    /// The token is refused; the error follows our answer to why (RFC 7628 section 3.2.3).
    TokenRefused(String),
}

/// What follows a message of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this.
    Send(Vec<u8>),
    /// The server is satisfied, and so is the client.
    Done,
}

impl Exchange {
    /// Begins: gives the client's first message. `token` is the one of OAUTHBEARER, `nonce` SCRAM's.
    ///
    /// # Errors
    /// OAUTHBEARER without a token.
    pub fn begin(
        credentials: &Credentials,
        token: Option<&Token>,
        nonce: &str,
    ) -> Result<(Exchange, Vec<u8>), SaslError> {
        let mechanism = credentials.mechanism();
        let (state, first, secret) = match credentials {
            Credentials::Plain { user, password } => {
                (State::Said, format!("\0{user}\0{}", password.expose()).into_bytes(), password)
            }
            Credentials::Scram { hash, user, password } => {
                let (client, first) = scram::Client::begin(*hash, user, password.clone(), nonce);
                (State::Scram(Box::new(client)), first, password)
            }
            Credentials::OAuthBearer { extensions, .. } => {
                let token = token.ok_or_else(|| SaslError::NoToken("none was fetched yet".to_owned()))?;
                (State::Said, oauthbearer::first_message(token.value(), extensions), token.value())
            }
        };
        Ok((Exchange { mechanism, state, secret: secret.clone() }, first))
    }

    /// Takes a message of the server.
    ///
    /// # Errors
    /// It is refused, or the server is.
    pub fn next(&mut self, message: &[u8]) -> Result<Step, SaslError> {
        let mechanism = self.mechanism;
        match &mut self.state {
            State::Scram(client) => client.next(message).map_err(|error| match error {
                SaslError::Refused { message, .. } => self.refused(Some(message)),
                error => error,
            }),
            State::Said if mechanism == "OAUTHBEARER" && !message.is_empty() => {
                self.state = State::TokenRefused(oauthbearer::refusal(message));
                Ok(Step::Send(vec![1]))
            }
            State::Said => Ok(Step::Done),
            // The broker must have ended it with an error.
            State::TokenRefused(_) => Err(self.refused(None)),
        }
    }

    /// The error of a broker that refuses name, password or token, with what it said before.
    pub fn refused(&self, message: Option<String>) -> SaslError {
        SaslError::Refused { mechanism: self.mechanism, message: self.words(message) }
    }

    /// The error of a broker that ended the exchange otherwise.
    pub fn failed(&self, message: Option<String>) -> SaslError {
        SaslError::Failed { mechanism: self.mechanism, message: self.words(message) }
    }

    /// What the broker said, not more than can be read, and without our secret should it repeat it.
    fn words(&self, message: Option<String>) -> String {
        let mut message = message.unwrap_or_default();
        if let State::TokenRefused(why) = &self.state
            && !why.is_empty()
            && !message.contains(why.as_str())
        {
            message = if message.is_empty() { why.clone() } else { format!("{message} ({why})") };
        }
        let secret = self.secret.expose();
        if !secret.is_empty() {
            message = message.replace(secret, "***");
        }
        message.chars().take(SAID_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::connection::ConnectionError;

    #[test]
    fn a_broker_that_could_not_look_has_not_refused() {
        let credentials = Credentials::Plain { user: "tim".into(), password: Secret::new("hunter2") };
        let (exchange, _) = Exchange::begin(&credentials, None, "").unwrap();
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 9092));
        let pause = |source| ConnectionError::Sasl { peer, source }.refusal();
        assert!(pause(exchange.refused(None)).is_some());
        assert_eq!(pause(exchange.failed(Some("hunter2 is not looked up".into()))), None);
        assert!(!exchange.failed(Some("hunter2".into())).to_string().contains("hunter2"));
    }

    #[test]
    fn plain_says_all_at_once() {
        // RFC 4616 section 4, without an authorization identity.
        let credentials =
            Credentials::Plain { user: "tim".into(), password: Secret::new("tanstaaftanstaaf") };
        let (mut exchange, first) = Exchange::begin(&credentials, None, "").unwrap();
        assert_eq!(first, b"\0tim\0tanstaaftanstaaf");
        assert_eq!(exchange.next(b"").unwrap(), Step::Done);
        assert!(!format!("{credentials:?} {exchange:?}").contains("tanstaaf"));
    }

    #[test]
    fn a_brokers_words_are_bounded_and_without_the_secret() {
        let told = |credentials: &Credentials, token: Option<&Token>, secret: &str| {
            let (exchange, _) = Exchange::begin(credentials, token, "n").unwrap();
            let echo = format!("wrong: {secret}, {}", "x".repeat(1 << 20));
            let said = exchange.refused(Some(echo)).to_string();
            assert!(said.contains("wrong: ***, xxx") && !said.contains(secret), "{said:.300}");
            assert!(said.len() < 300, "{} characters", said.len());
        };
        let (user, password) = ("tim".to_owned(), Secret::new("hunter2"));
        told(&Credentials::Plain { user: user.clone(), password: password.clone() }, None, "hunter2");
        let scram = Credentials::Scram { hash: Hash::Sha256, user, password };
        told(&scram, None, "hunter2");
        let (mut exchange, _) = Exchange::begin(&scram, None, "n").unwrap();
        let said = exchange.next(b"e=no hunter2").unwrap_err().to_string();
        assert!(said.ends_with(": no ***"), "{said}");
        let tokens = TokenSource::fixed("a.b.c");
        let token = tokens.current().unwrap();
        let bearer = Credentials::OAuthBearer { tokens, extensions: Vec::new() };
        told(&bearer, Some(&token), "a.b.c");
        let (mut exchange, _) = Exchange::begin(&bearer, Some(&token), "").unwrap();
        exchange.next(b"{\"status\":\"no a.b.c\"}").unwrap();
        let said = exchange.next(b"").unwrap_err().to_string();
        assert!(said.contains("status no ***") && !said.contains("a.b.c"), "{said}");
        let offered = vec!["x".repeat(1 << 20)];
        assert!(SaslError::NotOffered { mechanism: "PLAIN", offered }.to_string().len() < 300);
    }

    #[test]
    fn a_refused_token_is_answered_and_its_reason_told() {
        let tokens = TokenSource::fixed("a.b.c");
        let token = tokens.current().unwrap();
        let credentials = Credentials::OAuthBearer { tokens, extensions: Vec::new() };
        let (mut exchange, _) = Exchange::begin(&credentials, Some(&token), "").unwrap();
        assert_eq!(exchange.next(b"{\"status\":\"invalid_token\"}").unwrap(), Step::Send(vec![1]));
        let said = exchange.refused(Some("Authentication failed".into())).to_string();
        assert_eq!(
            said,
            "OAUTHBEARER authentication is refused by the broker: Authentication failed (status invalid_token)"
        );
        assert!(exchange.next(b"").is_err());
        let (mut exchange, _) = Exchange::begin(&credentials, Some(&token), "").unwrap();
        assert_eq!(exchange.next(b"").unwrap(), Step::Done);
        assert!(Exchange::begin(&credentials, None, "").is_err());
    }
}
