//! Stores in an object store: fetched once, before anything reads them.

use std::path::{Path, PathBuf};

use activations::objects::{Place, RemoteStore};
use activations::{Outcome, Progress, Stop};

use crate::bars::bytes;
use crate::limits;

/// Where the activations `acts` can be read: there, if they are on this machine, else in `copy`, once they were fetched.
/// `None` if that was stopped; the next call goes on.
pub fn local(acts: &Path, copy: &Path, progress: &dyn Progress, stop: &Stop) -> anyhow::Result<Option<PathBuf>> {
    let url = match Place::of(acts)? {
        Place::Local(path) => return Ok(Some(path)),
        Place::Remote(url) => url,
    };
    let store = RemoteStore::open(&url)?;
    let missing = store.missing(copy)?;
    if missing > 0 {
        eprintln!(
            "{url} is {}, of which {} are fetched into {}",
            bytes(store.bytes()),
            bytes(missing),
            copy.display()
        );
        limits::check(copy, missing, 0)?;
    }
    Ok(match store.fetch(copy, progress, stop)? {
        Outcome::Finished => Some(copy.to_owned()),
        Outcome::Stopped => None,
    })
}
