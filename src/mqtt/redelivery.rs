//! What the broker delivers again, told from what is new. Pure.
//!
//! After a reconnect the broker sends again what it has no PUBACK for, with the same packet identifier and
//! DUP=1. Most of that is still in our hands, or was acknowledged by a PUBACK that never arrived; passing it on
//! would be a duplicate of our making. But an identifier may also carry another message by now, and taking that
//! for a repeat would lose it. So each identifier has a fingerprint of its message and a state:
//!
//! ```text
//!            settle            PUBACK handed to the socket         PINGRESP of a later PINGREQ
//!  in hand ---------> settled ----------------------------> written ------------------> forgotten
//!                        ^                                     |
//!                        +------- it never left the buffer ----+
//! ```
//!
//! A PUBLISH whose identifier is known is a repeat if it says DUP=1 and has the same fingerprint, and
//! - in hand or settled: certainly, for the broker cannot have our PUBACK and must not reuse the identifier
//!   (MQTT-2.3.1-4);
//! - written on an earlier connection: only if this broker's identifiers have been seen to go round all 65,535
//!   before one comes again (`IdPolicy` below). A broker that reuses the lowest free one may have got the PUBACK and
//!   then sent a new, equal message that we never saw: that is passed on, and counted as a possible repeat.
//!
//! QoS 2 leaves no doubt. The broker keeps a message until it has our PUBREC, then only releases it (PUBREL) and must not
//! use the identifier again before it has our PUBCOMP (MQTT-4.3.3-2). So an identifier is remembered until PUBREL, over
//! connections, and what comes again with the same fingerprint before that is a repeat, with DUP or without, answered by PUBREC:
//!
//! ```text
//!            settle           PUBREC handed out          PUBREL, answered by PUBCOMP
//!  in hand ---------> settled -----------------> recorded --------------------------> forgotten
//! ```
//!
//! Of QoS 1, DUP=0 is a new message whatever else matches: a broker that lost its memory (restored from an older state)
//! gives identifiers away again, and sensors repeat their payloads. The message that had the identifier before
//! keeps its way to Kafka, but its acknowledgement is void, so that it never acknowledges the new one.
//!
//! It knows nothing of packets or sockets. Invariants: an identifier has at most one live place in the queue of
//! acknowledgements; all tables are bounded (the in-hand limit, [`UNCONFIRMED_MAX`], 65,535 identifiers).

use std::collections::{HashMap, VecDeque};

use twox_hash::XxHash64;

use super::ack::{Ack, AckQueue, Position};
use crate::message::Body;

/// PUBACKs written and not confirmed that are remembered. The session asks for a confirmation (PINGREQ) at a
/// quarter of this, so it is reached only if the broker does not answer.
pub const UNCONFIRMED_MAX: usize = 8192;

/// New messages after which what an earlier connection left unconfirmed is forgotten: far more than a broker has
/// in flight, far less than the 65,535 after which an identifier comes again.
const STALE_AFTER_ARRIVALS: u64 = 16_384;

/// Steps forward, past identifiers known to be free, after which the broker is believed to go round all.
const ASCENDING_STEPS: u32 = 100;

/// What is known of a PUBLISH of QoS 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Packet identifier.
    pub packet_id: u16,
    /// DUP flag.
    pub dup: bool,
    /// QoS 2; else 1.
    pub exactly_once: bool,
    /// See [`fingerprint`].
    pub fingerprint: u64,
}

impl Delivery {
    fn ack(self) -> Ack {
        if self.exactly_once { Ack::Pubrec(self.packet_id) } else { Ack::Puback(self.packet_id) }
    }
}

/// What a PUBLISH of QoS 1 or 2 turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A message to hand on, with this number of arrival.
    New {
        /// Number of arrival, from 1.
        sequence: u64,
        /// It may be one that was handed on before; nobody can tell.
        possible_repeat: bool,
    },
    /// Handed on before: not again. Its acknowledgement is taken care of.
    Repeat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InHand {
        sequence: u64,
    },
    Settled,
    /// The PUBACK ends at this byte of all that was ever handed to a socket.
    Written {
        end: u64,
    },
    /// QoS 2: the PUBREC was put into the output. Whether it arrived is the same to us: the broker sends PUBLISH or PUBREL.
    Recorded,
}

#[derive(Debug)]
struct Entry {
    exactly_once: bool,
    fingerprint: u64,
    state: State,
    /// The connection it last came on.
    connection: u64,
    position: Position,
}

#[derive(Debug)]
struct Hand {
    packet_id: u16,
    exactly_once: bool,
    settled: bool,
}

/// See the module head.
#[derive(Debug, Default)]
pub struct Redelivery {
    ids: HashMap<u16, Entry>,
    /// Ring by number of arrival; the front is number `settled_before + 1`.
    hands: VecDeque<Hand>,
    settled_before: u64,
    /// Identifier and end of the PUBACK, as written on this connection.
    unconfirmed: VecDeque<(u16, u64)>,
    /// The same of earlier connections, with the number of the last arrival before.
    stale: VecDeque<(u16, u64, u64)>,
    connection: u64,
    policy: IdPolicy,
    /// See [`Redelivery::take_orphans`].
    orphans: Vec<u16>,
}

impl Redelivery {
    /// Before the first connection: identifiers and fingerprints of messages of QoS 2 that an earlier process made safe and that may not
    /// be released.
    pub fn restore(&mut self, unreleased: &[(u16, u64)], acks: &mut AckQueue) {
        for &(packet_id, fingerprint) in unreleased {
            // Of a connection that is lost before the first is made.
            let (position, connection) = (acks.push(Ack::Pubrec(packet_id)), self.connection);
            let entry =
                Entry { exactly_once: true, fingerprint, state: State::Recorded, connection, position };
            self.ids.insert(packet_id, entry);
        }
        acks.clear();
    }

    /// Identifiers of QoS 2 under which a message was or becomes safe that the broker will not deliver again, without a PUBREL: its session
    /// is lost, or it uses the identifier for another.
    pub fn take_orphans(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.orphans)
    }

    /// Messages in hand, counting settled ones that came after one that is not.
    pub fn hands(&self) -> usize {
        self.hands.len()
    }

    /// PUBACKs of this connection that are not known to have arrived.
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed.len()
    }

    /// Identifiers of QoS 2 that wait for their PUBREL.
    pub fn unreleased(&self) -> usize {
        self.ids.values().filter(|entry| entry.exactly_once).count()
    }

    /// A PUBLISH of QoS 1 or 2 arrived. Its place in `acks` is made here.
    pub fn arrived(&mut self, delivery: Delivery, acks: &mut AckQueue) -> Arrival {
        let Delivery { packet_id, dup, exactly_once, fingerprint } = delivery;
        let mut possible_repeat = false;
        if let Some(entry) = self.ids.get_mut(&packet_id) {
            let here = entry.connection == self.connection;
            let same = entry.fingerprint == fingerprint && entry.exactly_once == exactly_once;
            let written = matches!(entry.state, State::Written { .. });
            // DUP is not asked of QoS 2: until PUBREL the identifier is the message's (MQTT-4.3.3-2), and a Mosquitto that was
            // restarted sends some without it.
            let again = dup || exactly_once;
            if same && again && (here || !written || self.policy.goes_round()) {
                // The broker retries on one connection: the one PUBACK answers all. A second could acknowledge
                // the identifier's next message. A PUBREC cannot: it is repeated (MQTT-4.3.3-2).
                if !here || entry.state == State::Recorded {
                    entry.connection = self.connection;
                    entry.position = acks.push(delivery.ack());
                    if !matches!(entry.state, State::InHand { .. }) {
                        entry.state = State::Settled;
                        acks.settle(entry.position);
                    }
                }
                return Arrival::Repeat;
            }
            // Reuse after a PUBACK on the same connection is the ordinary course of things.
            possible_repeat = same && !(here && written);
            acks.void(entry.position);
            // What is in hand is an orphan when it is safe.
            if entry.exactly_once && !matches!(entry.state, State::InHand { .. }) {
                self.orphans.push(packet_id);
            }
        }
        if !dup {
            self.policy.arrived(packet_id);
        }
        self.hands.push_back(Hand { packet_id, exactly_once, settled: false });
        let sequence = self.settled_before + self.hands.len() as u64;
        let position = acks.push(delivery.ack());
        let state = State::InHand { sequence };
        let connection = self.connection;
        self.ids.insert(packet_id, Entry { exactly_once, fingerprint, state, connection, position });
        self.forget_stale(sequence);
        Arrival::New { sequence, possible_repeat }
    }

    /// PUBREL: the broker will not deliver this identifier's message again, and may use it for another. Known or not, it
    /// is answered with PUBCOMP.
    pub fn released(&mut self, packet_id: u16, acks: &mut AckQueue) {
        if let Some(entry) = self.ids.get(&packet_id).filter(|entry| entry.exactly_once) {
            // A PUBREC that still waits would answer the identifier's next message. What is in hand goes on to Kafka.
            acks.void(entry.position);
            self.ids.remove(&packet_id);
            self.policy.freed(packet_id);
        }
    }

    /// The message with this number is safe.
    pub fn settle(&mut self, sequence: u64, acks: &mut AckQueue) {
        let index =
            sequence.checked_sub(self.settled_before + 1).and_then(|index| usize::try_from(index).ok());
        let Some(hand) = index.and_then(|index| self.hands.get_mut(index)) else { return };
        hand.settled = true;
        if let Some(entry) = self.ids.get_mut(&hand.packet_id)
            && entry.state == (State::InHand { sequence })
        {
            entry.state = State::Settled;
            acks.settle(entry.position);
        } else if hand.exactly_once {
            self.orphans.push(hand.packet_id);
        }
        while self.hands.front().is_some_and(|hand| hand.settled) {
            self.hands.pop_front();
            self.settled_before += 1;
        }
    }

    /// The PUBREC of this identifier was put into the output.
    pub fn recorded(&mut self, packet_id: u16) {
        if let Some(entry) = self.ids.get_mut(&packet_id) {
            entry.state = State::Recorded;
        }
    }

    /// The PUBACK of this identifier was put into the output, where it ends at byte `end` of all output.
    pub fn acknowledged(&mut self, packet_id: u16, end: u64) {
        if let Some(entry) = self.ids.get_mut(&packet_id) {
            entry.state = State::Written { end };
            self.unconfirmed.push_back((packet_id, end));
        }
        if self.unconfirmed.len() > UNCONFIRMED_MAX
            && let Some((packet_id, end)) = self.unconfirmed.pop_front()
        {
            self.forget_written(packet_id, end);
        }
    }

    /// The broker has processed this connection's output up to byte `up_to`.
    pub fn confirmed(&mut self, up_to: u64) {
        while let Some(&(packet_id, end)) = self.unconfirmed.front()
            && end <= up_to
        {
            self.unconfirmed.pop_front();
            if self.forget_written(packet_id, end) {
                self.policy.freed(packet_id);
            }
        }
    }

    /// The connection is gone; `written` bytes of all output ever made were handed to a socket.
    pub fn connection_lost(&mut self, written: u64) {
        let arrivals = self.settled_before + self.hands.len() as u64;
        for (packet_id, end) in std::mem::take(&mut self.unconfirmed) {
            if end <= written {
                self.stale.push_back((packet_id, end, arrivals));
            } else if let Some(entry) = self.ids.get_mut(&packet_id)
                && entry.state == (State::Written { end })
            {
                entry.state = State::Settled;
            }
        }
        while self.stale.len() > UNCONFIRMED_MAX
            && let Some((packet_id, end, _)) = self.stale.pop_front()
        {
            self.forget_written(packet_id, end);
        }
        self.connection += 1;
    }

    /// The broker does not have the session any more: all identifiers are void; gives those of QoS 2. What is in hand stays in hand.
    pub fn session_lost(&mut self) -> Vec<u16> {
        let of_qos_2 = self.ids.iter().filter(|(_, entry)| entry.exactly_once).map(|(id, _)| *id).collect();
        self.ids.clear();
        self.unconfirmed.clear();
        self.stale.clear();
        self.policy = IdPolicy::default();
        of_qos_2
    }

    fn forget_stale(&mut self, arrivals: u64) {
        while let Some(&(packet_id, end, before)) = self.stale.front()
            && before + STALE_AFTER_ARRIVALS < arrivals
        {
            self.stale.pop_front();
            self.forget_written(packet_id, end);
        }
    }

    /// False if the identifier has moved on since.
    fn forget_written(&mut self, packet_id: u16, end: u64) -> bool {
        let still = self.ids.get(&packet_id).is_some_and(|entry| entry.state == (State::Written { end }));
        if still {
            self.ids.remove(&packet_id);
        }
        still
    }
}

/// Whether the broker goes round all identifiers (Mosquitto and most do) or reuses freed ones early.
///
/// Believed once it went forward [`ASCENDING_STEPS`] times although an identifier behind was known to be free,
/// and until it first goes back. Gaps are allowed: Mosquitto counts messages it then drops.
#[derive(Debug, Default)]
struct IdPolicy {
    /// Where the present run forward began, and the last identifier of it.
    run: Option<(u16, u16)>,
    free_behind: bool,
    steps: u32,
}

impl IdPolicy {
    fn goes_round(&self) -> bool {
        self.steps >= ASCENDING_STEPS
    }

    fn arrived(&mut self, id: u16) {
        match self.run {
            Some((first, last)) if (1..=32_767).contains(&forward(last, id)) => {
                self.run = Some((first, id));
                self.steps = self.steps.saturating_add(u32::from(self.free_behind));
            }
            _ => *self = IdPolicy { run: Some((id, id)), free_behind: false, steps: 0 },
        }
    }

    fn freed(&mut self, id: u16) {
        if let Some((first, last)) = self.run {
            self.free_behind |= forward(first, id) <= forward(first, last);
        }
    }
}

/// Steps from one identifier to another, upwards, 65,535 being followed by 1.
fn forward(from: u16, to: u16) -> u32 {
    (u32::from(to) + 65_535 - u32::from(from)) % 65_535
}

/// The hash that seeds [`fingerprint`]: XXH64 of the client id, seed 0.
pub fn fingerprint_seed(client_id: &str) -> u64 {
    XxHash64::oneshot(0, client_id.as_bytes())
}

/// The identity of a delivery: XXH64, with the hash of the client id as its seed, of the packet identifier (two
/// bytes, big-endian), the topic, a zero byte (which no topic contains) and the payload. For a payload that was
/// not kept: its packet's size, eight bytes, big-endian.
pub fn fingerprint(seed: u64, packet_id: u16, topic: &str, body: &Body) -> u64 {
    use std::hash::Hasher;
    let mut hasher = XxHash64::with_seed(seed);
    hasher.write(&packet_id.to_be_bytes());
    hasher.write(topic.as_bytes());
    hasher.write(&[0]);
    match body {
        Body::Payload(payload) => hasher.write(payload),
        Body::Oversized { packet_bytes } => hasher.write(&packet_bytes.to_be_bytes()),
    }
    hasher.finish()
}

#[cfg(test)]
#[path = "redelivery_tests.rs"]
mod tests;
