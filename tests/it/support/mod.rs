//! What the tests share. None of it knows tidegate's code: the brokers speak the protocols, the process is the
//! executable.

pub mod kafka_broker;
pub mod kafka_log;
mod kafka_read;
pub mod kafka_wire;
pub mod mqtt_broker;
pub mod process;
pub mod spool_look;
pub mod wait;
