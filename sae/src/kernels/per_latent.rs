//! The best rows of every latent: each has a budget of its own over a batch (feature choice, arXiv 2411.02124).
//!
//! A race for every latent, run as that of a batch is ([`Pool`]): what was seen of the batch puts a bar before the rest
//! of it, here one a latent, so `[batch, d_sae]` never exists and candidates stay within twice the budgets. Of equal
//! scores the earlier row wins.

use super::ragged::{Candidate, Pool, Race, in_rows};
use crate::code::HostCode;
use crate::sparsifier::Score;

/// The best rows of every latent, while a batch is being seen.
#[derive(Debug)]
pub struct PerLatent {
    /// `None` for a budget of 0.
    pools: Vec<Option<Pool>>,
}

impl PerLatent {
    /// For the `budgets[i]` best rows of latent `i`: whole numbers. `[d_sae]`
    pub fn new(score: Score, budgets: &[f32]) -> Self {
        let pool = |n: &f32| (*n >= 1.0).then(|| Pool::new(score, *n as usize));
        Self {
            pools: budgets.iter().map(pool).collect(),
        }
    }

    /// The code of `batch` rows: each row's winners best first.
    pub fn finish(self, batch: usize) -> HostCode {
        in_rows(
            self.pools.into_iter().flatten().flat_map(Pool::winners).collect(),
            batch,
        )
    }
}

impl Race for PerLatent {
    fn set_bars(&self, bars: &mut [f32]) {
        for (bar, pool) in bars.iter_mut().zip(&self.pools) {
            *bar = pool.as_ref().map_or(f32::INFINITY, Pool::bar);
        }
    }

    fn extend(&mut self, candidates: Vec<Candidate>) {
        for candidate in candidates {
            if let Some(pool) = &mut self.pools[candidate.latent()] {
                pool.extend([candidate]);
            }
        }
    }
}

/// The plain twin: sorts every column. `pre`: `[batch, d_sae]`; each row's entries, latents ascending.
#[cfg(test)]
pub fn per_latent_twin(pre: &[f32], score: Score, budgets: &[f32]) -> Vec<Vec<(i32, f32)>> {
    let d_sae = budgets.len();
    let mut rows = vec![Vec::new(); pre.len() / d_sae];
    for (latent, &budget) in budgets.iter().enumerate() {
        let column: Vec<f32> = pre.iter().skip(latent).step_by(d_sae).copied().collect();
        let mut order: Vec<usize> = (0..column.len()).collect();
        order.retain(|&row| score.of(column[row]) > score.floor());
        // Stable: of equal scores the earlier row stays first.
        order.sort_by(|&a, &b| score.of(column[b]).total_cmp(&score.of(column[a])));
        for &row in order.iter().take(budget as usize) {
            rows[row].push((latent as i32, column[row]));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::ragged::above;

    fn values() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-4i8..5).prop_map(f32::from),
            -3.0f32..3.0,
            Just(f32::INFINITY),
            Just(f32::NEG_INFINITY),
            Just(f32::NAN),
        ]
    }

    proptest! {
        /// Few distinct values make many ties, which rows decide.
        #[test]
        fn the_best_rows_of_every_latent_are_those_of_sorting_its_column(
            (budgets, pre) in (1usize..30, 1usize..20).prop_flat_map(|(d, rows)| (
                prop::collection::vec(0u8..6, d), prop::collection::vec(values(), d * rows),
            )),
            together in 1usize..5,
            score in prop_oneof![Just(Score::Positive), Just(Score::Magnitude), Just(Score::Value)],
        ) {
            let budgets: Vec<f32> = budgets.into_iter().map(f32::from).collect();
            let d_sae = budgets.len();
            let mut race = PerLatent::new(score, &budgets);
            let mut bars = vec![0.0; d_sae];
            let rows: Vec<&[f32]> = pre.chunks(d_sae).collect();
            for (block, part) in rows.chunks(together).enumerate() {
                race.set_bars(&mut bars);
                for (r, pre) in part.iter().enumerate() {
                    let row = block * together + r;
                    let found = above(pre, &bars, score).into_iter();
                    race.extend(found.map(|i| Candidate::new(score, row, i, pre[i as usize])).collect());
                }
            }
            let found = race.finish(rows.len());
            for (range, expected) in found.rows.ranges().zip(per_latent_twin(&pre, score, &budgets)) {
                let entries: Vec<_> = range.map(|n| (found.indices[n], found.values[n])).collect();
                let scores: Vec<f32> = entries.iter().map(|e| score.of(e.1)).collect();
                prop_assert!(scores.is_sorted_by(|a, b| a >= b), "best first: {:?}", scores);
                let mut by_latent = entries;
                by_latent.sort_by_key(|e| e.0);
                prop_assert_eq!(by_latent, expected);
            }
        }
    }
}
