//! What can go wrong, said so that the reader knows which file, key or feature to look at.

use std::path::PathBuf;

/// An error of this library. Texts are lower-case and specific; they name the file, key, row or feature.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing activations, or a file beside them, failed.
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

    /// The operating system's refusal about `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let io = activations::Error::io(path);
        move |source| Self::Activations(io(source))
    }
}

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;
