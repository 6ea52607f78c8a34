//! The exponential moving average of the parameters (`train.ema`): what is measured and saved where it is asked for.

use burn::tensor::Tensor;

use crate::config::RunConfig;
use crate::dictionary::Sae;
use crate::encoder::unrolled::EncoderStep;
use crate::sparsifier::Gate;

/// A weighted mean of the parameters behind every step so far: those of the last one weigh the most, and each step before it
/// `decay` times the one behind it. Nothing of the random beginning is in it.
pub struct Average {
    decay: f64,
    /// Whether encoder and decoder are one matrix.
    tied: bool,
    /// On a plain device, for scaled activations; the decoder's rows are shorter than 1.
    pub sae: Sae,
    pub gate: Option<Gate>,
}

impl Average {
    /// The average of a run of `config`, if it has one, from its parts on a plain device. What they are before the first step
    /// has no weight.
    pub fn of(config: &RunConfig, sae: &Sae, gate: Option<&Gate>) -> Option<Self> {
        config.train.ema.map(|decay| Self {
            decay,
            tied: config.is_tied(),
            sae: sae.clone(),
            gate: gate.cloned(),
        })
    }

    /// Takes in the parameters behind step `steps`, counted from 1, on a plain device.
    pub fn add(&mut self, now: &Sae, gate: Option<&Gate>, steps: u64) {
        // Weights of all steps sum to 1 then, as those of Adam's corrected moments do.
        let weight = (1.0 - self.decay) / (1.0 - self.decay.powf(steps as f64));
        let matrix = |mean: &mut Tensor<2>, now: &Tensor<2>| move_toward(mean, now, weight);
        let vector = |mean: &mut Tensor<1>, now: &Tensor<1>| move_toward(mean, now, weight);
        let mean = &mut self.sae;
        vector(&mut mean.b_enc, &now.b_enc);
        matrix(&mut mean.w_dec, &now.w_dec);
        match self.tied {
            true => mean.w_enc = mean.w_dec.clone(),
            false => matrix(&mut mean.w_enc, &now.w_enc),
        }
        vector(&mut mean.b_dec, &now.b_dec);
        for (mean, now) in mean.steps.iter_mut().zip(&now.steps) {
            let EncoderStep { w_enc, b_enc } = mean;
            matrix(w_enc, &now.w_enc);
            vector(b_enc, &now.b_enc);
        }
        if let (Some(mean), Some(now)) = (&mut mean.skip, &now.skip) {
            matrix(mean, now);
        }
        if let (Some(mean), Some(now)) = (&mut mean.threshold, &now.threshold) {
            vector(mean, now);
        }
        if let (Some(mean), Some(now)) = (&mut self.gate, gate) {
            vector(&mut mean.r_mag, &now.r_mag);
            vector(&mut mean.b_mag, &now.b_mag);
        }
    }

    /// An averaged dictionary without gates, with decoder rows of length 1. Latents have the lengths in their values, so that
    /// reconstructions are the same for thresholds and ReLU; under a budget latents compete with what they write. One
    /// matrix for both has its rows stretched.
    pub fn unit(&self, ungated: Sae) -> Sae {
        if !self.tied {
            return ungated.with_rows_of_length_one(0.0);
        }
        let w_dec = ungated.clone().with_rows_of_length_one(0.0).w_dec;
        Sae {
            w_enc: w_dec.clone(),
            w_dec,
            ..ungated
        }
    }
}

/// `mean + weight (now - mean)`; exactly `now` for a weight of 1.
fn move_toward<const D: usize>(mean: &mut Tensor<D>, now: &Tensor<D>, weight: f64) {
    *mean = mean.extract() * (1.0 - weight) + now.clone() * weight;
}
