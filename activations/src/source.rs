//! Activations to train on, wherever they come from: a store's hook, or files that another program made.
//!
//! All of them are rows of one width in files, so one type reads them all, by positions, with the same guarantees: mixed
//! in bounded memory, resumed exactly, a bad row named. What a store knows besides (contexts, model, text) is in
//! [`Origin`], and decides where the held-out rows begin: at a context's first row, so that no context is in both parts.
//!
//! | what | how it is read |
//! |---|---|
//! | the directory of a store | in place |
//! | a `.npy`, a tensor of a `.safetensors` | in place |
//! | Arrow streams: the directory of a Hugging Face dataset, such as SAELens' cached activations | in place |
//! | Parquet of other programs, a file or a directory | copied once, see [`Activations::prepare`] |
//!
//! The one decision: **what cannot be read at positions is copied, and not read in some other way.** Mixing wants a few
//! rows from anywhere; compressed pages give theirs only as a whole. A second kind of reader would mix worse, or decode
//! every page dozens of times, and every guarantee would have to be proved again for it. A copy costs its disk space,
//! said beforehand, and one pass; it is a plain safetensors file that the next run can be given directly.
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

mod array;
mod arrow;
mod arrow_batch;
mod columns;
mod copy;
pub(crate) mod joined;
mod kind;
mod listing;
mod mix;
mod nested;
pub(crate) mod order;
pub(crate) mod pages;
mod parquet;
pub(crate) mod rows;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::copy::Copy;
pub use self::joined::{Joined, JoinedReader};
use self::kind::Kind;
pub use self::listing::{Listing, listing};
pub(crate) use self::mix::ROW_OVERHEAD;
pub use self::mix::{MixOptions, MixState, MixedReader, RowReader};
use self::parquet::ParquetRows;
use self::rows::{ActRows, Column, Files, Run};
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::progress::{Outcome, Progress, Stop};
use crate::store::{CorpusRef, ModelRef, Store};

/// Where activations come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The store's directory, or the file or directory of another program.
    pub path: PathBuf,
    /// The recorded hook; of other programs' files, the name of the tensor or column; unknown for a `.npy`.
    pub hook: Option<String>,
    /// The model; known of a store.
    pub model: Option<ModelRef>,
    /// The text; known of a store.
    pub corpus: Option<CorpusRef>,
    /// Changes when the data does. Cheap: a digest of what describes the data and of a sample of it.
    pub fingerprint: String,
}

/// Rows to train on and rows to measure on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Everything but the held-out rows.
    pub train: Range<u64>,
    /// The last rows; whole contexts, where contexts are known.
    pub held_out: Range<u64>,
}

/// The activations of one hook of a store, or of one array, tensor or column of other programs' files.
pub struct Activations {
    rows: Arc<ActRows>,
    origin: Origin,
    /// What has to be copied before rows can be read.
    undecoded: Option<ParquetRows>,
}

impl Activations {
    /// Opens a store's directory or files of another program. `hook` names a hook of the store, a tensor or a column,
    /// and is needed only where there are several.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] if it is nothing of the kind, or not intact; either or [`Error::Invalid`] if
    /// the hook is not there or must be named.
    pub fn open(path: &Path, hook: Option<&str>) -> Result<Self> {
        Self::open_as(path, hook, None)
    }

    /// As [`open`](Self::open); `dtype` is the number format of a column of bytes whose file does not say it.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::BadFile`] also if the format must be given, or contradicts the file.
    pub fn open_as(path: &Path, hook: Option<&str>, dtype: Option<ActDtype>) -> Result<Self> {
        let open = match Kind::of(path)? {
            Kind::Arrow(files) => {
                let found = arrow::find(path, &files, hook, dtype)?;
                let shape = (found.dtype, found.d_in, found.context_rows);
                return Self::foreign(path, Some(&found.column), files, found.runs, shape, found.rows);
            }
            Kind::Parquet(files) => return Self::of_parquet(path, ParquetRows::find(path, &files, hook, dtype)?),
            Kind::Store => Self::of_store(&Store::open(path)?, hook)?,
            Kind::Npy => array::of_npy(path, hook)?,
            Kind::SafeTensors => array::of_safetensors(path, hook)?,
        };
        match dtype {
            Some(asked) if asked != open.dtype() => Err(Error::bad_file(
                path,
                format!(
                    "holds {}, not {asked}: leave --acts-dtype out, it is for columns of bytes",
                    open.dtype()
                ),
            )),
            _ => Ok(open),
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
            undecoded: None,
        })
    }

    /// Rows that lie in `runs` of `files`, which have `counts` rows each; `shape` is number format, width, and rows of a
    /// context.
    fn foreign(
        path: &Path,
        hook: Option<&str>,
        files: Vec<PathBuf>,
        runs: Vec<Run>,
        shape: (ActDtype, usize, u64),
        counts: Vec<u64>,
    ) -> Result<Self> {
        let parts = files.iter().cloned().zip(counts).collect();
        let rows = act_rows(path, hook, Files::open(files)?, runs, shape, parts);
        let origin = foreign_origin(path, hook, fingerprint(&rows)?);
        Ok(Self {
            rows: Arc::new(rows),
            origin,
            undecoded: None,
        })
    }

    /// Rows that have to be copied. Their fingerprint is of the files, since no row can be looked at yet.
    fn of_parquet(path: &Path, found: ParquetRows) -> Result<Self> {
        let files: Vec<PathBuf> = found.parts().into_iter().map(|(path, _)| path).collect();
        let shape = (found.dtype(), found.d_in, found.context_rows);
        let mut digest = Sha256::new();
        digest.update(crate::fingerprint::fingerprint(&files)?);
        digest.update(format!("{} {} {}", found.column, found.dtype(), found.d_in));
        let origin = foreign_origin(path, Some(&found.column), hex(&digest.finalize()));
        // The run says how many rows there will be; nothing is read from it.
        let run = Run {
            file: 0,
            offset: 0,
            rows: found.n_rows(),
        };
        let rows = act_rows(
            path,
            Some(&found.column),
            Files::open(Vec::new())?,
            vec![run],
            shape,
            found.parts(),
        );
        Ok(Self {
            rows: Arc::new(rows),
            origin,
            undecoded: Some(found),
        })
    }

    /// Bytes of the copy that [`prepare`](Self::prepare) makes; 0 where rows can be read in place.
    pub fn copy_bytes(&self) -> u64 {
        self.undecoded.as_ref().map_or(0, copy::bytes)
    }

    /// Makes rows readable. Parquet of other programs is decoded once into `copy`, a safetensors file with one tensor
    /// named after the column, in memory that does not grow with it. A copy of the same data that is there is used, one
    /// that was interrupted is continued, and both end with the same bytes. Everything else is returned as it is.
    ///
    /// `None` comes with [`Outcome::Stopped`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] naming the file that cannot be decoded, and the row whose width is another.
    pub fn prepare(self, copy: &Path, progress: &dyn Progress, stop: &Stop) -> Result<(Outcome, Option<Self>)> {
        let Some(found) = &self.undecoded else {
            return Ok((Outcome::Finished, Some(self)));
        };
        let making = Copy::new(found, &self.origin.fingerprint, copy);
        if !making.exists()? && making.make(progress, stop)? == Outcome::Stopped {
            return Ok((Outcome::Stopped, None));
        }
        let run = Run {
            file: 0,
            offset: making.offset(),
            rows: found.n_rows(),
        };
        let files = Files::open(vec![copy.to_owned()])?;
        let shape = (found.dtype(), found.d_in, found.context_rows);
        let hook = self.origin.hook.as_deref();
        let rows = act_rows(&self.origin.path, hook, files, vec![run], shape, found.parts());
        let prepared = Self {
            rows: Arc::new(rows),
            origin: self.origin,
            undecoded: None,
        };
        Ok((Outcome::Finished, Some(prepared)))
    }

    /// Refuses to read what was not copied.
    fn readable(&self) -> Result<()> {
        match self.undecoded {
            None => Ok(()),
            Some(_) => Err(Error::Invalid(format!(
                "{}: has to be copied before its rows can be read",
                self.rows.name
            ))),
        }
    }

    /// What to call it: the store with its hook, the file with its tensor or column.
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

    /// Sets the last rows apart: `held_out_rows` of them, and where contexts are known as many more as complete the
    /// first one.
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
        border -= border % self.rows.context_rows;
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
        self.readable()?;
        self.rows.read(rows, out)
    }

    /// A reader that gives out the rows `rows` in random order.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rows are not there, or cannot be mixed in so little memory.
    pub fn mixed(&self, rows: Range<u64>, options: &MixOptions) -> Result<MixedReader> {
        self.readable()?;
        MixedReader::new(Arc::clone(&self.rows), rows, options)
    }
}

/// Rows of other programs' files: `shape` is number format, width, and rows of a context; `parts` are the files that a
/// user knows, with their numbers of rows.
fn act_rows(
    path: &Path,
    hook: Option<&str>,
    files: Files,
    runs: Vec<Run>,
    (dtype, d_in, context_rows): (ActDtype, usize, u64),
    parts: Vec<(PathBuf, u64)>,
) -> ActRows {
    let mut first = 0;
    let starts = parts.into_iter().map(|(path, rows)| {
        first += rows;
        (path, first - rows)
    });
    ActRows {
        name: match hook {
            Some(hook) => format!("{} ({hook})", path.display()),
            None => path.display().to_string(),
        },
        path: path.to_owned(),
        dtype,
        d_in,
        acts: Column::new(Arc::new(files), runs, dtype.row_bytes(d_in)),
        places: None,
        context_rows,
        parts: starts.collect(),
    }
}

/// Of a file that says nothing about model and text.
fn foreign_origin(path: &Path, hook: Option<&str>, fingerprint: String) -> Origin {
    Origin {
        path: path.to_owned(),
        hook: hook.map(str::to_owned),
        model: None,
        corpus: None,
        fingerprint,
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
