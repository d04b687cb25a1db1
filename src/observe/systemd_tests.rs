use std::cell::RefCell;

use super::*;
use crate::observe::heartbeat::{Heartbeat, Heartbeats};

const SECOND: Duration = Duration::from_secs(1);
const WATCHDOG: Duration = Duration::from_secs(30);

thread_local! {
    static SENT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn keep(states: &[NotifyState<'_>]) -> io::Result<()> {
    SENT.with_borrow_mut(|sent| sent.extend(states.iter().map(ToString::to_string)));
    Ok(())
}

fn sent() -> Vec<String> {
    SENT.take()
}

struct Gateway {
    observed: Observed,
    thread: Heartbeat,
    notifier: Notifier,
    now: Instant,
}

impl Gateway {
    fn start() -> Gateway {
        let now = Instant::now();
        let heartbeats = Heartbeats::new(Some(WATCHDOG), now);
        let thread = heartbeats.join("publish", now);
        let observed = Observed::new(heartbeats, 1 << 30, now);
        observed.spool.open.store(true, Relaxed);
        observed.publish.connected.store(true, Relaxed);
        let notifier = Notifier::start(observed.clone(), Some(WATCHDOG), SECOND * 120, keep, now);
        assert_eq!(sent(), ["STATUS=starting", "EXTEND_TIMEOUT_USEC=120000000"]);
        Gateway { observed, thread, notifier, now }
    }

    fn subscribe(&self) {
        self.observed.mqtt.connected.store(true, Relaxed);
        self.observed.mqtt.subscribed.store(true, Relaxed);
    }

    /// Lets time pass, turn by turn as main would; the thread goes round in it, or hangs.
    fn pass(&mut self, span: Duration, hangs: bool) -> Vec<String> {
        let until = self.now + span;
        while self.now < until {
            if !hangs {
                self.thread.waits(None, self.now);
            }
            let next = self.notifier.turn(self.now);
            assert!(next > self.now, "it never spins");
            self.now = next.min(self.now + SECOND).min(until);
        }
        sent()
    }
}

fn count(sent: &[String], what: &str) -> usize {
    sent.iter().filter(|state| state.starts_with(what)).count()
}

#[test]
fn ready_is_told_once_when_subscribed_and_the_spool_is_open_and_never_before() {
    let mut gateway = Gateway::start();
    let waiting = gateway.pass(SECOND * 300, false);
    assert_eq!(count(&waiting, "READY"), 0);
    assert_eq!(count(&waiting, "EXTEND_TIMEOUT_USEC=60000000"), 30, "the start may take as long as it needs");
    assert_eq!(waiting.iter().filter(|s| *s == "STATUS=MQTT: not connected; no backlog").count(), 1);
    gateway.observed.spool.open.store(false, Relaxed);
    gateway.subscribe();
    assert_eq!(count(&gateway.pass(SECOND * 20, false), "READY"), 0, "not without the spool");
    gateway.observed.spool.open.store(true, Relaxed);
    gateway.notifier.turn(gateway.now);
    assert_eq!(sent(), ["READY=1", "STATUS=0 messages/s from MQTT, 0 records/s to Kafka; no backlog"]);
    gateway.observed.mqtt.subscribed.store(false, Relaxed);
    gateway.pass(SECOND * 20, false);
    gateway.subscribe();
    let after = gateway.pass(SECOND * 100, false);
    assert_eq!(count(&after, "READY") + count(&after, "EXTEND"), 0, "once");
}

#[test]
fn the_status_has_rates_and_the_backlog_and_is_told_when_it_changes() {
    let mut gateway = Gateway::start();
    gateway.subscribe();
    gateway.pass(SECOND * 10, false);
    gateway.observed.mqtt.received.store(5000, Relaxed);
    gateway.observed.publish.delivered.store(2000, Relaxed);
    gateway.observed.spool.backlog_records.store(3000, Relaxed);
    gateway.observed.spool.bytes.store(1_234_567, Relaxed);
    gateway.observed.publish.connected.store(false, Relaxed);
    let told = gateway.pass(SECOND * 5, false);
    let status: Vec<_> = told.iter().filter(|state| state.starts_with("STATUS")).collect();
    assert_eq!(
        status,
        ["STATUS=1000 messages/s from MQTT, 400 records/s to Kafka; backlog 3000 records, spool 1.2 MB; \
          Kafka: not connected"]
    );
    gateway.pass(SECOND * 5, false);
    assert_eq!(count(&gateway.pass(SECOND * 60, false), "STATUS"), 0, "nothing changed");
}

#[test]
fn the_watchdog_is_fed_at_half_of_its_time_while_every_thread_goes_round() {
    let mut gateway = Gateway::start();
    gateway.subscribe();
    assert_eq!(count(&gateway.pass(SECOND * 600, false), "WATCHDOG=1"), 40);
}

#[test]
fn the_watchdog_is_fed_no_more_once_a_thread_hangs_and_again_when_it_is_back_in_time() {
    let mut gateway = Gateway::start();
    gateway.subscribe();
    gateway.pass(SECOND * 60, false);
    gateway.pass(SECOND * 12, true);
    assert_eq!(count(&gateway.pass(SECOND * 600, true), "WATCHDOG"), 0);
    assert_eq!(count(&gateway.pass(SECOND * 2, false), "WATCHDOG=1"), 1, "noticed within a sixteenth");
}

#[test]
fn a_long_work_that_was_told_does_not_starve_the_watchdog() {
    let mut gateway = Gateway::start();
    gateway.subscribe();
    gateway.pass(SECOND * 60, false);
    gateway.thread.works(SECOND * 120, gateway.now);
    assert_eq!(count(&gateway.pass(SECOND * 120, true), "WATCHDOG=1"), 8);
    gateway.pass(SECOND * 10, true);
    assert_eq!(count(&gateway.pass(SECOND * 120, true), "WATCHDOG"), 0, "not for ever");
}

#[test]
fn the_stop_is_told_with_its_time_and_the_status_stays() {
    let mut gateway = Gateway::start();
    gateway.subscribe();
    gateway.pass(SECOND * 10, false);
    gateway.notifier.stopping(SECOND * 16);
    assert_eq!(sent(), ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=16000000"]);
    let after = gateway.pass(SECOND * 60, false);
    assert_eq!((count(&after, "STATUS"), count(&after, "READY"), count(&after, "WATCHDOG")), (0, 0, 4));
}

#[test]
fn a_socket_that_does_not_work_is_tried_again() {
    let now = Instant::now();
    let observed = Observed::new(Heartbeats::new(None, now), 1, now);
    let refuses: Send = |states| {
        keep(states)?;
        Err(io::ErrorKind::NotFound.into())
    };
    let mut notifier = Notifier::start(observed.clone(), Some(WATCHDOG), SECOND, refuses, now);
    sent();
    observed.mqtt.connected.store(true, Relaxed);
    observed.mqtt.subscribed.store(true, Relaxed);
    observed.spool.open.store(true, Relaxed);
    let again = notifier.turn(now);
    let tried = sent();
    assert!(
        notifier.broken && tried.contains(&"WATCHDOG=1".to_owned()) && tried.contains(&"READY=1".to_owned())
    );
    assert!(again <= now + WATCHDOG / 16, "a sign of life that got lost must not cost the process its life");
    notifier.send = keep;
    notifier.turn(again);
    let told = sent();
    assert!(
        !notifier.broken && told.contains(&"WATCHDOG=1".to_owned()) && told.contains(&"READY=1".to_owned())
    );
    notifier.turn(again + WATCHDOG / 2);
    assert!(!sent().contains(&"READY=1".to_owned()), "once");
}
