//! The number formats that activations are stored in.

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
}

impl ActDtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Largest finite magnitude.
    pub fn max(self) -> f32 {
        match self {
            Self::F16 => 65_504.0,
            Self::Bf16 => bf16::MAX.to_f32(),
            Self::F32 => f32::MAX,
        }
    }

    /// Appends `values` to `out` in this format, round to nearest even. Values beyond [`Self::max`] become infinite:
    /// check first, see [`largest_magnitude`].
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        out.reserve(values.len() * self.size());
        match self {
            Self::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }

    /// Decodes `bytes` into `out`.
    ///
    /// # Panics
    /// If `bytes` is not exactly `out.len()` values long: callers validate lengths where they read them.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            bytes.len(),
            out.len() * self.size(),
            "byte length does not match the values wanted"
        );
        match self {
            Self::F16 => {
                for (v, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *v = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Bf16 => {
                for (v, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *v = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::F32 => {
                for (v, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }
}

impl std::fmt::Display for ActDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
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
            _ => Err(crate::Error::Invalid(format!(
                "unknown dtype {s:?}: expected f16, bf16 or f32"
            ))),
        }
    }
}

/// The largest magnitude in `values`, ignoring NaN; infinite if any value is.
pub fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| m.max(v.abs()))
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
}
