//! `sae bench`: how fast it is here.

mod charts;
mod encode;
mod harvest;
mod report;
mod scratch;
mod sizes;
mod step;
mod store;
mod timed;

use std::process::ExitCode;

use clap::Subcommand;

/// Measure on this machine
#[derive(clap::Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Speed(Speed),
}

/// How fast it trains, encodes, stores and harvests, and how near that comes to what the machine can do
#[derive(clap::Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  sae bench speed step                                            # TopK of 32 among 16,384, as docs/performance.md has it
  sae bench speed step --method jumprelu --d-in 2304 --d-sae 65536 --json
  sae bench speed encode --method batch_topk
  sae bench speed store
  sae bench speed harvest --model stories15M/ --hook blocks.3.hook_resid_post
  sae bench speed charts --out charts/

Times are medians. Other work on the machine makes them longer: RAYON_NUM_THREADS=N is how many threads compute, and
SAE_CPU=avx2 (scalar, avx512, ...) what a lesser processor would do. docs/performance.md, \"On your machine\", has examples.")]
struct Speed {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    Step(step::Args),
    Encode(encode::Args),
    Store(store::Args),
    Harvest(harvest::Args),
    Charts(charts::Args),
}

/// Measures, and says what came out.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let What::Speed(Speed { part }) = args.what;
    match part {
        Part::Step(args) => step::run(&args),
        Part::Encode(args) => encode::run(&args),
        Part::Store(args) => store::run(&args),
        Part::Harvest(args) => harvest::run(args),
        Part::Charts(args) => charts::run(&args),
    }
}

/// A size: a whole number of at least 1.
fn parse_size(text: &str) -> Result<usize, String> {
    match text.replace('_', "").parse() {
        Ok(0) => Err("is 0, expected at least 1".into()),
        Ok(size) => Ok(size),
        Err(_) => Err(format!("{text:?} is no size: write a whole number such as 16384")),
    }
}

/// A rate: more than 0.
fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err(format!("{text:?} is no rate: expected a number above 0")),
    }
}

/// A share: from 0 to 1.
fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{text:?} is no share: expected a number from 0 to 1")),
    }
}
