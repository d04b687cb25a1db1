//! Against real brokers: Mosquitto and Apache Kafka, read by kcat, the real tidegate executable.
//!
//! Every test says how many messages were lost, duplicated and out of order per key. A part of the stack that is
//! missing fails the test (`make test-setup` gets it); nothing is skipped. Sizes are everyday ones;
//! `make acceptance` runs the same tests at full size.

mod support;

mod board;
mod crash;
mod exactly_once;
mod flow;
mod mqtt;
mod outage;
mod refused;
mod secured;
mod secured_faults;
mod seed;
mod spool_limits;
mod spool_outage;
mod stack;
mod versions;
