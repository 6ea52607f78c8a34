use burn::backend::Flex;
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::code::{HostCode, Rows};
use crate::kernels::decode;
use crate::kernels::ops::SparseKernels;
use crate::kernels::tests::{devices, uniform};

/// A code of random latents with random levels, some values 0, some rows empty.
struct Case {
    code: HostCode,
    levels: Vec<i32>,
    weights: Vec<f32>,
    w_dec: Vec<f32>,
    start: Vec<f32>,
    grad: Vec<f32>,
    d_in: usize,
    d_sae: usize,
}

impl Case {
    fn new(seed: u64, batch: usize, d_in: usize, d_sae: usize, most: usize, n_levels: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = Rows::from_lengths((0..batch).map(|_| rng.random_range(0..=most)));
        let n = rows.len();
        let indices = (0..n).map(|_| rng.random_range(0..d_sae as i32)).collect();
        let mut values = uniform(&mut rng, n);
        values.iter_mut().step_by(5).for_each(|v| *v = 0.0);
        let code = HostCode { rows, indices, values }.never_empty();
        let levels = (0..code.values.len())
            .map(|_| rng.random_range(0..n_levels as i32))
            .collect();
        let mut weights = uniform(&mut rng, n_levels);
        weights.iter_mut().for_each(|w| *w = w.abs());
        Self {
            code,
            levels,
            weights,
            w_dec: uniform(&mut rng, d_sae * d_in),
            start: uniform(&mut rng, batch * d_in),
            grad: uniform(&mut rng, batch),
            d_in,
            d_sae,
        }
    }

    /// Losses and the gradients of values, w_dec and start, by a loss that weighs rows by `grad`.
    fn run(&self, device: &Device, composed: bool) -> [Vec<f32>; 4] {
        let device = device.clone().autodiff();
        let tensor = |v: &[f32], shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(v.to_vec(), shape), &device);
        let batch = self.code.batch();
        let mut code = SparseCode::from_host(self.code.clone(), &device);
        let values = code.values.require_grad();
        code.values = values.clone();
        let w_dec = tensor(&self.w_dec, [self.d_sae, self.d_in]).require_grad();
        let start = tensor(&self.start, [batch, self.d_in]).require_grad();
        let n = self.levels.len();
        let levels = Tensor::<1, Int>::from_data(TensorData::new(self.levels.clone(), [n]), &device);
        let losses = match composed {
            true => self.composed(&code, levels, w_dec.clone(), start.clone()),
            false => nested_errors(&code, levels, self.weights.clone().into(), w_dec.clone(), start.clone()),
        };
        let grad = Tensor::<1>::from_data(TensorData::new(self.grad.clone(), [batch]), &device);
        let grads = (losses.clone() * grad).sum().backward();
        let read = |t: Tensor<2>| t.into_data().to_vec::<f32>().unwrap();
        [
            losses.into_data().to_vec().unwrap(),
            values.grad(&grads).unwrap().into_data().to_vec().unwrap(),
            read(w_dec.grad(&grads).unwrap()),
            read(start.grad(&grads).unwrap()),
        ]
    }

    /// The same with a reconstruction a level, under burn's own autodiff.
    fn composed(&self, code: &SparseCode, levels: Tensor<1, Int>, w_dec: Tensor<2>, start: Tensor<2>) -> Tensor<1> {
        let mut error = start;
        let mut total = None;
        for (level, &weight) in self.weights.iter().enumerate() {
            let of_level = levels.clone().equal_elem(level as i64).float();
            let part = SparseCode {
                values: code.values.clone() * of_level,
                ..code.clone()
            };
            error = error + decode(&part, w_dec.clone());
            let squares = (error.clone() * error.clone()).sum_dim(1).reshape([code.batch()]) * weight;
            total = Some(match total {
                Some(total) => total + squares,
                None => squares,
            });
        }
        total.unwrap()
    }
}

#[track_caller]
fn close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    for ((found, expected), what) in found.iter().zip(expected).zip(["losses", "values", "w_dec", "start"]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 2e-5 * largest, "{what}: {a}, expected {b}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nested_errors_and_gradients_equal_a_reconstruction_a_level(
        seed in 0u64..1000, batch in 1usize..20, d_in in 1usize..70, d_sae in 1usize..50, most in 0usize..12,
        n_levels in 1usize..14,
    ) {
        let case = Case::new(seed, batch, d_in, d_sae, most, n_levels);
        close(&case.run(&Device::flex(), false), &case.run(&Device::flex(), true));
    }

    #[test]
    fn the_portable_nested_errors_equal_the_cpus(
        seed in 0u64..1000, batch in 1usize..20, d_in in 1usize..40, n_levels in 1usize..9,
    ) {
        let case = Case::new(seed, batch, d_in, 30, 7, n_levels);
        let float = |v: &[f32], shape: [usize; 2]| {
            let tensor: Tensor<2> = Tensor::from_data(TensorData::new(v.to_vec(), shape), &Device::flex());
            tensor.try_into_primitive::<Flex>().unwrap()
        };
        let vector = |v: &[f32]| {
            let tensor: Tensor<1> = Tensor::from_data(TensorData::new(v.to_vec(), [v.len()]), &Device::flex());
            tensor.try_into_primitive::<Flex>().unwrap()
        };
        let ints = |v: &[i32]| {
            let tensor: Tensor<1, Int> = Tensor::from_data(TensorData::new(v.to_vec(), [v.len()]), &Device::flex());
            tensor.try_into_primitive::<Flex>().unwrap()
        };
        let read = |t: burn_flex::FlexTensor| t.into_data().to_vec::<f32>().unwrap();
        let code = &case.code;
        let losses = |portable: bool| {
            let run = if portable { portable_forward::<Flex> } else { Flex::nested_forward };
            read(run(
                code.rows.clone(), &case.weights, ints(&code.indices), ints(&case.levels), vector(&code.values),
                float(&case.w_dec, [30, d_in]), float(&case.start, [batch, d_in]),
            ))
        };
        let gradients = |portable: bool| {
            let run = if portable { portable_backward::<Flex> } else { Flex::nested_backward };
            let (values, w_dec, start) = run(
                code.rows.clone(), &case.weights, ints(&code.indices), ints(&case.levels), vector(&code.values),
                float(&case.w_dec, [30, d_in]), float(&case.start, [batch, d_in]), vector(&case.grad),
            );
            [read(values), read(w_dec), read(start)]
        };
        let all = |portable: bool| {
            let [values, w_dec, start] = gradients(portable);
            [losses(portable), values, w_dec, start]
        };
        close(&all(true), &all(false));
    }
}

#[test]
fn every_device_of_this_build_computes_nested_errors_alike() {
    for device in devices() {
        let case = Case::new(3, 5, 33, 47, 6, 4);
        close(&case.run(&device, false), &case.run(&Device::flex(), true));
    }
}

#[test]
fn nested_errors_have_the_same_bytes_whatever_the_number_of_threads() {
    let case = Case::new(9, 200, 130, 500, 20, 20);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let all = pool.install(|| case.run(&Device::flex(), false));
        all.map(|v| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    assert!(on(1) == on(3));
    assert!(on(1) == on(2));
}
