//! Parquet from elsewhere: a column of lists or of bytes, in one file or in several.
//!
//! Other programs compress pages, encode values in dictionaries and put levels before them, so a row can only be had by
//! decoding the page that it is in, which for a reader that wants 64 rows here and 64 rows there is some twenty times
//! the work. Such files are therefore decoded once, from front to back, into a copy that has nothing but the rows
//! ([`super::copy`]); this module finds the column and decodes it.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::ArrayRef;
use arrow_buffer::ScalarBuffer;
use arrow_schema::{Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::columns::{ColumnKind, choose, column};
use super::nested::{Checked, Leaf, flatten};
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::guard::unless_it_panics;

/// Bytes of rows that are decoded at a time.
const BATCH_BYTES: u64 = 4 << 20;

/// A column of Parquet files that was found and not decoded yet.
pub(crate) struct ParquetRows {
    files: Vec<Part>,
    pub column: String,
    kind: ColumnKind,
    pub d_in: usize,
    /// Rows of the activations in a row of the files.
    pub context_rows: u64,
    /// Lengths of the lists of a row.
    lengths: Vec<usize>,
}

/// One of the files.
struct Part {
    path: PathBuf,
    /// Rows of each row group.
    groups: Vec<u64>,
}

impl Part {
    fn rows(&self) -> u64 {
        self.groups.iter().fold(0, |sum, &rows| sum.saturating_add(rows))
    }
}

impl ParquetRows {
    /// Finds a column in `files`, the one named `wanted` or the only one that holds activations.
    pub fn find(path: &Path, files: &[PathBuf], wanted: Option<&str>, asked: Option<ActDtype>) -> Result<Self> {
        let mut found: Option<Self> = None;
        for file in files {
            let builder = open(file)?;
            let here = |problem: String| Error::bad_file(file, problem);
            let schema = with_file_metadata(&builder);
            let name = match &found {
                Some(found) => found.column.clone(),
                None => schema.field(choose(path, &schema, wanted)?).name().clone(),
            };
            let (_, kind) = column(&schema, &name, asked).map_err(here)?;
            let part = Part {
                path: file.clone(),
                groups: builder
                    .metadata()
                    .row_groups()
                    .iter()
                    .map(|g| g.num_rows().max(0) as u64)
                    .collect(),
            };
            if part.rows() == 0 {
                continue;
            }
            let lengths = first_lengths(file, builder, &name)?;
            match &mut found {
                Some(found) if found.kind == kind && found.lengths == lengths => found.files.push(part),
                Some(found) => {
                    return Err(here(format!(
                        "column {name} has rows of shape {lengths:?} in {}, and the files before it of {:?} in {}: \
                         all must be alike",
                        kind.dtype, found.lengths, found.kind.dtype
                    )));
                }
                None => found = Some(Self::new(part, name, kind, lengths).map_err(here)?),
            }
        }
        let found = found.ok_or_else(|| Error::bad_file(path, "has no rows: there is nothing in it"))?;
        // Footers are not to be trusted: sums below must fit.
        let rows = found.files.iter().try_fold(0u64, |sum, part| {
            part.groups.iter().try_fold(sum, |sum, &rows| sum.checked_add(rows))
        });
        let values = rows.and_then(|rows| rows.checked_mul(found.context_rows)?.checked_mul(found.width()));
        match values {
            Some(bytes) if bytes < 1 << 60 => Ok(found),
            _ => Err(Error::bad_file(path, "claims more rows than any disk holds")),
        }
    }

    fn new(part: Part, column: String, kind: ColumnKind, lengths: Vec<usize>) -> Checked<Self> {
        let (d_in, context_rows) = kind
            .shape(&lengths)
            .map_err(|problem| format!("column {column} {problem}"))?;
        Ok(Self {
            files: vec![part],
            column,
            kind,
            d_in,
            context_rows,
            lengths,
        })
    }

    /// Rows of the activations.
    pub fn n_rows(&self) -> u64 {
        self.files.iter().map(Part::rows).sum::<u64>() * self.context_rows
    }

    /// Bytes of a row.
    pub fn width(&self) -> u64 {
        (self.d_in * self.kind.dtype.size()) as u64
    }

    /// Number format of the rows.
    pub fn dtype(&self) -> ActDtype {
        self.kind.dtype
    }

    /// The files with the rows of the activations in each.
    pub fn parts(&self) -> Vec<(PathBuf, u64)> {
        let part = |part: &Part| (part.path.clone(), part.rows() * self.context_rows);
        self.files.iter().map(part).collect()
    }

    /// Gives encoded rows to `take`, in order, from row `from` on, which begins a row of the files. It ends where
    /// `take` says false.
    pub fn decode(&self, from: u64, mut take: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
        let batch = (BATCH_BYTES / (self.width() * self.context_rows)).clamp(1, 1 << 16) as usize;
        let mut skip = from / self.context_rows;
        for part in &self.files {
            if skip >= part.rows() {
                skip -= part.rows();
                continue;
            }
            let bad = |problem: String| Error::bad_file(&part.path, problem);
            let mut row = skip;
            let mut reader = self.read(part, std::mem::take(&mut skip), batch)?;
            while let Some(batch) = guarded(|| reader.next().transpose()).map_err(bad)? {
                if batch.num_rows() == 0 {
                    continue;
                }
                let bytes = self.encode(batch.column(0), row).map_err(bad)?;
                row += batch.num_rows() as u64;
                if !take(&bytes)? {
                    return Ok(());
                }
            }
            if row != part.rows() {
                return Err(bad(format!(
                    "ends after {row} rows, and its footer says {}",
                    part.rows()
                )));
            }
        }
        Ok(())
    }

    /// The batches of a file from its row `skip` on.
    fn read(&self, part: &Part, mut skip: u64, batch: usize) -> Result<ParquetRecordBatchReader> {
        let bad = |problem: String| Error::bad_file(&part.path, problem);
        let mut first = 0;
        while skip >= part.groups[first] {
            skip -= part.groups[first];
            first += 1;
        }
        let builder = project(open(&part.path)?, &self.column).map_err(bad)?;
        let groups: Vec<u64> = builder
            .metadata()
            .row_groups()
            .iter()
            .map(|g| g.num_rows().max(0) as u64)
            .collect();
        if groups != part.groups {
            return Err(bad("changed while it was being read".into()));
        }
        let builder = builder
            .with_row_groups((first..groups.len()).collect())
            .with_offset(skip as usize)
            .with_batch_size(batch);
        guarded(|| builder.build()).map_err(bad)
    }

    /// Rows as they lie in the copy. Errors count the file's rows from `first`.
    fn encode(&self, array: &ArrayRef, first: u64) -> Checked<Vec<u8>> {
        let flat = flatten(array, first).map_err(|problem| format!("column {}: {problem}", self.column))?;
        if flat.lengths != self.lengths {
            return Err(format!(
                "column {}: row {first} is of shape {:?}, and the ones before it of {:?}: all must be alike",
                self.column, flat.lengths, self.lengths
            ));
        }
        if self.kind.leaf != Leaf::F64 {
            return Ok(flat.values.to_vec());
        }
        let wide = ScalarBuffer::<f64>::from(flat.values);
        let narrow: Vec<f32> = wide.iter().map(|&v| v as f32).collect();
        let mut out = Vec::new();
        ActDtype::F32.encode(&narrow, &mut out);
        Ok(out)
    }
}

/// The footer of a file.
fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(|problem| Error::bad_file(path, problem))
}

/// Runs a step of the decoder. On some damaged files it panics instead of giving an error (a bit width beyond 64, for
/// one); both are the same news to a user, and nothing of it is used again after.
fn guarded<T, E: std::fmt::Display>(step: impl FnOnce() -> std::result::Result<T, E>) -> Checked<T> {
    let problem = match unless_it_panics(step) {
        Some(Ok(value)) => return Ok(value),
        Some(Err(e)) => e.to_string(),
        None => "it is damaged".into(),
    };
    Err(format!("is no Parquet file that can be read: {problem}"))
}

/// The schema as Arrow has it, with the key-value metadata of the file.
fn with_file_metadata(builder: &ParquetRecordBatchReaderBuilder<File>) -> Schema {
    let mut schema = Schema::clone(builder.schema());
    for entry in builder
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .into_iter()
        .flatten()
    {
        if let Some(value) = &entry.value {
            schema.metadata.insert(entry.key.clone(), value.clone());
        }
    }
    schema
}

/// Of all columns, only this one.
fn project(
    builder: ParquetRecordBatchReaderBuilder<File>,
    column: &str,
) -> Checked<ParquetRecordBatchReaderBuilder<File>> {
    let at = builder.schema().index_of(column).map_err(|e| e.to_string())?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [at]);
    Ok(builder.with_projection(mask))
}

/// Lengths of the lists of a file's first row.
fn first_lengths(path: &Path, builder: ParquetRecordBatchReaderBuilder<File>, column: &str) -> Result<Vec<usize>> {
    let bad = |problem: String| Error::bad_file(path, problem);
    let builder = project(builder, column).map_err(bad)?.with_batch_size(1).with_limit(1);
    let mut reader = guarded(|| builder.build()).map_err(bad)?;
    while let Some(batch) = guarded(|| reader.next().transpose()).map_err(bad)? {
        if batch.num_rows() == 1 {
            let flat = flatten(batch.column(0), 0).map_err(|problem| bad(format!("column {column}: {problem}")))?;
            return Ok(flat.lengths);
        }
    }
    Err(bad("has no rows, and its footer says that it has".into()))
}

/// Columns and rows of a file, for people.
pub(super) fn look(path: &Path) -> Result<(SchemaRef, u64)> {
    let builder = open(path)?;
    let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
    Ok((builder.schema().clone(), rows))
}
