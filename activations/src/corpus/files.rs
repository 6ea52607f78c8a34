//! Which files a corpus is made of.

use std::fs;
use std::path::{Path, PathBuf};

use super::is_text;
use crate::error::{Error, Result};

/// The files named, and the texts below each directory named, sorted by path within it.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if paths.is_empty() {
        return Err(Error::Invalid("no text given: name files or directories".into()));
    }
    let mut files = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        walk(path, &mut found)?;
        if found.is_empty() {
            return Err(Error::bad_file(
                path,
                "no .txt file in or below this directory: name other files one by one",
            ));
        }
        found.sort_unstable();
        files.append(&mut found);
    }
    Ok(files)
}

/// Texts in and below `dir`. Hidden entries are left out, and links to directories, which could form a circle.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(Error::io(&path))?.is_dir() {
            walk(&path, found)?;
        } else if is_text(&path) && fs::metadata(&path).map_err(Error::io(&path))?.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The last part of the first path, and how many paths there are beside it.
pub(super) fn name(paths: &[PathBuf]) -> String {
    let last = |path: &Path| {
        let part = path.file_name().map(|n| n.to_string_lossy().into_owned());
        part.unwrap_or_else(|| path.display().to_string())
    };
    match paths {
        [] => String::new(),
        [only] => last(only),
        [first, rest @ ..] => format!("{} and {} more", last(first), rest.len()),
    }
}
