//! ggml's formats: a tensor's values in blocks of 1, 32 or 256, each with its own scale.
//!
//! Formulas as in ggml's `ggml-quants.c` (`dequantize_row_*`); the names are its, too. The tests compare every format with
//! the values of the `gguf` package (`tests/fixtures/make_gguf.py`).

use half::{bf16, f16};

/// How the values of a tensor are stored.
#[derive(Clone, Copy)]
pub(super) struct Format(&'static Kind);

struct Kind {
    id: u32,
    name: &'static str,
    /// Values of a block.
    values: usize,
    /// Bytes of a block.
    bytes: usize,
    /// Appends the values of one block.
    read: fn(&[u8], &mut Vec<f32>),
}

const fn kind(id: u32, name: &'static str, values: usize, bytes: usize, read: fn(&[u8], &mut Vec<f32>)) -> Kind {
    Kind {
        id,
        name,
        values,
        bytes,
        read,
    }
}

static KINDS: [Kind; 15] = [
    kind(0, "F32", 1, 4, |b, out| {
        out.push(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }),
    kind(1, "F16", 1, 2, |b, out| out.push(half(b, 0))),
    kind(30, "BF16", 1, 2, |b, out| {
        out.push(bf16::from_le_bytes([b[0], b[1]]).to_f32())
    }),
    kind(2, "Q4_0", 32, 18, q4_0),
    kind(3, "Q4_1", 32, 20, q4_1),
    kind(6, "Q5_0", 32, 22, q5_0),
    kind(7, "Q5_1", 32, 24, q5_1),
    kind(8, "Q8_0", 32, 34, q8_0),
    kind(20, "IQ4_NL", 32, 18, iq4_nl),
    kind(10, "Q2_K", 256, 84, q2_k),
    kind(11, "Q3_K", 256, 110, q3_k),
    kind(12, "Q4_K", 256, 144, q4_k),
    kind(13, "Q5_K", 256, 176, q5_k),
    kind(14, "Q6_K", 256, 210, q6_k),
    kind(23, "IQ4_XS", 256, 136, iq4_xs),
];

impl Format {
    /// The format of that number in ggml.
    pub fn of(id: u32) -> Result<Self, String> {
        let known = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let found = KINDS.iter().find(|kind| kind.id == id).map(Self);
        found.ok_or_else(|| {
            format!(
                "has ggml's format {id}, which is not supported; those that are: {}",
                known()
            )
        })
    }

    /// As ggml spells it.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (u64, u64) {
        (self.0.values as u64, self.0.bytes as u64)
    }

    /// The values of whole blocks.
    pub fn values(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.0.bytes * self.0.values);
        bytes
            .chunks_exact(self.0.bytes)
            .for_each(|block| (self.0.read)(block, &mut out));
        out
    }
}

/// The f16 at byte `at`.
fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|b| b & 15);
    low.chain(bytes.iter().map(|b| b >> 4))
}

/// The fifth bits of 32 values lie in one number.
fn fifths(high: &[u8], low: &[u8]) -> impl Iterator<Item = u8> {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    nibbles(low)
        .enumerate()
        .map(move |(j, q)| q | ((high >> j & 1) << 4) as u8)
}

fn q4_0(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 0);
    out.extend(nibbles(&b[2..]).map(|q| (f32::from(q) - 8.0) * d));
}

fn q4_1(b: &[u8], out: &mut Vec<f32>) {
    let (d, m) = (half(b, 0), half(b, 2));
    out.extend(nibbles(&b[4..]).map(|q| f32::from(q) * d + m));
}

fn q5_0(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 0);
    out.extend(fifths(&b[2..6], &b[6..]).map(|q| (f32::from(q) - 16.0) * d));
}

fn q5_1(b: &[u8], out: &mut Vec<f32>) {
    let (d, m) = (half(b, 0), half(b, 2));
    out.extend(fifths(&b[4..8], &b[8..]).map(|q| f32::from(q) * d + m));
}

fn q8_0(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 0);
    out.extend(b[2..].iter().map(|&q| f32::from(q as i8) * d));
}

/// What the 16 codes of the non-linear formats stand for.
const CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn code(q: u8) -> f32 {
    f32::from(CODES[usize::from(q)])
}

fn iq4_nl(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 0);
    out.extend(nibbles(&b[2..]).map(|q| d * code(q)));
}

/// Eight sub-blocks of 32, each with a scale of 6 bits.
fn iq4_xs(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (i, part) in b[8..].chunks_exact(16).enumerate() {
        let low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
        let scale = u16::from(low) | (high >> (2 * i) & 3) << 4;
        let d = d * (f32::from(scale) - 32.0);
        out.extend(nibbles(part).map(|q| d * code(q)));
    }
}

/// 16 sub-blocks of 16, each with a scale and a minimum of 4 bits.
fn q2_k(b: &[u8], out: &mut Vec<f32>) {
    let (scales, quants) = (&b[..16], &b[16..80]);
    let (d, m) = (half(b, 80), half(b, 82));
    let mut scales = scales.iter();
    for half_block in quants.chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            for (part, scale) in half_block.chunks_exact(16).zip(scales.by_ref()) {
                let (d, m) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
                out.extend(part.iter().map(|q| d * f32::from(q >> shift & 3) - m));
            }
        }
    }
}

/// 16 sub-blocks of 16, each with a scale of 6 bits; a value's third bit lies apart, and set means not less by 4.
fn q3_k(b: &[u8], out: &mut Vec<f32>) {
    let (thirds, quants, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half(b, 108);
    let scale = |i: usize| {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        d * (f32::from(low | high << 4) - 32.0)
    };
    for i in 0..16 {
        // Which half, which two bits of its bytes, and which 16 of its 32 bytes.
        let (half_block, pair, start) = (i / 8, i / 2 % 4, 16 * (i % 2));
        let (d, third) = (scale(i), 4 * half_block + pair);
        let part = &quants[32 * half_block + start..][..16];
        out.extend(part.iter().zip(&thirds[start..]).map(|(q, high)| {
            let less = if high >> third & 1 == 1 { 0.0 } else { 4.0 };
            d * (f32::from(q >> (2 * pair) & 3) - less)
        }));
    }
}

/// The scale and the minimum of sub-block `i` of 8, of 6 bits each, packed into 12 bytes.
fn scale_and_min(i: usize, s: &[u8]) -> (f32, f32) {
    let (scale, min) = match i {
        0..4 => (s[i] & 63, s[i + 4] & 63),
        _ => (s[i + 4] & 15 | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4),
    };
    (scale.into(), min.into())
}

/// Eight sub-blocks of 32, each with a scale and a minimum; two of them share 32 bytes.
fn q4_k(b: &[u8], out: &mut Vec<f32>) {
    let (d, m, scales) = (half(b, 0), half(b, 2), &b[4..16]);
    for (pair, part) in b[16..].chunks_exact(32).enumerate() {
        for high in 0..2 {
            let (scale, min) = scale_and_min(2 * pair + high, scales);
            let (d, m) = (d * scale, m * min);
            out.extend(part.iter().map(|q| d * f32::from(q >> (4 * high) & 15) - m));
        }
    }
}

/// As [`q4_k`], with a value's fifth bit apart.
fn q5_k(b: &[u8], out: &mut Vec<f32>) {
    let (d, m, scales, fifths) = (half(b, 0), half(b, 2), &b[4..16], &b[16..48]);
    for (pair, part) in b[48..].chunks_exact(32).enumerate() {
        for high in 0..2 {
            let i = 2 * pair + high;
            let (scale, min) = scale_and_min(i, scales);
            let (d, m) = (d * scale, m * min);
            let values = part.iter().zip(fifths);
            out.extend(values.map(|(q, fifth)| d * f32::from(q >> (4 * high) & 15 | (fifth >> i & 1) << 4) - m));
        }
    }
}

/// 16 sub-blocks of 16, each with a scale of 8 bits; a value's upper two bits lie apart.
fn q6_k(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b, 208);
    for i in 0..16 {
        // Which half of the block, which quarter of that, and which 16 values of the quarter.
        let (half_block, quarter, start) = (i / 8, i / 2 % 4, 16 * (i % 2));
        let low = &b[64 * half_block + 32 * (quarter % 2) + start..][..16];
        let high = &b[128 + 32 * half_block + start..][..16];
        let scale = d * f32::from(b[192 + i] as i8);
        out.extend(low.iter().zip(high).map(|(low, high)| {
            let q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            scale * (f32::from(q) - 32.0)
        }));
    }
}
