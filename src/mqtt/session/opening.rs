//! From CONNACK to the last SUBACK, and what a lost session leaves to be forgotten before.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Event, Phase, REFUSED_RETRY, Session, SessionError};
use crate::message::Qos;
use crate::mqtt::codec::{Limits, Reason, Refusal};
use crate::mqtt::release::ToForget;

impl Session {
    pub(super) fn connack(
        &mut self,
        session_present: bool,
        refusal: Option<Refusal>,
        limits: Limits,
        now: Instant,
    ) -> Result<(), SessionError> {
        self.connect_end = None;
        if let Some(refusal) = refusal {
            return Err(SessionError::Refused(refusal));
        }
        let unsure = std::mem::take(&mut self.unsure);
        if !session_present {
            // Before the next packet is parsed: its identifiers are of the new session.
            std::mem::take(&mut self.void).store(true, Ordering::Release);
            self.releases.void(self.redelivery.session_lost());
        } else {
            self.redelivery.resumed(unsure);
        }
        if !session_present || unsure {
            // Nothing is granted in a session that a CONNECT made whose answer never came.
            self.subscriptions.session_lost();
        }
        self.phase = Phase::Open;
        self.connected_at = Some(now);
        if let Some(liveness) = &mut self.liveness {
            liveness.connected(limits.keep_alive_sec);
        }
        self.subscriptions.limit(limits.packet_bytes_max);
        self.events.push_back(Event::Connected { session_present, limits });
        self.subscribe_later = self.releases.is_voiding();
        self.told_waiting = false;
        if self.subscribe_later { Ok(()) } else { self.subscribe(now) }
    }

    /// Packet identifiers that are released: to be made durable, then [`Session::released`]. None while some are under way.
    pub fn take_releases(&mut self, now: Instant) -> Option<Vec<ToForget>> {
        self.releases.take(now)
    }

    /// Nothing is left for [`Session::take_releases`], nor under way.
    pub fn releases_are_idle(&self) -> bool {
        self.releases.is_idle()
    }

    /// Of what [`Session::take_releases`] gave, these are durable; the others are given again later.
    ///
    /// # Errors
    /// A filter does not fit a packet.
    pub fn released(&mut self, durable: &[u16], now: Instant) -> Result<(), SessionError> {
        for packet_id in self.releases.done(durable, now) {
            self.codec.write_pubcomp(packet_id, &mut self.output);
        }
        if self.subscribe_later && self.releases.deadline().is_some() && !self.told_waiting {
            self.told_waiting = true;
            self.events.push_back(Event::HeldUp);
        }
        if self.subscribe_later && !self.releases.is_voiding() {
            self.subscribe_later = false;
            self.subscribe(now)?;
        }
        self.bookkeep(now);
        Ok(())
    }

    pub(super) fn subscribe(&mut self, now: Instant) -> Result<(), SessionError> {
        self.retry_refused_at = None;
        self.subscriptions.request(&self.codec, &mut self.output)?;
        self.subscribing(now);
        Ok(())
    }

    fn subscribing(&mut self, now: Instant) {
        let pending = self.subscriptions.pending();
        if let Some(liveness) = &mut self.liveness {
            liveness.awaiting_suback(pending, now);
        }
        if !pending {
            let (granted, refused) = self.subscriptions.count();
            self.retry_refused_at = (refused > 0).then(|| now + REFUSED_RETRY);
            // Once a minute nothing new is nothing to tell.
            if self.told != Some((granted, refused)) {
                self.told = Some((granted, refused));
                self.events.push_back(Event::Subscribed { granted, refused });
            }
        }
    }

    pub(super) fn suback(
        &mut self,
        packet_id: u16,
        grants: &[Result<Qos, Reason>],
        now: Instant,
    ) -> Result<(), SessionError> {
        let mut verdicts = Vec::new();
        if !self.subscriptions.answered(packet_id, grants, &mut verdicts) {
            return Err(SessionError::Unexpected("a SUBACK that answers no SUBSCRIBE"));
        }
        self.events.extend(verdicts.into_iter().map(Event::Filter));
        self.subscribing(now);
        Ok(())
    }
}
