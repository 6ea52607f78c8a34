//! `sae bench speed step`: a training step, its parts, and what it takes at least.

use std::collections::BTreeMap;
use std::process::ExitCode;

use activations::Outcome;
use anyhow::bail;
use sae::speed::{Work, peak_rss_mb};
use sae::train::{Part, Times, Timing};
use serde::Serialize;

use super::report::{Machine, Spread, bound_lines, line, machine_lines, milliseconds};
use super::scratch::Scratch;
use super::sizes::{BoundReport, Sizes, WARM_UP, named};
use super::{parse_share, parse_size};
use crate::bars::{Bars, count};
use crate::{interrupt, say};

/// How long a training step takes, and what on
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed step
  sae bench speed step --method topk --d-in 768 --d-sae 16384 --k 32 --batch 4096 --steps 10 --json
  sae bench speed step --method jumprelu --set objective.l0.target=32
  sae bench speed step --set train.select=exact          # the search in f32 alone
  sae bench speed step --set objective.orthogonality.every=5   # its cost is in the average, not in the median
  sae bench speed step --dead-share 0.25                 # with a quarter of the latents dead, for the auxiliary loss
  sae bench speed step --product-gflops 1400             # held against a product of that rate

These are steps of `sae train`, on synthetic rows, behind two that warm up; nothing is kept. \"At least\" is the encoder's
product at the rate that this machine has for it (our own fastest, measured, or --product-gflops), and one read and one write
of parameters and moments and 4 batch k d_in floats of row traffic at the rate of a copy: docs/performance.md.")]
pub struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Steps that are timed
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse_size)]
    steps: usize,
    /// Count this share of the latents as dead in every step
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = parse_share)]
    dead_share: f64,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// What a step took.
#[derive(Debug, Serialize)]
struct Report {
    method: String,
    d_in: usize,
    d_sae: usize,
    /// `None` where the method has none.
    k: Option<usize>,
    batch: usize,
    steps: usize,
    seed: u32,
    dead_share: f64,
    /// Latents that fired for a token.
    l0: f64,
    /// The median.
    step_s: f64,
    /// The mean, in which what is not done in every step counts, too.
    step_mean_s: f64,
    step_min_s: f64,
    step_max_s: f64,
    tokens_per_s: f64,
    peak_rss_mb: Option<f64>,
    /// Medians of the parts that are known.
    parts_s: BTreeMap<&'static str, f64>,
    bound_s: Option<f64>,
    share_of_bound: Option<f64>,
    bound: Option<BoundReport>,
    #[serde(flatten)]
    machine: Machine,
}

/// Measures, and says what came out.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sizes = &args.sizes;
    if args.dead_share > 0.0 && sizes.method == "bilinear" {
        bail!("--dead-share: --method bilinear has no dead latents to revive");
    }
    sae::kernels::keep_freed_memory();
    let (stop, progress) = (interrupt::listen()?, Bars::default());
    let scratch = Scratch::new(sizes.dir.as_deref())?;
    let training = sizes.prepare(&scratch, args.steps as u64)?;
    let timing = Timing {
        warm_up: WARM_UP,
        dead_share: args.dead_share,
    };
    let Some(times) = training.time_steps(timing, &progress, &stop).map_err(named)? else {
        return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
    };
    // Before the ceilings, whose operands are not the step's.
    let peak = peak_rss_mb();
    let k = training.plan().config.sae.k;
    drop(training);
    let bound = times
        .work
        .map(|work: Work| BoundReport::new(&work, &sizes.rates(&work)));
    let report = Report::new(args, k, &times, peak, bound);
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(args: &Args, k: Option<usize>, times: &Times, peak: Option<f64>, bound: Option<BoundReport>) -> Self {
        let (sizes, spread) = (&args.sizes, Spread::of(&times.seconds));
        let parts = Part::ALL.map(|part| (part.name(), times.part(part)));
        let bound_s = bound.map(|bound| bound.bound_s);
        Self {
            method: sizes.method.clone(),
            d_in: sizes.d_in,
            d_sae: sizes.d_sae,
            k,
            batch: sizes.batch,
            steps: args.steps,
            seed: sizes.seed,
            dead_share: args.dead_share,
            l0: times.l0,
            step_s: spread.median,
            step_mean_s: spread.mean,
            step_min_s: spread.min,
            step_max_s: spread.max,
            tokens_per_s: sizes.batch as f64 / spread.median,
            peak_rss_mb: peak,
            parts_s: parts.into_iter().filter(|(_, seconds)| *seconds > 0.0).collect(),
            bound_s,
            share_of_bound: bound_s.map(|bound| bound / spread.median),
            bound,
            machine: Machine::here(),
        }
    }

    fn print(&self) {
        let k = self.k.map_or(String::new(), |k| format!(", k {k}"));
        say!(
            "{}, d_in {}, d_sae {}{k}, batches of {}: {} steps",
            self.method,
            self.d_in,
            self.d_sae,
            self.batch,
            self.steps
        );
        let [min, max, mean] = [self.step_min_s, self.step_max_s, self.step_mean_s].map(milliseconds);
        let spread = format!("{min} to {max}, on average {mean}");
        line("a step", milliseconds(self.step_s), &spread);
        line("tokens a second", count(self.tokens_per_s as u64), "");
        line("L0", format!("{:.1}", self.l0), "");
        bound_lines(self.bound.as_ref(), self.share_of_bound);
        machine_lines(&self.machine, self.peak_rss_mb);
        say!("where the time goes");
        for part in Part::ALL {
            let Some(seconds) = self.parts_s.get(part.name()) else {
                continue;
            };
            let share = format!("{:.0}%", 100.0 * seconds / self.step_s);
            line(part.label(), milliseconds(*seconds), &share);
        }
    }
}
