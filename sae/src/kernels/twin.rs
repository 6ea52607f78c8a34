//! What the kernels compute, one plain loop each, in f64: the reference of the tests.

use super::ops::Budget;
use super::per_latent::per_latent_twin;
use super::ragged::{above_twin, best_of_batch_twin};
use super::select::top_k_twin;
use crate::code::{HostCode, Rows};
use crate::sparsifier::Score;

/// `[d_sae, d_in]` matrices, biases and rows on the host.
pub struct Host {
    pub d_in: usize,
    pub d_sae: usize,
    pub x: Vec<f32>,
    pub w_enc: Vec<f32>,
    pub b_enc: Vec<f32>,
    pub w_dec: Vec<f32>,
}

impl Host {
    pub fn batch(&self) -> usize {
        self.x.len() / self.d_in
    }

    /// `x w_enc^T + b_enc`, `[batch, d_sae]`.
    pub fn pre(&self) -> Vec<f32> {
        let mut pre = Vec::new();
        for x in self.x.chunks(self.d_in) {
            for (w, b) in self.w_enc.chunks(self.d_in).zip(&self.b_enc) {
                let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                pre.push((dot + f64::from(*b)) as f32);
            }
        }
        pre
    }

    /// The main code: each row's winners, best first, or with latents ascending above `bars`.
    pub fn encode(&self, score: Score, budget: Budget, bars: &[f32]) -> HostCode {
        let pre = self.pre();
        let rows: Vec<Vec<(i32, f32)>> = match budget {
            Budget::PerBatch(n) => best_of_batch_twin(&pre, self.d_sae, score, n),
            Budget::PerLatent => per_latent_twin(&pre, score, bars),
            Budget::PerToken(k) => pre
                .chunks(self.d_sae)
                .map(|pre| {
                    let (indices, values) = top_k_twin(pre, score, k);
                    indices.into_iter().zip(values).collect()
                })
                .collect(),
            Budget::Above => pre
                .chunks(self.d_sae)
                .map(|pre| {
                    let above = above_twin(pre, bars, score).into_iter();
                    above.map(|i| (i as i32, pre[i as usize])).collect()
                })
                .collect(),
        };
        let (indices, values) = rows.iter().flatten().copied().unzip();
        HostCode {
            rows: Rows::from_lengths(rows.iter().map(Vec::len)),
            indices,
            values,
        }
    }

    /// The auxiliary code: every row's `k` best among `candidates`.
    pub fn encode_aux(&self, score: Score, k: usize, candidates: &[i32]) -> HostCode {
        let k = k.min(candidates.len());
        let (mut indices, mut values) = (Vec::new(), Vec::new());
        for pre in self.pre().chunks(self.d_sae) {
            let subset: Vec<f32> = candidates.iter().map(|&i| pre[i as usize]).collect();
            let (i, v) = top_k_twin(&subset, score, k);
            indices.extend(i.iter().map(|&i| candidates[i as usize]));
            values.extend(v);
        }
        HostCode::equal(k, indices, values)
    }
}

/// `out[r] = sum_j weights[r, j] matrix[indices[r, j]]`.
pub fn sum_rows(code: &HostCode, matrix: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0f64; code.batch() * width];
    for (n, owner) in code.rows.owners().into_iter().enumerate() {
        let (row, latent) = (owner as usize * width, code.indices[n] as usize * width);
        for c in 0..width {
            out[row + c] += f64::from(code.values[n]) * f64::from(matrix[latent + c]);
        }
    }
    out.iter().map(|&v| v as f32).collect()
}

/// `out[r, j] = vectors[r] . matrix[indices[r, j]]`.
pub fn dot_rows(code: &HostCode, vectors: &[f32], matrix: &[f32], width: usize) -> Vec<f32> {
    let dot = |(owner, &i): (i32, &i32)| {
        let (row, other) = (owner as usize * width, i as usize * width);
        (0..width)
            .map(|c| f64::from(vectors[row + c]) * f64::from(matrix[other + c]))
            .sum::<f64>() as f32
    };
    code.rows.owners().into_iter().zip(&code.indices).map(dot).collect()
}

/// `matrix[i] = sum weights[r, j] vectors[r]` over entries of latent `i`, and the sums of the weights.
pub fn scatter_rows(code: &HostCode, vectors: &[f32], width: usize, d_sae: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut matrix, mut sums) = (vec![0.0f64; d_sae * width], vec![0.0f64; d_sae]);
    for (n, owner) in code.rows.owners().into_iter().enumerate() {
        let (i, w) = (code.indices[n] as usize, f64::from(code.values[n]));
        sums[i] += w;
        for c in 0..width {
            matrix[i * width + c] += w * f64::from(vectors[owner as usize * width + c]);
        }
    }
    let single = |v: Vec<f64>| v.iter().map(|&v| v as f32).collect();
    (single(matrix), single(sums))
}
