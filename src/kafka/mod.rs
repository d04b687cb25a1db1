//! A blocking Kafka client: requests and responses, record batches, connections, an idempotent producer.
pub mod error;
pub mod protocol;
