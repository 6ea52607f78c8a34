//! The sparse products in burn's own operations: what a device runs until it has kernels of its own.
//!
//! Right on every backend, and bounded in memory: rows are taken in tiles, so that a temporary stays under
//! [`TILE_ELEMENTS`].

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape, Slice};

use super::adam::AdamStep;
use super::ops::EncodePlan;
use super::select::Rank;
use crate::sparsifier::Score;

/// Elements of the largest temporary: a quarter of a gigabyte, or little in tests, so that small batches have tiles.
const TILE_ELEMENTS: usize = if cfg!(test) { 1 << 9 } else { 1 << 26 };

fn dims<const D: usize>(tensor: &impl TensorMetadata) -> [usize; D] {
    tensor.shape().dims()
}

fn rows(start: usize, end: usize) -> [Slice; 1] {
    [Slice::from(start..end)]
}

/// The starts and ends of tiles of rows, each row costing `row_elements`.
fn tiles(n_rows: usize, row_elements: usize) -> impl Iterator<Item = (usize, usize)> {
    let tile = (TILE_ELEMENTS / row_elements.max(1)).clamp(1, n_rows.max(1));
    (0..n_rows.max(1))
        .step_by(tile)
        .map(move |start| (start, (start + tile).min(n_rows)))
}

fn cat_float<B: Backend>(mut parts: Vec<FloatTensor<B>>, dim: usize) -> FloatTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, dim),
    }
}

fn cat_int<B: Backend>(mut parts: Vec<IntTensor<B>>, dim: usize) -> IntTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::int_cat(parts, dim),
    }
}

/// See [`SparseKernels::select`](super::ops::SparseKernels::select).
pub fn select<B: Backend>(
    x: FloatTensor<B>,
    w_enc: FloatTensor<B>,
    b_enc: FloatTensor<B>,
    candidates: IntTensor<B>,
    plan: EncodePlan,
) -> (IntTensor<B>, FloatTensor<B>) {
    let [batch, _] = dims(&x);
    let [d_sae] = dims(&b_enc);
    let w_enc = B::float_transpose(w_enc);
    let b_enc = B::float_reshape(b_enc, Shape::from([1, d_sae]));
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for (start, end) in tiles(batch, d_sae) {
        let x = B::float_slice(x.clone(), &rows(start, end));
        let pre = B::float_add(B::float_matmul(x, w_enc.clone()), b_enc.clone());
        let (mut tile_indices, mut tile_values) = winners::<B>(pre.clone(), Rank::Score(plan.main.score), plan.main.k);
        if plan.aux_k > 0 {
            let pre = B::float_select(pre, 1, candidates.clone());
            let (aux_indices, aux_values) = winners::<B>(pre, plan.aux_rank, plan.aux_k);
            let flat = B::int_reshape(aux_indices, Shape::from([(end - start) * plan.aux_k]));
            let aux_indices = B::int_reshape(
                B::int_select(candidates.clone(), 0, flat),
                Shape::from([end - start, plan.aux_k]),
            );
            tile_indices = B::int_cat(vec![tile_indices, aux_indices], 1);
            tile_values = B::float_cat(vec![tile_values, aux_values], 1);
        }
        indices.push(tile_indices);
        values.push(tile_values);
    }
    (cat_int::<B>(indices, 0), cat_float::<B>(values, 0))
}

/// Scores are kept within this, so that one that was taken, lowered by [`f32::MIN`], is below every other.
const SCORE_LIMIT: f32 = 1e38;

/// The `k` best of every row of `pre`, and their values.
///
/// `k` times the best of those left: on a GPU that is `k` fast passes whatever `k` is, while burn's own selection of `k`
/// compiles to `k * k` instructions there, and its sorting happens on the host.
fn winners<B: Backend>(pre: FloatTensor<B>, rank: Rank, k: usize) -> (IntTensor<B>, FloatTensor<B>) {
    let [n_rows, _] = dims(&pre);
    let device = pre.device();
    let settings = get_device_settings::<B>(&device);
    let nan = B::float_is_nan(pre.clone(), settings.bool_dtype);
    let pre = B::float_mask_fill(pre, nan.clone(), 0f32.into());
    let (scores, pre) = match rank {
        Rank::Score(Score::Positive) => {
            let positive = B::float_clamp_min(pre, 0f32.into());
            (positive.clone(), positive)
        }
        Rank::Score(Score::Magnitude) => (B::float_abs(pre.clone()), pre),
        Rank::Value => (B::float_mask_fill(pre.clone(), nan, (-SCORE_LIMIT).into()), pre),
    };
    let mut scores = B::float_clamp(scores, (-SCORE_LIMIT).into(), SCORE_LIMIT.into());
    let lowered = B::float_full(Shape::from([n_rows, 1]), f32::MIN.into(), &device, FloatDType::F32);
    let mut indices = Vec::with_capacity(k);
    for _ in 0..k {
        let best = B::float_argmax(scores.clone(), 1, settings.int_dtype);
        scores = B::float_scatter_add(1, scores, best.clone(), lowered.clone());
        indices.push(best);
    }
    let indices = cat_int::<B>(indices, 1);
    let values = B::float_gather(1, pre, indices.clone());
    (indices, values)
}

/// Rows `indices` of `matrix` for the rows `start..end` of a code: `[end - start, slots, width]`.
fn gather_rows<B: Backend>(
    indices: &IntTensor<B>,
    matrix: &FloatTensor<B>,
    (start, end): (usize, usize),
) -> FloatTensor<B> {
    let [_, slots] = dims(indices);
    let [_, width] = dims(matrix);
    let tile = B::int_slice(indices.clone(), &rows(start, end));
    let flat = B::int_reshape(tile, Shape::from([(end - start) * slots]));
    let picked = B::float_select(matrix.clone(), 0, flat);
    B::float_reshape(picked, Shape::from([end - start, slots, width]))
}

/// See [`SparseKernels::sum_rows`](super::ops::SparseKernels::sum_rows).
pub fn sum_rows<B: Backend>(indices: IntTensor<B>, weights: FloatTensor<B>, matrix: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, slots] = dims(&indices);
    let [_, width] = dims(&matrix);
    let parts = tiles(batch, slots * width).map(|(start, end)| {
        let picked = gather_rows::<B>(&indices, &matrix, (start, end));
        let weights = B::float_slice(weights.clone(), &rows(start, end));
        let weights = B::float_reshape(weights, Shape::from([end - start, slots, 1]));
        let sum = B::float_sum_dim(B::float_mul(picked, weights), 1);
        B::float_reshape(sum, Shape::from([end - start, width]))
    });
    cat_float::<B>(parts.collect(), 0)
}

/// See [`SparseKernels::dot_rows`](super::ops::SparseKernels::dot_rows).
pub fn dot_rows<B: Backend>(indices: IntTensor<B>, vectors: FloatTensor<B>, matrix: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, slots] = dims(&indices);
    let [_, width] = dims(&matrix);
    let parts = tiles(batch, slots * width).map(|(start, end)| {
        let picked = gather_rows::<B>(&indices, &matrix, (start, end));
        let vectors = B::float_slice(vectors.clone(), &rows(start, end));
        let vectors = B::float_reshape(vectors, Shape::from([end - start, 1, width]));
        let dots = B::float_sum_dim(B::float_mul(picked, vectors), 2);
        B::float_reshape(dots, Shape::from([end - start, slots]))
    });
    cat_float::<B>(parts.collect(), 0)
}

/// See [`SparseKernels::scatter_rows`](super::ops::SparseKernels::scatter_rows).
///
/// A dense product of the code written out in tiles: scattering rows one by one would be serial on a GPU.
pub fn scatter_rows<B: Backend>(
    indices: IntTensor<B>,
    weights: FloatTensor<B>,
    vectors: FloatTensor<B>,
    d_sae: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [batch, width] = dims(&vectors);
    let device = vectors.device();
    let mut matrix = B::float_zeros(Shape::from([d_sae, width]), &device, FloatDType::F32);
    let mut sums = B::float_zeros(Shape::from([1, d_sae]), &device, FloatDType::F32);
    for (start, end) in tiles(batch, d_sae) {
        let code = B::float_scatter_add(
            1,
            B::float_zeros(Shape::from([end - start, d_sae]), &device, FloatDType::F32),
            B::int_slice(indices.clone(), &rows(start, end)),
            B::float_slice(weights.clone(), &rows(start, end)),
        );
        let vectors = B::float_slice(vectors.clone(), &rows(start, end));
        matrix = B::float_add(matrix, B::float_matmul(B::float_transpose(code.clone()), vectors));
        sums = B::float_add(sums, B::float_sum_dim(code, 0));
    }
    (matrix, B::float_reshape(sums, Shape::from([d_sae])))
}

/// See [`SparseKernels::adam`](super::ops::SparseKernels::adam).
pub fn adam<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    m: FloatTensor<B>,
    v: FloatTensor<B>,
    step: AdamStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let mut grad = B::float_mul_scalar(grad, step.grad_scale.into());
    if step.unit_rows {
        let along = B::float_sum_dim(B::float_mul(grad.clone(), param.clone()), 1);
        grad = B::float_sub(grad, B::float_mul(param.clone(), along));
    }
    let m = B::float_add(
        B::float_mul_scalar(m, step.beta_1.into()),
        B::float_mul_scalar(grad.clone(), (1.0 - step.beta_1).into()),
    );
    let v = B::float_add(
        B::float_mul_scalar(v, step.beta_2.into()),
        B::float_mul_scalar(B::float_mul(grad.clone(), grad), (1.0 - step.beta_2).into()),
    );
    let root = B::float_mul_scalar(B::float_sqrt(v.clone()), step.root_correction.into());
    let change = B::float_div(
        B::float_mul_scalar(m.clone(), step.rate.into()),
        B::float_add_scalar(root, step.eps.into()),
    );
    let mut param = B::float_sub(param, change);
    if step.unit_rows {
        let norm = B::float_sqrt(B::float_sum_dim(B::float_mul(param.clone(), param.clone()), 1));
        // A row of zeros stays one.
        let zero = B::float_lower_equal_elem(
            norm.clone(),
            0f32.into(),
            get_device_settings::<B>(&param.device()).bool_dtype,
        );
        param = B::float_div(param, B::float_mask_fill(norm, zero, 1f32.into()));
    }
    (param, m, v)
}
