use half::bf16;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// One output after the other, as the module's documentation defines it.
fn twin(rows: &[f32], d_in: usize, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let round = |v: f32| match bf16::from_f32(v).to_f32() {
        v if v.is_subnormal() => 0.0 * v,
        v => v,
    };
    let mut out = Vec::new();
    for x in x.chunks_exact(d_in) {
        for (number, row) in rows.chunks_exact(d_in).enumerate() {
            let mut sum = bias.map_or(0.0, |bias| bias[number]);
            for (x, w) in x.chunks(2).zip(row.chunks(2)) {
                for i in (0..x.len()).rev() {
                    sum += round(x[i]) * round(w[i]);
                }
            }
            out.push(sum);
        }
    }
    out
}

pub(super) fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Equal bits; nothing that is not a number has to have the same ones.
pub(super) fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a == b || a.is_nan() && b.is_nan(), "{what}: {i}: {a:e}, expected {b:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_level_gives_the_bits_of_the_definition(
        seed: u64, n in 0usize..40, d_in in 1usize..70, d_out in 0usize..150, biased: bool, odd_values: bool,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = uniform(&mut rng, d_out * d_in);
        let mut x = uniform(&mut rng, n * d_in);
        if odd_values {
            for v in [f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX, 1e-40, -0.0, 1.0 + 1.0 / 256.0] {
                for values in [&mut rows, &mut x] {
                    if !values.is_empty() {
                        let at = rng.random_range(0..values.len());
                        values[at] = v;
                    }
                }
            }
        }
        let bias = biased.then(|| uniform(&mut rng, d_out));
        let expected = twin(&rows, d_in, bias.as_deref(), &x);
        let matrix = Bf16Matrix::new(&rows, d_in, bias.as_deref());
        for level in Level::ALL {
            let mut out = vec![f32::NAN; n * d_out];
            matrix.product_at(level, &x, 0..d_out, &mut out);
            assert_same(&out, &expected, level.name());
            // Some of the outputs, from a panel's first one on.
            let columns = PANEL.min(d_out / PANEL * PANEL)..d_out - d_out / 5;
            if columns.start <= columns.end {
                let mut some = vec![f32::NAN; n * columns.len()];
                matrix.product_at(level, &x, columns.clone(), &mut some);
                let expected = expected.chunks(d_out.max(1)).flat_map(|row| &row[columns.clone()]);
                assert_same(&some, &expected.copied().collect::<Vec<_>>(), level.name());
            }
        }
    }
}

#[test]
fn a_matrix_renewed_is_a_new_one_whatever_it_was() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut matrix = Bf16Matrix::new(&uniform(&mut rng, 200 * 70), 70, Some(&uniform(&mut rng, 200)));
    for (d_out, d_in) in [(99, 71), (1, 3), (300, 64)] {
        let (rows, x) = (uniform(&mut rng, d_out * d_in), uniform(&mut rng, 5 * d_in));
        matrix.renew(&rows, d_in, None);
        let mut out = vec![f32::NAN; 5 * d_out];
        matrix.product(&x, &mut out);
        assert_same(&out, &twin(&rows, d_in, None, &x), "renewed");
    }
}

#[test]
fn threads_and_blocks_do_not_change_a_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (n, d_in, d_out) = (777, 321, 100);
    let (rows, x) = (uniform(&mut rng, d_out * d_in), uniform(&mut rng, n * d_in));
    let matrix = Bf16Matrix::new(&rows, d_in, None);
    let (mut one, mut many) = (vec![0.0; n * d_out], vec![f32::NAN; n * d_out]);
    matrix.product(&x, &mut one);
    matrix.product_parallel(&x, &mut many);
    assert_same(&many, &one, "threads");
    assert_same(&one, &twin(&rows, d_in, None, &x), "blocks");
}

#[test]
fn the_product_is_as_near_to_the_exact_one_as_bf16_allows() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (d_in, d_out) = (1000, 50);
    let (rows, x) = (uniform(&mut rng, d_out * d_in), uniform(&mut rng, d_in));
    let mut out = vec![0.0; d_out];
    Bf16Matrix::new(&rows, d_in, None).product(&x, &mut out);
    for (found, row) in out.iter().zip(rows.chunks_exact(d_in)) {
        let exact: f64 = row.iter().zip(&x).map(|(&w, &v)| f64::from(w) * f64::from(v)).sum();
        let size: f64 = row
            .iter()
            .zip(&x)
            .map(|(&w, &v)| (f64::from(w) * f64::from(v)).abs())
            .sum();
        // Two roundings of at most 2^-9 each, and they do not all point the same way.
        assert!((f64::from(*found) - exact).abs() < size / 256.0, "{found} {exact}");
    }
}
