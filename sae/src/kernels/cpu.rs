//! The sparse products on the processor: parallel over rows, each row's sum in one fixed order.
//!
//! Gradients of the matrices are sums over the batch, one latent a row. Scattering them from many threads would make
//! the order of additions a matter of luck, so the code is turned round first ([`ByLatent`]): then every row of the
//! result has one owner who reads its terms in the order of the batch.

use rayon::prelude::*;

use super::select::{Rank, Scratch, top_k};
use super::simd;

/// Rows of output a task takes: enough to pay for being one.
const ROWS_A_TASK: usize = 16;

/// Selects in every row of `pre` after adding the bias: the main winners, then the auxiliary ones among `candidates`.
pub struct Selector<'a> {
    /// `[d_sae]`.
    pub b_enc: &'a [f32],
    /// How the main code ranks, and its width.
    pub main: (Rank, usize),
    /// How the auxiliary code ranks, and its width; 0 for none.
    pub aux: (Rank, usize),
    /// Latents the auxiliary code may use: at least as many as its width.
    pub candidates: &'a [i32],
}

impl Selector<'_> {
    /// `pre`: `[rows, d_sae]` without the bias, which is added in place; `indices`, `values`: `[rows, k + k_aux]`.
    pub fn select(&self, pre: &mut [f32], indices: &mut [i32], values: &mut [f32]) {
        let (k, k_aux) = (self.main.1, self.aux.1);
        let level = simd::level();
        let slots = k + k_aux;
        pre.par_chunks_mut(self.b_enc.len())
            .zip(indices.par_chunks_mut(slots))
            .zip(values.par_chunks_mut(slots))
            .for_each_init(
                || (Scratch::default(), Vec::new()),
                |(scratch, subset), ((pre, indices), values)| {
                    simd::add(level, pre, self.b_enc);
                    let (main_indices, aux_indices) = indices.split_at_mut(k);
                    let (main_values, aux_values) = values.split_at_mut(k);
                    top_k(pre, self.main.0, main_indices, main_values, scratch);
                    if k_aux > 0 {
                        subset.clear();
                        subset.extend(self.candidates.iter().map(|&i| pre[i as usize]));
                        top_k(subset, self.aux.0, aux_indices, aux_values, scratch);
                        for i in aux_indices {
                            *i = self.candidates[*i as usize];
                        }
                    }
                },
            );
    }
}

/// `out[r] = sum_j weights[r, j] * matrix[indices[r, j]]`; slots of weight 0 are not read.
///
/// `indices`, `weights`: `[rows, slots]`; `matrix`: `[d_sae, width]`; `out`: `[rows, width]`.
pub fn sum_rows(indices: &[i32], weights: &[f32], slots: usize, matrix: &[f32], width: usize, out: &mut [f32]) {
    let level = simd::level();
    let code = indices.par_chunks(slots).zip(weights.par_chunks(slots));
    out.par_chunks_mut(width)
        .zip(code)
        .with_min_len(ROWS_A_TASK)
        .for_each_init(
            || (Vec::new(), Vec::new()),
            |(rows, active), (out, (indices, weights))| {
                rows.clear();
                active.clear();
                for (&i, &w) in indices.iter().zip(weights) {
                    if w != 0.0 {
                        rows.push(i as u32);
                        active.push(w);
                    }
                }
                simd::sum_rows(level, out, rows, active, matrix);
            },
        );
}

/// `out[r, j] = vectors[r] . matrix[indices[r, j]]`.
///
/// `indices`, `out`: `[rows, slots]`; `vectors`: `[rows, width]`; `matrix`: `[d_sae, width]`.
pub fn dot_rows(indices: &[i32], slots: usize, vectors: &[f32], matrix: &[f32], width: usize, out: &mut [f32]) {
    let level = simd::level();
    out.par_chunks_mut(slots)
        .zip(indices.par_chunks(slots))
        .zip(vectors.par_chunks(width))
        .with_min_len(ROWS_A_TASK)
        .for_each(|((out, indices), vector)| simd::dot_rows(level, out, vector, indices, matrix));
}

/// A sparse code turned round: for every latent the rows of the batch where it is active, ascending.
pub struct ByLatent {
    starts: Vec<usize>,
    rows: Vec<u32>,
    weights: Vec<f32>,
}

impl ByLatent {
    /// `indices`, `weights`: `[rows, slots]`; slots of weight 0 are left out.
    pub fn new(indices: &[i32], weights: &[f32], slots: usize, d_sae: usize) -> Self {
        let mut starts = vec![0usize; d_sae + 1];
        for (&i, &w) in indices.iter().zip(weights) {
            starts[i as usize + 1] += usize::from(w != 0.0);
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
        let code = indices.chunks(slots).zip(weights.chunks(slots));
        for (row, (indices, weights)) in code.enumerate() {
            for (&i, &w) in indices.iter().zip(weights).filter(|(_, w)| **w != 0.0) {
                let slot = &mut next[i as usize];
                by_latent.rows[*slot] = row as u32;
                by_latent.weights[*slot] = w;
                *slot += 1;
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
}
