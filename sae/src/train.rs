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
//! let (_, summaries) = training.run("runs/a".as_ref(), false, &Silent, &Stop::new())?;
//! # let _ = summaries; Ok(()) }
//! ```

mod average;
mod checkpoint;
mod course;
mod curves;
mod dead;
mod density;
mod evaluate;
pub mod follow;
mod init;
mod initial;
mod input;
mod laps;
mod learner;
mod log;
mod member;
mod plan;
mod quadratic;
mod read_ahead;
mod resample;
mod run_dir;
pub mod runs;
mod schedule;
mod sides;
pub(crate) mod start;
mod timed;
mod trainer;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use activations::{Outcome, Progress, Silent, Stop};
use serde::{Deserialize, Serialize};

pub(crate) use self::density::Zipf;
use self::init::Init;
use self::input::Input;
pub use self::laps::{Part, Parts};
use self::learner::Learner;
use self::member::{Member, Moment};
pub use self::plan::TrainPlan;
use self::read_ahead::ReadAhead;
use self::run_dir::RunDir;
pub use self::timed::{Times, Timing};
use crate::config::{GRID_TOML, Grid, RunConfig};
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
    Ok(Training::open(config, &Silent)?.with_time()?.plan().clone())
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
    let (outcome, summaries) = Training::open(config, progress)?.run(out, resume, progress, stop)?;
    let summary = summaries.and_then(|mut all| all.pop());
    Ok((outcome, summary.map(|(_, summary)| summary)))
}

/// Runs that can start: their activations, or model and text, are open and fit the configurations.
pub struct Training {
    plans: Vec<(String, TrainPlan)>,
    /// What a grid's runs were written as; nothing of a single run.
    grid: Option<String>,
    input: Input,
}

/// What came out of each run of a grid: the name of its directory, and its summary.
pub type Summaries = Vec<(String, RunSummary)>;

impl Training {
    /// Opens what `config` names and fills in what it leaves open. `progress` is for a model that has to be fetched.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that does not fit the activations; what opening those, or model and text, gives.
    pub fn open(config: &RunConfig, progress: &dyn Progress) -> Result<Self> {
        Self::open_grid(&config.clone().into(), progress)
    }

    /// As [`open`](Self::open), of every run of a grid.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_grid(grid: &Grid, progress: &dyn Progress) -> Result<Self> {
        let mut runs = grid.runs.clone();
        let inits = inits(&mut runs)?;
        let (_, first) = runs.first().ok_or_else(|| Error::Invalid("a grid of no runs".into()))?;
        let input = Input::open(first, progress)?;
        let plan = |(name, config): &(String, RunConfig)| {
            let init = config.sae.init.as_ref().and_then(|dir| inits.get(dir));
            Ok((name.clone(), TrainPlan::new(config, &input, init)?))
        };
        let plans = runs.iter().map(plan).collect::<Result<_>>()?;
        Ok(Self {
            plans,
            grid: (!grid.is_single()).then(|| grid.to_toml().to_owned()),
            input,
        })
    }

    /// Measures how fast this machine is, for the plans' estimates of the time.
    ///
    /// # Errors
    /// When the device cannot be had.
    pub fn with_time(mut self) -> Result<Self> {
        for (_, plan) in &mut self.plans {
            *plan = plan.clone().with_time(&self.input)?;
        }
        Ok(self)
    }

    /// Bytes of the copies of activations that an earlier call made in the directory `out`, finished or not.
    pub fn copied_bytes(&self, out: &Path) -> u64 {
        self.input.copied_bytes(out)
    }

    /// What the run will do; of a grid the first one.
    pub fn plan(&self) -> &TrainPlan {
        &self.plans[0].1
    }

    /// What each run will do, with the name of its directory; a single run has none.
    pub fn plans(&self) -> &[(String, TrainPlan)] {
        &self.plans
    }

    /// Trains a dictionary into the directory `out`, from the beginning or, with `resume`, from its last checkpoint; those of
    /// a grid on the same batches, into directories of their names in `out`.
    ///
    /// On [`Stop`] the present step is finished and a checkpoint written. A run that is finished already gives its
    /// summary. A dictionary of a grid that diverges does not stop the others.
    ///
    /// # Errors
    /// When `out` holds a run and `resume` is false; when it holds the run of another configuration or other data, with
    /// the differences; [`Error::Invalid`] when training diverges, naming the step, the rows of its batch and the last
    /// checkpoint; what reading or computing activations and writing files gives.
    pub fn run(
        self,
        out: &Path,
        resume: bool,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<(Outcome, Option<Summaries>)> {
        let Self { plans, grid, input } = self;
        let plan = &plans[0].1;
        let grid = grid.map(|text| (out.join(GRID_TOML), text));
        if let Some((path, _)) = grid.as_ref().filter(|(path, _)| !resume && path.exists()) {
            return Err(Error::bad_file(
                path,
                "is a grid's that was begun here: continue it with --resume, or name another directory with --out",
            ));
        }
        let mut finished = Summaries::new();
        let mut waiting = Vec::new();
        for (name, plan) in &plans {
            let out = if name.is_empty() {
                out.to_owned()
            } else {
                out.join(name)
            };
            // A grid that was killed early has not begun all of its runs.
            let resume = resume && (name.is_empty() || RunDir::is_run(&out));
            let dir = RunDir::open(&out, plan, resume)?;
            match dir.finished()? {
                Some(summary) => finished.push((name.clone(), summary)),
                None => waiting.push(Waiting { name, plan, out, dir }),
            }
        }
        if waiting.is_empty() {
            return Ok((Outcome::Finished, Some(finished)));
        }
        let device = plan.device()?;
        let begin = |waiting: &[Waiting]| {
            if let Some((path, text)) = &grid {
                std::fs::create_dir_all(out).map_err(Error::io(out))?;
                activations::atomic::write(path, text.as_bytes())?;
            }
            waiting.iter().try_for_each(|w| w.dir.begin(w.plan))
        };
        let stopped = |waiting: &[Waiting]| begin(waiting).map(|()| (Outcome::Stopped, None));
        if plan.copy_bytes > 0 {
            // From here on there is a run to resume.
            begin(&waiting)?;
        }
        let Some(input) = input.prepare(plan, out, progress, stop)? else {
            return stopped(&waiting);
        };
        evaluate::refuse_equal(&input, plan)?;
        let saved = waiting.iter().map(|w| w.dir.checkpoint(&device, w.plan));
        let saved: Vec<_> = saved.collect::<Result<_>>()?;
        // Killed while checkpoints were written, some runs are ahead of others, and wait for them.
        let least = saved
            .iter()
            .min_by_key(|s| s.as_ref().map_or(0, |(learner, _)| learner.steps_done()));
        let least = least.and_then(Option::as_ref);
        let done = least.map_or(0, |(learner, _)| learner.steps_done());
        let from = least.map(|(_, state)| (state.reader, done * plan.batch as u64));
        let seconds = least.map_or(0.0, |(_, state)| state.seconds);
        let mut batches = ReadAhead::new(input.reader(plan, from)?, plan.batch, plan.steps.saturating_sub(done));

        let clock = Instant::now();
        progress.begin("train", Some(plan.tokens()), "tokens");
        progress.advance(done * plan.batch as u64);
        if plan.streamed {
            progress.note("the model fills the pool");
        }
        let sample = match saved.iter().any(Option::is_none) {
            false => Vec::new(),
            true => match input.sample(plan, &mut batches, stop)? {
                Some(sample) => sample,
                None => return stopped(&waiting),
            },
        };
        let start = |(w, saved): (&Waiting, _)| match saved {
            Some((learner, _)) => Ok(learner),
            None => Learner::start(w.plan, &sample, &device),
        };
        let learners: Vec<Learner> = waiting.iter().zip(saved).map(start).collect::<Result<_>>()?;
        // Nothing can be refused any more.
        begin(&waiting)?;
        let members = waiting.into_iter().zip(learners);
        let members = members.map(|(w, learner)| Member::new(w.plan, w.out, w.name, w.dir, learner));
        let members = members.collect::<Result<_>>()?;
        let mut run = Run {
            plan,
            input: &input,
            members,
            failed: None,
            batches,
            done,
            seconds,
            clock,
        };
        if run.steps(progress, stop)? == Outcome::Stopped {
            return Ok((Outcome::Stopped, None));
        }
        finished.extend(run.finish()?);
        // As they were asked for.
        finished.sort_by_key(|(name, _)| plans.iter().position(|(n, _)| n == name));
        progress.finish();
        Ok((Outcome::Finished, Some(finished)))
    }
}

/// The dictionaries that `runs` go on from, by their directories, which fill in what the runs leave open.
fn inits(runs: &mut [(String, RunConfig)]) -> Result<BTreeMap<PathBuf, Init>> {
    let mut inits = BTreeMap::new();
    for dir in runs.iter().filter_map(|(_, config)| config.sae.init.as_ref()) {
        if !inits.contains_key(dir) {
            inits.insert(dir.clone(), Init::open(dir)?);
        }
    }
    // All have the same data.
    let first = runs.iter().find_map(|(_, config)| inits.get(config.sae.init.as_ref()?));
    if let (Some(first), Some((_, config))) = (first, runs.first()) {
        let mut data = config.data.clone();
        first.fill_hooks(&mut data);
        let (hook, hooks, target) = (data.hook, data.hooks, data.target);
        for (_, config) in runs.iter_mut() {
            config.data.hook.clone_from(&hook);
            config.data.hooks.clone_from(&hooks);
            config.data.target.clone_from(&target);
        }
    }
    for (_, config) in runs {
        if let Some(init) = config.sae.init.as_ref().and_then(|dir| inits.get(dir)) {
            init.fill(config)?;
        }
    }
    Ok(inits)
}

/// A run that has not begun, or goes on from where it was.
struct Waiting<'a> {
    name: &'a str,
    plan: &'a TrainPlan,
    out: PathBuf,
    dir: RunDir,
}

/// Runs on their way, on one stream of batches.
struct Run<'a> {
    /// What decides about the stream, which all of them share.
    plan: &'a TrainPlan,
    input: &'a Input,
    members: Vec<Member<'a>>,
    /// Why the first run that could not go on did not.
    failed: Option<Error>,
    batches: ReadAhead,
    /// Batches that all members have seen.
    done: u64,
    /// Of the loop, before it began this time.
    seconds: f64,
    /// Since then.
    clock: Instant,
}

impl<'a> Run<'a> {
    /// The loop.
    fn steps(&mut self, progress: &dyn Progress, stop: &Stop) -> Result<Outcome> {
        let plan = self.plan;
        while self.done < plan.steps {
            let Some(x) = self.batches.next_batch(stop)? else {
                self.save(true)?;
                return Ok(Outcome::Stopped);
            };
            self.step(x)?;
            progress.advance(plan.batch as u64);
            if self.done.is_multiple_of(plan.log_every) || self.done == plan.steps {
                let notes: Vec<String> = self.members.iter().map(Member::note).collect();
                progress.note(&notes.join("   "));
            }
            if self.done.is_multiple_of(plan.checkpoint_every) || self.done == plan.steps {
                self.save(false)?;
            }
        }
        Ok(Outcome::Finished)
    }

    /// A batch for everybody who has not seen it.
    fn step(&mut self, x: Vec<f32>) -> Result<()> {
        let now = self.now();
        let (done, input) = (self.done, self.input);
        let waiting = self.members.iter().filter(|member| member.done() == done).count();
        // The last one takes the batch itself.
        let mut batches = std::iter::repeat_n(x, waiting);
        self.each(|member| match member.done() > done {
            true => Ok(()),
            false => member.step(batches.next().expect("a batch for each who waits"), input, now),
        })?;
        self.done += 1;
        Ok(())
    }

    /// Does something with each of the members. Those that fail leave, and the others go on.
    fn each(&mut self, mut act: impl FnMut(&mut Member<'a>) -> Result<()>) -> Result<()> {
        let failed = &mut self.failed;
        self.members
            .retain_mut(|member| act(member).map_err(|error| failed.get_or_insert(error)).is_ok());
        match self.members.is_empty() {
            true => Err(self.failed.take().expect("a run that does not go on says why")),
            false => Ok(()),
        }
    }

    fn now(&self) -> Moment {
        Moment {
            before: self.batches.before(),
            reader: self.batches.state(),
            seconds: self.seconds + self.clock.elapsed().as_secs_f64(),
        }
    }

    /// Writes checkpoints of all who are where the reader is and, unless the run `stops` here, show no sign of exploding.
    fn save(&mut self, stops: bool) -> Result<()> {
        let (now, done, input) = (self.now(), self.done, self.input);
        self.each(
            |member| match member.done() == done && (stops || !member.is_suspect()) {
                true => member.save(input, now),
                false => Ok(()),
            },
        )
    }

    /// What came out of each, if all went well.
    fn finish(&mut self) -> Result<Summaries> {
        let seconds = self.now().seconds;
        let mut summaries = Summaries::new();
        for member in &mut self.members {
            summaries.push((member.name.to_owned(), member.finish(self.input, seconds)?));
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(summaries),
        }
    }
}

#[cfg(test)]
mod tests;
