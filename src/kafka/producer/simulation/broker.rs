//! A simulated cluster with the idempotence rules that were established on Apache Kafka 2.8.2, 3.9.2 and 4.3.1.
//!
//! Fault model: any link may break before or after its next request is carried out; a request may be answered with
//! any of the retriable codes, carried out or not; a leader may move, losing what is not acknowledged; a broker may
//! restart and remember only the last batch of each producer, or forget all of them. What is acknowledged is never lost.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::kafka::compression::Compression;
use crate::kafka::protocol::{
    Broker, FetchPartition, FetchResponse, FetchedPartition, InitProducerIdResponse, MetadataResponse,
    OffsetAt, PartitionMetadata, PartitionOffset, PartitionProducers, ProduceResponse, ProduceResult,
    ProducerState, Request, Response, TopicMetadata, TopicName,
};
use crate::kafka::record_batch::{BatchBuilder, Identity, RecordRef, decode_batches, next_sequence};

/// Stands for a record of somebody else.
pub const FILLED: u64 = u64::MAX;

/// What is to happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Carried out and answered.
    Normal,
    /// Not carried out; answered with this code.
    Refuse(i16),
    /// Carried out, and answered with this code (REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND).
    CarryOutAndSay(i16),
    /// Not carried out, and the link breaks.
    BreakBefore,
    /// Carried out, and the link breaks.
    BreakAfter,
}

#[derive(Debug, Clone)]
struct Written {
    identity: Identity,
    end: i32,
    values: Vec<u64>,
    /// Offset of the first record.
    offset: i64,
    records: Bytes,
}

#[derive(Debug, Default)]
pub struct SimPartition {
    pub leader: i32,
    log: Vec<Written>,
    /// Batches of `log` that have been acknowledged and survive a leader change.
    safe: usize,
    /// How many of the last batches of each producer are remembered (5, or 1 after a restart).
    remembered: BTreeMap<i64, VecDeque<(Identity, i32)>>,
    /// The producers of what lies before this in `log` have expired.
    expired: usize,
    /// Somebody was told what is remembered, and has not acted on it.
    pub told: bool,
    /// What lies before this offset is deleted.
    pub log_start: i64,
    /// The high watermark of a new leader is that of the one before, so many questions long.
    pub behind: u32,
    /// Records have the broker's time, which is far behind ours.
    pub has_own_times: bool,
}

impl SimPartition {
    pub fn values(&self) -> Vec<u64> {
        let values = self.log.iter().flat_map(|written| written.values.clone());
        values.filter(|value| *value != FILLED).collect()
    }

    fn end_offset(&self) -> i64 {
        self.log.last().map_or(self.log_start, |last| last.offset + last.values.len() as i64)
    }

    fn high_watermark(&self) -> i64 {
        let safe = self.log.get(..self.safe).and_then(|safe| safe.last());
        if self.behind > 0 {
            safe.map_or(self.log_start, |last| last.offset + last.values.len() as i64)
        } else {
            self.end_offset()
        }
    }

    /// A question was answered: it catches up some time, and what is read then is replicated.
    fn catch_up(&mut self) {
        self.behind = self.behind.saturating_sub(1);
        if self.behind == 0 {
            self.safe = self.log.len();
        }
    }

    /// Somebody else writes so many records.
    pub fn fill(&mut self, records: usize) {
        let mut batch = BatchBuilder::new();
        for _ in 0..records {
            batch.append(&RecordRef { key: None, value: Some(b"x"), headers: &[], timestamp_ms: 1 });
        }
        let encoded = batch.seal(Compression::None).encode(Identity::NONE);
        self.append(Identity::NONE, vec![FILLED; records], &encoded);
    }

    /// The error code, and the offset at which it lies.
    fn append(&mut self, identity: Identity, values: Vec<u64>, records: &Bytes) -> (i16, i64) {
        let end = next_sequence(identity.base_sequence, i32::try_from(values.len()).unwrap());
        if identity != Identity::NONE {
            let remembered = self.remembered.entry(identity.producer_id).or_default();
            if remembered.iter().any(|(known, known_end)| *known == identity && *known_end == end) {
                self.safe = self.log.len();
                let known = self.log.iter().rfind(|written| written.identity == identity).unwrap();
                return (0, known.offset);
            }
            if let Some((last, last_end)) = remembered.back() {
                if identity.producer_epoch < last.producer_epoch {
                    return (47, -1);
                }
                let expected = if identity.producer_epoch == last.producer_epoch { *last_end } else { 0 };
                if identity.base_sequence != expected {
                    return (45, -1);
                }
                if identity.producer_epoch > last.producer_epoch {
                    remembered.clear();
                }
            }
            remembered.push_back((identity, end));
            while remembered.len() > 5 {
                remembered.pop_front();
            }
        }
        let offset = self.end_offset();
        let mut placed = offset.to_be_bytes().to_vec();
        placed.extend_from_slice(&records[8..]);
        self.log.push(Written { identity, end, values, offset, records: placed.into() });
        (0, offset)
    }

    fn rebuild_memory(&mut self, depth: usize) {
        self.remembered.clear();
        for written in self.log.iter().skip(self.expired) {
            if written.identity != Identity::NONE {
                let remembered = self.remembered.entry(written.identity.producer_id).or_default();
                let earlier =
                    |(known, _): &(Identity, i32)| known.producer_epoch != written.identity.producer_epoch;
                if remembered.back().is_some_and(earlier) {
                    remembered.clear();
                }
                remembered.push_back((written.identity, written.end));
                while remembered.len() > depth {
                    remembered.pop_front();
                }
            }
        }
    }
}

/// See the module head.
#[derive(Debug)]
pub struct SimCluster {
    pub brokers: i32,
    pub topic: TopicName,
    pub partitions: Vec<SimPartition>,
    next_producer_id: i64,
    /// A record with this value is refused: MESSAGE_TOO_LARGE.
    pub poison: Option<u64>,
    /// DescribeProducers is answered with this code.
    pub describe_code: i16,
    /// Fetch is answered with this code. ListOffsets needs no READ, but DESCRIBE, which WRITE implies.
    pub read_code: i16,
    /// How many batches were read back.
    pub fetched: usize,
    /// How often an offset was looked for by time.
    pub offsets_listed: usize,
    /// So many answers name the first partition of the topic only.
    pub short_metadata: u32,
}

impl SimCluster {
    pub fn new(brokers: i32, partitions: i32) -> Self {
        let partitions = (0..partitions)
            .map(|index| SimPartition { leader: index % brokers, ..Default::default() })
            .collect();
        SimCluster {
            brokers,
            topic: "t".into(),
            partitions,
            next_producer_id: 1000,
            poison: None,
            describe_code: 0,
            read_code: 0,
            fetched: 0,
            offsets_listed: 0,
            short_metadata: 0,
        }
    }

    /// Moves a leader; what is not acknowledged may be lost with the old one.
    pub fn move_leader(&mut self, partition: usize, lose_unsafe: bool) {
        let brokers = self.brokers;
        let partition = &mut self.partitions[partition];
        partition.leader = (partition.leader + 1) % brokers;
        if lose_unsafe {
            partition.log.truncate(partition.safe);
            partition.expired = partition.expired.min(partition.safe);
        }
        partition.rebuild_memory(5);
        partition.behind = 2;
    }

    /// Restarts a broker: only the last batch of each producer is remembered.
    pub fn restart(&mut self, broker: i32) {
        for partition in self.partitions.iter_mut().filter(|p| p.leader == broker) {
            partition.rebuild_memory(1);
            partition.told = false;
        }
    }

    /// As [`SimCluster::forget`], unless somebody has just been told of one: the moment between question and
    /// sending is a matter of milliseconds, and Kafka looks every ten minutes.
    pub fn expire(&mut self, partition: usize) {
        if !self.partitions[partition].told {
            self.forget(partition);
        }
    }

    /// All producers of a partition are forgotten.
    pub fn forget(&mut self, partition: usize) {
        let partition = &mut self.partitions[partition];
        partition.expired = partition.log.len();
        partition.remembered.clear();
    }

    /// Everything written is replicated.
    pub fn replicate(&mut self) {
        for partition in &mut self.partitions {
            partition.safe = partition.log.len();
            partition.behind = 0;
        }
    }

    /// Carries out a request on a broker. None: the link breaks.
    pub fn handle(&mut self, broker: i32, request: &Request, fate: Fate) -> Option<Response> {
        match fate {
            Fate::BreakBefore => return None,
            Fate::BreakAfter => {
                self.carry_out(broker, request, 0, false);
                return None;
            }
            _ => {}
        }
        Some(match fate {
            Fate::Refuse(code) => self.refuse(request, code),
            Fate::CarryOutAndSay(code) => self.carry_out(broker, request, code, false),
            _ => self.carry_out(broker, request, 0, true),
        })
    }

    fn refuse(&mut self, request: &Request, code: i16) -> Response {
        match request {
            Request::Produce(produce) => Response::Produce(ProduceResponse {
                throttle_ms: 0,
                results: produce.batches.iter().map(|b| result(&b.topic, b.partition, code)).collect(),
            }),
            Request::InitProducerId => Response::InitProducerId(InitProducerIdResponse {
                error: code,
                producer_id: -1,
                producer_epoch: -1,
            }),
            _ => self.carry_out(0, request, 0, true),
        }
    }

    fn carry_out(&mut self, broker: i32, request: &Request, say: i16, acknowledge: bool) -> Response {
        match request {
            Request::Metadata(_) => {
                let shown = if self.short_metadata > 0 { 1 } else { self.partitions.len() };
                self.short_metadata = self.short_metadata.saturating_sub(1);
                self.metadata(shown)
            }
            Request::InitProducerId => {
                self.next_producer_id += 1;
                Response::InitProducerId(InitProducerIdResponse {
                    error: 0,
                    producer_id: self.next_producer_id,
                    producer_epoch: 0,
                })
            }
            Request::Produce(produce) => {
                let mut results = Vec::new();
                for batch in &produce.batches {
                    let (code, offset) =
                        self.produce(broker, batch.partition, batch.records.clone(), acknowledge);
                    let code = if code == 0 { say } else { code };
                    let base_offset = if code == 0 { offset } else { -1 };
                    results
                        .push(ProduceResult { base_offset, ..result(&batch.topic, batch.partition, code) });
                }
                Response::Produce(ProduceResponse { throttle_ms: 0, results })
            }
            Request::DescribeProducers(topics) => {
                let mut answers = Vec::new();
                for (topic, partitions) in topics {
                    for partition in partitions {
                        answers.push(self.describe(broker, topic, *partition));
                    }
                }
                Response::DescribeProducers(answers)
            }
            Request::ListOffsets(asked) => Response::ListOffsets(
                asked
                    .partitions
                    .iter()
                    .map(|(topic, index)| self.list_offset(broker, topic, *index, asked.at))
                    .collect(),
            ),
            Request::Fetch(asked) => Response::Fetch(FetchResponse {
                error: 0,
                partitions: asked.partitions.iter().map(|wanted| self.fetch(broker, wanted)).collect(),
            }),
        }
    }

    fn produce(&mut self, broker: i32, partition: i32, records: Bytes, acknowledge: bool) -> (i16, i64) {
        let batch = decode_batches(records.clone()).next().unwrap().unwrap();
        let values: Vec<u64> = batch
            .records()
            .unwrap()
            .iter()
            .map(|record| u64::from_be_bytes(record.value.as_deref().unwrap().try_into().unwrap()))
            .collect();
        let found = &mut self.partitions[usize::try_from(partition).unwrap()];
        if found.leader != broker {
            return (6, -1);
        }
        if self.poison.is_some_and(|poison| values.contains(&poison)) {
            return (10, -1);
        }
        found.told = false;
        let (code, offset) = found.append(batch.identity, values, &records);
        if code == 0 && acknowledge {
            found.safe = found.log.len();
            found.behind = 0;
        }
        (code, offset)
    }

    fn list_offset(&mut self, broker: i32, topic: &TopicName, index: i32, at: OffsetAt) -> PartitionOffset {
        self.offsets_listed += usize::from(matches!(at, OffsetAt::Timestamp(_)));
        let found = &mut self.partitions[usize::try_from(index).unwrap()];
        let error = match at {
            _ if found.leader != broker => 6,
            OffsetAt::Latest | OffsetAt::Timestamp(_) if found.behind > 0 => 78,
            _ => 0,
        };
        found.catch_up();
        let offset = match at {
            OffsetAt::Latest => found.end_offset(),
            OffsetAt::Timestamp(_) if found.has_own_times => -1,
            // Every record has the same time.
            OffsetAt::Earliest | OffsetAt::Timestamp(_) => found.log_start,
        };
        PartitionOffset { topic: topic.clone(), partition: index, error, offset }
    }

    /// A few batches at a time. What is read is replicated.
    fn fetch(&mut self, broker: i32, wanted: &FetchPartition) -> FetchedPartition {
        let found = &mut self.partitions[usize::try_from(wanted.partition).unwrap()];
        let end = found.end_offset();
        let high_watermark = found.high_watermark();
        let error = match wanted.offset {
            _ if found.leader != broker => 6,
            _ if self.read_code != 0 => self.read_code,
            offset if (found.log_start..=end).contains(&offset) => 0,
            _ => 1,
        };
        let replicated =
            |written: &&Written| written.offset + (written.values.len() as i64) <= high_watermark;
        let behind = |written: &&Written| written.offset + written.values.len() as i64 > wanted.offset;
        let batches: Vec<&Bytes> = found
            .log
            .iter()
            .filter(behind)
            .filter(replicated)
            .map(|written| &written.records)
            .take(3)
            .collect();
        let batches = if error == 0 { batches } else { Vec::new() };
        self.fetched += batches.len();
        let mut records: Vec<u8> = batches.iter().flat_map(|batch| batch.iter().copied()).collect();
        if batches.len() == 3 {
            // The last of several is cut short.
            records.truncate(records.len() - 5);
        }
        found.catch_up();
        FetchedPartition {
            topic: wanted.topic.clone(),
            partition: wanted.partition,
            error,
            high_watermark,
            records: records.into(),
        }
    }

    fn describe(&mut self, broker: i32, topic: &TopicName, partition: i32) -> PartitionProducers {
        let found = &mut self.partitions[usize::try_from(partition).unwrap()];
        let error = if found.leader != broker { 6 } else { self.describe_code };
        found.told |= error == 0;
        let producers = found
            .remembered
            .iter()
            .filter(|_| error == 0)
            .filter_map(|(id, batches)| batches.back().map(|(identity, end)| (id, identity, end)))
            .map(|(id, identity, end)| ProducerState {
                producer_id: *id,
                producer_epoch: identity.producer_epoch.into(),
                last_sequence: if *end == 0 { i32::MAX } else { end - 1 },
            })
            .collect();
        PartitionProducers { topic: topic.clone(), partition, error, producers }
    }

    fn metadata(&self, shown: usize) -> Response {
        let broker = |id| Broker { id, host: format!("b{id}"), port: 9092 };
        let partition = |(index, p): (usize, &SimPartition)| PartitionMetadata {
            index: i32::try_from(index).unwrap(),
            error: 0,
            leader: p.leader,
            leader_epoch: 0,
        };
        Response::Metadata(MetadataResponse {
            brokers: (0..self.brokers).map(broker).collect(),
            topics: vec![TopicMetadata {
                name: self.topic.clone(),
                error: 0,
                partitions: self.partitions.iter().enumerate().take(shown).map(partition).collect(),
            }],
        })
    }
}

fn result(topic: &TopicName, partition: i32, error: i16) -> ProduceResult {
    ProduceResult {
        topic: topic.clone(),
        partition,
        error,
        base_offset: -1,
        record_errors: Vec::new(),
        message: None,
    }
}
