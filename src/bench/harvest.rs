//! `sae bench speed harvest`: a model over a text, its activations dropped.

use std::process::ExitCode;
use std::time::Instant;

use activations::harvest::{ContextStream, HarvestOptions, plan};
use activations::hub::Hub;
use activations::product::Precision;
use activations::{ContextSource, Outcome, Progress};
use anyhow::{Context, bail};
use sae::speed::peak_rss_mb;
use serde::Serialize;

use super::report::{Machine, line, machine_lines};
use super::scratch::Scratch;
use crate::bars::{Bars, count};
use crate::demo::embedded;
use crate::harvest::Text;
use crate::{interrupt, limits, say};

/// Tokens unless asked.
const TOKENS: u64 = 50_000;

/// How many tokens a second a model is harvested at
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae bench speed harvest --model stories15M/ --hook blocks.3.hook_resid_post
  sae bench speed harvest --model stories15M/ --hook blocks.3.hook_resid_post --precision bf16 --tokens 1M --json
  sae bench speed harvest --model DIR --hook blocks.3.hook_resid_post --text books/ --context 256

Activations are computed and dropped, which compares with a forward pass of other tools; no store is written. The first batch
warms up and is not counted. 50,000 tokens are read unless --tokens says how many; without --text they are
the stories of `sae demo`, again and again.")]
pub struct Args {
    /// A model: a directory, a .gguf file, or a hub id, org/name[@revision]
    #[arg(long, value_name = "DIR|GGUF|ID")]
    model: String,
    /// Where in the model: the pass ends there
    #[arg(long = "hook", value_name = "HOOK", required = true)]
    hooks: Vec<String>,
    #[command(flatten)]
    text: Text,
    /// What the model multiplies: f32 or bf16, as `sae harvest` has it
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    precision: Precision,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    hooks: Vec<String>,
    precision: Precision,
    tokens: usize,
    rows: usize,
    seconds: f64,
    tokens_per_s: f64,
    /// What `sae harvest` would have said before.
    estimated_tokens_per_s: f64,
    peak_rss_mb: Option<f64>,
    estimated_mb: f64,
    #[serde(flatten)]
    machine: Machine,
}

/// Measures, and says what came out.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = interrupt::listen()?;
    let progress = Bars::default();
    let scratch = Scratch::new(None)?;
    let mut text = args.text.with_tokens(TOKENS);
    if text.is_empty() {
        let wanted = text.tokens().unwrap_or(TOKENS);
        let stories = embedded::STORIES;
        // A token has fewer than eight bytes on average, in this text and any vocabulary.
        let times = (8 * wanted).div_ceil(stories.len() as u64).max(1);
        let bytes = times.saturating_mul(stories.len() as u64);
        limits::check(scratch.path(), bytes, 0).with_context(|| format!("--tokens {wanted}"))?;
        let path = scratch.path().join("stories.txt");
        write_times(&path, stories, times).with_context(|| format!("{}", path.display()))?;
        text = text.over(&path, embedded::SEPARATOR)?;
    }
    let hub = Hub::from_env();
    let model = hub.find(&args.model, &progress)?;
    let mut options = HarvestOptions {
        precision: args.precision,
        ..text.options(&model, args.hooks.clone())
    };
    options.fetch_texts(&hub, &progress)?;
    let plan = plan(&options)?;
    let estimate = *plan.estimate();
    limits::check(scratch.path(), 0, estimate.memory_bytes)?;
    let mut stream = ContextStream::new(plan);
    let warm_up = stream.next_batch()?.map_or(0, |batch| tokens_of(&batch));
    let (start, mut tokens, mut rows) = (Instant::now(), 0, 0);
    progress.begin(
        "harvest",
        Some(estimate.tokens.saturating_sub(warm_up as u64)),
        "tokens",
    );
    while let Some(batch) = stream.next_batch()? {
        tokens += tokens_of(&batch);
        rows += batch.rows.len();
        progress.advance(tokens_of(&batch) as u64);
        if stop.requested() {
            return Ok(interrupt::exit_code(Outcome::Stopped, "the same command"));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    progress.finish();
    if tokens == 0 {
        bail!("the text has {warm_up} tokens, one batch, which only warms up: give more with --tokens or --text");
    }
    let report = Report {
        model: model.name,
        hooks: args.hooks,
        precision: args.precision,
        tokens,
        rows,
        seconds,
        tokens_per_s: tokens as f64 / seconds,
        estimated_tokens_per_s: estimate.tokens_per_second,
        peak_rss_mb: peak_rss_mb(),
        estimated_mb: estimate.memory_bytes as f64 / 1e6,
        machine: Machine::here(),
    };
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

fn tokens_of(batch: &activations::ContextBatch) -> usize {
    batch.contexts.iter().map(|context| context.tokens.len()).sum()
}

fn write_times(path: &std::path::Path, text: &[u8], times: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::fs::File::create(path)?;
    (0..times).try_for_each(|_| out.write_all(text))
}

impl Report {
    fn print(&self) {
        say!("{} at {}, {}", self.model, self.hooks.join(", "), self.precision);
        let took = format!("{} tokens in {:.1} s", count(self.tokens as u64), self.seconds);
        line("tokens a second", count(self.tokens_per_s as u64), &took);
        let estimated = count(self.estimated_tokens_per_s as u64);
        line("estimated", estimated, &format!("and {:.0} MB", self.estimated_mb));
        machine_lines(&self.machine, self.peak_rss_mb);
    }
}
