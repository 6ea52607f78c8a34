//! What the router serves: the open indexes, by id, or training runs.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use sae::index::{FeatureIndex, IndexManifest};
use tokio::sync::Semaphore;

use crate::runs::{Runs, is_runs};
use crate::{Error, Result, summaries};

/// How many features are read from the disk at once; more wait in line.
const CONCURRENT_READS: usize = 8;

/// What is served. Clones share it.
#[derive(Clone)]
pub struct State(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    indexes: Vec<Arc<Served>>,
    /// None where there are indexes.
    pub runs: Runs,
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
    /// Opens directories of feature indexes, of which pages show the first unless told otherwise; or directories of training
    /// runs, of grids, or with runs in them, which are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::NoIndex`] without any; [`Error::Neither`] and [`Error::Both`] naming directories; [`Error::Index`] naming the
    /// file if an index cannot be read.
    pub fn open(directories: &[PathBuf]) -> Result<Self> {
        Self::open_for(directories, Hosts::default())
    }

    pub(crate) fn open_for(paths: &[PathBuf], hosts: Hosts) -> Result<Self> {
        let (runs, others): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| is_runs(path));
        if let (Some(run), Some(index)) = (runs.first(), others.first()) {
            let (run, index) = (run.clone(), index.clone());
            return Err(match index.join("manifest.json").exists() {
                true => Error::Both { run, index },
                false => Error::Neither { path: index },
            });
        }
        let mut indexes: Vec<Arc<Served>> = Vec::with_capacity(others.len());
        for path in &others {
            if path.is_dir() && !path.join("manifest.json").exists() {
                return Err(Error::Neither { path: path.clone() });
            }
            let index = FeatureIndex::open(path)?;
            let resolved = path.canonicalize().unwrap_or_else(|_| path.clone());
            let name = resolved.file_name().unwrap_or_default().to_string_lossy();
            let id = unique_id(&name, "index", |id| {
                indexes.iter().all(|other: &Arc<Served>| other.id != id)
            });
            let summaries = summaries::body(&index);
            indexes.push(Arc::new(Served { id, index, summaries }));
        }
        if paths.is_empty() {
            return Err(Error::NoIndex);
        }
        let reads = Arc::new(Semaphore::new(CONCURRENT_READS));
        let runs = Runs::new(runs);
        Ok(Self(Arc::new(Inner {
            indexes,
            runs,
            hosts,
            reads,
        })))
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

/// A name in plain letters, with a number behind it if another has that; `otherwise` if there is no letter in it.
pub(crate) fn unique_id(name: &str, otherwise: &str, is_free: impl Fn(&str) -> bool) -> String {
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
        id = otherwise.into();
    }
    if is_free(&id) {
        return id;
    }
    let numbered = (2..).map(|n| format!("{id}-{n}")).find(|id| is_free(id));
    numbered.expect("there are more numbers than ids")
}
