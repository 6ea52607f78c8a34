//! Rows of one width that lie in long runs in a few files.
//!
//! Rows are read with positioned reads and not through a mapping. A reader that mixes touches the whole store in the
//! end, and mapped pages count as memory of the process: 1 GiB asked for would look like the size of the store. A file
//! that somebody truncates meanwhile is an error here, and would be the end of the process there.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::pages::Packed;
use crate::dtype::ActDtype;
use crate::error::{Error, Result};

/// Files that stay open; the ones after are opened for each read, so that a store of any size leaves descriptors for
/// everybody else.
const OPEN_FILES: usize = 256;

/// Files that are read at positions.
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    open: Vec<File>,
}

impl Files {
    /// Opens them, the first ones for good.
    pub fn open(paths: Vec<PathBuf>) -> Result<Self> {
        let open = paths
            .iter()
            .take(OPEN_FILES)
            .map(|path| File::open(path).map_err(Error::io(path)))
            .collect::<Result<_>>()?;
        Ok(Self { paths, open })
    }

    /// Fills `out` from `offset` on.
    fn read(&self, file: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let path = &self.paths[file];
        let read = match self.open.get(file) {
            Some(open) => read_exact_at(open, out, offset),
            None => File::open(path).and_then(|open| read_exact_at(&open, out, offset)),
        };
        read.map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::bad_file(path, "became shorter while it was being read"),
            _ => Error::io(path)(source),
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Rows that follow each other in a file, or in a page of it that is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Which of the files.
    pub file: usize,
    /// Where the first row starts, or the page.
    pub offset: u64,
    /// How many rows follow each other.
    pub rows: u64,
}

/// A column of values of equal size: runs in files.
pub(crate) struct Column {
    files: Arc<Files>,
    runs: Vec<Run>,
    /// Where each run is a compressed page.
    packed: Option<Packed>,
    /// The number of each run's first row, and at the end the number of rows.
    starts: Vec<u64>,
    /// Bytes of a row.
    width: usize,
}

impl Column {
    /// A column of values of `width` bytes. Runs must lie within their files: who finds them checks that.
    pub fn new(files: Arc<Files>, runs: Vec<Run>, width: usize) -> Self {
        let mut starts = vec![0];
        let mut rows = 0;
        starts.extend(runs.iter().map(|run| {
            rows += run.rows;
            rows
        }));
        Self {
            files,
            runs,
            packed: None,
            starts,
            width,
        }
    }

    /// A column whose runs are compressed pages of `sizes` bytes.
    pub fn packed(files: Arc<Files>, runs: Vec<Run>, sizes: Vec<u32>, width: usize) -> Self {
        assert_eq!(runs.len(), sizes.len(), "every page has a size");
        Self {
            packed: Some(Packed::new(sizes, width)),
            ..Self::new(files, runs, width)
        }
    }

    /// Rows in all.
    pub fn n_rows(&self) -> u64 {
        self.starts[self.runs.len()]
    }

    /// Bytes of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Copies the rows `rows` into `out`, which is exactly that long.
    pub fn read(&self, rows: Range<u64>, mut out: &mut [u8]) -> Result<()> {
        assert_eq!(
            out.len() as u64,
            (rows.end - rows.start) * self.width as u64,
            "length of the output"
        );
        let mut row = rows.start;
        let mut run = self.starts.partition_point(|&start| start <= row) - 1;
        while row < rows.end {
            let skip = row - self.starts[run];
            let n = (self.runs[run].rows - skip).min(rows.end - row);
            let (now, later) = out.split_at_mut(n as usize * self.width);
            let Run { file, offset, .. } = self.runs[run];
            match &self.packed {
                None => self.files.read(file, offset + skip * self.width as u64, now)?,
                Some(packed) => {
                    let at = skip as usize * self.width;
                    now.copy_from_slice(&self.page(packed, run)?[at..at + now.len()]);
                }
            }
            (out, row, run) = (later, row + n, run + 1);
        }
        Ok(())
    }

    /// The values of a compressed page.
    fn page(&self, packed: &Packed, run: usize) -> Result<Bytes> {
        if let Some(values) = packed.recent(run) {
            return Ok(values);
        }
        let Run { file, offset, rows } = self.runs[run];
        let mut bytes = vec![0; packed.size(run)];
        self.files.read(file, offset, &mut bytes)?;
        packed
            .decode(run, bytes.into(), rows, self.width)
            .map_err(|problem| Error::bad_file(&self.files.paths[file], problem))
    }

    /// The values of a column of u32.
    pub fn read_u32(&self, rows: Range<u64>) -> Result<Vec<u32>> {
        let mut bytes = vec![0; (rows.end - rows.start) as usize * 4];
        self.read(rows, &mut bytes)?;
        let value = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(value).collect())
    }

    /// The values of a column of u64.
    pub fn read_u64(&self, rows: Range<u64>) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (rows.end - rows.start) as usize * 8];
        self.read(rows, &mut bytes)?;
        let value = |b: &[u8]| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Ok(bytes.chunks_exact(8).map(value).collect())
    }
}

/// Which token each row of a store belongs to.
pub(crate) struct Places {
    /// Context numbers, u64.
    pub context: Column,
    /// Positions within the context, u32.
    pub position: Column,
}

impl Places {
    /// Context and position of a row.
    pub fn of(&self, row: u64) -> Result<(u64, u32)> {
        let context = self.context.read_u64(row..row + 1)?;
        Ok((context[0], self.position.read_u32(row..row + 1)?[0]))
    }
}

/// Refuses a range that is not within the `n_rows` rows of `name`.
pub(crate) fn refuse_rows_beyond(name: &str, rows: &Range<u64>, n_rows: u64) -> Result<()> {
    if rows.start > rows.end || rows.end > n_rows {
        return Err(Error::Invalid(format!(
            "{name}: rows {}..{} are not within its {n_rows} rows",
            rows.start, rows.end
        )));
    }
    Ok(())
}

/// The activations of one hook, or of other programs' files.
pub(crate) struct ActRows {
    /// The store with the hook, or the file: begins the sentence of an error.
    pub name: String,
    /// The store's directory, or the file or directory of another program.
    pub path: PathBuf,
    pub dtype: ActDtype,
    pub d_in: usize,
    pub acts: Column,
    /// Absent for activations of other programs.
    pub places: Option<Places>,
    /// Rows of each context where `places` are absent; 1 where nothing is known of contexts.
    pub context_rows: u64,
    /// The files that a user knows, each with the number of its first row: a bad row is named by them. None for a store.
    pub parts: Vec<(PathBuf, u64)>,
}

impl ActRows {
    /// Rows in all.
    pub fn n_rows(&self) -> u64 {
        self.acts.n_rows()
    }

    /// Refuses a range that is not within the rows.
    pub fn check_range(&self, rows: &Range<u64>) -> Result<()> {
        refuse_rows_beyond(&self.name, rows, self.n_rows())
    }

    /// Copies encoded rows into `out` and refuses values that are not finite.
    pub fn read_encoded(&self, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        self.acts.read(rows.clone(), out)?;
        match self.dtype.first_not_finite(out, self.d_in) {
            None => Ok(()),
            Some((row, column)) => Err(self.not_finite(rows.start + row as u64, column)),
        }
    }

    /// Decodes rows into `out: [rows, d_in]`.
    pub fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.check_range(&rows)?;
        if out.len() as u64 != (rows.end - rows.start) * self.d_in as u64 {
            return Err(Error::Invalid(format!(
                "{}: {} rows of {} do not fill {} values",
                self.name,
                rows.end - rows.start,
                self.d_in,
                out.len()
            )));
        }
        let width = self.acts.width();
        let block_rows = ((256 << 10) / width).max(1);
        let mut block = vec![0; block_rows * width];
        let mut row = rows.start;
        for values in out.chunks_mut(block_rows * self.d_in) {
            let n = values.len() / self.d_in;
            let bytes = &mut block[..n * width];
            self.read_encoded(row..row + n as u64, bytes)?;
            self.dtype.decode_rows(bytes, self.d_in, values);
            row += n as u64;
        }
        Ok(())
    }

    /// What to call a row: the file that a user knows, its number there, and its place in the text where that is known.
    pub fn name_of(&self, row: u64) -> (&Path, String) {
        let part = self.parts.partition_point(|(_, first)| *first <= row).checked_sub(1);
        let (path, row_here) = match part.map(|part| &self.parts[part]) {
            Some((path, first)) => (path, row - first),
            None => (&self.path, row),
        };
        let place = match &self.places {
            Some(places) => places.of(row).ok(),
            None if self.context_rows > 1 => {
                Some((row_here / self.context_rows, (row_here % self.context_rows) as u32))
            }
            None => None,
        };
        let place = place.map(|(context, position)| format!(" (context {context}, position {position})"));
        (path, format!("row {row_here}{}", place.as_deref().unwrap_or_default()))
    }

    fn not_finite(&self, row: u64, column: usize) -> Error {
        let (path, name) = self.name_of(row);
        Error::bad_file(
            path,
            format!(
                "{name} holds a NaN or an infinite value in column {column}: training needs finite activations; {}",
                match self.places {
                    Some(_) => "harvest again",
                    None => "drop or repair the row",
                }
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_across_runs_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("{i}"))).collect();
        std::fs::write(&paths[0], b"..aabb.cc").unwrap();
        std::fs::write(&paths[1], b"ddee").unwrap();
        let files = Arc::new(Files::open(paths.clone()).unwrap());
        let run = |file, offset, rows| Run { file, offset, rows };
        let column = Column::new(files, vec![run(0, 2, 2), run(0, 7, 1), run(1, 0, 2)], 2);
        assert_eq!(column.n_rows(), 5);
        let text = b"aabbccddee";
        for start in 0..5u64 {
            for end in start..=5 {
                let mut out = vec![0; (end - start) as usize * 2];
                column.read(start..end, &mut out).unwrap();
                assert_eq!(out, text[start as usize * 2..end as usize * 2], "{start}..{end}");
            }
        }
        std::fs::write(&paths[1], b"d").unwrap();
        let error = column.read(3..5, &mut [0; 4]).unwrap_err().to_string();
        assert!(error.contains("shorter"), "{error}");
    }
}
