//! What the tests ask a broker themselves: are you up, create this topic, who leads it, where does it end, who may write.
//! On the protocol crate directly, at one version each, which every Kafka from 0.11 to 4.3 has; those of access rules and settings later ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, BrokerId, CreateAclsRequest, CreateAclsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteAclsRequest, DeleteAclsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, RequestHeader,
    ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::TopicSpec;

const METADATA_VERSION: i16 = 4;
const CREATE_TOPICS_VERSION: i16 = 2;
const LIST_OFFSETS_VERSION: i16 = 2;
const ACLS_VERSION: i16 = 2;
const ALTER_CONFIGS_VERSION: i16 = 1;

// Numbers of the protocol: resource type, pattern type, operations, permissions.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const LITERAL: i8 = 3;
const ANY: i8 = 1;
const READ: i8 = 3;
const WRITE: i8 = 4;
const DENY: i8 = 2;
const ALLOW: i8 = 3;

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

/// The sum of the end offsets of all partitions; an error if the broker leads not all of them.
pub fn end_offset(port: u16, topic: &str, partitions: i32) -> Result<i64, String> {
    // Timestamp -1 asks for the end.
    let partition = |index| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(-1);
    let topic = ListOffsetsTopic::default()
        .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partitions((0..partitions).map(partition).collect());
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let response: ListOffsetsResponse = ask(port, ApiKey::ListOffsets, LIST_OFFSETS_VERSION, &request)?;
    let partitions = response.topics.into_iter().flat_map(|topic| topic.partitions);
    partitions
        .map(|partition| match partition.error_code {
            0 => Ok(partition.offset),
            code => Err(format!("partition {}: error code {code}", partition.partition_index)),
        })
        .sum()
}

/// Nobody may write to a topic, and all may read it: once a topic has a rule, what no rule allows is refused.
pub fn deny_writing(port: u16, topic: &str) -> Result<(), String> {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let rule = |operation, permission| {
        AclCreation::default()
            .with_resource_type(TOPIC)
            .with_resource_name(text(topic))
            .with_resource_pattern_type(LITERAL)
            .with_principal(text("User:*"))
            .with_host(text("*"))
            .with_operation(operation)
            .with_permission_type(permission)
    };
    let rules = vec![rule(WRITE, DENY), rule(READ, ALLOW)];
    let request = CreateAclsRequest::default().with_creations(rules);
    let response: CreateAclsResponse = ask(port, ApiKey::CreateAcls, ACLS_VERSION, &request)?;
    match response.results.iter().find(|result| result.error_code != 0) {
        None => Ok(()),
        Some(bad) => Err(format!("error code {}: {:?}", bad.error_code, bad.error_message)),
    }
}

/// Takes all rules of a topic away; an error if there are none.
pub fn delete_acls(port: u16, topic: &str) -> Result<(), String> {
    let filter = DeleteAclsFilter::default()
        .with_resource_type_filter(TOPIC)
        .with_resource_name_filter(Some(StrBytes::from_string(topic.to_owned())))
        .with_pattern_type_filter(LITERAL)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_operation(ANY)
        .with_permission_type(ANY);
    let request = DeleteAclsRequest::default().with_filters(vec![filter]);
    let response: DeleteAclsResponse = ask(port, ApiKey::DeleteAcls, ACLS_VERSION, &request)?;
    match response.filter_results.first() {
        Some(result) if result.error_code == 0 && !result.matching_acls.is_empty() => Ok(()),
        result => Err(format!("{result:?}")),
    }
}

/// Changes a setting of a broker while it runs.
pub fn set_broker_config(port: u16, broker: i32, name: &str, value: &str) -> Result<(), String> {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let config = AlterableConfig::default()
        .with_name(text(name))
        .with_config_operation(SET)
        .with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(BROKER)
        .with_resource_name(text(&broker.to_string()))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let key = ApiKey::IncrementalAlterConfigs;
    let response: IncrementalAlterConfigsResponse = ask(port, key, ALTER_CONFIGS_VERSION, &request)?;
    match response.responses.first() {
        Some(answer) if answer.error_code == 0 => Ok(()),
        answer => Err(format!("{answer:?}")),
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
    header.encode(&mut frame, key.request_header_version(version)).map_err(|error| text(&error))?;
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
    ResponseHeader::decode(&mut answer, key.response_header_version(version))
        .map_err(|error| text(&error))?;
    A::decode(&mut answer, version).map_err(|error| text(&error))
}
