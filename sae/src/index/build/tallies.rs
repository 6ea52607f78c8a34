//! From codes, which come token by token, to tallies, which are kept feature by feature.
//!
//! A block of codes is transposed by a counting sort, which keeps each feature's tokens in the order of the text.
//! Features are then independent of each other, so they can be shared out to any number of threads and each still
//! sees exactly the same sequence.

use activations::{Context, RowRef};
use rayon::prelude::*;

use super::tally::{Limits, Run, Tally};
use crate::code::HostCode;
use crate::index::{At, FeatureDetail};

/// Features a thread takes at a time.
const CHUNK: usize = 64;

/// A [`Tally`] of every feature.
pub struct Tallies {
    limits: Limits,
    features: Vec<Tally>,
    block: Transposed,
}

/// A block's codes by feature: feature `f` has `entries[starts[f] .. starts[f + 1]]`, by row.
#[derive(Default)]
struct Transposed {
    starts: Vec<usize>,
    /// Row of the block, and value.
    entries: Vec<(u32, f32)>,
}

impl Tallies {
    /// Nothing seen of `d_sae` features.
    pub fn new(d_sae: usize, limits: Limits) -> Self {
        Self {
            features: vec![Tally::new(&limits); d_sae],
            block: Transposed::default(),
            limits,
        }
    }

    /// Adds whole contexts. `rows` are ordered by context and position and refer to `contexts`; `code` has a row each.
    pub fn add(&mut self, contexts: &[Context], rows: &[RowRef], code: &HostCode) {
        assert_eq!(code.batch(), rows.len(), "a code row for each activation row");
        self.block.fill(code, self.features.len());
        let (block, limits) = (&self.block, &self.limits);
        let chunks = self.features.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each_init(Vec::new, |run, (chunk, tallies)| {
            for (offset, tally) in tallies.iter_mut().enumerate() {
                let feature = chunk * CHUNK + offset;
                let entries = &block.entries[block.starts[feature]..block.starts[feature + 1]];
                for entries in entries.chunk_by(|a, b| rows[a.0 as usize].context == rows[b.0 as usize].context) {
                    run.clear();
                    run.extend(entries.iter().map(|&(row, value)| At {
                        position: rows[row as usize].position,
                        value,
                    }));
                    let context = &contexts[rows[entries[0].0 as usize].context as usize];
                    let run = Run {
                        context: context.index,
                        tokens: &context.tokens,
                        activations: run,
                    };
                    tally.add(feature as u32, run, limits);
                }
            }
        });
    }

    /// The records of all features in order, without logits and neighbours. Each tally is freed as it is taken.
    pub fn finish(self, tokens: u64) -> impl Iterator<Item = FeatureDetail> {
        let limits = self.limits;
        let features = self.features.into_iter().enumerate();
        features.map(move |(feature, tally)| tally.finish(feature as u32, tokens, &limits))
    }
}

impl Transposed {
    fn fill(&mut self, code: &HostCode, d_sae: usize) {
        self.starts.clear();
        self.starts.resize(d_sae + 1, 0);
        for (&latent, _) in active(code) {
            self.starts[latent as usize + 1] += 1;
        }
        for f in 0..d_sae {
            self.starts[f + 1] += self.starts[f];
        }
        self.entries.clear();
        self.entries.resize(self.starts[d_sae], (0, 0.0));
        // `starts[f]` runs to the end of feature f while its entries are placed; shifting by one afterwards restores it.
        for row in 0..code.batch() {
            for (latent, value) in code.row(row) {
                self.entries[self.starts[latent]] = (row as u32, value);
                self.starts[latent] += 1;
            }
        }
        self.starts.copy_within(..d_sae, 1);
        self.starts[0] = 0;
    }
}

fn active(code: &HostCode) -> impl Iterator<Item = (&i32, &f32)> {
    code.indices.iter().zip(&code.values).filter(|(_, v)| **v != 0.0)
}
