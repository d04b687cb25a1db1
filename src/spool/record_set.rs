//! A set of records of a frame, by position. Pure.
//!
//! A bitmap, as the records of one Kafka partition lie scattered among a frame's: a bit each, whatever the pattern.
//! Invariant: the last word is not 0, so that equal sets are equal.

use std::fmt;

const WORD_BITS: u32 = u64::BITS;
const WORD_BYTES: usize = 8;

/// Which records of a frame, by position. Its memory is a bit for each position up to the highest in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordSet(Vec<u64>);

impl RecordSet {
    /// None.
    pub fn new() -> RecordSet {
        RecordSet::default()
    }

    /// The first `count` records.
    pub fn all(count: u32) -> RecordSet {
        let (word, rest) = place(count);
        let mut words = vec![u64::MAX; word];
        if rest > 0 {
            words.push((1 << rest) - 1);
        }
        RecordSet(words)
    }

    /// Adds a record.
    pub fn insert(&mut self, at: u32) {
        let (word, bit) = place(at);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    /// Whether a record is in it.
    pub fn contains(&self, at: u32) -> bool {
        let (word, bit) = place(at);
        self.0.get(word).is_some_and(|word| word & (1 << bit) != 0)
    }

    /// Takes out what is in the other.
    pub fn remove_all(&mut self, others: &RecordSet) {
        for (word, other) in self.0.iter_mut().zip(&others.0) {
            *word &= !other;
        }
        self.trim();
    }

    /// Takes out all but the first `count` records.
    pub fn truncate(&mut self, count: u32) {
        let (word, rest) = place(count);
        if word >= self.0.len() {
            return;
        }
        if let Some(last) = self.0.get_mut(word) {
            *last &= (1 << rest) - 1;
        }
        self.0.truncate(word + 1);
        self.trim();
        // What is kept for long takes no more than its frame has records.
        self.0.shrink_to_fit();
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many records are in it.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).fold(0, u32::saturating_add)
    }

    /// The positions, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0..=u32::MAX).step_by(WORD_BITS as usize).zip(&self.0);
        words.flat_map(|(first, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(first + bit)
            })
        })
    }

    /// As bytes: bit 0 of the first is record 0. The last is not 0.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        while bytes.pop_if(|last| *last == 0).is_some() {}
        bytes
    }

    /// From what [`RecordSet::to_bytes`] gave. Any bytes are a set; it takes as much memory as they do.
    pub fn from_bytes(bytes: &[u8]) -> RecordSet {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let mut set = RecordSet(bytes.chunks(WORD_BYTES).map(word).collect());
        set.trim();
        set
    }

    fn trim(&mut self) {
        while self.0.pop_if(|last| *last == 0).is_some() {}
    }
}

fn place(at: u32) -> (usize, u32) {
    ((at / WORD_BITS) as usize, at % WORD_BITS)
}

impl FromIterator<u32> for RecordSet {
    fn from_iter<I: IntoIterator<Item = u32>>(positions: I) -> RecordSet {
        let mut set = RecordSet::new();
        positions.into_iter().for_each(|at| set.insert(at));
        set
    }
}

/// `0-2,5`; `-` for none.
impl fmt::Display for RecordSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut positions = self.iter().peekable();
        if positions.peek().is_none() {
            return f.write_str("-");
        }
        let mut separator = "";
        while let Some(first) = positions.next() {
            let mut last = first;
            while let Some(next) = positions.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Far and near, and at the borders of words.
    fn positions() -> impl Strategy<Value = BTreeSet<u32>> {
        let at = prop_oneof![0..200_u32, Just(63), Just(64), Just(127), Just(128), 0..5000_u32];
        prop::collection::btree_set(at, 0..80)
    }

    proptest! {
        #[test]
        fn it_is_a_set(a in positions(), b in positions(), count in 0..300_u32) {
            let set: RecordSet = a.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((set.count() as usize, set.is_empty()), (a.len(), a.is_empty()));
            prop_assert!((0..300).all(|at| set.contains(at) == a.contains(&at)));
            let mut less = set.clone();
            less.remove_all(&b.iter().copied().collect());
            prop_assert_eq!(&less, &a.difference(&b).copied().collect::<RecordSet>());
            let mut cut = set.clone();
            cut.truncate(count);
            prop_assert_eq!(&cut, &a.iter().copied().filter(|at| *at < count).collect::<RecordSet>());
            prop_assert_eq!(RecordSet::all(count), (0..count).collect::<RecordSet>());
            let bytes = set.to_bytes();
            prop_assert_eq!(bytes.len(), a.last().map_or(0, |last| *last as usize / 8 + 1));
            prop_assert_eq!(&RecordSet::from_bytes(&bytes), &set);
            prop_assert_eq!(&RecordSet::from_bytes(&[bytes, vec![0; 9]].concat()), &set, "zeros behind it are nothing");
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_reached_without_a_panic() {
        let mut set = RecordSet::new();
        assert!(!set.contains(u32::MAX) && set.is_empty());
        set.insert(u32::MAX);
        assert_eq!((set.iter().collect::<Vec<_>>(), set.count()), (vec![u32::MAX], 1));
        set.truncate(u32::MAX);
        assert_eq!(set, RecordSet::new());
    }

    #[test]
    fn it_is_shown_as_ranges() {
        let shown = |positions: &[u32]| positions.iter().copied().collect::<RecordSet>().to_string();
        assert_eq!(shown(&[]), "-");
        assert_eq!(shown(&[0, 1, 2, 5, 63, 64]), "0-2,5,63-64");
    }
}
