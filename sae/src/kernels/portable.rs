//! The sparse products in burn's own operations: what a device runs until it has kernels of its own.
//!
//! Right on every backend, and bounded in memory: rows are taken in tiles, so that a temporary stays under
//! [`TILE_ELEMENTS`].

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape, Slice, TensorData, read_sync};

use super::adam::AdamStep;
use super::cpu::Selector;
use super::ops::{Budget, EncodePlan, Part, Winners};
use super::tiles::select_in_tiles;
use crate::code::{HostCode, Rows};
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
    bars: FloatTensor<B>,
    candidates: IntTensor<B>,
    plan: EncodePlan,
) -> Winners<B> {
    let [batch, _] = dims(&x);
    let [d_sae] = dims(&b_enc);
    let w_enc = B::float_transpose(w_enc);
    let b_enc = B::float_reshape(b_enc, Shape::from([1, d_sae]));
    let pre = |(start, end): (usize, usize)| {
        let x = B::float_slice(x.clone(), &rows(start, end));
        B::float_add(B::float_matmul(x, w_enc.clone()), b_enc.clone())
    };
    match plan.budget {
        Budget::PerToken(k) => per_token::<B>(batch, d_sae, k, candidates, plan, pre),
        Budget::PerBatch(_) | Budget::PerLatent | Budget::Above => {
            on_host::<B>(batch, d_sae, bars, candidates, plan, pre)
        }
    }
}

fn per_token<B: Backend>(
    batch: usize,
    d_sae: usize,
    k: usize,
    candidates: IntTensor<B>,
    plan: EncodePlan,
    pre: impl Fn((usize, usize)) -> FloatTensor<B>,
) -> Winners<B> {
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    let (mut aux_indices, mut aux_values) = (Vec::new(), Vec::new());
    for (start, end) in tiles(batch, d_sae) {
        let pre = pre((start, end));
        let (tile_indices, tile_values) = winners::<B>(pre.clone(), plan.score, k);
        let flat = |n: usize| Shape::from([(end - start) * n]);
        indices.push(B::int_reshape(tile_indices, flat(k)));
        values.push(B::float_reshape(tile_values, flat(k)));
        if plan.aux_k > 0 {
            let pre = B::float_select(pre, 1, candidates.clone());
            let (tile_indices, tile_values) = winners::<B>(pre, plan.aux_score, plan.aux_k);
            let tile_indices = B::int_reshape(tile_indices, flat(plan.aux_k));
            aux_indices.push(B::int_select(candidates.clone(), 0, tile_indices));
            aux_values.push(B::float_reshape(tile_values, flat(plan.aux_k)));
        }
    }
    indices.append(&mut aux_indices);
    values.append(&mut aux_values);
    Winners {
        rows: Rows::Equal { batch, slots: k },
        indices: cat_int::<B>(indices, 0),
        values: cat_float::<B>(values, 0),
    }
}

/// Codes whose size nobody knows before: pre-activations are read back, and the host selects.
fn on_host<B: Backend>(
    batch: usize,
    d_sae: usize,
    bars: FloatTensor<B>,
    candidates: IntTensor<B>,
    plan: EncodePlan,
    pre: impl Fn((usize, usize)) -> FloatTensor<B>,
) -> Winners<B> {
    let device = bars.device();
    let bars = read::<B>(bars);
    let candidates = read_sync(B::int_into_data(candidates)).expect("a device that works can be read");
    let candidates = candidates.convert::<i32>();
    let candidates = candidates.as_slice::<i32>().expect("what was just converted");
    let selector = Selector {
        b_enc: &[],
        d_sae,
        aux: (plan.aux_score, plan.aux_k),
        candidates,
    };
    let HostCode { rows, indices, values } = select_in_tiles(&selector, plan, &bars, batch, |select| {
        for (start, end) in tiles(batch, d_sae) {
            select(start, &mut read::<B>(pre((start, end))));
        }
    });
    let shape = [values.len()];
    Winners {
        rows,
        indices: B::int_from_data(TensorData::new(indices, shape), &device),
        values: B::float_from_data(TensorData::new(values, shape), &device),
    }
}

/// The values of a tensor: waits for the device.
fn read<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = read_sync(B::float_into_data(tensor)).expect("a device that works can be read");
    data.convert::<f32>().into_vec().expect("what was just converted")
}

/// Scores are kept within this, so that one that was taken, lowered by [`f32::MIN`], is below every other.
const SCORE_LIMIT: f32 = 1e38;

/// The `k` best of every row of `pre`, and their values.
///
/// `k` times the best of those left: on a GPU that is `k` fast passes whatever `k` is, while burn's own selection of `k`
/// compiles to `k * k` instructions there, and its sorting happens on the host.
fn winners<B: Backend>(pre: FloatTensor<B>, score: Score, k: usize) -> (IntTensor<B>, FloatTensor<B>) {
    let [n_rows, _] = dims(&pre);
    let device = pre.device();
    let settings = get_device_settings::<B>(&device);
    let nan = B::float_is_nan(pre.clone(), settings.bool_dtype);
    let pre = B::float_mask_fill(pre, nan.clone(), 0f32.into());
    let (scores, pre) = match score {
        Score::Positive => {
            let positive = B::float_clamp_min(pre, 0f32.into());
            (positive.clone(), positive)
        }
        Score::Magnitude => (B::float_abs(pre.clone()), pre),
        Score::Value => (B::float_mask_fill(pre.clone(), nan, (-SCORE_LIMIT).into()), pre),
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

/// A tile of a code: some of its entries, `[n]` each.
struct Entries<B: Backend> {
    /// The row of the code that each belongs to, counted from `first`.
    owners: IntTensor<B>,
    indices: IntTensor<B>,
    weights: FloatTensor<B>,
}

fn entries<B: Backend>(code: &Part<B>, owners: &[i32], range: std::ops::Range<usize>, first: usize) -> Entries<B> {
    let (_, indices, weights) = code;
    let owners: Vec<i32> = owners[range.clone()].iter().map(|&r| r - first as i32).collect();
    let shape = [owners.len()];
    Entries {
        owners: B::int_from_data(TensorData::new(owners, shape), &weights.device()),
        indices: B::int_slice(indices.clone(), &rows(range.start, range.end)),
        weights: B::float_slice(weights.clone(), &rows(range.start, range.end)),
    }
}

/// See [`SparseKernels::sum_rows`](super::ops::SparseKernels::sum_rows).
pub fn sum_rows<B: Backend>(
    code_rows: Rows,
    indices: IntTensor<B>,
    weights: FloatTensor<B>,
    matrix: FloatTensor<B>,
) -> FloatTensor<B> {
    let [_, width] = dims(&matrix);
    let (batch, owners) = (code_rows.batch(), code_rows.owners());
    let device = matrix.device();
    if let Rows::Equal { slots, .. } = code_rows {
        return sum_equal_rows::<B>(batch, slots, indices, weights, matrix);
    }
    let code = (code_rows, indices, weights);
    let mut sums = B::float_zeros(Shape::from([batch, width]), &device, FloatDType::F32);
    for (start, end) in tiles(owners.len(), width) {
        let tile = entries::<B>(&code, &owners, start..end, 0);
        let picked = B::float_select(matrix.clone(), 0, tile.indices);
        let weights = B::float_reshape(tile.weights, Shape::from([end - start, 1]));
        sums = B::float_select_add(sums, 0, tile.owners, B::float_mul(picked, weights));
    }
    sums
}

/// The same for rows of as many entries each: no row of the result is added to by two.
fn sum_equal_rows<B: Backend>(
    batch: usize,
    slots: usize,
    indices: IntTensor<B>,
    weights: FloatTensor<B>,
    matrix: FloatTensor<B>,
) -> FloatTensor<B> {
    let [_, width] = dims(&matrix);
    let parts = tiles(batch, slots * width).map(|(start, end)| {
        let (from, to) = (start * slots, end * slots);
        let picked = B::float_select(matrix.clone(), 0, B::int_slice(indices.clone(), &rows(from, to)));
        let picked = B::float_reshape(picked, Shape::from([end - start, slots, width]));
        let weights = B::float_slice(weights.clone(), &rows(from, to));
        let weights = B::float_reshape(weights, Shape::from([end - start, slots, 1]));
        let sum = B::float_sum_dim(B::float_mul(picked, weights), 1);
        B::float_reshape(sum, Shape::from([end - start, width]))
    });
    cat_float::<B>(parts.collect(), 0)
}

/// See [`SparseKernels::dot_rows`](super::ops::SparseKernels::dot_rows).
pub fn dot_rows<B: Backend>(
    code_rows: Rows,
    indices: IntTensor<B>,
    vectors: FloatTensor<B>,
    matrix: FloatTensor<B>,
) -> FloatTensor<B> {
    let [_, width] = dims(&matrix);
    let owners = code_rows.owners();
    let parts = tiles(owners.len(), width).map(|(start, end)| {
        let owners = TensorData::new(owners[start..end].to_vec(), [end - start]);
        let owners = B::int_from_data(owners, &matrix.device());
        let picked = B::float_select(matrix.clone(), 0, B::int_slice(indices.clone(), &rows(start, end)));
        let vectors = B::float_select(vectors.clone(), 0, owners);
        let dots = B::float_sum_dim(B::float_mul(picked, vectors), 1);
        B::float_reshape(dots, Shape::from([end - start]))
    });
    cat_float::<B>(parts.collect(), 0)
}

/// See [`SparseKernels::scatter_rows`](super::ops::SparseKernels::scatter_rows).
///
/// A dense product of the code written out in tiles: scattering rows one by one would be serial on a GPU.
pub fn scatter_rows<B: Backend>(
    parts: Vec<Part<B>>,
    vectors: FloatTensor<B>,
    d_sae: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [batch, width] = dims(&vectors);
    let device = vectors.device();
    let owners: Vec<Vec<i32>> = parts.iter().map(|(rows, ..)| rows.owners()).collect();
    let mut matrix = B::float_zeros(Shape::from([d_sae, width]), &device, FloatDType::F32);
    let mut sums = B::float_zeros(Shape::from([1, d_sae]), &device, FloatDType::F32);
    for (start, end) in tiles(batch, d_sae) {
        let mut code = B::float_zeros(Shape::from([(end - start) * d_sae]), &device, FloatDType::F32);
        for (part, owners) in parts.iter().zip(&owners) {
            let range = part.0.range(start).start..part.0.range(end - 1).end;
            if range.is_empty() {
                continue;
            }
            let tile = entries::<B>(part, owners, range, start);
            let row = B::int_mul_scalar(tile.owners, (d_sae as i64).into());
            code = B::float_select_add(code, 0, B::int_add(row, tile.indices), tile.weights);
        }
        let code = B::float_reshape(code, Shape::from([end - start, d_sae]));
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
