//! Writing one shard: a file of contexts and a file of activation rows.
//!
//! Both have temporary names until they are complete and on the disk; the file of activations gets its name last. A
//! shard is therefore there as a whole when its activations are.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::{ByteArray, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use sha2::{Digest, Sha256};

use super::columns::{acts_properties, acts_schema};
use super::context_table::encode_contexts;
use super::manifest::{ShardEntry, acts_path, contexts_path};
use super::spec::StoreSpec;
use crate::atomic;
use crate::context::{Context, RowRef};
use crate::error::{Error, Result};
use crate::source::hex;

/// Every how many rows one goes into the sample's digest.
pub(crate) const SAMPLE_EVERY: u64 = 64;
/// Key of the sample's digest in the file of activations.
pub(crate) const SAMPLE_KEY: &str = "sae.sample_sha256";

/// A shard that is being written.
pub(crate) struct ShardWriter {
    spec: Arc<StoreSpec>,
    dir: PathBuf,
    number: usize,
    first_context: u64,
    /// Absent once it is closed.
    file: Option<SerializedFileWriter<BufWriter<File>>>,
    contexts: Vec<Context>,
    group: Group,
    n_rows: u64,
    /// One digest a hook.
    samples: Vec<Sha256>,
}

/// Rows that wait until there are enough for a row group.
struct Group {
    context: Vec<i64>,
    position: Vec<i32>,
    token: Vec<i32>,
    /// Encoded activations, one buffer a hook.
    acts: Vec<Vec<u8>>,
}

impl ShardWriter {
    /// Starts shard `number`.
    pub fn create(dir: &Path, number: usize, spec: &Arc<StoreSpec>) -> Result<Self> {
        let path = acts_path(dir, number);
        let temporary = atomic::temporary(&path);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        // Far smaller than a page: pages go to the file without another copy.
        let out = BufWriter::with_capacity(1 << 16, file);
        let properties = Arc::new(acts_properties(spec, number));
        let file = SerializedFileWriter::new(out, acts_schema(spec)?, properties).map_err(parquet_error(&temporary))?;
        let rows = spec.group_rows();
        Ok(Self {
            spec: Arc::clone(spec),
            dir: dir.to_owned(),
            number,
            first_context: number as u64 * spec.contexts_per_shard,
            file: Some(file),
            contexts: Vec::new(),
            group: Group {
                context: Vec::with_capacity(rows),
                position: Vec::with_capacity(rows),
                token: Vec::with_capacity(rows),
                acts: vec![Vec::new(); spec.hooks.len()],
            },
            n_rows: 0,
            samples: vec![Sha256::new(); spec.hooks.len()],
        })
    }

    /// Contexts that may still be added.
    pub fn room(&self) -> usize {
        self.spec.contexts_per_shard as usize - self.contexts.len()
    }

    /// Adds whole contexts; the writer of the store has checked everything. `rows` count contexts from `first`.
    pub fn push(&mut self, contexts: &[Context], first: u32, rows: &[RowRef], acts: &[&[f32]]) -> Result<()> {
        let mut done = 0;
        while done < rows.len() {
            let room = self.spec.group_rows() - self.group.context.len();
            let now = done..(done + room).min(rows.len());
            for row in &rows[now.clone()] {
                let context = &contexts[(row.context - first) as usize];
                self.group.context.push(context.index as i64);
                self.group.position.push(row.position as i32);
                self.group.token.push(context.tokens[row.position as usize] as i32);
            }
            for (hook, acts) in acts.iter().enumerate() {
                let d_in = self.spec.hooks[hook].d_in;
                self.encode(hook, &acts[now.start * d_in..now.end * d_in], done);
            }
            done = now.end;
            if self.group.context.len() == self.spec.group_rows() {
                self.flush()?;
            }
        }
        self.n_rows += rows.len() as u64;
        self.contexts.extend_from_slice(contexts);
        Ok(())
    }

    /// Encodes rows of a hook, the first of which is the `done`th of this push.
    fn encode(&mut self, hook: usize, values: &[f32], done: usize) {
        let out = &mut self.group.acts[hook];
        let d_in = self.spec.hooks[hook].d_in;
        let width = self.spec.dtype.row_bytes(d_in);
        let (start, first_row) = (out.len(), self.n_rows + done as u64);
        self.spec.dtype.encode_rows(values, d_in, out);
        let skip = (first_row.next_multiple_of(SAMPLE_EVERY) - first_row) as usize;
        for row in out[start..]
            .chunks_exact(width)
            .skip(skip)
            .step_by(SAMPLE_EVERY as usize)
        {
            self.samples[hook].update(row);
        }
    }

    /// Writes the waiting rows as a row group.
    fn flush(&mut self) -> Result<()> {
        if self.group.context.is_empty() {
            return Ok(());
        }
        let path = atomic::temporary(&acts_path(&self.dir, self.number));
        let file = self.file.as_mut().expect("rows are pushed before the shard is closed");
        write_group(file, &self.spec, &mut self.group).map_err(parquet_error(&path))
    }

    /// Completes both files and gives them their names.
    pub fn close(mut self) -> Result<ShardEntry> {
        self.flush()?;
        let path = acts_path(&self.dir, self.number);
        let temporary = atomic::temporary(&path);
        let mut all = Sha256::new();
        for sample in self.samples.drain(..) {
            all.update(sample.finalize());
        }
        let sample_sha256 = hex(&all.finalize());
        let mut file = self.file.take().expect("a shard is closed once");
        file.append_key_value_metadata(KeyValue::new(SAMPLE_KEY.to_owned(), sample_sha256.clone()));
        let out = file.into_inner().map_err(parquet_error(&temporary))?;
        let out = out.into_inner().map_err(|e| Error::io(&temporary)(e.into_error()))?;
        out.sync_all().map_err(Error::io(&temporary))?;
        let acts_bytes = out.metadata().map_err(Error::io(&temporary))?.len();

        let contexts = encode_contexts(&self.spec, self.number, &self.contexts)?;
        atomic::write(&contexts_path(&self.dir, self.number), &contexts)?;
        atomic::publish(&temporary, &path)?;
        Ok(ShardEntry {
            first_context: self.first_context,
            n_contexts: self.contexts.len() as u64,
            n_tokens: self.contexts.iter().map(|c| c.tokens.len() as u64).sum(),
            n_rows: self.n_rows,
            acts_bytes,
            contexts_bytes: contexts.len() as u64,
            contexts_sha256: hex(&Sha256::digest(&contexts)),
            sample_sha256,
        })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // What is left of a shard that was not closed is litter: it is written anew.
        drop(self.file.take());
        let _ = fs::remove_file(atomic::temporary(&acts_path(&self.dir, self.number)));
    }
}

/// One row group: the three keys, then a column a hook. Empties `group` and keeps its memory.
fn write_group(
    file: &mut SerializedFileWriter<BufWriter<File>>,
    spec: &StoreSpec,
    group: &mut Group,
) -> std::result::Result<(), ParquetError> {
    let mut out = file.next_row_group()?;
    write_column::<Int64Type>(&mut out, &group.context)?;
    write_column::<Int32Type>(&mut out, &group.position)?;
    write_column::<Int32Type>(&mut out, &group.token)?;
    for (hook, acts) in spec.hooks.iter().zip(&mut group.acts) {
        let width = spec.dtype.row_bytes(hook.d_in);
        let bytes = Bytes::from(std::mem::take(acts));
        // References into the buffer, not copies of it.
        let values: Vec<FixedLenByteArray> = (0..bytes.len() / width)
            .map(|row| ByteArray::from(bytes.slice(row * width..(row + 1) * width)).into())
            .collect();
        write_column::<FixedLenByteArrayType>(&mut out, &values)?;
        drop(values);
        *acts = Vec::from(bytes);
        acts.clear();
    }
    out.close()?;
    group.context.clear();
    group.position.clear();
    group.token.clear();
    Ok(())
}

fn write_column<T: parquet::data_type::DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<File>>,
    values: &[T::T],
) -> std::result::Result<(), ParquetError> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns than are written".into()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// A failure to write Parquet is one of the disk, or one of ours.
fn parquet_error(path: &Path) -> impl FnOnce(ParquetError) -> Error {
    let path = path.to_owned();
    move |error| match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::Io { path, source: *source },
            Err(other) => Error::bad_file(path, format!("cannot be written: {other}")),
        },
        other => Error::bad_file(path, format!("cannot be written: {other}")),
    }
}
