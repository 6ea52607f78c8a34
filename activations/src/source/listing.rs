//! What files of other programs hold, for people who look before they train.

use std::path::{Path, PathBuf};

use super::kind::{Candidate, Kind};
use super::{array, arrow, columns, parquet};
use crate::error::{Error, Result};
use crate::npy::Npy;
use crate::safetensors_file::SafeTensors;

/// What a file, or a directory of files, holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// `array`, `tensors`, `parquet` or `dataset`.
    pub kind: &'static str,
    /// Files.
    pub files: usize,
    /// Rows of all files; unknown of tensors, which have their own, and of Arrow streams before they are read.
    pub rows: Option<u64>,
    /// Tensors or columns: name, what it is, and whether it can be trained on.
    pub columns: Vec<(String, String, bool)>,
    /// Length of all files.
    pub bytes: u64,
}

/// Looks at headers and footers. `None` where `path` is a store or nothing that is known here.
///
/// # Errors
/// [`Error::Io`] and [`Error::BadFile`] from a file that cannot be read.
pub fn listing(path: &Path) -> Result<Option<Listing>> {
    let one = || vec![path.to_owned()];
    let (kind, files, rows, candidates) = match Kind::of(path)? {
        Kind::Store => return Ok(None),
        Kind::Npy => {
            let npy = Npy::open(path)?;
            let what = format!("{} [{}, {}]", npy.dtype(), npy.n_rows(), npy.d_in());
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let array = Candidate { name, what, good: true };
            ("array", one(), Some(npy.n_rows() as u64), vec![array])
        }
        Kind::SafeTensors => ("tensors", one(), None, array::tensors(&SafeTensors::open(path)?)),
        Kind::Parquet(files) => {
            let mut rows = 0u64;
            let mut all = Vec::new();
            for file in &files {
                let (schema, n) = parquet::look(file)?;
                rows = rows.saturating_add(n);
                if all.is_empty() {
                    all = columns::candidates(&schema);
                }
            }
            ("parquet", files, Some(rows), all)
        }
        Kind::Arrow(files) => {
            let all = columns::candidates(&arrow::schema(&files[0])?);
            ("dataset", files, None, all)
        }
    };
    Ok(Some(Listing {
        kind,
        rows,
        columns: candidates.into_iter().map(|c| (c.name, c.what, c.good)).collect(),
        bytes: total(&files)?,
        files: files.len(),
    }))
}

fn total(files: &[PathBuf]) -> Result<u64> {
    files.iter().try_fold(0, |sum, file| {
        let length = std::fs::metadata(file).map_err(Error::io(file))?.len();
        Ok(sum + length)
    })
}
