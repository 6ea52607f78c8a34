//! Text files to contexts of tokens.
//!
//! The one decision: **one rule for packing, and nothing but the files and the options decide the result.**
//!
//! 1. A plain text is a document; of JSON, CSV and Parquet, one field of each record is. With a separator line (such as
//!    `<|end|>`), each part between separators is a document. Documents that are only white space do not count.
//! 2. The documents' tokens follow each other, with BOS between two documents (EOS in a model without BOS).
//! 3. This stream is cut into contexts of the length asked for. Each context begins with BOS, which counts as one of
//!    its tokens. The last may be shorter.
//!
//! Or one document a context ([`Layout::Truncate`], [`Layout::Split`]): then no context holds tokens of two, and each
//! has around its tokens what the model's tokenizer puts around a text. With a seed, documents come in another order
//! (`order`). Every token knows its document and where it is in it ([`Spans`](crate::context::Spans)).
//!
//! This is how the story models were trained and what SAELens does by default. Long documents are tokenised in pieces
//! cut at line breaks, many pieces at once, in memory that does not grow with the files; the pieces depend on the text
//! alone, so that neither the number of threads nor the place where a run resumes changes a token.

mod documents;
mod files;
mod format;
mod input;
mod objects;
mod order;
mod pack;
mod pieces;
mod spool;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::files::TextFile;
pub(crate) use self::files::{MATCHING, has_wildcards, of_one_kind};
pub use self::format::Format;
pub(crate) use self::format::of_name;
use self::order::Ordered;
use self::pack::Packer;
use self::pieces::{Piece, Pieces};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::source::hex;
use crate::tokenizer::{Encoded, Tokenizer};

/// What to do about bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvalidUtf8 {
    /// Stop with an error naming the file and the byte.
    #[default]
    Refuse,
    /// Put U+FFFD in their place and count, see [`Contexts::replaced`].
    Replace,
}

/// How documents are found in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What the files are; what their names say, if absent.
    pub format: Option<Format>,
    /// The field of JSON, or column of CSV and Parquet, that is the text.
    pub field: String,
    /// Whether records that are broken, or whose field is no string, are left out and counted (see
    /// [`Contexts::bad_records`]) instead of being an error.
    pub skip_bad: bool,
    /// What to do about bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
    /// A line that separates documents within a text, compared without white space around it. It belongs to no
    /// document, nor does the line break before it.
    pub separator: Option<String>,
    /// Shuffles files, row groups and documents, the last within a window of some mebibytes; they come in the order of the files if absent.
    pub seed: Option<u64>,
}

/// How documents become contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Documents follow each other, and this stream is cut into contexts.
    #[default]
    Pack,
    /// A context a document, from its beginning; what does not fit is left out.
    Truncate,
    /// As many contexts as a document needs, each of this document alone.
    Split,
}

impl Layout {
    /// As it is recorded.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Truncate => "truncate",
            Self::Split => "split",
        }
    }
}

impl Default for Reading {
    /// The field `text`, nothing skipped, nothing replaced, no separator, the order of the files.
    fn default() -> Self {
        Self {
            format: None,
            field: "text".into(),
            skip_bad: false,
            invalid_utf8: InvalidUtf8::Refuse,
            separator: None,
            seed: None,
        }
    }
}

/// How files become contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Tokens of a context, BOS included.
    pub context: usize,
    /// Token that every context begins with, and that stands between documents.
    pub bos: Option<u32>,
    /// Token that stands between documents if there is no `bos`.
    pub eos: Option<u32>,
    /// How documents become contexts.
    pub layout: Layout,
    /// Special tokens at the beginning of each context, where no context has two documents; `bos` and `eos` are then
    /// not looked at.
    pub before: Vec<u32>,
    /// And at its end.
    pub after: Vec<u32>,
    /// How documents are found in the files.
    pub reading: Reading,
}

/// Text files and a tokenizer: contexts can be drawn from it any number of times, always the same ones.
#[derive(Clone)]
pub struct Corpus {
    files: Vec<TextFile>,
    bytes: u64,
    name: String,
    tokenizer: Tokenizer,
    options: CorpusOptions,
}

impl Corpus {
    /// Finds the files: those named, those that a pattern such as `books/*.txt` matches, and every text in or below a
    /// directory named, in the order of their paths. URLs of object stores mean the same there. `-` is the standard input,
    /// which is copied to a temporary file.
    ///
    /// # Errors
    /// When a path does not exist, a pattern matches nothing, a directory has no texts or several kinds of them,
    /// everything is empty, or the options make no sense.
    pub fn open(paths: &[PathBuf], tokenizer: &Tokenizer, options: CorpusOptions) -> Result<Self> {
        let special = match options.layout {
            Layout::Pack => usize::from(options.bos.is_some()),
            Layout::Truncate | Layout::Split => options.before.len() + options.after.len(),
        };
        let smallest = special + 1;
        if options.context < smallest {
            return Err(Error::Invalid(format!(
                "a context of {} tokens is too short: {smallest} are the least",
                options.context
            )));
        }
        if options
            .reading
            .separator
            .as_ref()
            .is_some_and(|s| s.trim().is_empty() || s.trim().contains('\n'))
        {
            return Err(Error::Invalid(
                "the document separator must be the text of one line, such as \"<|end|>\"".into(),
            ));
        }
        let files = files::find(paths, options.reading.format)?;
        let mut bytes = 0;
        for file in &files {
            bytes += file.size()?;
        }
        if bytes == 0 {
            return Err(nothing_in(&files, None));
        }
        Ok(Self {
            files,
            bytes,
            name: files::name(paths),
            tokenizer: tokenizer.clone(),
            options,
        })
    }

    /// All contexts in order.
    pub fn contexts(&self) -> Contexts {
        self.contexts_from(0)
    }

    /// The contexts from number `first` on, the same as those of [`Corpus::contexts`]. What comes before is read and
    /// tokenised again, which is fast beside running a model.
    pub fn contexts_from(&self, first: u64) -> Contexts {
        let reading = &self.options.reading;
        let mut files = self.files.clone();
        if let Some(seed) = reading.seed {
            files.shuffle(&mut order::generator(seed, u64::MAX - 1));
        }
        Contexts {
            corpus: self.clone(),
            pieces: Ordered::new(Pieces::new(&files, reading), reading.seed),
            packer: Packer::new(&self.options),
            first,
            passed: 0,
            ready: VecDeque::new(),
            error: None,
            ended: false,
        }
    }

    /// The same, called `name`.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// A short name for people: the last part of the path given, unless it has another.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(TextFile::label)
    }

    /// The formats of the files, each once.
    pub fn formats(&self) -> BTreeSet<Format> {
        self.files.iter().map(TextFile::format).collect()
    }

    /// Size of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The options.
    pub fn options(&self) -> &CorpusOptions {
        &self.options
    }

    /// By name, everything about the reading that decides which tokens come out of the files: settings that do not
    /// matter for these files, or that are what they are by default, are absent.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let reading = &self.options.reading;
        let formats = self.formats();
        let mut settings = BTreeMap::new();
        let mut set = |key: &str, value: String| settings.insert(key.to_owned(), value);
        set("invalid_utf8", format!("{:?}", reading.invalid_utf8).to_lowercase());
        if self.options.layout != Layout::Pack {
            let shown = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            set("documents", self.options.layout.name().into());
            set("before", shown(&self.options.before));
            set("after", shown(&self.options.after));
        }
        if let Some(seed) = reading.seed {
            set("seed", seed.to_string());
        }
        if let Some(separator) = &reading.separator {
            set("separator", separator.clone());
        }
        if formats.iter().any(|&format| documents::has_fields(format)) {
            let names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
            set("format", names.join(" "));
            set("field", reading.field.clone());
            if reading.skip_bad {
                set("skip_bad", "true".into());
            }
        }
        settings
    }

    /// SHA-256, in hex, over the length, the first and the last mebibyte of each file, or length and tag of an object: cheap whatever the size, and
    /// different once a file was added, removed, grown or replaced.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for file in &self.files {
            file.fingerprint(&mut hash)?;
        }
        Ok(hex(&hash.finalize()))
    }
}

/// The contexts of a [`Corpus`]. After an error there are no more.
pub struct Contexts {
    corpus: Corpus,
    pieces: Ordered,
    packer: Packer,
    first: u64,
    /// Contexts before `first` that were passed over.
    passed: u64,
    ready: VecDeque<Context>,
    error: Option<Error>,
    ended: bool,
}

/// Bytes of text tokenised at once: enough for many threads.
const BYTES_AT_ONCE: usize = 1 << 20;
/// The most pieces tokenised at once, where documents are very short.
const PIECES_AT_ONCE: usize = 4096;

impl Contexts {
    /// Invalid sequences replaced so far.
    pub fn replaced(&self) -> u64 {
        self.pieces.pieces().tally().replaced
    }

    /// Records left out so far because they were broken, or held no string.
    pub fn bad_records(&self) -> u64 {
        self.pieces.pieces().tally().bad
    }

    /// Bytes of the files that the contexts so far were made of, give or take a few pieces read ahead.
    pub fn bytes_read(&self) -> u64 {
        self.pieces.bytes_read()
    }

    /// Tokens of all contexts packed so far, those skipped included.
    pub fn tokens_packed(&self) -> u64 {
        self.packer.tokens()
    }

    /// Passes over the contexts before the first one asked for, and says how many tokens they hold: 0 if that was done.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn pass(&mut self) -> Result<u64> {
        let mut tokens = 0;
        while self.passed < self.first {
            match self.ready.pop_front() {
                Some(context) => {
                    tokens += context.tokens.len() as u64;
                    self.passed += 1;
                }
                None if self.ended => break,
                None => self.advance()?,
            }
        }
        Ok(tokens)
    }

    /// Reads, tokenises and packs the next pieces.
    fn advance(&mut self) -> Result<()> {
        let (mut pieces, mut bytes): (Vec<Piece>, usize) = (Vec::new(), 0);
        while pieces.len() < PIECES_AT_ONCE && bytes < BYTES_AT_ONCE {
            match self.pieces.next() {
                Some(Ok(piece)) => {
                    bytes += piece.text.len();
                    pieces.push(piece);
                }
                Some(Err(e)) => {
                    self.error = Some(e);
                    self.ended = true;
                    break;
                }
                None => {
                    self.ended = true;
                    break;
                }
            }
        }
        let tokenizer = &self.corpus.tokenizer;
        let encode = |piece: &Piece| tokenizer.encode_with_spans(&piece.text, !piece.starts);
        let encoded: Vec<Encoded> = pieces.par_iter().map(encode).collect::<Result<_>>()?;
        for (piece, encoded) in pieces.iter().zip(&encoded) {
            self.packer.push(piece, encoded, &mut self.ready);
        }
        if self.ended && self.error.is_none() {
            self.packer.finish(&mut self.ready);
            if self.packer.tokens() == 0 {
                let first_bad = self.pieces.pieces().tally().first_bad.as_deref();
                self.error = Some(nothing_in(&self.corpus.files, first_bad));
            }
        }
        Ok(())
    }
}

impl Iterator for Contexts {
    type Item = Result<Context>;

    fn next(&mut self) -> Option<Result<Context>> {
        loop {
            if let Err(e) = self.pass() {
                self.ended = true;
                return Some(Err(e));
            }
            if let Some(context) = self.ready.pop_front() {
                return Some(Ok(context));
            }
            if self.ended {
                return self.error.take().map(Err);
            }
            if let Err(e) = self.advance() {
                self.ended = true;
                return Some(Err(e));
            }
        }
    }
}

/// There is no text; where there were bad records, `first_bad` says what was wrong with the first.
fn nothing_in(files: &[TextFile], first_bad: Option<&str>) -> Error {
    let shown: Vec<_> = files.iter().take(3).map(|f| f.label().display().to_string()).collect();
    let more = match files.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let bad = first_bad.map_or(String::new(), |first| {
        format!("; bad records were left out, the first: {first}")
    });
    Error::Invalid(format!("there is no text in {}{more}{bad}", shown.join(", ")))
}

#[cfg(test)]
mod tests;
