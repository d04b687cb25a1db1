//! What is subscribed: asked for by SUBSCRIBE, had when SUBACK said so. Pure.
//!
//! It knows filters as text, not what they match. Invariant: a filter counts as granted only by a SUBACK of the
//! session the broker has now.
//!
//! A filter that is granted is not subscribed again in the same session: each SUBSCRIBE makes the broker send
//! the retained messages of the filter again (section 3.8.4), which would be repeats of our making. So with
//! session_present=1 only what this process has not seen granted is asked for: nothing after a lost connection,
//! everything after a start of the process, whose filters may be others than those of the last run.

use bytes::BytesMut;

use super::codec::{Codec, CodecError};
use super::reason::Reason;
use crate::message::Qos;

/// Filters in one SUBSCRIBE, and bytes of them: some brokers limit both.
const FILTERS_PER_PACKET: usize = 100;
const BYTES_PER_PACKET: usize = 60_000;

/// What SUBSCRIBE holds beside its filters: fixed header, identifier, no properties.
const PACKET_OVERHEAD_BYTES: usize = 8;

/// What a SUBACK told that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The broker refuses the filter. Told once until it accepts.
    Refused {
        /// The filter.
        filter: String,
        /// Why.
        reason: Reason,
    },
    /// The broker accepts what it refused before.
    Accepted(String),
    /// The broker delivers with a lower QoS than asked for. Told once.
    Downgraded {
        /// The filter.
        filter: String,
        /// QoS asked for.
        asked: Qos,
        /// QoS granted.
        granted: Qos,
    },
}

#[derive(Debug)]
struct Filter {
    filter: String,
    qos: Qos,
    granted: bool,
    refused: bool,
    downgraded: bool,
}

/// All filters of the gateway.
#[derive(Debug)]
pub struct Subscriptions {
    filters: Vec<Filter>,
    /// Packet identifier of each unanswered SUBSCRIBE, and its filters by index.
    pending: Vec<(u16, Vec<usize>)>,
    next_id: u16,
    packet_bytes_max: usize,
}

impl Subscriptions {
    /// Nothing is granted yet.
    pub fn new(filters: Vec<(String, Qos)>) -> Self {
        let filters = filters
            .into_iter()
            .map(|(filter, qos)| Filter { filter, qos, granted: false, refused: false, downgraded: false })
            .collect();
        Subscriptions { filters, pending: Vec::new(), next_id: 1, packet_bytes_max: BYTES_PER_PACKET }
    }

    /// The broker takes no packet larger than this; None: it does not say.
    pub fn limit(&mut self, packet_bytes_max: Option<u32>) {
        let limit = packet_bytes_max.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
        self.packet_bytes_max = BYTES_PER_PACKET.min(limit.saturating_sub(PACKET_OVERHEAD_BYTES));
    }

    /// A SUBACK is waited for.
    pub fn pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Filters granted and not granted.
    pub fn count(&self) -> (usize, usize) {
        let granted = self.filters.iter().filter(|filter| filter.granted).count();
        (granted, self.filters.len() - granted)
    }

    /// Asks for all that is not granted.
    ///
    /// # Errors
    /// A filter does not fit a packet.
    pub fn request(&mut self, codec: &Codec, output: &mut BytesMut) -> Result<(), CodecError> {
        let wanted: Vec<usize> =
            self.filters.iter().enumerate().filter(|(_, f)| !f.granted).map(|(index, _)| index).collect();
        let mut packet: Vec<usize> = Vec::new();
        let mut bytes = 0;
        for index in wanted {
            let size = self.filters.get(index).map_or(0, |f| f.filter.len() + 3);
            if packet.len() == FILTERS_PER_PACKET
                || (bytes + size > self.packet_bytes_max && !packet.is_empty())
            {
                self.send(std::mem::take(&mut packet), codec, output)?;
                bytes = 0;
            }
            packet.push(index);
            bytes += size;
        }
        if packet.is_empty() { Ok(()) } else { self.send(packet, codec, output) }
    }

    fn send(&mut self, packet: Vec<usize>, codec: &Codec, output: &mut BytesMut) -> Result<(), CodecError> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(1);
        let filters = packet.iter().filter_map(|&index| self.filters.get(index));
        codec.write_subscribe(id, filters.map(|f| (f.filter.as_str(), f.qos)), output)?;
        self.pending.push((id, packet));
        Ok(())
    }

    /// A SUBACK came. False: it answers nothing that was asked, or not as many filters: a protocol error.
    pub fn answered(
        &mut self,
        packet_id: u16,
        grants: &[Result<Qos, Reason>],
        verdicts: &mut Vec<Verdict>,
    ) -> bool {
        let Some(place) = self.pending.iter().position(|(id, _)| *id == packet_id) else { return false };
        let (_, asked) = self.pending.swap_remove(place);
        if asked.len() != grants.len() {
            return false;
        }
        for (index, grant) in asked.into_iter().zip(grants) {
            let Some(filter) = self.filters.get_mut(index) else { continue };
            filter.granted = grant.is_ok();
            match *grant {
                Err(reason) if !filter.refused => {
                    filter.refused = true;
                    verdicts.push(Verdict::Refused { filter: filter.filter.clone(), reason });
                }
                Err(_) => {}
                Ok(granted) => {
                    if std::mem::take(&mut filter.refused) {
                        verdicts.push(Verdict::Accepted(filter.filter.clone()));
                    }
                    if granted < filter.qos && !filter.downgraded {
                        filter.downgraded = true;
                        let (filter, asked) = (filter.filter.clone(), filter.qos);
                        verdicts.push(Verdict::Downgraded { filter, asked, granted });
                    }
                }
            }
        }
        true
    }

    /// Unanswered SUBSCRIBEs died with their connection.
    pub fn connection_lost(&mut self) {
        self.pending.clear();
    }

    /// The broker has another session now: nothing is granted in it.
    pub fn session_lost(&mut self) {
        self.pending.clear();
        for filter in &mut self.filters {
            filter.granted = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::codec::Version;

    fn many(count: usize, length: usize) -> Subscriptions {
        let name = |i: usize| format!("{i:05}{}", "x".repeat(length.saturating_sub(5)));
        Subscriptions::new((0..count).map(|i| (name(i), Qos::AtLeastOnce)).collect())
    }

    fn sizes(subscriptions: &mut Subscriptions) -> Vec<usize> {
        let mut output = BytesMut::new();
        subscriptions.request(&Codec::new(Version::V311, 1024), &mut output).unwrap();
        subscriptions.pending.iter().map(|(_, filters)| filters.len()).collect()
    }

    #[test]
    fn many_filters_are_split_over_packets_by_count_and_by_bytes() {
        assert_eq!(sizes(&mut many(250, 5)), [100, 100, 50]);
        assert_eq!(sizes(&mut many(3, 40_000)), [1, 1, 1]);
        assert_eq!(sizes(&mut many(0, 5)), [0; 0]);
        let mut limited = many(30, 5);
        limited.limit(Some(100));
        assert_eq!(sizes(&mut limited), [11, 11, 8], "92 bytes of filters at 8 each");
    }

    #[test]
    fn a_refused_filter_is_told_once_asked_for_again_and_told_when_accepted() {
        let mut subscriptions = many(2, 5);
        let mut verdicts = Vec::new();
        for _ in 0..2 {
            subscriptions.request(&Codec::new(Version::V311, 1024), &mut BytesMut::new()).unwrap();
            let (id, asked) = subscriptions.pending[0].clone();
            let grants: Vec<_> =
                asked.iter().map(|&i| (i == 1).then_some(Qos::AtLeastOnce).ok_or(Reason(0x8f))).collect();
            assert!(subscriptions.answered(id, &grants, &mut verdicts));
        }
        assert_eq!(verdicts, [Verdict::Refused { filter: "00000".into(), reason: Reason(0x8f) }]);
        assert_eq!(subscriptions.count(), (1, 1));
        subscriptions.request(&Codec::new(Version::V311, 1024), &mut BytesMut::new()).unwrap();
        assert_eq!(subscriptions.pending[0].1, [0]);
        assert!(subscriptions.answered(3, &[Ok(Qos::AtMostOnce)], &mut verdicts));
        assert_eq!(verdicts[1], Verdict::Accepted("00000".into()));
        assert!(matches!(&verdicts[2], Verdict::Downgraded { granted: Qos::AtMostOnce, .. }));
    }

    #[test]
    fn a_suback_for_nothing_or_of_another_length_is_an_error() {
        let mut subscriptions = many(2, 5);
        subscriptions.request(&Codec::new(Version::V311, 1024), &mut BytesMut::new()).unwrap();
        assert!(!subscriptions.answered(9, &[Err(Reason::UNSPECIFIED); 2], &mut Vec::new()));
        assert!(!subscriptions.answered(1, &[Err(Reason::UNSPECIFIED)], &mut Vec::new()));
    }
}
