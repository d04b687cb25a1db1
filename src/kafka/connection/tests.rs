//! Against a scripted peer: a listener on a free port, whose side of the connection is bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::{BufMut, BytesMut};

use super::*;
use crate::kafka::protocol::{MetadataRequest, ProduceBatch, ProduceRequest};

/// Far above what any of these takes on a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> ConnectionOptions {
    ConnectionOptions {
        client_id: "test".to_owned(),
        connect_timeout: PATIENCE,
        response_max_bytes: 1000,
        security: Security::default(),
    }
}

struct Peer {
    listener: TcpListener,
    port: u16,
}

impl Peer {
    fn listen() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Peer { listener, port }
    }

    fn open(&self, options: &ConnectionOptions) -> (Connection, Receiver<ConnectionEvent>) {
        let (sender, events) = bounded(8);
        (Connection::open(1, "127.0.0.1", self.port, options, sender).unwrap(), events)
    }

    fn accept(&self) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let started = Instant::now();
        let socket = loop {
            match self.listener.accept() {
                Ok((socket, _)) => break socket,
                Err(_) if started.elapsed() < PATIENCE => std::thread::yield_now(),
                Err(error) => panic!("nobody connected: {error}"),
            }
        };
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Accepts and shakes hands as a broker that has Metadata 4 and Produce 3.
    fn accept_ready(&self, connection: &mut Connection, events: &Receiver<ConnectionEvent>) -> TcpStream {
        let mut socket = self.accept();
        let (key, version, id) = read_request(&mut socket);
        assert_eq!((key, version), (18, 3));
        socket.write_all(&api_versions_3(id)).unwrap();
        become_ready(connection, events);
        socket
    }
}

fn become_ready(connection: &mut Connection, events: &Receiver<ConnectionEvent>) {
    match next(events) {
        ConnectionEvent::Ready { connection: 1, versions, .. } => connection.ready(versions),
        other => panic!("{other:?}"),
    }
}

fn next(events: &Receiver<ConnectionEvent>) -> ConnectionEvent {
    events.recv_timeout(PATIENCE).expect("an event")
}

/// The error of the one `Closed` there is, after which the channel ends: both threads are gone.
fn closed(connection: Connection, events: &Receiver<ConnectionEvent>) -> ConnectionError {
    let ConnectionEvent::Closed { connection: 1, error } = next(events) else { panic!("not closed") };
    drop(connection);
    threads_end(events);
    error
}

/// Each thread holds a sender, so the channel is disconnected only when both have ended.
fn threads_end(events: &Receiver<ConnectionEvent>) {
    match events.recv_timeout(PATIENCE) {
        Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {}
        other => panic!("the threads go on: {other:?}"),
    }
}

/// Key, version and correlation id of the next request.
fn read_request(socket: &mut TcpStream) -> (i16, i16, i32) {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut body = vec![0; i32::from_be_bytes(length) as usize];
    socket.read_exact(&mut body).unwrap();
    let i16_at = |at: usize| i16::from_be_bytes(body[at..at + 2].try_into().unwrap());
    (i16_at(0), i16_at(2), i32::from_be_bytes(body[4..8].try_into().unwrap()))
}

fn with_length(body: &[u8]) -> Vec<u8> {
    [&i32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn api_versions_3(correlation_id: i32) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_i32(correlation_id);
    body.put_i16(0); // error
    body.put_u8(3); // two APIs
    for (key, version) in [(3, 4), (0, 3)] {
        body.put_i16(key);
        body.put_i16(version);
        body.put_i16(version);
        body.put_u8(0);
    }
    body.put_i32(0); // throttle time
    body.put_u8(0);
    with_length(&body)
}

fn metadata_request() -> Request {
    Request::Metadata(MetadataRequest { topics: None, create_missing: false })
}

/// Metadata 4 without brokers and topics.
fn metadata_response(correlation_id: i32) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_i32(correlation_id);
    body.put_i32(0); // throttle time
    body.put_i32(0); // brokers
    body.put_i16(-1); // cluster id
    body.put_i32(-1); // controller
    body.put_i32(0); // topics
    with_length(&body)
}

#[test]
fn requests_are_answered_in_order_and_matched_to_their_ids() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    assert!(matches!(connection.send(&metadata_request()), Err(SendError::NotReady)));
    let mut socket = peer.accept_ready(&mut connection, &events);

    let sent: Vec<i32> = (0..3).map(|_| connection.send(&metadata_request()).unwrap()).collect();
    assert_eq!(connection.in_flight(), 3);
    for id in &sent {
        assert_eq!(read_request(&mut socket), (3, 4, *id));
    }
    // In two pieces that do not meet where the responses do.
    let all: Vec<u8> = sent.iter().flat_map(|id| metadata_response(*id)).collect();
    let (first, rest) = all.split_at(7);
    socket.write_all(first).unwrap();
    socket.write_all(rest).unwrap();
    for id in sent {
        let ConnectionEvent::Response { connection: 1, body } = next(&events) else { panic!("no response") };
        let (answered, response) = connection.complete(body).unwrap();
        assert_eq!(answered, id);
        assert!(matches!(response, Response::Metadata(_)));
    }
    assert_eq!(connection.in_flight(), 0);
}

#[test]
fn a_broker_that_knows_only_the_oldest_api_versions_is_understood() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    let mut socket = peer.accept();
    let (_, _, id) = read_request(&mut socket);
    let refusal = [&id.to_be_bytes()[..], &35i16.to_be_bytes(), &0i32.to_be_bytes()].concat();
    socket.write_all(&with_length(&refusal)).unwrap();
    let (key, version, id) = read_request(&mut socket);
    assert_eq!((key, version), (18, 0));
    let mut body = BytesMut::new();
    body.put_i32(id);
    body.put_i16(0);
    body.put_i32(1);
    for field in [3, 0, 4] {
        body.put_i16(field);
    }
    socket.write_all(&with_length(&body)).unwrap();
    become_ready(&mut connection, &events);
    connection.send(&metadata_request()).unwrap();
    assert_eq!(read_request(&mut socket).0, 3);
}

#[test]
fn sending_never_blocks_and_stops_at_the_in_flight_limit() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    let mut socket = peer.accept_ready(&mut connection, &events);
    for _ in 0..IN_FLIGHT_REQUESTS_MAX {
        connection.send(&metadata_request()).unwrap();
    }
    assert!(matches!(connection.send(&metadata_request()), Err(SendError::Full)));
    let (_, _, id) = read_request(&mut socket);
    socket.write_all(&metadata_response(id)).unwrap();
    let ConnectionEvent::Response { body, .. } = next(&events) else { panic!("no response") };
    connection.complete(body).unwrap();
    connection.send(&metadata_request()).unwrap();
}

#[test]
fn a_response_out_of_turn_or_unasked_is_an_error() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    let mut socket = peer.accept_ready(&mut connection, &events);
    let id = connection.send(&metadata_request()).unwrap();
    for wrong in [id + 1, 99] {
        socket.write_all(&metadata_response(wrong)).unwrap();
    }
    let mut complete = || match next(&events) {
        ConnectionEvent::Response { body, .. } => connection.complete(body).unwrap_err(),
        other => panic!("{other:?}"),
    };
    assert!(matches!(complete(), CodecError::WrongCorrelationId { .. }));
    assert!(matches!(complete(), CodecError::Unexpected { correlation_id: Some(99) }));
}

#[test]
fn a_host_that_refuses_is_reported_once() {
    let port = Peer::listen().port; // and closed again
    let (sender, events) = bounded(8);
    let connection = Connection::open(1, "127.0.0.1", port, &options(), sender).unwrap();
    assert!(matches!(closed(connection, &events), ConnectionError::Connect { .. }));
}

#[test]
fn a_name_that_does_not_resolve_is_reported_once() {
    let (sender, events) = bounded(8);
    let connection = Connection::open(1, "no such host", 9092, &options(), sender).unwrap();
    assert!(matches!(closed(connection, &events), ConnectionError::Resolve { .. }));
}

#[test]
fn a_peer_that_accepts_and_hangs_ends_at_the_handshakes_deadline() {
    let peer = Peer::listen();
    let impatient = ConnectionOptions { connect_timeout: Duration::from_millis(50), ..options() };
    let (connection, events) = peer.open(&impatient);
    let _silent = peer.accept();
    assert!(matches!(closed(connection, &events), ConnectionError::Handshake { .. }));
}

#[test]
fn a_peer_that_drips_bytes_does_not_stretch_the_handshakes_deadline() {
    let peer = Peer::listen();
    let impatient = ConnectionOptions { connect_timeout: Duration::from_millis(100), ..options() };
    let (connection, events) = peer.open(&impatient);
    let mut socket = peer.accept();
    socket.write_all(&500i32.to_be_bytes()).unwrap();
    let started = Instant::now();
    // Each byte comes well within the deadline; all of them would take five times as long.
    while events.is_empty() && started.elapsed() < PATIENCE {
        let _ = socket.write_all(&[0]);
        let _ = socket.set_read_timeout(Some(Duration::from_millis(1)));
        let _ = socket.read(&mut [0; 64]);
    }
    assert!(matches!(closed(connection, &events), ConnectionError::Handshake { .. }));
}

#[test]
fn a_peer_that_speaks_another_protocol_is_no_broker() {
    let peer = Peer::listen();
    let (connection, events) = peer.open(&options());
    let mut socket = peer.accept();
    socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let error = closed(connection, &events);
    assert!(matches!(error, ConnectionError::ResponseTooLarge { bytes: 0x4854_5450, .. }), "{error:?}");
}

#[test]
fn a_length_above_the_limit_or_below_zero_ends_the_connection() {
    for length in [1001, i32::MAX, -1] {
        let peer = Peer::listen();
        let (mut connection, events) = peer.open(&options());
        let mut socket = peer.accept_ready(&mut connection, &events);
        socket.write_all(&length.to_be_bytes()).unwrap();
        let error = closed(connection, &events);
        assert!(
            matches!(error, ConnectionError::ResponseTooLarge { bytes, limit_bytes: 1000, .. } if bytes == length),
            "{error:?}"
        );
    }
}

#[test]
fn a_connection_cut_in_the_middle_of_a_response_is_lost() {
    for kept in [0, 3, 4, 9] {
        let peer = Peer::listen();
        let (mut connection, events) = peer.open(&options());
        let mut socket = peer.accept_ready(&mut connection, &events);
        let id = connection.send(&metadata_request()).unwrap();
        read_request(&mut socket);
        socket.write_all(&metadata_response(id)[..kept]).unwrap();
        drop(socket);
        let error = closed(connection, &events);
        assert!(
            matches!(&error, ConnectionError::Lost { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof),
            "{kept} bytes: {error:?}"
        );
    }
}

#[test]
fn closing_ends_a_writer_and_a_reader_that_are_stuck_on_a_frozen_peer() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    let _frozen = peer.accept_ready(&mut connection, &events);
    // More than the socket buffers of both sides hold, so the writer sits in the middle of a frame.
    let batch = ProduceBatch { topic: Arc::from("t"), partition: 0, records: Bytes::from(vec![0; 32 << 20]) };
    let request = Request::Produce(ProduceRequest { acks: -1, timeout_ms: 1, batches: vec![batch] });
    for _ in 0..3 {
        connection.send(&request).unwrap();
    }
    connection.close();
    assert!(matches!(connection.send(&request), Err(SendError::Closed)));
    threads_end(&events);
}

#[test]
fn closing_before_or_in_the_handshake_leaves_no_thread_and_no_event() {
    let slow = ConnectionOptions { connect_timeout: PATIENCE * 2, ..options() };
    let peer = Peer::listen();
    let (connection, events) = peer.open(&slow);
    drop(connection);
    threads_end(&events);

    let peer = Peer::listen();
    let (connection, events) = peer.open(&slow);
    let mut socket = peer.accept();
    read_request(&mut socket);
    drop(connection);
    threads_end(&events);
}

#[test]
fn closing_frees_a_reader_that_waits_for_room_in_the_owners_channel() {
    let peer = Peer::listen();
    let (mut connection, events) = peer.open(&options());
    let mut socket = peer.accept_ready(&mut connection, &events);
    for id in 0..20 {
        socket.write_all(&metadata_response(id)).unwrap();
    }
    let started = Instant::now();
    while !events.is_full() && started.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    drop(connection);
    while events.recv_timeout(PATIENCE).is_ok() {}
    threads_end(&events);
}
