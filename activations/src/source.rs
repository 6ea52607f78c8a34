//! Activations to train on, wherever they come from: a store's hook, or a `.npy` that somebody else made.
//!
//! Both are rows of one width in files, so one type reads both. What a store knows besides (contexts, model, text) is
//! in [`Origin`], and decides where the held-out rows begin: at a context's first row, so that no context is in both
//! parts.
//!
//! ```no_run
//! # fn main() -> activations::Result<()> {
//! use activations::source::{Activations, MixOptions};
//! let acts = Activations::open("acts".as_ref(), None)?;
//! let split = acts.split(10_000)?;
//! let mut reader = acts.mixed(split.train, &MixOptions { seed: 0, memory_bytes: 1 << 30 })?;
//! let mut batch = vec![0.0; 4096 * acts.d_in()];
//! reader.next_batch(&mut batch)?;
//! # Ok(()) }
//! ```

mod mix;
mod order;
pub(crate) mod rows;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::mix::{MixOptions, MixState, MixedReader};
use self::rows::{ActRows, Column, Files, Run};
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::npy::Npy;
use crate::store::{CorpusRef, ModelRef, Store};

/// Where activations come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The store's directory or the array's file.
    pub path: PathBuf,
    /// The recorded hook; unknown for an array.
    pub hook: Option<String>,
    /// The model; unknown for an array.
    pub model: Option<ModelRef>,
    /// The text; unknown for an array.
    pub corpus: Option<CorpusRef>,
    /// Changes when the data does. Cheap: a digest of what describes the data and of a sample of it.
    pub fingerprint: String,
}

/// Rows to train on and rows to measure on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Everything but the held-out rows.
    pub train: Range<u64>,
    /// The last rows; of a store, whole contexts.
    pub held_out: Range<u64>,
}

/// The activations of one hook of a store, or of a `.npy` array `[n, d]`.
pub struct Activations {
    rows: Arc<ActRows>,
    origin: Origin,
}

impl Activations {
    /// Opens a store's directory or a `.npy` file. `hook` is needed only for a store of several hooks.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] if it is neither, or not intact; [`Error::Invalid`] if the hook is not there
    /// or must be named.
    pub fn open(path: &Path, hook: Option<&str>) -> Result<Self> {
        if path.is_dir() {
            return Self::of_store(&Store::open(path)?, hook);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") if hook.is_some() => Err(Error::Invalid(format!(
                "{}: an array has no hooks to choose from",
                path.display()
            ))),
            Some("npy") => Self::of_npy(&Npy::open(path)?),
            _ if !path.exists() => Err(Error::bad_file(
                path,
                "does not exist; expected the directory of an activation store, or a .npy file",
            )),
            _ => Err(Error::bad_file(
                path,
                "is a file; expected the directory of an activation store, or a .npy file of [n, d]",
            )),
        }
    }

    /// The activations of a hook of an open store; of its only hook if `hook` is `None`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the hook is not there or must be named; [`Error::Io`] and [`Error::BadFile`] naming the
    /// shard that is not intact.
    pub fn of_store(store: &Store, hook: Option<&str>) -> Result<Self> {
        let spec = &store.manifest().spec;
        let (_, hook) = spec.hook(hook)?;
        let origin = Origin {
            path: store.path().to_owned(),
            hook: Some(hook.name.clone()),
            model: Some(spec.model.clone()),
            corpus: Some(spec.corpus.clone()),
            fingerprint: store.fingerprint(&hook.name)?,
        };
        Ok(Self {
            rows: Arc::new(store.rows(&hook.name)?),
            origin,
        })
    }

    /// The rows of an array.
    fn of_npy(npy: &Npy) -> Result<Self> {
        let path = npy.path();
        let (n_rows, width) = (npy.n_rows() as u64, npy.d_in() * npy.dtype().size());
        // The array ends where the file ends: `Npy` refuses anything else.
        let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
        let offset = length.checked_sub(n_rows * width as u64);
        let offset = offset.ok_or_else(|| Error::bad_file(path, "became shorter while it was being opened"))?;
        let run = Run {
            file: 0,
            offset,
            rows: n_rows,
        };
        let files = Arc::new(Files::open(vec![path.to_owned()])?);
        let rows = ActRows {
            name: path.display().to_string(),
            path: path.to_owned(),
            dtype: npy.dtype(),
            d_in: npy.d_in(),
            acts: Column::new(files, vec![run], width),
            places: None,
        };
        let origin = Origin {
            path: path.to_owned(),
            hook: None,
            model: None,
            corpus: None,
            fingerprint: fingerprint(&rows)?,
        };
        Ok(Self {
            rows: Arc::new(rows),
            origin,
        })
    }

    /// What to call it: the store with its hook, or the array's file.
    pub fn name(&self) -> String {
        self.rows.name.clone()
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.rows.d_in
    }

    /// Number of rows.
    pub fn n_rows(&self) -> u64 {
        self.rows.n_rows()
    }

    /// Number format of the file or files.
    pub fn dtype(&self) -> ActDtype {
        self.rows.dtype
    }

    /// Where the activations come from.
    pub fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// Sets the last rows apart: `held_out_rows` of them, and in a store as many more as complete the first context.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing remains to train on; [`Error::Io`] from looking for the context's border.
    pub fn split(&self, held_out_rows: u64) -> Result<Split> {
        let n = self.n_rows();
        let mut border = n.saturating_sub(held_out_rows);
        if let Some(places) = &self.rows.places
            && border < n
            && border > 0
        {
            let context = |row: u64| Ok::<u64, Error>(places.context.read_u64(row..row + 1)?[0]);
            let wanted = context(border)?;
            // Contexts ascend: the first row of `wanted` is found by halving.
            let (mut low, mut high) = (0, border);
            while low < high {
                let middle = low + (high - low) / 2;
                if context(middle)? < wanted {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            border = low;
        }
        if border == 0 {
            return Err(Error::Invalid(format!(
                "{}: {held_out_rows} of its {n} rows are to be held out, and none would remain to train on",
                self.rows.name
            )));
        }
        Ok(Split {
            train: 0..border,
            held_out: border..n,
        })
    }

    /// Decodes the rows `rows` in natural order into `out: [rows, d_in]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rows are not there or do not fill `out`; [`Error::Io`]; [`Error::BadFile`] naming the
    /// first row that holds a NaN or an infinite value.
    pub fn read_rows(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        self.rows.read(rows, out)
    }

    /// A reader that gives out the rows `rows` in random order.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rows are not there, or cannot be mixed in so little memory.
    pub fn mixed(&self, rows: Range<u64>, options: &MixOptions) -> Result<MixedReader> {
        MixedReader::new(Arc::clone(&self.rows), rows, options)
    }
}

/// Digest of sizes and of 64 rows spread over the array, the last one included.
fn fingerprint(rows: &ActRows) -> Result<String> {
    const SAMPLE: u64 = 64;
    let mut digest = Sha256::new();
    digest.update(format!("{} {} {}\n", rows.dtype, rows.n_rows(), rows.d_in));
    let mut row = vec![0; rows.acts.width()];
    let last = rows.n_rows() - 1;
    let sample = SAMPLE.min(rows.n_rows());
    for i in 0..sample {
        let at = (u128::from(last) * u128::from(i) / u128::from(sample.max(2) - 1)) as u64;
        rows.acts.read(at..at + 1, &mut row)?;
        digest.update(&row);
    }
    Ok(hex(&digest.finalize()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
