//! Contexts of tokens, and activations that still know which token they belong to.

use std::sync::Arc;

use crate::error::Result;

/// One context: the tokens that the model sees together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Number of the context in its corpus or store, from 0, in natural order.
    pub index: u64,
    /// Number of the document that its first token comes from.
    pub document: u64,
    /// Token ids, special tokens included; at most the context length.
    pub tokens: Vec<u32>,
    /// Where in the texts the tokens come from; empty if that is not known.
    pub spans: Spans,
}

/// Where in the texts the tokens of a context come from.
///
/// Places are counted in code points of the text of a record: a whole file of plain text, without a byte order mark; the
/// field of a line of JSON or of a row. Special tokens have an empty span beside the token next to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Where the text of each token starts, `[tokens]`.
    pub starts: Vec<u64>,
    /// Where it ends, `[tokens]`.
    pub ends: Vec<u64>,
    /// The documents that tokens come from, in order; the first at position 0.
    pub documents: Vec<DocumentRef>,
}

/// A document within a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentRef {
    /// Position of its first token in the context; the special token before it belongs to it.
    pub position: u32,
    /// Its number in the corpus, from 0, in the order in which documents were read.
    pub document: u64,
    /// Its file: the path below the folder that all files of the corpus have in common.
    pub file: Arc<str>,
    /// Which record of the file it is, from 0: line, row or element; 0 in a plain text.
    pub record: u64,
}

impl Spans {
    /// Adds a token's span.
    pub(crate) fn push(&mut self, start: u64, end: u64) {
        self.starts.push(start);
        self.ends.push(end);
    }

    /// Whether they fit a context of `tokens` tokens, or are not known.
    pub(crate) fn fit(&self, tokens: usize) -> bool {
        if self.starts.is_empty() && self.ends.is_empty() && self.documents.is_empty() {
            return true;
        }
        let positions = self.documents.iter().map(|d| d.position);
        self.starts.len() == tokens
            && self.ends.len() == tokens
            && self.documents.first().is_some_and(|first| first.position == 0)
            && positions.is_sorted_by(|a, b| a < b)
            && self
                .documents
                .last()
                .is_some_and(|last| (last.position as usize) < tokens)
            && self
                .documents
                .windows(2)
                .all(|pair| pair[0].document != pair[1].document)
    }
}

/// Which token an activation row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef {
    /// Index into [`ContextBatch::contexts`] (not the context's global number).
    pub context: u32,
    /// Position of the token in its context.
    pub position: u32,
}

/// A run of whole contexts with the activations of one hook.
///
/// Positions that were excluded from harvesting (special tokens) have no row; their tokens are still in `contexts`.
#[derive(Clone, Debug, Default)]
pub struct ContextBatch {
    /// The contexts, in natural order.
    pub contexts: Vec<Context>,
    /// One entry an activation row, ordered by context and position.
    pub rows: Vec<RowRef>,
    /// `[rows, d_in]`, row-major.
    pub acts: Vec<f32>,
}

/// Anything that yields whole contexts with their activations in natural order: a store, or a model over a text.
pub trait ContextSource {
    /// Width of an activation row.
    fn d_in(&self) -> usize;

    /// How many contexts there are in all, when that is known beforehand.
    fn n_contexts(&self) -> Option<u64>;

    /// Said before the first batch: contexts before number `context` are not wanted. Those that come all the same are
    /// to be passed over; what follows them does not depend on it.
    fn start_at(&mut self, context: u64) {
        let _ = context;
    }

    /// The next contexts, or `None` after the last.
    ///
    /// # Errors
    /// What reading the store or running the model gives.
    fn next_batch(&mut self) -> Result<Option<ContextBatch>>;
}
