//! A uniform sample of a stream that does not depend on the order of the stream.
//!
//! Every active token has a **priority**, a hash of where it is; the sample is the tokens of smallest priority. So
//! the sample of two halves is the smallest of both their samples: shards of a text can be indexed apart and merged
//! to the same bytes, which no reservoir with a random generator can promise. Up to the size of the sample nothing
//! is left out, and what is computed from it is exact.

/// Mixes all bits of `x` (a permutation of the 64-bit numbers; constants of David Stafford's variant 13).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The priorities of one feature's tokens in one context.
#[derive(Clone, Copy, Debug)]
pub struct Priorities(u64);

impl Priorities {
    /// Of feature `feature` in context `context`.
    pub fn new(seed: u64, context: u64, feature: u32) -> Self {
        // Adding an odd constant before each mixing keeps (0, 0, 0) from being a fixed point.
        let context = mix(context.wrapping_add(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))));
        Self(mix(context
            .wrapping_add(u64::from(feature))
            .wrapping_add(0x9e37_79b9_7f4a_7c15)))
    }

    /// The key of the token at `position`, whose value is `value`: the priority in the high half, the value's bits
    /// in the low half. Sorting keys sorts by priority, and a key is all that the sample of values has to keep.
    pub fn key(self, position: u32, value: f32) -> u64 {
        let priority = mix(self.0.wrapping_add(u64::from(position)));
        (priority & 0xffff_ffff_0000_0000) | u64::from(value.to_bits())
    }
}

/// The value in a key.
pub fn value_of(key: u64) -> f32 {
    f32::from_bits(key as u32)
}

/// The `n` smallest keys of any number, with what belongs to them, whatever order they come in.
///
/// Costs a comparison a key once the sample is full; holds at most a quarter more than `n` in between.
#[derive(Clone, Debug)]
pub struct Smallest<K, V> {
    n: usize,
    items: Vec<(K, V)>,
    /// The largest key that was kept when the list was last cut to `n`: nothing from here on can be among the
    /// smallest.
    bar: Option<K>,
}

impl<K: Ord + Copy, V> Smallest<K, V> {
    /// The `n` smallest of nothing yet; takes no room.
    pub fn new(n: usize) -> Self {
        Self {
            n,
            items: Vec::new(),
            bar: None,
        }
    }

    /// Whether a key can still be among the smallest.
    pub fn wants(&self, key: K) -> bool {
        self.n > 0 && self.bar.is_none_or(|bar| key < bar)
    }

    /// Adds a key if it is [wanted](Self::wants).
    pub fn push(&mut self, key: K, value: V) {
        if !self.wants(key) {
            return;
        }
        let limit = self.n + self.n.div_ceil(4);
        if self.items.len() == self.items.capacity() {
            // Doubles, but never beyond the limit, below which every cut leaves the list.
            let more = self.items.len().max(4).min(limit - self.items.len());
            self.items.reserve_exact(more);
        }
        self.items.push((key, value));
        if self.items.len() >= limit {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.items.len() >= self.n && self.n > 0 {
            let (_, last, _) = self.items.select_nth_unstable_by_key(self.n - 1, |item| item.0);
            self.bar = Some(last.0);
            self.items.truncate(self.n);
        }
    }

    /// The smallest, ascending.
    pub fn into_sorted(mut self) -> Vec<(K, V)> {
        self.cut();
        self.items.sort_unstable_by_key(|item| item.0);
        self.items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_smallest_are_those_that_sorting_gives(keys in prop::collection::vec(0u64..500, 0..400), n in 0usize..60) {
            let mut smallest = Smallest::new(n);
            keys.iter().for_each(|&k| smallest.push(k, ()));
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            sorted.truncate(n);
            let found: Vec<u64> = smallest.into_sorted().into_iter().map(|(k, ())| k).collect();
            prop_assert_eq!(found, sorted);
        }
    }

    #[test]
    fn keys_give_their_value_back_and_differ_in_every_argument() {
        let key = |seed, context, feature, position| Priorities::new(seed, context, feature).key(position, -1.5);
        let keys = [
            key(0, 0, 0, 0),
            key(1, 0, 0, 0),
            key(0, 1, 0, 0),
            key(0, 0, 1, 0),
            key(0, 0, 0, 1),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert_eq!(value_of(*a), -1.5);
            assert!(keys[..i].iter().all(|b| a >> 32 != b >> 32));
        }
    }

    #[test]
    fn priorities_are_uniform_over_positions_contexts_and_features() {
        // Mean of n uniform numbers: 1/2 with standard deviation 1 / sqrt(12 n).
        let mean =
            |at: &dyn Fn(u32) -> u64| (0..4096).map(|i| (at(i) >> 32) as f64 / 2f64.powi(32)).sum::<f64>() / 4096.0;
        let five_sigma = 5.0 / (12.0 * 4096f64).sqrt();
        for at in [
            &(|i| Priorities::new(0, 7, 3).key(i, 1.0)) as &dyn Fn(u32) -> u64,
            &|i| Priorities::new(0, u64::from(i), 3).key(7, 1.0),
            &|i| Priorities::new(0, 3, i).key(7, 1.0),
        ] {
            assert!((mean(at) - 0.5).abs() < five_sigma);
        }
    }
}
