//! A blocking Kafka client: requests and responses, record batches, connections, an idempotent producer.
pub mod client;
pub mod codec;
pub mod compression;
pub mod connection;
pub mod error;
pub mod partitioner;
pub mod producer;
pub mod protocol;
pub mod record_batch;
