//! Gradients of whole steps behind every encoder, and of masked passes, against finite differences.
//!
//! With as many winners as latents nobody comes in or goes out, so that the loss is smooth.

use super::*;
use crate::encoder::{Encoder, Weights};
use crate::sparsifier::{Allocation, Score};

/// A trainer with an objective, without an auxiliary loss.
fn smooth(encoder: Encoder, objective: &str) -> Trainer {
    let all = Sparsifier::new(Score::Magnitude, Allocation::PerToken { k: D_SAE });
    let mut trainer = trainer(all.encoded_by(encoder));
    trainer.objective = Objective::new(&toml::from_str(objective).unwrap(), 0.0, D_IN);
    trainer
}

fn parameters(trainer: &Trainer) -> Vec<Vec<f64>> {
    let sae = &trainer.sae;
    let mut all = vec![f64s(&sae.w_enc), f64s(&sae.b_enc), f64s(&sae.w_dec), f64s(&sae.b_dec)];
    all.extend(sae.steps.iter().flat_map(|step| [f64s(&step.w_enc), f64s(&step.b_enc)]));
    all
}

fn put(trainer: &mut Trainer, which: usize, values: &[f64]) {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let device = Device::flex();
    let vector = |values: Vec<f32>| {
        let shape = [values.len()];
        Tensor::<1>::from_inner(Tensor::from_data(TensorData::new(values, shape), &device)).require_grad()
    };
    let matrix = |values: Vec<f32>| {
        let plain = Tensor::<2>::from_data(TensorData::new(values, [D_SAE, D_IN]), &device);
        Tensor::<2>::from_inner(plain).require_grad()
    };
    match which {
        0 => trainer.sae.w_enc = matrix(values),
        1 => trainer.sae.b_enc = vector(values),
        2 => trainer.sae.w_dec = matrix(values),
        3 => trainer.sae.b_dec = vector(values),
        n if n % 2 == 0 => trainer.sae.steps[n / 2 - 2].w_enc = matrix(values),
        n => trainer.sae.steps[n / 2 - 2].b_enc = vector(values),
    }
}

fn loss(trainer: &Trainer, x: &[f32]) -> Loss {
    let x = Tensor::<2>::from_data(TensorData::new(x.to_vec(), [BATCH, D_IN]), &Device::flex());
    trainer.objective.loss(&trainer.forward(x.clone(), x, &[]))
}

#[test]
fn gradients_behind_every_encoder_and_of_masked_passes_agree_with_finite_differences() {
    let x = uniform(BATCH * D_IN, 5);
    let learned = Encoder::Unrolled {
        steps: 3,
        weights: Weights::Learned,
    };
    for encoder in [Encoder::Linear, Encoder::unrolled(3), learned] {
        for objective in ["", "[masked]\nhidden = 0.4", "[masked]\nhidden = 0.4\n[mse]"] {
            let mut trainer = smooth(encoder, objective);
            // Not so far off that three steps run away.
            for which in [0, 2, 4, 6].into_iter().filter(|n| *n < 4 + 2 * encoder.own_steps()) {
                let halved: Vec<f64> = parameters(&trainer)[which].iter().map(|v| 0.5 * v).collect();
                put(&mut trainer, which, &halved);
            }
            let gradients = trainer.gradients(loss(&trainer, &x));
            let mut ours = vec![
                f64s(gradients.w_enc.as_ref().unwrap()),
                f64s(&gradients.b_enc),
                f64s(&gradients.w_dec),
                f64s(&gradients.b_dec),
            ];
            let of_steps = gradients.steps.iter();
            ours.extend(of_steps.flat_map(|step| [f64s(&step.w_enc), f64s(&step.b_enc)]));
            assert_eq!(ours.len(), 4 + 2 * encoder.own_steps());
            for (which, ours) in ours.iter().enumerate() {
                let largest = ours.iter().fold(0.0f64, |a, b| a.max(b.abs()));
                assert!(largest > 1e-3, "{encoder:?} {objective} {which}");
                let at_rest = parameters(&trainer)[which].clone();
                for i in (0..ours.len()).step_by(2) {
                    let mut shifted = |by: f64| {
                        let mut values = at_rest.clone();
                        values[i] += by;
                        put(&mut trainer, which, &values);
                        f64::from(loss(&trainer, &x).read().unwrap().0)
                    };
                    let expected = (shifted(4e-3) - shifted(-4e-3)) / 8e-3;
                    put(&mut trainer, which, &at_rest);
                    let off = (ours[i] - expected).abs();
                    assert!(
                        off < 2e-3 * largest + 2e-3 * expected.abs(),
                        "{encoder:?} {objective} {which} {i}: {} {expected}",
                        ours[i]
                    );
                }
            }
        }
    }
}

#[test]
fn a_pursuit_trains_the_decoder_alone_and_its_code_is_a_constant() {
    for encoder in [Encoder::MatchingPursuit, Encoder::OrthogonalPursuit] {
        let mut trainer = trainer(Sparsifier::abs_top_k(3).encoded_by(encoder));
        trainer.optimizer.w_enc = None;
        trainer.sae.w_enc = trainer.sae.w_dec.clone();
        trainer.objective = Objective::new(&ObjectiveConfig::default(), 0.0, D_IN);
        let x = uniform(BATCH * D_IN, 5);
        let x = Tensor::<2>::from_data(TensorData::new(x, [BATCH, D_IN]), &Device::flex());
        let pass = trainer.forward(x.clone(), x, &[]);
        let code = pass.code.to_host().unwrap();
        let error = f64s(&(pass.recon.clone() - pass.target.clone()));
        let gradients = trainer.gradients(trainer.objective.loss(&pass));
        assert!(f64s(&gradients.b_enc).iter().all(|g| *g == 0.0));
        // 2 z_i (recon - x) over the batch and the variance.
        let scale = 2.0 / (BATCH as f64 * trainer.variance);
        let mut expected = vec![0.0; D_SAE * D_IN];
        for row in 0..BATCH {
            for (i, z) in code.row(row) {
                (0..D_IN).for_each(|j| expected[i * D_IN + j] += scale * f64::from(z) * error[row * D_IN + j]);
            }
        }
        for (a, b) in f64s(&gradients.w_dec).iter().zip(&expected) {
            assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{encoder:?}: {a} {b}");
        }
    }
}
