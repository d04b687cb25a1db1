//! The HTTP listener: one thread, poll(2), no connection that can hold up another.
//!
//! ```text
//!  clients ==== listener, up to CONNECTIONS_MAX connections ---- page(path) -> counters
//! ```
//!
//! Why not a server crate is in docs/decisions/0013. It knows nothing of what the pages say. Invariants: memory and descriptors are
//! bounded; every step of a connection has an end; with nothing to do the thread does not wake up.

mod connection;
mod request;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::connection::{Connection, Wants};
use super::pages::Page;
use crate::clock;

/// Connections at once. With one more, one that has its answer goes, else the one that has waited longest for its
/// request: a scraper's is there in a moment.
pub const CONNECTIONS_MAX: usize = 32;
/// When the system has no descriptor left for a connection, the next is accepted after this time.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// What is at a path; None: nothing.
pub type Pages = Box<dyn Fn(&str) -> Option<Page> + Send>;

/// A listener that has its address and is not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    /// The operating system's: the address is in use, or is none of this machine.
    pub fn bind(address: SocketAddr) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Server { listener, address })
    }

    /// Where it listens: with port 0, which port that is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for as long as the process lives.
    ///
    /// # Errors
    /// poll(2) failed: a fault of the program.
    pub fn serve(self, pages: &Pages) -> Result<(), String> {
        let mut serving = Serving { listener: self.listener, connections: Vec::new(), accept_at: None };
        loop {
            serving.turn(pages).map_err(|error| format!("cannot wait for HTTP: {error}"))?;
        }
    }
}

struct Serving {
    listener: TcpListener,
    /// The oldest first.
    connections: Vec<Connection<TcpStream>>,
    /// Nothing is accepted before.
    accept_at: Option<Instant>,
}

impl Serving {
    fn turn(&mut self, pages: &Pages) -> io::Result<()> {
        let (accepts, ready) = self.wait()?;
        let now = clock::now();
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
        }
        let mut ready = ready.into_iter();
        self.connections.retain_mut(|connection| {
            let advances = ready.next().unwrap_or_default();
            let over = advances && connection.advance(now, pages) == Wants::End;
            !over && now < connection.deadline
        });
        if accepts {
            self.accept(now, pages);
        }
        Ok(())
    }

    /// Waits for something to happen: whether a client is there, and which connections can go on.
    fn wait(&self) -> io::Result<(bool, Vec<bool>)> {
        let until = self.connections.iter().map(|connection| connection.deadline).chain(self.accept_at).min();
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(clock::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.connections.len() + 1);
        for connection in &self.connections {
            let events = if connection.wants() == Wants::Write { PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(&connection.stream, events));
        }
        if self.accept_at.is_none() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let accepts = self.accept_at.is_none() && fds.pop().is_some_and(|fd| !fd.revents().is_empty());
        Ok((accepts, fds.iter().map(|fd| !fd.revents().is_empty()).collect()))
    }

    fn accept(&mut self, now: Instant, pages: &Pages) {
        // No more than there is room for in a turn: those that are there already come to their turn.
        for _ in 0..CONNECTIONS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // That client has gone again.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) =>
                {
                    continue;
                }
                Err(error) => {
                    log::debug!("no HTTP connection can be accepted: {error}");
                    self.accept_at = Some(now + ACCEPT_AGAIN);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            // Most requests are there already.
            let mut connection = Connection::new(stream, now);
            if connection.advance(now, pages) == Wants::End {
                continue;
            }
            if self.connections.len() >= CONNECTIONS_MAX {
                // Of those that are the nearest to nothing the oldest: the first of them.
                let goes = self.connections.iter().enumerate().min_by_key(|(_, one)| one.worth());
                if let Some((goes, _)) = goes {
                    self.connections.remove(goes);
                }
            }
            self.connections.push(connection);
        }
    }
}
