//! Timing a trainer, by its steps or by their encoding alone: what both reports have in common.

use activations::{Progress, Stop};
use sae::speed::{milliseconds, peak_rss_mb};
use sae::train::{Times, Timing, Training};
use serde::Serialize;

use super::report::{Machine, Spread, bound_lines, line, machine_lines};
use super::scratch::Scratch;
use super::sizes::{BoundReport, Sizes, WARM_UP, named};
use crate::bars::{Bars, count};
use crate::{interrupt, say};

/// What was timed, and what is possible; the times themselves have another name in each report.
#[derive(Debug, Serialize)]
pub struct Timed {
    method: String,
    d_in: usize,
    d_sae: usize,
    /// `None` where the method has none.
    k: Option<usize>,
    batch: usize,
    steps: usize,
    seed: u32,
    /// Latents that fired for a token.
    l0: f64,
    tokens_per_s: f64,
    peak_rss_mb: Option<f64>,
    bound_s: Option<f64>,
    share_of_bound: Option<f64>,
    bound: Option<BoundReport>,
    #[serde(flatten)]
    machine: Machine,
}

/// A way of timing: [`Training::time_steps`], or [`Training::time_encoding`].
type Way = fn(&Training, Timing, &dyn Progress, &Stop) -> sae::Result<Option<Times>>;

impl Timed {
    /// Times so many steps of a trainer of these sizes; `None` if that was interrupted.
    ///
    /// # Errors
    /// For sizes that cannot be, naming the flag; whatever training says.
    pub fn of(sizes: &Sizes, steps: usize, dead_share: f64, way: Way) -> anyhow::Result<Option<(Self, Times)>> {
        sae::kernels::keep_freed_memory();
        let (stop, progress) = (interrupt::listen()?, Bars::default());
        let scratch = Scratch::new(sizes.dir.as_deref())?;
        let training = sizes.prepare(&scratch, steps as u64)?;
        let timing = Timing {
            warm_up: WARM_UP,
            dead_share,
        };
        let Some(times) = way(&training, timing, &progress, &stop).map_err(named)? else {
            return Ok(None);
        };
        // Before the ceilings, whose operands are not the trainer's.
        let peak_rss_mb = peak_rss_mb();
        let k = training.plan().config.sae.k;
        drop(training);
        let bound = times.work.map(|work| BoundReport::new(&work, &sizes.rates(&work)));
        let median = Spread::of(&times.seconds).median;
        let bound_s = bound.map(|bound| bound.bound_s);
        let timed = Self {
            method: sizes.method.clone(),
            d_in: sizes.d_in,
            d_sae: sizes.d_sae,
            k,
            batch: sizes.batch,
            steps,
            seed: sizes.seed,
            l0: times.l0,
            tokens_per_s: sizes.batch as f64 / median,
            peak_rss_mb,
            bound_s,
            share_of_bound: bound_s.map(|bound| bound / median),
            bound,
            machine: Machine::here(),
        };
        Ok(Some((timed, times)))
    }

    /// The table: `what` was timed, and what it took.
    pub fn print(&self, what: &str, spread: &Spread) {
        let k = self.k.map_or(String::new(), |k| format!(", k {k}"));
        say!(
            "{}, d_in {}, d_sae {}{k}, batches of {}: {} timed",
            self.method,
            self.d_in,
            self.d_sae,
            self.batch,
            self.steps
        );
        let [min, max, mean] = [spread.min, spread.max, spread.mean].map(milliseconds);
        let around = format!("{min} to {max}, on average {mean}");
        line(what, milliseconds(spread.median), &around);
        line("tokens a second", count(self.tokens_per_s as u64), "");
        line("L0", format!("{:.1}", self.l0), "");
        bound_lines(self.bound.as_ref(), self.share_of_bound);
        machine_lines(&self.machine, self.peak_rss_mb);
    }
}
