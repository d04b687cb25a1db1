//! One turn: overdue records, modes, reading, appending, and what is asked of the spool thread.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use log::debug;

use super::{Backlog, Route};
use crate::kafka::producer::{Producer, TopicState};
use crate::kafka::protocol::TopicName;
use crate::pipeline::mode::{Event, Mode};
use crate::pipeline::spool_thread::SpoolRequest;
use crate::pipeline::waiting::Waiting;

/// The modes are looked at this often while something happens: more often says nothing new.
const MODES_EVERY: Duration = Duration::from_millis(5);
/// Overdue records are looked for no more often than this.
const OVERDUE_EVERY: Duration = Duration::from_millis(20);

impl Backlog {
    /// Does all that can be done now. Says when to call again at the latest.
    pub fn turn(
        &mut self,
        producer: &mut Producer<Waiting>,
        stopping: bool,
        now: Instant,
    ) -> Option<Instant> {
        let mut wake = self.find_overdue(producer, now);
        let mut wake_at = |at: Option<Instant>| {
            wake = match (wake, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        if !self.routes.is_empty() {
            wake_at(self.update_modes(producer, now));
            // What was pushed makes room for more.
            wake_at(self.push_restored(producer, now));
            wake_at(self.refill(now));
            wake_at(self.append_if_due(producer, stopping, now));
        }
        wake_at(self.keep_again(producer, now));
        self.ask_pending();
        wake
    }

    /// Identities that the disk did not take are asked for again: what is in flight may be so for hours.
    fn keep_again(&mut self, producer: &mut Producer<Waiting>, now: Instant) -> Option<Instant> {
        if self.keep_again_at.is_some_and(|at| at <= now) {
            self.keep_again_at = None;
            producer.keep_again(now);
        }
        self.keep_again_at
    }

    fn find_overdue(&mut self, producer: &mut Producer<Waiting>, now: Instant) -> Option<Instant> {
        if producer.take_held_topic() {
            self.overdue_at = Some(now);
        }
        let due = self.overdue_at?;
        if now < due {
            return Some(due);
        }
        let (overdue, next) = producer.overdue(now, self.options.after);
        for topic in &overdue {
            self.spool(topic, producer, now);
        }
        // What was found is overdue until it is in the spool. Others become so a moment later, and all acknowledgements wait
        // for theirs: a broker's queue is full soon.
        let next = if overdue.is_empty() { next } else { Some(now) };
        self.overdue_at = next.map(|at| at.max(now + OVERDUE_EVERY));
        self.overdue_at
    }

    /// Looks at what Kafka says of each route.
    fn update_modes(&mut self, producer: &mut Producer<Waiting>, now: Instant) -> Option<Instant> {
        if now < self.modes_at {
            return Some(self.modes_at);
        }
        self.modes_at = now + MODES_EVERY;
        let topics: Vec<TopicName> = self.routes.keys().cloned().collect();
        let mut wake = None;
        for topic in topics {
            let state = producer.topic_state(&topic, now);
            let Some(route) = self.routes.get_mut(&topic) else { continue };
            if route.done_noted != route.done_records {
                route.done_noted = route.done_records;
                route.progress_at = now;
            }
            let event = event(route, state, now, self.options.latency);
            let before = route.mode;
            route.mode = event.map_or(before, |event| before.after(event));
            if route.mode != before {
                debug!("topic {topic}: {before:?} to {:?}", route.mode);
                route.since = now;
                route.progressed = false;
                route.closing_since = None;
                self.on_mode(&topic, before, producer, now);
            }
            let Some(route) = self.routes.get(&topic) else { continue };
            let done = route.mode == Mode::Live && route.in_flight == 0 && route.chunks.is_empty();
            if done && !route.appending && !route.copy {
                self.routes.remove(&topic);
                self.tell_end(now);
            } else if route.mode != Mode::Live {
                let at = route.since + self.options.latency;
                let at = if at > now { at } else { now + self.options.latency };
                let at = route.unsure_until(now).map_or(at, |until| until.min(at));
                wake = Some(wake.map_or(at, |known: Instant| known.min(at)));
            }
        }
        self.count_modes();
        wake
    }

    fn count_modes(&self) {
        let (mut spooling, mut draining, mut parked) = (0, 0, 0);
        for route in self.routes.values() {
            match route.mode {
                Mode::Live => {}
                Mode::Spooling => spooling += 1,
                Mode::Draining => draining += 1,
                Mode::Parked => parked += 1,
            }
        }
        let counters = &self.counters.routes;
        counters.spooling.store(spooling, Relaxed);
        counters.draining.store(draining, Relaxed);
        counters.parked.store(parked, Relaxed);
    }

    fn on_mode(&mut self, topic: &TopicName, before: Mode, producer: &mut Producer<Waiting>, now: Instant) {
        let Some(route) = self.routes.get_mut(topic) else { return };
        match route.mode {
            Mode::Live => self.release(topic, producer, now),
            Mode::Parked => {
                route.attempt_at = now + self.options.latency;
                self.parked.push((topic.clone(), true));
            }
            Mode::Draining | Mode::Spooling => route.attempt_at = now,
        }
        if before == Mode::Parked {
            self.parked.push((topic.clone(), false));
        }
    }

    /// Asks for topics that have a backlog from the start.
    pub fn prepare(&self, producer: &mut Producer<Waiting>, now: Instant) {
        self.found().iter().for_each(|topic| producer.want(topic, now));
    }

    pub(super) fn ask_pending(&mut self) {
        if !self.keeping
            && let Some((ticket, assignments)) = self.keeps.pop_front()
        {
            self.keeping = true;
            self.ask(SpoolRequest::Keep { ticket, assignments });
        }
        if !self.finishing && (!self.done.is_empty() || !self.parked.is_empty()) {
            self.finishing = true;
            self.telling_done = std::mem::take(&mut self.done);
            let frames = self.telling_done.iter().map(|(frame, _)| *frame).collect();
            let parked = std::mem::take(&mut self.parked);
            self.ask(SpoolRequest::Done { frames, parked });
        }
    }

    /// One request of each kind at a time, so the channel has room; it has no reader only when the process ends.
    pub(super) fn ask(&mut self, request: SpoolRequest) {
        match self.requests.try_send(request) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => unreachable!("there is room for one request of each kind"),
        }
    }
}

/// What happened to a route, as far as its mode is concerned.
fn event(route: &Route, state: TopicState, now: Instant, latency: Duration) -> Option<Event> {
    // What is being copied is in flight too, though it does not count yet.
    let idle = route.in_flight == 0 && !route.copy && !route.appending;
    let proven = route.progressed || idle;
    let attempt = now.saturating_duration_since(route.since) >= latency;
    match (route.mode, state) {
        (Mode::Spooling | Mode::Draining, TopicState::Refused) => Some(Event::Refused),
        (Mode::Spooling, _) if Backlog::can_restore(state) && (proven || attempt) => Some(Event::Reachable),
        (Mode::Draining | Mode::Parked, TopicState::Unreachable) => Some(Event::Unreachable),
        (Mode::Draining, _) if route.is_read_out() && route.unsure_until(now).is_none() => {
            Some(Event::Emptied)
        }
        (Mode::Parked, _) if Backlog::can_restore(state) => Some(Event::Accepted),
        _ => None,
    }
}
