//! The same activations in memory, without a store.

use super::HarvestPlan;
use super::batches::{Batch, Batches};
use super::recorder::Recorder;
use crate::context::{ContextBatch, ContextSource};
use crate::corpus::Corpus;
use crate::error::Result;
use crate::model::Transformer;
use crate::source::joined::side_by_side;

/// A model over a text: activations of one hook, or of several side by side, as they are computed.
pub struct ContextStream {
    recorder: Recorder,
    corpus: Corpus,
    tokens: Option<u64>,
    /// Of each hook.
    widths: Vec<usize>,
    /// The first context that is wanted.
    first: u64,
    batches: Option<Batches>,
}

impl ContextStream {
    /// The stream that `plan` describes. Of several hooks, a row is the rows of all, one behind the other.
    pub fn new(plan: HarvestPlan) -> Self {
        let widths = plan.widths();
        let HarvestPlan {
            recorder,
            corpus,
            tokens,
            ..
        } = plan;
        Self {
            recorder,
            corpus,
            tokens,
            widths,
            first: 0,
            batches: None,
        }
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
        self.widths.iter().sum()
    }

    /// Unknown: the text has not been tokenised yet.
    fn n_contexts(&self) -> Option<u64> {
        None
    }

    fn start_at(&mut self, context: u64) {
        self.first = context;
    }

    fn next_batch(&mut self) -> Result<Option<ContextBatch>> {
        let batches = self
            .batches
            .get_or_insert_with(|| Batches::start(&self.corpus, self.recorder.batch(), self.first, self.tokens));
        let contexts = match batches.next().transpose()? {
            Some(Batch { contexts, .. }) if !contexts.is_empty() => contexts,
            _ => return Ok(None),
        };
        let recorded = self.recorder.record(&contexts)?;
        Ok(Some(ContextBatch {
            contexts,
            rows: recorded.rows,
            acts: side_by_side(recorded.acts, &self.widths),
        }))
    }
}
