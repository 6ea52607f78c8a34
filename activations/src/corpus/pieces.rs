//! Documents in pieces, each small enough to be tokenised at once.
//!
//! Where a document is cut depends on its text alone, never on how much a read returned. A tokenizer sees each piece by
//! itself, so that pieces end where tokenizers end words anyway: after a line break that stands alone, or, in endless
//! lines, before a space.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Reading;
use super::documents::{self, Documents, Read, Tally};
use super::files::TextFile;
use crate::error::Result;

/// A document is cut at the first good line break after so many bytes ...
const PIECE: usize = 16 << 10;
/// ... and anywhere before so many. Also the longest line that is not cut.
pub(super) const LONGEST: usize = 64 << 10;

/// A part of a document.
pub(super) struct Piece {
    pub text: String,
    /// Number of its document.
    pub document: u64,
    /// Whether the document starts here.
    pub starts: bool,
    /// The name of its file.
    pub file: Arc<str>,
    /// Which record of the file it is of.
    pub record: u64,
    /// Code points of the record's text before it.
    pub offset: u64,
}

/// The pieces of some files in order.
pub(super) struct Pieces {
    files: VecDeque<TextFile>,
    reading: Reading,
    lines: Option<Lines>,
    /// What the document has since its last piece.
    text: String,
    in_document: bool,
    documents: u64,
    /// Files opened.
    opened: u64,
    /// The name of the present one.
    file: Arc<str>,
    /// Code points of the present record before `text`.
    offset: u64,
    tally: Tally,
    /// Bytes of the files before the present one.
    bytes: u64,
}

impl Pieces {
    pub(super) fn new(files: &[TextFile], reading: &Reading) -> Self {
        Self {
            files: files.iter().cloned().collect(),
            reading: reading.clone(),
            lines: None,
            text: String::new(),
            in_document: false,
            documents: 0,
            opened: 0,
            file: "".into(),
            offset: 0,
            tally: Tally::new(reading),
            bytes: 0,
        }
    }

    /// What was replaced and left out so far.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Bytes of the files that the pieces so far were made of, about.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes + self.lines.as_ref().map_or(0, Lines::bytes_used)
    }

    fn read(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some(lines) = &mut self.lines else {
                let Some(file) = self.files.pop_front() else {
                    return Ok(None);
                };
                self.lines = Some(Lines::new(documents::open(&file, &self.reading, self.opened)?));
                self.opened += 1;
                self.file = file.name();
                continue;
            };
            let line = match lines.next(&mut self.tally)? {
                Part::Line(line) => line,
                Part::End => {
                    let piece = self.end_document();
                    self.offset = 0;
                    if piece.is_some() {
                        return Ok(piece);
                    }
                    continue;
                }
                Part::NoMore => {
                    self.bytes += lines.bytes_used();
                    self.lines = None;
                    continue;
                }
            };
            if line.whole && self.reading.separator.as_deref().map(str::trim) == Some(line.text.trim()) {
                let length = code_points(line.text);
                let piece = self.end_document();
                self.offset += length;
                if piece.is_some() {
                    return Ok(piece);
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
        let length = text.len();
        if self.reading.separator.is_some() && text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        // A line break is as many code points as bytes.
        let cut = (length - text.len()) as u64;
        let piece = self.piece(text);
        self.offset += cut;
        self.in_document = false;
        piece
    }

    /// `text` as the next piece; nothing if it is empty, or white space that no document has begun with.
    fn piece(&mut self, text: String) -> Option<Piece> {
        let offset = self.offset;
        self.offset += code_points(&text);
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
            file: Arc::clone(&self.file),
            record: self.lines.as_ref().map_or(0, |lines| lines.documents.record()),
            offset,
        })
    }
}

impl Iterator for Pieces {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        self.read().transpose()
    }
}

fn code_points(text: &str) -> u64 {
    text.chars().count() as u64
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

/// What comes next in a file.
enum Part<'a> {
    Line(Line<'a>),
    /// The document is over.
    End,
    /// The file is.
    NoMore,
}

/// A line with its line break, or a part of a very long one.
struct Line<'a> {
    text: &'a str,
    /// Whether it is the line from its beginning to its end.
    whole: bool,
}

/// The lines of one file, document by document.
struct Lines {
    documents: Box<dyn Documents>,
    /// Text of the present document that was read.
    text: String,
    /// How far `text` has been given out.
    taken: usize,
    /// Whether the next line is the rest of one that was cut.
    within_line: bool,
    /// Whether all of the present document has been read.
    ended: bool,
}

impl Lines {
    fn new(documents: Box<dyn Documents>) -> Self {
        Self {
            documents,
            text: String::new(),
            taken: 0,
            within_line: false,
            ended: false,
        }
    }

    /// Bytes of the file that the lines so far were made of, about.
    fn bytes_used(&self) -> u64 {
        self.documents.bytes_used((self.text.len() - self.taken) as u64)
    }

    /// The next line of the present document, or its end, after which comes the next document.
    fn next(&mut self, tally: &mut Tally) -> Result<Part<'_>> {
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
            self.text.drain(..self.taken);
            self.taken = 0;
            match self.documents.read(&mut self.text, tally)? {
                Read::Text => {}
                Read::Document => self.ended = true,
                Read::End => return Ok(Part::NoMore),
            }
        };
        if length == 0 {
            self.text.clear();
            self.text.shrink_to(1 << 20);
            (self.taken, self.ended, self.within_line) = (0, false, false);
            return Ok(Part::End);
        }
        let line = Line {
            text: &self.text[self.taken..self.taken + length],
            whole: ends && !self.within_line,
        };
        self.taken += length;
        self.within_line = !ends;
        Ok(Part::Line(line))
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
