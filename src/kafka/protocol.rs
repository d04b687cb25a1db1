//! Kafka requests and responses in our own terms: what the client asks and what it is told, without version
//! numbers or bytes. [`super::codec`] turns them into frames and back; nothing else knows the protocol crate.
//!
//! Source: the Kafka protocol guide, <https://kafka.apache.org/protocol>, and the KIPs named below.

use std::sync::Arc;

use bytes::Bytes;

/// A topic name, shared: it is stored once however many batches name it.
pub type TopicName = Arc<str>;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Which topics and partitions there are, and who leads them.
    Metadata(MetadataRequest),
    /// A producer id of its own for an idempotent producer (KIP-98).
    InitProducerId,
    /// Append record batches.
    Produce(ProduceRequest),
    /// The producers a partition leader remembers (KIP-664; Kafka 2.8 and later).
    DescribeProducers(Vec<(TopicName, Vec<i32>)>),
    /// Earliest or latest offsets, or those of a time.
    ListOffsets(ListOffsetsRequest),
    /// Read record batches.
    Fetch(FetchRequest),
}

/// See [`Request::Metadata`].
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataRequest {
    /// The topics asked for; None asks for all, an empty list for none (brokers only).
    pub topics: Option<Vec<TopicName>>,
    /// Ask the broker to create what is missing, if its configuration allows that.
    pub create_missing: bool,
}

/// See [`Request::Produce`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProduceRequest {
    /// -1: all in-sync replicas; 1: the leader; 0 is not supported (it has no response).
    pub acks: i16,
    /// How long the broker may wait for the replicas, milliseconds.
    pub timeout_ms: i32,
    /// At most one batch for each partition.
    pub batches: Vec<ProduceBatch>,
}

/// One batch of a [`ProduceRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProduceBatch {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// One complete record batch, format v2.
    pub records: Bytes,
}

/// A position asked for by [`Request::ListOffsets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first offset there is.
    Earliest,
    /// The offset the next record will get.
    Latest,
    /// The first record with this time or a later one, milliseconds since the Unix epoch; it is answered with -1 if there is
    /// none. Below 0 it would be another question.
    Timestamp(i64),
}

/// See [`Request::ListOffsets`].
#[derive(Debug, Clone, PartialEq)]
pub struct ListOffsetsRequest {
    /// Topic and partition.
    pub partitions: Vec<(TopicName, i32)>,
    /// Where in them.
    pub at: OffsetAt,
}

/// See [`Request::Fetch`].
#[derive(Debug, Clone, PartialEq)]
pub struct FetchRequest {
    /// How long the broker may wait for `min_bytes`, milliseconds.
    pub max_wait_ms: i32,
    /// Answer as soon as this many bytes are there.
    pub min_bytes: i32,
    /// Limit of the whole answer, bytes.
    pub max_bytes: i32,
    /// What to read.
    pub partitions: Vec<FetchPartition>,
}

/// One partition of a [`FetchRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct FetchPartition {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// First offset wanted.
    pub offset: i64,
    /// Limit for this partition, bytes.
    pub max_bytes: i32,
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To [`Request::Metadata`].
    Metadata(MetadataResponse),
    /// To [`Request::InitProducerId`].
    InitProducerId(InitProducerIdResponse),
    /// To [`Request::Produce`].
    Produce(ProduceResponse),
    /// To [`Request::DescribeProducers`].
    DescribeProducers(Vec<PartitionProducers>),
    /// To [`Request::ListOffsets`].
    ListOffsets(Vec<PartitionOffset>),
    /// To [`Request::Fetch`].
    Fetch(FetchResponse),
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Node id.
    pub id: i32,
    /// Advertised host.
    pub host: String,
    /// Advertised port.
    pub port: u16,
}

/// See [`Response::Metadata`].
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataResponse {
    /// All live brokers.
    pub brokers: Vec<Broker>,
    /// The topics asked for.
    pub topics: Vec<TopicMetadata>,
}

/// One topic of a [`MetadataResponse`].
#[derive(Debug, Clone, PartialEq)]
pub struct TopicMetadata {
    /// Name.
    pub name: TopicName,
    /// Error code of the topic; 0 is none.
    pub error: i16,
    /// Its partitions, in any order.
    pub partitions: Vec<PartitionMetadata>,
}

/// One partition of a [`TopicMetadata`].
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionMetadata {
    /// Partition index.
    pub index: i32,
    /// Error code; 0 is none.
    pub error: i16,
    /// Node id of the leader; -1 is none.
    pub leader: i32,
    /// Leader epoch (KIP-320); -1 where the version has none.
    pub leader_epoch: i32,
}

/// See [`Response::InitProducerId`].
#[derive(Debug, Clone, PartialEq)]
pub struct InitProducerIdResponse {
    /// Error code; 0 is none.
    pub error: i16,
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub producer_epoch: i16,
}

/// See [`Response::Produce`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProduceResponse {
    /// How long the broker held the request back because of a quota, milliseconds (not an error).
    pub throttle_ms: i32,
    /// One for each batch of the request.
    pub results: Vec<ProduceResult>,
}

/// What became of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ProduceResult {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// Error code; 0 is none.
    pub error: i16,
    /// Offset of the first record; -1 if not written.
    pub base_offset: i64,
    /// The records that made the broker refuse the batch (KIP-467): index in the batch, and why.
    pub record_errors: Vec<(i32, Option<String>)>,
    /// The broker's own words (KIP-467).
    pub message: Option<String>,
}

/// The producers of one partition (KIP-664).
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionProducers {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// Error code; 0 is none.
    pub error: i16,
    /// The producers the leader remembers.
    pub producers: Vec<ProducerState>,
}

/// What a partition leader remembers of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerState {
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub producer_epoch: i32,
    /// Last sequence written; -1 is none.
    pub last_sequence: i32,
}

/// The answer for one partition of [`Request::ListOffsets`].
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionOffset {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// Error code; 0 is none.
    pub error: i16,
    /// The offset; -1 if there is none.
    pub offset: i64,
}

/// See [`Response::Fetch`].
#[derive(Debug, Clone, PartialEq)]
pub struct FetchResponse {
    /// Error code of the whole; 0 is none.
    pub error: i16,
    /// One for each partition answered.
    pub partitions: Vec<FetchedPartition>,
}

/// One partition of a [`FetchResponse`].
#[derive(Debug, Clone, PartialEq)]
pub struct FetchedPartition {
    /// Topic.
    pub topic: TopicName,
    /// Partition index.
    pub partition: i32,
    /// Error code; 0 is none.
    pub error: i16,
    /// First offset that is not yet replicated to all.
    pub high_watermark: i64,
    /// Record batches, format v2; the last may be cut short.
    pub records: Bytes,
}
