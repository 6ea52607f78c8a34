//! What a dictionary says about a batch: which latents fire for each token, and how strongly.
//!
//! The one decision: **a code is a list of entries, row behind row, and rows may differ in length** ([`Rows`]). TopK
//! gives every token `k` entries, but a threshold, a penalty or a budget for the whole batch gives each token as many
//! as it deserves. Padding all rows to the widest would let one outlier token, which may take every latent there is,
//! make the batch as large as `[batch, d_sae]`; a cap would change what is computed. So memory and time follow the
//! entries, `active * d_in`, whoever allocates them, and equal rows are only a special case that needs no list of where
//! rows begin.
//!
//! An entry whose value is 0 is inactive whatever its latent, so nothing may read an index without its value.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::error::{Error, Result};

/// Which entries of a code belong to which row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every row has `slots` entries.
    Equal {
        /// Rows.
        batch: usize,
        /// Entries of each.
        slots: usize,
    },
    /// Row `r` has the entries from `starts[r]` to `starts[r + 1]`. `[batch + 1]`, ascending from 0.
    Ragged(Arc<[u32]>),
}

impl Rows {
    /// Rows with so many entries each.
    ///
    /// # Panics
    /// If there are more than `i32::MAX` entries: no device could number them, and they would not fit a memory either.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0usize;
        let starts = std::iter::once(0).chain(lengths.into_iter().map(|n| {
            end += n;
            assert!(end <= i32::MAX as usize, "a code of {end} entries");
            end as u32
        }));
        Self::Ragged(starts.collect())
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        match self {
            Self::Equal { batch, .. } => *batch,
            Self::Ragged(starts) => starts.len() - 1,
        }
    }

    /// Entries of all rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Equal { batch, slots } => batch * slots,
            Self::Ragged(starts) => starts[starts.len() - 1] as usize,
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries of row `row`.
    pub fn range(&self, row: usize) -> Range<usize> {
        match self {
            Self::Equal { slots, .. } => row * slots..(row + 1) * slots,
            Self::Ragged(starts) => starts[row] as usize..starts[row + 1] as usize,
        }
    }

    /// The entries of every row, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.batch()).map(|row| self.range(row))
    }

    /// The row of every entry, `[len]`.
    pub fn owners(&self) -> Vec<i32> {
        let ranges = self.ranges().zip(0i32..);
        ranges.flat_map(|(range, row)| range.map(move |_| row)).collect()
    }
}

/// A sparse code on a device. On an autodiff device its values carry gradients.
#[derive(Clone, Debug)]
pub struct SparseCode {
    /// Which entries belong to which row.
    pub rows: Rows,
    /// Latents. `[entries]`
    pub indices: Tensor<1, Int>,
    /// Their values; 0 marks an inactive entry. `[entries]`
    pub values: Tensor<1>,
}

impl SparseCode {
    /// Rows.
    pub fn batch(&self) -> usize {
        self.rows.batch()
    }

    /// Copies the code to the host: waits for the device.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the device failed on what was asked of it before.
    pub fn to_host(&self) -> Result<HostCode> {
        Ok(HostCode {
            rows: self.rows.clone(),
            indices: to_host(self.indices.clone().try_into_data())?,
            values: to_host(self.values.clone().try_into_data())?,
        })
    }

    /// Copies a code to `device`.
    pub fn from_host(code: HostCode, device: &Device) -> Self {
        let shape = [code.rows.len()];
        Self {
            indices: Tensor::from_data(TensorData::new(code.indices, shape), device),
            values: Tensor::from_data(TensorData::new(code.values, shape), device),
            rows: code.rows,
        }
    }
}

/// The elements of a tensor that was read back, as `E`.
pub(crate) fn to_host<E: burn::tensor::Element>(
    data: std::result::Result<TensorData, impl std::fmt::Debug>,
) -> Result<Vec<E>> {
    let failed = |e: &dyn std::fmt::Debug| Error::Invalid(format!("the device failed: {e:?}"));
    let data = data.map_err(|e| failed(&e))?.convert::<E>();
    data.into_vec().map_err(|e| failed(&e))
}

/// A sparse code on the host. Both vectors are `[entries]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct HostCode {
    /// Which entries belong to which row.
    pub rows: Rows,
    /// Latents, each below `d_sae`; no latent appears twice in a row.
    pub indices: Vec<i32>,
    /// Their values; 0 marks an inactive entry.
    pub values: Vec<f32>,
}

impl Default for HostCode {
    /// A code of no rows.
    fn default() -> Self {
        Self {
            rows: Rows::Ragged([0].into()),
            indices: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl HostCode {
    /// A code whose rows have `slots` entries each.
    ///
    /// # Panics
    /// If the entries are not whole rows.
    pub fn equal(slots: usize, indices: Vec<i32>, values: Vec<f32>) -> Self {
        let batch = values.len() / slots.max(1);
        assert!(
            indices.len() == values.len() && batch * slots == values.len(),
            "whole rows of {slots}"
        );
        Self {
            rows: Rows::Equal { batch, slots },
            indices,
            values,
        }
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.rows.batch()
    }

    /// The active latents of row `row` with their values.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let entries = self.rows.range(row);
        let pairs = self.indices[entries.clone()].iter().zip(&self.values[entries]);
        pairs.filter(|(_, v)| **v != 0.0).map(|(&i, &v)| (i as usize, v))
    }

    /// The same code, or one with an inactive entry if there is none: not every device has tensors of no element.
    pub(crate) fn never_empty(mut self) -> Self {
        if self.values.is_empty() && self.batch() > 0 {
            self.rows = Rows::from_lengths((0..self.batch()).map(|row| usize::from(row == 0)));
            (self.indices, self.values) = (vec![0], vec![0.0]);
        }
        self
    }

    /// Puts the rows of `other` behind these.
    pub fn append(&mut self, mut other: Self) {
        if self.batch() == 0 {
            *self = other;
            return;
        }
        self.rows = match (&self.rows, &other.rows) {
            (Rows::Equal { batch, slots }, Rows::Equal { batch: more, slots: s }) if slots == s => Rows::Equal {
                batch: batch + more,
                slots: *slots,
            },
            (one, two) => Rows::from_lengths(one.ranges().chain(two.ranges()).map(|r| r.len())),
        };
        self.indices.append(&mut other.indices);
        self.values.append(&mut other.values);
    }

    /// Leaves the first `n` rows, and gives those behind them.
    pub fn split_off(&mut self, n: usize) -> Self {
        let entries = self.rows.ranges().take(n).last().map_or(0, |r| r.end);
        let (before, behind) = match &self.rows {
            Rows::Equal { batch, slots } => (
                Rows::Equal {
                    batch: n,
                    slots: *slots,
                },
                Rows::Equal {
                    batch: batch - n,
                    slots: *slots,
                },
            ),
            Rows::Ragged(starts) => {
                let behind = starts[n..].iter().map(|s| s - starts[n]).collect();
                (Rows::Ragged(starts[..=n].into()), Rows::Ragged(behind))
            }
        };
        self.rows = before;
        Self {
            rows: behind,
            indices: self.indices.split_off(entries),
            values: self.values.split_off(entries),
        }
    }

    /// The rows from `start` to `end`, copied.
    pub fn part(&self, range: Range<usize>) -> Self {
        let entries = match range.is_empty() {
            true => 0..0,
            false => self.rows.range(range.start).start..self.rows.range(range.end - 1).end,
        };
        let rows = match &self.rows {
            Rows::Equal { slots, .. } => Rows::Equal {
                batch: range.len(),
                slots: *slots,
            },
            Rows::Ragged(_) => Rows::from_lengths(range.map(|r| self.rows.range(r).len())),
        };
        Self {
            rows,
            indices: self.indices[entries.clone()].to_vec(),
            values: self.values[entries].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ragged() -> HostCode {
        HostCode {
            rows: Rows::from_lengths([2, 0, 3]),
            indices: vec![4, 1, 0, 2, 7],
            values: vec![-1.0, 2.0, 0.0, 3.0, 0.5],
        }
    }

    #[test]
    fn inactive_entries_are_not_listed() {
        let code = HostCode::equal(2, vec![4, 1, 0, 2], vec![-1.0, 2.0, 0.0, 3.0]);
        assert_eq!(code.batch(), 2);
        assert_eq!(code.row(0).collect::<Vec<_>>(), [(4, -1.0), (1, 2.0)]);
        assert_eq!(code.row(1).collect::<Vec<_>>(), [(2, 3.0)]);
        let code = ragged();
        assert_eq!((code.batch(), code.rows.len()), (3, 5));
        assert_eq!(code.row(1).count(), 0);
        assert_eq!(code.row(2).collect::<Vec<_>>(), [(2, 3.0), (7, 0.5)]);
        assert_eq!(code.rows.owners(), [0, 0, 2, 2, 2]);
    }

    #[test]
    fn a_code_survives_the_way_to_the_device_and_back() {
        let equal = HostCode::equal(3, vec![4, 1, 0, 2, 7, 9], vec![-1.0, 2.0, 0.0, 3.0, 0.5, 0.0]);
        for code in [equal, ragged()] {
            let on_device = SparseCode::from_host(code.clone(), &Device::flex());
            assert_eq!(on_device.batch(), code.batch());
            assert_eq!(on_device.to_host().unwrap(), code);
        }
    }

    #[test]
    fn rows_are_taken_apart_and_put_together_again() {
        let equal = HostCode::equal(1, vec![4, 1, 0], vec![-1.0, 2.0, 0.0]);
        for code in [equal, ragged()] {
            for n in 0..=3 {
                let mut head = code.clone();
                let tail = head.split_off(n);
                assert_eq!((head.batch(), tail.batch()), (n, 3 - n));
                assert_eq!(head, code.part(0..n));
                assert_eq!(tail, code.part(n..3));
                head.append(tail);
                assert_eq!(
                    (head.indices.clone(), head.values.clone()),
                    (code.indices.clone(), code.values.clone())
                );
                assert!((0..3).all(|row| head.rows.range(row) == code.rows.range(row)));
            }
        }
    }
}
