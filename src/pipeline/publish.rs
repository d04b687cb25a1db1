//! The publish thread: routes messages, gives them to the producer or, while their route has a backlog, to the spool, carries out
//! what the producer asks of the network, and settles what Kafka has taken or the spool keeps.
//!
//! It owns the router, the producer with all batches, the backlog, and the Kafka connections. It never waits for anything but
//! its channels: connections are made, written and read by threads of their own, and the spool has its own thread.
//!
//! Invariants:
//! - every token that comes in is settled once, or abandoned when the process stops;
//! - `settled` is never full: it has room for every message that can be in hand (see [`super`]).

mod bury;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, never, select};
use log::{error, warn};

use super::backlog::{Backlog, BacklogOptions};
use super::dead_letter::{Buried, Complaints, Reason};
use super::record::{Facts, HeaderChoice};
use super::spool_thread::{SpoolReply, SpoolRequest};
use super::waiting::{Place, Waiting};
use crate::clock;
use crate::error::chain;
use crate::kafka::connection::{Connection, ConnectionEvent, ConnectionOptions};
use crate::kafka::producer::{Action, LinkEvent, Producer, ProducerOptions};
use crate::kafka::protocol::TopicName;
use crate::kafka::record_batch::RecordRef;
use crate::message::{Body, Message, Settled};
use crate::mqtt::waker::Waker;
use crate::observe::counters::PublishCounters;
use crate::observe::heartbeat::Heartbeat;
use crate::route::{Decision, Router};

/// Batches of messages and network events taken in one turn before anything is sent: enough to fill a request,
/// few enough that an answer is not kept waiting.
const TURN_MAX: usize = 64;
/// The producer is told the time of day so often: the clock may be set.
const WALL_CLOCK_EVERY: Duration = Duration::from_secs(10);
/// How long ingest may take to let go of its end of the channel when everything stops at once.
const LAST_BATCH_WAIT: Duration = Duration::from_millis(100);
/// Answers that may wait for this thread. A reader that finds this full waits, and Kafka with it.
const EVENTS_CAPACITY: usize = 256;

/// What is told to the thread.
#[derive(Debug, Clone, Copy)]
pub enum PublishControl {
    /// Finish what there is by this time, then leave the rest unacknowledged.
    StopBy(Instant),
}

/// The ends of the channels that the thread holds.
pub struct PublishChannels {
    /// Messages as read from MQTT. Disconnected: no more will come.
    pub inbox: Receiver<Vec<Message>>,
    /// What may be acknowledged.
    pub settled: Sender<Vec<Settled>>,
    /// Wakes the ingest thread after something was put into `settled`.
    pub waker: Waker,
    /// Orders.
    pub control: Receiver<PublishControl>,
    /// To the spool thread.
    pub spool: Sender<SpoolRequest>,
    /// Its answers. Disconnected: it is gone, and that is the end.
    pub spool_replies: Receiver<SpoolReply>,
}

/// How the thread works.
pub struct PublishOptions {
    /// Where messages go.
    pub router: Router,
    /// Headers of a record.
    pub headers: HeaderChoice,
    /// Where refused records go; None: they are counted, told and dropped.
    pub dead_letter_topic: Option<TopicName>,
    /// The producer.
    pub producer: ProducerOptions,
    /// How connections are made.
    pub connection: ConnectionOptions,
    /// How the spool is used.
    pub backlog: BacklogOptions,
}

/// See the module head.
pub struct Publish {
    channels: PublishChannels,
    router: Router,
    headers: HeaderChoice,
    dead_letter_topic: Option<TopicName>,
    complaints: Complaints,
    producer: Producer<Waiting>,
    backlog: Backlog,
    /// Messages that came in and are not settled.
    unsettled: usize,
    connection_options: ConnectionOptions,
    connections: BTreeMap<u64, Connection>,
    events: Receiver<ConnectionEvent>,
    events_to_give: Sender<ConnectionEvent>,
    counters: Arc<PublishCounters>,
    heartbeat: Heartbeat,
    stop_by: Option<Instant>,
    /// Buffers that are used again, so that a message costs no allocation of its own here.
    key: Vec<u8>,
    delivered: Vec<Waiting>,
    settling: Vec<Settled>,
}

impl Publish {
    /// A publisher that has not started.
    pub fn new(
        channels: PublishChannels,
        options: PublishOptions,
        counters: Arc<PublishCounters>,
        heartbeat: Heartbeat,
    ) -> Self {
        let (events_to_give, events) = crossbeam_channel::bounded(EVENTS_CAPACITY);
        let now = clock::now();
        let backlog = Backlog::new(options.backlog, channels.spool.clone(), counters.clone(), now);
        Publish {
            channels,
            router: options.router,
            headers: options.headers,
            dead_letter_topic: options.dead_letter_topic,
            complaints: Complaints::new(),
            producer: Producer::new(options.producer, now),
            backlog,
            unsettled: 0,
            connection_options: options.connection,
            connections: BTreeMap::new(),
            events,
            events_to_give,
            counters,
            heartbeat,
            stop_by: None,
            key: Vec::new(),
            delivered: Vec::new(),
            settling: Vec::new(),
        }
    }

    /// Runs until no more messages can come and all are settled, or the time of [`PublishControl::StopBy`] is over.
    ///
    /// # Errors
    /// Another thread is gone without an order to stop, or an invariant between threads is broken: in words.
    pub fn run(mut self) -> Result<(), String> {
        let result = self.work();
        self.backlog.hand_over_done();
        if result.is_err() {
            // A token that is dropped panics, and the reason would be lost behind that.
            self.abandon();
        }
        result
    }

    fn work(&mut self) -> Result<(), String> {
        let rules = self.router.rules();
        let constant = rules.all().iter().filter_map(|rule| rule.target.constant());
        for topic in constant.chain(rules.default_topic()).chain(&self.dead_letter_topic) {
            self.producer.prepare(topic, clock::now());
        }
        self.backlog.prepare(&mut self.producer, clock::now());
        let mut open = true;
        let mut clock_at = clock::now();
        loop {
            let now = clock::now();
            if now >= clock_at {
                self.producer.set_wall_clock(now, clock::unix_ms());
                clock_at = now + WALL_CLOCK_EVERY;
            }
            // What was delivered makes room for more of the backlog, so it is counted first.
            self.free_delivered();
            self.bury_refused();
            let wake_at = self.turn(!open);
            self.free_delivered();
            self.settle()?;
            if self.producer.has_refused() || self.backlog.has_rejected() {
                continue;
            }
            let now = clock::now();
            if !open && self.unsettled == 0 && (!self.backlog.is_in_memory() || self.backlog.is_empty()) {
                self.backlog.tell_given_up();
                return Ok(());
            }
            if self.stop_by.is_some_and(|by| now >= by) {
                self.abandon();
                return Ok(());
            }
            let wait = [wake_at, self.stop_by].into_iter().flatten().min();
            let wait = self.heartbeat.waits(wait.map(|at| at.saturating_duration_since(now)), now);
            open = self.wait(open, wait)?;
        }
    }

    /// Waits for something to happen and takes in what has. False once no more messages can come.
    fn wait(&mut self, mut open: bool, wait: Duration) -> Result<bool, String> {
        let inbox = if open { self.channels.inbox.clone() } else { never() };
        select! {
            recv(self.events) -> event => {
                // This thread holds a sender too, so the channel is never disconnected.
                if let Ok(event) = event {
                    self.on_connection(event);
                }
            }
            recv(self.channels.spool_replies) -> reply => match reply {
                Ok(reply) => self.on_spool(reply),
                Err(_) => return Err("the spool thread is gone".to_owned()),
            },
            recv(self.channels.control) -> order => match order {
                Ok(PublishControl::StopBy(by)) => self.stop_by = Some(by),
                // Main is gone, and with it anybody who could order a stop.
                Err(_) => self.stop_by = Some(clock::now()),
            },
            recv(inbox) -> messages => match messages {
                Ok(messages) => self.take_in(messages),
                Err(_) => open = false,
            },
            default(wait) => {}
        }
        for _ in 0..TURN_MAX {
            let event = self.events.try_recv().ok().map(|event| self.on_connection(event));
            let messages = self.channels.inbox.try_recv().ok().map(|messages| self.take_in(messages));
            let reply = self.channels.spool_replies.try_recv().ok().map(|reply| self.on_spool(reply));
            if event.is_none() && messages.is_none() && reply.is_none() {
                break;
            }
        }
        Ok(open)
    }

    fn on_spool(&mut self, reply: SpoolReply) {
        self.backlog.on_reply(reply, &mut self.producer, &mut self.settling, clock::now());
    }

    fn take_in(&mut self, messages: Vec<Message>) {
        let now = clock::now();
        self.unsettled += messages.len();
        for message in messages {
            self.publish(message, now);
        }
    }

    fn publish(&mut self, message: Message, now: Instant) {
        let Message { topic, body, properties, qos, retain, received_at_ms, delivery_id, token } = message;
        let properties = properties.as_deref();
        let headers = self.headers;
        let buried = |value| Buried {
            mqtt_topic: &topic,
            value,
            headers: headers.of_properties(properties),
            received_at_ms,
        };
        let value = match body {
            Body::Payload(payload) => payload,
            Body::Oversized { packet_bytes } => {
                let mut reason = Reason::new("the MQTT packet is larger than MQTT_MAX_PACKET_BYTES");
                reason.value_bytes = Some(packet_bytes);
                return self.bury_message(buried(None), &reason, token);
            }
            Body::Malformed { packet, reason } => {
                let reason =
                    Reason::new(format!("a malformed PUBLISH packet, which is the value here: {reason}"));
                return self.bury_message(buried(Some(packet)), &reason, token);
            }
        };
        let (rule, kafka_topic) = match self.router.route(&topic) {
            Decision::Route { rule, kafka_topic } => (rule, kafka_topic),
            Decision::Unmatched => {
                self.counters.unmatched.fetch_add(1, Relaxed);
                self.complaints.unmatched(&topic, now);
                self.settling.push(token.settle());
                return;
            }
            Decision::Refused { error, .. } => {
                let reason = Reason::new(error.to_string());
                return self.bury_message(buried(Some(value)), &reason, token);
            }
        };
        self.key.clear();
        let has_key = self.router.render_key(rule, &topic, &mut self.key);
        let replayed = self.backlog.holds(&kafka_topic);
        let facts = Facts { topic: &topic, qos, retain, received_at_ms, delivery_id, replayed, properties };
        let key = has_key.then_some(self.key.as_slice());
        let mqtt_topic = self.dead_letter_topic.is_some().then(|| topic.as_str().into());
        let waiting = Waiting::for_session(token, mqtt_topic);
        let (producer, backlog) = (&mut self.producer, &mut self.backlog);
        let pushed = headers.with_record(&facts, key, Some(&value), |record| {
            submit(producer, backlog, &kafka_topic, record, waiting, now)
        });
        if let Err(waiting) = pushed {
            let mut reason = Reason::new("there are too many Kafka topics already");
            reason.meant_for = Some(kafka_topic);
            self.bury_waiting(buried(Some(value)), &reason, waiting);
        }
    }

    /// Lets the producer do what it can and carries out what it asks for.
    fn turn(&mut self, stopping: bool) -> Option<Instant> {
        let now = clock::now();
        let backlog_at = self.backlog.turn(&mut self.producer, stopping, now);
        let wake_at = self.producer.poll(now);
        let wake_at = [backlog_at, wake_at].into_iter().flatten().min();
        let mut again = false;
        while let Some(action) = self.producer.next_action() {
            again |= self.carry_out(action);
        }
        // A link failed at once: the producer must hear of it before this thread sleeps.
        if again { Some(clock::now()) } else { wake_at }
    }

    /// True if it failed, and the producer was told.
    fn carry_out(&mut self, action: Action<Place>) -> bool {
        let failed = match action {
            Action::Open { link, host, port } => {
                let opened = Connection::open(
                    link,
                    &host,
                    port,
                    &self.connection_options,
                    self.events_to_give.clone(),
                );
                match opened {
                    Ok(connection) => {
                        self.connections.insert(link, connection);
                        None
                    }
                    Err(error) => Some((link, format!("no thread for the connection: {error}"))),
                }
            }
            Action::Send { link, request } => {
                let sent = self.connections.get_mut(&link).map(|connection| connection.send(&request));
                match sent {
                    Some(Err(error)) => Some((link, error.to_string())),
                    // Without a connection its end has been reported already.
                    Some(Ok(_)) | None => None,
                }
            }
            Action::Close { link } => {
                self.close(link);
                None
            }
            Action::Keep { ticket, batches } => {
                self.backlog.keep(ticket, &batches);
                None
            }
        };
        let Some((link, reason)) = failed else { return false };
        self.end_link(link, reason, None);
        true
    }

    fn on_connection(&mut self, event: ConnectionEvent) {
        let now = clock::now();
        match event {
            ConnectionEvent::Ready { connection: link, versions, .. } => {
                let Some(connection) = self.connections.get_mut(&link) else { return };
                let describes_producers = versions.supports_describe_producers();
                connection.ready(versions);
                self.producer.on_event(LinkEvent::Ready { link, describes_producers }, now);
            }
            ConnectionEvent::Response { connection: link, body } => {
                // A connection that we have closed may still have had an answer under way.
                let Some(connection) = self.connections.get_mut(&link) else { return };
                match connection.complete(body) {
                    Ok((_, response)) => self.producer.on_event(LinkEvent::Response { link, response }, now),
                    Err(error) => self.end_link(link, error.to_string(), None),
                }
            }
            ConnectionEvent::Closed { connection: link, error } => {
                if self.connections.contains_key(&link) {
                    self.end_link(link, chain(&error), error.refusal());
                }
            }
        }
    }

    fn end_link(&mut self, link: u64, reason: String, refusal: Option<Duration>) {
        self.close(link);
        self.producer.on_event(LinkEvent::Closed { link, reason, refusal }, clock::now());
    }

    fn close(&mut self, link: u64) {
        if let Some(mut connection) = self.connections.remove(&link) {
            connection.close();
        }
    }

    fn free_delivered(&mut self) {
        self.producer.take_delivered(&mut self.delivered);
        for waiting in self.delivered.drain(..) {
            self.backlog.free(waiting, &mut self.settling);
        }
    }

    fn count(&self) {
        let (stats, counters) = (self.producer.stats(), &self.counters);
        counters.delivered.store(stats.delivered, Relaxed);
        counters.setbacks.store(stats.setbacks, Relaxed);
        counters.possible_repeats.store(stats.possible_repeats, Relaxed);
        counters.requests.store(stats.requests, Relaxed);
        counters.connections.store(self.connections.len() as u64, Relaxed);
        counters.connected.store(self.producer.is_connected(clock::now()), Relaxed);
        let routes = &counters.routes;
        let held = [&routes.spooling, &routes.draining, &routes.parked];
        let held: u64 = held.iter().map(|count| count.load(Relaxed)).sum();
        routes.live.store((self.producer.topics() as u64).saturating_sub(held), Relaxed);
    }

    /// Tells ingest what is safe.
    fn settle(&mut self) -> Result<(), String> {
        self.count();
        if self.settling.is_empty() {
            return Ok(());
        }
        self.unsettled -= self.settling.len();
        match self.channels.settled.try_send(std::mem::take(&mut self.settling)) {
            Ok(()) => {
                self.channels.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(_)) => Err("the channel of settled messages is full".to_owned()),
            // The process stops, or will: ingest's end is reported on its own.
            Err(TrySendError::Disconnected(_)) => {
                self.stop_by = Some(clock::now());
                Ok(())
            }
        }
    }

    /// Leaves everything that is not settled unacknowledged: the MQTT broker keeps it.
    fn abandon(&mut self) {
        let (mut kept, mut lost) = (0_usize, 0_usize);
        let mut abandon = |waiting: Waiting| {
            let stored = !waiting.is_unsettled();
            if !waiting.abandon() {
                lost += 1;
            } else if !stored {
                kept += 1;
            }
        };
        self.producer.abandon().into_iter().for_each(&mut abandon);
        self.producer.take_refused().into_iter().for_each(|refused| abandon(refused.tag));
        self.backlog.abandon().into_iter().for_each(&mut abandon);
        // Ingest lets go of its end when it is told to stop reading, which is before this or at the same moment; a
        // batch that it hands over meanwhile must not be dropped with its tokens.
        while let Ok(messages) = self.channels.inbox.recv_timeout(LAST_BATCH_WAIT) {
            for message in messages {
                abandon(Waiting::for_session(message.token, None));
            }
        }
        let stored = self.backlog.lost_with_process();
        if stored > 0 {
            error!(
                "{stored} acknowledged messages are lost: they were held in memory (DB_PERSIST_PATH is not set), and Kafka did \
                 not take them before the end"
            );
        }
        if lost > 0 {
            error!("{lost} messages of QoS 0 are lost: Kafka did not take them before the end");
        }
        if kept > 0 {
            warn!("{kept} messages are not in Kafka; the MQTT broker keeps them and delivers them again");
        }
    }
}

/// To Kafka; or to the spool while the route has a backlog. Gives back what neither takes.
fn submit(
    producer: &mut Producer<Waiting>,
    backlog: &mut Backlog,
    topic: &TopicName,
    record: &RecordRef<'_>,
    waiting: Waiting,
    now: Instant,
) -> Result<(), Waiting> {
    if backlog.holds(topic) {
        backlog.insert(topic, record, waiting, now);
        return Ok(());
    }
    backlog.watch(now);
    producer.push(topic, record, waiting, now)
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
