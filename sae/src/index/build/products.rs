//! The extreme products of a dictionary's rows with many other rows: neighbours and logits.
//!
//! All products are computed, in blocks and as matrix products, but only the extremes of each row are kept. Matrix
//! products round differently from device to device and shape to shape, so they only nominate: a few more than are
//! wanted are computed again in f64, and those numbers decide the order and are reported.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::{Error, Result};

/// Products computed at a time: 64 MiB of f32.
const BLOCK_ELEMENTS: usize = 1 << 24;

/// Nominees beyond the number wanted, so that rounding cannot cost one of the wanted its place.
const SPARE: usize = 4;

/// Rows of the same width.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    values: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    /// `values`: `[n, width]`.
    pub fn new(values: &'a [f32], width: usize) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "rows are [n, width]");
        Self { values, width }
    }

    /// How many.
    pub fn len(self) -> usize {
        self.values.len() / self.width
    }

    fn row(self, i: usize) -> &'a [f32] {
        &self.values[i * self.width..][..self.width]
    }

    fn tensor(self, rows: Range<usize>, device: &Device) -> Tensor<2> {
        let values = self.values[rows.start * self.width..rows.end * self.width].to_vec();
        Tensor::from_data(TensorData::new(values, [rows.len(), self.width]), device)
    }
}

/// Which end of a row's products is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The largest, descending.
    Largest,
    /// The smallest, ascending.
    Smallest,
}

/// Other rows with their products, the most extreme first.
pub type Ranked = Vec<(u32, f32)>;

/// Rows to multiply with, ready on the device.
pub struct Products<'a> {
    others: Rows<'a>,
    /// `[width, n]`
    transposed: Tensor<2>,
    device: Device,
}

impl<'a> Products<'a> {
    /// Products with `others`.
    pub fn new(others: Rows<'a>, device: &Device) -> Self {
        Self {
            others,
            transposed: others.tensor(0..others.len(), device).transpose(),
            device: device.clone(),
        }
    }

    /// How many rows can be multiplied at a time.
    pub fn block(&self) -> usize {
        (BLOCK_ELEMENTS / self.others.len().max(1)).clamp(1, 1024)
    }

    /// For each row of `rows[range]` and each of `ends`: the `n` extreme products as `(index, product)`; of equal
    /// products the lower index comes first. `skip(row, other)` leaves out a pair. `[range, ends]`.
    pub fn extremes<const E: usize>(
        &self,
        rows: Rows,
        range: Range<usize>,
        n: usize,
        ends: [End; E],
        skip: impl Fn(usize, usize) -> bool + Sync,
    ) -> Result<Vec<[Ranked; E]>> {
        let block = rows.tensor(range.clone(), &self.device).matmul(self.transposed.clone());
        let products: Vec<f32> = block
            .into_data()
            .into_vec()
            .map_err(|e| Error::Invalid(format!("products of rows came back in another type: {e:?}")))?;
        let of_rows = products.par_chunks(self.others.len().max(1)).zip(range.into_par_iter());
        let found = of_rows.map(|(products, row)| {
            ends.map(|end| {
                let sign = if end == End::Largest { 1.0 } else { -1.0 };
                let nominees = largest(products, sign, n + SPARE, |other| skip(row, other));
                let mut exact: Ranked = nominees
                    .into_iter()
                    .map(|other| (other, dot(rows.row(row), self.others.row(other as usize)) as f32))
                    .collect();
                exact.sort_by(|a, b| (sign * b.1).total_cmp(&(sign * a.1)).then(a.0.cmp(&b.0)));
                exact.truncate(n);
                exact
            })
        });
        Ok(found.collect())
    }
}

/// Indices of the `n` largest `sign * value`; in no order.
fn largest(values: &[f32], sign: f32, n: usize, skip: impl Fn(usize) -> bool) -> Vec<u32> {
    // A bar below which nothing can count any more, as in `kernels::select`: about one comparison a value.
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(2 * n);
    let mut bar = f32::NEG_INFINITY;
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    for (i, value) in values.iter().enumerate() {
        let value = sign * value;
        if (value > bar || best.len() < n) && !skip(i) {
            best.push((value, i as u32));
            if best.len() == 2 * n {
                best.select_nth_unstable_by(n - 1, order);
                best.truncate(n);
                bar = best[n - 1].0;
            }
        }
    }
    best.sort_unstable_by(order);
    best.truncate(n);
    best.into_iter().map(|(_, i)| i).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The rows divided by their lengths; rows of zeros stay.
pub fn normalised(rows: Rows) -> Vec<f32> {
    let mut normalised = rows.values.to_vec();
    for row in normalised.chunks_exact_mut(rows.width) {
        let length = dot(row, row).sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
    }
    normalised
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Small whole numbers: many equal products, and every one is exact in any order of summation.
    fn rows(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n * 5).map(|_| rng.random_range(-3i8..=3).into()).collect()
    }

    #[test]
    fn blocked_extremes_are_those_of_sorting_all_products() {
        let (a, b) = (rows(40, 1), rows(70, 2));
        let (a, b) = (Rows::new(&a, 5), Rows::new(&b, 5));
        let products = Products::new(b, &Device::flex());
        let skip = |row: usize, other: usize| row == other;
        for (range, n) in [(0..40, 6), (3..4, 1), (30..40, 100), (0..2, 0)] {
            let found = products
                .extremes(a, range.clone(), n, [End::Largest, End::Smallest], skip)
                .unwrap();
            assert_eq!(found.len(), range.len());
            for (row, [largest, smallest]) in range.zip(found) {
                let mut all: Vec<(u32, f32)> = (0..70)
                    .filter(|other| *other != row)
                    .map(|other| (other as u32, dot(a.row(row), b.row(other)) as f32))
                    .collect();
                // Equal products beyond the nominees may stand for each other: compare the products, and that each
                // index has the product it is given.
                for (found, sign) in [(largest, 1.0), (smallest, -1.0)] {
                    all.sort_by(|x, y| (sign * y.1).total_cmp(&(sign * x.1)));
                    let values = |pairs: &[(u32, f32)]| pairs.iter().map(|p| p.1).collect::<Vec<_>>();
                    assert_eq!(values(&found), values(&all[..n.min(69)]));
                    assert!(found.iter().all(|pair| all.contains(pair)));
                    assert!(found.is_sorted_by(|x, y| (sign * x.1, y.0) > (sign * y.1, x.0)));
                }
            }
        }
    }

    #[test]
    fn rows_become_unit_length_and_zeros_stay() {
        assert_eq!(normalised(Rows::new(&[3.0, 4.0, 0.0, 0.0], 2)), [0.6, 0.8, 0.0, 0.0]);
    }
}
