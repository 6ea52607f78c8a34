//! What the kernels compute, one plain loop each, in f64: the reference of the tests.

use super::Selection;
use super::select::{Rank, top_k_twin};

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

    /// The main winners of every row, then those of `candidates` by `aux_rank`.
    pub fn encode(&self, main: Selection, aux: Option<(Rank, usize, &[i32])>) -> (Vec<i32>, Vec<f32>) {
        let (mut indices, mut values) = (Vec::new(), Vec::new());
        for pre in self.pre().chunks(self.d_sae) {
            let (i, v) = top_k_twin(pre, Rank::Score(main.score), main.k);
            indices.extend(i);
            values.extend(v);
            if let Some((rank, k, candidates)) = aux {
                let subset: Vec<f32> = candidates.iter().map(|&i| pre[i as usize]).collect();
                let (i, v) = top_k_twin(&subset, rank, k.min(candidates.len()));
                indices.extend(i.iter().map(|&i| candidates[i as usize]));
                values.extend(v);
            }
        }
        (indices, values)
    }
}

/// `out[r] = sum_j weights[r, j] matrix[indices[r, j]]`.
pub fn sum_rows(indices: &[i32], weights: &[f32], slots: usize, matrix: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0f64; indices.len() / slots * width];
    for (n, (&i, &w)) in indices.iter().zip(weights).enumerate() {
        for c in 0..width {
            out[n / slots * width + c] += f64::from(w) * f64::from(matrix[i as usize * width + c]);
        }
    }
    out.iter().map(|&v| v as f32).collect()
}

/// `out[r, j] = vectors[r] . matrix[indices[r, j]]`.
pub fn dot_rows(indices: &[i32], slots: usize, vectors: &[f32], matrix: &[f32], width: usize) -> Vec<f32> {
    let dot = |(n, &i): (usize, &i32)| {
        let (row, other) = (n / slots * width, i as usize * width);
        (0..width)
            .map(|c| f64::from(vectors[row + c]) * f64::from(matrix[other + c]))
            .sum::<f64>() as f32
    };
    indices.iter().enumerate().map(dot).collect()
}

/// `matrix[i] = sum weights[r, j] vectors[r]` over slots of latent `i`, and the sums of the weights.
pub fn scatter_rows(
    indices: &[i32],
    weights: &[f32],
    slots: usize,
    vectors: &[f32],
    width: usize,
    d_sae: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut matrix, mut sums) = (vec![0.0f64; d_sae * width], vec![0.0f64; d_sae]);
    for (n, (&i, &w)) in indices.iter().zip(weights).enumerate() {
        sums[i as usize] += f64::from(w);
        for c in 0..width {
            matrix[i as usize * width + c] += f64::from(w) * f64::from(vectors[n / slots * width + c]);
        }
    }
    let single = |v: Vec<f64>| v.iter().map(|&v| v as f32).collect();
    (single(matrix), single(sums))
}
