//! Cosines of pairs of rows on the processor, and their way back, which has one owner a row.

use rayon::prelude::*;

use super::super::cpu::ROWS_A_TASK;
use super::super::simd::{self, Level, dot, for_each_level};
use super::LEAST_NORM;

/// Pairs of rows of a matrix.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    /// `[rows, width]`
    pub matrix: &'a [f32],
    /// Width of a row.
    pub width: usize,
    /// One row of each pair. `[pairs]`
    pub ours: &'a [i32],
    /// The other. `[pairs]`
    pub others: &'a [i32],
}

#[inline(always)]
fn product_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    dot::<FMA>(a, b)
}

for_each_level! {
    /// `a . b`
    fn product(a: &[f32], b: &[f32]) -> f32 = product_body
}

impl Pairs<'_> {
    fn row(&self, i: i32) -> &[f32] {
        &self.matrix[i as usize * self.width..][..self.width]
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let pairs = self.ours.iter().zip(self.others);
        pairs.map(|(&a, &b)| (a as usize, b as usize))
    }

    /// The cosines, `[pairs]`, and the norms of all rows, `[rows]`, or [`LEAST_NORM`] where that is more.
    pub fn cosines(&self, level: Level) -> (Vec<f32>, Vec<f32>) {
        let rows = self.matrix.par_chunks(self.width).with_min_len(ROWS_A_TASK);
        let norms: Vec<f32> = rows
            .map(|row| match product(level, row, row).sqrt() {
                norm if norm < LEAST_NORM => LEAST_NORM,
                norm => norm,
            })
            .collect();
        let pairs = self.ours.par_iter().zip(self.others).with_min_len(ROWS_A_TASK);
        let cosines = pairs
            .map(|(&a, &b)| product(level, self.row(a), self.row(b)) / (norms[a as usize] * norms[b as usize]))
            .collect();
        (cosines, norms)
    }

    /// The gradient of the matrix for `grad`, that of the `cosines`: into `out`, `[rows, width]`, overwritten.
    ///
    /// With unit rows `u`, that of a pair's cosine `c` is `(u_b - c u_a) / |d_a|` at row `a`, and the like at row `b`: a sum of
    /// rows, of which those of a row itself are one.
    pub fn backward(&self, level: Level, cosines: &[f32], norms: &[f32], grad: &[f32], out: &mut [f32]) {
        let n = norms.len();
        // For every row those that are added to it, in the order of the pairs, and itself behind them.
        let mut starts: Vec<usize> = (0..=n).collect();
        for (a, b) in self.pairs() {
            starts[a + 1] += 1;
            starts[b + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i] - i;
        }
        let mut next = starts.clone();
        let (mut added, mut weights) = (vec![0u32; starts[n]], vec![0.0; starts[n]]);
        let mut put = |to: usize, row: usize, weight: f32| {
            (added[next[to]], weights[next[to]]) = (row as u32, weight);
            next[to] += 1;
        };
        let mut itself = vec![0.0; n];
        for (((a, b), &c), &g) in self.pairs().zip(cosines).zip(grad) {
            let weight = g / (norms[a] * norms[b]);
            put(a, b, weight);
            put(b, a, weight);
            for i in [a, b] {
                // A norm that counts as the least one has no slope.
                if norms[i] > LEAST_NORM {
                    itself[i] -= g * c / (norms[i] * norms[i]);
                }
            }
        }
        (0..n).for_each(|i| put(i, i, itself[i]));
        out.par_chunks_mut(self.width)
            .enumerate()
            .with_min_len(ROWS_A_TASK)
            .for_each(|(i, out)| {
                let terms = starts[i]..starts[i + 1];
                simd::sum_rows(level, out, &added[terms.clone()], &weights[terms], self.matrix);
            });
    }
}
