//! Messages that can never be delivered where they belong: to the dead-letter topic, or, without one, counted and told.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Publish, submit};
use crate::clock;
use crate::kafka::producer::RefusedRecord;
use crate::kafka::record_batch::{Record, with_record_ref};
use crate::message::AckToken;
use crate::pipeline::backlog::Rejected;
use crate::pipeline::dead_letter::{self, Buried, Reason};
use crate::pipeline::waiting::{Stage, Waiting};

/// Longest name in a log line.
const NAME_CHARS_MAX: usize = 100;

impl Publish {
    /// Writes a message that never became a record to the dead-letter topic.
    pub(super) fn bury_message(&mut self, message: Buried<'_>, reason: &Reason, token: AckToken) {
        self.bury_waiting(message, reason, Waiting::for_session(token, None));
    }

    pub(super) fn bury_waiting(&mut self, message: Buried<'_>, reason: &Reason, waiting: Waiting) {
        let subject = format!(
            "a message from MQTT topic {:?}",
            message.mqtt_topic.chars().take(NAME_CHARS_MAX).collect::<String>()
        );
        let letter = dead_letter::letter(message, reason);
        let mut waiting = waiting.into_letter(Stage::Letter);
        waiting.mqtt_topic = None;
        self.bury(&subject, letter, reason, waiting, clock::now());
    }

    /// Writes what Kafka has refused to the dead-letter topic.
    pub(super) fn bury_refused(&mut self) {
        let now = clock::now();
        for rejected in self.backlog.take_rejected() {
            let Rejected { topic, record, waiting, reason } = rejected;
            let subject = describe(&record, &topic, waiting.mqtt_topic.as_deref());
            let mut why = Reason::new(reason);
            why.meant_for = Some(topic.clone());
            if self.dead_letter_topic.as_ref() == Some(&topic) {
                self.lose(&subject, &why, waiting, now);
                continue;
            }
            let letter = dead_letter::with_reason(record, waiting.mqtt_topic.as_deref(), &why);
            self.bury(&subject, letter, &why, waiting.into_letter(Stage::Letter), now);
        }
        for refused in self.producer.take_refused() {
            let RefusedRecord { tag, topic, record, code, reason } = refused;
            let subject = describe(&record, &topic, tag.mqtt_topic.as_deref());
            let mut why = Reason::new(reason);
            why.code = Some(code);
            why.meant_for = Some(topic);
            match tag.stage {
                Stage::Record => {
                    let letter = dead_letter::with_reason(record, tag.mqtt_topic.as_deref(), &why);
                    self.bury(&subject, letter, &why, tag.into_letter(Stage::Letter), now);
                }
                Stage::Letter => {
                    let letter = dead_letter::without_value(record);
                    self.bury(&subject, letter, &why, tag.into_letter(Stage::LetterWithoutValue), now);
                }
                Stage::LetterWithoutValue => self.lose(&subject, &why, tag, now),
            }
        }
    }

    /// Writes one letter; without a topic for it the message is lost, which is counted and told.
    fn bury(&mut self, subject: &str, letter: Record, reason: &Reason, waiting: Waiting, now: Instant) {
        let Some(topic) = self.dead_letter_topic.clone() else {
            return self.lose(subject, reason, waiting, now);
        };
        self.complaints.lettered(subject, reason, now);
        let (producer, backlog) = (&mut self.producer, &mut self.backlog);
        let pushed =
            with_record_ref(&letter, |record| submit(producer, backlog, &topic, record, waiting, now));
        match pushed {
            Ok(()) => {
                self.counters.dead_lettered.fetch_add(1, Relaxed);
            }
            Err(waiting) => self.lose(subject, reason, waiting, now),
        }
    }

    fn lose(&mut self, subject: &str, reason: &Reason, waiting: Waiting, now: Instant) {
        self.counters.undeliverable.fetch_add(1, Relaxed);
        self.complaints.lost(subject, reason, now);
        self.backlog.free(waiting, &mut self.settling);
    }
}

/// A record for the log: where from, where to, how large. Topic and key are chosen by publishers: they are cut.
fn describe(record: &Record, kafka_topic: &str, mqtt_topic: Option<&str>) -> String {
    let bytes = record.value.as_ref().map_or(0, |value| value.len());
    let key = record.key.as_deref().map(String::from_utf8_lossy);
    let (what, name) = match (mqtt_topic, &key) {
        (Some(topic), _) => ("from MQTT topic", topic),
        (None, Some(key)) => ("with key", key.as_ref()),
        (None, None) => ("without a key", ""),
    };
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    format!("a record of {bytes} bytes {what} {name:?} for Kafka topic {kafka_topic}")
}
