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
use crate::dictionary::Sae;
use crate::encoder::unrolled::EncoderStep;
use crate::error::Result;
use crate::sparsifier::{Allocation, Gate, Sparsifier};

/// The rows of an encoder that is not the decoder's transpose are drawn with another seed.
const ENCODER_SEED: u64 = 0x656e_636f_6465;
/// And those of latents that are added.
const ADDED_SEED: u64 = 0x6164_6465_6421;
/// Length of the encoder's rows of these.
const ADDED_LENGTH: f32 = 0.03;

/// The parameters before the first step of `plan`, for scaled activations, those of gates apart; on the plain `device`.
///
/// # Errors
/// When the dictionary that is gone on from cannot be loaded any more.
pub fn parameters(plan: &TrainPlan, start: &Start, device: &Device) -> Result<(Sae, Option<Gate>)> {
    let seed = plan.config.train.seed;
    let Some(going_on) = &plan.going_on else {
        return Ok(random(plan, start, plan.d_sae, seed, device));
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

/// Of a run that begins from nothing: a random decoder with unit rows, the encoder its transpose, `b_dec` the middle of what
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
