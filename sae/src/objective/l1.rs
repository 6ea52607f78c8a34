//! The L1 penalty: `sum_i |z_i| |d_i|` over the latents of a token, mean over the batch, over the square root of the
//! variance of the data (arXiv 2309.08600; weighted by the decoder's norms as in Anthropic's April update of 2024).
//!
//! Weighted by norms, it cannot be lowered by making values small and decoder rows long. In training rows have length 1
//! anyway, and the optimiser takes out the part of the gradient along them.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight, weighted_values};
use crate::error::Result;

/// `[objective.l1]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L1 {
    /// 0.1.
    pub weight: f64,
    /// Share of the run over which the weight rises from 0: early on, latents must be free to find a direction. 0.05.
    pub warmup_share: f64,
}

impl Default for L1 {
    fn default() -> Self {
        Self {
            weight: 0.1,
            warmup_share: 0.05,
        }
    }
}

impl L1 {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for L1 {
    fn weight(&self, moment: Moment) -> f64 {
        self.weight * moment.warmed_up(self.warmup_share)
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let batch = pass.code.batch() as f64;
        Some(weighted_values(pass).sum() / (batch * pass.variance.sqrt()))
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        check_weight(key, self.weight, Some(self.warmup_share))
    }

    fn sparsifies(&self) -> bool {
        self.weight > 0.0
    }
}
