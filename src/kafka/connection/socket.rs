//! The two threads of a connection and what they share.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, select_biased};

use super::{ConnectionError, ConnectionEvent, ConnectionOptions};
use crate::clock;
use crate::kafka::codec::{self, ApiVersionsAnswer, CodecError, Versions};
use crate::thread::{self, Ending};

/// Correlation ids below this are the handshake's.
pub const HANDSHAKE_CORRELATION_IDS_END: i32 = 2;

/// A broker's list of APIs is a few kB; a peer that announces more is no broker.
const HANDSHAKE_RESPONSE_BYTES_MAX: u32 = 1 << 20;

/// What the reader asks for at once: several produce responses fit, and a large fetch bypasses the buffer.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// What both threads and the owner share: the socket to shut down, and whether the end was told.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    socket: Option<TcpStream>,
}

impl Shared {
    /// Ends both threads' reads and writes, also those that have not begun. True the first time.
    pub fn close(&self) -> bool {
        // A panic while the lock is held cannot leave these two fields in a state that matters.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = state.socket.take() {
            // It fails only when the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
        !std::mem::replace(&mut state.closed, true)
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// Makes the socket known to whoever closes. False if the connection was closed meanwhile.
    fn adopt(&self, socket: TcpStream) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.closed {
            state.socket = Some(socket);
        }
        !state.closed
    }
}

/// How a thread of the connection stops before its time.
pub enum Stop {
    /// The owner closed the connection or is gone.
    ByOwner,
    Failed(ConnectionError),
}

impl From<ConnectionError> for Stop {
    fn from(error: ConnectionError) -> Self {
        Stop::Failed(error)
    }
}

/// Sends events to the owner, unless the owner closes the connection: then nobody waits for room.
#[derive(Clone)]
pub struct Events {
    pub id: u64,
    pub events: Sender<ConnectionEvent>,
    pub closing: Receiver<()>,
    pub shared: Arc<Shared>,
}

impl Events {
    fn send(&self, event: ConnectionEvent) -> Result<(), Stop> {
        select_biased! {
            recv(self.closing) -> _ => Err(Stop::ByOwner),
            send(self.events, event) -> sent => sent.map_err(|_| Stop::ByOwner),
        }
    }

    /// The last thing a thread does. A panic is a defect, and a lost connection like any other to the owner.
    pub fn end_by(&self, ending: Ending) {
        if let Ending::Panicked(what) | Ending::Failed(what) = ending {
            log::error!("a thread of a Kafka connection failed: {what}");
            self.end(Stop::Failed(ConnectionError::Defect { what }));
        }
    }

    /// Ends both threads, and tells the owner why if nobody has ended them before.
    fn end(&self, stop: Stop) {
        if self.shared.close()
            && let Stop::Failed(error) = stop
        {
            // If the owner closes it meanwhile, nobody wants to know.
            let _ = self.send(ConnectionEvent::Closed { connection: self.id, error });
        }
    }
}

pub struct Writer {
    pub host: String,
    pub port: u16,
    pub options: ConnectionOptions,
    pub frames: Receiver<Bytes>,
    pub events: Events,
}

impl Writer {
    /// The writer thread.
    pub fn run(self) -> Result<(), String> {
        let stop = self.connect_and_write().err().unwrap_or(Stop::ByOwner);
        self.events.end(stop);
        Ok(())
    }

    /// Ok when the owner has dropped the sending side.
    fn connect_and_write(&self) -> Result<(), Stop> {
        let events = &self.events;
        let (mut socket, peer) = self.connect()?;
        let handshake_failed = |source| Stop::Failed(ConnectionError::Handshake { peer, source });
        if !events.shared.adopt(socket.try_clone().map_err(handshake_failed)?) {
            return Err(Stop::ByOwner);
        }
        let versions = handshake(&mut socket, peer, &self.options)?;
        // From here on a quiet connection is a healthy one: how long to wait is the owner's to judge.
        let read_side = (|| {
            socket.set_read_timeout(None)?;
            socket.set_write_timeout(None)?;
            socket.try_clone()
        })();
        let reader = Reader {
            socket: read_side.map_err(handshake_failed)?,
            peer,
            response_max_bytes: self.options.response_max_bytes,
            events: events.clone(),
        };
        // Before the reader starts, so that the owner is ready when the first response comes.
        events.send(ConnectionEvent::Ready { connection: events.id, versions: Arc::new(versions), peer })?;
        let at_end = events.clone();
        thread::spawn("kafka-read", move || reader.run(), move |ending| at_end.end_by(ending))
            .map_err(handshake_failed)?;
        for frame in &self.frames {
            socket.write_all(&frame).map_err(|source| ConnectionError::Lost { peer, source })?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<(TcpStream, SocketAddr), Stop> {
        let addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|source| ConnectionError::Resolve { host: self.host.clone(), source })?;
        let mut last_error = io::Error::new(ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            if self.events.shared.is_closed() {
                return Err(Stop::ByOwner);
            }
            let connected = TcpStream::connect_timeout(&address, self.options.connect_timeout);
            match connected.and_then(|socket| socket.set_nodelay(true).map(|()| socket)) {
                Ok(socket) => return Ok((socket, address)),
                Err(error) => last_error = error,
            }
        }
        let error = ConnectionError::Connect { host: self.host.clone(), port: self.port, source: last_error };
        Err(Stop::Failed(error))
    }
}

/// What comes between connecting and the first request: version negotiation; TLS and SASL are to be put before and
/// behind it. All of it within one connect timeout, also against a peer that sends a byte now and then.
fn handshake(
    socket: &mut TcpStream,
    peer: SocketAddr,
    options: &ConnectionOptions,
) -> Result<Versions, ConnectionError> {
    let deadline = clock::now() + options.connect_timeout;
    let versions_failed = |source| ConnectionError::Versions { peer, source };
    for (id, version) in [(0, codec::API_VERSIONS_NEWEST), (1, codec::API_VERSIONS_OLDEST)] {
        let frame = codec::api_versions_frame(version, id, &options.client_id).map_err(versions_failed)?;
        let body = exchange(socket, &frame, peer, deadline)?;
        match codec::decode_api_versions(version, id, body).map_err(versions_failed)? {
            ApiVersionsAnswer::Versions(versions) => return Ok(versions),
            ApiVersionsAnswer::AskOldest => {}
        }
    }
    // Only reached if the answer to the oldest version asks for the oldest version, which the codec rules out.
    Err(versions_failed(CodecError::Unexpected { correlation_id: None }))
}

/// Writes a request and reads its response, until the deadline.
fn exchange(
    socket: &mut TcpStream,
    frame: &[u8],
    peer: SocketAddr,
    deadline: Instant,
) -> Result<Bytes, ConnectionError> {
    let failed = |source| ConnectionError::Handshake { peer, source };
    socket.set_write_timeout(Some(time_left(deadline).map_err(failed)?)).map_err(failed)?;
    socket.write_all(frame).map_err(failed)?;
    read_response(&mut WithDeadline { socket, deadline }, HANDSHAKE_RESPONSE_BYTES_MAX).map_err(|error| {
        match error {
            ReadError::Io(source) => failed(source),
            ReadError::TooLarge { bytes, limit_bytes } => {
                ConnectionError::ResponseTooLarge { peer, bytes, limit_bytes }
            }
        }
    })
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    // A zero timeout would mean none.
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")) } else { Ok(left) }
}

/// Reads from a socket until a deadline, however little each read brings.
struct WithDeadline<'a> {
    socket: &'a mut TcpStream,
    deadline: Instant,
}

impl Read for WithDeadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(time_left(self.deadline)?))?;
        self.socket.read(buffer).map_err(|error| match error.kind() {
            // What a read timeout is called differs by platform.
            ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "no answer in time"),
            _ => error,
        })
    }
}

struct Reader {
    socket: TcpStream,
    peer: SocketAddr,
    response_max_bytes: u32,
    events: Events,
}

impl Reader {
    /// The reader thread.
    fn run(self) -> Result<(), String> {
        let stop = self.read_all();
        self.events.end(stop);
        Ok(())
    }

    fn read_all(&self) -> Stop {
        let peer = self.peer;
        let mut socket = BufReader::with_capacity(READ_BUFFER_BYTES, &self.socket);
        loop {
            let body = match read_response(&mut socket, self.response_max_bytes) {
                Ok(body) => body,
                Err(ReadError::Io(source)) => return ConnectionError::Lost { peer, source }.into(),
                Err(ReadError::TooLarge { bytes, limit_bytes }) => {
                    return ConnectionError::ResponseTooLarge { peer, bytes, limit_bytes }.into();
                }
            };
            if let Err(stop) =
                self.events.send(ConnectionEvent::Response { connection: self.events.id, body })
            {
                return stop;
            }
        }
    }
}

#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    TooLarge { bytes: i32, limit_bytes: u32 },
}

/// Reads one response without its length.
fn read_response(socket: &mut impl Read, limit_bytes: u32) -> Result<Bytes, ReadError> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).map_err(ReadError::Io)?;
    let announced = i32::from_be_bytes(length);
    let bytes = match u32::try_from(announced) {
        Ok(bytes) if bytes <= limit_bytes => bytes,
        _ => return Err(ReadError::TooLarge { bytes: announced, limit_bytes }),
    };
    // Memory grows with what arrives: a large length alone reserves no more than one buffer.
    let mut body = Vec::with_capacity((bytes as usize).min(READ_BUFFER_BYTES));
    socket.take(u64::from(bytes)).read_to_end(&mut body).map_err(ReadError::Io)?;
    if body.len() < bytes as usize {
        return Err(ReadError::Io(io::Error::new(
            ErrorKind::UnexpectedEof,
            "closed in the middle of a response",
        )));
    }
    Ok(Bytes::from(body))
}
