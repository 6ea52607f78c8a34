//! Training for the sake of the clock: the same steps on the same path as a run's, which leave nothing behind.

use std::time::Instant;

use activations::{Progress, Stop};
use burn::tensor::Device;

use super::Training;
use super::input::Input;
use super::laps::{Laps, Part, Parts};
use super::learner::Learner;
use super::plan::TrainPlan;
use super::read_ahead::ReadAhead;
use crate::error::{Error, Result};
use crate::speed::{Work, median};

/// What to time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Steps at the beginning that are not counted, of those that the configuration asks for.
    pub warm_up: u64,
    /// Share of the latents that count as dead in every step, so that the auxiliary loss has work; the first ones.
    pub dead_share: f64,
}

/// What was measured, step by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Seconds of each step.
    pub seconds: Vec<f64>,
    /// And of its parts: none of encoding alone, and of a bilinear autoencoder's step nothing but the waiting.
    pub parts: Vec<Parts>,
    /// Latents that fired for a token, the mean over the steps.
    pub l0: f64,
    /// What such a step has to do whoever does it; nothing of a step that is not made of a product and a sparse code.
    pub work: Option<Work>,
}

impl Times {
    /// The median of a part, in seconds; 0 where it is not known.
    pub fn part(&self, part: Part) -> f64 {
        median(self.parts.iter().map(|parts| parts[part as usize]))
    }
}

/// Everything that the loop needs.
struct Begun<'a> {
    plan: &'a TrainPlan,
    learner: Learner,
    device: Device,
    batches: ReadAhead,
}

impl Training {
    /// Takes the steps of the configuration and says how long each took, waiting for its rows included. `None` when
    /// stopped.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are several runs, no more steps than the warm-up has, or rows that are not files read in
    /// place; when training diverges; what reading and the device give.
    pub fn time_steps(&self, timing: Timing, progress: &dyn Progress, stop: &Stop) -> Result<Option<Times>> {
        let Some(mut begun) = self.begin(timing, stop)? else {
            return Ok(None);
        };
        let plan = begun.plan;
        if let Learner::Sparse(trainer) = &mut begun.learner {
            trainer.laps = Laps::running();
        }
        let laps = |learner: &Learner| learner.sparse().map(|trainer| trainer.laps.take()).unwrap_or_default();
        let (mut times, mut active) = (Times::default(), 0.0);
        progress.begin("steps", Some(plan.steps), "steps");
        for number in 0..plan.steps {
            if let Learner::Sparse(trainer) = &mut begun.learner {
                trainer.silence.silence(timing.dead_share);
            }
            let start = Instant::now();
            let Some(rows) = begun.batches.next_batch(stop)? else {
                return Ok(None);
            };
            let read = start.elapsed().as_secs_f64();
            laps(&begun.learner);
            let step = begun.learner.step(rows, plan)?;
            let seconds = start.elapsed().as_secs_f64();
            let mut parts = laps(&begun.learner);
            parts[Part::Read as usize] = read;
            if !step.is_taken() {
                return Err(Error::Invalid(format!(
                    "training diverged at step {}: try a smaller train.lr",
                    step.number
                )));
            }
            if number >= timing.warm_up {
                times.seconds.push(seconds);
                times.parts.push(parts);
                active += f64::from(step.l0);
            }
            progress.advance(1);
        }
        progress.finish();
        times.l0 = active / times.seconds.len() as f64;
        times.work = Work::of_step(plan, budget(plan, times.l0));
        Ok(Some(times))
    }

    /// Encodes as many batches as the configuration has steps, with the dictionary that training begins with as it would be
    /// saved, raw rows in memory to codes in memory. `None` when stopped.
    ///
    /// # Errors
    /// As [`time_steps`](Self::time_steps); [`Error::Config`] for a method whose code is not a token's or a batch's.
    pub fn time_encoding(&self, timing: Timing, progress: &dyn Progress, stop: &Stop) -> Result<Option<Times>> {
        let Some(mut begun) = self.begin(timing, stop)? else {
            return Ok(None);
        };
        let plan = begun.plan;
        let Some(trainer) = begun.learner.sparse() else {
            return Err(Error::config("sae.method", "bilinear has no sparse code to time"));
        };
        let sae = trainer.dictionary();
        let (mut times, mut active) = (Times::default(), 0.0);
        progress.begin("batches", Some(plan.steps), "batches");
        for number in 0..plan.steps {
            let Some(rows) = begun.batches.next_batch(stop)? else {
                return Ok(None);
            };
            let (x, _) = plan.sides.tensors(rows, &begun.device);
            let start = Instant::now();
            // Which waits for the device.
            let code = sae.encode(x)?.to_host()?;
            let seconds = start.elapsed().as_secs_f64();
            if number >= timing.warm_up {
                times.seconds.push(seconds);
                let fired = code.values.iter().filter(|&&v| v != 0.0).count();
                active += fired as f64 / plan.batch as f64;
            }
            progress.advance(1);
        }
        progress.finish();
        times.l0 = active / times.seconds.len() as f64;
        times.work = Some(Work::of_encoding(plan, budget(plan, times.l0)));
        Ok(Some(times))
    }

    /// The state before the first step.
    fn begin(&self, timing: Timing, stop: &Stop) -> Result<Option<Begun<'_>>> {
        let [(_, plan)] = &self.plans[..] else {
            return Err(Error::Invalid("a grid is not timed: give single values".into()));
        };
        if plan.steps <= timing.warm_up {
            return Err(Error::Invalid(format!(
                "{} steps are no more than the {} that warm up",
                plan.steps, timing.warm_up
            )));
        }
        if plan.streamed || plan.copy_bytes > 0 {
            return Err(Error::Invalid(format!(
                "{}: only rows that are read in place are timed: a store, .npy or safetensors",
                plan.source
            )));
        }
        let device = plan.device()?;
        let input: &Input = &self.input;
        let mut batches = ReadAhead::new(input.reader(plan, None)?, plan.batch, plan.steps);
        let Some(sample) = input.sample(plan, &mut batches, stop)? else {
            return Ok(None);
        };
        let learner = Learner::start(plan, &sample, &device)?;
        Ok(Some(Begun {
            plan,
            learner,
            device,
            batches,
        }))
    }
}

/// Latents a token that the work is counted for: as many as there is a budget for, else those that fired.
fn budget(plan: &TrainPlan, l0: f64) -> f64 {
    plan.config.sparsifier().k().map_or(l0, |k| k as f64)
}
