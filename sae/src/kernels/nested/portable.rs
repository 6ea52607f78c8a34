//! In burn's own operations, a level at a time: what a device runs until it has a kernel of its own. On the way back
//! the running error is taken apart again, so that memory stays `batch * d_in`.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{TensorMetadata, get_device_settings};
use burn::tensor::{FloatDType, Shape};

use crate::code::Rows;
use crate::kernels::ops::SparseKernels;

/// The values of the entries of level `level`; 0 elsewhere.
fn of_level<B: SparseKernels>(levels: &IntTensor<B>, values: &FloatTensor<B>, level: usize) -> FloatTensor<B> {
    let settings = get_device_settings::<B>(&values.device());
    let others = B::int_not_equal_elem(levels.clone(), (level as i64).into(), settings.bool_dtype);
    B::float_mask_fill(values.clone(), others, 0f32.into())
}

/// See [`SparseKernels::nested_forward`].
pub fn forward<B: SparseKernels>(
    rows: Rows,
    weights: &[f32],
    indices: IntTensor<B>,
    levels: IntTensor<B>,
    values: FloatTensor<B>,
    w_dec: FloatTensor<B>,
    start: FloatTensor<B>,
) -> FloatTensor<B> {
    let batch = rows.batch();
    let mut error = start;
    let mut losses = B::float_zeros(Shape::from([batch]), &error.device(), FloatDType::F32);
    for (level, &weight) in weights.iter().enumerate() {
        let values = of_level::<B>(&levels, &values, level);
        let decoded = B::sum_rows(rows.clone(), indices.clone(), values, w_dec.clone());
        error = B::float_add(error, decoded);
        let squares = B::float_sum_dim(B::float_mul(error.clone(), error.clone()), 1);
        let squares = B::float_reshape(squares, Shape::from([batch]));
        losses = B::float_add(losses, B::float_mul_scalar(squares, weight.into()));
    }
    losses
}

/// See [`SparseKernels::nested_backward`].
#[expect(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
pub fn backward<B: SparseKernels>(
    rows: Rows,
    weights: &[f32],
    indices: IntTensor<B>,
    levels: IntTensor<B>,
    values: FloatTensor<B>,
    w_dec: FloatTensor<B>,
    start: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [d_sae, _] = w_dec.shape().dims();
    let shape = start.shape();
    let device = start.device();
    let grad = B::float_reshape(grad, Shape::from([rows.batch(), 1]));
    let decoded = B::sum_rows(rows.clone(), indices.clone(), values.clone(), w_dec.clone());
    let mut error = B::float_add(start, decoded);
    let mut sum = B::float_zeros(shape, &device, FloatDType::F32);
    let mut values_grad = B::float_zeros(values.shape(), &device, FloatDType::F32);
    let mut w_grad = B::float_zeros(w_dec.shape(), &device, FloatDType::F32);
    for (level, &weight) in weights.iter().enumerate().rev() {
        let scaled = B::float_mul(error.clone(), B::float_mul_scalar(grad.clone(), (2.0 * weight).into()));
        sum = B::float_add(sum, scaled);
        let of_this = of_level::<B>(&levels, &values, level);
        let dots = B::dot_rows(rows.clone(), indices.clone(), sum.clone(), w_dec.clone());
        values_grad = B::float_add(values_grad, of_level::<B>(&levels, &dots, level));
        let part = (rows.clone(), indices.clone(), of_this.clone());
        w_grad = B::float_add(w_grad, B::scatter_rows(vec![part], sum.clone(), d_sae).0);
        let decoded = B::sum_rows(rows.clone(), indices.clone(), of_this, w_dec.clone());
        error = B::float_sub(error, decoded);
    }
    (values_grad, w_grad, sum)
}
