//! A repeated authentication on a line whose reader is the test.

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use bytes::{BufMut, BytesMut};
use crossbeam_channel::{Sender, bounded};

use super::*;
use crate::kafka::codec::{ApiVersionsAnswer, decode_api_versions};
use crate::kafka::connection::Security;
use crate::secret::Secret;

/// Short, so that many of them pass while an answer is held back.
const LIMIT: Duration = Duration::from_millis(20);

fn options() -> ConnectionOptions {
    let sasl = Some(Credentials::Plain { user: "u".to_owned(), password: Secret::new("p") });
    ConnectionOptions {
        client_id: "test".to_owned(),
        connect_timeout: Duration::from_secs(20),
        response_max_bytes: 1000,
        security: Security { tls: None, sasl },
    }
}

/// SaslHandshake 1 and SaslAuthenticate 1.
fn versions() -> Versions {
    let mut body = BytesMut::new();
    body.put_i32(7);
    body.put_i16(0);
    body.put_i32(4);
    for (key, newest) in [(0, 3), (3, 4), (17, 1), (36, 1)] {
        body.put_i16(key);
        body.put_i16(newest);
        body.put_i16(newest);
    }
    match decode_api_versions(0, 7, body.freeze()).unwrap() {
        ApiVersionsAnswer::Versions(versions) => versions,
        ApiVersionsAnswer::AskOldest => panic!("it is the oldest"),
    }
}

struct Bench {
    peer: TcpStream,
    answers: Sender<Bytes>,
    shared: Arc<Shared>,
}

/// A line whose session is over soon, and the two ends that the test holds.
fn line(options: &ConnectionOptions) -> (Line<'_>, Bench) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, address) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (answers, inbox) = bounded(1);
    let shared = Arc::new(Shared::default());
    let since = clock::now() - Duration::from_secs(9);
    let line = Line {
        stream: WriteHalf::Plain(socket),
        wake: never(),
        answers: inbox,
        peer: address,
        options,
        versions: Arc::new(versions()),
        life: Life::new(10_000, since, None, None),
        shared: Arc::clone(&shared),
        answer_timeout: LIMIT,
        clock_told: false,
    };
    (line, Bench { peer, answers, shared })
}

impl Bench {
    /// Key and correlation id of the next request.
    fn asked(&mut self) -> (i16, i32) {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut body).unwrap();
        (i16::from_be_bytes([body[0], body[1]]), i32::from_be_bytes(body[4..8].try_into().unwrap()))
    }

    fn answers(&self, id: i32, error: i16, rest: impl FnOnce(&mut BytesMut)) {
        let mut body = BytesMut::new();
        body.put_i32(id);
        body.put_i16(error);
        rest(&mut body);
        self.answers.send(body.freeze()).unwrap();
    }

    /// The rest of it, when SaslHandshake has this number; `before` happens before the last answer.
    fn lets_in(&mut self, handshake: i32, before: impl FnOnce(&Shared)) {
        self.answers(handshake, 0, |body| body.put_i32(0));
        let (key, id) = self.asked();
        assert_eq!(key, 36, "SaslAuthenticate");
        before(&self.shared);
        self.answers(id, 0, |body| {
            body.put_i16(-1);
            body.put_i32(0);
            body.put_i64(60_000);
        });
    }
}

/// Nothing for ten limits.
fn hold_back() {
    assert!(never::<()>().recv_timeout(LIMIT * 10).is_err());
}

#[test]
fn an_answer_behind_a_slow_request_is_waited_for_as_long_as_that() {
    let options = options();
    let (mut line, mut bench) = line(&options);
    bench.shared.asks();
    let (frames, inbox) = bounded(1);
    let broker = std::thread::spawn(move || {
        let (key, id) = bench.asked();
        assert_eq!(key, 17, "SaslHandshake");
        hold_back();
        // What was asked before comes first, then the answers to us.
        bench.shared.is_answered();
        bench.lets_in(id, |_| {});
        frames.send(Bytes::from_static(b"request")).unwrap();
        let mut request = [0; 7];
        bench.peer.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request", "the connection goes on");
    });
    line.write(&inbox).unwrap();
    broker.join().unwrap();
}

#[test]
fn a_broker_that_does_not_answer_although_nothing_else_is_asked_is_given_up() {
    let options = options();
    let (mut line, bench) = line(&options);
    let (_frames, inbox) = bounded(1);
    let error = line.write(&inbox).unwrap_err();
    assert!(
        matches!(&error, ConnectionError::Lost { source, .. } if source.kind() == ErrorKind::TimedOut),
        "{error}"
    );
    drop(bench);
}

#[test]
fn the_end_that_the_reader_sees_is_the_reason_only_if_the_broker_said_nothing() {
    for (code, words) in [(58, "PLAIN authentication is refused by the broker"), (34, "ILLEGAL_SASL_STATE")] {
        let options = options();
        let (mut line, mut bench) = line(&options);
        let (_frames, inbox) = bounded(1);
        let broker = std::thread::spawn(move || {
            let (_, id) = bench.asked();
            let peer = ([127, 0, 0, 1], 9092).into();
            let lost = ConnectionError::Lost { peer, source: ErrorKind::UnexpectedEof.into() };
            assert!(bench.shared.leave_to_writer(lost).is_none(), "the writer tells");
            bench.answers(id, code, |body| body.put_i32(0));
            drop(bench);
        });
        let error = line.write(&inbox).unwrap_err();
        assert!(crate::error::chain(&error).contains(words), "{error:?}");
        broker.join().unwrap();
    }
    let options = options();
    let (mut line, mut bench) = line(&options);
    let (_frames, inbox) = bounded(1);
    let broker = std::thread::spawn(move || {
        let (_, id) = bench.asked();
        bench.lets_in(id, |shared| {
            let peer = ([127, 0, 0, 1], 9092).into();
            let end = ConnectionError::ResponseTooLarge { peer, bytes: 9, limit_bytes: 8 };
            assert!(shared.leave_to_writer(end).is_none());
        });
    });
    let error = line.write(&inbox).unwrap_err();
    assert!(matches!(error, ConnectionError::ResponseTooLarge { .. }), "{error:?}");
    broker.join().unwrap();
}
