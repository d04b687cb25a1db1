//! What the producer's owner needs to hold records on the disk while Kafka does not take them: which topics wait for too
//! long, taking records out, copying batches that were sent, and putting stored ones back in.
//!
//! What it does not know: the spool itself. A stored record is one whose tag says so ([`Tag::stored`]).

use std::time::{Duration, Instant};

use super::batch::Keep;
use super::topic::{Early, PartitionAt, Topic};
use super::{Action, Producer, SentBefore, Tag};
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::{Identity, Record, SealedBatch, with_record_ref};

/// A stored batch, and the identity that must be on the disk before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBatch<S> {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// What it will be sent with.
    pub identity: Identity,
    /// How many records that stands for.
    pub records: i32,
    /// An offset of the partition that the batch will lie behind; -1 if none is known.
    pub after_offset: i64,
    /// Its records, in order.
    pub stored: Vec<S>,
}

/// A batch that was sent and is not acknowledged, lent to be copied.
pub struct CopiedBatch<'a, T> {
    /// Partition index.
    pub partition: i32,
    /// What it was sent with; None where Kafka refuses idempotent producers.
    pub identity: Option<Identity>,
    /// The records.
    pub records: &'a SealedBatch,
    /// Who waits for each of them.
    pub tags: &'a mut [T],
}

/// What is known of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// Not asked for, or Kafka cannot be reached: it cannot be written now.
    Unreachable,
    /// A leader of it is connected and answers.
    Ready,
    /// Kafka refuses it, or it is missing: an operator must act.
    Refused,
    /// Kafka will never take a topic of this name; what is pushed comes back refused.
    Impossible,
}

impl<T: Tag> Producer<T> {
    /// True once after Kafka refused a topic for which there is something: [`Producer::overdue`] may have it.
    pub fn take_held_topic(&mut self) -> bool {
        std::mem::take(&mut self.held_topic)
    }

    /// True if Kafka is there and refuses the topic, or has not created it yet.
    pub fn holds_up(&self, topic: &TopicName) -> bool {
        let topic = self.by_name.get(topic).and_then(|index| self.topics.get(*index));
        topic.is_some_and(Topic::is_held)
    }

    /// The topics with a record that is not stored and came `after` or longer ago, and when to ask again. Where Kafka refuses
    /// the topic, or does not create it, there is nothing to wait for: then every record is.
    pub fn overdue(&self, now: Instant, after: Duration) -> (Vec<TopicName>, Option<Instant>) {
        let mut overdue = Vec::new();
        let mut next: Option<Instant> = None;
        for topic in &self.topics {
            let after = if topic.is_held() { Duration::ZERO } else { after };
            let waiting = topic.waiting.iter().find_map(|early| match early {
                Early::Record(_, tag, at) if tag.stored().is_none() => Some(*at),
                _ => None,
            });
            let oldest = topic.slots.iter().filter_map(|slot| slot.partition.oldest_unstored());
            match oldest.chain(waiting).min().map(|oldest| oldest + after) {
                Some(due) if due <= now => overdue.push(topic.name.clone()),
                Some(due) => next = Some(next.map_or(due, |known| known.min(due))),
                None => {}
            }
        }
        (overdue, next)
    }

    /// Takes out what was never sent and is not stored: for each partition in its order.
    pub fn take_unsent(&mut self, topic: &TopicName) -> Vec<(Record, T)> {
        let compression = self.options.compression;
        let Some(topic) = self.by_name.get(topic).and_then(|index| self.topics.get_mut(*index)) else {
            return Vec::new();
        };
        let mut records = Vec::new();
        for slot in &mut topic.slots {
            records.extend(slot.partition.take_unsent(compression));
        }
        for early in std::mem::take(&mut topic.waiting) {
            match early {
                Early::Record(record, tag, _) if tag.stored().is_none() => records.push((record, tag)),
                stored => topic.waiting.push_back(stored),
            }
        }
        self.pending -= records.len();
        records
    }

    /// Lends each batch of the topic that was sent and is not stored, for each partition in order. Where one was,
    /// [`Producer::convert`] or [`Producer::not_copied`] is to follow: what has another identity by then waits for that.
    pub fn copy_sent(&mut self, topic: &TopicName, mut lend: impl FnMut(CopiedBatch<'_, T>)) {
        let compression = self.options.compression;
        let Some(topic) = self.by_name.get(topic).and_then(|index| self.topics.get_mut(*index)) else {
            return;
        };
        let mut lent = false;
        for (partition, slot) in (0_i32..).zip(&mut topic.slots) {
            slot.partition.copy_sent(compression, |records, identity, tags| {
                lent = true;
                lend(CopiedBatch { partition, identity, records, tags });
            });
        }
        topic.slots.iter_mut().for_each(|slot| slot.partition.copying |= lent);
    }

    /// What [`Producer::copy_sent`] lent is on the disk: lends every tag of the topic, to be made one of a stored record.
    pub fn convert(&mut self, topic: &TopicName, mut lend: impl FnMut(&mut T)) {
        let Some(index) = self.by_name.get(topic).copied() else { return };
        let Some(topic) = self.topics.get_mut(index) else { return };
        topic.slots.iter_mut().for_each(|slot| slot.partition.convert(&mut lend));
        self.end_copying(index);
    }

    /// What [`Producer::copy_sent`] lent is not on the disk, and will not be: it may be sent as if it had never been lent.
    pub fn not_copied(&mut self, topic: &TopicName) {
        if let Some(index) = self.by_name.get(topic) {
            self.end_copying(*index);
        }
    }

    fn end_copying(&mut self, index: usize) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        topic.slots.iter_mut().for_each(|slot| slot.partition.copying = false);
        // What is in flight by now under another identity than was copied is to be kept.
        for partition in 0..topic.slots.len() {
            self.list(PartitionAt { topic: index, partition });
        }
    }

    /// Takes a batch of an earlier process, which may have been written: the leader is asked before it is sent. A partition
    /// that is no more is passed over, once that is certain: the records are placed as if they had never been sent.
    ///
    /// # Errors
    /// As for [`Producer::push`]: the batch.
    pub fn push_sent(
        &mut self,
        topic: &TopicName,
        partition: i32,
        batch: SentBefore<T>,
        now: Instant,
    ) -> Result<(), SentBefore<T>> {
        let Some(index) = self.topic_index(topic, now) else { return Err(batch) };
        let Some(found) = self.topics.get_mut(index) else { return Err(batch) };
        self.pending += batch.records.len();
        if found.want_creation(now) {
            self.metadata_at = self.metadata_at.min(now);
        }
        if found.slots.is_empty() {
            found.waiting.push_back(Early::Sent(partition, batch));
        } else {
            self.place_sent(index, partition, batch, now);
        }
        Ok(())
    }

    /// Adds a batch of an earlier process to its partition, whose topic is known.
    pub(super) fn place_sent(&mut self, index: usize, partition: i32, batch: SentBefore<T>, now: Instant) {
        let compression = self.options.compression;
        let at = usize::try_from(partition).unwrap_or(usize::MAX);
        let slot = self.topics.get_mut(index).and_then(|topic| topic.slots.get_mut(at));
        if let Some(slot) = slot {
            slot.partition.push_sent(batch, compression, now);
            return self.list(PartitionAt { topic: index, partition: at });
        }
        let random = self.rng.f64();
        let Some(topic) = self.topics.get_mut(index) else { return };
        if topic.may_be_short(now) {
            // Placed anew it would be written again.
            topic.waiting.push_back(Early::Sent(partition, batch));
            topic.want_metadata(now, random);
            self.metadata_at = self.metadata_at.min(topic.metadata_due);
            return;
        }
        for (record, tag) in batch.records {
            with_record_ref(&record, |record| self.place(index, record, tag, now));
        }
    }

    /// Asks for a topic for which there are stored records: it is created if that is allowed.
    pub fn want(&mut self, topic: &TopicName, now: Instant) {
        let index = self.topic_index(topic, now);
        if let Some(topic) = index.and_then(|index| self.topics.get_mut(index))
            && topic.want_creation(now)
        {
            self.metadata_at = self.metadata_at.min(now);
        }
    }

    /// What is known of a topic.
    pub fn topic_state(&self, topic: &TopicName, now: Instant) -> TopicState {
        let Some(topic) = self.by_name.get(topic).and_then(|index| self.topics.get(*index)) else {
            return TopicState::Unreachable;
        };
        let reached = |leader: i32| {
            self.cluster.links.values().any(|link| link.node == Some(leader) && link.is_healthy(now))
        };
        if topic.impossible {
            TopicState::Impossible
        } else if !self.cluster.links.values().any(|link| link.is_healthy(now)) {
            // What Kafka said of the topic before it went away says nothing of an outage.
            TopicState::Unreachable
        } else if topic.refused.is_some() || topic.is_missing() {
            TopicState::Refused
        } else if topic.slots.iter().filter_map(|slot| slot.partition.leader).any(reached) {
            TopicState::Ready
        } else {
            TopicState::Unreachable
        }
    }

    /// The identities of [`Action::Keep`] are on the disk: their batches may be sent.
    pub fn kept(&mut self, ticket: u64, now: Instant) {
        self.answer_keep(ticket, Keep::Yes, now);
    }

    /// The identities of [`Action::Keep`] are not on the disk, and the owner does without: their batches may be sent, and the
    /// identities of those that are not acknowledged are asked for again after [`Producer::keep_again`].
    pub fn unkept(&mut self, ticket: u64, now: Instant) {
        self.answer_keep(ticket, Keep::Failed, now);
    }

    /// The disk may take by now what it did not take before.
    pub fn keep_again(&mut self, now: Instant) {
        for topic in 0..self.topics.len() {
            let slots = self.topics.get(topic).map_or(0, |topic| topic.slots.len());
            for partition in 0..slots {
                let at = PartitionAt { topic, partition };
                if self.partition_mut(at).is_some_and(|partition| partition.keep_again()) {
                    self.list(at);
                    self.wake_at = Some(now);
                }
            }
        }
    }

    fn answer_keep(&mut self, ticket: u64, keep: Keep, now: Instant) {
        for at in self.keeping.remove(&ticket).unwrap_or_default() {
            if let Some(partition) = self.partition_mut(at) {
                partition.kept(ticket, keep);
            }
            self.list(at);
        }
        self.wake_at = Some(now);
    }

    /// Gathers identities to be kept, of one partition.
    pub(super) fn keep(&mut self, at: PartitionAt) {
        let compression = self.options.compression;
        let ticket = match self.keep_ticket {
            Some(ticket) => ticket,
            None => self.ticket(),
        };
        self.keep_ticket = Some(ticket);
        let Some(topic) = self.topics.get_mut(at.topic) else { return };
        let Some(slot) = topic.slots.get_mut(at.partition) else { return };
        let partition = i32::try_from(at.partition).unwrap_or(i32::MAX);
        for kept in slot.partition.keep_identities(ticket, compression) {
            let (identity, records, after_offset) = (kept.identity, kept.records, kept.after_offset);
            let (topic, stored) = (topic.name.clone(), kept.stored);
            let batch = KeptBatch { topic, partition, identity, records, after_offset, stored };
            self.to_keep.push((at, batch));
        }
    }

    /// Asks the owner to keep what [`Producer::keep`] gathered.
    pub(super) fn send_keep(&mut self, now: Instant) {
        let Some(ticket) = self.keep_ticket.take() else { return };
        let (mut partitions, batches): (Vec<PartitionAt>, Vec<_>) = self.to_keep.drain(..).unzip();
        partitions.dedup();
        self.keeping.insert(ticket, partitions);
        if batches.is_empty() {
            return self.kept(ticket, now);
        }
        self.actions.push_back(Action::Keep { ticket, batches });
    }
}
