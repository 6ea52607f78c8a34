//! The runs below a directory: what they are, how far, how good, and what they no longer need.
//!
//! The one decision: **a run is looked at through its small files alone.** `run.toml`, `summary.json`, the last
//! measurement in `metrics.jsonl` and `checkpoint/state.json` say everything that a list shows, so hundreds of runs are
//! listed in a moment, and a file that cannot be read is a word about its run and no reason to leave out the others.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkpoint;
use super::log::{Line, METRICS};
use super::run_dir::{CHECKPOINT, SUMMARY};
use super::{COPY, RunSummary};
use crate::config::{RUN_TOML, RunConfig};
use crate::dictionary::{CARD, DictionaryCard};
use crate::error::{Error, Result};

/// How deep below a directory runs are looked for.
const DEPTH: usize = 5;
/// The longest of the small files that is read.
const MAX_BYTES: u64 = 256 << 20;

/// What a run has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// There is a dictionary and a summary.
    Finished,
    /// It has not come to its end: it was stopped, or is under way.
    Stopped,
    /// One of its files is not what it should be.
    Unreadable,
}

/// A run's key numbers. What is not known is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Its directory.
    pub path: PathBuf,
    /// What it has come to.
    pub state: RunState,
    /// What is wrong with it, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// `sae.method`.
    pub method: Option<String>,
    /// Latents.
    pub d_sae: Option<usize>,
    /// `sae.k`.
    pub k: Option<usize>,
    /// `sae.init`: the dictionary that it went on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Steps that are safe: of the last checkpoint, or all of them.
    pub steps_done: u64,
    /// Steps of the whole run.
    pub steps: Option<u64>,
    /// On the held-out rows, when they were last measured.
    pub fvu: Option<f64>,
    /// On the same rows.
    pub l0: Option<f64>,
    /// On the same rows.
    pub dead_share: Option<f64>,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// The runs in `dir`, or `dir` itself where it is one, in the order of their paths.
///
/// # Errors
/// When the directory itself cannot be read. What is wrong with a run is said of that run.
pub fn list(dir: &Path) -> Result<Vec<Run>> {
    Ok(find(dir)?.iter().map(|path| look(path)).collect())
}

/// The directories of the runs in `dir`, or `dir` itself where it is one, in order.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.join(RUN_TOML).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found = Vec::new();
    fs::read_dir(dir).map_err(Error::io(dir))?;
    search(dir, DEPTH, &mut found);
    found.sort();
    Ok(found)
}

/// Adds the directories below `dir` that hold a run. Those that may not be read hold none that could be shown.
fn search(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Links are not followed: they may lead in circles.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !is_dir || hidden {
            continue;
        }
        let path = entry.path();
        if path.join(RUN_TOML).exists() {
            found.push(path);
        } else if depth > 1 {
            search(&path, depth - 1, found);
        }
    }
}

/// Looks at the run in `dir`.
pub fn look(dir: &Path) -> Run {
    let mut run = Run {
        path: dir.to_owned(),
        state: RunState::Stopped,
        problem: None,
        method: None,
        d_sae: None,
        k: None,
        init: None,
        steps_done: 0,
        steps: None,
        fvu: None,
        l0: None,
        dead_share: None,
        bytes: size(dir),
    };
    if let Err(error) = fill(&mut run, dir) {
        run.state = RunState::Unreadable;
        run.problem = Some(error.to_string());
    }
    run
}

/// Fills in what the files say, up to the first that cannot be read.
fn fill(run: &mut Run, dir: &Path) -> Result<()> {
    let config = RunConfig::load(Some(&dir.join(RUN_TOML)), &[])?;
    run.method = config.values()?.remove("sae.method");
    run.init.clone_from(&config.sae.init);
    (run.d_sae, run.k, run.steps) = (config.sae.d_sae, config.sae.k, config.train.steps);
    let held_out = match summary(dir)? {
        Some(summary) => {
            if dir.join(CARD).exists() {
                DictionaryCard::load(dir)?;
            }
            run.state = RunState::Finished;
            (run.steps_done, run.d_sae) = (summary.steps, Some(summary.d_sae));
            Some(summary.held_out)
        }
        None => {
            let state = checkpoint::read_state(&dir.join(CHECKPOINT))?;
            run.steps_done = state.map_or(0, |state| state.step);
            last_measurement(dir, run.steps_done)?
        }
    };
    run.fvu = held_out.map(|quality| quality.fvu);
    run.l0 = held_out.map(|quality| quality.l0);
    run.dead_share = held_out.map(|quality| quality.dead_share);
    Ok(())
}

/// The summary, if the run is finished.
pub(super) fn summary(dir: &Path) -> Result<Option<RunSummary>> {
    let path = dir.join(SUMMARY);
    let Some(text) = read(&path)? else { return Ok(None) };
    let summary = serde_json::from_str(&text);
    summary
        .map(Some)
        .map_err(|e| Error::bad_file(&path, format!("is not the summary of a run: {e}")))
}

/// What was last measured on the held-out rows, up to a step.
fn last_measurement(dir: &Path, step: u64) -> Result<Option<crate::dictionary::HeldOut>> {
    let text = read(&dir.join(METRICS))?.unwrap_or_default();
    // The last line may be half written.
    let lines = text
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok());
    Ok(lines.filter(|line| line.step <= step).find_map(|line| line.held_out))
}

/// A small file, if it is there.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() > MAX_BYTES => {
            return Err(Error::bad_file(
                path,
                format!("is {} bytes long: no run's is", found.len()),
            ));
        }
        _ => {}
    }
    fs::read_to_string(path).map(Some).map_err(Error::io(path))
}

/// Bytes of a file, or of everything in a directory; links count nothing.
fn size(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else {
        return 0;
    };
    match found.is_dir() {
        true => fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| size(&entry.path()))
            .sum(),
        false if found.is_file() => found.len(),
        false => 0,
    }
}

/// Something that a finished run no longer needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// A file, or the directory of the checkpoint.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// What the run in `dir` no longer needs: its checkpoint, and the copies of activations that could not be read in place.
/// Nothing of a run that is not finished.
pub fn leftovers(dir: &Path) -> Vec<Leftover> {
    if look(dir).state != RunState::Finished {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type();
        let unneeded = match kind {
            Ok(kind) if kind.is_dir() => name == CHECKPOINT,
            Ok(kind) if kind.is_file() => is_copy(&name),
            _ => false,
        };
        if unneeded {
            let path = entry.path();
            let bytes = size(&path);
            found.push(Leftover { path, bytes });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether a file's name is that of a copy of activations: `acts.safetensors`, `acts-1.safetensors`, and what was left of
/// making one.
fn is_copy(name: &str) -> bool {
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    let stem = |name: &str| name.strip_suffix(".safetensors").map(str::to_owned);
    let (Some(first), Some(own)) = (stem(COPY), stem(name)) else {
        return false;
    };
    match own.strip_prefix(&first) {
        Some("") => true,
        Some(part) => part.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok()),
        None => false,
    }
}

/// Removes what [`leftovers`] found.
///
/// # Errors
/// What the system says, naming the file.
pub fn remove(leftover: &Leftover) -> Result<()> {
    let path = &leftover.path;
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_activations_are_known_by_their_names_alone() {
        for name in ["acts.safetensors", "acts-1.safetensors", "acts.safetensors.tmp"] {
            assert!(is_copy(name), "{name}");
        }
        for name in [
            "dictionary.safetensors",
            "acts-old.safetensors",
            "myacts.safetensors",
            "acts.npy",
            CARD,
        ] {
            assert!(!is_copy(name), "{name}");
        }
    }
}
