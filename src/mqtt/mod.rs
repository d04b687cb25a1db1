//! The MQTT side: takes messages in, and acknowledges each when it is safe and not before.
//!
//! ```text
//!  socket --bytes--> session --Message--> ingest thread --> pipeline
//!  socket <--bytes-- session <--Settled-- ingest thread <-- pipeline
//! ```
//!
//! [`session`] is the whole protocol as a pure state machine: bytes, settlements and time in; bytes, messages,
//! events and deadlines out. It is made of [`codec`] (bytes to packets of MQTT 3.1.1 and 5, the only module that names the
//! MQTT crate), [`reason`] (why a broker says no), [`ack`] (acknowledgements in order of arrival), [`redelivery`] (what the
//! broker delivers again), [`release`] (what it has released), [`subscription`] (what SUBACK said) and [`liveness`] (keep-alive). [`transport`] and [`waker`] are the edge:
//! the socket, and the wake-up of the thread that waits on it. [`probe`] is what `tidegate check` asks.
//!
//! Nothing here knows Kafka, routes or the configuration.

pub mod ack;
pub mod codec;
pub mod event;
pub mod liveness;
pub mod probe;
pub mod reason;
pub mod redelivery;
pub mod release;
pub mod session;
pub mod subscription;
pub mod transport;
pub mod waker;
