use std::sync::Arc;

use proptest::prelude::*;

use super::wire::messages::{self as broker, ResponseHeader};
use super::wire::protocol::{Decodable, Message};
use super::*;
use crate::kafka::protocol::{
    Broker, FetchPartition, FetchResponse, FetchedPartition, InitProducerIdResponse, MetadataResponse,
    PartitionMetadata, PartitionOffset, PartitionProducers, ProduceBatch, ProduceResponse, ProduceResult,
    ProducerState, TopicMetadata,
};

const CORRELATION_ID: i32 = 77;

/// A broker that has exactly this version of everything it has of the API.
fn only(api: Api, version: i16) -> Versions {
    Versions::from_offer(&[(api.key(), version, version)])
}

fn versions_of(api: Api) -> std::ops::RangeInclusive<i16> {
    api.versions().min..=api.versions().max
}

fn topic(name: &str) -> TopicName {
    Arc::from(name)
}

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn wire_topic(name: &'static str) -> wire::TopicName {
    wire::TopicName(text(name))
}

/// What a broker writes: header and body, without the length.
fn written<R: Encodable + HeaderVersion>(body: &R, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(CORRELATION_ID);
    header.encode(&mut out, R::header_version(version)).unwrap();
    body.encode(&mut out, version).unwrap();
    out.freeze()
}

/// Reads it back, and shows that no cut of it is taken for whole.
fn read(api: Api, version: i16, body: Bytes) -> Response {
    let pending = Pending { api, version };
    for kept in 0..body.len() {
        assert!(
            decode(pending, CORRELATION_ID, body.slice(..kept)).is_err(),
            "{api} {version}: {kept} bytes"
        );
    }
    decode(pending, CORRELATION_ID, body).unwrap_or_else(|error| panic!("{api} {version}: {error}"))
}

/// What a broker makes of our frame.
fn received<R: Decodable + HeaderVersion + Message>(request: &Request, api: Api, version: i16) -> R {
    let (mut frame, pending) = encode(request, &only(api, version), CORRELATION_ID, "gateway").unwrap();
    assert_eq!(pending, Pending { api, version });
    let length = frame.split_to(4);
    assert_eq!(i32::from_be_bytes(length[..].try_into().unwrap()) as usize, frame.len());
    let header = wire::protocol::decode_request_header_from_buffer(&mut frame).unwrap();
    assert_eq!((header.request_api_key, header.request_api_version), (api.key(), version));
    assert_eq!((header.correlation_id, header.client_id.as_deref()), (CORRELATION_ID, Some("gateway")));
    let body = R::decode(&mut frame, version).unwrap();
    assert!(frame.is_empty());
    body
}

#[test]
fn produce_requests_group_batches_by_topic_in_every_version() {
    let batch = |name, partition| ProduceBatch {
        topic: topic(name),
        partition,
        records: Bytes::from(format!("{name}{partition}")),
    };
    let batches = vec![batch("a", 0), batch("b", 1), batch("a", 2)];
    let request = Request::Produce(ProduceRequest { acks: -1, timeout_ms: 30_000, batches });
    for version in versions_of(Api::Produce) {
        let body: broker::ProduceRequest = received(&request, Api::Produce, version);
        assert_eq!((body.acks, body.timeout_ms, &body.transactional_id), (-1, 30_000, &None));
        let seen: Vec<(&str, i32, &[u8])> = body
            .topic_data
            .iter()
            .flat_map(|topic| {
                topic
                    .partition_data
                    .iter()
                    .map(|data| (&**topic.name, data.index, data.records.as_deref().unwrap()))
            })
            .collect();
        assert_eq!(seen, [("a", 0, &b"a0"[..]), ("a", 2, b"a2"), ("b", 1, b"b1")]);
        assert_eq!(body.topic_data.len(), 2);
    }
}

#[test]
fn metadata_requests_tell_all_from_none_and_say_whether_to_create() {
    for version in versions_of(Api::Metadata) {
        for (topics, create_missing) in [(None, false), (Some(vec![]), false), (Some(vec![topic("a")]), true)]
        {
            let request = Request::Metadata(MetadataRequest { topics: topics.clone(), create_missing });
            let body: broker::MetadataRequest = received(&request, Api::Metadata, version);
            assert_eq!(body.allow_auto_topic_creation, create_missing);
            let names = body.topics.map(|topics| {
                topics.into_iter().map(|topic| Arc::from(&**topic.name.unwrap())).collect::<Vec<TopicName>>()
            });
            assert_eq!(names, topics);
        }
    }
}

#[test]
fn the_other_requests_arrive_as_meant_in_every_version() {
    for version in versions_of(Api::InitProducerId) {
        let body: broker::InitProducerIdRequest =
            received(&Request::InitProducerId, Api::InitProducerId, version);
        assert_eq!((body.transactional_id, body.producer_id.0, body.producer_epoch), (None, -1, -1));
    }
    let request = Request::DescribeProducers(vec![(topic("a"), vec![1, 2])]);
    let body: broker::DescribeProducersRequest = received(&request, Api::DescribeProducers, 0);
    assert_eq!((&*body.topics[0].name.0, &body.topics[0].partition_indexes[..]), ("a", &[1, 2][..]));
    for version in versions_of(Api::ListOffsets) {
        for (at, timestamp) in [
            (OffsetAt::Earliest, -2),
            (OffsetAt::Latest, -1),
            (OffsetAt::Timestamp(1_700_000_000_000), 1_700_000_000_000),
            (OffsetAt::Timestamp(-1), 0),
        ] {
            let request = Request::ListOffsets(ListOffsetsRequest { partitions: vec![(topic("a"), 3)], at });
            let body: broker::ListOffsetsRequest = received(&request, Api::ListOffsets, version);
            assert_eq!((body.replica_id.0, body.isolation_level), (-1, 0));
            let partition = &body.topics[0].partitions[0];
            assert_eq!((partition.partition_index, partition.timestamp), (3, timestamp));
        }
    }
    let partition = FetchPartition { topic: topic("a"), partition: 3, offset: 1 << 40, max_bytes: 9 };
    let request = FetchRequest { max_wait_ms: 5, min_bytes: 6, max_bytes: 7, partitions: vec![partition] };
    for version in versions_of(Api::Fetch) {
        let body: broker::FetchRequest = received(&Request::Fetch(request.clone()), Api::Fetch, version);
        assert_eq!((body.max_wait_ms, body.min_bytes, body.max_bytes), (5, 6, 7));
        assert_eq!((body.replica_id.0, body.session_id, body.session_epoch), (-1, 0, -1));
        let partition = &body.topics[0].partitions[0];
        assert_eq!(
            (partition.partition, partition.fetch_offset, partition.partition_max_bytes),
            (3, 1 << 40, 9)
        );
        assert_eq!((partition.current_leader_epoch, partition.last_fetched_epoch), (-1, -1));
    }
}

#[test]
fn produce_responses_are_read_in_every_version() {
    use broker::produce_response::{
        BatchIndexAndErrorMessage, LeaderIdAndEpoch, PartitionProduceResponse, TopicProduceResponse,
    };
    for version in versions_of(Api::Produce) {
        let mut partition = PartitionProduceResponse::default()
            .with_index(4)
            .with_error_code(87)
            .with_base_offset(-1)
            .with_log_append_time_ms(5);
        if version >= 5 {
            partition = partition.with_log_start_offset(6);
        }
        if version >= 8 {
            let record = BatchIndexAndErrorMessage::default().with_batch_index(2);
            partition = partition
                .with_record_errors(vec![record.with_batch_index_error_message(Some(text("no key")))])
                .with_error_message(Some(text("bad")));
        }
        if version >= 9 {
            partition = partition.with_unknown_tagged_field(9, Bytes::from_static(b"future"));
        }
        if version >= 10 {
            partition = partition.with_current_leader(
                LeaderIdAndEpoch::default().with_leader_id(1.into()).with_leader_epoch(2),
            );
        }
        let topics = vec![
            TopicProduceResponse::default()
                .with_name(wire_topic("a"))
                .with_partition_responses(vec![partition]),
            TopicProduceResponse::default().with_name(wire_topic("b")),
        ];
        let body = broker::ProduceResponse::default().with_responses(topics).with_throttle_time_ms(12);
        let (record_errors, message) = match version {
            8.. => (vec![(2, Some("no key".to_owned()))], Some("bad".to_owned())),
            _ => (vec![], None),
        };
        let expected = ProduceResult {
            topic: topic("a"),
            partition: 4,
            error: 87,
            base_offset: -1,
            record_errors,
            message,
        };
        let response = ProduceResponse { throttle_ms: 12, results: vec![expected] };
        assert_eq!(read(Api::Produce, version, written(&body, version)), Response::Produce(response));
    }
}

#[test]
fn metadata_responses_are_read_in_every_version() {
    use broker::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    for version in versions_of(Api::Metadata) {
        let node = |id: i32, rack| {
            let node = MetadataResponseBroker::default().with_node_id(id.into()).with_host(text("kafka"));
            node.with_port(9092).with_rack(rack)
        };
        let mut partition = MetadataResponsePartition::default()
            .with_partition_index(1)
            .with_error_code(5)
            .with_leader_id((-1).into())
            .with_replica_nodes(vec![1.into(), 2.into()])
            .with_isr_nodes(vec![2.into()]);
        if version >= 5 {
            partition = partition.with_offline_replicas(vec![1.into()]);
        }
        if version >= 7 {
            partition = partition.with_leader_epoch(8);
        }
        let mut named = MetadataResponseTopic::default()
            .with_name(Some(wire_topic("a")))
            .with_is_internal(true)
            .with_partitions(vec![partition]);
        if version >= 9 {
            named = named.with_unknown_tagged_field(0, Bytes::from_static(b"?"));
        }
        let missing = MetadataResponseTopic::default().with_name(Some(wire_topic("b"))).with_error_code(3);
        let body = broker::MetadataResponse::default()
            .with_throttle_time_ms(1)
            .with_brokers(vec![node(1, None), node(2, Some(text("rack")))])
            .with_cluster_id(Some(text("cluster")))
            .with_controller_id(2.into())
            .with_topics(vec![named, missing]);
        let expected = MetadataResponse {
            brokers: [1, 2].map(|id| Broker { id, host: "kafka".to_owned(), port: 9092 }).to_vec(),
            topics: vec![
                TopicMetadata {
                    name: topic("a"),
                    error: 0,
                    partitions: vec![PartitionMetadata {
                        index: 1,
                        error: 5,
                        leader: -1,
                        leader_epoch: if version >= 7 { 8 } else { -1 },
                    }],
                },
                TopicMetadata { name: topic("b"), error: 3, partitions: vec![] },
            ],
        };
        assert_eq!(read(Api::Metadata, version, written(&body, version)), Response::Metadata(expected));
    }
}

#[test]
fn fetch_responses_are_read_in_every_version() {
    use broker::fetch_response::{
        AbortedTransaction, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
    };
    for version in versions_of(Api::Fetch) {
        let aborted = AbortedTransaction::default().with_first_offset(1);
        let mut full = PartitionData::default()
            .with_partition_index(4)
            .with_high_watermark(9)
            .with_last_stable_offset(8)
            .with_aborted_transactions(Some(vec![aborted]))
            .with_records(Some(Bytes::from_static(b"records")));
        if version >= 12 {
            full = full.with_current_leader(LeaderIdAndEpoch::default().with_leader_id(3.into()));
        }
        let refused = PartitionData::default()
            .with_partition_index(5)
            .with_error_code(6)
            .with_aborted_transactions(None)
            .with_records(None);
        let topics = FetchableTopicResponse::default().with_topic(wire_topic("a"));
        let mut body = broker::FetchResponse::default()
            .with_responses(vec![topics.with_partitions(vec![full, refused])]);
        if version >= 7 {
            body = body.with_error_code(71).with_session_id(3);
        }
        let partition = |partition, error, high_watermark, records| FetchedPartition {
            topic: topic("a"),
            partition,
            error,
            high_watermark,
            records: Bytes::from_static(records),
        };
        let expected = FetchResponse {
            error: if version >= 7 { 71 } else { 0 },
            partitions: vec![partition(4, 0, 9, b"records"), partition(5, 6, 0, b"")],
        };
        assert_eq!(read(Api::Fetch, version, written(&body, version)), Response::Fetch(expected));
    }
}

#[test]
fn the_other_responses_are_read_in_every_version() {
    use broker::describe_producers_response as producers;
    use broker::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
    for version in versions_of(Api::InitProducerId) {
        let body = broker::InitProducerIdResponse::default()
            .with_error_code(14)
            .with_producer_id(1234.into())
            .with_producer_epoch(5);
        let expected = InitProducerIdResponse { error: 14, producer_id: 1234, producer_epoch: 5 };
        assert_eq!(
            read(Api::InitProducerId, version, written(&body, version)),
            Response::InitProducerId(expected)
        );
    }
    for version in versions_of(Api::ListOffsets) {
        let partition = ListOffsetsPartitionResponse::default().with_partition_index(2).with_error_code(6);
        let partition = partition.with_timestamp(3).with_offset(99);
        let topics =
            ListOffsetsTopicResponse::default().with_name(wire_topic("a")).with_partitions(vec![partition]);
        let body = broker::ListOffsetsResponse::default().with_topics(vec![topics]);
        let expected = PartitionOffset { topic: topic("a"), partition: 2, error: 6, offset: 99 };
        assert_eq!(
            read(Api::ListOffsets, version, written(&body, version)),
            Response::ListOffsets(vec![expected])
        );
    }
    let state = producers::ProducerState::default().with_producer_id(7.into()).with_producer_epoch(1);
    let partition = producers::PartitionResponse::default().with_partition_index(3).with_error_code(29);
    let partition = partition
        .with_error_message(Some(text("no")))
        .with_active_producers(vec![state.with_last_sequence(41).with_last_timestamp(5)]);
    let topics =
        producers::TopicResponse::default().with_name(wire_topic("a")).with_partitions(vec![partition]);
    let body = broker::DescribeProducersResponse::default().with_topics(vec![topics]);
    let producers = vec![ProducerState { producer_id: 7, producer_epoch: 1, last_sequence: 41 }];
    let expected = PartitionProducers { topic: topic("a"), partition: 3, error: 29, producers };
    let response = read(Api::DescribeProducers, 0, written(&body, 0));
    assert_eq!(response, Response::DescribeProducers(vec![expected]));
}

#[test]
fn versions_are_negotiated_with_brokers_of_all_ages() {
    use broker::api_versions_response::{ApiVersion, FinalizedFeatureKey};
    let range =
        |(key, min, max)| ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max);
    let kafka_4 =
        [(0, 0, 13), (1, 4, 18), (2, 1, 11), (3, 0, 13), (18, 0, 4), (22, 0, 6), (61, 0, 0)].map(range);
    let features = vec![FinalizedFeatureKey::default().with_name(text("metadata.version"))];
    let body = broker::ApiVersionsResponse::default()
        .with_api_keys(kafka_4.to_vec())
        .with_finalized_features(features)
        .with_finalized_features_epoch(4);
    let ApiVersionsAnswer::Versions(newest) =
        decode_api_versions(3, CORRELATION_ID, written(&body, 3)).unwrap()
    else {
        panic!("it has version 3");
    };
    let chosen = |versions: &Versions| Api::ALL.map(|api| versions.version(api).ok());
    assert_eq!(chosen(&newest), [Some(12), Some(12), Some(9), Some(12), Some(4), Some(0)]);
    assert!(newest.supports_describe_producers());

    let kafka_0_11 = [(0, 0, 3), (1, 0, 5), (2, 0, 2), (3, 0, 4), (18, 0, 1), (22, 0, 0)].map(range);
    let body = broker::ApiVersionsResponse::default().with_api_keys(kafka_0_11.to_vec());
    let ApiVersionsAnswer::Versions(oldest) =
        decode_api_versions(0, CORRELATION_ID, written(&body, 0)).unwrap()
    else {
        panic!("it has version 0");
    };
    assert_eq!(chosen(&oldest), [Some(3), Some(5), Some(2), Some(4), Some(0), None]);
    assert!(!oldest.supports_describe_producers());
}

#[test]
fn a_broker_that_does_not_know_the_newest_api_versions_is_asked_the_oldest() {
    let body = broker::ApiVersionsResponse::default().with_error_code(35);
    let answer = written(&body, 0);
    assert_eq!(decode_api_versions(3, CORRELATION_ID, answer.clone()).unwrap(), ApiVersionsAnswer::AskOldest);
    let error = decode_api_versions(0, CORRELATION_ID, answer).unwrap_err();
    assert_eq!(error.to_string(), "the broker answered ApiVersions with UNSUPPORTED_VERSION (35)");

    for (version, software) in [(3, "tidegate"), (0, "")] {
        let mut frame = api_versions_frame(version, 5, "gateway").unwrap().slice(4..);
        let header = wire::protocol::decode_request_header_from_buffer(&mut frame).unwrap();
        assert_eq!((header.request_api_version, header.correlation_id), (version, 5));
        let body = broker::ApiVersionsRequest::decode(&mut frame, version).unwrap();
        assert_eq!(&*body.client_software_name, software);
    }
}

#[test]
fn versions_that_do_not_meet_are_an_error_with_both_ranges() {
    let ancient = Versions::from_offer(&[(0, 0, 2)]);
    let request = Request::Produce(ProduceRequest { acks: 1, timeout_ms: 1, batches: vec![] });
    assert_eq!(
        encode(&request, &ancient, 1, "x").unwrap_err().to_string(),
        "no common version of the request Produce: this client speaks 3 to 12, the broker 0 to 2"
    );
    let future = Versions::from_offer(&[(0, 13, 20)]);
    assert!(matches!(future.version(Api::Produce), Err(CodecError::NoCommonVersion { .. })));
    assert_eq!(
        encode(&Request::DescribeProducers(vec![]), &ancient, 1, "x").unwrap_err().to_string(),
        "the broker does not know the request DescribeProducers (key 61)"
    );
}

#[test]
fn acks_0_is_refused_because_nothing_would_answer() {
    let request = Request::Produce(ProduceRequest { acks: 0, timeout_ms: 1, batches: vec![] });
    let error = encode(&request, &only(Api::Produce, 9), 1, "x").unwrap_err();
    assert!(matches!(error, CodecError::InvalidRequest { .. }));
}

#[test]
fn a_response_to_another_request_is_an_error() {
    let body = written(&broker::InitProducerIdResponse::default(), 0);
    let pending = Pending { api: Api::InitProducerId, version: 0 };
    assert_eq!(correlation_id(&body), Some(CORRELATION_ID));
    let error = decode(pending, 78, body).unwrap_err();
    assert!(matches!(error, CodecError::WrongCorrelationId { expected: 78, found: Some(CORRELATION_ID) }));
    assert!(matches!(
        decode(pending, 78, Bytes::from_static(&[0, 0])),
        Err(CodecError::WrongCorrelationId { found: None, .. })
    ));
}

#[test]
fn a_length_of_two_billion_items_allocates_nothing() {
    for api in Api::ALL {
        for version in versions_of(api) {
            // Correlation id, header tags, throttle time: then lengths, whatever the layout.
            let mut body = CORRELATION_ID.to_be_bytes().to_vec();
            let flexible = version >= api.first_flexible_version();
            body.extend_from_slice(&[0; 5][..if flexible { 5 } else { 4 }]);
            let length: &[u8] =
                if flexible { &[0xff, 0xff, 0xff, 0xff, 0x0f] } else { &[0x7f, 0xff, 0xff, 0xff] };
            for _ in 0..4 {
                body.extend_from_slice(length);
            }
            let outcome = decode(Pending { api, version }, CORRELATION_ID, Bytes::from(body));
            assert!(matches!(outcome, Err(CodecError::Malformed { .. })), "{api} {version}: {outcome:?}");
        }
    }
}

proptest! {
    #[test]
    fn hostile_responses_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
        let mut body = CORRELATION_ID.to_be_bytes().to_vec();
        // Small numbers get deeper: they are lengths that fit.
        body.extend(bytes.iter().map(|byte| if small { byte % 3 } else { *byte }));
        let body = Bytes::from(body);
        for api in Api::ALL {
            for version in versions_of(api) {
                let _ = decode(Pending { api, version }, CORRELATION_ID, body.clone());
            }
        }
        for version in [API_VERSIONS_OLDEST, API_VERSIONS_NEWEST] {
            let _ = decode_api_versions(version, CORRELATION_ID, body.clone());
        }
    }
}
