//! One connection to one broker: a thread that writes and a thread that reads, on a blocking socket.
//!
//! ```text
//!             send: bounded, never blocks                 events: bounded
//!  owner ---------------------------------> writer ---+--> Ready, Closed ---> owner
//!    |                                        | spawns |
//!    |                                        v        |
//!    |                                      reader ----+--> Response, Closed
//!    +-- close: shuts the socket down from outside, so neither thread outlives it on a frozen peer
//! ```
//!
//! With TLS both threads share the session behind a lock that is held for the cryptography only; the writer alone writes to
//! the socket, and is woken by the reader when the session has something to answer. With SASL the writer authenticates
//! before the first request, and again before the broker's session lifetime ends (KIP-368): between two requests, on the
//! same connection, while the answers to earlier requests still come in.
//!
//! The connection knows nothing of what requests mean, and reads no clock for its owner: how long a response may
//! take is the owner's to judge. Kafka answers the requests of a connection in order, so the oldest request
//! without a response is the one that is answered next.
//!
//! Invariants:
//! - the owner never waits: opening, sending and closing return at once, and nobody joins the threads;
//! - a connection ends with exactly one [`ConnectionEvent::Closed`], or with none if the owner closed it;
//! - at most [`IN_FLIGHT_REQUESTS_MAX`] requests are without a response, which also bounds the writer's channel;
//! - the length of a response is checked before memory is taken, and memory is taken as bytes arrive.

mod authentication;
mod handshake;
mod life;
mod socket;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use self::socket::{Events, Shared, Writer};
use super::codec::{self, CodecError, Pending, Versions};
use super::protocol::{Request, Response};
use super::sasl::{Credentials, SaslError};
use crate::thread;
use crate::tls::{TlsError, TlsOptions};

/// The most requests without a response on one connection. An idempotent producer has at most 5 batches in flight
/// for a partition; a request carries batches of many partitions, so this is far above what keeps a broker busy.
pub const IN_FLIGHT_REQUESTS_MAX: usize = 32;

/// How to open a connection.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// Client id: what the broker's logs and quotas call this client.
    pub client_id: String,
    /// How long each address of the host may take to connect, and then the handshake.
    pub connect_timeout: Duration,
    /// Largest response that is read, bytes.
    pub response_max_bytes: u32,
    /// How it is protected.
    pub security: Security,
}

/// KAFKA_SECURITY_PROTOCOL, in parts: PLAINTEXT has neither.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// TLS.
    pub tls: Option<TlsOptions>,
    /// SASL.
    pub sasl: Option<Credentials>,
}

/// What happens on a connection.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// Connected, and the versions are negotiated: call [`Connection::ready`], then send.
    Ready {
        /// The connection's number.
        connection: u64,
        /// What can be sent.
        versions: Arc<Versions>,
        /// The address that was reached.
        peer: SocketAddr,
    },
    /// A whole response, without its length: give it to [`Connection::complete`].
    Response {
        /// The connection's number.
        connection: u64,
        /// Correlation id, tagged fields, body.
        body: Bytes,
    },
    /// The connection is over: the fate of what is in flight is unknown.
    Closed {
        /// The connection's number.
        connection: u64,
        /// Why.
        error: ConnectionError,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The host name has no address now: try again, or another bootstrap host.
    #[error("cannot resolve {host}")]
    Resolve {
        /// Host name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No address of the host could be reached: try again, or another bootstrap host.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        /// Host name.
        host: String,
        /// Port.
        port: u16,
        /// What the last address said.
        #[source]
        source: io::Error,
    },
    /// Connected, but the peer did not behave as a Kafka broker in time (another protocol, TLS, a frozen process).
    #[error("no Kafka handshake with {peer}")]
    Handshake {
        /// The address.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The broker's answer to ApiVersions cannot be used.
    #[error("cannot negotiate versions with {peer}")]
    Versions {
        /// The address.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// No TLS with the peer: a file, its certificate, or ours.
    #[error("no TLS with {peer}")]
    Tls {
        /// The address.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The broker does not take who this client is, or the other way round.
    #[error("not authenticated at {peer}")]
    Sasl {
        /// The address.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: SaslError,
    },
    /// There is no token yet, so that connecting would come to nothing.
    #[error("cannot authenticate at {host}:{port}")]
    NoToken {
        /// Host name.
        host: String,
        /// Port.
        port: u16,
        /// Why there is none.
        #[source]
        source: SaslError,
    },
    /// Reading or writing failed.
    #[error("connection to {peer} lost")]
    Lost {
        /// The address.
        peer: SocketAddr,
        /// Why; `UnexpectedEof` if the broker closed it.
        #[source]
        source: io::Error,
    },
    /// A thread of the connection panicked: a defect. Open another connection.
    #[error("a thread of the connection failed: {what}")]
    Defect {
        /// The panic's text.
        what: String,
    },
    /// A response is larger than allowed, or the bytes are no response at all.
    #[error("response of {bytes} bytes from {peer} exceeds the limit of {limit_bytes}")]
    ResponseTooLarge {
        /// The address.
        peer: SocketAddr,
        /// Announced length, bytes (negative if the peer says so).
        bytes: i32,
        /// The limit, bytes.
        limit_bytes: u32,
    },
}

/// Most time between tries of a password that a broker refuses: accounts are locked after a few, and who mends it waits no longer.
const PASSWORD_REFUSED_MAX: Duration = Duration::from_secs(60);
/// The same of a token: the next one may have what this one lacked.
const TOKEN_REFUSED_MAX: Duration = Duration::from_secs(15);

impl ConnectionError {
    /// The broker has refused our credentials: the longest pause before they are tried again.
    pub fn refusal(&self) -> Option<Duration> {
        match self {
            ConnectionError::Sasl { source: SaslError::Refused { mechanism: "OAUTHBEARER", .. }, .. } => {
                Some(TOKEN_REFUSED_MAX)
            }
            ConnectionError::Sasl { source: SaslError::Refused { .. }, .. } => Some(PASSWORD_REFUSED_MAX),
            _ => None,
        }
    }
}

/// Why a request was not sent. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No [`ConnectionEvent::Ready`] yet: wait for it.
    #[error("the connection is not ready")]
    NotReady,
    /// [`IN_FLIGHT_REQUESTS_MAX`] requests are in flight: wait for a response.
    #[error("too many requests in flight")]
    Full,
    /// The connection is over: open another.
    #[error("the connection is closed")]
    Closed,
    /// The request cannot be encoded for this broker.
    #[error("the request cannot be encoded")]
    Codec(#[source] CodecError),
}

/// The owner's side of a connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    client_id: String,
    versions: Option<Arc<Versions>>,
    next_correlation_id: i32,
    in_flight: VecDeque<(i32, Pending)>,
    /// None once closed. Its end is what ends the writer, and both threads' waiting for the owner.
    frames: Option<Sender<Bytes>>,
    closing: Option<Sender<()>>,
    shared: Arc<Shared>,
}

impl Connection {
    /// Starts to connect and returns at once; what becomes of it is told by `events`, under the number `id`.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn open(
        id: u64,
        host: &str,
        port: u16,
        options: &ConnectionOptions,
        events: Sender<ConnectionEvent>,
    ) -> io::Result<Connection> {
        let (frames, frames_inbox) = bounded(IN_FLIGHT_REQUESTS_MAX);
        let (closing, closing_inbox): (Sender<()>, Receiver<()>) = bounded(0);
        let shared = Arc::new(Shared::default());
        let events = Events { id, events, closing: closing_inbox, shared: Arc::clone(&shared) };
        let at_end = events.clone();
        let writer =
            Writer { host: host.to_owned(), port, options: options.clone(), frames: frames_inbox, events };
        // Not joined: it may sit in a name lookup that nothing can interrupt, and the owner must not wait.
        thread::spawn("kafka-write", move || writer.run(), move |ending| at_end.end_by(ending))?;
        Ok(Connection {
            client_id: options.client_id.clone(),
            versions: None,
            next_correlation_id: handshake::CORRELATION_IDS_END,
            in_flight: VecDeque::new(),
            frames: Some(frames),
            closing: Some(closing),
            shared,
        })
    }

    /// Takes the versions of [`ConnectionEvent::Ready`]: from here on requests can be sent.
    pub fn ready(&mut self, versions: Arc<Versions>) {
        self.versions = Some(versions);
    }

    /// The negotiated versions; None before [`ready`](Self::ready).
    pub fn versions(&self) -> Option<&Versions> {
        self.versions.as_deref()
    }

    /// Hands a request to the writer and gives its correlation id. Never blocks.
    ///
    /// # Errors
    /// Nothing was sent; see [`SendError`] for what to do.
    pub fn send(&mut self, request: &Request) -> Result<i32, SendError> {
        let frames = self.frames.as_ref().ok_or(SendError::Closed)?;
        let versions = self.versions.as_ref().ok_or(SendError::NotReady)?;
        if self.in_flight.len() >= IN_FLIGHT_REQUESTS_MAX {
            return Err(SendError::Full);
        }
        let correlation_id = self.next_correlation_id;
        let (frame, pending) =
            codec::encode(request, versions, correlation_id, &self.client_id).map_err(SendError::Codec)?;
        frames.try_send(frame).map_err(|error| match error {
            TrySendError::Full(_) => SendError::Full,
            TrySendError::Disconnected(_) => SendError::Closed,
        })?;
        self.next_correlation_id = correlation_id.checked_add(1).unwrap_or(0);
        self.in_flight.push_back((correlation_id, pending));
        Ok(correlation_id)
    }

    /// Reads the response to the oldest request in flight and gives that request's correlation id with it.
    ///
    /// # Errors
    /// The response is malformed or answers another request: close the connection.
    pub fn complete(&mut self, body: Bytes) -> Result<(i32, Response), CodecError> {
        let (correlation_id, pending) = self
            .in_flight
            .pop_front()
            .ok_or(CodecError::Unexpected { correlation_id: codec::correlation_id(&body) })?;
        Ok((correlation_id, codec::decode(pending, correlation_id, body)?))
    }

    /// Number of requests without a response.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Ends the connection whatever its threads are doing. No event follows from it (one that was sent before may
    /// still be in the channel). Doing it twice is the same as once.
    pub fn close(&mut self) {
        self.frames = None;
        self.closing = None;
        self.shared.close();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
