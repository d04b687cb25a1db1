//! The scripted brokers' answers to who reads: offsets, and the batches of a log as they were received.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_response as fetched;
use kafka_protocol::messages::list_offsets_response as listed;
use kafka_protocol::messages::{FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse};
use kafka_protocol::protocol::Decodable;

use super::kafka_broker::Shared;
use super::kafka_log::Batch;
use super::kafka_wire::{NOT_LEADER_OR_FOLLOWER, Request, UNKNOWN_TOPIC_OR_PARTITION, encoded};

const OFFSET_OUT_OF_RANGE: i16 = 1;

pub(super) fn answer_list_offsets(node: i32, request: &Request, state: &Shared) -> Bytes {
    let asked =
        ListOffsetsRequest::decode(&mut request.body.clone(), request.version).expect("valid ListOffsets");
    let mut state = state.lock().unwrap();
    let mut answer = ListOffsetsResponse::default();
    for topic in asked.topics {
        let name = topic.name.0.to_string();
        let mut partitions = Vec::new();
        for wanted in topic.partitions {
            let one =
                listed::ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
            partitions.push(match state.partition(&name, wanted.partition_index) {
                Some(known) if known.leader == node => {
                    let records = &known.log.records;
                    let young = records.iter().find(|record| record.timestamp_ms >= wanted.timestamp);
                    one.with_offset(match wanted.timestamp {
                        -2 => 0,
                        -1 => records.len() as i64,
                        _ => young.map_or(-1, |record| record.offset),
                    })
                }
                Some(_) => one.with_error_code(NOT_LEADER_OR_FOLLOWER),
                None => one.with_error_code(UNKNOWN_TOPIC_OR_PARTITION),
            });
        }
        answer.topics.push(
            listed::ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions),
        );
    }
    encoded(&answer, request.version)
}

/// All that is there, whatever limits are asked for.
pub(super) fn answer_fetch(node: i32, request: &Request, state: &Shared) -> Bytes {
    let asked = FetchRequest::decode(&mut request.body.clone(), request.version).expect("valid Fetch");
    let mut state = state.lock().unwrap();
    let mut answer = FetchResponse::default();
    for topic in asked.topics {
        let name = topic.topic.0.to_string();
        let mut partitions = Vec::new();
        for wanted in topic.partitions {
            let one = fetched::PartitionData::default()
                .with_partition_index(wanted.partition)
                .with_high_watermark(-1)
                .with_records(Some(Bytes::new()));
            partitions.push(match state.partition(&name, wanted.partition) {
                Some(known) if known.leader == node => {
                    let end = known.log.records.len() as i64;
                    if (0..=end).contains(&wanted.fetch_offset) {
                        let from = |(offset, batch): &&(i64, Batch)| {
                            offset + i64::from(batch.identity.count) > wanted.fetch_offset
                        };
                        let mut records = BytesMut::new();
                        for (offset, batch) in known.log.appended.iter().filter(from) {
                            put_batch(&mut records, *offset, batch);
                        }
                        one.with_high_watermark(end).with_records(Some(records.freeze()))
                    } else {
                        one.with_error_code(OFFSET_OUT_OF_RANGE)
                    }
                }
                Some(_) => one.with_error_code(NOT_LEADER_OR_FOLLOWER),
                None => one.with_error_code(UNKNOWN_TOPIC_OR_PARTITION),
            });
        }
        answer.responses.push(
            fetched::FetchableTopicResponse::default().with_topic(topic.topic).with_partitions(partitions),
        );
    }
    encoded(&answer, request.version)
}

fn put_batch(out: &mut BytesMut, offset: i64, batch: &Batch) {
    out.put_i64(offset);
    out.put_i32(i32::try_from(batch.size_bytes - 12).expect("batches are small"));
    out.put_i32(0); // leader epoch
    out.put_u8(2); // format
    out.put_u32(crc32c::crc32c(&batch.body));
    out.extend_from_slice(&batch.body);
}
