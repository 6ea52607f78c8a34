//! Reading one shard: finding where the values of a column lie in its file.
//!
//! A shard's columns are required and plain, and most are uncompressed, so the values of a page are simply its bytes.
//! Opening a shard reads its footer and the headers of the pages that are wanted, checks all of it against the file's
//! length and the manifest, and keeps positions; reading rows is then reading bytes. Of a compressed column the offset
//! index says where pages lie; their headers are looked at when they are decoded, since there are sixteen times as many.
//! The file is mapped only while it is opened.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Type as PhysicalType};
use parquet::file::metadata::{
    ColumnChunkMask, ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader,
};
use parquet::file::serialized_reader::SerializedPageReader;
use sha2::{Digest, Sha256};

use super::columns::{KEYS, acts_columns};
use super::context_table::decode_contexts;
use super::manifest::{FORMAT, ShardEntry, acts_path, contexts_path};
use super::shard_writer::SAMPLE_KEY;
use super::spec::StoreSpec;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::guard::unless_it_panics;
use crate::mapped;
use crate::source::hex;
use crate::source::pages::plain_page;
use crate::source::rows::Run;

/// The longest page that is decoded, in bytes of values: a row at least, and far more than the writer makes.
const MAX_PAGE_BYTES: u64 = 256 << 20;

/// A result whose error is the problem with a file that the caller names.
pub(crate) type Checked<T> = std::result::Result<T, String>;

/// Where the values of a column are in a shard.
#[derive(Default)]
pub(crate) struct Found {
    /// Runs of values, or compressed pages.
    pub runs: Vec<Run>,
    /// Bytes of each page, of a column that is compressed.
    pub sizes: Vec<u32>,
}

impl Found {
    /// Adds those of the next shard.
    pub fn extend(&mut self, next: Self) {
        self.runs.extend(next.runs);
        self.sizes.extend(next.sizes);
    }
}

/// The values of the columns numbered `columns` of shard `number`, as runs of the store's file `number`.
pub(crate) fn column_runs(
    dir: &Path,
    number: usize,
    spec: &StoreSpec,
    entry: &ShardEntry,
    columns: &[usize],
) -> Result<Vec<Found>> {
    let path = acts_path(dir, number);
    let file = open(&path, entry.acts_bytes)?;
    let find = || {
        let compressed = |column: usize| spec.compression.is_some() && column >= KEYS.len();
        let packed: Vec<usize> = columns.iter().copied().filter(|&column| compressed(column)).collect();
        let footer = match packed.is_empty() {
            true => read_footer(&file)?,
            false => read_index(&file, packed)?,
        };
        check_schema(&footer, spec)?;
        let rows = footer.file_metadata().num_rows();
        if rows as u64 != entry.n_rows {
            return Err(format!("has {rows} rows, expected {}", entry.n_rows));
        }
        let widths = acts_columns(spec);
        columns
            .iter()
            .map(|&column| match compressed(column) {
                true => find_pages(&file, &footer, column, widths[column].2, number),
                false => find_runs(&file, &footer, column, widths[column].2, number),
            })
            .collect::<Checked<Vec<_>>>()
    };
    find().map_err(|problem| Error::bad_file(&path, problem))
}

/// Maps a file of a store and checks its length.
fn open(path: &Path, expected: u64) -> Result<Bytes> {
    if !path.exists() {
        return Err(Error::bad_file(path, "is missing: the store's manifest lists it"));
    }
    let file = mapped::map(path)?;
    check_length(file.len() as u64, expected).map_err(|problem| Error::bad_file(path, problem))?;
    Ok(file)
}

/// Whether a file is as long as the manifest says.
pub(crate) fn check_length(found: u64, expected: u64) -> Checked<()> {
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(format!(
            "is truncated: it has {found} bytes and the store's manifest says {expected}"
        )),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(format!(
            "has {found} bytes and the store's manifest says {expected}: it is another file"
        )),
    }
}

/// Reads the footer of a Parquet file.
pub(crate) fn read_footer(file: &Bytes) -> Checked<ParquetMetaData> {
    if !file.starts_with(b"PAR1") {
        return Err("is not a Parquet file".into());
    }
    ParquetMetaDataReader::new()
        .parse_and_finish(file)
        .map_err(|e| format!("is a damaged Parquet file: {e}"))
}

/// Reads the footer of a Parquet file and where the pages of some columns are. The decoder may panic on a damaged index instead of
/// giving an error; both are the same news to a user.
fn read_index(file: &Bytes, columns: Vec<usize>) -> Checked<ParquetMetaData> {
    read_footer(file)?;
    let read = || {
        let reader = ParquetMetaDataReader::new()
            .with_offset_index_policy(PageIndexPolicy::Required)
            .with_offset_index_mask(ColumnChunkMask::columns(columns));
        reader.parse_and_finish(file).map_err(|e| e.to_string())
    };
    unless_it_panics(read)
        .unwrap_or_else(|| Err("its index panics".into()))
        .map_err(|e| format!("is a damaged Parquet file: {e}"))
}

/// The value of a key in a footer.
fn key<'a>(footer: &'a ParquetMetaData, key: &str) -> Option<&'a str> {
    let entries = footer.file_metadata().key_value_metadata()?;
    entries.iter().find(|e| e.key == key)?.value.as_deref()
}

/// Refuses a file that has not exactly the columns of the specification.
fn check_schema(footer: &ParquetMetaData, spec: &StoreSpec) -> Checked<()> {
    if key(footer, "sae.format") != Some(FORMAT) {
        return Err(format!(
            "is Parquet from elsewhere: there is no sae.format = {FORMAT} in its metadata"
        ));
    }
    let schema = footer.file_metadata().schema_descr();
    let expected = acts_columns(spec);
    if schema.num_columns() != expected.len() {
        return Err(format!(
            "has {} columns, expected {}",
            schema.num_columns(),
            expected.len()
        ));
    }
    for (column, (name, of, width)) in schema.columns().iter().zip(&expected) {
        let fixed = *of == PhysicalType::FIXED_LEN_BYTE_ARRAY;
        let same = column.path().parts() == [name.as_str()]
            && column.physical_type() == *of
            && (!fixed || column.type_length() == *width as i32)
            && column.max_def_level() == 0
            && column.max_rep_level() == 0;
        if !same {
            let of_bytes = |fixed: bool, bytes: usize| {
                if fixed {
                    format!(" of {bytes} bytes")
                } else {
                    String::new()
                }
            };
            let found = column.physical_type();
            return Err(format!(
                "has the column {} of {found}{}, expected {name} of required {of}{}",
                column.path(),
                of_bytes(
                    found == PhysicalType::FIXED_LEN_BYTE_ARRAY,
                    column.type_length().max(0) as usize
                ),
                of_bytes(fixed, *width)
            ));
        }
    }
    Ok(())
}

/// Where the values of a column are.
fn find_runs(file: &Bytes, footer: &ParquetMetaData, column: usize, width: usize, number: usize) -> Checked<Found> {
    let mut runs = Vec::new();
    let mut total = 0;
    for (at, group) in footer.row_groups().iter().enumerate() {
        let meta = group.column(column);
        let name = meta.column_path().string();
        let rows = check_chunk(meta, group.num_rows(), file.len())
            .and_then(|rows| check_plain(meta, rows, width).map(|()| rows))
            .map_err(|problem| format!("column {name} of row group {at} {problem}"))?;
        let pages = SerializedPageReader::new(Arc::new(file.clone()), meta, rows, None);
        let damaged = |e| format!("column {name} of row group {at} has damaged pages: {e}");
        let mut found = 0;
        for page in pages.map_err(damaged)? {
            let (values, bytes) = plain_page(page.map_err(damaged)?)
                .map_err(|problem| format!("column {name} of row group {at} {problem}"))?;
            if bytes.len() as u64 != values * width as u64 {
                return Err(format!(
                    "column {name} of row group {at} has a page of {values} values of {width} bytes in {} bytes",
                    bytes.len()
                ));
            }
            found += values;
            runs.push(Run {
                file: number,
                // Pages that are not compressed are slices of the file itself.
                offset: (bytes.as_ptr() as usize - file.as_ptr() as usize) as u64,
                rows: values,
            });
        }
        if found != rows as u64 {
            return Err(format!(
                "column {name} of row group {at} has {found} values, expected {rows}"
            ));
        }
        total += found;
    }
    check_total(footer, total)?;
    runs.retain(|run| run.rows > 0);
    Ok(Found {
        runs,
        sizes: Vec::new(),
    })
}

/// Where the compressed pages of a column are.
fn find_pages(file: &Bytes, footer: &ParquetMetaData, column: usize, width: usize, number: usize) -> Checked<Found> {
    let mut found = Found::default();
    let mut total = 0;
    for (at, group) in footer.row_groups().iter().enumerate() {
        let meta = group.column(column);
        let name = meta.column_path().string();
        let here = |problem: String| format!("column {name} of row group {at} {problem}");
        let rows = check_chunk(meta, group.num_rows(), file.len()).map_err(here)? as u64;
        if !matches!(meta.compression(), Compression::ZSTD(_)) {
            return Err(here(format!(
                "is not compressed with zstd but {}, and the manifest says otherwise",
                meta.compression()
            )));
        }
        let index = footer.page_index_for_row_group(at);
        let pages = index.page_locations(column);
        let pages = pages.ok_or_else(|| here("has no offset index: its pages cannot be found".into()))?;
        let mut expected = meta.data_page_offset();
        for (nth, page) in pages.iter().enumerate() {
            let end = pages.get(nth + 1).map_or(rows as i64, |next| next.first_row_index);
            let of_page = end.checked_sub(page.first_row_index).filter(|&n| n > 0);
            let fits = (nth > 0 || page.first_row_index == 0) && page.first_row_index < rows as i64;
            let (Some(n), true) = (
                of_page,
                fits && page.offset == expected && page.compressed_page_size > 0,
            ) else {
                return Err(here("has an offset index that contradicts itself".into()));
            };
            if (n as u64).saturating_mul(width as u64) > MAX_PAGE_BYTES {
                return Err(here(format!(
                    "has a page of {n} values of {width} bytes: no page is so long"
                )));
            }
            expected += i64::from(page.compressed_page_size);
            found.runs.push(Run {
                file: number,
                offset: page.offset as u64,
                rows: n as u64,
            });
            found.sizes.push(page.compressed_page_size as u32);
        }
        if expected != meta.data_page_offset() + meta.compressed_size() || (pages.is_empty() && rows > 0) {
            return Err(here("has an offset index that contradicts its length".into()));
        }
        total += rows;
    }
    check_total(footer, total)?;
    Ok(found)
}

/// Whether all row groups together have as many rows as the file says.
fn check_total(footer: &ParquetMetaData, total: u64) -> Checked<()> {
    match total == footer.file_metadata().num_rows() as u64 {
        true => Ok(()),
        false => Err(format!(
            "has {total} rows in its row groups, and its footer says otherwise"
        )),
    }
}

/// Checks the position of a column chunk before anything is read from it; returns its number of values.
fn check_chunk(meta: &ColumnChunkMetaData, rows: i64, file_len: usize) -> Checked<usize> {
    let rows = usize::try_from(rows).map_err(|_| format!("has {rows} rows"))?;
    if meta.num_values() != rows as i64 {
        return Err(format!("has {} values in {rows} rows", meta.num_values()));
    }
    if meta.dictionary_page_offset().is_some() {
        return Err("has a dictionary: stores have plain values".into());
    }
    let (start, length) = (meta.data_page_offset(), meta.compressed_size());
    let end = start.checked_add(length).filter(|_| start >= 4 && length >= 0);
    if end.is_none_or(|end| end as u64 > file_len as u64) {
        return Err(format!(
            "lies at {start} with {length} bytes, outside of the file's {file_len}"
        ));
    }
    Ok(rows)
}

/// Checks that a column chunk is not compressed, and as long as its values are.
fn check_plain(meta: &ColumnChunkMetaData, rows: usize, width: usize) -> Checked<()> {
    if meta.compression() != Compression::UNCOMPRESSED {
        return Err(format!(
            "is compressed ({}): the manifest says that it is not",
            meta.compression()
        ));
    }
    let length = meta.compressed_size();
    match (length as u64) < (rows as u64).saturating_mul(width as u64) {
        false => Ok(()),
        true => Err(format!(
            "has {length} bytes, too few for {rows} values of {width} bytes"
        )),
    }
}

/// Reads all contexts of a shard.
pub(crate) fn read_contexts(dir: &Path, number: usize, spec: &StoreSpec, entry: &ShardEntry) -> Result<Vec<Context>> {
    let path = contexts_path(dir, number);
    let file = open(&path, entry.contexts_bytes)?;
    if hex(&Sha256::digest(&file)) != entry.contexts_sha256 {
        return Err(Error::bad_file(
            &path,
            "is damaged: its digest is not the one in the store's manifest",
        ));
    }
    let contexts = decode_contexts(file).and_then(|contexts| check_contexts(contexts, spec, entry));
    contexts.map_err(|problem| Error::bad_file(&path, problem))
}

/// Whether contexts are the ones that the manifest lists.
fn check_contexts(contexts: Vec<Context>, spec: &StoreSpec, entry: &ShardEntry) -> Checked<Vec<Context>> {
    let tokens: u64 = contexts.iter().map(|c| c.tokens.len() as u64).sum();
    if (contexts.len() as u64, tokens) != (entry.n_contexts, entry.n_tokens) {
        return Err(format!(
            "has {} contexts of {tokens} tokens, expected {} of {}",
            contexts.len(),
            entry.n_contexts,
            entry.n_tokens
        ));
    }
    for (expected, context) in (entry.first_context..).zip(&contexts) {
        if context.index != expected || context.tokens.len() > spec.context_length {
            return Err(format!(
                "has context {} of {} tokens, expected {expected} of at most {}",
                context.index,
                context.tokens.len(),
                spec.context_length
            ));
        }
    }
    Ok(contexts)
}

/// What a shard without a manifest is, for a harvest that continues; `None` if it is not whole.
pub(crate) fn survey(dir: &Path, number: usize, spec: &StoreSpec) -> Option<ShardEntry> {
    let acts = mapped::map(&acts_path(dir, number)).ok()?;
    let file = mapped::map(&contexts_path(dir, number)).ok()?;
    let footer = read_footer(&acts).ok()?;
    let contexts = decode_contexts(file.clone()).ok()?;
    let entry = ShardEntry {
        first_context: number as u64 * spec.contexts_per_shard,
        n_contexts: contexts.len() as u64,
        n_tokens: contexts.iter().map(|c| c.tokens.len() as u64).sum(),
        n_rows: footer.file_metadata().num_rows() as u64,
        acts_bytes: acts.len() as u64,
        contexts_bytes: file.len() as u64,
        contexts_sha256: hex(&Sha256::digest(&file)),
        sample_sha256: key(&footer, SAMPLE_KEY)?.to_owned(),
    };
    check_contexts(contexts, spec, &entry).ok()?;
    let every: Vec<usize> = (0..acts_columns(spec).len()).collect();
    column_runs(dir, number, spec, &entry, &every).ok()?;
    Some(entry)
}
