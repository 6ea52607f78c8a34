//! How the activations of a store are compressed, if they are.
//!
//! The one decision: **a page is the unit that compression leaves.** The pages of a compressed column hold what a chunk
//! of the mixed reader holds, 64 KiB, and the offset index says where each lies and which rows it has. A row is then
//! still found by arithmetic and costs the decoding of one small page, so that everything that reads a plain store reads a
//! compressed one, training included. Larger pages would save next to nothing more: activations have no repetitions for
//! a window to find, only uneven bytes.

use std::fmt;
use std::str::FromStr;

use parquet::basic::ZstdLevel;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Zstandard at a level from 1 to 22.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Compression {
    level: u8,
}

impl Compression {
    /// What `zstd` without a level means: higher ones save next to nothing more of activations.
    const DEFAULT: u8 = 1;

    /// Zstandard at this level.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is from 1 to 22.
    pub fn zstd(level: u8) -> Result<Self> {
        match level {
            1..=22 => Ok(Self { level }),
            _ => Err(Error::Invalid(format!(
                "zstd has no level {level}, expected one from 1 to 22"
            ))),
        }
    }

    /// As Parquet's writer takes it.
    pub(crate) fn parquet(self) -> parquet::basic::Compression {
        let level = ZstdLevel::try_new(i32::from(self.level)).expect("the level was checked");
        parquet::basic::Compression::ZSTD(level)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zstd:{}", self.level)
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::Invalid(format!(
                "{text:?} is no compression, expected zstd or zstd:LEVEL with a level from 1 to 22"
            ))
        };
        match text.split_once(':') {
            None if text == "zstd" => Self::zstd(Self::DEFAULT),
            Some(("zstd", level)) => Self::zstd(level.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_written_as_its_name_and_its_level() {
        assert_eq!("zstd".parse::<Compression>().unwrap().to_string(), "zstd:1");
        assert_eq!("zstd:19".parse::<Compression>().unwrap().to_string(), "zstd:19");
        let json = serde_json::to_string(&Compression::zstd(3).unwrap()).unwrap();
        assert_eq!(json, "\"zstd:3\"");
        assert_eq!(
            serde_json::from_str::<Compression>(&json).unwrap().to_string(),
            "zstd:3"
        );
        for bad in ["zstd:0", "zstd:23", "zstd:", "zstd:x", "lz4", "", "gzip:3", "zstd:300"] {
            let said = bad.parse::<Compression>().unwrap_err().to_string();
            assert!(said.contains("1 to 22"), "{bad}: {said}");
        }
    }
}
