//! A scripted MQTT 3.1.1 broker. The test is the script: it accepts a connection, reads what the gateway sent,
//! answers or does not. PINGREQ, SUBSCRIBE and DISCONNECT are answered by themselves, and each
//! can be turned off.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubRel, Publish, SubAck, Subscribe, SubscribeReasonCode,
};

use super::wait;

const MAX_PACKET_BYTES: usize = 1 << 20;

/// The listening side.
pub struct MqttBroker {
    listener: TcpListener,
}

impl MqttBroker {
    pub fn start() -> Self {
        MqttBroker::start_at("127.0.0.1:0")
    }

    /// At an address that was found free before.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("loopback has this port free");
        listener.set_nonblocking(true).unwrap();
        MqttBroker { listener }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Waits for the gateway to connect; nothing is read or answered yet but what [`Link`] does by itself.
    pub fn accept(&self) -> Link {
        Link::new(wait::until("an MQTT connection", || self.listener.accept()).0)
    }

    /// Accepts, answers CONNECT and waits until the gateway has subscribed: a fresh session.
    pub fn session(&self) -> Link {
        let link = self.accept();
        link.expect_connect();
        link.connack(false, ConnectReturnCode::Success);
        link.expect_subscribe();
        link
    }

    /// Accepts and answers CONNECT with session_present=1.
    pub fn resume(&self) -> Link {
        let link = self.accept();
        link.expect_connect();
        link.connack(true, ConnectReturnCode::Success);
        link
    }
}

#[derive(Default)]
struct Seen {
    /// Everything but PINGREQ, PUBACK, PUBREC and PUBCOMP, in order, until taken.
    packets: Vec<Packet>,
    pubacks: Vec<u16>,
    pubrecs: Vec<u16>,
    pubcomps: Vec<u16>,
    pings: usize,
    ended: Option<String>,
}

#[derive(Default)]
struct Switches {
    frozen: AtomicBool,
    mute_pings: AtomicBool,
    mute_subscribes: AtomicBool,
    keep_open: AtomicBool,
}

/// One connection.
pub struct Link {
    writer: Arc<Mutex<TcpStream>>,
    seen: Arc<Mutex<Seen>>,
    switches: Arc<Switches>,
}

impl Link {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = stream.try_clone().unwrap();
        // So that the reader can look whether it is frozen.
        reader.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.set_write_timeout(Some(wait::PATIENCE)).unwrap();
        let link =
            Link { writer: Arc::new(Mutex::new(stream)), seen: Arc::default(), switches: Arc::default() };
        let (writer, seen, switches) =
            (Arc::clone(&link.writer), Arc::clone(&link.seen), Arc::clone(&link.switches));
        thread::spawn(move || {
            let end = read_packets(reader, &writer, &seen, &switches);
            seen.lock().unwrap().ended = Some(end);
        });
        link
    }

    /// The next packet that is neither PINGREQ nor PUBACK.
    pub fn next_packet(&self) -> Packet {
        wait::until("an MQTT packet", || {
            let mut seen = self.seen.lock().unwrap();
            if seen.packets.is_empty() {
                return Err(format!("nothing; the connection's end: {:?}", seen.ended));
            }
            Ok(seen.packets.remove(0))
        })
    }

    pub fn expect_connect(&self) -> Connect {
        match self.next_packet() {
            Packet::Connect(connect) => connect,
            other => panic!("expected CONNECT, got {other:?}"),
        }
    }

    pub fn expect_subscribe(&self) -> Subscribe {
        match self.next_packet() {
            Packet::Subscribe(subscribe) => subscribe,
            other => panic!("expected SUBSCRIBE, got {other:?}"),
        }
    }

    /// Waits for DISCONNECT, passing over whatever comes before.
    pub fn expect_disconnect(&self) {
        while self.next_packet() != Packet::Disconnect {}
    }

    pub fn connack(&self, session_present: bool, code: ConnectReturnCode) {
        self.send(&Packet::ConnAck(ConnAck { session_present, code }));
    }

    pub fn suback(&self, pkid: u16, codes: &[SubscribeReasonCode]) {
        self.send(&Packet::SubAck(SubAck { pkid, return_codes: codes.to_vec() }));
    }

    /// SUBSCRIBE is no longer answered by itself.
    pub fn mute_subscribes(&self) {
        self.switches.mute_subscribes.store(true, Ordering::SeqCst);
    }

    /// DISCONNECT does not end the connection.
    pub fn keep_open(&self) {
        self.switches.keep_open.store(true, Ordering::SeqCst);
    }

    /// PINGREQ is no longer answered.
    pub fn mute_pings(&self) {
        self.switches.mute_pings.store(true, Ordering::SeqCst);
    }

    pub fn send(&self, packet: &Packet) {
        self.send_raw(&encode(packet));
    }

    pub fn send_raw(&self, bytes: &[u8]) {
        self.writer.lock().unwrap().write_all(bytes).expect("the gateway takes the packet");
    }

    /// QoS 1.
    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>, pkid: u16) {
        self.send(&publish(topic, payload, QoS::AtLeastOnce, pkid, false));
    }

    /// QoS 1, many in one write: packet ids from `first`, payloads as given.
    pub fn publish_all<T: AsRef<str>>(&self, topic: &str, payloads: &[T], first: u16) {
        let ids = first..;
        let packet =
            |(payload, id): (&T, u16)| encode(&publish(topic, payload.as_ref(), QoS::AtLeastOnce, id, false));
        let bytes: Vec<u8> = payloads.iter().zip(ids).flat_map(packet).collect();
        self.send_raw(&bytes);
    }

    /// QoS 1, DUP set.
    pub fn redeliver(&self, topic: &str, payload: impl AsRef<[u8]>, pkid: u16) {
        self.send(&publish(topic, payload, QoS::AtLeastOnce, pkid, true));
    }

    /// QoS 2.
    pub fn publish_once(&self, topic: &str, payload: impl AsRef<[u8]>, pkid: u16) {
        self.send(&publish(topic, payload, QoS::ExactlyOnce, pkid, false));
    }

    /// QoS 2, DUP set.
    pub fn redeliver_once(&self, topic: &str, payload: impl AsRef<[u8]>, pkid: u16) {
        self.send(&publish(topic, payload, QoS::ExactlyOnce, pkid, true));
    }

    /// PUBREL for each, and waits for the PUBCOMPs of this connection so far.
    pub fn release(&self, pkids: &[u16]) {
        let before = self.seen.lock().unwrap().pubcomps.len();
        pkids.iter().for_each(|&pkid| self.send(&Packet::PubRel(PubRel { pkid })));
        wait::until("PUBCOMPs", || {
            let seen = self.seen.lock().unwrap();
            let got = &seen.pubcomps[before..];
            if got == pkids {
                Ok(())
            } else {
                Err(format!("{got:?}, the connection's end: {:?}", seen.ended))
            }
        });
    }

    /// Waits until exactly these packet ids have been answered with PUBREC, in this order.
    pub fn wait_for_pubrecs(&self, expected: &[u16]) {
        wait::until(&format!("PUBRECs {}", shortened(expected)), || {
            let seen = self.seen.lock().unwrap();
            assert!(expected.starts_with(&seen.pubrecs), "PUBRECs {}", shortened(&seen.pubrecs));
            if seen.pubrecs.len() == expected.len() { Ok(()) } else { Err(shortened(&seen.pubrecs)) }
        });
    }

    /// Panics if a PUBREC comes while this is watched.
    pub fn assert_no_pubrec(&self, span: Duration) {
        wait::holds(span, "no PUBREC", || match &self.seen.lock().unwrap().pubrecs {
            ids if ids.is_empty() => Ok(()),
            ids => Err(format!("{ids:?}")),
        });
    }

    /// QoS 0.
    pub fn publish_unacknowledged(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.send(&publish(topic, payload, QoS::AtMostOnce, 0, false));
    }

    /// Packet ids acknowledged on this connection, in order.
    pub fn pubacks(&self) -> Vec<u16> {
        self.seen.lock().unwrap().pubacks.clone()
    }

    /// PINGREQs seen so far.
    pub fn pings(&self) -> usize {
        self.seen.lock().unwrap().pings
    }

    /// Waits until exactly these packet ids have been acknowledged, in this order.
    pub fn wait_for_pubacks(&self, expected: &[u16]) {
        wait::until(&format!("PUBACKs {}", shortened(expected)), || {
            let seen = self.seen.lock().unwrap();
            let got = &seen.pubacks;
            assert!(
                expected.starts_with(got),
                "expected PUBACKs {}, got {}",
                shortened(expected),
                shortened(got)
            );
            if got.len() == expected.len() {
                return Ok(());
            }
            Err(format!("{}, the connection's end: {:?}", shortened(got), seen.ended))
        });
    }

    /// Panics if a PUBACK comes while this is watched.
    pub fn assert_no_puback(&self, span: Duration) {
        wait::holds(span, "no PUBACK", || match self.pubacks() {
            ids if ids.is_empty() => Ok(()),
            ids => Err(format!("{ids:?}")),
        });
    }

    /// Closes at once, in the middle of whatever is under way.
    pub fn cut(&self) {
        let _ = self.writer.lock().unwrap().shutdown(Shutdown::Both);
    }

    /// Stops reading: what the gateway writes piles up in the socket.
    pub fn freeze(&self) {
        self.switches.frozen.store(true, Ordering::SeqCst);
    }

    pub fn thaw(&self) {
        self.switches.frozen.store(false, Ordering::SeqCst);
    }

    /// Waits until the gateway has closed the connection; gives how it ended.
    pub fn wait_for_end(&self) -> String {
        wait::until("the gateway to close the MQTT connection", || {
            self.seen.lock().unwrap().ended.clone().ok_or("still open")
        })
    }

    /// Panics if the gateway closes while this is watched.
    pub fn assert_open_for(&self, span: Duration) {
        wait::holds(
            span,
            "the MQTT connection is open",
            || {
                if self.is_open() { Ok(()) } else { Err("closed") }
            },
        );
    }

    pub fn is_open(&self) -> bool {
        self.seen.lock().unwrap().ended.is_none()
    }

    /// Writes as much as the gateway takes, until it takes nothing for `stall`; gives the number of bytes.
    /// PINGREQ goes unanswered from here on, because an answer could land inside a packet.
    pub fn flood(&self, bytes: &[u8], stall: Duration) -> usize {
        self.mute_pings();
        let mut stream = self.writer.lock().unwrap();
        stream.set_write_timeout(Some(stall)).unwrap();
        let mut taken = 0;
        while taken < bytes.len() {
            match stream.write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("the gateway closed during the flood after {taken} bytes: {error}"),
            }
        }
        stream.set_write_timeout(Some(wait::PATIENCE)).unwrap();
        taken
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A PUBLISH packet.
pub fn publish(topic: &str, payload: impl AsRef<[u8]>, qos: QoS, pkid: u16, dup: bool) -> Packet {
    let payload = Bytes::copy_from_slice(payload.as_ref());
    Packet::Publish(Publish { dup, qos, retain: false, topic: topic.to_owned(), pkid, payload })
}

/// Its bytes.
pub fn encode(packet: &Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).expect("the packet is valid");
    bytes.to_vec()
}

/// `prefix0`, `prefix1`, and so on.
pub fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Packet ids from `first`.
pub fn ids(first: u16, count: usize) -> Vec<u16> {
    (first..).take(count).collect()
}

fn shortened(ids: &[u16]) -> String {
    match ids {
        [first, second, .., last] if ids.len() > 12 => {
            format!("[{first}, {second}, .. {last}] ({} in all)", ids.len())
        }
        _ => format!("{ids:?}"),
    }
}

fn read_packets(
    mut reader: TcpStream,
    writer: &Mutex<TcpStream>,
    seen: &Mutex<Seen>,
    switches: &Switches,
) -> String {
    let mut buffer = BytesMut::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if switches.frozen.load(Ordering::SeqCst) {
            thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        match reader.read(&mut chunk) {
            Ok(0) => return format!("closed, {} bytes of a packet left", buffer.len()),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return error.to_string(),
        }
        loop {
            match Packet::read(&mut buffer, MAX_PACKET_BYTES) {
                Ok(packet) => take(packet, writer, seen, switches),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => break,
                Err(error) => return format!("the gateway sent a bad packet: {error}"),
            }
        }
    }
}

fn take(packet: Packet, writer: &Mutex<TcpStream>, seen: &Mutex<Seen>, switches: &Switches) {
    let answer = match &packet {
        Packet::PingReq if !switches.mute_pings.load(Ordering::SeqCst) => Some(Packet::PingResp),
        Packet::Subscribe(subscribe) if !switches.mute_subscribes.load(Ordering::SeqCst) => {
            let granted =
                |filter: &rumqttc::mqttbytes::v4::SubscribeFilter| SubscribeReasonCode::Success(filter.qos);
            let return_codes = subscribe.filters.iter().map(granted).collect();
            Some(Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes }))
        }
        _ => None,
    };
    if let Some(answer) = answer {
        let _ = writer.lock().unwrap().write_all(&encode(&answer));
    }
    if packet == Packet::Disconnect && !switches.keep_open.load(Ordering::SeqCst) {
        let _ = writer.lock().unwrap().shutdown(Shutdown::Write);
    }
    let mut seen = seen.lock().unwrap();
    match packet {
        Packet::PingReq => seen.pings += 1,
        Packet::PubAck(puback) => seen.pubacks.push(puback.pkid),
        Packet::PubRec(pubrec) => seen.pubrecs.push(pubrec.pkid),
        Packet::PubComp(pubcomp) => seen.pubcomps.push(pubcomp.pkid),
        other => seen.packets.push(other),
    }
}
