//! The two threads of a connection and what they share.

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, select_biased};

use super::authentication::{self, CLOCK_AHEAD, Line};
use super::stream::{ReadHalf, Stream};
use super::{ConnectionError, ConnectionEvent, ConnectionOptions, handshake};
use crate::auth::{Token, TokenSource};
use crate::clock;
use crate::kafka::codec;
use crate::kafka::sasl::{Credentials, SaslError};
use crate::thread::{self, Ending};

/// What the reader asks for at once: several produce responses fit, and a large fetch bypasses the buffer.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// What both threads and the owner share: the socket to shut down, whether the end was told, and who is to tell it.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    /// Requests of the owner that were written and have no answer.
    in_flight: AtomicIsize,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    socket: Option<TcpStream>,
    /// The writer authenticates again: if it is refused, that is the reason of the end, although the reader sees the end first.
    authenticating: bool,
    /// How the reader ended meanwhile.
    end_of_reader: Option<ConnectionError>,
}

impl Shared {
    /// Ends both threads' reads and writes, also those that have not begun. True the first time.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        state.shut_down();
        !std::mem::replace(&mut state.closed, true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave these fields in a state that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// From here on the writer tells why the connection ends.
    pub fn begins_authentication(&self) {
        self.lock().authenticating = true;
    }

    /// The end of that; gives how the reader ended meanwhile, if it did.
    pub fn ends_authentication(&self) -> Option<ConnectionError> {
        let mut state = self.lock();
        state.authenticating = false;
        state.end_of_reader.take()
    }

    /// Leaves telling of the reader's end to the writer if it authenticates; else gives the error back.
    pub(super) fn leave_to_writer(&self, error: ConnectionError) -> Option<ConnectionError> {
        let mut state = self.lock();
        if !state.authenticating || state.closed {
            return Some(error);
        }
        state.shut_down();
        state.end_of_reader = Some(error);
        None
    }

    /// A request of the owner is written.
    pub fn asks(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer to one has come.
    pub fn is_answered(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a request of the owner is without an answer.
    pub fn is_asked(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Makes the socket known to whoever closes. False if the connection was closed meanwhile.
    fn adopt(&self, socket: TcpStream) -> bool {
        let mut state = self.lock();
        if !state.closed {
            state.socket = Some(socket);
        }
        !state.closed
    }
}

impl State {
    fn shut_down(&mut self) {
        if let Some(socket) = self.socket.take() {
            // It fails only when the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
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
        let token = self.token()?;
        let (socket, peer) = self.connect()?;
        let handshake_failed = |source| Stop::Failed(ConnectionError::Handshake { peer, source });
        if !events.shared.adopt(socket.try_clone().map_err(handshake_failed)?) {
            return Err(Stop::ByOwner);
        }
        let options = &self.options;
        let deadline = clock::now() + options.connect_timeout;
        let tls = options.security.tls.as_ref();
        let mut stream = Stream::open(socket, tls, &self.host, peer, deadline)?;
        let (versions, life) = handshake::shake(&mut stream, peer, options, token, deadline)?;
        let versions = Arc::new(versions);
        // From here on a quiet connection is a healthy one: how long to wait is the owner's to judge.
        let (write_half, read_half, wake) = stream.split().map_err(handshake_failed)?;
        let (answers, answers_inbox) = bounded(1);
        let reader = Reader {
            stream: read_half,
            peer,
            response_max_bytes: options.response_max_bytes,
            events: events.clone(),
            answers,
            unlimited: self.tokens().cloned().zip(life.unlimited_token()),
        };
        // Before the reader starts, so that the owner is ready when the first response comes.
        let ready = ConnectionEvent::Ready { connection: events.id, versions: Arc::clone(&versions), peer };
        events.send(ready)?;
        let at_end = events.clone();
        thread::spawn("kafka-read", move || reader.run(), move |ending| at_end.end_by(ending))
            .map_err(handshake_failed)?;
        let mut line = Line {
            stream: write_half,
            wake,
            answers: answers_inbox,
            peer,
            options,
            versions,
            life,
            shared: Arc::clone(&events.shared),
            answer_timeout: authentication::ANSWER_TIMEOUT,
            clock_told: false,
        };
        line.write(&self.frames)?;
        Ok(())
    }

    /// The token to authenticate with, if the mechanism has one. Asked for before anything is connected: without one there
    /// is nothing to say to a broker.
    fn token(&self) -> Result<Option<Token>, Stop> {
        let Some(tokens) = self.tokens() else { return Ok(None) };
        let token = tokens.wait().map_err(|why| {
            let source = SaslError::NoToken(why);
            ConnectionError::NoToken { host: self.host.clone(), port: self.port, source }
        })?;
        if self.events.shared.is_closed() { Err(Stop::ByOwner) } else { Ok(Some(token)) }
    }

    fn tokens(&self) -> Option<&TokenSource> {
        match &self.options.security.sasl {
            Some(Credentials::OAuthBearer { tokens, .. }) => Some(tokens),
            _ => None,
        }
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

struct Reader {
    stream: ReadHalf,
    peer: SocketAddr,
    response_max_bytes: u32,
    events: Events,
    /// Where the answers to the writer's own requests go.
    answers: Sender<Bytes>,
    /// The token, if it was taken for a session of which the broker told no end. That may be one of no length.
    unlimited: Option<(TokenSource, u64)>,
}

impl Reader {
    /// The reader thread.
    fn run(self) -> Result<(), String> {
        let events = self.events.clone();
        // Until the end is told the writer must not see that there are no more answers, or it would tell only that.
        let _answers = self.answers.clone();
        let stop = match self.read_all() {
            Stop::Failed(error) => events.shared.leave_to_writer(error).map(Stop::Failed),
            Stop::ByOwner => Some(Stop::ByOwner),
        };
        if let Some(stop) = stop {
            events.end(stop);
        }
        Ok(())
    }

    fn read_all(self) -> Stop {
        let peer = self.peer;
        let mut socket = BufReader::with_capacity(READ_BUFFER_BYTES, self.stream);
        let mut answered = false;
        loop {
            let body = match read_response(&mut socket, self.response_max_bytes) {
                Ok(body) => body,
                Err(ReadError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof && !answered => {
                    return closed_unanswered(peer, self.unlimited.as_ref()).into();
                }
                Err(ReadError::Io(source)) => return ConnectionError::Lost { peer, source }.into(),
                Err(ReadError::TooLarge { bytes, limit_bytes }) => {
                    return ConnectionError::ResponseTooLarge { peer, bytes, limit_bytes }.into();
                }
            };
            answered = true;
            // The writer's own requests have negative ids, the owner's never have.
            if codec::correlation_id(&body).is_some_and(|id| id < 0) {
                if self.answers.try_send(body).is_err() {
                    let what = "an answer to no request of ours";
                    let source = io::Error::new(ErrorKind::InvalidData, what);
                    return ConnectionError::Lost { peer, source }.into();
                }
                continue;
            }
            self.events.shared.is_answered();
            if let Err(stop) =
                self.events.send(ConnectionEvent::Response { connection: self.events.id, body })
            {
                return stop;
            }
        }
    }
}

/// The connection was closed before anything was answered on it. A broker that takes a token as over by its clock within the skew
/// that it allows tells no end of the session, and closes it at the first request.
fn closed_unanswered(peer: SocketAddr, unlimited: Option<&(TokenSource, u64)>) -> ConnectionError {
    let what = match unlimited {
        Some((tokens, serial)) => {
            tokens.replace(*serial);
            format!(
                "closed before anything was answered (as a broker does by whose clock the token is over: \
                 {CLOCK_AHEAD} Or one where nothing was asked for long)"
            )
        }
        None => "closed before anything was answered (as a listener does that asks for SASL or for other rights, or \
                 one where nothing was asked for long)"
            .to_owned(),
    };
    ConnectionError::Lost { peer, source: io::Error::new(ErrorKind::UnexpectedEof, what) }
}

#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    TooLarge { bytes: i32, limit_bytes: u32 },
}

/// Reads one response without its length.
pub fn read_response(socket: &mut impl Read, limit_bytes: u32) -> Result<Bytes, ReadError> {
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
