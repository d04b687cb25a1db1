//! What the tests share. None of it knows tidegate's code: the brokers speak the protocols, the process is the
//! executable.

#[cfg(feature = "tls")]
pub mod certificates;
#[cfg(feature = "tls")]
pub mod guard;
pub mod http;
pub mod kafka_broker;
pub mod kafka_log;
mod kafka_read;
pub mod kafka_wire;
pub mod manager;
pub mod mqtt_broker;
pub mod process;
pub mod spool_look;
#[cfg(feature = "tls")]
pub mod token_endpoint;
pub mod wait;
