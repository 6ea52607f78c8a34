//! The support theorem of k-sparse autoencoders (arXiv 1312.5663, after Donoho and Elad): of `x = W^T z` with unit rows
//! `W`, `z >= 0` with `k` entries above 0, and a coherence `mu` with `k mu <= z_k / (2 z_1)` (the least over the largest),
//! the `k` largest entries of `W x` are those of `z`.

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Allocation, Score, Sparsifier};
use crate::dictionary::Sae;

const D_IN: usize = 128;
const D_SAE: usize = 2 * D_IN;

/// The unit vectors and those of Walsh and Hadamard, which are as far from each other as two bases can be, all bent by
/// noise of this size. `[D_SAE, D_IN]`, rows of length 1.
fn atoms(rng: &mut ChaCha8Rng, noise: f64) -> Vec<f64> {
    let mut rows = Vec::with_capacity(D_SAE * D_IN);
    for i in 0..D_SAE {
        let row: Vec<f64> = (0..D_IN)
            .map(|j| {
                let clean = match i < D_IN {
                    true => f64::from(i == j),
                    false if ((i - D_IN) & j).count_ones().is_multiple_of(2) => (D_IN as f64).powf(-0.5),
                    false => -(D_IN as f64).powf(-0.5),
                };
                clean + noise * rng.random_range(-1.0..1.0)
            })
            .collect();
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        rows.extend(row.iter().map(|v| v / length));
    }
    rows
}

fn coherence(atoms: &[f64]) -> f64 {
    let rows: Vec<&[f64]> = atoms.chunks(D_IN).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>().abs();
    let of = |i: usize| rows[..i].iter().map(|b| dot(rows[i], b)).fold(0.0, f64::max);
    (1..rows.len()).map(of).fold(0.0, f64::max)
}

/// The tied dictionary of `rows`, `[n, d_in]`.
fn tied(rows: &[f64], d_in: usize, k: usize) -> Sae {
    let device = Device::flex();
    let (values, n): (Vec<f32>, usize) = (rows.iter().map(|&v| v as f32).collect(), rows.len() / d_in);
    let matrix = Tensor::<2>::from_data(TensorData::new(values, [n, d_in]), &device);
    Sae {
        per_token: false,
        w_enc: matrix.clone(),
        b_enc: Tensor::zeros([n], &device),
        w_dec: matrix,
        b_dec: Tensor::zeros([d_in], &device),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier: Sparsifier::new(Score::Value, Allocation::PerToken { k }),
    }
}

fn support(sae: &Sae, x: &[f64]) -> Vec<usize> {
    let x: Vec<f32> = x.iter().map(|&v| v as f32).collect();
    let mut found: Vec<usize> = sae.encode_rows(&x).unwrap().row(0).map(|e| e.0).collect();
    found.sort_unstable();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_support_of_a_code_is_recovered_wherever_the_theorem_says_so(
        seed: u64, noise in 0.0f64..0.03, ratio in 0.4f64..1.0, size in 1e-3f64..1e3,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let atoms = atoms(&mut rng, noise);
        let mu = coherence(&atoms);
        // As many as the theorem allows; it always allows one.
        let k = ((ratio / (2.0 * mu)) as usize).max(1);
        let least = (2.0 * k as f64 * mu).max(ratio).min(1.0) + 1e-5;
        let mut latents: Vec<usize> = (0..D_SAE).collect();
        latents.shuffle(&mut rng);
        let mut chosen = latents[..k].to_vec();
        let mut x = vec![0.0; D_IN];
        for (n, &i) in chosen.iter().enumerate() {
            // The largest and the least are as far apart as they may be.
            let z = size * match n {
                0 => 1.0,
                1 => least.min(1.0),
                _ => rng.random_range(least.min(0.999_999)..=1.0),
            };
            x.iter_mut().zip(&atoms[i * D_IN..]).for_each(|(x, w)| *x += z * w);
        }
        chosen.sort_unstable();
        prop_assert_eq!(support(&tied(&atoms, D_IN, k), &x), chosen, "k {} mu {}", k, mu);
    }
}

#[test]
fn beyond_the_theorem_an_atom_between_two_takes_their_place() {
    // The third lies between the others, so that their sum is nearer to it than to either.
    let half = 0.5f64.sqrt();
    let atoms = [1.0, 0.0, 0.0, 1.0, half, half];
    assert!(2.0 * half > 0.5, "the condition does not hold");
    assert_ne!(support(&tied(&atoms, 2, 2), &[1.0, 1.0]), [0, 1]);
}
