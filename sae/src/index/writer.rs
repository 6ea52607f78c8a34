//! Writing an index from complete records.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use activations::atomic;
use arrow_array::types::{Float32Type, UInt32Type, UInt64Type};
use arrow_array::{
    ArrayRef, BinaryArray, Float32Array, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::columns::{
    CONTEXTS, EXAMPLES, FEATURES, Lists, MANIFEST, SPILL, VOCABULARY, contexts_schema, examples_schema,
    features_schema, vocabulary_schema,
};
use super::record::{FeatureDetail, IndexManifest, StoredContext, Stratum};
use crate::{Error, Result};

/// Rows handed to Parquet at a time.
const BATCH_ROWS: usize = 4096;
/// Rows of a data page: the least that a reader decodes to see one of them.
const PAGE_ROWS: usize = 128;
/// Rows of a row group: bounds the writer's memory.
const GROUP_ROWS: usize = 1 << 17;

/// What to do with an index that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and return an error.
    Refuse,
    /// Replace it, once the new one is complete.
    Overwrite,
}

/// Writes an index directory from complete records: every feature in order, every context ascending, then
/// [`finish`](Self::finish).
///
/// Files have temporary names until then, and are removed if the writer is dropped before. An index that is
/// overwritten stays whole until the new files are complete; then its manifest goes first and the new one comes last.
pub struct IndexWriter {
    dir: PathBuf,
    features: FeatureTable,
    examples: ExampleTable,
    contexts: ContextTable,
    finished: bool,
    /// Whether the directory is there only because of this writer.
    made_dir: bool,
}

impl IndexWriter {
    /// Starts an index in `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// If `dir` holds an index and `existing` says to refuse, or holds other things; if files cannot be created.
    pub fn create(dir: &Path, existing: Existing) -> Result<Self> {
        check_destination(dir, existing)?;
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            features: FeatureTable::create(dir)?,
            examples: ExampleTable::create(dir)?,
            contexts: ContextTable::create(dir)?,
            finished: false,
            made_dir,
        })
    }

    /// Adds the next feature: the first has number 0.
    ///
    /// # Errors
    /// If the feature is not the next one; if writing fails.
    pub fn feature(&mut self, detail: &FeatureDetail) -> Result<()> {
        let (next, got) = (self.features.rows, detail.summary.feature);
        if u64::from(got) != next {
            return Err(Error::Invalid(format!(
                "features must be written in order: expected {next}, got {got}"
            )));
        }
        let first_example = self.examples.rows;
        for stratum in &detail.strata {
            for (rank, example) in stratum.examples.iter().enumerate() {
                self.examples.push(got, stratum.stratum, rank as u32, example)?;
            }
        }
        let n_examples = (self.examples.rows - first_example) as u32;
        self.features.push(detail, first_example, n_examples)
    }

    /// Adds a context; numbers ascend.
    ///
    /// # Errors
    /// If the number does not ascend; if writing fails.
    pub fn context(&mut self, context: &StoredContext) -> Result<()> {
        if let Some(last) = self.contexts.last
            && context.context <= last
        {
            return Err(Error::Invalid(format!(
                "contexts must be written in ascending order: {} comes after {last}",
                context.context
            )));
        }
        self.contexts.push(context)
    }

    /// Completes the index: flushes everything, gives the files their names, and writes the manifest last.
    /// `vocabulary` holds the bytes of each token, by id.
    ///
    /// # Errors
    /// If the number of features is not the manifest's `d_sae`; if writing fails.
    pub fn finish<B: AsRef<[u8]>>(
        mut self,
        manifest: &IndexManifest,
        vocabulary: impl IntoIterator<Item = B>,
    ) -> Result<()> {
        if self.features.rows != manifest.d_sae as u64 {
            return Err(Error::Invalid(format!(
                "the index has {} features, but its manifest says d_sae {}",
                self.features.rows, manifest.d_sae
            )));
        }
        self.features.flush()?;
        self.examples.flush()?;
        self.contexts.flush()?;
        self.features.out.complete()?;
        self.examples.out.complete()?;
        self.contexts.out.complete()?;
        write_vocabulary(&self.dir, vocabulary)?;
        let json = serde_json::to_vec_pretty(manifest)
            .map_err(|e| Error::Invalid(format!("the index manifest does not serialise: {e}")))?;
        let manifest = self.dir.join(MANIFEST);
        if manifest.exists() {
            // From here to the end the directory says that it is unfinished, never that it is what it was.
            fs::remove_file(&manifest).map_err(Error::io(&manifest))?;
            atomic::sync_directory(&self.dir)?;
        }
        for name in FILES {
            let path = self.dir.join(name);
            atomic::publish(&atomic::temporary(&path), &path)?;
        }
        atomic::write(&manifest, &json)?;
        self.finished = true;
        Ok(())
    }
}

/// Everything but the manifest.
const FILES: [&str; 4] = [FEATURES, EXAMPLES, CONTEXTS, VOCABULARY];

impl Drop for IndexWriter {
    fn drop(&mut self) {
        if !self.finished {
            for name in FILES {
                // Nothing can be done about a temporary file that stays: it is only litter.
                let _ = fs::remove_file(atomic::temporary(&self.dir.join(name)));
            }
            if self.made_dir {
                let _ = fs::remove_dir(&self.dir);
            }
        }
    }
}

/// Refuses a directory that holds an index (unless it may be replaced) or something that is not one.
pub fn check_destination(dir: &Path, existing: Existing) -> Result<()> {
    if dir.join(MANIFEST).exists() {
        // A manifest of something else (an activation store, a run) must never be replaced.
        super::reader::read_manifest(dir)?;
        return match existing {
            Existing::Overwrite => Ok(()),
            Existing::Refuse => Err(Error::bad_file(
                dir,
                "already holds a feature index; choose another directory or ask to overwrite it",
            )),
        };
    }
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let name = entry.map_err(Error::io(dir))?.file_name();
        let name = name.to_string_lossy();
        let ours = FILES.iter().any(|f| name.strip_suffix(".tmp").unwrap_or(&name) == *f);
        if !ours && name != format!("{MANIFEST}.tmp") && name != SPILL {
            return Err(Error::bad_file(
                dir,
                format!("holds {name}, which is no part of a feature index; choose an empty or new directory"),
            ));
        }
    }
    Ok(())
}

/// A Parquet file under its temporary name.
struct Output {
    path: PathBuf,
    schema: SchemaRef,
    writer: Option<ArrowWriter<BufWriter<File>>>,
}

impl Output {
    fn create(dir: &Path, name: &str, schema: SchemaRef) -> Result<Self> {
        let path = dir.join(name);
        let file = File::create(atomic::temporary(&path)).map_err(Error::io(&path))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_dictionary_enabled(false)
            // A feature's strata are a handful of words.
            .set_column_dictionary_enabled(ColumnPath::from("stratum"), true)
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_write_batch_size(PAGE_ROWS)
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .build();
        let writer = ArrowWriter::try_new(BufWriter::new(file), schema.clone(), Some(properties))
            .map_err(|e| Error::bad_file(&path, e.to_string()))?;
        Ok(Self {
            path,
            schema,
            writer: Some(writer),
        })
    }

    fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns).expect("columns are built to the schema");
        let writer = self.writer.as_mut().expect("nothing is written after completion");
        writer
            .write(&batch)
            .map_err(|e| Error::bad_file(&self.path, e.to_string()))
    }

    /// Writes the footer and flushes the file to the disk; its name stays temporary.
    fn complete(&mut self) -> Result<()> {
        let writer = self.writer.take().expect("a file is completed once");
        let mut out = writer
            .into_inner()
            .map_err(|e| Error::bad_file(&self.path, e.to_string()))?;
        out.flush().map_err(Error::io(&self.path))?;
        out.get_ref().sync_all().map_err(Error::io(&self.path))
    }
}

fn write_vocabulary<B: AsRef<[u8]>>(dir: &Path, vocabulary: impl IntoIterator<Item = B>) -> Result<()> {
    let mut out = Output::create(dir, VOCABULARY, vocabulary_schema())?;
    let tokens: Vec<B> = vocabulary.into_iter().collect();
    let ids: Vec<u32> = (0..tokens.len() as u32).collect();
    let bytes = BinaryArray::from_iter_values(tokens.iter().map(AsRef::as_ref));
    out.write(vec![Arc::new(UInt32Array::from(ids)), Arc::new(bytes)])?;
    out.complete()
}

struct FeatureTable {
    out: Output,
    rows: u64,
    pending: Vec<Scalars>,
    top_tokens: Lists<u32>,
    positive: Lists<u64>,
    negative: Lists<u64>,
    top_ids: Lists<u32>,
    top_logits: Lists<f32>,
    bottom_ids: Lists<u32>,
    bottom_logits: Lists<f32>,
    neighbours: Lists<u32>,
    cosines: Lists<f32>,
}

/// The plain columns of a feature's row.
struct Scalars {
    detail: super::record::FeatureSummary,
    positive: (f32, f32),
    negative: (f32, f32),
    first_example: u64,
    n_examples: u32,
}

impl FeatureTable {
    fn create(dir: &Path) -> Result<Self> {
        Ok(Self {
            out: Output::create(dir, FEATURES, features_schema())?,
            rows: 0,
            pending: Vec::new(),
            top_tokens: Lists::default(),
            positive: Lists::default(),
            negative: Lists::default(),
            top_ids: Lists::default(),
            top_logits: Lists::default(),
            bottom_ids: Lists::default(),
            bottom_logits: Lists::default(),
            neighbours: Lists::default(),
            cosines: Lists::default(),
        })
    }

    fn push(&mut self, detail: &FeatureDetail, first_example: u64, n_examples: u32) -> Result<()> {
        self.top_tokens.push(detail.summary.top_tokens.iter().copied());
        self.positive.push(detail.positive.counts.iter().copied());
        self.negative.push(detail.negative.counts.iter().copied());
        self.top_ids.push(detail.top_logits.iter().map(|l| l.token));
        self.top_logits.push(detail.top_logits.iter().map(|l| l.logit));
        self.bottom_ids.push(detail.bottom_logits.iter().map(|l| l.token));
        self.bottom_logits.push(detail.bottom_logits.iter().map(|l| l.logit));
        self.neighbours.push(detail.neighbours.iter().map(|n| n.feature));
        self.cosines.push(detail.neighbours.iter().map(|n| n.cosine));
        self.pending.push(Scalars {
            detail: detail.summary.clone(),
            positive: (detail.positive.log2_start, detail.positive.log2_width),
            negative: (detail.negative.log2_start, detail.negative.log2_width),
            first_example,
            n_examples,
        });
        self.rows += 1;
        if self.pending.len() >= BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        if rows.is_empty() {
            return Ok(());
        }
        let u32s =
            |f: &dyn Fn(&Scalars) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(rows.iter().map(f))) };
        let u64s =
            |f: &dyn Fn(&Scalars) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(rows.iter().map(f))) };
        let f32s =
            |f: &dyn Fn(&Scalars) -> f32| -> ArrayRef { Arc::new(Float32Array::from_iter_values(rows.iter().map(f))) };
        let densities = Float64Array::from_iter_values(rows.iter().map(|r| r.detail.density));
        let columns = vec![
            u32s(&|r| r.detail.feature),
            u64s(&|r| r.detail.n_active),
            Arc::new(densities),
            f32s(&|r| r.detail.max),
            f32s(&|r| r.detail.min),
            f32s(&|r| r.detail.mean_active),
            self.top_tokens.take::<UInt32Type>(),
            f32s(&|r| r.positive.0),
            f32s(&|r| r.positive.1),
            self.positive.take::<UInt64Type>(),
            f32s(&|r| r.negative.0),
            f32s(&|r| r.negative.1),
            self.negative.take::<UInt64Type>(),
            self.top_ids.take::<UInt32Type>(),
            self.top_logits.take::<Float32Type>(),
            self.bottom_ids.take::<UInt32Type>(),
            self.bottom_logits.take::<Float32Type>(),
            self.neighbours.take::<UInt32Type>(),
            self.cosines.take::<Float32Type>(),
            u64s(&|r| r.first_example),
            u32s(&|r| r.n_examples),
        ];
        self.out.write(columns)
    }
}

struct ExampleTable {
    out: Output,
    rows: u64,
    feature: Vec<u32>,
    stratum: Vec<String>,
    rank: Vec<u32>,
    context: Vec<u64>,
    position: Vec<u32>,
    value: Vec<f32>,
    positions: Lists<u32>,
    activations: Lists<f32>,
}

impl ExampleTable {
    fn create(dir: &Path) -> Result<Self> {
        Ok(Self {
            out: Output::create(dir, EXAMPLES, examples_schema())?,
            rows: 0,
            feature: Vec::new(),
            stratum: Vec::new(),
            rank: Vec::new(),
            context: Vec::new(),
            position: Vec::new(),
            value: Vec::new(),
            positions: Lists::default(),
            activations: Lists::default(),
        })
    }

    fn push(&mut self, feature: u32, stratum: Stratum, rank: u32, example: &super::record::Example) -> Result<()> {
        self.feature.push(feature);
        self.stratum.push(stratum_name(stratum));
        self.rank.push(rank);
        self.context.push(example.context);
        self.position.push(example.position);
        self.value.push(example.value);
        self.positions.push(example.activations.iter().map(|a| a.position));
        self.activations.push(example.activations.iter().map(|a| a.value));
        self.rows += 1;
        if self.feature.len() >= BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.feature.is_empty() {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(std::mem::take(&mut self.feature))),
            Arc::new(StringArray::from(std::mem::take(&mut self.stratum))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.rank))),
            Arc::new(UInt64Array::from(std::mem::take(&mut self.context))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.position))),
            Arc::new(Float32Array::from(std::mem::take(&mut self.value))),
            self.positions.take::<UInt32Type>(),
            self.activations.take::<Float32Type>(),
        ];
        self.out.write(columns)
    }
}

/// How `examples.parquet` spells a stratum.
fn stratum_name(stratum: Stratum) -> String {
    match stratum {
        Stratum::Top => "top".into(),
        Stratum::Bottom => "bottom".into(),
        Stratum::Quantile(i) => format!("q{i}"),
    }
}

struct ContextTable {
    out: Output,
    last: Option<u64>,
    context: Vec<u64>,
    document: Vec<u64>,
    tokens: Lists<u32>,
}

impl ContextTable {
    fn create(dir: &Path) -> Result<Self> {
        Ok(Self {
            out: Output::create(dir, CONTEXTS, contexts_schema())?,
            last: None,
            context: Vec::new(),
            document: Vec::new(),
            tokens: Lists::default(),
        })
    }

    fn push(&mut self, context: &StoredContext) -> Result<()> {
        self.last = Some(context.context);
        self.context.push(context.context);
        self.document.push(context.document);
        self.tokens.push(context.tokens.iter().copied());
        if self.context.len() >= BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.context.is_empty() {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(std::mem::take(&mut self.context))),
            Arc::new(UInt64Array::from(std::mem::take(&mut self.document))),
            self.tokens.take::<UInt32Type>(),
        ];
        self.out.write(columns)
    }
}
