//! What the processor and its memory give: measured before or behind a step, never beside it.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::{ProductBy, ProductRate, median};
use crate::kernels::level;
use crate::kernels::nominate::{BLOCK_ROWS, STRETCH};
use crate::kernels::product::{TILE_ELEMENTS, TILE_ROWS, rows};
use crate::kernels::rough::{Product, RoughMatrix};

/// Bytes of each of the two arrays that are copied: more than any cache in which both would stay.
pub const COPY_BYTES: usize = 128 << 20;
/// Times that each ceiling is measured, behind one to warm up.
const TIMES: usize = 5;

/// Seconds of `work`, the median of some times.
fn seconds(mut work: impl FnMut()) -> f64 {
    work();
    median((0..TIMES).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    }))
}

/// The rate of a copy on all threads, bytes read and bytes written both counted.
pub fn copy_bytes_per_s() -> f64 {
    let from: Vec<u64> = (0..COPY_BYTES as u64 / 8).collect();
    let mut to = vec![1u64; from.len()];
    let part = from.len().div_ceil(rayon::current_num_threads());
    let seconds = seconds(|| {
        let parts = to.par_chunks_mut(part).zip(from.par_chunks(part));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&to);
    });
    2.0 * COPY_BYTES as f64 / seconds
}

/// The rate of the fastest product that this processor has for `[batch, d_in] x [d_in, d_sae]`, on all threads: in integers
/// of eight bits or in bf16 where it has an instruction for that, in f32 elsewhere. Products are written piece by piece over
/// each other, as encoding does, and weights are laid out beforehand.
pub fn product_rate([batch, d_in, d_sae]: [usize; 3]) -> ProductRate {
    let values = |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect() };
    let (x, w) = (values(batch * d_in), values(d_sae * d_in));
    let flops = 2.0 * batch as f64 * d_in as f64 * d_sae as f64;
    let rate = |by, seconds| ProductRate {
        flops_per_s: flops / seconds,
        by,
    };
    let mut best = rate(ProductBy::F32, seconds(|| in_f32(&x, &w, d_in)));
    for (product, by) in [(Product::Bf16, ProductBy::Bf16), (Product::Int8, ProductBy::Int8)] {
        if product.is_native(level(), d_in)
            && let Some(matrix) = RoughMatrix::new(product, &w, d_in, None)
        {
            let found = rate(by, seconds(|| roughly(&x, d_in, &matrix, d_sae)));
            if found.flops_per_s > best.flops_per_s {
                best = found;
            }
        }
    }
    best
}

fn in_f32(x: &[f32], w: &[f32], d_in: usize) {
    let (batch, d_sae) = (x.len() / d_in, w.len() / d_in);
    let tile = (TILE_ELEMENTS / d_sae).max(TILE_ROWS).min(batch);
    let mut pre = vec![0.0; tile * d_sae];
    for x in x.chunks(tile * d_in) {
        rows(x, w, d_in, &mut pre[..x.len() / d_in * d_sae]);
        black_box(&pre);
    }
}

fn roughly(x: &[f32], d_in: usize, matrix: &RoughMatrix, d_sae: usize) {
    let batch = x.len() / d_in;
    let block = batch.div_ceil(2 * rayon::current_num_threads()).clamp(1, BLOCK_ROWS);
    x.par_chunks(block * d_in).for_each_init(
        || vec![0.0; block * STRETCH],
        |pre, x| {
            let n = x.len() / d_in;
            let x = matrix.rows(x, d_in);
            for first in (0..d_sae).step_by(STRETCH) {
                let latents = first..d_sae.min(first + STRETCH);
                let width = latents.len();
                matrix.product_of(&x, latents, &mut pre[..n * width]);
                black_box(&pre);
            }
        },
    );
}
