//! What recovery found, and how an operator is told. Pure.

use super::Loss;
use super::quarantine::QUARANTINE;

/// What was found at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that are kept.
    pub segments: u64,
    /// Frames in them that are not done.
    pub frames: u64,
    /// Records in those.
    pub records: u64,
    /// Torn tail: file, and how many bytes were cut from its end. They were never confirmed.
    pub cut: Option<(String, u64)>,
    /// Damage: file, offset, length in bytes.
    pub damaged: Vec<(String, u64, u64)>,
    /// Records known to be lost by damage, by route.
    pub lost: Vec<Loss>,
    /// Frame numbers of which nothing tells where they went: first and last.
    pub missing: Vec<(u64, u64)>,
    /// Segments without a sound index that should have one; they were read instead.
    pub indexes_rebuilt: u64,
    /// Segments removed because all their frames are done, or are in a merged segment.
    pub removed: u64,
    /// Whether there is a backlog but no readable checkpoint: frames that were done may be sent again.
    pub checkpoint_lost: bool,
    /// Bytes of the checkpoint that are damaged.
    pub checkpoint_damaged_bytes: u64,
    /// Bytes at the end of the checkpoint that are no record: it was being written, or is damaged.
    pub checkpoint_cut_bytes: u64,
    /// Files for which a disk without room did not take again what is in them: after a power loss their ends may be missing.
    pub not_rewritten: Vec<String>,
    /// Files that are not what their names say, now in the quarantine.
    pub set_aside: Vec<String>,
    /// Files that are not the spool's. They are left alone.
    pub foreign: Vec<String>,
}

impl Report {
    /// What an operator should know, a sentence each; nothing after a clean stop or a plain kill.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some((file, bytes)) = &self.cut {
            lines.push(format!(
                "{file}: cut {bytes} bytes of an unfinished write, which was never acknowledged"
            ));
        }
        for (file, offset, bytes) in &self.damaged {
            lines.push(format!("{file}: {bytes} damaged bytes at {offset} skipped, see {QUARANTINE}/"));
        }
        for loss in &self.lost {
            let Loss { topic, frames, records, messages } = loss;
            lines.push(format!(
                "{topic}: {records} records of {messages} messages in {frames} damaged frames are lost"
            ));
        }
        for (first, last) in &self.missing {
            lines.push(format!(
                "frames {first} to {last} are missing: a segment file, or the end of one, is gone"
            ));
        }
        if self.indexes_rebuilt > 0 {
            lines.push(format!("{} segments had no sound index and were read whole", self.indexes_rebuilt));
        }
        if self.checkpoint_lost {
            lines.push(
                "the checkpoint is gone or damaged: what Kafka had already may be sent again".to_owned(),
            );
        }
        if self.checkpoint_damaged_bytes > 0 {
            lines.push(format!(
                "{} bytes of the checkpoint are damaged: some frames may be sent again",
                self.checkpoint_damaged_bytes
            ));
        }
        if self.checkpoint_cut_bytes > 0 {
            lines.push(format!(
                "cut {} bytes of an unfinished write from the checkpoint: some frames may be sent again",
                self.checkpoint_cut_bytes
            ));
        }
        for file in &self.not_rewritten {
            lines.push(format!(
                "{file}: the disk has no room to write it once more, so a power loss may cost what was written to it last"
            ));
        }
        for file in &self.set_aside {
            lines.push(format!("{file} does not begin as such a file does, and was moved to {QUARANTINE}/"));
        }
        for file in &self.foreign {
            lines.push(format!("{file} does not belong to the spool and is left alone"));
        }
        lines
    }
}
