//! The session without a socket. `traps` has one test for each way in which MQTT clients were seen to fail;
//! `model` drives the session against an independent broker at random.

use super::super::codec::Version;
use super::super::liveness::Overdue;
use super::super::reason::{Reason, Refusal};
use super::super::subscription::Verdict;
use super::*;
use crate::message::Qos;
use std::time::Duration;

mod exactly_once;
mod model;
mod traps;
mod v5;

pub(super) fn options() -> SessionOptions {
    SessionOptions {
        client_id: "gateway".into(),
        login: None,
        keep_alive_sec: 20,
        clean_session: false,
        version: Version::V311,
        session_expiry_sec: 0,
        unreleased: Vec::new(),
        hold_releases: false,
        filters: vec![("a/#".into(), Qos::AtLeastOnce)],
        max_packet_bytes: 8 * 1024 * 1024,
        in_flight_messages_max: 1000,
        in_hand_messages_max: 8192,
        in_hand_bytes_max: 8 * 1024 * 1024,
    }
}

/// A PUBLISH as a server writes it: QoS 1, or 0 without an identifier.
pub(super) fn publish(dup: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    publish_in(Version::V311, u8::from(id > 0), dup, id, payload)
}

/// A PUBLISH of QoS 2.
pub(super) fn publish_once(dup: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    publish_in(Version::V311, 2, dup, id, payload)
}

pub(super) fn publish_in(version: Version, qos: u8, dup: bool, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x03a/b".to_vec();
    if qos > 0 {
        body.extend(id.to_be_bytes());
    }
    if version == Version::V5 {
        // One user property, "n" = "v".
        body.extend(b"\x07\x26\x00\x01n\x00\x01v");
    }
    body.extend_from_slice(payload);
    let mut packet = vec![0x30 | u8::from(dup) << 3 | qos << 1];
    let mut left = body.len();
    while left > 127 {
        packet.push(left as u8 | 0x80);
        left >>= 7;
    }
    packet.push(left as u8);
    packet.extend(body);
    packet
}

pub(super) fn pubrel(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x62, 2, high, low]
}

/// What the session wrote, in the order written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Connect,
    Subscribe(u16),
    Puback(u16),
    Pubrec(u16),
    Pubcomp(u16),
    Ping,
    Disconnect,
}

/// Takes whole packets off the front of `bytes`.
pub(super) fn sent(bytes: &mut Vec<u8>) -> Vec<Sent> {
    let mut packets = Vec::new();
    while bytes.len() >= 2 {
        assert!(bytes[1] < 128, "longer packets are not made in these tests");
        let length = 2 + usize::from(bytes[1]);
        if bytes.len() < length {
            break;
        }
        let packet: Vec<u8> = bytes.drain(..length).collect();
        let id = || u16::from_be_bytes([packet[2], packet[3]]);
        packets.push(match packet[0] {
            0x10 => Sent::Connect,
            0x82 => Sent::Subscribe(id()),
            0x40 => Sent::Puback(id()),
            0x50 => Sent::Pubrec(id()),
            0x70 => Sent::Pubcomp(id()),
            0xc0 => Sent::Ping,
            0xe0 => Sent::Disconnect,
            other => panic!("the session sent {other:#x}"),
        });
    }
    packets
}

/// A session and all that is outside it.
pub(super) struct Rig {
    pub session: Session,
    pub now: Instant,
    pub messages: Vec<Message>,
    /// Releases that the disk is busy with.
    pub under_way: Vec<u16>,
}

impl Rig {
    pub fn new(options: SessionOptions) -> Self {
        Rig {
            session: Session::new(options),
            now: Instant::now(),
            messages: Vec::new(),
            under_way: Vec::new(),
        }
    }

    /// With a connection on which all is subscribed.
    pub fn connected(options: SessionOptions) -> Self {
        let mut rig = Rig::new(options);
        rig.connect(false);
        rig
    }

    pub fn connect(&mut self, session_present: bool) {
        self.session.open(self.now).unwrap();
        assert_eq!(self.sent(), [Sent::Connect]);
        self.receive(&[0x20, 2, u8::from(session_present), 0]);
        for packet in self.sent() {
            let Sent::Subscribe(id) = packet else { panic!("{packet:?}") };
            let [high, low] = id.to_be_bytes();
            self.receive(&[0x90, 3, high, low, 1]);
        }
    }

    pub fn try_receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.session.receive(bytes, self.now, 1, &mut self.messages)
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        self.try_receive(bytes).unwrap();
    }

    /// Everything is written to the socket.
    pub fn sent(&mut self) -> Vec<Sent> {
        let mut bytes = self.session.output().to_vec();
        self.session.wrote(bytes.len(), self.now);
        let packets = sent(&mut bytes);
        assert!(bytes.is_empty(), "half a packet");
        packets
    }

    /// Settles the n-th of the messages in hand.
    pub fn settle(&mut self, index: usize) {
        let settled = self.messages.remove(index).token.settle();
        self.session.settle(&[settled], self.now);
    }

    /// The identifiers of the batch that is to be made durable.
    pub fn releases(&mut self) -> Option<Vec<u16>> {
        let batch = self.session.take_releases(self.now)?;
        self.under_way = batch.iter().map(|(packet_id, _)| *packet_id).collect();
        Some(self.under_way.clone())
    }

    /// All of the batch is durable.
    pub fn released(&mut self) {
        let batch = std::mem::take(&mut self.under_way);
        self.session.released(&batch, self.now).unwrap();
    }

    pub fn lose(&mut self) {
        self.session.lost(true, self.now);
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.next_event()).collect()
    }

    pub fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    pub fn payloads(&self) -> Vec<&[u8]> {
        self.messages
            .iter()
            .map(|message| match &message.body {
                Body::Payload(payload) => &payload[..],
                Body::Oversized { .. } => b"oversized",
                Body::Malformed { .. } => b"malformed",
            })
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.messages.drain(..).for_each(|message| {
            message.token.abandon();
        });
    }
}
