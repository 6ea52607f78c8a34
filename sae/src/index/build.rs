//! Building an index: one pass over the activations, in memory that does not grow with them.
//!
//! The one decision: **nothing is looked at twice.** Encoding is nearly all of the cost, and a source may be a model
//! that runs over a text, which cannot be read again. So whatever an example needs is kept from the moment it might
//! become one: each possible example holds the feature's activations along its context, and gives them up when it
//! loses its place. How many places there are is fixed, per feature, by [`BuildOptions`]:
//!
//! - the contexts with the strongest peaks, one example a context, for each pole;
//! - a uniform [sample](sample) of active tokens by value alone, from which quantiles are taken: exact up to
//!   [`BuildOptions::sample`] active tokens, and beyond that the quantiles of a uniform sample of this size (a
//!   quantile is then off by a rank of 0.5 / sqrt(sample), 2% of the active tokens at 512);
//! - the part of this sample that can be shown, with activations: [`CANDIDATES`] times as many as will be shown, so
//!   that every quantile finds its examples among them.
//!
//! The alternative, keeping all codes on the disk until the end, costs `8 k` bytes a token of temporary file; only
//! token ids are kept so ([`spill`], 4 bytes a token). A feature takes about 20 kB at most while the index is built
//! (5 kB of sampled values, the rest activations along contexts): 80 MB for 4,096 features, 330 MB for 16,384; rarely
//! active features take less. [`estimate`] says it for a given dictionary.
//!
//! Bytes depend on the text, the dictionary and the options: not on the batches of the source nor on the number of
//! threads ([`encoded`], [`tallies`]).

mod encoded;
mod histogram;
mod products;
mod sample;
mod spill;
mod tallies;
mod tally;
#[cfg(test)]
mod twin;
#[cfg(test)]
mod with_dictionary;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use activations::{ContextSource, Outcome, Progress, Stop};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use self::encoded::Encode;
pub(crate) use self::encoded::{Block, Encoded};
use self::products::{End, Products, Rows, normalised};
use self::spill::Spill;
use self::tallies::Tallies;
use self::tally::Limits;
use super::{
    DictionarySummary, Existing, FORMAT_VERSION, FeatureDetail, IndexManifest, IndexWriter, Neighbour, TokenLogit,
};
use crate::dictionary::{DictionaryCard, Place, Sae, Shape};
use crate::{Error, Result, Sparsifier};

/// Possible examples kept for each that is shown in a quantile. With 5 quantiles of 5 examples, 100 are kept, and the
/// chance that fewer than 5 of them fall into a given quantile of a sample of 512 is below one in a million; it would then
/// show fewer.
pub const CANDIDATES: usize = 4;

/// What an index holds of each feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildOptions {
    /// Contexts of the largest values, and of the most negative for signed codes. 20.
    pub top_contexts: usize,
    /// Quantile strata. 5.
    pub quantiles: u32,
    /// Examples in each stratum. 5.
    pub examples_per_quantile: usize,
    /// Active tokens that quantiles are taken of: exact up to here, a uniform sample beyond. 512.
    pub sample: usize,
    /// Tokens of the strongest examples in a feature's summary. 8.
    pub top_tokens: usize,
    /// Nearest decoder rows. 10.
    pub neighbours: usize,
    /// Tokens that a feature raises most, and as many that it lowers most. 10.
    pub logits: usize,
    /// Of the sample. 0.
    pub seed: u64,
    /// Replace an index that is already there, once the new one is complete.
    pub overwrite: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            top_contexts: 20,
            quantiles: 5,
            examples_per_quantile: 5,
            sample: 512,
            top_tokens: 8,
            neighbours: 10,
            logits: 10,
            seed: 0,
            overwrite: false,
        }
    }
}

impl BuildOptions {
    /// # Errors
    /// [`Error::Config`] naming the option that cannot be.
    pub fn validate(&self) -> Result<()> {
        if self.top_contexts == 0 {
            return Err(Error::config(
                "features.top_contexts",
                "is 0: a feature without examples says nothing",
            ));
        }
        let shown = self.quantiles as usize * self.examples_per_quantile;
        if self.sample < shown {
            let (q, e) = (self.quantiles, self.examples_per_quantile);
            return Err(Error::config(
                "features.sample",
                format!(
                    "is {}, less than the {shown} examples of {q} quantiles with {e} each",
                    self.sample
                ),
            ));
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let shown = self.quantiles as usize * self.examples_per_quantile;
        Limits {
            top: self.top_contexts,
            sample: if shown == 0 { 0 } else { self.sample },
            candidates: (CANDIDATES * shown).min(self.sample),
            quantiles: self.quantiles,
            examples_per_quantile: self.examples_per_quantile,
            top_tokens: self.top_tokens,
            seed: self.seed,
        }
    }
}

/// What the indexed things are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// The hook whose activations are encoded, as TransformerLens prints it: `blocks.3.hook_resid_post`.
    pub hook: String,
    /// The model's name, for people.
    pub model: String,
    /// The text's name, for people.
    pub corpus: String,
}

/// The directions that a token's logit reads from the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Unembedding {
    /// `[d_vocab, d_model]`
    pub values: Vec<f32>,
    /// The columns of the decoder that are written to the residual stream: all, but for a crosscoder those of one hook.
    pub columns: Range<usize>,
}

impl Unembedding {
    /// Number of tokens.
    pub fn d_vocab(&self) -> usize {
        self.values.len() / self.columns.len().max(1)
    }
}

/// What building an index will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Peak memory beyond that of the source.
    pub memory_bytes: u64,
    /// The finished index, and beside it for a while the token ids of the text.
    pub disk_bytes: u64,
}

/// What building an index of `tokens` tokens will take, if every feature is active often enough to fill its places.
///
/// `d_out` is the width of a decoder row, `k` the number of active latents a token, `d_vocab` the number of unembedding rows (0 without). Assumes that a
/// feature is active at 8 positions of a context in which it is active at all.
pub fn estimate(d_out: usize, d_sae: usize, k: usize, d_vocab: usize, tokens: u64, options: &BuildOptions) -> Estimate {
    let limits = options.limits();
    let (d_out, d_sae, d_vocab) = (d_out as u64, d_sae as u64, d_vocab as u64);
    let along = 8 * 8 + 16;
    let shown = (limits.top + limits.quantiles as usize * limits.examples_per_quantile) as u64;
    // A feature cannot keep more active tokens than it has.
    let active = (tokens * k as u64).div_ceil(d_sae.max(1));
    let keeps = |n: usize, bytes: u64| (n as u64 + n as u64 / 4).min(active) * bytes;
    let places = keeps(limits.sample, 8) + keeps(limits.candidates, 40 + along) + keeps(limits.top, 40 + along);
    // The encoder's block of pre-activations, or later one of products; decoder and unembedding on host and device.
    let blocks = (3 * 4) << 24;
    let matrices = 4 * d_out * (3 * d_sae + d_vocab);
    Estimate {
        memory_bytes: d_sae * (700 + places) + blocks + matrices,
        disk_bytes: d_sae * (1200 + shown.min(active) * 70) + 4 * tokens,
    }
}

/// Indexes `source`: encodes it once with `sae` and writes the index to `out`.
///
/// `vocabulary` holds the bytes of each token by id (empty if there is none to be had). `unembedding` makes sense only for
/// what is written to the residual stream; its rows beyond the vocabulary are padding and are left out.
///
/// An index that is stopped, or fails, leaves nothing behind; there is no manifest then.
///
/// # Errors
/// If `source` is of another width than `sae`, empty, inconsistent, or holds a NaN or an infinity (naming the row); if
/// `out` holds an index and [`BuildOptions::overwrite`] is not set, or holds other things; if writing fails.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a thing of its own, and there is one caller"
)]
pub fn build(
    sae: &Sae,
    card: &DictionaryCard,
    source: &mut dyn ContextSource,
    vocabulary: &[Vec<u8>],
    unembedding: Option<&Unembedding>,
    out: &Path,
    options: &BuildOptions,
    naming: &Naming,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<(Outcome, Option<IndexManifest>)> {
    let decoder = sae.decoder_rows()?;
    let dictionary = Dictionary {
        d_in: sae.d_in(),
        d_out: sae.d_out(),
        d_sae: sae.d_sae(),
        activation: activation(card),
        sparsifier: sae.sparsifier,
        fvu: card.held_out.map(|q| q.fvu),
        encode: &|x| sae.encode_rows(x),
        decoder: &decoder,
        device: sae.device(),
    };
    let hook = &naming.hook;
    let reads: Option<Vec<String>> = card.reads().into_iter().map(|place| place.hook).collect();
    if let Some(trained_on) = reads.map(|hooks| hooks.join(", ")).filter(|hooks| hooks != hook) {
        progress.warn(&format!(
            "the SAE was trained on {trained_on}, but these are activations of {hook}"
        ));
    }
    let job = Job {
        dictionary,
        vocabulary,
        unembedding,
        options,
        naming,
        progress,
        stop,
    };
    job.run(source, out)
}

/// The sparsifier, and what the dictionary writes if that is not what it reads.
fn activation(card: &DictionaryCard) -> String {
    let name = card.sparsifier.name();
    match card.shape() {
        Shape::Autoencoder => name,
        Shape::Crosscoder => format!("{name} crosscoder"),
        shape => {
            let writes = card.writes();
            let writes: Vec<&str> = writes.iter().map(Place::name).collect();
            format!("{name} {} to {}", shape.name(), writes.join(", "))
        }
    }
}

/// What the pass needs of a dictionary.
struct Dictionary<'a> {
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    /// For people.
    activation: String,
    sparsifier: Sparsifier,
    fvu: Option<f64>,
    encode: &'a Encode<'a>,
    /// `[d_sae, d_out]`
    decoder: &'a [f32],
    /// For products of decoder rows.
    device: Device,
}

/// An index to be built.
struct Job<'a> {
    dictionary: Dictionary<'a>,
    vocabulary: &'a [Vec<u8>],
    unembedding: Option<&'a Unembedding>,
    options: &'a BuildOptions,
    naming: &'a Naming,
    progress: &'a dyn Progress,
    stop: &'a Stop,
}

/// What the pass over the text leaves.
struct Seen {
    tallies: Tallies,
    spill: Spill,
    tokens: u64,
    contexts: u64,
    active: u64,
}

impl Job<'_> {
    fn run(&self, source: &mut dyn ContextSource, out: &Path) -> Result<(Outcome, Option<IndexManifest>)> {
        self.options.validate()?;
        let unembedding = self.checked_unembedding()?;
        let existing = match self.options.overwrite {
            true => Existing::Overwrite,
            false => Existing::Refuse,
        };
        let mut writer = IndexWriter::create(out, existing)?;
        let Some(seen) = self.pass(source, Spill::create(out)?)? else {
            return Ok((Outcome::Stopped, None));
        };
        let (tokens, contexts, active) = (seen.tokens, seen.contexts, seen.active);
        if tokens == 0 {
            let problem = "there are no activations to index: the text is empty or has special tokens only";
            return Err(Error::Invalid(problem.into()));
        }
        let Some(dead) = self.write_features(seen, unembedding, &mut writer)? else {
            return Ok((Outcome::Stopped, None));
        };
        let Dictionary { d_in, d_sae, .. } = self.dictionary;
        let manifest = IndexManifest {
            format_version: FORMAT_VERSION,
            d_in,
            d_sae,
            hook: self.naming.hook.clone(),
            model: self.naming.model.clone(),
            corpus: self.naming.corpus.clone(),
            tokens,
            contexts,
            signed: self.dictionary.sparsifier.is_signed(),
            quantiles: self.options.quantiles,
            dictionary: DictionarySummary {
                activation: self.dictionary.activation.clone(),
                k: self.dictionary.sparsifier.k(),
                fvu: self.dictionary.fvu,
                l0: Some(active as f64 / tokens as f64),
                dead: Some(dead as f64 / d_sae as f64),
            },
        };
        writer.finish(&manifest, self.vocabulary)?;
        Ok((Outcome::Finished, Some(manifest)))
    }

    /// Encodes everything; `None` if it was stopped.
    fn pass(&self, source: &mut dyn ContextSource, mut spill: Spill) -> Result<Option<Seen>> {
        let Dictionary { d_in, d_sae, .. } = self.dictionary;
        let name = format!("the activations of {}", self.naming.hook);
        let n_contexts = source.n_contexts();
        let vocabulary = self.vocabulary.len();
        let mut encoded = Encoded::new(source, self.dictionary.encode, &name, (d_in, d_sae), vocabulary)?;
        let mut tallies = Tallies::new(d_sae, self.options.limits());
        let (mut tokens, mut contexts, mut active) = (0, 0, 0);
        self.progress.begin("encoding", n_contexts, "contexts");
        while let Some(block) = encoded.next()? {
            if self.stop.requested() {
                return Ok(None);
            }
            tallies.add(&block.contexts, &block.rows, &block.code);
            block.contexts.iter().try_for_each(|context| spill.push(context))?;
            tokens += block.rows.len() as u64;
            contexts += block.contexts.len() as u64;
            active += block.code.values.iter().filter(|v| **v != 0.0).count() as u64;
            self.progress.note(&format!("{tokens} tokens"));
            self.progress.advance(block.contexts.len() as u64);
        }
        self.progress.finish();
        Ok(Some(Seen {
            tallies,
            spill,
            tokens,
            contexts,
            active,
        }))
    }

    /// Adds neighbours and logits to each feature and writes it, then the contexts; the number of features that were
    /// never active, or `None` if it was stopped.
    fn write_features(&self, seen: Seen, unembedding: Option<Rows>, writer: &mut IndexWriter) -> Result<Option<u64>> {
        let Dictionary { d_out, d_sae, .. } = self.dictionary;
        let decoder = Rows::new(self.dictionary.decoder, d_out);
        let directions = normalised(decoder);
        let directions = Rows::new(&directions, d_out);
        let columns = self
            .unembedding
            .map_or(0..d_out, |unembedding| unembedding.columns.clone());
        let to_stream = part_of_rows(self.dictionary.decoder, d_out, columns.clone());
        let to_stream = Rows::new(&to_stream, columns.len());
        let cosines = Products::new(directions, &self.dictionary.device);
        let logits = unembedding.map(|unembedding| Products::new(unembedding, &self.dictionary.device));
        let block = logits.as_ref().map_or(usize::MAX, Products::block).min(cosines.block());
        let (mut wanted, mut dead) = (HashSet::new(), 0);
        let mut details = seen.tallies.finish(seen.tokens);
        self.progress.begin("features", Some(d_sae as u64), "features");
        for first in (0..d_sae).step_by(block) {
            if self.stop.requested() {
                return Ok(None);
            }
            let range = first..d_sae.min(first + block);
            let (n, itself) = (self.options.neighbours, |row: usize, other: usize| row == other);
            let mut neighbours = cosines
                .extremes(directions, range.clone(), n, [End::Largest], itself)?
                .into_iter();
            let ends = [End::Largest, End::Smallest];
            let logits = logits
                .as_ref()
                .map(|logits| logits.extremes(to_stream, range.clone(), self.options.logits, ends, |_, _| false));
            let mut logits = logits.transpose()?.unwrap_or_default().into_iter();
            for mut detail in details.by_ref().take(range.len()) {
                let [nearest] = neighbours.next().unwrap_or_default();
                detail.neighbours = nearest.into_iter().map(neighbour).collect();
                let [top, bottom] = logits.next().unwrap_or_default();
                detail.top_logits = top.into_iter().map(token_logit).collect();
                detail.bottom_logits = bottom.into_iter().map(token_logit).collect();
                dead += u64::from(!detail.summary.alive);
                wanted.extend(contexts_of(&detail));
                writer.feature(&detail)?;
            }
            self.progress.advance(range.len() as u64);
        }
        self.progress.finish();
        seen.spill.copy(&wanted, writer)?;
        Ok(Some(dead))
    }

    /// The unembedding without the rows of tokens that do not exist.
    fn checked_unembedding(&self) -> Result<Option<Rows<'_>>> {
        let (Some(Unembedding { values, columns }), d_out) = (self.unembedding, self.dictionary.d_out) else {
            return Ok(None);
        };
        let width = columns.len();
        if width == 0 || columns.end > d_out || !values.len().is_multiple_of(width) {
            let n = values.len();
            return Err(Error::Invalid(format!(
                "the unembedding has {n} values, which are no rows for columns {columns:?} of the SAE's d_out {d_out}"
            )));
        }
        let rows = match self.vocabulary.len() {
            0 => values.len() / width,
            n => n.min(values.len() / width),
        };
        if let Some(at) = values[..rows * width].iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                source_name: "the unembedding".into(),
                row: (at / width) as u64,
                coordinate: at % width,
                value: values[at],
            });
        }
        Ok((rows > 0).then(|| Rows::new(&values[..rows * width], width)))
    }
}

/// Some columns of `rows: [n, width]`.
fn part_of_rows(rows: &[f32], width: usize, columns: Range<usize>) -> Cow<'_, [f32]> {
    match columns == (0..width) {
        true => Cow::Borrowed(rows),
        false => Cow::Owned(
            rows.chunks_exact(width)
                .flat_map(|row| &row[columns.clone()])
                .copied()
                .collect(),
        ),
    }
}

fn contexts_of(detail: &FeatureDetail) -> impl Iterator<Item = u64> + '_ {
    detail.strata.iter().flat_map(|s| s.examples.iter().map(|e| e.context))
}

fn neighbour((feature, cosine): (u32, f32)) -> Neighbour {
    let cosine = cosine.clamp(-1.0, 1.0);
    Neighbour { feature, cosine }
}

fn token_logit((token, logit): (u32, f32)) -> TokenLogit {
    TokenLogit { token, logit }
}
