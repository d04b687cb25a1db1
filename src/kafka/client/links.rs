//! The connections of a client, one for each broker, and waiting for what they say.

use std::collections::HashMap;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::ClientError;
use crate::clock;
use crate::kafka::connection::{Connection, ConnectionEvent, ConnectionOptions, SendError};
use crate::kafka::protocol::{Broker, Request, Response};

/// More than the connections of a small cluster say at once; when it is full, readers wait.
const EVENTS_MAX: usize = 64;

/// Whom a connection was opened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Peer {
    /// A host of the bootstrap list, by index: which broker it is is not known.
    Bootstrap(usize),
    /// A broker by node id.
    Broker(i32),
}

#[derive(Debug)]
struct Link {
    id: u64,
    connection: Connection,
    address: String,
}

#[derive(Debug)]
pub struct Links {
    bootstrap: Vec<(String, u16)>,
    options: ConnectionOptions,
    brokers: HashMap<i32, (String, u16)>,
    links: HashMap<Peer, Link>,
    next_id: u64,
    events: Receiver<ConnectionEvent>,
    events_sender: Sender<ConnectionEvent>,
}

enum Happening {
    Ready,
    Answer(Response),
    Lost(ClientError),
}

impl Links {
    pub fn new(bootstrap: Vec<(String, u16)>, options: ConnectionOptions) -> Self {
        let (events_sender, events) = bounded(EVENTS_MAX);
        Links {
            bootstrap,
            options,
            brokers: HashMap::new(),
            links: HashMap::new(),
            next_id: 0,
            events,
            events_sender,
        }
    }

    /// Takes the addresses of the brokers; a connection to one that moved is closed.
    pub fn learn(&mut self, brokers: &[Broker]) {
        let known: HashMap<i32, (String, u16)> =
            brokers.iter().map(|broker| (broker.id, (broker.host.clone(), broker.port))).collect();
        let before = &self.brokers;
        self.links.retain(|peer, _| match peer {
            Peer::Broker(id) => known.get(id) == before.get(id),
            Peer::Bootstrap(_) => true,
        });
        self.brokers = known;
    }

    /// Makes sure there is a connection to some broker: one that is there, or the first that can be opened.
    pub fn any(&mut self, deadline: Instant) -> Result<(), ClientError> {
        self.any_peer(deadline).map(drop)
    }

    fn any_peer(&mut self, deadline: Instant) -> Result<Peer, ClientError> {
        if let Some(peer) = self.links.keys().next() {
            return Ok(*peer);
        }
        let brokers = self.brokers.keys().map(|id| Peer::Broker(*id));
        let candidates: Vec<Peer> = (0..self.bootstrap.len()).map(Peer::Bootstrap).chain(brokers).collect();
        let mut last_error = ClientError::CannotOpen("the bootstrap list is empty".to_owned());
        for peer in candidates {
            match self.open(peer, deadline) {
                Ok(()) => return Ok(peer),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Asks any broker.
    pub fn exchange_any(&mut self, request: &Request, deadline: Instant) -> Result<Response, ClientError> {
        let peer = self.any_peer(deadline)?;
        self.send(peer, request)?;
        let mut answers = self.gather(vec![peer], deadline);
        answers.pop().unwrap_or_else(|| Err(self.timeout(peer)))
    }

    /// Asks several brokers at once and waits for all their answers.
    pub fn exchange(
        &mut self,
        requests: Vec<(i32, Request)>,
        deadline: Instant,
    ) -> Vec<Result<Response, ClientError>> {
        let mut outcomes = Vec::new();
        let mut waiting = Vec::new();
        let mut reachable = Vec::new();
        // All connections first: while one is opened, nothing may be answered on another.
        for (broker, request) in requests {
            match self.open(Peer::Broker(broker), deadline) {
                Ok(()) => reachable.push((Peer::Broker(broker), request)),
                Err(error) => outcomes.push(Err(error)),
            }
        }
        for (peer, request) in reachable {
            match self.send(peer, &request) {
                Ok(()) => waiting.push(peer),
                Err(error) => outcomes.push(Err(error)),
            }
        }
        outcomes.extend(self.gather(waiting, deadline));
        outcomes
    }

    fn gather(&mut self, mut waiting: Vec<Peer>, deadline: Instant) -> Vec<Result<Response, ClientError>> {
        let mut outcomes = Vec::new();
        while !waiting.is_empty() {
            let Some((peer, happening)) = self.next(deadline) else {
                // Their answers would be taken for those to later requests: start over with new connections.
                for peer in waiting.drain(..) {
                    outcomes.push(Err(self.timeout(peer)));
                    self.links.remove(&peer);
                }
                break;
            };
            let outcome = match happening {
                Happening::Ready => continue,
                Happening::Answer(response) => Ok(response),
                Happening::Lost(error) => Err(error),
            };
            if let Some(place) = waiting.iter().position(|of| *of == peer) {
                waiting.swap_remove(place);
                outcomes.push(outcome);
            }
        }
        outcomes
    }

    fn send(&mut self, peer: Peer, request: &Request) -> Result<(), ClientError> {
        let broker = self.address_text(peer);
        let Some(link) = self.links.get_mut(&peer) else {
            return Err(ClientError::Protocol { broker, source: SendError::Closed });
        };
        if let Err(source) = link.connection.send(request) {
            if !matches!(source, SendError::Codec(_)) {
                self.links.remove(&peer);
            }
            return Err(ClientError::Protocol { broker, source });
        }
        Ok(())
    }

    /// Connects and waits until the connection is ready.
    fn open(&mut self, peer: Peer, deadline: Instant) -> Result<(), ClientError> {
        if self.links.contains_key(&peer) {
            return Ok(());
        }
        let address = match peer {
            Peer::Bootstrap(index) => self.bootstrap.get(index),
            Peer::Broker(id) => self.brokers.get(&id),
        };
        let (host, port) = address
            .cloned()
            .ok_or_else(|| ClientError::CannotOpen("the broker has no address".to_owned()))?;
        let id = self.next_id;
        self.next_id += 1;
        let connection = Connection::open(id, &host, port, &self.options, self.events_sender.clone())
            .map_err(|error| ClientError::CannotOpen(error.to_string()))?;
        self.links.insert(peer, Link { id, connection, address: format!("{host}:{port}") });
        loop {
            match self.next(deadline) {
                Some((of, Happening::Ready)) if of == peer => return Ok(()),
                Some((of, Happening::Lost(error))) if of == peer => return Err(error),
                // Another connection was lost; whoever needs it opens it again.
                Some(_) => {}
                None => {
                    let error = self.timeout(peer);
                    self.links.remove(&peer);
                    return Err(error);
                }
            }
        }
    }

    /// The next thing that happens on a connection of ours; None at the deadline.
    fn next(&mut self, deadline: Instant) -> Option<(Peer, Happening)> {
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            let event = match self.events.recv_timeout(left) {
                Ok(event) => event,
                // It cannot be disconnected: we hold a sender.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            };
            let (ConnectionEvent::Ready { connection, .. }
            | ConnectionEvent::Response { connection, .. }
            | ConnectionEvent::Closed { connection, .. }) = &event;
            // Events of connections that were given up are left over in the channel.
            let Some(peer) =
                self.links.iter().find(|(_, link)| link.id == *connection).map(|(peer, _)| *peer)
            else {
                continue;
            };
            if let Some(happening) = self.apply(peer, event) {
                return Some((peer, happening));
            }
        }
    }

    fn apply(&mut self, peer: Peer, event: ConnectionEvent) -> Option<Happening> {
        let link = self.links.get_mut(&peer)?;
        let happening = match event {
            ConnectionEvent::Ready { versions, .. } => {
                link.connection.ready(versions);
                Happening::Ready
            }
            ConnectionEvent::Response { body, .. } => match link.connection.complete(body) {
                Ok((_, response)) => Happening::Answer(response),
                Err(source) => Happening::Lost(ClientError::Protocol {
                    broker: link.address.clone(),
                    source: SendError::Codec(source),
                }),
            },
            ConnectionEvent::Closed { error, .. } => Happening::Lost(ClientError::Unreachable(error)),
        };
        if matches!(happening, Happening::Lost(_)) {
            self.links.remove(&peer);
        }
        Some(happening)
    }

    fn timeout(&self, peer: Peer) -> ClientError {
        ClientError::Timeout { broker: self.address_text(peer) }
    }

    fn address_text(&self, peer: Peer) -> String {
        let address = match peer {
            Peer::Bootstrap(index) => self.bootstrap.get(index),
            Peer::Broker(id) => self.brokers.get(&id),
        };
        address.map_or_else(|| "an unknown broker".to_owned(), |(host, port)| format!("{host}:{port}"))
    }
}
