//! Files that are either whole or absent.
//!
//! A reader never sees half a file: contents go to a temporary file in the same directory, are flushed to the disk,
//! and are renamed into place. Killing the process at any moment leaves the old file, or the new one.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The temporary sibling that a write to `path` goes through: `name.tmp` in the same directory.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes `path` by `fill`, atomically.
///
/// # Errors
/// What `fill` returns, and [`Error::Io`] naming the file; the old file, if any, is then untouched.
pub fn write_with<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let temporary = temporary(path);
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::create(&temporary).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let written = fill(&mut out).and_then(|()| {
        out.flush().map_err(|source| E::from(io(source)))?;
        out.get_ref().sync_all().map_err(|source| E::from(io(source)))
    });
    drop(out);
    if let Err(error) = written {
        // The original is intact; a stray temporary file is only litter.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    publish(&temporary, path)?;
    Ok(())
}

/// Writes `bytes` to `path`, atomically.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| {
        out.write_all(bytes).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })
    })
}

/// Renames a finished temporary file into place and makes the rename durable.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    fs::rename(temporary, path).map_err(io)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Flushes a directory's entries to the disk, where the platform has such a thing.
///
/// # Errors
/// [`Error::Io`] naming the directory.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    #[cfg(unix)]
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(|source| Error::Io {
            path: directory.to_owned(),
            source,
        })?;
    let _ = directory;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"old").unwrap();
        let failed: Result<()> = write_with(&path, |out| {
            out.write_all(b"half of the n").unwrap();
            Err(Error::Invalid("no".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_replaces_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"a much longer text").unwrap();
        write(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
