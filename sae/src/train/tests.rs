#[path = "../../tests/support/npy.rs"]
mod support;

use activations::source::{Activations, Joined, MixOptions};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod encoders;
mod parity;

use self::support::npy;
use super::average::Average;
use super::course::Course;
use super::dead::Silence;
use super::laps::Laps;
use super::resample::Resampling;
use super::schedule::Schedule;
use super::sides::Sides;
use super::trainer::{Optimizer, Trainer};
use super::*;
use crate::code::to_host;
use crate::config::Decay;
use crate::dictionary::{Place, Sae, Scales, Whitening};
use crate::encoder::unrolled::EncoderStep;
use crate::kernels::Search;
use crate::objective::{Loss, Objective, ObjectiveConfig};
use crate::optimizer::{Adam, MatrixState, Moments};
use crate::sparsifier::Sparsifier;

const D_IN: usize = 5;
const D_SAE: usize = 9;
const BATCH: usize = 6;
const AUX_WEIGHT: f64 = 0.25;
const DEAD: [i32; 3] = [1, 4, 7];

fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// A trainer with random parameters everywhere: nothing is tied, zero or normalised.
fn trainer(sparsifier: Sparsifier) -> Trainer {
    let device = Device::flex();
    let matrix = |seed| Tensor::from_data(TensorData::new(uniform(D_SAE * D_IN, seed), [D_SAE, D_IN]), &device);
    let vector = |n, seed| Tensor::from_data(TensorData::new(uniform(n, seed), [n]), &device);
    let tensor = |t: Tensor<2>| Tensor::from_inner(t).require_grad();
    let b_enc: Tensor<1> = vector(D_SAE, 2);
    let b_dec: Tensor<1> = vector(D_IN, 4);
    let own_steps = sparsifier.encoder.own_steps() as u64;
    let step = |n| EncoderStep {
        w_enc: tensor(matrix(10 + n)),
        b_enc: Tensor::from_inner(vector(D_SAE, 20 + n)).require_grad(),
    };
    let of_step = |_| {
        (
            MatrixState::Adam(Moments::new([D_SAE, D_IN], &device)),
            Moments::new([D_SAE], &device),
        )
    };
    Trainer {
        sae: Sae {
            per_token: false,
            w_enc: tensor(matrix(1)),
            b_enc: Tensor::from_inner(b_enc).require_grad(),
            w_dec: tensor(matrix(3)),
            b_dec: Tensor::from_inner(b_dec).require_grad(),
            apply_b_dec_to_input: true,
            steps: (0..own_steps).map(step).collect(),
            skip: None,
            threshold: None,
            sparsifier,
        },
        optimizer: Optimizer {
            adam: Adam::default(),
            w_enc: Some(MatrixState::Adam(Moments::new([D_SAE, D_IN], &device))),
            b_enc: Moments::new([D_SAE], &device),
            w_dec: MatrixState::Adam(Moments::new([D_SAE, D_IN], &device)),
            b_dec: Moments::new([D_IN], &device),
            steps: (0..own_steps).map(of_step).collect(),
            skip: None,
            threshold: None,
            gate: None,
        },
        gate: None,
        average: None,
        silence: Silence::new(D_SAE, 1000),
        resampling: None,
        density: None,
        course: Course::default(),
        sides: Sides::new(
            &[Place {
                hook: None,
                width: D_IN,
            }],
            1,
            None,
        ),
        scales: Scales::one(D_IN, 1.0),
        per_token: false,
        whitening: None,
        variance: 1.7,
        objective: Objective::new(&ObjectiveConfig::default(), AUX_WEIGHT, D_IN),
        schedule: Schedule {
            lr: 1e-3,
            steps: 10,
            warmup_steps: 0,
            decay: Decay::Linear,
            decay_steps: 0,
        },
        clip_norm: None,
        aux_k: 2,
        bandwidth: 0.0,
        search: Search::Auto,
        seed: 0,
        done: 0,
        laps: Laps::default(),
    }
}

fn f64s<const D: usize>(t: &Tensor<D>) -> Vec<f64> {
    let host = to_host::<f32>(t.clone().no_grad().try_into_data()).unwrap();
    host.into_iter().map(f64::from).collect()
}

/// The whole objective in f64, dense and plain. What a gradient does not flow through is frozen: the supports of both
/// codes, and the residual that the auxiliary code is to explain.
struct Twin {
    signed: bool,
    x: Vec<f64>,
    variance: f64,
    /// w_enc, b_enc, w_dec, b_dec.
    params: [Vec<f64>; 4],
    main: Vec<Vec<usize>>,
    aux: Vec<Vec<usize>>,
    residual: Vec<f64>,
}

impl Twin {
    fn new(trainer: &Trainer, x: &[f32]) -> Self {
        let sae = &trainer.sae;
        let mut twin = Self {
            signed: sae.sparsifier.is_signed(),
            x: x.iter().map(|&v| f64::from(v)).collect(),
            variance: trainer.variance,
            params: [f64s(&sae.w_enc), f64s(&sae.b_enc), f64s(&sae.w_dec), f64s(&sae.b_dec)],
            main: Vec::new(),
            aux: Vec::new(),
            residual: Vec::new(),
        };
        for row in 0..BATCH {
            let pre = twin.pre(row);
            let best = |mut latents: Vec<usize>, score: &dyn Fn(f64) -> f64, k: usize| {
                latents.sort_by(|&a, &b| score(pre[b]).total_cmp(&score(pre[a])));
                latents.truncate(k);
                latents
            };
            let main_score = |u: f64| if twin.signed { u.abs() } else { u.max(0.0) };
            let aux_score = |u: f64| if twin.signed { u.abs() } else { u };
            let main = best((0..D_SAE).collect(), &main_score, sae.sparsifier.k().unwrap());
            let aux = best(DEAD.iter().map(|&i| i as usize).collect(), &aux_score, trainer.aux_k);
            twin.main
                .push(main.into_iter().filter(|&i| main_score(pre[i]) > 0.0).collect());
            twin.aux.push(aux);
        }
        for row in 0..BATCH {
            let recon = twin.recon(row);
            twin.residual
                .extend((0..D_IN).map(|j| twin.x[row * D_IN + j] - recon[j]));
        }
        twin
    }

    fn pre(&self, row: usize) -> Vec<f64> {
        let [w_enc, b_enc, _, b_dec] = &self.params;
        let centred: Vec<f64> = (0..D_IN).map(|j| self.x[row * D_IN + j] - b_dec[j]).collect();
        (0..D_SAE)
            .map(|i| b_enc[i] + (0..D_IN).map(|j| centred[j] * w_enc[i * D_IN + j]).sum::<f64>())
            .collect()
    }

    fn decoded(&self, row: usize, support: &[usize]) -> Vec<f64> {
        let pre = self.pre(row);
        (0..D_IN)
            .map(|j| support.iter().map(|&i| pre[i] * self.params[2][i * D_IN + j]).sum())
            .collect()
    }

    fn recon(&self, row: usize) -> Vec<f64> {
        let decoded = self.decoded(row, &self.main[row]);
        decoded.iter().zip(&self.params[3]).map(|(d, b)| d + b).collect()
    }

    fn loss(&self) -> f64 {
        let (mut mse, mut aux, mut spread) = (0.0, 0.0, 0.0);
        for row in 0..BATCH {
            let (recon, of_dead) = (self.recon(row), self.decoded(row, &self.aux[row]));
            for j in 0..D_IN {
                let residual = self.residual[row * D_IN + j];
                let mean = (0..BATCH).map(|r| self.residual[r * D_IN + j]).sum::<f64>() / BATCH as f64;
                mse += (self.x[row * D_IN + j] - recon[j]).powi(2);
                aux += (residual - of_dead[j]).powi(2);
                spread += (residual - mean).powi(2);
            }
        }
        let scale = DEAD.len() as f64 / D_IN as f64;
        mse / (BATCH as f64 * self.variance) + AUX_WEIGHT * scale * aux / spread
    }
}

#[test]
fn gradients_of_a_whole_step_agree_with_finite_differences() {
    for sparsifier in [Sparsifier::top_k(3), Sparsifier::abs_top_k(4)] {
        let trainer = trainer(sparsifier);
        let x = uniform(BATCH * D_IN, 5);
        let mut twin = Twin::new(&trainer, &x);
        let device = Device::flex();
        let x = Tensor::<2>::from_data(TensorData::new(x, [BATCH, D_IN]), &device);
        let pass = trainer.forward(x.clone(), x, &DEAD);
        let loss = trainer.objective.loss(&pass);
        let (total, parts) = loss.read().unwrap();
        assert_eq!(parts.len(), 2);
        assert!((f64::from(total) - twin.loss()).abs() < 1e-5, "{total} {}", twin.loss());
        drop(pass);
        let gradients = trainer.gradients(loss);
        let ours = [
            f64s(gradients.w_enc.as_ref().unwrap()),
            f64s(&gradients.b_enc),
            f64s(&gradients.w_dec),
            f64s(&gradients.b_dec),
        ];
        for (p, ours) in ours.iter().enumerate() {
            assert!(ours.iter().any(|g| g.abs() > 1e-3));
            for (i, g) in ours.iter().enumerate() {
                let at = twin.params[p][i];
                let mut shifted = |by: f64| {
                    twin.params[p][i] = at + by;
                    twin.loss()
                };
                let expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                shifted(0.0);
                assert!(
                    (g - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                    "{p} {i}: {g} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_tied_matrix_gets_the_gradients_of_both_its_uses() {
    let x = Tensor::<2>::from_data(
        TensorData::new(uniform(BATCH * D_IN, 5), [BATCH, D_IN]),
        &Device::flex(),
    );
    let gradients =
        |trainer: &Trainer| trainer.gradients(trainer.objective.loss(&trainer.forward(x.clone(), x.clone(), &DEAD)));
    let mut two = trainer(Sparsifier::top_k(3));
    two.sae.w_enc = Tensor::from_inner(two.sae.w_dec.clone().no_grad()).require_grad();
    let apart = gradients(&two);
    let mut one = trainer(Sparsifier::top_k(3));
    one.optimizer.w_enc = None;
    one.sae.w_enc = one.sae.w_dec.clone();
    let together = gradients(&one);
    assert!(together.w_enc.is_none());
    let sum = apart.w_enc.unwrap() + apart.w_dec;
    for (a, b) in f64s(&together.w_dec).iter().zip(f64s(&sum)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    for (a, b) in f64s(&together.b_dec).iter().zip(f64s(&apart.b_dec)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
}

#[test]
fn the_auxiliary_loss_reaches_the_encoder_of_a_latent_below_zero() {
    let mut trainer = trainer(Sparsifier::top_k(2));
    // Latent 4 is far below zero on every token, as dead latents are.
    let mut b_enc = vec![0.0f32; D_SAE];
    b_enc[4] = -20.0;
    let b_enc = Tensor::<1>::from_data(TensorData::new(b_enc, [D_SAE]), &Device::flex());
    trainer.sae.b_enc = Tensor::from_inner(b_enc).require_grad();
    let x = Tensor::<2>::from_data(
        TensorData::new(uniform(BATCH * D_IN, 5), [BATCH, D_IN]),
        &Device::flex(),
    );
    let of_latent_4 = |dead: &[i32]| {
        let loss = trainer.objective.loss(&trainer.forward(x.clone(), x.clone(), dead));
        let gradients = trainer.gradients(loss);
        let row = |g: &Tensor<2>| f64s(g)[4 * D_IN..5 * D_IN].iter().map(|g| g.abs()).sum::<f64>();
        (
            row(gradients.w_enc.as_ref().unwrap()),
            f64s(&gradients.b_enc)[4],
            row(&gradients.w_dec),
        )
    };
    assert_eq!(of_latent_4(&[]), (0.0, 0.0, 0.0));
    let (w_enc, b_enc, w_dec) = of_latent_4(&[4]);
    assert!(
        w_enc > 1e-3 && b_enc.abs() > 1e-3 && w_dec > 1e-3,
        "{w_enc} {b_enc} {w_dec}"
    );
}

#[test]
fn a_step_whose_loss_is_not_finite_changes_nothing() {
    let mut trainer = trainer(Sparsifier::top_k(2));
    let before = f64s(&trainer.sae.w_enc);
    let mut x = uniform(BATCH * D_IN, 5);
    x[3] = f32::INFINITY;
    let step = trainer.step(x).unwrap();
    assert!(!step.loss.is_finite());
    assert_eq!((step.number, trainer.steps_done()), (1, 0));
    assert_eq!(f64s(&trainer.sae.w_enc), before);
    let step = trainer.step(uniform(BATCH * D_IN, 5)).unwrap();
    assert!(step.loss.is_finite());
    assert_ne!(f64s(&trainer.sae.w_enc), before);
}

#[test]
fn gradients_over_the_limit_are_shortened_together_and_shorter_ones_are_left_alone() {
    let rows = || uniform(BATCH * D_IN, 5);
    let stepped = |clip_norm: Option<f64>| {
        let mut trainer = trainer(Sparsifier::top_k(2));
        trainer.clip_norm = clip_norm;
        let step = trainer.step(rows()).unwrap();
        let mean = |state: &MatrixState| match state {
            MatrixState::Adam(moments) => moments.read().unwrap().0,
            MatrixState::Muon(_) => panic!("it is Adam's"),
        };
        let means = [
            mean(trainer.optimizer.w_enc.as_ref().unwrap()),
            mean(&trainer.optimizer.w_dec),
        ];
        (step.gradient_norm, means)
    };
    let (none, plain) = stepped(None);
    let (norm, same) = stepped(Some(1e6));
    let norm = norm.unwrap();
    assert_eq!((none, &same), (None, &plain));
    // The norm is that of what `gradients` gives, one behind the other.
    let of = trainer(Sparsifier::top_k(2));
    let (x, target) = of.sides.tensors(rows(), &of.sae.device().inner());
    let loss = of.objective.loss(&of.forward(x, target, &[]));
    let gradients = of.gradients(loss);
    let all = [
        f64s(&gradients.w_enc.unwrap()),
        f64s(&gradients.w_dec),
        f64s(&gradients.b_enc),
        f64s(&gradients.b_dec),
    ];
    let by_hand = all.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    assert!((norm - by_hand).abs() < 1e-6 * norm, "{norm} {by_hand}");
    let (again, clipped) = stepped(Some(norm / 4.0));
    assert_eq!(again, Some(norm));
    for (clipped, plain) in clipped.iter().flatten().zip(plain.iter().flatten()) {
        assert!((clipped - plain / 4.0).abs() < 1e-6 * norm as f32, "{clipped} {plain}");
    }
}

#[test]
fn gradients_that_are_not_finite_change_nothing_where_their_norm_is_asked_for() {
    let mut trainer = trainer(Sparsifier::top_k(2));
    trainer.clip_norm = Some(1.0);
    // Errors of about 1 over this variance are numbers yet; times codes of 1e10, as the decoder's gradient is, they are none.
    trainer.variance = 1e-30;
    let times = |t: &Tensor<2>, by: f32| Tensor::from_inner(t.clone().no_grad() * by).require_grad();
    trainer.sae.w_enc = times(&trainer.sae.w_enc, 1e10);
    trainer.sae.w_dec = times(&trainer.sae.w_dec, 1e-12);
    let before = [f64s(&trainer.sae.w_enc), f64s(&trainer.sae.w_dec)];
    let moments = trainer.optimizer.b_dec.read().unwrap();
    let rows = uniform(BATCH * D_IN, 5);
    let step = trainer.step(rows).unwrap();
    assert!(step.loss.is_finite() && !step.is_taken(), "{step:?}");
    assert_eq!((step.number, trainer.steps_done()), (1, 0));
    assert_eq!([f64s(&trainer.sae.w_enc), f64s(&trainer.sae.w_dec)], before);
    assert_eq!(trainer.optimizer.b_dec.read().unwrap(), moments);
}

#[test]
fn resampled_latents_are_rows_of_the_batch_and_begin_from_nothing() {
    let resampling = Resampling {
        every: 1,
        threshold: None,
        count: 0,
    };
    let [mut plain, mut trainer] = [None, Some(resampling)].map(|resampling| {
        let mut trainer = trainer(Sparsifier::top_k(2));
        let silent = (0..D_SAE as i32)
            .map(|i| if DEAD.contains(&i) { 2000 } else { 0 })
            .collect();
        trainer.silence = Silence::from_tokens(silent, 1000);
        // Dead ones never fire.
        let bias: Vec<f32> = (0..D_SAE as i32)
            .map(|i| if DEAD.contains(&i) { -100.0 } else { 0.5 })
            .collect();
        let bias = Tensor::from_data(TensorData::new(bias, [D_SAE]), &Device::flex());
        trainer.sae.b_enc = Tensor::from_inner(bias).require_grad();
        trainer.resampling = resampling;
        trainer
    });
    let rows = uniform(BATCH * D_IN, 5);
    assert_eq!(plain.step(rows.clone()).unwrap().resampled, None);
    assert_eq!(trainer.step(rows.clone()).unwrap().resampled, Some(3));
    assert!(trainer.silence.dead().is_empty() && plain.silence.dead() == DEAD);
    let b_dec = f64s(&trainer.sae.b_dec);
    let length = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let all = |t: &Trainer| [f64s(&t.sae.w_dec), f64s(&t.sae.w_enc), f64s(&t.sae.b_enc)];
    let ([w_dec, w_enc, b_enc], before) = (all(&trainer), all(&plain));
    let living = before[1]
        .chunks(D_IN)
        .enumerate()
        .filter(|(i, _)| !DEAD.contains(&(*i as i32)));
    let mean = living.map(|(_, row)| length(row)).sum::<f64>() / (D_SAE - DEAD.len()) as f64;
    let MatrixState::Adam(moments) = &trainer.optimizer.w_dec else {
        panic!("it is Adam's")
    };
    let moments = moments.read().unwrap();
    for i in 0..D_SAE {
        let row = |of: &[f64]| of[i * D_IN..][..D_IN].to_vec();
        if !DEAD.contains(&(i as i32)) {
            assert_eq!(
                (row(&w_dec), row(&w_enc), b_enc[i]),
                (row(&before[0]), row(&before[1]), before[2][i])
            );
            continue;
        }
        let direction = row(&w_dec);
        let is_of = |x: &[f32]| {
            let x: Vec<f64> = x.iter().zip(&b_dec).map(|(x, b)| f64::from(*x) - b).collect();
            let along: f64 = x.iter().zip(&direction).map(|(x, d)| x * d).sum();
            (along - length(&x)).abs() < 1e-5
        };
        assert!(rows.chunks(D_IN).any(is_of), "{direction:?}");
        for (w_enc, w_dec) in row(&w_enc).iter().zip(&direction) {
            assert!((w_enc - 0.2 * mean * w_dec).abs() < 1e-6, "{w_enc} {w_dec}");
        }
        assert_eq!(b_enc[i], 0.0);
        for of in [&moments.0, &moments.1] {
            assert!(of[i * D_IN..][..D_IN].iter().all(|v| *v == 0.0));
        }
    }
    // Nobody is dead any more.
    trainer.step(rows).unwrap();
    assert_eq!(trainer.resampling.map(|r| r.count), Some(3));
}

#[test]
fn an_average_weighs_every_step_by_its_age_and_nothing_else() {
    let mut trainer = trainer(Sparsifier::abs_top_k(3));
    let mut config = RunConfig::default();
    config.train.ema = Some(0.5);
    let start = Sae {
        b_dec: Tensor::full([D_IN], 1e6, &Device::flex()),
        ..trainer.inside()
    };
    trainer.average = Average::of(&config, &start, None);
    let mut seen = Vec::new();
    for seed in 0..3 {
        trainer.step(uniform(BATCH * D_IN, seed)).unwrap();
        seen.push([f64s(&trainer.sae.w_dec), f64s(&trainer.sae.b_dec)]);
    }
    let average = &trainer.average.as_ref().unwrap().sae;
    for (n, found) in [f64s(&average.w_dec), f64s(&average.b_dec)].into_iter().enumerate() {
        for (i, found) in found.into_iter().enumerate() {
            let by_hand = (seen[0][n][i] + 2.0 * seen[1][n][i] + 4.0 * seen[2][n][i]) / 7.0;
            assert!((found - by_hand).abs() < 1e-6, "{found} {by_hand}");
        }
    }
}

#[test]
fn the_dictionary_of_a_trainer_of_white_rows_does_to_raw_rows_what_is_done_inside() {
    let device = Device::flex();
    let raw: Vec<f32> = uniform(200 * D_IN, 7)
        .chunks_exact(D_IN)
        .flat_map(|r| {
            [
                90.0 * r[0] + 5.0,
                r[1] + 40.0 * r[0],
                3.0 * r[2] - r[1],
                r[3],
                20.0 * r[4] - 300.0,
            ]
        })
        .collect();
    let (whitening, _) = Whitening::of(&raw, D_IN, &device).unwrap();
    let learned = crate::Encoder::Unrolled {
        steps: 3,
        weights: crate::Weights::Learned,
    };
    for encoder in [crate::Encoder::Linear, crate::Encoder::unrolled(2), learned] {
        let sparsifier = Sparsifier {
            encoder,
            ..Sparsifier::abs_top_k(4)
        };
        let mut trainer = trainer(sparsifier);
        trainer.whitening = Some(whitening.clone());
        let x = Tensor::<2>::from_data(TensorData::new(raw.clone(), [200, D_IN]), &device);
        let inside = trainer.inside();
        let white = whitening.whiten(x.clone());
        let code = inside.encode(white).unwrap();
        let expected = f64s(&inside.decode(&code).matmul(whitening.raw.clone()));
        let outside = trainer.dictionary();
        let found = outside.encode(x).unwrap();
        let (ours, theirs) = (found.to_host().unwrap(), code.to_host().unwrap());
        assert_eq!(ours.indices, theirs.indices, "{encoder:?}");
        for (a, b) in f64s(&outside.decode(&found)).iter().zip(expected) {
            assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "{encoder:?}: {a} {b}");
        }
    }
}

#[test]
fn steps_keep_the_decoders_rows_at_length_one() {
    let mut trainer = trainer(Sparsifier::abs_top_k(3));
    for seed in 0..5 {
        trainer.step(uniform(BATCH * D_IN, seed)).unwrap();
    }
    for row in f64s(&trainer.sae.w_dec).chunks(D_IN) {
        assert!((row.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-5);
    }
}

/// A plan for `rows` with the last 40 held out.
fn plan_of(path: &std::path::Path) -> (TrainPlan, Input) {
    let sets = [
        ("sae.d_sae", "9"),
        ("sae.k", "2"),
        ("data.held_out_rows", "40"),
        ("train.batch", "8"),
    ];
    let sets: Vec<_> = sets.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut config = RunConfig::from_toml("", &sets).unwrap();
    config.data.acts = Some(path.to_owned());
    let input = Input::open(&config, &Silent).unwrap();
    (TrainPlan::new(&config, &input, None).unwrap(), input)
}

/// A trainer at the beginning of `plan` on the array at `path`.
fn started(plan: &TrainPlan, path: &std::path::Path) -> Trainer {
    let acts = Joined::from(Activations::open(path, None).unwrap());
    let sample = start::sample(&acts, plan.train_rows.clone()).unwrap();
    Trainer::start(plan, &sample, &Device::flex()).unwrap()
}

#[test]
fn a_dictionary_that_predicts_the_mean_has_fvu_one_and_no_active_latent() {
    let dir = tempfile::tempdir().unwrap();
    // A large mean must cost no digits.
    let rows: Vec<f32> = uniform(200 * D_IN, 3).iter().map(|v| v + 100.0).collect();
    let (plan, input) = plan_of(&npy(&dir.path().join("acts.npy"), &rows, D_IN));
    assert_eq!(plan.held_out_rows, 160..200);
    let device = Device::flex();
    let mean: Vec<f32> = (0..D_IN)
        .map(|j| {
            (rows[160 * D_IN..]
                .iter()
                .skip(j)
                .step_by(D_IN)
                .map(|&v| f64::from(v))
                .sum::<f64>()
                / 40.0) as f32
        })
        .collect();
    let sae = Sae {
        per_token: false,
        w_enc: Tensor::zeros([9, D_IN], &device),
        b_enc: Tensor::zeros([9], &device),
        w_dec: Tensor::ones([9, D_IN], &device),
        b_dec: Tensor::from_data(TensorData::new(mean, [D_IN]), &device),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier: Sparsifier::top_k(2),
    };
    let evaluation = evaluate::held_out(&sae, &input, &plan).unwrap();
    assert!(evaluation.fvu_by_hook.is_empty());
    let measured = evaluation.held_out;
    assert!((measured.fvu - 1.0).abs() < 1e-5, "{}", measured.fvu);
    assert_eq!((measured.rows, measured.l0, measured.dead_share), (40, 0.0, 1.0));
}

#[test]
fn a_run_starts_from_unit_rows_their_transpose_at_the_best_length_and_inputs_of_mean_square_d_in() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<f32> = uniform(200 * D_IN, 3).iter().map(|v| 40.0 * v + 7.0).collect();
    let path = npy(&dir.path().join("acts.npy"), &rows, D_IN);
    let (plan, _) = plan_of(&path);
    let trainer = started(&plan, &path);
    let (w_enc, w_dec) = (f64s(&trainer.sae.w_enc), f64s(&trainer.sae.w_dec));
    let length = w_enc[0] / w_dec[0];
    assert!(length > 0.0 && length < 1.0, "{length}");
    assert!(w_enc.iter().zip(&w_dec).all(|(e, d)| (e - length * d).abs() < 1e-6));
    assert!(
        w_dec
            .chunks(D_IN)
            .all(|row| (row.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-6)
    );
    let scale = f64::from(trainer.scales.code());
    let train: Vec<f64> = rows[..160 * D_IN].iter().map(|&v| f64::from(v) * scale).collect();
    let square = train.iter().map(|v| v * v).sum::<f64>() / 160.0;
    assert!((square - D_IN as f64).abs() < 1e-4, "{square}");
    // b_dec is the mean, so that reconstructing nothing has the variance as its error, and a loss of one.
    let b_dec = f64s(&trainer.sae.b_dec);
    let about = train
        .chunks(D_IN)
        .flat_map(|r| r.iter().zip(&b_dec).map(|(v, b)| (v - b).powi(2)));
    assert!((about.sum::<f64>() / 160.0 - trainer.variance).abs() < 1e-4);
    // No other length of the encoder's rows reconstructs the sample better.
    let error = |factor: f32| {
        let mut sae = trainer.inside();
        sae.w_enc = sae.w_enc * factor;
        let x: Vec<f32> = train.iter().map(|&v| v as f32).collect();
        let recon = sae.decode_rows(&sae.encode_rows(&x).unwrap()).unwrap();
        x.iter().zip(&recon).map(|(x, r)| f64::from(x - r).powi(2)).sum::<f64>()
    };
    assert!(error(1.0) < error(0.95) && error(1.0) < error(1.05));
    // In raw units b_dec is the mean of the raw rows, near 7.
    assert!(f64s(&trainer.dictionary().b_dec).iter().all(|b| (b - 7.0).abs() < 10.0));
}

/// Three of twenty directions with coefficients between 1 and 2. `[n, 12]`
fn sparse_rows(n: usize) -> Vec<f32> {
    let directions = start::random_directions(20, 12, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut rows = vec![0.0; n * 12];
    for row in rows.chunks_mut(12) {
        for _ in 0..3 {
            let (d, c) = (rng.random_range(0..20), rng.random_range(1.0f32..2.0));
            row.iter_mut().zip(&directions[d * 12..]).for_each(|(v, d)| *v += c * d);
        }
    }
    rows
}

#[test]
fn the_auxiliary_loss_revives_latents_most_of_which_stay_dead_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = npy(&dir.path().join("acts.npy"), &sparse_rows(2000), 12);
    let revived = |method: &str, aux_weight: &str| {
        let sets = [
            ("sae.d_sae", "40"),
            ("sae.k", "3"),
            ("sae.method", method),
            ("train.batch", "64"),
            ("train.steps", "300"),
            ("train.lr", "1e-2"),
            ("train.dead_after_tokens", "640"),
            ("train.aux_weight", aux_weight),
        ];
        let sets: Vec<_> = sets.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let mut config = RunConfig::from_toml("", &sets).unwrap();
        config.data.acts = Some(path.clone());
        let plan = TrainPlan::new(&config, &Input::open(&config, &Silent).unwrap(), None).unwrap();
        let mut trainer = started(&plan, &path);
        // All but ten latents read next to nothing: they have been dead for long, and are too few to explain the data.
        let mut w_enc: Vec<f32> = f64s(&trainer.sae.w_dec).iter().map(|&v| v as f32).collect();
        w_enc[10 * 12..].iter_mut().for_each(|v| *v *= 1e-3);
        let w_enc = Tensor::<2>::from_data(TensorData::new(w_enc, [40, 12]), &Device::flex());
        trainer.sae.w_enc = Tensor::from_inner(w_enc).require_grad();
        let silent = (0..40).map(|i| if i < 10 { 0 } else { 10_000 }).collect();
        trainer.silence = Silence::from_tokens(silent, plan.dead_after_tokens);
        assert_eq!(trainer.silence.dead().len(), 30);
        let mut reader = Activations::open(&path, None)
            .unwrap()
            .mixed(
                plan.train_rows.clone(),
                &MixOptions {
                    seed: 0,
                    memory_bytes: 1 << 20,
                },
            )
            .unwrap();
        for _ in 0..plan.steps {
            let mut x = vec![0.0; 64 * 12];
            reader.next_batch(&mut x).unwrap();
            trainer.step(x).unwrap();
        }
        30 - trainer.silence.dead().iter().filter(|&&i| i >= 10).count()
    };
    for method in ["topk", "abs_topk"] {
        let (without, with) = (revived(method, "0"), revived(method, "0.03125"));
        println!("{method}: {without} {with}");
        assert!(
            without <= 6 && with >= 12,
            "{method}: {without} revive without the loss, {with} with it"
        );
    }
}
