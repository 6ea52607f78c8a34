//! The order of documents: as they lie in the files, or shuffled by a seed.
//!
//! A shuffle that needs everything in memory would not work for the texts that need it most. Files and the row groups
//! of Parquet are drawn in random order; documents then pass through a window of some mebibytes of text, out of which
//! one is drawn whenever there is no room for the next. The order is a function of the texts and the seed alone.

use std::collections::VecDeque;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::pieces::{Piece, Pieces};
use crate::error::{Error, Result};

/// Bytes of text in the window.
const WINDOW: usize = 32 << 20;
/// A document longer than this is given out as it is read, without waiting in the window.
const LONGEST_HELD: usize = 1 << 20;
/// What a waiting document takes beside its text, about.
const OVERHEAD: usize = 128;

/// The generator of everything that `seed` decides about the texts; each of several uses has its own `stream`.
pub(super) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}

/// The pieces of all documents, those of a document together and in order.
pub(super) struct Ordered {
    pieces: Pieces,
    /// Draws from the window; absent where documents keep their order.
    draws: Option<ChaCha8Rng>,
    window: usize,
    waiting: Vec<Vec<Piece>>,
    /// Bytes of all that wait.
    bytes: usize,
    /// The first piece of the next document, which was read to see where the one before ended.
    ahead: Option<Piece>,
    out: VecDeque<Piece>,
    /// Whether the document in `out` goes on in `pieces`.
    passing: bool,
    ended: bool,
    error: Option<Error>,
    /// Documents given out.
    documents: u64,
    /// Bytes of text given out.
    given: u64,
}

/// A document as far as it was read.
enum Document {
    Whole(Vec<Piece>, usize),
    /// It goes on.
    Long(Vec<Piece>),
}

impl Ordered {
    pub(super) fn new(pieces: Pieces, seed: Option<u64>) -> Self {
        Self::with_window(pieces, seed, WINDOW)
    }

    /// With a window of so many bytes.
    pub(super) fn with_window(pieces: Pieces, seed: Option<u64>, window: usize) -> Self {
        Self {
            pieces,
            draws: seed.map(|seed| generator(seed, u64::MAX)),
            window,
            waiting: Vec::new(),
            bytes: 0,
            ahead: None,
            out: VecDeque::new(),
            passing: false,
            ended: false,
            error: None,
            documents: 0,
            given: 0,
        }
    }

    /// Bytes of the files that the pieces given out were made of, about.
    pub(super) fn bytes_read(&self) -> u64 {
        let read = self.pieces.bytes_read();
        match self.draws {
            None => read,
            Some(_) => {
                let all = u128::from(self.given) + self.bytes as u128;
                (u128::from(read) * u128::from(self.given) / all.max(1)) as u64
            }
        }
    }

    /// The pieces in the order of the files.
    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The next piece of the files. An error comes last, after everything that was read before it.
    fn read(&mut self) -> Option<Piece> {
        if let Some(piece) = self.ahead.take() {
            return Some(piece);
        }
        match self.pieces.next() {
            Some(Ok(piece)) => return Some(piece),
            Some(Err(error)) => self.error = Some(error),
            None => {}
        }
        self.ended = true;
        None
    }

    /// The next document of the files, or as much of it as may wait.
    fn read_document(&mut self) -> Option<Document> {
        let first = self.read()?;
        let mut bytes = OVERHEAD + first.text.len();
        let mut document = vec![first];
        while bytes <= LONGEST_HELD.min(self.window) {
            match self.read() {
                Some(piece) if piece.starts => {
                    self.ahead = Some(piece);
                    return Some(Document::Whole(document, bytes));
                }
                Some(piece) => {
                    bytes += piece.text.len();
                    document.push(piece);
                }
                None => return Some(Document::Whole(document, bytes)),
            }
        }
        Some(Document::Long(document))
    }

    /// The next piece of a document that is given out as it is read.
    fn pass(&mut self) -> Option<Piece> {
        let piece = self.read();
        match piece {
            Some(piece) if piece.starts => self.ahead = Some(piece),
            Some(piece) => return Some(piece),
            None => {}
        }
        self.passing = false;
        None
    }

    fn next_shuffled(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.out.pop_front() {
                return Some(piece);
            }
            if self.passing
                && let Some(piece) = self.pass()
            {
                return Some(piece);
            }
            while self.bytes < self.window && !(self.ended && self.ahead.is_none()) {
                match self.read_document() {
                    Some(Document::Whole(document, bytes)) => {
                        self.waiting.push(document);
                        self.bytes += bytes;
                    }
                    Some(Document::Long(document)) => {
                        self.out = document.into();
                        self.passing = true;
                        break;
                    }
                    None => break,
                }
            }
            if !self.out.is_empty() {
                continue;
            }
            let draws = self.draws.as_mut()?;
            if self.waiting.is_empty() {
                return None;
            }
            let document = self.waiting.swap_remove(draws.random_range(0..self.waiting.len()));
            self.bytes -= OVERHEAD + document.iter().map(|piece| piece.text.len()).sum::<usize>();
            self.out = document.into();
        }
    }
}

impl Iterator for Ordered {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        if self.draws.is_none() {
            return self.pieces.next();
        }
        let Some(mut piece) = self.next_shuffled() else {
            return self.error.take().map(Err);
        };
        // Documents are numbered as they are given out.
        self.documents += u64::from(piece.starts);
        self.given += piece.text.len() as u64;
        piece.document = self.documents - 1;
        Some(Ok(piece))
    }
}
