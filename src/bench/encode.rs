//! `sae bench speed encode`: from rows in memory to codes in memory.

use std::process::ExitCode;

use activations::Outcome;
use sae::speed::peak_rss_mb;
use sae::train::{Times, Timing};
use serde::Serialize;

use super::parse_size;
use super::report::{Machine, Spread, bound_lines, line, machine_lines, milliseconds};
use super::scratch::Scratch;
use super::sizes::{BoundReport, Sizes, WARM_UP, named};
use crate::bars::{Bars, count};
use crate::{interrupt, say};

/// How long encoding a batch takes, without training
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed encode
  sae bench speed encode --method batch_topk --d-in 2304 --d-sae 65536 --batch 1024 --json
  SAE_CPU=avx512 sae bench speed encode                  # without the product in bf16

The dictionary is the one that training begins with. \"At least\" is one product at the rate that this machine has for it (our
own fastest, measured, or --product-gflops), and one read of weights and rows and one write of the codes at the rate of a copy.")]
pub struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Batches that are timed
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse_size)]
    steps: usize,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// What encoding a batch took.
#[derive(Debug, Serialize)]
struct Report {
    method: String,
    d_in: usize,
    d_sae: usize,
    batch: usize,
    steps: usize,
    seed: u32,
    /// Latents that fired for a token.
    l0: f64,
    /// The median.
    encode_s: f64,
    encode_min_s: f64,
    encode_max_s: f64,
    tokens_per_s: f64,
    peak_rss_mb: Option<f64>,
    bound_s: Option<f64>,
    share_of_bound: Option<f64>,
    bound: Option<BoundReport>,
    #[serde(flatten)]
    machine: Machine,
}

/// Measures, and says what came out.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sizes = &args.sizes;
    sae::kernels::keep_freed_memory();
    let (stop, progress) = (interrupt::listen()?, Bars::default());
    let scratch = Scratch::new(sizes.dir.as_deref())?;
    let training = sizes.prepare(&scratch, args.steps as u64)?;
    let timing = Timing {
        warm_up: WARM_UP,
        dead_share: 0.0,
    };
    let Some(times) = training.time_encoding(timing, &progress, &stop).map_err(named)? else {
        return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
    };
    let peak = peak_rss_mb();
    drop(training);
    let bound = times.work.map(|work| BoundReport::new(&work, &sizes.rates(&work)));
    let report = Report::new(args, &times, peak, bound);
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(args: &Args, times: &Times, peak: Option<f64>, bound: Option<BoundReport>) -> Self {
        let (sizes, spread) = (&args.sizes, Spread::of(&times.seconds));
        let bound_s = bound.map(|bound| bound.bound_s);
        Self {
            method: sizes.method.clone(),
            d_in: sizes.d_in,
            d_sae: sizes.d_sae,
            batch: sizes.batch,
            steps: args.steps,
            seed: sizes.seed,
            l0: times.l0,
            encode_s: spread.median,
            encode_min_s: spread.min,
            encode_max_s: spread.max,
            tokens_per_s: sizes.batch as f64 / spread.median,
            peak_rss_mb: peak,
            bound_s,
            share_of_bound: bound_s.map(|bound| bound / spread.median),
            bound,
            machine: Machine::here(),
        }
    }

    fn print(&self) {
        say!(
            "{}, d_in {}, d_sae {}, {} batches of {}",
            self.method,
            self.d_in,
            self.d_sae,
            self.steps,
            self.batch
        );
        let spread = format!(
            "{} to {}",
            milliseconds(self.encode_min_s),
            milliseconds(self.encode_max_s)
        );
        line("a batch", milliseconds(self.encode_s), &spread);
        line("tokens a second", count(self.tokens_per_s as u64), "");
        line("L0", format!("{:.1}", self.l0), "");
        bound_lines(self.bound.as_ref(), self.share_of_bound);
        machine_lines(&self.machine, self.peak_rss_mb);
    }
}
