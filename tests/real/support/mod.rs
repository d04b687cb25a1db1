//! The stage of the real-broker tests and of the demo: it starts real programs on free ports in folders of
//! their own, waits on conditions, and leaves nothing running, however the process that uses it ends.
//!
//! Nothing here uses tidegate's Kafka or MQTT code: what is tested must not be its own judge. Only the books
//! (`tidegate::clients::verify`) are shared, which have tests of their own.
#![allow(dead_code, unused_imports, reason = "each user takes a part")]
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod certs;
pub mod consumer;
pub mod flow;
pub mod follower;
pub mod forward;
pub mod gateway;
pub mod kafka;
pub mod kafka_version;
pub mod kafka_wire;
pub mod keycloak;
pub mod mosquitto;
pub mod process;
pub mod publisher;
pub mod reaper;
pub mod rig;
pub mod secrets;
pub mod secured;
pub mod site;
pub mod spool;
pub mod stage;
pub mod wait;
pub mod zookeeper;

pub use consumer::{Record, Verdict, read_all};
pub use follower::Follower;
pub use gateway::Gateway;
pub use kafka::{Cluster, TopicSpec};
pub use kafka_version::Version;
pub use keycloak::Keycloak;
pub use mosquitto::Mosquitto;
pub use publisher::Publisher;
pub use rig::Rig;
pub use site::Site;
pub use spool::SpoolDir;
pub use stage::Stage;
pub use wait::{until, until_every};
