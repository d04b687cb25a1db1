//! What can go wrong with the spool; each variant tells the caller what to do.

use std::io;

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// SPOOL_MAX_BYTES.
    Bytes,
    /// SPOOL_MIN_FREE_BYTES.
    FreeBytes,
    /// What parked routes may hold.
    Parked,
    /// The disk itself.
    Disk,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::Bytes => "SPOOL_MAX_BYTES is reached",
            Limit::FreeBytes => "SPOOL_MIN_FREE_BYTES would not be left",
            Limit::Parked => "routes that Kafka refuses have their share of it",
            Limit::Disk => "no space is left on the disk",
        })
    }
}

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Nothing was kept. Try again when there is room: after a checkpoint, or when the disk has space again.
    #[error("the spool is full: {limit}")]
    Full {
        /// What is reached.
        limit: Limit,
        /// The route whose share is used up, if it is a share.
        topic: Option<String>,
    },
    /// The frame can never be kept, as it is too long or says more records than eight for each of its bytes: its caller must record
    /// it as undeliverable.
    #[error("a frame of {bytes} bytes for {topic:?} is more than the spool takes")]
    TooLarge {
        /// The route.
        topic: String,
        /// Length of its body, bytes.
        bytes: usize,
    },
    /// Nothing is known about the last write. Nothing more is confirmed until [`super::Store::reopen`].
    #[error("the spool is stopped: {doing} {file} failed")]
    Poisoned {
        /// What was tried.
        doing: &'static str,
        /// Where.
        file: String,
        /// Why it failed; absent when it failed earlier.
        #[source]
        source: Option<io::Error>,
    },
    /// A frame, or all of a segment, cannot be read now. Reading may be tried again; to go on without it: [`super::Store::give_up`].
    #[error("{}{file} cannot be read", part(*frame))]
    Unreadable {
        /// The segment.
        segment: super::FrameId,
        /// The frame, if the segment's index could be read.
        frame: Option<super::FrameId>,
        /// Where.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the directory. End the start.
    #[error(
        "the spool in {0} belongs to another running tidegate: stop it, or give this one a DB_PERSIST_PATH of its own"
    )]
    Locked(String),
    /// The directory cannot be used. End the start.
    #[error("the spool in {directory} cannot be used: {doing} {file} failed")]
    Open {
        /// The directory.
        directory: String,
        /// What was tried.
        doing: &'static str,
        /// Where.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A newer program wrote it. End the start.
    #[error(
        "{file} in the spool has format {version} and this tidegate knows {} only: start the version that wrote it",
        super::segment::VERSION
    )]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
}

fn part(frame: Option<super::FrameId>) -> String {
    frame.map_or_else(String::new, |id| format!("frame {} in ", id.0))
}

impl SpoolError {
    /// Whether the same call may succeed later without anything being repaired.
    pub fn is_retriable(&self) -> bool {
        matches!(self, SpoolError::Full { .. } | SpoolError::Unreadable { .. })
    }
}
