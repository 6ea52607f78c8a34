//! The keys of encoders that are more than a product.

use serde::{Deserialize, Serialize};

use super::RunConfig;
use crate::dictionary::InferenceForm;
use crate::encoder::Encoder;
use crate::error::{Error, Result};

/// Steps of an unrolled encoder.
const STEPS: usize = 3;

/// How pre-activations come about, by name; see [`Encoder`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderName {
    /// One product.
    #[default]
    Linear,
    /// Proximal steps, trained through (LISTA).
    Unrolled,
    /// Greedy choices, one latent after the other.
    MatchingPursuit,
    /// The same, with all values fitted anew behind every choice.
    OrthogonalPursuit,
}

impl EncoderName {
    /// The name of an encoder.
    pub(super) fn of(encoder: Encoder) -> Self {
        match encoder {
            Encoder::Linear => Self::Linear,
            Encoder::Unrolled { .. } => Self::Unrolled,
            Encoder::MatchingPursuit => Self::MatchingPursuit,
            Encoder::OrthogonalPursuit => Self::OrthogonalPursuit,
        }
    }
}

impl RunConfig {
    /// The encoder.
    pub(super) fn encoder(&self) -> Encoder {
        match self.sae.encoder.unwrap_or_default() {
            EncoderName::Linear => Encoder::Linear,
            EncoderName::Unrolled => Encoder::Unrolled {
                steps: self.sae.encoder_steps.unwrap_or(STEPS),
                weights: self.sae.encoder_weights.unwrap_or_default(),
            },
            EncoderName::MatchingPursuit => Encoder::MatchingPursuit,
            EncoderName::OrthogonalPursuit => Encoder::OrthogonalPursuit,
        }
    }

    /// Whether encoder and decoder are one matrix.
    pub(crate) fn is_tied(&self) -> bool {
        self.sae.tied == Some(true) || self.encoder().is_pursuit()
    }

    /// Fills in what is left open of it.
    pub(super) fn fill_encoder(&mut self) {
        if let Encoder::Unrolled { steps, .. } = self.encoder() {
            self.sae.encoder_steps = Some(steps);
        }
        if self.encoder().is_pursuit() {
            self.sae.tied = Some(true);
        }
    }

    /// Refuses what contradicts the encoder; what it cannot be combined with the sparsifier refuses.
    pub(super) fn validate_encoder(&self) -> Result<()> {
        let (sae, encoder) = (&self.sae, self.encoder());
        let name = encoder.name();
        for (key, given) in [
            ("sae.encoder_steps", sae.encoder_steps.is_some()),
            ("sae.encoder_weights", sae.encoder_weights.is_some()),
        ] {
            if given && !matches!(encoder, Encoder::Unrolled { .. }) {
                return Err(Error::config(
                    key,
                    format!("is given, but sae.encoder is {name}: it is for unrolled"),
                ));
            }
        }
        if sae.tied == Some(true) && encoder.own_steps() > 0 {
            return Err(Error::config(
                "sae.tied",
                "is true, but sae.encoder_weights is learned: steps of their own matrices are not the decoder's transpose",
            ));
        }
        if encoder.is_pursuit() && sae.tied == Some(false) {
            return Err(Error::config(
                "sae.tied",
                format!("is false, but sae.encoder is {name}, which has no matrix of its own"),
            ));
        }
        if !encoder.is_linear() && sae.inference.is_some_and(|form| form != InferenceForm::AsTrained) {
            return Err(Error::config(
                "sae.inference",
                format!("asks for thresholds, but sae.encoder is {name}: they are set on the scores of one product"),
            ));
        }
        Ok(())
    }
}
