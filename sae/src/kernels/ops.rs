//! What a backend does for sparse codes, and how burn reaches it.
//!
//! Two layers. [`SparseKernels`] is the arithmetic, without a graph: one method a product, portable unless a backend
//! does better. [`SparseOps`] is what burn's dispatch calls: on a plain backend it is that arithmetic, on an autodiff
//! backend it also records how to go back (`autodiff`).

#[cfg(feature = "cuda")]
use burn::backend::Cuda;
#[cfg(feature = "vulkan")]
use burn::backend::Vulkan;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, backend_extension};

use super::adam::AdamStep;
use super::select::Rank;
use super::{Selection, portable};

/// What [`SparseKernels::select`] selects.
#[derive(Clone, Copy, Debug)]
pub struct EncodePlan {
    /// The main code.
    pub main: Selection,
    /// How candidates of the auxiliary code rank.
    pub aux_rank: Rank,
    /// Width of the auxiliary code; 0 for none.
    pub aux_k: usize,
}

/// The arithmetic of sparse codes on a backend, without a graph.
///
/// `indices`, `weights`: `[batch, slots]`; a matrix keeps one latent a row, `[d_sae, d_in]`. Slots of weight 0 add
/// nothing.
pub trait SparseKernels: Backend {
    /// The winners of `pre = x w_enc^T + b_enc`, `[batch, k + aux_k]` each: indices and values.
    ///
    /// `x`: `[batch, d_in]`; `candidates`: latents of the auxiliary code, at least `aux_k`, not read if that is 0.
    fn select(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        portable::select::<Self>(x, w_enc, b_enc, candidates, plan)
    }

    /// `out[r] = sum_j weights[r, j] matrix[indices[r, j]]`: `[batch, d_in]`.
    fn sum_rows(indices: IntTensor<Self>, weights: FloatTensor<Self>, matrix: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::sum_rows::<Self>(indices, weights, matrix)
    }

    /// `out[r, j] = vectors[r] . matrix[indices[r, j]]`: `[batch, slots]`.
    fn dot_rows(indices: IntTensor<Self>, vectors: FloatTensor<Self>, matrix: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::dot_rows::<Self>(indices, vectors, matrix)
    }

    /// `matrix[i] = sum weights[r, j] vectors[r]` over the slots with `indices[r, j] = i`, and the sums of those
    /// weights: `[d_sae, d_in]` and `[d_sae]`.
    fn scatter_rows(
        indices: IntTensor<Self>,
        weights: FloatTensor<Self>,
        vectors: FloatTensor<Self>,
        d_sae: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::scatter_rows::<Self>(indices, weights, vectors, d_sae)
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
    fn sparse_encode(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// [`SparseKernels::sum_rows`], differentiable in `values` and `w_dec`.
    fn sparse_decode(
        indices: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
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

impl<B: SparseKernels> SparseOps for B {
    fn sparse_encode(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, FloatTensor<Self>) {
        Self::select(x, w_enc, b_enc, candidates, plan)
    }

    fn sparse_decode(
        indices: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::sum_rows(indices, values, w_dec)
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
