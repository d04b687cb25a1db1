//! The bytes of a connection, plain or by TLS: on one thread until the handshakes are over, then in two halves.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::ConnectionError;
use crate::clock;
use crate::tls::{Session, TlsOptions};

/// Plain bytes that are encrypted under one hold of the lock: the reader waits for no more than this.
const ENCRYPT_BYTES: usize = 64 * 1024;
/// What the reader takes from the socket at once: one TLS record.
const RECORD_BYTES: usize = 16 * 1024 + 512;

/// A connected socket, and TLS on it or none.
pub enum Stream {
    Plain(TcpStream),
    Tls(TcpStream, Box<Session>),
}

impl Stream {
    /// Shakes hands if there is to be TLS. Files are read here, so that what was renewed counts.
    pub fn open(
        socket: TcpStream,
        tls: Option<&TlsOptions>,
        host: &str,
        peer: SocketAddr,
        deadline: Instant,
    ) -> Result<Stream, ConnectionError> {
        let Some(tls) = tls else { return Ok(Stream::Plain(socket)) };
        let failed = |source| ConnectionError::Tls { peer, source };
        let broken = |source| ConnectionError::Handshake { peer, source };
        let session = Session::new(tls, host).map_err(failed)?;
        let mut stream = Stream::Tls(socket, Box::new(session));
        let Stream::Tls(socket, session) = &mut stream else { return Ok(stream) };
        while session.is_handshaking() {
            write_records(session, socket, deadline).map_err(broken)?;
            if !session.is_handshaking() {
                break;
            }
            let read = session.read_records(&mut Timed { socket: &*socket, deadline });
            match read {
                Ok(0) => return Err(failed(session.closed_early())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(failed(session.closed_early()));
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Err(failed(session.not_answered()));
                }
                Err(error) => return Err(broken(error)),
            }
            if let Err(error) = session.process() {
                // The alert that tells the peer why; if it is gone, nobody wants to know.
                let _ = write_records(session, socket, deadline);
                return Err(failed(error));
            }
        }
        write_records(session, socket, deadline).map_err(broken)?;
        Ok(stream)
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(..))
    }

    pub fn write_all_until(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => {
                socket.set_write_timeout(Some(time_left(deadline)?))?;
                socket.write_all(bytes)
            }
            Stream::Tls(socket, session) => {
                session.write_plain(bytes)?;
                write_records(session, socket, deadline)
            }
        }
    }

    /// For reading until a deadline, however little each read brings.
    pub fn until(&mut self, deadline: Instant) -> Until<'_> {
        Until { stream: self, deadline }
    }

    /// For two threads, without time limits. The channel tells the writer that the session has records to write.
    pub fn split(self) -> io::Result<(WriteHalf, ReadHalf, Receiver<()>)> {
        match self {
            Stream::Plain(socket) => {
                no_limits(&socket)?;
                let read = socket.try_clone()?;
                Ok((WriteHalf::Plain(socket), ReadHalf::Plain(read), never()))
            }
            Stream::Tls(socket, session) => {
                no_limits(&socket)?;
                let read = socket.try_clone()?;
                let session = Arc::new(Mutex::new(*session));
                let (wake, woken) = bounded(1);
                let write_half =
                    WriteHalf::Tls { socket, session: Arc::clone(&session), _wake: wake.clone() };
                let encrypted = vec![0; RECORD_BYTES];
                let read_half = ReadHalf::Tls { socket: read, session, wake, encrypted, from: 0, to: 0 };
                Ok((write_half, read_half, woken))
            }
        }
    }
}

fn no_limits(socket: &TcpStream) -> io::Result<()> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)
}

fn write_records(session: &mut Session, socket: &TcpStream, deadline: Instant) -> io::Result<()> {
    while session.wants_write() {
        socket.set_write_timeout(Some(time_left(deadline)?))?;
        session.write_records(&mut &*socket)?;
    }
    Ok(())
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    // A zero timeout would mean none.
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")) } else { Ok(left) }
}

/// Reads from a socket until a deadline.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(time_left(self.deadline)?))?;
        self.socket.read(buffer).map_err(|error| match error.kind() {
            // What a read timeout is called differs by platform.
            ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "no answer in time"),
            _ => error,
        })
    }
}

/// See [`Stream::until`].
pub struct Until<'a> {
    stream: &'a mut Stream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let deadline = self.deadline;
        match self.stream {
            Stream::Plain(socket) => Timed { socket, deadline }.read(buffer),
            Stream::Tls(socket, session) => loop {
                match session.read_plain(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
                session.read_records(&mut Timed { socket, deadline })?;
                session.process()?;
            },
        }
    }
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    // A panic inside rustls would end both threads' use of it anyway: the connection is closed by it.
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The only side that writes to the socket: so records keep their order without a second lock.
pub enum WriteHalf {
    Plain(TcpStream),
    Tls {
        socket: TcpStream,
        session: Arc<Mutex<Session>>,
        /// Keeps the channel open, so that waiting on it beside others is no busy loop when the reader has ended.
        _wake: Sender<()>,
    },
}

impl WriteHalf {
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            WriteHalf::Plain(socket) => socket.write_all(bytes),
            WriteHalf::Tls { socket, session, .. } => {
                for piece in bytes.chunks(ENCRYPT_BYTES) {
                    let records = {
                        let mut session = lock(session);
                        session.write_plain(piece)?;
                        take_records(&mut session)?
                    };
                    socket.write_all(&records)?;
                }
                Ok(())
            }
        }
    }

    /// Writes what the session has to say by itself: answers to key updates, alerts.
    pub fn write_pending(&mut self) -> io::Result<()> {
        match self {
            WriteHalf::Plain(_) => Ok(()),
            WriteHalf::Tls { socket, session, .. } => {
                let records = take_records(&mut lock(session))?;
                socket.write_all(&records)
            }
        }
    }
}

fn take_records(session: &mut Session) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    while session.wants_write() {
        session.write_records(&mut records)?;
    }
    Ok(records)
}

/// The only side that reads from the socket.
pub enum ReadHalf {
    Plain(TcpStream),
    Tls {
        socket: TcpStream,
        session: Arc<Mutex<Session>>,
        wake: Sender<()>,
        /// What was read and is not in the session yet is between `from` and `to`.
        encrypted: Vec<u8>,
        from: usize,
        to: usize,
    },
}

impl Read for ReadHalf {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (socket, session, wake, encrypted, from, to) = match self {
            ReadHalf::Plain(socket) => return socket.read(buffer),
            ReadHalf::Tls { socket, session, wake, encrypted, from, to } => {
                (socket, session, wake, encrypted, from, to)
            }
        };
        loop {
            {
                let mut session = lock(session);
                // First what is decrypted already: the session takes no more records while much of it waits.
                match session.read_plain(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
                let mut waiting = encrypted.get(*from..*to).unwrap_or_default();
                if !waiting.is_empty() {
                    *from += session.read_records(&mut waiting)?;
                    let processed = session.process();
                    if session.wants_write() {
                        // Full means that the writer is woken already.
                        let _ = wake.try_send(());
                    }
                    processed?;
                    continue;
                }
            }
            // Both before the read: one that a signal interrupts must not make what was there stand there again.
            (*from, *to) = (0, 0);
            *to = socket.read(encrypted)?;
            if *to == 0 {
                // The session tells whether the peer had said that this is the end.
                lock(session).read_records(&mut io::empty())?;
                return match lock(session).read_plain(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                    other => other,
                };
            }
        }
    }
}
