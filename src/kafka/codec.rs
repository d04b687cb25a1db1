//! Requests into frames, responses out of them: versions, headers, correlation ids.
//!
//! The only file that names the protocol crate. It knows nothing of sockets: a frame is bytes, and which request a
//! response belongs to is told by [`Pending`]. Everything is pure, so a fuzzer can call [`decode`] and
//! [`decode_api_versions`] as they are.
//!
//! Source: <https://kafka.apache.org/protocol>, KIP-35 and KIP-511 (ApiVersions), KIP-482 (flexible versions).
//!
//! Invariants:
//! - no request is encoded in a version that was not negotiated;
//! - no input makes [`decode`] panic or allocate more than in proportion to its size.

mod reader;
mod response;
pub mod sasl;
mod versions;

pub use self::versions::{Api, VersionRange, Versions};

use std::collections::HashMap;
use std::error::Error;

use bytes::{BufMut, Bytes, BytesMut};

use self::reader::{Malformed, Reader};
use self::wire::{Encodable, HeaderVersion, StrBytes};
use super::error::ErrorCode;
use super::protocol::{
    FetchRequest, ListOffsetsRequest, MetadataRequest, OffsetAt, ProduceRequest, Request, Response, TopicName,
};

/// What is used of the protocol crate.
mod wire {
    pub use kafka_protocol::messages::{
        ApiVersionsRequest, BrokerId, DescribeProducersRequest, FetchRequest, InitProducerIdRequest,
        ListOffsetsRequest, MetadataRequest, ProduceRequest, RequestHeader, SaslAuthenticateRequest,
        SaslHandshakeRequest, TopicName, describe_producers_request, fetch_request, list_offsets_request,
        metadata_request, produce_request,
    };
    pub use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};

    /// The crate's other half, the broker's side, against which the tests hold ours.
    #[cfg(test)]
    pub use kafka_protocol::{messages, protocol};
}

const API_VERSIONS_KEY: i16 = 18;

/// Why a request could not become a frame, or a frame a response.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The broker does not have the API: do without it.
    #[error("the broker does not know the request {api} (key {})", api.key())]
    ApiMissing {
        /// Which.
        api: Api,
    },
    /// The broker has the API in other versions only: broker or gateway must be upgraded.
    #[error("no common version of the request {api}: this client speaks {ours}, the broker {theirs}")]
    NoCommonVersion {
        /// Which.
        api: Api,
        /// This client's versions.
        ours: VersionRange,
        /// The broker's versions.
        theirs: VersionRange,
    },
    /// The request makes no sense: a defect of the caller.
    #[error("request {api} cannot be sent: {what}")]
    InvalidRequest {
        /// Which.
        api: Api,
        /// What is wrong.
        what: &'static str,
    },
    /// The protocol crate refused to write the request: a defect.
    #[error("request with key {key} version {version} cannot be encoded")]
    Encode {
        /// API key.
        key: i16,
        /// Version.
        version: i16,
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The response is to another request: close the connection.
    #[error("response with correlation id {found:?} where {expected} was due")]
    WrongCorrelationId {
        /// Id of the oldest request without a response.
        expected: i32,
        /// Id of the response; None if it is too short to have one.
        found: Option<i32>,
    },
    /// A response without a request: close the connection.
    #[error("response with correlation id {correlation_id:?} to no request")]
    Unexpected {
        /// Its id; None if it is too short to have one.
        correlation_id: Option<i32>,
    },
    /// The response is not what its version says: close the connection.
    #[error("malformed response to the request with key {key} version {version}: {what}")]
    Malformed {
        /// API key.
        key: i16,
        /// Version.
        version: i16,
        /// What is wrong.
        what: &'static str,
    },
    /// The broker refuses to tell its versions.
    #[error("the broker answered ApiVersions with {0}")]
    ApiVersionsRefused(ErrorCode),
}

/// What is needed to read a response: the API and the version of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    api: Api,
    version: i16,
}

impl Pending {
    /// For a response whose request was not made here: a test's, or a fuzzer's.
    pub fn new(api: Api, version: i16) -> Self {
        Pending { api, version }
    }
}

/// The first version of ApiVersions to ask; Kafka 2.4 and later know it.
pub const API_VERSIONS_NEWEST: i16 = 3;
/// The version to ask when the broker does not know the newest.
pub const API_VERSIONS_OLDEST: i16 = 0;

/// What a broker answered to ApiVersions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiVersionsAnswer {
    /// Its versions.
    Versions(Versions),
    /// It is older than the request: ask again in version [`API_VERSIONS_OLDEST`].
    AskOldest,
}

/// The frame of an ApiVersions request.
///
/// # Errors
/// [`CodecError::Encode`], which has no reason to happen.
pub fn api_versions_frame(version: i16, correlation_id: i32, client_id: &str) -> Result<Bytes, CodecError> {
    let mut body = wire::ApiVersionsRequest::default();
    if version >= 3 {
        body = body
            .with_client_software_name(StrBytes::from_static_str(env!("CARGO_PKG_NAME")))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
    }
    frame(&body, API_VERSIONS_KEY, version, correlation_id, client_id)
}

/// Reads the answer to [`api_versions_frame`].
///
/// # Errors
/// The bytes are malformed or answer something else, or the broker refuses.
pub fn decode_api_versions(
    version: i16,
    correlation_id_expected: i32,
    body: Bytes,
) -> Result<ApiVersionsAnswer, CodecError> {
    let malformed = |Malformed(what)| CodecError::Malformed { key: API_VERSIONS_KEY, version, what };
    check_correlation_id(&body, correlation_id_expected)?;
    let after_header = body.slice(CORRELATION_ID_BYTES..);
    let error = ErrorCode(Reader::new(after_header.clone(), false).i16().map_err(malformed)?);
    match error {
        ErrorCode::NONE => {}
        // A broker that does not know the version answers in the form of version 0 (KIP-511).
        ErrorCode::UNSUPPORTED_VERSION if version != API_VERSIONS_OLDEST => {
            return Ok(ApiVersionsAnswer::AskOldest);
        }
        refused => return Err(CodecError::ApiVersionsRefused(refused)),
    }
    let mut reader = Reader::new(after_header, version >= 3);
    let (_, ranges) = response::api_versions(&mut reader, version).map_err(malformed)?;
    Ok(ApiVersionsAnswer::Versions(Versions::from_offer(&ranges)))
}

/// A complete frame with its length, and what will be needed to read the response.
///
/// # Errors
/// The broker does not have the API in a version this client speaks, or the request makes no sense.
pub fn encode(
    request: &Request,
    versions: &Versions,
    correlation_id: i32,
    client_id: &str,
) -> Result<(Bytes, Pending), CodecError> {
    let api = Api::of(request);
    let version = versions.version(api)?;
    let (key, id) = (api.key(), correlation_id);
    let bytes = match request {
        Request::Metadata(request) => frame(&metadata(request), key, version, id, client_id),
        Request::InitProducerId => frame(&init_producer_id(), key, version, id, client_id),
        Request::Produce(request) => {
            if request.acks == 0 {
                return Err(CodecError::InvalidRequest { api, what: "acks 0 has no response" });
            }
            frame(&produce(request), key, version, id, client_id)
        }
        Request::DescribeProducers(partitions) => {
            frame(&describe_producers(partitions), key, version, id, client_id)
        }
        Request::ListOffsets(request) => frame(&list_offsets(request), key, version, id, client_id),
        Request::Fetch(request) => frame(&fetch(request), key, version, id, client_id),
    }?;
    Ok((bytes, Pending { api, version }))
}

/// Reads a response, given without its length.
///
/// # Errors
/// The bytes are malformed or answer another request. Error codes in the response are not errors here.
pub fn decode(pending: Pending, correlation_id_expected: i32, body: Bytes) -> Result<Response, CodecError> {
    let Pending { api, version } = pending;
    let malformed = |Malformed(what)| CodecError::Malformed { key: api.key(), version, what };
    check_correlation_id(&body, correlation_id_expected)?;
    let mut reader = Reader::new(body.slice(CORRELATION_ID_BYTES..), version >= api.first_flexible_version());
    reader.tags().map_err(malformed)?; // of the header
    let response = match api {
        Api::Metadata => response::metadata(&mut reader, version).map(Response::Metadata),
        Api::InitProducerId => response::init_producer_id(&mut reader).map(Response::InitProducerId),
        Api::Produce => response::produce(&mut reader, version).map(Response::Produce),
        Api::DescribeProducers => response::describe_producers(&mut reader).map(Response::DescribeProducers),
        Api::ListOffsets => response::list_offsets(&mut reader, version).map(Response::ListOffsets),
        Api::Fetch => response::fetch(&mut reader, version).map(Response::Fetch),
    }
    .map_err(malformed)?;
    if reader.is_empty() { Ok(response) } else { Err(malformed(Malformed("bytes are left behind it"))) }
}

const CORRELATION_ID_BYTES: usize = 4;

/// The correlation id of a response, given without its length; None if it is too short.
pub fn correlation_id(body: &[u8]) -> Option<i32> {
    body.first_chunk().map(|id| i32::from_be_bytes(*id))
}

fn check_correlation_id(body: &[u8], expected: i32) -> Result<(), CodecError> {
    match correlation_id(body) {
        Some(found) if found == expected => Ok(()),
        found => Err(CodecError::WrongCorrelationId { expected, found }),
    }
}

fn frame<R: Encodable + HeaderVersion>(
    body: &R,
    key: i16,
    version: i16,
    correlation_id: i32,
    client_id: &str,
) -> Result<Bytes, CodecError> {
    let header = wire::RequestHeader::default()
        .with_request_api_key(key)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_string(client_id.to_owned())));
    let header_version = R::header_version(version);
    let write = || {
        let bytes = header.compute_size(header_version)? + body.compute_size(version)?;
        let mut out = BytesMut::with_capacity(4 + bytes);
        out.put_i32(i32::try_from(bytes)?);
        header.encode(&mut out, header_version)?;
        body.encode(&mut out, version)?;
        Ok(out.freeze())
    };
    let written: Result<Bytes, Box<dyn Error + Send + Sync>> = write();
    written.map_err(|source| CodecError::Encode { key, version, source })
}

fn name(topic: &TopicName) -> wire::TopicName {
    wire::TopicName(StrBytes::from_string(topic.to_string()))
}

/// Items grouped by topic, topics in order of their first item.
fn by_topic<'a, T, U>(
    items: &'a [T],
    topic_of: impl Fn(&'a T) -> &'a TopicName,
    convert: impl Fn(&'a T) -> U,
) -> Vec<(&'a TopicName, Vec<U>)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut groups: Vec<(&TopicName, Vec<U>)> = Vec::new();
    for item in items {
        let topic = topic_of(item);
        let place = *places.entry(topic).or_insert(groups.len());
        if let Some((_, group)) = groups.get_mut(place) {
            group.push(convert(item));
        } else {
            groups.push((topic, vec![convert(item)]));
        }
    }
    groups
}

fn metadata(request: &MetadataRequest) -> wire::MetadataRequest {
    use wire::metadata_request::MetadataRequestTopic;
    let topics = request.topics.as_ref().map(|topics| {
        topics.iter().map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic)))).collect()
    });
    wire::MetadataRequest::default()
        .with_topics(topics)
        .with_allow_auto_topic_creation(request.create_missing)
}

fn init_producer_id() -> wire::InitProducerIdRequest {
    // Without a transactional id the timeout means nothing; the Java client sends the largest too.
    wire::InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(i32::MAX)
}

fn produce(request: &ProduceRequest) -> wire::ProduceRequest {
    use wire::produce_request::{PartitionProduceData, TopicProduceData};
    let topics = by_topic(
        &request.batches,
        |batch| &batch.topic,
        |batch| {
            PartitionProduceData::default()
                .with_index(batch.partition)
                .with_records(Some(batch.records.clone()))
        },
    );
    wire::ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(request.acks)
        .with_timeout_ms(request.timeout_ms)
        .with_topic_data(
            topics
                .into_iter()
                .map(|(topic, data)| {
                    TopicProduceData::default().with_name(name(topic)).with_partition_data(data)
                })
                .collect(),
        )
}

fn describe_producers(partitions: &[(TopicName, Vec<i32>)]) -> wire::DescribeProducersRequest {
    use wire::describe_producers_request::TopicRequest;
    let topics = partitions
        .iter()
        .map(|(topic, indexes)| {
            TopicRequest::default().with_name(name(topic)).with_partition_indexes(indexes.clone())
        })
        .collect();
    wire::DescribeProducersRequest::default().with_topics(topics)
}

fn list_offsets(request: &ListOffsetsRequest) -> wire::ListOffsetsRequest {
    use wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let timestamp = match request.at {
        OffsetAt::Earliest => -2,
        OffsetAt::Latest => -1,
        OffsetAt::Timestamp(time_ms) => time_ms.max(0),
    };
    let topics = by_topic(
        &request.partitions,
        |(topic, _)| topic,
        |(_, index)| {
            ListOffsetsPartition::default()
                .with_partition_index(*index)
                .with_current_leader_epoch(-1)
                .with_timestamp(timestamp)
        },
    );
    wire::ListOffsetsRequest::default().with_replica_id(wire::BrokerId(-1)).with_topics(
        topics
            .into_iter()
            .map(|(topic, partitions)| {
                ListOffsetsTopic::default().with_name(name(topic)).with_partitions(partitions)
            })
            .collect(),
    )
}

fn fetch(request: &FetchRequest) -> wire::FetchRequest {
    use wire::fetch_request::{FetchPartition, FetchTopic};
    let topics = by_topic(
        &request.partitions,
        |partition| &partition.topic,
        |partition| {
            FetchPartition::default()
                .with_partition(partition.partition)
                .with_current_leader_epoch(-1)
                .with_fetch_offset(partition.offset)
                .with_last_fetched_epoch(-1)
                .with_log_start_offset(-1)
                .with_partition_max_bytes(partition.max_bytes)
        },
    );
    // Session id 0 and epoch -1: no fetch session (KIP-227), each request names all it wants.
    wire::FetchRequest::default()
        .with_replica_id(wire::BrokerId(-1))
        .with_max_wait_ms(request.max_wait_ms)
        .with_min_bytes(request.min_bytes)
        .with_max_bytes(request.max_bytes)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(
            topics
                .into_iter()
                .map(|(topic, partitions)| {
                    FetchTopic::default().with_topic(name(topic)).with_partitions(partitions)
                })
                .collect(),
        )
}

#[cfg(test)]
mod tests;
