//! The MQTT session as a pure state machine: bytes, settlements and time in; bytes, messages, events and
//! deadlines out. No socket, no clock, no thread, no random number.
//!
//! ```text
//!  open() --> waiting for CONNACK --> open --> leaving (say_goodbye)
//!    ^                |                |          |
//!    +---- closed ----+------ lost() --+----------+
//! ```
//!
//! It knows nothing of Kafka or of where messages go. Invariants:
//! - a PUBACK or PUBREC is sent only after its message was settled, in order of arrival on the connection (MQTT-4.6.0-2,
//!   MQTT-4.6.0-3); a PUBREL is answered with PUBCOMP always;
//! - nothing of one connection, in either direction, reaches another: neither half a packet nor a PUBACK;
//! - messages in hand, their bytes and what is unacknowledged are bounded: at a limit the session stops
//!   parsing ([`Session::may_read`] is false) and goes on when enough is settled. MQTT has no other brake that
//!   all brokers respect.

mod opening;
mod options;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::BytesMut;

pub use self::options::{SessionError, SessionOptions};
use super::ack::{Ack, AckQueue};
use super::codec::{self, Codec, Connect, Packet, Publish};
pub use super::event::{Event, SessionStats};
use super::liveness::{Due, Liveness};
use super::redelivery::{Arrival, Delivery, Redelivery, UNCONFIRMED_MAX, fingerprint, fingerprint_seed};
use super::release::Releases;
use super::subscription::Subscriptions;
use crate::message::{AckToken, Body, Message, Qos, Settled};

/// What a message costs besides topic and payload, bytes: its entries in channels, tables and batches.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// An input buffer that grew beyond this for one large packet is given back.
const INPUT_KEPT_BYTES: usize = 256 * 1024;

/// Nothing is read while so much waits to be written: a broker that asks and does not listen must not fill the memory.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// A refused filter is asked for again after this long.
const REFUSED_RETRY: std::time::Duration = std::time::Duration::from_secs(60);

/// A connection that lasted this long was not taken over at once.
const LASTED: std::time::Duration = std::time::Duration::from_secs(10);

/// So many short connections in a row are reported.
const SHORT_CONNECTIONS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    AwaitingConnAck,
    Open,
    Leaving,
}

/// See the module head.
#[derive(Debug)]
pub struct Session {
    options: SessionOptions,
    seed: u64,
    codec: Codec,
    phase: Phase,
    stopped: bool,
    input: BytesMut,
    output: BytesMut,
    /// Bytes of all output ever that were handed to a socket.
    written: u64,
    acks: AckQueue,
    redelivery: Redelivery,
    releases: Releases,
    subscriptions: Subscriptions,
    /// SUBSCRIBE waits until the identifiers of a lost session are void on the disk.
    subscribe_later: bool,
    /// That was told.
    told_waiting: bool,
    /// Where in all output the present CONNECT ends; None once its answer came.
    connect_end: Option<u64>,
    /// A CONNECT was sent whose answer never came: the broker may have made a new session by it.
    unsure: bool,
    /// Becomes true when the present session of the broker is lost.
    void: Arc<AtomicBool>,
    /// A limit stopped the parsing.
    limited: bool,
    liveness: Option<Liveness>,
    in_hand_messages: usize,
    in_hand_bytes: u64,
    connected_at: Option<Instant>,
    short_connections: u32,
    retry_refused_at: Option<Instant>,
    /// The last [`Event::Subscribed`] of this connection.
    told: Option<(usize, usize)>,
    events: VecDeque<Event>,
    stats: SessionStats,
}

impl Session {
    /// A session without a connection.
    pub fn new(options: SessionOptions) -> Self {
        let mut acks = AckQueue::default();
        let mut redelivery = Redelivery::default();
        redelivery.restore(&options.unreleased, &mut acks);
        Session {
            seed: fingerprint_seed(&options.client_id),
            codec: Codec::new(options.version, options.max_packet_bytes),
            phase: Phase::Closed,
            stopped: false,
            input: BytesMut::new(),
            output: BytesMut::new(),
            written: 0,
            acks,
            redelivery,
            releases: Releases::new(options.hold_releases),
            subscribe_later: false,
            told_waiting: false,
            connect_end: None,
            unsure: false,
            void: Arc::default(),
            limited: false,
            subscriptions: Subscriptions::new(options.filters.clone()),
            liveness: None,
            in_hand_messages: 0,
            in_hand_bytes: 0,
            connected_at: None,
            short_connections: 0,
            retry_refused_at: None,
            told: None,
            events: VecDeque::new(),
            stats: SessionStats::default(),
            options,
        }
    }

    /// A connection is made: CONNECT goes into the output.
    ///
    /// # Errors
    /// The configuration does not fit a CONNECT.
    pub fn open(&mut self, now: Instant) -> Result<(), SessionError> {
        self.lost(false, now);
        let login = self.options.login.as_ref();
        let connect = Connect {
            client_id: &self.options.client_id,
            login: login.map(|(user, password)| (user.as_str(), password.as_ref())),
            keep_alive_sec: self.options.keep_alive_sec,
            clean_session: self.options.clean_session,
            session_expiry_sec: self.options.session_expiry_sec,
            // The bound that holds is to stop reading: brokers overshoot what they are told.
            receive_maximum: u16::try_from(self.options.in_flight_messages_max).unwrap_or(u16::MAX),
        };
        self.codec.write_connect(&connect, &mut self.output)?;
        self.phase = Phase::AwaitingConnAck;
        self.connect_end = Some(self.written + self.output.len() as u64);
        self.liveness = Some(Liveness::new(self.options.keep_alive_sec, now));
        self.bookkeep(now);
        Ok(())
    }

    /// Takes in `bytes` of the connection, and what was left of earlier ones when a limit stopped the parsing;
    /// appends the messages to hand on to `messages`. `received_at_ms` is their time of arrival.
    ///
    /// # Errors
    /// The connection must be closed. The messages appended before the error are in hand all the same.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now: Instant,
        received_at_ms: i64,
        messages: &mut Vec<Message>,
    ) -> Result<(), SessionError> {
        self.input.extend_from_slice(bytes);
        if let Some(liveness) = &mut self.liveness
            && !bytes.is_empty()
        {
            liveness.received(now);
        }
        let result = self.parse(now, received_at_ms, messages);
        if self.input.is_empty() && self.input.capacity() > INPUT_KEPT_BYTES {
            self.input = BytesMut::new();
        }
        self.bookkeep(now);
        result
    }

    fn parse(&mut self, now: Instant, wall_ms: i64, messages: &mut Vec<Message>) -> Result<(), SessionError> {
        self.limited = false;
        loop {
            if !self.may_read() {
                // Repeats of what was settled before are acknowledged at once, which may make room.
                self.write_acks();
                self.limited = !self.may_read();
                if self.limited {
                    break;
                }
            }
            let Some(packet) = self.codec.read(&mut self.input)? else { break };
            match (self.phase, packet) {
                (Phase::AwaitingConnAck, Packet::ConnAck { session_present, refusal, limits }) => {
                    self.connack(session_present, refusal, limits, now)?;
                }
                (_, Packet::Disconnect(refusal)) => return Err(SessionError::Ended(refusal)),
                (Phase::AwaitingConnAck, _) => {
                    return Err(SessionError::Unexpected("a packet before CONNACK"));
                }
                (_, Packet::ConnAck { .. }) => return Err(SessionError::Unexpected("a second CONNACK")),
                (_, Packet::Publish(publish)) => messages.extend(self.publish(publish, wall_ms)),
                // Whether known or not: a broker that resumes a QoS 2 session releases until it is told, and a
                // client that does not answer meets the same PUBREL on every connection.
                (_, Packet::PubRel { packet_id }) => {
                    self.redelivery.released(packet_id, &mut self.acks);
                    if self.releases.pubrel(packet_id) {
                        self.codec.write_pubcomp(packet_id, &mut self.output);
                    }
                }
                (_, Packet::SubAck { packet_id, grants }) => self.suback(packet_id, &grants, now)?,
                (_, Packet::PingResp) => {
                    if let Some(end) = self.liveness.as_mut().and_then(|liveness| liveness.ponged(now)) {
                        self.redelivery.confirmed(end);
                    }
                }
            }
        }
        self.write_acks();
        Ok(())
    }

    fn publish(&mut self, publish: Publish, received_at_ms: i64) -> Option<Message> {
        let Publish { dup, qos, retain, packet_id, topic, body, properties } = publish;
        let delivery = (qos != Qos::AtMostOnce).then(|| Delivery {
            packet_id,
            dup,
            exactly_once: qos == Qos::ExactlyOnce,
            fingerprint: fingerprint(self.seed, packet_id, &topic, &body, properties.as_deref()),
        });
        let mut sequence = 0;
        if let Some(delivery) = delivery {
            match self.redelivery.arrived(delivery, &mut self.acks) {
                Arrival::Repeat => {
                    self.stats.repeats_suppressed += 1;
                    return None;
                }
                Arrival::New { sequence: number, possible_repeat } => {
                    self.stats.possible_repeats += u64::from(possible_repeat);
                    sequence = number;
                }
            }
        }
        let delivery_id = delivery.map(|delivery| delivery.fingerprint);
        let body = match body {
            Body::Payload(payload) => Body::Payload(codec::detach(&payload)),
            oversized @ Body::Oversized { .. } => {
                self.stats.oversized += 1;
                oversized
            }
            Body::Malformed { packet, reason } => {
                self.stats.malformed += 1;
                Body::Malformed { packet: codec::detach(&packet), reason }
            }
        };
        let properties_bytes = properties.as_ref().map_or(0, |properties| properties.bytes());
        let cost = topic.len() + body.kept_bytes() + properties_bytes + MESSAGE_OVERHEAD_BYTES;
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        self.in_hand_messages += 1;
        self.in_hand_bytes += u64::from(cost);
        self.stats.received += 1;
        let mut token = AckToken::new(sequence, cost);
        if let Some(delivery) = delivery.filter(|delivery| delivery.exactly_once) {
            token = token.exactly_once(packet_id, delivery.fingerprint, Arc::clone(&self.void));
        }
        Some(Message { topic, body, properties, qos, retain, received_at_ms, delivery_id, token })
    }

    /// These messages are safe. Their acknowledgements go into the output as far as the order allows.
    pub fn settle(&mut self, settled: &[Settled], now: Instant) {
        for &Settled { sequence, cost_bytes } in settled {
            self.in_hand_messages = self.in_hand_messages.saturating_sub(1);
            self.in_hand_bytes = self.in_hand_bytes.saturating_sub(u64::from(cost_bytes));
            if sequence != 0 {
                self.redelivery.settle(sequence, &mut self.acks);
            }
        }
        self.write_acks();
        self.bookkeep(now);
    }

    fn write_acks(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        while let Some(ack) = self.acks.pop_ready() {
            self.stats.acknowledged += 1;
            match ack {
                Ack::Puback(packet_id) => {
                    self.codec.write_puback(packet_id, &mut self.output);
                    self.redelivery.acknowledged(packet_id, self.written + self.output.len() as u64);
                }
                Ack::Pubrec(packet_id) => {
                    self.codec.write_pubrec(packet_id, &mut self.output);
                    self.redelivery.recorded(packet_id);
                }
            }
        }
    }

    /// What has to follow every change.
    fn bookkeep(&mut self, now: Instant) {
        self.redelivery.take_orphans().into_iter().for_each(|orphan| self.releases.forget(orphan));
        let reading = self.may_read();
        let Some(liveness) = &mut self.liveness else { return };
        liveness.reading(reading, now);
        let crowded = self.redelivery.unconfirmed() >= UNCONFIRMED_MAX / 4;
        if crowded && !liveness.ping_waits() && self.phase == Phase::Open {
            self.codec.write_pingreq(&mut self.output);
            liveness.pinged(self.written + self.output.len() as u64, now);
        }
        if !self.output.is_empty() {
            liveness.output_waits(now);
        }
    }

    /// Bytes to write to the connection.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The socket took the first `count` bytes of the output.
    pub fn wrote(&mut self, count: usize, now: Instant) {
        let count = count.min(self.output.len());
        if count == 0 {
            return;
        }
        bytes::Buf::advance(&mut self.output, count);
        self.written += count as u64;
        if let Some(liveness) = &mut self.liveness {
            liveness.wrote(self.output.is_empty(), now);
        }
    }

    /// The socket may be read. While this is false, bytes stay where they are, at the end in the broker.
    pub fn may_read(&self) -> bool {
        match self.phase {
            Phase::AwaitingConnAck => true,
            Phase::Open => {
                !self.stopped
                    && !self.releases.is_voiding()
                    && self.output.len() < OUTPUT_BYTES_MAX
                    && self.acks.len() < self.options.in_flight_messages_max
                    && self.in_hand_messages < self.options.in_hand_messages_max
                    // Settled ones behind one that is not, over several sessions.
                    && self.redelivery.hands() < self.options.in_hand_messages_max
                    && self.in_hand_bytes < self.options.in_hand_bytes_max
            }
            Phase::Closed | Phase::Leaving => false,
        }
    }

    /// Bytes were received and not parsed yet, because of a limit or because a packet is not whole.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// A limit stopped the parsing of what was received, and does not any more: call [`Session::receive`], with new bytes or without.
    pub fn may_go_on(&self) -> bool {
        self.limited && self.may_read()
    }

    /// When [`Session::on_deadline`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let liveness = self.liveness.as_ref()?.deadline(self.redelivery.unconfirmed());
        [liveness, self.retry_refused_at, self.releases.deadline()].into_iter().flatten().min()
    }

    /// Does what is due at `now`. `drained`: the socket has nothing more to read now. If it has, what waits there
    /// may be the answer that is missed, so then only our own duties (keep-alive) are done.
    ///
    /// # Errors
    /// The broker is overdue: close the connection.
    pub fn on_deadline(&mut self, now: Instant, drained: bool) -> Result<(), SessionError> {
        if self.phase == Phase::Open && self.retry_refused_at.is_some_and(|at| at <= now) {
            self.subscribe(now)?;
        }
        let unconfirmed = self.redelivery.unconfirmed();
        if let Some(liveness) = &mut self.liveness {
            match liveness.due(unconfirmed, now, drained) {
                Due::Nothing => {}
                Due::GiveUp(overdue) => return Err(SessionError::Overdue(overdue)),
                Due::Ping => {
                    self.codec.write_pingreq(&mut self.output);
                    liveness.pinged(self.written + self.output.len() as u64, now);
                }
            }
        }
        self.bookkeep(now);
        Ok(())
    }

    /// The connection is gone; `by_peer`: closed or reset by the broker. Messages in hand stay in hand.
    pub fn lost(&mut self, by_peer: bool, now: Instant) {
        if let Some(since) = self.connected_at.take() {
            if now.saturating_duration_since(since) >= LASTED {
                self.short_connections = 0;
            } else if by_peer && self.phase == Phase::Open {
                self.short_connections += 1;
                if self.short_connections == SHORT_CONNECTIONS {
                    self.events.push_back(Event::TakenOver { times: self.short_connections });
                }
            }
        }
        // Half a CONNECT makes no session.
        self.unsure |= self.connect_end.take().is_some_and(|end| end <= self.written);
        self.phase = Phase::Closed;
        self.liveness = None;
        self.retry_refused_at = None;
        self.told = None;
        self.codec.reset();
        self.input = BytesMut::new();
        self.output.clear();
        self.acks.clear();
        self.redelivery.connection_lost(self.written);
        self.subscriptions.connection_lost();
        self.releases.connection_lost();
        self.subscribe_later = false;
        self.limited = false;
    }

    /// Takes nothing more in. Acknowledgements and keep-alive go on.
    pub fn stop_reading(&mut self, now: Instant) {
        self.stopped = true;
        self.bookkeep(now);
    }

    /// DISCONNECT goes into the output, and nothing after it. The broker keeps the session.
    pub fn say_goodbye(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::AwaitingConnAck) {
            self.codec.write_disconnect(&mut self.output);
            self.phase = Phase::Leaving;
            self.bookkeep(now);
        }
    }

    /// The next thing to tell.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What went through.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// Messages of QoS 2 that the broker has not released.
    pub fn unreleased(&self) -> usize {
        self.redelivery.unreleased()
    }

    /// Messages and bytes in hand.
    pub fn in_hand(&self) -> (usize, u64) {
        (self.in_hand_messages, self.in_hand_bytes)
    }
}

#[cfg(test)]
#[path = "session_tests/mod.rs"]
mod tests;
