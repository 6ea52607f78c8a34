//! Writing a store, and continuing one whose writer was killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::directory::{
    check_parts, complete_shards, journal_path, not_empty, remove_after, resumable, resumable_part,
};
use super::manifest::{
    FORMAT, FileEntry, JOURNAL, Journal, MANIFEST, ShardEntry, StoreManifest, StoreState, TextCounts, shard_number,
    state, write_json,
};
use super::part::{Part, PartManifest, Parts, read_journal};
use super::pushed::{check_acts, check_rows};
use super::shard_writer::ShardWriter;
use super::spec::StoreSpec;
use super::uploads::{self, Uploads};
use crate::atomic;
use crate::context::{Context, RowRef};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::objects::{Bucket, ObjectUrl, Staging};
use crate::source::hex;

/// Writes a store: contexts in natural order with [`push`](Self::push), then [`finish`](Self::finish).
///
/// Shards are complete or absent. A writer that is dropped, or whose process is killed, loses the shard that it was
/// in the middle of; [`resume`](Self::resume) continues after the last complete one and ends with the same bytes.
///
/// Several processes can write one store, each a [`Part`] of it: then each pushes the contexts of its own shards, as
/// [`next_context`](Self::next_context) asks for them, and ends with [`finish_part`](Self::finish_part).
pub struct StoreWriter {
    dir: PathBuf,
    part: Part,
    spec: Arc<StoreSpec>,
    shards: Vec<ShardEntry>,
    files: Vec<FileEntry>,
    text: TextCounts,
    open: Option<ShardWriter>,
    next_context: u64,
    /// Keeps other writers away; the system releases it when the process ends, however it ends.
    lock: Lock,
    /// Where the store is not a directory of this machine: who sends its files.
    uploads: Option<Uploads>,
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
            StoreState::Foreign(name) => return Err(not_empty(dir, &name)),
            StoreState::Unfinished(_) | StoreState::Finished(_) if Parts::scan(dir)?.is_some() => {
                return Err(Error::bad_file(
                    dir,
                    "holds a store in parts: say with `--shard` which of them to harvest, or choose another directory",
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
        Self::start(dir, spec, Part::WHOLE)
    }

    /// Starts part `part` of a store in `dir`, where other processes may write other parts.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::BadFile`] also if this part is there, or parts of another division;
    /// [`Error::Invalid`] naming the first difference if another part was begun with another specification.
    pub fn create_part(dir: &Path, spec: &StoreSpec, part: Part) -> Result<Self> {
        if part == Part::WHOLE {
            return Self::create(dir, spec);
        }
        spec.validate()?;
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let Some(parts) = Parts::scan(dir)? else {
            return match state(dir)? {
                StoreState::Absent => Self::start(dir, spec, part),
                StoreState::Foreign(name) => Err(not_empty(dir, &name)),
                StoreState::Unfinished(_) | StoreState::Finished(_) => Err(Error::bad_file(
                    dir,
                    "holds a store that is not in parts: choose another directory",
                )),
            };
        };
        check_parts(dir, &parts, spec, part)?;
        match parts.found.get(&part.number) {
            None => Self::start(dir, spec, part),
            Some(true) => Err(Error::bad_file(
                dir,
                format!("already holds part {part}: there is nothing to do"),
            )),
            Some(false) => Err(Error::bad_file(
                dir,
                format!("holds an unfinished part {part}: continue it with `--resume`"),
            )),
        }
    }

    fn start(dir: &Path, spec: &StoreSpec, part: Part) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let journal = Journal {
            format: FORMAT.into(),
            version: spec.version(),
            spec: spec.clone(),
        };
        write_json(&journal_path(dir, part), &journal)?;
        Self::begin(dir, spec, part)
    }

    /// Continues the unfinished store in `dir`. Shards that are complete stay; anything after them is written anew.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first difference if the store was begun with another specification;
    /// [`Error::BadFile`] if there is no unfinished store; [`Error::Io`].
    pub fn resume(dir: &Path, spec: &StoreSpec) -> Result<Self> {
        Self::resume_part(dir, spec, Part::WHOLE)
    }

    /// Continues part `part` of the store in `dir`, and touches the files of no other.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub fn resume_part(dir: &Path, spec: &StoreSpec, part: Part) -> Result<Self> {
        match part {
            Part::WHOLE => resumable(dir)?,
            part => resumable_part(dir, spec, part)?,
        }
        let begun = read_journal(&journal_path(dir, part))?.spec;
        if let Some(difference) = begun.difference(spec) {
            return Err(Error::Invalid(format!(
                "{}: cannot continue a store with other settings than it was begun with: {difference}",
                dir.display()
            )));
        }
        let mut writer = Self::begin(dir, spec, part)?;
        writer.shards = complete_shards(dir, spec, part);
        writer.next_context = writer.first_context(writer.shards.len());
        remove_after(dir, part, writer.shards.len())?;
        Ok(writer)
    }

    /// Starts or resumes part `part` of a store in an object store. Files are made in a temporary directory and sent as
    /// they are finished; there are never more than a few shards on this machine.
    ///
    /// # Errors
    /// As [`create_part`](Self::create_part) and [`resume_part`](Self::resume_part), said of the URL; [`Error::Remote`]
    /// if the object store refuses or cannot be reached.
    pub fn remote(url: &ObjectUrl, spec: &StoreSpec, part: Part, resume: bool) -> Result<Self> {
        let bucket = Bucket::open(url)?;
        let staging = Staging::of(url, &part.to_string())?;
        let names = bucket.names()?;
        staging.mirror(&names)?;
        let opened = match resume {
            true => Self::resume_part(staging.dir(), spec, part),
            false => Self::create_part(staging.dir(), spec, part),
        };
        let mut writer = opened.map_err(|e| staging.relocate(&bucket, e))?;
        match resume {
            true => {
                writer.shards = uploads::sent(&names, spec, part)?;
                writer.next_context = writer.first_context(writer.shards.len());
            }
            false => {
                let path = journal_path(staging.dir(), part);
                let journal = fs::read(&path).map_err(Error::io(&path))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !bucket.put(&name, journal, true)? {
                    return Err(Error::remote(
                        bucket.label(&name),
                        "another process began this store just now: let it finish, or continue with `--resume`",
                    ));
                }
            }
        }
        uploads::remove_after(&bucket, &names, part, writer.shards.len())?;
        writer.uploads = Some(Uploads::start(bucket, staging, spec, part, writer.shards.clone()));
        Ok(writer)
    }

    fn begin(dir: &Path, spec: &StoreSpec, part: Part) -> Result<Self> {
        let path = journal_path(dir, part);
        let lock = File::open(&path).map_err(Error::io(&path))?;
        let lock = Lock::of_file(lock).ok_or_else(|| Error::bad_file(dir, "another process is writing this store"))?;
        let mut writer = Self {
            dir: dir.to_owned(),
            part,
            spec: Arc::new(spec.clone()),
            next_context: 0,
            shards: Vec::new(),
            files: Vec::new(),
            text: TextCounts::default(),
            open: None,
            lock,
            uploads: None,
        };
        writer.next_context = writer.first_context(0);
        Ok(writer)
    }

    /// The first context of the `nth` shard of this part.
    fn first_context(&self, nth: usize) -> u64 {
        self.part.shard(nth) as u64 * self.spec.contexts_per_shard
    }

    /// The context of this part that follows `context`.
    fn following(&self, context: u64) -> u64 {
        let next = context + 1;
        match next.is_multiple_of(self.spec.contexts_per_shard) {
            true => next + (self.part.of as u64 - 1) * self.spec.contexts_per_shard,
            false => next,
        }
    }

    /// Number of the context that [`push`](Self::push) expects next: the part's first, or where a resumed store goes on.
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

    /// Puts a file into the store: the tokenizer, so that token ids can be read without the model. A resumed writer must
    /// be given its files again.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] if the name is one of the store's own.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let name = name.to_owned();
        if [MANIFEST, JOURNAL, ""].contains(&name.as_str()) || shard_number(&name).is_some() {
            return Err(Error::Invalid(format!(
                "{name}: a store cannot take a file of this name"
            )));
        }
        // Other parts may copy the same file just now.
        let temporary = match self.part {
            Part::WHOLE => atomic::temporary(&self.dir.join(&name)),
            part => self.dir.join(format!("{name}.part-{}.tmp", part.number)),
        };
        fs::write(&temporary, bytes).map_err(Error::io(&temporary))?;
        File::open(&temporary)
            .and_then(|file| file.sync_all())
            .map_err(Error::io(&temporary))?;
        atomic::publish(&temporary, &self.dir.join(&name))?;
        if let Some(uploads) = &self.uploads {
            uploads.file(&name)?;
        }
        self.files.retain(|f| f.name != name);
        self.files.push(FileEntry {
            name,
            bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        });
        Ok(())
    }

    /// What the manifest will say was not taken from the text as it is; of all of the text, not only since a resumption.
    pub fn count_text(&mut self, text: TextCounts) {
        self.text = text;
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
        check_acts(&self.spec, contexts, rows, acts)?;
        let (mut first, mut row) = (0, 0);
        while first < contexts.len() {
            let shard = match &mut self.open {
                Some(shard) => shard,
                None => self.open.insert(ShardWriter::create(
                    &self.dir,
                    self.part.shard(self.shards.len()),
                    &self.spec,
                )?),
            };
            let end = contexts.len().min(first + shard.room());
            let end_row = row + rows[row..].partition_point(|r| (r.context as usize) < end);
            let acts: Vec<&[f32]> = acts
                .iter()
                .zip(&self.spec.hooks)
                .map(|(acts, hook)| &acts[row * hook.d_in..end_row * hook.d_in])
                .collect();
            shard.push(&contexts[first..end], first as u32, &rows[row..end_row], &acts)?;
            if shard.room() == 0 {
                self.close_open()?;
            }
            if let Some(last) = contexts[first..end].last() {
                self.next_context = self.following(last.index);
            }
            (first, row) = (end, end_row);
        }
        Ok(())
    }

    /// Completes the store: the last shard, then the manifest.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no context was written, or this is only a part; [`Error::Io`], after which the store can be
    /// resumed.
    pub fn finish(mut self) -> Result<StoreManifest> {
        if self.part != Part::WHOLE {
            return Err(Error::Invalid(format!(
                "{}: part {} of a store ends with `finish_part`",
                self.dir.display(),
                self.part
            )));
        }
        self.close_last()?;
        if self.shards.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: a store needs at least one context, and none was written",
                self.dir.display()
            )));
        }
        let manifest = StoreManifest::new(
            StoreSpec::clone(&self.spec),
            self.text,
            std::mem::take(&mut self.shards),
            std::mem::take(&mut self.files),
        );
        self.write_manifest(&self.dir.join(MANIFEST), &manifest)?;
        self.remove_journal()?;
        Ok(manifest)
    }

    /// Completes the part, or the whole store if that is what is written, of a text of `n_contexts` contexts. What it
    /// returns speaks of the part's shards alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] if contexts of the part were not pushed, or there are none at all; [`Error::Io`], after which
    /// the part can be resumed.
    pub fn finish_part(mut self, n_contexts: u64) -> Result<StoreManifest> {
        if self.part == Part::WHOLE {
            return self.finish();
        }
        self.close_last()?;
        if self.next_context < n_contexts || n_contexts == 0 {
            return Err(Error::Invalid(format!(
                "{}: part {} was to be completed with {n_contexts} contexts in all, and context {} was not written",
                self.dir.display(),
                self.part,
                self.next_context
            )));
        }
        let manifest = StoreManifest::new(
            StoreSpec::clone(&self.spec),
            self.text,
            std::mem::take(&mut self.shards),
            std::mem::take(&mut self.files),
        );
        let part = PartManifest {
            format: FORMAT.into(),
            version: manifest.version,
            created_by: manifest.created_by.clone(),
            part: self.part,
            spec: manifest.spec.clone(),
            n_contexts,
            text: manifest.text,
            shards: manifest.shards.clone(),
            files: manifest.files.clone(),
        };
        self.write_manifest(&self.part.manifest(&self.dir), &part)?;
        self.remove_journal()?;
        Ok(manifest)
    }

    /// Completes the shard that is being written, if there is one.
    fn close_open(&mut self) -> Result<()> {
        if let Some(shard) = self.open.take() {
            self.shards.push(shard.close()?);
            if let (Some(uploads), Some(entry)) = (&mut self.uploads, self.shards.last()) {
                uploads.shard(entry.clone())?;
            }
        }
        Ok(())
    }

    /// Completes the last shard. All of them are then where the store is.
    fn close_last(&mut self) -> Result<()> {
        self.close_open()?;
        match &mut self.uploads {
            Some(uploads) => uploads.wait(),
            None => Ok(()),
        }
    }

    /// Writes the manifest, after which the store, or the part, is complete.
    fn write_manifest<T: Serialize>(&self, path: &Path, manifest: &T) -> Result<()> {
        write_json(path, manifest)?;
        match &self.uploads {
            Some(uploads) => uploads.file(&path.file_name().unwrap_or_default().to_string_lossy()),
            None => Ok(()),
        }
    }

    fn remove_journal(mut self) -> Result<()> {
        let journal = journal_path(&self.dir, self.part);
        drop(self.lock);
        fs::remove_file(&journal).map_err(Error::io(&journal))?;
        atomic::sync_directory(&self.dir)?;
        match &mut self.uploads {
            Some(uploads) => uploads.finish(),
            None => Ok(()),
        }
    }

    fn check_contexts(&self, contexts: &[Context]) -> Result<()> {
        let mut expected = self.next_context;
        for context in contexts {
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
            if !context.spans.fit(n) {
                return Err(Error::Invalid(format!(
                    "the spans of context {expected} do not fit its {n} tokens"
                )));
            }
            expected = self.following(expected);
        }
        Ok(())
    }
}
