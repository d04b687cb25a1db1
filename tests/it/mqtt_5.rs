//! MQTT 5 by bytes: what CONNECT asks for, what CONNACK decides, properties as record headers, reason codes in the log.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rumqttc::v5::mqttbytes::v5::Packet;

use crate::support::kafka_broker::Cluster;
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::Setup;
use crate::support::wait;

/// A broker of which each test writes the bytes.
struct Script {
    listener: TcpListener,
}

struct Line {
    stream: TcpStream,
    buffer: bytes::BytesMut,
}

impl Script {
    fn start() -> Self {
        Script { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn setup(&self, kafka: &Cluster) -> Setup {
        // A scripted broker of MQTT 3.1.1 gives the rest of the setup.
        let port = self.listener.local_addr().unwrap().port().to_string();
        let other = MqttBroker::start();
        Setup::new(&other, kafka).set("MQTT_BROKER_PORT", &port).set("MQTT_VERSION", "5").wildcards("a/#:t")
    }

    fn accept(&self) -> Line {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        Line { stream, buffer: bytes::BytesMut::new() }
    }

    /// Accepts, with these properties in CONNACK, until all is subscribed.
    fn session(&self, properties: &[u8]) -> Line {
        let mut line = self.accept();
        assert!(matches!(line.next(), Packet::Connect(..)));
        line.connack(0, properties);
        let Packet::Subscribe(subscribe) = line.next() else { panic!("no SUBSCRIBE") };
        let [high, low] = subscribe.pkid.to_be_bytes();
        line.write(&[0x90, 4, high, low, 0, 2]);
        line
    }
}

impl Line {
    fn next(&mut self) -> Packet {
        let mut chunk = [0; 4096];
        loop {
            if let Ok(packet) = Packet::read(&mut self.buffer, None) {
                return packet;
            }
            let count = self.stream.read(&mut chunk).expect("a packet of the gateway");
            assert!(count > 0, "the gateway closed");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn connack(&mut self, code: u8, properties: &[u8]) {
        let length = properties.len() as u8;
        self.write(&[&[0x20, 3 + length, 0, code, length], properties].concat());
    }

    fn publish(&mut self, byte1: u8, id: u16, properties: &[u8], payload: &[u8]) {
        let mut body = b"\x00\x03a/b".to_vec();
        body.extend(id.to_be_bytes());
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
        body.extend_from_slice(payload);
        self.write(&[&[byte1, body.len() as u8], &body[..]].concat());
    }
}

#[test]
fn connect_asks_for_the_session_to_be_kept_and_the_limits_of_the_broker_are_told() {
    let (script, kafka) = (Script::start(), Cluster::start().topic("t", 1));
    let gateway = script
        .setup(&kafka)
        .set("MQTT_SESSION_EXPIRY_SEC", "86400")
        .set("MQTT_RECEIVE_MAXIMUM", "50")
        .start();
    let mut line = script.accept();
    let Packet::Connect(connect, None, None) = line.next() else { panic!("no CONNECT") };
    assert!(!connect.clean_start);
    let properties = connect.properties.expect("properties");
    assert_eq!(properties.session_expiry_interval, Some(86_400));
    assert_eq!((properties.receive_maximum, properties.topic_alias_max), (Some(50), None));
    assert_eq!(properties.max_packet_size, None, "a broker drops what is larger without telling");
    // Session expiry of 60 s.
    line.connack(0, b"\x11\x00\x00\x00\x3c");
    gateway.wait_for_log("WARN", &["keeps the session for 60 s only", "MQTT_SESSION_EXPIRY_SEC=86400"]);
    let Packet::Subscribe(subscribe) = line.next() else { panic!("no SUBSCRIBE") };
    assert_eq!(subscribe.filters[0].path, "a/#");
}

#[test]
fn properties_become_record_headers_in_their_order_and_repeats_are_known() {
    let (script, kafka) = (Script::start(), Cluster::start().topic("t", 1));
    let _gateway = script.setup(&kafka).set("MQTT_QOS", "2").set("KAFKA_HEADERS", "properties").start();
    let mut line = script.session(b"");
    let properties = b"\x26\0\x01k\0\x011\x03\0\x0atext/plain\x26\0\x01k\0\x012";
    line.publish(0x32, 1, properties, b"one");
    assert!(matches!(line.next(), Packet::PubAck(ack) if ack.pkid == 1));
    line.publish(0x34, 2, properties, b"two");
    assert!(matches!(line.next(), Packet::PubRec(ack) if ack.pkid == 2));
    drop(line);
    let mut line = script.accept();
    assert!(matches!(line.next(), Packet::Connect(..)));
    line.write(&[0x20, 3, 1, 0, 0]);
    line.publish(0x3c, 2, properties, b"two");
    assert!(matches!(line.next(), Packet::PubRec(ack) if ack.pkid == 2), "again, and not passed on");
    line.write(&[0x62, 2, 0, 2]);
    assert!(matches!(line.next(), Packet::PubComp(ack) if ack.pkid == 2));
    line.publish(0x34, 2, b"", b"three");
    kafka.wait_for_values("t", 0, &["one", "two", "three"]);
    let records = kafka.records("t", 0);
    let headers = |index: usize| {
        let text = |value: &Option<Vec<u8>>| String::from_utf8(value.clone().unwrap()).unwrap();
        let headers = &records[index].headers;
        headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>()
    };
    let expected = ["mqtt.content_type=text/plain", "k=1", "k=2"];
    assert_eq!(
        (headers(0), headers(1)),
        (expected.map(String::from).to_vec(), expected.map(String::from).to_vec())
    );
    assert!(headers(2).is_empty());
}

#[test]
fn a_dead_letter_keeps_the_properties() {
    let kafka = Cluster::start().topic("t", 1).topic("dead", 1);
    let script = Script::start();
    let setup = script.setup(&kafka).set("KAFKA_HEADERS", "properties").set("DEAD_LETTER_TOPIC", "dead");
    let _gateway = setup.wildcards("a/+:t-{1}").start();
    let mut line = script.session(b"");
    // Never a record: the capture is longer than a name of a Kafka topic may be. 277 bytes behind the fixed header.
    let topic = format!("a/{}", "x".repeat(260));
    let head = [&[0x32, 0x95, 0x02, 0x01, 0x06], topic.as_bytes()].concat();
    line.write(&[&head[..], b"\x00\x01\x07\x26\0\x01k\0\x01v", b"pay"].concat());
    assert!(matches!(line.next(), Packet::PubAck(ack) if ack.pkid == 1));
    kafka.wait_for_values("dead", 0, &["pay"]);
    assert_eq!(kafka.records("dead", 0)[0].header("k").as_deref(), Some("v"));
}

#[test]
fn reason_codes_are_told_in_words() {
    let (script, kafka) = (Script::start(), Cluster::start().topic("t", 1));
    let gateway = script.setup(&kafka).start();
    let mut line = script.accept();
    line.next();
    line.connack(0x86, b"\x1f\x00\x07unknown");
    gateway.wait_for_log("ERROR", &["refused the user name or password", "it says \"unknown\""]);
    let mut line = script.accept();
    line.next();
    line.connack(0, b"");
    let Packet::Subscribe(subscribe) = line.next() else { panic!("no SUBSCRIBE") };
    let [high, low] = subscribe.pkid.to_be_bytes();
    line.write(&[0x90, 4, high, low, 0, 0x9e]);
    gateway
        .wait_for_log("ERROR", &["refuses the subscription to a/#", "does not support shared subscriptions"]);
    line.write(&[0xe0, 1, 0x8e]);
    gateway.wait_for_log("WARN", &["another client has connected with this client id"]);
}

#[test]
fn a_broker_of_3_1_1_is_told_as_such() {
    let (script, kafka) = (Script::start(), Cluster::start().topic("t", 1));
    let gateway = script.setup(&kafka).start();
    let mut line = script.accept();
    line.next();
    line.write(&[0x20, 2, 0, 1]);
    gateway.wait_for_log("ERROR", &["does not support this protocol version (MQTT_VERSION)"]);
}
