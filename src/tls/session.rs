//! One connection's TLS state, without a socket.

use std::fmt;
use std::io::{self, Read, Write};

use rustls::ClientConnection;

use super::explain::{Peer, explain};
use super::{TlsError, TlsOptions, files};

/// The client side of one TLS connection (RFC 8446, RFC 5246). Its owner moves the bytes:
/// what comes from the socket goes into [`read_records`](Self::read_records), then [`process`](Self::process), then
/// out of [`read_plain`](Self::read_plain); what goes out goes into [`write_plain`](Self::write_plain) and comes out of
/// [`write_records`](Self::write_records) as long as [`wants_write`](Self::wants_write) says so.
pub struct Session {
    connection: ClientConnection,
    peer: Peer,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("host", &self.peer.host).finish_non_exhaustive()
    }
}

impl Session {
    /// Reads the files and begins a session with this host, whose name its certificate must be for.
    ///
    /// # Errors
    /// The files cannot be used, or the host is no name.
    pub fn new(options: &TlsOptions, host: &str) -> Result<Session, TlsError> {
        let config = files::client_config(options)?;
        let name = rustls_pki_types::ServerName::try_from(host.to_owned())
            .map_err(|_| TlsError::HostName { host: host.to_owned() })?;
        let peer = Peer { host: host.to_owned(), options: options.clone() };
        let mut connection = ClientConnection::new(config, name).map_err(|error| explain(&peer, &error))?;
        // What is written before the handshake is over, and what the owner does not take at once, is the owner's to
        // bound: it writes one request at a time, and takes all records after each.
        connection.set_buffer_limit(None);
        Ok(Session { connection, peer })
    }

    /// Whether the handshake still goes on.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether there are records for the socket.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Takes bytes from the socket; one read of it. 0 is its end.
    ///
    /// # Errors
    /// The socket's; and of a full buffer, which does not happen to who takes all plain bytes after each read.
    pub fn read_records(&mut self, socket: &mut dyn Read) -> io::Result<usize> {
        self.connection.read_tls(socket)
    }

    /// Decrypts what was read. What it has to answer is then in [`wants_write`](Self::wants_write), also after an error:
    /// an alert that tells the peer why.
    ///
    /// # Errors
    /// The peer, its certificate or ours is refused. The session is over.
    pub fn process(&mut self) -> Result<(), TlsError> {
        self.connection.process_new_packets().map(drop).map_err(|error| explain(&self.peer, &error))
    }

    /// Gives records to the socket; one write of it.
    ///
    /// # Errors
    /// The socket's.
    pub fn write_records(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Takes decrypted bytes. 0 is the end that the peer has told (`close_notify`).
    ///
    /// # Errors
    /// `WouldBlock` when there are none now, `UnexpectedEof` when the socket ended without being told.
    pub fn read_plain(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.connection.reader().read(buffer)
    }

    /// Gives bytes to be encrypted; all of them are taken.
    ///
    /// # Errors
    /// None that is known.
    pub fn write_plain(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(bytes)
    }

    /// Tells the peer that nothing more follows.
    pub fn close_notify(&mut self) {
        self.connection.send_close_notify();
    }

    /// The message for a socket that ended while the handshake went on: a port without TLS mostly just closes.
    pub fn closed_early(&self) -> TlsError {
        let what = "it closed the connection during the handshake: it may not speak TLS on this port, or refuse ours";
        TlsError::Failed { host: self.peer.host.clone(), what: what.to_owned() }
    }

    /// The message for a peer that lets the handshake wait: a port without TLS may do so for ever.
    pub fn not_answered(&self) -> TlsError {
        let what = "it did not answer the handshake in time: it may not speak TLS on this port";
        TlsError::Failed { host: self.peer.host.clone(), what: what.to_owned() }
    }
}
