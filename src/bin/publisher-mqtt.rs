//! publisher-mqtt: sends numbered test messages to an MQTT broker, at a rate or flat out.
//!
//! ```text
//! main thread: pace -> window of unacknowledged -> rumqttc client -> channel
//! link thread: channel -> socket; acknowledgement -> window
//! ```
//!
//! Each connection has a client of its own. When one breaks, everything its broker had not acknowledged is sent
//! again on the next, in order, marked with the new connection's number, so that `subscriber-kafka --verify` can
//! tell the publisher's repetitions from anybody else's. Nothing is lost or reordered by the publisher at
//! QoS 1 and 2; at QoS 0 what was in flight when a connection broke is repeated only if it was not yet written.
#![allow(clippy::print_stderr, reason = "a command line tool reports to the terminal")]

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use rumqttc::{Client, Connection, Event, MqttOptions, Outgoing, Packet, QoS};
use tidegate::backoff::Backoff;
use tidegate::clients::pace::Pace;
use tidegate::clients::payload::Payload;
use tidegate::config::HostPort;
use tidegate::{clock, thread};

/// Unacknowledged messages on the wire: enough that a loopback broker, not the round trip, is the limit.
const INFLIGHT: u16 = 1000;
/// The same at QoS 2: Mosquitto ends the connection of a client that exceeds its max_inflight_messages, 20 by default.
const INFLIGHT_QOS_2: u16 = 20;
/// Messages between the main thread and the link: more would only lengthen the queue that a reconnect repeats.
const CHANNEL: usize = 100;
/// How long Ctrl-C waits for the last acknowledgements.
const DRAIN_AFTER_SIGNAL: Duration = Duration::from_secs(5);

/// Sends numbered test messages to an MQTT broker. Every setting is also read from the environment and from .env.
#[derive(Debug, Parser)]
#[command(name = "publisher-mqtt", version)]
struct Settings {
    /// Broker: HOST, HOST:PORT or mqtt://HOST:PORT
    #[arg(long, env = "MQTT_BROKER_URL", value_parser = parse_broker)]
    mqtt_broker_url: (String, Option<u16>),
    /// Port, if the URL has none
    #[arg(long, env = "MQTT_BROKER_PORT", default_value_t = 1883)]
    mqtt_broker_port: u16,
    #[arg(long, env = "MQTT_CLIENT_ID", default_value = "publisher-mqtt")]
    mqtt_client_id: String,
    #[arg(long, env = "MQTT_USER_NAME")]
    mqtt_user_name: Option<String>,
    /// Better set in the environment: an argument is in the process list
    #[arg(long, env = "MQTT_USER_PASSWORD", hide_env_values = true)]
    mqtt_user_password: Option<String>,
    /// Topics, separated by commas; each is one device, and they take turns
    #[arg(long, env = "TOPIC_LIST", value_delimiter = ',', required = true, value_parser = parse_topic)]
    topic_list: Vec<String>,
    /// Pause between two messages, milliseconds; 0 is flat out
    #[arg(long, env = "PUBLISH_INTERVAL_MS", default_value_t = 1000)]
    publish_interval_ms: u64,
    /// Messages per second; overrides the interval; 0 is flat out
    #[arg(long, env = "RATE")]
    rate: Option<f64>,
    /// Messages in all; 0 goes on until Ctrl-C
    #[arg(long, env = "TOTAL_MSG", default_value_t = 0)]
    total_msg: u64,
    /// Size of each payload; a message that needs more is not cut
    #[arg(long, env = "PAYLOAD_BYTES", default_value_t = 200)]
    payload_bytes: usize,
    #[arg(long, env = "QOS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Name of this run in every message, so that runs do not mix; a random one if absent
    #[arg(long, env = "RUN_ID")]
    run_id: Option<String>,
}

fn parse_broker(text: &str) -> Result<(String, Option<u16>), String> {
    // As the gateway reads MQTT_BROKER_URL. No port is 0.
    let broker = HostPort::parse_mqtt_url(text.trim(), 0)?;
    Ok((broker.host, (broker.port != 0).then_some(broker.port)))
}

fn parse_topic(text: &str) -> Result<String, String> {
    let topic = text.trim();
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return Err("expected MQTT topics without wildcards, separated by commas".into());
    }
    Ok(topic.to_owned())
}

/// One message that the broker has not acknowledged.
#[derive(Debug, Clone, Copy)]
struct Pending {
    topic: usize,
    seq: u64,
    t_ns: u64,
}

/// What both threads know.
#[derive(Debug, Default)]
struct State {
    unacked: VecDeque<Pending>,
    acked: u64,
    connected: bool,
    /// Why the connection broke: its link thread has ended or is about to.
    broken: Option<String>,
}

#[derive(Debug, Default)]
struct Window {
    state: Mutex<State>,
    changed: Condvar,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has ended the run anyway; the counts are still the best there are.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`, or `limit` at most; true if done.
    fn wait(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }
}

struct Link {
    client: Client,
    thread: JoinHandle<()>,
}

struct Publisher {
    settings: Settings,
    run: String,
    window: Arc<Window>,
    link: Option<Link>,
    backoff: Backoff,
    conn: u32,
    repeated: u64,
    stop: Arc<AtomicBool>,
}

impl Publisher {
    fn qos(&self) -> QoS {
        match self.settings.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Connects, waiting and trying again until it works or the user stops; then repeats what is unacknowledged.
    fn reconnect(&mut self) -> Result<(), String> {
        while !self.stopped() {
            if let Some(link) = self.link.take() {
                // Without its client the connection ends; then nothing of it can still arrive.
                drop(link.client);
                let _ = link.thread.join();
            }
            // Not in the condition: its lock would be held through the wait below.
            let reason = self.window.lock().broken.take();
            if let Some(reason) = reason {
                eprintln!("publisher-mqtt: {reason}; connecting again");
                let delay = self.backoff.next_delay(fastrand::f64());
                self.window.wait(delay, |_| self.stopped());
            }
            self.connect()?;
            self.window.wait(Duration::from_secs(10), |state| state.connected || state.broken.is_some());
            let connected = self.window.lock().connected;
            if connected && self.repeat() {
                self.backoff.reset();
                return Ok(());
            }
            let mut state = self.window.lock();
            state.broken.get_or_insert_with(|| "no answer from the MQTT broker".into());
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), String> {
        let settings = &self.settings;
        let (host, port) = &settings.mqtt_broker_url;
        let mut options =
            MqttOptions::new(&settings.mqtt_client_id, host, port.unwrap_or(settings.mqtt_broker_port));
        let inflight = if self.qos() == QoS::ExactlyOnce { INFLIGHT_QOS_2 } else { INFLIGHT };
        options.set_keep_alive(Duration::from_secs(30)).set_inflight(inflight);
        // What is unacknowledged is repeated by this program, so the broker needs to keep nothing for it.
        options.set_clean_session(true);
        let packet_bytes = settings.payload_bytes.saturating_add(1 << 17);
        options.set_max_packet_size(packet_bytes, packet_bytes);
        if let Some(user) = &settings.mqtt_user_name {
            options.set_credentials(user, settings.mqtt_user_password.as_deref().unwrap_or_default());
        }
        let (client, connection) = Client::new(options, CHANNEL);
        {
            let mut state = self.window.lock();
            state.connected = false;
            state.broken = None;
        }
        let (window, qos) = (Arc::clone(&self.window), self.qos());
        let ended = Arc::clone(&self.window);
        let thread = thread::spawn(
            "mqtt-link",
            move || run_link(connection, qos, &window),
            move |ending| {
                let mut state = ended.lock();
                state.connected = false;
                state.broken.get_or_insert_with(|| format!("{ending:?}"));
                drop(state);
                ended.changed.notify_all();
            },
        )
        .map_err(|error| format!("cannot start a thread: {error}"))?;
        self.conn += 1;
        self.link = Some(Link { client, thread });
        Ok(())
    }

    /// Sends again, in order, what the last connection left unacknowledged; false if this one broke too.
    fn repeat(&mut self) -> bool {
        let unacked: Vec<Pending> = self.window.lock().unacked.iter().copied().collect();
        for pending in &unacked {
            if self.stopped() || !self.hand_over(pending) {
                return false;
            }
            self.repeated += 1;
        }
        true
    }

    /// Hands one message to the connection; blocks while it is busy. False if the connection is gone.
    fn hand_over(&self, pending: &Pending) -> bool {
        let (Some(link), Some(topic)) = (&self.link, self.settings.topic_list.get(pending.topic)) else {
            return false;
        };
        let payload = Payload {
            run: self.run.as_str().into(),
            device: topic.as_str().into(),
            conn: self.conn,
            seq: pending.seq,
            t_ns: pending.t_ns,
        };
        let bytes = payload.encode(self.settings.payload_bytes);
        link.client.publish(topic, self.qos(), false, bytes).is_ok()
    }

    fn send(&mut self, pending: Pending) -> Result<(), String> {
        let broken = self.window.lock().broken.is_some();
        if broken {
            self.reconnect()?;
        }
        self.window.lock().unacked.push_back(pending);
        if !self.hand_over(&pending) {
            self.reconnect()?;
        }
        Ok(())
    }

    /// Sends what is due until all is sent or the user stops; the number sent.
    fn publish_all(&mut self, progress: &mut Progress) -> Result<u64, String> {
        let pace = Pace::new(self.settings.rate, self.settings.publish_interval_ms);
        let total = if self.settings.total_msg == 0 { u64::MAX } else { self.settings.total_msg };
        let topics = self.settings.topic_list.len();
        let mut seqs = vec![0u64; topics];
        let started = clock::now();
        let mut sent = 0u64;
        while sent < total && !self.stopped() {
            let due = pace.due(started.elapsed()).min(total);
            if due <= sent {
                let wait = pace.due_at(sent).saturating_sub(started.elapsed());
                thread::pause(wait.min(Duration::from_millis(100)));
            }
            // In rounds, so that the stop flag and the progress are seen while flat out.
            for _ in 0..due.saturating_sub(sent).min(1000) {
                let topic = usize::try_from(sent).unwrap_or(0) % topics;
                let Some(seq) = seqs.get_mut(topic) else { break };
                *seq += 1;
                let pending = Pending { topic, seq: *seq, t_ns: clock::unix_ns() };
                self.send(pending)?;
                sent += 1;
            }
            progress.tick(sent, self.window.lock().acked);
        }
        Ok(sent)
    }

    /// Waits for the last acknowledgements.
    fn drain(&mut self, sent: u64, progress: &mut Progress) -> Result<(), String> {
        let mut give_up_at: Option<Instant> = None;
        loop {
            let drained = |state: &State| state.unacked.is_empty();
            if self.window.wait(Duration::from_millis(200), |state| drained(state) || state.broken.is_some())
            {
                let done = drained(&self.window.lock());
                if done || self.stopped() {
                    return Ok(());
                }
                self.reconnect()?;
            }
            if self.stopped() {
                let limit = *give_up_at.get_or_insert_with(|| clock::now() + DRAIN_AFTER_SIGNAL);
                if clock::now() >= limit {
                    return Ok(());
                }
            }
            progress.tick(sent, self.window.lock().acked);
        }
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = link.client.disconnect();
            drop(link.client);
            let _ = link.thread.join();
        }
    }
}

/// Polls the connection until it ends. Acknowledgements come in the order of the messages (MQTT-4.6.0-2), so each
/// takes the oldest of the window.
fn run_link(mut connection: Connection, qos: QoS, window: &Window) -> Result<(), String> {
    for event in connection.iter() {
        let done = match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                window.lock().connected = true;
                window.changed.notify_all();
                false
            }
            Ok(Event::Incoming(Packet::PubAck(_))) => qos == QoS::AtLeastOnce,
            Ok(Event::Incoming(Packet::PubComp(_))) => qos == QoS::ExactlyOnce,
            // QoS 0 has no acknowledgement: written is all that can be known.
            Ok(Event::Outgoing(Outgoing::Publish(_))) => qos == QoS::AtMostOnce,
            Ok(Event::Outgoing(Outgoing::Disconnect)) => break,
            Ok(_) => false,
            Err(error) => {
                window.lock().broken = Some(format!("MQTT connection: {error}"));
                break;
            }
        };
        if done {
            let mut state = window.lock();
            if state.unacked.pop_front().is_some() {
                state.acked += 1;
            }
            if state.unacked.is_empty() {
                drop(state);
                window.changed.notify_all();
            }
        }
    }
    Ok(())
}

/// A line on stderr each second.
struct Progress {
    started: Instant,
    next: Instant,
    last_acked: u64,
}

impl Progress {
    fn new() -> Self {
        let now = clock::now();
        Progress { started: now, next: now + Duration::from_secs(1), last_acked: 0 }
    }

    fn tick(&mut self, sent: u64, acked: u64) {
        if clock::now() >= self.next {
            self.next += Duration::from_secs(1);
            let rate = acked - self.last_acked;
            self.last_acked = acked;
            eprintln!("publisher-mqtt: sent {sent}, acknowledged {acked} ({rate}/s)");
        }
    }
}

fn run() -> Result<bool, String> {
    // Before the settings are parsed, which read the environment. No file is no error.
    if let Err(error) = dotenvy::from_path(".env")
        && !error.not_found()
    {
        return Err(format!(".env: {error}"));
    }
    let settings = Settings::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| format!("signals: {error}"))?;
    }
    let run = settings.run_id.clone().unwrap_or_else(|| format!("{:08x}", fastrand::u32(..)));
    eprintln!("publisher-mqtt: run {run}, {} topics, QoS {}", settings.topic_list.len(), settings.qos);
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let window = Arc::new(Window::default());
    let mut publisher = Publisher { settings, run, window, link: None, backoff, conn: 0, repeated: 0, stop };
    publisher.reconnect()?;
    let mut progress = Progress::new();
    let sent = publisher.publish_all(&mut progress)?;
    publisher.drain(sent, &mut progress)?;
    publisher.disconnect();
    let acked = publisher.window.lock().acked;
    let seconds = progress.started.elapsed().as_secs_f64();
    eprintln!(
        "publisher-mqtt: run {}: sent {sent}, acknowledged {acked}, repeated after a reconnect {}, {seconds:.1} s, {:.0}/s",
        publisher.run,
        publisher.repeated,
        acked as f64 / seconds,
    );
    Ok(acked == sent)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("publisher-mqtt: stopped before everything was acknowledged");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("publisher-mqtt: {error}");
            ExitCode::FAILURE
        }
    }
}
