//! Codes as one array, for sets that are small: numpy's format, `[rows, d_sae]` of f32.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use activations::atomic;
use activations::npy;

use super::DENSE;
use crate::error::{Error, Result};

/// Refuses an array of `bytes` where `limit` is the most.
pub(super) fn check(bytes: u64, limit: u64) -> Result<()> {
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    match bytes <= limit {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "dense codes need {:.2} GiB and the limit is {:.2}: leave out --dense, take fewer rows with --tokens, or raise \
             --dense-limit",
            gib(bytes),
            gib(limit)
        ))),
    }
}

/// The array while it is written. It is removed if it does not become complete.
pub(super) struct DenseArray {
    path: PathBuf,
    /// Absent once it is closed.
    out: Option<BufWriter<File>>,
    d_sae: usize,
    rows: u64,
    limit: u64,
    row: Vec<u8>,
}

impl DenseArray {
    pub fn create(dir: &Path, d_sae: usize, limit: u64) -> Result<Self> {
        let path = dir.join(DENSE);
        let temporary = atomic::temporary(&path);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&[0; npy::HEADER_BYTES]).map_err(Error::io(&temporary))?;
        Ok(Self {
            path,
            out: Some(out),
            d_sae,
            rows: 0,
            limit,
            row: vec![0; 4 * d_sae],
        })
    }

    /// Adds a row.
    pub fn push(&mut self, entries: &[(u32, f32)]) -> Result<()> {
        self.rows += 1;
        check(self.rows * 4 * self.d_sae as u64, self.limit)?;
        self.row.fill(0);
        for &(latent, value) in entries {
            self.row[4 * latent as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let out = self.out.as_mut().expect("rows are pushed before the array is closed");
        out.write_all(&self.row).map_err(Error::io(&self.path))
    }

    /// Completes the file; its length.
    pub fn close(mut self) -> Result<u64> {
        let temporary = atomic::temporary(&self.path);
        let out = self.out.take().expect("an array is closed once");
        let mut file = out.into_inner().map_err(|e| Error::io(&temporary)(e.into_error()))?;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&npy::header(self.rows, self.d_sae)))
            .and_then(|()| file.sync_all())
            .map_err(Error::io(&temporary))?;
        let bytes = file.metadata().map_err(Error::io(&temporary))?.len();
        atomic::publish(&temporary, &self.path)?;
        Ok(bytes)
    }
}

impl Drop for DenseArray {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            let _ = fs::remove_file(atomic::temporary(&self.path));
        }
    }
}
