//! Latencies in fixed memory: buckets that grow with the value, so that any percentile is good to about 3 %.

/// Buckets for each doubling: the relative error is one over twice this.
const STEPS: u64 = 16;
/// 64-bit values need (64 - 4) doublings of [`STEPS`] buckets above the first, which is exact.
const BUCKETS: usize = 61 * STEPS as usize;

/// Counts of values; the unit is the caller's.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(value)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// The value that `per_mille` of a thousand values do not exceed, rounded up to its bucket's end; 0 if empty.
    pub fn per_mille(&self, per_mille: u64) -> u64 {
        let wanted = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return end_of(bucket).min(self.max);
            }
        }
        self.max
    }

    /// The largest value; exact.
    pub fn max(&self) -> u64 {
        self.max
    }
}

fn bucket_of(value: u64) -> usize {
    let doublings = (64 - u64::from(value.leading_zeros())).saturating_sub(5);
    // Below 2 * STEPS every value has a bucket of its own.
    usize::try_from(doublings * STEPS + (value >> doublings)).unwrap_or(usize::MAX)
}

/// The largest value that falls into the bucket.
fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    let start = (bucket - doublings * STEPS) << doublings;
    start + ((1 << doublings) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_histogram_says_zero() {
        assert_eq!((Histogram::default().per_mille(500), Histogram::default().max()), (0, 0));
    }

    #[test]
    fn small_values_are_exact() {
        let mut histogram = Histogram::default();
        (1..=20).for_each(|value| histogram.record(value));
        assert_eq!((histogram.per_mille(500), histogram.per_mille(990), histogram.max()), (10, 20, 20));
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket_within_the_promised_error(value: u64) {
            let end = end_of(bucket_of(value));
            prop_assert!(end >= value);
            prop_assert!(end - value <= value / STEPS);
            prop_assert!(bucket_of(value) < BUCKETS);
        }
    }
}
