//! Neighbours and their cosines in burn's own operations: what a device runs until it has kernels of its own, and the twin
//! that the processor's are tested against.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape, Slice, TensorData};

use super::LEAST_NORM;

/// Cosines of a block at a time: 16 MiB, or few in tests, so that little ones have blocks.
const BLOCK: usize = if cfg!(test) { 1 << 9 } else { 1 << 22 };

fn dims<const D: usize>(tensor: &impl TensorMetadata) -> [usize; D] {
    tensor.shape().dims()
}

/// The norms of the rows of `matrix: [n, width]`, at least [`LEAST_NORM`]: `[n, 1]`.
fn norms<B: Backend>(matrix: FloatTensor<B>) -> FloatTensor<B> {
    let squares = B::float_sum_dim(B::float_mul(matrix.clone(), matrix), 1);
    B::float_clamp_min(B::float_sqrt(squares), LEAST_NORM.into())
}

/// See [`SparseKernels::nearest`](super::super::ops::SparseKernels::nearest).
pub fn nearest<B: Backend>(matrix: FloatTensor<B>, latents: IntTensor<B>, absolute: bool) -> IntTensor<B> {
    let [n] = dims(&latents);
    let device = matrix.device();
    let settings = get_device_settings::<B>(&device);
    let rows = B::float_select(matrix, 0, latents.clone());
    let unit = B::float_div(rows.clone(), norms::<B>(rows));
    let across = B::float_transpose(unit.clone());
    let block = (BLOCK / n).clamp(1, n);
    let parts = (0..n).step_by(block).map(|start| {
        let end = n.min(start + block);
        let rows = B::float_slice(unit.clone(), &[Slice::from(start..end)]);
        let cosines = B::float_matmul(rows, across.clone());
        // No cosine is as low: who is no number beats nobody.
        let nan = B::float_is_nan(cosines.clone(), settings.bool_dtype);
        let cosines = if absolute { B::float_abs(cosines) } else { cosines };
        let cosines = B::float_mask_fill(cosines, nan, (-4f32).into());
        // A row is no neighbour of itself.
        let itself: Vec<i32> = (start as i32..end as i32).collect();
        let itself = B::int_from_data(TensorData::new(itself, [end - start, 1]), &device);
        let lower = B::float_full(Shape::from([end - start, 1]), (-8f32).into(), &device, FloatDType::F32);
        let cosines = B::float_scatter_add(1, cosines, itself, lower);
        let found = B::float_argmax(cosines, 1, settings.int_dtype);
        B::int_select(latents.clone(), 0, B::int_reshape(found, Shape::from([end - start])))
    });
    let mut parts: Vec<_> = parts.collect();
    match parts.len() {
        1 => parts.remove(0),
        _ => B::int_cat(parts, 0),
    }
}

/// A column of the elements of `vector: [n, 1]` at `indices: [pairs]`: `[pairs, 1]`.
fn at<B: Backend>(vector: &FloatTensor<B>, indices: &IntTensor<B>) -> FloatTensor<B> {
    B::float_select(vector.clone(), 0, indices.clone())
}

/// See [`SparseKernels::cosines`](super::super::ops::SparseKernels::cosines).
pub fn cosines<B: Backend>(
    matrix: FloatTensor<B>,
    ours: IntTensor<B>,
    others: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ([n, _], [pairs]) = (dims(&matrix), dims(&ours));
    let norms = norms::<B>(matrix.clone());
    let products = B::float_mul(
        B::float_select(matrix.clone(), 0, ours.clone()),
        B::float_select(matrix, 0, others.clone()),
    );
    let both = B::float_mul(at::<B>(&norms, &ours), at::<B>(&norms, &others));
    let cosines = B::float_div(B::float_sum_dim(products, 1), both);
    (
        B::float_reshape(cosines, Shape::from([pairs])),
        B::float_reshape(norms, Shape::from([n])),
    )
}

/// See [`SparseKernels::cosines_backward`](super::super::ops::SparseKernels::cosines_backward).
pub fn cosines_backward<B: Backend>(
    matrix: FloatTensor<B>,
    ours: IntTensor<B>,
    others: IntTensor<B>,
    cosines: FloatTensor<B>,
    norms: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let ([n, width], [pairs]) = (dims(&matrix), dims(&ours));
    let device = matrix.device();
    let column = |vector: FloatTensor<B>, n: usize| B::float_reshape(vector, Shape::from([n, 1]));
    let (cosines, grad, norms) = (column(cosines, pairs), column(grad, pairs), column(norms, n));
    // A norm that counts as the least one has no slope.
    let least = get_device_settings::<B>(&device).bool_dtype;
    let least = B::float_lower_equal_elem(norms.clone(), LEAST_NORM.into(), least);
    let slopes = B::float_recip(B::float_mul(norms.clone(), norms.clone()));
    let slopes = B::float_mask_fill(slopes, least, 0f32.into());
    let both = B::float_mul(at::<B>(&norms, &ours), at::<B>(&norms, &others));
    let weights = B::float_div(grad.clone(), both);
    let along = B::float_mul(grad, cosines);
    let rows = [&ours, &others].map(|of| B::float_select(matrix.clone(), 0, of.clone()));
    let mut sum = B::float_zeros(Shape::from([n, width]), &device, FloatDType::F32);
    for (to, (itself, other)) in [(&ours, (0, 1)), (&others, (1, 0))] {
        let towards = B::float_mul(rows[other].clone(), weights.clone());
        let along = B::float_mul(along.clone(), at::<B>(&slopes, to));
        let step = B::float_sub(towards, B::float_mul(rows[itself].clone(), along));
        sum = B::float_select_add(sum, 0, to.clone(), step);
    }
    sum
}
