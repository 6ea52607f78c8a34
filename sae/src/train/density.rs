//! How often each latent fires, and how often it should: a running mean, and Zipf's law.
//!
//! Features of language are about as frequent as a power of their rank (arXiv 2411.02124). From the ranks that latents
//! have by now, the law says which share of the tokens each deserves: budgets for feature choice, and who is used too
//! little, for the auxiliary loss.

use crate::code::HostCode;

/// A running mean of the share of tokens each latent fires for.
#[derive(Clone, Debug, PartialEq)]
pub struct Density {
    /// Without correction for where it began, at 0: all are off by the same factor. `[d_sae]`
    shares: Vec<f32>,
    /// Tokens that it looks back on.
    window: u64,
}

impl Density {
    /// Nobody has fired yet.
    pub fn new(d_sae: usize, window: u64) -> Self {
        Self::from_shares(vec![0.0; d_sae], window)
    }

    /// As [`Density::shares`] gave it.
    pub fn from_shares(shares: Vec<f32>, window: u64) -> Self {
        Self { shares, window }
    }

    /// `[d_sae]`
    pub fn shares(&self) -> &[f32] {
        &self.shares
    }

    /// Adds the code of a batch.
    pub fn add(&mut self, code: &HostCode) {
        let batch = code.batch() as f64;
        let rate = (batch / self.window as f64).min(1.0);
        let mut counts = vec![0u32; self.shares.len()];
        for (&i, _) in code.indices.iter().zip(&code.values).filter(|(_, v)| **v != 0.0) {
            counts[i as usize] += 1;
        }
        for (share, n) in self.shares.iter_mut().zip(counts) {
            *share = (f64::from(*share) * (1.0 - rate) + f64::from(n) / batch * rate) as f32;
        }
    }

    /// The latents, the most frequent first; of equal ones the lower first.
    fn ranked(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shares.len()).collect();
        order.sort_by(|&a, &b| self.shares[b].total_cmp(&self.shares[a]));
        order
    }

    /// How many of `batch` tokens each latent may have, so that each token has `k` on average. `[d_sae]`
    pub fn budgets(&self, law: Zipf, k: usize, batch: usize) -> Vec<f32> {
        let by_rank = law.budgets(self.shares.len(), k * batch, batch);
        let mut budgets = vec![0.0; self.shares.len()];
        for (latent, n) in self.ranked().into_iter().zip(by_rank) {
            budgets[latent] = n as f32;
        }
        budgets
    }

    /// The latents that fire less than `share` of what the law gives their rank, ascending, by the latents' own number a
    /// token; none before `tokens` fill the window.
    pub fn under_used(&self, law: Zipf, share: f64, tokens: u64) -> Vec<i32> {
        if tokens < self.window {
            return Vec::new();
        }
        let all: f64 = self.shares.iter().map(|s| f64::from(*s)).sum();
        let lawful = self.lawful_shares(law, all);
        let latents = self.shares.iter().zip(lawful).zip(0..);
        latents
            .filter(|((found, lawful), _)| f64::from(**found) < share * lawful)
            .map(|(_, i)| i)
            .collect()
    }

    /// The share of tokens that the law gives each latent by its rank, all together `k`. `[d_sae]`
    pub fn lawful_shares(&self, law: Zipf, k: f64) -> Vec<f64> {
        let by_rank = law.capped(self.shares.len(), k, 1.0);
        let mut shares = vec![0.0; self.shares.len()];
        for (latent, share) in self.ranked().into_iter().zip(by_rank) {
            shares[latent] = share;
        }
        shares
    }
}

/// `(rank + offset)^-exponent`, ranks from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Zipf {
    pub exponent: f64,
    pub offset: f64,
}

impl Zipf {
    /// What each of `n` ranks gets of `total` in proportion to the law, none more than `most`; the rest share what
    /// those leave. Descending.
    fn capped(&self, n: usize, total: f64, most: f64) -> Vec<f64> {
        let law: Vec<f64> = (1..=n)
            .map(|rank| (rank as f64 + self.offset).powf(-self.exponent))
            .collect();
        let mut left: f64 = law.iter().sum();
        let mut full = 0;
        while full < n && (total - full as f64 * most) / left * law[full] > most {
            left -= law[full];
            full += 1;
        }
        let scale = (total - full as f64 * most) / left.max(f64::MIN_POSITIVE);
        let of = |(rank, share): (usize, &f64)| if rank < full { most } else { share * scale };
        law.iter().enumerate().map(of).collect()
    }

    /// What the last of `n` ranks gets of `k * batch`, in tokens.
    pub fn least(&self, n: usize, k: usize, batch: usize) -> f64 {
        let budgets = self.capped(n, (k * batch) as f64, batch as f64);
        budgets.last().copied().unwrap_or(0.0)
    }

    /// Whole numbers whose sum is `total`, at most `most` each and `total <= n * most`.
    fn budgets(&self, n: usize, total: usize, most: usize) -> Vec<usize> {
        // Each takes what rounding left of the ones before it.
        let (mut sum, mut given) = (0.0, 0);
        let capped = self.capped(n, total as f64, most as f64);
        let round = |share: f64| {
            sum += share;
            let until = (sum.round() as usize).clamp(given, (given + most).min(total));
            let budget = until - given;
            given = until;
            budget
        };
        capped.into_iter().map(round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: Zipf = Zipf {
        exponent: 1.0,
        offset: 2.0,
    };

    #[test]
    fn shares_follow_the_law_by_hand_and_what_is_over_the_cap_goes_to_the_rest() {
        // 1/3, 1/4, 1/5 of 47/60.
        let shares = LAW.capped(3, 47.0, 100.0);
        for (found, expected) in shares.iter().zip([20.0, 15.0, 12.0]) {
            assert!((found - expected).abs() < 1e-9, "{shares:?}");
        }
        let capped = LAW.capped(3, 47.0, 18.0);
        for (found, expected) in capped.iter().zip([18.0, 29.0 * 5.0 / 9.0, 29.0 * 4.0 / 9.0]) {
            assert!((found - expected).abs() < 1e-9, "{capped:?}");
        }
        let even = Zipf { exponent: 0.0, ..LAW };
        assert_eq!(even.capped(4, 10.0, 9.0), [2.5; 4]);
        assert_eq!(even.least(4, 5, 8), 10.0f64.min(8.0));
    }

    #[test]
    fn budgets_are_whole_add_up_and_go_by_rank() {
        for (n, k, batch) in [(1, 1, 1), (7, 3, 10), (40, 3, 128), (1000, 32, 256), (5, 5, 9)] {
            let budgets = LAW.budgets(n, k * batch, batch);
            assert_eq!(budgets.iter().sum::<usize>(), k * batch, "{n} {k} {batch}");
            assert!(budgets.iter().all(|b| *b <= batch));
            let least = LAW.least(n, k, batch);
            assert!(least < 1.0 || budgets.iter().all(|b| *b >= 1), "{budgets:?}");
        }
        let density = Density::from_shares(vec![0.1, 0.3, 0.1, 0.5], 10);
        let budgets = density.budgets(LAW, 1, 57);
        // 1/3, 1/4, 1/5, 1/6 of 57/60.
        assert_eq!(budgets, [12.0, 15.0, 10.0, 20.0]);
        let shares = density.lawful_shares(LAW, 0.57);
        assert!(
            shares
                .iter()
                .zip([0.12, 0.15, 0.10, 0.20])
                .all(|(a, b)| (a - b).abs() < 1e-9)
        );
    }

    #[test]
    fn latents_are_under_used_by_the_law_once_the_window_is_full() {
        // 1/3, 1/4, 1/5, 1/6 of 0.95: 0.33, 0.25, 0.2, 0.17.
        let density = Density::from_shares(vec![0.04, 0.5, 0.12, 0.29], 100);
        assert_eq!(density.under_used(LAW, 0.5, 100), [0]);
        assert_eq!(density.under_used(LAW, 0.7, 100), [0, 2]);
        assert!(density.under_used(LAW, 0.5, 99).is_empty());
    }

    #[test]
    fn densities_forget_at_the_pace_of_their_window() {
        let mut density = Density::new(3, 8);
        let code = HostCode::equal(1, vec![0, 1], vec![1.0, 0.0]);
        density.add(&code);
        assert_eq!(density.shares(), [0.125, 0.0, 0.0]);
        density.add(&code);
        assert_eq!(density.shares(), [0.125 * 0.75 + 0.125, 0.0, 0.0]);
        // A batch longer than the window is all there is.
        let mut short = Density::new(3, 1);
        short.add(&code);
        assert_eq!(short.shares(), [0.5, 0.0, 0.0]);
    }
}
