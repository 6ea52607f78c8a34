//! What the router serves: the open indexes, by id.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use sae::index::{FeatureIndex, IndexManifest};
use tokio::sync::Semaphore;

use crate::{Error, Result, summaries};

/// How many features are read from the disk at once; more wait in line.
const CONCURRENT_READS: usize = 8;

/// The open indexes. Clones share them.
#[derive(Clone)]
pub struct State(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    indexes: Vec<Arc<Served>>,
    /// Names by which the server may be called, beside loopback ones.
    pub hosts: Hosts,
    pub reads: Arc<Semaphore>,
}

/// One index, with what is computed once.
pub(crate) struct Served {
    /// What addresses call it: never a path.
    pub id: String,
    pub index: FeatureIndex,
    /// The body of its summaries: it cannot change while the index is open.
    pub summaries: Bytes,
}

/// Which `Host` headers are answered, beside those of loopback.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    /// Any address literal: the server listens beyond loopback. A rebound name is no literal.
    pub addresses: bool,
    /// A name that was given on the command line, in lower case.
    pub name: Option<String>,
}

impl State {
    /// Opens the index directories; the first is the one that pages show unless told otherwise.
    ///
    /// # Errors
    /// [`Error::NoIndex`] without any; [`Error::Index`] naming the file if one cannot be read.
    pub fn open(indexes: &[PathBuf]) -> Result<Self> {
        Self::open_for(indexes, Hosts::default())
    }

    pub(crate) fn open_for(paths: &[PathBuf], hosts: Hosts) -> Result<Self> {
        let mut indexes: Vec<Arc<Served>> = Vec::with_capacity(paths.len());
        for path in paths {
            let index = FeatureIndex::open(path)?;
            let id = unique_id(path, &indexes);
            let summaries = summaries::body(&index);
            indexes.push(Arc::new(Served { id, index, summaries }));
        }
        if indexes.is_empty() {
            return Err(Error::NoIndex);
        }
        let reads = Arc::new(Semaphore::new(CONCURRENT_READS));
        Ok(Self(Arc::new(Inner { indexes, hosts, reads })))
    }

    pub(crate) fn index(&self, id: &str) -> Option<&Arc<Served>> {
        self.0.indexes.iter().find(|served| served.id == id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &IndexManifest)> {
        self.0.indexes.iter().map(|s| (s.id.as_str(), s.index.manifest()))
    }

    /// Whether any index has a feature of this number.
    pub(crate) fn has_feature(&self, feature: u32) -> bool {
        self.all().any(|(_, manifest)| (feature as usize) < manifest.d_sae)
    }
}

/// The directory's name in plain letters, with a number behind it if another index has that.
fn unique_id(path: &Path, others: &[Arc<Served>]) -> String {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = resolved.file_name().unwrap_or_default().to_string_lossy();
    let mut id: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(64)
        .collect();
    if id.trim_matches('-').is_empty() {
        id = "index".into();
    }
    let is_free = |id: &str| others.iter().all(|other| other.id != id);
    if is_free(&id) {
        return id;
    }
    let numbered = (2..).map(|n| format!("{id}-{n}")).find(|id| is_free(id));
    numbered.expect("there are more numbers than indexes")
}
