//! The scripted ring: the real executable against brokers that do, on cue, what a real broker cannot be made
//! to do. One file for each intent; `support` holds the brokers, the process and the waiting; `tidy` holds the
//! house rules.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "tests and their support fail by panicking, and say why on stderr"
)]

mod support;

mod happy;

mod acknowledgement;
mod chaos;
mod dead_letter;
mod exactly_once;
mod footprint;
mod http;
mod kafka_faults;
mod kafka_outages;
mod mqtt_5;
mod mqtt_faults;
mod shutdown;
mod systemd;

#[cfg(feature = "tls")]
mod secured;
#[cfg(feature = "tls")]
mod secured_faults;

mod cli;
mod config;

mod spool;
mod spool_chaos;
mod spool_chaos_held;
mod spool_kills;
mod spool_limits;
mod spool_restore;
mod spooling;

mod regression;
mod service;
mod tidy;
