//! The arithmetic of sparse codes: one dense product, and everything after it in proportion to the active latents.
//!
//! `[batch, d_sae]` is what a sparse autoencoder would spend its memory and half its time on, and nothing of it is
//! needed but the winners. So the encoder selects while the product is still in the cache, hands on a padded code, and
//! every later step, forward and backward, reads only the rows of the weights that fired: `batch * k * d_in`.
//!
//! [`encode`] and [`decode`] are operations of burn with their own way back, so that objectives compose over code
//! values and reconstructions as over any tensor. Each is portable (`portable`), with kernels of its own on the CPU
//! (`cpu`), which are tested against plain twins.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sae::Score;
//! use sae::kernels::{Selection, decode, encode};
//!
//! let device = Device::flex();
//! let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device);
//! let w_enc = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], &device);
//! let b_enc = Tensor::<1>::zeros([3], &device);
//! let main = Selection { score: Score::Positive, k: 1 };
//! let code = encode(x, w_enc.clone(), b_enc, main, None).main();
//! let recon = decode(code.indices, code.values, w_enc);
//! assert_eq!(recon.into_data().to_vec::<f32>().unwrap(), [0.0, 2.0]);
//! ```

mod adam;
mod allocator;
mod autodiff;
mod buffers;
mod cpu;
mod flex;
pub(crate) mod ops;
mod portable;
pub mod product;
pub mod select;
mod simd;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod twin;

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

pub use allocator::keep_freed_memory;

pub(crate) use adam::{AdamStep, sum_of_squares};
use ops::{EncodePlan, SparseOps};
use select::Rank;
pub use simd::{Level, level};

use crate::code::SparseCode;
use crate::sparsifier::Score;

/// Which latents a code keeps: the `k` best of every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What they compete with.
    pub score: Score,
    /// How many win, at least 1 and at most `d_sae`.
    pub k: usize,
}

/// A second code from the same pre-activations, over some latents only: the dead ones, for the auxiliary loss
/// (arXiv 2406.04093, appendix A.2).
///
/// Under [`Score::Positive`] the `k` largest pre-activations win **and keep their value below zero**; under
/// [`Score::Magnitude`] the `k` largest in absolute value, with their sign. Cut at zero, a dead latent, whose
/// pre-activations are nearly all negative, would get no gradient and stay dead.
#[derive(Clone, Debug)]
pub struct AuxSelection {
    /// What the candidates compete with.
    pub score: Score,
    /// How many win; fewer if there are fewer candidates.
    pub k: usize,
    /// The latents that take part, ascending, each below `d_sae`. `[n]`.
    pub candidates: Tensor<1, Int>,
}

/// The codes that [`encode`] selected, in one tensor because burn lets an operation have one float output.
#[derive(Clone, Debug)]
pub struct Selected {
    /// `[batch, k + k_aux]`, the main code's slots first, each code best first.
    pub indices: Tensor<2, Int>,
    /// `[batch, k + k_aux]`.
    pub values: Tensor<2>,
    /// Slots of the main code.
    pub k: usize,
}

impl Selected {
    /// The main code, `[batch, k]`.
    pub fn main(&self) -> SparseCode {
        self.part(0, self.k)
    }

    /// The auxiliary code, `[batch, k_aux]`, if there is one.
    pub fn aux(&self) -> Option<SparseCode> {
        let [_, slots] = self.values.dims();
        (slots > self.k).then(|| self.part(self.k, slots))
    }

    fn part(&self, start: usize, end: usize) -> SparseCode {
        let [_, slots] = self.values.dims();
        if end - start == slots {
            return SparseCode {
                indices: self.indices.clone(),
                values: self.values.clone(),
            };
        }
        SparseCode {
            indices: self.indices.clone().narrow(1, start, end - start),
            values: self.values.clone().narrow(1, start, end - start),
        }
    }
}

/// Selects from `pre = x w_enc^T + b_enc`, the only dense product of a training step.
///
/// `x`: `[batch, d_in]`, `b_dec` already subtracted; `w_enc`: `[d_sae, d_in]`; `b_enc`: `[d_sae]`. Equal scores go to
/// the lower index on the CPU. A NaN pre-activation never beats a number.
///
/// The values are differentiable in all three float inputs; the way back costs `batch * slots * d_in`. Inputs that
/// are not on the autodiff device are lifted onto it if another is, without being tracked.
///
/// # Panics
/// If shapes or `k` do not fit: they come from a configuration that was validated.
pub fn encode(
    x: Tensor<2>,
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    main: Selection,
    aux: Option<AuxSelection>,
) -> Selected {
    let ([_, d_in], [d_sae, w_in], [b_len]) = (x.dims(), w_enc.dims(), b_enc.dims());
    assert!(
        d_in == w_in && d_sae == b_len,
        "x has d_in {d_in}, w_enc is [{d_sae}, {w_in}], b_enc [{b_len}]"
    );
    assert!(0 < main.k && main.k <= d_sae, "top-{} of {d_sae} latents", main.k);
    let mut plan = EncodePlan {
        main,
        aux_rank: Rank::Value,
        aux_k: 0,
    };
    let mut candidates = None;
    if let Some(aux) = aux {
        plan.aux_rank = match aux.score {
            Score::Positive => Rank::Value,
            Score::Magnitude => Rank::Score(Score::Magnitude),
        };
        plan.aux_k = aux.k.min(aux.candidates.dims()[0]);
        candidates = Some(aux.candidates);
    }
    let autodiff = [x.device(), w_enc.device(), b_enc.device()]
        .iter()
        .any(|d| d.is_autodiff());
    // The operation always takes candidates; these are not read.
    let candidates = candidates
        .filter(|_| plan.aux_k > 0)
        .unwrap_or_else(|| Tensor::zeros([1], &w_enc.device()));
    let (indices, values) = Dispatch::sparse_encode(
        lift(x, autodiff).into_dispatch(),
        lift(w_enc, autodiff).into_dispatch(),
        lift(b_enc, autodiff).into_dispatch(),
        candidates.into_dispatch(),
        plan,
    );
    Selected {
        indices: Tensor::from_dispatch(indices),
        values: Tensor::from_dispatch(values),
        k: main.k,
    }
}

/// `recon[r] = sum_j values[r, j] w_dec[indices[r, j]]`, without a bias: `[batch, d_in]`.
///
/// `indices`, `values`: `[batch, slots]`; `w_dec`: `[d_sae, d_in]`. A latent may appear twice in a row; it counts
/// twice. Differentiable in `values` and `w_dec`, lifting as [`encode`] does.
///
/// # Panics
/// If the shapes of `indices` and `values` differ, or an index is not below `d_sae`.
pub fn decode(indices: Tensor<2, Int>, values: Tensor<2>, w_dec: Tensor<2>) -> Tensor<2> {
    assert_eq!(indices.dims(), values.dims(), "a value for every index");
    let autodiff = values.device().is_autodiff() || w_dec.device().is_autodiff();
    Tensor::from_dispatch(Dispatch::sparse_decode(
        indices.into_dispatch(),
        lift(values, autodiff).into_dispatch(),
        lift(w_dec, autodiff).into_dispatch(),
    ))
}

/// Puts `tensor` on the autodiff device, untracked, if `autodiff` and it is not there.
fn lift<const D: usize>(tensor: Tensor<D>, autodiff: bool) -> Tensor<D> {
    if autodiff && !tensor.device().is_autodiff() {
        Tensor::from_inner(tensor)
    } else {
        tensor
    }
}
