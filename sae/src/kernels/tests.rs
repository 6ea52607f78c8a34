//! Kernels against their twins, on every device of this build, and gradients against two other ways to get them.

use burn::backend::Flex;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::select::Rank;
use super::twin::{self, Host};
use super::*;

mod gradients;

/// The CPU, and a GPU if this build has one.
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    if cfg!(feature = "vulkan") {
        devices.push(activations::Device::Vulkan(0).open().unwrap());
    }
    devices
}

pub(crate) fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn host(seed: u64, batch: usize, d_in: usize, d_sae: usize) -> Host {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Host {
        d_in,
        d_sae,
        x: uniform(&mut rng, batch * d_in),
        w_enc: uniform(&mut rng, d_sae * d_in),
        b_enc: uniform(&mut rng, d_sae),
        w_dec: uniform(&mut rng, d_sae * d_in),
    }
}

fn matrix(values: &[f32], shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn ints(values: &[i32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let near = (a - b).abs() <= 2e-4 * (1.0 + b.abs());
        assert!(near || (a.is_nan() && b.is_nan()), "{what}[{i}]: {a}, expected {b}");
    }
}

fn encode_on(
    device: &Device,
    host: &Host,
    main: Selection,
    aux: Option<(Score, usize, &[i32])>,
) -> (Vec<i32>, Vec<f32>) {
    let selected = encode(
        matrix(&host.x, [host.batch(), host.d_in], device),
        matrix(&host.w_enc, [host.d_sae, host.d_in], device),
        vector(&host.b_enc, device),
        main,
        aux.map(|(score, k, candidates)| AuxSelection {
            score,
            k,
            candidates: ints(candidates, [1, candidates.len()], device).reshape([candidates.len()]),
        }),
    );
    let indices = selected.indices.into_data().convert::<i32>().to_vec().unwrap();
    (indices, read(selected.values))
}

/// Shapes that fit no vector, tile or power of two, and every third latent dead.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    batch: usize,
    d_in: usize,
    d_sae: usize,
    k: usize,
    score: Score,
    dead: Vec<i32>,
    k_aux: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let score = prop_oneof![Just(Score::Positive), Just(Score::Magnitude)];
    (
        0u64..1000,
        1usize..12,
        1usize..70,
        1usize..200,
        0.0f64..=1.0,
        score,
        1i32..5,
    )
        .prop_map(|(seed, batch, d_in, d_sae, share, score, every)| {
            let dead: Vec<i32> = (0..d_sae as i32).filter(|i| i % every == 0).collect();
            Case {
                seed,
                batch,
                d_in,
                d_sae,
                k: ((d_sae as f64 * share) as usize).clamp(1, d_sae),
                score,
                k_aux: dead.len().div_ceil(2),
                dead,
            }
        })
}

/// Holds a selection against the twin's. Rounding may let nearly equal scores change places, so scores are compared slot
/// by slot, and an index is judged by what it points at.
fn judge_selection(case: &Case, host: &Host, indices: &[i32], values: &[f32]) {
    let main = Selection {
        score: case.score,
        k: case.k,
    };
    let aux_rank = match case.score {
        Score::Positive => Rank::Value,
        Score::Magnitude => Rank::Score(Score::Magnitude),
    };
    let (_, expected) = host.encode(main, Some((aux_rank, case.k_aux, &case.dead)));
    let scores = |values: &[f32]| -> Vec<f32> {
        let of = |v: &f32| if case.score == Score::Magnitude { v.abs() } else { *v };
        values.iter().map(of).collect()
    };
    assert_close(&scores(values), &scores(&expected), "scores");
    let pre = host.pre();
    let slots = case.k + case.k_aux;
    for (n, (&i, &v)) in indices.iter().zip(values).enumerate() {
        let (row, slot) = (n / slots, n % slots);
        assert!((0..case.d_sae as i32).contains(&i), "index {i}");
        let u = pre[row * case.d_sae + i as usize];
        let u = if slot < case.k { case.score.value(u) } else { u };
        assert!(
            (u - v).abs() <= 1e-4 * (1.0 + u.abs()),
            "slot {slot} says {v}, latent {i} is {u}"
        );
        assert!(slot < case.k || case.dead.contains(&i), "{i} is not dead");
    }
    for row in indices.chunks(slots) {
        for part in [&row[..case.k], &row[case.k..]] {
            let mut latents = part.to_vec();
            latents.sort();
            latents.dedup();
            assert_eq!(latents.len(), part.len(), "a latent twice in a code");
        }
    }
}

/// Holds [`encode`] on `device` against the twin.
fn check_encoding(case: &Case, device: &Device) {
    let host = host(case.seed, case.batch, case.d_in, case.d_sae);
    let main = Selection {
        score: case.score,
        k: case.k,
    };
    let aux = Some((case.score, case.k_aux, &case.dead[..]));
    let (indices, values) = encode_on(device, &host, main, aux);
    judge_selection(case, &host, &indices, &values);
}

/// Holds [`decode`] on `device` and its gradients against the twins, on a code of random latents: some twice in a row,
/// and with few latents, many times in the batch.
fn check_products(case: &Case, zero_rows: bool, device: &Device) {
    let host = host(case.seed, case.batch, case.d_in, case.d_sae);
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed + 1);
    let slots = case.k.min(40);
    let indices: Vec<i32> = (0..case.batch * slots)
        .map(|_| rng.random_range(0..case.d_sae as i32))
        .collect();
    let mut values = uniform(&mut rng, case.batch * slots);
    for (n, v) in values.iter_mut().enumerate() {
        if n.is_multiple_of(5) || (zero_rows && (n / slots).is_multiple_of(2)) {
            *v = 0.0;
        }
    }
    let d_in = case.d_in;
    let sums = twin::sum_rows(&indices, &values, slots, &host.w_dec, d_in);
    let dots = twin::dot_rows(&indices, slots, &host.x, &host.w_dec, d_in);
    let (scattered, weights) = twin::scatter_rows(&indices, &values, slots, &host.x, d_in, case.d_sae);
    let device = device.clone().autodiff();
    let code = matrix(&values, [case.batch, slots], &device).require_grad();
    let w_dec = matrix(&host.w_dec, [case.d_sae, d_in], &device).require_grad();
    let recon = decode(
        ints(&indices, [case.batch, slots], &device),
        code.clone(),
        w_dec.clone(),
    );
    assert_close(&read(recon.clone()), &sums, "recon");
    // The gradient of `sum(recon * x)` with respect to the reconstruction is x.
    let grads = (recon * matrix(&host.x, [case.batch, d_in], &device)).sum().backward();
    assert_close(&read(code.grad(&grads).unwrap()), &dots, "gradient of values");
    assert_close(&read(w_dec.grad(&grads).unwrap()), &scattered, "gradient of w_dec");

    let by_latent = cpu::ByLatent::new(&indices, &values, slots, case.d_sae);
    let (mut found, mut found_sums) = (vec![f32::NAN; case.d_sae * d_in], vec![f32::NAN; case.d_sae]);
    by_latent.scatter(&host.x, d_in, &mut found, &mut found_sums);
    assert_close(&found, &scattered, "scattered");
    assert_close(&found_sums, &weights, "sums of weights");
}

#[test]
fn every_device_of_this_build_computes_what_the_twins_do() {
    // Few shapes: a GPU's driver compiles for each.
    for device in devices() {
        for (batch, d_in, d_sae, k, score) in [
            (5, 33, 47, 6, Score::Positive),
            (5, 33, 47, 1, Score::Magnitude),
            (2, 8, 7, 7, Score::Magnitude),
        ] {
            let case = Case {
                seed: 11,
                batch,
                d_in,
                d_sae,
                k,
                score,
                dead: (0..d_sae as i32).step_by(3).collect(),
                k_aux: 2,
            };
            check_encoding(&case, &device);
            check_products(&case, true, &device);
        }
    }
}

fn on_flex(tensor: Tensor<2>) -> burn_flex::FlexTensor {
    tensor.try_into_primitive::<Flex>().unwrap()
}

fn off_flex(tensor: burn_flex::FlexTensor) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn encoding_selects_what_sorting_the_dense_product_would(case in cases()) {
        check_encoding(&case, &Device::flex());
    }

    #[test]
    fn sparse_products_equal_their_twins(case in cases(), zero_rows: bool) {
        check_products(&case, zero_rows, &Device::flex());
    }

    #[test]
    fn the_portable_products_equal_their_twins(case in cases()) {
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let mut rng = ChaCha8Rng::seed_from_u64(case.seed + 1);
        let (slots, d_in) = (case.k.min(40), case.d_in);
        let indices: Vec<i32> = (0..case.batch * slots).map(|_| rng.random_range(0..case.d_sae as i32)).collect();
        let values = uniform(&mut rng, case.batch * slots);
        let device = Device::flex();
        let float = |v: &[f32], shape| on_flex(matrix(v, shape, &device));
        let code = || ints(&indices, [case.batch, slots], &device).try_into_primitive::<Flex>().unwrap();
        let weights = || float(&values, [case.batch, slots]);
        let (x, w_dec) = (|| float(&host.x, [case.batch, d_in]), || float(&host.w_dec, [case.d_sae, d_in]));
        let recon = portable::sum_rows::<Flex>(code(), weights(), w_dec());
        assert_close(&off_flex(recon), &twin::sum_rows(&indices, &values, slots, &host.w_dec, d_in), "sums");
        let dots = portable::dot_rows::<Flex>(code(), x(), w_dec());
        assert_close(&off_flex(dots), &twin::dot_rows(&indices, slots, &host.x, &host.w_dec, d_in), "dots");
        let (scattered, sums) = portable::scatter_rows::<Flex>(code(), weights(), x(), case.d_sae);
        let expected = twin::scatter_rows(&indices, &values, slots, &host.x, d_in, case.d_sae);
        assert_close(&off_flex(scattered), &expected.0, "scattered");
        assert_close(&off_flex(sums), &expected.1, "sums of weights");

        let main = Selection { score: case.score, k: case.k };
        let aux_rank = if case.score == Score::Positive { Rank::Value } else { Rank::Score(Score::Magnitude) };
        let (indices, values) = portable::select::<Flex>(
            x(),
            float(&host.w_enc, [case.d_sae, d_in]),
            vector(&host.b_enc, &device).try_into_primitive::<Flex>().unwrap(),
            ints(&case.dead, [1, case.dead.len()], &device).reshape([case.dead.len()]).try_into_primitive::<Flex>().unwrap(),
            ops::EncodePlan { main, aux_rank, aux_k: case.k_aux },
        );
        let indices = Tensor::<2, Int>::from_primitive::<Flex>(indices).into_data().to_vec::<i32>().unwrap();
        judge_selection(&case, &host, &indices, &off_flex(values));
    }

    #[test]
    fn every_level_of_the_processor_computes_the_same_rows(
        seed: u64, width in 1usize..300, n in 0usize..11,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (table, v) = (uniform(&mut rng, 9 * width), uniform(&mut rng, width));
        let rows: Vec<u32> = (0..n).map(|_| rng.random_range(0..9)).collect();
        let signed: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
        let weights = uniform(&mut rng, n);
        for level in [Level::Scalar, Level::Avx2, Level::Avx512] {
            let mut out = vec![f32::NAN; width];
            simd::sum_rows(level, &mut out, &rows, &weights, &table);
            let expected = if n == 0 { vec![0.0; width] } else { twin::sum_rows(&signed, &weights, n, &table, width) };
            assert_close(&out, &expected, "sum of rows");
            let mut dots = vec![f32::NAN; n];
            simd::dot_rows(level, &mut dots, &v, &signed, &table);
            if n > 0 {
                assert_close(&dots, &twin::dot_rows(&signed, n, &v, &table, width), "dots");
            }
            let squares: f64 = v.iter().map(|&v| f64::from(v).powi(2)).sum();
            prop_assert!((simd::sum_of_squares(level, &v) - squares).abs() < 1e-9 * (1.0 + squares));
        }
    }
}

#[test]
fn an_auxiliary_code_is_no_wider_than_its_candidates() {
    for device in devices() {
        let host = host(1, 3, 4, 8);
        let main = Selection {
            score: Score::Magnitude,
            k: 2,
        };
        let (indices, _) = encode_on(&device, &host, main, Some((Score::Magnitude, 5, &[3, 6])));
        assert_eq!(indices.len(), 3 * 4);
        let selected = |row: usize| {
            let mut aux = indices[row * 4 + 2..][..2].to_vec();
            aux.sort();
            aux
        };
        assert!((0..3).all(|row| selected(row) == [3, 6]));
    }
}

#[test]
fn rows_of_every_tile_of_the_product_are_selected_from() {
    // Tiles of the CPU's encoder hold 2^23 elements: 119 rows of this width.
    let host = host(4, 150, 3, 70_000);
    let main = Selection {
        score: Score::Magnitude,
        k: 2,
    };
    let (_, values) = encode_on(&Device::flex(), &host, main, None);
    let (_, expected) = host.encode(main, None);
    let scores = |values: Vec<f32>| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    assert_close(&scores(values), &scores(expected), "scores");
}

#[test]
fn a_nan_in_one_row_stays_in_that_row() {
    let device = Device::flex();
    let mut host = host(2, 3, 4, 8);
    host.x[5] = f32::NAN;
    let main = Selection {
        score: Score::Magnitude,
        k: 3,
    };
    let (_, values) = encode_on(&device, &host, main, None);
    assert_eq!(values[3..6], [0.0; 3]);
    assert!(
        values[..3]
            .iter()
            .chain(&values[6..])
            .all(|v| v.is_finite() && *v != 0.0)
    );
}

#[test]
fn the_portable_step_of_adam_equals_the_cpus() {
    let mut host = host(7, 1, 75, 37);
    host.w_dec[..75].fill(0.0);
    for row in host.w_dec[75..].chunks_mut(75) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    }
    for unit_rows in [false, true] {
        let step = AdamStep {
            beta_1: 0.9,
            beta_2: 0.99,
            eps: 1e-8,
            rate: 0.01,
            root_correction: 3.0,
            grad_scale: 0.5,
            unit_rows,
        };
        // A row of zeros without a gradient has to stay one.
        let mut grad = host.w_enc.clone();
        grad[..75].fill(0.0);
        let (mut param, mut m, mut v) = (host.w_dec.clone(), vec![0.1; 37 * 75], vec![0.2; 37 * 75]);
        m[..75].fill(0.0);
        let float = |v: &[f32]| on_flex(matrix(v, [37, 75], &Device::flex()));
        let portable = portable::adam::<Flex>(float(&param), float(&grad), float(&m), float(&v), step);
        adam::update(&mut param, &grad, &mut m, &mut v, 75, step);
        assert_eq!(param[..75], [0.0; 75]);
        for (cpu, portable) in [(param, portable.0), (m, portable.1), (v, portable.2)] {
            assert_close(&off_flex(portable), &cpu, "Adam");
        }
    }
}
