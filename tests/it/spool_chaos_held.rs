//! As `spool_chaos`, with requests that are held back before or after Kafka carried them out, for seconds: faults and kills at once, in an order drawn from a seed, while messages go through the spool:
//! nothing is lost, the order of each key is kept, and only what was unacknowledged at a kill may be there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::chaos::{DEVICES, PARTITIONS, Session, WINDOW, fault, recover};
use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release};
use crate::support::mqtt_broker::MqttBroker;
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

const ROUNDS: usize = 60;

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

fn start(mqtt: &MqttBroker, kafka: &Cluster, spool: &Path) -> Gateway {
    let setup = Setup::new(mqtt, kafka).spooling().wildcards("d/+:t").set("INVOKE_LATENCY_SEC", "1");
    setup.set("DB_PERSIST_PATH", &spool.display().to_string()).start()
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let home = tempfile::tempdir().unwrap();
    let spool = home.path().join("spool");
    let kafka = Cluster::start_as(Release::V4, 3).topic("t", PARTITIONS as usize);
    let mqtt = MqttBroker::start();
    let mut gateway = start(&mqtt, &kafka, &spool);
    let mut session = Session::new(mqtt.session());
    let mut excused = BTreeSet::new();
    let mut gates: Vec<Gate> = Vec::new();
    let mut silenced = false;
    for _ in 0..ROUNDS {
        while session.unacknowledged.len() < WINDOW && rng.u8(..) > 8 {
            session.publish(&mut rng);
        }
        if rng.u8(..100) < 25 {
            let gate = Gate::default();
            gates.push(gate.clone());
            let act = if rng.bool() { Act::HoldBefore(gate) } else { Act::HoldAfter(gate) };
            kafka.next(Api::Produce, rng.usize(1..20), act);
        } else {
            fault(&kafka, &mut rng, &mut silenced);
        }
        if rng.u8(..100) < 12 {
            gateway.signal(Signal::KILL);
            gateway.wait_for_exit(wait::PATIENCE);
            gateway = start(&mqtt, &kafka, &spool);
            session.resume(&mqtt);
            excused.extend(session.unacknowledged.iter().map(|sent| sent.value.clone()));
        }
        if rng.bool() {
            let want = rng.usize(..=session.unacknowledged.len());
            wait::until("acknowledgements, whatever Kafka does", || {
                session.take_pubacks();
                let left = session.unacknowledged.len();
                if left <= want { Ok(()) } else { Err(format!("{left} left, want {want}")) }
            });
        }
        if rng.u8(..100) < 30 {
            gates.drain(..).for_each(|gate| gate.open());
            recover(&kafka, &mut silenced);
        }
    }
    session.settle(wait::PATIENCE);
    kafka.heal();
    gates.drain(..).for_each(|gate| gate.open());
    recover(&kafka, &mut silenced);
    check(&kafka, &spool, &session.published, &excused);
}

/// All messages in the topic, by device.
fn found(kafka: &Cluster) -> BTreeMap<usize, Vec<usize>> {
    let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for value in (0..PARTITIONS).flat_map(|partition| kafka.values("t", partition)) {
        let (device, number) = value.split_once(' ').expect("every value is ours");
        found.entry(device.parse().unwrap()).or_default().push(number.parse().unwrap());
    }
    found
}

fn check(kafka: &Cluster, spool: &Path, published: &[usize; DEVICES], excused: &BTreeSet<String>) {
    wait::until_within(wait::PATIENCE * 2, "an empty spool", || {
        let names = fs::read_dir(spool).unwrap().map_while(Result::ok).map(|entry| entry.file_name());
        match names.filter(|name| name.to_string_lossy().ends_with(".seg")).count() {
            0 => Ok(()),
            count => Err(format!("{count} segments")),
        }
    });
    wait::until_within(Duration::from_secs(5), "all messages in Kafka", || {
        let found = found(kafka);
        let lost = |device: &usize| {
            let there: BTreeSet<usize> = found.get(device).into_iter().flatten().copied().collect();
            there.len() < published[*device]
        };
        let lost: Vec<usize> = (0..DEVICES).filter(lost).collect();
        if lost.is_empty() { Ok(()) } else { Err(format!("lost messages of the devices {lost:?}")) }
    });
    for (device, numbers) in found(kafka) {
        let mut seen = BTreeSet::new();
        let mut firsts = Vec::new();
        for number in numbers {
            if seen.insert(number) {
                firsts.push(number);
            } else {
                let value = format!("{device} {number}");
                assert!(
                    excused.contains(&value),
                    "`{value}` is there twice, and was acknowledged before every kill"
                );
            }
        }
        assert_eq!(firsts, (0..published[device]).collect::<Vec<_>>(), "device {device}: order");
    }
}
