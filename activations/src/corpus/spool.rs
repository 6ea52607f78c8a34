//! What comes through a pipe, kept on the disk: a corpus is read several times, a pipe only once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A temporary file, which is removed with this.
pub(super) struct Spool(PathBuf);

impl Spool {
    /// Copies everything out of a pipe that people know as `name`.
    pub(super) fn of(mut pipe: impl Read, name: &str) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sae-text-{}-{number}", std::process::id()));
        let mut file = create(&path).map_err(Error::io(&path))?;
        let spool = Self(path);
        io::copy(&mut pipe, &mut file).map_err(|e| {
            let problem = format!(
                "could not be copied to {} ({e}); TMPDIR names another place",
                spool.0.display()
            );
            Error::bad_file(name, problem)
        })?;
        Ok(spool)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// A new file that nobody else may read.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Drop for Spool {
    fn drop(&mut self) {
        // It is a temporary file: what remains of it harms nobody.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_holds_the_pipe_and_leaves_nothing_behind() {
        let spool = Spool::of(&b"once upon"[..], "pipe").unwrap();
        let path = spool.path().to_owned();
        assert_eq!(fs::read(&path).unwrap(), b"once upon");
        drop(spool);
        assert!(!path.exists());
    }
}
