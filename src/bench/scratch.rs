//! A directory for what is measured on, removed with everything in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

/// A new directory, as long as it is held.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A directory of this process's own in `parent`, or where the system has temporary files.
    pub fn new(parent: Option<&Path>) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        std::fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("sae-bench-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: cannot be removed: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_removed_with_what_is_in_it_and_two_are_apart() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) = (
            Scratch::new(Some(parent.path())).unwrap(),
            Scratch::new(Some(parent.path())).unwrap(),
        );
        std::fs::write(one.path().join("file"), "x").unwrap();
        drop(one);
        let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        drop(two);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
