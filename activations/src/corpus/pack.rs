//! Tokens of documents to contexts.

use std::collections::VecDeque;

use super::{CorpusOptions, Layout};
use crate::context::{Context, DocumentRef, Spans};
use crate::corpus::pieces::Piece;
use crate::tokenizer::Encoded;

/// Makes contexts by the rules of [`super`].
pub(super) struct Packer {
    layout: Layout,
    context: usize,
    before: Vec<u32>,
    between: Option<u32>,
    after: Vec<u32>,
    next_index: u64,
    tokens: u64,
    open: Option<Context>,
    /// Whether the present document has all the contexts that it gets.
    full: bool,
}

impl Packer {
    pub(super) fn new(options: &CorpusOptions) -> Self {
        let (before, after) = match options.layout {
            Layout::Pack => (options.bos.into_iter().collect(), Vec::new()),
            Layout::Truncate | Layout::Split => (options.before.clone(), options.after.clone()),
        };
        Self {
            layout: options.layout,
            context: options.context,
            before,
            between: options.bos.or(options.eos),
            after,
            next_index: 0,
            tokens: 0,
            open: None,
            full: false,
        }
    }

    /// Tokens of the contexts given out so far.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Takes the tokens of a piece. Contexts that became full go to `out`.
    pub(super) fn push(&mut self, piece: &Piece, encoded: &Encoded, out: &mut VecDeque<Context>) {
        if piece.starts && self.layout != Layout::Pack {
            self.finish(out);
            self.full = false;
        }
        let place = |at: u32| piece.offset + u64::from(at);
        if let (Some(between), Layout::Pack) = (self.between, self.layout)
            && let Some(&start) = encoded.starts.first()
            && piece.starts
            && self.open.is_some()
        {
            self.push_one(piece, between, (place(start), place(start)), out);
        }
        let spans = encoded.starts.iter().zip(&encoded.ends);
        for (&id, (&start, &end)) in encoded.ids.iter().zip(spans) {
            if self.full {
                break;
            }
            self.push_one(piece, id, (place(start), place(end)), out);
        }
    }

    /// Gives out the last context, which may be short.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Context>) {
        let Some(mut context) = self.open.take() else {
            return;
        };
        let end = context.spans.ends.last().copied().unwrap_or_default();
        for &id in &self.after {
            context.tokens.push(id);
            context.spans.push(end, end);
        }
        self.tokens += context.tokens.len() as u64;
        out.push_back(context);
    }

    fn push_one(&mut self, piece: &Piece, id: u32, (start, end): (u64, u64), out: &mut VecDeque<Context>) {
        if self.open.is_none() {
            self.open = Some(self.begin(piece, start));
        }
        let Some(context) = &mut self.open else { return };
        let spans = &mut context.spans;
        if spans
            .documents
            .last()
            .is_none_or(|last| last.document != piece.document)
        {
            spans.documents.push(reference(piece, context.tokens.len()));
        }
        context.tokens.push(id);
        spans.push(start, end);
        if context.tokens.len() + self.after.len() == self.context {
            self.finish(out);
            self.full = self.layout == Layout::Truncate;
        }
    }

    /// A context whose first token of text is at `start`.
    fn begin(&mut self, piece: &Piece, start: u64) -> Context {
        let mut context = Context {
            index: self.next_index,
            document: piece.document,
            tokens: Vec::with_capacity(self.context),
            spans: Spans::default(),
        };
        context.spans.documents.push(reference(piece, 0));
        for &id in &self.before {
            context.tokens.push(id);
            context.spans.push(start, start);
        }
        self.next_index += 1;
        context
    }
}

fn reference(piece: &Piece, position: usize) -> DocumentRef {
    DocumentRef {
        position: position as u32,
        document: piece.document,
        file: piece.file.clone(),
        record: piece.record,
    }
}
