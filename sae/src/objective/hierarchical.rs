//! HierarchicalTopK (arXiv 2505.24473): the `t` best latents of a token reconstruct it for every `t` up to `k`, so that
//! one dictionary serves every smaller `k`.
//!
//! The mean over `t` of the error by the first `t` entries of a row, over the variance of the data. It needs rows whose
//! entries are sorted, best first, which those of a budget a token are. Cut below its `k`, a TopK dictionary trained
//! without this term collapses.

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight, nested_mean};
use crate::config::Method;
use crate::error::{Error, Result};

/// `[objective.hierarchical]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hierarchical {
    /// 1.
    pub weight: f64,
}

impl Default for Hierarchical {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

impl Hierarchical {
    pub(super) fn complete() -> Self {
        Self::default()
    }
}

impl Face for Hierarchical {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let ranks: Vec<i32> = pass.code.rows.ranges().flat_map(|r| 0..r.len() as i32).collect();
        let deepest = ranks.iter().max().map_or(1, |rank| *rank as usize + 1);
        let shape = [ranks.len()];
        let levels = Tensor::<1, Int>::from_data(TensorData::new(ranks, shape), &pass.code.indices.device());
        Some(nested_mean(pass, levels, deepest))
    }

    fn validate(&self, key: &str, about: About) -> Result<()> {
        check_weight(key, self.weight, None)?;
        match about.method {
            Method::TopK | Method::AbsTopK | Method::KSparse => Ok(()),
            other => Err(Error::config(
                key,
                format!(
                    "is given, but sae.method is {}: its prefixes are those of the k best of a token, as topk, \
                     abs_topk and ksparse have them",
                    other.key()
                ),
            )),
        }
    }

    fn reconstructs(&self) -> bool {
        true
    }
}
