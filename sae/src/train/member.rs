//! One dictionary on its way: its state, its directory and its log. A run has one, a grid several on the same batches.

use std::collections::BTreeMap;
use std::path::PathBuf;

use activations::source::MixState;

use super::input::Input;
use super::learner::{Learner, Measured};
use super::log::{Line, Log, Timing};
use super::run_dir::{self, CHECKPOINT, RunDir};
use super::trainer::{Step, usable};
use super::watch::{Since, Watch};
use super::{RunSummary, TrainPlan, curves};
use crate::dictionary::HeldOut;
use crate::error::{Error, Result};

/// One dictionary in training.
pub struct Member<'a> {
    pub plan: &'a TrainPlan,
    /// Its directory.
    pub out: PathBuf,
    /// What to call it beside others; nothing alone.
    pub name: &'a str,
    dir: RunDir,
    learner: Learner,
    log: Log,
    held_out: Option<HeldOut>,
    /// What was measured behind the last step.
    last: Option<Measured>,
    note: String,
    /// Whether training comes apart.
    watch: Watch,
}

/// When something happened: where the reader was before the batch and behind it, and the time of the loop so far.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub before: MixState,
    pub reader: MixState,
    pub seconds: f64,
}

impl<'a> Member<'a> {
    /// Goes on in `out`, the directory of the run, whose log is cut back to the last checkpoint.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(plan: &'a TrainPlan, out: PathBuf, name: &'a str, dir: RunDir, learner: Learner) -> Result<Self> {
        Ok(Self {
            plan,
            out,
            name,
            log: dir.log()?,
            watch: dir.watch(),
            dir,
            learner,
            held_out: None,
            last: None,
            note: String::new(),
        })
    }

    /// Steps taken.
    pub fn done(&self) -> u64 {
        self.learner.steps_done()
    }

    /// The short text beside the progress bar.
    pub fn note(&self) -> String {
        match self.name {
            "" => self.note.clone(),
            name => format!("{name}: {}", self.note),
        }
    }

    /// A step on a batch, and what is due behind it: measuring, a line of the log, curves.
    ///
    /// # Errors
    /// [`Error::Invalid`] when training diverges, naming the step, the rows of its batch and the last checkpoint; what
    /// measuring and writing give.
    pub fn step(&mut self, x: Vec<f32>, input: &Input, now: Moment) -> Result<()> {
        let plan = self.plan;
        let step = self.learner.step(x, plan)?;
        let here = Since {
            step: step.number,
            reader: now.before,
        };
        if !step.is_taken() {
            let what = match step.gradient_norm {
                Some(norm) if usable(step.loss) => format!("the norm of the gradients is {norm}"),
                _ => format!("the loss is {}", step.loss),
            };
            return Err(self.diverged(&format!("{what} at step {}", step.number), here, input));
        }
        let factor = plan.config.train.explosion;
        if self.watch.sees(step.error, factor, here) {
            let since = self.watch.since.unwrap_or(here);
            let reference = self.watch.reference.unwrap_or(1.0);
            let what = format!(
                "the error of reconstruction is {:.1e} times the variance of the data at step {}, and since step {} more \
                 than {factor} (train.explosion) times {reference:.3}, what it was before the first step or is for the mean",
                step.error, step.number, since.step
            );
            return Err(self.diverged(&what, since, input));
        }
        let done = self.done();
        let due = |every: u64| done.is_multiple_of(every) || done == plan.steps;
        let (mut fvu_by_hook, mut density) = (BTreeMap::new(), None);
        if due(plan.eval_every) {
            let measured = self.learner.measure(input, self.plan)?;
            if !measured.held_out.fvu.is_finite() {
                let what = format!(
                    "the FVU of held-out rows is {} behind step {done}",
                    measured.held_out.fvu
                );
                return Err(self.diverged(&what, here, input));
            }
            self.held_out = Some(measured.held_out);
            fvu_by_hook.clone_from(&measured.fvu_by_hook);
            density.clone_from(&measured.density);
            // Kept for the end alone: it shares the parameters, which are updated in place while nobody does.
            self.last = Some(measured).filter(|_| done == plan.steps);
        }
        if due(plan.log_every) || due(plan.eval_every) {
            let measured = self.held_out.filter(|_| due(plan.eval_every));
            self.note = self.describe(&step);
            let line = Line::new(&step, done, plan, now.reader.epoch, measured);
            self.log.metrics(&Line {
                fvu_by_hook,
                density,
                ..line
            })?;
            self.log.timing(&Timing::new(done, plan, now.seconds))?;
        }
        if due(plan.eval_every) {
            curves::draw(&self.out)?;
        }
        Ok(())
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// What the system says; [`Error::Invalid`] naming a parameter that is not finite, as when training diverges.
    pub fn save(&mut self, input: &Input, now: Moment) -> Result<()> {
        let here = Since {
            step: self.done(),
            reader: now.before,
        };
        match self
            .dir
            .save(&self.learner, self.watch, now.reader, now.seconds, &mut self.log)
        {
            Err(Error::Invalid(problem)) => {
                let what = format!("behind step {} {problem}", here.step);
                Err(self.diverged(&what, here, input))
            }
            saved => saved,
        }
    }

    /// Whether the last batches look as if training came apart, so that no checkpoint should be written over a good one.
    pub fn is_suspect(&self) -> bool {
        self.watch.since.is_some()
    }

    /// Writes the dictionary with its card, and the summary last: it says that the run is finished.
    ///
    /// # Errors
    /// What measuring and writing give.
    pub fn finish(&mut self, input: &Input, seconds: f64) -> Result<RunSummary> {
        // A run that was killed behind its last checkpoint comes here without a step.
        let measured = self
            .last
            .take()
            .map_or_else(|| self.learner.measure(input, self.plan), Ok)?;
        let Measured {
            trained,
            calibration,
            held_out,
            fvu_by_hook,
            ..
        } = measured;
        let plan = self.plan;
        trained.save(&self.out, plan, input, calibration, held_out)?;
        curves::draw(&self.out)?;
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
        run_dir::write_summary(&self.out, &summary)?;
        Ok(summary)
    }

    fn describe(&self, step: &Step) -> String {
        let dead = 100.0 * step.dead_share;
        match self.held_out {
            Some(h) => format!("fvu {:.4}  l0 {:.1}  dead {dead:.1}%", h.fvu, h.l0),
            None => format!("loss {:.4}  l0 {:.1}  dead {dead:.1}%", step.loss, step.l0),
        }
    }

    /// What to say when training diverged: `what` is wrong, the batch `since` which it is, and what to do.
    fn diverged(&self, what: &str, since: Since, input: &Input) -> Error {
        let plan = self.plan;
        let checkpoint = self.out.join(CHECKPOINT);
        let last = match self.dir.last_checkpoint() {
            Some(n) if n >= since.step && self.is_suspect() => format!(
                "the last checkpoint, in {}, is of step {n}, when it had begun",
                checkpoint.display()
            ),
            Some(n) => format!("the last good checkpoint is of step {n} in {}", checkpoint.display()),
            None => "there is no checkpoint yet".into(),
        };
        let who = match self.name {
            "" => String::new(),
            name => format!("{name}: "),
        };
        let lr = plan.schedule.at(since.step.saturating_sub(1));
        Error::Invalid(format!(
            "{who}{what}: training diverged; {}, with learning rate {lr:.1e}; {last}. Try a smaller train.lr or a longer \
             train.warmup_steps, and look at these rows; train.explosion = 0 goes on as long as there are numbers",
            input.describe_batch(plan, since)
        ))
    }
}
