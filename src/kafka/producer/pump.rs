//! The pump: what may be sent now, gathered into one Produce request for each broker.

use std::collections::BTreeMap;
use std::time::Instant;

use super::cluster::Asked;
use super::partition::{Partition, Step, View};
use super::topic::{AskRight, PartitionAt};
use super::{GATHER_BYTES, GATHER_MAX, Identity, Producer, Tag};
use crate::kafka::protocol::{ProduceBatch, ProduceRequest, Request, TopicName};

/// Most unanswered requests on a link: five Produce requests keep a partition's window full, the rest is for
/// questions.
const LINK_REQUESTS_MAX: usize = 12;
/// Most unanswered Produce requests on a link.
const LINK_PRODUCES_MAX: usize = 5;
/// Most bytes of records in one request; the broker's own limit is 100 MiB (socket.request.max.bytes).
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the broker may wait for its replicas before it answers REQUEST_TIMED_OUT.
const REPLICAS_TIMEOUT_MS: i32 = 10_000;

/// What the pump gathers for one link.
#[derive(Default)]
struct Load {
    produce: Vec<(PartitionAt, ProduceBatch)>,
    bytes: usize,
    ticket: u64,
    ask: Vec<PartitionAt>,
    read: Option<(PartitionAt, Request)>,
}

/// What the pump knows of one link.
#[derive(Clone, Copy)]
struct Room {
    link: u64,
    can_ask: bool,
    may_produce: bool,
    may_send: bool,
    /// One partition at a time is read back on a link: an answer is large.
    may_read: bool,
    gather: bool,
}

impl<T: Tag> Producer<T> {
    /// Puts a partition into the list of those that may have something to do.
    pub(super) fn list(&mut self, at: PartitionAt) {
        if let Some(slot) = self.topics.get_mut(at.topic).and_then(|topic| topic.slots.get_mut(at.partition))
            && !slot.listed
        {
            slot.listed = true;
            self.listed.push_back(at);
        }
    }

    pub(super) fn partition_mut(&mut self, at: PartitionAt) -> Option<&mut Partition<T>> {
        self.topics.get_mut(at.topic)?.slots.get_mut(at.partition).map(|slot| &mut slot.partition)
    }

    pub(super) fn pump(&mut self, now: Instant) {
        if self.listed.is_empty() {
            return;
        }
        let rooms = self.rooms(now);
        let mut loads: BTreeMap<u64, Load> = BTreeMap::new();
        for _ in 0..self.listed.len() {
            let Some(at) = self.listed.pop_front() else { break };
            if self.pump_partition(at, &rooms, &mut loads, now) {
                self.listed.push_back(at);
            } else if let Some(slot) =
                self.topics.get_mut(at.topic).and_then(|topic| topic.slots.get_mut(at.partition))
            {
                slot.listed = false;
            }
        }
        for (link, load) in loads {
            self.send_load(link, load, now);
        }
        self.send_keep(now);
    }

    /// Moves one partition on as far as it goes. True if it must be looked at again.
    fn pump_partition(
        &mut self,
        at: PartitionAt,
        rooms: &BTreeMap<i32, Room>,
        loads: &mut BTreeMap<u64, Load>,
        now: Instant,
    ) -> bool {
        loop {
            let Some(topic) = self.topics.get(at.topic) else { return false };
            let (right, name) = (topic.ask_right, topic.name.clone());
            let Some(partition) = self.partition_mut(at).filter(|partition| partition.has_work()) else {
                return false;
            };
            let Some(room) = partition.leader.and_then(|leader| rooms.get(&leader)) else { return true };
            let view = self.view(*room, right, now);
            let Some(partition) = self.partition_mut(at) else { return false };
            let step = partition.step(&view);
            for notice in partition.take_notices() {
                self.note(at, notice);
            }
            match step {
                Step::Idle => return true,
                Step::WaitUntil(time) => {
                    self.wake_by(time);
                    return true;
                }
                Step::NeedsProducerId => {
                    if matches!(self.identity, Identity::Known(_)) {
                        self.identity = Identity::WantedFrom(now);
                    }
                    return true;
                }
                Step::AskProducers => {
                    if room.may_send
                        && let Some(partition) = self.partition_mut(at)
                    {
                        partition.question_asked();
                        loads.entry(room.link).or_default().ask.push(at);
                    }
                    return true;
                }
                Step::ReadBack(read) => {
                    let load = loads.entry(room.link).or_default();
                    if room.may_read
                        && load.read.is_none()
                        && let Some(partition) = self.partition_mut(at)
                    {
                        partition.question_asked();
                        let index = i32::try_from(at.partition).unwrap_or(i32::MAX);
                        load.read = Some((at, read.request(name, index)));
                    }
                    return true;
                }
                Step::CannotRead => self.with_partition(at, |partition, _| partition.cannot_read()),
                Step::TakeApart => {
                    self.take_apart(at, &name, now);
                }
                Step::Keep => {
                    self.keep(at);
                    return true;
                }
                Step::Send => {
                    let room = *room;
                    self.load_batch(at, room, loads.entry(room.link).or_default(), now);
                    // One batch of a partition in a request; the next goes with the next request.
                    return true;
                }
            }
        }
    }

    /// What a partition is told of the world.
    fn view(&self, room: Room, right: AskRight, now: Instant) -> View {
        let idempotent = !self.idempotence_denied;
        let wall_ms = self.wall_clock.map(|(at, unix_ms)| {
            let since = now.saturating_duration_since(at).as_millis();
            unix_ms.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
        });
        View {
            now,
            producer: self.newest,
            idempotent,
            can_ask: idempotent && room.can_ask && right == AskRight::Granted,
            may_ask: idempotent && room.can_ask && right != AskRight::Denied,
            may_read: right != AskRight::Denied,
            wall_ms,
            linger: self.options.linger,
            gather: room.gather,
            compression: self.options.compression,
        }
    }

    /// Puts the partition's next batch into the request, if there is room for it.
    fn load_batch(&mut self, at: PartitionAt, room: Room, load: &mut Load, now: Instant) {
        if !room.may_produce || load.bytes >= REQUEST_BYTES_MAX {
            return;
        }
        let Some(topic) = self.topics.get_mut(at.topic) else { return };
        let Some(slot) = topic.slots.get_mut(at.partition) else { return };
        if load.ticket == 0 {
            load.ticket = self.next_ticket;
            self.next_ticket += 1;
        }
        let Some(records) = slot.partition.send(load.ticket) else { return };
        let idempotent = !self.idempotence_denied;
        if room.can_ask && idempotent && topic.wants_to_ask(now) {
            load.ask.push(at);
        }
        // Records without a key change partition with every batch (KIP-480).
        topic.sticky.next_batch(&topic.available, self.rng.u32(..));
        load.bytes += records.len();
        let partition = i32::try_from(at.partition).unwrap_or(i32::MAX);
        load.produce.push((at, ProduceBatch { topic: topic.name.clone(), partition, records }));
    }

    fn take_apart(&mut self, at: PartitionAt, name: &TopicName, now: Instant) {
        let compression = self.options.compression;
        let Some(topic) = self.topics.get_mut(at.topic) else { return };
        let Some(slot) = topic.slots.get_mut(at.partition) else { return };
        let Some((refusal, culprits)) = slot.partition.take_apart(compression) else { return };
        let code = crate::kafka::error::ErrorCode(refusal.code);
        if code.refuses_time() {
            topic.on_time_refused(now);
        }
        for culprit in culprits {
            let reason = culprit.reason.unwrap_or_else(|| code.to_string());
            self.refuse(name, culprit.record, culprit.tag, code, reason);
        }
    }

    fn send_load(&mut self, link: u64, load: Load, now: Instant) {
        if !load.produce.is_empty() {
            let (partitions, batches): (Vec<PartitionAt>, Vec<ProduceBatch>) =
                load.produce.into_iter().unzip();
            self.stats.requests += 1;
            self.stats.batches += batches.len() as u64;
            let request =
                ProduceRequest { acks: self.options.acks, timeout_ms: REPLICAS_TIMEOUT_MS, batches };
            self.send_as(load.ticket, link, Request::Produce(request), Asked::Produce(partitions), now);
            if let Some(found) = self.cluster.links.get_mut(&link) {
                found.produced_at = Some(now);
            }
        }
        if !load.ask.is_empty() {
            let mut topics: BTreeMap<TopicName, Vec<i32>> = BTreeMap::new();
            for at in &load.ask {
                if let Some(topic) = self.topics.get(at.topic) {
                    let index = i32::try_from(at.partition).unwrap_or(i32::MAX);
                    topics.entry(topic.name.clone()).or_default().push(index);
                }
            }
            let request = Request::DescribeProducers(topics.into_iter().collect());
            let asked = load.ask.clone();
            let ticket = self.send(link, request, Asked::Producers(load.ask), now);
            self.question_sent(&asked, ticket);
        }
        if let Some((at, request)) = load.read {
            let ticket = self.send(link, request, Asked::ReadBack(at), now);
            self.question_sent(&[at], ticket);
        }
    }

    fn question_sent(&mut self, asked: &[PartitionAt], ticket: u64) {
        for at in asked {
            if let Some(partition) = self.partition_mut(*at) {
                partition.question_sent(ticket);
            }
        }
    }

    /// What each connected leader can take now.
    fn rooms(&mut self, now: Instant) -> BTreeMap<i32, Room> {
        let mut rooms = BTreeMap::new();
        for (id, link) in &self.cluster.links {
            let (Some(node), Some(can_ask)) = (link.node, link.ready) else { continue };
            let produces = link.produces_in_flight();
            let gather_until = link.produced_at.map(|at| at + GATHER_MAX);
            let room = Room {
                link: *id,
                can_ask,
                may_produce: produces < LINK_PRODUCES_MAX && link.sent.len() < LINK_REQUESTS_MAX,
                may_send: link.sent.len() < LINK_REQUESTS_MAX,
                may_read: link.sent.len() < LINK_REQUESTS_MAX && !link.reads_back(),
                gather: produces > 0 && gather_until.is_some_and(|until| now < until),
            };
            rooms.insert(node, room);
        }
        if rooms.values().any(|room| room.gather) {
            self.end_gathering_of_full_loads(&mut rooms);
        }
        for room in rooms.values().filter(|room| room.gather) {
            if let Some(at) = self.cluster.links.get(&room.link).and_then(|link| link.produced_at) {
                self.wake_at = Some(self.wake_at.map_or(at + GATHER_MAX, |known| known.min(at + GATHER_MAX)));
            }
        }
        rooms
    }

    fn end_gathering_of_full_loads(&self, rooms: &mut BTreeMap<i32, Room>) {
        let mut queued: BTreeMap<i32, usize> = BTreeMap::new();
        for at in &self.listed {
            let slot = self.topics.get(at.topic).and_then(|topic| topic.slots.get(at.partition));
            if let Some((leader, bytes)) = slot
                .and_then(|slot| slot.partition.leader.map(|leader| (leader, slot.partition.queued_bytes())))
            {
                *queued.entry(leader).or_default() += bytes;
            }
        }
        for (node, room) in rooms {
            room.gather &= queued.get(node).copied().unwrap_or(0) < GATHER_BYTES;
        }
    }
}
