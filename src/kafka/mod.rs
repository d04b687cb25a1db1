//! A blocking Kafka client: requests and responses, record batches, connections, an idempotent producer.
pub mod compression;
pub mod error;
pub mod partitioner;
pub mod producer;
pub mod protocol;
pub mod record_batch;
