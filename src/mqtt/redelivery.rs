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
//! At QoS 2 the broker keeps a message until it has our PUBREC, then only releases it (PUBREL) and must not use the
//! identifier again before it has our PUBCOMP (MQTT-4.3.3-2). So an identifier is remembered until PUBREL, over connections, and
//! what comes again with DUP and the same fingerprint before that is a repeat, answered by PUBREC:
//!
//! ```text
//!            settle           PUBREC handed out          PUBREL, answered by PUBCOMP
//!  in hand ---------> settled -----------------> recorded --------------------------> forgotten
//! ```
//!
//! DUP=0 is a new message whatever else matches: a broker that lost its memory (restored from an older state, a message that
//! expired) gives identifiers away again, and sensors repeat their payloads. Except at QoS 2 on the connection on which it came
//! first, and among the first that come on a new one ([`RESUMED_ARRIVALS`]) from a broker whose identifiers go round: a restarted
//! Mosquitto delivers some of what was in flight without DUP. The message that had the identifier before keeps its
//! way to Kafka, but its acknowledgement is void, so that it never acknowledges the new one.
//!
//! What the broker does not mention on a new connection for [`STALE_AFTER_ARRIVALS`], it has forgotten, and so do we.
//!
//! **In doubt** is what was known before a CONNECT whose answer nobody saw: the broker may have made a new session by it, in which old
//! identifiers mean nothing, and the next CONNACK says "session present" of that one. Where that one is the first answer, DUP still
//! proves a repeat, as a new session had nothing to deliver before our SUBSCRIBE; one such repeat shows that the session is the old
//! one. On later connections nobody can tell: passed on, and counted as a possible repeat. What an earlier process left is in
//! doubt in the same way: that may have been killed before its CONNACK.
//!
//! It knows nothing of packets or sockets. Invariants: an identifier has at most one live place in the queue of
//! acknowledgements; all tables are bounded (the in-hand limit, [`UNCONFIRMED_MAX`], 65,535 identifiers).

mod fingerprint;
mod id_policy;

use std::collections::{HashMap, VecDeque};

pub use self::fingerprint::{fingerprint, fingerprint_seed};
use self::id_policy::IdPolicy;
use super::ack::{Ack, AckQueue, Position};

/// PUBACKs written and not confirmed that are remembered. The session asks for a confirmation (PINGREQ) at a
/// quarter of this, so it is reached only if the broker does not answer.
pub const UNCONFIRMED_MAX: usize = 8192;

/// New messages after which what an earlier connection left unconfirmed is forgotten: far more than a broker has
/// in flight, far less than the 65,535 after which an identifier comes again.
pub const STALE_AFTER_ARRIVALS: u64 = 16_384;

/// DUP is missed at QoS 2 only among so many messages at the beginning of a connection: what was in flight comes first. More than
/// brokers have in flight, and few enough that a broker that lost its memory has hardly come to identifiers that we know.
pub const RESUMED_ARRIVALS: u64 = 2048;

/// Messages between two looks at what is stale: each look goes over all identifiers.
const SWEEP_EVERY: u64 = 1024;

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
    position: Position,
    /// Number of the arrival by which it last came, repeats counted.
    seen: u64,
    /// None: it came on this connection. Else how many arrivals there were when the connection on which it last came was lost.
    left_at: Option<u64>,
    /// In doubt; see the module head. The connection on which DUP still proves a repeat.
    doubt: Option<u64>,
}

/// Of a connection that is not made yet: what an earlier process left.
const NEXT_RESUMED: u64 = u64::MAX;

impl Entry {
    /// What it leaves if it is forgotten without PUBREL. What is in hand is an orphan when it is safe.
    fn orphan(&self, packet_id: u16) -> Option<Orphan> {
        let orphan = Orphan { packet_id, fingerprint: self.fingerprint };
        (self.exactly_once && !matches!(self.state, State::InHand { .. })).then_some(orphan)
    }
}

#[derive(Debug)]
struct Hand {
    packet_id: u16,
    exactly_once: bool,
    fingerprint: u64,
    settled: bool,
}

/// An identifier of QoS 2 under which a message was or becomes safe that the broker will not deliver again, without a PUBREL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// Packet identifier.
    pub packet_id: u16,
    /// Of the message: the identifier may be another's by now.
    pub fingerprint: u64,
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
    /// PUBLISH packets of QoS 1 and 2 so far, repeats counted; and how many of them before this connection.
    arrivals: u64,
    arrivals_before: u64,
    policy: IdPolicy,
    /// See [`Redelivery::take_orphans`].
    orphans: Vec<Orphan>,
}

impl Redelivery {
    /// Before the first connection: identifiers and fingerprints of messages of QoS 2 that an earlier process made safe and that may not
    /// be released.
    pub fn restore(&mut self, unreleased: &[(u16, u64)], acks: &mut AckQueue) {
        for &(packet_id, fingerprint) in unreleased {
            let entry = Entry {
                exactly_once: true,
                fingerprint,
                state: State::Recorded,
                position: acks.push(Ack::Pubrec(packet_id)),
                seen: 0,
                left_at: Some(0),
                doubt: Some(NEXT_RESUMED),
            };
            self.ids.insert(packet_id, entry);
        }
        acks.clear();
    }

    /// The broker says that it kept the session. `unsure`: a CONNECT before had no answer, so it may be one that was made by that.
    pub fn resumed(&mut self, unsure: bool) {
        for entry in self.ids.values_mut() {
            match entry.doubt {
                Some(NEXT_RESUMED) => entry.doubt = Some(self.connection),
                None if unsure => entry.doubt = Some(self.connection),
                None | Some(_) => {}
            }
        }
    }

    /// What became an [`Orphan`] since the last call: its session is lost, or the broker uses the identifier for another or has
    /// forgotten it.
    pub fn take_orphans(&mut self) -> Vec<Orphan> {
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
        self.arrivals += 1;
        if self.arrivals.is_multiple_of(SWEEP_EVERY) {
            self.sweep();
        }
        let mut possible_repeat = false;
        if let Some(entry) = self.ids.get(&packet_id) {
            let same = entry.fingerprint == fingerprint && entry.exactly_once == exactly_once;
            if same && self.is_repeat(entry, dup) {
                self.repeated(delivery, acks);
                return Arrival::Repeat;
            }
            // Reuse after a PUBACK on the same connection is the ordinary course of things.
            let reuse = entry.left_at.is_none() && matches!(entry.state, State::Written { .. });
            possible_repeat = same && !reuse;
            acks.void(entry.position);
            self.orphans.extend(entry.orphan(packet_id));
        }
        if !dup {
            self.policy.arrived(packet_id);
        }
        self.hands.push_back(Hand { packet_id, exactly_once, fingerprint, settled: false });
        let sequence = self.settled_before + self.hands.len() as u64;
        let entry = Entry {
            exactly_once,
            fingerprint,
            state: State::InHand { sequence },
            position: acks.push(delivery.ack()),
            seen: self.arrivals,
            left_at: None,
            doubt: None,
        };
        self.ids.insert(packet_id, entry);
        self.forget_stale(sequence);
        Arrival::New { sequence, possible_repeat }
    }

    /// Whether the message of this entry comes again, given that identifier, QoS and content are the same.
    fn is_repeat(&self, entry: &Entry, dup: bool) -> bool {
        let here = entry.left_at.is_none();
        let written = matches!(entry.state, State::Written { .. });
        let resuming = self.arrivals - self.arrivals_before <= RESUMED_ARRIVALS && self.policy.goes_round();
        let recent = self.arrivals - entry.seen <= STALE_AFTER_ARRIVALS;
        let may_lack_dup = entry.exactly_once && if here { recent } else { resuming };
        let certain = entry.doubt.is_none_or(|until| dup && self.connection <= until);
        certain && (dup || may_lack_dup) && (here || !written || self.policy.goes_round())
    }

    /// The acknowledgement of a repeat. The broker may retry on one connection: the one PUBACK answers all, as a second could acknowledge
    /// the identifier's next message. A PUBREC cannot: it is repeated (MQTT-4.3.3-2).
    fn repeated(&mut self, delivery: Delivery, acks: &mut AckQueue) {
        let Some(entry) = self.ids.get_mut(&delivery.packet_id) else { return };
        if entry.left_at.take().is_some() || entry.state == State::Recorded {
            entry.position = acks.push(delivery.ack());
            if !matches!(entry.state, State::InHand { .. }) {
                entry.state = State::Settled;
                acks.settle(entry.position);
            }
        }
        entry.seen = self.arrivals;
        if let Some(doubt) = entry.doubt.take() {
            // The session is the one that we know.
            self.ids
                .values_mut()
                .filter(|entry| entry.doubt == Some(doubt))
                .for_each(|entry| entry.doubt = None);
        }
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
            self.orphans.push(Orphan { packet_id: hand.packet_id, fingerprint: hand.fingerprint });
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
        for entry in self.ids.values_mut().filter(|entry| entry.left_at.is_none()) {
            entry.left_at = Some(self.arrivals);
        }
        self.arrivals_before = self.arrivals;
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

    /// Forgets what earlier connections left and the broker has not mentioned for long; PUBACKs have their own queue.
    fn sweep(&mut self) {
        let (arrivals, orphans) = (self.arrivals, &mut self.orphans);
        self.ids.retain(|packet_id, entry| {
            let stale = entry.left_at.is_some_and(|left| arrivals - left > STALE_AFTER_ARRIVALS);
            let kept = !stale || matches!(entry.state, State::Written { .. });
            if !kept {
                orphans.extend(entry.orphan(*packet_id));
            }
            kept
        });
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

#[cfg(test)]
#[path = "redelivery_tests.rs"]
mod tests;
