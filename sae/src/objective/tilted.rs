//! Tilted risk (TERM, arXiv 2007.01162; for specialised dictionaries 2411.00743):
//! `(1/t) log mean_i exp(t l_i)` with `l_i` the error of a row over the variance of the data.
//!
//! The gradient weighs row `i` with `softmax(t l_i)`: as `t` goes to 0 that is the mean, and to infinity the worst row.
//! `t` means something only beside the scale of the losses, hence the variance.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check, check_weight, row_errors};
use crate::error::Result;

/// `[objective.tilted]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tilted {
    /// 1.
    pub weight: f64,
    /// How much more hard rows count, positive. 1.
    pub t: f64,
}

impl Default for Tilted {
    fn default() -> Self {
        Self { weight: 1.0, t: 1.0 }
    }
}

impl Tilted {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for Tilted {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let [batch, _] = pass.target.dims();
        let exponents = row_errors(pass).reshape([batch]) * (self.t / pass.variance);
        // The largest comes out of the sum, so that one row far off does not make it infinite.
        let largest = exponents.clone().detach().max();
        let sum = (exponents - largest.clone()).exp().mean().log();
        Some((sum + largest) / self.t)
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        check(key, "t", self.t, "a positive number", self.t > 0.0)?;
        check_weight(key, self.weight, None)
    }

    fn reconstructs(&self) -> bool {
        true
    }
}
