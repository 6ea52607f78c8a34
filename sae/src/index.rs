//! The feature index: what every feature of a dictionary does on a text, computed once and read by page.
//!
//! The one decision: **nothing is read that is not shown.** The statistics of all features are small and are loaded
//! when the index is opened; everything else about a feature is one page of `features.parquet` and a few of
//! `examples.parquet`, which lies feature-major. Contexts are stored once, as token ids, and only those that an
//! example refers to. The files are plain Parquet: pyarrow, polars and DuckDB read them.
//!
//! | file | a row is | columns |
//! |---|---|---|
//! | `features.parquet` | a feature, in order | statistics, histograms, logits, neighbours, where its examples are |
//! | `examples.parquet` | an example, by feature, stratum and rank | context, position, value, activations along it |
//! | `contexts.parquet` | a context, ascending | document, token ids |
//! | `vocabulary.parquet` | a token | its exact bytes |
//! | `manifest.json` | | [`IndexManifest`]; written last |
//!
//! [`build`](build()) makes one in a single pass; [`IndexWriter`] takes complete records; [`FeatureIndex`] reads them.
//! The normative text of the directory is `sae/INDEX.md`.

mod build;
mod columns;
mod reader;
mod record;
#[cfg(test)]
mod round_trip;
mod writer;

pub(crate) use build::{Block, Encoded};
pub use build::{BuildOptions, CANDIDATES, Estimate, Naming, Unembedding, build, estimate};
pub use reader::FeatureIndex;
pub use record::{
    At, DictionarySummary, Example, Examples, FORMAT_VERSION, FeatureDetail, FeatureSummary, HISTOGRAM_BINS, Histogram,
    IndexManifest, Neighbour, StoredContext, Stratum, TokenLogit,
};
pub use writer::{Existing, IndexWriter};
