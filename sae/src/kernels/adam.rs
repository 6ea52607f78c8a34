//! One step of Adam over a parameter, in one pass.
//!
//! Parameters, gradients and moments of a large dictionary are far bigger than any cache, so the step costs what it
//! costs to read four arrays and write three. Projecting the gradient and renormalising the row in the same pass, while
//! the row is at hand, makes the constraint on the decoder free.

use rayon::prelude::*;

use super::simd::{self, dot, for_each_level, mul_add};

/// The numbers of one step, bias corrections folded in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Learning rate over `1 - beta_1^t`.
    pub rate: f32,
    /// `1 / sqrt(1 - beta_2^t)`.
    pub root_correction: f32,
    /// The gradient is multiplied by this first.
    pub grad_scale: f32,
    /// Whether every row keeps norm 1.
    pub unit_rows: bool,
}

/// Elements a task takes of a parameter without rows. Fixed, but results do not depend on it.
const ELEMENTS_A_TASK: usize = 1 << 14;

/// Updates `param`, `m` and `v` in place.
///
/// All of the same length; `width`: of a row, for [`AdamStep::unit_rows`].
pub fn update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], width: usize, step: AdamStep) {
    let level = simd::level();
    let rows_a_task = (ELEMENTS_A_TASK / width.max(1)).max(1);
    let task = if step.unit_rows {
        rows_a_task * width
    } else {
        ELEMENTS_A_TASK
    };
    param
        .par_chunks_mut(task)
        .zip(grad.par_chunks(task))
        .zip(m.par_chunks_mut(task))
        .zip(v.par_chunks_mut(task))
        .for_each(|(((param, grad), m), v)| {
            if step.unit_rows {
                unit_rows(level, param, grad, m, v, width, step);
            } else {
                free(level, param, grad, m, v, step);
            }
        });
}

/// Adds `-along * param` to the scaled gradient before using it.
#[inline(always)]
fn adam_body<const FMA: bool>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], along: f32, step: AdamStep) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = mul_add::<FMA>(-along, *p, g * step.grad_scale);
        *m = mul_add::<FMA>(step.beta_1, *m, (1.0 - step.beta_1) * g);
        *v = mul_add::<FMA>(step.beta_2, *v, (1.0 - step.beta_2) * g * g);
        *p -= step.rate * *m / mul_add::<FMA>(v.sqrt(), step.root_correction, step.eps);
    }
}

#[inline(always)]
fn free_body<const FMA: bool>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamStep) {
    adam_body::<FMA>(p, g, m, v, 0.0, step);
}

for_each_level! {
    fn free(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamStep) = free_body
}

#[inline(always)]
fn unit_rows_body<const FMA: bool>(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    width: usize,
    step: AdamStep,
) {
    let rows = p.chunks_exact_mut(width).zip(g.chunks_exact(width));
    let moments = m.chunks_exact_mut(width).zip(v.chunks_exact_mut(width));
    for ((p, g), (m, v)) in rows.zip(moments) {
        // The component along the row only changes a length that is restored anyway; left in, it would fill the moments.
        let along = step.grad_scale * dot::<FMA>(g, p);
        adam_body::<FMA>(p, g, m, v, along, step);
        let norm = dot::<FMA>(p, p).sqrt();
        if norm > 0.0 {
            let scale = 1.0 / norm;
            p.iter_mut().for_each(|p| *p *= scale);
        }
    }
}

for_each_level! {
    fn unit_rows(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], width: usize, step: AdamStep) = unit_rows_body
}

/// The sum of the squares of `values`, in f64 and in one order whatever the threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let level = simd::level();
    let parts: Vec<f64> = values
        .par_chunks(ELEMENTS_A_TASK)
        .map(|part| simd::sum_of_squares(level, part))
        .collect();
    parts.iter().sum()
}
