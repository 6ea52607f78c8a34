//! `sae demo`: the whole way once, on the embedded model, and then the browser.

pub mod embedded;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use activations::harvest::HarvestOptions;
use activations::hub::ModelDir;
use activations::store::StoreState;
use activations::{Device, Outcome, Progress, Stop, atomic};
use anyhow::{Context, bail};
use sae::config::RunConfig;
use sae::index::{BuildOptions, FeatureIndex};
use sae::train::RunSummary;
use serde::{Deserialize, Serialize};

use crate::bars::{Bars, count};
use crate::features::{self, Source};
use crate::harvest::{self, Text};
use crate::serve::Listen;
use crate::{interrupt, limits, serve, train};
use crate::{print, say};

/// The whole way on a small built-in story model, then browse its features
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae demo                          # model, activations, dictionary, features, then http://127.0.0.1:7860
  sae demo --no-serve --json        # everything but the browser; one JSON summary
  sae demo --fresh --out /tmp/demo  # from the beginning, elsewhere

Running it again continues where it stopped, and serves what is there. Nothing is downloaded.")]
pub struct Args {
    /// Where everything goes
    #[arg(long, value_name = "DIR", default_value = "sae-demo")]
    out: PathBuf,
    /// Throw away an earlier demo in --out and start over
    #[arg(long)]
    fresh: bool,
    /// Stop before serving
    #[arg(long)]
    no_serve: bool,
    /// Print one JSON summary on the standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    listen: Listen,
}

/// The place in the model whose activations the demo takes apart: the middle of its five blocks.
const HOOK: &str = "blocks.2.hook_resid_post";

/// The demo's `run.toml`, less what the defaults give.
const SETTINGS: [(&str, &str); 6] = [
    ("sae.d_sae", "2048"),
    ("sae.k", "16"),
    ("train.batch", "2048"),
    ("train.steps", "1500"),
    ("train.lr", "1e-3"),
    ("data.held_out_rows", "16384"),
];

/// What the demo made: `demo.json`, written last.
#[derive(Serialize, Deserialize)]
struct Summary {
    directory: PathBuf,
    model: String,
    hook: String,
    /// Activation rows.
    rows: u64,
    method: String,
    d_in: usize,
    d_sae: usize,
    /// On held-out text, as are the next two.
    fvu: f64,
    l0: f64,
    dead_share: f64,
    held_out_rows: u64,
    /// Features that fire somewhere in the text.
    features_alive: usize,
    seconds: Seconds,
    /// Each stage by hand, from the directory the demo was started in.
    commands: Vec<String>,
}

/// Wall-clock time of each stage; 0 for what was there already.
#[derive(Default, Serialize, Deserialize)]
struct Seconds {
    harvest: f64,
    train: f64,
    features: f64,
}

/// The parts of the demo's directory.
struct Places {
    root: PathBuf,
    model: PathBuf,
    text: PathBuf,
    acts: PathBuf,
    run: PathBuf,
    features: PathBuf,
    summary: PathBuf,
}

impl Places {
    fn under(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            model: root.join("storyteller"),
            text: root.join("storyteller/stories.txt"),
            acts: root.join("acts"),
            run: root.join("run"),
            features: root.join("features"),
            summary: root.join("demo.json"),
        }
    }
}

/// Makes what is missing, says what there is, serves it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let places = Places::under(&args.out);
    if !args.no_serve {
        args.listen.check_free()?;
    }
    if args.fresh {
        discard(&places)?;
    }
    let summary = match finished(&places)? {
        Some(summary) => summary,
        None => {
            let stop = interrupt::listen()?;
            match make(&places, &Bars::default(), &stop)? {
                Some(summary) => summary,
                None => return Ok(interrupt::exit_code(Outcome::Stopped, &again(&args))),
            }
        }
    };
    if args.json {
        say!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print::text(format_args!("{}", text(&summary, &places)));
    }
    if args.no_serve {
        return Ok(ExitCode::SUCCESS);
    }
    serve::serve(vec![places.features], &args.listen)
}

fn again(args: &Args) -> String {
    format!("sae demo --out {}", args.out.display())
}

/// Removes an earlier demo, and nothing else.
fn discard(places: &Places) -> anyhow::Result<()> {
    let root = places.root.display();
    if !places.root.exists() {
        return Ok(());
    }
    let empty = std::fs::read_dir(&places.root)
        .with_context(|| format!("{root}"))?
        .next()
        .is_none();
    if !empty && !places.model.join(embedded::MARK).exists() {
        bail!("{root}: not made by `sae demo`, so --fresh leaves it alone; name another directory with --out");
    }
    std::fs::remove_dir_all(&places.root).with_context(|| format!("removing {root}"))
}

/// The summary of a demo that is complete.
fn finished(places: &Places) -> anyhow::Result<Option<Summary>> {
    if !places.summary.exists() {
        return Ok(None);
    }
    embedded::check(&places.model)?;
    let path = places.summary.display();
    let text = std::fs::read(&places.summary).with_context(|| format!("{path}"))?;
    let summary = serde_json::from_slice(&text)
        .with_context(|| format!("{path}: not the summary of a demo; start over with --fresh"))?;
    FeatureIndex::open(&places.features).context("the demo's features; start over with --fresh")?;
    Ok(Some(summary))
}

/// Every stage that is not there yet; `None` when stopped.
fn make(places: &Places, progress: &dyn Progress, stop: &Stop) -> anyhow::Result<Option<Summary>> {
    embedded::unpack(&places.model)?;
    let mut seconds = Seconds::default();
    let options =
        Text::of(&places.text, embedded::SEPARATOR).options(&ModelDir::local(&places.model)?, vec![HOOK.into()]);
    if timed(&mut seconds.harvest, || harvest_stage(places, &options, progress, stop))? == Outcome::Stopped {
        return Ok(None);
    }
    let Some(run) = timed(&mut seconds.train, || train_stage(places, progress, stop))? else {
        return Ok(None);
    };
    if timed(&mut seconds.features, || features_stage(places, progress, stop))? == Outcome::Stopped {
        return Ok(None);
    }
    let summary = summarise(places, run, seconds)?;
    atomic::write(&places.summary, &serde_json::to_vec_pretty(&summary)?)?;
    Ok(Some(summary))
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    let done = work()?;
    *seconds = began.elapsed().as_secs_f64();
    Ok(done)
}

fn harvest_stage(
    places: &Places,
    options: &HarvestOptions,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let resume = match activations::store::state(&places.acts)? {
        StoreState::Finished(_) => return Ok(Outcome::Finished),
        state => matches!(state, StoreState::Unfinished(_)),
    };
    Ok(harvest::harvest(options, &places.acts, resume, progress, stop)?.0)
}

fn train_stage(places: &Places, progress: &dyn Progress, stop: &Stop) -> anyhow::Result<Option<RunSummary>> {
    let acts = places.acts.to_str().context("the path of the demo must be UTF-8")?;
    let mut settings: Vec<(String, String)> = SETTINGS.map(|(k, v)| (k.into(), v.into())).to_vec();
    settings.push(("data.acts".into(), serde_json::Value::from(acts).to_string()));
    let config = RunConfig::from_toml("", &settings)?;
    let resume = places.run.join(sae::config::RUN_TOML).exists();
    Ok(train::train(&config, &places.run, resume, progress, stop)?.1)
}

fn features_stage(places: &Places, progress: &dyn Progress, stop: &Stop) -> anyhow::Result<Outcome> {
    if FeatureIndex::open(&places.features).is_ok() {
        return Ok(Outcome::Finished);
    }
    let source = Source::Store {
        acts: &places.acts,
        model: Some(&places.model),
    };
    let options = BuildOptions::default();
    let (outcome, _) = features::features(
        &places.run,
        source,
        &places.features,
        &options,
        Device::Cpu,
        progress,
        stop,
    )?;
    Ok(outcome)
}

fn summarise(places: &Places, run: RunSummary, seconds: Seconds) -> anyhow::Result<Summary> {
    let index = FeatureIndex::open(&places.features)?;
    let (acts, out, features) = (places.acts.display(), places.run.display(), places.features.display());
    let model = places.model.display();
    let settings: Vec<String> = SETTINGS.iter().map(|(k, v)| format!("--set {k}={v}")).collect();
    Ok(Summary {
        directory: places.root.clone(),
        model: index.manifest().model.clone(),
        hook: HOOK.into(),
        rows: index.manifest().tokens,
        method: run.method,
        d_in: run.d_in,
        d_sae: run.d_sae,
        fvu: run.held_out.fvu,
        l0: run.held_out.l0,
        dead_share: run.held_out.dead_share,
        held_out_rows: run.held_out.rows,
        features_alive: index.summaries().iter().filter(|f| f.alive).count(),
        seconds,
        commands: vec![
            format!(
                "sae harvest --model {model} --text {} --separator '{}' --hook {HOOK} --out {acts}",
                places.text.display(),
                embedded::SEPARATOR
            ),
            format!("sae train --acts {acts} --out {out} {}", settings.join(" ")),
            format!("sae features --sae {out} --acts {acts} --model {model} --out {features}"),
            format!("sae serve {features}"),
        ],
    })
}

fn text(summary: &Summary, places: &Places) -> String {
    let mut lines = vec![
        String::new(),
        format!(
            "model        {} ({} activations of {})",
            places.model.display(),
            count(summary.rows),
            summary.hook
        ),
        format!("activations  {}", places.acts.display()),
        format!(
            "dictionary   {}   {}, {} latents",
            places.run.display(),
            summary.method,
            summary.d_sae
        ),
        format!("curves       {}", places.run.join("curves.svg").display()),
        format!(
            "features     {}   {} alive",
            places.features.display(),
            summary.features_alive
        ),
        format!(
            "held-out     FVU {:.3}, L0 {:.1}, dead {:.1}%   on {} rows",
            summary.fvu,
            summary.l0,
            100.0 * summary.dead_share,
            count(summary.held_out_rows)
        ),
    ];
    let Seconds {
        harvest,
        train,
        features,
    } = summary.seconds;
    lines.push(format!(
        "time         {} (harvest {harvest:.0} s, train {train:.0} s, features {features:.0} s)",
        limits::duration(harvest + train + features)
    ));
    lines.push("\nEach stage by hand:".into());
    lines.extend(summary.commands.iter().map(|c| format!("  {c}")));
    lines.push(String::new());
    lines.join("\n") + "\n"
}
