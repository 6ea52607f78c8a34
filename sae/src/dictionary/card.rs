//! What is known about a dictionary beside its parameters: `dictionary.json`.

use activations::store::{CorpusRef, ModelRef};
use serde::{Deserialize, Serialize};

use super::Sae;
use crate::sparsifier::Sparsifier;

/// Shape, provenance and quality of a dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DictionaryCard {
    /// Version of this file's layout: [`DictionaryCard::VERSION`].
    pub version: u32,
    /// Width of an activation that is read, all places together.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Which latents fire.
    pub sparsifier: Sparsifier,
    /// How the thresholds were set, where they were not learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Which latents fired in training, where a token had another budget: `sae.inference_k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_as: Option<Sparsifier>,
    /// The dictionary that training began from, where it did not begin from random directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialised_from: Option<DictionaryRef>,
    /// The place in the model whose activations are read: `blocks.3.hook_resid_post`. `None` when the activations
    /// came without saying so, and where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The places that are read, in the order of the columns, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<Place>,
    /// The places that are written, in the order of the columns, where they are not those that are read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writes: Vec<Place>,
    /// Whether the decoder's bias is subtracted from what is read: [`Sae::apply_b_dec_to_input`](crate::Sae).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub apply_b_dec_to_input: bool,
    /// Whether there is a skip connection: [`Sae::skip`](crate::Sae).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// Whether activations are divided by their norms: [`Sae::per_token`](crate::Sae).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_token: bool,
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

/// Another dictionary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DictionaryRef {
    /// What people call it: the name of its directory.
    pub name: String,
    /// [`digest`](super::digest) of its card and parameters.
    pub sha256: String,
}

/// A place in a model that a dictionary reads or writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// `blocks.3.hook_mlp_out`; `None` where activations came without saying so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Width of an activation.
    pub width: usize,
}

impl Place {
    /// The hook, or what to call a place without one.
    pub fn name(&self) -> &str {
        self.hook.as_deref().unwrap_or("activations")
    }
}

/// What a dictionary does with the places that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Writes the place that it reads.
    Autoencoder,
    /// Writes the several places that it reads.
    Crosscoder,
    /// Writes other places than it reads.
    Transcoder,
    /// The same, with a skip connection.
    SkipTranscoder,
}

impl Shape {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Autoencoder => "autoencoder",
            Self::Crosscoder => "crosscoder",
            Self::Transcoder => "transcoder",
            Self::SkipTranscoder => "skip transcoder",
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl DictionaryCard {
    /// The layout that this build writes. It reads all from 1 on; 2 brought thresholds, 3 values that are
    /// shrunk, encoders of several steps, other shapes than autoencoders, other budgets than in training, and dictionaries
    /// that training went on from, and 4 activations that are divided by their norms.
    pub const VERSION: u32 = 4;

    /// What the parameters of `sae` say, and nothing about where they come from.
    pub fn of(sae: &Sae) -> Self {
        Self {
            version: Self::VERSION,
            d_in: sae.d_in(),
            d_sae: sae.d_sae(),
            sparsifier: sae.sparsifier,
            calibration: None,
            trained_as: None,
            initialised_from: None,
            hook: None,
            reads: Vec::new(),
            writes: Vec::new(),
            apply_b_dec_to_input: sae.apply_b_dec_to_input,
            skip: sae.skip.is_some(),
            per_token: sae.per_token,
            model: None,
            corpus: None,
            trained_tokens: 0,
            seed: 0,
            held_out: None,
        }
    }

    /// Which latents fired in training.
    pub fn trained_as(&self) -> Sparsifier {
        let calibrated = self.calibration.map(|c| c.trained_as);
        calibrated.or(self.trained_as).unwrap_or(self.sparsifier)
    }

    /// The places that are read, in the order of the columns.
    pub fn reads(&self) -> Vec<Place> {
        match self.reads.is_empty() {
            true => vec![Place {
                hook: self.hook.clone(),
                width: self.d_in,
            }],
            false => self.reads.clone(),
        }
    }

    /// The places that are written, in the order of the columns.
    pub fn writes(&self) -> Vec<Place> {
        match self.writes.is_empty() {
            true => self.reads(),
            false => self.writes.clone(),
        }
    }

    /// Width of an activation that is written, all places together.
    pub fn d_out(&self) -> usize {
        let widths = self.writes().into_iter().map(|place| place.width);
        widths.fold(0, usize::saturating_add)
    }

    /// What it does with the places that it reads.
    pub fn shape(&self) -> Shape {
        match (self.writes.is_empty(), self.skip) {
            (true, _) if self.reads.len() > 1 => Shape::Crosscoder,
            (true, _) => Shape::Autoencoder,
            (false, false) => Shape::Transcoder,
            (false, true) => Shape::SkipTranscoder,
        }
    }

    /// What is wrong with the places, if anything is.
    pub(super) fn problem_of_places(&self) -> Option<String> {
        let (d_in, d_out) = (self.d_in, self.d_out());
        let read = self
            .reads
            .iter()
            .try_fold(0usize, |sum, place| sum.checked_add(place.width));
        if !self.reads.is_empty() && read != Some(d_in) {
            return Some(format!(
                "says d_in {d_in}, but the places that it reads are not so wide together"
            ));
        }
        if self.reads().iter().chain(&self.writes()).any(|place| place.width == 0) {
            return Some("names a place of width 0".into());
        }
        if self.skip && self.writes.is_empty() {
            return Some("has a skip connection, but writes what it reads".into());
        }
        if self.per_token && !(self.reads.is_empty() && self.writes.is_empty()) {
            return Some("divides activations by their norms, but does not read and write one place".into());
        }
        if !self.sparsifier.encoder.is_linear() && !self.writes.is_empty() {
            return Some(format!(
                "is encoded by {}, which looks at what the code leaves of what is read, but writes something else",
                self.sparsifier.encoder.name()
            ));
        }
        (self.apply_b_dec_to_input && d_in != d_out)
            .then(|| format!("subtracts b_dec of width {d_out} from what it reads, of width {d_in}"))
    }
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
