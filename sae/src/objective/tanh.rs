//! The number of latents that fire, smoothly: the mean over the batch of `sum_i tanh(scale |z_i| |d_i|)` (Anthropic's
//! update of January 2025). Large values are not made smaller, as L1 does; small ones are pressed to 0.
//!
//! `scale` is in the units of the trainer, in which `E|x|^2 = d_in`.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check, check_weight, weighted_values};
use crate::error::Result;

/// `[objective.tanh]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tanh {
    /// 3e-3.
    pub weight: f64,
    /// Share of the run over which the weight rises from 0. 0.05.
    pub warmup_share: f64,
    /// How soon a value counts as one. 4.
    pub scale: f64,
}

impl Default for Tanh {
    fn default() -> Self {
        Self {
            weight: 3e-3,
            warmup_share: 0.05,
            scale: 4.0,
        }
    }
}

impl Tanh {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for Tanh {
    fn weight(&self, moment: Moment) -> f64 {
        self.weight * moment.warmed_up(self.warmup_share)
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let scaled = weighted_values(pass) * self.scale;
        Some(scaled.tanh().sum() / pass.code.batch() as f64)
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        check(key, "scale", self.scale, "a positive number", self.scale > 0.0)?;
        check_weight(key, self.weight, Some(self.warmup_share))
    }

    fn sparsifies(&self) -> bool {
        self.weight > 0.0
    }
}
