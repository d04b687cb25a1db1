//! Response bodies, read field by field into our own terms.
//!
//! Why not by the protocol crate: it reserves memory for as many items as an array announces, so that four bytes
//! of a damaged or foreign response ask for hundreds of gigabytes, and the process aborts. The tests compare
//! these readers with the crate's writers in every version.
//!
//! Source: the message schemas linked from <https://kafka.apache.org/protocol#protocol_messages>.

use std::sync::Arc;

use super::reader::{Malformed, Reader};
use crate::kafka::protocol::{
    Broker, FetchResponse, FetchedPartition, InitProducerIdResponse, MetadataResponse, PartitionMetadata,
    PartitionOffset, PartitionProducers, ProduceResponse, ProduceResult, ProducerState, TopicMetadata,
    TopicName,
};

/// An error code, and for each API key the lowest and highest version the broker speaks.
pub type ApiRanges = (i16, Vec<(i16, i16, i16)>);

pub fn api_versions(reader: &mut Reader, version: i16) -> Result<ApiRanges, Malformed> {
    let error = reader.i16()?;
    let ranges = reader.array(|api| {
        let range = (api.i16()?, api.i16()?, api.i16()?);
        api.tags()?;
        Ok(range)
    })?;
    if version >= 1 {
        reader.i32()?; // throttle time
    }
    reader.tags()?;
    Ok((error, ranges))
}

pub fn metadata(reader: &mut Reader, version: i16) -> Result<MetadataResponse, Malformed> {
    reader.i32()?; // throttle time
    let brokers = reader.array(|broker| {
        let id = broker.i32()?;
        let host = broker.string()?;
        let port = u16::try_from(broker.i32()?).map_err(|_| Malformed("a port is out of range"))?;
        broker.nullable_string()?; // rack
        broker.tags()?;
        Ok(Broker { id, host, port })
    })?;
    reader.nullable_string()?; // cluster id
    reader.i32()?; // controller
    let topics = reader.array(|topic| topic_metadata(topic, version))?;
    if (8..=10).contains(&version) {
        reader.i32()?; // authorised operations on the cluster
    }
    reader.tags()?;
    Ok(MetadataResponse { brokers, topics: topics.into_iter().flatten().collect() })
}

/// None for a topic without a name, which only answers a request by topic id.
fn topic_metadata(topic: &mut Reader, version: i16) -> Result<Option<TopicMetadata>, Malformed> {
    let error = topic.i16()?;
    let name = topic.nullable_string()?;
    if version >= 10 {
        topic.skip(16)?; // topic id
    }
    topic.skip(1)?; // whether it is internal
    let partitions = topic.array(|partition| {
        let (error, index, leader) = (partition.i16()?, partition.i32()?, partition.i32()?);
        let leader_epoch = if version >= 7 { partition.i32()? } else { -1 };
        partition.array(Reader::i32)?; // replicas
        partition.array(Reader::i32)?; // in-sync replicas
        if version >= 5 {
            partition.array(Reader::i32)?; // offline replicas
        }
        partition.tags()?;
        Ok(PartitionMetadata { index, error, leader, leader_epoch })
    })?;
    if version >= 8 {
        topic.i32()?; // authorised operations on the topic
    }
    topic.tags()?;
    Ok(name.map(|name| TopicMetadata { name: Arc::from(name), error, partitions }))
}

pub fn init_producer_id(reader: &mut Reader) -> Result<InitProducerIdResponse, Malformed> {
    reader.i32()?; // throttle time
    let response = InitProducerIdResponse {
        error: reader.i16()?,
        producer_id: reader.i64()?,
        producer_epoch: reader.i16()?,
    };
    reader.tags()?;
    Ok(response)
}

pub fn produce(reader: &mut Reader, version: i16) -> Result<ProduceResponse, Malformed> {
    let results = by_topic(reader, |partition, topic| {
        let (index, error, base_offset) = (partition.i32()?, partition.i16()?, partition.i64()?);
        partition.i64()?; // append time
        if version >= 5 {
            partition.i64()?; // first offset of the log
        }
        let (record_errors, message) = if version >= 8 {
            let record_errors = partition.array(|record| {
                let error = (record.i32()?, record.nullable_string()?);
                record.tags()?;
                Ok(error)
            })?;
            (record_errors, partition.nullable_string()?)
        } else {
            (Vec::new(), None)
        };
        partition.tags()?;
        Ok(ProduceResult {
            topic: topic.clone(),
            partition: index,
            error,
            base_offset,
            record_errors,
            message,
        })
    })?;
    let throttle_ms = reader.i32()?;
    reader.tags()?;
    Ok(ProduceResponse { throttle_ms, results })
}

pub fn describe_producers(reader: &mut Reader) -> Result<Vec<PartitionProducers>, Malformed> {
    reader.i32()?; // throttle time
    let partitions = by_topic(reader, |partition, topic| {
        let (index, error) = (partition.i32()?, partition.i16()?);
        partition.nullable_string()?; // the broker's own words
        let producers = partition.array(|producer| {
            let state = ProducerState {
                producer_id: producer.i64()?,
                producer_epoch: producer.i32()?,
                last_sequence: producer.i32()?,
            };
            producer.skip(8 + 4 + 8)?; // last timestamp, coordinator epoch, start of the transaction
            producer.tags()?;
            Ok(state)
        })?;
        partition.tags()?;
        Ok(PartitionProducers { topic: topic.clone(), partition: index, error, producers })
    })?;
    reader.tags()?;
    Ok(partitions)
}

pub fn list_offsets(reader: &mut Reader, version: i16) -> Result<Vec<PartitionOffset>, Malformed> {
    if version >= 2 {
        reader.i32()?; // throttle time
    }
    let offsets = by_topic(reader, |partition, topic| {
        let (index, error) = (partition.i32()?, partition.i16()?);
        partition.i64()?; // timestamp
        let offset = partition.i64()?;
        if version >= 4 {
            partition.i32()?; // leader epoch
        }
        partition.tags()?;
        Ok(PartitionOffset { topic: topic.clone(), partition: index, error, offset })
    })?;
    reader.tags()?;
    Ok(offsets)
}

pub fn fetch(reader: &mut Reader, version: i16) -> Result<FetchResponse, Malformed> {
    reader.i32()?; // throttle time
    let error = if version >= 7 { reader.i16()? } else { 0 };
    if version >= 7 {
        reader.i32()?; // session id
    }
    let partitions = by_topic(reader, |partition, topic| {
        let (index, error, high_watermark) = (partition.i32()?, partition.i16()?, partition.i64()?);
        partition.i64()?; // last stable offset
        if version >= 5 {
            partition.i64()?; // first offset of the log
        }
        partition.nullable_array(|aborted| {
            aborted.skip(8 + 8)?; // producer id, first offset
            aborted.tags()
        })?;
        if version >= 11 {
            partition.i32()?; // preferred replica
        }
        let records = partition.bytes()?;
        partition.tags()?;
        Ok(FetchedPartition { topic: topic.clone(), partition: index, error, high_watermark, records })
    })?;
    reader.tags()?;
    Ok(FetchResponse { error, partitions })
}

/// Topics, each with its partitions, made flat.
fn by_topic<T>(
    reader: &mut Reader,
    mut item: impl FnMut(&mut Reader, &TopicName) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut all = Vec::new();
    reader.array(|topic| {
        let name: TopicName = Arc::from(topic.string()?);
        topic.array(|partition| {
            all.push(item(partition, &name)?);
            Ok(())
        })?;
        topic.tags()
    })?;
    Ok(all)
}
