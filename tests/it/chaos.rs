//! Faults of both sides at once, in an order drawn from a seed: whatever happens, each message is in Kafka once and
//! in the order of its key. A seed that failed is kept here as a test of its own.
//!
//! The MQTT side is a model of a broker's session: packet ids that go round, a window, redelivery in order with DUP
//! of what it has no PUBACK for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rumqttc::mqttbytes::QoS;

use crate::support::kafka_broker::{Act, Api, Cluster, Release};
use crate::support::mqtt_broker::{Link, MqttBroker, publish};
use crate::support::process::Setup;
use crate::support::wait;

pub const PARTITIONS: i32 = 3;
pub const DEVICES: usize = 7;
pub const WINDOW: usize = 60;
const ROUNDS: usize = 80;

#[test]
fn seed_1() {
    run(1);
}

#[test]
fn seed_2() {
    run(2);
}

#[test]
fn seed_3() {
    run(3);
}

pub struct Sent {
    pub id: u16,
    pub topic: String,
    pub value: String,
}

/// A broker's session, and the messages it will send.
pub struct Session {
    pub link: Link,
    pub unacknowledged: VecDeque<Sent>,
    /// PUBACKs of this connection that were taken in.
    taken: usize,
    next_id: u16,
    /// How many messages of each device were published.
    pub published: [usize; DEVICES],
}

impl Session {
    pub fn new(link: Link) -> Self {
        Session { link, unacknowledged: VecDeque::new(), taken: 0, next_id: 1, published: [0; DEVICES] }
    }

    pub fn publish(&mut self, rng: &mut fastrand::Rng) {
        let device = rng.usize(..DEVICES);
        let sent = Sent {
            id: self.next_id,
            topic: format!("d/{device}"),
            value: format!("{device} {}", self.published[device]),
        };
        self.published[device] += 1;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let packet = publish(&sent.topic, &sent.value, QoS::AtLeastOnce, sent.id, false);
        self.link.send(&packet);
        self.unacknowledged.push_back(sent);
    }

    /// The gateway learns that packet ids go round before it is tried: until then a lost PUBACK may repeat a message.
    pub fn go_round(&mut self, rng: &mut fastrand::Rng) {
        for count in [10, 300] {
            (0..count).for_each(|_| self.publish(rng));
            self.settle(wait::PATIENCE);
            self.wait_for_a_ping();
        }
    }

    pub fn take_pubacks(&mut self) {
        for id in &self.link.pubacks()[self.taken..] {
            let front = self.unacknowledged.pop_front().map(|sent| sent.id);
            assert_eq!(front, Some(*id), "PUBACKs come in the order of the messages, once");
            self.taken += 1;
        }
    }

    /// Cuts the connection and takes the session up on the next.
    fn cut(&mut self, mqtt: &MqttBroker) {
        self.end();
        self.resume(mqtt);
    }

    /// Cuts the connection, if it is not at its end.
    pub fn end(&mut self) {
        self.link.cut();
        self.link.wait_for_end();
        self.take_pubacks();
    }

    /// Takes the session up on the next connection.
    pub fn resume(&mut self, mqtt: &MqttBroker) {
        self.link = mqtt.resume();
        self.taken = 0;
        for sent in &self.unacknowledged {
            self.link.redeliver(&sent.topic, &sent.value, sent.id);
        }
    }

    pub fn settle(&mut self, limit: Duration) {
        wait::until_within(limit, "everything acknowledged", || {
            self.take_pubacks();
            match self.unacknowledged.front() {
                None => Ok(()),
                Some(sent) => Err(format!("{} left, the first is {}", self.unacknowledged.len(), sent.value)),
            }
        });
    }

    fn wait_for_a_ping(&self) {
        let pings = self.link.pings();
        wait::until("a PINGREQ", || if self.link.pings() > pings { Ok(()) } else { Err(pings) });
    }
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let kafka = Cluster::start_as(Release::V4, 3).topic("t", PARTITIONS as usize);
    let mqtt = MqttBroker::start();
    let _gateway = Setup::new(&mqtt, &kafka).wildcards("d/+:t").start();
    let mut session = Session::new(mqtt.session());
    session.go_round(&mut rng);
    let mut silenced = false;
    for _ in 0..ROUNDS {
        while session.unacknowledged.len() < WINDOW && rng.u8(..) > 8 {
            session.publish(&mut rng);
        }
        fault(&kafka, &mut rng, &mut silenced);
        if rng.u8(..100) < 12 {
            session.cut(&mqtt);
        }
        let want = rng.usize(..=session.unacknowledged.len());
        // Some rounds wait for progress, some pile faults on faults.
        if rng.bool() {
            recover(&kafka, &mut silenced);
            wait::until("some progress", || {
                session.take_pubacks();
                let left = session.unacknowledged.len();
                if left <= want { Ok(()) } else { Err(format!("{left} left, want {want}")) }
            });
        }
    }
    kafka.heal();
    recover(&kafka, &mut silenced);
    session.settle(wait::PATIENCE * 2);
    check(&kafka, &session.published);
}

/// All brokers are up, and none owes an answer that would hold things up until the request is given up.
pub fn recover(kafka: &Cluster, silenced: &mut bool) {
    let silenced = std::mem::take(silenced);
    if silenced {
        kafka.heal();
    }
    (1..=3).filter(|node| silenced || !kafka.is_up(*node)).for_each(|node| kafka.restart(node));
}

pub fn fault(kafka: &Cluster, rng: &mut fastrand::Rng, silenced: &mut bool) {
    let (node, partition) = (rng.i32(1..=3), rng.i32(0..PARTITIONS));
    let times = rng.usize(1..4);
    match rng.u8(..16) {
        0 => kafka.next(Api::Produce, times, Act::CloseBefore),
        1 => kafka.next(Api::Produce, times, Act::CloseAfter),
        2 => kafka.next(Api::Produce, times, Act::AppendThenError(7)),
        3 => kafka.next(Api::Produce, times, Act::AppendThenError(20)),
        4 => kafka.next(Api::Produce, times, Act::Error([2, 3, 6, 7, 19, 56][rng.usize(..6)])),
        5 => kafka.next(
            Api::Produce,
            1,
            [Act::WrongCorrelation, Act::Garbage, Act::Truncated][rng.usize(..3)].clone(),
        ),
        6 => kafka.next(
            Api::DescribeProducers,
            times,
            [Act::CloseAfter, Act::Error(6)][rng.usize(..2)].clone(),
        ),
        7 => kafka.next(Api::Metadata, times, [Act::CloseBefore, Act::Garbage][rng.usize(..2)].clone()),
        8 => {
            // Written, never answered, and then the broker forgets all but the last.
            *silenced = true;
            kafka.next(Api::Produce, times, Act::Silent);
            kafka.restart(node);
            kafka.restart(node % 3 + 1);
        }
        9 => kafka.restart(node),
        10 => kafka.stop(node),
        11 | 12 => kafka.move_leader("t", partition, node),
        _ => {}
    }
}

fn check(kafka: &Cluster, published: &[usize; DEVICES]) {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        for record in kafka.records("t", partition) {
            let text = record.text();
            let (device, number) = text.split_once(' ').expect("every value is ours");
            found.entry(device.to_owned()).or_default().push(number.parse().unwrap());
        }
        assert!(kafka.in_flight_max("t", partition) <= 5);
    }
    for (device, count) in published.iter().enumerate() {
        let numbers = found.remove(&device.to_string()).unwrap_or_default();
        let expected: Vec<usize> = (0..*count).collect();
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), *count, "device {device}: lost messages");
        assert_eq!(numbers.len(), *count, "device {device}: messages twice");
        assert_eq!(numbers, expected, "device {device}: order");
    }
}
