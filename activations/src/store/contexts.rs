//! Reading a store in its natural order, whole contexts at a time.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::manifest::{StoreManifest, acts_path};
use super::shard::read_contexts;
use crate::context::{Context, ContextBatch, ContextSource, RowRef};
use crate::error::{Error, Result};
use crate::source::joined::side_by_side;
use crate::source::rows::{ActRows, Places};

/// Activation bytes of a batch, in f32: enough that a matrix product with them is efficient.
const BATCH_BYTES: usize = 16 << 20;

/// The contexts of a store with the activations of one hook, or of several side by side.
pub struct StoreContexts {
    dir: PathBuf,
    manifest: Arc<StoreManifest>,
    /// Of each hook, at least one.
    hooks: Vec<ActRows>,
    /// The next shard to open.
    shard: usize,
    /// Contexts of the present shard that were not given out, with their numbers of rows.
    waiting: VecDeque<(Context, Vec<u32>)>,
    /// The next row.
    row: u64,
}

impl StoreContexts {
    pub(crate) fn new(dir: PathBuf, manifest: Arc<StoreManifest>, hooks: Vec<ActRows>) -> Self {
        Self {
            dir,
            manifest,
            hooks,
            shard: 0,
            waiting: VecDeque::new(),
            row: 0,
        }
    }

    /// Reads the contexts of the next shard, and which of their positions have rows.
    fn open_shard(&mut self) -> Result<()> {
        let (number, entry) = (self.shard, &self.manifest.shards[self.shard]);
        let contexts = read_contexts(&self.dir, number, &self.manifest.spec, entry)?;
        let range = self.row..self.row + entry.n_rows;
        let rows = &self.hooks[0];
        let Some(Places { context, position }) = &rows.places else {
            return Err(Error::Invalid(format!("{} has no contexts", rows.name)));
        };
        let (of, positions) = (context.read_u64(range.clone())?, position.read_u32(range)?);
        let mut next = 0;
        for context in contexts {
            let n = of[next..].iter().take_while(|&&c| c == context.index).count();
            let positions = positions[next..next + n].to_vec();
            let ascending = positions.windows(2).all(|p| p[0] < p[1]);
            let within = positions.last().is_none_or(|&p| (p as usize) < context.tokens.len());
            if !(ascending && within) {
                return Err(Error::bad_file(
                    acts_path(&self.dir, number),
                    format!(
                        "has rows of context {} at positions that its {} tokens do not have, or not in order",
                        context.index,
                        context.tokens.len()
                    ),
                ));
            }
            next += n;
            self.waiting.push_back((context, positions));
        }
        if next != of.len() {
            return Err(Error::bad_file(
                acts_path(&self.dir, number),
                format!("has rows of context {} out of order", of[next]),
            ));
        }
        self.shard += 1;
        Ok(())
    }
}

impl ContextSource for StoreContexts {
    fn d_in(&self) -> usize {
        self.hooks.iter().map(|rows| rows.d_in).sum()
    }

    fn n_contexts(&self) -> Option<u64> {
        Some(self.manifest.n_contexts)
    }

    fn start_at(&mut self, context: u64) {
        // Whole shards are passed over without being opened.
        while let Some(shard) = self.manifest.shards.get(self.shard)
            && shard.first_context + shard.n_contexts <= context
        {
            self.row += shard.n_rows;
            self.shard += 1;
        }
    }

    fn next_batch(&mut self) -> Result<Option<ContextBatch>> {
        while self.waiting.is_empty() {
            if self.shard == self.manifest.shards.len() {
                return Ok(None);
            }
            self.open_shard()?;
        }
        let mut batch = ContextBatch::default();
        let d_in = self.d_in();
        while let Some((context, positions)) = self.waiting.pop_front() {
            let number = batch.contexts.len() as u32;
            batch.rows.extend(positions.iter().map(|&position| RowRef {
                context: number,
                position,
            }));
            batch.contexts.push(context);
            if batch.rows.len() * d_in * 4 >= BATCH_BYTES {
                break;
            }
        }
        let end = self.row + batch.rows.len() as u64;
        let read = |rows: &ActRows| {
            let mut acts = vec![0.0; batch.rows.len() * rows.d_in];
            rows.read(self.row..end, &mut acts).map(|()| acts)
        };
        let acts = self.hooks.iter().map(read).collect::<Result<_>>()?;
        let widths: Vec<usize> = self.hooks.iter().map(|rows| rows.d_in).collect();
        batch.acts = side_by_side(acts, &widths);
        self.row = end;
        Ok(Some(batch))
    }
}
