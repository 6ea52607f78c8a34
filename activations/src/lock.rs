//! Who writes: a file or directory that one process at a time has.
//!
//! The lock is the system's and goes with the process, so that nothing is left behind by one that was killed. File systems
//! without locks are left to the user.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// Something that nobody else writes while this lives.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes an open file; `None` if another process has it.
    pub fn of_file(file: File) -> Option<Self> {
        match file.try_lock() {
            Ok(()) | Err(TryLockError::Error(_)) => Some(Self { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Takes the directory `dir`, which exists and is to become `what`: `this store`.
    ///
    /// # Errors
    /// [`Error::BadFile`] if another process has it.
    pub fn of_directory(dir: &Path, what: &str) -> Result<Self> {
        // Where a directory cannot be opened as a file, there is no lock on it.
        let Ok(file) = File::open(dir) else {
            return Ok(Self { _file: None });
        };
        Self::of_file(file).ok_or_else(|| {
            Error::bad_file(
                dir,
                format!("another process is writing {what}: let it finish, or stop it"),
            )
        })
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_owners_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::of_directory(dir.path(), "this run").unwrap();
        let error = Lock::of_directory(dir.path(), "this run").unwrap_err().to_string();
        assert!(error.contains("another process is writing this run"), "{error}");
        drop(first);
        Lock::of_directory(dir.path(), "this run").unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }
}
