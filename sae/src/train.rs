//! Training, in plain view: `Run::steps` is the loop, `Trainer::step` (`train/trainer.rs`) is what happens to a batch.
//!
//! The one decision: **a run is a pure function of its `run.toml` and its data.** Everything that the loop carries from
//! step to step (parameters, moments, where the reader is, how long each latent has been silent) is in the checkpoint,
//! so a run that was interrupted goes on to the same bytes in `metrics.jsonl` and in the dictionary. What depends on
//! the clock is in `timings.jsonl`.
//!
//! ```no_run
//! # fn main() -> sae::Result<()> {
//! use activations::{Silent, Stop};
//! use sae::{config::RunConfig, train};
//! let config = RunConfig::from_toml("[data]\nacts = \"acts\"", &[])?;
//! let training = train::Training::open(&config, &Silent)?.with_time()?;
//! println!("{}", training.plan());
//! let (_, summary) = training.run("runs/a".as_ref(), false, &Silent, &Stop::new())?;
//! # let _ = summary; Ok(()) }
//! ```

mod checkpoint;
mod course;
mod curves;
mod dead;
mod density;
mod evaluate;
mod input;
mod learner;
mod log;
mod plan;
mod quadratic;
mod read_ahead;
mod run_dir;
pub mod runs;
mod schedule;
mod sides;
mod start;
mod trainer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use activations::{Outcome, Progress, Silent, Stop};
use serde::{Deserialize, Serialize};

pub(crate) use self::density::Zipf;
use self::input::Input;
use self::learner::{Learner, Measured};
use self::log::{Line, Log, Timing};
pub use self::plan::TrainPlan;
use self::read_ahead::ReadAhead;
use self::run_dir::RunDir;
use self::trainer::Step;
use crate::config::RunConfig;
use crate::dictionary::{Calibration, HeldOut};
use crate::error::{Error, Result};

/// In a run's directory, the copy of activations that cannot be read in place: see
/// [`prepare`](activations::source::Activations::prepare).
pub const COPY: &str = "acts.safetensors";

/// What came out of a run: `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSummary {
    /// The activation function in training: `TopK(32)`.
    pub method: String,
    /// Width of an activation that is read, all places together.
    pub d_in: usize,
    /// Width of an activation that is written, where that is something else than what is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_out: Option<usize>,
    /// Number of latents.
    pub d_sae: usize,
    /// Steps taken.
    pub steps: u64,
    /// Tokens seen, repetitions counted.
    pub tokens: u64,
    /// Wall-clock time of the loop, interruptions left out.
    pub seconds: f64,
    /// Quality on the held-out rows, of the dictionary as it is saved.
    pub held_out: HeldOut,
    /// The FVU of each hook on the same rows, where several are written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fvu_by_hook: BTreeMap<String, f64>,
    /// How the thresholds of the saved dictionary were set, where they were not learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// Opens the activations of `config`, fills in what it leaves open, and estimates what the run will take.
///
/// # Errors
/// As [`Training::open`].
pub fn plan(config: &RunConfig) -> Result<TrainPlan> {
    Ok(Training::open(config, &Silent)?.with_time()?.plan)
}

/// Trains a dictionary into the directory `out`: [`Training::run`] of what `config` names.
///
/// # Errors
/// As [`Training::open`] and [`Training::run`].
pub fn run(
    config: &RunConfig,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<(Outcome, Option<RunSummary>)> {
    Training::open(config, progress)?.run(out, resume, progress, stop)
}

/// A run that can start: its activations, or model and text, are open and fit the configuration.
pub struct Training {
    plan: TrainPlan,
    input: Input,
}

impl Training {
    /// Opens what `config` names and fills in what it leaves open. `progress` is for a model that has to be fetched.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that does not fit the activations; what opening those, or model and text, gives.
    pub fn open(config: &RunConfig, progress: &dyn Progress) -> Result<Self> {
        let input = Input::open(config, progress)?;
        let plan = TrainPlan::new(config, &input)?;
        Ok(Self { plan, input })
    }

    /// Measures how fast this machine is, for the plan's estimate of the time.
    ///
    /// # Errors
    /// When the device cannot be had.
    pub fn with_time(mut self) -> Result<Self> {
        self.plan = self.plan.with_time(&self.input)?;
        Ok(self)
    }

    /// Bytes of the copies of activations that an earlier call made in the directory `out`, finished or not.
    pub fn copied_bytes(&self, out: &Path) -> u64 {
        self.input.copied_bytes(out)
    }

    /// What the run will do.
    pub fn plan(&self) -> &TrainPlan {
        &self.plan
    }

    /// Trains a dictionary into the directory `out`, from the beginning or, with `resume`, from its last checkpoint.
    ///
    /// On [`Stop`] the present step is finished and a checkpoint written. A run that is finished already gives its
    /// summary.
    ///
    /// # Errors
    /// When `out` holds a run and `resume` is false; when it holds the run of another configuration or other data, with
    /// the differences; [`Error::Invalid`] when the loss is not finite any more, naming the step and the last
    /// checkpoint; what reading or computing activations and writing files gives.
    pub fn run(
        self,
        out: &Path,
        resume: bool,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<(Outcome, Option<RunSummary>)> {
        let Self { plan, input } = self;
        let dir = RunDir::open(out, &plan, resume)?;
        if let Some(summary) = dir.finished()? {
            return Ok((Outcome::Finished, Some(summary)));
        }
        let device = plan.device()?;
        if plan.copy_bytes > 0 {
            // From here on there is a run to resume.
            dir.begin(&plan)?;
        }
        let stopped = |dir: &RunDir| dir.begin(&plan).map(|()| (Outcome::Stopped, None));
        let Some(input) = input.prepare(&plan, out, progress, stop)? else {
            return stopped(&dir);
        };
        let saved = dir.checkpoint(&device, &plan)?;
        let done = saved.as_ref().map_or(0, |(learner, _)| learner.steps_done());
        let from = saved
            .as_ref()
            .map(|(_, state)| (state.reader, done * plan.batch as u64));
        let mut batches = ReadAhead::new(input.reader(&plan, from)?, plan.batch, plan.steps.saturating_sub(done));

        let clock = Instant::now();
        progress.begin("train", Some(plan.tokens()), "tokens");
        progress.advance(done * plan.batch as u64);
        if plan.streamed {
            progress.note("the model fills the pool");
        }
        let (learner, seconds) = match saved {
            Some((learner, state)) => (learner, state.seconds),
            None => match input.sample(&plan, &mut batches, stop)? {
                Some(sample) => (Learner::start(&plan, &sample, &device)?, 0.0),
                None => return stopped(&dir),
            },
        };
        dir.begin(&plan)?;
        let log = dir.log()?;
        let mut run = Run {
            plan: &plan,
            input: &input,
            out,
            dir,
            learner,
            batches,
            log,
            seconds,
            clock,
        };
        let (outcome, last) = run.steps(progress, stop)?;
        if outcome == Outcome::Stopped {
            return Ok((outcome, None));
        }
        // A run that was killed behind its last checkpoint comes here without a step.
        let measured = last.map_or_else(|| run.learner.measure(&input, &plan), Ok)?;
        let summary = finish(measured, &input, &plan, out, run.seconds)?;
        progress.finish();
        Ok((outcome, Some(summary)))
    }
}

/// A run on its way.
struct Run<'a> {
    plan: &'a TrainPlan,
    input: &'a Input,
    out: &'a Path,
    dir: RunDir,
    learner: Learner,
    batches: ReadAhead,
    log: Log,
    /// Of the run, up to the last checkpoint.
    seconds: f64,
    /// Since then.
    clock: Instant,
}

impl Run<'_> {
    /// The loop. Gives what was measured behind its last step, if it took one.
    fn steps(&mut self, progress: &dyn Progress, stop: &Stop) -> Result<(Outcome, Option<Measured>)> {
        let plan = self.plan;
        let (mut held_out, mut last) = (None, None);
        let mut fvu_by_hook = BTreeMap::new();
        while self.learner.steps_done() < plan.steps {
            let Some(x) = self.batches.next_batch(stop)? else {
                self.save()?;
                return Ok((Outcome::Stopped, None));
            };
            let step = self.learner.step(x, plan)?;
            if !step.loss.is_finite() {
                return Err(diverged(&step, &self.dir, self.out));
            }
            progress.advance(plan.batch as u64);

            let done = self.learner.steps_done();
            let due = |every: u64| done.is_multiple_of(every) || done == plan.steps;
            if due(plan.eval_every) {
                let measured = self.learner.measure(self.input, plan)?;
                held_out = Some(measured.held_out);
                fvu_by_hook.clone_from(&measured.fvu_by_hook);
                // Kept for the end alone: it shares the parameters, which are updated in place while nobody does.
                last = Some(measured).filter(|_| done == plan.steps);
            }
            if due(plan.log_every) || due(plan.eval_every) {
                let measured = held_out.filter(|_| due(plan.eval_every));
                progress.note(&note(&step, held_out));
                let epoch = self.batches.state().epoch;
                let mut line = Line::new(&step, done, plan, epoch, measured);
                line.fvu_by_hook = std::mem::take(&mut fvu_by_hook);
                self.log.metrics(&line)?;
                let elapsed = self.seconds + self.clock.elapsed().as_secs_f64();
                self.log.timing(&Timing::new(done, plan, elapsed))?;
            }
            if due(plan.eval_every) {
                curves::draw(self.out)?;
            }
            if due(plan.checkpoint_every) {
                self.save()?;
            }
        }
        Ok((Outcome::Finished, last))
    }

    /// Writes a checkpoint.
    fn save(&mut self) -> Result<()> {
        self.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        self.dir
            .save(&self.learner, self.batches.state(), self.seconds, &mut self.log)
    }
}

/// Writes the dictionary with its card, and the summary last: it says that the run is finished.
fn finish(measured: Measured, input: &Input, plan: &TrainPlan, out: &Path, seconds: f64) -> Result<RunSummary> {
    let Measured {
        trained,
        calibration,
        held_out,
        fvu_by_hook,
    } = measured;
    trained.save(out, plan, input, calibration, held_out)?;
    curves::draw(out)?;
    let summary = RunSummary {
        method: plan.method_name(),
        d_in: plan.d_in(),
        d_out: (!plan.sides.same()).then(|| plan.d_out()),
        d_sae: plan.d_sae,
        steps: plan.steps,
        tokens: plan.tokens(),
        seconds,
        held_out,
        fvu_by_hook,
        calibration,
    };
    run_dir::write_summary(out, &summary)?;
    Ok(summary)
}

/// The short text beside the progress bar.
fn note(step: &Step, held_out: Option<HeldOut>) -> String {
    let dead = 100.0 * step.dead_share;
    match held_out {
        Some(h) => format!("fvu {:.4}  l0 {:.1}  dead {dead:.1}%", h.fvu, h.l0),
        None => format!("loss {:.4}  l0 {:.1}  dead {dead:.1}%", step.loss, step.l0),
    }
}

/// What to say when the loss is not a number any more.
fn diverged(step: &Step, dir: &RunDir, out: &Path) -> Error {
    let last = match dir.last_checkpoint() {
        Some(n) => format!(
            "the last good checkpoint is of step {n} in {}",
            out.join("checkpoint").display()
        ),
        None => "there is no checkpoint yet".into(),
    };
    Error::Invalid(format!(
        "the loss is {} at step {} (learning rate {:.1e}): training diverged; {last}. Try a smaller train.lr or a longer \
         train.warmup_steps",
        step.loss, step.number, step.lr
    ))
}

#[cfg(test)]
mod tests;
