//! `sae bench speed encode`: from rows in memory to codes in memory.

use std::process::ExitCode;

use activations::Outcome;
use sae::train::Training;
use serde::Serialize;

use super::parse_size;
use super::report::Spread;
use super::sizes::Sizes;
use super::timed::Timed;
use crate::{interrupt, say};

/// How long encoding a batch takes, without training
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed encode
  sae bench speed encode --method batch_topk --d-in 2304 --d-sae 65536 --batch 1024 --json
  SAE_CPU=avx512 sae bench speed encode                  # with a product in f32

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
    #[serde(flatten)]
    timed: Timed,
    /// The median.
    encode_s: f64,
    encode_min_s: f64,
    encode_max_s: f64,
}

/// Measures, and says what came out.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let timed = Timed::of(&args.sizes, args.steps, 0.0, Training::time_encoding)?;
    let Some((timed, times)) = timed else {
        return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
    };
    let spread = Spread::of(&times.seconds);
    if !args.json {
        timed.print("a batch", &spread);
        return Ok(ExitCode::SUCCESS);
    }
    let report = Report {
        timed,
        encode_s: spread.median,
        encode_min_s: spread.min,
        encode_max_s: spread.max,
    };
    say!("{}", serde_json::to_string_pretty(&report)?);
    Ok(ExitCode::SUCCESS)
}
