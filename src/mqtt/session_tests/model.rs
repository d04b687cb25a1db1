//! The session against a broker written from the specification, at random: publishes, cuts in both directions,
//! settlements in any order, lost sessions, both ways of giving identifiers away, limits that are reached; QoS 0, 1 and 2,
//! MQTT 3.1.1 and 5; releases that wait for a disk, or for none.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
enum Op {
    /// Somebody publishes: content (equal for all of the QoS, or its own).
    Publish { equal: bool, qos: u8 },
    /// The broker writes what its window allows.
    Pump,
    /// The client gets at most this many bytes.
    ToClient(usize),
    /// The client's socket takes at most this many bytes.
    FromClient(usize),
    /// The broker processes at most this many bytes of what the socket took.
    ToBroker(usize),
    /// One message in hand becomes safe.
    Settle(usize),
    /// The connection breaks; what the broker has not processed is lost.
    Cut { session_kept: bool },
    /// Time passes.
    Pass(u64),
    /// The disk takes up a batch of releases, or is done with it.
    Disk,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (prop::bool::weighted(0.5), prop::sample::select(vec![0_u8, 1, 1, 2, 2]))
            .prop_map(|(equal, qos)| Op::Publish { equal, qos }),
        6 => Just(Op::Pump),
        8 => (1_usize..60).prop_map(Op::ToClient),
        6 => (1_usize..30).prop_map(Op::FromClient),
        6 => (1_usize..30).prop_map(Op::ToBroker),
        8 => (0_usize..100).prop_map(Op::Settle),
        1 => prop::bool::weighted(0.8).prop_map(|session_kept| Op::Cut { session_kept }),
        1 => (1_u64..4).prop_map(Op::Pass),
        2 => Just(Op::Disk),
    ]
}

#[derive(Debug, Clone)]
struct Held {
    qos: u8,
    /// QoS 2: PUBREC came; only PUBREL is sent from now on (MQTT-4.3.3-1).
    recorded: bool,
    id: u16,
    content: String,
    /// Sent on some connection before; on this one.
    sent_before: bool,
    sent_here: bool,
}

/// A broker with one persistent session.
struct Broker {
    version: Version,
    ascending: bool,
    window: usize,
    last_id: u16,
    queue: Vec<(String, u8)>,
    in_flight: Vec<Held>,
    session: bool,
    accepted: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    /// QoS and identifier of what was sent on this connection, and how many of them are acknowledged.
    order: Vec<(u8, u16)>,
    acknowledged: usize,
    /// How often each content was acknowledged, in all.
    acknowledged_contents: HashMap<String, usize>,
}

impl Broker {
    fn next_id(&mut self) -> u16 {
        if self.ascending {
            self.last_id = self.last_id % 65_535 + 1;
            return self.last_id;
        }
        (1..).find(|id| self.in_flight.iter().all(|held| held.id != *id)).unwrap()
    }

    fn pump(&mut self) {
        if !self.accepted {
            return;
        }
        while let Some((content, qos)) = self.queue.first().cloned() {
            if qos > 0 && self.in_flight.len() >= self.window {
                break;
            }
            self.queue.remove(0);
            if qos == 0 {
                self.output.extend(publish_in(self.version, 0, false, 0, content.as_bytes()));
            } else {
                let id = self.next_id();
                self.in_flight.push(Held {
                    qos,
                    recorded: false,
                    id,
                    content,
                    sent_before: false,
                    sent_here: false,
                });
                self.send_in_flight();
            }
        }
        self.send_in_flight();
    }

    fn send_in_flight(&mut self) {
        for held in self.in_flight.iter_mut().filter(|held| !held.sent_here) {
            held.sent_here = true;
            if held.recorded {
                self.output.extend(pubrel(held.id));
                continue;
            }
            let payload = held.content.as_bytes();
            self.output.extend(publish_in(self.version, held.qos, held.sent_before, held.id, payload));
            held.sent_before = true;
            self.order.push((held.qos, held.id));
        }
    }

    fn process(&mut self) {
        for packet in sent(&mut self.input) {
            match packet {
                Sent::Connect => {
                    match self.version {
                        Version::V311 => self.output.extend([0x20, 2, u8::from(self.session), 0]),
                        Version::V5 => self.output.extend([0x20, 3, u8::from(self.session), 0, 0]),
                    }
                    self.session = true;
                    self.accepted = true;
                    self.send_in_flight();
                }
                Sent::Subscribe(id) => {
                    let [high, low] = id.to_be_bytes();
                    match self.version {
                        Version::V311 => self.output.extend([0x90, 3, high, low, 2]),
                        Version::V5 => self.output.extend([0x90, 4, high, low, 0, 2]),
                    }
                }
                Sent::Puback(id) => {
                    let place = self.acknowledge(1, id);
                    self.in_flight.remove(place);
                }
                Sent::Pubrec(id) => {
                    let place = self.acknowledge(2, id);
                    self.in_flight[place].recorded = true;
                    self.output.extend(pubrel(id));
                }
                Sent::Pubcomp(id) => {
                    let place = self.in_flight.iter().position(|held| held.id == id && held.recorded);
                    self.in_flight.remove(place.expect("a PUBCOMP for what was not released"));
                }
                Sent::Ping => self.output.extend([0xd0, 0]),
                Sent::Disconnect => panic!("{packet:?} was not asked for"),
            }
        }
    }

    /// Where the message is that this PUBACK or PUBREC is for.
    fn acknowledge(&mut self, qos: u8, id: u16) -> usize {
        assert_eq!(self.order.get(self.acknowledged), Some(&(qos, id)), "not in order of arrival");
        self.acknowledged += 1;
        let place = self.in_flight.iter().position(|held| held.id == id && !held.recorded);
        let place = place.expect("acknowledged twice");
        *self.acknowledged_contents.entry(self.in_flight[place].content.clone()).or_default() += 1;
        place
    }

    fn cut(&mut self, session_kept: bool) {
        self.accepted = false;
        self.input.clear();
        self.output.clear();
        self.order.clear();
        self.acknowledged = 0;
        for held in &mut self.in_flight {
            held.sent_here = false;
        }
        if !session_kept {
            self.session = false;
            self.in_flight.clear();
            self.queue.clear();
        }
    }
}

struct World {
    rig: Rig,
    broker: Broker,
    /// What the socket took and the broker has not processed.
    wire: Vec<u8>,
    published: HashMap<String, usize>,
    handed: HashMap<String, usize>,
    settled: HashMap<String, usize>,
    seen: usize,
    number: usize,
    /// Releases that the disk is busy with.
    releasing: Vec<u16>,
}

impl World {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Publish { equal, qos } => {
                self.number += 1;
                let kind = ["zero", "one", "two"][usize::from(*qos)];
                let content = if *equal { format!("{kind}=") } else { format!("{kind}{}", self.number) };
                *self.published.entry(content.clone()).or_default() += 1;
                self.broker.queue.push((content, *qos));
            }
            Op::Pump => self.broker.pump(),
            Op::ToClient(count) => {
                if self.rig.session.may_read() {
                    let count = (*count).min(self.broker.output.len());
                    let bytes: Vec<u8> = self.broker.output.drain(..count).collect();
                    self.rig.receive(&bytes);
                    self.hand_on();
                }
            }
            Op::FromClient(count) => {
                let output = self.rig.session.output();
                let bytes = output[..(*count).min(output.len())].to_vec();
                self.rig.session.wrote(bytes.len(), self.rig.now);
                self.wire.extend(bytes);
            }
            Op::ToBroker(count) => {
                let count = (*count).min(self.wire.len());
                self.broker.input.extend(self.wire.drain(..count));
                self.broker.process();
            }
            Op::Settle(index) => {
                if !self.rig.messages.is_empty() {
                    let index = index % self.rig.messages.len();
                    *self.settled.entry(content(&self.rig.messages[index])).or_default() += 1;
                    self.seen -= 1;
                    self.rig.settle(index);
                    if self.rig.session.may_read() && self.rig.session.has_input() {
                        self.rig.receive(&[]);
                        self.hand_on();
                    }
                }
            }
            Op::Cut { session_kept } => {
                self.rig.lose();
                self.wire.clear();
                self.broker.cut(*session_kept);
                self.rig.session.open(self.rig.now).unwrap();
            }
            Op::Disk if self.releasing.is_empty() => {
                self.releasing = self.rig.session.take_releases().unwrap_or_default();
            }
            Op::Disk => {
                self.releasing.clear();
                self.rig.session.released(self.rig.now).unwrap();
                if self.rig.session.may_read() && self.rig.session.has_input() {
                    self.rig.receive(&[]);
                    self.hand_on();
                }
            }
            Op::Pass(seconds) => {
                self.rig.pass(*seconds);
                // The model is slower than any broker: an answer on its way is not overdue.
                self.rig.session.on_deadline(self.rig.now, false).unwrap();
            }
        }
        if matches!(op, Op::ToClient(_) | Op::ToBroker(_) | Op::Settle(_)) {
            self.check();
        }
    }

    fn hand_on(&mut self) {
        for message in &self.rig.messages[self.seen..] {
            *self.handed.entry(content(message)).or_default() += 1;
        }
        self.seen = self.rig.messages.len();
    }

    fn check(&self) {
        for (content, count) in &self.broker.acknowledged_contents {
            let safe = self.settled.get(content).copied().unwrap_or_default();
            assert!(*count <= safe, "{content} acknowledged {count} times, safe {safe}");
        }
        let beyond = |(content, count): (&String, &usize)| {
            let repeats = count.saturating_sub(self.published.get(content).copied().unwrap_or_default());
            assert!(!content.starts_with("two") || repeats == 0, "{content} of QoS 2 passed on twice");
            repeats
        };
        let repeats: usize = self.handed.iter().map(beyond).sum();
        let possible = self.rig.session.stats().possible_repeats as usize;
        assert!(repeats <= possible, "{repeats} passed on twice, {possible} counted as possible");
        assert!(self.rig.messages.len() <= 6, "the in-hand limit");
    }

    /// Everything flows until nothing is left to do.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            let ops = [Op::Pump, Op::ToClient(1000), Op::FromClient(1000), Op::ToBroker(1000), Op::Settle(0)];
            ops.iter().chain(&[Op::Disk, Op::Disk]).for_each(|op| self.step(op));
            let broker = &self.broker;
            let quiet = broker.queue.is_empty() && broker.in_flight.is_empty() && broker.output.is_empty();
            if quiet && self.rig.messages.is_empty() && self.wire.is_empty() && broker.accepted {
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

fn content(message: &Message) -> String {
    let Body::Payload(payload) = &message.body else { panic!("oversized") };
    String::from_utf8(payload.to_vec()).unwrap()
}

fn version(five: bool) -> Version {
    if five { Version::V5 } else { Version::V311 }
}

fn world(version: Version, hold_releases: bool, ascending: bool, window: usize) -> World {
    let mut rig = Rig::new(SessionOptions {
        in_flight_messages_max: 4,
        in_hand_messages_max: 6,
        keep_alive_sec: 2,
        version,
        hold_releases,
        ..options()
    });
    rig.session.open(rig.now).unwrap();
    let broker = Broker {
        version,
        ascending,
        window,
        last_id: 65_500,
        queue: Vec::new(),
        in_flight: Vec::new(),
        session: false,
        accepted: false,
        input: Vec::new(),
        output: Vec::new(),
        order: Vec::new(),
        acknowledged: 0,
        acknowledged_contents: HashMap::new(),
    };
    World {
        rig,
        broker,
        wire: Vec::new(),
        published: HashMap::new(),
        handed: HashMap::new(),
        settled: HashMap::new(),
        seen: 0,
        number: 0,
        releasing: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_passed_on_twice_or_acknowledged_early_or_out_of_order(
        five: bool,
        hold: bool,
        ascending: bool,
        window in 1_usize..9,
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut world = world(version(five), hold, ascending, window);
        let mut thrown_away: Vec<String> = Vec::new();
        for op in &ops {
            if let Op::Cut { session_kept: false } = op {
                // The broker loses these, and nobody can help it; those in our hands are handed on once more or less.
                thrown_away.extend(world.broker.queue.iter().map(|(content, _)| content.clone()));
                thrown_away.extend(world.broker.in_flight.iter().map(|held| held.content.clone()));
            }
            world.step(op);
        }
        world.finish();
        for (content, published) in &world.published {
            // QoS 0 may be lost with a connection, and is never repeated.
            let handed = world.handed.get(content).copied().unwrap_or_default();
            if content.starts_with("zero") {
                prop_assert!(handed <= *published);
            } else {
                let lost = thrown_away.iter().filter(|lost| *lost == content).count();
                prop_assert!(handed + lost >= *published, "{content}: {handed} of {published}, {lost} thrown away");
            }
        }
        prop_assert_eq!(world.rig.session.in_hand(), (0, 0));
        prop_assert_eq!(world.rig.session.redelivery.hands(), 0);
        prop_assert!(world.rig.session.acks.is_empty());
        // A broker may lose the session twice before one CONNACK is seen; what it forgot unseen stays, and harms nothing.
        if !ops.iter().any(|op| matches!(op, Op::Cut { session_kept: false })) {
            prop_assert_eq!(world.rig.session.unreleased(), 0);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_broker_that_goes_round_all_ids_causes_no_repeat_at_all(
        five: bool,
        hold: bool,
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut world = world(version(five), hold, true, 4);
        // Until the session has seen how this broker gives identifiers away.
        for _ in 0..120 {
            world.step(&Op::Publish { equal: false, qos: 1 });
        }
        for _ in 0..40 {
            world.step(&Op::Pass(2));
            for op in [Op::Pump, Op::ToClient(999), Op::FromClient(999), Op::ToBroker(999)] {
                world.step(&op);
                (0..6).for_each(|_| world.step(&Op::Settle(0)));
            }
        }
        let mut kept = ops;
        kept.iter_mut().for_each(|op| if let Op::Cut { session_kept } = op { *session_kept = true });
        kept.iter().for_each(|op| world.step(op));
        world.finish();
        prop_assert_eq!(world.rig.session.stats().possible_repeats, 0);
        for (content, published) in world.published.iter().filter(|(content, _)| !content.starts_with("zero")) {
            prop_assert_eq!(world.handed.get(content), Some(published));
        }
    }
}
