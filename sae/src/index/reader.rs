//! Reading an index: the summaries at once, everything else by page.

use std::fs;
use std::path::{Path, PathBuf};

use arrow_array::types::{Float32Type, Float64Type, UInt32Type, UInt64Type};
use arrow_array::{BinaryArray, RecordBatch, StringArray};

use super::columns::{
    CONTEXTS, EXAMPLES, FEATURES, MANIFEST, SUMMARY_COLUMNS, Table, VOCABULARY, contexts_schema, examples_schema,
    features_schema, vocabulary_schema,
};
use super::record::{
    At, Example, Examples, FORMAT_VERSION, FeatureDetail, FeatureSummary, Histogram, IndexManifest, Neighbour,
    StoredContext, Stratum, TokenLogit,
};
use crate::{Error, Result};

/// Rows decoded at a time while a whole column is loaded.
const SCAN_ROWS: usize = 1 << 14;

/// An open feature index. Methods take `&self` and may be called from several threads.
///
/// Files stay open, so an index that is replaced on the disk goes on being read as it was.
pub struct FeatureIndex {
    dir: PathBuf,
    manifest: IndexManifest,
    summaries: Vec<FeatureSummary>,
    features: Table,
    examples: Table,
    contexts: Table,
    context_ids: Vec<u64>,
    vocabulary: Vocabulary,
}

impl FeatureIndex {
    /// Opens the index in `dir`, loads the summaries, the numbers of the contexts and the vocabulary.
    ///
    /// # Errors
    /// If `dir` holds no complete index, one of another version, or files that do not belong together; each names
    /// the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        let features = Table::open(dir.join(FEATURES), &features_schema())?;
        let examples = Table::open(dir.join(EXAMPLES), &examples_schema())?;
        let contexts = Table::open(dir.join(CONTEXTS), &contexts_schema())?;
        if features.rows() != manifest.d_sae {
            let problem = format!(
                "has {} features, but the manifest says {}",
                features.rows(),
                manifest.d_sae
            );
            return Err(features.bad(problem));
        }
        let summaries = read_summaries(&features)?;
        let mut context_ids = Vec::with_capacity(contexts.rows());
        for batch in contexts.read(0, contexts.rows(), SCAN_ROWS, Some(&["context"]))? {
            context_ids.extend_from_slice(contexts.values::<UInt64Type>(&batch, "context")?);
        }
        if !context_ids.is_sorted_by(|a, b| a < b) {
            return Err(contexts.bad("context numbers do not ascend"));
        }
        let vocabulary = Vocabulary::read(&Table::open(dir.join(VOCABULARY), &vocabulary_schema())?)?;
        Ok(Self {
            dir: dir.to_owned(),
            manifest,
            summaries,
            features,
            examples,
            contexts,
            context_ids,
            vocabulary,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was indexed, and how.
    pub fn manifest(&self) -> &IndexManifest {
        &self.manifest
    }

    /// The statistics of every feature, by number: `[d_sae]`.
    pub fn summaries(&self) -> &[FeatureSummary] {
        &self.summaries
    }

    /// Everything about one feature. Reads a page of each column.
    ///
    /// # Errors
    /// If there is no such feature; if a file is damaged.
    pub fn feature(&self, feature: u32) -> Result<FeatureDetail> {
        let Some(summary) = self.summaries.get(feature as usize) else {
            return Err(Error::Invalid(format!(
                "there is no feature {feature}: the index has {}",
                self.summaries.len()
            )));
        };
        let table = &self.features;
        let batch = one_batch(table, table.read(feature as usize, 1, 1, None)?)?;
        let first_example = table.values::<UInt64Type>(&batch, "first_example")?[0];
        let n_examples = table.values::<UInt32Type>(&batch, "n_examples")?[0];
        let first_example =
            usize::try_from(first_example).map_err(|_| table.bad("first_example does not fit this machine"))?;
        Ok(FeatureDetail {
            summary: summary.clone(),
            positive: read_histogram(table, &batch, "positive")?,
            negative: read_histogram(table, &batch, "negative")?,
            top_logits: read_logits(table, &batch, "top")?,
            bottom_logits: read_logits(table, &batch, "bottom")?,
            neighbours: read_neighbours(table, &batch)?,
            strata: self.read_strata(feature, first_example, n_examples as usize)?,
        })
    }

    /// The token ids and document of a context that an example refers to.
    ///
    /// # Errors
    /// If the index does not hold the context; if the file is damaged.
    pub fn context(&self, context: u64) -> Result<StoredContext> {
        let Ok(row) = self.context_ids.binary_search(&context) else {
            return Err(Error::Invalid(format!(
                "the index holds no context {context}: only contexts that an example refers to are stored"
            )));
        };
        let table = &self.contexts;
        let batch = one_batch(table, table.read(row, 1, 1, None)?)?;
        Ok(StoredContext {
            context,
            document: table.values::<UInt64Type>(&batch, "document")?[0],
            tokens: table.list::<UInt32Type>(&batch, "tokens", 0)?,
        })
    }

    /// The token ids of a context that an example refers to.
    ///
    /// # Errors
    /// As [`context`](Self::context).
    pub fn context_tokens(&self, context: u64) -> Result<Vec<u32>> {
        Ok(self.context(context)?.tokens)
    }

    /// How many contexts are stored.
    pub fn n_contexts(&self) -> usize {
        self.context_ids.len()
    }

    /// Number of tokens of the vocabulary.
    pub fn vocabulary_len(&self) -> usize {
        self.vocabulary.ends.len()
    }

    /// The exact bytes of a token, which need not be valid UTF-8 by themselves; `None` beyond the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.vocabulary.get(token as usize)
    }

    fn read_strata(&self, feature: u32, first: usize, n: usize) -> Result<Vec<Examples>> {
        let table = &self.examples;
        let mut strata: Vec<Examples> = Vec::new();
        for batch in table.read(first, n, n, None)? {
            let features = table.values::<UInt32Type>(&batch, "feature")?;
            let names = table.column::<StringArray>(&batch, "stratum")?;
            let contexts = table.values::<UInt64Type>(&batch, "context")?;
            let positions = table.values::<UInt32Type>(&batch, "position")?;
            let values = table.values::<Float32Type>(&batch, "value")?;
            for row in 0..batch.num_rows() {
                if features[row] != feature {
                    let found = features[row];
                    return Err(table.bad(format!("an example of feature {feature} belongs to {found}")));
                }
                let stratum = parse_stratum(names.value(row)).ok_or_else(|| {
                    table.bad(format!(
                        "unknown stratum {:?}: expected top, bottom or q0, q1 ...",
                        names.value(row)
                    ))
                })?;
                let example = Example {
                    context: contexts[row],
                    position: positions[row],
                    value: values[row],
                    activations: read_activations(table, &batch, row)?,
                };
                match strata.last_mut() {
                    Some(last) if last.stratum == stratum => last.examples.push(example),
                    _ => strata.push(Examples {
                        stratum,
                        examples: vec![example],
                    }),
                }
            }
        }
        Ok(strata)
    }
}

/// Reads and checks `manifest.json`.
pub fn read_manifest(dir: &Path) -> Result<IndexManifest> {
    let path = dir.join(MANIFEST);
    if !dir.is_dir() {
        return Err(Error::bad_file(
            dir,
            "no such directory; a feature index is made by `sae features`",
        ));
    }
    if !path.exists() {
        let problem = if dir.join(FEATURES).exists() || activations::atomic::temporary(&dir.join(FEATURES)).exists() {
            "an unfinished feature index: it has no manifest.json; build it again"
        } else {
            "not a feature index: it has no manifest.json and no features.parquet"
        };
        return Err(Error::bad_file(dir, problem));
    }
    let text = fs::read(&path).map_err(Error::io(&path))?;
    #[derive(serde::Deserialize)]
    struct Version {
        format_version: u32,
    }
    let not_ours = |e: serde_json::Error| Error::bad_file(&path, format!("not the manifest of a feature index: {e}"));
    // The version comes first: a later format need not parse as this one.
    let Version { format_version } = serde_json::from_slice(&text).map_err(not_ours)?;
    if format_version != FORMAT_VERSION {
        let problem =
            format!("format version {format_version}, but this build reads {FORMAT_VERSION}; build the index again");
        return Err(Error::bad_file(&path, problem));
    }
    serde_json::from_slice(&text).map_err(not_ours)
}

fn one_batch(table: &Table, mut batches: Vec<RecordBatch>) -> Result<RecordBatch> {
    match batches.pop() {
        Some(batch) if batches.is_empty() && batch.num_rows() == 1 => Ok(batch),
        _ => Err(table.bad("a page does not hold the row that the footer promises")),
    }
}

fn read_summaries(table: &Table) -> Result<Vec<FeatureSummary>> {
    let mut summaries = Vec::with_capacity(table.rows());
    for batch in table.read(0, table.rows(), SCAN_ROWS, Some(&SUMMARY_COLUMNS))? {
        let features = table.values::<UInt32Type>(&batch, "feature")?;
        let n_active = table.values::<UInt64Type>(&batch, "n_active")?;
        let density = table.values::<Float64Type>(&batch, "density")?;
        let max = table.values::<Float32Type>(&batch, "max")?;
        let min = table.values::<Float32Type>(&batch, "min")?;
        let mean_active = table.values::<Float32Type>(&batch, "mean_active")?;
        for row in 0..batch.num_rows() {
            if features[row] as usize != summaries.len() {
                return Err(table.bad(format!("row {} holds feature {}", summaries.len(), features[row])));
            }
            summaries.push(FeatureSummary {
                feature: features[row],
                alive: n_active[row] > 0,
                n_active: n_active[row],
                density: density[row],
                max: max[row],
                min: min[row],
                mean_active: mean_active[row],
                top_tokens: table.list::<UInt32Type>(&batch, "top_tokens", row)?,
            });
        }
    }
    Ok(summaries)
}

fn read_histogram(table: &Table, batch: &RecordBatch, pole: &str) -> Result<Histogram> {
    Ok(Histogram {
        log2_start: table.values::<Float32Type>(batch, &format!("{pole}_log2_start"))?[0],
        log2_width: table.values::<Float32Type>(batch, &format!("{pole}_log2_width"))?[0],
        counts: table.list::<UInt64Type>(batch, &format!("{pole}_counts"), 0)?,
    })
}

fn read_logits(table: &Table, batch: &RecordBatch, end: &str) -> Result<Vec<TokenLogit>> {
    let tokens = table.list::<UInt32Type>(batch, &format!("{end}_logit_tokens"), 0)?;
    let logits = table.list::<Float32Type>(batch, &format!("{end}_logits"), 0)?;
    let pairs = paired(table, tokens, logits)?;
    Ok(pairs.map(|(token, logit)| TokenLogit { token, logit }).collect())
}

fn read_neighbours(table: &Table, batch: &RecordBatch) -> Result<Vec<Neighbour>> {
    let features = table.list::<UInt32Type>(batch, "neighbours", 0)?;
    let cosines = table.list::<Float32Type>(batch, "neighbour_cosines", 0)?;
    let pairs = paired(table, features, cosines)?;
    Ok(pairs.map(|(feature, cosine)| Neighbour { feature, cosine }).collect())
}

fn read_activations(table: &Table, batch: &RecordBatch, row: usize) -> Result<Vec<At>> {
    let positions = table.list::<UInt32Type>(batch, "positions", row)?;
    let values = table.list::<Float32Type>(batch, "activations", row)?;
    let pairs = paired(table, positions, values)?;
    Ok(pairs.map(|(position, value)| At { position, value }).collect())
}

fn paired<A, B>(table: &Table, a: Vec<A>, b: Vec<B>) -> Result<impl Iterator<Item = (A, B)>> {
    if a.len() != b.len() {
        return Err(table.bad(format!("paired lists differ in length: {} and {}", a.len(), b.len())));
    }
    Ok(a.into_iter().zip(b))
}

fn parse_stratum(name: &str) -> Option<Stratum> {
    match name {
        "top" => Some(Stratum::Top),
        "bottom" => Some(Stratum::Bottom),
        _ => name.strip_prefix('q')?.parse().ok().map(Stratum::Quantile),
    }
}

/// The bytes of every token, end to end.
struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Vocabulary {
    fn read(table: &Table) -> Result<Self> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(table.rows()));
        for batch in table.read(0, table.rows(), SCAN_ROWS, None)? {
            let ids = table.values::<UInt32Type>(&batch, "token")?;
            let column = table.column::<BinaryArray>(&batch, "bytes")?;
            for (row, id) in ids.iter().enumerate() {
                if *id as usize != ends.len() {
                    return Err(table.bad(format!("row {} holds token {id}", ends.len())));
                }
                bytes.extend_from_slice(column.value(row));
                ends.push(bytes.len());
            }
        }
        Ok(Self { bytes, ends })
    }

    fn get(&self, token: usize) -> Option<&[u8]> {
        let end = *self.ends.get(token)?;
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        Some(&self.bytes[start..end])
    }
}
