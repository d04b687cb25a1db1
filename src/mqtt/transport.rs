//! The socket: name resolution, connecting with limits, TLS, non-blocking reads and writes, waiting.
//!
//! It knows no MQTT. TLS lies between the socket and the buffers (`tls_stream`): one thread owns both directions, so its state
//! needs no lock (docs/decisions/0003). Reading and writing never block; resolving and connecting do, so they are done on a thread
//! of their own that can be abandoned ([`connect`] takes at most [`CONNECT_TIMEOUT`] for each address; only
//! resolving has no limit that this process could set).

mod tls_stream;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use thiserror::Error;

use self::tls_stream::TlsStream;
use super::waker::Waker;
use crate::tls::{TlsError, TlsOptions};

/// For one address.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A host name may stand for many addresses; more than this are not tried.
const ADDRESSES_MAX: usize = 8;

/// Bytes of one read. Mosquitto writes packet by packet, so most reads are far smaller.
pub const READ_BYTES: usize = 64 * 1024;

/// Why there is no connection. All are outages: try again.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// Host.
        host: String,
        /// Cause; None: no address at all.
        #[source]
        source: Option<io::Error>,
    },
    /// No address accepts; the last one's error.
    #[error("cannot connect to {address}")]
    Connect {
        /// Address.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The last address accepts, and there is no TLS with it.
    #[error("no TLS with {address}")]
    Tls {
        /// Address.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: TlsError,
    },
}

/// Where the MQTT broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How TLS is made; None: not at all.
    pub tls: Option<TlsOptions>,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome<'b> {
    /// Bytes; more may wait if there are [`READ_BYTES`] of them.
    Bytes(&'b [u8]),
    /// Nothing now.
    Empty,
    /// The peer closed.
    Closed,
}

/// A connection and its read buffer.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<TlsStream>>,
    buffer: Box<[u8]>,
}

/// Connects to the first address that accepts, and makes TLS if that is asked for. Blocks.
///
/// # Errors
/// None accepts, or the name has none.
pub fn connect(endpoint: &Endpoint) -> Result<Connection, ConnectError> {
    let resolve = |source| ConnectError::Resolve { host: endpoint.host.clone(), source };
    let addresses =
        (endpoint.host.as_str(), endpoint.port).to_socket_addrs().map_err(|error| resolve(Some(error)))?;
    let mut last = resolve(None);
    for address in addresses.take(ADDRESSES_MAX) {
        match connect_to(address, endpoint) {
            Ok(connection) => return Ok(connection),
            // An address that answers tells more than one where nobody listens.
            Err(ConnectError::Connect { .. }) if matches!(last, ConnectError::Tls { .. }) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_to(address: SocketAddr, endpoint: &Endpoint) -> Result<Connection, ConnectError> {
    let failed = |source| ConnectError::Connect { address, source };
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(failed)?;
    let tls = match &endpoint.tls {
        None => None,
        Some(options) => {
            let made = TlsStream::handshake(&stream, options, &endpoint.host);
            Some(made.map_err(|source| ConnectError::Tls { address, source })?)
        }
    };
    let connection = Connection::new(stream).map_err(failed)?;
    Ok(Connection { tls: tls.map(Box::new), ..connection })
}

impl Connection {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The operating system refuses an option.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // For what the MQTT keep-alive does not see: it may be off.
        sockopt::set_socket_keepalive(&stream, true)?;
        #[cfg(target_os = "linux")]
        {
            sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60))?;
            sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
            sockopt::set_tcp_keepcnt(&stream, 6)?;
        }
        Ok(Connection { stream, tls: None, buffer: vec![0; READ_BYTES].into_boxed_slice() })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read(&mut self) -> io::Result<ReadOutcome<'_>> {
        if self.tls.is_some() {
            return self.read_tls();
        }
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(ReadOutcome::Closed),
                Ok(count) => {
                    self.acknowledge_at_once()?;
                    return Ok(ReadOutcome::Bytes(self.buffer.get(..count).unwrap_or_default()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(ReadOutcome::Empty),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn read_tls(&mut self) -> io::Result<ReadOutcome<'_>> {
        let Some(tls) = &mut self.tls else { return Ok(ReadOutcome::Closed) };
        let count = tls.read(&self.stream, &mut self.buffer)?;
        if matches!(count, Some(1..)) {
            self.acknowledge_at_once()?;
        }
        Ok(match count {
            None => ReadOutcome::Empty,
            Some(0) => ReadOutcome::Closed,
            Some(count) => ReadOutcome::Bytes(self.buffer.get(..count).unwrap_or_default()),
        })
    }

    /// Bytes, or an end, that were taken from the socket and not given out yet: the socket will not tell of them.
    fn holds_back(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.holds_back())
    }

    /// TLS has something to write besides what [`Connection::write`] is given.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Mosquitto leaves Nagle's algorithm on: it sends the next small packet only when TCP has acknowledged the last,
    /// and this side would wait up to 40 ms for something to send along with that. Measured at 500 msg/s, from
    /// publisher to Kafka consumer: p99 24 ms without this, 2 ms with it. The kernel forgets it, so it is said again.
    fn acknowledge_at_once(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        sockopt::set_tcp_quickack(&self.stream, true)?;
        Ok(())
    }

    /// Writes what the socket takes; how many bytes that was. What it did not take must be given again.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(tls) = &mut self.tls {
            return tls.write(&self.stream, bytes);
        }
        loop {
            match self.stream.write(bytes) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Nothing more will be written. The peer sees the end after all that was.
    pub fn finish_writing(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.finish(&self.stream);
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }
}

/// What [`wait`] saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// The waker.
    pub woken: bool,
    /// The socket can be read, or is broken and reading tells why.
    pub readable: bool,
    /// The socket takes bytes.
    pub writable: bool,
}

/// Waits for the waker, for the connection (to read, to write) or until `timeout`.
///
/// # Errors
/// poll(2) failed: a fault of the program.
pub fn wait(
    waker: &Waker,
    connection: Option<(&Connection, bool, bool)>,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    if connection.is_some_and(|(connection, read, _)| read && connection.holds_back()) {
        return Ok(Ready { woken: true, readable: true, writable: true });
    }
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, connection.is_some_and(|(_, read, _)| read));
    events.set(PollFlags::OUT, connection.is_some_and(|(c, _, write)| write || c.wants_write()));
    // A socket that is neither read nor written is left out: poll would report its end again and again.
    let socket = connection.filter(|_| !events.is_empty()).map(|(connection, ..)| connection.stream.as_fd());
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let waker_fd = PollFd::new(waker, PollFlags::IN);
    let (woken, socket_events) = match &socket {
        Some(socket) => {
            let mut fds = [waker_fd, PollFd::new(socket, events)];
            polled(poll(&mut fds, timeout.as_ref()))?;
            let [waker_fd, socket_fd] = fds;
            (waker_fd.revents(), socket_fd.revents())
        }
        None => {
            let mut fds = [waker_fd];
            polled(poll(&mut fds, timeout.as_ref()))?;
            let [waker_fd] = fds;
            (waker_fd.revents(), PollFlags::empty())
        }
    };
    let broken = socket_events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    Ok(Ready {
        woken: woken.contains(PollFlags::IN),
        readable: socket_events.contains(PollFlags::IN) || broken,
        writable: socket_events.contains(PollFlags::OUT) || broken,
    })
}

fn polled(result: rustix::io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
