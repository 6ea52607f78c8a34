//! The two small files that say what a store directory is: the journal while it is written, the manifest after.
//!
//! The journal comes first and the manifest last. A directory with a manifest is complete; one with only a journal was
//! begun and can be continued; one with neither is no store. A store in parts has a pair of them for each part instead,
//! see [`super::part`]. Names of shards follow from their numbers and are never
//! read from a file, so that no manifest can point outside its directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::part::{self, Parts};
use super::spec::StoreSpec;
use crate::atomic;
use crate::error::{Error, Result};

/// What `format` says in manifests, journals and shards.
pub const FORMAT: &str = "sae-activations";
/// The version of the format of stores that are not compressed.
pub const VERSION: u32 = 2;
/// The version of those that are: programs that know only the one before are told so, and not that a shard is damaged.
pub const COMPRESSED_VERSION: u32 = 3;
/// Written last.
pub const MANIFEST: &str = "manifest.json";
/// Written first, removed once there is a manifest.
pub const JOURNAL: &str = "unfinished.json";
/// The largest manifest that is read: 1 KiB for each of a quarter of a million shards.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// One pair of files of a store: some contexts and the rows of their tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Number of its first context.
    pub first_context: u64,
    /// Contexts.
    pub n_contexts: u64,
    /// Tokens of these contexts.
    pub n_tokens: u64,
    /// Activation rows: the tokens less those that were skipped.
    pub n_rows: u64,
    /// Length of the file of activations.
    pub acts_bytes: u64,
    /// Length of the file of contexts.
    pub contexts_bytes: u64,
    /// Digest of the file of contexts.
    pub contexts_sha256: String,
    /// Digest of every 64th row of every hook. It tells two stores apart; it does not prove that a file is intact.
    pub sample_sha256: String,
}

/// What was not taken from a text as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextCounts {
    /// Invalid UTF-8 sequences that were replaced.
    pub replaced: u64,
    /// Records that were left out because they were broken or held no string.
    pub bad_records: u64,
}

/// A file that was copied into the store: the model's tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the directory.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Digest.
    pub sha256: String,
}

/// What `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreManifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the format, or [`COMPRESSED_VERSION`].
    pub version: u32,
    /// The program that wrote the store.
    pub created_by: String,
    /// What was asked for.
    pub spec: StoreSpec,
    /// Contexts in all.
    pub n_contexts: u64,
    /// Tokens in all, those without rows included.
    pub n_tokens: u64,
    /// Activation rows in all.
    pub n_rows: u64,
    /// What was not taken from the text as it is.
    pub text: TextCounts,
    /// The shards, in order.
    pub shards: Vec<ShardEntry>,
    /// The other files.
    pub files: Vec<FileEntry>,
}

/// What `unfinished.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub format: String,
    pub version: u32,
    pub spec: StoreSpec,
}

/// What a directory is, as far as activations are concerned.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreState {
    /// Nothing is there, or an empty directory.
    Absent,
    /// Something else is there.
    Foreign(String),
    /// A harvest began and did not finish.
    Unfinished(Box<StoreSpec>),
    /// A complete store.
    Finished(Box<StoreManifest>),
}

/// The file of activations of shard `n`.
pub(crate) fn acts_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("acts-{n:05}.parquet"))
}

/// The file of contexts of shard `n`.
pub(crate) fn contexts_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("contexts-{n:05}.parquet"))
}

/// The shard number in a name such as `acts-00012.parquet`.
pub(crate) fn shard_number(name: &str) -> Option<usize> {
    let number = name.strip_suffix(".parquet")?;
    let number = number.strip_prefix("acts-").or(number.strip_prefix("contexts-"))?;
    number.parse().ok()
}

/// Whether a name is that of a shard's file.
pub(crate) fn is_shard(name: &str) -> bool {
    shard_number(name).is_some()
}

/// Whether a name is that of a manifest or journal, of a store or of a part of one.
pub(crate) fn is_manifest(name: &str) -> bool {
    name == MANIFEST || name == JOURNAL || part::is_part(name)
}

/// Looks at a directory without changing it.
///
/// # Errors
/// [`Error::Io`], and [`Error::BadFile`] if a manifest or journal is there and is not what it should be.
pub fn state(dir: &Path) -> Result<StoreState> {
    if !dir.exists() {
        return Ok(StoreState::Absent);
    }
    if let Some(parts) = Parts::scan(dir)? {
        return Ok(match parts.waiting().is_empty() {
            true => StoreState::Finished(Box::new(read_manifest(dir)?)),
            false => StoreState::Unfinished(Box::new(parts.spec()?.1)),
        });
    }
    if dir.join(MANIFEST).exists() {
        return Ok(StoreState::Finished(Box::new(read_manifest(dir)?)));
    }
    if dir.join(JOURNAL).exists() {
        return Ok(StoreState::Unfinished(Box::new(read_journal(dir)?.spec)));
    }
    let mut entries = fs::read_dir(dir).map_err(Error::io(dir))?;
    // A journal that was being written when the process was killed is litter, or another part's that begins just now.
    let stray = atomic::temporary(&dir.join(JOURNAL));
    let is_stray = |e: &fs::DirEntry| e.path() == stray || part::is_part(&e.file_name().to_string_lossy());
    entries
        .find_map(|entry| match entry {
            Ok(e) if is_stray(&e) => None,
            Ok(e) => Some(Ok(StoreState::Foreign(e.file_name().to_string_lossy().into_owned()))),
            Err(e) => Some(Err(Error::io(dir)(e))),
        })
        .unwrap_or(Ok(StoreState::Absent))
}

/// Whether a directory is that of a store, be it unfinished or without its manifest.
pub(crate) fn is_store(dir: &Path) -> Result<bool> {
    if dir.join(MANIFEST).exists() || dir.join(JOURNAL).exists() {
        return Ok(true);
    }
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let name = entry.map_err(Error::io(dir))?.file_name();
        let name = name.to_string_lossy();
        if shard_number(&name).is_some() || part::is_part(&name) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads and checks the manifest of a complete store; a directory without one is refused by what it is instead.
pub(crate) fn read_manifest(dir: &Path) -> Result<StoreManifest> {
    let path = dir.join(MANIFEST);
    let parts = if dir.is_dir() { Parts::scan(dir)? } else { None };
    match (path.exists(), parts) {
        (true, None) => {}
        (false, None) => return Err(no_manifest(dir)),
        (false, Some(parts)) => return parts.merge(),
        (true, Some(_)) => {
            return Err(Error::bad_file(
                dir,
                format!("holds the {MANIFEST} of a whole store, and parts of another: keep the files of one of them"),
            ));
        }
    }
    let manifest: StoreManifest = read_json(&path)?;
    check_version(&path, manifest.version, &manifest.spec)?;
    manifest
        .check()
        .map_err(|problem| Error::bad_file(&path, format!("contradicts itself: {problem}")))?;
    Ok(manifest)
}

/// Why a directory without a manifest cannot be read.
fn no_manifest(dir: &Path) -> Error {
    if !dir.is_dir() {
        return Error::bad_file(
            dir,
            "expected the directory of an activation store; there is no such directory",
        );
    }
    if dir.join(JOURNAL).exists() {
        return Error::bad_file(
            dir,
            "is an unfinished store: its harvest was interrupted; continue it with `--resume`",
        );
    }
    let parquet = fs::read_dir(dir).ok().and_then(|entries| {
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        names.into_iter().find(|n| n.ends_with(".parquet"))
    });
    match parquet {
        Some(name) => Error::bad_file(
            dir,
            format!(
                "holds {name} but no {MANIFEST}: the files of a store are read with the manifest that `sae harvest` \
                 wrote last"
            ),
        ),
        None => Error::bad_file(dir, format!("is not an activation store: there is no {MANIFEST} in it")),
    }
}

/// Reads the journal of an unfinished store.
pub(crate) fn read_journal(dir: &Path) -> Result<Journal> {
    let path = dir.join(JOURNAL);
    let journal: Journal = read_json(&path)?;
    check_version(&path, journal.version, &journal.spec)?;
    journal
        .spec
        .validate()
        .map_err(|error| Error::bad_file(&path, error.to_string()))?;
    Ok(journal)
}

fn check_format(path: &Path, format: &str, version: u32) -> Result<()> {
    if format != FORMAT {
        return Err(Error::bad_file(
            path,
            format!("says format {format:?}, expected {FORMAT:?}: this is no activation store"),
        ));
    }
    if !(VERSION..=COMPRESSED_VERSION).contains(&version) {
        let remedy = match version < VERSION {
            true => "harvest again",
            false => "update the program",
        };
        return Err(Error::bad_file(
            path,
            format!(
                "says version {version}, and this program reads versions {VERSION} and {COMPRESSED_VERSION}: {remedy}"
            ),
        ));
    }
    Ok(())
}

/// Whether a version is the one that says what the specification says.
pub(super) fn check_version(path: &Path, version: u32, spec: &StoreSpec) -> Result<()> {
    match spec.version() {
        expected if expected == version => Ok(()),
        expected => Err(Error::bad_file(
            path,
            format!("says version {version}, and a store with this compression is of version {expected}"),
        )),
    }
}

/// What a manifest's file says: its bytes follow from the manifest.
pub(crate) fn to_json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::Invalid(format!("{}: does not serialise: {e}", path.display())))?;
    json.push(b'\n');
    Ok(json)
}

/// Reads a JSON file whose `format`, where it has one, is looked at first: a foreign file is then called foreign and
/// not misspelt.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        format: String,
        #[serde(default)]
        version: u32,
    }
    let length = fs::metadata(path).map_err(Error::io(path))?.len();
    if length > MAX_JSON_BYTES {
        return Err(Error::bad_file(path, format!("is {length} bytes long: no manifest is")));
    }
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let not_ours = |e: serde_json::Error| Error::bad_file(path, format!("is not what a store's would be: {e}"));
    let head: Head = serde_json::from_slice(&bytes).map_err(not_ours)?;
    check_format(path, &head.format, head.version)?;
    serde_json::from_slice(&bytes).map_err(not_ours)
}

/// Writes a manifest or journal.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    atomic::write(path, &to_json(path, value)?)
}

impl StoreManifest {
    /// The manifest of a store of these shards and files.
    pub(crate) fn new(spec: StoreSpec, text: TextCounts, shards: Vec<ShardEntry>, files: Vec<FileEntry>) -> Self {
        let sum = |of: fn(&ShardEntry) -> u64| shards.iter().map(of).sum();
        Self {
            format: FORMAT.into(),
            version: spec.version(),
            created_by: concat!("sae ", env!("CARGO_PKG_VERSION")).into(),
            n_contexts: sum(|s| s.n_contexts),
            n_tokens: sum(|s| s.n_tokens),
            n_rows: sum(|s| s.n_rows),
            spec,
            text,
            shards,
            files,
        }
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.acts_bytes + s.contexts_bytes).sum()
    }

    /// Whether counts and sums agree.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        self.spec.validate().map_err(|e| e.to_string())?;
        let (mut contexts, mut tokens, mut rows, mut bytes) = (0u64, 0u64, 0u64, 0u64);
        for (n, shard) in self.shards.iter().enumerate() {
            let last = n + 1 == self.shards.len();
            let full = shard.n_contexts == self.spec.contexts_per_shard;
            if shard.first_context != contexts || !(full || last) || shard.n_contexts > self.spec.contexts_per_shard {
                return Err(format!(
                    "shard {n} has {} contexts from {}, expected {} from {contexts}",
                    shard.n_contexts, shard.first_context, self.spec.contexts_per_shard
                ));
            }
            let most = shard.n_contexts * self.spec.context_length as u64;
            if shard.n_rows > shard.n_tokens || shard.n_tokens > most {
                return Err(format!(
                    "shard {n} has {} rows of {} tokens in {} contexts",
                    shard.n_rows, shard.n_tokens, shard.n_contexts
                ));
            }
            contexts += shard.n_contexts;
            tokens = tokens.saturating_add(shard.n_tokens);
            rows = rows.saturating_add(shard.n_rows);
            bytes = bytes
                .checked_add(shard.acts_bytes)
                .and_then(|b| b.checked_add(shard.contexts_bytes))
                .ok_or("its files are longer than any disk")?;
        }
        if (contexts, tokens, rows) != (self.n_contexts, self.n_tokens, self.n_rows) {
            return Err(format!(
                "n_contexts, n_tokens and n_rows are {}, {} and {}, but the shards have {contexts}, {tokens} and {rows}",
                self.n_contexts, self.n_tokens, self.n_rows
            ));
        }
        Ok(())
    }
}
