//! The scripted brokers' side of the wire: frames in, frames out. Requests of one connection are worked one at a
//! time and answered in order, as a real broker does; they are read ahead, so that what is in flight is seen.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::describe_producers_response as described;
use kafka_protocol::messages::metadata_response as metadata;
use kafka_protocol::messages::produce_response as produced;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, DescribeProducersRequest, DescribeProducersResponse,
    InitProducerIdResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, ProducerId,
    RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::kafka_broker::{Act, Api, Call, SeenBatch, Shared};
use super::kafka_log::{Appended, Batch};
use super::kafka_read::{answer_fetch, answer_list_offsets};

pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
pub(super) const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const MESSAGE_TOO_LARGE: i16 = 10;
const UNSUPPORTED_VERSION: i16 = 35;
const INVALID_RECORD: i16 = 87;

pub(super) fn accept(node: i32, listener: &TcpListener, state: &Shared) {
    for stream in listener.incoming().map_while(Result::ok) {
        let mut locked = state.lock().unwrap();
        let known = locked.nodes.iter_mut().find(|known| known.id == node).expect("nodes are never removed");
        if !known.up {
            let _ = stream.shutdown(Shutdown::Both);
            continue;
        }
        known.connections.push(stream.try_clone().unwrap());
        locked.connections_made += 1;
        drop(locked);
        let _ = stream.set_nodelay(true);
        serve(node, stream, state);
    }
}

pub(super) struct Request {
    api: Api,
    pub(super) version: i16,
    correlation_id: i32,
    /// How often the broker had been stopped when it came in.
    stops: usize,
    pub(super) body: Bytes,
    produce: Vec<Incoming>,
}

/// Topic, partition, and the batch for it, or why it is none.
type Incoming = (String, i32, Result<Batch, String>);

fn serve(node: i32, stream: TcpStream, state: &Shared) {
    let (requests_tx, requests) = mpsc::channel::<Request>();
    let mut reader = stream.try_clone().unwrap();
    let shared = Shared::clone(state);
    thread::spawn(move || {
        while let Some(request) = read_request(&mut reader, node, &shared) {
            if requests_tx.send(request).is_err() {
                return;
            }
        }
    });
    let shared = Shared::clone(state);
    thread::spawn(move || {
        let mut stream = stream;
        let (mut alive, mut silent) = (true, false);
        // After the end the rest is only counted as no longer in flight.
        for request in requests {
            let in_flight: Vec<(String, i32)> =
                request.produce.iter().map(|(topic, partition, _)| (topic.clone(), *partition)).collect();
            if alive {
                alive = work(node, request, &mut stream, &mut silent, &shared).is_some();
            }
            if !alive {
                let _ = stream.shutdown(Shutdown::Both);
            }
            let mut state = shared.lock().unwrap();
            for (topic, partition) in in_flight {
                if let Some(known) = state.partition(&topic, partition) {
                    known.in_flight -= 1;
                }
            }
        }
    });
}

fn read_request(reader: &mut TcpStream, node: i32, state: &Shared) -> Option<Request> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).ok()?;
    let mut frame = vec![0; usize::try_from(i32::from_be_bytes(length)).ok()?];
    reader.read_exact(&mut frame).ok()?;
    let mut frame = Bytes::from(frame);
    let violation = |text: String| state.lock().unwrap().violations.push(text);
    let key = i16::from_be_bytes([*frame.first()?, *frame.get(1)?]);
    let version = i16::from_be_bytes([*frame.get(2)?, *frame.get(3)?]);
    let (Some(api), Ok(api_key)) = (Api::of(key), ApiKey::try_from(key)) else {
        violation(format!("request with key {key}, which these brokers do not offer"));
        return None;
    };
    let header = match RequestHeader::decode(&mut frame, api_key.request_header_version(version)) {
        Ok(header) => header,
        Err(error) => {
            violation(format!("header of {api:?} v{version}: {error}"));
            return None;
        }
    };
    let mut locked = state.lock().unwrap();
    let stops = locked.stops(node);
    let correlation_id = header.correlation_id;
    let mut request = Request { api, version, correlation_id, stops, body: frame, produce: Vec::new() };
    locked.requests.push((node, api, version));
    let offered = locked.release.versions().into_iter().find(|(known, _, _)| *known == api);
    let in_range = offered.is_some_and(|(_, min, max)| (min..=max).contains(&version));
    if !in_range && api != Api::ApiVersions {
        locked.violations.push(format!("{api:?} v{version} was not offered ({offered:?})"));
        return None;
    }
    if api == Api::Produce {
        drop(locked);
        request.produce = match decode_produce(&request) {
            Ok(batches) => batches,
            Err(error) => {
                violation(format!("produce v{version}: {error}"));
                return None;
            }
        };
        note_batches(node, &request, state);
    }
    Some(request)
}

fn decode_produce(request: &Request) -> Result<Vec<Incoming>, String> {
    let decoded = ProduceRequest::decode(&mut request.body.clone(), request.version)
        .map_err(|error| error.to_string())?;
    if decoded.acks != -1 {
        return Err(format!("acks {}", decoded.acks));
    }
    let mut batches = Vec::new();
    for topic in decoded.topic_data {
        for partition in topic.partition_data {
            let batch = Batch::decode(&partition.records.unwrap_or_default());
            let name = topic.name.0.to_string();
            if batches.iter().any(|(known, index, _)| *known == name && *index == partition.index) {
                return Err(format!("{name}/{} twice in one request", partition.index));
            }
            batches.push((name, partition.index, batch));
        }
    }
    Ok(batches)
}

fn note_batches(node: i32, request: &Request, state: &Shared) {
    let mut state = state.lock().unwrap();
    for (topic, partition, batch) in &request.produce {
        match batch {
            Ok(batch) => {
                let batch = batch.clone();
                state.seen.push(SeenBatch { node, topic: topic.clone(), partition: *partition, batch });
            }
            Err(error) => state.violations.push(format!("batch for {topic}/{partition}: {error}")),
        }
        if let Some(known) = state.partition(topic, *partition) {
            known.in_flight += 1;
            known.in_flight_max = known.in_flight_max.max(known.in_flight);
        }
    }
}

/// Does what is asked and answers. None: the connection ends.
fn work(
    node: i32,
    request: Request,
    stream: &mut TcpStream,
    silent: &mut bool,
    state: &Shared,
) -> Option<()> {
    let stops = request.stops;
    let act = find_act(&request, state);
    match &act {
        Some(Act::CloseBefore) => return None,
        Some(Act::HoldBefore(gate)) => gate.pass(),
        _ => {}
    }
    if state.lock().unwrap().stops(node) != stops {
        return None;
    }
    let body = match request.api {
        Api::ApiVersions => answer_api_versions(&request, state),
        Api::Metadata => answer_metadata(&request, state),
        Api::InitProducerId => answer_init_producer_id(&request, &act, state),
        Api::Produce => answer_produce(node, &request, &act, state),
        Api::DescribeProducers => answer_describe_producers(node, &request, &act, state),
        Api::ListOffsets => answer_list_offsets(node, &request, state),
        Api::Fetch => answer_fetch(node, &request, state),
    };
    let api_key = ApiKey::try_from(request.api as i16).expect("every Api is a key");
    let header_version = match request.api {
        Api::ApiVersions => 0,
        _ => api_key.response_header_version(request.version),
    };
    let mut frame = BytesMut::new();
    let correlation_id = match act {
        Some(Act::WrongCorrelation) => request.correlation_id.wrapping_add(77),
        _ => request.correlation_id,
    };
    let header = ResponseHeader::default().with_correlation_id(correlation_id);
    header.encode(&mut frame, header_version).expect("a header can be encoded");
    frame.extend_from_slice(&body);
    match act {
        Some(Act::CloseAfter) => return None,
        Some(Act::Silent) => *silent = true,
        Some(Act::HoldAfter(gate)) => gate.pass(),
        Some(Act::Garbage) => {
            frame.truncate(4);
            frame.put_bytes(0xff, 40);
        }
        Some(Act::Truncated) => frame.truncate(frame.len() - 3),
        Some(Act::HugeLength) => {
            stream.write_all(&0x7fff_fff0_i32.to_be_bytes()).ok()?;
            return stream.write_all(&frame).ok();
        }
        _ => {}
    }
    if *silent {
        return Some(());
    }
    let length = i32::try_from(frame.len()).expect("answers are small");
    stream.write_all(&[&length.to_be_bytes()[..], &frame].concat()).ok()
}

fn find_act(request: &Request, state: &Shared) -> Option<Act> {
    let mut state = state.lock().unwrap();
    if request.produce.is_empty() {
        return state.act(request.api, &Call { topic: "", batch: None });
    }
    // One act is the whole request's: the first partition that a rule fits decides.
    request.produce.iter().find_map(|(topic, _, batch)| {
        let call = Call { topic, batch: batch.as_ref().ok() };
        state.act(request.api, &call)
    })
}

pub(super) fn encoded<T: Encodable>(message: &T, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).expect("the answer fits its version");
    bytes.freeze()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn answer_api_versions(request: &Request, state: &Shared) -> Bytes {
    let offered = state.lock().unwrap().release.versions();
    let known = |(api, min, max): &(Api, i16, i16)| {
        ApiVersion::default().with_api_key(*api as i16).with_min_version(*min).with_max_version(*max)
    };
    let (_, min, max) = offered.iter().find(|(api, _, _)| *api == Api::ApiVersions).expect("always offered");
    if !(*min..=*max).contains(&request.version) {
        let refusal = ApiVersionsResponse::default().with_error_code(UNSUPPORTED_VERSION);
        return encoded(&refusal, 0);
    }
    let answer = ApiVersionsResponse::default().with_api_keys(offered.iter().map(known).collect());
    encoded(&answer, request.version)
}

fn answer_metadata(request: &Request, state: &Shared) -> Bytes {
    let asked = MetadataRequest::decode(&mut request.body.clone(), request.version).expect("valid Metadata");
    let state = state.lock().unwrap();
    let up =
        |id: i32| state.unnoticed.contains(&id) || state.nodes.iter().any(|node| node.id == id && node.up);
    let broker = |node: &super::kafka_broker::Node| {
        metadata::MetadataResponseBroker::default()
            .with_node_id(BrokerId(node.id))
            .with_host(text(&state.advertised_host))
            .with_port(i32::from(state.advertised_port.unwrap_or(node.port)))
    };
    let none_means_all = request.version >= 1;
    let names: Vec<String> = match asked.topics {
        Some(topics) if none_means_all || !topics.is_empty() => {
            topics.into_iter().filter_map(|topic| topic.name).map(|name| name.0.to_string()).collect()
        }
        _ => state.topics.keys().cloned().collect(),
    };
    let topic = |name: &String| {
        let answer = metadata::MetadataResponseTopic::default().with_name(Some(TopicName(text(name))));
        let Some(known) = state.topics.get(name) else {
            return answer.with_error_code(UNKNOWN_TOPIC_OR_PARTITION);
        };
        if known.error != 0 {
            return answer.with_error_code(known.error);
        }
        let partition = |(index, known): (usize, &super::kafka_broker::Partition)| {
            let leader = if up(known.leader) { known.leader } else { -1 };
            let answer = metadata::MetadataResponsePartition::default()
                .with_error_code(if leader < 0 { 5 } else { 0 })
                .with_partition_index(index as i32)
                .with_leader_id(BrokerId(leader))
                .with_replica_nodes(vec![BrokerId(known.leader)])
                .with_isr_nodes(vec![BrokerId(known.leader)]);
            if request.version >= 7 { answer.with_leader_epoch(known.leader_epoch) } else { answer }
        };
        answer.with_partitions(known.partitions.iter().enumerate().map(partition).collect())
    };
    let answer = MetadataResponse::default()
        .with_brokers(state.nodes.iter().filter(|node| up(node.id)).map(broker).collect())
        .with_topics(names.iter().map(topic).collect());
    encoded(&answer, request.version)
}

fn answer_init_producer_id(request: &Request, act: &Option<Act>, state: &Shared) -> Bytes {
    if let Some(Act::Error(code)) = act {
        let refusal =
            InitProducerIdResponse::default().with_error_code(*code).with_producer_id(ProducerId(-1));
        return encoded(&refusal, request.version);
    }
    let mut state = state.lock().unwrap();
    state.next_producer_id += 1;
    let answer = InitProducerIdResponse::default().with_producer_id(ProducerId(state.next_producer_id));
    encoded(&answer, request.version)
}

fn answer_produce(node: i32, request: &Request, act: &Option<Act>, state: &Shared) -> Bytes {
    let mut answer = ProduceResponse::default();
    for (topic, partition, batch) in &request.produce {
        let result = produce_one(node, topic, *partition, batch, act, state);
        let mut result = result.with_index(*partition);
        if request.version < 8 {
            result.record_errors.clear();
            result.error_message = None;
        }
        if request.version < 5 {
            result.log_start_offset = -1;
        }
        let name = TopicName(text(topic));
        match answer.responses.iter_mut().find(|known| known.name == name) {
            Some(known) => known.partition_responses.push(result),
            None => answer.responses.push(
                produced::TopicProduceResponse::default()
                    .with_name(name)
                    .with_partition_responses(vec![result]),
            ),
        }
    }
    encoded(&answer, request.version)
}

fn produce_one(
    node: i32,
    topic: &str,
    partition: i32,
    batch: &Result<Batch, String>,
    act: &Option<Act>,
    state: &Shared,
) -> produced::PartitionProduceResponse {
    let refusal =
        |code| produced::PartitionProduceResponse::default().with_error_code(code).with_base_offset(-1);
    match act {
        Some(Act::Error(code)) => return refusal(*code),
        Some(Act::BadRecords(code, indexes)) => {
            let at = |index: &i32| {
                produced::BatchIndexAndErrorMessage::default()
                    .with_batch_index(*index)
                    .with_batch_index_error_message(Some(text("scripted: this record is bad")))
            };
            return refusal(*code)
                .with_record_errors(indexes.iter().map(at).collect())
                .with_error_message(Some(text("scripted: bad records")));
        }
        _ => {}
    }
    let Ok(batch) = batch else { return refusal(INVALID_RECORD) };
    let mut state = state.lock().unwrap();
    let too_large = batch.size_bytes > state.message_max_bytes;
    let Some(known_topic) = state.topics.get(topic) else { return refusal(UNKNOWN_TOPIC_OR_PARTITION) };
    if known_topic.error != 0 {
        return refusal(known_topic.error);
    }
    let Some(known) = state.partition(topic, partition) else { return refusal(UNKNOWN_TOPIC_OR_PARTITION) };
    if known.leader != node {
        return refusal(NOT_LEADER_OR_FOLLOWER);
    }
    if too_large {
        return refusal(MESSAGE_TOO_LARGE);
    }
    let identity = batch.identity;
    let outcome = known.log.append(batch.clone());
    let offset = match outcome {
        Appended::At(offset) => offset,
        Appended::Mistaken(offset) => {
            let what =
                format!("{identity:?} on {topic}/{partition} came again with other bytes: lost records");
            state.violations.push(what);
            offset
        }
        Appended::Refused(code) => return refusal(code),
    };
    match act {
        Some(Act::AppendThenError(code)) => refusal(*code),
        _ => produced::PartitionProduceResponse::default().with_base_offset(offset),
    }
}

fn answer_describe_producers(node: i32, request: &Request, act: &Option<Act>, state: &Shared) -> Bytes {
    let asked = DescribeProducersRequest::decode(&mut request.body.clone(), request.version)
        .expect("valid DescribeProducers");
    let mut state = state.lock().unwrap();
    let mut answer = DescribeProducersResponse::default();
    for topic in asked.topics {
        let name = topic.name.0.to_string();
        let mut partitions = Vec::new();
        for index in topic.partition_indexes {
            let one = described::PartitionResponse::default().with_partition_index(index);
            let refused = match (act, state.partition(&name, index)) {
                (Some(Act::Error(code)), _) => Some(*code),
                (_, None) => Some(UNKNOWN_TOPIC_OR_PARTITION),
                (_, Some(known)) if known.leader != node => Some(NOT_LEADER_OR_FOLLOWER),
                _ => None,
            };
            let one = match (refused, state.partition(&name, index)) {
                (Some(code), _) => one.with_error_code(code),
                (None, known) => {
                    let producer = |(id, epoch, last): (i64, i16, i32)| {
                        described::ProducerState::default()
                            .with_producer_id(ProducerId(id))
                            .with_producer_epoch(i32::from(epoch))
                            .with_last_sequence(last)
                    };
                    let producers = known.map(|known| known.log.producers()).unwrap_or_default();
                    one.with_active_producers(producers.into_iter().map(producer).collect())
                }
            };
            partitions.push(one);
        }
        answer
            .topics
            .push(described::TopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    encoded(&answer, request.version)
}
