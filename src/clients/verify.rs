//! The books of a consumer: which messages of which device arrived, how often and in which order. Pure.
//!
//! It reads [`Payload`]s in the order of one Kafka partition each, and knows nothing of who delivered them. Invariants:
//! a repetition is counted once as what it is, never also as a disorder; a message the publisher itself sent
//! again (see [`super::payload`]) is never laid to the gateway; memory is two bits a message.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::histogram::Histogram;
use super::payload::Payload;

/// A set of numbers from 1, one bit each.
#[derive(Debug, Clone, Default)]
struct Numbers {
    words: Vec<u64>,
    len: u64,
    max: u64,
}

impl Numbers {
    /// True if the number was not there before.
    fn insert(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1u64 << (number % 64);
        let Some(slot) = self.words.get_mut(word) else { return false };
        let new = *slot & bit == 0;
        *slot |= bit;
        self.len += u64::from(new);
        self.max = self.max.max(number);
        new
    }

    fn missing(&self) -> u64 {
        self.max - self.len
    }
}

#[derive(Debug, Default)]
struct Device {
    seen: Numbers,
    by_conn: BTreeMap<u32, Numbers>,
    last: (u32, u64),
    partition: Option<i32>,
}

/// What one run of the publisher became.
#[derive(Debug, Default)]
struct Run {
    devices: HashMap<String, Device>,
}

/// The books. See the module head.
#[derive(Debug, Default)]
pub struct Verifier {
    /// Counts only this run; None: all.
    only_run: Option<String>,
    runs: BTreeMap<String, Run>,
    totals: Totals,
    latency_us: Histogram,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Totals {
    received: u64,
    distinct: u64,
    duplicates: u64,
    repeated_by_publisher: u64,
    out_of_order: u64,
    moved: u64,
    foreign: u64,
}

/// What the books say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records read that are test messages of this run.
    pub received: u64,
    /// Different messages among them.
    pub distinct: u64,
    /// Messages that never came: gaps in a device's numbers, or what is missing of the number expected.
    pub lost: u64,
    /// Messages that came again though the publisher sent them once.
    pub duplicates: u64,
    /// Messages the publisher sent again because its own connection broke.
    pub repeated_by_publisher: u64,
    /// Messages that came after a later one of their device, for the first time.
    pub out_of_order: u64,
    /// Messages of a device that came on another partition than its first one.
    pub moved: u64,
    /// Records that are no test messages, or of another run.
    pub foreign: u64,
    /// Devices seen.
    pub devices: u64,
    /// Publish to receive, microseconds: median, 99 %, largest.
    pub latency_us: (u64, u64, u64),
}

impl Summary {
    /// Nothing lost, repeated, out of order or moved.
    pub fn is_clean(&self) -> bool {
        // Where nothing was received nothing was verified.
        self.received > 0 && (self.lost, self.duplicates, self.out_of_order, self.moved) == (0, 0, 0, 0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = self.latency_us;
        let ms = |us: u64| us as f64 / 1000.0;
        write!(
            f,
            "received {}, lost {}, duplicates {}, out of order {}, devices {}, latency ms p50 {:.1} p99 {:.1} max {:.1}",
            self.received,
            self.lost,
            self.duplicates,
            self.out_of_order,
            self.devices,
            ms(p50),
            ms(p99),
            ms(max),
        )?;
        for (name, count) in [
            ("repeated by the publisher", self.repeated_by_publisher),
            ("on a second partition", self.moved),
            ("not of this run", self.foreign),
        ] {
            if count > 0 {
                write!(f, ", {name} {count}")?;
            }
        }
        Ok(())
    }
}

impl Verifier {
    /// Counts only the messages of this run; None counts every run.
    pub fn new(only_run: Option<String>) -> Self {
        Verifier { only_run, ..Verifier::default() }
    }

    /// Enters one record. `now_ns` is when it was read, nanoseconds since the Unix epoch; None leaves latency out.
    pub fn enter(&mut self, partition: i32, value: &[u8], now_ns: Option<u64>) {
        let payload = Payload::decode(value)
            .filter(|payload| self.only_run.as_deref().is_none_or(|run| run == payload.run));
        let Some(payload) = payload else {
            self.totals.foreign += 1;
            return;
        };
        if let Some(now_ns) = now_ns {
            // The two programs may run on two machines: a clock that is behind gives 0, not a huge number.
            self.latency_us.record(now_ns.saturating_sub(payload.t_ns) / 1000);
        }
        if !self.runs.contains_key(payload.run.as_ref()) {
            self.runs.insert(payload.run.clone().into_owned(), Run::default());
        }
        let Some(run) = self.runs.get_mut(payload.run.as_ref()) else { return };
        if !run.devices.contains_key(payload.device.as_ref()) {
            run.devices.insert(payload.device.clone().into_owned(), Device::default());
        }
        let Some(device) = run.devices.get_mut(payload.device.as_ref()) else { return };
        enter_device(&mut self.totals, device, partition, &payload);
    }

    /// Different messages so far.
    pub fn distinct(&self) -> u64 {
        self.totals.distinct
    }

    /// The books as they stand. `expected` is how many different messages were sent: without it a message
    /// missing at the end of a device cannot be noticed.
    pub fn summary(&self, expected: Option<u64>) -> Summary {
        let devices = || self.runs.values().flat_map(|run| run.devices.values());
        let gaps: u64 = devices().map(|device| device.seen.missing()).sum();
        let lost = expected.map_or(gaps, |expected| expected.saturating_sub(self.totals.distinct).max(gaps));
        Summary {
            received: self.totals.received,
            distinct: self.totals.distinct,
            lost,
            duplicates: self.totals.duplicates,
            repeated_by_publisher: self.totals.repeated_by_publisher,
            out_of_order: self.totals.out_of_order,
            moved: self.totals.moved,
            foreign: self.totals.foreign,
            devices: devices().count() as u64,
            latency_us: (
                self.latency_us.per_mille(500),
                self.latency_us.per_mille(990),
                self.latency_us.max(),
            ),
        }
    }
}

fn enter_device(totals: &mut Totals, device: &mut Device, partition: i32, payload: &Payload<'_>) {
    totals.received += 1;
    let new = device.seen.insert(payload.seq);
    let new_in_conn = device.by_conn.entry(payload.conn).or_default().insert(payload.seq);
    let position = (payload.conn, payload.seq);
    totals.distinct += u64::from(new);
    if !new_in_conn {
        totals.duplicates += 1;
    } else if position < device.last {
        totals.out_of_order += 1;
    }
    if new_in_conn && !new {
        totals.repeated_by_publisher += 1;
    }
    device.last = device.last.max(position);
    totals.moved += u64::from(*device.partition.get_or_insert(partition) != partition);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(device: &str, conn: u32, seq: u64) -> Vec<u8> {
        Payload { run: "r".into(), device: device.into(), conn, seq, t_ns: 1_000_000 }.encode(0)
    }

    fn books(arrivals: &[(u32, u64)]) -> Verifier {
        let mut verifier = Verifier::new(None);
        for &(conn, seq) in arrivals {
            verifier.enter(0, &bytes("d", conn, seq), None);
        }
        verifier
    }

    #[test]
    fn all_in_order_is_clean() {
        let summary = books(&[(1, 1), (1, 2), (1, 3)]).summary(Some(3));
        assert!(summary.is_clean(), "{summary}");
        assert_eq!((summary.received, summary.devices), (3, 1));
    }

    #[test]
    fn nothing_received_is_not_clean() {
        assert!(!books(&[]).summary(None).is_clean());
    }

    #[test]
    fn a_gap_is_a_loss() {
        assert_eq!(books(&[(1, 1), (1, 3)]).summary(None).lost, 1);
    }

    #[test]
    fn a_missing_tail_is_a_loss_only_if_the_number_is_known() {
        assert_eq!(books(&[(1, 1)]).summary(None).lost, 0);
        assert_eq!(books(&[(1, 1)]).summary(Some(3)).lost, 2);
    }

    #[test]
    fn the_same_message_again_is_a_duplicate_and_no_disorder() {
        let summary = books(&[(1, 1), (1, 2), (1, 1), (1, 2), (1, 3)]).summary(Some(3));
        assert_eq!((summary.duplicates, summary.out_of_order, summary.lost), (2, 0, 0));
    }

    #[test]
    fn a_late_message_is_out_of_order_and_not_lost() {
        let summary = books(&[(1, 1), (1, 3), (1, 2), (1, 4)]).summary(Some(4));
        assert_eq!((summary.duplicates, summary.out_of_order, summary.lost), (0, 1, 0));
    }

    #[test]
    fn what_the_publisher_sent_again_is_its_own() {
        let summary = books(&[(1, 1), (1, 2), (2, 2), (2, 3)]).summary(Some(3));
        assert!(summary.is_clean(), "{summary}");
        assert_eq!(summary.repeated_by_publisher, 1);
    }

    #[test]
    fn an_old_connection_behind_a_new_one_is_out_of_order() {
        assert_eq!(books(&[(2, 2), (1, 1)]).summary(None).out_of_order, 1);
    }

    #[test]
    fn a_device_on_two_partitions_is_noticed() {
        let mut verifier = books(&[(1, 1)]);
        verifier.enter(1, &bytes("d", 1, 2), None);
        let summary = verifier.summary(Some(2));
        assert!(!summary.is_clean());
        assert_eq!(summary.moved, 1);
    }

    #[test]
    fn runs_and_strangers_are_told_apart() {
        let mut verifier = Verifier::new(Some("other".into()));
        verifier.enter(0, &bytes("d", 1, 1), None);
        verifier.enter(0, b"hello", None);
        assert_eq!((verifier.summary(None).foreign, verifier.summary(None).received), (2, 0));
        let mut all = Verifier::new(None);
        all.enter(0, &bytes("d", 1, 1), None);
        let second = Payload { run: "s".into(), device: "d".into(), conn: 1, seq: 1, t_ns: 0 };
        all.enter(0, &second.encode(0), None);
        assert_eq!((all.summary(None).duplicates, all.summary(None).devices), (0, 2));
    }

    #[test]
    fn latency_is_from_publish_to_receive() {
        let mut verifier = Verifier::new(None);
        verifier.enter(0, &bytes("d", 1, 1), Some(3_000_000));
        verifier.enter(0, &bytes("d", 1, 2), Some(0));
        assert_eq!(verifier.summary(None).latency_us, (0, 2000, 2000));
    }

    proptest! {
        /// Any delivery of a run: losses and repetitions are counted exactly, whatever the order.
        #[test]
        fn counts_agree_with_a_plain_count(arrivals in prop::collection::vec(1u64..60, 0..200)) {
            let pairs: Vec<(u32, u64)> = arrivals.iter().map(|&seq| (1, seq)).collect();
            let distinct = arrivals.iter().collect::<std::collections::BTreeSet<_>>().len() as u64;
            let summary = books(&pairs).summary(Some(60));
            prop_assert_eq!(summary.lost, 60 - distinct);
            prop_assert_eq!(summary.duplicates, arrivals.len() as u64 - distinct);
            prop_assert_eq!(summary.distinct, distinct);
        }
    }
}
