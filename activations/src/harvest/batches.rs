//! Contexts in batches, tokenised ahead on a thread of their own while the model works.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::context::Context;
use crate::corpus::{Contexts, Corpus};
use crate::error::Result;

/// Some contexts in order.
pub(super) struct Batch {
    /// None in the last batch, which only counts.
    pub contexts: Vec<Context>,
    /// Invalid sequences replaced in the text so far.
    pub replaced: u64,
    /// Records of the text left out so far.
    pub bad_records: u64,
}

impl Batch {
    pub(super) fn tokens(&self) -> u64 {
        self.contexts.iter().map(|c| c.tokens.len() as u64).sum()
    }
}

/// The batches of a corpus. Every batch but the last with contexts has the same number of them, and the first begins
/// with a multiple of it, so that the model computes the same products whether a harvest was interrupted or not.
pub(super) struct Batches {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

/// Batches that wait for the model.
const AHEAD: usize = 2;

impl Batches {
    /// Batches of `size` contexts from the one on that holds context `first`, until the contexts from number 0 on hold
    /// `tokens` tokens.
    pub(super) fn start(corpus: &Corpus, size: usize, first: u64, tokens: Option<u64>) -> Self {
        let first = first - first % size as u64;
        let mut taker = Taker {
            contexts: corpus.contexts_from(first),
            size,
            left: tokens.unwrap_or(u64::MAX),
        };
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || {
            loop {
                let batch = taker.next();
                let last = batch.as_ref().map_or(true, |batch| batch.contexts.is_empty());
                // The receiver hangs up when the harvest stops.
                if sender.send(batch).is_err() || last {
                    break;
                }
            }
        });
        Self {
            receiver: Some(receiver),
            thread: Some(thread),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // It sends results and does not panic; if it did, the panic was printed and there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Takes batches from a stream of contexts.
struct Taker {
    contexts: Contexts,
    size: usize,
    left: u64,
}

impl Taker {
    fn next(&mut self) -> Result<Batch> {
        // The first time, those before the first batch count as well.
        self.left = self.left.saturating_sub(self.contexts.pass()?);
        let mut contexts = Vec::new();
        while contexts.len() < self.size && self.left > 0 {
            match self.contexts.next().transpose()? {
                Some(context) => {
                    self.left = self.left.saturating_sub(context.tokens.len() as u64);
                    contexts.push(context);
                }
                None => break,
            }
        }
        Ok(Batch {
            contexts,
            replaced: self.contexts.replaced(),
            bad_records: self.contexts.bad_records(),
        })
    }
}
