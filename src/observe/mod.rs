//! What the gateway tells about itself: counters and the log.

pub mod counters;
pub mod log;
pub mod throttle;
