//! The number of latents that fire, minimised through learned thresholds (JumpReLU, arXiv 2407.14435): the mean over
//! the batch of `sum_i H(u_i - theta_i)`, or, with a target, of `2 / target (L0 - target)^2` for each token, which
//! penalises too few as well (Gemma Scope 2's form).
//!
//! The step `H` has no slope; its straight-through gradient reaches the thresholds alone, see
//! [`Near`](crate::sparsifier::Near).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check, check_weight, row_sums};
use crate::config::Method;
use crate::error::{Error, Result};

/// `[objective.l0]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L0 {
    /// 3e-3.
    pub weight: f64,
    /// Share of the run over which the weight rises from 0. 0.05.
    pub warmup_share: f64,
    /// Active latents a token to aim at; without it, as few as the weight buys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
}

impl Default for L0 {
    fn default() -> Self {
        Self {
            weight: 3e-3,
            warmup_share: 0.05,
            target: None,
        }
    }
}

impl L0 {
    pub(super) fn complete() -> Self {
        Self {
            target: Some(1.0),
            ..Self::default()
        }
    }
}

impl Face for L0 {
    fn weight(&self, moment: Moment) -> f64 {
        self.weight * moment.warmed_up(self.warmup_share)
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let fires = pass.near.as_ref()?.fires();
        let Some(target) = self.target else {
            return Some(fires.sum() / pass.code.batch() as f64);
        };
        let l0 = row_sums(pass, fires);
        let off = l0 - target;
        Some((off.clone() * off).mean() * (2.0 / target))
    }

    fn validate(&self, key: &str, about: About) -> Result<()> {
        check_weight(key, self.weight, Some(self.warmup_share))?;
        if let Some(target) = self.target {
            check(key, "target", target, "a positive number", target > 0.0)?;
            if let Some(d_sae) = about.d_sae.filter(|&d| target > d as f64) {
                return Err(Error::config(
                    format!("{key}.target"),
                    format!("is {target}, more than the {d_sae} latents of sae.d_sae"),
                ));
            }
        }
        match about.method {
            Method::JumpReLU => Ok(()),
            other => Err(Error::config(
                key,
                format!(
                    "is given, but sae.method is {}: only the learned thresholds of jumprelu get a gradient from it",
                    other.key()
                ),
            )),
        }
    }

    fn sparsifies(&self) -> bool {
        self.weight > 0.0
    }
}
