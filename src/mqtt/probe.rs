//! What `tidegate check` asks the MQTT broker: does it accept us? Blocks; for the command line only.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::session::{Event, Session, SessionError, SessionOptions};
use super::transport::{self, ConnectError, Connection, Endpoint, ReadOutcome};
use super::waker::Waker;
use crate::clock;

/// A broker that accepted the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// From the beginning of the connection to CONNACK.
    pub connack_after: Duration,
}

/// Why the broker cannot be used now.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No connection.
    #[error("no connection to the MQTT broker")]
    Connect(#[source] ConnectError),
    /// Refused, not MQTT, or no answer.
    #[error("no MQTT session")]
    Session(#[source] SessionError),
    /// The broker closed before CONNACK, as many do instead of refusing.
    #[error("the MQTT broker closed the connection before CONNACK")]
    Closed,
    /// The connection broke.
    #[error("the connection to the MQTT broker broke")]
    Io(#[source] io::Error),
}

/// Connects as the gateway would, but with a client id of its own and a clean session without subscriptions, so
/// that a running gateway is not disturbed; then disconnects.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe(endpoint: &Endpoint, options: &SessionOptions) -> Result<ProbeReport, ProbeError> {
    let started = clock::now();
    let waker = Waker::new().map_err(ProbeError::Io)?;
    let mut connection = transport::connect(endpoint).map_err(ProbeError::Connect)?;
    let mut session = Session::new(SessionOptions {
        client_id: format!("{}-check-{}", options.client_id, std::process::id()),
        clean_session: true,
        session_expiry_sec: 0,
        filters: Vec::new(),
        ..options.clone()
    });
    session.open(clock::now()).map_err(ProbeError::Session)?;
    loop {
        flush(&mut session, &mut connection)?;
        let now = clock::now();
        let timeout = session.deadline().map(|at| at.saturating_duration_since(now));
        let waiting = Some((&connection, true, !session.output().is_empty()));
        let ready = transport::wait(&waker, waiting, timeout).map_err(ProbeError::Io)?;
        if ready.readable {
            match connection.read().map_err(ProbeError::Io)? {
                ReadOutcome::Bytes(bytes) => {
                    session.receive(bytes, clock::now(), 0, &mut Vec::new()).map_err(ProbeError::Session)?
                }
                ReadOutcome::Empty => {}
                ReadOutcome::Closed => return Err(ProbeError::Closed),
            }
        } else {
            session.on_deadline(clock::now(), true).map_err(ProbeError::Session)?;
        }
        if let Some(Event::Connected { .. }) = session.next_event() {
            let connack_after = clock::now().saturating_duration_since(started);
            session.say_goodbye(clock::now());
            flush(&mut session, &mut connection)?;
            return Ok(ProbeReport { connack_after });
        }
    }
}

fn flush(session: &mut Session, connection: &mut Connection) -> Result<(), ProbeError> {
    let count = connection.write(session.output()).map_err(ProbeError::Io)?;
    session.wrote(count, clock::now());
    Ok(())
}
