//! What happens to records for which the spool has no room.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use log::error;

use super::insert::{Chunk, RETRY_EVERY, Records};
use super::{Backlog, Rejected};
use crate::kafka::record_batch::{BatchBuilder, with_record_ref};
use crate::message::Settled;
use crate::pipeline::mode::Mode;
use crate::pipeline::spool_thread::NotKept;
use crate::pipeline::waiting::Waiting;

impl Backlog {
    /// An append of so many chunks and bytes was not carried out.
    pub(super) fn on_refused_append(
        &mut self,
        why: &NotKept,
        chunks: usize,
        bytes: usize,
        settling: &mut Vec<Settled>,
        now: Instant,
    ) {
        match why {
            // All or nothing was asked for: there may be room for a part.
            NotKept::Full { .. } | NotKept::TooLarge { .. } if chunks > 1 => {
                self.append_bytes = (bytes / 2).min(self.append_bytes / 2).max(1);
            }
            NotKept::Full { parked: Some(topic) } => self.reject_share(topic, now),
            NotKept::Full { parked: None } => {
                self.drop_at_most_once(settling);
                self.append_at = Some(now + RETRY_EVERY);
            }
            NotKept::TooLarge { topic } => {
                self.reject_front(topic);
                self.append_at = Some(now + RETRY_EVERY);
            }
            NotKept::Stopped => self.append_at = Some(now + RETRY_EVERY),
        }
    }

    /// A parked route has its share of the spool: its new messages must not hold back the others' acknowledgements.
    fn reject_share(&mut self, topic: &str, now: Instant) {
        let before = self.rejected.len();
        let Some((topic, route)) = self.routes.iter_mut().find(|(name, _)| ***name == *topic) else { return };
        if route.mode != Mode::Parked {
            // It is not limited any more; the spool is about to hear of it.
            self.append_at = Some(now + RETRY_EVERY);
            return;
        }
        for chunk in std::mem::take(&mut route.chunks) {
            for (record, waiting) in chunk.into_records() {
                let reason = "Kafka refuses its topic, and that topic's share of the spool is used up";
                self.rejected.push(Rejected { topic: topic.clone(), record, waiting, reason });
            }
        }
        if self.rejected.len() == before {
            // Copies have no part in the share; whatever it is, trying again at once would change nothing.
            self.append_at = Some(now + RETRY_EVERY);
        }
    }

    /// No waiting makes room for what is larger than the spool takes: it must hold nobody back.
    fn reject_front(&mut self, topic: &str) {
        let Some((topic, route)) = self.routes.iter_mut().find(|(name, _)| ***name == *topic) else { return };
        for (record, waiting) in route.chunks.pop_front().into_iter().flat_map(Chunk::into_records) {
            let reason = "Kafka cannot take it now, and it is larger than the spool takes";
            self.rejected.push(Rejected { topic: topic.clone(), record, waiting, reason });
        }
    }

    /// The spool is full: nothing waits for messages of QoS 0 but our memory.
    fn drop_at_most_once(&mut self, settling: &mut Vec<Settled>) {
        let mut dropped = Vec::new();
        for route in self.routes.values_mut() {
            let any = |chunk: &Chunk| chunk.waiting.iter().any(Waiting::is_at_most_once);
            if !route.chunks.iter().any(any) {
                continue;
            }
            for chunk in std::mem::take(&mut route.chunks) {
                if !any(&chunk) {
                    route.chunks.push_back(chunk);
                    continue;
                }
                let since = chunk.since;
                let (sealed, all) = chunk.seal();
                let records = sealed.records().expect("a batch that was sealed here can be read back");
                let mut kept = BatchBuilder::new();
                let mut waiting = Vec::new();
                for (record, waits) in records.iter().zip(all) {
                    if waits.is_at_most_once() {
                        dropped.push(waits);
                    } else {
                        with_record_ref(record, |record| kept.append(record));
                        waiting.push(waits);
                    }
                }
                if !waiting.is_empty() {
                    route.chunks.push_back(Chunk { since, records: Records::Open(kept), waiting });
                }
            }
        }
        if dropped.is_empty() {
            return;
        }
        let count = dropped.len() as u64;
        if self.counters.dropped_at_most_once.fetch_add(count, Relaxed) == 0 {
            error!("messages of QoS 0 are dropped while the spool is full");
        }
        dropped.into_iter().for_each(|waiting| self.free(waiting, settling));
    }
}
