//! Against scripted brokers on free ports, each with a thread that answers by request key.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use bytes::{BufMut, Bytes};

use super::*;
use crate::kafka::compression::Compression;
use crate::kafka::record_batch::{BatchBuilder, Identity, RecordRef};

/// What a broker answers to a request key; None is silence.
type Script = Arc<dyn Fn(i16) -> Option<Vec<u8>> + Send + Sync>;

const API_VERSIONS: i16 = 18;
const METADATA: i16 = 3;
const LIST_OFFSETS: i16 = 2;
const FETCH: i16 = 1;

fn bind() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves each connection until the client closes it; the threads end with the test's process.
fn serve(listener: TcpListener, script: Script) {
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let script = Arc::clone(&script);
            std::thread::spawn(move || answer_all(socket.unwrap(), &script));
        }
    });
}

fn answer_all(mut socket: TcpStream, script: &Script) -> Option<()> {
    loop {
        let mut length = [0; 4];
        socket.read_exact(&mut length).ok()?;
        let mut request = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
        socket.read_exact(&mut request).ok()?;
        let key = i16::from_be_bytes([request[0], request[1]]);
        let body = if key == API_VERSIONS { Some(api_versions()) } else { script(key) };
        if let Some(body) = body {
            let response = [&request[4..8], &body].concat();
            socket.write_all(&i32::try_from(response.len()).unwrap().to_be_bytes()).ok()?;
            socket.write_all(&response).ok()?;
        }
    }
}

/// Version 3 of the answer: each API in the oldest version this client speaks, which is the easiest to write.
fn api_versions() -> Vec<u8> {
    let mut body = vec![0, 0, 4];
    for (key, version) in [(FETCH, 4), (LIST_OFFSETS, 1), (METADATA, 4)] {
        for field in [key, version, version] {
            body.put_i16(field);
        }
        body.put_u8(0);
    }
    body.put_i32(0);
    body.put_u8(0);
    body
}

fn put_string(body: &mut Vec<u8>, text: &str) {
    body.put_i16(text.len() as i16);
    body.extend_from_slice(text.as_bytes());
}

/// Two brokers and topic "t" with partition 0.
fn metadata(ports: [u16; 2], topic_error: i16, leader: i32) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_i32(0);
    body.put_i32(2);
    for (id, port) in (1..).zip(ports) {
        body.put_i32(id);
        put_string(&mut body, "127.0.0.1");
        body.put_i32(port.into());
        body.put_i16(-1);
    }
    body.put_i16(-1);
    body.put_i32(1);
    body.put_i32(1);
    body.put_i16(topic_error);
    put_string(&mut body, "t");
    body.put_u8(0);
    body.put_i32(1);
    body.put_i16(0);
    body.put_i32(0);
    body.put_i32(leader);
    body.put_i32(0);
    body.put_i32(0);
    body
}

fn fetched(error: i16, records: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_i32(0);
    body.put_i32(1);
    put_string(&mut body, "t");
    body.put_i32(1);
    body.put_i32(0);
    body.put_i16(error);
    body.put_i64(9);
    body.put_i64(9);
    body.put_i32(0);
    body.put_i32(records.len() as i32);
    body.extend_from_slice(records);
    body
}

fn listed(error: i16, offset: i64) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_i32(1);
    put_string(&mut body, "t");
    body.put_i32(1);
    body.put_i32(0);
    body.put_i16(error);
    body.put_i64(-1);
    body.put_i64(offset);
    body
}

/// A batch of records "0", "1", .. whose first offset is given.
fn batch(base_offset: i64, count: usize, control: bool) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for index in 0..count {
        let value = index.to_string();
        builder.append(&RecordRef {
            key: None,
            value: Some(value.as_bytes()),
            headers: &[],
            timestamp_ms: 0,
        });
    }
    let mut bytes = builder.seal(Compression::None).encode(Identity::NONE).to_vec();
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    if control {
        bytes[22] |= 1 << 5;
    }
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn connect(port: u16, timeout: Duration) -> Client {
    let connection = ConnectionOptions {
        client_id: "test".to_owned(),
        connect_timeout: Duration::from_secs(10),
        response_max_bytes: 1 << 20,
        security: crate::kafka::connection::Security::default(),
    };
    Client::connect(&[("127.0.0.1".to_owned(), port)], ClientOptions { connection, timeout }).unwrap()
}

fn start() -> Vec<FetchPosition> {
    vec![FetchPosition { topic: Arc::from("t"), partition: 0, offset: 6 }]
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_change_of_leader_is_followed_within_one_call() {
    let ((first, port_1), (second, port_2)) = (bind(), bind());
    let leader = Arc::new(AtomicI32::new(1));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let script = |id: i32| -> Script {
        let (leader, asked) = (Arc::clone(&leader), Arc::clone(&asked));
        Arc::new(move |key| {
            let leads = leader.load(Ordering::SeqCst) == id;
            match key {
                METADATA => return Some(metadata([port_1, port_2], 0, leader.load(Ordering::SeqCst))),
                FETCH if leads && id == 2 => return Some(fetched(0, &batch(5, 3, false))),
                LIST_OFFSETS if leads && id == 2 => return Some(listed(0, 8)),
                _ => {}
            }
            asked.lock().unwrap().push((id, key));
            // The first broker loses its partition between the metadata and the fetch.
            leader.store(2, Ordering::SeqCst);
            Some(if key == FETCH { fetched(6, &[]) } else { listed(6, -1) })
        })
    };
    serve(first, script(1));
    serve(second, script(2));

    let mut client = connect(port_1, LONG);
    let mut positions = start();
    let read = client.fetch(&mut positions, Duration::ZERO).unwrap();
    let values: Vec<(i64, Bytes)> =
        read[0].2.iter().map(|record| (record.offset, record.value.clone().unwrap())).collect();
    assert_eq!(
        values,
        [(6, Bytes::from("1")), (7, Bytes::from("2"))],
        "the batch begins before the position"
    );
    assert_eq!(positions[0].offset, 8);

    leader.store(1, Ordering::SeqCst);
    let mut client = connect(port_1, LONG);
    assert_eq!(client.list_offsets("t", &[0], OffsetAt::Latest).unwrap(), [(0, 8)]);
    assert_eq!(*asked.lock().unwrap(), [(1, FETCH), (1, LIST_OFFSETS)]);
}

/// One broker that answers fetches with these bytes.
fn broker_with(topic_error: i16, fetch_error: i16, records: Vec<u8>) -> u16 {
    let (listener, port) = bind();
    serve(
        listener,
        Arc::new(move |key| match key {
            METADATA => Some(metadata([port, port], topic_error, 1)),
            FETCH => Some(fetched(fetch_error, &records)),
            _ => None,
        }),
    );
    port
}

#[test]
fn control_batches_are_stepped_over() {
    let records = [batch(6, 1, true), batch(7, 2, false), batch(9, 1, true)].concat();
    let mut client = connect(broker_with(0, 0, records), LONG);
    let mut positions = start();
    let read = client.fetch(&mut positions, Duration::ZERO).unwrap();
    let offsets: Vec<i64> = read[0].2.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [7, 8]);
    assert_eq!(positions[0].offset, 10);
}

#[test]
fn damage_is_told_after_what_was_read_before_it() {
    let mut damaged = batch(8, 1, false);
    damaged[17] ^= 1;
    let broken = broker_with(0, 0, [batch(6, 2, false), damaged.clone()].concat());
    let mut positions = start();
    assert_eq!(connect(broken, LONG).fetch(&mut positions, Duration::ZERO).unwrap()[0].2.len(), 2);
    assert_eq!(positions[0].offset, 8);
    let mut client = connect(broker_with(0, 0, damaged), LONG);
    let error = client.fetch(&mut positions, Duration::ZERO).unwrap_err();
    assert!(matches!(error, ClientError::Decode { partition: 0, .. }), "{error:?}");
}

#[test]
fn what_does_not_pass_by_itself_is_an_error_at_once() {
    let mut client = connect(broker_with(0, 1, vec![]), LONG);
    let error = client.fetch(&mut start(), Duration::ZERO).unwrap_err();
    assert!(matches!(error, ClientError::OffsetOutOfRange { offset: 6, .. }), "{error:?}");
    let mut client = connect(broker_with(29, 0, vec![]), LONG);
    let error = client.list_offsets("t", &[5], OffsetAt::Latest).unwrap_err();
    assert_eq!(error.to_string(), "the broker answered TOPIC_AUTHORIZATION_FAILED (29) for topic t");
}

#[test]
fn what_might_pass_is_tried_until_the_deadline_and_then_told() {
    let mut client = connect(broker_with(0, 19, vec![]), Duration::from_millis(250));
    let error = client.fetch(&mut start(), Duration::ZERO).unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { code: ErrorCode(19), partition: Some(0), .. }),
        "{error:?}"
    );
}

#[test]
fn a_broker_that_falls_silent_ends_the_call_at_its_deadline() {
    let (listener, port) = bind();
    serve(listener, Arc::new(|_| None));
    let mut client = connect(port, Duration::from_millis(250));
    let error = client.metadata(None).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
}

#[test]
fn bootstrap_hosts_that_are_dead_are_passed_over() {
    let dead = bind().1;
    let alive = broker_with(0, 0, vec![]);
    let options = connect(alive, LONG).options;
    let host = |port| ("127.0.0.1".to_owned(), port);
    let mut client = Client::connect(&[host(dead), host(alive)], options.clone()).unwrap();
    let metadata = client.metadata(Some(&["t"])).unwrap();
    assert_eq!((metadata.brokers.len(), &*metadata.topics[0].name), (2, "t"));
    let error = Client::connect(&[host(dead)], options.clone()).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(ConnectionError::Connect { .. })), "{error:?}");
    assert!(matches!(Client::connect(&[], options), Err(ClientError::CannotOpen(_))));
}
