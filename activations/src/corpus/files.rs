//! Which files a corpus is made of.
//!
//! A path is a file, a directory, a pattern such as `books/*.txt`, `-` for the standard input, or the URL of any of the
//! first three in an object store. A directory gives the
//! files of one format, because one that holds two kinds of texts more often holds one kind and something else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::format::{Compression, Format, of_name};
use super::input::Opened;
use super::objects;
use super::spool::Spool;
use crate::error::{Error, Result};
use crate::fingerprint;
use crate::objects::{Object, ObjectReader, Place};

/// One file of a corpus.
#[derive(Clone)]
pub(super) struct TextFile {
    /// As people know it.
    label: PathBuf,
    /// As the store knows it, see [`name_all`].
    name: Arc<str>,
    format: Format,
    bytes: Bytes,
}

/// Where the bytes of a file are.
#[derive(Clone)]
enum Bytes {
    /// In the file of its name.
    File,
    /// In a copy: they came through a pipe.
    Spool(Arc<Spool>),
    /// In an object store.
    Object(Arc<Object>),
}

impl TextFile {
    fn of(label: PathBuf, format: Option<Format>, bytes: Bytes) -> Result<Self> {
        let (named, compression) = of_name(&label);
        // A name that says nothing is a text, as it always was.
        let format = format.or(named).unwrap_or(Format::Txt);
        if let (Format::Parquet, Some(compression)) = (format, compression) {
            return Err(Error::bad_file(
                label,
                format!(
                    "is Parquet within {}, which cannot be read in parts: decompress it first (Parquet has its own \
                     compression)",
                    match compression {
                        Compression::None => "something",
                        other => other.name(),
                    }
                ),
            ));
        }
        Ok(Self {
            name: label.to_string_lossy().into(),
            label,
            format,
            bytes,
        })
    }

    /// The file, as people know it.
    pub(super) fn label(&self) -> &Path {
        &self.label
    }

    /// Its name for the store.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Opens it for reading.
    pub(super) fn open(&self) -> Result<Opened> {
        let path = match &self.bytes {
            Bytes::File => &self.label,
            Bytes::Spool(spool) => spool.path(),
            Bytes::Object(object) => return Ok(Opened::Object(ObjectReader::new(Arc::clone(object)))),
        };
        fs::File::open(path).map(Opened::File).map_err(Error::io(&self.label))
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> Result<u64> {
        let path = match &self.bytes {
            Bytes::File => &self.label,
            Bytes::Spool(spool) => spool.path(),
            Bytes::Object(object) => return Ok(object.size()),
        };
        Ok(fs::metadata(path).map_err(Error::io(&self.label))?.len())
    }

    /// Adds to `hash` what tells its bytes from others, without reading all of them.
    pub(super) fn fingerprint(&self, hash: &mut Sha256) -> Result<()> {
        match &self.bytes {
            Bytes::File => fingerprint::add(hash, &self.label),
            Bytes::Spool(spool) => fingerprint::add(hash, spool.path()),
            // An object store has a digest of its own.
            Bytes::Object(object) => {
                hash.update(format!("{} {}\n", object.size(), object.tag()));
                Ok(())
            }
        }
    }

    /// How documents lie in it.
    pub(super) fn format(&self) -> Format {
        self.format
    }
}

/// The files named, the matches of each pattern, and the texts below each directory, sorted by path within it. All are
/// of `format`, if one is given.
pub(super) fn find(paths: &[PathBuf], format: Option<Format>) -> Result<Vec<TextFile>> {
    if paths.is_empty() {
        return Err(Error::Invalid("no text given: name files or directories".into()));
    }
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Error::Invalid("the standard input (-) can be read only once".into()));
    }
    let mut files = Vec::new();
    for path in paths {
        if is_stdin(path) {
            let spool = Spool::of(std::io::stdin().lock(), "the standard input")?;
            files.push(TextFile::of(
                "standard input".into(),
                format,
                Bytes::Spool(Arc::new(spool)),
            )?);
            continue;
        }
        let path = match Place::of(path)? {
            Place::Local(path) => path,
            Place::Remote(url) => {
                for object in objects::find(&url, format)? {
                    let label = PathBuf::from(object.label());
                    files.push(TextFile::of(label, format, Bytes::Object(Arc::new(object)))?);
                }
                continue;
            }
        };
        let path = path.as_path();
        if !path.exists() && is_pattern(path) {
            for path in matches(path)? {
                files.push(TextFile::of(path, format, Bytes::File)?);
            }
        } else {
            files.append(&mut named(path, format)?);
        }
    }
    name_all(&mut files);
    Ok(files)
}

/// Names files by their paths below the deepest folder that they have in common, so that names depend neither on how
/// paths were written nor on where the folder is. Pipes keep their names.
fn name_all(files: &mut [TextFile]) {
    let absolute = |file: &TextFile| {
        let parent = match file.label.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return None,
        };
        let parent = match &file.bytes {
            // Only the folder: a file that is a link is called what the link is.
            Bytes::File => parent.canonicalize().ok()?,
            Bytes::Spool(_) => return None,
            Bytes::Object(_) => parent.to_owned(),
        };
        Some((parent, file.label.file_name()?.to_owned()))
    };
    let paths: Vec<_> = files.iter().map(absolute).collect();
    let mut common: Option<PathBuf> = None;
    for (parent, _) in paths.iter().flatten() {
        let common = common.get_or_insert_with(|| parent.clone());
        while !parent.starts_with(&*common) {
            common.pop();
        }
    }
    for (file, path) in files.iter_mut().zip(paths) {
        if let (Some((parent, name)), Some(common)) = (path, &common)
            && let Ok(below) = parent.strip_prefix(common)
        {
            let path = below.join(name);
            let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            file.name = parts.join("/").into();
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What a path gives that is there, or must be.
fn named(path: &Path, format: Option<Format>) -> Result<Vec<TextFile>> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        let found = below(path, format)?;
        return found
            .into_iter()
            .map(|path| TextFile::of(path, format, Bytes::File))
            .collect();
    }
    let bytes = match metadata.is_file() {
        true => Bytes::File,
        // A pipe can be read once, and a corpus is read several times.
        false => Bytes::Spool(Arc::new(Spool::of(
            fs::File::open(path).map_err(Error::io(path))?,
            &path.display().to_string(),
        )?)),
    };
    Ok(vec![TextFile::of(path.to_owned(), format, bytes)?])
}

fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(has_wildcards)
}

/// Whether a text is a pattern.
pub(crate) fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// How patterns match: `**` is any number of directories; hidden files need a pattern with a dot.
pub(crate) const MATCHING: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// The files that a pattern matches, sorted.
fn matches(pattern: &Path) -> Result<Vec<PathBuf>> {
    let found = glob::glob_with(&pattern.to_string_lossy(), MATCHING)
        .map_err(|e| Error::bad_file(pattern, format!("is no pattern of file names: {}", e.msg)))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|e| Error::io(e.path().to_owned())(e.into()))?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::bad_file(pattern, "no file matches this pattern"));
    }
    files.sort_unstable();
    Ok(files)
}

/// The texts of one format in and below `dir`.
fn below(dir: &Path, format: Option<Format>) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    walk(dir, &mut found)?;
    let mut files = of_one_kind(found, format).map_err(|problem| Error::bad_file(dir, problem))?;
    files.sort_unstable();
    Ok(files)
}

/// The files of one format out of those below a directory; what is wrong, if there are none or several formats.
pub(crate) fn of_one_kind<T>(
    mut found: BTreeMap<Format, Vec<T>>,
    format: Option<Format>,
) -> std::result::Result<Vec<T>, String> {
    if let Some(format) = format {
        found.retain(|&this, _| this == format);
    }
    let counts: Vec<String> = found.iter().map(|(f, files)| format!("{} .{f}", files.len())).collect();
    let mut kinds = found.into_values();
    let Some(files) = kinds.next() else {
        let kinds = match format {
            Some(format) => format!("no .{format} file"),
            None => "no text file (.txt, .jsonl, .json, .csv, .parquet, plain or .gz or .zst)".into(),
        };
        return Err(format!(
            "{kinds} in or below this directory: name other files one by one"
        ));
    };
    match kinds.next() {
        None => Ok(files),
        Some(_) => Err(format!(
            "has texts of several kinds ({}): say which with --format, or name the files",
            counts.join(", ")
        )),
    }
}

/// Texts in and below `dir`. Hidden entries are left out, and links to directories, which could form a circle.
fn walk(dir: &Path, found: &mut BTreeMap<Format, Vec<PathBuf>>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(Error::io(&path))?.is_dir() {
            walk(&path, found)?;
        } else if let (Some(format), _) = of_name(&path)
            && fs::metadata(&path).map_err(Error::io(&path))?.is_file()
        {
            found.entry(format).or_default().push(path);
        }
    }
    Ok(())
}

/// The last part of the first path, and how many paths there are beside it.
pub(super) fn name(paths: &[PathBuf]) -> String {
    let last = |path: &Path| {
        if is_stdin(path) {
            return "standard input".to_owned();
        }
        let part = path.file_name().map(|n| n.to_string_lossy().into_owned());
        part.unwrap_or_else(|| path.display().to_string())
    };
    match paths {
        [] => String::new(),
        [only] => last(only),
        [first, rest @ ..] => format!("{} and {} more", last(first), rest.len()),
    }
}
