//! Reconstruction by every prefix of a code at once, without storing any.
//!
//! A loss over nested prefixes (the `t` best latents of a token for every `t`, arXiv 2505.24473; the latents below each
//! of a few widths, arXiv 2503.17547) sums `w_t |e_t|^2` over levels `t`, where `e_t` is the error with the entries of
//! levels up to `t` decoded. Written down as operations that is a reconstruction a level, `[batch, levels, d_in]`.
//!
//! But `e_t` differs from `e_(t-1)` by the entries of level `t` alone, so one running error does for the way there, and
//! on the way back the gradient of an entry of level `t` is a suffix sum, `S_t = 2 sum_(s >= t) w_s e_s`: its value's
//! is `d . S_t`, its decoder row's `v S_t`, and the start's `S_0`. Time is `(entries + levels) * d_in`, memory
//! `batch * d_in`. For the decoder's gradient the suffix sums of a tile of rows are written down and scattered by
//! latent, tile after tile, so that every gradient row is added to by one owner in the order of the batch.

mod cpu;
mod portable;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

pub(super) use self::cpu::{Nested, backward, forward};
pub(super) use self::portable::{backward as portable_backward, forward as portable_forward};
use super::lift;
use super::ops::SparseOps;
use crate::code::SparseCode;

/// For each row, `sum_t weights[t] |e_t|^2` summed over `d_in`: `[batch]`. `e_t` is `start` plus the decoded entries of
/// levels up to `t`.
///
/// `levels`: of every entry, `[entries]`, from 0 and below the number of `weights`; `start`: `[batch, d_in]`, such as
/// `b_dec - x`; `w_dec`: `[d_sae, d_in]`. Differentiable in the values, `w_dec` and `start`; lifting as
/// [`encode`](super::encode) does.
///
/// # Panics
/// If shapes do not fit, a level is not below the number of weights, or an index not below `d_sae`.
pub fn nested_errors(
    code: &SparseCode,
    levels: Tensor<1, Int>,
    weights: Arc<[f32]>,
    w_dec: Tensor<2>,
    start: Tensor<2>,
) -> Tensor<1> {
    let entries = [code.rows.len()];
    assert!(
        code.indices.dims() == entries && code.values.dims() == entries && levels.dims() == entries,
        "an index, a value and a level for every entry"
    );
    assert_eq!(start.dims(), [code.batch(), w_dec.dims()[1]], "a start for every row");
    let autodiff = [code.values.device(), w_dec.device(), start.device()]
        .iter()
        .any(|d| d.is_autodiff());
    Tensor::from_dispatch(Dispatch::sparse_nested(
        code.rows.clone(),
        weights,
        code.indices.clone().into_dispatch(),
        levels.into_dispatch(),
        lift(code.values.clone(), autodiff).into_dispatch(),
        lift(w_dec, autodiff).into_dispatch(),
        lift(start, autodiff).into_dispatch(),
    ))
}
