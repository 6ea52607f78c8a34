//! The arithmetic of sparse codes: one dense product, and everything after it in proportion to the active latents.
//!
//! `[batch, d_sae]` is what a sparse autoencoder would spend its memory and half its time on, and nothing of it is
//! needed but the winners. So the encoder selects while the product is still in the cache, hands on a list of entries,
//! and every later step, forward and backward, reads only the rows of the weights that fired: `active * d_in`.
//!
//! [`encode`], [`decode`] and [`dots`] are operations of burn with their own way back, so that objectives compose over code
//! values and reconstructions as over any tensor. Each is portable (`portable`), with kernels of its own on the CPU
//! (`cpu`), which are tested against plain twins.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sae::Score;
//! use sae::kernels::{Search, Selection, decode, encode};
//!
//! let device = Device::flex();
//! let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device);
//! let w_enc = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], &device);
//! let b_enc = Tensor::<1>::zeros([3], &device);
//! let main = Selection::PerToken { score: Score::Positive, k: 1 };
//! let code = encode(x, w_enc.clone(), b_enc, main, None, Search::Auto).main;
//! let recon = decode(&code, w_enc);
//! assert_eq!(recon.into_data().to_vec::<f32>().unwrap(), [0.0, 2.0]);
//! ```

mod adam;
mod allocator;
mod autodiff;
mod buffers;
mod cpu;
mod flex;
mod neighbours;
mod nested;
pub(crate) mod nominate;
pub(crate) mod ops;
mod per_latent;
mod portable;
pub mod product;
mod ragged;
pub(crate) mod rough;
pub mod select;
mod simd;
#[cfg(test)]
pub(crate) mod tests;
mod tiles;
#[cfg(test)]
mod twin;

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

pub use allocator::keep_freed_memory;

pub(crate) use adam::{AdamStep, sum_of_squares};
pub use neighbours::{cosines, nearest};
pub use nested::nested_errors;
use ops::{Budget, EncodePlan, SparseOps};
pub(crate) use ragged::{Candidate, Pool};
pub use simd::{Level, level};

use crate::code::{Rows, SparseCode, to_host};
use crate::sparsifier::Score;

/// Which latents a code keeps.
#[derive(Clone, Debug)]
pub enum Selection {
    /// The `k` best of every row, best first.
    PerToken {
        /// What they compete with.
        score: Score,
        /// How many win, at least 1 and at most `d_sae`.
        k: usize,
    },
    /// The `k * batch` best of the batch, fewer if fewer score at all; each row's best first.
    PerBatch {
        /// What they compete with.
        score: Score,
        /// How many win for each row of the batch, at least 1 and at most `d_sae`.
        k: usize,
    },
    /// The `budgets[i]` best rows of every latent `i`, fewer if fewer score at all; each row's best first.
    PerLatent {
        /// What they compete with.
        score: Score,
        /// Whole numbers. `[d_sae]`
        budgets: Tensor<1>,
    },
    /// All with a score above their latent's bar, latents ascending. Their values are the **pre-activations**: under a
    /// bar below zero, [`Score::Positive`] lets latents below zero pass, which is what a threshold learns from.
    Above {
        /// What is compared.
        score: Score,
        /// `[d_sae]`; not differentiable.
        bars: Tensor<1>,
    },
}

/// A second code from the same pre-activations, over some latents only: the dead ones, for the auxiliary loss
/// (arXiv 2406.04093, appendix A.2).
///
/// Under [`Score::Positive`] (and [`Score::Value`]) the `k` largest pre-activations win **and keep their value below
/// zero**; under [`Score::Magnitude`] the `k` largest in absolute value, with their sign. Cut at zero, a dead latent,
/// whose pre-activations are nearly all negative, would get no gradient and stay dead.
#[derive(Clone, Debug)]
pub struct AuxSelection {
    /// What the candidates compete with.
    pub score: Score,
    /// How many win; fewer if there are fewer candidates.
    pub k: usize,
    /// The latents that take part, ascending, each below `d_sae`. `[n]`.
    pub candidates: Tensor<1, Int>,
}

/// How winners are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// Nominated by a product in bf16 and decided in f32, where the processor has the instruction and codes are sparse;
    /// otherwise as `Exact`. Values are f32 either way, and so are the winners but for ties within rounding and one
    /// in a billion.
    #[default]
    Auto,
    /// In f32 alone.
    Exact,
}

/// The codes that [`encode`] selected.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The main code.
    pub main: SparseCode,
    /// The auxiliary code, `k_aux` entries a row, best first; none if none was asked for.
    pub aux: Option<SparseCode>,
}

/// Selects from `pre = x w_enc^T + b_enc`, the only dense product of a training step.
///
/// `x`: `[batch, d_in]`, `b_dec` already subtracted; `w_enc`: `[d_sae, d_in]`; `b_enc`: `[d_sae]`. Equal scores go to
/// the earlier row, then the lower index on the CPU. A NaN pre-activation never beats a number.
///
/// The values are differentiable in all three float inputs; the way back costs `entries * d_in`. Inputs that are not
/// on the autodiff device are lifted onto it if another is, without being tracked. A selection whose size depends on
/// the data waits for the device, and on a device without kernels of its own it is the host that selects.
///
/// # Panics
/// If shapes or `k` do not fit: they come from a configuration that was validated. If the device fails while it is
/// read.
pub fn encode(
    x: Tensor<2>,
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    main: Selection,
    aux: Option<AuxSelection>,
    search: Search,
) -> Selected {
    let ([batch, d_in], [d_sae, w_in], [b_len]) = (x.dims(), w_enc.dims(), b_enc.dims());
    assert!(
        d_in == w_in && d_sae == b_len,
        "x has d_in {d_in}, w_enc is [{d_sae}, {w_in}], b_enc [{b_len}]"
    );
    let fits = |k: usize| assert!(0 < k && k <= d_sae, "top-{k} of {d_sae} latents");
    let (score, budget, bars) = match main {
        Selection::PerToken { score, k } => {
            fits(k);
            (score, Budget::PerToken(k), None)
        }
        Selection::PerBatch { score, k } => {
            fits(k);
            (score, Budget::PerBatch(k * batch), None)
        }
        Selection::PerLatent { score, budgets } => {
            assert_eq!(budgets.dims(), [d_sae], "a budget for every latent");
            (score, Budget::PerLatent, Some(budgets))
        }
        Selection::Above { score, bars } => {
            assert_eq!(bars.dims(), [d_sae], "a bar for every latent");
            (score, Budget::Above, Some(bars))
        }
    };
    let mut plan = EncodePlan {
        score,
        budget,
        aux_score: Score::Value,
        aux_k: 0,
        exact: search == Search::Exact,
    };
    let mut candidates = None;
    if let Some(aux) = aux {
        plan.aux_score = match aux.score {
            Score::Positive | Score::Value => Score::Value,
            Score::Magnitude => Score::Magnitude,
        };
        plan.aux_k = aux.k.min(aux.candidates.dims()[0]);
        candidates = Some(aux.candidates);
    }
    let device = w_enc.device();
    let autodiff = [x.device(), w_enc.device(), b_enc.device()]
        .iter()
        .any(|d| d.is_autodiff());
    // The operation always takes bars and candidates; these are not read.
    let bars = bars.unwrap_or_else(|| Tensor::zeros([1], &device));
    let candidates = candidates
        .filter(|_| plan.aux_k > 0)
        .unwrap_or_else(|| Tensor::zeros([1], &device));
    let (starts, indices, values) = Dispatch::sparse_encode(
        lift(x, autodiff).into_dispatch(),
        lift(w_enc, autodiff).into_dispatch(),
        lift(b_enc, autodiff).into_dispatch(),
        lift(bars.no_grad(), autodiff).into_dispatch(),
        candidates.into_dispatch(),
        plan,
    );
    let rows = match plan.budget {
        Budget::PerToken(slots) => Rows::Equal { batch, slots },
        Budget::PerBatch(_) | Budget::PerLatent | Budget::Above => {
            let starts = to_host::<i32>(Tensor::<1, Int>::from_dispatch(starts).try_into_data());
            let starts = starts.expect("a device that works can be read").into_iter();
            Rows::Ragged(starts.map(|s| s as u32).collect())
        }
    };
    split(
        rows,
        Tensor::from_dispatch(indices),
        Tensor::from_dispatch(values),
        plan.aux_k,
    )
}

/// Both codes from the entries of the main one and those of the auxiliary one behind them.
fn split(rows: Rows, indices: Tensor<1, Int>, values: Tensor<1>, aux_k: usize) -> Selected {
    if aux_k == 0 {
        let main = SparseCode { rows, indices, values };
        return Selected { main, aux: None };
    }
    let (entries, aux_rows) = (
        rows.len(),
        Rows::Equal {
            batch: rows.batch(),
            slots: aux_k,
        },
    );
    let part = |rows: Rows, start: usize| SparseCode {
        indices: indices.clone().narrow(0, start, rows.len()),
        values: values.clone().narrow(0, start, rows.len()),
        rows,
    };
    Selected {
        main: part(rows, 0),
        aux: Some(part(aux_rows, entries)),
    }
}

/// `recon[r] = sum_j values[r, j] w_dec[indices[r, j]]`, without a bias: `[batch, d_in]`.
///
/// `w_dec`: `[d_sae, d_in]`. A latent may appear twice in a row; it counts twice. Differentiable in the values and
/// `w_dec`, lifting as [`encode`] does.
///
/// # Panics
/// If the code has not an index and a value for every entry, or an index is not below `d_sae`.
pub fn decode(code: &SparseCode, w_dec: Tensor<2>) -> Tensor<2> {
    let entries = [code.rows.len()];
    assert!(
        code.indices.dims() == entries && code.values.dims() == entries,
        "an index and a value for every entry"
    );
    let autodiff = code.values.device().is_autodiff() || w_dec.device().is_autodiff();
    Tensor::from_dispatch(Dispatch::sparse_decode(
        code.rows.clone(),
        code.indices.clone().into_dispatch(),
        lift(code.values.clone(), autodiff).into_dispatch(),
        lift(w_dec, autodiff).into_dispatch(),
    ))
}

/// `out[r, j] = vectors[r] . matrix[indices[r, j]]`, of the entries of a code: `[entries]`.
///
/// `vectors`: `[batch, d_in]`; `matrix`: `[d_sae, d_in]`. Differentiable in both, lifting as [`encode`] does.
///
/// # Panics
/// If there is not an index for every entry, or one is not below `d_sae`.
pub fn dots(rows: &Rows, indices: Tensor<1, Int>, vectors: Tensor<2>, matrix: Tensor<2>) -> Tensor<1> {
    assert!(
        indices.dims() == [rows.len()] && vectors.dims()[0] == rows.batch(),
        "an index for every entry, and a vector for every row"
    );
    let autodiff = vectors.device().is_autodiff() || matrix.device().is_autodiff();
    Tensor::from_dispatch(Dispatch::sparse_dots(
        rows.clone(),
        indices.into_dispatch(),
        lift(vectors, autodiff).into_dispatch(),
        lift(matrix, autodiff).into_dispatch(),
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
