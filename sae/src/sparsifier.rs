//! Who may fire: a score says how much a latent wants to, an allocation says how the budget is spent.
//!
//! Every activation function of a sparse autoencoder is one step of proximal gradient descent,
//! `z = prox(x W_enc^T + b_enc)` (arXiv 2510.00404), and every such step keeps the pre-activations that win under a
//! score. So the methods of the papers are cells of one table, and a new one is a new row or a new column:
//!
//! | | `positive` | `magnitude` | `value` |
//! |---|---|---|---|
//! | `per_token` | TopK (2406.04093) | AbsTopK (2510.00404) | k-sparse (1312.5663) |
//! | `per_batch` | BatchTopK (2412.06410), mutual choice (2411.02124) | its magnitude form | |
//! | `per_latent` | feature choice (2411.02124) | its magnitude form | |
//! | `all` | ReLU (2309.08600) | | |
//! | `gate` | Gated (2404.16014) | | |
//! | `threshold` | JumpReLU (2407.14435) | inference of the signed | inference of k-sparse |
//!
//! Beside who fires there is what value winners take: [`Shrink`] has the thresholds that make it smaller (soft, half,
//! CEL0), which go with a cutoff, so with `threshold` and `per_batch`.
//!
//! What a batch shares cannot be used for one token alone. Every allocation has therefore an **inference form**, in
//! which each token is by itself: itself where it is that already, or [`Allocation::Threshold`], calibrated by
//! [`Sae::into_inference`](crate::Sae::into_inference). The thresholds are a parameter of the dictionary.

mod gate;
mod jump;
mod shrink;
#[cfg(test)]
mod theorem;

use serde::{Deserialize, Serialize};

pub use self::gate::Gate;
pub use self::jump::Near;
pub use self::shrink::Shrink;

use crate::encoder::Encoder;
use crate::encoder::pursuit::Pursuit;
use crate::error::{Error, Result};

/// What a latent's pre-activation `u` competes with, and what value it takes when it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Score and value are `max(u, 0)`: latents have one pole.
    Positive,
    /// The score is `|u|` and the value is `u`: latents have two poles.
    Magnitude,
    /// Score and value are `u`, below zero too: a linear code.
    Value,
}

impl Score {
    /// The score of a pre-activation. Larger wins. A NaN has the least score there is, so that it never beats a number.
    pub fn of(self, pre: f32) -> f32 {
        match self {
            Self::Positive => pre.max(0.0),
            Self::Magnitude => pre.abs().max(0.0),
            Self::Value => pre.max(f32::MIN),
        }
    }

    /// The value of a winner; 0 for a NaN.
    pub fn value(self, pre: f32) -> f32 {
        match self {
            Self::Positive => pre.max(0.0),
            Self::Magnitude | Self::Value if pre.is_nan() => 0.0,
            Self::Magnitude | Self::Value => pre,
        }
    }

    /// A score that nothing has which may never fire: winners are above it.
    pub fn floor(self) -> f32 {
        match self {
            Self::Positive | Self::Magnitude => 0.0,
            Self::Value => f32::MIN,
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
    /// The `k * batch` best of all latents of all tokens of a batch: a token gets what it deserves beside the others.
    PerBatch {
        /// Mean over the tokens of a batch; at least 1 and at most `d_sae`.
        k: usize,
    },
    /// The best tokens of a batch for every latent, as many as its rank among the densities gives it, `k` a token on
    /// average: feature choice. The budgets are the trainer's.
    PerLatent {
        /// Mean over the tokens of a batch; at least 1 and at most `d_sae`.
        k: usize,
    },
    /// Whoever scores at all: nothing but a penalty keeps latents silent.
    All,
    /// Whoever's gate is open; in training alone: saved, it is the [`Allocation::Threshold`] that it equals, see [`Gate`].
    Gate,
    /// Whoever scores more than its latent's threshold, [`Sae::threshold`](crate::Sae::threshold).
    Threshold,
}

/// A score with an allocation, behind an encoder: the activation function of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsifier {
    /// Who wants to fire.
    pub score: Score,
    /// Who is allowed to.
    pub allocation: Allocation,
    /// What becomes of the values of those who do.
    #[serde(default, skip_serializing_if = "Shrink::is_none")]
    pub shrink: Shrink,
    /// How pre-activations come about.
    #[serde(default, skip_serializing_if = "Encoder::is_linear")]
    pub encoder: Encoder,
}

impl Sparsifier {
    /// A cell of the table, where winners keep their values.
    pub fn new(score: Score, allocation: Allocation) -> Self {
        Self {
            score,
            allocation,
            shrink: Shrink::None,
            encoder: Encoder::Linear,
        }
    }

    /// The same behind another encoder.
    pub fn encoded_by(self, encoder: Encoder) -> Self {
        Self { encoder, ..self }
    }

    /// The same with values shrunk.
    pub fn shrunk(self, shrink: Shrink) -> Self {
        Self { shrink, ..self }
    }

    /// TopK: the `k` largest of `max(pre, 0)` (arXiv 2406.04093).
    pub fn top_k(k: usize) -> Self {
        Self::new(Score::Positive, Allocation::PerToken { k })
    }

    /// AbsTopK: the `k` largest of `|pre|`, with their signs (arXiv 2510.00404).
    pub fn abs_top_k(k: usize) -> Self {
        Self::new(Score::Magnitude, Allocation::PerToken { k })
    }

    /// BatchTopK: the `k * batch` largest of a batch's `max(pre, 0)` (arXiv 2412.06410).
    pub fn batch_top_k(k: usize) -> Self {
        Self::new(Score::Positive, Allocation::PerBatch { k })
    }

    /// The number of latents that a token has by construction, exactly or on average over a batch.
    pub fn k(&self) -> Option<usize> {
        match self.allocation {
            Allocation::PerToken { k } | Allocation::PerBatch { k } | Allocation::PerLatent { k } => Some(k),
            Allocation::All | Allocation::Gate | Allocation::Threshold => None,
        }
    }

    /// The pursuit, if that is how codes are found.
    pub(crate) fn pursuit(&self) -> Option<Pursuit> {
        let pursuit = Pursuit {
            score: self.score,
            k: self.k()?,
            orthogonal: self.encoder == Encoder::OrthogonalPursuit,
        };
        self.encoder.is_pursuit().then_some(pursuit)
    }

    /// The same with another [`Sparsifier::k`]; unchanged where there is none.
    pub fn with_k(self, k: usize) -> Self {
        let allocation = match self.allocation {
            Allocation::PerToken { .. } => Allocation::PerToken { k },
            Allocation::PerBatch { .. } => Allocation::PerBatch { k },
            Allocation::PerLatent { .. } => Allocation::PerLatent { k },
            other => other,
        };
        Self { allocation, ..self }
    }

    /// Whether a token's code depends on nothing but the token.
    pub fn is_inference_form(&self) -> bool {
        !matches!(
            self.allocation,
            Allocation::PerBatch { .. } | Allocation::PerLatent { .. }
        )
    }

    /// # Errors
    /// [`Error::Invalid`] for an allocation that a saved dictionary does not have: one that is for training alone.
    pub fn validate_saved(&self) -> Result<()> {
        let instead = match self.allocation {
            Allocation::PerBatch { .. } | Allocation::PerLatent { .. } => "calibrated thresholds (Sae::into_inference)",
            Allocation::Gate => "the thresholds that it equals",
            _ => return Ok(()),
        };
        Err(Error::Invalid(format!(
            "{} is a form for training: a saved dictionary has {instead}",
            self.name()
        )))
    }

    /// Whether the dictionary has thresholds.
    pub fn has_threshold(&self) -> bool {
        self.allocation == Allocation::Threshold
    }

    /// Whether values can be negative.
    pub fn is_signed(&self) -> bool {
        self.score != Score::Positive
    }

    /// The name people know: `TopK(32)`.
    pub fn name(&self) -> String {
        let score = match self.score {
            Score::Positive => "",
            Score::Magnitude => "Abs",
            Score::Value => "Linear",
        };
        let name = match (self.score, self.allocation) {
            (Score::Value, Allocation::PerToken { k }) => format!("KSparse({k})"),
            (_, Allocation::PerToken { k }) => format!("{score}TopK({k})"),
            (_, Allocation::PerBatch { k }) => format!("{score}BatchTopK({k})"),
            (_, Allocation::PerLatent { k }) => format!("{score}FeatureChoice({k})"),
            (_, Allocation::All) => format!("{score}ReLU"),
            (_, Allocation::Gate) => format!("{score}Gated"),
            (_, Allocation::Threshold) => format!("{score}JumpReLU"),
        };
        let name = match self.shrink {
            Shrink::None => name,
            shrink => format!("{name} {}", shrink.name()),
        };
        match self.encoder {
            Encoder::Linear => name,
            encoder => format!("{name} by {}", encoder.name()),
        }
    }

    /// # Errors
    /// [`Error::Config`] naming `sae.k` when it is 0 or over `d_sae`; when the score is one under which everybody
    /// would always fire; when values are shrunk where there is no cutoff.
    pub fn validate(&self, d_sae: usize) -> Result<()> {
        self.validate_shrink()?;
        self.validate_encoder()?;
        match (self.k(), self.allocation, self.score) {
            (Some(0), ..) => Err(Error::config("sae.k", "is 0: at least one latent has to fire")),
            (Some(k), ..) if k > d_sae => Err(Error::config(
                "sae.k",
                format!("is {k}, more than the {d_sae} latents of sae.d_sae"),
            )),
            (_, Allocation::All | Allocation::Gate, Score::Magnitude | Score::Value) => Err(Error::Invalid(format!(
                "a code of all latents by {:?} is not sparse: only positive ones can stay silent",
                self.score
            ))),
            _ => Ok(()),
        }
    }

    fn validate_encoder(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::config("sae.encoder", format!("{}: {why}", self.name())));
        match (self.encoder, self.allocation, self.score) {
            (Encoder::Linear, ..) => Ok(()),
            (Encoder::Unrolled { steps: 0, .. }, ..) => {
                Err(Error::config("sae.encoder_steps", "is 0, expected at least 1"))
            }
            (
                Encoder::Unrolled { .. },
                Allocation::PerBatch { .. } | Allocation::PerLatent { .. } | Allocation::Gate,
                _,
            ) => refuse("unrolled steps need a sae.method in which each token is by itself, without gates"),
            (Encoder::Unrolled { .. }, ..) => Ok(()),
            (Encoder::OrthogonalPursuit, Allocation::PerToken { .. }, Score::Magnitude) => Ok(()),
            (Encoder::OrthogonalPursuit, ..) => {
                refuse("values that are fitted together have signs, so sae.method is to be abs_topk")
            }
            (Encoder::MatchingPursuit, Allocation::PerToken { .. }, Score::Positive | Score::Magnitude) => Ok(()),
            (Encoder::MatchingPursuit, ..) => {
                refuse("a pursuit makes k choices, so sae.method is to be topk or abs_topk")
            }
        }
    }

    fn validate_shrink(&self) -> Result<()> {
        let cutoff = matches!(self.allocation, Allocation::Threshold | Allocation::PerBatch { .. });
        match self.shrink {
            Shrink::None => Ok(()),
            Shrink::Cel0 { eta } if !(eta > 0.0 && eta < 1.0) => Err(Error::config(
                "sae.eta",
                format!("is {eta}, expected a number between 0 and 1"),
            )),
            _ if !cutoff || self.score == Score::Value => Err(Error::Invalid(format!(
                "{} has no cutoff to shrink values by: that takes thresholds or a budget of the batch, of positive scores \
                 or magnitudes",
                self.name()
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_over_d_sae_is_refused_and_names_both_keys() {
        for sparsifier in [Sparsifier::top_k(65), Sparsifier::batch_top_k(65)] {
            let error = sparsifier.validate(64).unwrap_err().to_string();
            assert!(
                error.contains("sae.k") && error.contains("65") && error.contains("64") && error.contains("sae.d_sae"),
                "{error}"
            );
        }
        assert!(Sparsifier::top_k(0).validate(64).is_err());
        assert!(Sparsifier::abs_top_k(64).validate(64).is_ok());
        assert!(Sparsifier::new(Score::Value, Allocation::All).validate(64).is_err());
        assert!(Sparsifier::top_k(3).shrunk(Shrink::Soft).validate(64).is_err());
        assert!(Sparsifier::batch_top_k(3).shrunk(Shrink::Soft).validate(64).is_ok());
        let never = Sparsifier::batch_top_k(3).shrunk(Shrink::Cel0 { eta: 1.0 });
        assert!(never.validate(64).unwrap_err().to_string().contains("sae.eta"));
    }

    #[test]
    fn a_sparsifier_survives_json() {
        for (before, expected) in [
            (
                Sparsifier::abs_top_k(7),
                r#"{"score":"magnitude","allocation":{"kind":"per_token","k":7}}"#,
            ),
            (
                Sparsifier::new(Score::Positive, Allocation::Threshold),
                r#"{"score":"positive","allocation":{"kind":"threshold"}}"#,
            ),
            (
                Sparsifier::new(Score::Magnitude, Allocation::Threshold).shrunk(Shrink::Cel0 { eta: 0.5 }),
                r#"{"score":"magnitude","allocation":{"kind":"threshold"},"shrink":{"kind":"cel0","eta":0.5}}"#,
            ),
        ] {
            let json = serde_json::to_string(&before).unwrap();
            assert_eq!(json, expected);
            assert_eq!(serde_json::from_str::<Sparsifier>(&json).unwrap(), before);
        }
    }

    #[test]
    fn scores_and_values_of_what_is_no_number_never_win() {
        for score in [Score::Positive, Score::Magnitude, Score::Value] {
            assert!(score.of(f32::NAN) <= score.floor(), "{score:?}");
            assert_eq!(score.value(f32::NAN), 0.0);
            assert!(score.of(0.5) > score.floor());
        }
    }
}
