//! All wildcard filters at once: a tree of levels that finds the first filter of the list that matches, and the pairs
//! of filters that can match a common topic.
//!
//! Knows filters and their numbers, nothing of targets. Invariants: a search allocates nothing; every node knows
//! the lowest number below it, so that a search leaves a branch that cannot win; the depth of every walk is bounded by
//! the deepest filter ([`MAX_LEVELS`](super::rule::MAX_LEVELS)), never by the topic that comes in.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::filter::TopicFilter;

/// FNV-1a. The keys come from the operator's configuration and look-ups insert nothing, so a publisher cannot
/// fill a bucket; with the default hasher a search took about a quarter longer (`benches/route.rs`).
#[derive(Clone, Copy)]
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

pub(super) type FnvMap<V> = HashMap<Box<str>, V, BuildHasherDefault<Fnv>>;

/// No filter. Filters are numbered from 0.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Node {
    literals: FnvMap<Node>,
    plus: Option<Box<Node>>,
    /// The first filter that ends here.
    end: u32,
    /// The first filter that has its `#` below here.
    hash: u32,
    /// The first filter of this node and everything below it.
    lowest: u32,
}

impl Default for Node {
    fn default() -> Self {
        Node { literals: FnvMap::default(), plus: None, end: NONE, hash: NONE, lowest: NONE }
    }
}

/// See the module head.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    root: Node,
}

impl Table {
    /// Adds a filter. Numbers are added in rising order; of equal filters the first counts.
    pub(super) fn insert(&mut self, filter: &TopicFilter, number: u32) {
        let mut node = &mut self.root;
        node.lowest = node.lowest.min(number);
        for level in filter.levels() {
            match level {
                "#" => {
                    node.hash = node.hash.min(number);
                    return;
                }
                "+" => node = node.plus.get_or_insert_default(),
                literal => node = node.literals.entry(literal.into()).or_default(),
            }
            node.lowest = node.lowest.min(number);
        }
        node.end = node.end.min(number);
    }

    /// The first filter that matches a valid topic name.
    pub(super) fn first_match(&self, topic: &str) -> Option<u32> {
        let mut best = NONE;
        search(&self.root, Some(topic), topic.starts_with('$'), &mut best);
        (best != NONE).then_some(best)
    }

    /// Appends the filters numbered below `below` that can match a topic that `filter` matches, in no order.
    pub(super) fn intersecting(&self, filter: &TopicFilter, below: u32, found: &mut Vec<u32>) {
        intersect(&self.root, Some(filter.matched()), At::Root, below, found);
    }
}

/// `rest` is the topic behind the levels that led to `node`; None at its end. `dollar` is true for the first level of a
/// topic that begins with `$`, which no wildcard matches (MQTT-4.7.2-1).
fn search(node: &Node, rest: Option<&str>, dollar: bool, best: &mut u32) {
    if !dollar {
        *best = node.hash.min(*best);
    }
    let Some(rest) = rest else {
        *best = node.end.min(*best);
        return;
    };
    let (level, behind) = split(rest);
    if let Some(next) = node.literals.get(level)
        && next.lowest < *best
    {
        search(next, behind, false, best);
    }
    if let Some(next) = &node.plus
        && !dollar
        && next.lowest < *best
    {
        search(next, behind, false, best);
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    // By bytes: the levels are a few bytes long and the searcher behind `split_once` costs more than they do.
    match text.bytes().position(|byte| byte == b'/') {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        None => (text, None),
    }
}

/// Where a search for common topics is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Root,
    /// Behind a first level that both filters leave only the empty text. A topic cannot end there: the empty text
    /// is no topic name (MQTT-4.7.3-1).
    EmptyFirstLevel,
    Below,
}

impl At {
    /// Behind one level more, where the two filters leave it `names`.
    fn next(self, names: [&str; 2]) -> At {
        if self == At::Root && names.contains(&"") { At::EmptyFirstLevel } else { At::Below }
    }
}

fn intersect(node: &Node, rest: Option<&str>, at: At, below: u32, found: &mut Vec<u32>) {
    if node.lowest >= below {
        return;
    }
    let first = at == At::Root;
    let dollar = first && rest.is_some_and(|text| text.starts_with('$'));
    let mut take = |number: u32| {
        if number < below {
            found.push(number);
        }
    };
    let Some(rest) = rest else {
        if at != At::EmptyFirstLevel {
            take(node.end);
            take(node.hash);
        }
        return;
    };
    let (level, behind) = split(rest);
    if level == "#" {
        // Its parent level, which at the root does not exist, and everything below.
        if at != At::EmptyFirstLevel {
            take(node.end);
        }
        for (name, next) in &node.literals {
            if !(first && name.starts_with('$')) {
                intersect(next, Some("#"), at.next([name, level]), below, found);
            }
        }
        if let Some(next) = &node.plus {
            intersect(next, Some("#"), at.next(["+", level]), below, found);
        }
        if node.hash < below {
            found.push(node.hash);
        }
        return;
    }
    if !dollar {
        take(node.hash);
    }
    // The last level of `filter` may also be the parent level of a # of its own: `a/#` meets `a`.
    if level == "+" {
        for (name, next) in &node.literals {
            if !(first && name.starts_with('$')) {
                intersect(next, behind, at.next([name, level]), below, found);
            }
        }
    } else if let Some(next) = node.literals.get(level) {
        intersect(next, behind, at.next([level, level]), below, found);
    }
    if let Some(next) = &node.plus
        && !dollar
    {
        intersect(next, behind, at.next(["+", level]), below, found);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
