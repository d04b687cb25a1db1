//! tidegate: an MQTT to Kafka gateway for the edge.
//!
//! ```text
//! MQTT broker -> ingest -> route -> publish -> Kafka
//!                   ^                  |
//!                   +---- settled -----+   PUBACK, in order of arrival, once Kafka has the record
//! ```
//!
//! Modules, in reading order:
//! [`message`] is what travels; [`mqtt`] takes it in and acknowledges it; [`route`] decides where it goes;
//! [`kafka`] delivers it; [`pipeline`] joins them by threads and channels; [`config`] and [`cli`] start it all.

pub mod message;
pub mod route;

pub mod kafka;
pub mod mqtt;

pub mod spool;

pub mod pipeline;

pub mod cli;
pub mod clients;
pub mod config;

pub mod auth;
pub mod backoff;
pub mod clock;
pub mod error;
pub mod fs;
pub mod observe;
pub mod secret;
pub mod thread;
pub mod tls;
