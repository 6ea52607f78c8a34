use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::kernels::tests::devices;

const BATCH: usize = 5;
const D_IN: usize = 7;
const D_SAE: usize = 23;

fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// The leaves of a step: values of the present code, residual, encoder and bias.
struct Leaves([Vec<f32>; 4]);

impl Leaves {
    fn new(seed: u64, entries: usize) -> Self {
        let of = |n: usize, more: u64| uniform(n, 10 * seed + more);
        Self([of(entries, 0), of(BATCH * D_IN, 1), of(D_SAE * D_IN, 2), of(D_SAE, 3)])
    }

    fn run(&self, rows: &Rows, indices: &[i32], selection: &Selection, device: &Device) -> (SparseCode, [Vec<f32>; 4]) {
        let vector = |values: &[f32]| {
            let shape = [values.len()];
            Tensor::<1>::from_data(TensorData::new(values.to_vec(), shape), device).require_grad()
        };
        let matrix = |values: &[f32]| {
            let shape = [values.len() / D_IN, D_IN];
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device).require_grad()
        };
        let [values, residual, w_enc, b_enc] = &self.0;
        let z = SparseCode {
            rows: rows.clone(),
            indices: Tensor::from_data(TensorData::new(indices.to_vec(), [indices.len()]), device),
            values: vector(values),
        };
        let (residual, w_enc, b_enc) = (matrix(residual), matrix(w_enc), vector(b_enc));
        let code = next(
            &z,
            residual.clone(),
            w_enc.clone(),
            b_enc.clone(),
            selection,
            Search::Auto,
        );
        let weights = uniform(code.rows.len(), 99);
        let shape = [weights.len()];
        let weights = Tensor::<1>::from_data(TensorData::new(weights, shape), device);
        let grads = (code.values.clone() * weights).sum().backward();
        let read = |t: Tensor<1>| t.into_data().to_vec::<f32>().unwrap();
        let flat = |t: &Tensor<2>| read(t.grad(&grads).unwrap().flatten(0, 1));
        let gradients = [
            read(z.values.grad(&grads).unwrap()),
            flat(&residual),
            flat(&w_enc),
            read(b_enc.grad(&grads).unwrap()),
        ];
        (code, gradients)
    }

    /// `u` of everybody, dense. `[BATCH, D_SAE]`
    fn dense(&self, rows: &Rows, indices: &[i32]) -> Vec<f32> {
        let [values, residual, w_enc, b_enc] = &self.0;
        let mut u = vec![0.0f64; BATCH * D_SAE];
        for row in 0..BATCH {
            for i in 0..D_SAE {
                let product = (0..D_IN).map(|j| f64::from(residual[row * D_IN + j]) * f64::from(w_enc[i * D_IN + j]));
                u[row * D_SAE + i] = product.sum::<f64>() + f64::from(b_enc[i]);
            }
            for n in rows.range(row) {
                u[row * D_SAE + indices[n] as usize] += f64::from(values[n]);
            }
        }
        u.iter().map(|u| *u as f32).collect()
    }
}

/// Codes with an empty row, a row of one and longer ones; no latent twice in a row.
fn present() -> (Rows, Vec<i32>) {
    let lengths = [4, 0, 1, 6, 3];
    let indices = lengths
        .iter()
        .enumerate()
        .flat_map(|(row, &n)| (0..n).map(move |i| ((row + 3 * i) % D_SAE) as i32));
    (Rows::from_lengths(lengths), indices.collect())
}

fn selections(device: &Device) -> Vec<Selection> {
    let mut all = Vec::new();
    for score in [Score::Positive, Score::Magnitude, Score::Value] {
        all.push(Selection::PerToken { score, k: 4 });
        all.push(Selection::PerToken { score, k: D_SAE });
        let bars = (0..D_SAE).map(|i| {
            if score == Score::Value {
                -0.3
            } else {
                0.1 * (i % 4) as f32
            }
        });
        let bars: Vec<f32> = bars.collect();
        let bars = Tensor::from_data(TensorData::new(bars, [D_SAE]), device);
        all.push(Selection::Above { score, bars });
    }
    all
}

#[test]
fn a_step_keeps_and_computes_what_a_dense_one_does() {
    let (rows, indices) = present();
    for device in devices() {
        let device = device.autodiff();
        for selection in selections(&device) {
            let leaves = Leaves::new(1, indices.len());
            let u = leaves.dense(&rows, &indices);
            let (code, _) = leaves.run(&rows, &indices, &selection, &device);
            let code = SparseCode {
                values: code.values.no_grad(),
                ..code
            };
            let code = code.to_host().unwrap();
            for row in 0..BATCH {
                let u = &u[row * D_SAE..][..D_SAE];
                let mut expected: Vec<(usize, f32)> = match &selection {
                    Selection::PerToken { score, k } => {
                        let (indices, _) = crate::kernels::select::top_k_twin(u, *score, *k);
                        let active = indices.into_iter().map(|i| (i as usize, u[i as usize]));
                        active.filter(|(_, u)| score.of(*u) > score.floor()).collect()
                    }
                    Selection::Above { score, bars } => {
                        let bars: Vec<f32> = bars.clone().into_data().to_vec().unwrap();
                        let size = |u: f32| if *score == Score::Magnitude { u.abs() } else { u };
                        (0..D_SAE)
                            .filter(|&i| size(u[i]) > bars[i])
                            .map(|i| (i, u[i]))
                            .collect()
                    }
                    _ => unreachable!(),
                };
                let mut found: Vec<(usize, f32)> = code.row(row).collect();
                found.sort_by_key(|e| e.0);
                expected.sort_by_key(|e| e.0);
                assert_eq!(
                    found.len(),
                    expected.len(),
                    "{selection:?} row {row}: {found:?} {expected:?}"
                );
                for (a, b) in found.iter().zip(&expected) {
                    assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{a:?} {b:?}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_a_step_are_those_of_finite_differences() {
    let (rows, indices) = present();
    let device = Device::flex().autodiff();
    for selection in selections(&device) {
        let mut leaves = Leaves::new(2, indices.len());
        let value = |leaves: &Leaves| {
            let (code, _) = leaves.run(&rows, &indices, &selection, &device);
            let support: Vec<i32> = code.indices.clone().into_data().convert::<i32>().to_vec().unwrap();
            let weights = uniform(code.rows.len(), 99);
            let values: Vec<f32> = code.values.into_data().to_vec().unwrap();
            let active: Vec<bool> = values.iter().map(|v| *v != 0.0).collect();
            let sum: f64 = values
                .iter()
                .zip(&weights)
                .map(|(v, w)| f64::from(*v) * f64::from(*w))
                .sum();
            (sum, (support, active))
        };
        let (_, gradients) = leaves.run(&rows, &indices, &selection, &device);
        let mut checked = 0;
        for (which, gradient) in gradients.iter().enumerate() {
            for at in (0..gradient.len()).step_by(3) {
                let before = leaves.0[which][at];
                leaves.0[which][at] = before + 1e-2;
                let up = value(&leaves);
                leaves.0[which][at] = before - 1e-2;
                let down = value(&leaves);
                leaves.0[which][at] = before;
                // Where somebody else comes in there is no slope.
                if up.1 != down.1 {
                    continue;
                }
                checked += 1;
                let expected = (up.0 - down.0) / 2e-2;
                let off = (f64::from(gradient[at]) - expected).abs();
                assert!(
                    off < 1e-3 * (1.0 + expected.abs()),
                    "{selection:?} {which} {at}: {} {expected}",
                    gradient[at]
                );
            }
        }
        assert!(checked > 40, "{checked}");
    }
}
