//! The two tables of a shard: rows, and the entries of all of them.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use activations::atomic;
use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};

/// Rows handed to Parquet at a time, so that its bytes do not depend on blocks.
const BATCH_ROWS: usize = 1 << 16;
/// Rows of a row group: bounds the writer's memory.
const GROUP_ROWS: usize = 1 << 20;

/// The file of rows of shard `n`.
pub(super) fn rows_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("rows-{n:05}.parquet"))
}

/// The file of entries of shard `n`.
pub(super) fn codes_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("codes-{n:05}.parquet"))
}

/// The shard number in a name such as `codes-00012.parquet`.
pub(super) fn shard_number(name: &str) -> Option<usize> {
    let number = name.strip_suffix(".parquet")?;
    let number = number.strip_prefix("rows-").or(number.strip_prefix("codes-"))?;
    number.parse().ok()
}

/// `rows-N.parquet`: a row of activations a row.
pub(super) struct RowTable {
    table: Table,
    context: Vec<u64>,
    position: Vec<u32>,
    token: Vec<u32>,
    active: Vec<u32>,
}

impl RowTable {
    pub fn create(dir: &Path, number: usize) -> Result<Self> {
        let columns = [
            ("context", DataType::UInt64),
            ("position", DataType::UInt32),
            ("token", DataType::UInt32),
            ("active", DataType::UInt32),
        ];
        Ok(Self {
            table: Table::create(&rows_path(dir, number), &columns, &[])?,
            context: Vec::new(),
            position: Vec::new(),
            token: Vec::new(),
            active: Vec::new(),
        })
    }

    pub fn push(&mut self, context: u64, position: u32, token: u32, active: u32) -> Result<()> {
        self.context.push(context);
        self.position.push(position);
        self.token.push(token);
        self.active.push(active);
        match self.context.len() == BATCH_ROWS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let take = std::mem::take::<Vec<u32>>;
        self.table.write(vec![
            Arc::new(UInt64Array::from(std::mem::take(&mut self.context))),
            Arc::new(UInt32Array::from(take(&mut self.position))),
            Arc::new(UInt32Array::from(take(&mut self.token))),
            Arc::new(UInt32Array::from(take(&mut self.active))),
        ])
    }

    /// Completes the file; its length.
    pub fn close(mut self) -> Result<u64> {
        self.flush()?;
        self.table.close()
    }
}

/// `codes-N.parquet`: an active latent of a row a row.
pub(super) struct EntryTable {
    table: Table,
    context: Vec<u64>,
    position: Vec<u32>,
    latent: Vec<u32>,
    value: Vec<f32>,
}

impl EntryTable {
    pub fn create(dir: &Path, number: usize) -> Result<Self> {
        let columns = [
            ("context", DataType::UInt64),
            ("position", DataType::UInt32),
            ("latent", DataType::UInt32),
            ("value", DataType::Float32),
        ];
        Ok(Self {
            // Values hardly repeat.
            table: Table::create(&codes_path(dir, number), &columns, &["value"])?,
            context: Vec::new(),
            position: Vec::new(),
            latent: Vec::new(),
            value: Vec::new(),
        })
    }

    /// Adds the entries of a row, which ascend by latent.
    pub fn push(&mut self, context: u64, position: u32, entries: &[(u32, f32)]) -> Result<()> {
        for &(latent, value) in entries {
            self.context.push(context);
            self.position.push(position);
            self.latent.push(latent);
            self.value.push(value);
            if self.context.len() == BATCH_ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.table.write(vec![
            Arc::new(UInt64Array::from(std::mem::take(&mut self.context))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.position))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.latent))),
            Arc::new(Float32Array::from(std::mem::take(&mut self.value))),
        ])
    }

    /// Completes the file; its length.
    pub fn close(mut self) -> Result<u64> {
        self.flush()?;
        self.table.close()
    }
}

/// A Parquet file that has a temporary name until it is complete, and is removed if it does not come to that.
struct Table {
    path: PathBuf,
    schema: Arc<Schema>,
    /// Absent once it is closed.
    writer: Option<ArrowWriter<BufWriter<File>>>,
}

impl Table {
    /// A file at `path`; the columns `plain` have no dictionary.
    fn create(path: &Path, columns: &[(&str, DataType)], plain: &[&str]) -> Result<Self> {
        let temporary = atomic::temporary(path);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let fields = columns.iter().map(|(name, of)| Field::new(*name, of.clone(), false));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("sae ", env!("CARGO_PKG_VERSION")).into())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS));
        for name in plain {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(*name), false);
        }
        let out = BufWriter::with_capacity(1 << 18, file);
        let writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties.build()));
        Ok(Self {
            path: path.to_owned(),
            writer: Some(writer.map_err(failed(path))?),
            schema,
        })
    }

    fn write(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|e| Error::bad_file(&self.path, format!("cannot be written: {e}")))?;
        let writer = self.writer.as_mut().expect("a table is written before it is closed");
        writer.write(&batch).map_err(failed(&self.path))
    }

    fn close(mut self) -> Result<u64> {
        let temporary = atomic::temporary(&self.path);
        let writer = self.writer.take().expect("a table is closed once");
        let out = writer.into_inner().map_err(failed(&self.path))?;
        let file = out.into_inner().map_err(|e| Error::io(&temporary)(e.into_error()))?;
        file.sync_all().map_err(Error::io(&temporary))?;
        let bytes = file.metadata().map_err(Error::io(&temporary))?.len();
        atomic::publish(&temporary, &self.path)?;
        Ok(bytes)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = fs::remove_file(atomic::temporary(&self.path));
        }
    }
}

/// A failure to write Parquet is one of the disk, or one of ours.
fn failed(path: &Path) -> impl FnOnce(ParquetError) -> Error {
    let path = path.to_owned();
    move |error| match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::io(path)(*source),
            Err(other) => Error::bad_file(path, format!("cannot be written: {other}")),
        },
        other => Error::bad_file(path, format!("cannot be written: {other}")),
    }
}
