//! What gates learn from beside the penalty (arXiv 2404.16014): the pre-activations of open gates have to reconstruct on
//! their own, `|x - (max(u, 0) W_dec + b_dec)|^2` over the variance of the data, mean over the batch.
//!
//! The paper decodes with a copy of the decoder that is not trained by it (`frozen`), since gates must not bend the
//! directions that values use; SAELens trains it.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight};
use crate::code::SparseCode;
use crate::config::Method;
use crate::error::{Error, Result};
use crate::kernels::decode;

/// `[objective.gate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateError {
    /// 1.
    pub weight: f64,
    /// Whether the decoder learns nothing from it. true.
    pub frozen: bool,
}

impl Default for GateError {
    fn default() -> Self {
        Self {
            weight: 1.0,
            frozen: true,
        }
    }
}

impl GateError {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for GateError {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let code = SparseCode {
            values: pass.gate.clone()?,
            ..pass.code.clone()
        };
        let (w_dec, base) = match self.frozen {
            true => (pass.w_dec.clone().detach(), pass.base.clone().detach()),
            false => (pass.w_dec.clone(), pass.base.clone()),
        };
        let error = decode(&code, w_dec) + base - pass.target.clone();
        Some((error.clone() * error).sum() / (code.batch() as f64 * pass.variance))
    }

    fn validate(&self, key: &str, about: About) -> Result<()> {
        check_weight(key, self.weight, None)?;
        match about.method {
            Method::Gated => Ok(()),
            other => Err(Error::config(
                key,
                format!("is given, but sae.method is {}, which has no gates", other.key()),
            )),
        }
    }
}
