//! The spool: what Kafka cannot take yet, in order, on the disk, until it has been taken.
//!
//! # Constraints
//! - A *frame* is a batch of records for one route (a Kafka topic). Frames have ascending numbers, given by the spool in the
//!   order of acceptance. The spool knows nothing of Kafka: an identity is three numbers, a body is bytes.
//! - Identities belong to *records* of frames ([`Given`]): a frame may hold records of several Kafka partitions, and a Kafka batch
//!   records of several frames.
//! - [`Store::append`] returns Ok only when the frames are on the disk: one fdatasync for all frames of the call, and one of the
//!   directory when a file is new. A sync that failed stops the spool until [`Store::reopen`].
//! - Only the spool creates, changes and removes files in its directory, and only those whose names and headers it knows. One
//!   process at a time ([`lock`]).
//! - Memory does not grow with the backlog's bytes: for each frame one bit, for each segment file its name, counters per
//!   route, and for a few segments their index of frames; and what was assigned to frames that are not done.
//!
//! # Files
//! ```text
//! lock                        held by the process that writes
//! 00000000000000000001.seg    frames 1 to n, then an index        (segment, record)
//! 000000000000000nnnnn.seg    the newest, appended to
//! checkpoint                  which frames are done, and batches given later     (checkpoint)
//! quarantine/                 copies of what was damaged, segments that could not be read
//! ```
//! The bytes are in docs/spool-format.md.
//!
//! # Operation
//! - *Append* ([`writer`]): to the newest segment; a full one gets its index and a new one is begun.
//! - *Read* ([`reader`]): per route, behind a given frame, checksums verified; what is damaged is copied to the quarantine,
//!   counted and passed over.
//! - *Unreleased messages* ([`unreleased`]): noted in the checkpoint before their frames are appended.
//! - *Acknowledge*: a bit in memory. *Checkpoint*: one small write for all bits since the last; then segments of which every
//!   frame is done are removed.
//! - *Room* ([`quota`]): routes drain at different speeds, so a parked route's few frames may pin many segments. When room is
//!   needed, and only then, neighbouring segments that are mostly done are merged into one ([`compact`]).
//! - *Start* ([`recovery`]).

pub mod catalog;
pub mod checkpoint;
pub mod compact;
pub mod disk;
pub mod error;
pub mod inspect;
pub mod lock;
pub mod memory;
pub mod quarantine;
pub mod quota;
pub mod reader;
pub mod record;
pub mod record_set;
pub mod recovery;
pub mod report;
pub mod scan;
pub mod segment;
pub mod unreleased;
pub mod writer;

pub use disk::DiskSpool;
pub use error::{Limit, SpoolError};
pub use memory::MemorySpool;
pub use record_set::RecordSet;
pub use report::Report;
pub use unreleased::{Forget, Unreleased};

use bytes::Bytes;

/// The number of a frame. The first is 1; 0 is before all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameId(pub u64);

/// What makes a sent batch recognisable to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The producer's number.
    pub producer_id: i64,
    /// The producer's epoch.
    pub epoch: i16,
    /// The sequence number of the first record.
    pub base_sequence: i32,
}

/// A frame to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFrame<'a> {
    /// The route.
    pub topic: &'a str,
    /// The Kafka partition, if it was chosen.
    pub partition: Option<i32>,
    /// What it was sent with, if it was sent already, as one whole batch; it counts only with a partition.
    pub identity: Option<Identity>,
    /// How many records. The set of them takes no more bytes than the frame: eight for each byte at most.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// Arrival of the oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Arrival of the newest record, milliseconds since 1970.
    pub newest_ms: i64,
    /// The records, in whatever encoding the caller likes.
    pub body: &'a [u8],
    /// Of its messages those that may be delivered again until [`Store::release`].
    pub unreleased: &'a [Unreleased],
}

/// A frame as it is given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub id: FrameId,
    /// The route.
    pub topic: String,
    /// The batches that records of it were given to, in that order: as appended, and as assigned since. Each record is in
    /// one at most, and none is empty.
    pub given: Vec<Given>,
    /// How many records.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// Arrival of the oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Arrival of the newest record, milliseconds since 1970.
    pub newest_ms: i64,
    /// The records, as they were given.
    pub body: Bytes,
}

/// The batch that records of a frame were given to, before it was first sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The Kafka partition.
    pub partition: i32,
    /// What the batch is sent with.
    pub identity: Identity,
    /// Records of the whole batch; they may be in several frames of the route.
    pub batch_records: u32,
    /// An offset of the partition that the batch lies behind, if one was known; -1 if not.
    pub after_offset: i64,
    /// Which records of this frame are in it.
    pub records: RecordSet,
}

impl Given {
    /// Adds it to those of a frame: what it names is no longer in earlier ones.
    pub(crate) fn add_to(self, earlier: &mut Vec<Given>) {
        earlier.retain_mut(|known| {
            known.records.remove_all(&self.records);
            !known.records.is_empty()
        });
        if !self.records.is_empty() {
            earlier.push(self);
        }
    }
}

/// Records of a frame that are given to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The frame.
    pub id: FrameId,
    /// The batch, and which of the frame's records.
    pub given: Given,
}

/// What a route has in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// MQTT messages in them.
    pub messages: u64,
    /// Their length on the disk, bytes.
    pub bytes: u64,
    /// Arrival of the oldest record, milliseconds since 1970: of the oldest frame's segment, so it may name a record that
    /// is done by up to one segment.
    pub oldest_ms: Option<i64>,
}

/// What a route lost, exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The route.
    pub topic: String,
    /// Frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// MQTT messages in them.
    pub messages: u64,
}

/// What [`Store::give_up`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GaveUp {
    /// The first of the numbers that are gone.
    pub first: FrameId,
    /// The last of them.
    pub last: FrameId,
    /// What was not done of them, by route; among it may be frames that were given out before.
    pub losses: Vec<Loss>,
}

/// What [`Store::append`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appended {
    /// The numbers of the frames, in the order in which they were given.
    pub ids: Vec<FrameId>,
    /// What had to go to make room ([`Policy::DropOldest`]), by route.
    pub dropped: Vec<Loss>,
}

/// What happens at a limit (SPOOL_FULL).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// New frames are refused.
    #[default]
    Block,
    /// The oldest segments are given up.
    DropOldest,
}

/// Limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Most bytes of all files (SPOOL_MAX_BYTES). While segments are merged, one more segment may be there.
    pub bytes_max: u64,
    /// What is left free on the disk, bytes (SPOOL_MIN_FREE_BYTES).
    pub free_bytes_min: u64,
    /// A segment is closed at this size, bytes (SPOOL_SEGMENT_BYTES).
    pub segment_bytes: u32,
    /// What happens at a limit.
    pub policy: Policy,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bytes_max: 1 << 30,
            free_bytes_min: 64 << 20,
            segment_bytes: 8 << 20,
            policy: Policy::Block,
        }
    }
}

/// A spool, on the disk or in memory. One thread owns it.
pub trait Store: Send {
    /// Keeps frames: all, durably, in this order; or none.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::TooLarge`], [`SpoolError::Poisoned`]. After an error none of the frames is given out,
    /// neither now nor after [`Store::reopen`]. Only after `Poisoned` they may be there when the process ends before it was
    /// reopened.
    fn append(&mut self, frames: &[NewFrame<'_>]) -> Result<Appended, SpoolError>;

    /// Gives records of frames to batches, durably, with one write for all. The later one for a record wins. Frames that are done,
    /// were given up or never were are passed over, as are positions that a frame does not have. Frames that cannot be read now
    /// are not passed over.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Poisoned`]: none is given. After `Poisoned` the identities may be
    /// found after the end of the process: give them to no other records.
    fn assign(&mut self, assignments: &[Assignment]) -> Result<(), SpoolError>;

    /// The newest message of each number that was appended as unreleased and not released since, also before the start.
    fn unreleased(&self) -> Vec<Unreleased>;

    /// Whether there is something of this, or may be after a crash: else [`Store::release`] has nothing to write, whatever the disk does.
    fn remembers(&self, forget: &Forget) -> bool;

    /// These numbers are released, durably: what was appended under them is forgotten. Unknown ones are passed over, and if there are
    /// only such, nothing is written.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Poisoned`]: try again, and do not let the sender use the numbers for other messages
    /// before.
    fn release(&mut self, forget: &[Forget]) -> Result<(), SpoolError>;

    /// These are done: not given out again, durable with the next [`Store::checkpoint`]. Unknown numbers are passed over.
    fn ack(&mut self, ids: &[FrameId]);

    /// Makes acknowledgements durable, then gives back space.
    ///
    /// # Errors
    /// [`SpoolError::Poisoned`]; [`SpoolError::Full`] when space was given back but acknowledgements still do not fit on the disk.
    fn checkpoint(&mut self) -> Result<(), SpoolError>;

    /// Frames of a route with numbers above `after`, ascending, that are not done: at least one if there is one, and no
    /// more once `bytes_max` of them are reached.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`].
    fn next(&mut self, topic: &str, after: FrameId, bytes_max: usize) -> Result<Vec<Frame>, SpoolError> {
        self.next_within(topic, after, bytes_max, u32::MAX)
    }

    /// As [`Store::next`], and no more once `records_max` records are reached: compressed frames say little by their bytes.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`].
    fn next_within(
        &mut self,
        topic: &str,
        after: FrameId,
        bytes_max: usize,
        records_max: u32,
    ) -> Result<Vec<Frame>, SpoolError>;

    /// Goes on without what could not be read: a frame, or all frames of a segment, whose file is set aside in the quarantine. What can
    /// be read by now is not given up.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Poisoned`].
    fn give_up(&mut self, segment: FrameId, frame: Option<FrameId>) -> Result<GaveUp, SpoolError>;

    /// What a route has.
    fn backlog(&self, topic: &str) -> Backlog;

    /// Every route that has something.
    fn routes(&self) -> Vec<(String, Backlog)>;

    /// What all routes have together; without the oldest.
    fn total(&self) -> Backlog;

    /// Bytes that the spool takes now.
    fn bytes(&self) -> u64;

    /// Limits a route (Kafka refuses it) to its share, or lifts that.
    fn park(&mut self, topic: &str, parked: bool);

    /// What was found damaged since the last call, by route. Each was passed over and is in the quarantine.
    fn take_damage(&mut self) -> Vec<Loss>;

    /// Numbers of frames that were given up to make room ([`Policy::DropOldest`]) since the last call, also by appends that failed:
    /// ascending ranges, first and last. Each frame in them was lost, or was done before.
    fn take_dropped_ranges(&mut self) -> Vec<(FrameId, FrameId)>;

    /// Recovers after [`SpoolError::Poisoned`], without what was never confirmed.
    ///
    /// # Errors
    /// As [`DiskSpool::open`]; it may be tried again.
    fn reopen(&mut self) -> Result<Report, SpoolError>;
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod mended_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
