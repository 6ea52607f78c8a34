//! The keys of the optimiser and of the learning rate's schedule.

use serde::{Deserialize, Serialize};

use super::RunConfig;
use crate::error::{Error, Result};

/// Share of the run over which the learning rate falls where `train.decay_share` is not given.
const DECAY_SHARE: f64 = 0.2;
/// Muon's momentum where `train.muon_momentum` is not given.
const MUON_MOMENTUM: f64 = 0.95;

/// How the learning rate falls at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// In a line to 0.
    #[default]
    Linear,
    /// Along half a cosine to 0 (arXiv 1608.03983, without restarts).
    Cosine,
    /// Not at all.
    Constant,
}

/// What updates the matrices of encoder and decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam (arXiv 1412.6980).
    #[default]
    Adam,
    /// Muon (Jordan et al. 2024): orthogonalised momentum.
    Muon,
}

impl RunConfig {
    /// The momentum of Muon, where it updates the matrices.
    pub(crate) fn muon(&self) -> Option<f64> {
        let momentum = self.train.muon_momentum.unwrap_or(MUON_MOMENTUM);
        (self.train.optimizer == OptimizerName::Muon).then_some(momentum)
    }

    /// Fills in what is left open of them.
    pub(crate) fn fill_optimizer(&mut self) {
        self.train.muon_momentum = self.muon();
        let train = &mut self.train;
        if train.decay != Decay::Constant {
            train.decay_share.get_or_insert(DECAY_SHARE);
        }
    }

    /// Refuses resampling where encoder and decoder rows cannot be one direction of different lengths.
    pub(super) fn validate_resampling(&self) -> Result<()> {
        let (sae, data) = (&self.sae, &self.data);
        let problem = match self.train.resample_every {
            None => return Ok(()),
            Some(_) if data.target.is_some() || data.target_acts.is_some() => {
                "data.target is something else than what is read: a row that is reconstructed badly is the direction of an \
                 encoder and of a decoder only where they are of the same place"
            }
            Some(_) if self.encoder().is_pursuit() => {
                "sae.encoder is a pursuit, which has one matrix: its rows cannot begin shorter in the encoder than in the decoder"
            }
            Some(_) if sae.tied == Some(true) => {
                "sae.tied is true: rows of one matrix cannot begin shorter in the encoder than in the decoder"
            }
            Some(_) => return Ok(()),
        };
        let advice = "leave it out, and have dead latents revived by train.aux_weight";
        Err(Error::config(
            "train.resample_every",
            format!("is given, but {problem}; {advice}"),
        ))
    }

    /// Refuses values that cannot be, and keys that contradict each other.
    pub(super) fn validate_optimizer(&self) -> Result<()> {
        let train = &self.train;
        if train.decay == Decay::Constant && train.decay_share.is_some() {
            return Err(Error::config(
                "train.decay_share",
                "is given, but train.decay is constant: the learning rate does not fall; leave one of them out",
            ));
        }
        if train.muon_momentum.is_some() && train.optimizer == OptimizerName::Adam {
            return Err(Error::config(
                "train.muon_momentum",
                "is given, but train.optimizer is adam, whose decay is train.beta1: it is for train.optimizer = \"muon\"",
            ));
        }
        let share = |v: f64| (0.0..=1.0).contains(&v);
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let decay = |v: f64| v > 0.0 && v < 1.0;
        let momentum = |v: f64| (0.0..1.0).contains(&v);
        type Check = fn(f64) -> bool;
        let values: [(&str, Option<f64>, Check, &str); 4] = [
            ("train.decay_share", train.decay_share, share, "a share between 0 and 1"),
            ("train.clip_norm", train.clip_norm, positive, "a positive number"),
            ("train.ema", train.ema, decay, "more than 0 and less than 1"),
            (
                "train.muon_momentum",
                train.muon_momentum,
                momentum,
                "0 or more and less than 1",
            ),
        ];
        for (key, value, good, expected) in values {
            if let Some(value) = value.filter(|&v| !good(v)) {
                return Err(Error::config(key, format!("is {value}, expected {expected}")));
            }
        }
        Ok(())
    }
}
