//! The CPU backend's own kernels: its buffers as slices, and the arithmetic of `cpu` and `adam` on them.

use burn::backend::Flex;
use burn::backend::ops::IntTensorOps;
use burn::tensor::{DType, IntDType, TensorData};
use burn_flex::FlexTensor;

use super::adam::{self, AdamStep};
use super::buffers;
use super::cpu::{self, ByLatent, Selector};
use super::neighbours::{Pairs, UnitRows, unit_rows};
use super::nested::{self, Nested};
use super::nominate::{self, Encoder};
use super::ops::{EncodePlan, Part, SparseKernels, Winners};
use super::product::{self, TILE_ELEMENTS, TILE_ROWS};
use super::rough::Product;
use super::simd;
use super::tiles::select_in_tiles;
use crate::code::{HostCode, Rows};

/// A tensor whose whole buffer is its elements in order.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    assert!(
        tensor.dtype() == DType::F32,
        "sparse kernels compute in f32, not {:?}",
        tensor.dtype()
    );
    tensor.to_contiguous()
}

fn indices_i32(tensor: FlexTensor) -> FlexTensor {
    let tensor = if tensor.dtype() == DType::I32 {
        tensor
    } else {
        Flex::int_cast(tensor, IntDType::I32)
    };
    tensor.to_contiguous()
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

fn floats<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn winners(code: HostCode) -> Winners<Flex> {
    let entries = [code.values.len()];
    Winners {
        rows: code.rows,
        indices: FlexTensor::from_data(TensorData::new(code.indices, entries)),
        values: floats(code.values, entries),
    }
}

impl SparseKernels for Flex {
    fn select(
        x: FlexTensor,
        w_enc: FlexTensor,
        b_enc: FlexTensor,
        bars: FlexTensor,
        candidates: FlexTensor,
        plan: EncodePlan,
    ) -> Winners<Self> {
        let [batch, d_in] = dims(&x);
        let [d_sae] = dims(&b_enc);
        let (x, w_enc) = (contiguous(x), contiguous(w_enc));
        let (b_enc, bars, candidates) = (contiguous(b_enc), contiguous(bars), indices_i32(candidates));
        let encoder = Encoder {
            x: x.storage(),
            w_enc: w_enc.storage(),
            b_enc: b_enc.storage(),
            d_in,
        };
        if !plan.exact && nominate::pays(batch, d_sae, plan.budget) {
            let by = |product| nominate::select(encoder, plan, bars.storage(), candidates.storage(), product);
            if let Some(code) = nominate::products(simd::level(), d_in).into_iter().find_map(by) {
                return winners(code);
            }
        }
        let selector = Selector {
            b_enc: b_enc.storage(),
            d_sae,
            aux: (plan.aux_score, plan.aux_k),
            candidates: candidates.storage(),
        };
        // Fixed by the width alone: the product of a row may depend on where tiles are cut, and a buffer of one length
        // serves every batch.
        let tile = (TILE_ELEMENTS / d_sae).max(TILE_ROWS);
        let mut pre = buffers::take(tile * d_sae);
        let code = select_in_tiles(&selector, plan, bars.storage(), batch, |select| {
            for (n, x) in x.storage::<f32>().chunks(tile * d_in).enumerate() {
                let pre = &mut pre[..x.len() / d_in * d_sae];
                product::rows(x, w_enc.storage(), d_in, pre);
                select(n * tile, pre);
            }
        });
        buffers::give_back(pre);
        winners(code)
    }

    fn sum_rows(rows: Rows, indices: FlexTensor, weights: FlexTensor, matrix: FlexTensor) -> FlexTensor {
        let [_, width] = dims(&matrix);
        let (indices, weights, matrix) = (indices_i32(indices), contiguous(weights), contiguous(matrix));
        let mut out = vec![0.0; rows.batch() * width];
        cpu::sum_rows(
            &rows,
            indices.storage(),
            weights.storage(),
            matrix.storage(),
            width,
            &mut out,
        );
        floats(out, [rows.batch(), width])
    }

    fn dot_rows(rows: Rows, indices: FlexTensor, vectors: FlexTensor, matrix: FlexTensor) -> FlexTensor {
        let [_, width] = dims(&matrix);
        let (indices, vectors, matrix) = (indices_i32(indices), contiguous(vectors), contiguous(matrix));
        let mut out = vec![0.0; rows.len()];
        cpu::dot_rows(
            &rows,
            indices.storage(),
            vectors.storage(),
            matrix.storage(),
            width,
            &mut out,
        );
        floats(out, [rows.len()])
    }

    fn scatter_rows(parts: Vec<Part<Self>>, vectors: FlexTensor, d_sae: usize) -> (FlexTensor, FlexTensor) {
        let [_, width] = dims(&vectors);
        let vectors = contiguous(vectors);
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(rows, indices, weights)| (rows, indices_i32(indices), contiguous(weights)))
            .collect();
        let slices: Vec<cpu::Part> = parts
            .iter()
            .map(|(rows, indices, weights)| (rows, indices.storage(), weights.storage()))
            .collect();
        let by_latent = ByLatent::new(&slices, d_sae);
        let (mut matrix, mut sums) = (buffers::take(d_sae * width), vec![0.0; d_sae]);
        by_latent.scatter(vectors.storage(), width, &mut matrix, &mut sums);
        (floats(matrix, [d_sae, width]), floats(sums, [d_sae]))
    }

    fn nested_forward(
        rows: Rows,
        weights: &[f32],
        indices: FlexTensor,
        levels: FlexTensor,
        values: FlexTensor,
        w_dec: FlexTensor,
        start: FlexTensor,
    ) -> FlexTensor {
        let [batch, width] = dims(&start);
        let (indices, levels) = (indices_i32(indices), indices_i32(levels));
        let (values, w_dec, start) = (contiguous(values), contiguous(w_dec), contiguous(start));
        let losses = nested::forward(Nested {
            rows: &rows,
            indices: indices.storage(),
            levels: levels.storage(),
            values: values.storage(),
            weights,
            w_dec: w_dec.storage(),
            start: start.storage(),
            width,
        });
        floats(losses, [batch])
    }

    fn nested_backward(
        rows: Rows,
        weights: &[f32],
        indices: FlexTensor,
        levels: FlexTensor,
        values: FlexTensor,
        w_dec: FlexTensor,
        start: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let ([batch, width], [d_sae, _]) = (dims(&start), dims(&w_dec));
        let (indices, levels, grad) = (indices_i32(indices), indices_i32(levels), contiguous(grad));
        let (values, w_dec, start) = (contiguous(values), contiguous(w_dec), contiguous(start));
        let nested = Nested {
            rows: &rows,
            indices: indices.storage(),
            levels: levels.storage(),
            values: values.storage(),
            weights,
            w_dec: w_dec.storage(),
            start: start.storage(),
            width,
        };
        let gradients = nested::backward(nested, grad.storage(), buffers::take(d_sae * width));
        (
            floats(gradients.values, [rows.len()]),
            floats(gradients.w_dec, [d_sae, width]),
            floats(gradients.start, [batch, width]),
        )
    }

    fn nearest(matrix: FlexTensor, latents: FlexTensor, absolute: bool, exact: bool) -> FlexTensor {
        let ([_, width], [n]) = (dims(&matrix), dims(&latents));
        let (matrix, latents) = (contiguous(matrix), indices_i32(latents));
        let level = simd::level();
        let mut values = buffers::take(n * width);
        let latents: &[i32] = latents.storage();
        unit_rows(level, matrix.storage(), width, latents, &mut values);
        let unit = UnitRows {
            values: &values,
            d_in: width,
        };
        let product = if exact { Product::F32 } else { unit.product(level) };
        let nearest = unit.nearest(level, absolute, product).into_iter();
        let nearest: Vec<i32> = nearest.map(|at| latents[at as usize]).collect();
        buffers::give_back(values);
        FlexTensor::from_data(TensorData::new(nearest, [n]))
    }

    fn cosines(matrix: FlexTensor, ours: FlexTensor, others: FlexTensor) -> (FlexTensor, FlexTensor) {
        let ([n, width], [pairs]) = (dims(&matrix), dims(&ours));
        let (matrix, ours, others) = (contiguous(matrix), indices_i32(ours), indices_i32(others));
        let (cosines, norms) = Pairs {
            matrix: matrix.storage(),
            width,
            ours: ours.storage(),
            others: others.storage(),
        }
        .cosines(simd::level());
        (floats(cosines, [pairs]), floats(norms, [n]))
    }

    fn cosines_backward(
        matrix: FlexTensor,
        ours: FlexTensor,
        others: FlexTensor,
        cosines: FlexTensor,
        norms: FlexTensor,
        grad: FlexTensor,
    ) -> FlexTensor {
        let [n, width] = dims(&matrix);
        let (matrix, ours, others) = (contiguous(matrix), indices_i32(ours), indices_i32(others));
        let (cosines, norms, grad) = (contiguous(cosines), contiguous(norms), contiguous(grad));
        let pairs = Pairs {
            matrix: matrix.storage(),
            width,
            ours: ours.storage(),
            others: others.storage(),
        };
        let mut out = buffers::take(n * width);
        pairs.backward(
            simd::level(),
            cosines.storage(),
            norms.storage(),
            grad.storage(),
            &mut out,
        );
        floats(out, [n, width])
    }

    fn adam(
        param: FlexTensor,
        grad: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        step: AdamStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let width = *param
            .layout()
            .shape()
            .as_slice()
            .last()
            .expect("a parameter has a dimension");
        let (mut param, grad, mut m, mut v) = (contiguous(param), contiguous(grad), contiguous(m), contiguous(v));
        // A buffer that somebody else still holds is copied here, because their values must not change.
        adam::update(
            param.storage_mut(),
            grad.storage(),
            m.storage_mut(),
            v.storage_mut(),
            width,
            step,
        );
        buffers::recycle(grad);
        (param, m, v)
    }
}
