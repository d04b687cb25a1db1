//! The producer's questions to leaders: what our producer has written (DescribeProducers), and what is in the log (ListOffsets,
//! Fetch). Which partition asks, and what follows from the answer, is [`super::recovery`]'s and [`super::read_back`]'s; here it
//! is found out whose answer it is, and what an error code means.

use std::time::Instant;

use log::{info, warn};

use super::partition::{Notice, Partition};
use super::read_back::Fetched;
use super::recovery::Told;
use super::topic::{AskRight, PartitionAt};
use super::{Producer, RIGHTS_RETRY, Tag};
use crate::kafka::error::{Class, ErrorCode};
use crate::kafka::protocol::{FetchResponse, PartitionOffset, PartitionProducers};

impl<T: Tag> Producer<T> {
    pub(super) fn on_producers(
        &mut self,
        ticket: u64,
        node: Option<i32>,
        asked: &[PartitionAt],
        answers: &[PartitionProducers],
        now: Instant,
    ) {
        for at in asked {
            let Some(topic) = self.topics.get_mut(at.topic) else { continue };
            let leader = topic.slots.get(at.partition).and_then(|slot| slot.partition.leader);
            if leader != node {
                // A broker that was frozen may still take itself for the leader, and knows nothing of what the next
                // one has written since. The next one was asked as well, or will be.
                if topic.ask_right == AskRight::Trying {
                    topic.ask_right = AskRight::Untried;
                }
                self.list(*at);
                continue;
            }
            let answer = answers.iter().find(|answer| {
                answer.topic == topic.name && usize::try_from(answer.partition) == Ok(at.partition)
            });
            let code = answer.map(|answer| ErrorCode(answer.error));
            match code.map(ErrorCode::class) {
                Some(Class::None) => {
                    if topic.ask_right == AskRight::Denied {
                        info!("READ on Kafka topic {} is granted now", topic.name);
                    }
                    topic.ask_right = AskRight::Granted;
                    self.with_partition(*at, |partition, delivered| {
                        let told = answer.map_or(Told::Nothing, |answer| told(partition, answer));
                        partition.producers_answer(ticket, told, delivered);
                    });
                }
                Some(Class::TopicRefused | Class::ClientRefused) => {
                    if topic.ask_right != AskRight::Denied {
                        warn!(
                            "no right to READ Kafka topic {} ({}): after a broker failure a batch may be written \
                             twice, and only one is in flight for a partition; grant READ on it",
                            topic.name,
                            code.unwrap_or(ErrorCode(0))
                        );
                    }
                    topic.ask_right = AskRight::Denied;
                    topic.ask_again_at = now + RIGHTS_RETRY;
                    self.question_unanswered(*at, ticket, now);
                }
                _ => self.ask_leader_again(*at, ticket, now),
            }
            self.list(*at);
        }
    }

    pub(super) fn on_offsets(
        &mut self,
        ticket: u64,
        at: PartitionAt,
        answers: &[PartitionOffset],
        now: Instant,
    ) {
        let Some(topic) = self.topics.get(at.topic) else { return };
        let answer = answers.iter().find(|answer| {
            answer.topic == topic.name && usize::try_from(answer.partition) == Ok(at.partition)
        });
        let code = answer.map(|answer| ErrorCode(answer.error));
        match (code.map(ErrorCode::class), answer) {
            (Some(Class::None), Some(answer)) => {
                let offset = answer.offset;
                self.with_partition(at, |partition, delivered| {
                    partition.offset_answer(ticket, offset, delivered);
                });
            }
            (Some(Class::TopicRefused | Class::ClientRefused), _) => {
                self.with_partition(at, |partition, _| partition.read_denied(ticket));
            }
            _ => self.ask_leader_again(at, ticket, now),
        }
        self.list(at);
    }

    pub(super) fn on_fetched(&mut self, ticket: u64, at: PartitionAt, answer: FetchResponse, now: Instant) {
        let Some(topic) = self.topics.get(at.topic) else { return };
        let FetchResponse { error, partitions } = answer;
        let fetched = partitions.into_iter().find(|fetched| {
            fetched.topic == topic.name && usize::try_from(fetched.partition) == Ok(at.partition)
        });
        let random = self.rng.f64();
        let code = fetched.as_ref().map(|fetched| ErrorCode(if error == 0 { fetched.error } else { error }));
        match (code.map(|code| (code, code.class())), fetched) {
            (Some((_, Class::None)), Some(fetched)) => {
                let fetched = Fetched { high_watermark: fetched.high_watermark, records: fetched.records };
                self.with_partition(at, |partition, delivered| {
                    partition.read_answer(ticket, fetched, now, random, delivered);
                });
            }
            (Some((ErrorCode::OFFSET_OUT_OF_RANGE, _)), _) => {
                self.with_partition(at, |partition, _| partition.out_of_range(ticket, now, random));
            }
            (Some((_, Class::TopicRefused | Class::ClientRefused)), _) => {
                self.with_partition(at, |partition, _| partition.read_denied(ticket));
            }
            _ => self.ask_leader_again(at, ticket, now),
        }
        self.list(at);
    }

    /// Does something with a partition, and accounts for what it has delivered and has to tell.
    pub(super) fn with_partition(
        &mut self,
        at: PartitionAt,
        act: impl FnOnce(&mut Partition<T>, &mut Vec<T>),
    ) {
        let Some(slot) = self.topics.get_mut(at.topic).and_then(|topic| topic.slots.get_mut(at.partition))
        else {
            return;
        };
        let before = self.delivered.len();
        act(&mut slot.partition, &mut self.delivered);
        let notices = slot.partition.take_notices();
        let delivered = self.delivered.len() - before;
        self.pending -= delivered;
        self.stats.delivered += delivered as u64;
        notices.into_iter().for_each(|notice| self.note(at, notice));
    }

    fn ask_leader_again(&mut self, at: PartitionAt, ticket: u64, now: Instant) {
        let random = self.rng.f64();
        if let Some(topic) = self.topics.get_mut(at.topic) {
            topic.want_metadata(now, random);
            self.metadata_at = self.metadata_at.min(topic.metadata_due);
        }
        self.question_unanswered(at, ticket, now);
    }

    pub(super) fn question_unanswered(&mut self, at: PartitionAt, ticket: u64, now: Instant) {
        let random = self.rng.f64();
        if let Some(topic) = self.topics.get_mut(at.topic)
            && topic.ask_right == AskRight::Trying
        {
            topic.ask_right = AskRight::Untried;
        }
        if let Some(partition) = self.partition_mut(at) {
            partition.question_unanswered(ticket, now, random);
        }
        self.list(at);
    }

    pub(super) fn note(&mut self, at: PartitionAt, notice: Notice) {
        let name = self.topics.get(at.topic).map(|topic| topic.name.to_string()).unwrap_or_default();
        match notice {
            Notice::AcknowledgedRecordsGone => log::error!(
                "partition {name}-{} no longer has records that Kafka had acknowledged (an unclean leader \
                 election?); going on with a new producer id",
                at.partition
            ),
            Notice::MayRepeat(batches) => {
                self.stats.possible_repeats += batches as u64;
                warn!(
                    "partition {name}-{}: whether Kafka has written {batches} batches whose answers were lost cannot be found \
                     out (it has forgotten this producer, has deleted what was there, or READ on the topic is not granted); \
                     they are sent again, and may be there twice",
                    at.partition
                );
            }
        }
    }
}

/// What an answer says of the partition's present producer.
fn told<T: Tag>(partition: &Partition<T>, answer: &PartitionProducers) -> Told {
    let Some(ours) = partition.producer() else { return Told::Nothing };
    let Some(state) = answer.producers.iter().find(|state| state.producer_id == ours.id) else {
        return Told::Nothing;
    };
    match state.producer_epoch.cmp(&i32::from(ours.epoch)) {
        std::cmp::Ordering::Less => Told::Earlier,
        std::cmp::Ordering::Greater => Told::Later,
        // A marker of a transaction leaves none.
        std::cmp::Ordering::Equal if state.last_sequence < 0 => Told::Nothing,
        std::cmp::Ordering::Equal => Told::Last(state.last_sequence),
    }
}
