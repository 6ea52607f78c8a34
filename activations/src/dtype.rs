//! The number formats that activations are stored in.
//!
//! All but one are formats of numbers. `int8` is one of rows: a scale, and a signed byte for each value, which is what
//! makes eight bits enough. Rows of a residual stream differ in length by a factor of ten, and one scale for all would
//! leave the short ones two or three bits.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Number format of stored activations, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActDtype {
    /// IEEE half precision: 11 significant bits, largest finite value 65,504.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
    /// Single precision.
    F32,
    /// A row is a scale in f32, a 127th of its largest magnitude, and a signed byte a value: value = scale * byte.
    Int8,
}

/// Bytes of a row's scale.
const SCALE: usize = 4;

impl ActDtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Bytes of a row of `d_in` values.
    pub fn row_bytes(self, d_in: usize) -> usize {
        d_in * self.size() + if self == Self::Int8 { SCALE } else { 0 }
    }

    /// Largest finite magnitude.
    pub fn max(self) -> f32 {
        match self {
            Self::F16 => 65_504.0,
            Self::Bf16 => bf16::MAX.to_f32(),
            Self::F32 => f32::MAX,
            // 128 scales, the most that a signed byte can ask for, must be a number.
            Self::Int8 => f32::MAX / 128.0 * 127.0,
        }
    }

    /// Appends `values`, of int8 one row, to `out` in this format, round to nearest even. Values beyond [`Self::max`] become infinite:
    /// check first, see [`largest_magnitude`].
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        out.reserve(self.row_bytes(values.len()));
        // By blocks on the stack: the processor converts slices of halves, and whole blocks are appended as one copy.
        let mut bytes = [0; 4 * BLOCK];
        match self {
            Self::F16 => {
                let mut block = [f16::ZERO; BLOCK];
                for values in values.chunks(BLOCK) {
                    block[..values.len()].convert_from_f32_slice(values);
                    for (b, v) in bytes.chunks_exact_mut(2).zip(&block[..values.len()]) {
                        b.copy_from_slice(&v.to_le_bytes());
                    }
                    out.extend_from_slice(&bytes[..2 * values.len()]);
                }
            }
            Self::Bf16 => {
                let mut block = [bf16::ZERO; BLOCK];
                for values in values.chunks(BLOCK) {
                    block[..values.len()].convert_from_f32_slice(values);
                    for (b, v) in bytes.chunks_exact_mut(2).zip(&block[..values.len()]) {
                        b.copy_from_slice(&v.to_le_bytes());
                    }
                    out.extend_from_slice(&bytes[..2 * values.len()]);
                }
            }
            Self::F32 => {
                for values in values.chunks(BLOCK) {
                    for (b, v) in bytes.chunks_exact_mut(4).zip(values) {
                        b.copy_from_slice(&v.to_le_bytes());
                    }
                    out.extend_from_slice(&bytes[..4 * values.len()]);
                }
            }
            Self::Int8 => {
                let scale = finite_magnitude(values).unwrap_or(f32::INFINITY) / 127.0;
                out.extend_from_slice(&scale.to_le_bytes());
                let inverse = 1.0 / scale;
                if inverse.is_finite() {
                    // Behind 1.5 * 2^23 an f32 has no fraction: adding it rounds, and the lowest byte is the integer's.
                    out.extend(values.iter().map(|v| (v * inverse + 12_582_912.0).to_bits() as u8));
                } else {
                    // Rows that are nearly nothing, or nothing.
                    let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
                    let byte = |v: &f32| (f64::from(*v) * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
                    out.extend(values.iter().map(byte));
                }
            }
        }
    }

    /// Appends rows of `d_in` values to `out`; see [`encode`](Self::encode).
    pub fn encode_rows(self, values: &[f32], d_in: usize, out: &mut Vec<u8>) {
        match self {
            Self::Int8 => values.chunks_exact(d_in).for_each(|row| self.encode(row, out)),
            _ => self.encode(values, out),
        }
    }

    /// Decodes rows of `d_in` values into `out`.
    ///
    /// # Panics
    /// If `bytes` is not exactly as many rows as `out`.
    pub fn decode_rows(self, bytes: &[u8], d_in: usize, out: &mut [f32]) {
        match self {
            Self::Int8 => {
                assert_eq!(
                    bytes.len() / self.row_bytes(d_in),
                    out.len() / d_in,
                    "rows do not match"
                );
                let rows = bytes.chunks_exact(self.row_bytes(d_in)).zip(out.chunks_exact_mut(d_in));
                rows.for_each(|(row, out)| self.decode(row, out));
            }
            _ => self.decode(bytes, out),
        }
    }

    /// Decodes `bytes`, of int8 one row, into `out`.
    ///
    /// # Panics
    /// If `bytes` is not exactly `out.len()` values long: callers validate lengths where they read them.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            bytes.len(),
            self.row_bytes(out.len()),
            "byte length does not match the values wanted"
        );
        match self {
            // Through a block on the stack: the processor's conversion wants aligned halves, and a file's need not be.
            Self::F16 => {
                let mut block = [f16::ZERO; BLOCK];
                for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
                    for (v, b) in block.iter_mut().zip(bytes.chunks_exact(2)) {
                        *v = f16::from_le_bytes([b[0], b[1]]);
                    }
                    block[..out.len()].convert_to_f32_slice(out);
                }
            }
            Self::Bf16 => {
                for (v, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *v = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
            Self::F32 => {
                for (v, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Self::Int8 => {
                let (scale, bytes) = bytes.split_at(SCALE);
                let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                for (v, &b) in out.iter_mut().zip(bytes) {
                    *v = scale * f32::from(b as i8);
                }
            }
        }
    }

    /// Row and column of the first value in encoded rows of `d_in` values that is NaN or infinite.
    pub fn first_not_finite(self, bytes: &[u8], d_in: usize) -> Option<(usize, usize)> {
        if self != Self::Int8 {
            return self.first_value_not_finite(bytes).map(|at| (at / d_in, at % d_in));
        }
        // With a scale so large, 128 times it need not be a number any more.
        let bad = |row: &[u8]| !(128.0 * f32::from_le_bytes([row[0], row[1], row[2], row[3]])).is_finite();
        bytes
            .chunks_exact(self.row_bytes(d_in))
            .position(bad)
            .map(|row| (row, 0))
    }

    /// The place of the first value in encoded `bytes`, not of int8, that is NaN or infinite.
    fn first_value_not_finite(self, bytes: &[u8]) -> Option<usize> {
        // A value is not finite when all bits of its exponent are set. Whole blocks are looked at without branches.
        let size = self.size();
        let bad = |b: &[u8]| match self {
            Self::F16 => u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00,
            Self::Bf16 => u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80,
            Self::F32 => u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000,
            Self::Int8 => false,
        };
        let any = |block: &[u8]| match self {
            Self::F16 => any_bits::<0x7c00>(block),
            Self::Bf16 => any_bits::<0x7f80>(block),
            Self::F32 => block.chunks_exact(4).fold(false, |any, b| any | bad(b)),
            Self::Int8 => false,
        };
        let (at, block) = bytes.chunks(BLOCK * size).enumerate().find(|(_, block)| any(block))?;
        Some(at * BLOCK + block.chunks_exact(size).position(bad)?)
    }
}

/// Values that are converted at a time: they stay in the first-level cache.
const BLOCK: usize = 512;

/// Whether any half of `block` has all bits of `MASK`.
fn any_bits<const MASK: u16>(block: &[u8]) -> bool {
    let has = |b: &[u8]| u16::from(u16::from_le_bytes([b[0], b[1]]) & MASK == MASK);
    block.chunks_exact(2).fold(0, |any, b| any | has(b)) != 0
}

impl std::fmt::Display for ActDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl std::str::FromStr for ActDtype {
    type Err = crate::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(crate::Error::Invalid(format!(
                "unknown dtype {s:?}: expected f16, bf16, f32 or int8"
            ))),
        }
    }
}

/// The largest magnitude in `values`, ignoring NaN; infinite if any value is.
pub fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| m.max(v.abs()))
}

/// The largest magnitude in `values` if all are finite; otherwise `None`.
pub fn finite_magnitude(values: &[f32]) -> Option<f32> {
    // Without their signs, bit patterns are ordered as magnitudes are, infinity and NaN above every number. Integers
    // have a maximum that vectorises.
    let most = values
        .iter()
        .fold(0, |most: i32, v| most.max((v.to_bits() & 0x7fff_ffff) as i32));
    let most = f32::from_bits(most as u32);
    most.is_finite().then_some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_round_trips_values_it_can_hold() {
        let values = [0.0, -0.0, 1.0, -2.5, 1024.0, f32::INFINITY];
        for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32] {
            let mut bytes = Vec::new();
            dtype.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * dtype.size());
            let mut back = [0.0; 6];
            dtype.decode(&bytes, &mut back);
            assert_eq!(back, values, "{dtype}");
            assert_eq!(dtype.to_string().parse::<ActDtype>().unwrap(), dtype);
        }
    }

    #[test]
    fn f16_overflows_just_above_its_maximum() {
        let mut bytes = Vec::new();
        ActDtype::F16.encode(&[ActDtype::F16.max(), 70_000.0], &mut bytes);
        let mut back = [0.0; 2];
        ActDtype::F16.decode(&bytes, &mut back);
        assert_eq!(back, [65_504.0, f32::INFINITY]);
        assert_eq!(largest_magnitude(&[1.0, f32::NAN, -3.0]), 3.0);
    }

    #[test]
    fn blocks_convert_as_single_values_do() {
        // Every half, more than one block, and a length that no block divides.
        let values: Vec<f32> = (0..=u16::MAX).map(|b| f16::from_bits(b).to_f32()).collect();
        let values = &values[..values.len() - 3];
        for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32] {
            let mut bytes = Vec::new();
            dtype.encode(values, &mut bytes);
            let mut back = vec![0.0; values.len()];
            dtype.decode(&bytes, &mut back);
            for (value, back) in values.iter().zip(back) {
                let single = match dtype {
                    ActDtype::F16 => f16::from_f32(*value).to_f32(),
                    ActDtype::Bf16 => bf16::from_f32(*value).to_f32(),
                    _ => *value,
                };
                assert!(
                    single == back || (single.is_nan() && back.is_nan()),
                    "{dtype}: {value} {back}"
                );
            }
        }
    }

    #[test]
    fn a_row_of_int8_is_within_half_a_step_of_its_values_whatever_their_size() {
        let mut bytes = Vec::new();
        for size in [1e-37f32, 1e-3, 1.0, 2e6, 1e38] {
            // Rows of seven values; the largest magnitude is `size`.
            let values: Vec<f32> = (0..21).map(|i| size * ((i * 5 % 7) as f32 - 3.0) / 3.0).collect();
            bytes.clear();
            ActDtype::Int8.encode_rows(&values, 7, &mut bytes);
            assert_eq!(bytes.len(), 3 * ActDtype::Int8.row_bytes(7));
            assert_eq!(ActDtype::Int8.first_not_finite(&bytes, 7), None);
            let mut back = vec![0.0; 21];
            ActDtype::Int8.decode_rows(&bytes, 7, &mut back);
            for (value, back) in values.iter().zip(&back) {
                assert!((value - back).abs() <= 0.501 * size / 127.0, "{value} {back}");
            }
        }
        // Nothing, and less than a scale can say.
        for value in [0.0, 1e-45] {
            bytes.clear();
            ActDtype::Int8.encode(&[value, -value], &mut bytes);
            let mut back = [1.0; 2];
            ActDtype::Int8.decode(&bytes, &mut back);
            assert_eq!(back, [0.0; 2]);
        }
        bytes.clear();
        ActDtype::Int8.encode_rows(&[1.0, 2.0, 3.0, 4.0], 2, &mut bytes);
        bytes[6..10].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(ActDtype::Int8.first_not_finite(&bytes, 2), Some((1, 0)));
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_in_every_format() {
        for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32] {
            for (at, value) in [
                (0, f32::NAN),
                (511, f32::INFINITY),
                (512, f32::NEG_INFINITY),
                (1299, f32::NAN),
            ] {
                let mut values = vec![-1.5f32; 1300];
                values[at] = value;
                values[1299] = f32::NAN;
                let mut bytes = Vec::new();
                dtype.encode(&values, &mut bytes);
                assert_eq!(dtype.first_not_finite(&bytes, 7), Some((at / 7, at % 7)), "{dtype}");
                assert_eq!(dtype.first_not_finite(&bytes[..at * dtype.size()], 7), None);
                assert_eq!(finite_magnitude(&values), None);
            }
        }
        assert_eq!(finite_magnitude(&[1.0, -7.5, 0.0]), Some(7.5));
    }
}
