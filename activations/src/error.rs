//! What can go wrong, said so that the reader knows which file, key or row to look at.

use std::path::PathBuf;

/// An error of this library. Texts are lower-case and specific; they name the file, key, hook or row.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
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
    /// An object store refused, could not be reached, or has not what was asked for.
    #[error("{url}: {problem}")]
    Remote {
        /// The object, or the prefix.
        url: String,
        /// What was tried, what came of it, and what to check.
        problem: String,
    },
    /// The compute device cannot be had.
    #[error("device {device}: {problem}")]
    Device {
        /// As the user wrote it.
        device: String,
        /// What is missing and what to do.
        problem: String,
    },
}

impl Error {
    /// A [`Error::BadFile`] about `path`.
    pub fn bad_file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::BadFile {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// A [`Error::Io`] about `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A [`Error::Remote`] about `url`.
    pub fn remote(url: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Remote {
            url: url.into(),
            problem: problem.into(),
        }
    }

    /// The [`Error::Remote`] at the bottom of what a decoder says about a stream that broke.
    pub(crate) fn remote_in(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(Self::Remote { url, problem }) = error.downcast_ref() {
            return Some(Self::remote(url, problem));
        }
        // An `io::Error` names as its source the source of what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Self::remote_in(wrapped),
            None => error.source().and_then(Self::remote_in),
        }
    }
}

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;
