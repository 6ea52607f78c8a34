//! The numbers people compare, defined once: f64 sums over the whole set, so that they don't depend on its batches.
//!
//! ```
//! let mut quality = sae::metrics::Quality::new(2);
//! quality.add(&[1.0, 0.0, -1.0, 0.0], &[1.0, 0.0, -1.0, 0.0]);
//! assert_eq!(quality.fvu(), Some(0.0));
//! ```

use serde::{Deserialize, Serialize};

/// Reconstruction quality, accumulated over any number of batches. Written down and read again it goes on exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    rows: u64,
    /// Sum of `|x - recon|^2`.
    error: f64,
    /// Sum of `|x - origin|^2`.
    square: f64,
    /// The first row: sums are taken about it, so that a large mean does not cancel the digits of the variance.
    origin: Vec<f64>,
    /// Sum of `x - origin`, `[d_in]`.
    sum: Vec<f64>,
}

impl Quality {
    /// Nothing seen yet of a set of width `d_in`.
    pub fn new(d_in: usize) -> Self {
        assert!(d_in > 0, "activations have at least one coordinate");
        Self {
            rows: 0,
            error: 0.0,
            square: 0.0,
            origin: Vec::new(),
            sum: vec![0.0; d_in],
        }
    }

    /// Whether it is about rows of width `d_in`, as one that was read must be.
    pub(crate) fn fits(&self, d_in: usize) -> bool {
        self.sum.len() == d_in && [0, d_in].contains(&self.origin.len())
    }

    /// Adds rows. `x`, `recon`: `[rows, d_in]`, both in the same units.
    pub fn add(&mut self, x: &[f32], recon: &[f32]) {
        let d_in = self.sum.len();
        assert!(
            x.len() == recon.len() && x.len().is_multiple_of(d_in),
            "x and recon are [rows, d_in]"
        );
        if self.origin.is_empty() && !x.is_empty() {
            self.origin = x[..d_in].iter().map(|&v| f64::from(v)).collect();
        }
        for (x, recon) in x.chunks_exact(d_in).zip(recon.chunks_exact(d_in)) {
            for (((&x, &recon), &origin), sum) in x.iter().zip(recon).zip(&self.origin).zip(&mut self.sum) {
                let from_origin = f64::from(x) - origin;
                let error = f64::from(x) - f64::from(recon);
                *sum += from_origin;
                self.square += from_origin * from_origin;
                self.error += error * error;
            }
            self.rows += 1;
        }
    }

    /// Rows seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Mean over rows of `|x - recon|^2` (summed over `d_in`). `None` of an empty set.
    pub fn mse(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.error / self.rows as f64)
    }

    /// Fraction of variance unexplained: `sum |x - recon|^2 / sum |x - mean(x)|^2`, mean over the whole set. The mean
    /// predictor has 1, the identity 0. `None` when the set is empty or constant.
    pub fn fvu(&self) -> Option<f64> {
        let shift: f64 = self.sum.iter().map(|s| s * s).sum::<f64>() / self.rows.max(1) as f64;
        let variance = self.square - shift;
        (variance > 0.0).then(|| self.error / variance)
    }
}

/// How often each latent fires, accumulated over any number of batches. A latent fires where its value is not 0:
/// negative values count too. Written down and read again it goes on exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firing {
    tokens: u64,
    /// `[d_sae]`.
    counts: Vec<u64>,
}

impl Firing {
    /// Nothing seen yet of a dictionary of `d_sae` latents.
    pub fn new(d_sae: usize) -> Self {
        Self {
            tokens: 0,
            counts: vec![0; d_sae],
        }
    }

    /// Adds the code of `tokens` tokens. `indices`, `values`: `[tokens, slots]`.
    pub fn add(&mut self, tokens: usize, indices: &[i32], values: &[f32]) {
        assert!(
            indices.len() == values.len() && (tokens > 0 || indices.is_empty()),
            "indices and values are [tokens, slots]"
        );
        self.tokens += tokens as u64;
        for (&i, &v) in indices.iter().zip(values) {
            if v != 0.0 {
                self.counts[i as usize] += 1;
            }
        }
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Firings of each latent, `[d_sae]`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Mean over tokens of the number of values that are not 0. `None` of an empty set.
    pub fn l0(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.counts.iter().sum::<u64>() as f64 / self.tokens as f64)
    }

    /// Share of latents that never fired; say [`Firing::tokens`] beside it. `None` of an empty set.
    pub fn dead_share(&self) -> Option<f64> {
        let dead = self.counts.iter().filter(|&&n| n == 0).count();
        (self.tokens > 0 && !self.counts.is_empty()).then(|| dead as f64 / self.counts.len() as f64)
    }
}

/// The shares of latents at which [`Densities`] has its quantiles.
pub const DENSITY_QUANTILES: [f64; 9] = [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0];

/// Bins of [`Densities::histogram`]: quarter decades from 10^-6 to 1.
const DENSITY_BINS: usize = 24;
/// Lower bounds within a decade: 10^(0/4), 10^(1/4), 10^(2/4), 10^(3/4). Written out, so that no logarithm decides.
const QUARTERS: [f64; 4] = [
    1.0,
    1.778_279_410_038_922_8,
    3.162_277_660_168_379_5,
    5.623_413_251_903_491,
];

/// How densities lie over the latents of a dictionary. A latent's density is the share of tokens for which it fires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Densities {
    /// Densities at [`DENSITY_QUANTILES`], latents that never fired among them; between two latents on the line between
    /// their densities, as NumPy's `quantile` has it.
    pub quantiles: [f64; 9],
    /// Latents that never fired.
    pub never: u64,
    /// Latents that fired, in 24 bins of a quarter of a decade: bin `i` is of densities from `10^(i/4 - 6)`, which it
    /// includes, to `10^((i+1)/4 - 6)`. The first also has those below it, the last those of 1.
    pub histogram: Vec<u64>,
}

impl Firing {
    /// How the densities lie. `None` of an empty set.
    pub fn densities(&self) -> Option<Densities> {
        if self.tokens == 0 || self.counts.is_empty() {
            return None;
        }
        let mut counts = self.counts.clone();
        counts.sort_unstable();
        let density = |count: u64| count as f64 / self.tokens as f64;
        let quantile = |share: f64| {
            let at = share * (counts.len() - 1) as f64;
            let (low, high) = (counts[at.floor() as usize], counts[at.ceil() as usize]);
            let (low, high) = (density(low), density(high));
            low + (high - low) * at.fract()
        };
        let edges: Vec<f64> = (1..DENSITY_BINS)
            .map(|i| QUARTERS[i % 4] / 10f64.powi(6 - (i / 4) as i32))
            .collect();
        let never = counts.partition_point(|&n| n == 0);
        let mut histogram = vec![0; DENSITY_BINS];
        for &count in &counts[never..] {
            histogram[edges.partition_point(|&edge| edge <= density(count))] += 1;
        }
        Some(Densities {
            quantiles: DENSITY_QUANTILES.map(quantile),
            never: never as u64,
            histogram,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_predictor_has_fvu_one_and_the_identity_zero_whatever_the_batches() {
        // Mean (1000, 2): a large offset must not cost digits.
        let x = [999.0, 1.0, 1001.0, 3.0, 1000.0, 2.0f32];
        let mean = [1000.0, 2.0, 1000.0, 2.0, 1000.0, 2.0f32];
        for batch in [1, 2, 3] {
            let (mut of_mean, mut of_identity) = (Quality::new(2), Quality::new(2));
            for (x, mean) in x.chunks(2 * batch).zip(mean.chunks(2 * batch)) {
                of_mean.add(x, mean);
                of_identity.add(x, x);
            }
            assert_eq!(of_mean.fvu(), Some(1.0));
            assert_eq!(of_identity.fvu(), Some(0.0));
            // |error|^2 is 2, 2, 0.
            assert_eq!(of_mean.mse(), Some(4.0 / 3.0));
        }
    }

    #[test]
    fn nothing_and_a_constant_have_no_fvu() {
        let mut quality = Quality::new(1);
        assert_eq!((quality.fvu(), quality.mse()), (None, None));
        quality.add(&[3.0, 3.0], &[3.0, 2.0]);
        assert_eq!((quality.fvu(), quality.mse()), (None, Some(0.5)));
    }

    #[test]
    fn negative_values_count_as_firing_and_zeros_do_not() {
        let mut firing = Firing::new(4);
        firing.add(2, &[0, 3, 0, 1], &[-1.0, 2.0, 0.5, 0.0]);
        assert_eq!(firing.counts(), [2, 0, 0, 1]);
        assert_eq!(firing.l0(), Some(1.5));
        assert_eq!(firing.dead_share(), Some(0.5));
        assert_eq!(Firing::new(4).l0(), None);
    }

    #[test]
    fn densities_are_counted_in_quarter_decades_and_their_quantiles_are_interpolated() {
        // Of 1000 tokens: never, 1 (10^-3, the bound of a bin), 2, 177 and 178 (on both sides of 10^-0.75), 1000.
        let counts = [0, 1000, 178, 1, 177, 2];
        let mut firing = Firing::new(counts.len());
        for (latent, n) in counts.into_iter().enumerate() {
            firing.add(n, &vec![latent as i32; n], &vec![1.0; n]);
        }
        firing.tokens = 1000;
        let densities = firing.densities().unwrap();
        let mut expected = vec![0; 24];
        for bin in [12, 13, 20, 21, 23] {
            expected[bin] += 1;
        }
        assert_eq!((densities.never, &densities.histogram), (1, &expected));
        // In order 0, 0.001, 0.002, 0.177, 0.178, 1: the median lies between the third and the fourth.
        let of = |share: f64| densities.quantiles[DENSITY_QUANTILES.iter().position(|&q| q == share).unwrap()];
        assert_eq!((of(0.0), of(1.0)), (0.0, 1.0));
        assert!((of(0.5) - 0.0895).abs() < 1e-15 && (of(0.25) - 0.00125).abs() < 1e-15);
        assert_eq!(Firing::new(4).densities(), None);
    }

    #[test]
    fn what_fires_less_than_once_in_a_million_is_in_the_first_bin() {
        let mut firing = Firing::new(2);
        firing.add(10_000_000, &[0], &[-1.0]);
        let densities = firing.densities().unwrap();
        assert_eq!((densities.never, densities.histogram[0]), (1, 1));
        assert_eq!(densities.histogram.iter().sum::<u64>(), 1);
    }
}
