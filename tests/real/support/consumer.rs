//! The consumer that is not ours: kcat (librdkafka). It reads, we keep the books.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tidegate::clients::payload::Payload;
use tidegate::clients::verify::{Summary, Verifier};

use super::process::installed;

/// Fields are parted by 0x1f, which no test message holds.
const FORMAT: &str = "%p\\x1f%o\\x1f%T\\x1f%k\\x1f%h\\x1f%s\\n";

/// One record as kcat printed it.
#[derive(Debug, Clone)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: String,
    pub headers: String,
    pub value: String,
}

impl Record {
    pub fn parse(line: &str) -> Option<Record> {
        let mut fields = line.splitn(6, '\u{1f}');
        Some(Record {
            partition: fields.next()?.parse().ok()?,
            offset: fields.next()?.parse().ok()?,
            timestamp_ms: fields.next()?.parse().ok()?,
            key: fields.next()?.to_owned(),
            headers: fields.next()?.to_owned(),
            value: fields.next()?.to_owned(),
        })
    }

    /// It was in the spool, as it says itself.
    pub fn is_replayed(&self) -> bool {
        self.headers.split(',').any(|header| header == "tidegate.replayed=1")
    }
}

/// What was read, judged.
#[derive(Debug, Default)]
pub struct Verdict {
    pub summary: Summary,
    /// Records whose key is not their device.
    pub wrong_key: u64,
    /// Keys that were seen on more than one partition.
    pub split_keys: u64,
    /// Records that say they were stored in between.
    pub replayed: u64,
}

impl Verdict {
    /// Everything once, in order, under its key.
    pub fn is_clean(&self, sent: u64) -> bool {
        self.summary.is_clean()
            && (self.wrong_key, self.split_keys) == (0, 0)
            && self.summary.received - self.summary.repeated_by_publisher == sent
    }

    pub fn assert_clean(&self, sent: u64) {
        assert!(self.is_clean(sent), "of {sent} sent: {self:?}");
    }

    /// Everything in order under its key, and at most so many that came twice.
    pub fn assert_clean_but_for(&self, duplicates: u64) {
        let summary = &self.summary;
        let wrong = [summary.lost, summary.out_of_order, summary.moved, self.wrong_key, self.split_keys];
        assert_eq!(wrong, [0; 5], "(lost, out of order, moved, wrong key, split keys) {self:?}");
        let repeated = summary.duplicates;
        assert!(summary.received > 0 && repeated <= duplicates, "at most {duplicates} may repeat: {self:?}");
    }
}

#[derive(Default)]
pub struct Books {
    verifier: Verifier,
    partitions: HashMap<String, i32>,
    wrong_key: u64,
    split_keys: u64,
    replayed: u64,
}

impl Books {
    /// Different messages so far.
    pub fn distinct(&self) -> u64 {
        self.verifier.distinct()
    }

    pub fn enter(&mut self, record: &Record, now_ns: Option<u64>) {
        self.verifier.enter(record.partition, record.value.as_bytes(), now_ns);
        let device = Payload::decode(record.value.as_bytes()).map(|payload| payload.device.into_owned());
        self.wrong_key += u64::from(device.is_some_and(|device| device != record.key));
        let first = *self.partitions.entry(record.key.clone()).or_insert(record.partition);
        self.split_keys += u64::from(first != record.partition);
        self.replayed += u64::from(record.is_replayed());
    }

    pub fn verdict(&self, sent: u64) -> Verdict {
        let summary = self.verifier.summary(Some(sent));
        Verdict { summary, wrong_key: self.wrong_key, split_keys: self.split_keys, replayed: self.replayed }
    }
}

pub fn kcat(bootstrap: &str, topic: &str) -> Command {
    let mut command = installed("kcat");
    command.args(["-C", "-q", "-b", bootstrap, "-t", topic, "-o", "beginning", "-f", FORMAT]);
    // It must not itself be what a returned broker is waited for by: 10 s is its default.
    command.args(["-X", "check.crcs=true", "-X", "reconnect.backoff.max.ms=500"]);
    command
}

/// Reads a topic from beginning to end with a fresh consumer: the last word of a test.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<Record> {
    let mut command = kcat(bootstrap, topic);
    let output = command.arg("-e").output().expect("kcat starts");
    assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| Record::parse(line).unwrap_or_else(|| panic!("kcat printed {line:?}"))).collect()
}

/// Reads a topic from beginning to end with a fresh consumer and judges it, keeping no record: for millions.
pub fn judge_topic(bootstrap: &str, topic: &str, sent: u64) -> Verdict {
    let mut command = kcat(bootstrap, topic);
    let mut child = command.arg("-e").stdout(Stdio::piped()).spawn().expect("kcat starts");
    let mut books = Books::default();
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
        let line = line.expect("kcat prints text");
        let record = Record::parse(&line).unwrap_or_else(|| panic!("kcat printed {line:?}"));
        books.enter(&record, None);
    }
    let status = child.wait().expect("kcat can be waited for");
    assert!(status.success(), "kcat: {status}");
    books.verdict(sent)
}

/// Judges records read by [`read_all`].
pub fn judge(records: &[Record], sent: u64) -> Verdict {
    let mut books = Books::default();
    for record in records {
        books.enter(record, None);
    }
    books.verdict(sent)
}
