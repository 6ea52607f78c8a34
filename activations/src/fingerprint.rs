//! A cheap digest of files that may be very large.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Bytes of each end of a file that are looked at.
const END: u64 = 1 << 20;

/// SHA-256, in hex, over the length, the first and the last mebibyte of each file.
pub(crate) fn fingerprint(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        add(&mut hash, path)?;
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Adds to `hash` the length, the first and the last mebibyte of a file.
pub(crate) fn add(hash: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    hash.update(length.to_le_bytes());
    let mut part = Vec::new();
    file.by_ref()
        .take(END)
        .read_to_end(&mut part)
        .map_err(Error::io(path))?;
    hash.update(&part);
    if length > END {
        part.clear();
        file.seek(SeekFrom::Start((length - END).max(END)))
            .and_then(|_| file.take(END).read_to_end(&mut part))
            .map_err(Error::io(path))?;
        hash.update(&part);
    }
    Ok(())
}
