//! The parameters before the first step: random ones, or those of a dictionary that the run goes on from.
//!
//! A dictionary takes raw activations and a trainer sees them scaled, so its parameters are unfolded into the scales of this
//! run's data: before the first step it does exactly what it did. Latents that are added to it are random, with encoder
//! rows of length 0.03 instead of 1. Small pre-activations lose against those of latents
//! that have learned something, and where nothing has to be won, add little: they are there to be trained, and not in the
//! way, whatever the method. (Small random rows are how dictionaries of unconstrained norms are started, too.)

use burn::tensor::{Device, Tensor, TensorData};

use super::TrainPlan;
use super::start::{Start, random_directions};
use crate::code::to_host;
use crate::dictionary::{Sae, Whitening};
use crate::encoder::unrolled::EncoderStep;
use crate::error::Result;
use crate::sparsifier::{Allocation, Gate, Sparsifier};

/// The rows of an encoder that is not the decoder's transpose are drawn with another seed.
const ENCODER_SEED: u64 = 0x656e_636f_6465;
/// And those of latents that are added.
const ADDED_SEED: u64 = 0x6164_6465_6421;
/// Length of the encoder's rows of these.
const ADDED_LENGTH: f32 = 0.03;
/// Rows of the sample that the length of a new encoder's rows is fitted on.
const FITTED_ROWS: usize = 1024;

/// The parameters before the first step of `plan`, for scaled activations, those of gates apart; on the plain `device`.
/// `sample: [n, width]` are raw rows, which are trained on white where there is a `whitening`.
///
/// # Errors
/// When the dictionary that is gone on from cannot be loaded any more; what the device says.
pub fn parameters(
    plan: &TrainPlan,
    start: &Start,
    whitening: Option<&Whitening>,
    sample: &[f32],
    device: &Device,
) -> Result<(Sae, Option<Gate>)> {
    let seed = plan.config.train.seed;
    let Some(going_on) = &plan.going_on else {
        let (sae, gate) = random(plan, start, plan.d_sae, seed, device);
        let seen = |x: Tensor<2>| match whitening {
            Some(whitening) => whitening.whiten(x),
            None => start.scales.scale_read(x),
        };
        let length = fitted_length(&sae, plan, sample, device, seen)?;
        return Ok((sae.map_encoder(|w_enc, b_enc| (w_enc * length, b_enc)), gate));
    };
    let loaded = going_on.load(device)?.with_b_dec_applied(plan.sides.same());
    let (old, gate) = trainable(loaded.unfold_scales(&start.scales).with_unit_rows(), plan, device);
    let added = plan.d_sae - old.d_sae();
    if added == 0 {
        return Ok((old, gate));
    }
    let (mut new, of_new) = random(plan, start, added, seed ^ ADDED_SEED, device);
    if !plan.config.is_tied() {
        new = new.map_encoder(|w_enc, b_enc| (w_enc * ADDED_LENGTH, b_enc * ADDED_LENGTH));
    }
    let gate = gate.zip(of_new).map(|(old, new)| Gate {
        r_mag: behind(old.r_mag, new.r_mag),
        b_mag: behind(old.b_mag, new.b_mag),
    });
    let steps = old.steps.into_iter().zip(new.steps).map(|(old, new)| EncoderStep {
        w_enc: behind(old.w_enc, new.w_enc),
        b_enc: behind(old.b_enc, new.b_enc),
    });
    let sae = Sae {
        steps: steps.collect(),
        w_enc: behind(old.w_enc, new.w_enc),
        b_enc: behind(old.b_enc, new.b_enc),
        w_dec: behind(old.w_dec, new.w_dec),
        threshold: old.threshold.zip(new.threshold).map(|(old, new)| behind(old, new)),
        ..old
    };
    Ok((sae, gate))
}

/// Of a run that begins from nothing: a random decoder with unit rows, the encoder its transpose, later times a length, `b_dec` the middle of what
/// is written. Where that is not what is read, the encoder's rows are random as well, and its bias is what makes
/// pre-activations 0 in the middle of what is read. Steps of their own parameters begin alike. A skip connection starts at 0.
fn random(plan: &TrainPlan, start: &Start, d_sae: usize, seed: u64, device: &Device) -> (Sae, Option<Gate>) {
    let (d_in, d_out) = (plan.d_in(), plan.d_out());
    // Two buffers: each is updated in place.
    let matrix = |values: Vec<f32>, width: usize| -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, [d_sae, width]), device)
    };
    let written = random_directions(d_sae, d_out, seed);
    let read = match plan.sides.same() {
        true => written.clone(),
        false => random_directions(d_sae, d_in, seed ^ ENCODER_SEED),
    };
    let w_enc = matrix(read, d_in);
    let b_enc = match plan.sides.same() {
        true => Tensor::zeros([d_sae], device),
        false => {
            let middle = Tensor::from_data(TensorData::new(start.read_middle.clone(), [d_in, 1]), device);
            -w_enc.clone().matmul(middle).reshape([d_sae])
        }
    };
    let config = &plan.config;
    let sparsifier = config.sparsifier();
    let sae = Sae {
        per_token: false,
        steps: like_the_first(sparsifier, &w_enc, &b_enc),
        w_enc,
        b_enc,
        w_dec: matrix(written, d_out),
        b_dec: Tensor::from_data(TensorData::new(start.middle.clone(), [d_out]), device),
        apply_b_dec_to_input: plan.sides.same(),
        skip: config.sae.skip.then(|| Tensor::zeros([d_out, d_in], device)),
        threshold: config.threshold_init().map(|t| Tensor::full([d_sae], t, device)),
        sparsifier,
    };
    let gated = sae.sparsifier.allocation == Allocation::Gate;
    let gate = gated.then(|| Gate {
        r_mag: Tensor::zeros([d_sae], device),
        b_mag: Tensor::zeros([d_sae], device),
    });
    (sae, gate)
}

/// How long the rows of a new encoder are to be, in place of 1, so that reconstructions are as near as they can be.
///
/// The directions that win for an activation all point its way, so they overlap, and a sum of projections on them is too
/// long: on a language model's activations by two to three times, which a run would spend its first hundreds of steps on. By
/// least squares the length is `x . r / r . r` over a sample, with `r` what rows of length 1 reconstruct. It is fitted where
/// the encoder is one product and a budget decides who fires, so that the winners are the same at every length; elsewhere it
/// stays 1. `seen` makes of raw rows what the trainer sees.
fn fitted_length(
    sae: &Sae,
    plan: &TrainPlan,
    sample: &[f32],
    device: &Device,
    seen: impl FnOnce(Tensor<2>) -> Tensor<2>,
) -> Result<f32> {
    let Sparsifier {
        score,
        allocation,
        encoder,
        ..
    } = sae.sparsifier;
    let budget = match allocation {
        Allocation::PerToken { .. } | Allocation::PerBatch { .. } => sae.sparsifier,
        // Which begins as a budget of the batch, or with latents that are all alike.
        Allocation::PerLatent { k } => Sparsifier::new(score, Allocation::PerBatch { k }),
        Allocation::All | Allocation::Gate | Allocation::Threshold => return Ok(1.0),
    };
    if !plan.sides.same() || plan.config.is_tied() || !encoder.is_linear() {
        return Ok(1.0);
    }
    let rows = sample.len() / plan.sides.width();
    let rows = sample[..rows.min(FITTED_ROWS) * plan.sides.width()].to_vec();
    let (x, _) = plan.sides.tensors(rows, device);
    let x = seen(x);
    let sae = Sae {
        sparsifier: budget,
        ..sae.clone()
    };
    let code = sae.encode(x.clone())?;
    let middle: Tensor<2> = sae.b_dec.clone().unsqueeze();
    let recon: Vec<f32> = to_host((sae.decode(&code) - middle.clone()).try_into_data())?;
    let x: Vec<f32> = to_host((x - middle).try_into_data())?;
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let length = (dot(&x, &recon) / dot(&recon, &recon)) as f32;
    // Rows that are all in the middle have no reconstruction to fit.
    Ok(if length.is_finite() && length > 0.0 {
        length
    } else {
        1.0
    })
}

/// A loaded dictionary with the parameters that the method of `plan` trains: thresholds where it learns them, gates that open
/// where the scores are above the dictionary's thresholds, a skip connection where there is to be one.
fn trainable(loaded: Sae, plan: &TrainPlan, device: &Device) -> (Sae, Option<Gate>) {
    let (d_sae, sparsifier) = (loaded.d_sae(), plan.config.sparsifier());
    let zeros = || Tensor::zeros([d_sae], device);
    let gate = (sparsifier.allocation == Allocation::Gate).then(|| Gate {
        r_mag: zeros(),
        b_mag: loaded.b_enc.clone(),
    });
    let thresholds = loaded.threshold.clone();
    let b_enc = match &gate {
        // Open where `u - threshold` is above 0, and then worth `u`.
        Some(_) => loaded.b_enc - thresholds.clone().unwrap_or_else(zeros),
        None => loaded.b_enc,
    };
    let threshold = plan.config.threshold_init().map(|t| {
        let kept = thresholds.filter(|_| plan.config.learns_thresholds());
        kept.unwrap_or_else(|| Tensor::full([d_sae], t, device))
    });
    let shape = [plan.d_out(), plan.d_in()];
    let skips = plan.config.sae.skip;
    let steps = match loaded.steps.is_empty() {
        true => like_the_first(sparsifier, &loaded.w_enc, &b_enc),
        false => loaded.steps,
    };
    let sae = Sae {
        b_enc,
        steps,
        threshold,
        skip: skips.then(|| loaded.skip.unwrap_or_else(|| Tensor::zeros(shape, device))),
        sparsifier,
        ..loaded
    };
    (sae, gate)
}

/// The steps behind the first that are to have parameters of their own.
fn like_the_first(sparsifier: Sparsifier, w_enc: &Tensor<2>, b_enc: &Tensor<1>) -> Vec<EncoderStep> {
    let step = EncoderStep {
        w_enc: w_enc.clone(),
        b_enc: b_enc.clone(),
    };
    vec![step; sparsifier.encoder.own_steps()]
}

/// Latents behind others.
fn behind<const D: usize>(old: Tensor<D>, new: Tensor<D>) -> Tensor<D> {
    Tensor::cat(vec![old, new], 0)
}
