//! What the two client programs share: the test message they exchange and the books the subscriber keeps.
//!
//! `publisher-mqtt` writes [`payload`]s, `subscriber-kafka` reads them back and [`verify`] tells what was lost,
//! repeated or out of order. Neither knows of sockets, MQTT or Kafka: the programs in `src/bin` do.

pub mod histogram;
pub mod pace;
pub mod payload;
pub mod verify;
