//! TLS on a socket that one thread owns in both directions: handshake with a deadline, then non-blocking.
//!
//! Invariants:
//! - a read that gives fewer bytes than it has room for has emptied both TLS and the socket, as without TLS; what it had to leave behind
//!   it remembers ([`TlsStream::holds_back`]), because poll(2) does not see it;
//! - bytes count as written when the socket has all their records, so that an acknowledgement is never believed to be on its
//!   way while it stands in a buffer of ours.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::clock;
use crate::tls::{Session, TlsError, TlsOptions};

/// For the handshake as a whole: slow boards need a second or two.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Plain bytes given to TLS at a time: one record (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// See the module head.
#[derive(Debug)]
pub(super) struct TlsStream {
    session: Session,
    host: String,
    /// Plain bytes whose records the socket does not have all yet.
    unwritten: usize,
    /// The last read filled its buffer: there may be more.
    more: bool,
    /// What ended the connection behind bytes that were given out first.
    ended: Option<io::Error>,
    /// The peer has sent something since the handshake.
    heard: bool,
}

impl TlsStream {
    /// Makes TLS on a socket that blocks.
    ///
    /// # Errors
    /// There is none, or not in time.
    pub(super) fn handshake(
        mut stream: &TcpStream,
        options: &TlsOptions,
        host: &str,
    ) -> Result<Self, TlsError> {
        let mut session = Session::new(options, host)?;
        let failed = |error: &io::Error| TlsError::Failed { host: host.to_owned(), what: error.to_string() };
        let deadline = clock::now() + HANDSHAKE_TIMEOUT;
        loop {
            wait_until(stream, deadline, host)?;
            while session.wants_write() {
                session.write_records(&mut stream).map_err(|error| failed(&error))?;
            }
            if !session.is_handshaking() {
                break;
            }
            match session.read_records(&mut stream) {
                Ok(0) => return Err(session.closed_early()),
                Ok(_) => {}
                Err(error) if again(&error) => continue,
                Err(error) => return Err(failed(&error)),
            }
            if let Err(error) = session.process() {
                // The alert tells the peer why; the connection is over whether or not it takes it.
                let _ = session.write_records(&mut stream);
                return Err(error);
            }
        }
        Ok(TlsStream { session, host: host.to_owned(), unwritten: 0, more: false, ended: None, heard: false })
    }

    /// Reads into `buffer`. None: nothing now; 0: the end.
    ///
    /// # Errors
    /// The connection is broken, or refused by the peer.
    pub(super) fn read(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(error) = self.ended.take() {
            return ended(error);
        }
        let mut filled = 0;
        self.more = false;
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            let count = match self.session.read_plain(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => match self.pull(&mut stream) {
                    Ok(true) => continue,
                    Ok(false) => return Ok((filled > 0).then_some(filled)),
                    Err(error) => Err(error),
                },
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                other => other,
            };
            match count {
                Ok(count) => filled += count,
                Err(error) if filled == 0 => return ended(error),
                Err(error) => {
                    self.ended = Some(error);
                    return Ok(Some(filled));
                }
            }
        }
        self.more = true;
        Ok(Some(filled))
    }

    /// Takes records from the socket. False: there are none now.
    fn pull(&mut self, stream: &mut &TcpStream) -> io::Result<bool> {
        match self.session.read_records(stream) {
            Ok(0) if self.heard => Err(ErrorKind::UnexpectedEof.into()),
            Ok(0) => Err(self.unheard(ErrorKind::ConnectionReset)),
            Ok(_) => {
                if let Err(error) = self.session.process() {
                    let _ = self.session.write_records(stream);
                    return Err(error.into());
                }
                self.heard = true;
                Ok(true)
            }
            Err(error) if again(&error) => Ok(error.kind() == ErrorKind::Interrupted),
            Err(error) => Err(self.explained(error)),
        }
    }

    /// With TLS 1.3 the handshake is over for us before the peer has looked at our certificate, and the alert that
    /// refuses it may be lost when the peer closes with our first bytes unread.
    fn explained(&self, error: io::Error) -> io::Error {
        let closed = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        if closed && !self.heard { self.unheard(error.kind()) } else { error }
    }

    fn unheard(&self, kind: ErrorKind) -> io::Error {
        let what = "closed right after the TLS handshake: it may ask for a client certificate (MQTT_CERT_FILE) or refuse ours";
        io::Error::new(kind, format!("{} {what}", self.host))
    }

    /// Whether something is to be had though the socket is silent.
    pub(super) fn holds_back(&self) -> bool {
        self.more || self.ended.is_some()
    }

    /// Whether there are records for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// How many of `bytes` the socket has; the others must be given again, in front, the next time.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn write(&mut self, mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        loop {
            while self.session.wants_write() {
                match self.session.write_records(&mut stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(written),
                    Err(error) => return Err(self.explained(error)),
                }
            }
            written += std::mem::take(&mut self.unwritten);
            let rest = bytes.get(written..).unwrap_or_default();
            let record = rest.get(..RECORD_BYTES.min(rest.len())).unwrap_or_default();
            if record.is_empty() {
                return Ok(written);
            }
            self.unwritten = self.session.write_plain(record)?;
        }
    }

    /// Tells the peer that nothing more is written, as far as the socket takes it.
    pub(super) fn finish(&mut self, mut stream: &TcpStream) {
        self.session.close_notify();
        while self.session.wants_write() && self.session.write_records(&mut stream).is_ok() {}
    }
}

/// An end without `close_notify` is an end: MQTT has its own DISCONNECT.
fn ended(error: io::Error) -> io::Result<Option<usize>> {
    if error.kind() == ErrorKind::UnexpectedEof { Ok(Some(0)) } else { Err(error) }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// What the socket does next may take until then.
fn wait_until(stream: &TcpStream, deadline: Instant, host: &str) -> Result<(), TlsError> {
    let left = deadline.saturating_duration_since(clock::now());
    let failed = |what: String| TlsError::Failed { host: host.to_owned(), what };
    if left.is_zero() {
        return Err(failed(format!("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())));
    }
    let set = stream.set_read_timeout(Some(left)).and_then(|()| stream.set_write_timeout(Some(left)));
    set.map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod tests;
