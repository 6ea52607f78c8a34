//! `sae bench speed step`: a training step, its parts, and what it takes at least.

use std::collections::BTreeMap;
use std::process::ExitCode;

use activations::Outcome;
use anyhow::bail;
use sae::speed::milliseconds;
use sae::train::{Part, Training};
use serde::Serialize;

use super::report::{Spread, line};
use super::sizes::Sizes;
use super::timed::Timed;
use super::{parse_share, parse_size};
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
    #[serde(flatten)]
    timed: Timed,
    dead_share: f64,
    /// The median.
    step_s: f64,
    /// The mean, in which what is not done in every step counts, too.
    step_mean_s: f64,
    step_min_s: f64,
    step_max_s: f64,
    /// Medians of the parts that are known.
    parts_s: BTreeMap<&'static str, f64>,
}

/// Measures, and says what came out.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.dead_share > 0.0 && args.sizes.method == "bilinear" {
        bail!("--dead-share: --method bilinear has no dead latents to revive");
    }
    let timed = Timed::of(&args.sizes, args.steps, args.dead_share, Training::time_steps)?;
    let Some((timed, times)) = timed else {
        return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
    };
    let spread = Spread::of(&times.seconds);
    let parts = Part::ALL.map(|part| (part, times.part(part)));
    let known = parts.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    if !args.json {
        timed.print("a step", &spread);
        say!("where the time goes");
        for (part, seconds) in known {
            let share = format!("{:.0}%", 100.0 * seconds / spread.median);
            line(part.label(), milliseconds(seconds), &share);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = Report {
        timed,
        dead_share: args.dead_share,
        step_s: spread.median,
        step_mean_s: spread.mean,
        step_min_s: spread.min,
        step_max_s: spread.max,
        parts_s: known.map(|(part, seconds)| (part.name(), seconds)).collect(),
    };
    say!("{}", serde_json::to_string_pretty(&report)?);
    Ok(ExitCode::SUCCESS)
}
