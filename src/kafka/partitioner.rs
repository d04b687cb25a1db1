//! Which partition a record goes to: by its key as every Java client does it, or by turns that stick to a batch.
//!
//! Pure. Invariant: a key goes to the partition the Java client's default partitioner would take, so that records
//! of this gateway and of other producers with the same key share one order.

/// Kafka's murmur2: the 32-bit function with its fixed seed, on signed bytes' bits.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // The length is mixed in as 32 bits, as in Java, whose arrays cannot be longer.
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key among `partitions`; 0 if there are none, which is not for this function to judge.
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    let positive = (murmur2(key) & 0x7fff_ffff).cast_signed();
    positive.checked_rem(partitions).unwrap_or(0)
}

/// The choice for records without a key: one partition until a batch is full, then another (KIP-480).
#[derive(Debug, Clone, Default)]
pub struct Sticky {
    partition: Option<i32>,
}

impl Sticky {
    /// No choice yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The partition to use now, among the `available` ones (those that have a leader). It stays the same until
    /// [`next_batch`](Self::next_batch), or until it is no longer available. None if nothing is available.
    /// `random` decides when a choice is due: any number, uniform.
    pub fn partition(&mut self, available: &[i32], random: u32) -> Option<i32> {
        match self.partition.filter(|partition| available.contains(partition)) {
            Some(partition) => Some(partition),
            None => self.choose(available, random),
        }
    }

    /// The batch is full: take another partition, unless there is only one.
    pub fn next_batch(&mut self, available: &[i32], random: u32) -> Option<i32> {
        self.choose(available, random)
    }

    fn choose(&mut self, available: &[i32], random: u32) -> Option<i32> {
        let others = available.iter().filter(|partition| Some(**partition) != self.partition);
        let count = others.clone().count();
        self.partition = match (random as usize).checked_rem(count) {
            Some(index) => others.clone().nth(index).copied(),
            None => available.first().copied(),
        };
        self.partition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_the_java_clients_published_values() {
        // UtilsTest.testMurmur2 of Apache Kafka.
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key).cast_signed(), hash, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn a_negative_hash_is_made_positive_by_its_sign_bit_not_by_negation() {
        assert_eq!(partition_for_key(b"21", 1000), (-973_932_308 & i32::MAX) % 1000);
        assert_eq!(partition_for_key(b"abc", 7), 479_470_107 % 7);
        assert_eq!(partition_for_key(b"abc", 0), 0);
    }

    #[test]
    fn records_without_a_key_stick_to_one_partition_until_the_batch_is_full() {
        let mut sticky = Sticky::new();
        let first = sticky.partition(&[0, 1, 2], 1).unwrap();
        assert_eq!(first, 1);
        assert_eq!(sticky.partition(&[0, 1, 2], 77), Some(first));
        for random in 0..20 {
            let before = sticky.partition(&[0, 1, 2], random);
            assert_ne!(sticky.next_batch(&[0, 1, 2], random), before);
        }
    }

    #[test]
    fn a_partition_that_lost_its_leader_is_left_at_once() {
        let mut sticky = Sticky::new();
        assert_eq!(sticky.partition(&[4, 5], 0), Some(4));
        assert_eq!(sticky.partition(&[5], 0), Some(5));
        assert_eq!(sticky.next_batch(&[5], 9), Some(5), "there is no other");
        assert_eq!(sticky.partition(&[], 0), None);
    }
}
