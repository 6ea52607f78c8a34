//! Copying a store out of a bucket, so that it can be read at positions.
//!
//! Files come one after the other, each whole or absent, and the manifests last: a copy that is complete is a store,
//! and one that is not says so. What was fetched is written down with the objects' tags, so that the same command
//! continues after the last whole file, and an object that changed since is fetched anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Object, wait};
use super::place::ObjectUrl;
use super::staging::Staging;
use crate::atomic;
use crate::error::{Error, Result};
use crate::progress::{Outcome, Progress, Stop};
use crate::store::{Store, StoreManifest, StoreState, is_manifest, state};

/// Bytes of one request, and how many are on the way.
const BLOCK: u64 = 8 << 20;
const AT_ONCE: usize = 4;
/// What was fetched, in the directory that it was fetched to.
const RECORD: &str = "fetched.json";

/// What there is at a URL, as far as activations are concerned.
pub enum Remote {
    /// A complete store.
    Store(Box<RemoteStore>),
    /// Anything else: what a directory with these files would be, and what a reader of the store would say of it.
    Other(StoreState, Error),
}

/// A complete store in an object store.
pub struct RemoteStore {
    url: ObjectUrl,
    manifest: StoreManifest,
    /// Its files, manifests last.
    files: Vec<(String, Object)>,
}

/// What was fetched.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The prefix that it comes from.
    url: String,
    /// Length and tag of each object, by name.
    objects: BTreeMap<String, (u64, String)>,
}

impl Remote {
    /// Looks at what there is, and reads manifests.
    ///
    /// # Errors
    /// [`Error::Remote`] if the object store refuses or cannot be reached, or a manifest is damaged.
    pub fn look(url: &ObjectUrl) -> Result<Self> {
        let bucket = Bucket::open(url)?;
        let names = bucket.names()?;
        let staging = Staging::temporary()?;
        staging.mirror(&names)?;
        let manifest = match Store::open(staging.dir()) {
            Ok(store) => store.manifest().clone(),
            Err(e) => {
                let state = state(staging.dir()).map_err(|e| staging.relocate(&bucket, e))?;
                return Ok(Self::Other(state, staging.relocate(&bucket, e)));
            }
        };
        let listed = |name: &str| {
            is_manifest(name) || crate::store::is_shard(name) || manifest.files.iter().any(|f| f.name == name)
        };
        let mut files: Vec<_> = names.into_iter().filter(|(name, _)| listed(name)).collect();
        files.sort_by_key(|(name, _)| is_manifest(name));
        Ok(Self::Store(Box::new(RemoteStore {
            url: url.clone(),
            manifest,
            files,
        })))
    }
}

impl RemoteStore {
    /// The store at a URL.
    ///
    /// # Errors
    /// As [`Remote::look`]; [`Error::Remote`] if there is no complete store, with what there is instead.
    pub fn open(url: &ObjectUrl) -> Result<Self> {
        match Remote::look(url)? {
            Remote::Store(store) => Ok(*store),
            Remote::Other(StoreState::Absent, _) => Err(Error::remote(
                url.to_string(),
                match Bucket::open(url)?.head()? {
                    Some(_) => "is one object, and only stores are read from an object store: copy it to this machine",
                    None => "there is no object below this prefix",
                },
            )),
            Remote::Other(_, error) => Err(error),
        }
    }

    /// What the store says about itself.
    pub fn manifest(&self) -> &StoreManifest {
        &self.manifest
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, object)| object.size()).sum()
    }

    /// Bytes that a copy in `dir` has not yet.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch) about what is in `dir`.
    pub fn missing(&self, dir: &Path) -> Result<u64> {
        let record = self.record(dir)?;
        let absent = self
            .files
            .iter()
            .filter(|(name, object)| !has(dir, &record, name, object));
        Ok(absent.map(|(_, object)| object.size()).sum())
    }

    /// Fetches into `dir` what it has not yet. The stage's units are bytes; [`Stop`] is honoured between requests, and
    /// the next call goes on with the file that was not whole.
    ///
    /// # Errors
    /// [`Error::BadFile`] if there is something else in `dir`; [`Error::Remote`] if an object cannot be read or changed
    /// while it was; [`Error::Io`].
    pub fn fetch(&self, dir: &Path, progress: &dyn Progress, stop: &Stop) -> Result<Outcome> {
        let mut record = self.record(dir)?;
        record.url = self.url.to_string();
        let missing = self.missing(dir)?;
        if missing == 0 {
            return Ok(Outcome::Finished);
        }
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        progress.begin(&format!("fetch {}", self.url), Some(self.bytes()), "bytes");
        progress.advance(self.bytes() - missing);
        // What is written down is there: so what will be replaced is forgotten first.
        let stale = |name: &str, record: &Record| {
            let object = self.files.iter().find(|(n, _)| n == name);
            object.is_none_or(|(name, object)| !has(dir, record, name, object))
        };
        for name in record.objects.keys().cloned().collect::<Vec<_>>() {
            if stale(&name, &record) {
                record.objects.remove(&name);
                remove(&dir.join(&name))?;
            }
        }
        write_record(dir, &record)?;
        for (name, object) in &self.files {
            if has(dir, &record, name, object) {
                continue;
            }
            if fetch_object(object, &dir.join(name), progress, stop)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
            record.objects.insert(name.clone(), (object.size(), object.tag()));
            write_record(dir, &record)?;
        }
        progress.finish();
        Ok(Outcome::Finished)
    }

    /// What was fetched into `dir` before.
    fn record(&self, dir: &Path) -> Result<Record> {
        let path = dir.join(RECORD);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return match fs::read_dir(dir).map(|mut entries| entries.next()) {
                    Ok(Some(_)) => Err(Error::bad_file(
                        dir,
                        format!(
                            "is to take a copy of {}, and there is something else in it: remove it",
                            self.url
                        ),
                    )),
                    _ => Ok(Record::default()),
                };
            }
            Err(e) => return Err(Error::io(path)(e)),
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::bad_file(
                &path,
                format!("is not the list of what was fetched ({e}): remove the directory"),
            )
        })
    }
}

/// Whether a file is there as the object is now.
fn has(dir: &Path, record: &Record, name: &str, object: &Object) -> bool {
    let same = record.objects.get(name) == Some(&(object.size(), object.tag()));
    same && fs::metadata(dir.join(name)).is_ok_and(|file| file.len() == object.size())
}

/// Removes a file; one that is not there is no error.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

fn write_record(dir: &Path, record: &Record) -> Result<()> {
    let path = dir.join(RECORD);
    let json = serde_json::to_vec_pretty(record)
        .map_err(|e| Error::Invalid(format!("{}: does not serialise: {e}", path.display())))?;
    atomic::write(&path, &json)
}

/// Copies an object to a file, which is whole or absent.
fn fetch_object(object: &Object, to: &Path, progress: &dyn Progress, stop: &Stop) -> Result<Outcome> {
    let temporary: PathBuf = atomic::temporary(to);
    let io = |e| Error::io(&temporary)(e);
    let mut file = File::create(&temporary).map_err(io)?;
    let starts = (0..object.size()).step_by(BLOCK as usize);
    let requests = starts.map(|start| object.request(start, (start + BLOCK).min(object.size())));
    let mut blocks = stream::iter(requests).buffered(AT_ONCE);
    loop {
        if stop.requested() {
            drop(file);
            let _ = fs::remove_file(&temporary);
            return Ok(Outcome::Stopped);
        }
        let Some(block) = wait(blocks.try_next())?? else { break };
        file.write_all(&block).map_err(io)?;
        progress.advance(block.len() as u64);
    }
    file.sync_all().map_err(io)?;
    atomic::publish(&temporary, to)?;
    Ok(Outcome::Finished)
}
