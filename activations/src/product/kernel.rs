//! The inner loops of the product, one a level.

use std::ops::Range;

use super::{PANEL, TILE};
use crate::cpu::Level;

/// Two bf16 numbers in a word, the first in the low half.
#[inline(always)]
pub(super) fn word(even: f32, odd: f32) -> u32 {
    rounded(even) >> 16 | rounded(odd)
}

/// The nearest bf16 number, ties to even, in the upper half; zeros below. Not a number stays so, subnormal numbers
/// become zero, because the instruction takes them for it.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let number = if nearest & 0x7f80_0000 == 0 {
        nearest & 0x8000_0000
    } else {
        nearest
    };
    if magnitude > 0x7f80_0000 { 0x7fc0_0000 } else { number }
}

#[inline(always)]
fn convert_body<const FMA: bool>(x: &[f32], d_in: usize, words: &mut [u32]) {
    let pairs = d_in.div_ceil(2);
    for (x, words) in x.chunks_exact(d_in).zip(words.chunks_exact_mut(pairs)) {
        let (whole, odd) = x.as_chunks::<2>();
        for (word_, &[even, odd]) in words.iter_mut().zip(whole) {
            *word_ = word(even, odd);
        }
        if let [last] = *odd {
            words[pairs - 1] = word(last, 0.0);
        }
    }
}

/// The sums of `R` rows, as the module's documentation defines them.
///
/// `rows`: `[R, pairs]`; `panel`: `[pairs, PANEL]`; `bias`: `[PANEL]`.
#[inline(always)]
fn tile<const R: usize>(rows: &[u32], pairs: usize, panel: &[u32], bias: &[f32]) -> [[f32; PANEL]; R] {
    let mut sums = [[0.0; PANEL]; R];
    for row in &mut sums {
        row.copy_from_slice(bias);
    }
    let (panel, _) = panel.as_chunks::<PANEL>();
    for (pair, weights) in panel.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = rows[r * pairs + pair];
            let (even, odd) = (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000));
            for (sum, &w) in sums.iter_mut().zip(weights) {
                // Exact products: rounding happens in the additions only, with fused ones or without.
                *sum += odd * f32::from_bits(w & 0xffff_0000);
                *sum += even * f32::from_bits(w << 16);
            }
        }
    }
    sums
}

#[inline(always)]
fn panel_body<const FMA: bool>(
    words: &[u32],
    pairs: usize,
    panel: &[u32],
    bias: &[f32],
    columns: Range<usize>,
    out: &mut [f32],
    d_out: usize,
) {
    // Two rows of sums fill the registers of the older levels.
    const R: usize = 2;
    for (rows, out) in words.chunks(R * pairs).zip(out.chunks_mut(R * d_out)) {
        let mut put = |sums: &[[f32; PANEL]]| {
            for (out, sums) in out.chunks_exact_mut(d_out).zip(sums) {
                out[columns.clone()].copy_from_slice(&sums[..columns.len()]);
            }
        };
        match rows.len() / pairs {
            R => put(&tile::<R>(rows, pairs, panel, bias)),
            _ => put(&tile::<1>(rows, pairs, panel, bias)),
        }
    }
}

/// Pairs of every row that are laid out before the next ones: they stay in the nearest cache while they are turned.
const STRETCH: usize = 16;

#[inline(always)]
fn lay_out_body<const FMA: bool>(rows: &[f32], d_in: usize, panel: &mut [u32]) {
    let mut turned = [[0u32; STRETCH]; PANEL];
    for (number, words) in panel.chunks_mut(STRETCH * PANEL).enumerate() {
        let first = number * STRETCH * 2;
        let width = (d_in - first).min(STRETCH * 2);
        for (row, turned) in rows.chunks_exact(d_in).zip(&mut turned) {
            let values = &row[first..first + width];
            match values.as_chunks::<2>() {
                // Of a length that the compiler knows.
                (pairs, []) if pairs.len() == STRETCH => {
                    for (word_, &[even, odd]) in turned.iter_mut().zip(pairs) {
                        *word_ = word(even, odd);
                    }
                }
                _ => convert_body::<FMA>(values, width, &mut turned[..width.div_ceil(2)]),
            }
        }
        for (pair, words) in words.chunks_exact_mut(PANEL).enumerate() {
            for (word, turned) in words.iter_mut().zip(&turned) {
                *word = turned[pair];
            }
        }
    }
}

crate::for_each_level! {
    /// Rounds up to [`PANEL`] rows of weights, `[_, d_in]`, into `panel`, `[pairs, PANEL]`; rows that are missing are
    /// zeros.
    pub(super) fn lay_out(rows: &[f32], d_in: usize, panel: &mut [u32]) = lay_out_body
}

crate::for_each_level! {
    /// Rounds `x`, `[rows, d_in]`, into `words`, `[rows, ceil(d_in / 2)]`.
    pub(super) fn convert(x: &[f32], d_in: usize, words: &mut [u32]) = convert_body
}

crate::for_each_level! {
    /// [`panel`] without the instruction.
    #[expect(clippy::too_many_arguments, reason = "as of `panel`")]
    fn plain_panel(
        words: &[u32],
        pairs: usize,
        panel: &[u32],
        bias: &[f32],
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) = panel_body
}

/// One panel of outputs for all rows of `words`.
///
/// `words`: `[rows, pairs]`; `panel`: `[pairs, PANEL]`; `bias`: `[PANEL]`; `out`: `[rows, d_out]`, of which `columns` are
/// overwritten.
#[expect(
    clippy::too_many_arguments,
    reason = "the operands of one product, which have no life of their own"
)]
pub(super) fn panel(
    level: Level,
    words: &[u32],
    pairs: usize,
    panel: &[u32],
    bias: &[f32],
    columns: Range<usize>,
    out: &mut [f32],
    d_out: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if level.min(crate::cpu::level()) == Level::Avx512Bf16 {
        // SAFETY: `cpu::level()` is at most what was detected on this processor.
        return unsafe { native::panel(words, pairs, panel, bias, columns, out, d_out) };
    }
    plain_panel(level, words, pairs, panel, bias, columns, out, d_out);
}

/// With the instruction that multiplies pairs of bf16 numbers and adds both products.
#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps,
        _mm512_set1_epi32, _mm512_setzero_ps,
    };
    use std::ops::Range;

    use super::{PANEL, TILE};

    /// Values of a register.
    const LANES: usize = 16;
    const VECTORS: usize = PANEL / LANES;

    /// As [`super::panel`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    pub(super) fn panel(
        words: &[u32],
        pairs: usize,
        panel: &[u32],
        bias: &[f32],
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) {
        for (rows, out) in words.chunks(TILE * pairs).zip(out.chunks_mut(TILE * d_out)) {
            let columns = columns.clone();
            match rows.len() / pairs {
                TILE => tile::<TILE>(rows, pairs, panel, bias, columns, out, d_out),
                7 => tile::<7>(rows, pairs, panel, bias, columns, out, d_out),
                6 => tile::<6>(rows, pairs, panel, bias, columns, out, d_out),
                5 => tile::<5>(rows, pairs, panel, bias, columns, out, d_out),
                4 => tile::<4>(rows, pairs, panel, bias, columns, out, d_out),
                3 => tile::<3>(rows, pairs, panel, bias, columns, out, d_out),
                2 => tile::<2>(rows, pairs, panel, bias, columns, out, d_out),
                _ => tile::<1>(rows, pairs, panel, bias, columns, out, d_out),
            }
        }
    }

    /// `R` rows: their sums stay in registers from the first input to the last.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn tile<const R: usize>(
        rows: &[u32],
        pairs: usize,
        panel: &[u32],
        bias: &[f32],
        columns: Range<usize>,
        out: &mut [f32],
        d_out: usize,
    ) {
        assert!(rows.len() == R * pairs && panel.len() == pairs * PANEL && bias.len() == PANEL);
        assert!(columns.end <= d_out && columns.len() <= PANEL && out.len() == R * d_out);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
        for sums in &mut sums {
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `bias` has `VECTORS * LANES` values.
                *sum = unsafe { _mm512_loadu_ps(bias.as_ptr().add(v * LANES)) };
            }
        }
        for (pair, weights) in panel.chunks_exact(PANEL).enumerate() {
            // SAFETY: `weights` has `VECTORS * LANES` words.
            let weights: [__m512bh; VECTORS] = std::array::from_fn(|v| unsafe {
                as_bf16(_mm512_loadu_si512(weights.as_ptr().add(v * LANES).cast::<__m512i>()))
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `r < R` and `pair < pairs`, and `rows` has `R * pairs` words.
                let x = unsafe { *rows.as_ptr().add(r * pairs + pair) };
                let x = as_bf16(_mm512_set1_epi32(x.cast_signed()));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbf16_ps(*sum, x, weights);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(d_out)) {
            store(sums, &mut out[columns.clone()]);
        }
    }

    /// The first `out.len()` of the sums.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn store(sums: &[__m512; VECTORS], out: &mut [f32]) {
        for (sum, out) in sums.iter().zip(out.chunks_mut(LANES)) {
            let mask = (1u32 << out.len()) - 1;
            // SAFETY: the mask has a bit for each value of `out`, and nothing else is written.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask as u16, *sum) };
        }
    }

    #[inline(always)]
    fn as_bf16(words: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits without meaning of their own.
        unsafe { std::mem::transmute(words) }
    }
}
