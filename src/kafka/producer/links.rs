//! The producer's side of the links: opening and closing them, what is asked of any broker (metadata, a producer
//! id), and what each answer or lost answer means.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::batch::Refusal;
use super::cluster::{Asked, SUSPICIOUS_AFTER, Sent};
use super::partition::{Answer, ProducerId, Setback};
use super::topic::{Early, MetadataVerdict, PartitionAt, Topic};
use super::{Action, Identity, Producer, Tag};
use crate::kafka::error::{Class, ErrorCode};
use crate::kafka::protocol::{
    MetadataRequest, MetadataResponse, ProduceResponse, Request, Response, TopicMetadata,
};
use crate::kafka::record_batch::with_record_ref;

/// Topics due within this time are asked for together.
const METADATA_TOGETHER: Duration = Duration::from_millis(250);
const PRODUCER_ID_RETRY: Duration = Duration::from_millis(250);
/// While a broker is suspiciously silent, another is asked this often whether its partitions have moved.
const SUSPICION_REFRESH: Duration = Duration::from_secs(1);

impl<T: Tag> Producer<T> {
    pub(super) fn close_stale_links(&mut self, now: Instant) {
        for (link, why) in self.cluster.links_to_close(now) {
            let random = self.rng.f64();
            let unanswered = self.cluster.remove(link, why, random, now);
            self.actions.push_back(Action::Close { link });
            self.on_unanswered(unanswered, now);
        }
    }

    pub(super) fn open_links(&mut self, now: Instant) {
        let (openings, next) = self.cluster.open_missing(&self.wanted_nodes, now);
        for opening in openings {
            let (link, host, port) = (opening.link, opening.host, opening.port);
            self.actions.push_back(Action::Open { link, host, port });
        }
        self.wake_at = next;
    }

    pub(super) fn ask_metadata(&mut self, now: Instant) {
        self.suspect_silent_leaders(now);
        let Some(link) = self.cluster.any_healthy(now) else { return };
        if self.metadata_asked.is_some_and(|ticket| self.cluster.is_stuck(ticket, now)) {
            self.metadata_unanswered(now);
        }
        if self.metadata_asked.is_some() || now < self.metadata_at {
            return;
        }
        let together = now + METADATA_TOGETHER;
        let mut create_missing = false;
        let mut names = Vec::new();
        // Topics that may be created are asked for apart from those that must not be.
        let creating = self.topics.iter().any(|t| t.metadata_due <= now && t.may_create());
        for topic in self.topics.iter_mut().filter(|topic| topic.metadata_due <= together) {
            if topic.may_create() == creating {
                create_missing |= creating;
                topic.metadata_asked = true;
                names.push(topic.name.clone());
            }
        }
        if names.is_empty() {
            self.find_metadata_at(now);
            return;
        }
        let request = MetadataRequest { topics: Some(names), create_missing };
        self.metadata_asked = Some(self.send(link, Request::Metadata(request), Asked::Metadata, now));
    }

    pub(super) fn ask_producer_id(&mut self, now: Instant) {
        match self.identity {
            Identity::WantedFrom(from) if now < from => return self.wake_by(from),
            Identity::Asked(ticket) if !self.cluster.is_stuck(ticket, now) => return,
            Identity::WantedFrom(_) | Identity::Asked(_) => {}
            Identity::Known(_) => return,
        }
        if let Some(link) = self.cluster.any_healthy(now) {
            let ticket = self.send(link, Request::InitProducerId, Asked::ProducerId, now);
            self.identity = Identity::Asked(ticket);
        }
    }

    pub(super) fn send(&mut self, link: u64, request: Request, what: Asked, now: Instant) -> u64 {
        let ticket = self.ticket();
        self.send_as(ticket, link, request, what, now);
        ticket
    }

    pub(super) fn send_as(&mut self, ticket: u64, link: u64, request: Request, what: Asked, now: Instant) {
        if let Some(found) = self.cluster.links.get_mut(&link) {
            found.sent.push_back(Sent { ticket, at: now, what });
        }
        self.actions.push_back(Action::Send { link, request });
    }

    pub(super) fn on_response(&mut self, link: u64, response: Response, now: Instant) {
        let Some(sent) = self.cluster.answered(link, now) else { return };
        match (sent.what, response) {
            (Asked::Metadata, Response::Metadata(mut metadata)) => {
                // An answer that is not waited for any more is older than what another broker has said since.
                if self.metadata_asked == Some(sent.ticket) {
                    forget_unknown_leaders(&mut metadata);
                    self.on_metadata(&metadata, now);
                }
            }
            (Asked::ProducerId, Response::InitProducerId(answer)) => {
                if self.identity == Identity::Asked(sent.ticket) {
                    let id = ProducerId { id: answer.producer_id, epoch: answer.producer_epoch };
                    self.on_producer_id(ErrorCode(answer.error), id, now);
                }
            }
            (Asked::Produce(partitions), Response::Produce(answer)) => {
                self.on_produced(sent.ticket, &partitions, &answer, now);
            }
            (Asked::Producers(partitions), Response::DescribeProducers(answers)) => {
                let node = self.cluster.links.get(&link).and_then(|link| link.node);
                self.on_producers(sent.ticket, node, &partitions, &answers, now);
            }
            (Asked::ReadBack(at), Response::ListOffsets(answers)) => {
                self.on_offsets(sent.ticket, at, &answers, now);
            }
            (Asked::ReadBack(at), Response::Fetch(answer)) => {
                self.on_fetched(sent.ticket, at, answer, now);
            }
            (what, _) => {
                // The connection pairs answers with requests, so this is a broker that does not speak Kafka.
                warn!("a Kafka broker answered a request of another kind; closing the connection");
                let mut unanswered = VecDeque::from([Sent { ticket: sent.ticket, at: sent.at, what }]);
                let random = self.rng.f64();
                unanswered.extend(self.cluster.on_closed(link, "answer of another kind", None, random, now));
                self.actions.push_back(Action::Close { link });
                self.on_unanswered(unanswered, now);
            }
        }
    }

    /// What was asked on a link that is no more.
    pub(super) fn on_unanswered(&mut self, unanswered: VecDeque<Sent>, now: Instant) {
        for sent in unanswered {
            match sent.what {
                Asked::Metadata if self.metadata_asked == Some(sent.ticket) => self.metadata_unanswered(now),
                Asked::ProducerId if self.identity == Identity::Asked(sent.ticket) => {
                    self.identity = Identity::WantedFrom(now);
                }
                Asked::Metadata | Asked::ProducerId => {}
                Asked::Produce(partitions) => {
                    for at in partitions {
                        self.answer_partition(at, sent.ticket, &Answer::Unknown, now);
                    }
                }
                Asked::Producers(partitions) => {
                    for at in partitions {
                        self.question_unanswered(at, sent.ticket, now);
                    }
                }
                Asked::ReadBack(at) => self.question_unanswered(at, sent.ticket, now),
            }
        }
        self.wake_at = Some(now);
    }

    fn metadata_unanswered(&mut self, now: Instant) {
        self.metadata_asked = None;
        for topic in &mut self.topics {
            topic.metadata_asked = false;
        }
        self.metadata_at = now;
    }

    fn on_metadata(&mut self, metadata: &MetadataResponse, now: Instant) {
        self.metadata_asked = None;
        self.cluster.on_brokers(&metadata.brokers);
        for answer in &metadata.topics {
            let Some(index) = self.by_name.get(&answer.name).copied() else { continue };
            let random = self.rng.f64();
            let Some(topic) = self.topics.get_mut(index) else { continue };
            match topic.on_metadata(answer, now, random) {
                MetadataVerdict::Known => {
                    self.place_waiting(index, now);
                    self.place_gone(index, answer, now);
                    self.detach_moved(index, now);
                }
                MetadataVerdict::Later => self.held_topic |= topic.is_held(),
                MetadataVerdict::Never(code) => self.refuse_waiting(index, code),
            }
        }
        // A topic that was asked for and is not in the answer is asked for again.
        for topic in self.topics.iter_mut().filter(|topic| topic.metadata_asked) {
            topic.metadata_asked = false;
            topic.metadata_due = now + SUSPICION_REFRESH;
        }
        self.find_wanted_nodes();
        self.find_metadata_at(now);
        // Brokers that left may have led partitions of topics that this answer does not speak of.
        let brokers: Vec<i32> = metadata.brokers.iter().map(|broker| broker.id).collect();
        self.suspect_leaders(now, |leader| !brokers.contains(&leader));
        self.wake_at = Some(now);
    }

    /// These brokers cannot be reached: another may lead their partitions by now. Without a batch in flight
    /// nothing else would tell, and what comes next would wait for the next look at the metadata, minutes later.
    pub(super) fn suspect_leaders(&mut self, now: Instant, suspect: impl Fn(i32) -> bool) {
        for topic in &mut self.topics {
            if topic.slots.iter().filter_map(|slot| slot.partition.leader).any(&suspect) {
                topic.want_metadata(now, self.rng.f64());
                self.metadata_at = self.metadata_at.min(topic.metadata_due);
            }
        }
    }

    fn find_metadata_at(&mut self, now: Instant) {
        let due = self.topics.iter().map(|topic| topic.metadata_due).min();
        self.metadata_at = due.unwrap_or(now + Duration::from_secs(3600));
    }

    fn place_waiting(&mut self, index: usize, now: Instant) {
        let waiting = self.topics.get_mut(index).map(|topic| std::mem::take(&mut topic.waiting));
        for early in waiting.unwrap_or_default() {
            match early {
                Early::Record(record, tag, _) => {
                    with_record_ref(&record, |record| self.place(index, record, tag, now));
                }
                Early::Sent(partition, batch) => self.place_sent(index, partition, batch, now),
            }
        }
    }

    /// What waits for partitions that are no more goes where its keys belong now, in its order. Nothing of it can
    /// be in Kafka: what was written went with the old topic.
    fn place_gone(&mut self, index: usize, answer: &TopicMetadata, now: Instant) {
        let gone = self.topics.get_mut(index).map(|topic| topic.take_gone(answer, now));
        let gone = gone.unwrap_or_default();
        if gone.is_empty() {
            return;
        }
        // Copies of them may be on the way to the disk, and these make whole batches stored ones.
        self.seal_all(index);
        for slot in gone {
            for (record, tag) in slot.partition.into_records() {
                with_record_ref(&record, |record| self.place(index, record, tag, now));
            }
        }
        self.seal_all(index);
    }

    fn seal_all(&mut self, index: usize) {
        let codec = self.options.compression;
        let slots = self.topics.get_mut(index).into_iter().flat_map(|topic| &mut topic.slots);
        slots.for_each(|slot| slot.partition.seal_open(codec));
    }

    fn refuse_waiting(&mut self, index: usize, code: ErrorCode) {
        let Some(topic) = self.topics.get_mut(index) else { return };
        let name = topic.name.clone();
        for (record, tag) in std::mem::take(&mut topic.waiting).into_iter().flat_map(Early::into_records) {
            self.refuse(&name, record, tag, code, format!("Kafka refuses the topic name {name}"));
        }
    }

    /// What is in flight to a broker that leads the partition no more will not be answered in any useful way, and
    /// if that broker hangs, not at all.
    fn detach_moved(&mut self, index: usize, now: Instant) {
        let Some(topic) = self.topics.get(index) else { return };
        let mut moved = Vec::new();
        for (partition, slot) in topic.slots.iter().enumerate() {
            for ticket in slot.partition.unanswered() {
                let node = self.cluster.link_of_ticket(ticket).and_then(|link| link.node);
                if node.is_some() && slot.partition.leader.is_some() && node != slot.partition.leader {
                    moved.push((PartitionAt { topic: index, partition }, ticket));
                }
            }
        }
        for (at, ticket) in moved {
            self.answer_partition(at, ticket, &Answer::Unknown, now);
        }
    }

    /// A broker that is silent may have lost its partitions to another: ask one that answers.
    fn suspect_silent_leaders(&mut self, now: Instant) {
        let silent = |sent: &Sent| now.saturating_duration_since(sent.at) >= SUSPICIOUS_AFTER;
        let links = self.cluster.links.values();
        let stuck = links.filter(|link| link.sent.front().is_some_and(silent));
        let asked: Vec<PartitionAt> = stuck
            .flat_map(|link| &link.sent)
            .flat_map(|sent| match &sent.what {
                Asked::Produce(partitions) | Asked::Producers(partitions) => partitions.as_slice(),
                Asked::ReadBack(at) => std::slice::from_ref(at),
                Asked::Metadata | Asked::ProducerId => &[],
            })
            .copied()
            .collect();
        for at in asked {
            if let Some(topic) = self.topics.get_mut(at.topic)
                && !topic.metadata_asked
                && topic.metadata_due > now + SUSPICION_REFRESH
            {
                topic.metadata_due = now + SUSPICION_REFRESH;
                self.metadata_at = self.metadata_at.min(topic.metadata_due);
            }
        }
    }

    fn on_producer_id(&mut self, code: ErrorCode, id: ProducerId, now: Instant) {
        match code.class() {
            Class::None => {
                if std::mem::take(&mut self.idempotence_denied) {
                    info!("Kafka grants an idempotent producer now");
                }
                self.newest = Some(id);
                self.identity = Identity::Known(id);
                self.wake_at = Some(now);
            }
            Class::ClientRefused | Class::TopicRefused => {
                self.deny_idempotence(code, now);
                self.wake_at = Some(now);
            }
            _ => self.identity = Identity::WantedFrom(now + PRODUCER_ID_RETRY),
        }
    }

    fn on_produced(&mut self, ticket: u64, asked: &[PartitionAt], answer: &ProduceResponse, now: Instant) {
        for at in asked {
            let Some(topic) = self.topics.get(at.topic) else { continue };
            let result = answer.results.iter().find(|result| {
                result.topic == topic.name && usize::try_from(result.partition) == Ok(at.partition)
            });
            let offset = result.map_or(-1, |result| result.base_offset);
            let outcome = match result {
                None => Answer::Unknown,
                Some(result) => match ErrorCode(result.error).class() {
                    Class::None | Class::AlreadyWritten => Answer::Written,
                    _ => Answer::Failed(Refusal {
                        code: result.error,
                        culprits: result.record_errors.clone(),
                        message: result.message.clone(),
                    }),
                },
            };
            if outcome == Answer::Written
                && let Some(partition) = self.partition_mut(*at)
            {
                let repeated = result.is_some_and(|result| result.error != 0);
                partition.written_at(ticket, offset, repeated);
            }
            self.answer_partition(*at, ticket, &outcome, now);
        }
    }

    fn answer_partition(&mut self, at: PartitionAt, ticket: u64, answer: &Answer, now: Instant) {
        let random = self.rng.f64();
        let Some(topic) = self.topics.get_mut(at.topic) else { return };
        let Some(slot) = topic.slots.get_mut(at.partition) else { return };
        slot.partition.answer(ticket, answer);
        let before = self.delivered.len();
        let setback = slot.partition.collect(now, random, &mut self.delivered);
        let delivered = self.delivered.len() - before;
        self.pending -= delivered;
        self.stats.delivered += delivered as u64;
        if delivered > 0 {
            topic.on_accepted();
        }
        if let Some(setback) = setback {
            self.stats.setbacks += 1;
            on_setback(topic, setback, now, random);
            self.held_topic |= topic.is_held();
            self.metadata_at = self.metadata_at.min(topic.metadata_due);
        }
        self.list(at);
    }
}

/// A leader that is not among the brokers cannot be reached: as good as none, and waited for in the same way.
fn forget_unknown_leaders(metadata: &mut MetadataResponse) {
    let brokers = &metadata.brokers;
    let partitions = metadata.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
    for partition in partitions.filter(|p| !brokers.iter().any(|broker| broker.id == p.leader)) {
        partition.leader = -1;
    }
}

fn on_setback<T: Tag>(topic: &mut Topic<T>, setback: Setback, now: Instant, random: f64) {
    let Some(code) = setback.code else {
        topic.want_metadata(now, random);
        return;
    };
    match code.class() {
        Class::TopicRefused | Class::ClientRefused => topic.on_refused(code),
        Class::RecordRefused | Class::ProducerRefused => {}
        _ => topic.want_metadata(now, random),
    }
}
