//! Products of our own: with a matrix that stays, weights in bf16 and sums in f32; and [`dense`] ones of slices in f32.
//!
//! A transformer multiplies by the same matrices all day, so they are rounded and laid out once, in the order in which the
//! processor wants them, and half the memory flows. The products of two bf16 numbers are exact in f32; only their sum is
//! rounded.
//!
//! The one decision: **the order of every sum is part of the definition.** For each output, in the order of the input
//! pairs, the product of the odd element is added, then that of the even one, each addition rounded to f32. That is what
//! the processors' own instruction does, so every level gives the same bits (sums below 1e-38 aside, which the
//! instruction takes for zero): what was computed with the instruction can be computed again without it, and the bytes
//! of a store do not depend on who wrote it.
//!
//! ```
//! use activations::product::Bf16Matrix;
//!
//! let matrix = Bf16Matrix::new(&[1.0, 0.5, 0.0, -2.0], 2, Some(&[0.0, 1.0])); // two rows, [d_out, d_in]
//! let mut out = [0.0; 2];
//! matrix.product(&[4.0, 1.0], &mut out);
//! assert_eq!(out, [4.5, -1.0]);
//! ```

mod dense;
pub mod int8;
mod kernel;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::dense::{Strided, dense, dense_parallel};
pub use self::int8::{Int8Matrix, Int8Rows};
use crate::cpu::{self, Level};
use crate::error::{Error, Result};

/// What a model multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights and values in f32.
    #[default]
    F32,
    /// Weights and values rounded to bf16, sums in f32; what lies between two products stays f32.
    Bf16,
}

impl Precision {
    /// Whether this is the default, which manifests leave out.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::Invalid(format!(
                "{text:?} is no precision: expected f32 or bf16"
            ))),
        }
    }
}

/// Outputs that are computed together: three registers of the widest vectors, eight rows of them.
pub const PANEL: usize = 48;
/// Rows that are computed together.
const TILE: usize = 8;
/// Pairs of inputs that are held converted at a time: 256 KiB, so that they stay in the cache while panels pass by.
const BLOCK_PAIRS: usize = 64 << 10;

/// A matrix `[d_out, d_in]` rounded to bf16, with a bias, laid out for [`product`](Self::product).
#[derive(Clone, Debug)]
pub struct Bf16Matrix {
    d_in: usize,
    d_out: usize,
    /// `[panels, pairs, PANEL]`: two neighbouring inputs of one output in a word, the even one in the low half. What is
    /// beyond `d_in` and `d_out` is zero.
    words: Vec<u32>,
    /// `[panels * PANEL]`: what sums start from.
    bias: Vec<f32>,
}

impl Bf16Matrix {
    /// Rounds `rows`, `[d_out, d_in]`, to the nearest bf16, ties to even; subnormal numbers become zero.
    ///
    /// # Panics
    /// If `rows` is not whole rows, `d_in` is zero, or `bias` is not one number a row.
    pub fn new(rows: &[f32], d_in: usize, bias: Option<&[f32]>) -> Self {
        let mut matrix = Self {
            d_in,
            d_out: 0,
            words: Vec::new(),
            bias: Vec::new(),
        };
        matrix.renew(rows, d_in, bias);
        matrix
    }

    /// Becomes what [`new`](Self::new) makes of other weights, in the memory that it has, on the threads of rayon's pool.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn renew(&mut self, rows: &[f32], d_in: usize, bias: Option<&[f32]>) {
        assert!(d_in > 0 && rows.len().is_multiple_of(d_in), "rows of {d_in} values");
        let d_out = rows.len() / d_in;
        (self.d_in, self.d_out) = (d_in, d_out);
        let (pairs, panels) = (d_in.div_ceil(2), d_out.div_ceil(PANEL));
        self.words.resize(panels * pairs * PANEL, 0);
        let level = cpu::level();
        self.words
            .par_chunks_mut(pairs * PANEL)
            .zip(rows.par_chunks(PANEL * d_in))
            .for_each(|(panel, rows)| kernel::lay_out(level, rows, d_in, panel));
        self.bias.clear();
        self.bias.resize(panels * PANEL, 0.0);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), d_out, "a bias for each of {d_out} outputs");
            self.bias[..d_out].copy_from_slice(bias);
        }
    }

    /// Values of an input row.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Values of an output row.
    pub fn d_out(&self) -> usize {
        self.d_out
    }

    /// `out = round(x) W^T + b` on the calling thread. `x`: `[rows, d_in]`; `out`: `[rows, d_out]`, overwritten.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&self, x: &[f32], out: &mut [f32]) {
        self.product_at(cpu::level(), x, 0..self.d_out, out);
    }

    /// As [`product`](Self::product) of the outputs `columns` alone, to the same bits. `out`: `[rows, columns.len()]`.
    ///
    /// # Panics
    /// If the shapes do not fit, or `columns` does not begin at a multiple of [`PANEL`].
    pub fn product_columns(&self, x: &[f32], columns: Range<usize>, out: &mut [f32]) {
        self.product_at(cpu::level(), x, columns, out);
    }

    /// As [`product`](Self::product), on the threads of rayon's pool, to the same bits.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product_parallel(&self, x: &[f32], out: &mut [f32]) {
        check(x.len(), self.d_in, self.d_out, &(0..self.d_out), out);
        let rows = self.block_rows();
        x.par_chunks(rows * self.d_in)
            .zip(out.par_chunks_mut(rows * self.d_out))
            .for_each(|(x, out)| self.product(x, out));
    }

    /// Rows that are converted at a time.
    fn block_rows(&self) -> usize {
        (BLOCK_PAIRS / self.d_in.div_ceil(2))
            .next_multiple_of(TILE)
            .clamp(TILE, 32 * TILE)
    }

    /// As [`product_columns`](Self::product_columns) with rows that were converted before, for who wants the outputs piece
    /// by piece.
    ///
    /// # Panics
    /// As there.
    pub fn product_of(&self, rows: &Bf16Rows, columns: Range<usize>, out: &mut [f32]) {
        self.product_of_at(cpu::level(), rows, columns, out);
    }

    /// `product_columns` with the kernel of a level that this processor has, or of the one in use if that is less.
    fn product_at(&self, level: Level, x: &[f32], columns: Range<usize>, out: &mut [f32]) {
        thread_local! {
            static ROWS: RefCell<Bf16Rows> = RefCell::default();
        }
        check(x.len(), self.d_in, self.d_out, &columns, out);
        let block = self.block_rows();
        ROWS.with_borrow_mut(|rows| {
            let blocks = x
                .chunks(block * self.d_in)
                .zip(out.chunks_mut(block * columns.len().max(1)));
            for (x, out) in blocks {
                rows.fill_at(level, x, self.d_in);
                self.product_of_at(level, rows, columns.clone(), out);
            }
        });
    }

    fn product_of_at(&self, level: Level, rows: &Bf16Rows, columns: Range<usize>, out: &mut [f32]) {
        let (words, pairs) = (&rows.words[..], self.d_in.div_ceil(2));
        check(words.len() / pairs * rows.d_in, self.d_in, self.d_out, &columns, out);
        let width = columns.len();
        if width == 0 {
            return;
        }
        let panels = columns.start / PANEL..columns.end.div_ceil(PANEL);
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let bias = &self.bias[panel * PANEL..][..PANEL];
            let panel = &self.words[panel * pairs * PANEL..][..pairs * PANEL];
            let columns = first..width.min(first + PANEL);
            kernel::panel(level, words, pairs, panel, bias, columns, out, width);
        }
    }
}

/// Rows of inputs rounded to bf16.
#[derive(Clone, Debug, Default)]
pub struct Bf16Rows {
    d_in: usize,
    /// `[rows, pairs]`: two neighbouring inputs in a word, the even one in the low half.
    words: Vec<u32>,
}

impl Bf16Rows {
    /// Becomes those of `x`, `[rows, d_in]`.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `d_in` is zero.
    pub fn fill(&mut self, x: &[f32], d_in: usize) {
        self.fill_at(cpu::level(), x, d_in);
    }

    fn fill_at(&mut self, level: Level, x: &[f32], d_in: usize) {
        assert!(d_in > 0 && x.len().is_multiple_of(d_in), "rows of {d_in} values");
        self.d_in = d_in;
        self.words.resize(x.len() / d_in * d_in.div_ceil(2), 0);
        kernel::convert(level, x, d_in, &mut self.words);
    }
}

/// Of a product of `[rows, d_in]` values with some of the rows of a matrix `[d_out, d_in]`.
fn check(values: usize, d_in: usize, d_out: usize, columns: &Range<usize>, out: &[f32]) {
    let rows = values / d_in;
    assert!(
        columns.start.is_multiple_of(PANEL) && columns.start <= columns.end && columns.end <= d_out,
        "outputs {columns:?} of {d_out}, in panels of {PANEL}"
    );
    assert!(
        values == rows * d_in && out.len() == rows * columns.len(),
        "{values} values by [{}, {d_in}] into {}",
        columns.len(),
        out.len()
    );
}

#[cfg(test)]
mod tests;
