//! Training, in plain view: [`run`] is the loop, `Trainer::step` (`train/trainer.rs`) is what happens to a batch.
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
//! println!("{}", train::plan(&config)?);
//! let (_, summary) = train::run(&config, "runs/a".as_ref(), false, &Silent, &Stop::new())?;
//! # let _ = summary; Ok(()) }
//! ```

mod checkpoint;
mod curves;
mod dead;
mod evaluate;
mod log;
mod plan;
mod read_ahead;
mod run_dir;
mod schedule;
mod start;
mod trainer;

use std::path::Path;
use std::time::Instant;

use activations::source::{Activations, MixOptions};
use activations::{Outcome, Progress, Stop};
use serde::{Deserialize, Serialize};

use self::log::{Line, Timing};
pub use self::plan::TrainPlan;
use self::read_ahead::ReadAhead;
use self::run_dir::RunDir;
use self::trainer::{Step, Trainer};
use crate::config::RunConfig;
use crate::dictionary::{Calibration, DictionaryCard, HeldOut, Sae};
use crate::error::{Error, Result};

/// In a run's directory, the copy of activations that cannot be read in place: see [`Activations::prepare`].
pub const COPY: &str = "acts.safetensors";

/// What came out of a run: `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSummary {
    /// The activation function in training: `TopK(32)`.
    pub method: String,
    /// Width of an activation.
    pub d_in: usize,
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
    /// How the thresholds of the saved dictionary were set, where they were not learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// Opens the activations of `config`, fills in what it leaves open, and estimates what the run will take.
///
/// # Errors
/// [`Error::Config`] naming the key that does not fit the activations; what opening those gives.
pub fn plan(config: &RunConfig) -> Result<TrainPlan> {
    let acts = plan::open(config)?;
    TrainPlan::new(config, &acts)?.with_time()
}

/// Trains a dictionary into the directory `out`, from the beginning or, with `resume`, from its last checkpoint.
///
/// On [`Stop`] the present step is finished and a checkpoint written. A run that is finished already gives its summary.
///
/// # Errors
/// When `out` holds a run and `resume` is false; when it holds the run of another configuration or other data, with the
/// differences; [`Error::Invalid`] when the loss is not finite any more, naming the step and the last checkpoint; what
/// reading activations and writing files gives.
pub fn run(
    config: &RunConfig,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<(Outcome, Option<RunSummary>)> {
    let acts = plan::open(config)?;
    let plan = TrainPlan::new(config, &acts)?;
    let mut dir = RunDir::open(out, &plan, resume)?;
    if let Some(summary) = dir.finished()? {
        return Ok((Outcome::Finished, Some(summary)));
    }
    let device = plan.device()?;
    if plan.copy_bytes > 0 {
        // From here on there is a run to resume.
        dir.begin(&plan)?;
    }
    let (_, Some(acts)) = acts.prepare(&out.join(COPY), progress, stop)? else {
        return Ok((Outcome::Stopped, None));
    };
    let mut reader = acts.mixed(
        plan.train_rows.clone(),
        &MixOptions {
            seed: plan.config.train.seed,
            memory_bytes: plan.mix_memory_bytes,
        },
    )?;
    let saved = dir.checkpoint(&device, &plan)?;
    let (mut trainer, mut seconds) = match saved {
        Some((trainer, state)) => {
            reader.restore(state.reader)?;
            (trainer, state.seconds)
        }
        None => (Trainer::start(&plan, &acts, &device)?, 0.0),
    };
    dir.begin(&plan)?;
    let mut log = dir.log()?;

    progress.begin("train", Some(plan.tokens()), "tokens");
    progress.advance(trainer.steps_done() * plan.batch as u64);
    let mut batches = ReadAhead::new(reader, plan.batch);
    let (mut held_out, mut last) = (None, None);
    let mut clock = Instant::now();
    while trainer.steps_done() < plan.steps {
        if stop.requested() {
            seconds += clock.elapsed().as_secs_f64();
            dir.save(&trainer, batches.state(), seconds, &mut log)?;
            return Ok((Outcome::Stopped, None));
        }
        let x = batches.next_batch()?;
        let step = trainer.step(x)?;
        if !step.loss.is_finite() {
            return Err(diverged(&step, &dir, out));
        }
        progress.advance(plan.batch as u64);

        let done = trainer.steps_done();
        let due = |every: u64| done.is_multiple_of(every) || done == plan.steps;
        if due(plan.eval_every) {
            let measured = measure(&trainer, &acts, &plan)?;
            held_out = Some(measured.held_out);
            // Kept for the end alone: it shares the parameters, which are updated in place while nobody does.
            last = Some(measured).filter(|_| done == plan.steps);
        }
        if due(plan.log_every) || due(plan.eval_every) {
            let measured = held_out.filter(|_| due(plan.eval_every));
            progress.note(&note(&step, held_out));
            log.metrics(&Line::new(&step, done, &plan, batches.state().epoch, measured))?;
            let elapsed = seconds + clock.elapsed().as_secs_f64();
            log.timing(&Timing::new(done, &plan, elapsed))?;
        }
        if due(plan.eval_every) {
            curves::draw(out)?;
        }
        if due(plan.checkpoint_every) {
            seconds += clock.elapsed().as_secs_f64();
            clock = Instant::now();
            dir.save(&trainer, batches.state(), seconds, &mut log)?;
        }
    }
    // A run that was killed behind its last checkpoint comes here without a step.
    let measured = last.map_or_else(|| measure(&trainer, &acts, &plan), Ok)?;
    let summary = finish(measured, &acts, &plan, out, seconds)?;
    progress.finish();
    Ok((Outcome::Finished, Some(summary)))
}

/// The dictionary as it would be saved now, and its quality.
struct Measured {
    sae: Sae,
    calibration: Option<Calibration>,
    held_out: HeldOut,
}

fn measure(trainer: &Trainer, acts: &Activations, plan: &TrainPlan) -> Result<Measured> {
    let (sae, calibration) = evaluate::inference(trainer.dictionary(), acts, plan)?;
    let held_out = evaluate::held_out(&sae, acts, plan)?;
    Ok(Measured {
        sae,
        calibration,
        held_out,
    })
}

/// Writes the dictionary with its card, and the summary last: it says that the run is finished.
fn finish(measured: Measured, acts: &Activations, plan: &TrainPlan, out: &Path, seconds: f64) -> Result<RunSummary> {
    let Measured {
        sae,
        calibration,
        held_out,
    } = measured;
    let origin = acts.origin();
    let card = DictionaryCard {
        version: DictionaryCard::VERSION,
        d_in: plan.d_in,
        d_sae: plan.d_sae,
        sparsifier: sae.sparsifier,
        calibration,
        hook: origin.hook,
        model: origin.model,
        corpus: origin.corpus,
        trained_tokens: plan.tokens(),
        seed: plan.config.train.seed,
        held_out: Some(held_out),
    };
    sae.save(out, &card)?;
    curves::draw(out)?;
    let summary = RunSummary {
        method: plan.config.sparsifier().name(),
        d_in: plan.d_in,
        d_sae: plan.d_sae,
        steps: plan.steps,
        tokens: plan.tokens(),
        seconds,
        held_out,
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
