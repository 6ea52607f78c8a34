//! Kernels against their twins, on every device of this build, and gradients against two other ways to get them.

use burn::backend::Flex;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::select::Rank;
use super::twin::{self, Host};
use super::*;

/// The CPU, and a GPU if this build has one.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    if cfg!(feature = "vulkan") {
        devices.push(activations::Device::Vulkan(0).open().unwrap());
    }
    devices
}

fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
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
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let main = Selection { score: case.score, k: case.k };
        for device in devices() {
            let (indices, values) = encode_on(&device, &host, main, Some((case.score, case.k_aux, &case.dead)));
            judge_selection(&case, &host, &indices, &values);
        }
    }

    #[test]
    fn sparse_products_equal_their_twins(case in cases(), zero_rows: bool) {
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let mut rng = ChaCha8Rng::seed_from_u64(case.seed + 1);
        let slots = case.k.min(40);
        // Latents at random: some twice in a row, and with few latents, many times in the batch.
        let indices: Vec<i32> = (0..case.batch * slots).map(|_| rng.random_range(0..case.d_sae as i32)).collect();
        let mut values = uniform(&mut rng, case.batch * slots);
        for (n, v) in values.iter_mut().enumerate() {
            if n % 5 == 0 || (zero_rows && n / slots % 2 == 0) {
                *v = 0.0;
            }
        }
        let d_in = case.d_in;
        let sums = twin::sum_rows(&indices, &values, slots, &host.w_dec, d_in);
        let dots = twin::dot_rows(&indices, slots, &host.x, &host.w_dec, d_in);
        let (scattered, weights) = twin::scatter_rows(&indices, &values, slots, &host.x, d_in, case.d_sae);
        for device in devices() {
            let device = device.autodiff();
            let code = matrix(&values, [case.batch, slots], &device).require_grad();
            let w_dec = matrix(&host.w_dec, [case.d_sae, d_in], &device).require_grad();
            let recon = decode(ints(&indices, [case.batch, slots], &device), code.clone(), w_dec.clone());
            assert_close(&read(recon.clone()), &sums, "recon");
            // The gradient of `sum(recon * x)` with respect to the reconstruction is x.
            let grads = (recon * matrix(&host.x, [case.batch, d_in], &device)).sum().backward();
            assert_close(&read(code.grad(&grads).unwrap()), &dots, "gradient of values");
            assert_close(&read(w_dec.grad(&grads).unwrap()), &scattered, "gradient of w_dec");
        }
        let by_latent = cpu::ByLatent::new(&indices, &values, slots, case.d_sae);
        let (mut found, mut found_sums) = (vec![f32::NAN; case.d_sae * d_in], vec![f32::NAN; case.d_sae]);
        by_latent.scatter(&host.x, d_in, &mut found, &mut found_sums);
        assert_close(&found, &scattered, "scattered");
        assert_close(&found_sums, &weights, "sums of weights");
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

/// A loss that uses everything: both codes, decoded, against x.
struct Loss {
    device: Device,
    main: Selection,
    aux: Option<(Score, usize, Vec<i32>)>,
}

impl Loss {
    /// Loss, gradients of x, w_enc, b_enc and w_dec, and the latents of every row, ascending.
    fn run(&self, host: &Host) -> (f64, [Vec<f32>; 4], Vec<i32>) {
        let device = &self.device;
        let x = matrix(&host.x, [host.batch(), host.d_in], device).require_grad();
        let w_enc = matrix(&host.w_enc, [host.d_sae, host.d_in], device).require_grad();
        let b_enc = vector(&host.b_enc, device).require_grad();
        let w_dec = matrix(&host.w_dec, [host.d_sae, host.d_in], device).require_grad();
        let aux = self.aux.as_ref().map(|(score, k, dead)| AuxSelection {
            score: *score,
            k: *k,
            candidates: Tensor::from_data(TensorData::new(dead.clone(), [dead.len()]), device),
        });
        let code = encode(x.clone(), w_enc.clone(), b_enc.clone(), self.main, aux);
        let [_, slots] = code.indices.dims();
        let mut support: Vec<i32> = code.indices.clone().into_data().convert::<i32>().to_vec().unwrap();
        support.chunks_mut(slots).for_each(|row| row.sort());
        let main = code.main();
        let mut loss = (decode(main.indices, main.values, w_dec.clone()) - x.clone())
            .powi_scalar(2)
            .sum();
        if let Some(aux) = code.aux() {
            loss = loss
                + (decode(aux.indices, aux.values, w_dec.clone()) - x.clone())
                    .powi_scalar(2)
                    .sum();
        }
        let grads = loss.backward();
        let gradients = [
            read(x.grad(&grads).unwrap()),
            read(w_enc.grad(&grads).unwrap()),
            read(b_enc.grad(&grads).unwrap()),
            read(w_dec.grad(&grads).unwrap()),
        ];
        (f64::from(read(loss)[0]), gradients, support)
    }

    /// The same through a dense code under burn's own autodiff, given which slots fire.
    fn dense(&self, host: &Host) -> [Vec<f32>; 4] {
        let device = &self.device;
        let [batch, d_in, d_sae] = [host.batch(), host.d_in, host.d_sae];
        let x = matrix(&host.x, [batch, d_in], device).require_grad();
        let w_enc = matrix(&host.w_enc, [d_sae, d_in], device).require_grad();
        let b_enc = vector(&host.b_enc, device).require_grad();
        let w_dec = matrix(&host.w_dec, [d_sae, d_in], device).require_grad();
        let pre = x.clone().matmul(w_enc.clone().transpose()) + b_enc.clone().unsqueeze::<2>();
        let mask = |rank: Rank, k: usize, latents: &[i32]| {
            let mut mask = vec![0.0f32; batch * d_sae];
            for (row, pre) in host.pre().chunks(d_sae).enumerate() {
                let subset: Vec<f32> = latents.iter().map(|&i| pre[i as usize]).collect();
                let (winners, values) = select::top_k_twin(&subset, rank, k);
                for (&i, &v) in winners.iter().zip(&values) {
                    mask[row * d_sae + latents[i as usize] as usize] = f32::from(v != 0.0);
                }
            }
            matrix(&mask, [batch, d_sae], device)
        };
        let all: Vec<i32> = (0..d_sae as i32).collect();
        let main = pre.clone() * mask(Rank::Score(self.main.score), self.main.k, &all);
        let mut loss = (main.matmul(w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        if let Some((score, k, dead)) = &self.aux {
            let rank = match score {
                Score::Positive => Rank::Value,
                Score::Magnitude => Rank::Score(Score::Magnitude),
            };
            let aux = pre * mask(rank, *k, dead);
            loss = loss + (aux.matmul(w_dec.clone()) - x.clone()).powi_scalar(2).sum();
        }
        let grads = loss.backward();
        [
            read(x.grad(&grads).unwrap()),
            read(w_enc.grad(&grads).unwrap()),
            read(b_enc.grad(&grads).unwrap()),
            read(w_dec.grad(&grads).unwrap()),
        ]
    }
}

fn losses() -> Vec<Loss> {
    let mut losses = Vec::new();
    for device in devices() {
        for score in [Score::Positive, Score::Magnitude] {
            for aux in [None, Some((score, 4, vec![1, 2, 8, 13, 14, 20]))] {
                losses.push(Loss {
                    device: device.clone().autodiff(),
                    main: Selection { score, k: 5 },
                    aux,
                });
            }
        }
    }
    losses
}

#[test]
fn gradients_equal_those_of_a_dense_code_under_burns_autodiff() {
    for loss in losses() {
        let host = host(3, 7, 9, 23);
        let (_, sparse, _) = loss.run(&host);
        let dense = loss.dense(&host);
        for ((sparse, dense), what) in sparse.iter().zip(&dense).zip(["x", "w_enc", "b_enc", "w_dec"]) {
            assert!(dense.iter().any(|v| *v != 0.0), "{what} has a gradient");
            assert_close(sparse, dense, what);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for loss in losses() {
        let mut host = host(5, 4, 6, 23);
        let (_, gradients, support) = loss.run(&host);
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut checked = 0;
        for (which, gradient) in gradients.iter().enumerate() {
            for _ in 0..8 {
                let at = rng.random_range(0..gradient.len());
                let mut shifted = |by: f32| {
                    let parameter = match which {
                        0 => &mut host.x,
                        1 => &mut host.w_enc,
                        2 => &mut host.b_enc,
                        _ => &mut host.w_dec,
                    };
                    parameter[at] += by;
                    loss.run(&host)
                };
                let step = 2e-3;
                let ((up, _, up_support), (down, _, down_support)) = (shifted(step), shifted(-2.0 * step));
                shifted(step);
                // The loss jumps where one latent overtakes another: there is no slope to compare with.
                if up_support != support || down_support != support {
                    continue;
                }
                checked += 1;
                let slope = (up - down) / (2.0 * f64::from(step));
                let error = (slope - f64::from(gradient[at])).abs();
                assert!(
                    error < 2e-2 * (1.0 + slope.abs()),
                    "input {which}[{at}]: {} and {slope}",
                    gradient[at]
                );
            }
        }
        assert!(checked >= 24, "only {checked} of 32 coordinates compared");
    }
}

#[test]
fn a_dead_latent_below_zero_gets_a_gradient_through_the_auxiliary_code() {
    for device in devices() {
        let device = device.autodiff();
        let x = Tensor::<2>::from_floats([[1.0, 0.0]], &device);
        let w_enc = Tensor::<2>::from_floats([[2.0, 0.0], [-1.0, 0.0]], &device).require_grad();
        let aux = AuxSelection {
            score: Score::Positive,
            k: 1,
            candidates: Tensor::from_ints([1], &device),
        };
        let main = Selection {
            score: Score::Positive,
            k: 1,
        };
        let code = encode(x, w_enc.clone(), Tensor::zeros([2], &device), main, Some(aux));
        let aux = code.aux().unwrap();
        assert_eq!(read(aux.values.clone()), [-1.0]);
        let grads = aux.values.sum().backward();
        assert_eq!(read(w_enc.grad(&grads).unwrap()), [0.0, 0.0, 1.0, 0.0]);
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
fn inputs_off_the_autodiff_device_are_lifted_onto_it() {
    let plain = Device::flex();
    let w_enc = Tensor::<2>::ones([3, 2], &plain.clone().autodiff()).require_grad();
    let main = Selection {
        score: Score::Positive,
        k: 1,
    };
    let code = encode(
        Tensor::ones([1, 2], &plain),
        w_enc.clone(),
        Tensor::zeros([3], &plain),
        main,
        None,
    )
    .main();
    let recon = decode(code.indices, code.values, Tensor::ones([3, 2], &plain));
    let grads = recon.sum().backward();
    assert_eq!(read(w_enc.grad(&grads).unwrap()), [2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// Everything a step computes, as bits.
fn step_bits() -> Vec<u32> {
    let host = host(9, 300, 130, 1030);
    let loss = Loss {
        device: Device::flex().autodiff(),
        main: Selection {
            score: Score::Magnitude,
            k: 17,
        },
        aux: Some((Score::Magnitude, 20, (0..1030).step_by(3).collect())),
    };
    let (value, gradients, _) = loss.run(&host);
    let mut param = host.w_dec.clone();
    let (mut m, mut v) = (vec![0.0; param.len()], vec![0.0; param.len()]);
    let step = AdamStep {
        beta_1: 0.9,
        beta_2: 0.99,
        eps: 1e-8,
        rate: 0.1,
        root_correction: 10.0,
        grad_scale: 1.0,
        unit_rows: true,
    };
    adam::update(&mut param, &gradients[3], &mut m, &mut v, 130, step);
    let squares = sum_of_squares(&gradients[1]);
    let all = gradients.iter().flatten().chain(&param).chain(&m).chain(&v);
    let mut bits: Vec<u32> = all.map(|v| v.to_bits()).collect();
    bits.extend([(value as f32).to_bits(), (squares as f32).to_bits()]);
    bits
}

#[test]
fn a_step_has_the_same_bytes_whatever_the_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(step_bits)
    };
    let one = on(1);
    assert!(one.iter().any(|v| *v != 0));
    assert!(one == on(3), "one thread and three disagree");
    assert!(one == on(2), "one thread and two disagree");
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
