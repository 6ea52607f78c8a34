//! Counting magnitudes in log-spaced bins without knowing their range.
//!
//! Bins lie on a fixed grid: at level `l`, bin `b` holds magnitudes in `2^(b w) .. 2^((b + 1) w)` with
//! `w = 2^l / 64` octaves. A bin of one level is exactly two of the level below, so a histogram that has to become
//! coarser adds up neighbours, and what it ends as depends on the values alone, not on their order.

use crate::index::{HISTOGRAM_BINS, Histogram};

/// Bins an octave at level 0. A finer grid would resolve differences of less than 1%.
pub const FINEST_PER_OCTAVE: f64 = 64.0;

/// A [`Histogram`] in the making; takes no room until its first value.
#[derive(Clone, Debug, Default)]
pub struct LogHistogram {
    level: u32,
    /// Bins of the smallest and of the largest value, at the current level.
    low: i32,
    high: i32,
    /// Empty, or [`HISTOGRAM_BINS`] counts of which the first is bin `low`.
    counts: Vec<u64>,
}

impl LogHistogram {
    /// Counts one magnitude, which is positive and finite.
    pub fn add(&mut self, magnitude: f32) {
        let mut bin = finest_bin(magnitude) >> self.level;
        if self.counts.is_empty() {
            self.counts = vec![0; HISTOGRAM_BINS];
            (self.low, self.high) = (bin, bin);
        } else if bin < self.low || bin > self.high {
            bin >>= self.stretch(self.low.min(bin), self.high.max(bin));
        }
        self.counts[(bin - self.low) as usize] += 1;
    }

    /// Makes room for bins `low ..= high`; returns by how many levels the grid became coarser for that.
    fn stretch(&mut self, low: i32, high: i32) -> u32 {
        let mut by = 0;
        while (high >> by) - (low >> by) >= HISTOGRAM_BINS as i32 {
            by += 1;
        }
        let (low, high) = (low >> by, high >> by);
        let old = std::mem::replace(&mut self.counts, vec![0; HISTOGRAM_BINS]);
        for (i, count) in old.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            self.counts[(((self.low + i as i32) >> by) - low) as usize] += count;
        }
        (self.level, self.low, self.high) = (self.level + by, low, high);
        by
    }

    /// The finished record.
    pub fn finish(self) -> Histogram {
        if self.counts.is_empty() {
            return Histogram::default();
        }
        let width = f64::from(1u32 << self.level) / FINEST_PER_OCTAVE;
        Histogram {
            // Both are multiples of a power of two with few digits: exact.
            log2_start: (f64::from(self.low) * width) as f32,
            log2_width: width as f32,
            counts: self.counts,
        }
    }
}

/// The bin at level 0. The logarithm of an f32 is an integer multiple of a bin only for powers of two, where f64
/// logarithms are exact; everything else is many f64 roundings away from an edge.
fn finest_bin(magnitude: f32) -> i32 {
    (f64::from(magnitude).log2() * FINEST_PER_OCTAVE).floor() as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: impl IntoIterator<Item = f32>) -> Histogram {
        let mut histogram = LogHistogram::default();
        values.into_iter().for_each(|v| histogram.add(v));
        histogram.finish()
    }

    #[test]
    fn one_octave_has_the_finest_bins_and_one_more_value_makes_them_twice_as_wide() {
        let octave = histogram([1.0, 1.999, 1.5, 1.0]);
        assert_eq!((octave.log2_start, octave.log2_width), (0.0, 1.0 / 64.0));
        assert_eq!((octave.counts[0], octave.counts[63], octave.total()), (2, 1, 4));
        let more = histogram([1.0, 2.0]);
        assert_eq!((more.log2_start, more.log2_width), (0.0, 1.0 / 32.0));
        assert_eq!((more.counts[0], more.counts[32]), (1, 1));
        assert_eq!(histogram([]), Histogram::default());
    }

    #[test]
    fn the_smallest_and_the_largest_number_fit_together() {
        let all = histogram([f32::from_bits(1), f32::MAX, 1.0]);
        assert_eq!((all.total(), all.log2_width), (3, 8.0));
    }

    proptest! {
        #[test]
        fn every_value_lies_between_the_edges_of_its_bin_and_order_does_not_matter(
            logs in prop::collection::vec(prop_oneof![-3.0f32..3.0, -140.0f32..120.0], 1..200),
        ) {
            let values: Vec<f32> = logs.iter().map(|l| l.exp2()).filter(|v| *v > 0.0).collect();
            prop_assume!(!values.is_empty());
            let found = histogram(values.clone());
            prop_assert_eq!(&found, &histogram(values.iter().rev().copied()));
            // Twin: every value is counted by comparing it with the edges themselves.
            let mut counts = vec![0; HISTOGRAM_BINS];
            for v in &values {
                let bin = (0..HISTOGRAM_BINS).find(|i| {
                    let log = f64::from(*v).log2();
                    let edge = |i: usize| f64::from(found.log2_start) + i as f64 * f64::from(found.log2_width);
                    edge(*i) <= log && log < edge(i + 1)
                });
                prop_assert!(bin.is_some(), "{v} was clipped");
                counts[bin.unwrap()] += 1;
            }
            prop_assert_eq!(counts, found.counts.clone());
            prop_assert!(found.counts[0] > 0, "the first bin holds the smallest value");
            // The width is the finest: one level finer, the range would not fit.
            if found.log2_width > 1.0 / 64.0 {
                let half = f64::from(found.log2_width) / 2.0;
                let bin = |v: f32| (f64::from(v).log2() / half).floor();
                let (min, max) = values.iter().fold((f32::MAX, 0.0f32), |(a, b), v| (a.min(*v), b.max(*v)));
                prop_assert!(bin(max) - bin(min) >= HISTOGRAM_BINS as f64);
            }
        }
    }
}
