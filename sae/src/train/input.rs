//! What a run trains on: activations that lie somewhere, or those of a model over a text as it computes them.
//!
//! The one place where the two differ. A run asks for the same things of both: rows of a width, some of them apart to
//! measure on, a first sample, and all others in random order from any state on.

use std::ops::Range;
use std::path::{Path, PathBuf};

use activations::harvest::{self, HeldOut, RowStream, StreamOptions};
use activations::hub::Hub;
use activations::model::Transformer;
use activations::source::{Activations, Joined, MixOptions, MixState, Origin, RowReader, Split};
use activations::store::Store;
use activations::{Outcome, Progress, Stop};

use super::read_ahead::ReadAhead;
use super::sides::Sides;
use super::watch::Since;
use super::{COPY, TrainPlan, start};
use crate::config::{DataConfig, RunConfig};
use crate::dictionary::Place;
use crate::error::{Error, Result};

/// What a run trains on.
pub struct Input {
    source: Source,
    /// What of a row is read and what is written.
    sides: Sides,
}

/// Where rows come from.
enum Source {
    /// Activations in files.
    Stored(Box<Joined>),
    /// A model over a text, and the rows to measure on once they are computed.
    Streamed(Box<RowStream>, HeldOut),
}

impl Input {
    /// Opens what `config` names: `data.acts`, or `data.model` and `data.text`. Of a hub's model the files are fetched.
    pub fn open(config: &RunConfig, progress: &dyn Progress) -> Result<Self> {
        config.validate()?;
        let data = &config.data;
        match (&data.acts, &data.model) {
            (Some(acts), _) => stored(data, acts),
            (None, Some(model)) => streamed(config, model, progress),
            (None, None) => Err(Error::config(
                "data.acts",
                "is missing: name a store's directory, or a .npy, .safetensors, .parquet or dataset; or a model with \
                 data.model and its text with data.text",
            )),
        }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match &self.source {
            Source::Stored(acts) => acts.name(),
            Source::Streamed(rows, _) => rows.name(),
        }
    }

    /// What of a row is read and what is written.
    pub fn sides(&self) -> &Sides {
        &self.sides
    }

    /// Whether a model computes the rows meanwhile.
    pub fn is_streamed(&self) -> bool {
        matches!(self.source, Source::Streamed(..))
    }

    /// Number of rows; of a text, about.
    pub fn n_rows(&self) -> u64 {
        match &self.source {
            Source::Stored(acts) => acts.n_rows(),
            Source::Streamed(rows, _) => rows.n_rows(),
        }
    }

    /// Where the rows come from.
    pub fn origin(&self) -> Origin {
        match &self.source {
            Source::Stored(acts) => acts.origin(),
            Source::Streamed(rows, _) => rows.origin(),
        }
    }

    /// Sets at least `held_out_rows` rows apart: the last ones of files, the first ones of a text. Of a text, the other
    /// part is as long as it is estimated to be.
    pub fn split(&self, held_out_rows: u64) -> Result<Split> {
        Ok(match &self.source {
            Source::Stored(acts) => acts.split(held_out_rows)?,
            Source::Streamed(rows, _) => rows.split(held_out_rows)?,
        })
    }

    /// Refuses a text without a whole batch to train on. The few rows of a file are repeated.
    pub fn require(&self, rows: u64) -> Result<()> {
        match &self.source {
            Source::Stored(_) => Ok(()),
            Source::Streamed(stream, _) => Ok(stream.require(rows)?),
        }
    }

    /// Bytes of the copy that [`prepare`](Self::prepare) makes.
    pub fn copy_bytes(&self) -> u64 {
        match &self.source {
            Source::Stored(acts) => acts.copy_bytes(),
            Source::Streamed(..) => 0,
        }
    }

    /// Bytes of these copies that are in `dir` already, finished or not.
    pub fn copied_bytes(&self, dir: &Path) -> u64 {
        let Source::Stored(acts) = &self.source else { return 0 };
        let copies = (0..acts.parts().len()).map(|part| copy_of(dir, part));
        let files = copies.flat_map(|copy| [copy.with_added_extension("tmp"), copy]);
        files.map(|path| std::fs::metadata(path).map_or(0, |m| m.len())).sum()
    }

    /// Bytes of memory beside the trainer's, about; `None` where they are more than can be counted.
    pub fn memory_bytes(&self, plan: &TrainPlan) -> Result<Option<u64>> {
        match &self.source {
            Source::Stored(acts) => {
                let row_bytes = acts.row_bytes() + 16 * acts.parts().len() as u64;
                let all = acts.n_rows().checked_mul(row_bytes);
                Ok(all.map(|all| all.min(plan.mix_memory_bytes)))
            }
            Source::Streamed(rows, _) => {
                let held_out = plan.held_out_rows.end.checked_mul(4 * rows.d_in() as u64);
                let reading = rows.needs(&stream_options(plan))?.memory_bytes;
                Ok(held_out.and_then(|held_out| held_out.checked_add(reading)))
            }
        }
    }

    /// Seconds that computing rows takes, about: the model shares the processor with the trainer.
    pub fn seconds(&self, plan: &TrainPlan) -> Result<f64> {
        match &self.source {
            Source::Stored(_) => Ok(0.0),
            Source::Streamed(rows, _) => Ok(rows.needs(&stream_options(plan))?.seconds),
        }
    }

    /// Makes rows readable: files that cannot be read at positions are copied into `dir`, the held-out rows of a text
    /// are computed. `None` when stopped.
    pub fn prepare(self, plan: &TrainPlan, dir: &Path, progress: &dyn Progress, stop: &Stop) -> Result<Option<Self>> {
        let Self { source, sides } = self;
        let source = match source {
            Source::Stored(acts) => {
                let copies: Vec<PathBuf> = (0..acts.parts().len()).map(|part| copy_of(dir, part)).collect();
                match acts.prepare(&copies, progress, stop)? {
                    (Outcome::Finished, acts) => acts.map(|acts| Source::Stored(Box::new(acts))),
                    (Outcome::Stopped, _) => None,
                }
            }
            Source::Streamed(rows, _) => {
                let wanted = plan.held_out_rows.end - plan.held_out_rows.start;
                progress.begin("held-out rows", None, "rows");
                let held = rows.hold_out(wanted, stop)?;
                progress.finish();
                held.map(|held| Source::Streamed(rows, held))
            }
        };
        Ok(source.map(|source| Self { source, sides }))
    }

    /// All rows but the held-out ones in random order, from the beginning or from where an earlier reader was behind so
    /// many rows.
    pub fn reader(&self, plan: &TrainPlan, from: Option<(MixState, u64)>) -> Result<Box<dyn RowReader>> {
        match &self.source {
            Source::Stored(acts) => {
                let mut reader = acts.mixed(plan.train_rows.clone(), &mix_options(plan))?;
                if let Some((state, _)) = from {
                    reader.restore(state)?;
                }
                Ok(Box::new(reader))
            }
            Source::Streamed(rows, held) => Ok(Box::new(rows.mixed(held.contexts, &stream_options(plan), from)?)),
        }
    }

    /// Which rows the batch behind a state of the reader consists of, and the longest of them: for an error. They are
    /// computed again from the state, and read again.
    pub fn describe_batch(&self, plan: &TrainPlan, batch: Since) -> String {
        let described = match &self.source {
            Source::Stored(acts) => described(acts, plan, batch),
            Source::Streamed(..) => Ok(format!(
                "of the batch of step {} there is no more to say, since rows of a model over a text have no numbers",
                batch.step
            )),
        };
        described.unwrap_or_else(|error| format!("the batch of step {} cannot be read again: {error}", batch.step))
    }

    /// Rows that say how large activations are and where their middle is, `[n, width]`: spread over files; the first ones
    /// to be trained on of a text, which are mixed. `None` when stopped.
    pub fn sample(&self, plan: &TrainPlan, batches: &mut ReadAhead, stop: &Stop) -> Result<Option<Vec<f32>>> {
        match &self.source {
            Source::Stored(acts) => start::sample(acts, plan.train_rows.clone()).map(Some),
            Source::Streamed(..) => batches.peek(start::SAMPLE_ROWS, stop),
        }
    }

    /// Reads some of the held-out rows, numbered as [`split`](Self::split) does, into `out: [rows, width]`.
    pub fn read_held_out(&self, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        match &self.source {
            Source::Stored(acts) => Ok(acts.read_rows(rows, out)?),
            Source::Streamed(stream, held) => {
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

/// Opens activations in files: what is read, and what is written where that is something else.
fn stored(data: &DataConfig, acts: &Path) -> Result<Input> {
    let open = |key: &str, path: &Path, hook: Option<&str>| {
        Activations::open_as(path, hook, data.acts_dtype).map_err(|error| match error {
            // Named by its key: which of several hooks is not there.
            activations::Error::Invalid(problem) => Error::config(key, problem),
            other => other.into(),
        })
    };
    let mut parts = match &data.hooks {
        Some(hooks) => {
            let hooks = expanded(acts, hooks)?;
            let parts = hooks.iter().map(|hook| open("data.hooks", acts, Some(hook)));
            parts.collect::<Result<Vec<_>>>()?
        }
        None => vec![open("data.hook", acts, data.hook.as_deref())?],
    };
    let n_read = parts.len();
    let written = match (&data.target_acts, &data.target) {
        (None, None) => None,
        (Some(path), None) => {
            parts.push(open("data.target", path, None)?);
            Some(vec![n_read])
        }
        (elsewhere, Some(target)) => {
            let mut written = Vec::with_capacity(target.len());
            for hook in target {
                let there = parts.iter().position(|part| part.origin().hook.as_ref() == Some(hook));
                match there.filter(|_| elsewhere.is_none()) {
                    Some(part) => written.push(part),
                    None => {
                        parts.push(open("data.target", elsewhere.as_deref().unwrap_or(acts), Some(hook))?);
                        written.push(parts.len() - 1);
                    }
                }
            }
            Some(written)
        }
    };
    let place = |part: &Activations| Place {
        hook: part.origin().hook,
        width: part.d_in(),
    };
    let places: Vec<Place> = parts.iter().map(place).collect();
    Ok(Input {
        sides: Sides::new(&places, n_read, written.as_deref()),
        source: Source::Stored(Box::new(Joined::new(parts)?)),
    })
}

/// The hooks of a store that `data.hooks` names, patterns such as `blocks.*.hook_resid_post` put out.
fn expanded(acts: &Path, hooks: &[String]) -> Result<Vec<String>> {
    if !hooks.iter().any(|hook| hook.starts_with("blocks.*.")) {
        return Ok(hooks.to_vec());
    }
    let spec = Store::open(acts)?.manifest().spec.clone();
    let hooks = spec.expand_hooks(hooks);
    hooks.map_err(|error| Error::config("data.hooks", error.to_string()))
}

/// Opens a model over a text: all hooks in one pass.
fn streamed(config: &RunConfig, model: &str, progress: &dyn Progress) -> Result<Input> {
    let data = &config.data;
    let hub = Hub::from_env();
    let model = hub.find(model, progress)?;
    let about = Transformer::read_config(&model.path)?;
    let reads = data.reads();
    if reads.is_empty() {
        let problem = format!(
            "is missing: name where in the model to look; it has {}",
            about.hook_listing()
        );
        return Err(Error::config("data.hook", problem));
    }
    let expand = |names: &[String]| -> Result<Vec<String>> {
        Ok(about.expand_hooks(names)?.iter().map(ToString::to_string).collect())
    };
    let mut hooks = expand(&reads)?;
    let n_read = hooks.len();
    if data.hooks.is_none() && n_read != 1 {
        return Err(Error::config(
            "data.hook",
            format!("is one hook, {n_read} are asked for: a crosscoder's are listed in data.hooks"),
        ));
    }
    let mut written = None;
    if let Some(target) = &data.target {
        let numbers = expand(target)?.into_iter().map(|hook| {
            hooks.iter().position(|h| *h == hook).unwrap_or_else(|| {
                hooks.push(hook);
                hooks.len() - 1
            })
        });
        written = Some(numbers.collect::<Vec<_>>());
    }
    let mut options = config.harvest_options(&model, hooks)?;
    options.fetch_texts(&hub, progress)?;
    let rows = RowStream::new(harvest::plan(&options)?)?;
    let place = |(hook, width): &(String, usize)| Place {
        hook: Some(hook.clone()),
        width: *width,
    };
    let places: Vec<Place> = rows.hooks().iter().map(place).collect();
    Ok(Input {
        sides: Sides::new(&places, n_read, written.as_deref()),
        source: Source::Streamed(Box::new(rows), HeldOut::default()),
    })
}

/// In a run's directory, the copy of activations that cannot be read in place: of what is read first, and of other parts
/// with their number.
fn copy_of(dir: &Path, part: usize) -> PathBuf {
    match part {
        0 => dir.join(COPY),
        n => dir.join(format!("acts-{n}.safetensors")),
    }
}

/// What decides about the order of rows.
fn order_seed(plan: &TrainPlan) -> u64 {
    plan.config.data.seed.unwrap_or(plan.config.train.seed)
}

/// How rows of files are mixed.
fn mix_options(plan: &TrainPlan) -> MixOptions {
    MixOptions {
        seed: order_seed(plan),
        memory_bytes: plan.mix_memory_bytes,
    }
}

/// Rows that are named of a batch.
const NAMED: usize = 5;

/// What there is to say about the rows of a batch of activations in files.
fn described(acts: &Joined, plan: &TrainPlan, batch: Since) -> Result<String> {
    let numbers = acts.numbers(plan.train_rows.clone(), &mix_options(plan), batch.reader, plan.batch)?;
    let mut row = vec![0.0; acts.d_in()];
    let mut norms = Vec::with_capacity(numbers.len());
    for &number in &numbers {
        acts.read_rows(number..number + 1, &mut row)?;
        let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
        norms.push((square.sqrt(), number));
    }
    norms.sort_by(|a, b| a.0.total_cmp(&b.0));
    let named: Vec<String> = numbers.iter().take(NAMED).map(u64::to_string).collect();
    let others = match numbers.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} others"),
    };
    let longest = norms.last().map(|&(norm, number)| {
        let (name, median) = (acts.row_name(number), norms[norms.len() / 2].0);
        format!("; the longest of them is {name}, with norm {norm:.3e} where the median is {median:.3e}")
    });
    Ok(format!(
        "the batch of step {} was rows {}{others} of {}{}",
        batch.step,
        named.join(", "),
        acts.name(),
        longest.unwrap_or_default()
    ))
}

/// How a stream is mixed.
fn stream_options(plan: &TrainPlan) -> StreamOptions {
    StreamOptions {
        seed: order_seed(plan),
        memory_bytes: plan.mix_memory_bytes,
        batch: plan.batch,
        rows: plan.tokens(),
    }
}
