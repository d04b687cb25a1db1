//! A scripted token endpoint: HTTP/1.1 over TLS or not, one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::wait;

/// What it answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A fresh token, `token-1` and so on, for so many seconds.
    Token(u64),
    /// Status and body.
    Say(u16, String),
    /// Reads, and says nothing for as long as the test runs.
    Nothing,
    /// Ends the connection at once.
    Close,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Asked {
    pub authorization: Option<String>,
    pub body: String,
}

struct State {
    answer: Answer,
    asked: Vec<Asked>,
    given: usize,
    /// Where tokens that are given are also accepted.
    accepted: Arc<Mutex<Vec<String>>>,
    over: bool,
}

pub struct TokenEndpoint {
    pub port: u16,
    scheme: &'static str,
    state: Arc<(Mutex<State>, Condvar)>,
    accepted: Arc<Mutex<Vec<String>>>,
}

impl TokenEndpoint {
    pub fn start(answer: Answer, tls: Option<Arc<ServerConfig>>) -> TokenEndpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().unwrap().port();
        let accepted: Arc<Mutex<Vec<String>>> = Arc::default();
        let given =
            State { answer, asked: Vec::new(), given: 0, accepted: Arc::clone(&accepted), over: false };
        let state = Arc::new((Mutex::new(given), Condvar::new()));
        let shared = Arc::clone(&state);
        let scheme = if tls.is_some() { "https" } else { "http" };
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || {
                    let _ = match tls {
                        None => serve(socket, &state),
                        Some(config) => {
                            let connection = ServerConnection::new(config).unwrap();
                            serve(StreamOwned::new(connection, socket), &state)
                        }
                    };
                });
            }
        });
        TokenEndpoint { port, scheme, state, accepted }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/realms/gateway/token", self.scheme, self.port)
    }

    /// The tokens it has given, for a broker that takes them.
    pub fn accepted(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.accepted)
    }

    pub fn answer(&self, answer: Answer) {
        self.state.0.lock().unwrap().answer = answer;
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.0.lock().unwrap().asked.clone()
    }

    pub fn wait_for_asked(&self, count: usize) -> Vec<Asked> {
        wait::until(&format!("{count} requests for a token"), || {
            let asked = self.asked();
            if asked.len() >= count { Ok(asked) } else { Err(asked.len()) }
        })
    }
}

impl Drop for TokenEndpoint {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.0.lock() {
            state.over = true;
        }
        self.state.1.notify_all();
    }
}

fn serve(stream: impl Read + Write, state: &(Mutex<State>, Condvar)) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut length, mut authorization) = (0, None);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().expect("a length"),
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let mut locked = state.0.lock().unwrap();
    locked.asked.push(Asked { authorization, body: String::from_utf8(body).expect("a form") });
    let (status, body) = match locked.answer.clone() {
        Answer::Token(seconds) => {
            locked.given += 1;
            let token = format!("token-{}", locked.given);
            locked.accepted.lock().unwrap().push(token.clone());
            let body = format!(
                "{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":{seconds}}}"
            );
            (200, body)
        }
        Answer::Say(status, body) => (status, body),
        Answer::Close => return Ok(()),
        Answer::Nothing => {
            let hours = Duration::from_secs(3600);
            drop(state.1.wait_timeout_while(locked, hours, |state| !state.over));
            return Ok(());
        }
    };
    drop(locked);
    let head = format!(
        "HTTP/1.1 {status} Word\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()
}
