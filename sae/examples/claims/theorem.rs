//! The support theorem of k-sparse autoencoders: within its bound every support is recovered, and what happens beyond.

use burn::tensor::{Device, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae::{Allocation, Sae, Score, Sparsifier};

use super::data::directions;

const D_IN: usize = 256;
const ATOMS: usize = 512;
const CODES: usize = 2_000;

/// Of each band of `2 k mu z_1 / z_k`, which the theorem wants at 1 or less: codes, and those whose support came back.
pub fn support(seeds: u64) {
    println!("\n9. Supports of k-sparse codes, 512 random directions and 512 of two bases, 256 dimensions\n");
    println!("| 2 k mu z_1 / z_k | codes | support recovered |\n|---|---|---|");
    let bands = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, f64::INFINITY];
    let mut counts = vec![(0u64, 0u64); bands.len() - 1];
    for seed in 0..seeds {
        for bases in [true, false] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let atoms = if bases {
                two_bases()
            } else {
                directions(&mut rng, ATOMS, D_IN)
            };
            let mu = coherence(&atoms);
            for k in [1, 2, 4, 8, 16] {
                one_k(&mut rng, &atoms, mu, k, &bands, &mut counts);
            }
        }
    }
    for (band, (codes, recovered)) in bands.windows(2).zip(counts) {
        let share = recovered as f64 / codes.max(1) as f64;
        println!(
            "| {} to {} | {codes} | {share:.4} ({} missed) |",
            band[0],
            band[1],
            codes - recovered
        );
    }
}

fn one_k(rng: &mut ChaCha8Rng, atoms: &[f64], mu: f64, k: usize, bands: &[f64], counts: &mut [(u64, u64)]) {
    let device = Device::flex();
    let values: Vec<f32> = atoms.iter().map(|&v| v as f32).collect();
    let matrix = Tensor::<2>::from_data(TensorData::new(values, [ATOMS, D_IN]), &device);
    let sae = Sae {
        per_token: false,
        w_enc: matrix.clone(),
        b_enc: Tensor::zeros([ATOMS], &device),
        w_dec: matrix,
        b_dec: Tensor::zeros([D_IN], &device),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier: Sparsifier::new(Score::Value, Allocation::PerToken { k }),
    };
    let mut latents: Vec<usize> = (0..ATOMS).collect();
    let (mut rows, mut truth) = (Vec::with_capacity(CODES * D_IN), Vec::with_capacity(CODES));
    for _ in 0..CODES {
        latents.shuffle(rng);
        let chosen = latents[..k].to_vec();
        let least: f64 = rng.random_range(0.2..1.0);
        let z: Vec<f64> = (0..k).map(|_| rng.random_range(least..1.0)).collect();
        let mut row = vec![0.0; D_IN];
        for (&i, z) in chosen.iter().zip(&z) {
            row.iter_mut().zip(&atoms[i * D_IN..]).for_each(|(x, w)| *x += z * w);
        }
        rows.extend(row.iter().map(|&v| v as f32));
        let (small, large) = z.iter().fold((f64::MAX, 0.0f64), |(a, b), &z| (a.min(z), b.max(z)));
        truth.push((chosen, 2.0 * k as f64 * mu * large / small));
    }
    let code = sae.encode_rows(&rows).expect("rows of its width");
    for (row, (mut chosen, bound)) in truth.into_iter().enumerate() {
        let mut found: Vec<usize> = code.row(row).map(|e| e.0).collect();
        found.sort_unstable();
        chosen.sort_unstable();
        let band = bands.windows(2).position(|b| bound > b[0] && bound <= b[1]);
        let (codes, recovered) = &mut counts[band.expect("bands cover all numbers")];
        *codes += 1;
        *recovered += u64::from(found == chosen);
    }
}

/// The unit vectors and those of Walsh and Hadamard.
fn two_bases() -> Vec<f64> {
    let high = (D_IN as f64).powf(-0.5);
    let of = |i: usize, j: usize| match i < D_IN {
        true => f64::from(i == j),
        false if ((i - D_IN) & j).count_ones().is_multiple_of(2) => high,
        false => -high,
    };
    (0..ATOMS).flat_map(|i| (0..D_IN).map(move |j| of(i, j))).collect()
}

/// The largest `|cos|` of two rows.
fn coherence(atoms: &[f64]) -> f64 {
    let rows: Vec<&[f64]> = atoms.chunks(D_IN).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>().abs();
    let of = |i: usize| rows[..i].iter().map(|b| dot(rows[i], b)).fold(0.0, f64::max);
    (1..rows.len()).map(of).fold(0.0, f64::max)
}
