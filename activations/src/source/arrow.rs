//! Arrow streams on disk, as Hugging Face's datasets (and with it SAELens' cache of activations) writes them.
//!
//! A stream is a schema and record batches, each the buffers of its columns one after the other. They are not
//! compressed, so the numbers of a column of equal lists are one run of bytes a batch: opening finds the runs, and
//! reading is then what it is for a store. Nothing is copied. The files are mapped only while they are opened, and of a
//! batch nothing is touched but its table of buffers, and the column's own lengths of lists ([`super::arrow_batch`]).

use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_ipc::{Message, MessageHeader, convert::try_fb_to_schema, root_as_message};
use arrow_schema::Schema;

use super::arrow_batch::numbers;
use super::columns::{ColumnKind, choose, column};
use super::nested::{Checked, Leaf};
use super::rows::Run;
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::mapped;

/// Begins every message but those of files written before 2019.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// A column of some files, found.
pub(super) struct Found {
    pub column: String,
    pub dtype: ActDtype,
    pub d_in: usize,
    /// Rows of the activations in a row of the files.
    pub context_rows: u64,
    pub runs: Vec<Run>,
    /// Rows of the activations in each file.
    pub rows: Vec<u64>,
    /// Lengths of the lists of a row.
    lengths: Vec<usize>,
}

/// Finds a column in `files`, the one named `wanted` or the only one that holds activations.
pub(super) fn find(path: &Path, files: &[PathBuf], wanted: Option<&str>, asked: Option<ActDtype>) -> Result<Found> {
    let mut found: Option<Found> = None;
    for (number, file) in files.iter().enumerate() {
        let bytes = mapped::map(file)?;
        let here = |problem: String| Error::bad_file(file, problem);
        let (mut stream, schema) = Stream::begin(&bytes).map_err(here)?;
        let name = match &found {
            Some(found) => found.column.clone(),
            None => schema.field(choose(path, &schema, wanted)?).name().clone(),
        };
        let (at, kind) = column(&schema, &name, asked).map_err(here)?;
        let (mut rows_here, mut row) = (0, 0);
        while let Some((message, body)) = stream.next().map_err(here)? {
            let bad = |problem: String| here(format!("column {name}: {problem}"));
            let Some(batch) = message.header_as_record_batch().filter(|batch| batch.length() > 0) else {
                continue;
            };
            let numbers = numbers(batch, &schema, at, &bytes[body.clone()], row).map_err(bad)?;
            let found = match &mut found {
                Some(found) => found,
                none => none.insert(Found::new(&name, kind, &numbers.lengths).map_err(bad)?),
            };
            if found.lengths != numbers.lengths || found.dtype != kind.dtype {
                return Err(bad(format!(
                    "row {row} is of shape {:?} in {}, and the ones before it of {:?} in {}: all must be alike",
                    numbers.lengths, kind.dtype, found.lengths, found.dtype
                )));
            }
            let rows = numbers.bytes.len() / (found.d_in * kind.dtype.size());
            found.runs.push(Run {
                file: number,
                offset: (body.start + numbers.bytes.start) as u64,
                rows: rows as u64,
            });
            rows_here += rows as u64;
            row += batch.length() as u64;
        }
        if let Some(found) = &mut found {
            found.rows.resize(number, 0);
            found.rows.push(rows_here);
        }
    }
    found.ok_or_else(|| Error::bad_file(path, "has no rows: there is nothing in it"))
}

impl Found {
    fn new(column: &str, kind: ColumnKind, lengths: &[usize]) -> Checked<Self> {
        if kind.leaf == Leaf::F64 {
            return Err("holds float64: cast it to float32 (`dataset.cast_column`) or save Parquet".into());
        }
        let (d_in, context_rows) = kind.shape(lengths)?;
        Ok(Self {
            column: column.to_owned(),
            dtype: kind.dtype,
            d_in,
            context_rows,
            runs: Vec::new(),
            rows: Vec::new(),
            lengths: lengths.to_vec(),
        })
    }
}

/// The schema of a stream's file.
pub(super) fn schema(file: &Path) -> Result<Schema> {
    let bytes = mapped::map(file)?;
    let begun = Stream::begin(&bytes).map(|(_, schema)| schema);
    begun.map_err(|problem| Error::bad_file(file, problem))
}

/// The messages of a stream behind its schema.
struct Stream<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Stream<'a> {
    /// Reads the schema.
    fn begin(file: &'a [u8]) -> Checked<(Self, Schema)> {
        if file.starts_with(b"ARROW1") {
            return Err(
                "is an Arrow file of the random-access kind, expected a stream as datasets writes it: \
                        save Parquet instead"
                    .into(),
            );
        }
        let mut stream = Self { file, at: 0 };
        let first = stream.next()?.and_then(|(message, _)| message.header_as_schema());
        let schema = first.ok_or("is not an Arrow stream: it does not begin with a schema")?;
        let schema = try_fb_to_schema(schema).map_err(|e| format!("has a schema that cannot be read: {e}"))?;
        Ok((stream, schema))
    }

    /// The next message with the place of its body in the file; `None` at the end.
    fn next(&mut self) -> Checked<Option<(Message<'a>, Range<usize>)>> {
        let truncated = || {
            format!(
                "is a truncated Arrow stream: it ends within a message, at byte {}",
                self.file.len()
            )
        };
        let rest = &self.file[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let marker = if rest.starts_with(&CONTINUATION) { 4 } else { 0 };
        let length: [u8; 4] = *rest[marker..].first_chunk().ok_or_else(truncated)?;
        let start = marker + 4;
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            // What datasets writes ends here.
            self.at = self.file.len();
            return Ok(None);
        }
        let meta = rest.get(start..start.saturating_add(length)).ok_or_else(truncated)?;
        let message = root_as_message(meta)
            .map_err(|e| format!("is a damaged Arrow stream: message at byte {}: {e}", self.at))?;
        let body = self.at + start + length;
        let end = usize::try_from(message.bodyLength())
            .ok()
            .and_then(|n| body.checked_add(n));
        let end = end.filter(|&end| end <= self.file.len()).ok_or_else(truncated)?;
        self.at = end;
        match message.header_type() {
            MessageHeader::Schema | MessageHeader::RecordBatch | MessageHeader::DictionaryBatch => {
                Ok(Some((message, body..end)))
            }
            other => Err(format!("has a message that is no batch: {other:?}")),
        }
    }
}
