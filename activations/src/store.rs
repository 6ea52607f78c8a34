//! The activation store: a directory of Parquet files in natural order. `STORE.md` beside this crate's manifest is the
//! normative text; where this code differs, the code is wrong.
//!
//! The one decision: **every column is required and plain, and a row of activations is one value of fixed width.** It is
//! ordinary Parquet to everybody else, and to us an array with a table of contents: a row is found by arithmetic and read
//! without decoding, which is what random access at the speed of the disk needs. Activations hardly compress, so they
//! are not compressed unless somebody asks, and then in pages so small that a row still costs little ([`Compression`]);
//! lists of floats, which Parquet would suggest, read and write ten times slower.
//!
//! ```no_run
//! # fn main() -> activations::Result<()> {
//! use activations::store::Store;
//! use activations::ContextSource;
//! let store = Store::open("acts".as_ref())?;
//! let mut contexts = store.contexts("blocks.3.hook_resid_post")?;
//! while let Some(batch) = contexts.next_batch()? {
//!     println!("{} contexts, {} rows", batch.contexts.len(), batch.rows.len());
//! }
//! # Ok(()) }
//! ```

mod columns;
mod compression;
mod context_table;
mod contexts;
mod directory;
mod manifest;
mod part;
mod pushed;
mod shard;
mod shard_writer;
mod spec;
mod uploads;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::compression::Compression;
pub use self::contexts::StoreContexts;
pub use self::manifest::{
    COMPRESSED_VERSION, FORMAT, FileEntry, JOURNAL, MANIFEST, ShardEntry, StoreManifest, StoreState, TextCounts,
    VERSION, state,
};
pub(crate) use self::manifest::{is_manifest, is_shard, is_store};
pub use self::part::Part;
pub(crate) use self::spec::SHARD_BYTES;
pub use self::spec::{CorpusRef, HookSpec, ModelRef, StoreSpec};
pub use self::writer::StoreWriter;
use crate::error::{Error, Result};
use crate::objects::{Bucket, Place};
use crate::source::hex;
use crate::source::rows::{ActRows, Column, Files, Places};

/// The parts of the store in `dir` that are not complete yet, each with what to do about it; none where the store is
/// complete or not in parts.
///
/// # Errors
/// [`Error::Io`] and [`Error::Remote`]; [`Error::BadFile`] if there are parts of different divisions.
pub fn waiting(dir: &Path) -> Result<Vec<String>> {
    let parts = match Place::of(dir)? {
        Place::Local(dir) => part::Parts::scan(&dir)?,
        Place::Remote(url) => {
            let names = Bucket::open(&url)?.names()?;
            part::Parts::named(dir, names.into_iter().map(|(name, _)| name).collect())?
        }
    };
    Ok(parts.map_or(Vec::new(), |parts| parts.waiting()))
}

/// A complete store.
pub struct Store {
    dir: PathBuf,
    manifest: Arc<StoreManifest>,
}

impl Store {
    /// Opens a store: reads its manifest, or those of its parts, and checks that every file is there and as long as it should be.
    ///
    /// # Errors
    /// [`Error::BadFile`] if the directory is no store, is unfinished, has a file missing or truncated, or one that
    /// the manifest does not list; [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = manifest::read_manifest(dir)?;
        for (number, shard) in manifest.shards.iter().enumerate() {
            let acts = (manifest::acts_path(dir, number), shard.acts_bytes);
            let contexts = (manifest::contexts_path(dir, number), shard.contexts_bytes);
            for (path, bytes) in [acts, contexts] {
                let found = match fs::metadata(&path) {
                    Ok(found) => found.len(),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        return Err(Error::bad_file(path, "is missing: the store's manifest lists it"));
                    }
                    Err(e) => return Err(Error::io(path)(e)),
                };
                shard::check_length(found, bytes).map_err(|problem| Error::bad_file(path, problem))?;
            }
        }
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if manifest::shard_number(&name).is_some_and(|n| n >= manifest.shards.len()) {
                return Err(Error::bad_file(
                    &path,
                    format!(
                        "is not listed in the store's manifest, which has {} shards: it belongs to another store",
                        manifest.shards.len()
                    ),
                ));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            manifest: Arc::new(manifest),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What the store says about itself.
    pub fn manifest(&self) -> &StoreManifest {
        &self.manifest
    }

    /// A file that was copied into the store, such as `tokenizer.json`; `None` if there is none of this name.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let entry = self.manifest.files.iter().find(|f| f.name == name)?;
        let path = Path::new(&entry.name);
        // A name that is more than a name would lead out of the directory.
        (path.file_name() == Some(path.as_os_str())).then(|| self.dir.join(path))
    }

    /// All contexts with the activations of a hook, in natural order.
    ///
    /// # Errors
    /// [`Error::Invalid`] listing the hooks if it is not one of them; [`Error::Io`] and [`Error::BadFile`] naming the
    /// shard that is not intact.
    pub fn contexts(&self, hook: &str) -> Result<StoreContexts> {
        self.contexts_of(&[hook])
    }

    /// As [`contexts`](Self::contexts), of several hooks: a row is the rows of all of them, one behind the other.
    ///
    /// # Errors
    /// As [`contexts`](Self::contexts); [`Error::Invalid`] if there is no hook.
    pub fn contexts_of(&self, hooks: &[&str]) -> Result<StoreContexts> {
        let rows: Vec<ActRows> = hooks.iter().map(|hook| self.rows(hook)).collect::<Result<_>>()?;
        if rows.is_empty() {
            return Err(Error::Invalid("no hook given: name at least one".into()));
        }
        Ok(StoreContexts::new(self.dir.clone(), Arc::clone(&self.manifest), rows))
    }

    /// Digest of everything that describes a hook's activations, and of a sample of them.
    pub(crate) fn fingerprint(&self, hook: &str) -> Result<String> {
        let mut digest = Sha256::new();
        // A store in parts has no such file, and the digest of one that was written whole.
        digest.update(manifest::to_json(&self.dir.join(MANIFEST), &*self.manifest)?);
        digest.update(hook.as_bytes());
        Ok(hex(&digest.finalize()))
    }

    /// The rows of a hook: opens and checks every shard.
    pub(crate) fn rows(&self, hook: &str) -> Result<ActRows> {
        let spec = &self.manifest.spec;
        let (at, hook) = spec.hook(Some(hook))?;
        let columns = [columns::KEYS.len() + at, 0, 1];
        let mut found: [shard::Found; 3] = Default::default();
        for (number, entry) in self.manifest.shards.iter().enumerate() {
            let here = shard::column_runs(&self.dir, number, spec, entry, &columns)?;
            found.iter_mut().zip(here).for_each(|(found, here)| found.extend(here));
        }
        let paths = (0..self.manifest.shards.len()).map(|n| manifest::acts_path(&self.dir, n));
        let files = Arc::new(Files::open(paths.collect())?);
        let [acts, context, position] = found;
        let plain = |found: shard::Found, width| Column::new(Arc::clone(&files), found.runs, width);
        let width = spec.dtype.row_bytes(hook.d_in);
        Ok(ActRows {
            name: format!("{} ({})", self.dir.display(), hook.name),
            path: self.dir.clone(),
            dtype: spec.dtype,
            d_in: hook.d_in,
            acts: match spec.compression {
                None => plain(acts, width),
                Some(_) => Column::packed(Arc::clone(&files), acts.runs, acts.sizes, width),
            },
            places: Some(Places {
                context: plain(context, 8),
                position: plain(position, 4),
            }),
            context_rows: 1,
            parts: Vec::new(),
        })
    }
}
