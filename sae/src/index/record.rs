//! What the index says: about itself ([`IndexManifest`]), and about one feature ([`FeatureDetail`]).

use serde::{Deserialize, Serialize};

/// The version of the directory format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// How many bins a [`Histogram`] has.
pub const HISTOGRAM_BINS: usize = 64;

/// `manifest.json`: what was indexed, and how. Written last, so a directory that has one is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexManifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Width of an activation.
    pub d_in: usize,
    /// Number of features, `0..d_sae`.
    pub d_sae: usize,
    /// The hook whose activations were encoded, as TransformerLens prints it: `blocks.3.hook_resid_post`.
    pub hook: String,
    /// The model's name, for people.
    pub model: String,
    /// The text's name, for people.
    pub corpus: String,
    /// How many activation rows (tokens that have one) were seen.
    pub tokens: u64,
    /// How many contexts they came from.
    pub contexts: u64,
    /// Whether codes can be negative: then features have two poles.
    pub signed: bool,
    /// Number of quantile strata of examples: [`Stratum::Quantile`] runs over `0..quantiles`.
    pub quantiles: u32,
    /// The dictionary in a few figures.
    pub dictionary: DictionarySummary,
}

/// A dictionary in a few figures. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DictionarySummary {
    /// The sparsifier's name: `TopK(32)`, `AbsTopK(32)`.
    pub activation: String,
    /// Active latents a token, where the sparsifier fixes it.
    pub k: Option<usize>,
    /// Fraction of variance unexplained, on held-out rows.
    pub fvu: Option<f64>,
    /// Mean number of active latents (`!= 0`) a token, on the indexed text.
    pub l0: Option<f64>,
    /// Share of features without a single active token of the indexed text, in `0..=1`.
    pub dead: Option<f64>,
}

/// The statistics of one feature: what a table of all features shows.
///
/// *Active* means a code value `!= 0`. Statistics are over every token of the indexed text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureSummary {
    /// Number of the feature, in `0..d_sae`.
    pub feature: u32,
    /// Whether it was active at least once.
    pub alive: bool,
    /// On how many tokens it was active.
    pub n_active: u64,
    /// `n_active / tokens`, in `0..=1`.
    pub density: f64,
    /// Largest value, 0 if it was never positive.
    pub max: f32,
    /// Smallest value, 0 if it was never negative.
    pub min: f32,
    /// Mean of `|value|` over the active tokens, 0 if there are none.
    pub mean_active: f32,
    /// The tokens at the peaks of the strongest examples, by summed `|value|`, strongest first.
    pub top_tokens: Vec<u32>,
}

/// Counts of activation values in log-spaced bins.
///
/// Bin `i` counts magnitudes in `2^(log2_start + i * log2_width) .. 2^(log2_start + (i + 1) * log2_width)`.
/// The width is the finest power of two, from 1/64 octave on, with which edges at its whole multiples fit every value
/// into [`HISTOGRAM_BINS`] bins, so nothing is clipped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// log2 of the lower edge of the first bin.
    pub log2_start: f32,
    /// Width of a bin in octaves; 0 if there are no values.
    pub log2_width: f32,
    /// [`HISTOGRAM_BINS`] counts, or none if there are no values.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The lower edge of bin `i`, as a magnitude; of bin `counts.len()`, the upper edge of the last.
    pub fn edge(&self, i: usize) -> f64 {
        (f64::from(self.log2_start) + i as f64 * f64::from(self.log2_width)).exp2()
    }

    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A vocabulary token and the logit that a feature's decoder row gives it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogit {
    /// Token id.
    pub token: u32,
    /// Decoder row times the token's unembedding row.
    pub logit: f32,
}

/// Another feature whose decoder row points in nearly the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Number of the other feature.
    pub feature: u32,
    /// Cosine of the two decoder rows, in `-1..=1`.
    pub cosine: f32,
}

/// Which part of a feature's activations an example stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", content = "index", rename_all = "snake_case")]
pub enum Stratum {
    /// The largest values; one example a context, strongest first.
    Top,
    /// The most negative values (signed codes); one example a context, most negative first.
    Bottom,
    /// A uniform sample of the active tokens whose value lies between quantile `i / n` and quantile `(i + 1) / n` of
    /// the feature's active values, of which there are `n` = [`IndexManifest::quantiles`]; 0 is the lowest.
    Quantile(u32),
}

/// A feature's value at one position of a context.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct At {
    /// Position in the context, from 0, special tokens included.
    pub position: u32,
    /// The code's value there, `!= 0`.
    pub value: f32,
}

/// One place where a feature is active, with the feature's values along the whole context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Number of the context: see [`FeatureIndex::context`](super::FeatureIndex::context).
    pub context: u64,
    /// Position of the token that the example is about.
    pub position: u32,
    /// The value there.
    pub value: f32,
    /// Every position of the context where the feature is active, ascending.
    pub activations: Vec<At>,
}

/// The examples of one stratum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Examples {
    /// Which part of the activations they stand for.
    pub stratum: Stratum,
    /// The examples, in the stratum's order.
    pub examples: Vec<Example>,
}

/// Everything the index knows about one feature.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureDetail {
    /// Its statistics.
    pub summary: FeatureSummary,
    /// Positive values.
    pub positive: Histogram,
    /// Magnitudes of negative values; no bins unless the codes are signed.
    pub negative: Histogram,
    /// The tokens it raises most, highest first; none if the index was built without an unembedding.
    pub top_logits: Vec<TokenLogit>,
    /// The tokens it lowers most, lowest first.
    pub bottom_logits: Vec<TokenLogit>,
    /// The features with the nearest decoder rows, nearest first, over the whole dictionary.
    pub neighbours: Vec<Neighbour>,
    /// Examples by stratum: top, bottom, then quantiles ascending; strata without examples are left out.
    pub strata: Vec<Examples>,
}

/// A context that at least one example refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredContext {
    /// Its number in the indexed text.
    pub context: u64,
    /// Number of the document it starts in.
    pub document: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
}
