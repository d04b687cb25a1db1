//! The thread on real sockets, with a broker that does what the test says.

use super::*;
use crate::message::Qos;
use crate::mqtt::codec::Version;
use crate::observe::heartbeat::Heartbeats;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);
const IN_HAND_MAX: usize = 16;

/// An ingest thread, and all that is around it.
struct Gateway {
    messages: Receiver<Vec<Message>>,
    settled: Sender<Vec<Settled>>,
    control: Sender<IngestControl>,
    waker: Waker,
    counters: Arc<MqttCounters>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

fn start(port: u16) -> Gateway {
    start_with(port, None)
}

fn start_with(port: u16, releases: Option<ReleaseLine>) -> Gateway {
    let options = SessionOptions {
        client_id: "gateway".into(),
        login: None,
        keep_alive_sec: 30,
        clean_session: false,
        version: Version::V311,
        session_expiry_sec: 0,
        unreleased: Vec::new(),
        hold_releases: releases.is_some(),
        filters: vec![("#".into(), Qos::ExactlyOnce)],
        max_packet_bytes: 1 << 20,
        in_flight_messages_max: 1000,
        in_hand_messages_max: IN_HAND_MAX,
        in_hand_bytes_max: 1 << 20,
    };
    let (messages_in, messages) = bounded(IN_HAND_MAX);
    let (settled, settled_out) = bounded(IN_HAND_MAX);
    let (control, control_out) = bounded(2);
    let (waker, counters) = (Waker::new().unwrap(), Arc::new(MqttCounters::default()));
    let ingest = Ingest {
        endpoint: Endpoint { host: "127.0.0.1".into(), port, tls: None },
        options,
        messages: Some(messages_in),
        settled: settled_out,
        releases,
        control: control_out,
        waker: waker.clone(),
        counters: Arc::clone(&counters),
        subscribed: bounded(1).0,
        heartbeat: Heartbeats::new(None, clock::now()).join("ingest", clock::now()),
    };
    let thread = std::thread::spawn(move || ingest.run());
    Gateway { messages, settled, control, waker, counters, thread }
}

impl Gateway {
    fn take(&self, count: usize) -> Vec<Message> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.extend(self.messages.recv_timeout(PATIENCE).expect("messages"));
        }
        taken
    }

    fn settle(&self, messages: impl IntoIterator<Item = Message>) {
        self.settled.send(messages.into_iter().map(|message| message.token.settle()).collect()).unwrap();
        self.waker.wake();
    }

    fn control(&self, control: IngestControl) {
        self.control.send(control).unwrap();
        self.waker.wake();
    }
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// The next packet of the client; pings are answered and passed over. None at the end of the stream.
fn packet(stream: &mut TcpStream) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head).ok()?;
        let mut body = vec![0; usize::from(head[1])];
        stream.read_exact(&mut body).unwrap();
        if head[0] == 0xc0 {
            stream.write_all(&[0xd0, 0]).unwrap();
            continue;
        }
        return Some([&head[..], &body].concat());
    }
}

/// Accepts a client and its subscription.
fn accept(listener: &TcpListener, session_present: bool) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(packet(&mut stream).unwrap()[0], 0x10);
    stream.write_all(&[0x20, 2, u8::from(session_present), 0]).unwrap();
    if !session_present {
        let subscribe = packet(&mut stream).unwrap();
        assert_eq!(subscribe[0], 0x82);
        stream.write_all(&[0x90, 3, subscribe[2], subscribe[3], 1]).unwrap();
    }
    stream
}

fn publish(dup: bool, ids: std::ops::RangeInclusive<u16>) -> Vec<u8> {
    let first = 0x32 | u8::from(dup) << 3;
    ids.flat_map(|id| [first, 6, 0, 1, b'a', (id >> 8) as u8, id as u8, id as u8]).collect()
}

fn pubacks(stream: &mut TcpStream, count: usize) -> Vec<u16> {
    (0..count)
        .map(|_| {
            let packet = packet(stream).unwrap();
            assert_eq!(packet[0], 0x40);
            u16::from_be_bytes([packet[2], packet[3]])
        })
        .collect()
}

#[test]
fn a_pipeline_that_stands_still_deadlocks_nothing_and_all_is_acknowledged_when_it_moves() {
    let (listener, port) = listen();
    let gateway = start(port);
    let mut broker = accept(&listener, false);
    // One packet for each write, so that each may be a batch of its own: the worst case for the channels.
    for id in 1..=200 {
        broker.write_all(&publish(false, id..=id)).unwrap();
    }
    let mut acknowledged = Vec::new();
    let mut left = 200;
    while left > 0 {
        let messages = gateway.take(left.min(IN_HAND_MAX));
        assert!(gateway.messages.is_empty(), "no more than the limit is in hand");
        left -= messages.len();
        let count = messages.len();
        // One settlement for each message, backwards: the worst case for the channel and for the order.
        for message in messages.into_iter().rev() {
            gateway.settle([message]);
        }
        acknowledged.extend(pubacks(&mut broker, count));
    }
    assert!(acknowledged.into_iter().eq(1..=200));
    gateway.control(IngestControl::Finish);
    assert_eq!(packet(&mut broker), Some(vec![0xe0, 0]));
    drop(broker);
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}

#[test]
fn what_settles_without_a_connection_is_acknowledged_on_the_next_and_passed_on_once() {
    let (listener, port) = listen();
    let gateway = start(port);
    let mut first = accept(&listener, false);
    first.write_all(&publish(false, 1..=3)).unwrap();
    let messages = gateway.take(3);
    drop(first);
    gateway.settle(messages);
    let mut second = accept(&listener, true);
    second.write_all(&publish(true, 1..=3)).unwrap();
    second.write_all(&publish(false, 4..=4)).unwrap();
    assert_eq!(pubacks(&mut second, 3), [1, 2, 3]);
    let new = gateway.take(1);
    assert_eq!(new.len(), 1);
    assert_eq!(gateway.counters.repeats_suppressed.load(Relaxed), 3);
    assert_eq!(gateway.counters.connections_lost.load(Relaxed), 1);
    // Stopping: nothing more comes in, the last acknowledgement goes out before DISCONNECT, and the stream ends.
    gateway.control(IngestControl::StopReading);
    gateway.settle(new);
    gateway.control(IngestControl::Finish);
    assert_eq!(pubacks(&mut second, 1), [4]);
    assert_eq!(packet(&mut second), Some(vec![0xe0, 0]));
    assert_eq!(packet(&mut second), None);
    drop(second);
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}

#[test]
fn the_last_acknowledgements_survive_a_broker_that_goes_on_sending() {
    let (listener, port) = listen();
    let gateway = start(port);
    let mut broker = accept(&listener, false);
    broker.write_all(&publish(false, 1..=3)).unwrap();
    let messages = gateway.take(3);
    gateway.control(IngestControl::StopReading);
    broker.write_all(&publish(false, 4..=900)).unwrap();
    gateway.settle(messages);
    gateway.control(IngestControl::Finish);
    assert_eq!(pubacks(&mut broker, 3), [1, 2, 3]);
    assert_eq!(packet(&mut broker), Some(vec![0xe0, 0]));
    assert_eq!(broker.read(&mut [0]).unwrap(), 0, "the end of the stream and no reset");
    // More than the buffers of two sockets hold: it gets through only if it is read, and a socket that is closed
    // with unread input is reset, at which a broker throws away what it has not read.
    broker.write_all(&vec![0; 16 << 20]).unwrap();
    drop(broker);
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}

#[test]
fn a_broker_that_is_away_at_the_start_is_found_when_it_comes() {
    let (listener, port) = listen();
    drop(listener);
    let gateway = start(port);
    let deadline = Instant::now() + PATIENCE;
    while gateway.counters.connect_failures.load(Relaxed) < 2 {
        assert!(Instant::now() < deadline, "{:?}", gateway.counters);
        std::thread::yield_now();
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let broker = accept(&listener, false);
    gateway.control(IngestControl::Finish);
    drop(broker);
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}

#[test]
fn a_finish_while_there_is_no_broker_ends_at_once() {
    let (listener, port) = listen();
    drop(listener);
    let gateway = start(port);
    drop(gateway.control);
    gateway.waker.wake();
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}

#[test]
fn a_publish_thread_that_is_gone_is_an_error_and_not_a_panic() {
    let (listener, port) = listen();
    let gateway = start(port);
    let mut broker = accept(&listener, false);
    drop(gateway.messages);
    broker.write_all(&publish(false, 1..=2)).unwrap();
    assert_eq!(gateway.thread.join().unwrap(), Err("the publish thread is gone".to_owned()));
}

#[test]
fn the_probe_reports_an_accepting_broker_and_a_refusing_one() {
    use crate::mqtt::codec::Reason;
    use crate::mqtt::probe::{ProbeError, probe};
    for code in [0, 5] {
        let (listener, port) = listen();
        let broker = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let connect = packet(&mut stream).unwrap();
            assert_eq!(connect[9], 2, "a clean session");
            stream.write_all(&[0x20, 2, 0, code]).unwrap();
            packet(&mut stream)
        });
        let options = SessionOptions {
            client_id: "gateway".into(),
            login: None,
            keep_alive_sec: 30,
            clean_session: false,
            version: Version::V311,
            session_expiry_sec: 0,
            unreleased: Vec::new(),
            hold_releases: false,
            filters: vec![("#".into(), Qos::AtLeastOnce)],
            max_packet_bytes: 1 << 20,
            in_flight_messages_max: 10,
            in_hand_messages_max: 10,
            in_hand_bytes_max: 1 << 20,
        };
        let result = probe(&Endpoint { host: "localhost".into(), port, tls: None }, &options);
        if code == 0 {
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(broker.join().unwrap(), Some(vec![0xe0, 0]));
        } else {
            let refused = SessionError::Refused(Reason::NOT_AUTHORISED.into());
            assert!(matches!(result, Err(ProbeError::Session(error)) if error == refused));
        }
    }
}

#[test]
fn an_orderly_stop_leaves_no_release_behind() {
    let (listener, port) = listen();
    let (requests, spool) = bounded(8);
    let (answers, answered) = bounded(1);
    let gateway = start_with(port, Some(ReleaseLine { requests: Some(requests), answers: answered }));
    let mut broker = accept(&listener, false);
    // One of QoS 2 in hand, one released.
    broker.write_all(&[0x34, 6, 0, 1, b'a', 0, 7, b'x', 0x62, 2, 0, 9]).unwrap();
    let in_hand = gateway.take(1);
    let next = || match spool.recv_timeout(PATIENCE) {
        Ok(SpoolRequest::Release(forget)) => {
            Some(forget.iter().map(|forget| forget.number).collect::<Vec<_>>())
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    };
    assert_eq!(next(), Some(vec![9]));
    // A new session voids 7, and the stop comes before the disk has done anything.
    drop(broker);
    let (mut broker, _) = listener.accept().unwrap();
    packet(&mut broker).unwrap();
    broker.write_all(&[0x20, 2, 0, 0]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while gateway.counters.connects.load(Relaxed) < 2 {
        assert!(Instant::now() < deadline, "{:?}", gateway.counters);
        std::thread::yield_now();
    }
    gateway.control(IngestControl::StopReading);
    answers.send(vec![9]).unwrap();
    gateway.waker.wake();
    assert_eq!(next(), Some(vec![7]), "void");
    answers.send(vec![7]).unwrap();
    gateway.settle(in_hand);
    // The message became safe behind that.
    assert_eq!(next(), Some(vec![7]), "and forgotten");
    answers.send(vec![7]).unwrap();
    drop(gateway.settled);
    gateway.waker.wake();
    assert_eq!(next(), None, "with publish at its end the spool may end");
    gateway.control.send(IngestControl::Finish).unwrap();
    gateway.waker.wake();
    drop(broker);
    assert_eq!(gateway.thread.join().unwrap(), Ok(()));
}
