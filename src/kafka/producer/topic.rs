//! One topic: its partitions, what waits until they are known, and what is wrong with it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use super::RIGHTS_RETRY;
use super::partition::Partition;
use super::{SentBefore, Tag};
use crate::backoff::Backoff;
use crate::kafka::error::{Class, ErrorCode};
use crate::kafka::partitioner::Sticky;
use crate::kafka::protocol::{TopicMetadata, TopicName};
use crate::kafka::record_batch::Record;

/// Metadata is asked again after this long without a reason, as the Java client's metadata.max.age.ms.
const METADATA_AGE: Duration = Duration::from_secs(300);
/// Backoff while a topic or its leader is missing.
const METADATA_FIRST: Duration = Duration::from_millis(100);
const METADATA_MAX: Duration = Duration::from_secs(2);
/// After a refused time, records go without one for this long: the clock will not be right with the next batch.
const TIMELESS_FOR: Duration = Duration::from_secs(60);
/// A topic that Kafka refuses waits for an operator.
const REFUSED_RETRY: Duration = Duration::from_secs(5);
/// A topic is never made smaller, so one with fewer partitions than before is another one of the same name, or the
/// broker that says so is behind: which of them, time tells.
const SMALLER_FOR: Duration = Duration::from_secs(10);
/// Answers in a row that a topic does not exist before the operator is told: a topic that is just being created
/// is missing for one or two.
const MISSING_ANSWERS: u32 = 4;

/// Answers that it does not exist, in spite of our wish that Kafka create it, before there is nothing to wait for: what is
/// being created is missing in the first one.
const NOT_CREATED_ANSWERS: u32 = 2;

/// Where a partition is in the producer's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartitionAt {
    pub topic: usize,
    pub partition: usize,
}

/// Whether the leader may be asked what it has written (needs READ on the topic).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskRight {
    Untried,
    Trying,
    Granted,
    Denied,
}

/// A partition and whether it is in the producer's list of those that may have something to send.
pub(super) struct Slot<T> {
    pub partition: Partition<T>,
    pub listed: bool,
}

/// What came before the partitions of its topic were known.
pub(super) enum Early<T> {
    /// A record, and when it came.
    Record(Record, T, Instant),
    /// A batch of an earlier process for this partition.
    Sent(i32, SentBefore<T>),
}

impl<T> Early<T> {
    pub fn into_records(self) -> Vec<(Record, T)> {
        match self {
            Early::Record(record, tag, _) => vec![(record, tag)],
            Early::Sent(_, batch) => batch.records,
        }
    }
}

/// What a metadata answer means for the records that wait for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MetadataVerdict {
    /// The partitions are known.
    Known,
    /// Ask again later.
    Later,
    /// Kafka will never take a record for this topic.
    Never(ErrorCode),
}

/// See the module head.
pub(super) struct Topic<T> {
    pub name: TopicName,
    pub slots: Vec<Slot<T>>,
    /// What came before the partitions were known.
    pub waiting: VecDeque<Early<T>>,
    /// Where records without a key go.
    pub sticky: Sticky,
    /// Partitions that have a leader.
    pub available: Vec<i32>,
    pub ask_right: AskRight,
    /// When a refused right is tried again.
    pub ask_again_at: Instant,
    /// A record is there, so a missing topic may be created.
    create: bool,
    pub metadata_due: Instant,
    pub metadata_asked: bool,
    metadata_backoff: Backoff,
    missing_answers: u32,
    /// Of these, those since a record is there.
    not_created_answers: u32,
    pub refused: Option<ErrorCode>,
    /// It was refused to say anything of it, not to write.
    refused_description: bool,
    /// Kafka will never take a topic of this name.
    pub impossible: bool,
    /// Until then its records are sent without a time, because Kafka has refused that.
    timeless_until: Option<Instant>,
    /// Since when it has been said to have fewer partitions than it had.
    smaller_since: Option<Instant>,
    /// Since when there is a batch of an earlier process for a partition that it is not said to have.
    short_since: Option<Instant>,
}

impl<T: Tag> Topic<T> {
    pub fn new(name: TopicName, sticky: Sticky, now: Instant) -> Self {
        Topic {
            name,
            slots: Vec::new(),
            waiting: VecDeque::new(),
            sticky,
            available: Vec::new(),
            ask_right: AskRight::Untried,
            ask_again_at: now,
            create: false,
            metadata_due: now,
            metadata_asked: false,
            metadata_backoff: Backoff::new(METADATA_FIRST, METADATA_MAX),
            missing_answers: 0,
            not_created_answers: 0,
            refused: None,
            refused_description: false,
            impossible: false,
            smaller_since: None,
            short_since: None,
            timeless_until: None,
        }
    }

    /// A record is there: from now on the topic may be created if it is missing. True if it is to be asked for now.
    pub fn want_creation(&mut self, now: Instant) -> bool {
        if self.create {
            return false;
        }
        self.create = true;
        let missing = self.may_create();
        if missing {
            // What was missing before anybody asked for its creation says nothing.
            self.missing_answers = self.missing_answers.min(1);
            self.metadata_backoff.reset();
            self.metadata_due = now;
        }
        missing
    }

    /// True if the topic is to be asked for in such a way that Kafka creates it, if it may: also after a deletion,
    /// or what waits for it would wait for ever.
    pub fn may_create(&self) -> bool {
        self.create && (self.slots.is_empty() || self.missing_answers > 0)
    }

    /// True if the right to ask is to be learnt, beside the batch that is about to be sent: once, so that the window
    /// can open, and again from time to time while it is refused.
    pub fn wants_to_ask(&mut self, now: Instant) -> bool {
        match self.ask_right {
            AskRight::Untried => self.ask_right = AskRight::Trying,
            AskRight::Denied if now >= self.ask_again_at => self.ask_again_at = now + RIGHTS_RETRY,
            _ => return false,
        }
        true
    }

    /// True if Kafka is there and does not take it: waiting a moment longer helps nobody.
    pub fn is_held(&self) -> bool {
        self.refused.is_some() || self.not_created_answers >= NOT_CREATED_ANSWERS
    }

    /// True if it was said to be missing for so long that the operator was told.
    pub fn is_missing(&self) -> bool {
        self.missing_answers >= MISSING_ANSWERS
    }

    /// Asks for metadata again soon: a leader was wrong or is gone.
    pub fn want_metadata(&mut self, now: Instant, random: f64) {
        if !self.metadata_asked {
            self.metadata_due = self.metadata_due.min(now + self.metadata_backoff.next_delay(random));
        }
    }

    /// Notes what Kafka says of the topic itself.
    pub fn on_metadata(&mut self, answer: &TopicMetadata, now: Instant, random: f64) -> MetadataVerdict {
        self.metadata_asked = false;
        let code = ErrorCode(answer.error);
        match code.class() {
            Class::None if !answer.partitions.is_empty() => {
                self.on_known(answer, now, random);
                MetadataVerdict::Known
            }
            Class::TopicRefused | Class::ClientRefused => {
                self.refused_description |= self.refused.is_none();
                self.on_refused(code);
                self.metadata_due = now + REFUSED_RETRY;
                // Only the name can make it final; rights can be granted.
                if code.name() == "INVALID_TOPIC_EXCEPTION" {
                    self.impossible = true;
                    MetadataVerdict::Never(code)
                } else {
                    MetadataVerdict::Later
                }
            }
            _ => {
                self.on_missing(code, now);
                self.metadata_due = now + self.metadata_backoff.next_delay(random);
                MetadataVerdict::Later
            }
        }
    }

    /// Kafka refuses the topic: an operator must act; told once until it is taken again.
    pub fn on_refused(&mut self, code: ErrorCode) {
        if self.refused != Some(code) {
            error!("Kafka refuses topic {}: {code}; its records wait until that is mended", self.name);
            self.refused = Some(code);
        }
    }

    /// Kafka refuses the times of this topic's records: most likely our clock is wrong. Told once.
    pub fn on_time_refused(&mut self, now: Instant) {
        if self.timeless_until.is_none() {
            error!(
                "Kafka refuses the time of records for topic {} (message.timestamp.*.max.ms): they are written without \
                 one; look at this machine's clock",
                self.name
            );
        }
        self.timeless_until = Some(now + TIMELESS_FOR);
    }

    /// True while records are to be sent without a time.
    pub fn is_timeless(&self, now: Instant) -> bool {
        self.timeless_until.is_some_and(|until| now < until)
    }

    /// Kafka takes the topic.
    pub fn on_accepted(&mut self) {
        self.refused_description = false;
        if let Some(code) = self.refused.take() {
            info!("Kafka takes topic {} again (it refused it with {code})", self.name);
        }
    }

    fn on_known(&mut self, answer: &TopicMetadata, now: Instant, random: f64) {
        if self.missing_answers >= MISSING_ANSWERS {
            info!("Kafka topic {} exists now", self.name);
        }
        self.missing_answers = 0;
        self.not_created_answers = 0;
        // A refusal to describe the topic has ended; a refusal to write to it ends when a batch is written.
        if self.slots.is_empty() || self.refused_description {
            self.on_accepted();
        }
        // Kafka numbers them without gaps and names them all, so no number on the wire sizes an allocation.
        let count = answer.partitions.len();
        let is_known = |index: i32| usize::try_from(index).is_ok_and(|index| index < count);
        if self.slots.len() < count {
            self.short_since = None;
        }
        while self.slots.len() < count {
            self.slots.push(Slot { partition: Partition::new(), listed: false });
        }
        let led = answer.partitions.iter().filter(|p| p.leader >= 0 && is_known(p.index));
        self.available = led.map(|partition| partition.index).collect();
        let mut leaderless = self.slots.len() > count;
        for slot in self.slots.iter_mut().skip(count) {
            slot.partition.set_leader(None, now);
        }
        self.smaller_since = leaderless.then(|| self.smaller_since.unwrap_or(now));
        for partition in &answer.partitions {
            let Some(slot) = usize::try_from(partition.index).ok().and_then(|at| self.slots.get_mut(at))
            else {
                continue;
            };
            let leader = (partition.leader >= 0).then_some(partition.leader);
            if let (Some(old), Some(new)) = (slot.partition.leader, leader)
                && old != new
            {
                info!("partition {}-{} is led by broker {new} now (was {old})", self.name, partition.index);
            }
            leaderless |= leader.is_none();
            slot.partition.set_leader(leader, now);
        }
        if leaderless {
            self.metadata_due = now + self.metadata_backoff.next_delay(random);
        } else {
            self.metadata_backoff.reset();
            self.metadata_due = now + METADATA_AGE;
        }
    }

    /// True while a partition that it is said not to have may be one that the broker which says so has not heard of.
    pub fn may_be_short(&mut self, now: Instant) -> bool {
        let since = *self.short_since.get_or_insert(now);
        now.saturating_duration_since(since) < SMALLER_FOR
    }

    /// Takes out the partitions that the topic no longer has, once that is certain.
    pub fn take_gone(&mut self, answer: &TopicMetadata, now: Instant) -> Vec<Slot<T>> {
        let certain =
            self.smaller_since.is_some_and(|since| now.saturating_duration_since(since) >= SMALLER_FOR);
        let count = answer.partitions.len();
        if !certain || count == 0 || count >= self.slots.len() {
            return Vec::new();
        }
        self.smaller_since = None;
        warn!(
            "Kafka topic {} has {count} partitions and had {}: it was made anew, and what waits for the others is \
             given to these",
            self.name,
            self.slots.len()
        );
        self.slots.split_off(count)
    }

    fn on_missing(&mut self, code: ErrorCode, now: Instant) {
        for slot in &mut self.slots {
            slot.partition.set_leader(None, now);
        }
        self.missing_answers = self.missing_answers.saturating_add(1);
        self.not_created_answers = self.not_created_answers.saturating_add(u32::from(self.create));
        if self.missing_answers == MISSING_ANSWERS && self.create {
            error!(
                "Kafka topic {} cannot be written: {code}; create it, or allow auto.create.topics.enable; \
                 its records wait",
                self.name
            );
        }
    }
}
