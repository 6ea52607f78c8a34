//! Who may fire: a score says how much a latent wants to, an allocation says how the budget is spent.
//!
//! Every activation function of a sparse autoencoder is one step of proximal gradient descent,
//! `z = prox(x W_enc^T + b_enc)` (arXiv 2510.00404), and every such step keeps the pre-activations that win under a
//! score. TopK (arXiv 2406.04093) and AbsTopK (arXiv 2510.00404) differ in the score alone.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::Selection;

/// What a latent's pre-activation `u` competes with, and what value it takes when it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Score and value are `max(u, 0)`: latents have one pole.
    Positive,
    /// The score is `|u|` and the value is `u`: latents have two poles.
    Magnitude,
}

impl Score {
    /// The score of a pre-activation, at least 0. Larger wins; NaN scores 0, so that it never beats a number.
    pub fn of(self, pre: f32) -> f32 {
        match self {
            Self::Positive => pre.max(0.0),
            Self::Magnitude => pre.abs().max(0.0),
        }
    }

    /// The value of a winner.
    pub fn value(self, pre: f32) -> f32 {
        match self {
            Self::Positive => pre.max(0.0),
            Self::Magnitude if pre.is_nan() => 0.0,
            Self::Magnitude => pre,
        }
    }
}

/// How the budget of active latents is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Allocation {
    /// The `k` best latents of every token; of equal scores the lower index wins.
    PerToken {
        /// At least 1 and at most `d_sae`.
        k: usize,
    },
}

/// A score with an allocation: the activation function of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsifier {
    /// Who wants to fire.
    pub score: Score,
    /// Who is allowed to.
    pub allocation: Allocation,
}

impl Sparsifier {
    /// TopK: the `k` largest of `max(pre, 0)` (arXiv 2406.04093).
    pub fn top_k(k: usize) -> Self {
        Self {
            score: Score::Positive,
            allocation: Allocation::PerToken { k },
        }
    }

    /// AbsTopK: the `k` largest of `|pre|`, with their signs (arXiv 2510.00404).
    pub fn abs_top_k(k: usize) -> Self {
        Self {
            score: Score::Magnitude,
            allocation: Allocation::PerToken { k },
        }
    }

    /// Slots a token's code needs: the width of a padded [`SparseCode`](crate::code::SparseCode).
    pub fn slots(&self) -> usize {
        match self.allocation {
            Allocation::PerToken { k } => k,
        }
    }

    /// What the kernels select for it.
    pub fn selection(&self) -> Selection {
        let Allocation::PerToken { k } = self.allocation;
        Selection { score: self.score, k }
    }

    /// Whether values can be negative.
    pub fn is_signed(&self) -> bool {
        self.score == Score::Magnitude
    }

    /// The name people know: `TopK(32)`.
    pub fn name(&self) -> String {
        let Allocation::PerToken { k } = self.allocation;
        match self.score {
            Score::Positive => format!("TopK({k})"),
            Score::Magnitude => format!("AbsTopK({k})"),
        }
    }

    /// # Errors
    /// [`Error::Config`] naming `sae.k` when it is 0 or over `d_sae`.
    pub fn validate(&self, d_sae: usize) -> Result<()> {
        let Allocation::PerToken { k } = self.allocation;
        if k == 0 {
            return Err(Error::config("sae.k", "is 0: at least one latent has to fire"));
        }
        if k > d_sae {
            return Err(Error::config(
                "sae.k",
                format!("is {k}, more than the {d_sae} latents of sae.d_sae"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_over_d_sae_is_refused_and_names_both_keys() {
        let error = Sparsifier::top_k(65).validate(64).unwrap_err().to_string();
        assert!(
            error.contains("sae.k") && error.contains("65") && error.contains("64") && error.contains("sae.d_sae"),
            "{error}"
        );
        assert!(Sparsifier::top_k(0).validate(64).is_err());
        assert!(Sparsifier::abs_top_k(64).validate(64).is_ok());
    }

    #[test]
    fn a_sparsifier_survives_json() {
        let before = Sparsifier::abs_top_k(7);
        let json = serde_json::to_string(&before).unwrap();
        assert_eq!(json, r#"{"score":"magnitude","allocation":{"kind":"per_token","k":7}}"#);
        assert_eq!(serde_json::from_str::<Sparsifier>(&json).unwrap(), before);
    }
}
