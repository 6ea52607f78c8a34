//! The Parquet side of the index: schemas, columns of lists, and files read by row ranges from several threads.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{Array, ArrayRef, ListArray, PrimitiveArray, RecordBatch};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{ChunkReader, Length};

use crate::{Error, Result};

pub const MANIFEST: &str = "manifest.json";
pub const FEATURES: &str = "features.parquet";
pub const EXAMPLES: &str = "examples.parquet";
pub const CONTEXTS: &str = "contexts.parquet";
pub const VOCABULARY: &str = "vocabulary.parquet";
/// Name of the builder's own temporary file.
pub const SPILL: &str = "contexts.spill.tmp";

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, false)))
}

fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, kind)| Field::new(*name, kind.clone(), false))
        .collect();
    Arc::new(Schema::new(fields))
}

/// A row a feature, in order.
pub fn features_schema() -> SchemaRef {
    use DataType::{Float32, Float64, UInt32, UInt64};
    schema(&[
        ("feature", UInt32),
        ("n_active", UInt64),
        ("density", Float64),
        ("max", Float32),
        ("min", Float32),
        ("mean_active", Float32),
        ("top_tokens", list_of(UInt32)),
        ("positive_log2_start", Float32),
        ("positive_log2_width", Float32),
        ("positive_counts", list_of(UInt64)),
        ("negative_log2_start", Float32),
        ("negative_log2_width", Float32),
        ("negative_counts", list_of(UInt64)),
        ("top_logit_tokens", list_of(UInt32)),
        ("top_logits", list_of(Float32)),
        ("bottom_logit_tokens", list_of(UInt32)),
        ("bottom_logits", list_of(Float32)),
        ("neighbours", list_of(UInt32)),
        ("neighbour_cosines", list_of(Float32)),
        ("first_example", UInt64),
        ("n_examples", UInt32),
    ])
}

/// The columns of [`features_schema`] that make up a `FeatureSummary`.
pub const SUMMARY_COLUMNS: [&str; 7] = [
    "feature",
    "n_active",
    "density",
    "max",
    "min",
    "mean_active",
    "top_tokens",
];

/// A row an example, by feature, stratum and rank. `stratum` is `top`, `bottom`, or `q0`, `q1` and so on.
pub fn examples_schema() -> SchemaRef {
    use DataType::{Float32, UInt32, UInt64, Utf8};
    schema(&[
        ("feature", UInt32),
        ("stratum", Utf8),
        ("rank", UInt32),
        ("context", UInt64),
        ("position", UInt32),
        ("value", Float32),
        ("positions", list_of(UInt32)),
        ("activations", list_of(Float32)),
    ])
}

/// A row a context, ascending.
pub fn contexts_schema() -> SchemaRef {
    use DataType::{UInt32, UInt64};
    schema(&[("context", UInt64), ("document", UInt64), ("tokens", list_of(UInt32))])
}

/// A row a token, ascending from 0.
pub fn vocabulary_schema() -> SchemaRef {
    schema(&[("token", DataType::UInt32), ("bytes", DataType::Binary)])
}

/// A column of lists in the making.
#[derive(Default)]
pub struct Lists<T> {
    lengths: Vec<usize>,
    values: Vec<T>,
}

impl<T> Lists<T> {
    pub fn push(&mut self, list: impl IntoIterator<Item = T>) {
        let before = self.values.len();
        self.values.extend(list);
        self.lengths.push(self.values.len() - before);
    }

    pub fn take<P: ArrowPrimitiveType<Native = T>>(&mut self) -> ArrayRef
    where
        PrimitiveArray<P>: From<Vec<T>>,
    {
        let values = PrimitiveArray::<P>::from(std::mem::take(&mut self.values));
        let offsets = OffsetBuffer::from_lengths(std::mem::take(&mut self.lengths));
        let field = Arc::new(Field::new("item", P::DATA_TYPE, false));
        Arc::new(ListArray::new(field, offsets, Arc::new(values), None))
    }
}

/// A file that threads share. Each read holds the lock for one seek and one read, because clones of a `File` share
/// their position and would disturb each other.
#[derive(Clone)]
pub struct SharedFile {
    file: Arc<Mutex<File>>,
    length: u64,
}

impl SharedFile {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        // A thread that panicked while it held the lock left nothing but a position, which is set anew.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(at))?;
        file.read(into)
    }
}

/// Reads a [`SharedFile`] onward from a position of its own.
pub struct FileFrom {
    file: SharedFile,
    at: u64,
}

impl Read for FileFrom {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(self.at, into)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for SharedFile {
    type T = BufReader<FileFrom>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let file = self.clone();
        Ok(BufReader::new(FileFrom { file, at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!(
                "bytes {start}..+{length} lie beyond the file's {}",
                self.length
            )));
        }
        let mut buffer = vec![0; length];
        FileFrom {
            file: self.clone(),
            at: start,
        }
        .read_exact(&mut buffer)?;
        Ok(buffer.into())
    }
}

/// An open Parquet file of the index, whose footer and page offsets are in memory.
pub struct Table {
    path: PathBuf,
    file: SharedFile,
    metadata: ArrowReaderMetadata,
    rows: usize,
}

impl Table {
    /// Opens `path` and checks that it has the columns of `expected`.
    pub fn open(path: PathBuf, expected: &SchemaRef) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io(&path))?;
        let length = file.metadata().map_err(Error::io(&path))?.len();
        let file = SharedFile {
            file: Arc::new(Mutex::new(file)),
            length,
        };
        let options = ArrowReaderOptions::new()
            .with_offset_index_policy(PageIndexPolicy::Required)
            .with_column_index_policy(PageIndexPolicy::Skip);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(|e| Error::bad_file(&path, e.to_string()))?;
        for field in expected.fields() {
            let found = metadata.schema().field_with_name(field.name()).ok();
            if found.map(Field::data_type) != Some(field.data_type()) {
                let found = found.map_or("nothing".into(), |f| f.data_type().to_string());
                let (name, kind) = (field.name(), field.data_type());
                let problem = format!("not a file of a feature index: column {name} should be {kind}, found {found}");
                return Err(Error::bad_file(path, problem));
            }
        }
        let rows = usize::try_from(metadata.metadata().file_metadata().num_rows())
            .map_err(|_| Error::bad_file(&path, "negative number of rows"))?;
        Ok(Self {
            path,
            file,
            metadata,
            rows,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// An error about this file.
    pub fn bad(&self, problem: impl Into<String>) -> Error {
        Error::bad_file(&self.path, problem)
    }

    /// Rows `first .. first + n`, of all columns or of those named, in batches of at most `batch` rows. Only the
    /// pages that hold them are read.
    pub fn read(&self, first: usize, n: usize, batch: usize, columns: Option<&[&str]>) -> Result<Vec<RecordBatch>> {
        if first.checked_add(n).is_none_or(|end| end > self.rows) {
            return Err(self.bad(format!("rows {first}..+{n} are wanted, but it has {}", self.rows)));
        }
        let reader = self
            .reader(first, n, batch, columns)
            .map_err(|e| self.bad(e.to_string()))?;
        reader
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| self.bad(e.to_string()))
    }

    fn reader(
        &self,
        first: usize,
        n: usize,
        batch: usize,
        columns: Option<&[&str]>,
    ) -> parquet::errors::Result<ParquetRecordBatchReader> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone());
        let mask = match columns {
            Some(columns) => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
            None => ProjectionMask::all(),
        };
        builder
            .with_projection(mask)
            .with_row_selection(RowSelection::from(vec![
                RowSelector::skip(first),
                RowSelector::select(n),
            ]))
            .with_batch_size(batch.max(1))
            .build()
    }

    /// The values of a plain column. The schema was checked on opening, so it is there.
    pub fn values<'a, P: ArrowPrimitiveType>(&self, batch: &'a RecordBatch, name: &str) -> Result<&'a [P::Native]> {
        Ok(self.column::<PrimitiveArray<P>>(batch, name)?.values())
    }

    /// The list in row `row` of a column of lists.
    pub fn list<P: ArrowPrimitiveType>(&self, batch: &RecordBatch, name: &str, row: usize) -> Result<Vec<P::Native>> {
        let list = self.column::<ListArray>(batch, name)?.value(row);
        let values = list
            .as_any()
            .downcast_ref::<PrimitiveArray<P>>()
            .ok_or_else(|| self.bad(format!("column {name} holds {} items", list.data_type())))?;
        Ok(values.values().to_vec())
    }

    /// A column by name and Arrow type.
    pub fn column<'a, A: Array + 'static>(&self, batch: &'a RecordBatch, name: &str) -> Result<&'a A> {
        let column = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
        let column = column.ok_or_else(|| self.bad(format!("column {name} is missing or of another type")))?;
        if column.null_count() > 0 {
            return Err(self.bad(format!("column {name} has nulls")));
        }
        Ok(column)
    }
}
