//! Picking the winners of a row of pre-activations without sorting it.
//!
//! The order is total: the larger score first, of equal scores the lower index. So the answer is unique, and a twin
//! that sorts must agree to the bit.
//!
//! One vectorised pass takes the largest score of each group of latents. The k-th largest of those is a bar that at
//! least k latents reach, and hardly more than k groups hold anybody who does: only those are looked at one by one.

use super::simd::{Level, for_each_level, level};
use crate::sparsifier::Score;

/// [`Score`] as types, so that each compiles to loops without a branch on it.
trait Order: Copy {
    /// The least score there is; that of a NaN.
    const FLOOR: f32;
    fn score(u: f32) -> f32;
    fn value(u: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Positive;
impl Order for Positive {
    const FLOOR: f32 = 0.0;
    #[inline(always)]
    fn score(u: f32) -> f32 {
        // Comparisons with NaN are false, and this shape is one instruction.
        if u > 0.0 { u } else { 0.0 }
    }
    fn value(u: f32) -> f32 {
        Score::Positive.value(u)
    }
}

#[derive(Clone, Copy)]
struct Magnitude;
impl Order for Magnitude {
    const FLOOR: f32 = 0.0;
    #[inline(always)]
    fn score(u: f32) -> f32 {
        if u.abs() > 0.0 { u.abs() } else { 0.0 }
    }
    fn value(u: f32) -> f32 {
        Score::Magnitude.value(u)
    }
}

#[derive(Clone, Copy)]
struct ByValue;
impl Order for ByValue {
    const FLOOR: f32 = f32::MIN;
    #[inline(always)]
    fn score(u: f32) -> f32 {
        if u > f32::MIN { u } else { f32::MIN }
    }
    fn value(u: f32) -> f32 {
        Score::Magnitude.value(u)
    }
}

/// Room that is used again from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    tops: Vec<f32>,
    ranked: Vec<u32>,
    candidates: Vec<u64>,
    found: Vec<u32>,
}

/// A number that is smaller the larger `score` is: integers compare in one step, and sort several times as fast.
#[inline(always)]
pub(super) fn rank_of(score: f32) -> u32 {
    // Adding zero makes one of the two zeros; then the bits of floats order as integers do, the negative ones reversed.
    let bits = (score + 0.0).to_bits();
    let ascending = bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 };
    !ascending
}

/// The score that [`rank_of`] made a rank of.
pub(super) fn score_of(rank: u32) -> f32 {
    let ascending = !rank;
    f32::from_bits(ascending ^ if ascending >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    // Scores are never NaN, and -0 equals 0.
    b.0.partial_cmp(&a.0)
        .unwrap_or(std::cmp::Ordering::Equal)
        .then(a.1.cmp(&b.1))
}

/// Latents that one vector register holds. A group is every `LANES`-th latent of a stretch, because then its largest
/// score comes out of `depth` vertical maxima with no sum across the register.
const LANES: usize = 16;

#[inline(always)]
fn group_tops<O: Order>(pre: &[f32], depth: usize, tops: &mut [f32]) {
    for (stretch, tops) in pre.chunks_exact(depth * LANES).zip(tops.chunks_exact_mut(LANES)) {
        let mut best = [O::FLOOR; LANES];
        for vector in stretch.chunks_exact(LANES) {
            for (best, &u) in best.iter_mut().zip(vector) {
                let s = O::score(u);
                *best = if s > *best { s } else { *best };
            }
        }
        tops.copy_from_slice(&best);
    }
}

#[inline(always)]
fn tops_positive<const FMA: bool>(pre: &[f32], depth: usize, tops: &mut [f32]) {
    group_tops::<Positive>(pre, depth, tops);
}
#[inline(always)]
fn tops_magnitude<const FMA: bool>(pre: &[f32], depth: usize, tops: &mut [f32]) {
    group_tops::<Magnitude>(pre, depth, tops);
}
#[inline(always)]
fn tops_by_value<const FMA: bool>(pre: &[f32], depth: usize, tops: &mut [f32]) {
    group_tops::<ByValue>(pre, depth, tops);
}
for_each_level! { fn positive(pre: &[f32], depth: usize, tops: &mut [f32]) = tops_positive }
for_each_level! { fn magnitude(pre: &[f32], depth: usize, tops: &mut [f32]) = tops_magnitude }
for_each_level! { fn by_value(pre: &[f32], depth: usize, tops: &mut [f32]) = tops_by_value }

/// The `indices.len()` winners of `pre`, best first, and their values.
///
/// `pre`: `[d_sae]`, a NaN comes last; `indices`, `values`: `[k]` with `k <= d_sae`.
/// Under a score that ends at 0, slots that no latent deserves get value 0 and the index of the latent that would
/// have come next.
///
/// # Panics
/// If `k` is 0 or over `d_sae`: configuration is checked before.
pub fn top_k(pre: &[f32], score: Score, indices: &mut [i32], values: &mut [f32], scratch: &mut Scratch) {
    match score {
        Score::Positive => winners::<Positive>(pre, positive, indices, values, scratch),
        Score::Magnitude => winners::<Magnitude>(pre, magnitude, indices, values, scratch),
        Score::Value => winners::<ByValue>(pre, by_value, indices, values, scratch),
    }
}

fn winners<O: Order>(
    pre: &[f32],
    tops_of: fn(Level, &[f32], usize, &mut [f32]),
    indices: &mut [i32],
    values: &mut [f32],
    scratch: &mut Scratch,
) {
    let (k, n) = (indices.len(), pre.len());
    assert!(k == values.len() && 0 < k && k <= n, "top-{k} of {n} latents");
    contenders::<O>(pre, tops_of, k, 0.0, scratch);
    let candidates = &mut scratch.candidates;
    if candidates.len() > k {
        candidates.select_nth_unstable(k - 1);
        candidates.truncate(k);
    }
    candidates.sort_unstable();
    for ((&candidate, index), value) in candidates.iter().zip(indices).zip(values) {
        let i = candidate as u32;
        *index = i as i32;
        *value = O::value(pre[i as usize]);
    }
}

/// Leaves in `scratch.candidates`, rank above latent, at least everybody whose score is at most `slack` less than the
/// `k`-th best, in no order; `slack` is 0 or more.
fn contenders<O: Order>(
    pre: &[f32],
    tops_of: fn(Level, &[f32], usize, &mut [f32]),
    k: usize,
    slack: f32,
    scratch: &mut Scratch,
) {
    let n = pre.len();
    // Many more groups than winners, or the bar would be low; but not so many that finding the bar is the work.
    let depth = (n / (4 * k)).clamp(1, 32);
    let grouped = n / (depth * LANES) * depth * LANES;
    let Scratch {
        tops,
        ranked,
        candidates,
        ..
    } = scratch;
    tops.resize(grouped / depth, 0.0);
    tops_of(level(), pre, depth, tops);
    let bar = if tops.len() < k {
        u32::MAX
    } else {
        ranked.clear();
        ranked.extend(tops.iter().map(|&top| rank_of(top)));
        lowered(*ranked.select_nth_unstable(k - 1).1, slack)
    };

    candidates.clear();
    let mut consider = |i: usize| {
        let rank = rank_of(O::score(pre[i]));
        // Equal scores stay in the race: the lower index has yet to win, and does, below the rank in the same number.
        if rank <= bar {
            candidates.push(u64::from(rank) << 32 | i as u64);
        }
    };
    for (group, _) in tops.iter().enumerate().filter(|(_, top)| rank_of(**top) <= bar) {
        let first = group / LANES * depth * LANES + group % LANES;
        (0..depth).for_each(|step| consider(first + step * LANES));
    }
    (grouped..n).for_each(&mut consider);
}

/// The rank of a score that is `slack` less.
fn lowered(rank: u32, slack: f32) -> u32 {
    if slack > 0.0 {
        rank_of(score_of(rank) - slack)
    } else {
        rank
    }
}

/// Those of whom the `k` best of a row may be if every pre-activation is wrong by at most `error`, found while the row is
/// seen piece by piece, so that no more of it has to exist than a piece.
#[derive(Debug, Default)]
pub struct Nomination {
    /// Rank above latent: at least everybody seen so far who may be among the best.
    ranked: Vec<u64>,
    /// Who ranks worse is none of them.
    bar: u32,
}

/// What a [`Nomination`] is about.
#[derive(Clone, Copy, Debug)]
pub struct Seats {
    /// How latents rank.
    pub score: Score,
    /// Number of winners, at most that of latents.
    pub k: usize,
    /// What pre-activations may be wrong by: a finite number.
    pub error: f32,
}

impl Nomination {
    /// Takes a look at the latents from `first` on, whose pre-activations are `pre`, without a NaN.
    pub fn see(&mut self, seats: Seats, first: usize, pre: &[f32], scratch: &mut Scratch) {
        let Seats { score, k, error } = seats;
        let by_magnitude = score == Score::Magnitude;
        if self.ranked.len() < k {
            // There is no bar yet but that of the piece itself. By the value, because what is below zero may be above it.
            if by_magnitude {
                contenders::<Magnitude>(pre, magnitude, k, 2.0 * error, scratch);
            } else {
                contenders::<ByValue>(pre, by_value, k, 2.0 * error, scratch);
            }
            self.ranked
                .extend(scratch.candidates.iter().map(|candidate| candidate + first as u64));
        } else {
            let found = &mut scratch.found;
            found.clear();
            reaching(level(), pre, score_of(self.bar), by_magnitude, found);
            let rank = |i: u32| {
                rank_of(if by_magnitude {
                    pre[i as usize].abs()
                } else {
                    pre[i as usize]
                })
            };
            self.ranked.extend(
                found
                    .iter()
                    .map(|&i| u64::from(rank(i)) << 32 | (first as u64 + u64::from(i))),
            );
        }
        self.prune(k, error);
    }

    fn prune(&mut self, k: usize, error: f32) {
        if self.ranked.len() >= k {
            let (_, &mut worst, _) = self.ranked.select_nth_unstable(k - 1);
            // The k-th best is at least what it seems less one error, and whoever is better lacks at most another.
            self.bar = lowered((worst >> 32) as u32, 2.0 * error);
            self.ranked.retain(|&candidate| (candidate >> 32) as u32 <= self.bar);
        }
    }

    /// Those of all latents seen, ascending: nobody else. Under [`Score::Positive`] who is surely not above zero is none.
    pub fn finish(&mut self, seats: Seats, out: &mut Vec<i32>) {
        out.clear();
        let Seats { score, error, .. } = seats;
        let above = |candidate: &u64| score != Score::Positive || score_of((candidate >> 32) as u32) > -error;
        let nominees = self.ranked.iter().filter(|candidate| above(candidate));
        out.extend(nominees.map(|&candidate| candidate as u32 as i32));
        out.sort_unstable();
        self.ranked.clear();
    }
}

/// Latents that are looked at together.
const GROUP: usize = 64;

#[inline(always)]
fn reaching_body<const FMA: bool>(pre: &[f32], bar: f32, magnitude: bool, out: &mut Vec<u32>) {
    let score = |u: f32| if magnitude { u.abs() } else { u };
    for (group, pre) in pre.chunks(GROUP).enumerate() {
        if pre.iter().fold(false, |any, &u| any | (score(u) >= bar)) {
            let reach = pre.iter().enumerate().filter(|(_, u)| score(**u) >= bar);
            out.extend(reach.map(|(i, _)| (group * GROUP + i) as u32));
        }
    }
}

for_each_level! {
    /// Appends the latents whose score is at least `bar`.
    pub fn reaching(pre: &[f32], bar: f32, magnitude: bool, out: &mut Vec<u32>) = reaching_body
}

/// The plain twin of [`top_k`]: sorts the whole row.
pub fn top_k_twin(pre: &[f32], score: Score, k: usize) -> (Vec<i32>, Vec<f32>) {
    let mut all: Vec<(f32, u32)> = pre.iter().enumerate().map(|(i, &u)| (score.of(u), i as u32)).collect();
    all.sort_by(order);
    all.truncate(k);
    all.iter()
        .map(|&(_, i)| (i as i32, score.value(pre[i as usize])))
        .unzip()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fast(pre: &[f32], score: Score, k: usize) -> (Vec<i32>, Vec<f32>) {
        let (mut indices, mut values) = (vec![-1; k], vec![f32::NAN; k]);
        top_k(pre, score, &mut indices, &mut values, &mut Scratch::default());
        (indices, values)
    }

    #[test]
    fn equal_scores_go_to_the_lower_index() {
        assert_eq!(
            fast(&[1.0, -2.0, 2.0, 2.0], Score::Magnitude, 2),
            (vec![1, 2], vec![-2.0, 2.0])
        );
        assert_eq!(
            fast(&[1.0, -2.0, 2.0, 2.0], Score::Positive, 2),
            (vec![2, 3], vec![2.0, 2.0])
        );
    }

    #[test]
    fn latents_below_zero_fill_slots_with_zeros_under_the_positive_score() {
        assert_eq!(
            fast(&[-1.0, -2.0, 0.5], Score::Positive, 3),
            (vec![2, 0, 1], vec![0.5, 0.0, 0.0])
        );
    }

    #[test]
    fn latents_below_zero_keep_their_value_when_ranked_by_it() {
        assert_eq!(
            fast(&[-1.0, f32::NAN, -2.0, 0.5], Score::Value, 4),
            (vec![3, 0, 2, 1], vec![0.5, -1.0, -2.0, 0.0])
        );
    }

    #[test]
    fn a_nan_never_wins() {
        assert_eq!(
            fast(&[f32::NAN, 1.0, f32::NAN], Score::Magnitude, 2),
            (vec![1, 0], vec![1.0, 0.0])
        );
    }

    proptest! {
        /// Few distinct values make many ties; widths cross stretches and leave tails.
        #[test]
        fn selecting_equals_sorting(
            pre in prop::collection::vec(prop_oneof![
                (-6i8..6).prop_map(f32::from),
                -4.0f32..4.0,
                Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(-0.0), Just(f32::NAN),
            ], 1..3000),
            share in 0.0f64..=1.0,
            few: bool,
            score in prop_oneof![
                Just(Score::Positive), Just(Score::Magnitude), Just(Score::Value)
            ],
        ) {
            let share = if few { share * 0.02 } else { share };
            let k = ((pre.len() as f64 * share) as usize).clamp(1, pre.len());
            prop_assert_eq!(fast(&pre, score, k), top_k_twin(&pre, score, k));
        }
    }
}
