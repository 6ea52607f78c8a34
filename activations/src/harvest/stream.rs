//! The same activations in memory, without a store.

use super::HarvestPlan;
use super::batches::{Batch, Batches};
use super::recorder::Recorder;
use crate::context::{ContextBatch, ContextSource};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::Transformer;

/// A model over a text: activations of one hook as they are computed.
pub struct ContextStream {
    recorder: Recorder,
    corpus: Corpus,
    tokens: Option<u64>,
    d_in: usize,
    batches: Option<Batches>,
}

impl ContextStream {
    /// The stream that `plan` describes.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless the plan has exactly one hook.
    pub fn new(plan: HarvestPlan) -> Result<Self> {
        let HarvestPlan {
            recorder,
            corpus,
            tokens,
            ..
        } = plan;
        let &[(_, d_in)] = recorder.hooks() else {
            return Err(Error::Invalid(format!(
                "activations can be streamed from one hook at a time, {} are asked for",
                recorder.hooks().len()
            )));
        };
        Ok(Self {
            recorder,
            corpus,
            tokens,
            d_in,
            batches: None,
        })
    }

    /// The model, for what else is wanted of it, such as its unembedding.
    pub fn model(&self) -> &Transformer {
        self.recorder.model()
    }

    /// The text.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }
}

impl ContextSource for ContextStream {
    fn d_in(&self) -> usize {
        self.d_in
    }

    /// Unknown: the text has not been tokenised yet.
    fn n_contexts(&self) -> Option<u64> {
        None
    }

    fn next_batch(&mut self) -> Result<Option<ContextBatch>> {
        let batches = self
            .batches
            .get_or_insert_with(|| Batches::start(&self.corpus, self.recorder.batch(), 0, self.tokens));
        let contexts = match batches.next().transpose()? {
            Some(Batch { contexts, .. }) if !contexts.is_empty() => contexts,
            _ => return Ok(None),
        };
        let mut recorded = self.recorder.record(&contexts)?;
        Ok(Some(ContextBatch {
            contexts,
            rows: recorded.rows,
            acts: recorded.acts.swap_remove(0),
        }))
    }
}
