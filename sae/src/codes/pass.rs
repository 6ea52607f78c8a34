//! One pass over a source: shard by shard, block by block.

use std::cell::RefCell;
use std::path::Path;

use activations::{ContextSource, Outcome, Progress, Stop};

use super::dense::DenseArray;
use super::journal::Journal;
use super::shards::Contexts;
use super::tables::{EntryTable, RowTable};
use super::{CodesManifest, CodesShard};
use crate::code::HostCode;
use crate::dictionary::Sae;
use crate::error::{Error, Result};
use crate::index::{Block, Encoded};
use crate::metrics::Quality;

/// What a pass needs beside its source and where it goes on.
pub(super) struct Pass<'a> {
    pub sae: &'a Sae,
    /// Whether the reconstruction is of the rows that are read.
    pub measured: bool,
    pub out: &'a Path,
    /// The most bytes of an array, where one is written.
    pub dense_bytes: Option<u64>,
    pub about_rows: Option<u64>,
    pub progress: &'a dyn Progress,
    pub stop: &'a Stop,
}

/// Where the entries of a shard go.
enum Entries {
    Table(Box<EntryTable>),
    Array(DenseArray),
}

impl Entries {
    fn push(&mut self, context: u64, position: u32, entries: &[(u32, f32)]) -> Result<()> {
        match self {
            Self::Table(table) => table.push(context, position, entries),
            Self::Array(array) => array.push(entries),
        }
    }

    fn close(self) -> Result<u64> {
        match self {
            Self::Table(table) => table.close(),
            Self::Array(array) => array.close(),
        }
    }
}

impl Pass<'_> {
    /// Encodes everything from where `journal` is.
    pub fn run(
        &self,
        source: &mut dyn ContextSource,
        mut journal: Journal,
    ) -> Result<(Outcome, Option<CodesManifest>)> {
        let request = &journal.request;
        let rows_per_shard = request.rows_per_shard;
        let mut contexts = Contexts::new(source, journal.next_context, journal.tokens, request.max_tokens);
        self.progress.begin("encode", self.about_rows, "rows");
        self.progress.advance(journal.shards.iter().map(|s| s.n_rows).sum());
        while contexts.more()? {
            let Some(shard) = self.shard(&mut contexts, rows_per_shard, &mut journal)? else {
                return Ok((Outcome::Stopped, None));
            };
            // Contexts at the end may have no rows.
            if shard.n_rows > 0 {
                journal.shards.push(shard);
                (journal.next_context, journal.tokens) = (contexts.next_context, contexts.tokens);
                journal.write(self.out)?;
            }
        }
        if journal.shards.is_empty() {
            return Err(Error::Invalid(format!(
                "there are no activations of {} to encode: the text is empty or has special tokens only",
                journal.request.hook
            )));
        }
        self.progress.finish();
        Ok((Outcome::Finished, Some(journal.finish(self.out)?)))
    }

    /// Encodes and writes the next shard; `None` if it was stopped.
    fn shard(&self, contexts: &mut Contexts, rows: u64, journal: &mut Journal) -> Result<Option<CodesShard>> {
        let number = journal.shards.len();
        let hook = &journal.request.hook;
        let name = format!("the activations of {hook} from context {} on", contexts.next_context);
        let dims = (self.sae.d_in(), self.sae.d_sae());
        let mut row_table = RowTable::create(self.out, number)?;
        let mut entries = match self.dense_bytes {
            None => Entries::Table(Box::new(EntryTable::create(self.out, number)?)),
            Some(limit) => Entries::Array(DenseArray::create(self.out, self.sae.d_sae(), limit)?),
        };
        let quality = RefCell::new(&mut journal.quality);
        let encode = |x: &[f32]| self.encode(x, &quality);
        let mut source = contexts.shard(rows);
        let mut encoded = Encoded::new(&mut source, &encode, &name, dims, 0)?;
        let (mut first_context, mut n_rows, mut n_entries) = (None, 0, 0);
        while let Some(block) = encoded.next()? {
            if self.stop.requested() {
                return Ok(None);
            }
            for (row, entry) in sorted_rows(&block).enumerate() {
                let at = block.rows[row];
                let context = &block.contexts[at.context as usize];
                let token = context.tokens[at.position as usize];
                row_table.push(context.index, at.position, token, entry.len() as u32)?;
                entries.push(context.index, at.position, &entry)?;
                first_context.get_or_insert(context.index);
                n_entries += entry.len() as u64;
            }
            journal
                .firing
                .add(block.rows.len(), &block.code.indices, &block.code.values);
            n_rows += block.rows.len() as u64;
            self.progress.advance(block.rows.len() as u64);
        }
        let mut shard = CodesShard {
            first_context: first_context.unwrap_or_default(),
            n_rows,
            n_entries,
            rows_bytes: 0,
            codes_bytes: 0,
        };
        if n_rows > 0 {
            shard.rows_bytes = row_table.close()?;
            shard.codes_bytes = entries.close()?;
        }
        Ok(Some(shard))
    }

    /// The code of rows, and how well it reconstructs them.
    fn encode(&self, x: &[f32], quality: &RefCell<&mut Quality>) -> Result<HostCode> {
        let code = self.sae.encode_rows(x)?;
        if self.measured {
            quality.borrow_mut().add(x, &self.sae.recon_rows(x, &code)?);
        }
        Ok(code)
    }
}

/// The active entries of every row of a block, by latent.
fn sorted_rows(block: &Block) -> impl Iterator<Item = Vec<(u32, f32)>> + '_ {
    (0..block.rows.len()).map(|row| {
        let mut entries: Vec<(u32, f32)> = block
            .code
            .row(row)
            .map(|(latent, value)| (latent as u32, value))
            .collect();
        entries.sort_unstable_by_key(|&(latent, _)| latent);
        entries
    })
}
