//! The rows of files that cannot be read at positions, decoded once into a file that can.
//!
//! The copy is a safetensors file with one tensor `[n, d]` named after the column: the form that other programs read
//! with the least code, and with room for bf16, which numpy has not. Its header follows from the data alone and names
//! the data's fingerprint, so that a copy that is there already is known by its first bytes.
//!
//! A copy that was interrupted continues. Rows are appended to the temporary file; every [`SYNC_BYTES`] they are
//! flushed to the disk, and then a small file beside it says how many there are. Whatever lies behind that count is cut
//! off by who continues. Memory is that of one decoded batch.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parquet::ParquetRows;
use crate::atomic;
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::progress::{Outcome, Progress, Stop};

/// Bytes between two notes of how far it is.
const SYNC_BYTES: u64 = 256 << 20;

/// How far a copy is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    /// Rows that are on the disk.
    rows: u64,
}

/// A copy: where it is, and what its first bytes are.
pub(super) struct Copy<'a> {
    rows: &'a ParquetRows,
    path: &'a Path,
    header: Vec<u8>,
}

impl<'a> Copy<'a> {
    /// The copy of `rows`, whose fingerprint is given, at `path`.
    pub fn new(rows: &'a ParquetRows, fingerprint: &str, path: &'a Path) -> Self {
        let dtype = match rows.dtype() {
            ActDtype::F16 => "F16",
            ActDtype::Bf16 => "BF16",
            ActDtype::F32 => "F32",
            ActDtype::Int8 => unreachable!("no file of another program is read as int8"),
        };
        let json = serde_json::json!({
            "__metadata__": { "sae.copy_of": fingerprint },
            (rows.column.as_str()): {
                "dtype": dtype,
                "shape": [rows.n_rows(), rows.d_in],
                "data_offsets": [0, bytes(rows)],
            },
        });
        let mut text = json.to_string().into_bytes();
        text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        Self { rows, path, header }
    }

    /// Where the rows begin.
    pub fn offset(&self) -> u64 {
        self.header.len() as u64
    }

    /// Whether the copy is there.
    pub fn exists(&self) -> Result<bool> {
        let mut file = match File::open(self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io(self.path)(e)),
        };
        Ok(length(&file, self.path)? == self.offset() + bytes(self.rows) && self.begins(&mut file)?)
    }

    /// Makes it, or continues where it was interrupted. It stops between batches.
    pub fn make(&self, progress: &dyn Progress, stop: &Stop) -> Result<Outcome> {
        let temporary = atomic::temporary(self.path);
        let (mut file, done) = self.begin(&temporary)?;
        progress.begin("copy", Some(self.rows.n_rows()), "rows");
        progress.advance(done);
        let width = self.rows.width();
        let (mut rows, mut since, mut outcome) = (done, 0, Outcome::Finished);
        self.rows.decode(done, |batch| {
            if stop.requested() {
                outcome = Outcome::Stopped;
                return Ok(false);
            }
            file.write_all(batch).map_err(Error::io(&temporary))?;
            rows += batch.len() as u64 / width;
            since += batch.len() as u64;
            if since >= SYNC_BYTES {
                since = 0;
                self.note(&file, &temporary, rows)?;
            }
            progress.advance(batch.len() as u64 / width);
            Ok(true)
        })?;
        if outcome == Outcome::Stopped {
            self.note(&file, &temporary, rows)?;
            return Ok(outcome);
        }
        file.sync_all().map_err(Error::io(&temporary))?;
        drop(file);
        atomic::publish(&temporary, self.path)?;
        match fs::remove_file(self.journal()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(self.journal())(e)),
            _ => {}
        }
        progress.finish();
        Ok(outcome)
    }

    /// The temporary file, ready for the rows after those that it has.
    fn begin(&self, temporary: &Path) -> Result<(File, u64)> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(temporary)
            .map_err(Error::io(temporary))?;
        let done = self.done(&mut file, temporary)?;
        if done == 0 {
            file.set_len(0).map_err(Error::io(temporary))?;
            file.seek(SeekFrom::Start(0)).map_err(Error::io(temporary))?;
            file.write_all(&self.header).map_err(Error::io(temporary))?;
        } else {
            let end = self.offset() + done * self.rows.width();
            file.set_len(end).map_err(Error::io(temporary))?;
            file.seek(SeekFrom::Start(end)).map_err(Error::io(temporary))?;
        }
        Ok((file, done))
    }

    /// Rows of the temporary file that are known to be there.
    fn done(&self, file: &mut File, temporary: &Path) -> Result<u64> {
        let Ok(journal) = fs::read(self.journal()) else {
            return Ok(0);
        };
        let Ok(Journal { rows }) = serde_json::from_slice(&journal) else {
            return Ok(0);
        };
        let width = self.rows.width();
        let whole = rows <= self.rows.n_rows() && rows.is_multiple_of(self.rows.context_rows);
        let there = whole && length(file, temporary)? >= self.offset() + rows * width && self.begins(file)?;
        Ok(if there { rows } else { 0 })
    }

    /// Whether a file begins as this copy does.
    fn begins(&self, file: &mut File) -> Result<bool> {
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| Read::by_ref(file).take(self.offset()).read_to_end(&mut head))
            .map_err(Error::io(self.path))?;
        Ok(head == self.header)
    }

    /// Says that `rows` rows are on the disk, once they are.
    fn note(&self, file: &File, temporary: &Path, rows: u64) -> Result<()> {
        file.sync_data().map_err(Error::io(temporary))?;
        atomic::write(&self.journal(), format!("{{\"rows\":{rows}}}\n").as_bytes())
    }

    fn journal(&self) -> PathBuf {
        self.path.with_extension("progress.json")
    }
}

fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(Error::io(path))?.len())
}

/// Bytes of the rows.
pub(super) fn bytes(rows: &ParquetRows) -> u64 {
    rows.n_rows() * rows.width()
}
