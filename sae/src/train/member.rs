//! One dictionary on its way: its state, its directory and its log. A run has one, a grid several on the same batches.

use std::collections::BTreeMap;
use std::path::PathBuf;

use activations::source::MixState;

use super::input::Input;
use super::learner::{Learner, Measured};
use super::log::{Line, Log, Timing};
use super::run_dir::{self, RunDir};
use super::trainer::Step;
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
}

/// When something happened: where the reader was behind the batch, and the time of the loop so far.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
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
    /// [`Error::Invalid`] when loss or gradients are not finite any more, naming the step and the last checkpoint; what measuring and
    /// writing give.
    pub fn step(&mut self, x: Vec<f32>, input: &Input, now: Moment) -> Result<()> {
        let plan = self.plan;
        let step = self.learner.step(x, plan)?;
        if !step.is_finite() {
            return Err(self.diverged(&step));
        }
        let done = self.done();
        let due = |every: u64| done.is_multiple_of(every) || done == plan.steps;
        let (mut fvu_by_hook, mut density) = (BTreeMap::new(), None);
        if due(plan.eval_every) {
            let measured = self.learner.measure(input, self.plan)?;
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
    /// What the system says; [`Error::Invalid`] naming a parameter that is not finite.
    pub fn save(&mut self, now: Moment) -> Result<()> {
        self.dir.save(&self.learner, now.reader, now.seconds, &mut self.log)
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

    /// What to say when loss or gradients are not numbers any more.
    fn diverged(&self, step: &Step) -> Error {
        let last = match self.dir.last_checkpoint() {
            Some(n) => format!(
                "the last good checkpoint is of step {n} in {}",
                self.out.join("checkpoint").display()
            ),
            None => "there is no checkpoint yet".into(),
        };
        let what = match step.gradient_norm {
            Some(norm) if step.loss.is_finite() => format!("norm of the gradients is {norm}"),
            _ => format!("loss is {}", step.loss),
        };
        let who = match self.name {
            "" => String::new(),
            name => format!("{name}: "),
        };
        Error::Invalid(format!(
            "{who}the {what} at step {} (learning rate {:.1e}): training diverged; {last}. Try a smaller train.lr or a \
             longer train.warmup_steps",
            step.number, step.lr
        ))
    }
}
