//! Picking the winners of a row of pre-activations without sorting it.
//!
//! The order is total: the larger score first, of equal scores the lower index. So the answer is unique, and a twin
//! that sorts must agree to the bit.

use crate::sparsifier::Score;

/// Room that [`top_k`] reuses from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Vec<(f32, u32)>,
}

/// Whether score and index `a` win over `b`.
fn wins(a: (f32, u32), b: (f32, u32)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1 < b.1)
}

fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    // Scores are never NaN, and -0 equals 0.
    b.0.partial_cmp(&a.0)
        .unwrap_or(std::cmp::Ordering::Equal)
        .then(a.1.cmp(&b.1))
}

/// The `indices.len()` winners of `pre`, best first, and their values.
///
/// `pre`: `[d_sae]`, a NaN scores 0; `indices`, `values`: `[k]` with `k <= d_sae`.
/// Slots that no latent deserves (score 0) get value 0 and the index of the latent that would have come next.
///
/// One pass keeps at most `2 k` candidates above a rising bar, so a row costs about one comparison an element.
///
/// # Panics
/// If `k` is 0 or over `d_sae`: configuration is checked before.
pub fn top_k(pre: &[f32], score: Score, indices: &mut [i32], values: &mut [f32], scratch: &mut Scratch) {
    let k = indices.len();
    assert!(
        k == values.len() && 0 < k && k <= pre.len(),
        "top-{k} of {} latents",
        pre.len()
    );
    let best = &mut scratch.candidates;
    best.clear();
    // A candidate has to beat the k-th of those seen so far; before there are k, everything passes.
    let mut bar = f32::NEG_INFINITY;
    const BLOCK: usize = 32;
    for (block, chunk) in pre.chunks(BLOCK).enumerate() {
        // Branch once a block: nearly all blocks hold nobody above the bar. Equal scores lose to a lower index, which
        // came before, so the comparison is strict.
        let top = chunk.iter().fold(f32::NEG_INFINITY, |top, &u| top.max(score.of(u)));
        if top <= bar {
            continue;
        }
        for (offset, &u) in chunk.iter().enumerate() {
            let s = score.of(u);
            if s > bar {
                best.push((s, (block * BLOCK + offset) as u32));
            }
        }
        if best.len() >= 2 * k + BLOCK {
            best.select_nth_unstable_by(k - 1, order);
            best.truncate(k);
            bar = best[k - 1].0;
        }
    }
    if best.len() > k {
        best.select_nth_unstable_by(k - 1, order);
        best.truncate(k);
    }
    best.sort_unstable_by(order);
    debug_assert!(best.windows(2).all(|pair| wins(pair[0], pair[1])));
    for ((&(_, i), index), value) in best.iter().zip(indices).zip(values) {
        *index = i as i32;
        *value = score.value(pre[i as usize]);
    }
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
    fn a_nan_never_wins() {
        assert_eq!(
            fast(&[f32::NAN, 1.0, f32::NAN], Score::Magnitude, 2),
            (vec![1, 0], vec![1.0, 0.0])
        );
    }

    proptest! {
        /// Few distinct values make many ties; widths cross the block size.
        #[test]
        fn selecting_equals_sorting(
            pre in prop::collection::vec(prop_oneof![
                (-6i8..6).prop_map(f32::from),
                -4.0f32..4.0,
                Just(f32::INFINITY), Just(-0.0), Just(f32::NAN),
            ], 1..300),
            share in 0.0f64..=1.0,
            magnitude: bool,
        ) {
            let k = ((pre.len() as f64 * share) as usize).clamp(1, pre.len());
            let score = if magnitude { Score::Magnitude } else { Score::Positive };
            prop_assert_eq!(fast(&pre, score, k), top_k_twin(&pre, score, k));
        }
    }
}
