//! The codes of a source in blocks of whole contexts.
//!
//! Rows are encoded in blocks whose size depends on the dictionary alone and which are counted from the first row,
//! never in the batches that the source happens to give: a matrix product of another shape may round differently,
//! and then the index would depend on how its source was read.

use activations::{Context, ContextBatch, ContextSource, RowRef};

use crate::code::HostCode;
use crate::{Error, Result};

/// Pre-activations computed at a time, which bounds the room of `[rows, d_sae]`: 64 MiB of f32.
const BLOCK_ELEMENTS: usize = 1 << 24;

/// How activations become codes: `[rows, d_in]` to a code row each.
pub type Encode<'a> = dyn Fn(&[f32]) -> Result<HostCode> + 'a;

/// Whole contexts with their codes.
pub struct Block {
    /// In natural order.
    pub contexts: Vec<Context>,
    /// One entry a code row, ordered by context and position; contexts are indices into `contexts`.
    pub rows: Vec<RowRef>,
    /// A row for each of `rows`.
    pub code: HostCode,
}

/// Reads, checks and encodes a [`ContextSource`].
pub struct Encoded<'a> {
    source: &'a mut dyn ContextSource,
    encode: &'a Encode<'a>,
    /// Of the source, in error messages.
    name: &'a str,
    d_in: usize,
    /// Tokens of the vocabulary; 0 if there is none to compare with.
    vocabulary: usize,
    block_rows: usize,
    exhausted: bool,
    /// Rows taken from the source.
    taken: u64,
    last_context: Option<u64>,
    contexts: Vec<Context>,
    rows: Vec<RowRef>,
    /// Rows not yet encoded: `acts[encoded_acts ..]`.
    acts: Vec<f32>,
    encoded_acts: usize,
    /// Codes of the first rows of `rows`.
    code: HostCode,
}

impl<'a> Encoded<'a> {
    /// `name` is what error messages call the source.
    ///
    /// # Errors
    /// If the source is of another width than the dictionary.
    pub fn new(
        source: &'a mut dyn ContextSource,
        encode: &'a Encode<'a>,
        name: &'a str,
        (d_in, d_sae): (usize, usize),
        vocabulary: usize,
    ) -> Result<Self> {
        if source.d_in() != d_in {
            let found = source.d_in();
            return Err(Error::Invalid(format!(
                "{name} has d_in {found} but the SAE expects {d_in}"
            )));
        }
        Ok(Self {
            source,
            encode,
            name,
            d_in,
            vocabulary,
            block_rows: (BLOCK_ELEMENTS / d_sae.max(1)).clamp(16, 4096),
            exhausted: false,
            taken: 0,
            last_context: None,
            contexts: Vec::new(),
            rows: Vec::new(),
            acts: Vec::new(),
            encoded_acts: 0,
            code: HostCode::default(),
        })
    }

    /// The next contexts whose rows are all encoded; none after the last.
    ///
    /// # Errors
    /// What the source and the encoder give; if the source's batch is inconsistent or holds a NaN or an infinity.
    pub fn next(&mut self) -> Result<Option<Block>> {
        loop {
            let waiting = (self.acts.len() - self.encoded_acts) / self.d_in;
            if waiting >= self.block_rows || (self.exhausted && waiting > 0) {
                self.encode_rows(waiting.min(self.block_rows))?;
            } else if !self.exhausted {
                match self.source.next_batch()? {
                    Some(batch) => self.append(batch)?,
                    None => self.exhausted = true,
                }
                continue;
            }
            let block = self.complete();
            if !block.contexts.is_empty() {
                return Ok(Some(block));
            }
            if self.exhausted && self.contexts.is_empty() {
                return Ok(None);
            }
        }
    }

    fn encode_rows(&mut self, n: usize) -> Result<()> {
        let end = self.encoded_acts + n * self.d_in;
        let code = (self.encode)(&self.acts[self.encoded_acts..end])?;
        let first = self.taken - ((self.acts.len() - self.encoded_acts) / self.d_in) as u64;
        if let Some(entry) = code.values.iter().position(|v| !v.is_finite()) {
            let row = code.rows.ranges().position(|range| range.contains(&entry));
            let (row, latent, value) = (first + row.unwrap_or(0) as u64, code.indices[entry], code.values[entry]);
            let name = self.name;
            return Err(Error::Invalid(format!(
                "the SAE encodes row {row} of {name} with {value} at latent {latent}: its weights or the row are out of range"
            )));
        }
        self.encoded_acts = end;
        self.code.append(code);
        Ok(())
    }

    /// Takes out the contexts that are complete.
    fn complete(&mut self) -> Block {
        let encoded = self.code.batch();
        let n = match self.rows.get(encoded) {
            Some(row) => row.context as usize,
            None => self.contexts.len(),
        };
        let n_rows = self.rows.partition_point(|row| (row.context as usize) < n);
        let mut rows = self.rows.split_off(n_rows);
        rows.iter_mut().for_each(|row| row.context -= n as u32);
        let contexts = self.contexts.split_off(n);
        let code = self.code.split_off(n_rows);
        Block {
            contexts: std::mem::replace(&mut self.contexts, contexts),
            rows: std::mem::replace(&mut self.rows, rows),
            code: std::mem::replace(&mut self.code, code),
        }
    }

    fn append(&mut self, batch: ContextBatch) -> Result<()> {
        self.check(&batch)?;
        self.last_context = batch.contexts.last().map(|c| c.index).or(self.last_context);
        self.taken += batch.rows.len() as u64;
        let before = self.contexts.len() as u32;
        self.contexts.extend(batch.contexts);
        self.rows.extend(batch.rows.into_iter().map(|row| RowRef {
            context: row.context + before,
            ..row
        }));
        self.acts.drain(..self.encoded_acts);
        self.encoded_acts = 0;
        if self.acts.is_empty() {
            self.acts = batch.acts;
        } else {
            self.acts.extend(batch.acts);
        }
        Ok(())
    }

    /// Whether a batch keeps what [`ContextSource`] promises: everything after relies on it.
    fn check(&self, batch: &ContextBatch) -> Result<()> {
        let name = self.name;
        let refuse = |problem: String| Err(Error::Invalid(format!("{name}: {problem}")));
        if batch.acts.len() != batch.rows.len() * self.d_in {
            let (found, rows) = (batch.acts.len(), batch.rows.len());
            return refuse(format!("{rows} rows of d_in {} come with {found} values", self.d_in));
        }
        let mut last = self.last_context;
        for context in &batch.contexts {
            let index = context.index;
            if let Some(last) = last.filter(|last| *last >= index) {
                return refuse(format!("contexts must ascend, but {index} comes after {last}"));
            }
            last = Some(index);
            let beyond = context.tokens.iter().find(|t| **t as usize >= self.vocabulary);
            if let Some(token) = beyond.filter(|_| self.vocabulary > 0) {
                let size = self.vocabulary;
                return refuse(format!(
                    "context {index} holds token {token}, but the vocabulary has {size}: the tokenizer is of another model"
                ));
            }
        }
        let order = |row: &RowRef| (row.context, row.position);
        if !batch.rows.is_sorted_by(|a, b| order(a) < order(b)) {
            return refuse("rows must be ordered by context and position, one each".into());
        }
        for row in &batch.rows {
            let context = batch.contexts.get(row.context as usize);
            if context.is_none_or(|c| row.position as usize >= c.tokens.len()) {
                let RowRef { context, position } = row;
                return refuse(format!(
                    "a row is about position {position} of context {context}, which is not there"
                ));
            }
        }
        if let Some(at) = batch.acts.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                source_name: name.into(),
                row: self.taken + (at / self.d_in) as u64,
                coordinate: at % self.d_in,
                value: batch.acts[at],
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contexts of three tokens of which the first has no row; a row holds its number twice.
    struct Source {
        batches: Vec<ContextBatch>,
    }

    impl Source {
        fn new(contexts: u64, in_batches_of: usize) -> Self {
            let all: Vec<u64> = (0..contexts).collect();
            let batches = all.chunks(in_batches_of).map(|chunk| ContextBatch {
                contexts: chunk
                    .iter()
                    .map(|&index| Context {
                        index,
                        document: 0,
                        tokens: vec![0, 1, 2],
                        ..Context::default()
                    })
                    .collect(),
                rows: (0..chunk.len() as u32)
                    .flat_map(|context| [1, 2].map(|position| RowRef { context, position }))
                    .collect(),
                acts: chunk
                    .iter()
                    .flat_map(|c| [2 * c, 2 * c, 2 * c + 1, 2 * c + 1].map(|v| v as f32))
                    .collect(),
            });
            let mut batches: Vec<_> = batches.collect();
            batches.reverse();
            Self { batches }
        }
    }

    impl ContextSource for Source {
        fn d_in(&self) -> usize {
            2
        }
        fn n_contexts(&self) -> Option<u64> {
            None
        }
        fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
            Ok(self.batches.pop())
        }
    }

    #[test]
    fn blocks_are_encoded_alike_whatever_the_batches_of_the_source() {
        // 2^24 / 2^20 = 16 rows a block; 50 contexts have 100 rows.
        for in_batches_of in [1, 3, 7, 50] {
            let mut source = Source::new(50, in_batches_of);
            let sizes = std::cell::RefCell::new(Vec::new());
            let encode = |x: &[f32]| {
                sizes.borrow_mut().push(x.len() / 2);
                let values = x.iter().step_by(2).map(|v| v + 1.0).collect();
                Ok(HostCode::equal(1, vec![0; x.len() / 2], values))
            };
            let mut encoded = Encoded::new(&mut source, &encode, "acts", (2, 1 << 20), 3).unwrap();
            let (mut contexts, mut values) = (Vec::new(), Vec::new());
            while let Some(block) = encoded.next().unwrap() {
                assert_eq!(block.rows.len(), 2 * block.contexts.len(), "contexts are whole");
                assert_eq!(block.code.batch(), block.rows.len());
                assert_eq!(block.rows.last().unwrap().context as usize + 1, block.contexts.len());
                contexts.extend(block.contexts.iter().map(|c| c.index));
                values.extend(block.code.values);
            }
            assert_eq!(contexts, (0..50).collect::<Vec<_>>());
            assert_eq!(values, (1..=100).map(|v| v as f32).collect::<Vec<_>>());
            assert_eq!(sizes.into_inner(), [16, 16, 16, 16, 16, 16, 4]);
        }
    }

    fn refused(change: impl FnOnce(&mut ContextBatch)) -> String {
        let mut source = Source::new(9, 5);
        change(&mut source.batches[0]);
        let encode = |x: &[f32]| {
            let values = x.iter().step_by(2).map(|v| if *v > 1e30 { f32::INFINITY } else { *v });
            Ok(HostCode::equal(1, vec![0; x.len() / 2], values.collect()))
        };
        let mut encoded = Encoded::new(&mut source, &encode, "the store", (2, 1 << 20), 3).unwrap();
        loop {
            match encoded.next() {
                Ok(Some(_)) => {}
                Ok(None) => return "nothing wrong".into(),
                Err(error) => return error.to_string(),
            }
        }
    }

    #[test]
    fn a_source_that_breaks_its_promises_is_refused_by_row_and_context() {
        assert_eq!(refused(|_| {}), "nothing wrong");
        let nan = refused(|b| b.acts[5] = f32::NAN);
        assert!(nan.contains("row 12 of the store holds NaN at coordinate 1"), "{nan}");
        let huge = refused(|b| b.acts[4] = 2e30);
        assert!(huge.contains("row 12 of the store with inf at latent 0"), "{huge}");
        assert!(refused(|b| b.contexts[0].index = 4).contains("4 comes after 4"));
        assert!(refused(|b| b.contexts[1].tokens[0] = 3).contains("holds token 3, but the vocabulary has 3"));
        assert!(refused(|b| b.rows.swap(0, 1)).contains("ordered by context and position"));
        assert!(refused(|b| b.rows[7].position = 3).contains("position 3 of context 3"));
        assert!(refused(|b| b.acts.truncate(3)).contains("8 rows of d_in 2 come with 3 values"));
    }

    #[test]
    fn another_width_is_refused_with_both_numbers() {
        let mut source = Source::new(1, 1);
        let encode = |_: &[f32]| Ok(HostCode::default());
        let error = Encoded::new(&mut source, &encode, "the store", (512, 8), 0)
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "the store has d_in 2 but the SAE expects 512");
    }
}
