//! JSON: an object a line, an array of objects, or objects one after the other.
//!
//! Lines are independent of each other, so a broken one can be left out. In an array only elements that end can be left
//! out: behind one that does not, nobody knows where the next begins.

mod field;

use std::io::{BufRead, BufReader};
use std::mem::take;

use self::field::text_of;
use super::{ByteLine, ByteLines, Documents, LONGEST_RECORD, Read, Tally};
use crate::corpus::files::TextFile;
use crate::corpus::input::Input;
use crate::error::{Error, Result};

/// Opens a `.json`, which may be JSON lines by another name: then its first line is a whole object.
pub(super) fn open(file: &TextFile, field: &str) -> Result<Box<dyn Documents>> {
    let mut lines = ByteLines::new(Input::open(file)?);
    let mut line = Vec::new();
    let of_lines = loop {
        match lines.next(&mut line)? {
            ByteLine::Whole if line.trim_ascii().is_empty() => {}
            ByteLine::Whole => {
                let object = line.trim_ascii_start().starts_with(b"{");
                break object && serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_ok();
            }
            ByteLine::TooLong | ByteLine::End => break false,
        }
    };
    let input = Input::open(file)?;
    Ok(match of_lines {
        true => Box::new(Lines::new(input, field)),
        false => Box::new(Values::new(input, field)),
    })
}

/// A file with an object on each line.
pub(super) struct Lines {
    lines: ByteLines,
    field: String,
    line: Vec<u8>,
    /// Number of the next line, from 0.
    next: u64,
}

impl Lines {
    pub(super) fn new(input: Input, field: &str) -> Self {
        Self {
            lines: ByteLines::new(input),
            field: field.to_owned(),
            line: Vec::new(),
            next: 0,
        }
    }
}

impl Documents for Lines {
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read> {
        loop {
            let mut line = take(&mut self.line);
            let found = self.lines.next(&mut line)?;
            self.line = line;
            self.next += 1;
            let problem = match found {
                ByteLine::End => return Ok(Read::End),
                ByteLine::Whole if self.line.trim_ascii().is_empty() => continue,
                ByteLine::Whole => match append(&self.line, &self.field, text, tally) {
                    Ok(()) => return Ok(Read::Document),
                    Err(problem) => problem,
                },
                ByteLine::TooLong => format!("is longer than {LONGEST_RECORD} bytes"),
            };
            tally.bad(self.lines.label(), format!("line {} {problem}", self.next))?;
        }
    }

    fn record(&self) -> u64 {
        self.next - 1
    }

    fn bytes_used(&self, waiting: u64) -> u64 {
        self.lines.bytes_used(waiting)
    }
}

/// Appends the text of an object.
fn append(json: &[u8], field: &str, text: &mut String, tally: &mut Tally) -> std::result::Result<(), String> {
    let json = tally.decode(json)?;
    text.push_str(&text_of(&json, field)?);
    Ok(())
}

/// A file with an array of objects, or with objects one after the other.
struct Values {
    input: BufReader<Input>,
    field: String,
    value: Vec<u8>,
    /// Number of the next value, from 0.
    next: u64,
    /// Line that the next byte is in, from 1.
    line: u64,
    /// Bytes so far.
    used: u64,
    place: Place,
}

/// Where in a file of values.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Before anything.
    Start,
    /// Within an array: before the first element, or behind one.
    Array { first: bool },
    /// Among values that follow each other.
    Sequence,
    /// Behind the array.
    End,
}

impl Values {
    fn new(input: Input, field: &str) -> Self {
        Self {
            input: BufReader::with_capacity(128 << 10, input),
            field: field.to_owned(),
            value: Vec::new(),
            next: 0,
            line: 1,
            used: 0,
            place: Place::Start,
        }
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::bad_file(self.input.get_ref().label(), problem)
    }

    fn block(&mut self) -> Result<&[u8]> {
        // Asked twice, because an error borrows the input while it is explained.
        if let Err(e) = self.input.fill_buf() {
            return Err(self.input.get_ref().error(e));
        }
        Ok(self.input.buffer())
    }

    fn consume(&mut self, n: usize) {
        self.line += self.input.buffer()[..n].iter().filter(|&&b| b == b'\n').count() as u64;
        self.used += n as u64;
        self.input.consume(n);
    }

    /// The next byte that is not white space, which is not consumed; `None` at the end.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let block = self.block()?;
            if block.is_empty() {
                return Ok(None);
            }
            match block.iter().position(|b| !b.is_ascii_whitespace()) {
                Some(at) => {
                    let byte = block[at];
                    self.consume(at);
                    return Ok(Some(byte));
                }
                None => {
                    let n = block.len();
                    self.consume(n);
                }
            }
        }
    }

    /// Goes to the beginning of the next value; false if there is none.
    fn seek(&mut self) -> Result<bool> {
        if self.place == Place::Start {
            if self.block()?.starts_with("\u{feff}".as_bytes()) {
                self.consume(3);
            }
            self.place = Place::Sequence;
            if self.peek()? == Some(b'[') {
                self.consume(1);
                self.place = Place::Array { first: true };
            }
        }
        let mut next = self.peek()?;
        if let Place::Array { first } = self.place {
            if next == Some(b']') {
                self.consume(1);
                self.place = Place::End;
                next = self.peek()?;
            } else if !first {
                if next != Some(b',') {
                    return Err(self.broken("a comma or the array's end", next));
                }
                self.consume(1);
                next = self.peek()?;
            }
            if self.place != Place::End && matches!(next, None | Some(b']' | b',')) {
                return Err(self.broken("a value", next));
            }
        }
        match (self.place, next) {
            (Place::End, Some(_)) => Err(self.broken("nothing behind the array", next)),
            (_, next) => Ok(next.is_some()),
        }
    }

    fn broken(&self, expected: &str, found: Option<u8>) -> Error {
        let found = match found {
            Some(byte) => format!("{:?} follows", char::from(byte)),
            None => "the file ends: it may be truncated".into(),
        };
        self.error(format!(
            "line {}, after {} values: expected {expected}, but {found}",
            self.line, self.next
        ))
    }

    /// Puts the value that begins here into `self.value`.
    fn take_value(&mut self) -> Result<()> {
        let (began, mut extent) = (self.line, Extent::default());
        self.value.clear();
        self.value.shrink_to(1 << 20);
        loop {
            let block = self.block()?;
            let (n, ended) = extent.of(block);
            let at_end = block.is_empty();
            if at_end && !extent.may_end() {
                return Err(self.error(format!(
                    "value {}, which begins in line {began}, has no end: the file is truncated or broken there",
                    self.next
                )));
            }
            let mut value = take(&mut self.value);
            value.extend_from_slice(&self.input.buffer()[..n]);
            self.value = value;
            self.consume(n);
            if ended || at_end {
                return Ok(());
            }
            if self.value.len() as u64 > LONGEST_RECORD {
                return Err(self.error(format!(
                    "value {}, which begins in line {began}, is longer than {LONGEST_RECORD} bytes",
                    self.next
                )));
            }
        }
    }
}

impl Documents for Values {
    fn read(&mut self, text: &mut String, tally: &mut Tally) -> Result<Read> {
        while self.seek()? {
            let line = self.line;
            self.take_value()?;
            self.next += 1;
            if let Place::Array { first } = &mut self.place {
                *first = false;
            }
            match append(&self.value, &self.field, text, tally) {
                Ok(()) => return Ok(Read::Document),
                Err(problem) => {
                    let problem = format!("value {} in line {line} {problem}", self.next - 1);
                    tally.bad(self.input.get_ref().label(), problem)?;
                }
            }
        }
        Ok(Read::End)
    }

    fn record(&self) -> u64 {
        self.next - 1
    }

    fn bytes_used(&self, waiting: u64) -> u64 {
        self.input.get_ref().share(self.used.saturating_sub(waiting))
    }
}

/// Finds where a value ends, by its brackets and quotes alone.
#[derive(Default)]
struct Extent {
    begun: bool,
    depth: u64,
    quoted: bool,
    escaped: bool,
}

impl Extent {
    /// How many bytes of `block` belong to the value, and whether it ends with them.
    fn of(&mut self, block: &[u8]) -> (usize, bool) {
        for (at, &byte) in block.iter().enumerate() {
            let bare = self.depth == 0 && !self.quoted;
            if self.quoted {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.quoted = false,
                    _ => continue,
                }
                if self.quoted || self.depth > 0 {
                    continue;
                }
                return (at + 1, true);
            }
            if bare && self.begun && (byte.is_ascii_whitespace() || b",[]{}\"".contains(&byte)) {
                return (at, true); // behind a number or a word
            }
            self.begun = true;
            match byte {
                b'"' => self.quoted = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => continue,
            }
            if self.depth == 0 && !self.quoted {
                return (at + 1, true);
            }
        }
        (block.len(), false)
    }

    /// Whether the value may end with the file: a number or a word.
    fn may_end(&self) -> bool {
        self.depth == 0 && !self.quoted
    }
}
