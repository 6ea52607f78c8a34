//! Cutting the stream of tokens into contexts.

use std::collections::VecDeque;

use super::CorpusOptions;
use crate::context::Context;

/// Packs documents into contexts by the rule of [`super`].
pub(super) struct Packer {
    context: usize,
    bos: Option<u32>,
    between: Option<u32>,
    next_index: u64,
    tokens: u64,
    open: Option<Context>,
}

impl Packer {
    pub(super) fn new(options: &CorpusOptions) -> Self {
        Self {
            context: options.context,
            bos: options.bos,
            between: options.bos.or(options.eos),
            next_index: 0,
            tokens: 0,
            open: None,
        }
    }

    /// Tokens of the contexts given out so far.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Takes the tokens of a piece of `document`, which the piece `starts` or continues. Contexts that became full go
    /// to `out`.
    pub(super) fn push(&mut self, starts: bool, document: u64, ids: &[u32], out: &mut VecDeque<Context>) {
        if let Some(between) = self
            .between
            .filter(|_| starts && !ids.is_empty() && self.open.is_some())
        {
            self.push_one(document, between, out);
        }
        for &id in ids {
            self.push_one(document, id, out);
        }
    }

    /// Gives out the last context, which may be short.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Context>) {
        if let Some(context) = self.open.take() {
            self.tokens += context.tokens.len() as u64;
            out.push_back(context);
        }
    }

    fn push_one(&mut self, document: u64, id: u32, out: &mut VecDeque<Context>) {
        let context = self.open.get_or_insert_with(|| {
            let mut tokens = Vec::with_capacity(self.context);
            tokens.extend(self.bos);
            self.next_index += 1;
            Context {
                index: self.next_index - 1,
                document,
                tokens,
            }
        });
        context.tokens.push(id);
        if context.tokens.len() == self.context {
            self.finish(out);
        }
    }
}
