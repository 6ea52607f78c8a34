//! What every format of text has in common: documents one after the other, each in parts.
//!
//! The one decision: **a reader appends text to a buffer of the caller's and says where documents end.** Plain text
//! comes in blocks, so that a file of any size is one document in bounded memory; records come whole, because nobody
//! can know that a record is sound before its end. What is wrong with a record is judged in one place, [`Tally`].

mod csv;
mod json;
mod parquet;
mod plain;

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use super::files::TextFile;
use super::format::Format;
use super::input::Input;
use super::order::generator;
use super::{InvalidUtf8, Reading};
use crate::error::{Error, Result};

/// The longest record, in bytes: one is held in memory whole. A quote that is never closed would else be the whole file.
const LONGEST_RECORD: u64 = 256 << 20;

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Some text of the present document, which may go on.
    Text,
    /// The rest of the present document, perhaps nothing.
    Document,
    /// Nothing: the file is at its end.
    End,
}

/// The documents of one file.
pub(super) trait Documents: Send {
    /// Appends the next text of the present document to `text`.
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read>;

    /// Which record of the file the text read last is of, from 0: a line, a row, an element.
    fn record(&self) -> u64;

    /// Bytes of the file that were used up, about, if `waiting` bytes of the text given out have not been.
    fn bytes_used(&self, waiting: u64) -> u64;
}

/// Opens a file, the `nth` of its corpus, as what it is.
pub(super) fn open(file: &TextFile, reading: &Reading, nth: u64) -> Result<Box<dyn Documents>> {
    let field = reading.field.as_str();
    Ok(match file.format() {
        Format::Txt => Box::new(plain::Plain::new(Input::open(file)?)),
        Format::Jsonl => Box::new(json::Lines::new(Input::open(file)?, field)),
        Format::Json => json::open(file, field)?,
        Format::Csv => Box::new(csv::Csv::open(Input::open(file)?, field)?),
        Format::Parquet => {
            let order = reading.seed.map(|seed| generator(seed, nth));
            Box::new(parquet::Parquet::open(file, field, order)?)
        }
    })
}

/// Whether files of a format have fields, one of which is the text.
pub(super) fn has_fields(format: Format) -> bool {
    format != Format::Txt
}

/// What is done about bad records, and how many there were.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    invalid_utf8: InvalidUtf8,
    skip_bad: bool,
    /// Invalid sequences replaced.
    pub replaced: u64,
    /// Records left out.
    pub bad: u64,
    /// What was wrong with the first of them.
    pub first_bad: Option<String>,
}

impl Tally {
    pub(super) fn new(reading: &Reading) -> Self {
        Self {
            invalid_utf8: reading.invalid_utf8,
            skip_bad: reading.skip_bad,
            ..Self::default()
        }
    }

    /// Counts a record that is not what it should be, or makes an error of it.
    fn bad(&mut self, label: &Path, problem: String) -> Result<()> {
        if !self.skip_bad {
            return Err(Error::bad_file(
                label,
                format!("{problem} (--skip-bad leaves such records out and counts them)"),
            ));
        }
        self.bad += 1;
        self.first_bad
            .get_or_insert_with(|| format!("{}: {problem}", label.display()));
        Ok(())
    }

    /// The text of a record's bytes; what is wrong with them if they are not UTF-8 and may not be replaced.
    fn decode<'a>(&mut self, bytes: &'a [u8]) -> std::result::Result<Cow<'a, str>, String> {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => return Ok(text.into()),
            Err(error) => error,
        };
        if self.invalid_utf8 == InvalidUtf8::Refuse {
            let at = error.valid_up_to();
            return Err(format!(
                "is not UTF-8 at its byte {at} (0x{:02X}): convert the file, or ask for invalid bytes to be replaced",
                bytes[at]
            ));
        }
        self.replaced += bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count() as u64;
        Ok(String::from_utf8_lossy(bytes))
    }
}

/// The lines of a file as bytes, none longer than a record may be.
struct ByteLines {
    input: BufReader<Input>,
    /// Bytes of the lines so far.
    used: u64,
}

/// A line read by [`ByteLines`].
enum ByteLine {
    /// It is in the buffer, without its line break.
    Whole,
    /// It was too long, and left out.
    TooLong,
    /// There are no more.
    End,
}

impl ByteLines {
    fn new(input: Input) -> Self {
        Self {
            input: BufReader::with_capacity(128 << 10, input),
            used: 0,
        }
    }

    fn label(&self) -> &Path {
        self.input.get_ref().label()
    }

    fn bytes_used(&self, waiting: u64) -> u64 {
        self.input.get_ref().share(self.used.saturating_sub(waiting))
    }

    /// Puts the next line into `line`.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<ByteLine> {
        let mut too_long = false;
        loop {
            line.clear();
            line.shrink_to(1 << 20);
            let read = self.input.by_ref().take(LONGEST_RECORD).read_until(b'\n', line);
            let read = read.map_err(|e| self.input.get_ref().error(e))? as u64;
            let first = self.used == 0;
            self.used += read;
            let ended = line.last() == Some(&b'\n') || read < LONGEST_RECORD;
            if !ended {
                too_long = true;
                continue;
            }
            if too_long {
                return Ok(ByteLine::TooLong);
            }
            if read == 0 {
                return Ok(ByteLine::End);
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if first && line.starts_with("\u{feff}".as_bytes()) {
                line.drain(..3);
            }
            return Ok(ByteLine::Whole);
        }
    }
}

/// A stream that ends with an error where a record becomes too long.
struct Limited {
    input: Input,
    left: u64,
}

impl Limited {
    fn new(input: Input) -> Self {
        Self {
            input,
            left: LONGEST_RECORD,
        }
    }

    /// The next record may be as long as any.
    fn reset(&mut self) {
        self.left = LONGEST_RECORD;
    }
}

impl io::Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a record has no end"));
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.input.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}
