//! A blocking Kafka client: batches, messages, connections, an idempotent producer.
//!
//! ```text
//!  error   compression   partitioner      pure tables and functions
//!             |
//!        record_batch    protocol         bytes of records; requests and responses in our own terms
//!                           |
//!                         codec    sasl   frames: the only file that names the protocol crate; mechanisms, pure
//!                           |      |
//!                       connection        one socket, a thread that writes and a thread that reads
//!                   +-------+-------+
//!               producer          client  batches until they are acknowledged; waiting for answers, for tools
//! ```
//!
//! It speaks to brokers from 0.11 to 4.x over TCP or TLS, with or without SASL (versions are negotiated, KIP-35), and knows nothing of
//! MQTT, of routes, or of what a record means. Invariants of all of it:
//! - nothing a broker sends makes it panic, and no length on the wire sizes an allocation;
//! - it gives up on no error code by itself: [`error::ErrorCode::class`] says what a code asks for, the owner acts;
//! - no call blocks a thread other than its own: only [`client`] waits, and says until when.

pub mod compression;
pub mod error;
pub mod partitioner;
pub mod protocol;
pub mod record_batch;

pub mod codec;
pub mod sasl;

pub mod connection;

pub mod producer;

pub mod client;
