//! What a run trains on: activations that lie somewhere, or those of a model over a text as it computes them.
//!
//! The one place where the two differ. A run asks for the same things of both: rows of a width, some of them apart to
//! measure on, a first sample, and all others in random order from any state on.

use std::ops::Range;
use std::path::Path;

use activations::harvest::{self, HeldOut, RowStream, StreamOptions};
use activations::hub::Hub;
use activations::model::Transformer;
use activations::source::{Activations, MixOptions, MixState, Origin, RowReader, Split};
use activations::{Outcome, Progress, Stop};

use super::read_ahead::ReadAhead;
use super::{TrainPlan, start};
use crate::config::RunConfig;
use crate::error::{Error, Result};

/// What a run trains on.
pub enum Input {
    /// Activations in files.
    Stored(Box<Activations>),
    /// A model over a text, and the rows to measure on once they are computed.
    Streamed(Box<RowStream>, HeldOut),
}

impl Input {
    /// Opens what `config` names: `data.acts`, or `data.model` and `data.text`. Of a hub's model the files are fetched.
    pub fn open(config: &RunConfig, progress: &dyn Progress) -> Result<Self> {
        config.validate()?;
        let data = &config.data;
        if let Some(path) = &data.acts {
            let acts = Activations::open_as(path, data.hook.as_deref(), data.acts_dtype)?;
            return Ok(Self::Stored(Box::new(acts)));
        }
        let Some(model) = &data.model else {
            return Err(Error::config(
                "data.acts",
                "is missing: name a store's directory, or a .npy, .safetensors, .parquet or dataset; or a model with \
                 data.model and its text with data.text",
            ));
        };
        let hub = Hub::from_env();
        let model = hub.find(model, progress)?;
        if data.hook.is_none() {
            let hooks = Transformer::read_config(&model.path)?.hook_listing();
            let problem = format!("is missing: name where in the model to look; it has {hooks}");
            return Err(Error::config("data.hook", problem));
        }
        let mut options = config.harvest_options(&model)?;
        options.fetch_texts(&hub, progress)?;
        let plan = harvest::plan(&options)?;
        Ok(Self::Streamed(Box::new(RowStream::new(plan)?), HeldOut::default()))
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match self {
            Self::Stored(acts) => acts.name(),
            Self::Streamed(rows, _) => rows.name(),
        }
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        match self {
            Self::Stored(acts) => acts.d_in(),
            Self::Streamed(rows, _) => rows.d_in(),
        }
    }

    /// Number of rows; of a text, about.
    pub fn n_rows(&self) -> u64 {
        match self {
            Self::Stored(acts) => acts.n_rows(),
            Self::Streamed(rows, _) => rows.n_rows(),
        }
    }

    /// Where the rows come from.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Stored(acts) => acts.origin(),
            Self::Streamed(rows, _) => rows.origin(),
        }
    }

    /// Sets at least `held_out_rows` rows apart: the last ones of files, the first ones of a text. Of a text, the other
    /// part is as long as it is estimated to be.
    pub fn split(&self, held_out_rows: u64) -> Result<Split> {
        Ok(match self {
            Self::Stored(acts) => acts.split(held_out_rows)?,
            Self::Streamed(rows, _) => rows.split(held_out_rows)?,
        })
    }

    /// Refuses a text without a whole batch to train on. The few rows of a file are repeated.
    pub fn require(&self, rows: u64) -> Result<()> {
        match self {
            Self::Stored(_) => Ok(()),
            Self::Streamed(stream, _) => Ok(stream.require(rows)?),
        }
    }

    /// Bytes of the copy that [`prepare`](Self::prepare) makes.
    pub fn copy_bytes(&self) -> u64 {
        match self {
            Self::Stored(acts) => acts.copy_bytes(),
            Self::Streamed(..) => 0,
        }
    }

    /// Bytes of memory beside the trainer's, about; `None` where they are more than can be counted.
    pub fn memory_bytes(&self, plan: &TrainPlan) -> Result<Option<u64>> {
        match self {
            Self::Stored(acts) => {
                let row_bytes = acts.dtype().row_bytes(acts.d_in()) as u64 + 16;
                let all = acts.n_rows().checked_mul(row_bytes);
                Ok(all.map(|all| all.min(plan.mix_memory_bytes)))
            }
            Self::Streamed(rows, _) => {
                let held_out = plan.held_out_rows.end.checked_mul(4 * rows.d_in() as u64);
                let reading = rows.needs(&stream_options(plan))?.memory_bytes;
                Ok(held_out.and_then(|held_out| held_out.checked_add(reading)))
            }
        }
    }

    /// Seconds that computing rows takes, about: the model shares the processor with the trainer.
    pub fn seconds(&self, plan: &TrainPlan) -> Result<f64> {
        match self {
            Self::Stored(_) => Ok(0.0),
            Self::Streamed(rows, _) => Ok(rows.needs(&stream_options(plan))?.seconds),
        }
    }

    /// Makes rows readable: files that cannot be read at positions are copied to `copy`, the held-out rows of a text
    /// are computed. `None` when stopped.
    pub fn prepare(self, plan: &TrainPlan, copy: &Path, progress: &dyn Progress, stop: &Stop) -> Result<Option<Self>> {
        match self {
            Self::Stored(acts) => match acts.prepare(copy, progress, stop)? {
                (Outcome::Finished, acts) => Ok(acts.map(|acts| Self::Stored(Box::new(acts)))),
                (Outcome::Stopped, _) => Ok(None),
            },
            Self::Streamed(rows, _) => {
                let wanted = plan.held_out_rows.end - plan.held_out_rows.start;
                progress.begin("held-out rows", None, "rows");
                let held = rows.hold_out(wanted, stop)?;
                progress.finish();
                Ok(held.map(|held| Self::Streamed(rows, held)))
            }
        }
    }

    /// All rows but the held-out ones in random order, from the beginning or from where an earlier reader was behind so
    /// many rows.
    pub fn reader(&self, plan: &TrainPlan, from: Option<(MixState, u64)>) -> Result<Box<dyn RowReader>> {
        match self {
            Self::Stored(acts) => {
                let options = MixOptions {
                    seed: plan.config.train.seed,
                    memory_bytes: plan.mix_memory_bytes,
                };
                let mut reader = acts.mixed(plan.train_rows.clone(), &options)?;
                if let Some((state, _)) = from {
                    reader.restore(state)?;
                }
                Ok(Box::new(reader))
            }
            Self::Streamed(rows, held) => Ok(Box::new(rows.mixed(held.contexts, &stream_options(plan), from)?)),
        }
    }

    /// Rows that say how large activations are and where their middle is, `[n, d_in]`: spread over files; the first ones
    /// to be trained on of a text, which are mixed. `None` when stopped.
    pub fn sample(&self, plan: &TrainPlan, batches: &mut ReadAhead, stop: &Stop) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Stored(acts) => start::sample(acts, plan.train_rows.clone()).map(Some),
            Self::Streamed(..) => batches.peek(start::SAMPLE_ROWS, stop),
        }
    }

    /// Reads some of the held-out rows, numbered as [`split`](Self::split) does, into `out: [rows, d_in]`.
    pub fn read_held_out(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Stored(acts) => Ok(acts.read_rows(rows, out)?),
            Self::Streamed(stream, held) => {
                let at = rows.start as usize * stream.d_in();
                let Some(values) = held.acts.get(at..at + out.len()) else {
                    return Err(Error::Invalid(format!(
                        "{}: has fewer rows than when the run was planned: the text was changed meanwhile",
                        self.name()
                    )));
                };
                out.copy_from_slice(values);
                Ok(())
            }
        }
    }
}

/// How a stream is mixed.
fn stream_options(plan: &TrainPlan) -> StreamOptions {
    StreamOptions {
        seed: plan.config.train.seed,
        memory_bytes: plan.mix_memory_bytes,
        batch: plan.batch,
        rows: plan.tokens(),
    }
}
