//! What a path is: a store, or one of the forms that other programs keep activations in.
//!
//! Names decide and not contents: a file's ending, and in a directory the files that only one kind of directory has. A
//! wrong guess is then a sentence about the file that was expected, not about bytes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::store::is_store;

/// A form of activations, with its files in order.
pub(super) enum Kind {
    /// The directory of a store, complete or not.
    Store,
    /// numpy's array file.
    Npy,
    /// A file of named tensors.
    SafeTensors,
    /// Parquet that is no store's.
    Parquet(Vec<PathBuf>),
    /// Arrow streams, as Hugging Face's datasets writes them.
    Arrow(Vec<PathBuf>),
}

/// What is accepted, for the errors.
pub(super) const EXPECTED: &str = "the directory of an activation store, a .npy or .safetensors of [n, d], a .parquet \
     or a directory of them, or the directory of a Hugging Face dataset such as SAELens' cached activations";

impl Kind {
    /// Looks at names.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::of_directory(path);
        }
        if !path.exists() {
            return Err(Error::bad_file(path, format!("does not exist; expected {EXPECTED}")));
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::SafeTensors),
            Some("parquet") => Ok(Self::Parquet(vec![path.to_owned()])),
            Some("arrow") => Ok(Self::Arrow(vec![path.to_owned()])),
            _ => Err(Error::bad_file(path, format!("is a file; expected {EXPECTED}"))),
        }
    }

    fn of_directory(dir: &Path) -> Result<Self> {
        if is_store(dir)? {
            return Ok(Self::Store);
        }
        if dir.join("state.json").exists() {
            return Ok(Self::Arrow(data_files(dir)?));
        }
        if dir.join("dataset_dict.json").exists() {
            return Err(Error::bad_file(
                dir,
                "is a Hugging Face dataset of several splits: name the directory of one of them, such as train",
            ));
        }
        let (arrow, parquet) = (with_ending(dir, "arrow")?, with_ending(dir, "parquet")?);
        match (arrow.is_empty(), parquet.is_empty()) {
            (true, false) => Ok(Self::Parquet(parquet)),
            (false, true) => Ok(Self::Arrow(arrow)),
            (false, false) => Err(Error::bad_file(
                dir,
                "holds both .parquet and .arrow files: name a directory with one kind",
            )),
            // The store's reader says what is missing.
            (true, true) => Ok(Self::Store),
        }
    }
}

/// The files of a directory with an ending, by name.
fn with_ending(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.extension().is_some_and(|e| e == ending) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The data files that a dataset's `state.json` lists, in its order.
fn data_files(dir: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "_data_files")]
        data_files: Vec<DataFile>,
    }
    #[derive(Deserialize)]
    struct DataFile {
        filename: String,
    }
    let path = dir.join("state.json");
    let text = fs::read(&path).map_err(Error::io(&path))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| Error::bad_file(&path, format!("is not the state of a Hugging Face dataset: {e}")))?;
    let mut files = Vec::with_capacity(state.data_files.len());
    for DataFile { filename } in state.data_files {
        let name = Path::new(&filename);
        // A name that is more than a name would lead out of the directory.
        if name.file_name() != Some(name.as_os_str()) || filename.contains('\\') {
            return Err(Error::bad_file(
                &path,
                format!("lists {filename:?}, which is no plain file name"),
            ));
        }
        let file = dir.join(name);
        if !file.is_file() {
            return Err(Error::bad_file(file, "is missing: the dataset's state.json lists it"));
        }
        files.push(file);
    }
    match files.is_empty() {
        true => Err(Error::bad_file(&path, "lists no data files: the dataset is empty")),
        false => Ok(files),
    }
}

/// One of several things in a file that could be activations, or could not.
pub(super) struct Candidate {
    pub name: String,
    /// `float32 [6000, 768]`, `list of float16`.
    pub what: String,
    /// Whether it can be read as rows.
    pub good: bool,
}

/// The candidate that is wanted: the one of a name, or the only one that is good.
pub(super) fn pick(path: &Path, kind: &str, expected: &str, all: &[Candidate], wanted: Option<&str>) -> Result<usize> {
    let list = |good: bool| {
        let of = all.iter().filter(|c| c.good || !good);
        of.map(|c| format!("{} ({})", c.name, c.what))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let good = || all.iter().enumerate().filter(|(_, c)| c.good);
    let problem = match wanted {
        Some(name) => match all.iter().position(|c| c.name == name) {
            Some(at) if all[at].good => return Ok(at),
            Some(at) => format!(
                "{kind} {name} is {}, expected {expected}; there are {}",
                all[at].what,
                list(false)
            ),
            None => format!("has no {kind} {name:?}; it has {}", list(false)),
        },
        None => match (good().next(), good().count()) {
            (Some((at, _)), 1) => return Ok(at),
            (None, _) => format!(
                "has no {kind} of activations, expected {expected}; it has {}",
                list(false)
            ),
            _ => format!(
                "has several {kind}s of activations, say which with --hook: {}",
                list(true)
            ),
        },
    };
    Err(Error::bad_file(path, problem))
}
