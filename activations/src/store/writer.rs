//! Writing a store, and continuing one whose writer was killed.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::manifest::{
    FORMAT, FileEntry, JOURNAL, Journal, MANIFEST, ShardEntry, StoreManifest, StoreState, VERSION, read_journal,
    shard_number, state, write_json,
};
use super::shard::survey;
use super::shard_writer::ShardWriter;
use super::spec::StoreSpec;
use crate::atomic;
use crate::context::{Context, RowRef};
use crate::dtype::finite_magnitude;
use crate::error::{Error, Result};
use crate::source::hex;

/// Writes a store: contexts in natural order with [`push`](Self::push), then [`finish`](Self::finish).
///
/// Shards are complete or absent. A writer that is dropped, or whose process is killed, loses the shard that it was
/// in the middle of; [`resume`](Self::resume) continues after the last complete one and ends with the same bytes.
pub struct StoreWriter {
    dir: PathBuf,
    spec: Arc<StoreSpec>,
    shards: Vec<ShardEntry>,
    files: Vec<FileEntry>,
    open: Option<ShardWriter>,
    next_context: u64,
    /// Keeps other writers away; the system releases it when the process ends, however it ends.
    lock: File,
}

impl StoreWriter {
    /// Starts a store in `dir`, which is created if it is missing and must be empty if not.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the specification is impossible; [`Error::BadFile`] if there is a store or anything else;
    /// [`Error::Io`].
    pub fn create(dir: &Path, spec: &StoreSpec) -> Result<Self> {
        spec.validate()?;
        match state(dir)? {
            StoreState::Absent => {}
            StoreState::Foreign(name) => {
                return Err(Error::bad_file(
                    dir,
                    format!("is not empty, there is {name} in it: choose an empty or new directory"),
                ));
            }
            StoreState::Unfinished(_) => {
                return Err(Error::bad_file(
                    dir,
                    "holds an unfinished store: continue it with `--resume`, or remove the directory",
                ));
            }
            StoreState::Finished(_) => {
                return Err(Error::bad_file(dir, "already holds a store: choose another directory"));
            }
        }
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let journal = Journal {
            format: FORMAT.into(),
            version: VERSION,
            spec: spec.clone(),
        };
        write_json(&dir.join(JOURNAL), &journal)?;
        Self::begin(dir, spec, Vec::new())
    }

    /// Continues the unfinished store in `dir`. Shards that are complete stay; anything after them is written anew.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first difference if the store was begun with another specification;
    /// [`Error::BadFile`] if there is no unfinished store; [`Error::Io`].
    pub fn resume(dir: &Path, spec: &StoreSpec) -> Result<Self> {
        match state(dir)? {
            StoreState::Unfinished(_) => {}
            StoreState::Finished(_) => {
                return Err(Error::bad_file(
                    dir,
                    "holds a finished store: there is nothing to resume",
                ));
            }
            StoreState::Absent | StoreState::Foreign(_) => {
                return Err(Error::bad_file(
                    dir,
                    "holds no unfinished store: there is nothing to resume; leave out `--resume`",
                ));
            }
        }
        let begun = read_journal(dir)?.spec;
        if let Some(difference) = begun.difference(spec) {
            return Err(Error::Invalid(format!(
                "{}: cannot continue a store with other settings than it was begun with: {difference}",
                dir.display()
            )));
        }
        let mut writer = Self::begin(dir, spec, Vec::new())?;
        writer.shards = complete_shards(dir, spec);
        writer.next_context = writer.shards.iter().map(|s| s.n_contexts).sum();
        remove_after(dir, writer.shards.len())?;
        Ok(writer)
    }

    fn begin(dir: &Path, spec: &StoreSpec, shards: Vec<ShardEntry>) -> Result<Self> {
        let path = dir.join(JOURNAL);
        let lock = File::open(&path).map_err(Error::io(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::bad_file(dir, "another process is writing this store"));
            }
            // A file system without locks: then it is up to the user.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(Self {
            dir: dir.to_owned(),
            spec: Arc::new(spec.clone()),
            next_context: 0,
            shards,
            files: Vec::new(),
            open: None,
            lock,
        })
    }

    /// Number of the context that [`push`](Self::push) expects next: 0, or where a resumed store goes on.
    pub fn next_context(&self) -> u64 {
        self.next_context
    }

    /// Rows of the complete shards.
    pub fn n_rows(&self) -> u64 {
        self.shards.iter().map(|s| s.n_rows).sum()
    }

    /// Tokens of the complete shards.
    pub fn n_tokens(&self) -> u64 {
        self.shards.iter().map(|s| s.n_tokens).sum()
    }

    /// Copies a file into the store, under its own name: the tokenizer, so that token ids can be read without the
    /// model. A resumed writer must be given its files again.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if the name is one of the store's own.
    pub fn add_file(&mut self, from: &Path) -> Result<()> {
        let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if [MANIFEST, JOURNAL, ""].contains(&name.as_str()) || shard_number(&name).is_some() {
            return Err(Error::Invalid(format!(
                "{}: a store cannot take a file of this name",
                from.display()
            )));
        }
        let bytes = fs::read(from).map_err(Error::io(from))?;
        atomic::write(&self.dir.join(&name), &bytes)?;
        self.files.retain(|f| f.name != name);
        self.files.push(FileEntry {
            name,
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(&bytes)),
        });
        Ok(())
    }

    /// Adds whole contexts. `rows` say which token each activation row belongs to, ordered by context and position;
    /// `acts` has one slice a hook, `[rows, d_in]`. How contexts are grouped into calls changes nothing on the disk.
    ///
    /// # Errors
    /// [`Error::Invalid`] if contexts, rows and activations do not fit together or do not come in order, and if a
    /// value is not finite or beyond the range of the store's format; [`Error::Io`]. Nothing of the call is then
    /// written, except after [`Error::Io`], which leaves a store that can be resumed.
    pub fn push(&mut self, contexts: &[Context], rows: &[RowRef], acts: &[&[f32]]) -> Result<()> {
        self.check_contexts(contexts)?;
        check_rows(contexts, rows)?;
        self.check_acts(contexts, rows, acts)?;
        let (mut first, mut row) = (0, 0);
        while first < contexts.len() {
            let shard = match &mut self.open {
                Some(shard) => shard,
                None => self
                    .open
                    .insert(ShardWriter::create(&self.dir, self.shards.len(), &self.spec)?),
            };
            let end = contexts.len().min(first + shard.room());
            let end_row = row + rows[row..].partition_point(|r| (r.context as usize) < end);
            let acts: Vec<&[f32]> = acts
                .iter()
                .zip(&self.spec.hooks)
                .map(|(acts, hook)| &acts[row * hook.d_in..end_row * hook.d_in])
                .collect();
            shard.push(&contexts[first..end], first as u32, &rows[row..end_row], &acts)?;
            if shard.room() == 0
                && let Some(full) = self.open.take()
            {
                self.shards.push(full.close()?);
            }
            self.next_context += (end - first) as u64;
            (first, row) = (end, end_row);
        }
        Ok(())
    }

    /// Completes the store: the last shard, then the manifest.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no context was written; [`Error::Io`], after which the store can be resumed.
    pub fn finish(mut self) -> Result<StoreManifest> {
        if let Some(last) = self.open.take() {
            self.shards.push(last.close()?);
        }
        if self.shards.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: a store needs at least one context, and none was written",
                self.dir.display()
            )));
        }
        let manifest = StoreManifest::new(StoreSpec::clone(&self.spec), self.shards, self.files);
        write_json(&self.dir.join(MANIFEST), &manifest)?;
        drop(self.lock);
        let journal = self.dir.join(JOURNAL);
        fs::remove_file(&journal).map_err(Error::io(&journal))?;
        atomic::sync_directory(&self.dir)?;
        Ok(manifest)
    }

    fn check_contexts(&self, contexts: &[Context]) -> Result<()> {
        for (expected, context) in (self.next_context..).zip(contexts) {
            let (n, most) = (context.tokens.len(), self.spec.context_length);
            if context.index != expected {
                return Err(Error::Invalid(format!(
                    "contexts must be written in order: expected {expected}, got {}",
                    context.index
                )));
            }
            if n == 0 || n > most {
                return Err(Error::Invalid(format!(
                    "context {expected} has {n} tokens, expected 1 to {most}"
                )));
            }
        }
        Ok(())
    }

    /// Checks shapes and values of every hook.
    fn check_acts(&self, contexts: &[Context], rows: &[RowRef], acts: &[&[f32]]) -> Result<()> {
        if acts.len() != self.spec.hooks.len() {
            return Err(Error::Invalid(format!(
                "activations of {} hooks are to be written to a store of {}",
                acts.len(),
                self.spec.hooks.len()
            )));
        }
        for (hook, &values) in self.spec.hooks.iter().zip(acts) {
            if values.len() != rows.len() * hook.d_in {
                return Err(Error::Invalid(format!(
                    "hook {}: {} rows of {} do not make {} values",
                    hook.name,
                    rows.len(),
                    hook.d_in,
                    values.len()
                )));
            }
            let place = |at: usize| {
                let row = rows[at / hook.d_in];
                let context = contexts[row.context as usize].index;
                format!(
                    "context {context}, position {}, column {}",
                    row.position,
                    at % hook.d_in
                )
            };
            match finite_magnitude(values) {
                None => {
                    let at = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
                    return Err(Error::Invalid(format!(
                        "hook {}: {} holds {}: activations must be finite",
                        hook.name,
                        place(at),
                        values[at]
                    )));
                }
                Some(most) if most > self.spec.dtype.max() => {
                    let at = values.iter().position(|v| v.abs() == most).unwrap_or_default();
                    return Err(Error::Invalid(format!(
                        "hook {}: {} holds {}, the largest magnitude in this batch, and {} ends at {}: harvest as {}",
                        hook.name,
                        place(at),
                        values[at],
                        self.spec.dtype,
                        self.spec.dtype.max(),
                        match self.spec.dtype {
                            crate::ActDtype::F16 => "bf16 or f32",
                            _ => "f32",
                        }
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Rows must point at tokens, in order.
fn check_rows(contexts: &[Context], rows: &[RowRef]) -> Result<()> {
    let mut last = None;
    for row in rows {
        let there = contexts.get(row.context as usize).map(|c| c.tokens.len());
        if there.is_none_or(|n| row.position as usize >= n) || last >= Some((row.context, row.position)) {
            return Err(Error::Invalid(format!(
                "rows must point at tokens in ascending order: got position {} of context {} of this batch after {last:?}",
                row.position, row.context
            )));
        }
        last = Some((row.context, row.position));
    }
    Ok(())
}

/// The shards from 0 on that are whole. A shard with fewer contexts than the specification says is the last one of a
/// harvest that was killed before its manifest; it is written anew, since only the text knows whether it is the last.
fn complete_shards(dir: &Path, spec: &StoreSpec) -> Vec<ShardEntry> {
    (0..)
        .map_while(|number| survey(dir, number, spec).filter(|s| s.n_contexts == spec.contexts_per_shard))
        .collect()
}

/// Removes shards from number `keep` on, and temporary files.
fn remove_after(dir: &Path, keep: usize) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let temporary = name.strip_suffix(".tmp");
        let number = shard_number(temporary.unwrap_or(&name));
        if number.is_some_and(|n| temporary.is_some() || n >= keep) {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}
