//! Which files a corpus is made of.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

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

/// What [`super::Corpus::fingerprint`] says.
pub(super) fn fingerprint(files: &[PathBuf]) -> Result<String> {
    const END: u64 = 1 << 20;
    let mut hash = Sha256::new();
    for path in files {
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
            file.seek(SeekFrom::Start(length.saturating_sub(END).max(END)))
                .and_then(|_| file.take(END).read_to_end(&mut part))
                .map_err(Error::io(path))?;
            hash.update(&part);
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
