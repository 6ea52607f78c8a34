//! A directory on this machine that stands for a prefix of an object store while a store is looked at or written.
//!
//! It has the names of the objects, and of manifests and journals the contents, which is all that deciding what a
//! directory is looks at. So a store in a bucket is begun, resumed and refused by the code that does it for directories,
//! with the same words.

use std::fs::{self, DirBuilder, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::bucket::{Bucket, Object};
use super::place::ObjectUrl;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::source::hex;
use crate::store::is_manifest;

/// Where such directories are: `TMPDIR`, where that is set.
pub fn staging_root() -> PathBuf {
    std::env::temp_dir()
}

/// The directory; it is removed with this.
pub(crate) struct Staging {
    whole: PathBuf,
    dir: PathBuf,
    /// Keeps other processes away; the system releases it when the process ends, however it ends.
    _lock: Lock,
}

impl Staging {
    /// The one directory for what `what` says of a URL: what a process that was killed left there is removed.
    ///
    /// # Errors
    /// [`Error::Remote`] if another process has it; [`Error::Io`].
    pub(crate) fn of(url: &ObjectUrl, what: &str) -> Result<Self> {
        let name = hex(&Sha256::digest(format!("{url} {what}")));
        let staging = Self::at(&format!("sae-{}", &name[..20]))?;
        staging.ok_or_else(|| Error::remote(url.to_string(), "another process on this machine is writing this store"))
    }

    /// A directory that nobody else has.
    pub(crate) fn temporary() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            if let Some(staging) = Self::at(&format!("sae-{}-{number}", std::process::id()))? {
                return Ok(staging);
            }
        }
    }

    /// The directory of a name, empty; `None` if another process has it.
    fn at(name: &str) -> Result<Option<Self>> {
        let whole = staging_root().join(name);
        let io = |source| Error::Io {
            path: whole.clone(),
            source,
        };
        own(&whole).map_err(io)?;
        let lock = File::create(whole.join("lock")).map_err(io)?;
        let Some(lock) = Lock::of_file(lock) else {
            return Ok(None);
        };
        let dir = whole.join("store");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(io)?;
        }
        fs::create_dir(&dir).map_err(io)?;
        Ok(Some(Self {
            whole,
            dir,
            _lock: lock,
        }))
    }

    /// Where the files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a file of each name: with its contents if it is a manifest or journal, else of its length alone.
    pub(crate) fn mirror(&self, names: &[(String, Object)]) -> Result<()> {
        for (name, object) in names {
            let path = self.dir.join(name);
            let io = |source| Error::Io {
                path: path.clone(),
                source,
            };
            if is_manifest(name) {
                fs::write(&path, object.bytes()?).map_err(io)?;
            } else {
                // No byte of it takes room on the disk.
                File::create(&path)
                    .and_then(|file| file.set_len(object.size()))
                    .map_err(io)?;
            }
        }
        Ok(())
    }

    /// An error about this directory, said of the prefix that it stands for.
    pub(crate) fn relocate(&self, bucket: &Bucket, error: Error) -> Error {
        let label = |path: &Path| {
            let name = path.strip_prefix(&self.dir).ok()?;
            Some(bucket.label(&name.to_string_lossy()))
        };
        match error {
            Error::BadFile { path, problem } => match label(&path) {
                Some(url) => Error::remote(url, problem),
                None => Error::bad_file(path, problem),
            },
            Error::Invalid(text) => {
                let dir = self.dir.display().to_string();
                Error::Invalid(text.replace(&dir, &bucket.label("")))
            }
            // The disk of this machine.
            other => other,
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // It is a temporary directory: what remains of it is removed by the next process.
        let _ = fs::remove_dir_all(&self.whole);
    }
}

/// Makes a directory of this user that nobody else may enter.
fn own(dir: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        done => return done,
    }
    if !fs::symlink_metadata(dir)?.is_dir() {
        return Err(std::io::Error::other(
            "is in the way: expected no such name, or a directory of this program",
        ));
    }
    // Only its owner may: a directory that somebody else put here is refused.
    #[cfg(unix)]
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}
