//! Contexts of tokens, and activations that still know which token they belong to.

use crate::error::Result;

/// One context: the tokens that the model sees together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Number of the context in its corpus or store, from 0, in natural order.
    pub index: u64,
    /// Number of the document that its first token comes from.
    pub document: u64,
    /// Token ids, special tokens included; at most the context length.
    pub tokens: Vec<u32>,
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

    /// The next contexts, or `None` after the last.
    ///
    /// # Errors
    /// What reading the store or running the model gives.
    fn next_batch(&mut self) -> Result<Option<ContextBatch>>;
}
