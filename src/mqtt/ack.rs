//! Acknowledgements in order of arrival on one connection: PUBACK (MQTT-4.6.0-2) and PUBREC (MQTT-4.6.0-3). Pure.
//!
//! It knows packet identifiers and positions, not messages. Invariants: an identifier comes out only after it
//! was settled, after all that arrived before it on this connection, and at most once; nothing survives
//! [`AckQueue::clear`], so nothing is ever sent on one connection for another.

use std::collections::VecDeque;

/// What a PUBLISH is answered with when it is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// QoS 1.
    Puback(u16),
    /// QoS 2.
    Pubrec(u16),
}

/// The place of an arrival on the present connection. Stale ones are recognised and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Settled,
    /// The identifier belongs to a later arrival now: nothing is sent for this one.
    Void,
}

/// A ring by position.
#[derive(Debug, Default)]
pub struct AckQueue {
    /// Position of the front. It only grows, also over connections, which is what makes old positions stale.
    base: u64,
    entries: VecDeque<(Ack, State)>,
}

impl AckQueue {
    /// How many arrivals are not acknowledged yet.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Another arrival that has to be acknowledged.
    pub fn push(&mut self, ack: Ack) -> Position {
        let position = Position(self.base + self.entries.len() as u64);
        self.entries.push_back((ack, State::Waiting));
        position
    }

    /// It may be acknowledged.
    pub fn settle(&mut self, position: Position) {
        self.set(position, State::Settled);
    }

    /// It must not be acknowledged, and holds nothing back.
    pub fn void(&mut self, position: Position) {
        self.set(position, State::Void);
    }

    fn set(&mut self, position: Position, state: State) {
        let index = position.0.checked_sub(self.base).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index))
            && (entry.1 == State::Waiting || state == State::Void)
        {
            entry.1 = state;
        }
    }

    /// The next acknowledgement that goes out.
    pub fn pop_ready(&mut self) -> Option<Ack> {
        loop {
            let &(ack, state) = self.entries.front()?;
            if state == State::Waiting {
                return None;
            }
            self.entries.pop_front();
            self.base += 1;
            if state == State::Settled {
                return Some(ack);
            }
        }
    }

    /// The connection is gone, and with it all that waited to be sent on it.
    pub fn clear(&mut self) {
        self.base += self.entries.len() as u64;
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut AckQueue) -> Vec<Ack> {
        std::iter::from_fn(|| queue.pop_ready()).collect()
    }

    #[test]
    fn acknowledges_in_order_of_arrival_whatever_the_order_of_settling() {
        let mut queue = AckQueue::default();
        let acks = [Ack::Puback(7), Ack::Pubrec(3), Ack::Puback(9)];
        let [a, b, c] = acks.map(|ack| queue.push(ack));
        queue.settle(c);
        queue.settle(b);
        assert_eq!(drain(&mut queue), Vec::<Ack>::new());
        queue.settle(a);
        assert_eq!(drain(&mut queue), acks);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_void_entry_is_not_sent_and_holds_nothing_back() {
        let mut queue = AckQueue::default();
        let [a, b] = [1, 2].map(|id| queue.push(Ack::Puback(id)));
        queue.settle(b);
        queue.void(a);
        queue.settle(a);
        assert_eq!(drain(&mut queue), [Ack::Puback(2)]);
    }

    #[test]
    fn what_was_settled_behind_another_can_be_void_still() {
        let mut queue = AckQueue::default();
        let [a, b] = [1, 2].map(|id| queue.push(Ack::Puback(id)));
        queue.settle(b);
        queue.void(b);
        queue.settle(b);
        queue.settle(a);
        assert_eq!(drain(&mut queue), [Ack::Puback(1)], "it would acknowledge the identifier's next message");
    }

    #[test]
    fn a_position_of_an_earlier_connection_settles_nothing_on_this_one() {
        let mut queue = AckQueue::default();
        let old = queue.push(Ack::Pubrec(1));
        queue.clear();
        let new = queue.push(Ack::Pubrec(1));
        queue.settle(old);
        assert_eq!(drain(&mut queue), Vec::<Ack>::new());
        queue.settle(new);
        queue.settle(new);
        assert_eq!(drain(&mut queue), [Ack::Pubrec(1)]);
    }
}
