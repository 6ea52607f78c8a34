//! Activations that somebody else harvested: a `.npy` file with an array `[n, d]`.
//!
//! The format is numpy's own (NEP 1): a magic string, a version, and a header that is a Python dictionary literal with
//! the keys `descr`, `fortran_order` and `shape`. We accept versions 1 to 3, little-endian `f2` and `f4`, C order and
//! two dimensions, and refuse everything else by naming what was found. The array stays on disk and is mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::mapped;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Bytes of what [`header`] makes, with room for any number of rows.
pub const HEADER_BYTES: usize = 128;

/// The header of an array `[n_rows, width]` of little-endian f32, whose values follow row behind row.
pub fn header(n_rows: u64, width: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {width}), }}");
    // Version 1.0, padded with spaces. Two numbers of 20 digits leave some.
    let length = HEADER_BYTES - 10;
    text.push_str(&" ".repeat(length - 1 - text.len()));
    text.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend((length as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out
}

/// A memory-mapped array `[n_rows, d_in]`.
#[derive(Clone, Debug)]
pub struct Npy {
    path: PathBuf,
    dtype: ActDtype,
    n_rows: usize,
    d_in: usize,
    /// The array's bytes, exactly `n_rows * d_in * dtype.size()`.
    data: Bytes,
}

/// What the header of an array says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Npy {
    /// Maps and validates `path`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BadFile`] for anything but a complete `.npy` with a little-endian f2 or f4 array of
    /// two dimensions in C order.
    pub fn open(path: &Path) -> Result<Self> {
        let file = mapped::map(path)?;
        let (dtype, n_rows, d_in, start) = parse(&file).map_err(|problem| Error::bad_file(path, problem))?;
        Ok(Self {
            path: path.to_owned(),
            dtype,
            n_rows,
            d_in,
            data: file.slice(start..start + n_rows * d_in * dtype.size()),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number format of the file.
    pub fn dtype(&self) -> ActDtype {
        self.dtype
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Decodes the rows `rows` into `out: [rows.len(), d_in]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the range is not within the array; [`Error::BadFile`] naming the first row that holds a
    /// NaN or an infinite value.
    ///
    /// # Panics
    /// If `out` is not `rows.len() * d_in` long.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if rows.start > rows.end || rows.end > self.n_rows {
            return Err(Error::Invalid(format!(
                "{}: rows {}..{} are not within its {} rows",
                self.path.display(),
                rows.start,
                rows.end,
                self.n_rows
            )));
        }
        let row_bytes = self.d_in * self.dtype.size();
        self.dtype
            .decode(&self.data[rows.start * row_bytes..rows.end * row_bytes], out);
        if let Some(at) = out.iter().position(|v| !v.is_finite()) {
            return Err(Error::bad_file(
                &self.path,
                format!(
                    "row {} holds {} in column {}: training needs finite activations; drop or repair the row",
                    rows.start + at / self.d_in,
                    out[at],
                    at % self.d_in
                ),
            ));
        }
        Ok(())
    }
}

/// Validates a whole file and returns dtype, rows, width and where the data starts.
fn parse(file: &[u8]) -> std::result::Result<(ActDtype, usize, usize, usize), String> {
    let (text, start) = header_text(file)?;
    let header = parse_header(text)?;
    let dtype = match header.descr.as_str() {
        "<f4" => ActDtype::F32,
        "<f2" => ActDtype::F16,
        other => {
            return Err(format!(
                "holds {other:?}, expected little-endian float32 (\"<f4\") or float16 (\"<f2\"): \
                 save `a.astype('<f4')`"
            ));
        }
    };
    if header.fortran_order {
        return Err("is in Fortran order, expected C order: save `numpy.ascontiguousarray(a)`".into());
    }
    let [n_rows, d_in] = header.shape[..] else {
        return Err(format!(
            "has shape {:?}, expected two dimensions [n, d]: save `a.reshape(-1, d)`",
            header.shape
        ));
    };
    if n_rows == 0 || d_in == 0 {
        return Err(format!("has shape [{n_rows}, {d_in}]: there is nothing in it"));
    }
    let expected = n_rows
        .checked_mul(d_in)
        .and_then(|n| n.checked_mul(dtype.size()))
        .ok_or_else(|| format!("claims the impossible shape [{n_rows}, {d_in}]"))?;
    let found = file.len() - start;
    if found != expected {
        return Err(format!(
            "shape [{n_rows}, {d_in}] of {dtype} needs {expected} bytes of data but the file has {found}: {}",
            if found < expected {
                "it is truncated"
            } else {
                "something follows the array"
            }
        ));
    }
    Ok((dtype, n_rows, d_in, start))
}

/// The header's text and the offset of the data behind it.
fn header_text(file: &[u8]) -> std::result::Result<(&str, usize), String> {
    if !file.starts_with(MAGIC) {
        return Err("is not a .npy file (its first bytes are not \\x93NUMPY)".into());
    }
    let version = file.get(6..8).ok_or("is truncated within its header")?;
    let truncated = || "is truncated within its header".to_owned();
    let (length, text_start) = match version[0] {
        1 => {
            let b = file.get(8..10).ok_or_else(truncated)?;
            (usize::from(u16::from_le_bytes([b[0], b[1]])), 10)
        }
        2 | 3 => {
            let b = file.get(8..12).ok_or_else(truncated)?;
            (u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize, 12)
        }
        other => return Err(format!("is .npy version {other}, expected 1, 2 or 3")),
    };
    let text = file.get(text_start..text_start + length).ok_or_else(truncated)?;
    let text = std::str::from_utf8(text).map_err(|_| "has a header that is not text")?;
    Ok((text, text_start + length))
}

/// Parses the dictionary literal. Numpy writes exactly three keys; order and white space are free.
fn parse_header(text: &str) -> std::result::Result<Header, String> {
    let bad = || format!("has a header that numpy would not write: {:?}", shorten(text));
    let mut rest = text.trim().strip_prefix('{').ok_or_else(bad)?.trim_start();
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    loop {
        if let Some(end) = rest.strip_prefix('}') {
            if !end.is_empty() {
                return Err(bad());
            }
            break;
        }
        let (key, after) = string(rest).ok_or_else(bad)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(bad)?.trim_start();
        let after = match key {
            "descr" => {
                let Some((d, after)) = string(value) else {
                    return Err(format!(
                        "holds a structured dtype, expected plain float32 or float16: {:?}",
                        shorten(text)
                    ));
                };
                descr = Some(d.to_owned());
                after
            }
            "fortran_order" => {
                let (v, after) = if let Some(after) = value.strip_prefix("True") {
                    (true, after)
                } else {
                    (false, value.strip_prefix("False").ok_or_else(bad)?)
                };
                fortran_order = Some(v);
                after
            }
            "shape" => {
                let (inside, after) = value
                    .strip_prefix('(')
                    .and_then(|v| v.split_once(')'))
                    .ok_or_else(bad)?;
                let sizes: Option<Vec<usize>> = inside
                    .split(',')
                    .map(str::trim)
                    .filter(|s| !s.is_empty())
                    .map(|s| s.parse().ok())
                    .collect();
                shape = Some(sizes.ok_or_else(bad)?);
                after
            }
            _ => return Err(bad()),
        };
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.starts_with('}') => after,
            None => return Err(bad()),
        };
    }
    match (descr, fortran_order, shape) {
        (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header {
            descr,
            fortran_order,
            shape,
        }),
        _ => Err(bad()),
    }
}

/// A Python string literal without escapes at the start of `s`: its contents, and what follows.
fn string(s: &str) -> Option<(&str, &str)> {
    let quote = s.chars().next().filter(|c| *c == '\'' || *c == '"')?;
    s[1..].split_once(quote)
}

fn shorten(text: &str) -> String {
    text.trim().chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([version, 0]);
        if version == 1 {
            out.extend((header.len() as u16).to_le_bytes());
        } else {
            out.extend((header.len() as u32).to_le_bytes());
        }
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err()
    }

    #[test]
    fn rows_read_back_from_every_accepted_version_and_dtype() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let values: Vec<f32> = (0..6).map(|v| v as f32 - 2.5).collect();
        for (version, descr, dtype) in [
            (1, "<f4", ActDtype::F32),
            (2, "<f2", ActDtype::F16),
            (3, "<f4", ActDtype::F32),
        ] {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (3, 2), }}   \n");
            let mut data = Vec::new();
            dtype.encode(&values, &mut data);
            std::fs::write(&path, file(version, &header, &data)).unwrap();
            let npy = Npy::open(&path).unwrap();
            assert_eq!((npy.n_rows(), npy.d_in(), npy.dtype()), (3, 2, dtype));
            let mut out = [0.0; 4];
            npy.read(1..3, &mut out).unwrap();
            assert_eq!(out, values[2..]);
            assert!(npy.read(2..4, &mut out).is_err());
        }
    }

    #[test]
    fn a_row_with_nan_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let mut data = Vec::new();
        ActDtype::F32.encode(&[0.0, 1.0, 2.0, f32::NAN], &mut data);
        std::fs::write(
            &path,
            file(1, "{'descr':'<f4','fortran_order':False,'shape':(2,2)}", &data),
        )
        .unwrap();
        let error = Npy::open(&path)
            .unwrap()
            .read(0..2, &mut [0.0; 4])
            .unwrap_err()
            .to_string();
        assert!(error.contains("row 1") && error.contains("NaN"), "{error}");
    }

    #[test]
    fn everything_else_is_refused_by_what_was_found() {
        let header = |descr: &str, order: &str, shape: &str| {
            file(
                1,
                &format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"),
                &[0; 16],
            )
        };
        assert!(problem(b"PAR1").contains("not a .npy"));
        assert!(problem(MAGIC).contains("truncated"));
        assert!(problem(&header("'<f8'", "False", "(2, 1)")).contains("<f8"));
        assert!(problem(&header("'>f4'", "False", "(2, 2)")).contains(">f4"));
        assert!(problem(&header("[('a', '<f4')]", "False", "(4,)")).contains("structured"));
        assert!(problem(&header("'<f4'", "True", "(2, 2)")).contains("Fortran"));
        assert!(problem(&header("'<f4'", "False", "(4,)")).contains("[4]"));
        assert!(problem(&header("'<f4'", "False", "(0, 4)")).contains("nothing"));
        assert!(problem(&header("'<f4'", "False", "(3, 2)")).contains("truncated"));
        assert!(problem(&header("'<f4'", "False", "(1, 2)")).contains("follows"));
        assert!(problem(&header("'<f4'", "False", "(9223372036854775807, 9)")).contains("impossible"));
        assert!(problem(&file(4, "{}", &[])).contains("version 4"));
        assert!(problem(&file(1, "{'descr': '<f4'}", &[])).contains("numpy would not write"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(tail);
            let _ = parse(&bytes);
        }

        #[test]
        fn no_header_text_makes_the_parser_panic(text in "[{}'\"(),: a-zA-Z0-9<é]{0,80}") {
            let _ = parse(&file(2, &text, &[0; 8]));
        }

        #[test]
        fn whatever_numpy_writes_is_read(n in 1usize..20, d in 1usize..20, half in any::<bool>(), pad in 0usize..64) {
            let (descr, size) = if half { ("<f2", 2) } else { ("<f4", 4) };
            let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({n}, {d}), }}{}\n", " ".repeat(pad));
            let bytes = file(1, &text, &vec![0; n * d * size]);
            let (dtype, rows, width, start) = parse(&bytes).unwrap();
            prop_assert_eq!((dtype.size(), rows, width), (size, n, d));
            prop_assert_eq!(bytes.len() - start, n * d * size);
        }
    }
}
