//! What kind of file a text is in, and how it is compressed.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How documents lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file is a document, or several with a separator between them.
    Txt,
    /// A JSON object a line.
    Jsonl,
    /// A JSON array of objects, or objects one after the other.
    Json,
    /// Comma-separated values with a line of column names.
    Csv,
    /// Parquet.
    Parquet,
}

impl Format {
    /// The name, which is also the extension of such files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "txt" => Some(Self::Txt),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the bytes of a file are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes. None of them begins a text: neither is UTF-8.
    pub(super) fn of_bytes(head: &[u8]) -> Self {
        match head {
            [0x1F, 0x8B, ..] => Self::Gzip,
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "no",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// What the name of a file says: `a.jsonl.gz` is JSON lines in gzip, `a.md` says nothing.
pub(crate) fn of_name(path: &Path) -> (Option<Format>, Option<Compression>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return (None, None);
    };
    match Compression::of_extension(extension) {
        Some(compression) => {
            let inner = stem.rsplit_once('.').map_or("", |(_, inner)| inner);
            (Format::of_extension(inner), Some(compression))
        }
        None => (Format::of_extension(extension), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_format_and_compression() {
        let of = |name: &str| of_name(name.as_ref());
        assert_eq!(of("a.txt"), (Some(Format::Txt), None));
        assert_eq!(of("a.b.JSONL.gz"), (Some(Format::Jsonl), Some(Compression::Gzip)));
        assert_eq!(of("x/a.csv.zst"), (Some(Format::Csv), Some(Compression::Zstd)));
        assert_eq!(of("a.gz"), (None, Some(Compression::Gzip)));
        assert_eq!((of("a.md"), of("README")), ((None, None), (None, None)));
    }
}
