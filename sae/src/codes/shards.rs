//! A source cut into shards at borders of contexts.

use activations::{ContextBatch, ContextSource, Result};

/// The contexts of a source from one on, until they hold so many tokens.
pub(super) struct Contexts<'a> {
    source: &'a mut dyn ContextSource,
    /// Contexts before this one are passed over.
    from: u64,
    tokens_left: u64,
    /// What was read and not given out.
    waiting: Option<ContextBatch>,
    ended: bool,
    /// The context after the last one that was given out.
    pub next_context: u64,
    /// Tokens of the contexts that were given out.
    pub tokens: u64,
}

impl<'a> Contexts<'a> {
    pub fn new(source: &'a mut dyn ContextSource, from: u64, tokens: u64, limit: Option<u64>) -> Self {
        source.start_at(from);
        Self {
            source,
            from,
            tokens_left: limit.unwrap_or(u64::MAX).saturating_sub(tokens),
            waiting: None,
            ended: false,
            next_context: from,
            tokens,
        }
    }

    /// Whether there is another context.
    pub fn more(&mut self) -> Result<bool> {
        while self.waiting.is_none() && !self.ended {
            match self.source.next_batch()? {
                None => self.ended = true,
                Some(batch) => {
                    let first = batch.contexts.partition_point(|c| c.index < self.from);
                    let (_, batch) = split(batch, first, self.source.d_in());
                    let mut n = 0;
                    for context in &batch.contexts {
                        if self.tokens_left == 0 {
                            self.ended = true;
                            break;
                        }
                        self.tokens_left = self.tokens_left.saturating_sub(context.tokens.len() as u64);
                        n += 1;
                    }
                    let (batch, _) = split(batch, n, self.source.d_in());
                    self.waiting = (!batch.contexts.is_empty()).then_some(batch);
                }
            }
        }
        Ok(self.waiting.is_some())
    }

    /// The next contexts as a source of their own, which ends with the context that has row `rows`, counted from 1.
    pub fn shard(&mut self, rows: u64) -> Shard<'_, 'a> {
        Shard { of: self, left: rows }
    }
}

/// The contexts of a shard.
pub(super) struct Shard<'s, 'a> {
    of: &'s mut Contexts<'a>,
    /// Rows that it still has room for.
    left: u64,
}

impl ContextSource for Shard<'_, '_> {
    fn d_in(&self) -> usize {
        self.of.source.d_in()
    }

    fn n_contexts(&self) -> Option<u64> {
        None
    }

    fn next_batch(&mut self) -> Result<Option<ContextBatch>> {
        if self.left == 0 || !self.of.more()? {
            return Ok(None);
        }
        let Some(batch) = self.of.waiting.take() else {
            return Ok(None);
        };
        let n = match usize::try_from(self.left)
            .ok()
            .and_then(|left| batch.rows.get(left - 1))
        {
            Some(last) => last.context as usize + 1,
            None => batch.contexts.len(),
        };
        let (now, later) = split(batch, n, self.d_in());
        self.of.waiting = (!later.contexts.is_empty()).then_some(later);
        self.left = self.left.saturating_sub(now.rows.len() as u64);
        self.of.tokens += now.contexts.iter().map(|c| c.tokens.len() as u64).sum::<u64>();
        if let Some(last) = now.contexts.last() {
            self.of.next_context = last.index + 1;
        }
        Ok(Some(now))
    }
}

/// The first `n` contexts of a batch, and the others.
fn split(mut batch: ContextBatch, n: usize, d_in: usize) -> (ContextBatch, ContextBatch) {
    if n >= batch.contexts.len() {
        return (batch, ContextBatch::default());
    }
    if n == 0 {
        return (ContextBatch::default(), batch);
    }
    let rows = batch.rows.partition_point(|row| (row.context as usize) < n);
    let mut behind = ContextBatch {
        contexts: batch.contexts.split_off(n),
        rows: batch.rows.split_off(rows),
        acts: batch.acts.split_off(rows * d_in),
    };
    behind.rows.iter_mut().for_each(|row| row.context -= n as u32);
    (batch, behind)
}
