//! Activations of the same tokens side by side: what a dictionary reads that has more than one hook to look at, or
//! writes somewhere else than it reads.
//!
//! The one decision: **every part keeps its own reader, and all of them go in one order.** Which row comes next depends on
//! sizes and the seed alone, so readers of the same order give rows of the same tokens without knowing of each other, and
//! the parts may lie in different stores, files and number formats. One part is what it was without this.
//!
//! ```no_run
//! # fn main() -> activations::Result<()> {
//! use activations::source::{Activations, Joined};
//! let part = |hook| Activations::open("acts".as_ref(), Some(hook));
//! let acts = Joined::new(vec![part("blocks.3.hook_resid_mid")?, part("blocks.3.hook_mlp_out")?])?;
//! println!("{} rows of {:?} values", acts.n_rows(), acts.widths());
//! # Ok(()) }
//! ```

use std::ops::Range;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::mix::{order, refuse_part_of_a_row};
use super::order::Order;
use super::{Activations, MixOptions, MixState, MixedReader, Origin, RowReader, Split, hex};
use crate::error::{Error, Result};
use crate::progress::{Outcome, Progress, Stop};

/// Rows whose places are compared before two stores are believed to be of the same tokens.
const COMPARED: u64 = 64;

/// Activations of the same tokens. A row is the rows of all parts, one behind the other.
pub struct Joined {
    parts: Vec<Activations>,
}

impl From<Activations> for Joined {
    fn from(part: Activations) -> Self {
        Self { parts: vec![part] }
    }
}

impl Joined {
    /// Puts parts side by side.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming two parts that are not of the same tokens, as far as they can tell: numbers of rows, and
    /// of stores text, contexts and positions; or if there is no part.
    pub fn new(parts: Vec<Activations>) -> Result<Self> {
        let [first, others @ ..] = &parts[..] else {
            return Err(Error::Invalid("no activations are named: at least one hook".into()));
        };
        others.iter().try_for_each(|other| same_tokens(first, other))?;
        Ok(Self { parts })
    }

    /// The parts.
    pub fn parts(&self) -> &[Activations] {
        &self.parts
    }

    /// What to call them.
    pub fn name(&self) -> String {
        let names: Vec<String> = self.parts.iter().map(Activations::name).collect();
        names.join(" and ")
    }

    /// Width of each part's rows.
    pub fn widths(&self) -> Vec<usize> {
        self.parts.iter().map(Activations::d_in).collect()
    }

    /// Width of a row, all parts together.
    pub fn d_in(&self) -> usize {
        self.parts.iter().map(Activations::d_in).sum()
    }

    /// Bytes of a row where it lies, all parts together.
    pub fn row_bytes(&self) -> u64 {
        let bytes = |part: &Activations| part.dtype().row_bytes(part.d_in()) as u64;
        self.parts.iter().map(bytes).sum()
    }

    /// Number of rows.
    pub fn n_rows(&self) -> u64 {
        self.parts[0].n_rows()
    }

    /// Where they come from: the first part's, with a fingerprint of all. Several parts have no one hook.
    pub fn origin(&self) -> Origin {
        let mut origin = self.parts[0].origin();
        if self.parts.len() > 1 {
            let mut digest = Sha256::new();
            for part in &self.parts {
                digest.update(part.origin().fingerprint);
            }
            (origin.hook, origin.fingerprint) = (None, hex(&digest.finalize()));
        }
        origin
    }

    /// As [`Activations::split`]; the border is that of a context if any part knows of contexts.
    ///
    /// # Errors
    /// As [`Activations::split`].
    pub fn split(&self, held_out_rows: u64) -> Result<Split> {
        self.placed().split(held_out_rows)
    }

    /// The first part that knows of contexts, or the first.
    fn placed(&self) -> &Activations {
        let knows = |part: &&Activations| part.rows.places.is_some() || part.rows.context_rows > 1;
        self.parts.iter().find(knows).unwrap_or(&self.parts[0])
    }

    /// Bytes of the copies that [`prepare`](Self::prepare) makes.
    pub fn copy_bytes(&self) -> u64 {
        self.parts.iter().map(Activations::copy_bytes).sum()
    }

    /// As [`Activations::prepare`], with a file for the copy of each part.
    ///
    /// # Errors
    /// As [`Activations::prepare`].
    pub fn prepare(self, copies: &[PathBuf], progress: &dyn Progress, stop: &Stop) -> Result<(Outcome, Option<Self>)> {
        assert_eq!(self.parts.len(), copies.len(), "a file for the copy of each part");
        let mut parts = Vec::with_capacity(self.parts.len());
        for (part, copy) in self.parts.into_iter().zip(copies) {
            match part.prepare(copy, progress, stop)? {
                (Outcome::Finished, Some(part)) => parts.push(part),
                _ => return Ok((Outcome::Stopped, None)),
            }
        }
        Ok((Outcome::Finished, Some(Self { parts })))
    }

    /// Decodes the rows `rows` in natural order into `out: [rows, d_in]`.
    ///
    /// # Errors
    /// As [`Activations::read_rows`].
    pub fn read_rows(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        if let [only] = &self.parts[..] {
            return only.read_rows(rows, out);
        }
        let mut strips = Strips::new(self.widths(), out.len());
        for (part, strip) in self.parts.iter().zip(strips.each()) {
            part.read_rows(rows.clone(), strip)?;
        }
        strips.weave(out);
        Ok(())
    }

    fn order(&self, rows: Range<u64>, options: &MixOptions) -> Result<Order> {
        let row_bytes: Vec<usize> = self.parts.iter().map(|part| part.rows.acts.width()).collect();
        order(&self.name(), self.n_rows(), rows, &row_bytes, options)
    }

    /// The numbers of the `n` rows that the reader of [`mixed`](Self::mixed) gives out from `state` on: computed from the
    /// state alone, without reading a row.
    ///
    /// # Errors
    /// As [`mixed`](Self::mixed).
    pub fn numbers(&self, rows: Range<u64>, options: &MixOptions, state: MixState, n: usize) -> Result<Vec<u64>> {
        Ok(self.order(rows, options)?.rows_from(state, n))
    }

    /// What to call a row: its number, and its context and position where they are known; where the rows are those of
    /// several files, the file, and the number in it.
    pub fn row_name(&self, row: u64) -> String {
        let rows = &self.placed().rows;
        let (path, name) = rows.name_of(row);
        match rows.parts.len() > 1 {
            true => format!("{name} of {}", path.display()),
            false => name,
        }
    }

    /// A reader that gives out the rows `rows` in random order.
    ///
    /// # Errors
    /// As [`Activations::mixed`].
    pub fn mixed(&self, rows: Range<u64>, options: &MixOptions) -> Result<JoinedReader> {
        let order = self.order(rows, options)?;
        let reader = |part: &Activations| {
            part.readable()?;
            Ok(MixedReader::in_order(part.rows.clone(), order.clone()))
        };
        Ok(JoinedReader {
            readers: self.parts.iter().map(reader).collect::<Result<_>>()?,
        })
    }
}

/// Refuses two parts that are not of the same tokens, as far as they know.
fn same_tokens(one: &Activations, other: &Activations) -> Result<()> {
    let refuse = |problem: String| {
        Err(Error::Invalid(format!(
            "{} and {} are not of the same tokens: {problem}",
            one.name(),
            other.name()
        )))
    };
    if one.n_rows() != other.n_rows() {
        return refuse(format!("{} rows and {}", one.n_rows(), other.n_rows()));
    }
    if let (Some(a), Some(b)) = (&one.origin.corpus, &other.origin.corpus)
        && a != b
    {
        return refuse(format!("the text of one is {}, of the other {}", a.name, b.name));
    }
    if one.origin.path == other.origin.path {
        return Ok(());
    }
    let (Some(a), Some(b)) = (&one.rows.places, &other.rows.places) else {
        return Ok(());
    };
    let last = one.n_rows().saturating_sub(1);
    for i in 0..COMPARED.min(one.n_rows()) {
        let row = (u128::from(last) * u128::from(i) / u128::from(COMPARED.min(one.n_rows()).max(2) - 1)) as u64;
        let ((context, position), (c, p)) = (a.of(row)?, b.of(row)?);
        if (context, position) != (c, p) {
            return refuse(format!(
                "row {row} is position {position} of context {context} in one, position {p} of context {c} in the other"
            ));
        }
    }
    Ok(())
}

/// Gives out rows of all parts in random order, every row once an epoch, epoch after epoch.
pub struct JoinedReader {
    /// All in one order, at the same place.
    readers: Vec<MixedReader>,
}

impl JoinedReader {
    /// As [`MixedReader::restore`].
    ///
    /// # Errors
    /// As [`MixedReader::restore`].
    pub fn restore(&mut self, state: MixState) -> Result<()> {
        self.readers.iter_mut().try_for_each(|reader| reader.restore(state))
    }
}

impl RowReader for JoinedReader {
    fn d_in(&self) -> usize {
        self.readers.iter().map(MixedReader::d_in).sum()
    }

    fn next_batch(&mut self, out: &mut [f32]) -> Result<()> {
        if let [only] = &mut self.readers[..] {
            return only.next_batch(out);
        }
        refuse_part_of_a_row("activations side by side", out.len(), RowReader::d_in(self))?;
        let state = RowReader::state(self);
        let mut strips = Strips::new(self.readers.iter().map(MixedReader::d_in).collect(), out.len());
        for (reader, strip) in self.readers.iter_mut().zip(strips.each()) {
            if let Err(error) = reader.next_batch(strip) {
                // Those before it have moved on.
                self.restore(state)?;
                return Err(error);
            }
        }
        strips.weave(out);
        Ok(())
    }

    fn state(&self) -> MixState {
        self.readers[0].state()
    }
}

/// Rows of several widths, one array each, on their way to being side by side.
struct Strips {
    widths: Vec<usize>,
    values: Vec<Vec<f32>>,
}

impl Strips {
    /// Room for `total` values of all widths together.
    fn new(widths: Vec<usize>, total: usize) -> Self {
        let rows = total / widths.iter().sum::<usize>().max(1);
        let values = widths.iter().map(|width| vec![0.0; rows * width]).collect();
        Self { widths, values }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.values.iter_mut()
    }

    fn weave(&self, out: &mut [f32]) {
        weave(&self.values, &self.widths, out);
    }
}

/// Puts arrays of rows side by side: `parts` are `[rows, widths[i]]`, `out` is `[rows, sum of widths]`.
pub(crate) fn weave(parts: &[Vec<f32>], widths: &[usize], out: &mut [f32]) {
    let total: usize = widths.iter().sum();
    let mut at = 0;
    for (part, &width) in parts.iter().zip(widths) {
        for (row, values) in out.chunks_exact_mut(total).zip(part.chunks_exact(width)) {
            row[at..at + width].copy_from_slice(values);
        }
        at += width;
    }
}

/// As [`weave`], of whole arrays; the only one is not copied.
pub(crate) fn side_by_side(mut parts: Vec<Vec<f32>>, widths: &[usize]) -> Vec<f32> {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut out = vec![0.0; parts.iter().map(Vec::len).sum()];
    weave(&parts, widths, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_widths_lie_one_behind_the_other() {
        let parts = vec![vec![1.0, 2.0, 3.0, 4.0], vec![10.0, 20.0]];
        assert_eq!(side_by_side(parts, &[2, 1]), [1.0, 2.0, 10.0, 3.0, 4.0, 20.0]);
        assert_eq!(side_by_side(vec![vec![1.0, 2.0]], &[1]), [1.0, 2.0]);
    }
}
