//! Keep-alive and the answers that are waited for: when to ping, and when to give the broker up. Pure.
//!
//! Sending is timed always: the broker closes after one and a half keep-alive periods without a packet from us
//! (MQTT-3.1.2-24), whatever else is slow here. Answers are timed only while reading: a paused reader cannot see
//! them, and a slow Kafka must not close a healthy link.
//!
//! A PINGREQ also asks what the broker has processed: packets of a connection are processed in order, so its
//! PINGRESP confirms every PUBACK written before it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long the broker may take to answer CONNECT, SUBSCRIBE or PINGREQ.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the socket may take none of our bytes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// While PUBACKs are not confirmed, ask this often at the most: two bytes, only while messages flow.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// Pings whose place in the output is remembered; further ones are only counted. Reached when reading is paused
/// for hours.
const PINGS_MAX: usize = 256;

/// What the broker did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Overdue {
    /// No CONNACK.
    #[error("the broker did not answer CONNECT in time")]
    ConnAck,
    /// No SUBACK.
    #[error("the broker did not answer SUBSCRIBE in time")]
    SubAck,
    /// Neither a PINGRESP nor any other byte.
    #[error("the broker fell silent: no answer to PINGREQ in time")]
    PingResp,
    /// The socket took nothing.
    #[error("the broker does not read: nothing could be written in time")]
    Write,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Send PINGREQ.
    Ping,
    /// Give the connection up.
    GiveUp(Overdue),
}

/// The timers of one connection.
#[derive(Debug)]
pub struct Liveness {
    /// Send something after this long: three quarters of the keep-alive, so that a late thread is in time.
    ping_after: Option<Duration>,
    last_sent: Instant,
    last_ping: Option<Instant>,
    connack_due: Option<Instant>,
    suback_due: Option<Instant>,
    pong_due: Option<Instant>,
    write_due: Option<Instant>,
    paused_at: Option<Instant>,
    /// Where in all output each unanswered PINGREQ ends.
    pings: VecDeque<u64>,
    pings_beyond: u64,
}

fn ping_after(keep_alive_sec: u16) -> Option<Duration> {
    (keep_alive_sec > 0).then(|| Duration::from_millis(u64::from(keep_alive_sec) * 750))
}

impl Liveness {
    /// For a connection made at `now`, which has a CONNECT to send.
    pub fn new(keep_alive_sec: u16, now: Instant) -> Self {
        Liveness {
            ping_after: ping_after(keep_alive_sec),
            last_sent: now,
            last_ping: None,
            connack_due: Some(now + ANSWER_TIMEOUT),
            suback_due: None,
            pong_due: None,
            write_due: None,
            paused_at: None,
            pings: VecDeque::new(),
            pings_beyond: 0,
        }
    }

    /// CONNACK came; perhaps with another keep-alive than was asked for (MQTT 5, section 3.2.2.3.14).
    pub fn connected(&mut self, keep_alive_sec: Option<u16>) {
        self.connack_due = None;
        if let Some(keep_alive_sec) = keep_alive_sec {
            self.ping_after = ping_after(keep_alive_sec);
        }
    }

    /// SUBACKs are waited for, or no longer.
    pub fn awaiting_suback(&mut self, awaiting: bool, now: Instant) {
        self.suback_due = awaiting.then(|| now + ANSWER_TIMEOUT);
    }

    /// Bytes came: the broker lives.
    pub fn received(&mut self, now: Instant) {
        if let Some(due) = &mut self.pong_due {
            *due = now + ANSWER_TIMEOUT;
        }
    }

    /// There is output that is not written yet.
    pub fn output_waits(&mut self, now: Instant) {
        self.write_due.get_or_insert(now + WRITE_TIMEOUT);
    }

    /// The socket took bytes; `all` of them or not.
    pub fn wrote(&mut self, all: bool, now: Instant) {
        self.last_sent = now;
        self.write_due = (!all).then(|| now + WRITE_TIMEOUT);
    }

    /// A PINGREQ was put into the output, where it ends at byte `end` of all output.
    pub fn pinged(&mut self, end: u64, now: Instant) {
        self.last_ping = Some(now);
        // Counted as sent: if the socket does not take it, the write timer decides.
        self.last_sent = now;
        if self.pings.len() < PINGS_MAX && self.pings_beyond == 0 {
            self.pings.push_back(end);
        } else {
            self.pings_beyond += 1;
        }
        self.pong_due.get_or_insert(now + ANSWER_TIMEOUT);
    }

    /// A PINGRESP came: up to which byte of all output the broker has processed what we sent. None if it
    /// answers nothing that is remembered.
    pub fn ponged(&mut self, now: Instant) -> Option<u64> {
        let end = self.pings.pop_front();
        if end.is_none() {
            self.pings_beyond = self.pings_beyond.saturating_sub(1);
        }
        self.pong_due = self.ping_waits().then(|| now + ANSWER_TIMEOUT);
        end
    }

    /// A PINGREQ has no answer yet.
    pub fn ping_waits(&self) -> bool {
        !self.pings.is_empty() || self.pings_beyond > 0
    }

    /// Reading is paused or goes on: what the broker owes us is due later by as long as we did not look.
    pub fn reading(&mut self, reading: bool, now: Instant) {
        if !reading {
            self.paused_at.get_or_insert(now);
        } else if let Some(since) = self.paused_at.take() {
            let paused = now.saturating_duration_since(since);
            for due in [&mut self.connack_due, &mut self.suback_due, &mut self.pong_due].into_iter().flatten()
            {
                *due = (*due + paused).max(now + CONFIRM_INTERVAL);
            }
        }
    }

    /// When [`Liveness::due`] has to be asked again at the latest.
    pub fn deadline(&self, unconfirmed: usize) -> Option<Instant> {
        let confirm = self.confirm_at(unconfirmed);
        let answers = [self.connack_due, self.suback_due, self.pong_due];
        let answers = answers.into_iter().flatten().filter(|_| self.paused_at.is_none());
        [self.ping_at(), confirm, self.write_due].into_iter().flatten().chain(answers).min()
    }

    /// What to do at `now`. `drained`: nothing more waits to be read, so that what has not come is missing.
    pub fn due(&self, unconfirmed: usize, now: Instant, drained: bool) -> Due {
        let past = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let unanswered = |due: Option<Instant>| drained && self.paused_at.is_none() && past(due);
        if past(self.write_due) {
            Due::GiveUp(Overdue::Write)
        } else if unanswered(self.connack_due) {
            Due::GiveUp(Overdue::ConnAck)
        } else if unanswered(self.suback_due) {
            Due::GiveUp(Overdue::SubAck)
        } else if unanswered(self.pong_due) {
            Due::GiveUp(Overdue::PingResp)
        } else if past(self.ping_at()) || past(self.confirm_at(unconfirmed)) {
            Due::Ping
        } else {
            Due::Nothing
        }
    }

    fn ping_at(&self) -> Option<Instant> {
        // Nothing may be sent between CONNECT and CONNACK that depends on the answer; its own timer runs.
        if self.connack_due.is_some() {
            return None;
        }
        self.ping_after.map(|after| self.last_sent + after)
    }

    fn confirm_at(&self, unconfirmed: usize) -> Option<Instant> {
        if unconfirmed == 0 || self.ping_waits() {
            return None;
        }
        Some(self.last_ping.map_or(self.last_sent, |last| last) + CONFIRM_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn connected(keep_alive_sec: u16, now: Instant) -> Liveness {
        let mut liveness = Liveness::new(keep_alive_sec, now);
        liveness.connected(None);
        liveness
    }

    #[test]
    fn pings_after_three_quarters_of_the_keep_alive_without_anything_sent() {
        let start = Instant::now();
        let mut liveness = connected(20, start);
        assert_eq!(liveness.deadline(0), Some(start + 15 * S));
        liveness.wrote(true, start + 10 * S);
        assert_eq!(liveness.due(0, start + 24 * S, true), Due::Nothing);
        assert_eq!(liveness.due(0, start + 25 * S, true), Due::Ping);
    }

    #[test]
    fn keep_alive_zero_never_pings_of_itself() {
        let start = Instant::now();
        let liveness = connected(0, start);
        assert_eq!(liveness.deadline(0), None);
        assert_eq!(liveness.due(0, start + 100_000 * S, true), Due::Nothing);
    }

    #[test]
    fn keep_alive_goes_on_while_reading_is_paused_and_no_answer_is_missed() {
        let start = Instant::now();
        let mut liveness = connected(20, start);
        liveness.reading(false, start);
        for period in 1..=1000 {
            let now = start + 15 * S * period;
            assert_eq!(liveness.due(0, now, true), Due::Ping, "period {period}");
            liveness.pinged(u64::from(period), now);
        }
        let now = start + 15_000 * S;
        liveness.reading(true, now);
        assert_eq!(liveness.due(0, now, true), Due::Nothing);
        for _ in 1..=1000 {
            liveness.ponged(now);
        }
        assert!(!liveness.ping_waits());
    }

    #[test]
    fn silence_after_a_ping_is_the_end_and_any_byte_is_not_silence() {
        let start = Instant::now();
        let mut liveness = connected(20, start);
        liveness.pinged(2, start);
        liveness.received(start + 9 * S);
        assert_eq!(liveness.due(0, start + 15 * S - S / 2, true), Due::Nothing);
        assert_eq!(liveness.due(0, start + 19 * S, true), Due::GiveUp(Overdue::PingResp));
        assert_eq!(liveness.ponged(start + 20 * S), Some(2));
        assert_eq!(liveness.due(0, start + 20 * S, true), Due::Ping);
    }

    #[test]
    fn a_stalled_write_is_the_end_and_progress_is_not() {
        let start = Instant::now();
        let mut liveness = connected(0, start);
        liveness.output_waits(start);
        liveness.wrote(false, start + 20 * S);
        assert_eq!(liveness.due(0, start + 49 * S, true), Due::Nothing);
        assert_eq!(liveness.due(0, start + 50 * S, true), Due::GiveUp(Overdue::Write));
    }

    #[test]
    fn unconfirmed_acknowledgements_are_asked_after_once_a_second() {
        let start = Instant::now();
        let mut liveness = connected(0, start);
        assert_eq!(liveness.due(1, start + S, true), Due::Ping);
        liveness.pinged(6, start + S);
        assert_eq!(liveness.due(1, start + 5 * S, true), Due::Nothing);
        assert_eq!(liveness.ponged(start + 5 * S), Some(6));
        assert_eq!(liveness.due(1, start + 5 * S, true), Due::Ping);
        assert_eq!(liveness.due(0, start + 5 * S, true), Due::Nothing);
    }

    #[test]
    fn while_more_waits_to_be_read_our_own_duties_go_on_and_nothing_is_missed() {
        let start = Instant::now();
        let mut liveness = connected(4, start);
        liveness.pinged(2, start);
        assert_eq!(liveness.due(0, start + 60 * S, false), Due::Ping);
        assert_eq!(liveness.due(0, start + 60 * S, true), Due::GiveUp(Overdue::PingResp));
    }
}
