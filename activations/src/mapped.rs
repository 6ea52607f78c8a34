//! Files mapped into memory for reading.
//!
//! The only `unsafe` of the data path: everything else works on the byte slices given out here. A mapping is taken
//! after the file is complete (stores and arrays are renamed into place when they are), and its length is checked
//! against what the file claims before anything is read from it.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use crate::error::{Error, Result};

/// Maps a whole file. The mapping lives as long as the returned bytes or any slice of them.
///
/// # Errors
/// [`Error::Io`] naming the file, a directory in its place included.
pub fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(Error::bad_file(path, "expected a file, found a directory"));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only and private to this process. Files of this project are never modified in place,
    // only replaced by rename, which leaves existing mappings of the old file intact. Somebody else truncating the
    // file while it is mapped ends the process with SIGBUS; it cannot be read as something else.
    let mapping = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Bytes::from_owner(mapping))
}
