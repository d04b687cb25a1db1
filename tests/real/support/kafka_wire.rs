//! The three questions the tests ask a broker themselves: are you up, create this topic, who leads it. On the
//! protocol crate directly, at one version each, against the pinned Kafka.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, CreateTopicsRequest, CreateTopicsResponse, MetadataRequest, MetadataResponse, RequestHeader,
    ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::TopicSpec;

const METADATA_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;

/// How many brokers this one knows of.
pub fn broker_count(port: u16) -> Result<usize, String> {
    Ok(metadata(port, Some(Vec::new()))?.brokers.len())
}

/// Leader and in-sync replicas of each partition of a topic, in order.
pub fn leaders(port: u16, topic: &str) -> Result<Vec<(i32, usize)>, String> {
    let name = TopicName(StrBytes::from_string(topic.to_owned()));
    let response = metadata(port, Some(vec![MetadataRequestTopic::default().with_name(Some(name))]))?;
    let topic = response.topics.first().ok_or("no topic in the answer")?;
    if topic.error_code != 0 {
        return Err(format!("error code {}", topic.error_code));
    }
    let mut partitions: Vec<_> = topic
        .partitions
        .iter()
        .map(|partition| (partition.partition_index, partition.leader_id.0, partition.isr_nodes.len()))
        .collect();
    partitions.sort_unstable();
    Ok(partitions.into_iter().map(|(_, leader, isr)| (leader, isr)).collect())
}

/// Creates a topic; an error if it exists.
pub fn create_topic(port: u16, name: &str, spec: &TopicSpec) -> Result<(), String> {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let configs = spec
        .configs
        .iter()
        .map(|(name, value)| {
            CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
        })
        .collect();
    let topic = CreatableTopic::default()
        .with_name(TopicName(text(name)))
        .with_num_partitions(spec.partitions)
        .with_replication_factor(spec.replicas)
        .with_configs(configs);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(20_000);
    let response: CreateTopicsResponse = ask(port, ApiKey::CreateTopics, CREATE_TOPICS_VERSION, &request)?;
    match response.topics.first() {
        Some(topic) if topic.error_code == 0 => Ok(()),
        Some(topic) => Err(format!("error code {}: {:?}", topic.error_code, topic.error_message)),
        None => Err("no topic in the answer".into()),
    }
}

fn metadata(port: u16, topics: Option<Vec<MetadataRequestTopic>>) -> Result<MetadataResponse, String> {
    let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
    ask(port, ApiKey::Metadata, METADATA_VERSION, &request)
}

fn ask<R: Encodable, A: Decodable>(port: u16, key: ApiKey, version: i16, request: &R) -> Result<A, String> {
    let text = |error: &dyn std::fmt::Display| format!("{key:?} to port {port}: {error}");
    let header = RequestHeader::default().with_request_api_key(key as i16).with_request_api_version(version);
    let mut frame = vec![0; 4];
    header.encode(&mut frame, 2).map_err(|error| text(&error))?;
    request.encode(&mut frame, version).map_err(|error| text(&error))?;
    let length = u32::try_from(frame.len() - 4).map_err(|error| text(&error))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());

    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let limit = Duration::from_secs(25);
    let mut socket =
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|error| text(&error))?;
    socket.set_read_timeout(Some(limit)).map_err(|error| text(&error))?;
    socket.write_all(&frame).map_err(|error| text(&error))?;
    let mut length = [0; 4];
    socket.read_exact(&mut length).map_err(|error| text(&error))?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut answer).map_err(|error| text(&error))?;
    let mut answer = bytes::Bytes::from(answer);
    ResponseHeader::decode(&mut answer, 1).map_err(|error| text(&error))?;
    A::decode(&mut answer, version).map_err(|error| text(&error))
}
