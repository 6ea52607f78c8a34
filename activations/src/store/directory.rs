//! Whether a directory can take a store, or a part of one, and what of an interrupted one is kept.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{JOURNAL, ShardEntry, StoreState, shard_number, state};
use super::part::{Part, Parts};
use super::shard::survey;
use super::spec::StoreSpec;
use crate::error::{Error, Result};

/// A directory that a store cannot be begun in.
pub(super) fn not_empty(dir: &Path, name: &str) -> Error {
    Error::bad_file(
        dir,
        format!("is not empty, there is {name} in it: choose an empty or new directory"),
    )
}

/// The journal of a store, or of a part of one.
pub(super) fn journal_path(dir: &Path, part: Part) -> PathBuf {
    match part {
        Part::WHOLE => dir.join(JOURNAL),
        part => part.journal(dir),
    }
}

/// Refuses to resume what is no unfinished store.
pub(super) fn resumable(dir: &Path) -> Result<()> {
    let nothing = |what: &str| Err(Error::bad_file(dir, what));
    match state(dir)? {
        StoreState::Unfinished(_) if Parts::scan(dir)?.is_some() => {
            nothing("holds a store in parts: say with `--shard` which of them is to be resumed")
        }
        StoreState::Unfinished(_) => Ok(()),
        StoreState::Finished(_) => nothing("holds a finished store: there is nothing to resume"),
        StoreState::Absent | StoreState::Foreign(_) => {
            nothing("holds no unfinished store: there is nothing to resume; leave out `--resume`")
        }
    }
}

/// Refuses to resume a part that is not unfinished.
pub(super) fn resumable_part(dir: &Path, spec: &StoreSpec, part: Part) -> Result<()> {
    let parts = if dir.is_dir() { Parts::scan(dir)? } else { None };
    if let Some(parts) = &parts {
        check_parts(dir, parts, spec, part)?;
    }
    match parts.and_then(|parts| parts.found.get(&part.number).copied()) {
        Some(false) => Ok(()),
        Some(true) => Err(Error::bad_file(
            dir,
            format!("holds part {part}, finished: there is nothing to resume"),
        )),
        None => Err(Error::bad_file(
            dir,
            format!("holds no unfinished part {part}: there is nothing to resume; leave out `--resume`"),
        )),
    }
}

/// Whether `part` of a store of `spec` can stand beside the parts that are there.
pub(super) fn check_parts(dir: &Path, parts: &Parts, spec: &StoreSpec, part: Part) -> Result<()> {
    if parts.of != part.of {
        return Err(Error::bad_file(
            dir,
            format!(
                "holds parts of {}, and part {part} would overlap them: use the same number of parts, or another directory",
                parts.of
            ),
        ));
    }
    let (other, begun) = parts.spec()?;
    match begun.difference(spec) {
        None => Ok(()),
        Some(difference) => Err(Error::Invalid(format!(
            "{}: part {part} has other settings than part {other}, which is there: {difference}",
            dir.display()
        ))),
    }
}

/// The part's shards from its first on that are whole. A shard with fewer contexts than the specification says is the
/// last one of a harvest that was killed before its manifest; it is written anew, since only the text knows whether it
/// is the last.
pub(super) fn complete_shards(dir: &Path, spec: &StoreSpec, part: Part) -> Vec<ShardEntry> {
    (0..)
        .map_while(|nth| survey(dir, part.shard(nth), spec).filter(|s| s.n_contexts == spec.contexts_per_shard))
        .collect()
}

/// Removes the part's shards behind the first `keep`, and its temporary files.
pub(super) fn remove_after(dir: &Path, part: Part, keep: usize) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let temporary = name.strip_suffix(".tmp");
        let number = shard_number(temporary.unwrap_or(&name)).filter(|&n| part.owns(n as u64));
        if number.is_some_and(|n| temporary.is_some() || n >= part.shard(keep)) {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}
