//! Parquet: a column of strings, page by page.
//!
//! Values are taken as bytes, below arrow, so that text is checked for UTF-8 as everywhere else and a batch holds no
//! more than the pages it comes from. Sizes that a page claims are checked before they are allocated.

use std::collections::VecDeque;
use std::path::PathBuf;

use parquet::basic::{ConvertedType, Encoding, LogicalType, Type as PhysicalType};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Documents, LONGEST_RECORD, Read, Tally};
use crate::corpus::files::TextFile;
use crate::corpus::input::Opened;
use crate::error::{Error, Result};
use crate::guard::unless_it_panics;

/// Rows read at once.
const ROWS: usize = 64;

/// A Parquet file.
pub(super) struct Parquet {
    label: PathBuf,
    file: SerializedFileReader<Opened>,
    bytes: u64,
    rows: u64,
    column: usize,
    description: ColumnDescPtr,
    /// Row groups to come, each with the number of its first row.
    groups: VecDeque<(usize, u64)>,
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Values read and not given out; `None` is null.
    waiting: VecDeque<Option<ByteArray>>,
    /// Number of the row of the next of them.
    next: u64,
    /// Rows given out.
    done: u64,
}

impl Parquet {
    /// Reads the footer and finds the column. Row groups come in the order of the file, or in one that is drawn.
    pub(super) fn open(file: &TextFile, field: &str, order: Option<ChaCha8Rng>) -> Result<Self> {
        let label = file.label().to_owned();
        let opened = file.open()?;
        let bytes = file.size()?;
        let reader = match bytes {
            0 => Err(ParquetError::EOF("it is empty".into())),
            _ => SerializedFileReader::new(opened),
        };
        let file = reader.map_err(|e| {
            if let Some(remote) = Error::remote_in(&e) {
                return remote;
            }
            let what = "has no Parquet footer: it is truncated, or no Parquet";
            Error::bad_file(&label, format!("{what} ({e})"))
        })?;
        let metadata = file.metadata();
        let column = find(metadata.file_metadata().schema_descr(), field).map_err(|e| Error::bad_file(&label, e))?;
        let description = metadata.file_metadata().schema_descr().column(column);
        let (mut groups, mut rows) = (VecDeque::new(), 0u64);
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let n = u64::try_from(group.num_rows())
                .ok()
                .filter(|n| n.checked_add(rows).is_some());
            let n = n.ok_or_else(|| Error::bad_file(&label, "is damaged: it claims impossible numbers of rows"))?;
            groups.push_back((number, rows));
            rows += n;
        }
        if let Some(mut order) = order {
            groups.make_contiguous().shuffle(&mut order);
        }
        Ok(Self {
            label,
            file,
            bytes,
            rows,
            column,
            description,
            groups,
            reader: None,
            waiting: VecDeque::new(),
            next: 0,
            done: 0,
        })
    }

    /// Reads the next rows; false if there are none. Some of what only a damaged file can violate the library asserts
    /// instead of checking; after that nothing more is read of the file.
    fn fill_if_sound(&mut self) -> ParquetResult<bool> {
        let filled = unless_it_panics(|| self.fill());
        filled.unwrap_or_else(|| Err(ParquetError::General("its pages contradict themselves".into())))
    }

    /// Reads the next rows; false if there are none.
    fn fill(&mut self) -> ParquetResult<bool> {
        while self.waiting.is_empty() {
            let Some(reader) = &mut self.reader else {
                let Some((group, first)) = self.groups.pop_front() else {
                    return Ok(false);
                };
                let pages = self.file.get_row_group(group)?.get_column_page_reader(self.column)?;
                let pages = Box::new(Checked {
                    pages,
                    dictionary: false,
                });
                self.next = first;
                self.reader = match get_column_reader(self.description.clone(), pages) {
                    ColumnReader::ByteArrayColumnReader(reader) => Some(reader),
                    _ => return Err(ParquetError::General("the column holds no strings".into())),
                };
                continue;
            };
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (rows, ..) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
            let most = self.description.max_def_level();
            let mut values = values.into_iter();
            match most {
                0 => self.waiting.extend(values.map(Some)),
                _ => self.waiting.extend(levels.into_iter().map(|level| match level == most {
                    true => values.next(),
                    false => None,
                })),
            }
            if rows == 0 {
                self.reader = None;
            }
        }
        Ok(true)
    }
}

impl Documents for Parquet {
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read> {
        loop {
            let some = self.fill_if_sound().map_err(|e| {
                if let Some(remote) = Error::remote_in(&e) {
                    return remote;
                }
                let what = format!("is damaged or truncated: rows from {} on cannot be read", self.next);
                Error::bad_file(&self.label, format!("{what} ({e})"))
            })?;
            if !some {
                return Ok(Read::End);
            }
            let value = self.waiting.pop_front().flatten();
            self.next += 1;
            self.done += 1;
            match tally.decode(value.as_ref().map_or(&[][..], ByteArray::data)) {
                Ok(value) => {
                    text.push_str(&value);
                    return Ok(Read::Document);
                }
                Err(problem) => tally.bad(&self.label, format!("row {} {problem}", self.next - 1))?,
            }
        }
    }

    fn record(&self) -> u64 {
        self.next - 1
    }

    fn bytes_used(&self, _: u64) -> u64 {
        (u128::from(self.bytes) * u128::from(self.done) / u128::from(self.rows.max(1))) as u64
    }
}

/// The column of a name, `meta.text` for a field of a struct.
fn find(schema: &SchemaDescriptor, field: &str) -> std::result::Result<usize, String> {
    let textual = |column: &ColumnDescPtr| column.physical_type() == PhysicalType::BYTE_ARRAY && is_flat(column);
    let names = |wanted: &dyn Fn(&ColumnDescPtr) -> bool| {
        let names = schema
            .columns()
            .iter()
            .filter(|c| wanted(c))
            .map(|c| format!("{:?}", c.path().string()));
        names.collect::<Vec<_>>().join(", ")
    };
    let Some(column) = schema.columns().iter().position(|c| c.path().string() == field) else {
        let all = names(&|_| true);
        return Err(format!("has no column {field:?}; it has {all}: choose with --field"));
    };
    let found = schema.column(column);
    if !textual(&found) {
        let kind = match is_flat(&found) {
            true => found.physical_type().to_string(),
            false => "lists".into(),
        };
        let strings = match names(&textual) {
            none if none.is_empty() => "no column holds strings".into(),
            some => format!("columns of strings are {some}"),
        };
        return Err(format!(
            "has {kind} in the column {field:?}, expected strings; {strings}"
        ));
    }
    Ok(column)
}

/// Whether a row has one value of a column at most, and that is not a number in disguise.
fn is_flat(column: &ColumnDescPtr) -> bool {
    let number = matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }))
        || column.converted_type() == ConvertedType::DECIMAL;
    column.max_rep_level() == 0 && !number
}

/// Refuses pages that claim more than their bytes can hold, or refer to a dictionary that there is not.
struct Checked {
    pages: Box<dyn PageReader>,
    /// Whether there was a dictionary.
    dictionary: bool,
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.pages.get_next_page()?;
        let Some(found) = &page else { return Ok(None) };
        let bytes = found.buffer().len();
        let refused = |what: String| Err(ParquetError::General(what));
        if bytes as u64 > 4 * LONGEST_RECORD {
            return refused(format!("a page of {bytes} bytes"));
        }
        match found {
            // A string has at least the four bytes of its length.
            Page::DictionaryPage { num_values, .. } if *num_values as usize > bytes / 4 => {
                return refused(format!("a dictionary of {num_values} strings in {bytes} bytes"));
            }
            Page::DictionaryPage { .. } => self.dictionary = true,
            _ => {
                let refers = matches!(found.encoding(), Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY);
                if refers && !self.dictionary {
                    return refused("a page that refers to a dictionary, and none before it".into());
                }
            }
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for Checked {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
