//! What an unfinished directory of codes says: `unfinished.json`.
//!
//! It is written before the first shard and after each one, and holds what the next one goes on from: where in the
//! source, and the sums behind FVU, L0 and dead latents. Numbers are written so that they come back bit for bit.

use std::fs;
use std::path::Path;

use activations::atomic;
use serde::{Deserialize, Serialize};

use super::tables::{codes_path, rows_path, shard_number};
use super::{CodesManifest, CodesRequest, CodesShard, DENSE, FORMAT, MANIFEST, VERSION};
use crate::error::{Error, Result};
use crate::metrics::{Firing, Quality};

/// Written first, removed once there is a manifest.
const JOURNAL: &str = "unfinished.json";

/// How far a run is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    format: String,
    version: u32,
    /// What was asked for.
    pub request: CodesRequest,
    /// The first context that is in no shard yet.
    pub next_context: u64,
    /// Tokens of the contexts before it.
    pub tokens: u64,
    /// The shards that are complete.
    pub shards: Vec<CodesShard>,
    /// Over all rows of them.
    pub quality: Quality,
    /// Over all rows of them.
    pub firing: Firing,
}

impl Journal {
    /// Takes a new or empty directory.
    pub fn begin(dir: &Path, request: CodesRequest) -> Result<Self> {
        let there = |name: &str| dir.join(name).exists();
        if there(JOURNAL) {
            return Err(Error::bad_file(
                dir,
                "holds unfinished codes: continue them with `--resume`, or remove the directory",
            ));
        }
        if there(MANIFEST) {
            return Err(Error::bad_file(
                dir,
                "already holds codes or something else: choose another directory",
            ));
        }
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let stray = atomic::temporary(&dir.join(JOURNAL));
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            // A journal that was being written when the process was killed.
            if path != stray {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(Error::bad_file(
                    dir,
                    format!("is not empty, there is {name} in it: choose an empty or new directory"),
                ));
            }
        }
        let (d_in, d_sae) = (request.d_in, request.d_sae);
        let journal = Self {
            format: FORMAT.into(),
            version: VERSION,
            request,
            next_context: 0,
            tokens: 0,
            shards: Vec::new(),
            quality: Quality::new(d_in),
            firing: Firing::new(d_sae),
        };
        journal.write(dir)?;
        Ok(journal)
    }

    /// Takes what is unfinished in `dir`, and removes what belongs to no complete shard.
    pub fn resume(dir: &Path, request: CodesRequest) -> Result<Self> {
        let path = dir.join(JOURNAL);
        if !path.exists() {
            return Err(Error::bad_file(
                dir,
                match dir.join(MANIFEST).exists() {
                    true => "holds a finished directory: there is nothing to resume",
                    false => "holds no unfinished codes: there is nothing to resume; leave out `--resume`",
                },
            ));
        }
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::bad_file(&path, problem);
        let journal: Self = serde_json::from_slice(&bytes).map_err(|e| {
            bad(format!(
                "is not the journal of codes: {e}; remove the directory and begin anew"
            ))
        })?;
        if (journal.format.as_str(), journal.version) != (FORMAT, VERSION) {
            return Err(bad(format!(
                "says format {:?} of version {}, expected {FORMAT:?} of {VERSION}",
                journal.format, journal.version
            )));
        }
        if let Some(difference) = difference(&journal.request, &request) {
            return Err(Error::Invalid(format!(
                "{}: cannot continue codes with other settings than they were begun with: {difference}",
                dir.display()
            )));
        }
        if !journal.quality.fits(request.d_in) || journal.firing.counts().len() != request.d_sae {
            return Err(bad("has sums of another width than its request".into()));
        }
        journal.check_files(dir)?;
        journal.remove_others(dir)?;
        Ok(journal)
    }

    /// Every file of the complete shards is there and as long as it was.
    fn check_files(&self, dir: &Path) -> Result<()> {
        for (number, shard) in self.shards.iter().enumerate() {
            let codes = match self.request.dense {
                true => dir.join(DENSE),
                false => codes_path(dir, number),
            };
            for (path, bytes) in [(rows_path(dir, number), shard.rows_bytes), (codes, shard.codes_bytes)] {
                let found = fs::metadata(&path).map_or(0, |m| m.len());
                if found != bytes {
                    return Err(Error::bad_file(
                        path,
                        format!("has {found} bytes and {JOURNAL} says {bytes}: remove the directory and begin anew"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn remove_others(&self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let plain = name.strip_suffix(".tmp").unwrap_or(&name);
            let incomplete = match shard_number(plain) {
                Some(number) => number >= self.shards.len() || plain != name,
                None => plain == DENSE && (self.shards.is_empty() || plain != name),
            };
            if incomplete {
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    /// Writes it into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(dir, JOURNAL, self)
    }

    /// Writes the manifest, after which the directory is complete.
    pub fn finish(self, dir: &Path) -> Result<CodesManifest> {
        let sum = |of: fn(&CodesShard) -> u64| self.shards.iter().map(of).sum();
        let manifest = CodesManifest {
            format: FORMAT.into(),
            version: VERSION,
            created_by: concat!("sae ", env!("CARGO_PKG_VERSION")).into(),
            n_rows: sum(|s| s.n_rows),
            n_entries: sum(|s| s.n_entries),
            l0: self.firing.l0().unwrap_or_default(),
            fvu: self.quality.fvu(),
            dead_latents: self.firing.counts().iter().filter(|&&n| n == 0).count() as u64,
            request: self.request,
            shards: self.shards,
        };
        write_json(dir, MANIFEST, &manifest)?;
        let journal = dir.join(JOURNAL);
        fs::remove_file(&journal).map_err(Error::io(&journal))?;
        atomic::sync_directory(dir)?;
        Ok(manifest)
    }
}

/// The first key in which two requests differ, with both values.
fn difference(was: &CodesRequest, is: &CodesRequest) -> Option<String> {
    // A request is plain data: it always serialises.
    let fields = |of: &CodesRequest| serde_json::to_value(of).unwrap_or_default();
    let (was, is) = (fields(was), fields(is));
    let names = was.as_object().into_iter().chain(is.as_object()).flat_map(|o| o.keys());
    let mut different = names.filter(|name| was.get(name) != is.get(name));
    different.next().map(|name| {
        let show = |of: &serde_json::Value| of.get(name).map_or("absent".into(), ToString::to_string);
        format!("{name} was {} and now is {}", show(&was), show(&is))
    })
}

fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    let path = dir.join(name);
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Invalid(format!("{}: does not serialise: {e}", path.display())))?;
    json.push(b'\n');
    Ok(atomic::write(&path, &json)?)
}
