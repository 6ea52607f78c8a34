//! The sparse products on the processor: parallel over rows, each row's sum in one fixed order.
//!
//! Gradients of the matrices are sums over the batch, one latent a row. Scattering them from many threads would make
//! the order of additions a matter of luck, so the code is turned round first ([`ByLatent`]): then every row of the
//! result has one owner who reads its terms in the order of the batch.

use rayon::prelude::*;

use super::ragged::{Candidate, Race, above};
use super::select::{Scratch, top_k};
use super::simd;
use crate::code::Rows;
use crate::sparsifier::Score;

/// Rows of output a task takes: enough to pay for being one.
pub(super) const ROWS_A_TASK: usize = 16;

/// Rows of a batch that are looked at before its bar is set anew.
const ROWS_A_BAR: usize = 64;

/// Room for a code of as many slots a row, of one row or of several: indices and values.
pub type Slots<'a> = (&'a mut [i32], &'a mut [f32]);

/// The slots of `rows` rows; empty ones where `slots` is 0.
fn slots_of_rows<'a>(indices: &'a mut [i32], values: &'a mut [f32], slots: usize, rows: usize) -> Vec<Slots<'a>> {
    if slots == 0 {
        return std::iter::repeat_with(|| (&mut [][..], &mut [][..]))
            .take(rows)
            .collect();
    }
    indices.chunks_mut(slots).zip(values.chunks_mut(slots)).collect()
}

/// Adds the bias to every row of pre-activations, and selects the auxiliary code in it, while it is in the cache for
/// the main one.
pub struct Selector<'a> {
    /// `[d_sae]`; empty if it is in the pre-activations already.
    pub b_enc: &'a [f32],
    /// Number of latents.
    pub d_sae: usize,
    /// How the auxiliary code ranks, and its width; 0 for none.
    pub aux: (Score, usize),
    /// Latents the auxiliary code may use: at least as many as its width.
    pub candidates: &'a [i32],
}

impl Selector<'_> {
    /// What `main` makes of every row, with its own of `given`, in order. `pre`: `[rows, d_sae]` without the bias,
    /// which is added in place.
    /// The auxiliary code goes to `aux`, `[rows, k_aux]`.
    fn rows<G: Send, T: Send>(
        &self,
        pre: &mut [f32],
        given: Vec<G>,
        aux: Slots,
        main: impl Fn(&mut Scratch, usize, &[f32], G) -> T + Sync,
    ) -> Vec<T> {
        let level = simd::level();
        let aux = slots_of_rows(aux.0, aux.1, self.aux.1, given.len());
        pre.par_chunks_mut(self.d_sae)
            .zip(given)
            .zip(aux)
            .enumerate()
            .map_init(
                || (Scratch::default(), Vec::new()),
                |(scratch, subset), (row, ((pre, given), (aux_indices, aux_values)))| {
                    simd::add(level, pre, self.b_enc);
                    let result = main(scratch, row, pre, given);
                    if self.aux.1 > 0 {
                        subset.clear();
                        subset.extend(self.candidates.iter().map(|&i| pre[i as usize]));
                        top_k(subset, self.aux.0, aux_indices, aux_values, scratch);
                        for i in aux_indices {
                            *i = self.candidates[*i as usize];
                        }
                    }
                    result
                },
            )
            .collect()
    }

    fn n_rows(&self, pre: &[f32]) -> usize {
        pre.len() / self.d_sae
    }

    /// The `k` best of every row. `main`: `[rows, k]` each.
    pub fn per_token(&self, score: Score, k: usize, pre: &mut [f32], main: Slots, aux: Slots) {
        let slots = slots_of_rows(main.0, main.1, k, self.n_rows(pre));
        self.rows(pre, slots, aux, |scratch, _, pre, (indices, values)| {
            top_k(pre, score, indices, values, scratch);
        });
    }

    /// Everybody above the bars, `[d_sae]`, with the pre-activation as value: each row's, latents ascending.
    pub fn above(&self, score: Score, bars: &[f32], pre: &mut [f32], aux: Slots) -> Vec<Vec<(i32, f32)>> {
        let given = vec![(); self.n_rows(pre)];
        self.rows(pre, given, aux, |_, _, pre, ()| {
            let found = above(pre, bars, score).into_iter();
            found.map(|i| (i as i32, pre[i as usize])).collect()
        })
    }

    /// Lets the rows of `pre` compete for a batch's budget, or latents'; the first is row `first` of the batch.
    pub fn compete(&self, score: Score, race: &mut impl Race, first: usize, pre: &mut [f32], aux: Slots) {
        let k_aux = self.aux.1;
        let mut bars = vec![0.0; self.d_sae];
        let (mut aux_indices, mut aux_values) = aux;
        for (block, pre) in pre.chunks_mut(ROWS_A_BAR * self.d_sae).enumerate() {
            race.set_bars(&mut bars);
            let rows = self.n_rows(pre);
            let (indices, rest) = std::mem::take(&mut aux_indices).split_at_mut(rows * k_aux);
            aux_indices = rest;
            let (values, rest) = std::mem::take(&mut aux_values).split_at_mut(rows * k_aux);
            aux_values = rest;
            let found = self.rows(pre, vec![(); rows], (indices, values), |_, row, pre, ()| {
                let row = first + block * ROWS_A_BAR + row;
                let candidate = |i: u32| Candidate::new(score, row, i, pre[i as usize]);
                above(pre, &bars, score).into_iter().map(candidate).collect::<Vec<_>>()
            });
            found.into_iter().for_each(|row| race.extend(row));
        }
    }
}

/// `out[r] = sum_j weights[r, j] * matrix[indices[r, j]]`; entries of weight 0 are not read.
///
/// `indices`, `weights`: `[entries]`; `matrix`: `[d_sae, width]`; `out`: `[rows, width]`.
pub fn sum_rows(rows: &Rows, indices: &[i32], weights: &[f32], matrix: &[f32], width: usize, out: &mut [f32]) {
    let level = simd::level();
    out.par_chunks_mut(width)
        .enumerate()
        .with_min_len(ROWS_A_TASK)
        .for_each_init(
            || (Vec::new(), Vec::new()),
            |(latents, active), (row, out)| {
                latents.clear();
                active.clear();
                let entries = rows.range(row);
                for (&i, &w) in indices[entries.clone()].iter().zip(&weights[entries]) {
                    if w != 0.0 {
                        latents.push(i as u32);
                        active.push(w);
                    }
                }
                simd::sum_rows(level, out, latents, active, matrix);
            },
        );
}

/// `out[r, j] = vectors[r] . matrix[indices[r, j]]`.
///
/// `indices`, `out`: `[entries]`; `vectors`: `[rows, width]`; `matrix`: `[d_sae, width]`.
pub fn dot_rows(rows: &Rows, indices: &[i32], vectors: &[f32], matrix: &[f32], width: usize, out: &mut [f32]) {
    let level = simd::level();
    let mut rest = out;
    let mut parts = Vec::with_capacity(rows.batch());
    for range in rows.ranges() {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(range.len());
        parts.push((range, part));
        rest = behind;
    }
    parts
        .into_par_iter()
        .zip(vectors.par_chunks(width))
        .with_min_len(ROWS_A_TASK)
        .for_each(|((range, out), vector)| simd::dot_rows(level, out, vector, &indices[range], matrix));
}

/// Entries of one code of a batch: its rows, latents and weights.
pub type Part<'a> = (&'a Rows, &'a [i32], &'a [f32]);

/// Sparse codes turned round: for every latent the rows of the batch where it is active, ascending.
pub struct ByLatent {
    starts: Vec<usize>,
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl ByLatent {
    /// Of one or several codes of the same batch; within a row they follow each other. Entries of weight 0 are left
    /// out.
    pub fn new(parts: &[Part], d_sae: usize) -> Self {
        let mut starts = vec![0usize; d_sae + 1];
        for (_, indices, weights) in parts {
            for (&i, &w) in indices.iter().zip(*weights) {
                starts[i as usize + 1] += usize::from(w != 0.0);
            }
        }
        for i in 0..d_sae {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut by_latent = Self {
            rows: vec![0; starts[d_sae]],
            weights: vec![0.0; starts[d_sae]],
            starts,
        };
        let batch = parts.iter().map(|(rows, ..)| rows.batch()).max().unwrap_or(0);
        for row in 0..batch {
            for (rows, indices, weights) in parts {
                let entries = rows.range(row);
                let code = indices[entries.clone()].iter().zip(&weights[entries]);
                for (&i, &w) in code.filter(|(_, w)| **w != 0.0) {
                    let slot = &mut next[i as usize];
                    by_latent.rows[*slot] = row as u32;
                    by_latent.weights[*slot] = w;
                    *slot += 1;
                }
            }
        }
        by_latent
    }

    /// The rows where latent `i` is active, and its weights there.
    fn of(&self, i: usize) -> (&[u32], &[f32]) {
        let slots = self.starts[i]..self.starts[i + 1];
        (&self.rows[slots.clone()], &self.weights[slots])
    }

    /// `matrix[i] = sum_r w[r, i] * vectors[r]` and `sums[i] = sum_r w[r, i]`, over the rows where `i` is active.
    ///
    /// `vectors`: `[rows, width]`; `matrix`: `[d_sae, width]`, overwritten; `sums`: `[d_sae]`, overwritten.
    pub fn scatter(&self, vectors: &[f32], width: usize, matrix: &mut [f32], sums: &mut [f32]) {
        let level = simd::level();
        matrix
            .par_chunks_mut(width)
            .zip(sums.par_iter_mut())
            .with_min_len(ROWS_A_TASK)
            .enumerate()
            .for_each(|(i, (out, sum))| {
                let (rows, weights) = self.of(i);
                simd::sum_rows(level, out, rows, weights, vectors);
                *sum = weights.iter().sum();
            });
    }

    /// `matrix[i] += sum_r w[r, i] * vectors[r]`, over the rows where `i` is active. Shapes as of [`Self::scatter`].
    pub fn add(&self, vectors: &[f32], width: usize, matrix: &mut [f32]) {
        let level = simd::level();
        let rows = matrix.par_chunks_mut(width).with_min_len(ROWS_A_TASK).enumerate();
        rows.for_each(|(i, out)| {
            let (rows, weights) = self.of(i);
            simd::add_rows(level, out, rows, weights, vectors);
        });
    }
}
