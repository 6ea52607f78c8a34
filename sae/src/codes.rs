//! Codes on the disk: what every latent does on every row, for whoever goes on with other tools.
//!
//! The one decision: **a shard of codes begins anew.** Rows are encoded in blocks that are counted from the first row of
//! their shard, so a shard's bytes depend on its own rows and not on what was encoded before it. An interrupted run
//! keeps the shards that are complete, continues at the context after them, and ends with the same bytes.
//!
//! | file | a row is | columns |
//! |---|---|---|
//! | `rows-00000.parquet`, ... | a row of activations, in natural order | `context`, `position`, `token`, `active` |
//! | `codes-00000.parquet`, ... | an active latent of a row, by row and latent | `context`, `position`, `latent`, `value` |
//! | `codes.npy` | in place of those, if asked: a row of activations | `d_sae` values, f32 |
//! | `manifest.json` | | [`CodesManifest`]; written last |
//!
//! `active` is how many entries the row has: its running sum is where rows begin in the entries, which makes the two
//! tables a matrix in compressed rows (`docs/codes.md`). Rows in which nothing fires are in the first table only.

mod dense;
mod journal;
mod pass;
mod shards;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;

use activations::lock::Lock;
use activations::{ContextSource, Outcome, Progress, Stop};
use serde::{Deserialize, Serialize};

use self::journal::Journal;
use self::pass::Pass;
use crate::dictionary::{DictionaryCard, Sae};
use crate::error::{Error, Result};
use crate::index::Naming;

/// What `format` says in the manifest of codes.
pub const FORMAT: &str = "sae-codes";
/// The layout that this build writes.
pub const VERSION: u32 = 1;
/// Written last; a directory without it holds no complete codes.
pub const MANIFEST: &str = "manifest.json";
/// The array of dense codes.
pub const DENSE: &str = "codes.npy";
/// Entries that a shard should have, about: 32 MiB of latents and values.
const SHARD_ENTRIES: f64 = (1u64 << 22) as f64;
/// The most rows of a shard: what is lost when a run is stopped, and an array of keys at a time.
const SHARD_ROWS: u64 = 1 << 20;

/// How codes are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodesOptions {
    /// Whole contexts are taken from the beginning until they hold so many tokens, special ones included; all of them if
    /// absent.
    pub tokens: Option<u64>,
    /// One array `[rows, d_sae]` of at most so many bytes in place of entries.
    pub dense_bytes: Option<u64>,
    /// Rows that end a shard, with the context that they are in; as many as have about four million entries if absent.
    pub rows_per_shard: Option<u64>,
    /// How many rows there will be, about, if somebody knows: for the bar.
    pub about_rows: Option<u64>,
    /// Continue what is unfinished in the directory.
    pub resume: bool,
}

/// Everything that codes depend on: equal requests make equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodesRequest {
    /// The hook whose activations are encoded, or the hooks, where the dictionary reads several.
    pub hook: String,
    /// The model's name.
    pub model: String,
    /// The text's name.
    pub corpus: String,
    /// Changes when the activations do.
    pub source: String,
    /// Digest of the dictionary: [`digest`](crate::dictionary::digest).
    pub dictionary: String,
    /// Which latents fire.
    pub method: String,
    /// Width of an activation.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// How many tokens were asked for; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Rows that end a shard, with the context that they are in.
    pub rows_per_shard: u64,
    /// Whether there is one array in place of entries.
    pub dense: bool,
}

/// A pair of files, or the rows of the array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodesShard {
    /// Number of the first context that it has rows of.
    pub first_context: u64,
    /// Rows of activations.
    pub n_rows: u64,
    /// Active latents of all of them.
    pub n_entries: u64,
    /// Length of the file of rows.
    pub rows_bytes: u64,
    /// Length of the file of entries, or of the array.
    pub codes_bytes: u64,
}

/// What codes are, and how good: `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodesManifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the layout.
    pub version: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// What was asked for.
    pub request: CodesRequest,
    /// Rows of activations.
    pub n_rows: u64,
    /// Active latents of all rows.
    pub n_entries: u64,
    /// Mean number of active latents a row.
    pub l0: f64,
    /// Fraction of the variance of these activations that the reconstruction leaves unexplained; absent where they are
    /// all equal, and of a transcoder, which writes others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fvu: Option<f64>,
    /// Latents that fire for none of the rows.
    pub dead_latents: u64,
    /// The shards, in order.
    pub shards: Vec<CodesShard>,
}

/// How many latents of a dictionary fire for a row, about: as many as were seen to, or as it allows.
pub fn active(card: &DictionaryCard) -> f64 {
    let seen = card.held_out.map(|quality| quality.l0);
    seen.unwrap_or_else(|| card.sparsifier.k().unwrap_or(card.d_sae) as f64)
}

/// Rows that end a shard, where nothing else was asked for; `l0` is how many latents fire for a row, about.
fn default_rows_per_shard(l0: f64) -> u64 {
    ((SHARD_ENTRIES / l0.max(1.0)) as u64).clamp(1, SHARD_ROWS)
}

/// Encodes `source` with `sae` into `out`, a new or empty directory, or one to continue with [`CodesOptions::resume`].
///
/// `dictionary` is the digest of the dictionary and `fingerprint` changes when the activations do: both are compared when
/// a run is continued. The stage's units are rows. Stopped, it leaves the
/// complete shards, and `None`.
///
/// # Errors
/// If `source` is of another width than `sae`, empty, or holds a NaN or an infinity (naming the row); if `out` holds
/// anything or another process writes there, or, continuing, nothing of the kind or a run with other settings (naming the first difference); if an array
/// would be longer than it may be; if writing fails.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a thing of its own, and there is one caller"
)]
pub fn encode(
    sae: &Sae,
    card: &DictionaryCard,
    dictionary: &str,
    source: &mut dyn ContextSource,
    naming: &Naming,
    fingerprint: &str,
    out: &Path,
    options: &CodesOptions,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<(Outcome, Option<CodesManifest>)> {
    if source.d_in() != sae.d_in() {
        return Err(Error::Invalid(format!(
            "the activations of {} have d_in {} but the dictionary expects {}",
            naming.hook,
            source.d_in(),
            sae.d_in()
        )));
    }
    if options.rows_per_shard == Some(0) || options.tokens == Some(0) {
        return Err(Error::Invalid(
            "0 rows or tokens are asked for: there is nothing to encode".into(),
        ));
    }
    let dense = options.dense_bytes.is_some();
    let request = CodesRequest {
        hook: naming.hook.clone(),
        model: naming.model.clone(),
        corpus: naming.corpus.clone(),
        source: fingerprint.to_owned(),
        dictionary: dictionary.to_owned(),
        method: sae.sparsifier.name(),
        d_in: sae.d_in(),
        d_sae: sae.d_sae(),
        max_tokens: options.tokens,
        // An array is one shard.
        rows_per_shard: match dense {
            true => u64::MAX,
            false => options
                .rows_per_shard
                .unwrap_or_else(|| default_rows_per_shard(active(card))),
        },
        dense,
    };
    let row_bytes = 4 * sae.d_sae() as u64;
    if let (Some(limit), Some(rows)) = (options.dense_bytes, options.about_rows) {
        dense::check(rows.saturating_mul(row_bytes), limit)?;
    }
    if !options.resume {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
    }
    // Of a directory that is not there, the journal speaks.
    let _lock = out
        .is_dir()
        .then(|| Lock::of_directory(out, "these codes"))
        .transpose()?;
    let journal = match options.resume {
        true => Journal::resume(out, request)?,
        false => Journal::begin(out, request)?,
    };
    let pass = Pass {
        sae,
        // A transcoder's reconstruction is of what it was not given.
        measured: card.writes.is_empty(),
        out,
        dense_bytes: options.dense_bytes,
        about_rows: options.about_rows,
        progress,
        stop,
    };
    pass.run(source, journal)
}
