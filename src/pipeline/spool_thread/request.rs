//! What the spool thread is asked for, and what it answers.

use bytes::Bytes;

use crate::kafka::protocol::TopicName;
use crate::spool::{Assignment, Forget, Frame, FrameId, Identity, Loss, NewFrame, Unreleased};

/// A frame to be kept.
#[derive(Debug, Clone)]
pub struct FrameToKeep {
    /// The route.
    pub topic: TopicName,
    /// Where it was sent to, if it was.
    pub sent: Option<(i32, Identity)>,
    /// How many records.
    pub records: u32,
    /// How many MQTT messages.
    pub messages: u32,
    /// Arrival of the oldest record, milliseconds since 1970.
    pub oldest_ms: i64,
    /// Arrival of the newest record, milliseconds since 1970.
    pub newest_ms: i64,
    /// The records.
    pub body: Bytes,
    /// Of its messages those that MQTT may deliver again until their packet identifier is released (QoS 2).
    pub unreleased: Vec<Unreleased>,
}

impl FrameToKeep {
    /// As the store takes it.
    pub fn as_new(&self) -> NewFrame<'_> {
        NewFrame {
            topic: &self.topic,
            partition: self.sent.map(|(partition, _)| partition),
            identity: self.sent.map(|(_, identity)| identity),
            records: self.records,
            messages: self.messages,
            oldest_ms: self.oldest_ms,
            newest_ms: self.newest_ms,
            body: &self.body,
            unreleased: &self.unreleased,
        }
    }
}

/// Which frames are wanted.
#[derive(Debug, Clone)]
pub struct ReadFrames {
    /// The route.
    pub topic: TopicName,
    /// Behind this frame.
    pub after: FrameId,
    /// Enough once there are so many bytes.
    pub bytes_max: usize,
    /// Enough once there are so many records.
    pub records_max: u32,
}

/// What publish asks for.
#[derive(Debug)]
pub enum SpoolRequest {
    /// Keep these frames, all or none.
    Append(Vec<FrameToKeep>),
    /// Keep identities of frames.
    Keep {
        /// To be given back.
        ticket: u64,
        /// The identities.
        assignments: Vec<Assignment>,
    },
    /// Give out frames.
    Read {
        /// Of these routes, the first ones first.
        routes: Vec<ReadFrames>,
        /// Enough for all together once there are so many bytes: the routes that are left have no part in the answer.
        bytes_max: usize,
    },
    /// These packet identifiers are released; ingest is told at once which of them are durable now.
    Release(Vec<Forget>),
    /// Frames that are in Kafka, and routes that Kafka refuses or takes again.
    Done {
        /// Frames.
        frames: Vec<FrameId>,
        /// Routes.
        parked: Vec<(TopicName, bool)>,
    },
}

/// Why nothing was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotKept {
    /// A limit is reached, for a parked route or for all.
    Full {
        /// The route whose share is used up, if it is that.
        parked: Option<String>,
    },
    /// A frame of this route is larger than the spool ever takes.
    TooLarge {
        /// The route.
        topic: String,
    },
    /// The disk failed; try again later.
    Stopped,
}

/// Frames of a route.
#[derive(Debug)]
pub struct FramesRead {
    /// The route.
    pub topic: TopicName,
    /// Its frames, ascending.
    pub frames: Vec<Frame>,
    /// There were no more behind them.
    pub caught_up: bool,
}

/// What drop-oldest gave up.
#[derive(Debug, Default)]
pub struct GivenUp {
    /// What went, by route.
    pub losses: Vec<Loss>,
    /// Frame numbers, first and last; some may be on their way to Kafka all the same.
    pub ranges: Vec<(FrameId, FrameId)>,
}

/// An answer.
#[derive(Debug)]
pub enum SpoolReply {
    /// To [`SpoolRequest::Append`].
    Appended {
        /// The frames' numbers, in order.
        result: Result<Vec<FrameId>, NotKept>,
        /// What had to go.
        given_up: GivenUp,
    },
    /// To [`SpoolRequest::Keep`].
    Kept {
        /// As asked.
        ticket: u64,
        /// Whether they are on the disk.
        result: Result<(), NotKept>,
    },
    /// To [`SpoolRequest::Read`].
    Read(Vec<FramesRead>),
    /// To nothing: the spool was stopped and is open again. Nothing is in it of appends that failed.
    Reopened,
    /// To [`SpoolRequest::Done`].
    Done,
}
