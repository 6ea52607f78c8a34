//! How gradients flow back through the sparse operations.
//!
//! burn allows an operation one float output, so the main and the auxiliary code are one tensor of values, and the
//! indices, which have no gradient, ride along. An entry of value 0 is inactive and passes nothing back.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata, get_device_settings};
use burn::tensor::Slice;

use super::ops::{EncodePlan, Part, SparseKernels, SparseOps, Winners, starts};
use crate::code::Rows;

/// What the way back through the encoder needs: inputs only where a gradient is asked for.
#[derive(Clone, Debug)]
struct Encoded<X, I> {
    x: Option<X>,
    w_enc: Option<X>,
    /// Of the main code.
    rows: Rows,
    /// Of both codes, and so the values.
    indices: I,
    values: X,
    aux_k: usize,
    d_sae: usize,
}

#[derive(Debug)]
struct EncodeBackward;

impl<B: SparseKernels> Backward<B, 3> for EncodeBackward {
    type State = Encoded<FloatTensor<B>, IntTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node, b_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let Encoded {
            x,
            w_enc,
            rows,
            indices,
            values,
            aux_k,
            d_sae,
        } = ops.state;
        let settings = get_device_settings::<B>(&grad.device());
        let inactive = B::float_equal_elem(values, 0f32.into(), settings.bool_dtype);
        let grad = B::float_mask_fill(grad, inactive, 0f32.into());
        let parts = parts::<B>(rows, indices, grad, aux_k);
        if let (Some(node), Some(w_enc)) = (x_node, w_enc) {
            let sums = parts
                .iter()
                .map(|(rows, indices, grad)| B::sum_rows(rows.clone(), indices.clone(), grad.clone(), w_enc.clone()));
            let sum = sums.reduce(B::float_add).expect("there is a main code");
            grads.register::<B>(node.id, sum);
        }
        if let (true, Some(x)) = (w_node.is_some() || b_node.is_some(), x) {
            let (w_grad, b_grad) = B::scatter_rows(parts, x, d_sae);
            if let Some(node) = w_node {
                grads.register::<B>(node.id, w_grad);
            }
            if let Some(node) = b_node {
                grads.register::<B>(node.id, b_grad);
            }
        }
    }
}

/// The main code, and the auxiliary one behind it, as codes of the same batch.
fn parts<B: Backend>(rows: Rows, indices: IntTensor<B>, weights: FloatTensor<B>, aux_k: usize) -> Vec<Part<B>> {
    if aux_k == 0 {
        return vec![(rows, indices, weights)];
    }
    let (main, batch) = (rows.len(), rows.batch());
    let aux_rows = Rows::Equal { batch, slots: aux_k };
    let slice = |range: std::ops::Range<usize>| [Slice::from(range)];
    let aux = main..main + aux_rows.len();
    vec![
        (
            rows,
            B::int_slice(indices.clone(), &slice(0..main)),
            B::float_slice(weights.clone(), &slice(0..main)),
        ),
        (
            aux_rows,
            B::int_slice(indices, &slice(aux.clone())),
            B::float_slice(weights, &slice(aux)),
        ),
    ]
}

/// What the way back through the decoder needs.
#[derive(Clone, Debug)]
struct Decoded<X, I> {
    rows: Rows,
    indices: I,
    values: Option<X>,
    w_dec: Option<X>,
    d_sae: usize,
}

#[derive(Debug)]
struct DecodeBackward;

impl<B: SparseKernels> Backward<B, 2> for DecodeBackward {
    type State = Decoded<FloatTensor<B>, IntTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [values_node, w_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let state = ops.state;
        if let (Some(node), Some(w_dec)) = (values_node, state.w_dec) {
            grads.register::<B>(
                node.id,
                B::dot_rows(state.rows.clone(), state.indices.clone(), grad.clone(), w_dec),
            );
        }
        if let (Some(node), Some(values)) = (w_node, state.values) {
            let (w_grad, _) = B::scatter_rows(vec![(state.rows, state.indices, values)], grad, state.d_sae);
            grads.register::<B>(node.id, w_grad);
        }
    }
}

/// What the way back through products with rows needs.
#[derive(Clone, Debug)]
struct Dotted<X, I> {
    rows: Rows,
    indices: I,
    vectors: X,
    matrix: X,
    d_sae: usize,
}

#[derive(Debug)]
struct DotsBackward;

impl<B: SparseKernels> Backward<B, 2> for DotsBackward {
    type State = Dotted<FloatTensor<B>, IntTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [vectors_node, matrix_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        if let Some(node) = vectors_node {
            let sums = B::sum_rows(s.rows.clone(), s.indices.clone(), grad.clone(), s.matrix);
            grads.register::<B>(node.id, sums);
        }
        if let Some(node) = matrix_node {
            let (matrix, _) = B::scatter_rows(vec![(s.rows, s.indices, grad)], s.vectors, s.d_sae);
            grads.register::<B>(node.id, matrix);
        }
    }
}

/// What the way back through nested errors needs: everything, since errors are computed anew rather than kept.
#[derive(Clone, Debug)]
struct Nested<X, I> {
    rows: Rows,
    weights: Arc<[f32]>,
    indices: I,
    levels: I,
    values: X,
    w_dec: X,
    start: X,
}

#[derive(Debug)]
struct NestedBackward;

impl<B: SparseKernels> Backward<B, 3> for NestedBackward {
    type State = Nested<FloatTensor<B>, IntTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        let (values, w_dec, start) = B::nested_backward(
            s.rows, &s.weights, s.indices, s.levels, s.values, s.w_dec, s.start, grad,
        );
        for (node, gradient) in ops.parents.into_iter().zip([values, w_dec, start]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// What the way back through cosines of pairs needs.
#[derive(Clone, Debug)]
struct Paired<X, I> {
    matrix: X,
    ours: I,
    others: I,
    cosines: X,
    norms: X,
}

#[derive(Debug)]
struct CosinesBackward;

impl<B: SparseKernels> Backward<B, 1> for CosinesBackward {
    type State = Paired<FloatTensor<B>, IntTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        if let Some(node) = node {
            let gradient = B::cosines_backward(s.matrix, s.ours, s.others, s.cosines, s.norms, grad);
            grads.register::<B>(node.id, gradient);
        }
    }
}

impl<B: SparseKernels, C: CheckpointStrategy> SparseOps for Autodiff<B, C> {
    fn sparse_encode(
        x: FloatTensor<Self>,
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        bars: FloatTensor<Self>,
        candidates: IntTensor<Self>,
        plan: EncodePlan,
    ) -> (IntTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let [d_sae] = b_enc.shape().dims();
        let to_x = x.is_tracked();
        let to_weights = w_enc.is_tracked() || b_enc.is_tracked();
        let nodes = [x.node.clone(), w_enc.node.clone(), b_enc.node.clone()];
        let (x, w_enc) = (x.primitive, w_enc.primitive);
        let device = x.device();
        let winners = B::select(
            x.clone(),
            w_enc.clone(),
            b_enc.primitive,
            bars.primitive,
            candidates,
            plan,
        );
        let Winners { rows, indices, values } = winners;
        let starts = starts::<B>(&rows, &device);
        let output = match EncodeBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = Encoded {
                    x: to_weights.then_some(x),
                    w_enc: to_x.then_some(w_enc),
                    rows,
                    indices: indices.clone(),
                    values: values.clone(),
                    aux_k: plan.aux_k,
                    d_sae,
                };
                prep.finish(state, values)
            }
            OpsKind::UnTracked(prep) => prep.finish(values),
        };
        (starts, indices, output)
    }

    fn sparse_decode(
        rows: Rows,
        indices: IntTensor<Self>,
        values: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [d_sae, _] = w_dec.shape().dims();
        let (to_values, to_weights) = (values.is_tracked(), w_dec.is_tracked());
        let nodes = [values.node.clone(), w_dec.node.clone()];
        let (values, w_dec) = (values.primitive, w_dec.primitive);
        let output = B::sum_rows(rows.clone(), indices.clone(), values.clone(), w_dec.clone());
        match DecodeBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = Decoded {
                    rows,
                    indices,
                    values: to_weights.then_some(values),
                    w_dec: to_values.then_some(w_dec),
                    d_sae,
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn sparse_dots(
        rows: Rows,
        indices: IntTensor<Self>,
        vectors: FloatTensor<Self>,
        matrix: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [d_sae, _] = matrix.shape().dims();
        let nodes = [vectors.node.clone(), matrix.node.clone()];
        let state = Dotted {
            rows,
            indices,
            vectors: vectors.primitive,
            matrix: matrix.primitive,
            d_sae,
        };
        let s = state.clone();
        let output = B::dot_rows(s.rows, s.indices, s.vectors, s.matrix);
        match DotsBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
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
        let nodes = [values.node.clone(), w_dec.node.clone(), start.node.clone()];
        let state = Nested {
            rows,
            weights,
            indices,
            levels,
            values: values.primitive,
            w_dec: w_dec.primitive,
            start: start.primitive,
        };
        let s = state.clone();
        let output = B::nested_forward(s.rows, &s.weights, s.indices, s.levels, s.values, s.w_dec, s.start);
        match NestedBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn sparse_nearest(
        matrix: FloatTensor<Self>,
        latents: IntTensor<Self>,
        absolute: bool,
        exact: bool,
    ) -> IntTensor<Self> {
        B::nearest(matrix.primitive, latents, absolute, exact)
    }

    fn sparse_cosines(matrix: FloatTensor<Self>, ours: IntTensor<Self>, others: IntTensor<Self>) -> FloatTensor<Self> {
        let nodes = [matrix.node.clone()];
        let matrix = matrix.primitive;
        let (cosines, norms) = B::cosines(matrix.clone(), ours.clone(), others.clone());
        match CosinesBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = Paired {
                    matrix,
                    ours,
                    others,
                    cosines: cosines.clone(),
                    norms,
                };
                prep.finish(state, cosines)
            }
            OpsKind::UnTracked(prep) => prep.finish(cosines),
        }
    }
}
