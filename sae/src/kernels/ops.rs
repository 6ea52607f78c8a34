//! What a backend does for sparse codes, and how burn reaches it.
//!
//! Two layers. [`SparseKernels`] is the arithmetic, without a graph: one method a product, portable unless a backend
//! does better. [`SparseOps`] is what burn's dispatch calls: on a plain backend it is that arithmetic, on an autodiff
//! backend it also records how to go back (`autodiff`).

use std::sync::Arc;

#[cfg(feature = "cuda")]
use burn::backend::Cuda;
#[cfg(feature = "vulkan")]
use burn::backend::Vulkan;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

use super::adam::AdamStep;
use super::{neighbours, nested, portable};
use crate::code::Rows;
use crate::sparsifier::Score;

/// What [`SparseKernels::select`] selects.
#[derive(Clone, Copy, Debug)]
pub struct EncodePlan {
    /// What the main code's latents compete with.
    pub score: Score,
    /// How many win, and where.
    pub budget: Budget,
    /// How candidates of the auxiliary code rank.
    pub aux_score: Score,
    /// Width of the auxiliary code; 0 for none.
    pub aux_k: usize,
    /// Whether winners are looked for in f32 alone.
    pub exact: bool,
}

/// How many latents win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many of every row.
    PerToken(usize),
    /// So many of the whole batch.
    PerBatch(usize),
    /// So many rows of each latent as the bars say.
    PerLatent,
    /// All above the bars.
    Above,
}

/// What was selected: the main code's entries, and behind them those of the auxiliary code, `aux_k` a row.
pub struct Winners<B: Backend> {
    /// Of the main code; it has at least one entry.
    pub rows: Rows,
    /// `[entries + batch * aux_k]`
    pub indices: IntTensor<B>,
    /// `[entries + batch * aux_k]`
    pub values: FloatTensor<B>,
}

/// A code of a batch: which entries belong to which row, their latents and their weights, `[entries]` each.
pub type Part<B> = (Rows, IntTensor<B>, FloatTensor<B>);

/// The arithmetic of sparse codes on a backend, without a graph.
///
/// `indices`, `weights`: `[entries]`; a matrix keeps one latent a row, `[d_sae, d_in]`. Entries of weight 0 add
/// nothing.
pub trait SparseKernels: Backend {
    /// The winners of `pre = x w_enc^T + b_enc`.
    ///
    /// `x`: `[batch, d_in]`; `bars`: `[d_sae]`, read for [`Budget::Above`] and [`Budget::PerLatent`] alone; `candidates`: latents of the
    /// auxiliary code, at least `aux_k`, not read if that is 0.
    fn select(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        bars: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> Winners<Self> {
        portable::select::<Self>(x, w_enc, b_enc, bars, candidates, plan)
    }

    /// `out[r] = sum_j weights[r, j] matrix[indices[r, j]]`: `[batch, d_in]`.
    fn sum_rows(
        rows: Rows,
        indices: IntTensor<Self>,
        weights: FloatTensor<Self>,
        matrix: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::sum_rows::<Self>(rows, indices, weights, matrix)
    }

    /// `out[r, j] = vectors[r] . matrix[indices[r, j]]`: `[entries]`.
    fn dot_rows(
        rows: Rows,
        indices: IntTensor<Self>,
        vectors: FloatTensor<Self>,
        matrix: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        portable::dot_rows::<Self>(rows, indices, vectors, matrix)
    }

    /// `matrix[i] = sum weights[r, j] vectors[r]` over the entries of all `parts` with `indices[r, j] = i`, and the
    /// sums of those weights: `[d_sae, d_in]` and `[d_sae]`.
    fn scatter_rows(
        parts: Vec<Part<Self>>,
        vectors: FloatTensor<Self>,
        d_sae: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::scatter_rows::<Self>(parts, vectors, d_sae)
    }

    /// See [`nested_errors`](super::nested::nested_errors): the losses of rows, `[batch]`.
    fn nested_forward(
        rows: Rows,
        weights: &[f32],
        indices: IntTensor<Self>,
        levels: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        start: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        nested::portable_forward::<Self>(rows, weights, indices, levels, values, w_dec, start)
    }

    /// The gradients of values, `w_dec` and `start` for `grad`, `[batch]`, that of the losses.
    #[expect(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
    fn nested_backward(
        rows: Rows,
        weights: &[f32],
        indices: IntTensor<Self>,
        levels: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        start: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        nested::portable_backward::<Self>(rows, weights, indices, levels, values, w_dec, start, grad)
    }

    /// See [`nearest`](super::neighbours::nearest); with `exact` nothing is rounded to bf16. `[latents]`
    fn nearest(matrix: FloatTensor<Self>, latents: IntTensor<Self>, absolute: bool, _exact: bool) -> IntTensor<Self> {
        neighbours::portable_nearest::<Self>(matrix, latents, absolute)
    }

    /// See [`cosines`](super::neighbours::cosines): the cosines, `[pairs]`, and the norms of all rows as they count, `[d_sae]`.
    fn cosines(
        matrix: FloatTensor<Self>,
        ours: IntTensor<Self>,
        others: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        neighbours::portable_cosines::<Self>(matrix, ours, others)
    }

    /// The gradient of the matrix for `grad`, `[pairs]`, that of the cosines, from what [`Self::cosines`] gave.
    fn cosines_backward(
        matrix: FloatTensor<Self>,
        ours: IntTensor<Self>,
        others: IntTensor<Self>,
        cosines: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        neighbours::portable_cosines_backward::<Self>(matrix, ours, others, cosines, norms, grad)
    }

    /// One step of Adam: the new parameter and moments. Buffers that nobody else holds are updated in place.
    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::adam::<Self>(param, grad, m, v, step)
    }
}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
impl<R: burn_cubecl::CubeRuntime> SparseKernels for burn_cubecl::CubeBackend<R> {}

/// The differentiable operations.
#[backend_extension(Autodiff, Flex, Cuda: cfg(feature = "cuda"), Vulkan: cfg(feature = "vulkan"))]
pub trait SparseOps: Backend {
    /// [`SparseKernels::select`]; the values are differentiable in `x`, `w_enc` and `b_enc`.
    ///
    /// Where rows start (of ragged rows alone), indices and values.
    fn sparse_encode(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        bars: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, IntTensor<Self>, FloatTensor<Self>);

    /// [`SparseKernels::sum_rows`], differentiable in `values` and `w_dec`.
    fn sparse_decode(
        rows: Rows,
        indices: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// [`SparseKernels::dot_rows`], differentiable in `vectors` and `matrix`.
    fn sparse_dots(
        rows: Rows,
        indices: IntTensor<Self>,
        vectors: FloatTensor<Self>,
        matrix: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// [`SparseKernels::nested_forward`], differentiable in `values`, `w_dec` and `start`.
    fn sparse_nested(
        rows: Rows,
        weights: Arc<[f32]>,
        indices: IntTensor<Self>,
        levels: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        start: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// [`SparseKernels::nearest`], which no graph records.
    fn sparse_nearest(
        matrix: FloatTensor<Self>,
        latents: IntTensor<Self>,
        absolute: bool,
        exact: bool,
    ) -> IntTensor<Self>;

    /// The cosines of [`SparseKernels::cosines`], differentiable in `matrix`.
    fn sparse_cosines(matrix: FloatTensor<Self>, ours: IntTensor<Self>, others: IntTensor<Self>) -> FloatTensor<Self>;
}

/// The optimiser's step, which no graph records.
#[backend_extension(Flex, Cuda: cfg(feature = "cuda"), Vulkan: cfg(feature = "vulkan"))]
pub trait OptimizerOps: Backend {
    /// [`SparseKernels::adam`].
    fn adam_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Where ragged rows start, as burn lets an operation give it: `[batch + 1]`. A lone 0 for equal ones.
pub(super) fn starts<B: Backend>(rows: &Rows, device: &B::Device) -> IntTensor<B> {
    let starts: Vec<i32> = match rows {
        Rows::Equal { .. } => vec![0],
        Rows::Ragged(starts) => starts.iter().map(|&s| s as i32).collect(),
    };
    let shape = [starts.len()];
    B::int_from_data(TensorData::new(starts, shape), device)
}

impl<B: SparseKernels> SparseOps for B {
    fn sparse_encode(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        bars: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let device = x.device();
        let winners = Self::select(x, w_enc, b_enc, bars, candidates, plan);
        let starts = starts::<Self>(&winners.rows, &device);
        (starts, winners.indices, winners.values)
    }

    fn sparse_decode(
        rows: Rows,
        indices: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::sum_rows(rows, indices, values, w_dec)
    }

    fn sparse_dots(
        rows: Rows,
        indices: IntTensor<Self>,
        vectors: FloatTensor<Self>,
        matrix: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::dot_rows(rows, indices, vectors, matrix)
    }

    fn sparse_nested(
        rows: Rows,
        weights: Arc<[f32]>,
        indices: IntTensor<Self>,
        levels: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        start: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::nested_forward(rows, &weights, indices, levels, values, w_dec, start)
    }

    fn sparse_nearest(
        matrix: FloatTensor<Self>,
        latents: IntTensor<Self>,
        absolute: bool,
        exact: bool,
    ) -> IntTensor<Self> {
        Self::nearest(matrix, latents, absolute, exact)
    }

    fn sparse_cosines(matrix: FloatTensor<Self>, ours: IntTensor<Self>, others: IntTensor<Self>) -> FloatTensor<Self> {
        Self::cosines(matrix, ours, others).0
    }
}

impl<B: SparseKernels> OptimizerOps for B {
    fn adam_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        Self::adam(param, grad, m, v, step)
    }
}
