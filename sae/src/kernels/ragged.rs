//! Codes whose rows differ in length: everybody over a bar, or the best of a whole batch.
//!
//! Both look for the few latents of a row above a bar. One vectorised pass says for each group of latents whether
//! anybody is; only such groups are looked at one by one.
//!
//! The best of a batch are found without storing `[batch, d_sae]`: what has been seen of a batch puts a bar before the
//! rest of it, and candidates never number more than a few times the winners ([`Pool`]). The order is total, so the
//! answer is unique: the larger score first, of equal scores the earlier row, then the lower latent.

use super::select::rank_of;
use super::simd::{for_each_level, level};
use crate::code::{HostCode, Rows};
use crate::sparsifier::Score;

/// Latents that are looked at together.
const GROUP: usize = 64;

#[inline(always)]
fn above_body<const FMA: bool>(pre: &[f32], bars: &[f32], slack: f32, magnitude: bool, out: &mut Vec<u32>) {
    let score = |u: f32| slack + if magnitude { u.abs() } else { u };
    for (group, (pre, bars)) in pre.chunks(GROUP).zip(bars.chunks(GROUP)).enumerate() {
        let mut any = false;
        for (&u, &bar) in pre.iter().zip(bars) {
            // False for a NaN.
            any |= score(u) > bar;
        }
        if any {
            for (i, (&u, &bar)) in pre.iter().zip(bars).enumerate() {
                if score(u) > bar {
                    out.push((group * GROUP + i) as u32);
                }
            }
        }
    }
}

for_each_level! {
    fn above_at(pre: &[f32], bars: &[f32], slack: f32, magnitude: bool, out: &mut Vec<u32>) = above_body
}

/// The latents of a row whose score is above their bar, ascending; a NaN never is.
///
/// `pre`, `bars`: `[d_sae]`. Below zero, [`Score::Positive`] scores as [`Score::Value`] does: a bar under zero lets
/// latents below zero pass.
pub fn above(pre: &[f32], bars: &[f32], score: Score) -> Vec<u32> {
    let mut out = Vec::new();
    nearly_above(pre, bars, score, 0.0, &mut out);
    out
}

/// Appends those who are [`above`] with `slack` added to every score.
pub fn nearly_above(pre: &[f32], bars: &[f32], score: Score, slack: f32, out: &mut Vec<u32>) {
    above_at(level(), pre, bars, slack, score == Score::Magnitude, out);
}

/// The plain twin of [`above`].
#[cfg(test)]
pub fn above_twin(pre: &[f32], bars: &[f32], score: Score) -> Vec<u32> {
    let of = |u: f32| if score == Score::Magnitude { u.abs() } else { u };
    (0..pre.len() as u32)
        .filter(|&i| of(pre[i as usize]) > bars[i as usize])
        .collect()
}

/// A latent of a row that may be among a batch's best. The order of the fields is the order of the race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Smaller the larger the score is.
    rank: u32,
    row: u32,
    latent: u32,
    /// Of the value.
    bits: u32,
}

impl Candidate {
    /// Latent `latent` of row `row` with pre-activation `u`.
    pub fn new(score: Score, row: usize, latent: u32, u: f32) -> Self {
        Self {
            rank: rank_of(score.of(u)),
            row: row as u32,
            latent,
            bits: u.to_bits(),
        }
    }

    fn value(&self) -> f32 {
        f32::from_bits(self.bits)
    }

    /// Its latent.
    pub fn latent(&self) -> usize {
        self.latent as usize
    }
}

/// A race that a batch's rows run some at a time.
pub trait Race {
    /// Writes what a latent's score has to be above to win still, `[d_sae]`.
    fn set_bars(&self, bars: &mut [f32]);

    /// Lets more take part: at least all of a row that are above the bars.
    fn extend(&mut self, candidates: Vec<Candidate>);
}

impl Race for Pool {
    fn set_bars(&self, bars: &mut [f32]) {
        bars.fill(self.bar());
    }

    fn extend(&mut self, candidates: Vec<Candidate>) {
        Pool::extend(self, candidates);
    }
}

/// The code of `batch` rows from its entries: each row's best first.
pub fn in_rows(mut candidates: Vec<Candidate>, batch: usize) -> HostCode {
    candidates.sort_unstable_by_key(|c| (c.row, c.rank, c.latent));
    let mut lengths = vec![0; batch];
    for c in &candidates {
        lengths[c.row as usize] += 1;
    }
    let pairs = candidates.iter().map(|c| (c.latent as i32, c.value()));
    let (indices, values) = pairs.unzip();
    HostCode {
        rows: Rows::from_lengths(lengths),
        indices,
        values,
    }
}

/// The best of a batch, while it is being seen.
#[derive(Debug)]
pub struct Pool {
    score: Score,
    budget: usize,
    candidates: Vec<Candidate>,
    bar: f32,
}

impl Pool {
    /// For the `budget` best, at least 1.
    pub fn new(score: Score, budget: usize) -> Self {
        Self {
            score,
            budget,
            candidates: Vec::new(),
            bar: score.floor(),
        }
    }

    /// Who is not above this cannot win any more.
    pub fn bar(&self) -> f32 {
        self.bar
    }

    /// Lets more take part: at least all of some rows that are above [`Pool::bar`].
    pub fn extend(&mut self, candidates: impl IntoIterator<Item = Candidate>) {
        self.candidates.extend(candidates);
        if self.candidates.len() > 2 * self.budget {
            self.prune();
        }
    }

    fn prune(&mut self) {
        if self.candidates.len() <= self.budget {
            return;
        }
        let (_, worst, _) = self.candidates.select_nth_unstable(self.budget - 1);
        // Equal scores stay in the race: an earlier row has yet to be preferred.
        self.bar = self.score.of(worst.value()).next_down().max(self.score.floor());
        self.candidates.truncate(self.budget);
    }

    /// The scores of the best, `budget` or fewer, best first.
    pub fn scores(mut self) -> Vec<f32> {
        self.prune();
        self.candidates.sort_unstable();
        self.candidates.iter().map(|c| self.score.of(c.value())).collect()
    }

    /// The best, `budget` or fewer, in no order.
    pub fn winners(mut self) -> Vec<Candidate> {
        self.prune();
        self.candidates
    }

    /// The code of `batch` rows: each row's winners best first.
    pub fn finish(self, batch: usize) -> HostCode {
        in_rows(self.winners(), batch)
    }
}

/// The plain twin of a [`Pool`]: sorts the whole batch. `pre`: `[batch, d_sae]`; the entries of each row, best first.
#[cfg(test)]
pub fn best_of_batch_twin(pre: &[f32], d_sae: usize, score: Score, budget: usize) -> Vec<Vec<(i32, f32)>> {
    let mut all: Vec<Candidate> = pre
        .iter()
        .enumerate()
        .filter(|(_, u)| score.of(**u) > score.floor())
        .map(|(n, &u)| Candidate::new(score, n / d_sae, (n % d_sae) as u32, u))
        .collect();
    all.sort();
    all.truncate(budget);
    let mut rows = vec![Vec::new(); pre.len() / d_sae];
    for c in all {
        rows[c.row as usize].push((c.latent as i32, c.value()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-6i8..6).prop_map(f32::from),
            -4.0f32..4.0,
            Just(f32::INFINITY),
            Just(f32::NEG_INFINITY),
            Just(-0.0),
            Just(f32::NAN),
        ]
    }

    fn scores() -> impl Strategy<Value = Score> {
        prop_oneof![Just(Score::Positive), Just(Score::Magnitude), Just(Score::Value)]
    }

    proptest! {
        #[test]
        fn who_is_above_a_bar_is_found_at_every_width(
            pairs in prop::collection::vec((values(), values()), 1..700), score in scores(),
        ) {
            let (pre, bars): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            prop_assert_eq!(above(&pre, &bars, score), above_twin(&pre, &bars, score));
        }

        /// Few distinct values make many ties, which rows and latents decide.
        #[test]
        fn the_best_of_a_batch_are_those_of_sorting_it(
            (d_sae, pre) in (1usize..40, 1usize..12)
                .prop_flat_map(|(d, rows)| (Just(d), prop::collection::vec(values(), d * rows))),
            share in 0.0f64..=1.0,
            together in 1usize..5,
            score in scores(),
        ) {
            let budget = ((pre.len() as f64 * share * 0.3) as usize).max(1);
            let mut pool = Pool::new(score, budget);
            let rows: Vec<&[f32]> = pre.chunks(d_sae).collect();
            for (block, part) in rows.chunks(together).enumerate() {
                let bars = vec![pool.bar(); d_sae];
                let found: Vec<Candidate> = part.iter().enumerate().flat_map(|(r, pre)| {
                    let row = block * together + r;
                    above(pre, &bars, score).into_iter().map(move |i| Candidate::new(score, row, i, pre[i as usize]))
                }).collect();
                pool.extend(found);
            }
            let found = pool.finish(rows.len());
            let expected = best_of_batch_twin(&pre, d_sae, score, budget);
            for (range, expected) in found.rows.ranges().zip(expected) {
                let entries: Vec<_> = range.map(|n| (found.indices[n], found.values[n])).collect();
                prop_assert_eq!(entries, expected);
            }
        }
    }
}
