//! What is known about a dictionary beside its parameters: `dictionary.json`.

use activations::store::{CorpusRef, ModelRef};
use serde::{Deserialize, Serialize};

use crate::sparsifier::Sparsifier;

/// Shape, provenance and quality of a dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DictionaryCard {
    /// Version of this file's layout: [`DictionaryCard::VERSION`].
    pub version: u32,
    /// Width of an activation.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Which latents fire.
    pub sparsifier: Sparsifier,
    /// How the thresholds were set, where they were not learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// The place in the model whose activations these are: `blocks.3.hook_resid_post`. `None` when the activations
    /// came without saying so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The model, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelRef>,
    /// The text, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<CorpusRef>,
    /// Activations seen in training, repetitions counted.
    pub trained_tokens: u64,
    /// Of the training run.
    pub seed: u64,
    /// Quality on activations that training did not see; `None` if nobody measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

impl DictionaryCard {
    /// The layout that this build writes. It reads all from 1 on; 2 brought thresholds, 3 values that
    /// are shrunk.
    pub const VERSION: u32 = 3;
}

/// How thresholds were set on activations that training did not see; see
/// [`Sae::into_inference`](crate::Sae::into_inference).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Which latents fired in training.
    pub trained_as: Sparsifier,
    /// The threshold, in the units of the activations, where all latents have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// The mean number of active latents a token that was asked for.
    pub target_l0: f64,
    /// The mean number that the thresholds gave on `rows` other activations.
    pub l0: f64,
    /// Activations that the thresholds were set on.
    pub calibration_rows: u64,
    /// Activations that `l0` was measured on.
    pub rows: u64,
}

/// Quality over a whole held-out set; see [`crate::metrics`] for the definitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Activations measured.
    pub rows: u64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
    /// Mean number of latents that fire for a token.
    pub l0: f64,
    /// Share of latents that fired for none of the rows.
    pub dead_share: f64,
}
