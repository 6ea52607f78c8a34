//! `sae train`: activations, or a model over a text, to a sparse dictionary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activations::product::Precision;
use activations::{ActDtype, Outcome, Progress, Stop};
use anyhow::{Context, bail};
use sae::config::{GRID_TOML, Grid, RUN_TOML, RunConfig};
use sae::train::{RunSummary, Summaries, Training};

use crate::bars::{Bars, count, parse_count};
use crate::harvest::Text;
use crate::say;
use crate::{interrupt, limits, remote};

/// In a run's directory, the copy of a store that is not on this machine.
const FETCHED: &str = "acts";
/// The same of what is written, where that lies elsewhere.
const FETCHED_TARGET: &str = "target_acts";

/// Train a sparse dictionary on activations
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae train --acts acts/ --out runs/a
  sae train --acts acts/ --out runs/b --set sae.method=abs_topk --set sae.k=16 --set sae.expansion=16
  sae train --acts acts/ --out runs/h --set sae.method=batch_topk         # jumprelu, gated, relu ..: docs/methods.md
  sae train --acts acts/ --out runs/i --set sae.method=jumprelu --set objective.l0.target=32
  sae train --acts vision.npy --out runs/c --set train.tokens=20000000     # [n, d] of float32 or float16, any model
  sae train --acts protein.safetensors --hook layer12 --out runs/e        # a tensor [n, d] of a file of several
  sae train --acts embeddings/ --hook vector --out runs/f                 # Parquet: a column of lists or of bytes
  sae train --acts saelens-cache/ --out runs/g                            # SAELens' cached activations
  sae train --acts s3://lab/acts --out runs/j                             # a store in an object store
  sae train --model stories15M/ --text books/ --hook blocks.3.hook_resid_post --out runs/h --set train.tokens=5M
  sae train --model org/name --text 'crawl/*.jsonl.zst' --field content --skip-bad --context 256 --hook … --out runs/i
  sae train --acts acts/ --hook blocks.3.hook_resid_mid --target blocks.3.hook_mlp_out --out runs/t       # a transcoder
  sae train --acts acts/ --hook blocks.2.hook_resid_post --hook blocks.3.hook_resid_post --out runs/x     # a crosscoder
  sae train --acts acts/ --set sae.method=bilinear --set bilinear.form=mixed --out runs/q       # a bilinear autoencoder
  sae train --acts inputs.npy --target-acts outputs.npy --set sae.skip=true --out runs/s     # a skip transcoder, any model
  sae train --acts other/ --init runs/a --out runs/k --set sae.d_sae=4096   # goes on from a dictionary, and widens it
  sae train --config run.toml --out runs/d
  sae train --acts acts/ --out runs/grid --set sae.k=[16,32,64] --set train.lr=[1e-3,3e-4]   # six, on one stream
  sae train --out runs/d --resume                                         # after Ctrl-C, a crash or kill -9

Lists make a grid: every combination of listed values is a dictionary, in a directory of its own in --out, and all of them
see the same batches, read and normalised once. `[[sae]]` blocks in a run.toml list dictionaries one by one, each with
objective and train keys of its own if it likes (docs/methods.md). Any of them can be trained again alone from its run.toml.

--init goes on from any dictionary, on other data if you like: what is not given (method, latents, encoder, shape, hooks)
is as it is there, and with a larger sae.d_sae random latents are added (docs/methods.md). It has to be there still, and the
same, when such a run is resumed.

With --model and --text nothing is harvested to the disk: the model computes activations while the dictionary is trained
on them, and everything about the text is in run.toml, so that --resume needs no flags (docs/streaming.md). --tokens is how
much of the text is read; train.tokens is how long to train, and begins the text again where it is longer.

Parquet is decoded once into acts.safetensors in the run's directory (its size is said first); train on that file to
save the next run the copy, or delete it when the run is done. A store in an object store (s3://, gs://, az://) is fetched
once into acts/ there, likewise: docs/object-stores.md. Everything else is read where it is.

What can be set, with defaults: every key of the run.toml that a run writes beside its results.
A run directory holds run.toml, metrics.jsonl, curves.svg, checkpoint/, and at the end the dictionary
(dictionary.json, dictionary.safetensors) and summary.json.")]
pub struct Args {
    /// A store made by `sae harvest`, or activations of other programs: .npy or .safetensors with an array [n, d],
    /// .parquet or a directory of them, a Hugging Face dataset's directory such as SAELens' cached activations; or the URL
    /// of a store (s3://bucket/acts)
    #[arg(long, value_name = "PATH")]
    acts: Option<PathBuf>,
    /// Instead of --acts, a model that reads --text: a directory, a .gguf file or a hub id, org/name[@revision]
    #[arg(long, value_name = "DIR|GGUF|ID")]
    model: Option<String>,
    #[command(flatten)]
    text: Text,
    /// Train on BOS and EOS, too
    #[arg(long)]
    keep_special: bool,
    /// What the model multiplies: f32 or bf16, as `sae harvest` has it (default: f32)
    #[arg(long, value_name = "FORMAT")]
    precision: Option<Precision>,
    /// Of the order of the documents (default: train.seed)
    #[arg(long, value_name = "N")]
    text_seed: Option<u64>,
    /// Directory of the run; must not hold one, unless --resume
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where in the model; of a store the hook, when it has several; of other files the tensor or column. Several times,
    /// or a pattern such as blocks.*.hook_resid_post: a crosscoder over all of them
    #[arg(long = "hook", value_name = "HOOK")]
    hooks: Vec<String>,
    /// What to write where it is not what is read: a transcoder from --hook to this hook (repeatable)
    #[arg(long, value_name = "HOOK")]
    target: Vec<String>,
    /// Where --target lies if it is not in --acts: another store or file, of the same tokens in the same order
    #[arg(long, value_name = "PATH")]
    target_acts: Option<PathBuf>,
    /// Number format of a column of bytes whose file does not say it: f16, bf16 or f32
    #[arg(long, value_name = "DTYPE")]
    acts_dtype: Option<ActDtype>,
    /// Go on from a dictionary: a run's directory, or any with a dictionary.json
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// A run.toml; all other flags go over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, as in run.toml: --set sae.k=32 (repeatable); counts may be written 250k or 5M
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
    /// cpu, cuda[:i] or vulkan[:i]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Continue the run in --out from its last checkpoint, to the same bytes as if it had not stopped
    #[arg(long)]
    resume: bool,
    /// Print the summary as JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// `KEY=VALUE`, as `--set` takes it.
///
/// # Errors
/// For anything else, with what was expected.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            let (key, value) = (key.trim(), value.trim());
            Ok((key.to_owned(), counted(key, value).unwrap_or_else(|| value.to_owned())))
        }
        _ => Err(format!("{text:?} is not KEY=VALUE, such as sae.k=32")),
    }
}

/// The value of a key that counts something, when it is written as `--tokens` is: 5M.
fn counted(key: &str, value: &str) -> Option<String> {
    let counts = ["tokens", "steps", "rows"].iter().any(|unit| key.ends_with(unit));
    counts.then(|| parse_count(value).ok()).flatten().map(|n| n.to_string())
}

/// Trains, and says what came out.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut grid = configuration(&args)?;
    let stop = interrupt::listen()?;
    let progress = Bars::default();
    // The runs of a grid have the same data.
    let of_first = &grid.runs[0].1.data;
    let (mut acts, mut target_acts) = (of_first.acts.clone(), of_first.target_acts.clone());
    for (acts, copy) in [(&mut acts, FETCHED), (&mut target_acts, FETCHED_TARGET)] {
        let Some(acts) = acts else { continue };
        match remote::local(acts, &args.out.join(copy), &progress, &stop)? {
            Some(local) => *acts = local,
            None => return Ok(interrupt::exit_code(Outcome::Stopped, "the same command")),
        }
    }
    for (_, config) in &mut grid.runs {
        config.data.acts.clone_from(&acts);
        config.data.target_acts.clone_from(&target_acts);
    }
    let (outcome, summaries) = train_grid(&grid, &args.out, args.resume, &progress, &stop)?;
    match summaries.as_deref() {
        None => {}
        Some([(name, summary)]) if name.is_empty() && args.json => say!("{}", serde_json::to_string_pretty(summary)?),
        Some([(name, summary)]) if name.is_empty() => print_summary(summary, &args.out),
        Some(all) if args.json => {
            let named: BTreeMap<&str, &RunSummary> = all.iter().map(|(name, s)| (name.as_str(), s)).collect();
            say!("{}", serde_json::to_string_pretty(&named)?);
        }
        Some(all) => print_summaries(all, &args.out),
    }
    Ok(interrupt::exit_code(
        outcome,
        &format!("sae train --out {} --resume", args.out.display()),
    ))
}

/// The file (on resuming, the run's own unless another is named), with the flags over it.
fn configuration(args: &Args) -> anyhow::Result<Grid> {
    let mut overrides = args.set.clone();
    for (key, path) in [
        ("data.acts", &args.acts),
        ("data.target_acts", &args.target_acts),
        ("sae.init", &args.init),
    ] {
        let Some(path) = path else { continue };
        let path = path
            .to_str()
            .with_context(|| format!("{}: a path in run.toml must be UTF-8", path.display()))?;
        overrides.push((key.into(), toml_string(path)));
    }
    if let Some(model) = &args.model {
        overrides.push(("data.model".into(), toml_string(model)));
    }
    overrides.extend(args.text.settings()?);
    if args.keep_special {
        overrides.push(("data.keep_special".into(), "true".into()));
    }
    if let Some(precision) = args.precision {
        overrides.push(("data.precision".into(), toml_string(&precision.to_string())));
    }
    if let Some(seed) = args.text_seed {
        overrides.push(("data.text_seed".into(), seed.to_string()));
    }
    match &args.hooks[..] {
        [] => {}
        [hook] if !hook.contains('*') => overrides.push(("data.hook".into(), toml_string(hook))),
        several => overrides.push(("data.hooks".into(), toml_list(several))),
    }
    if !args.target.is_empty() {
        overrides.push(("data.target".into(), toml_list(&args.target)));
    }
    if let Some(dtype) = args.acts_dtype {
        overrides.push(("data.acts_dtype".into(), toml_string(&dtype.to_string())));
    }
    if let Some(device) = &args.device {
        overrides.push(("train.device".into(), toml_string(device)));
    }
    let own = [RUN_TOML, GRID_TOML].map(|name| args.out.join(name));
    let own = own.iter().find(|file| file.exists());
    let file = match (&args.config, own) {
        (Some(file), _) => Some(file.as_path()),
        (None, Some(own)) if args.resume => Some(own.as_path()),
        (None, None) if args.resume => bail!("{}: no run to resume there: it has no {RUN_TOML}", args.out.display()),
        (None, _) => None,
    };
    let grid = Grid::load(file, &overrides)?;
    if grid
        .runs
        .iter()
        .any(|(_, c)| c.data.acts.is_none() && c.data.model.is_none())
    {
        bail!("nothing to train on: give --acts, or --model and --text, or the same in the configuration");
    }
    Ok(grid)
}

/// `text` as TOML writes it, so that a path is never mistaken for a number.
fn toml_string(text: &str) -> String {
    // JSON's escapes are a subset of those of TOML's basic strings.
    serde_json::Value::from(text).to_string()
}

/// A list of texts, as TOML writes it.
fn toml_list(texts: &[String]) -> String {
    let items: Vec<String> = texts.iter().map(|text| toml_string(text)).collect();
    format!("[{}]", items.join(", "))
}

/// Estimates, refuses what cannot fit, and trains into `out`.
pub fn train(
    config: &RunConfig,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<(Outcome, Option<RunSummary>)> {
    let (outcome, summaries) = train_grid(&config.clone().into(), out, resume, progress, stop)?;
    let summary = summaries.and_then(|mut all| all.pop());
    Ok((outcome, summary.map(|(_, summary)| summary)))
}

/// As [`train`], of every run of a grid.
fn train_grid(
    grid: &Grid,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<(Outcome, Option<Summaries>)> {
    let training = Training::open_grid(grid, progress)?.with_time()?;
    let plans = training.plans();
    let plan = training.plan();
    let memory = plans.iter().map(|(_, p)| p.memory_bytes - p.shared_bytes).sum::<u64>() + plan.shared_bytes;
    let disk = plans.iter().map(|(_, p)| p.disk_bytes - p.copy_bytes).sum::<u64>() + plan.copy_bytes;
    if grid.is_single() {
        eprintln!("{plan}");
    } else {
        eprintln!("{} dictionaries on one stream of {}", plans.len(), plan.source);
        for (name, plan) in plans {
            eprintln!("  {name}: {}, d_sae {}", plan.method_name(), plan.d_sae);
            for note in plan.notes() {
                eprintln!("    {note}");
            }
        }
        let seconds = plans.iter().filter_map(|(_, plan)| plan.seconds).sum();
        eprintln!(
            "{} steps of {} tokens; about {} MiB of memory, {} MiB of disk, {}",
            plan.steps,
            plan.batch,
            memory.div_ceil(1 << 20),
            disk.div_ceil(1 << 20),
            limits::duration(seconds)
        );
    }
    eprintln!("watch it: sae serve {}", out.display());
    // What an earlier call copied already has its place.
    let copied = training.copied_bytes(out).min(plan.copy_bytes);
    limits::check(out, disk - copied, memory)?;
    sae::kernels::keep_freed_memory();
    Ok(training.run(out, resume, progress, stop)?)
}

/// A line for each dictionary of a grid.
fn print_summaries(all: &[(String, RunSummary)], out: &Path) {
    let width = all.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    say!("{:width$}  {:>7}  {:>7}  {:>6}", "", "FVU", "L0", "dead");
    for (name, summary) in all {
        let quality = &summary.held_out;
        say!(
            "{name:width$}  {:>7.4}  {:>7.1}  {:>5.1}%",
            quality.fvu,
            quality.l0,
            100.0 * quality.dead_share
        );
    }
    say!("each in a directory of its name in {}", out.display());
}

fn print_summary(summary: &RunSummary, out: &Path) {
    let quality = &summary.held_out;
    match summary.d_out {
        Some(d_out) => say!(
            "{}, {} latents from width {} to {d_out}",
            summary.method,
            summary.d_sae,
            summary.d_in
        ),
        None => say!(
            "{}, {} latents of width {}",
            summary.method,
            summary.d_sae,
            summary.d_in
        ),
    }
    say!(
        "{} steps over {} tokens in {}",
        summary.steps,
        count(summary.tokens),
        limits::duration(summary.seconds)
    );
    say!(
        "FVU {:.4}, L0 {:.1}, {:.1}% dead, on {} held-out rows",
        quality.fvu,
        quality.l0,
        100.0 * quality.dead_share,
        count(quality.rows)
    );
    for (hook, fvu) in &summary.fvu_by_hook {
        say!("    {hook}  FVU {fvu:.4}");
    }
    if let Some(calibration) = &summary.calibration {
        let thresholds = match calibration.threshold {
            Some(threshold) => format!("one threshold, {threshold:.4}"),
            None => "a threshold for each latent".into(),
        };
        say!(
            "saved with {thresholds}: L0 {:.2} where {} was asked for, on {} rows",
            calibration.l0,
            calibration.target_l0,
            count(calibration.rows)
        );
    }
    let files = [sae::dictionary::PARAMETERS, sae::bilinear::PARAMETERS].map(|name| out.join(name));
    if let Some(file) = files.iter().find(|file| file.exists()) {
        say!("dictionary  {}", file.display());
    }
    say!("curves      {}", out.join("curves.svg").display());
}
