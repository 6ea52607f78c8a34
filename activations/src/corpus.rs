//! Text files to contexts of tokens.
//!
//! The one decision: **one rule for packing, and nothing but the files and the options decide the result.**
//!
//! 1. A file is a document; with a separator line (such as `<|end|>`), each part between separators is. Documents that
//!    are only white space do not count.
//! 2. The documents' tokens follow each other, with BOS between two documents (EOS in a model without BOS).
//! 3. This stream is cut into contexts of the length asked for. Each context begins with BOS, which counts as one of
//!    its tokens. The last may be shorter.
//!
//! This is how the story models were trained and what SAELens does by default. Long documents are tokenised in pieces
//! cut at line breaks, many pieces at once, in memory that does not grow with the files; the pieces depend on the text
//! alone, so that neither the number of threads nor the place where a run resumes changes a token.

mod files;
mod pack;
mod pieces;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::pack::Packer;
use self::pieces::{Piece, Pieces};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::fingerprint::fingerprint;
use crate::tokenizer::Tokenizer;

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

/// How files become contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Tokens of a context, BOS included.
    pub context: usize,
    /// Token that every context begins with, and that stands between documents.
    pub bos: Option<u32>,
    /// Token that stands between documents if there is no `bos`.
    pub eos: Option<u32>,
    /// What to do about bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
    /// A line that separates documents within a file, compared without white space around it. It belongs to no
    /// document, nor does the line break before it.
    pub separator: Option<String>,
}

/// Text files and a tokenizer: contexts can be drawn from it any number of times, always the same ones.
#[derive(Clone)]
pub struct Corpus {
    files: Vec<PathBuf>,
    bytes: u64,
    name: String,
    tokenizer: Tokenizer,
    options: CorpusOptions,
}

impl Corpus {
    /// Finds the files: those named, and every `.txt` file in or below a directory named, in the order of their paths.
    ///
    /// # Errors
    /// When a path does not exist, a directory has no `.txt` file, everything is empty, or the options make no sense.
    pub fn open(paths: &[PathBuf], tokenizer: &Tokenizer, options: CorpusOptions) -> Result<Self> {
        let smallest = if options.bos.is_some() { 2 } else { 1 };
        if options.context < smallest {
            return Err(Error::Invalid(format!(
                "a context of {} tokens is too short: {smallest} are the least",
                options.context
            )));
        }
        if options
            .separator
            .as_ref()
            .is_some_and(|s| s.trim().is_empty() || s.trim().contains('\n'))
        {
            return Err(Error::Invalid(
                "the document separator must be the text of one line, such as \"<|end|>\"".into(),
            ));
        }
        let files = files::find(paths)?;
        let mut bytes = 0;
        for file in &files {
            bytes += std::fs::metadata(file).map_err(Error::io(file))?.len();
        }
        if bytes == 0 {
            return Err(nothing_in(&files));
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
        Contexts {
            corpus: self.clone(),
            pieces: Pieces::new(
                &self.files,
                self.options.invalid_utf8,
                self.options.separator.as_deref(),
            ),
            packer: Packer::new(&self.options),
            first,
            ready: VecDeque::new(),
            error: None,
            ended: false,
        }
    }

    /// A short name for people: the last part of the path given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
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

    /// SHA-256, in hex, over the length, the first and the last mebibyte of each file: cheap whatever the size, and
    /// different once a file was added, removed, grown or replaced.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.files)
    }
}

/// The contexts of a [`Corpus`]. After an error there are no more.
pub struct Contexts {
    corpus: Corpus,
    pieces: Pieces,
    packer: Packer,
    first: u64,
    ready: VecDeque<Context>,
    error: Option<Error>,
    ended: bool,
}

/// Pieces tokenised at once: enough for many threads, and at most a few mebibytes of text.
const PIECES_AT_ONCE: usize = 64;

impl Contexts {
    /// Invalid sequences replaced so far.
    pub fn replaced(&self) -> u64 {
        self.pieces.replaced()
    }

    /// Bytes of the files that the contexts so far were made of, give or take a few pieces read ahead.
    pub fn bytes_read(&self) -> u64 {
        self.pieces.bytes_read()
    }

    /// Tokens of all contexts packed so far, those skipped included.
    pub fn tokens_packed(&self) -> u64 {
        self.packer.tokens()
    }

    /// Reads, tokenises and packs the next pieces.
    fn advance(&mut self) -> Result<()> {
        let mut pieces: Vec<Piece> = Vec::with_capacity(PIECES_AT_ONCE);
        while pieces.len() < PIECES_AT_ONCE {
            match self.pieces.next() {
                Some(Ok(piece)) => pieces.push(piece),
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
        let encode = |piece: &Piece| match piece.starts {
            true => tokenizer.encode(&piece.text),
            false => tokenizer.encode_continuation(&piece.text),
        };
        let ids: Vec<Vec<u32>> = pieces.par_iter().map(encode).collect::<Result<_>>()?;
        for (piece, ids) in pieces.iter().zip(ids) {
            self.packer.push(piece.starts, piece.document, &ids, &mut self.ready);
        }
        if self.ended && self.error.is_none() {
            self.packer.finish(&mut self.ready);
            if self.packer.tokens() == 0 {
                self.error = Some(nothing_in(&self.corpus.files));
            }
        }
        Ok(())
    }
}

impl Iterator for Contexts {
    type Item = Result<Context>;

    fn next(&mut self) -> Option<Result<Context>> {
        loop {
            while let Some(context) = self.ready.pop_front() {
                if context.index >= self.first {
                    return Some(Ok(context));
                }
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

fn nothing_in(files: &[PathBuf]) -> Error {
    let shown: Vec<_> = files.iter().take(3).map(|f| f.display().to_string()).collect();
    let more = match files.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Error::Invalid(format!("there is no text in {}{more}", shown.join(", ")))
}

/// Whether `path` is a text that a directory of texts offers.
fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"))
}

#[cfg(test)]
mod tests;
