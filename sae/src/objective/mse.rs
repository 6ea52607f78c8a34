//! Reconstruction: `|x - recon|^2` summed over its width, mean over the batch, over the variance of the data.
//!
//! The variance is a constant of the run, not of the batch, so that a batch of easy tokens does not count more.
//! [`Normalize`] has the other forms in use.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight, row_errors};
use crate::error::Result;

/// Rows are at least so long, for errors relative to them: of the variance of the data.
const LEAST_ROW: f64 = 0.01;

/// `[objective.mse]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mse {
    /// 1.
    pub weight: f64,
    /// What an error is divided by.
    pub normalize: Normalize,
}

/// What an error is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// The variance of the data: the loss is the FVU.
    #[default]
    Variance,
    /// The variance of the batch, as `sparsify` does.
    Batch,
    /// Each row's `|x|^2`, or a hundredth of the variance where that is more (a row of zeros has an error, too): small
    /// activations count as much as large ones.
    Row,
    /// Nothing, as SAELens does.
    None,
}

impl Default for Mse {
    fn default() -> Self {
        Self {
            weight: 1.0,
            normalize: Normalize::default(),
        }
    }
}

impl Mse {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for Mse {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let [batch, d_out] = pass.target.dims();
        let sum = || {
            let error = pass.recon.clone() - pass.target.clone();
            (error.clone() * error).sum()
        };
        Some(match self.normalize {
            Normalize::Variance => sum() / (batch as f64 * pass.variance),
            Normalize::None => sum() / batch as f64,
            Normalize::Batch => {
                let mean = pass.target.clone().mean_dim(0).expand([batch, d_out]);
                let about_mean = pass.target.clone() - mean;
                sum() / (about_mean.clone() * about_mean).sum().clamp_min(f32::MIN_POSITIVE)
            }
            Normalize::Row => {
                let squares = (pass.target.clone() * pass.target.clone()).sum_dim(1);
                (row_errors(pass) / squares.clamp_min(LEAST_ROW * pass.variance)).mean()
            }
        })
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        check_weight(key, self.weight, None)
    }

    fn reconstructs(&self) -> bool {
        true
    }
}
