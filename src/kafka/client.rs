//! A small blocking client for tools: where topics are, which offsets there are, and reading records.
//!
//! It waits on the caller's thread and is no part of the gateway's live path. It knows nothing of consumer groups:
//! who reads what is the caller's to say. Invariants:
//! - it never makes the broker create a topic;
//! - every call ends by its deadline, whatever brokers and network do;
//! - a change of leader is followed by new metadata and another try, not by an error.

mod links;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::links::Links;
use super::connection::{ConnectionError, ConnectionOptions, SendError};
use super::error::{Class, ErrorCode};
use super::protocol::{
    FetchPartition, FetchRequest, FetchResponse, ListOffsetsRequest, MetadataRequest, MetadataResponse,
    OffsetAt, PartitionOffset, Request, Response, TopicName,
};
use super::record_batch::{DecodeError, Record, decode_batches};
use crate::clock;

/// What a fetch may bring for one partition, bytes; a broker sends a larger batch all the same if it is the first.
const FETCH_PARTITION_BYTES_MAX: i32 = 1 << 20;
/// What a fetch may bring in all, bytes.
const FETCH_BYTES_MAX: i32 = 16 << 20;
/// Pause before a broker is asked again after an error that passes.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How to reach the cluster.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// For each connection. `response_max_bytes` must leave room for a fetch: 32 MiB or more.
    pub connection: ConnectionOptions,
    /// How long a call may take with all its retries, beyond the wait that a fetch asks for.
    pub timeout: Duration,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No bootstrap host or broker could be reached: check the list, the network, the brokers.
    #[error("no Kafka broker reachable")]
    Unreachable(#[source] ConnectionError),
    /// The bootstrap list is empty, or the operating system refuses threads.
    #[error("cannot open a connection: {0}")]
    CannotOpen(String),
    /// No answer by the deadline: try again.
    #[error("no answer in time from {broker}")]
    Timeout {
        /// Host and port.
        broker: String,
    },
    /// The request cannot be sent to this broker, or its response cannot be read.
    #[error("cannot talk to {broker}")]
    Protocol {
        /// Host and port.
        broker: String,
        /// Why.
        #[source]
        source: SendError,
    },
    /// The broker answered with an error. What to do is told by [`ErrorCode::class`].
    #[error("the broker answered {code} for {}", place(topic, *partition))]
    Refused {
        /// Topic.
        topic: TopicName,
        /// Partition index; None for the topic as a whole.
        partition: Option<i32>,
        /// The error.
        code: ErrorCode,
    },
    /// The offset is before the first or behind the last: choose another, see [`Client::list_offsets`].
    #[error("offset {offset} is out of range in {topic}-{partition}")]
    OffsetOutOfRange {
        /// Topic.
        topic: TopicName,
        /// Partition index.
        partition: i32,
        /// The offset asked for.
        offset: i64,
    },
    /// What is stored there cannot be read: step over it, or give up on the partition.
    #[error("cannot read {topic}-{partition}")]
    Decode {
        /// Topic.
        topic: TopicName,
        /// Partition index.
        partition: i32,
        /// Why.
        #[source]
        source: DecodeError,
    },
}

/// Where to read next in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPosition {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// Offset of the next record wanted. [`Client::fetch`] moves it on.
    pub offset: i64,
}

/// A blocking client. See the module head.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    links: Links,
    /// Leader of each partition; what is not in here is looked up.
    leaders: HashMap<(TopicName, i32), i32>,
    /// Which position a fetch names first, so that a busy one does not take all the room for ever.
    turn: usize,
}

impl Client {
    /// Connects to the first bootstrap host that can be reached, trying each once.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] with what the last one said.
    pub fn connect(bootstrap: &[(String, u16)], options: ClientOptions) -> Result<Client, ClientError> {
        let mut links = Links::new(bootstrap.to_vec(), options.connection.clone());
        links.any(clock::now() + options.timeout)?;
        Ok(Client { options, links, leaders: HashMap::new(), turn: 0 })
    }

    /// The brokers, and these topics or all; a topic that does not exist is in the answer with its error code.
    ///
    /// # Errors
    /// No broker answered in time.
    pub fn metadata(&mut self, topics: Option<&[&str]>) -> Result<MetadataResponse, ClientError> {
        let topics = topics.map(|topics| topics.iter().copied().map(Arc::from).collect());
        self.metadata_until(topics, clock::now() + self.options.timeout)
    }

    /// The first or next offset of these partitions of a topic, in no particular order.
    ///
    /// # Errors
    /// A partition does not exist or is refused, or has no leader until the deadline.
    pub fn list_offsets(
        &mut self,
        topic: &str,
        partitions: &[i32],
        at: OffsetAt,
    ) -> Result<Vec<(i32, i64)>, ClientError> {
        let deadline = clock::now() + self.options.timeout;
        let topic: TopicName = Arc::from(topic);
        let mut wanted: Vec<(TopicName, i32)> =
            partitions.iter().map(|index| (topic.clone(), *index)).collect();
        let mut found = Vec::new();
        let mut said = None;
        loop {
            let (by_leader, mut failure) = self.route(&wanted, deadline)?;
            let requests = by_leader.into_iter().map(|(leader, partitions)| {
                (leader, Request::ListOffsets(ListOffsetsRequest { partitions, at }))
            });
            let answers = self.links.exchange(requests.collect(), deadline);
            for answer in answers {
                match answer {
                    Ok(Response::ListOffsets(offsets)) => {
                        for offset in offsets {
                            self.note_offset(&offset, &mut found, &mut failure)?;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => failure = Some(self.forget_leaders(error)?),
                }
            }
            wanted.retain(|(_, index)| !found.iter().any(|(done, _)| done == index));
            if wanted.is_empty() {
                return Ok(found);
            }
            pause_or_fail(failure, &mut said, deadline)?;
        }
    }

    /// Reads what is there at these positions, waiting at most `max_wait` for the first of it, and moves the
    /// positions behind what was read (behind batches without records for us, too). Records of aborted
    /// transactions are among it. Empty if nothing came.
    ///
    /// # Errors
    /// A position is out of range, a partition is refused or damaged, or nothing could be read until the deadline.
    pub fn fetch(
        &mut self,
        positions: &mut [FetchPosition],
        max_wait: Duration,
    ) -> Result<Vec<(TopicName, i32, Vec<Record>)>, ClientError> {
        let deadline = clock::now() + max_wait + self.options.timeout;
        let mut said = None;
        loop {
            let wanted: Vec<_> = positions.iter().map(|at| (at.topic.clone(), at.partition)).collect();
            let (by_leader, mut failure) = self.route(&wanted, deadline)?;
            let requests = self.fetch_requests(by_leader, positions, max_wait);
            let mut read = Vec::new();
            for answer in self.links.exchange(requests, deadline) {
                match answer {
                    Ok(Response::Fetch(response)) => {
                        self.take_fetched(response, positions, &mut read, &mut failure)?;
                    }
                    Ok(_) => {}
                    Err(error) => failure = Some(self.forget_leaders(error)?),
                }
            }
            if failure.is_none() || !read.is_empty() {
                return Ok(read);
            }
            pause_or_fail(failure, &mut said, deadline)?;
        }
    }

    fn metadata_until(
        &mut self,
        topics: Option<Vec<TopicName>>,
        deadline: Instant,
    ) -> Result<MetadataResponse, ClientError> {
        let request = Request::Metadata(MetadataRequest { topics, create_missing: false });
        let mut said = None;
        loop {
            // Half of what is left: a broker that is frozen leaves time to ask another.
            let now = clock::now();
            let try_until = now + deadline.saturating_duration_since(now) / 2;
            let failure = match self.links.exchange_any(&request, try_until) {
                Ok(Response::Metadata(response)) => {
                    self.links.learn(&response.brokers);
                    for topic in &response.topics {
                        for partition in topic.partitions.iter().filter(|partition| partition.leader >= 0) {
                            self.leaders.insert((topic.name.clone(), partition.index), partition.leader);
                        }
                    }
                    return Ok(response);
                }
                Ok(_) => None,
                Err(error) => Some(passing(error)?),
            };
            pause_or_fail(failure, &mut said, deadline)?;
        }
    }

    /// Partitions by leader, looked up if any is unknown; and why some have none.
    #[allow(clippy::type_complexity, reason = "a pair used by two callers, ten lines below")]
    fn route(
        &mut self,
        wanted: &[(TopicName, i32)],
        deadline: Instant,
    ) -> Result<(HashMap<i32, Vec<(TopicName, i32)>>, Option<ClientError>), ClientError> {
        let mut failure = None;
        if wanted.iter().any(|partition| !self.leaders.contains_key(partition)) {
            let mut topics: Vec<TopicName> = wanted.iter().map(|(topic, _)| topic.clone()).collect();
            topics.sort();
            topics.dedup();
            let response = self.metadata_until(Some(topics), deadline)?;
            for topic in response.topics {
                let code = ErrorCode(topic.error);
                if code != ErrorCode::NONE {
                    failure =
                        Some(passing(ClientError::Refused { topic: topic.name, partition: None, code })?);
                }
            }
        }
        let mut by_leader: HashMap<i32, Vec<(TopicName, i32)>> = HashMap::new();
        for partition in wanted {
            match self.leaders.get(partition) {
                Some(leader) => by_leader.entry(*leader).or_default().push(partition.clone()),
                None if failure.is_some() => {}
                None => failure = Some(no_leader(partition)),
            }
        }
        Ok((by_leader, failure))
    }

    fn fetch_requests(
        &mut self,
        by_leader: HashMap<i32, Vec<(TopicName, i32)>>,
        positions: &[FetchPosition],
        max_wait: Duration,
    ) -> Vec<(i32, Request)> {
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn;
        let offsets: HashMap<(&TopicName, i32), i64> =
            positions.iter().map(|at| ((&at.topic, at.partition), at.offset)).collect();
        by_leader
            .into_iter()
            .map(|(leader, mut partitions)| {
                let first = turn.checked_rem(partitions.len()).unwrap_or(0);
                partitions.rotate_left(first);
                let partitions = partitions.into_iter().filter_map(|(topic, partition)| {
                    let offset = *offsets.get(&(&topic, partition))?;
                    Some(FetchPartition { topic, partition, offset, max_bytes: FETCH_PARTITION_BYTES_MAX })
                });
                let request = FetchRequest {
                    max_wait_ms: i32::try_from(max_wait.as_millis()).unwrap_or(i32::MAX),
                    min_bytes: 1,
                    max_bytes: FETCH_BYTES_MAX,
                    partitions: partitions.collect(),
                };
                (leader, Request::Fetch(request))
            })
            .collect()
    }

    fn take_fetched(
        &mut self,
        response: FetchResponse,
        positions: &mut [FetchPosition],
        read: &mut Vec<(TopicName, i32, Vec<Record>)>,
        failure: &mut Option<ClientError>,
    ) -> Result<(), ClientError> {
        for fetched in response.partitions {
            let of_it =
                |at: &&mut FetchPosition| at.partition == fetched.partition && at.topic == fetched.topic;
            let Some(position) = positions.iter_mut().find(of_it) else { continue };
            let (topic, partition) = (position.topic.clone(), position.partition);
            // The error of the whole response stands for each of its partitions.
            let code = ErrorCode(if response.error == 0 { fetched.error } else { response.error });
            if code == ErrorCode::OFFSET_OUT_OF_RANGE {
                return Err(ClientError::OffsetOutOfRange { topic, partition, offset: position.offset });
            }
            if code != ErrorCode::NONE {
                self.leaders.remove(&(topic.clone(), partition));
                *failure = Some(passing(ClientError::Refused { topic, partition: Some(partition), code })?);
                continue;
            }
            let mut records = Vec::new();
            for batch in decode_batches(fetched.records) {
                let decoded = batch.and_then(|batch| {
                    let decoded = if batch.is_control { Vec::new() } else { batch.records()? };
                    Ok((batch.next_offset(), decoded))
                });
                match decoded {
                    Ok((next_offset, decoded)) => {
                        // A broker answers with whole batches: the first may begin before the position.
                        records.extend(decoded.into_iter().filter(|record| record.offset >= position.offset));
                        position.offset = position.offset.max(next_offset);
                    }
                    // What was read before the damage is given first; the next call meets the damage again.
                    Err(_) if !records.is_empty() => break,
                    Err(source) => return Err(ClientError::Decode { topic, partition, source }),
                }
            }
            if !records.is_empty() {
                read.push((topic, partition, records));
            }
        }
        Ok(())
    }

    fn note_offset(
        &mut self,
        answer: &PartitionOffset,
        found: &mut Vec<(i32, i64)>,
        failure: &mut Option<ClientError>,
    ) -> Result<(), ClientError> {
        let code = ErrorCode(answer.error);
        if code == ErrorCode::NONE {
            found.push((answer.partition, answer.offset));
        } else {
            self.leaders.remove(&(answer.topic.clone(), answer.partition));
            let error =
                ClientError::Refused { topic: answer.topic.clone(), partition: Some(answer.partition), code };
            *failure = Some(passing(error)?);
        }
        Ok(())
    }

    /// A broker was lost: who leads its partitions now must be asked.
    fn forget_leaders(&mut self, error: ClientError) -> Result<ClientError, ClientError> {
        self.leaders.clear();
        passing(error)
    }
}

/// The error again if it will pass by itself; otherwise it is the end of the call.
fn passing(error: ClientError) -> Result<ClientError, ClientError> {
    match &error {
        ClientError::Refused { code, .. }
            if !matches!(code.class(), Class::Retriable | Class::NeedsMetadata) =>
        {
            Err(error)
        }
        ClientError::Protocol { source: SendError::Codec(_), .. } => Err(error),
        _ => Ok(error),
    }
}

fn no_leader((topic, partition): &(TopicName, i32)) -> ClientError {
    ClientError::Refused {
        topic: topic.clone(),
        partition: Some(*partition),
        code: ErrorCode::LEADER_NOT_AVAILABLE,
    }
}

fn place(topic: &str, partition: Option<i32>) -> String {
    partition.map_or_else(|| format!("topic {topic}"), |partition| format!("{topic}-{partition}"))
}

/// Waits before another try, or gives up with the failure if the deadline would be passed. What a broker said, kept in
/// `said`, tells more than that the last try got no answer in time.
fn pause_or_fail(
    failure: Option<ClientError>,
    said: &mut Option<ClientError>,
    deadline: Instant,
) -> Result<(), ClientError> {
    let silent = matches!(failure, None | Some(ClientError::Timeout { .. }));
    if !silent || said.is_none() {
        *said = failure;
    }
    if clock::now() + RETRY_PAUSE >= deadline {
        return Err(said.take().unwrap_or(ClientError::Timeout { broker: "the cluster".to_owned() }));
    }
    std::thread::sleep(RETRY_PAUSE);
    Ok(())
}

#[cfg(test)]
mod tests;
