//! Reading files as pieces of documents, each small enough to be tokenised at once.
//!
//! Where a document is cut depends on its text alone, never on how much a read returned. A tokenizer sees each piece by
//! itself, so that pieces end where tokenizers end words anyway: after a line break that stands alone, or, in endless
//! lines, before a space.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use super::InvalidUtf8;
use crate::error::{Error, Result};

/// A document is cut at the first good line break after so many bytes ...
const PIECE: usize = 16 << 10;
/// ... and anywhere before so many. Also the longest line that is not cut.
pub(super) const LONGEST: usize = 64 << 10;
/// Bytes read at once.
const BLOCK: usize = 256 << 10;

/// A part of a document.
pub(super) struct Piece {
    pub text: String,
    /// Number of its document.
    pub document: u64,
    /// Whether the document starts here.
    pub starts: bool,
}

/// The pieces of some files in order.
pub(super) struct Pieces {
    files: VecDeque<PathBuf>,
    invalid: InvalidUtf8,
    separator: Option<String>,
    lines: Option<Lines>,
    /// What the document has since its last piece.
    text: String,
    in_document: bool,
    documents: u64,
    replaced: u64,
    bytes: u64,
}

impl Pieces {
    pub(super) fn new(files: &[PathBuf], invalid: InvalidUtf8, separator: Option<&str>) -> Self {
        Self {
            files: files.iter().cloned().collect(),
            invalid,
            separator: separator.map(|s| s.trim().to_owned()),
            lines: None,
            text: String::new(),
            in_document: false,
            documents: 0,
            replaced: 0,
            bytes: 0,
        }
    }

    /// Invalid sequences replaced so far.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced + self.lines.as_ref().map_or(0, |l| l.replaced)
    }

    /// Bytes of text taken so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some(lines) = &mut self.lines else {
                let Some(path) = self.files.pop_front() else {
                    return Ok(None);
                };
                self.lines = Some(Lines::open(path, self.invalid)?);
                continue;
            };
            let Some(line) = lines.next()? else {
                self.replaced += lines.replaced;
                self.lines = None;
                if let Some(piece) = self.end_document() {
                    return Ok(Some(piece));
                }
                continue;
            };
            self.bytes += line.text.len() as u64;
            if line.whole && self.separator.as_deref() == Some(line.text.trim()) {
                if let Some(piece) = self.end_document() {
                    return Ok(Some(piece));
                }
                continue;
            }
            let cut = cuts_well(&self.text, line.text) || self.text.len() + line.text.len() > LONGEST;
            if cut && !self.text.is_empty() {
                let text = std::mem::replace(&mut self.text, line.text.to_owned());
                if let Some(piece) = self.piece(text) {
                    return Ok(Some(piece));
                }
            } else {
                self.text.push_str(line.text);
            }
        }
    }

    /// The rest of the document.
    fn end_document(&mut self) -> Option<Piece> {
        let mut text = std::mem::take(&mut self.text);
        if self.separator.is_some() && text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        let piece = self.piece(text);
        self.in_document = false;
        piece
    }

    /// `text` as the next piece; nothing if it is empty, or white space that no document has begun with.
    fn piece(&mut self, text: String) -> Option<Piece> {
        if text.is_empty() || (!self.in_document && text.trim().is_empty()) {
            return None;
        }
        let starts = !self.in_document;
        self.documents += u64::from(starts);
        self.in_document = true;
        Some(Piece {
            text,
            document: self.documents - 1,
            starts,
        })
    }
}

impl Iterator for Pieces {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        self.read().transpose()
    }
}

/// Whether `text` is long enough and its last line break stands alone, with no white space around it.
fn cuts_well(text: &str, next: &str) -> bool {
    let Some(before) = text.strip_suffix('\n') else {
        return false;
    };
    let before = before.strip_suffix('\r').unwrap_or(before);
    text.len() >= PIECE
        && before.ends_with(|c: char| !c.is_whitespace())
        && next.starts_with(|c: char| !c.is_whitespace())
}

/// A line with its line break, or a part of a very long one.
struct Line<'a> {
    text: &'a str,
    /// Whether it is the line from its beginning to its end.
    whole: bool,
}

/// The lines of one file, decoded while reading.
struct Lines {
    path: PathBuf,
    file: File,
    invalid: InvalidUtf8,
    /// Bytes read but not decoded: the beginning of a character.
    undecoded: Vec<u8>,
    /// Offset in the file of `undecoded`.
    offset: u64,
    text: String,
    /// How far `text` has been given out.
    taken: usize,
    /// Whether the next line is the rest of one that was cut.
    within_line: bool,
    ended: bool,
    replaced: u64,
}

impl Lines {
    fn open(path: PathBuf, invalid: InvalidUtf8) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io(&path))?;
        Ok(Self {
            path,
            file,
            invalid,
            undecoded: Vec::new(),
            offset: 0,
            text: String::new(),
            taken: 0,
            within_line: false,
            ended: false,
            replaced: 0,
        })
    }

    fn next(&mut self) -> Result<Option<Line<'_>>> {
        let (length, ends) = loop {
            let rest = &self.text.as_bytes()[self.taken..];
            let window = &rest[..rest.len().min(LONGEST)];
            if let Some(at) = window.iter().position(|&b| b == b'\n') {
                break (at + 1, true);
            }
            if rest.len() >= LONGEST {
                break (cut_of(&self.text[self.taken..]), false);
            }
            if self.ended {
                break (rest.len(), true);
            }
            self.fill()?;
        };
        if length == 0 {
            return Ok(None);
        }
        let line = Line {
            text: &self.text[self.taken..self.taken + length],
            whole: ends && !self.within_line,
        };
        self.taken += length;
        self.within_line = !ends;
        Ok(Some(line))
    }

    /// Reads and decodes the next block.
    fn fill(&mut self) -> Result<()> {
        self.text.drain(..self.taken);
        self.taken = 0;
        let at_start = self.offset == 0 && self.undecoded.is_empty();
        let mut block = std::mem::take(&mut self.undecoded);
        let before = block.len();
        let read = self.file.by_ref().take(BLOCK as u64).read_to_end(&mut block);
        read.map_err(Error::io(&self.path))?;
        self.ended = block.len() == before;
        let mut rest = &block[..];
        if at_start && let Some(behind) = rest.strip_prefix("\u{feff}".as_bytes()) {
            // A byte order mark is not text.
            rest = behind;
            self.offset = 3;
        }
        let mut left = rest.len();
        for chunk in rest.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            self.text.push_str(valid);
            self.offset += valid.len() as u64;
            left -= valid.len() + invalid.len();
            let Some(first) = invalid.first() else { break };
            let incomplete = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if incomplete && left == 0 && !self.ended {
                self.undecoded = invalid.to_vec();
                break;
            }
            if self.invalid == InvalidUtf8::Refuse {
                return Err(Error::bad_file(
                    &self.path,
                    format!(
                        "byte {} (0x{first:02X}) is not UTF-8: convert the file, or ask for invalid bytes to be replaced",
                        self.offset
                    ),
                ));
            }
            self.text.push('\u{fffd}');
            self.replaced += 1;
            self.offset += invalid.len() as u64;
        }
        Ok(())
    }
}

/// Where to cut a line longer than [`LONGEST`]: before the last lone space of its second half, else between characters.
fn cut_of(line: &str) -> usize {
    let end = line.floor_char_boundary(LONGEST);
    let head = &line.as_bytes()[..end];
    let space = (LONGEST / 2..end - 1)
        .rev()
        .find(|&i| head[i] == b' ' && !head[i - 1].is_ascii_whitespace() && !head[i + 1].is_ascii_whitespace());
    space.unwrap_or(end)
}
