//! What can go wrong, said so that the reader knows which file, key or row to look at.

use std::path::PathBuf;

/// An error of this library. Texts are lower-case and specific; they name the file, key, hook or row.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading activations, writing files or opening the device failed.
    #[error(transparent)]
    Activations(#[from] activations::Error),
    /// A file is not what it should be: truncated, foreign, or inconsistent with itself.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A key of the configuration is unknown, missing or has a value that cannot be.
    #[error("{key}: {problem}")]
    Config {
        /// As it is written in `run.toml`: `sae.k`.
        key: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A row of activations holds a NaN or an infinity.
    #[error("row {row} of {source_name} holds {value} at coordinate {coordinate}: activations must be finite")]
    NotFinite {
        /// The store, file or batch.
        source_name: String,
        /// Counted from 0.
        row: u64,
        /// Which of the `d_in` coordinates, counted from 0.
        coordinate: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
    },
    /// What was asked for does not fit together.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A [`Error::BadFile`] about `path`.
    pub fn bad_file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::BadFile {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// A [`Error::Config`] about `key`.
    pub fn config(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// A [`Error::Activations`] with the file that the operating system refused, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Activations(activations::Error::Io { path, source })
    }
}

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;
