//! Products of integers of eight bits: the cheapest that processors have, for those who only want to know roughly.
//!
//! Each row, of either side, has a step, its largest magnitude divided by 127, and its values become whole multiples of it.
//! Their products are summed as integers, which is exact in any order: every level gives the same bits.
//!
//! The instruction multiplies unsigned by signed numbers. So weights lie here with 128 added, and what that adds to a sum,
//! 128 times the sum of the inputs, is taken off first.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::{PANEL, TILE, check};
use crate::cpu::{self, Level};

/// The most inputs: their products fit a sum of 32 bits.
pub const MOST_INPUTS: usize = i32::MAX as usize / (255 * 127);

/// Multiples of its step that a value can be, on either side of zero.
const LARGEST: f32 = 127.0;
/// What is added to weights.
const OFFSET: i32 = 128;
/// A row of nothing larger is a row of zeros: what its step is divided into would be infinite.
const SMALLEST: f32 = 1e-30;
/// Inputs of every row that are laid out before the next ones: they stay in the nearest cache while they are turned.
const STRETCH: usize = 64;
/// Rows of inputs that are held as integers at a time, unless who has them converts them.
const BLOCK_ROWS: usize = 256;

/// What 1 is worth in a row of integers: a 127th of its largest magnitude. Not a number if one of its values is not finite.
///
/// A value is then wrong by at most half a step, but where all are below 1e-30, and taken for zeros: there by one step.
pub fn step(level: Level, row: &[f32]) -> f32 {
    match f32::from_bits(largest_bits(level, row)) {
        largest if !largest.is_finite() => f32::NAN,
        largest if largest < SMALLEST => largest,
        largest => largest / LARGEST,
    }
}

/// Steps that a value has in a row of that step are as many times this.
fn per_step(step: f32) -> f32 {
    if step * LARGEST < SMALLEST { 0.0 } else { 1.0 / step }
}

/// A matrix `[d_out, d_in]` as integers of eight bits and a step a row, with a bias, laid out for
/// [`product`](Self::product).
#[derive(Clone, Debug)]
pub struct Int8Matrix {
    d_in: usize,
    d_out: usize,
    /// `[panels, quads, PANEL]`: four neighbouring inputs of one output in a word, the first in the lowest byte, each with
    /// [`OFFSET`] added. What is beyond `d_in` and `d_out` is multiplied by zero, or not read.
    words: Vec<u32>,
    /// `[panels * PANEL]`
    steps: Vec<f32>,
    /// `[panels * PANEL]`
    bias: Vec<f32>,
}

impl Int8Matrix {
    /// Rounds `rows`, `[d_out, d_in]`, to whole steps, ties to even.
    ///
    /// # Panics
    /// If `rows` is not whole rows, `d_in` is zero or over [`MOST_INPUTS`], or `bias` is not one number a row.
    pub fn new(rows: &[f32], d_in: usize, bias: Option<&[f32]>) -> Self {
        let mut matrix = Self {
            d_in,
            d_out: 0,
            words: Vec::new(),
            steps: Vec::new(),
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
        assert!(d_in <= MOST_INPUTS, "rows of {d_in} values: at most {MOST_INPUTS}");
        let d_out = rows.len() / d_in;
        (self.d_in, self.d_out) = (d_in, d_out);
        let (quads, panels) = (d_in.div_ceil(4), d_out.div_ceil(PANEL));
        self.words.resize(panels * quads * PANEL, 0);
        self.steps.resize(panels * PANEL, 0.0);
        let level = cpu::level();
        self.words
            .par_chunks_mut(quads * PANEL)
            .zip(self.steps.par_chunks_mut(PANEL))
            .zip(rows.par_chunks(PANEL * d_in))
            .for_each(|((panel, steps), rows)| {
                for (step_, row) in steps.iter_mut().zip(rows.chunks_exact(d_in)) {
                    *step_ = step(level, row);
                }
                lay_out(level, rows, d_in, steps, panel);
            });
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

    /// The [`step`] of each row of weights, `[d_out]`.
    pub fn steps(&self) -> &[f32] {
        &self.steps[..self.d_out]
    }

    /// `out = round(x) W^T + b` on the calling thread, `x` rounded to steps of its rows; not a number where an operand is
    /// not finite. `x`: `[rows, d_in]`; `out`: `[rows, d_out]`, overwritten.
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

    /// As [`product_columns`](Self::product_columns) with rows that were converted before, for who wants the outputs piece
    /// by piece.
    ///
    /// # Panics
    /// As there.
    pub fn product_of(&self, rows: &Int8Rows, columns: Range<usize>, out: &mut [f32]) {
        self.product_of_at(cpu::level(), rows, columns, out);
    }

    /// `product_columns` with the kernel of a level that this processor has, or of the one in use if that is less.
    fn product_at(&self, level: Level, x: &[f32], columns: Range<usize>, out: &mut [f32]) {
        thread_local! {
            static ROWS: RefCell<Int8Rows> = RefCell::default();
        }
        check(x.len(), self.d_in, self.d_out, &columns, out);
        ROWS.with_borrow_mut(|rows| {
            let blocks = x
                .chunks(BLOCK_ROWS * self.d_in)
                .zip(out.chunks_mut(BLOCK_ROWS * columns.len().max(1)));
            for (x, out) in blocks {
                rows.fill_at(level, x, self.d_in);
                self.product_of_at(level, rows, columns.clone(), out);
            }
        });
    }

    fn product_of_at(&self, level: Level, rows: &Int8Rows, columns: Range<usize>, out: &mut [f32]) {
        check(rows.steps.len() * rows.d_in, self.d_in, self.d_out, &columns, out);
        let width = columns.len();
        if width == 0 {
            return;
        }
        let quads = self.d_in.div_ceil(4);
        let panels = columns.start / PANEL..columns.end.div_ceil(PANEL);
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let weights = Panel {
                words: &self.words[panel * quads * PANEL..][..quads * PANEL],
                steps: &self.steps[panel * PANEL..][..PANEL],
                bias: &self.bias[panel * PANEL..][..PANEL],
            };
            multiply(level, rows, quads, weights, first..width.min(first + PANEL), out, width);
        }
    }
}

/// Rows of inputs as integers of eight bits and a step a row.
#[derive(Clone, Debug, Default)]
pub struct Int8Rows {
    d_in: usize,
    /// `[rows, quads]`: four neighbouring values in a word, signed.
    words: Vec<u32>,
    /// `[rows]`
    steps: Vec<f32>,
    /// `[rows]`: what sums start from.
    starts: Vec<i32>,
}

impl Int8Rows {
    /// Becomes those of `x`, `[rows, d_in]`.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `d_in` is zero or over [`MOST_INPUTS`].
    pub fn fill(&mut self, x: &[f32], d_in: usize) {
        self.fill_at(cpu::level(), x, d_in);
    }

    fn fill_at(&mut self, level: Level, x: &[f32], d_in: usize) {
        assert!(d_in > 0 && x.len().is_multiple_of(d_in), "rows of {d_in} values");
        assert!(d_in <= MOST_INPUTS, "rows of {d_in} values: at most {MOST_INPUTS}");
        let (rows, quads) = (x.len() / d_in, d_in.div_ceil(4));
        self.d_in = d_in;
        self.words.resize(rows * quads, 0);
        self.steps.clear();
        self.steps.extend(x.chunks_exact(d_in).map(|row| step(level, row)));
        self.starts.clear();
        let rows = x.chunks_exact(d_in).zip(self.words.chunks_exact_mut(quads));
        for ((row, words), &step) in rows.zip(&self.steps) {
            self.starts.push(-OFFSET * convert(level, row, per_step(step), words));
        }
    }
}

/// [`PANEL`] outputs of a matrix.
#[derive(Clone, Copy)]
struct Panel<'a> {
    /// `[quads, PANEL]`
    words: &'a [u32],
    /// `[PANEL]`
    steps: &'a [f32],
    /// `[PANEL]`
    bias: &'a [f32],
}

/// The nearest whole number, ties to even, in the lowest byte, for magnitudes up to 127. Beyond them it is anything.
#[inline(always)]
fn whole(x: f32) -> u8 {
    // Where floats are one apart, adding rounds.
    (x + 12_582_912.0).to_bits() as u8
}

#[inline(always)]
fn largest_bits_body<const FMA: bool>(row: &[f32]) -> u32 {
    // The bits of magnitudes order as they do, with what is no number at the top.
    let magnitude = |v: &f32| v.to_bits() & 0x7fff_ffff;
    let (vectors, rest) = row.as_chunks::<16>();
    let mut best = [0; 16];
    for vector in vectors {
        for (best, v) in best.iter_mut().zip(vector) {
            *best = magnitude(v).max(*best);
        }
    }
    best.into_iter().chain(rest.iter().map(magnitude)).max().unwrap_or(0)
}

#[inline(always)]
fn convert_body<const FMA: bool>(row: &[f32], per_step: f32, words: &mut [u32]) -> i32 {
    let mut sum = 0;
    for (values, words) in row.chunks(STRETCH).zip(words.chunks_mut(STRETCH / 4)) {
        let mut bytes = [0u8; STRETCH];
        if let Ok(values) = <&[f32; STRETCH]>::try_from(values) {
            for (byte, v) in bytes.iter_mut().zip(values) {
                *byte = whole(v * per_step);
            }
        } else {
            for (byte, v) in bytes.iter_mut().zip(values) {
                *byte = whole(v * per_step);
            }
        }
        sum += bytes.iter().map(|&b| i32::from(b.cast_signed())).sum::<i32>();
        let (quads, _) = bytes.as_chunks::<4>();
        for (word, quad) in words.iter_mut().zip(quads) {
            *word = u32::from_le_bytes(*quad);
        }
    }
    sum
}

#[inline(always)]
fn lay_out_body<const FMA: bool>(rows: &[f32], d_in: usize, steps: &[f32], panel: &mut [u32]) {
    const WORDS: usize = STRETCH / 4;
    let mut turned = [[0u32; WORDS]; PANEL];
    for (number, words) in panel.chunks_mut(WORDS * PANEL).enumerate() {
        let first = number * STRETCH;
        let width = (d_in - first).min(STRETCH);
        for ((row, turned), &step) in rows.chunks_exact(d_in).zip(&mut turned).zip(steps) {
            convert_body::<FMA>(&row[first..first + width], per_step(step), turned);
        }
        for (quad, words) in words.chunks_exact_mut(PANEL).enumerate() {
            for (word, turned) in words.iter_mut().zip(&turned) {
                // The offset, added to four bytes at once.
                *word = turned[quad] ^ 0x8080_8080;
            }
        }
    }
}

/// The integer sums of a row become values.
#[inline(always)]
fn value(sum: i32, row_step: f32, step: f32, bias: f32) -> f32 {
    // Each rounded by itself, so that no level has other bits.
    sum as f32 * (row_step * step) + bias
}

#[inline(always)]
fn multiply_body<const FMA: bool>(
    rows: &Int8Rows,
    quads: usize,
    panel: Panel,
    columns: Range<usize>,
    out: &mut [f32],
    d_out: usize,
) {
    let (weights, _) = panel.words.as_chunks::<PANEL>();
    let lines = rows.words.chunks_exact(quads).zip(out.chunks_exact_mut(d_out));
    for (row, (words, out)) in lines.enumerate() {
        let mut sums = [rows.starts[row]; PANEL];
        for (x, weights) in words.iter().zip(weights) {
            let x = x.to_le_bytes().map(|b| i32::from(b.cast_signed()));
            for (sum, w) in sums.iter_mut().zip(weights) {
                let w = w.to_le_bytes().map(i32::from);
                *sum += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
        }
        let out = &mut out[columns.clone()];
        for (j, (out, &sum)) in out.iter_mut().zip(&sums).enumerate() {
            *out = value(sum, rows.steps[row], panel.steps[j], panel.bias[j]);
        }
    }
}

crate::for_each_level! {
    /// The bits of the largest magnitude of a row, which are those of a NaN if there is one.
    fn largest_bits(row: &[f32]) -> u32 = largest_bits_body
}

crate::for_each_level! {
    /// A row, `[d_in]`, as signed integers, `[ceil(d_in / 4)]` words, and the sum of them.
    fn convert(row: &[f32], per_step: f32, words: &mut [u32]) -> i32 = convert_body
}

crate::for_each_level! {
    /// Up to [`PANEL`] rows of weights, `[_, d_in]`, as integers with [`OFFSET`] added, into `panel`, `[quads, PANEL]`.
    fn lay_out(rows: &[f32], d_in: usize, steps: &[f32], panel: &mut [u32]) = lay_out_body
}

crate::for_each_level! {
    /// [`multiply`] without the instruction.
    fn plain_multiply(
        rows: &Int8Rows,
        quads: usize,
        panel: Panel,
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) = multiply_body
}

/// One panel of outputs for all of `rows`, into the `columns` of `out`, `[rows, d_out]`.
fn multiply(
    level: Level,
    rows: &Int8Rows,
    quads: usize,
    panel: Panel,
    columns: Range<usize>,
    out: &mut [f32],
    d_out: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if level.min(cpu::level()) >= Level::Avx512Vnni {
        // SAFETY: `cpu::level()` is at most what was detected on this processor.
        return unsafe { native::multiply(rows, quads, panel, columns, out, d_out) };
    }
    plain_multiply(level, rows, quads, panel, columns, out, d_out);
}

/// With the instruction that adds up four products of bytes.
#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    };
    use std::ops::Range;

    use super::{Int8Rows, PANEL, Panel, TILE};

    /// Values of a register.
    const LANES: usize = 16;
    const VECTORS: usize = PANEL / LANES;

    /// As [`super::multiply`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    pub(super) fn multiply(
        rows: &Int8Rows,
        quads: usize,
        panel: Panel,
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) {
        for (number, (words, out)) in rows
            .words
            .chunks(TILE * quads)
            .zip(out.chunks_mut(TILE * d_out))
            .enumerate()
        {
            let (columns, first) = (columns.clone(), number * TILE);
            let n = words.len() / quads;
            let (starts, steps) = (&rows.starts[first..first + n], &rows.steps[first..first + n]);
            match n {
                TILE => tile::<TILE>(words, starts, steps, panel, columns, out, d_out),
                7 => tile::<7>(words, starts, steps, panel, columns, out, d_out),
                6 => tile::<6>(words, starts, steps, panel, columns, out, d_out),
                5 => tile::<5>(words, starts, steps, panel, columns, out, d_out),
                4 => tile::<4>(words, starts, steps, panel, columns, out, d_out),
                3 => tile::<3>(words, starts, steps, panel, columns, out, d_out),
                2 => tile::<2>(words, starts, steps, panel, columns, out, d_out),
                _ => tile::<1>(words, starts, steps, panel, columns, out, d_out),
            }
        }
    }

    /// `R` rows: their sums stay in registers from the first input to the last.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    fn tile<const R: usize>(
        words: &[u32],
        starts: &[i32],
        steps: &[f32],
        panel: Panel,
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) {
        let quads = panel.words.len() / PANEL;
        assert!(words.len() == R * quads && panel.steps.len() == PANEL && panel.bias.len() == PANEL);
        assert!(columns.end <= d_out && columns.len() <= PANEL && out.len() == R * d_out);
        let mut sums: [[__m512i; VECTORS]; R] = std::array::from_fn(|r| [_mm512_set1_epi32(starts[r]); VECTORS]);
        for (quad, weights) in panel.words.chunks_exact(PANEL).enumerate() {
            // SAFETY: `weights` has `VECTORS * LANES` words.
            let weights: [__m512i; VECTORS] = std::array::from_fn(|v| unsafe {
                _mm512_loadu_si512(weights.as_ptr().add(v * LANES).cast::<__m512i>())
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `r < R` and `quad < quads`, and `words` has `R * quads` words.
                let x = unsafe { *words.as_ptr().add(r * quads + quad) };
                let x = _mm512_set1_epi32(x.cast_signed());
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbusd_epi32(*sum, weights, x);
                }
            }
        }
        for ((sums, &row_step), out) in sums.iter().zip(steps).zip(out.chunks_exact_mut(d_out)) {
            let out = &mut out[columns.clone()];
            let values = values(sums, row_step, panel);
            match <&mut [f32; PANEL]>::try_from(&mut *out) {
                Ok(out) => {
                    for (v, values) in values.iter().enumerate() {
                        // SAFETY: `out` has `VECTORS * LANES` values.
                        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(v * LANES), *values) };
                    }
                }
                Err(_) => {
                    for (values, out) in values.iter().zip(out.chunks_mut(LANES)) {
                        let mask = (1u32 << out.len()) - 1;
                        // SAFETY: the mask has a bit for each value of `out`, and nothing else is written.
                        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask as u16, *values) };
                    }
                }
            }
        }
    }

    /// As [`super::value`], of a panel.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
    fn values(sums: &[__m512i; VECTORS], row_step: f32, panel: Panel) -> [__m512; VECTORS] {
        assert!(panel.steps.len() == PANEL && panel.bias.len() == PANEL);
        let row_step = _mm512_set1_ps(row_step);
        std::array::from_fn(|v| {
            // SAFETY: steps and bias have `VECTORS * LANES` values.
            let (step, bias) = unsafe {
                (
                    _mm512_loadu_ps(panel.steps.as_ptr().add(v * LANES)),
                    _mm512_loadu_ps(panel.bias.as_ptr().add(v * LANES)),
                )
            };
            let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[v]), _mm512_mul_ps(row_step, step));
            _mm512_add_ps(product, bias)
        })
    }
}

#[cfg(test)]
mod tests;
