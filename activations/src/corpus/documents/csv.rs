//! Comma-separated values: a line of column names, then a record a row.

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};

use super::{Documents, LONGEST_RECORD, Limited, Read, Tally};
use crate::corpus::input::Input;
use crate::error::{Error, Result};

/// A file of comma-separated values.
pub(super) struct Csv {
    reader: Reader<Limited>,
    /// Number of the column with the text.
    column: usize,
    record: ByteRecord,
    /// Number of the next row, from 0, the line of names not counted.
    next: u64,
}

impl Csv {
    /// Reads the column names.
    pub(super) fn open(input: Input, field: &str) -> Result<Self> {
        let label = input.label().to_owned();
        let mut reader = ReaderBuilder::new().from_reader(Limited::new(input));
        let names = match reader.byte_headers() {
            Ok(names) => names.clone(),
            Err(e) => return Err(explain(&reader, e)),
        };
        let shown = |name: &[u8]| format!("{:?}", String::from_utf8_lossy(name));
        let column = names.iter().position(|name| name == field.as_bytes());
        // A file without a byte has no rows either.
        if column.is_none() && !names.is_empty() {
            let all: Vec<String> = names.iter().map(shown).collect();
            return Err(Error::bad_file(
                label,
                format!(
                    "has no column {field:?}; it has {}: choose with --field",
                    all.join(", ")
                ),
            ));
        }
        Ok(Self {
            reader,
            column: column.unwrap_or_default(),
            record: ByteRecord::new(),
            next: 0,
        })
    }
}

impl Documents for Csv {
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read> {
        loop {
            self.reader.get_mut().reset();
            let read = self.reader.read_byte_record(&mut self.record);
            self.next += 1;
            let problem = match read {
                Ok(false) => return Ok(Read::End),
                Ok(true) => match tally.decode(self.record.get(self.column).unwrap_or_default()) {
                    Ok(field) => {
                        text.push_str(&field);
                        return Ok(Read::Document);
                    }
                    Err(problem) => {
                        let line = self.record.position().map_or(0, csv::Position::line);
                        format!("row {} in line {line} {problem}", self.next - 1)
                    }
                },
                Err(e) => match e.kind() {
                    ErrorKind::UnequalLengths { pos, expected_len, len } => format!(
                        "row {} in line {} has {len} columns, expected {expected_len}",
                        self.next - 1,
                        pos.as_ref().map_or(0, csv::Position::line)
                    ),
                    _ => return Err(explain(&self.reader, e)),
                },
            };
            tally.bad(self.reader.get_ref().input.label(), problem)?;
        }
    }

    fn record(&self) -> u64 {
        self.next - 1
    }

    fn bytes_used(&self, waiting: u64) -> u64 {
        let used = self.reader.position().byte();
        self.reader.get_ref().input.share(used.saturating_sub(waiting))
    }
}

/// The error of this library for one of reading.
fn explain(reader: &Reader<Limited>, error: csv::Error) -> Error {
    let input = &reader.get_ref().input;
    let line = reader.position().line();
    match error.into_kind() {
        ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::FileTooLarge => Error::bad_file(
            input.label(),
            format!(
                "the row that begins in line {line} is longer than {LONGEST_RECORD} bytes: is a quote never closed?"
            ),
        ),
        ErrorKind::Io(e) => input.error(e),
        other => Error::bad_file(input.label(), format!("line {line} cannot be read: {other:?}")),
    }
}
