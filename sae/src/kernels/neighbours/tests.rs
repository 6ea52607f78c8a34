use burn::backend::Flex;
use burn::tensor::{Device, TensorData};
use burn_flex::FlexTensor;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::rough::{Product, RoughMatrix};
use super::super::simd::{self, Level};
use super::super::tests::{devices, uniform};
use super::*;

fn uniform_rows(seed: u64, n: usize, width: usize) -> Vec<f32> {
    uniform(&mut ChaCha8Rng::seed_from_u64(seed), n * width)
}

fn row(matrix: &[f32], width: usize, i: i32) -> &[f32] {
    &matrix[i as usize * width..][..width]
}

/// The cosine in f64, norms below the least one as that.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let norm = |a: &[f32]| match dot(a, a).sqrt() {
        norm if norm < f64::from(LEAST_NORM) => f64::from(LEAST_NORM),
        norm => norm,
    };
    dot(a, b) / (norm(a) * norm(b))
}

/// Fails if `found`, rows of `matrix`, are not the nearest others of `latents` up to the rounding of f32.
fn judge(matrix: &[f32], width: usize, latents: &[i32], absolute: bool, found: &[i32], what: &str) {
    assert_eq!(found.len(), latents.len(), "{what}");
    for (&i, &chosen) in latents.iter().zip(found) {
        assert!(chosen != i && latents.contains(&chosen), "{what}: {chosen} for {i}");
        let score = |j: i32| match cosine(row(matrix, width, i), row(matrix, width, j)) {
            c if c.is_nan() => f64::NEG_INFINITY,
            c if absolute => c.abs(),
            c => c,
        };
        let others = latents.iter().filter(|j| **j != i);
        let best = others.map(|&j| score(j)).fold(f64::NEG_INFINITY, f64::max);
        let near = score(chosen) >= best - 2e-6 || best == f64::NEG_INFINITY;
        assert!(near, "{what}: {i} is at {} from {chosen}, and at {best}", score(chosen));
    }
}

/// The first of the largest dot products, one after the other.
fn brute(level: Level, unit: &UnitRows, absolute: bool) -> Vec<i32> {
    let n = unit.values.len() / unit.d_in;
    let all: Vec<i32> = (0..n as i32).collect();
    let rows = unit.values.chunks(unit.d_in).enumerate();
    rows.map(|(i, row)| {
        let mut cosines = vec![0.0; n];
        simd::dot_rows(level, &mut cosines, row, &all, unit.values);
        let (mut best, mut winner) = (f32::NEG_INFINITY, usize::from(i == 0));
        for (j, c) in cosines.into_iter().enumerate() {
            let score = if absolute { c.abs() } else { c };
            if j != i && score > best {
                (best, winner) = (score, j);
            }
        }
        winner as i32
    })
    .collect()
}

fn tensor(values: &[f32], width: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / width, width]), device)
}

fn ints(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn read_ints(tensor: Tensor<1, Int>) -> Vec<i32> {
    tensor.into_data().convert::<i32>().to_vec().unwrap()
}

/// Some rows become zeros, no numbers, tiny, or equal or opposite to others.
fn disturb(rng: &mut ChaCha8Rng, matrix: &mut [f32], width: usize, times: usize) {
    let n = matrix.len() / width;
    for _ in 0..times {
        let (i, j) = (rng.random_range(0..n), rng.random_range(0..n));
        let other: Vec<f32> = matrix[j * width..][..width].to_vec();
        let row = &mut matrix[i * width..][..width];
        match rng.random_range(0..6) {
            0 => row.fill(0.0),
            1 => row[width / 2] = f32::NAN,
            2 => row.iter_mut().for_each(|x| *x *= 1e-12),
            3 => row.copy_from_slice(&other),
            4 => row.iter_mut().zip(other).for_each(|(x, o)| *x = -2.0 * o),
            _ => {
                row.fill(0.0);
                row[width - 1] = 3.0;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_nearest_row_is_the_twins_at_every_level_by_every_product(
        seed: u64,
        n in 2usize..420,
        width in 1usize..70,
        absolute: bool,
        disturbed in 0usize..12,
        left_out in 0usize..5,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = uniform(&mut rng, (n + left_out) * width);
        disturb(&mut rng, &mut matrix, width, disturbed);
        let mut latents: Vec<i32> = (0..(n + left_out) as i32).collect();
        rand::seq::SliceRandom::shuffle(&mut latents[..], &mut rng);
        latents.truncate(n);
        for level in Level::ALL {
            let mut values = vec![0.0; n * width];
            unit_rows(level, &matrix, width, &latents, &mut values);
            let unit = UnitRows { values: &values, d_in: width };
            let expected = brute(level, &unit, absolute);
            for product in [Product::Int8, Product::Bf16, Product::F32] {
                let found = unit.nearest(level, absolute, product);
                prop_assert_eq!(&found, &expected, "{:?} at {:?}", product, level);
            }
            if level == simd::level() {
                let rows: Vec<i32> = expected.iter().map(|&at| latents[at as usize]).collect();
                judge(&matrix, width, &latents, absolute, &rows, level.name());
            }
        }
    }
}

#[test]
fn every_device_of_this_build_and_the_portable_form_find_the_twins_rows() {
    for (n, width, absolute) in [(2, 3, false), (7, 1, true), (61, 16, true), (130, 33, false)] {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let mut matrix = uniform(&mut rng, (n + 3) * width);
        disturb(&mut rng, &mut matrix, width, n / 10);
        let latents: Vec<i32> = (0..(n + 3) as i32).rev().filter(|i| i % 40 != 2).take(n).collect();
        for device in devices() {
            let tensor = tensor(&matrix, width, &device);
            // The same numbers, but not one row behind the other.
            let turned = tensor.clone().transpose().mul_scalar(1.0).transpose();
            for search in [Search::Auto, Search::Exact] {
                for (tensor, what) in [(tensor.clone(), "rows"), (turned.clone(), "turned")] {
                    let found = read_ints(nearest(tensor, ints(&latents, &device), absolute, search));
                    judge(&matrix, width, &latents, absolute, &found, what);
                }
            }
        }
        let flex = |values: &[f32]| FlexTensor::from_data(TensorData::new(values.to_vec(), [n + 3, width]));
        let latents_flex = FlexTensor::from_data(TensorData::new(latents.clone(), [latents.len()]));
        let found = portable_nearest::<Flex>(flex(&matrix), latents_flex, absolute);
        let found = found.into_data().convert::<i32>().to_vec::<i32>().unwrap();
        judge(&matrix, width, &latents, absolute, &found, "portable");
    }
}

#[test]
fn what_few_bits_alone_would_get_wrong_f32_decides() {
    // Families of five that lie close together.
    let (n, width) = (900, 97);
    let mut matrix = uniform_rows(3, n, width);
    let parents = uniform_rows(4, n / 5, width);
    for (x, parent) in matrix.iter_mut().zip(parents.iter().cycle()) {
        *x = parent + 0.05 * *x;
    }
    let latents: Vec<i32> = (0..n as i32).collect();
    let level = simd::level();
    let mut values = vec![0.0; n * width];
    unit_rows(level, &matrix, width, &latents, &mut values);
    let unit = UnitRows {
        values: &values,
        d_in: width,
    };
    let expected = brute(level, &unit, false);
    for product in [Product::Int8, Product::Bf16] {
        let mut products = vec![0.0; n * n];
        let matrix = RoughMatrix::new(product, &values, width, None).unwrap();
        matrix.product(&values, 0..n, &mut products);
        let wrong = (0..n).filter(|&i| {
            let line = &mut products[i * n..][..n];
            line[i] = f32::NEG_INFINITY;
            let best = (0..n).max_by(|&a, &b| line[a].total_cmp(&line[b])).unwrap();
            best as i32 != expected[i]
        });
        assert!(wrong.count() > 10, "{product:?}");
        assert_eq!(unit.nearest(level, false, product), expected, "{product:?}");
    }
}

#[test]
fn rows_with_outliers_are_not_searched_in_integers() {
    let (n, width) = (50, 256);
    let latents: Vec<i32> = (0..n as i32).collect();
    let mut values = uniform_rows(8, n, width);
    let wanted = |values: &[f32], level| {
        let mut unit = vec![0.0; n * width];
        unit_rows(level, values, width, &latents, &mut unit);
        UnitRows {
            values: &unit,
            d_in: width,
        }
        .product(level)
    };
    for level in Level::ALL {
        let expected = if level >= Level::Avx512Vnni {
            Product::Int8
        } else {
            Product::F32
        };
        assert_eq!(wanted(&values, level), expected, "{level:?}");
    }
    values.iter_mut().for_each(|v| *v *= 0.01);
    values.iter_mut().step_by(width).for_each(|v| *v = 1.0);
    for level in Level::ALL {
        let expected = if level >= Level::Avx512Bf16 {
            Product::Bf16
        } else {
            Product::F32
        };
        assert_eq!(wanted(&values, level), expected, "{level:?}");
    }
}

#[test]
fn opposite_rows_are_near_by_magnitude_alone_and_of_equal_ones_the_first_is_nearest() {
    let rows = [1.0, 0.0, -1.0, 0.0, 0.8, 0.6, 1.0, 0.0, 1.0, 0.0];
    let device = Device::flex();
    let found = |latents: &[i32], absolute| {
        let matrix = tensor(&rows, 2, &device);
        read_ints(nearest(matrix, ints(latents, &device), absolute, Search::Auto))
    };
    assert_eq!(found(&[0, 1, 2], false), [2, 2, 0]);
    assert_eq!(found(&[0, 1, 2], true), [1, 0, 0]);
    assert_eq!(found(&[4, 3, 0, 2], false), [3, 4, 4, 4]);
    assert_eq!(found(&[2, 1, 0, 4], true), [1, 0, 1, 1]);
}

#[test]
fn a_row_of_zeros_or_of_no_numbers_gets_the_first_other_and_the_latter_is_nobodys() {
    let device = Device::flex();
    let mut rows = uniform_rows(2, 6, 5);
    rows[5..10].fill(0.0);
    rows[17] = f32::NAN;
    let matrix = tensor(&rows, 5, &device);
    for search in [Search::Auto, Search::Exact] {
        let found = read_ints(nearest(
            matrix.clone(),
            ints(&[2, 1, 3, 0, 4, 5], &device),
            true,
            search,
        ));
        assert_eq!((found[1], found[2]), (2, 2));
        assert!(!found.contains(&3) && !found.contains(&1));
    }
}

#[test]
#[should_panic(expected = "1 rows have no neighbours")]
fn one_row_alone_is_refused() {
    let device = Device::flex();
    nearest(
        tensor(&[1.0, 2.0], 2, &device),
        ints(&[0], &device),
        false,
        Search::Auto,
    );
}

#[test]
fn threads_do_not_change_who_is_nearest() {
    let (n, width) = (700, 40);
    let mut matrix = uniform_rows(9, n, width);
    // Many equal ones, so that there is something to disagree about.
    matrix.copy_within(0..300 * width, 400 * width);
    let unit = UnitRows {
        values: &matrix,
        d_in: width,
    };
    for product in [Product::Int8, Product::Bf16, Product::F32] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| unit.nearest(simd::level(), true, product))
        };
        let one = on(1);
        assert!(one == on(2) && one == on(5), "{product:?}");
    }
}

#[test]
fn cosines_and_their_gradients_are_the_twins_on_every_device_and_in_the_portable_form() {
    let (n, width) = (40, 11);
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut matrix = uniform(&mut rng, n * width);
    // Of length 0 and of less than counts, whose norms have no slope; others are of any length.
    matrix[..width].fill(0.0);
    matrix[width..2 * width].iter_mut().for_each(|x| *x *= 1e-8);
    matrix[2 * width..3 * width].iter_mut().for_each(|x| *x *= 100.0);
    // Some rows are in no pair and some in many.
    let ours: Vec<i32> = (0..30).collect();
    let others: Vec<i32> = (0..30)
        .map(|p| if p % 3 == 0 { 31 } else { (p * 7 + 5) % 29 })
        .collect();
    let grad = uniform(&mut rng, ours.len());
    let pairs = || ours.iter().zip(&others).map(|(&a, &b)| (a, b));
    let expected: Vec<f64> = pairs()
        .map(|(a, b)| cosine(row(&matrix, width, a), row(&matrix, width, b)))
        .collect();
    let mut gradient = vec![0.0f64; matrix.len()];
    let norm = |i: i32| {
        row(&matrix, width, i)
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    for ((a, b), (&g, &c)) in pairs().zip(grad.iter().zip(&expected)) {
        for (i, other) in [(a, b), (b, a)] {
            let least = f64::from(LEAST_NORM);
            let (own, far) = (norm(i).max(least), norm(other).max(least));
            for d in 0..width {
                let towards = f64::from(row(&matrix, width, other)[d]) / far;
                let along = if norm(i) > least {
                    c * f64::from(row(&matrix, width, i)[d]) / own
                } else {
                    0.0
                };
                gradient[i as usize * width + d] += f64::from(g) * (towards - along) / own;
            }
        }
    }
    let close = |found: &[f32], expected: &[f64], what: &str| {
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                (f64::from(*a) - b).abs() < 2e-5 * (1.0 + b.abs()),
                "{what} {i}: {a}, expected {b}"
            );
        }
    };
    for device in devices() {
        let device = device.autodiff();
        let leaf = tensor(&matrix, width, &device).require_grad();
        let found = cosines(leaf.clone(), ints(&ours, &device), ints(&others, &device));
        close(
            &found.clone().into_data().to_vec::<f32>().unwrap(),
            &expected,
            "cosines",
        );
        let weights = Tensor::<1>::from_data(TensorData::new(grad.clone(), [grad.len()]), &device);
        let grads = (found * weights).sum().backward();
        let found = leaf.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
        close(&found, &gradient, "gradient");
    }
    let flex = |values: &[f32], shape: Vec<usize>| FlexTensor::from_data(TensorData::new(values.to_vec(), shape));
    let indices = |values: &[i32]| FlexTensor::from_data(TensorData::new(values.to_vec(), [values.len()]));
    let whole = || flex(&matrix, vec![n, width]);
    let (found, norms) = portable_cosines::<Flex>(whole(), indices(&ours), indices(&others));
    close(
        found.clone().into_data().as_slice::<f32>().unwrap(),
        &expected,
        "portable cosines",
    );
    let grad = flex(&grad, vec![grad.len()]);
    let back = portable_cosines_backward::<Flex>(whole(), indices(&ours), indices(&others), found, norms, grad);
    close(
        back.into_data().as_slice::<f32>().unwrap(),
        &gradient,
        "portable gradient",
    );
}
