//! What the gateway tells about itself: counters and the log.

pub mod log;
