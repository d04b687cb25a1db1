//! The socket: name resolution, connecting with limits, non-blocking reads and writes, waiting.
//!
//! It knows no MQTT. Reading and writing never block; resolving and connecting do, so they are done on a thread
//! of their own that can be abandoned ([`connect`] takes at most [`CONNECT_TIMEOUT`] for each address; only
//! resolving has no limit that this process could set).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use thiserror::Error;

use super::waker::Waker;

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
}

/// Where the MQTT broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
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
    buffer: Box<[u8]>,
}

/// Connects to the first address that accepts. Blocks.
///
/// # Errors
/// None accepts, or the name has none.
pub fn connect(endpoint: &Endpoint) -> Result<Connection, ConnectError> {
    let resolve = |source| ConnectError::Resolve { host: endpoint.host.clone(), source };
    let addresses =
        (endpoint.host.as_str(), endpoint.port).to_socket_addrs().map_err(|error| resolve(Some(error)))?;
    let mut last = resolve(None);
    for address in addresses.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).and_then(Connection::new) {
            Ok(connection) => return Ok(connection),
            Err(source) => last = ConnectError::Connect { address, source },
        }
    }
    Err(last)
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
        Ok(Connection { stream, buffer: vec![0; READ_BYTES].into_boxed_slice() })
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read(&mut self) -> io::Result<ReadOutcome<'_>> {
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

    /// Mosquitto leaves Nagle's algorithm on: it sends the next small packet only when TCP has acknowledged the last,
    /// and this side would wait up to 40 ms for something to send along with that. Measured at 500 msg/s, from
    /// publisher to Kafka consumer: p99 24 ms without this, 2 ms with it. The kernel forgets it, so it is said again.
    fn acknowledge_at_once(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        sockopt::set_tcp_quickack(&self.stream, true)?;
        Ok(())
    }

    /// Writes what the socket takes; how many bytes that was.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
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
    pub fn finish_writing(&self) {
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
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, connection.is_some_and(|(_, read, _)| read));
    events.set(PollFlags::OUT, connection.is_some_and(|(_, _, write)| write));
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
