//! What stands in front of a scripted broker on a secured listener: TLS, SASL, session lifetimes. It works one request of a
//! connection after the other, as a real broker does, and passes on what is none of its business.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiVersionsResponse, RequestHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

const API_VERSIONS: i16 = 18;
const SASL_HANDSHAKE: i16 = 17;
const SASL_AUTHENTICATE: i16 = 36;
const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;
const SASL_AUTHENTICATION_FAILED: i16 = 58;
/// Kafka's MIN_REAUTH_INTERVAL_ONE_SECOND_NANOS.
const REAUTH_INTERVAL: Duration = Duration::from_secs(1);

/// Whom it lets in.
#[derive(Clone)]
pub enum Door {
    /// Everybody: TLS alone.
    Open,
    Plain {
        user: &'static str,
        password: &'static str,
    },
    /// SCRAM-SHA-256.
    Scram {
        user: &'static str,
        password: &'static str,
    },
    /// These tokens; the list may change.
    Tokens(Arc<Mutex<Vec<String>>>),
}

/// How the listener is guarded.
#[derive(Clone)]
pub struct Rules {
    pub tls: Option<Arc<ServerConfig>>,
    pub door: Door,
    /// Of what is authenticated; zero is for ever.
    pub lifetime: Duration,
    /// As before Kafka 1.0: SASL messages without a header.
    pub bare: bool,
    /// How long a token lives by this broker's clock, since it was first shown; zero is as long as any session. What is over is
    /// still taken, for a session of no length, as a broker does within the skew that it allows.
    pub token_life: Duration,
    /// Ends the connection behind SaslHandshake, as a broker does that stops.
    pub hangs_up: bool,
}

/// What it saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub connections: usize,
    /// Of each that was let in, number of its connection and what it showed.
    pub let_in: Vec<(usize, String)>,
    pub refused: usize,
    /// Connections ended because their session's lifetime was over.
    pub expired: usize,
    /// What a client must never do.
    pub violations: Vec<String>,
    pub extensions: Vec<String>,
}

pub struct Guard {
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    tokens: Arc<Mutex<Shown>>,
    token_life: Duration,
}

/// When tokens were first shown.
type Shown = HashMap<String, Instant>;

impl Guard {
    /// Listens on a free port of 127.0.0.1 and passes on to `behind`, a port of it.
    pub fn start(behind: u16, rules: Rules) -> Guard {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let token_life = rules.token_life;
        let shared = Arc::clone(&seen);
        let tokens: Arc<Mutex<Shown>> = Arc::default();
        let shown = Arc::clone(&tokens);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (rules, seen, tokens) = (rules.clone(), Arc::clone(&shared), Arc::clone(&shown));
                let connection = {
                    let mut seen = seen.lock().unwrap();
                    seen.connections += 1;
                    seen.connections
                };
                thread::spawn(move || {
                    let pass = Pass { connection, rules, seen, tokens, behind, session: Session::default() };
                    pass.serve(socket);
                });
            }
        });
        Guard { port, seen, tokens, token_life }
    }

    /// The life of this token is over.
    pub fn spend(&self, token: &str) {
        let long_ago = Instant::now() - self.token_life;
        self.tokens.lock().unwrap().insert(token.to_owned(), long_ago);
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- what the guard saw: {:#?}", self.lock());
        } else {
            assert!(self.lock().violations.is_empty(), "what a client must never do: {:#?}", self.lock());
        }
    }
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

#[derive(Default)]
struct Session {
    mechanism: Option<String>,
    /// Between SaslHandshake and the end of SaslAuthenticate.
    authenticating: bool,
    let_in_at: Option<Instant>,
    /// None: it has no end.
    ends_at: Option<Instant>,
    /// When the last repeated authentication began.
    again_at: Option<Instant>,
    scram: Option<Scram>,
    refused: bool,
}

struct Scram {
    first_bare: String,
    server_first: String,
}

struct Pass {
    connection: usize,
    rules: Rules,
    seen: Arc<Mutex<Seen>>,
    tokens: Arc<Mutex<Shown>>,
    behind: u16,
    session: Session,
}

fn read_frame(from: &mut (impl Read + ?Sized)) -> Option<Bytes> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame).ok()?;
    Some(Bytes::from(frame))
}

fn write_frame(to: &mut (impl Write + ?Sized), frame: &[u8]) -> Option<()> {
    let whole = [&(frame.len() as u32).to_be_bytes(), frame].concat();
    to.write_all(&whole).ok()?;
    to.flush().ok()
}

impl Pass {
    fn serve(mut self, socket: TcpStream) {
        let Ok(mut behind) = TcpStream::connect(("127.0.0.1", self.behind)) else { return };
        behind.set_nodelay(true).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut stream: Box<dyn Wire> = match &self.rules.tls {
            None => Box::new(socket),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                Box::new(StreamOwned::new(connection, socket))
            }
        };
        while let Some(frame) = read_frame(&mut *stream) {
            let Some(answer) = self.answer(&frame, &mut behind) else { return };
            // Kafka ends the connection directly behind a refusal.
            if write_frame(&mut *stream, &answer).is_none() || self.session.refused {
                return;
            }
        }
    }

    fn violation(&self, what: &str) {
        self.seen.lock().unwrap().violations.push(format!("connection {}: {what}", self.connection));
    }

    /// None ends the connection.
    fn answer(&mut self, frame: &Bytes, behind: &mut TcpStream) -> Option<Vec<u8>> {
        if self.rules.bare && self.session.authenticating {
            return if self.rules.hangs_up { None } else { self.sasl_message(frame).ok() };
        }
        let (key, version) =
            (i16::from_be_bytes([frame[0], frame[1]]), i16::from_be_bytes([frame[2], frame[3]]));
        let guarded = !matches!(self.rules.door, Door::Open);
        match key {
            SASL_HANDSHAKE if guarded => return Some(self.handshake(frame.clone(), version)),
            SASL_AUTHENTICATE if self.rules.hangs_up => return None,
            SASL_AUTHENTICATE if guarded && !self.rules.bare => {
                return self.authenticate(frame.clone(), version);
            }
            API_VERSIONS => {}
            _ if !guarded => {}
            _ if self.session.authenticating => {
                self.violation(&format!("request {key} in the middle of an authentication"));
                return None;
            }
            _ if self.session.let_in_at.is_none() => {
                self.violation(&format!("request {key} before authentication"));
                return None;
            }
            _ => {
                if self.session.ends_at.is_some_and(|end| Instant::now() > end) {
                    self.seen.lock().unwrap().expired += 1;
                    return None;
                }
            }
        }
        write_frame(behind, frame)?;
        let answer = read_frame(behind)?;
        if key == API_VERSIONS { Some(self.with_sasl(answer, version)) } else { Some(answer.to_vec()) }
    }

    /// Names the SASL requests beside the others.
    fn with_sasl(&self, answer: Bytes, version: i16) -> Vec<u8> {
        let mut body = answer.clone();
        let id = body.get_i32();
        let refused = body.starts_with(&35_i16.to_be_bytes());
        if refused || matches!(self.rules.door, Door::Open) {
            return answer.to_vec();
        }
        let mut answer = ApiVersionsResponse::decode(&mut body, version).expect("the broker's own answer");
        let known =
            |key, max| ApiVersion::default().with_api_key(key).with_min_version(0).with_max_version(max);
        answer.api_keys.push(known(SASL_HANDSHAKE, i16::from(!self.rules.bare)));
        if !self.rules.bare {
            answer.api_keys.push(known(SASL_AUTHENTICATE, 2));
        }
        let mut out = BytesMut::new();
        out.put_i32(id);
        answer.encode(&mut out, version).unwrap();
        out.to_vec()
    }

    fn mechanism(&self) -> &'static str {
        match self.rules.door {
            Door::Open => "",
            Door::Plain { .. } => "PLAIN",
            Door::Scram { .. } => "SCRAM-SHA-256",
            Door::Tokens(_) => "OAUTHBEARER",
        }
    }

    fn handshake(&mut self, mut frame: Bytes, version: i16) -> Vec<u8> {
        let header = RequestHeader::decode(&mut frame, 1).unwrap();
        let asked = SaslHandshakeRequest::decode(&mut frame, version).unwrap().mechanism.to_string();
        let fits = asked == self.mechanism() && !self.is_too_soon();
        let error = match (asked == self.mechanism(), fits) {
            (true, true) => 0,
            (true, false) => ILLEGAL_SASL_STATE,
            _ => UNSUPPORTED_SASL_MECHANISM,
        };
        let offered = vec![StrBytes::from_static_str(self.mechanism())];
        let answer = SaslHandshakeResponse::default().with_error_code(error).with_mechanisms(offered);
        let mut out = BytesMut::new();
        out.put_i32(header.correlation_id);
        answer.encode(&mut out, version).unwrap();
        self.session.authenticating = fits;
        self.session.mechanism = Some(asked);
        self.session.scram = None;
        out.to_vec()
    }

    /// A connection authenticates again once a second at most.
    fn is_too_soon(&mut self) -> bool {
        let is_again = self.session.let_in_at.is_some();
        let too_soon = is_again && self.session.again_at.is_some_and(|at| at.elapsed() < REAUTH_INTERVAL);
        if is_again && !too_soon {
            self.session.again_at = Some(Instant::now());
        }
        too_soon
    }

    fn authenticate(&mut self, mut frame: Bytes, version: i16) -> Option<Vec<u8>> {
        let header = RequestHeader::decode(&mut frame, if version >= 2 { 2 } else { 1 }).unwrap();
        let message = SaslAuthenticateRequest::decode(&mut frame, version).unwrap().auth_bytes;
        let mut answer = SaslAuthenticateResponse::default();
        match self.sasl_message(&message) {
            Ok(bytes) => {
                let left = self.session.ends_at.filter(|_| !self.session.authenticating);
                let lifetime =
                    left.map_or(0, |end| end.saturating_duration_since(Instant::now()).as_millis() as i64);
                answer = answer.with_auth_bytes(Bytes::from(bytes)).with_session_lifetime_ms(lifetime);
            }
            Err(message) => {
                let message = Some(StrBytes::from_string(message));
                answer = answer.with_error_code(SASL_AUTHENTICATION_FAILED).with_error_message(message);
            }
        }
        let mut out = BytesMut::new();
        out.put_i32(header.correlation_id);
        if version >= 2 {
            out.put_u8(0);
        }
        answer.encode(&mut out, version).unwrap();
        Some(out.to_vec())
    }

    fn let_in(&mut self, shown: &str) {
        let now = Instant::now();
        self.session.authenticating = false;
        self.session.let_in_at = Some(now);
        let by_rule = Some(self.rules.lifetime).filter(|length| !length.is_zero()).map(|length| now + length);
        let token_life = Some(self.rules.token_life).filter(|life| !life.is_zero());
        let by_token =
            token_life.map(|life| *self.tokens.lock().unwrap().entry(shown.to_owned()).or_insert(now) + life);
        self.session.ends_at = by_rule.into_iter().chain(by_token).min();
        self.seen.lock().unwrap().let_in.push((self.connection, shown.to_owned()));
    }

    fn refuse(&mut self, why: &str) -> String {
        self.session.authenticating = false;
        self.session.refused = true;
        self.seen.lock().unwrap().refused += 1;
        format!("Authentication failed: {why}")
    }

    /// Our answer, or why not.
    fn sasl_message(&mut self, message: &[u8]) -> Result<Vec<u8>, String> {
        let text = String::from_utf8(message.to_vec()).expect("all mechanisms speak UTF-8");
        match self.rules.door.clone() {
            Door::Open => Err("nobody has to".to_owned()),
            Door::Plain { user, password } => {
                if text == format!("\0{user}\0{password}") {
                    self.let_in(user);
                    Ok(Vec::new())
                } else {
                    Err(self.refuse("Invalid username or password"))
                }
            }
            Door::Tokens(tokens) => {
                if text == "\x01" {
                    return Err(self.refuse("invalid_token"));
                }
                let fields: Vec<&str> = text.split('\x01').collect();
                assert_eq!(fields[0], "n,,", "{text:?}");
                let token = fields[1].strip_prefix("auth=Bearer ").expect("a bearer token");
                let extensions = fields[2..].iter().filter(|field| !field.is_empty());
                self.seen.lock().unwrap().extensions = extensions.map(|field| (*field).to_owned()).collect();
                if tokens.lock().unwrap().iter().any(|known| known == token) {
                    self.let_in(token);
                    Ok(Vec::new())
                } else {
                    Ok(b"{\"status\":\"invalid_token\"}".to_vec())
                }
            }
            Door::Scram { user, password } => self.scram(&text, user, password),
        }
    }

    /// RFC 5802, the server's side.
    fn scram(&mut self, text: &str, user: &str, password: &str) -> Result<Vec<u8>, String> {
        const SALT: &[u8] = b"a salt of the test";
        let Some(scram) = self.session.scram.take() else {
            let first_bare = text.strip_prefix("n,,").expect("no channel binding").to_owned();
            let nonce = first_bare.split_once(",r=").expect("a nonce").1;
            let server_first = format!("r={nonce}servers,s={},i=4096", STANDARD.encode(SALT));
            self.session.scram = Some(Scram { first_bare, server_first: server_first.clone() });
            return Ok(server_first.into_bytes());
        };
        let hmac = |key: &[u8], text: &[u8]| {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        };
        let (final_bare, proof) = text.rsplit_once(",p=").expect("a proof");
        let auth = format!("{},{},{final_bare}", scram.first_bare, scram.server_first);
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), SALT, 4096);
        let stored = Sha256::digest(hmac(&salted, b"Client Key"));
        let signature = hmac(&stored, auth.as_bytes());
        let key: Vec<u8> =
            STANDARD.decode(proof).unwrap().iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        if !scram.first_bare.starts_with(&format!("n={user},")) || Sha256::digest(key) != stored {
            return Err(self.refuse("Invalid credentials"));
        }
        self.let_in(user);
        let server_signature = hmac(&hmac(&salted, b"Server Key"), auth.as_bytes());
        Ok(format!("v={}", STANDARD.encode(server_signature)).into_bytes())
    }
}
