//! What a path or URL names: something on this machine, or in an object store.
//!
//! A key is what follows the bucket, letter by letter, as the stores' own command lines have it: nothing in it is
//! percent-encoded. `file://` URLs, which other programs write, are.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where something lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine: a path, or a `file://` URL.
    Local(PathBuf),
    /// In an object store.
    Remote(ObjectUrl),
}

/// Whose protocol an object store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    S3,
    Google,
    Azure,
}

impl Service {
    /// What to check when it refuses or does not answer.
    pub(super) const fn hint(self) -> &'static str {
        match self {
            Self::S3 => {
                "check the bucket's name, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for a public bucket \
                 AWS_SKIP_SIGNATURE=true), AWS_REGION and, for a store that is not Amazon's, AWS_ENDPOINT_URL"
            }
            Self::Google => {
                "check the bucket's name and GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (for a public \
                 bucket GOOGLE_SKIP_SIGNATURE=true)"
            }
            Self::Azure => {
                "check the container's name, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or \
                 AZURE_STORAGE_SAS_TOKEN (for a public container AZURE_SKIP_SIGNATURE=true)"
            }
        }
    }
}

/// An object, or the prefix that objects have in common: `s3://bucket/acts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUrl {
    pub(super) service: Service,
    /// `s3://bucket`.
    root: String,
    /// What follows, without slashes at either end.
    key: String,
    /// Whether a slash followed that: it is a prefix.
    folder: bool,
}

impl Place {
    /// What `path` means. Anything that is not `scheme://rest` is a path.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the scheme is not known, or a URL has no bucket.
    pub fn of(path: &Path) -> Result<Self> {
        let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once("://")) else {
            return Ok(Self::Local(path.to_owned()));
        };
        let service = match scheme {
            "s3" | "s3a" => Service::S3,
            "gs" => Service::Google,
            "az" | "abfs" | "abfss" => Service::Azure,
            "file" => return local(path, rest).map(Self::Local),
            _ if !scheme.chars().all(|c| c.is_ascii_alphanumeric()) => return Ok(Self::Local(path.to_owned())),
            _ => {
                let hub = match scheme {
                    "hf" => "; data sets of the hub, hf://datasets/org/name, are for --text",
                    _ => "",
                };
                return Err(Error::Invalid(format!(
                    "{}: expected a path, or a URL that begins with s3://, gs://, az:// or file://{hub}",
                    path.display()
                )));
            }
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: names no bucket: expected {scheme}://bucket/key",
                path.display()
            )));
        }
        Ok(Self::Remote(ObjectUrl {
            service,
            root: format!("{scheme}://{bucket}"),
            key: key.trim_matches('/').to_owned(),
            folder: key.is_empty() || key.ends_with('/'),
        }))
    }

    /// Whether `path` names something in an object store.
    pub fn is_remote(path: &Path) -> bool {
        matches!(Self::of(path), Ok(Self::Remote(_)))
    }
}

/// The path of a `file://` URL, whose rest is given.
fn local(url: &Path, rest: &str) -> Result<PathBuf> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(Error::Invalid(format!(
            "{}: a file:// URL has a path from the root, such as file:///data/texts",
            url.display()
        )));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut left = path.as_bytes();
    while let [first, rest @ ..] = left {
        let escaped = match (first, rest) {
            (b'%', [high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|hex| u8::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        left = &left[if escaped.is_some() { 3 } else { 1 }..];
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::Invalid(format!("{}: is not UTF-8 once decoded", url.display())))?;
    Ok(text.into())
}

impl ObjectUrl {
    /// `s3://bucket`.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// What follows the bucket, without slashes at its ends.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether it can only be a prefix: nothing follows its last slash.
    pub(crate) fn is_folder(&self) -> bool {
        self.folder
    }

    /// The prefix `key` of the same bucket.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            folder: true,
            ..self.clone()
        }
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.root, self.key)
    }
}
