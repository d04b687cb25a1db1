//! The brokers: which are known, which are connected, and what was asked of each. Pure: connections are opened,
//! written and closed by the owner of the [`super::Producer`], who is told so by [`super::Action`]s.
//!
//! Invariants:
//! - at most one link for an address, so a frozen broker costs one connection;
//! - every link answers in the order it was asked (Kafka protocol guide, "Network"), so `sent` is a queue;
//! - a link that leaves a request unanswered for [`REQUEST_TIMEOUT`] or longer is closed: what it carried has an unknown
//!   outcome, which is not the same as failed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::topic::PartitionAt;
use crate::backoff::Backoff;
use crate::error::kind;
use crate::kafka::protocol::Broker;

/// A link silent for this long is not asked for metadata, and another broker is: it may have lost its partitions.
pub(super) const SUSPICIOUS_AFTER: Duration = Duration::from_secs(3);
/// Kafka's own default for request.timeout.ms. Closing ends nothing but the connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Each time-out in a row doubles the next, up to this: on a slow uplink a batch that was given its identity must
/// get through some time, and it cannot be made smaller.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(8 * 60);
/// The next address of the list is tried after this long, without waiting for the one before to fail.
const BOOTSTRAP_STAGGER: Duration = Duration::from_secs(1);
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// Below the five seconds within which messages must flow after Kafka is back.
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Between tries of credentials that a broker refuses.
const REFUSED_FIRST: Duration = Duration::from_secs(1);
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// A link that lived this long and is closed by the broker while nothing is asked was idle
/// (connections.max.idle.ms), which is no trouble.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// A link that lived this long worked: its end is news, whatever was told of its address before.
const WORKED_AFTER: Duration = Duration::from_secs(10);
/// A broker that takes connections and ends each of them is told this often: it tries every two seconds.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// One that is not reached at all, or refuses, is told for the same reason this often: it may be away for days.
const TELL_SAME_AGAIN: Duration = Duration::from_secs(10 * 60);
/// Another reason is told at once, but no more of them of one address within [`TELL_AGAIN`].
const REASONS_MAX: usize = 3;

/// What was asked on a link.
#[derive(Debug)]
pub(super) enum Asked {
    Metadata,
    ProducerId,
    Produce(Vec<PartitionAt>),
    Producers(Vec<PartitionAt>),
    ReadBack(PartitionAt),
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct Sent {
    pub ticket: u64,
    pub at: Instant,
    pub what: Asked,
}

/// A connection, being opened or open.
#[derive(Debug)]
pub(super) struct Link {
    /// The broker behind it; None for a bootstrap address that has not been recognised yet.
    pub node: Option<i32>,
    host: String,
    port: u16,
    opened_at: Instant,
    /// None until the versions are negotiated; then whether DescribeProducers can be asked.
    pub ready: Option<bool>,
    pub sent: VecDeque<Sent>,
    /// How long a request may be unanswered.
    timeout: Duration,
    /// When the last Produce request went out.
    pub produced_at: Option<Instant>,
}

impl Link {
    /// Produce requests without an answer.
    pub fn produces_in_flight(&self) -> usize {
        self.sent.iter().filter(|sent| matches!(sent.what, Asked::Produce(_))).count()
    }

    /// True while a partition is read back on it.
    pub fn reads_back(&self) -> bool {
        self.sent.iter().any(|sent| matches!(sent.what, Asked::ReadBack(_)))
    }

    /// Connected, and not silent for suspiciously long.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.ready.is_some() && !self.silent_for(now, SUSPICIOUS_AFTER)
    }

    fn silent_for(&self, now: Instant, limit: Duration) -> bool {
        self.sent.front().is_some_and(|sent| now.saturating_duration_since(sent.at) >= limit)
    }
}

#[derive(Debug)]
struct Node {
    host: String,
    port: u16,
}

#[derive(Debug)]
struct Address {
    backoff: Backoff,
    /// The same while it refuses our credentials; see [`Cluster::on_closed`].
    refusals: Backoff,
    not_before: Instant,
    /// Which kinds of failure the operator was told of late, and when; none while it works. At most [`REASONS_MAX`] for each
    /// [`TELL_AGAIN`] of [`TELL_SAME_AGAIN`].
    told: Vec<(String, Instant)>,
    /// How long a request may be unanswered on its next link.
    timeout: Duration,
}

impl Address {
    /// Whether the operator is to be told that it fails, and notes that he was. Each reason is news once: what comes behind a
    /// lost connection, an expired certificate say, is what he has to act on.
    fn tells(&mut self, reason: &str, was_ready: bool, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.told.retain(|(_, at)| since(*at) < TELL_SAME_AGAIN);
        let kind = kind(reason);
        let again = if was_ready { TELL_AGAIN } else { TELL_SAME_AGAIN };
        let known = self.told.iter().any(|(told, at)| *told == kind && since(*at) < again);
        let late = self.told.iter().filter(|(_, at)| since(*at) < TELL_AGAIN).count();
        if known || late >= REASONS_MAX {
            return false;
        }
        self.told.retain(|(told, _)| *told != kind);
        self.told.push((kind, now));
        true
    }
}

/// A link to open: its number and address.
#[derive(Debug)]
pub(super) struct Opening {
    pub link: u64,
    pub host: String,
    pub port: u16,
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Cluster {
    bootstrap: Vec<(String, u16)>,
    next_bootstrap: usize,
    next_bootstrap_at: Instant,
    nodes: BTreeMap<i32, Node>,
    addresses: BTreeMap<(String, u16), Address>,
    pub links: BTreeMap<u64, Link>,
    next_link: u64,
    away_since: Option<Instant>,
    reached: bool,
}

impl Cluster {
    pub fn new(bootstrap: Vec<(String, u16)>, now: Instant) -> Self {
        Cluster {
            bootstrap,
            next_bootstrap: 0,
            next_bootstrap_at: now,
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 1,
            away_since: None,
            reached: false,
        }
    }

    /// Opens what is missing: a link to each broker of `wanted`, and, while no link is healthy, to one address
    /// after the other. Returns the links to open and the earliest time at which there is more to do.
    pub fn open_missing(&mut self, wanted: &[i32], now: Instant) -> (Vec<Opening>, Option<Instant>) {
        let mut openings = Vec::new();
        let mut next: Option<Instant> = None;
        let mut wait_until = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for id in wanted {
            let Some(node) = self.nodes.get(id) else { continue };
            let (host, port) = (node.host.clone(), node.port);
            match self.may_open(&host, port, now) {
                Ok(()) => openings.push(self.open(Some(*id), host, port, now)),
                Err(Some(at)) => wait_until(at),
                Err(None) => {}
            }
        }
        if !self.links.values().any(|link| link.is_healthy(now)) {
            if now >= self.next_bootstrap_at {
                openings.extend(self.open_next_address(now));
                self.next_bootstrap_at = now + BOOTSTRAP_STAGGER;
            }
            wait_until(self.next_bootstrap_at);
        }
        (openings, next)
    }

    /// A healthy link for requests that any broker answers: the one with the least to do.
    pub fn any_healthy(&self, now: Instant) -> Option<u64> {
        let healthy = self.links.iter().filter(|(_, link)| link.is_healthy(now));
        healthy.min_by_key(|(_, link)| link.sent.len()).map(|(id, _)| *id)
    }

    /// True if a question went to a broker that has fallen silent: another broker can answer it.
    pub fn is_stuck(&self, ticket: u64, now: Instant) -> bool {
        self.link_of_ticket(ticket).is_some_and(|link| !link.is_healthy(now))
    }

    /// The link that a ticket was sent on.
    pub fn link_of_ticket(&self, ticket: u64) -> Option<&Link> {
        self.links.values().find(|link| link.sent.iter().any(|sent| sent.ticket == ticket))
    }

    /// Notes a negotiated link.
    pub fn on_ready(&mut self, link: u64, can_ask: bool, now: Instant) {
        let Some(found) = self.links.get_mut(&link) else { return };
        found.ready = Some(can_ask);
        let address = (found.host.clone(), found.port);
        if let Some(address) = self.addresses.get_mut(&address) {
            address.refusals.reset();
        }
        debug!("connected to Kafka broker {}:{}", address.0, address.1);
        if let Some(away_since) = self.away_since.take() {
            let away = now.saturating_duration_since(away_since).as_secs_f32();
            info!("Kafka is reached again after {away:.1} s, by {}:{}", address.0, address.1);
        } else if !self.reached {
            info!("connected to Kafka by {}:{}", address.0, address.1);
        }
        self.reached = true;
    }

    /// Notes a link that ended; returns what it leaves unanswered. With `refusal` the broker has refused our credentials, which
    /// more tries do not mend and which may lock the account: they come ever more slowly, up to that pause.
    pub fn on_closed(
        &mut self,
        link: u64,
        reason: &str,
        refusal: Option<Duration>,
        random: f64,
        now: Instant,
    ) -> VecDeque<Sent> {
        let Some(closed) = self.links.remove(&link) else { return VecDeque::new() };
        let (host, port) = (closed.host, closed.port);
        let lived = now.saturating_duration_since(closed.opened_at);
        let idle = closed.ready.is_some() && closed.sent.is_empty() && lived >= IDLE_AFTER;
        let mut told = false;
        if let Some(address) = self.addresses.get_mut(&(host.clone(), port)) {
            if closed.ready.is_some() && lived >= RECONNECT_MAX {
                address.backoff.reset();
            }
            address.not_before = match refusal {
                Some(longest) => now + address.refusals.next_delay(random).min(longest),
                None if idle => now,
                None => now + address.backoff.next_delay(random),
            };
            if closed.ready.is_some() && lived >= WORKED_AFTER {
                address.told.clear();
            }
            told = !idle && address.tells(reason, closed.ready.is_some(), now);
            if told {
                warn!("Kafka broker {host}:{port}: {reason}; trying again");
            } else {
                debug!("Kafka broker {host}:{port}: {reason}");
            }
        }
        let none_left = !self.links.values().any(|link| link.ready.is_some());
        if none_left && self.reached && told && self.away_since.is_none() {
            self.away_since = Some(now);
        }
        closed.sent
    }

    /// Takes the oldest request off a link, whose answer has come. Quick answers to Produce requests shorten what a
    /// slow uplink had made long.
    pub fn answered(&mut self, link: u64, now: Instant) -> Option<Sent> {
        let link = self.links.get_mut(&link)?;
        let sent = link.sent.pop_front()?;
        let quick = now.saturating_duration_since(sent.at) < link.timeout / 4;
        if quick && link.timeout > REQUEST_TIMEOUT && matches!(sent.what, Asked::Produce(_)) {
            link.timeout = (link.timeout / 2).max(REQUEST_TIMEOUT);
            if let Some(address) = self.addresses.get_mut(&(link.host.clone(), link.port)) {
                address.timeout = link.timeout;
            }
        }
        Some(sent)
    }

    /// Takes over the brokers of a metadata response and recognises bootstrap links among them.
    pub fn on_brokers(&mut self, brokers: &[Broker]) {
        self.nodes = brokers.iter().map(|b| (b.id, Node { host: b.host.clone(), port: b.port })).collect();
        for link in self.links.values_mut().filter(|link| link.node.is_none()) {
            let same = brokers.iter().find(|b| b.host == link.host && b.port == link.port);
            link.node = same.map(|broker| broker.id);
        }
        // An address that no broker has any more must not be kept for ever.
        let links = &self.links;
        let bootstrap = &self.bootstrap;
        self.addresses.retain(|(host, port), _| {
            let listed = |h: &str, p: u16| h == host && p == *port;
            brokers.iter().any(|b| listed(&b.host, b.port))
                || bootstrap.iter().any(|(h, p)| listed(h, *p))
                || links.values().any(|link| listed(&link.host, link.port))
        });
    }

    /// Links to close: silent for too long, to a broker that has left, or a bootstrap link that is of no more use.
    pub fn links_to_close(&self, now: Instant) -> Vec<(u64, &'static str)> {
        let node_is_ready = self.links.values().any(|link| link.node.is_some() && link.is_healthy(now));
        let verdict = |link: &Link| {
            let gone = link.node.is_some_and(|node| {
                self.nodes.get(&node).is_none_or(|n| n.host != link.host || n.port != link.port)
            });
            if link.silent_for(now, link.timeout) {
                Some("no answer in time")
            } else if gone && link.sent.is_empty() {
                Some("the broker has left the cluster")
            } else if link.node.is_none() && link.ready.is_some() && link.sent.is_empty() && node_is_ready {
                Some("bootstrap finished")
            } else {
                None
            }
        };
        self.links.iter().filter_map(|(id, link)| verdict(link).map(|why| (*id, why))).collect()
    }

    /// Removes a link that we close ourselves; quiet, unless it was silent for too long.
    pub fn remove(&mut self, link: u64, why: &str, random: f64, now: Instant) -> VecDeque<Sent> {
        if let Some(silent) = self.links.get(&link).filter(|link| !link.sent.is_empty()) {
            if let Some(address) = self.addresses.get_mut(&(silent.host.clone(), silent.port)) {
                address.timeout = (silent.timeout * 2).min(REQUEST_TIMEOUT_MAX);
            }
            return self.on_closed(link, why, None, random, now);
        }
        self.links.remove(&link).map(|link| link.sent).unwrap_or_default()
    }

    /// The next time at which a silent link becomes suspicious or is closed.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let asked = self.links.values().filter_map(|link| Some((link.sent.front()?.at, link.timeout)));
        asked
            .map(
                |(at, timeout)| {
                    if now < at + SUSPICIOUS_AFTER { at + SUSPICIOUS_AFTER } else { at + timeout }
                },
            )
            .min()
    }

    fn open_next_address(&mut self, now: Instant) -> Option<Opening> {
        let known = self.nodes.values().map(|node| (node.host.clone(), node.port));
        let candidates: Vec<(String, u16)> = self.bootstrap.iter().cloned().chain(known).collect();
        for _ in 0..candidates.len() {
            let at = self.next_bootstrap % candidates.len().max(1);
            self.next_bootstrap = at + 1;
            let (host, port) = candidates.get(at)?.clone();
            if self.may_open(&host, port, now).is_ok() {
                let node = self.nodes.iter().find(|(_, n)| n.host == host && n.port == port);
                return Some(self.open(node.map(|(id, _)| *id), host, port, now));
            }
        }
        None
    }

    /// Ok if a link may be opened now; else the time from which it may, or None while one is there.
    fn may_open(&self, host: &str, port: u16, now: Instant) -> Result<(), Option<Instant>> {
        if self.links.values().any(|link| link.host == host && link.port == port) {
            return Err(None);
        }
        match self.addresses.get(&(host.to_owned(), port)) {
            Some(address) if now < address.not_before => Err(Some(address.not_before)),
            _ => Ok(()),
        }
    }

    fn open(&mut self, node: Option<i32>, host: String, port: u16, now: Instant) -> Opening {
        let link = self.next_link;
        self.next_link += 1;
        let address = self.addresses.entry((host.clone(), port)).or_insert_with(|| Address {
            backoff: Backoff::new(RECONNECT_FIRST, RECONNECT_MAX),
            refusals: Backoff::new(REFUSED_FIRST, REFUSED_MAX),
            not_before: now,
            told: Vec::new(),
            timeout: REQUEST_TIMEOUT,
        });
        let timeout = address.timeout;
        self.links.insert(
            link,
            Link {
                node,
                host: host.clone(),
                port,
                opened_at: now,
                ready: None,
                sent: VecDeque::new(),
                timeout,
                produced_at: None,
            },
        );
        Opening { link, host, port }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
