use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::tests::{assert_same, uniform};
use super::*;

/// A row as whole multiples of its step, one value after the other.
fn whole_twin(row: &[f32]) -> (Vec<i64>, f32) {
    if row.iter().any(|v| !v.is_finite()) {
        return (vec![0; row.len()], f32::NAN);
    }
    let largest = row.iter().fold(0f32, |a, v| a.max(v.abs()));
    if largest < 1e-30 {
        return (vec![0; row.len()], largest);
    }
    let step = largest / 127.0;
    let multiples = row.iter().map(|v| (v * (1.0 / step)).round_ties_even() as i64);
    (multiples.collect(), step)
}

fn twin(rows: &[f32], d_in: usize, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks_exact(d_in) {
        let (x, row_step) = whole_twin(x);
        for (number, row) in rows.chunks_exact(d_in).enumerate() {
            let (w, step) = whole_twin(row);
            let sum: i64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
            out.push(sum as f32 * (row_step * step) + bias.map_or(0.0, |bias| bias[number]));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_level_gives_the_bits_of_sums_of_whole_numbers(
        seed: u64, n in 0usize..40, d_in in 1usize..200, d_out in 0usize..150, biased: bool, odd_values: bool,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = uniform(&mut rng, d_out * d_in);
        let mut x = uniform(&mut rng, n * d_in);
        if odd_values {
            for v in [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e30, 1e-40, -0.0] {
                for values in [&mut rows, &mut x] {
                    if !values.is_empty() {
                        let at = rng.random_range(0..values.len());
                        values[at] = v;
                    }
                }
            }
            // Rows of zeros, and of next to nothing.
            for values in [&mut rows, &mut x] {
                for (row, v) in values.chunks_exact_mut(d_in).zip([0.0, 1e-38]) {
                    row.fill(v);
                }
            }
        }
        let bias = biased.then(|| uniform(&mut rng, d_out));
        let expected = twin(&rows, d_in, bias.as_deref(), &x);
        // In memory that had something else in it.
        let mut matrix = Int8Matrix::new(&uniform(&mut rng, 3 * d_in), d_in, None);
        matrix.renew(&rows, d_in, bias.as_deref());
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
fn the_largest_sums_of_the_widest_rows_do_not_overflow() {
    let d_in = MOST_INPUTS;
    for (x, w) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)] {
        let matrix = Int8Matrix::new(&vec![w; d_in], d_in, None);
        for level in Level::ALL {
            let mut out = [0.0];
            matrix.product_at(level, &vec![x; d_in], 0..1, &mut out);
            let expected = x * w * d_in as f32;
            assert!((out[0] / expected - 1.0).abs() < 1e-5, "{} {}", out[0], level.name());
        }
    }
}

#[test]
fn no_value_is_wrong_by_more_than_half_a_step() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for scale in [1e-28f32, 1.0, 1e30] {
        let row: Vec<f32> = uniform(&mut rng, 500).iter().map(|v| v * scale).collect();
        let step = step(cpu::level(), &row);
        // Times the unit vectors, which are exact.
        let d_in = row.len();
        let mut unit = vec![0.0; d_in * d_in];
        (0..d_in).for_each(|i| unit[i * d_in + i] = 127.0);
        let mut out = vec![0.0; d_in];
        Int8Matrix::new(&unit, d_in, None).product(&row, &mut out);
        for (out, v) in out.iter().zip(&row) {
            assert!((out / 127.0 - v).abs() <= 0.5001 * step, "{out} {v}");
        }
    }
}
