//! Kernels against their twins, on every device of this build, and gradients against two other ways to get them.

use burn::backend::Flex;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::ops::Budget;
use super::twin::{self, Host};
use super::*;
use crate::code::HostCode;

mod gradients;
mod nominations;

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

/// What is selected, and the bars there are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    PerToken(usize),
    PerBatch(usize),
    /// Up to so many rows of a latent.
    PerLatent(usize),
    /// Everybody above zero, or above bars around it.
    Above {
        zero: bool,
    },
}

impl Kind {
    fn budget(self, batch: usize) -> Budget {
        match self {
            Self::PerToken(k) => Budget::PerToken(k),
            Self::PerBatch(k) => Budget::PerBatch(k * batch),
            Self::PerLatent(_) => Budget::PerLatent,
            Self::Above { .. } => Budget::Above,
        }
    }

    fn bars(self, d_sae: usize) -> Vec<f32> {
        match self {
            Self::Above { zero: false } => (0..d_sae).map(|i| (i % 7) as f32 * 0.2 - 0.3).collect(),
            Self::PerLatent(most) => (0..d_sae).map(|i| (i % (most + 1)) as f32).collect(),
            _ => vec![0.0; d_sae],
        }
    }

    fn selection(self, score: Score, d_sae: usize, device: &Device) -> Selection {
        match self {
            Self::PerToken(k) => Selection::PerToken { score, k },
            Self::PerBatch(k) => Selection::PerBatch { score, k },
            Self::PerLatent(_) => Selection::PerLatent {
                score,
                budgets: vector(&self.bars(d_sae), device),
            },
            Self::Above { .. } => Selection::Above {
                score,
                bars: vector(&self.bars(d_sae), device),
            },
        }
    }
}

fn encode_on(
    device: &Device,
    host: &Host,
    main: Selection,
    aux: Option<(Score, usize, &[i32])>,
) -> (HostCode, Option<HostCode>) {
    let selected = encode(
        matrix(&host.x, [host.batch(), host.d_in], device),
        matrix(&host.w_enc, [host.d_sae, host.d_in], device),
        vector(&host.b_enc, device),
        main,
        aux.map(|(score, k, candidates)| AuxSelection {
            score,
            k,
            candidates: Tensor::from_data(TensorData::new(candidates.to_vec(), [candidates.len()]), device),
        }),
        Search::Auto,
    );
    (
        selected.main.to_host().unwrap(),
        selected.aux.map(|aux| aux.to_host().unwrap()),
    )
}

/// Shapes that fit no vector, tile or power of two, and every third latent dead.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    batch: usize,
    d_in: usize,
    d_sae: usize,
    kind: Kind,
    score: Score,
    dead: Vec<i32>,
    k_aux: usize,
}

impl Case {
    fn aux_score(&self) -> Score {
        match self.score {
            Score::Magnitude => Score::Magnitude,
            Score::Positive | Score::Value => Score::Value,
        }
    }

    fn plan(&self) -> ops::EncodePlan {
        ops::EncodePlan {
            score: self.score,
            budget: self.kind.budget(self.batch),
            aux_score: self.aux_score(),
            aux_k: self.k_aux,
            exact: true,
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let score = prop_oneof![Just(Score::Positive), Just(Score::Magnitude), Just(Score::Value)];
    (
        0u64..1000,
        1usize..12,
        1usize..70,
        1usize..200,
        (0.0f64..=1.0, 0..5),
        score,
        1i32..5,
    )
        .prop_map(|(seed, batch, d_in, d_sae, (share, kind), score, every)| {
            let dead: Vec<i32> = (0..d_sae as i32).filter(|i| i % every == 0).collect();
            let k = ((d_sae as f64 * share) as usize).clamp(1, d_sae);
            Case {
                seed,
                batch,
                d_in,
                d_sae,
                kind: match kind {
                    0 => Kind::PerToken(k),
                    1 => Kind::PerBatch(k),
                    2 => Kind::PerLatent(1 + k % 7),
                    _ => Kind::Above { zero: kind == 3 },
                },
                score,
                k_aux: dead.len().div_ceil(2),
                dead,
            }
        })
}

/// Holds a code against the twin's. Rounding may let nearly equal scores change places, and a score at a bar fall on
/// either side of it, so an entry is judged by what it points at, and sizes of rows by the entries clear of the border.
fn judge_selection(case: &Case, host: &Host, code: &HostCode, aux: &HostCode) {
    let (pre, bars) = (host.pre(), case.kind.bars(case.d_sae));
    let budget = case.kind.budget(case.batch);
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
    let keeps_pre = budget == Budget::Above;
    for (row, range) in code.rows.ranges().enumerate() {
        for (&i, &v) in code.indices[range.clone()].iter().zip(&code.values[range.clone()]) {
            assert!((0..case.d_sae as i32).contains(&i), "index {i}");
            let u = pre[row * case.d_sae + i as usize];
            let expected = if keeps_pre { u } else { case.score.value(u) };
            // The one inactive entry of an empty code has value 0.
            assert!(
                near(v, expected) || (v == 0.0 && code.rows.len() == 1),
                "{v}, latent {i} is {u}"
            );
        }
        let mut latents = code.indices[range].to_vec();
        latents.sort();
        latents.dedup();
        assert_eq!(latents.len(), code.rows.range(row).len(), "a latent twice in a row");
    }
    let expected = host.encode(case.score, budget, &bars);
    let scores = |code: &HostCode, range: std::ops::Range<usize>| -> Vec<f32> {
        let of = |v: &f32| if case.score == Score::Magnitude { v.abs() } else { *v };
        code.values[range].iter().map(of).collect()
    };
    match budget {
        Budget::PerToken(_) => {
            for (a, b) in code.rows.ranges().zip(expected.rows.ranges()) {
                assert_close(&scores(code, a), &scores(&expected, b), "scores");
            }
        }
        Budget::PerBatch(_) => {
            let sorted = |code: &HostCode| {
                let mut all = scores(code, 0..code.values.len());
                all.retain(|s| *s != 0.0);
                all.sort_by(f32::total_cmp);
                all
            };
            assert_close(&sorted(code), &sorted(&expected), "scores of the batch");
        }
        Budget::PerLatent => {
            let sorted = |code: &HostCode| -> (Vec<i32>, Vec<f32>) {
                let scores = scores(code, 0..code.rows.len());
                let mut all: Vec<(i32, f32)> = code.indices.iter().copied().zip(scores).collect();
                all.retain(|e| e.1 != 0.0);
                all.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
                all.into_iter().unzip()
            };
            let (found, expected) = (sorted(code), sorted(&expected));
            assert_eq!(found.0, expected.0);
            assert_close(&found.1, &expected.1, "scores of every latent");
        }
        Budget::Above => {
            for row in 0..case.batch {
                for i in 0..case.d_sae {
                    let u = pre[row * case.d_sae + i];
                    let score = if case.score == Score::Magnitude { u.abs() } else { u };
                    let inside = code.indices[code.rows.range(row)].contains(&(i as i32)) && code.values[0] != 0.0;
                    let clear = !near(score, bars[i]);
                    assert!(
                        !clear || inside == (score > bars[i]),
                        "row {row}: latent {i} is {u}, bar {}",
                        bars[i]
                    );
                }
            }
        }
    }

    let expected = host.encode_aux(case.aux_score(), case.k_aux, &case.dead);
    assert_eq!(aux.rows, expected.rows);
    assert_close(
        &scores(aux, 0..aux.values.len()),
        &scores(&expected, 0..aux.values.len()),
        "auxiliary scores",
    );
    for (row, range) in aux.rows.ranges().enumerate() {
        for (&i, &v) in aux.indices[range.clone()].iter().zip(&aux.values[range]) {
            assert!(case.dead.contains(&i), "{i} is not dead");
            assert!(near(v, pre[row * case.d_sae + i as usize]));
        }
    }
}

/// Holds [`encode`] on `device` against the twin.
fn check_encoding(case: &Case, device: &Device) {
    let host = host(case.seed, case.batch, case.d_in, case.d_sae);
    let main = case.kind.selection(case.score, case.d_sae, device);
    let aux = Some((case.score, case.k_aux, &case.dead[..]));
    let (code, aux) = encode_on(device, &host, main, aux);
    judge_selection(case, &host, &code, &aux.unwrap());
}

/// A code of random latents: some twice in a row, and with few latents, many times in the batch. Rows of equal length,
/// or of every length from none up.
fn random_code(case: &Case, zero_rows: bool, ragged: bool) -> HostCode {
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed + 1);
    let slots = match case.kind {
        Kind::PerToken(k) | Kind::PerBatch(k) => k.min(40),
        Kind::PerLatent(most) => most,
        Kind::Above { .. } => 5,
    };
    let rows = match ragged {
        true => Rows::from_lengths((0..case.batch).map(|_| rng.random_range(0..=slots))),
        false => Rows::Equal {
            batch: case.batch,
            slots,
        },
    };
    let n = rows.len();
    let indices: Vec<i32> = (0..n).map(|_| rng.random_range(0..case.d_sae as i32)).collect();
    let mut values = uniform(&mut rng, n);
    for (n, (v, owner)) in values.iter_mut().zip(rows.owners()).enumerate() {
        if n.is_multiple_of(5) || (zero_rows && owner % 2 == 0) {
            *v = 0.0;
        }
    }
    let code = HostCode { rows, indices, values };
    code.never_empty()
}

/// Holds [`decode`] on `device` and its gradients against the twins.
fn check_products(case: &Case, zero_rows: bool, ragged: bool, device: &Device) {
    let host = host(case.seed, case.batch, case.d_in, case.d_sae);
    let code = random_code(case, zero_rows, ragged);
    let d_in = case.d_in;
    let sums = twin::sum_rows(&code, &host.w_dec, d_in);
    let dots = twin::dot_rows(&code, &host.x, &host.w_dec, d_in);
    let (scattered, weights) = twin::scatter_rows(&code, &host.x, d_in, case.d_sae);
    let device = device.clone().autodiff();
    let mut on_device = SparseCode::from_host(code.clone(), &device);
    let values = on_device.values.require_grad();
    on_device.values = values.clone();
    let w_dec = matrix(&host.w_dec, [case.d_sae, d_in], &device).require_grad();
    let recon = decode(&on_device, w_dec.clone());
    assert_close(&read(recon.clone()), &sums, "recon");
    // The gradient of `sum(recon * x)` with respect to the reconstruction is x.
    let grads = (recon * matrix(&host.x, [case.batch, d_in], &device)).sum().backward();
    assert_close(&read(values.grad(&grads).unwrap()), &dots, "gradient of values");
    assert_close(&read(w_dec.grad(&grads).unwrap()), &scattered, "gradient of w_dec");

    let x = matrix(&host.x, [case.batch, d_in], &device).require_grad();
    let w_dec = matrix(&host.w_dec, [case.d_sae, d_in], &device).require_grad();
    let found = super::dots(&code.rows, on_device.indices, x.clone(), w_dec.clone());
    assert_close(&read(found.clone()), &dots, "products with rows");
    let grads = (found * vector(&code.values, &device)).sum().backward();
    assert_close(&read(x.grad(&grads).unwrap()), &sums, "gradient of vectors");
    assert_close(&read(w_dec.grad(&grads).unwrap()), &scattered, "gradient of rows");

    let by_latent = cpu::ByLatent::new(&[(&code.rows, &code.indices, &code.values)], case.d_sae);
    let (mut found, mut found_sums) = (vec![f32::NAN; case.d_sae * d_in], vec![f32::NAN; case.d_sae]);
    by_latent.scatter(&host.x, d_in, &mut found, &mut found_sums);
    assert_close(&found, &scattered, "scattered");
    assert_close(&found_sums, &weights, "sums of weights");
}

#[test]
fn every_device_of_this_build_computes_what_the_twins_do() {
    // Few shapes: a GPU's driver compiles for each.
    for device in devices() {
        for (batch, d_in, d_sae, kind, score) in [
            (5, 33, 47, Kind::PerToken(6), Score::Positive),
            (5, 33, 47, Kind::PerToken(1), Score::Magnitude),
            (2, 8, 7, Kind::PerToken(7), Score::Magnitude),
            (5, 33, 47, Kind::PerBatch(3), Score::Magnitude),
            (5, 33, 47, Kind::PerLatent(3), Score::Positive),
            (5, 33, 47, Kind::Above { zero: true }, Score::Positive),
            (2, 8, 7, Kind::Above { zero: false }, Score::Positive),
        ] {
            let case = Case {
                seed: 11,
                batch,
                d_in,
                d_sae,
                kind,
                score,
                dead: (0..d_sae as i32).step_by(3).collect(),
                k_aux: 2,
            };
            check_encoding(&case, &device);
            check_products(&case, true, matches!(kind, Kind::PerBatch(_)), &device);
        }
    }
}

fn on_flex<const D: usize>(tensor: Tensor<D>) -> burn_flex::FlexTensor {
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
    fn sparse_products_equal_their_twins(case in cases(), zero_rows: bool, ragged: bool) {
        check_products(&case, zero_rows, ragged, &Device::flex());
    }

    #[test]
    fn the_portable_products_equal_their_twins(case in cases(), ragged: bool) {
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let code = random_code(&case, false, ragged);
        let d_in = case.d_in;
        let device = Device::flex();
        let float = |v: &[f32], shape| on_flex(matrix(v, shape, &device));
        let ints = |v: &[i32]| {
            let tensor: Tensor<1, Int> = Tensor::from_data(TensorData::new(v.to_vec(), [v.len()]), &device);
            tensor.try_into_primitive::<Flex>().unwrap()
        };
        let part = || (code.rows.clone(), ints(&code.indices), on_flex(vector(&code.values, &device)));
        let (x, w_dec) = (|| float(&host.x, [case.batch, d_in]), || float(&host.w_dec, [case.d_sae, d_in]));
        let (rows, indices, weights) = part();
        let recon = portable::sum_rows::<Flex>(rows, indices, weights, w_dec());
        assert_close(&off_flex(recon), &twin::sum_rows(&code, &host.w_dec, d_in), "sums");
        let (rows, indices, _) = part();
        let dots = portable::dot_rows::<Flex>(rows, indices, x(), w_dec());
        assert_close(&off_flex(dots), &twin::dot_rows(&code, &host.x, &host.w_dec, d_in), "dots");
        // Twice the same code: twice the sums.
        let (scattered, sums) = portable::scatter_rows::<Flex>(vec![part(), part()], x(), case.d_sae);
        let expected = twin::scatter_rows(&code, &host.x, d_in, case.d_sae);
        let twice = |v: &[f32]| v.iter().map(|v| 2.0 * v).collect::<Vec<_>>();
        assert_close(&off_flex(scattered), &twice(&expected.0), "scattered");
        assert_close(&off_flex(sums), &twice(&expected.1), "sums of weights");

        let winners = portable::select::<Flex>(
            x(),
            float(&host.w_enc, [case.d_sae, d_in]),
            on_flex(vector(&host.b_enc, &device)),
            on_flex(vector(&case.kind.bars(case.d_sae), &device)),
            ints(&case.dead),
            case.plan(),
        );
        let indices = Tensor::<1, Int>::from_primitive::<Flex>(winners.indices).into_data().convert::<i32>();
        let mut indices = indices.to_vec::<i32>().unwrap();
        let mut values = off_flex(winners.values);
        let (aux_indices, aux_values) = (indices.split_off(winners.rows.len()), values.split_off(winners.rows.len()));
        let aux = HostCode::equal(case.k_aux, aux_indices, aux_values);
        judge_selection(&case, &host, &HostCode { rows: winners.rows, indices, values }, &aux);
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
        for level in Level::ALL {
            let mut out = vec![f32::NAN; width];
            simd::sum_rows(level, &mut out, &rows, &weights, &table);
            let code = HostCode {
                rows: Rows::from_lengths([n]),
                indices: signed.clone(),
                values: weights.clone(),
            };
            let expected = twin::sum_rows(&code, &table, width);
            assert_close(&out, &expected, "sum of rows");
            let mut dots = vec![f32::NAN; n];
            simd::dot_rows(level, &mut dots, &v, &signed, &table);
            assert_close(&dots, &twin::dot_rows(&code, &v, &table, width), "dots");
            let squares: f64 = v.iter().map(|&v| f64::from(v).powi(2)).sum();
            prop_assert!((simd::sum_of_squares(level, &v) - squares).abs() < 1e-9 * (1.0 + squares));
        }
    }
}

#[test]
fn an_auxiliary_code_is_no_wider_than_its_candidates() {
    for device in devices() {
        let host = host(1, 3, 4, 8);
        let main = Selection::PerToken {
            score: Score::Magnitude,
            k: 2,
        };
        let (_, aux) = encode_on(&device, &host, main, Some((Score::Magnitude, 5, &[3, 6])));
        let aux = aux.unwrap();
        assert_eq!(aux.rows, Rows::Equal { batch: 3, slots: 2 });
        for row in aux.indices.chunks(2) {
            let mut row = row.to_vec();
            row.sort();
            assert_eq!(row, [3, 6]);
        }
    }
}

#[test]
fn rows_of_every_tile_of_the_product_are_selected_from() {
    // Tiles of the CPU's encoder hold 2^23 elements: 119 rows of this width.
    for kind in [Kind::PerToken(2), Kind::PerBatch(2), Kind::Above { zero: false }] {
        let case = Case {
            seed: 4,
            batch: 150,
            d_in: 3,
            d_sae: 70_000,
            kind,
            score: Score::Magnitude,
            dead: vec![5, 69_999],
            k_aux: 1,
        };
        let host = host(case.seed, case.batch, case.d_in, case.d_sae);
        let selection = kind.selection(case.score, case.d_sae, &Device::flex());
        let (code, _) = encode_on(&Device::flex(), &host, selection, None);
        let expected = host.encode(case.score, kind.budget(case.batch), &kind.bars(case.d_sae));
        let sorted = |code: &HostCode| {
            let mut all: Vec<f32> = code.values.iter().map(|v| v.abs()).collect();
            all.sort_by(f32::total_cmp);
            all
        };
        match kind {
            // Millions are above: as many, but for those that rounding takes over the bar.
            Kind::Above { .. } => {
                let (found, expected) = (code.values.len() as f64, expected.values.len() as f64);
                assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
            }
            _ => assert_close(&sorted(&code), &sorted(&expected), "scores"),
        }
        let last = code.rows.range(149);
        assert!(!last.is_empty() || matches!(kind, Kind::PerBatch(_)));
    }
}

#[test]
fn a_nan_in_one_row_stays_in_that_row() {
    let device = Device::flex();
    let mut host = host(2, 3, 4, 8);
    host.x[5] = f32::NAN;
    for kind in [Kind::PerToken(3), Kind::PerBatch(3), Kind::Above { zero: true }] {
        let (code, _) = encode_on(&device, &host, kind.selection(Score::Magnitude, 8, &device), None);
        assert_eq!(code.row(1).count(), 0);
        assert!(code.row(0).count() >= 3 && code.row(2).count() >= 3);
        assert!(code.values.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn one_giant_row_takes_the_budget_of_the_batch_and_nothing_of_its_memory() {
    let mut host = host(2, 64, 4, 100);
    host.x[4..8].iter_mut().for_each(|v| *v *= 1e6);
    let main = Selection::PerBatch {
        score: Score::Magnitude,
        k: 2,
    };
    let (code, _) = encode_on(&Device::flex(), &host, main, None);
    assert_eq!(code.rows.range(1).len(), 100);
    assert_eq!(code.values.len(), 128);
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
