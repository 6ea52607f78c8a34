//! `sae encode`: the codes of activations, as tables for other tools.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activations::harvest::{ContextStream, HarvestOptions};
use activations::hub::{Hub, ModelDir};
use activations::model::Transformer;
use activations::product::Precision;
use activations::source::Activations;
use activations::store::Store;
use activations::{ContextSource, Device, Outcome, Progress, Stop};
use anyhow::{Context, bail};
use sae::codes::{self, CodesManifest, CodesOptions};
use sae::dictionary::{DictionaryCard, Place, Sae, digest};
use sae::index::Naming;
use serde_json::json;

use crate::bars::{Bars, bytes, count, grouped, parse_count};
use crate::features::{encoding_time, fetched};
use crate::harvest::Text;
use crate::say;
use crate::{interrupt, limits, remote};

/// Write the codes of a dictionary: which latents fire on which tokens, and how much
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae encode --sae runs/a --acts acts/ --out codes/
  sae encode --sae runs/a --acts acts/ --tokens 1M --out codes/ --json
  sae encode --sae runs/a --model DIR --text stories.txt --out codes/          # no store needed
  sae encode --sae runs/a --acts acts/ --tokens 20k --dense --out dense/       # codes.npy, [rows, d_sae] of float32
  sae encode … --out codes/ --resume       # after Ctrl-C, a crash or kill -9: the same bytes as if never stopped

rows-*.parquet has a row for each token (context, position, token, active), codes-*.parquet one for each latent that fires
there (context, position, latent, value), both in natural order. docs/codes.md has the Python that makes a scipy matrix of
them. The summary (rows, entries, L0, FVU of the reconstruction, dead latents) is manifest.json, and --json prints it.")]
pub struct Args {
    /// A run's directory, or one with a dictionary.json
    #[arg(long, value_name = "DIR")]
    sae: PathBuf,
    /// A store made by `sae harvest`: a directory, or a URL such as s3://bucket/acts, which is fetched beside --out and
    /// removed afterwards
    #[arg(long, value_name = "DIR|URL")]
    acts: Option<PathBuf>,
    /// In place of --acts, a model that reads --text: a directory, a .gguf file or a hub id, org/name[@revision]
    #[arg(long, value_name = "DIR|GGUF|ID")]
    model: Option<String>,
    #[command(flatten)]
    text: Text,
    /// The hook (default: the dictionary's; of a store with one hook, that)
    #[arg(long, value_name = "HOOK")]
    hook: Option<String>,
    /// With --text, encode BOS and EOS, too
    #[arg(long)]
    keep_special: bool,
    /// Directory of the codes; must be new or empty, unless --resume
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write one array [rows, d_sae] of float32, codes.npy, in place of entries: for small sets
    #[arg(long)]
    dense: bool,
    /// The most GiB that --dense may write
    #[arg(long, value_name = "GIB", default_value_t = 4)]
    dense_limit: u64,
    /// Rows in each file, up to the end of a context (default: as many as have about four million entries)
    #[arg(long, value_name = "COUNT", value_parser = parse_count)]
    rows_per_file: Option<u64>,
    /// cpu, cuda[:i] or vulkan[:i]
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// What the model multiplies, with --text: f32 or bf16, as `sae harvest` has it
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    precision: Precision,
    /// Continue what is unfinished in --out
    #[arg(long)]
    resume: bool,
    /// Print the summary as JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// Encodes, and says what came out.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !args.text.is_empty() && args.acts.is_some() {
        bail!("--acts and --text: codes are of one of them");
    }
    if args.text.is_empty() && args.acts.is_none() {
        bail!("nothing to encode: give --acts, or --model and --text");
    }
    let progress = Bars::default();
    let stop = interrupt::listen()?;
    let again = "the same command and --resume";
    let copy = fetched(&args.out);
    let acts = match &args.acts {
        Some(acts) => match remote::local(acts, &copy, &progress, &stop)? {
            Some(local) => Some(local),
            None => return Ok(interrupt::exit_code(Outcome::Stopped, "the same command")),
        },
        None => None,
    };
    let (sae, card) = Sae::load(&args.sae, &args.device.open()?)?;
    let mut input = match &acts {
        Some(acts) => from_store(acts, &args, &card)?,
        None => from_text(&args, &card, &progress)?,
    };
    let (outcome, manifest) = encode(&sae, &card, &mut input, &args, &progress, &stop)?;
    if outcome == Outcome::Finished && acts.is_some_and(|acts| acts == copy) {
        std::fs::remove_dir_all(&copy).with_context(|| format!("removing {}", copy.display()))?;
    }
    if let Some(manifest) = manifest {
        if args.json {
            say!("{}", serde_json::to_string_pretty(&manifest)?);
        } else {
            print_manifest(&manifest, &args.out);
        }
    }
    Ok(interrupt::exit_code(outcome, again))
}

/// What is encoded.
struct Input {
    contexts: Box<dyn ContextSource>,
    naming: Naming,
    /// Changes when the activations do.
    fingerprint: String,
    /// How many rows there are, about.
    rows: u64,
    /// A limit of tokens that the source does not know of.
    tokens: Option<u64>,
    /// What the source itself takes of the time, about.
    seconds: f64,
}

/// Estimates, refuses what cannot fit, and encodes.
fn encode(
    sae: &Sae,
    card: &DictionaryCard,
    input: &mut Input,
    args: &Args,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<(Outcome, Option<CodesManifest>)> {
    let trained_on = hooks_of(card).map(|hooks| hooks.join(", "));
    if let Some(trained_on) = trained_on.filter(|hooks| *hooks != input.naming.hook) {
        let hook = &input.naming.hook;
        progress.warn(&format!(
            "the dictionary was trained on {trained_on}, but these are activations of {hook}"
        ));
    }
    let dense_bytes = args.dense.then(|| args.dense_limit.saturating_mul(1 << 30));
    // Two bytes for a latent, four for its value, and some for the keys.
    let row_bytes = match dense_bytes {
        Some(_) => 4.0 * sae.d_sae() as f64,
        None => 6.5 * codes::active(card),
    };
    let disk = (input.rows as f64 * (row_bytes + 4.0)) as u64;
    // The dictionary twice while it loads, a block of pre-activations, and the tables before they are written.
    let memory = 4 * (4 * sae.d_in() * sae.d_sae()) as u64 + (256 << 20);
    let seconds = input.seconds + input.rows as f64 * encoding_time(sae)?;
    eprintln!(
        "{} with {} latents over about {} rows of {}; {}",
        sae.sparsifier.name(),
        grouped(sae.d_sae() as u64),
        count(input.rows),
        input.naming.corpus,
        limits::estimate(disk, memory, seconds)
    );
    let options = CodesOptions {
        tokens: input.tokens,
        dense_bytes,
        rows_per_shard: args.rows_per_file,
        about_rows: Some(input.rows),
        resume: args.resume,
    };
    if dense_bytes.is_none_or(|limit| disk <= limit) {
        limits::check(&args.out, disk, memory)?;
    }
    Ok(codes::encode(
        sae,
        card,
        &digest(&args.sae)?,
        input.contexts.as_mut(),
        &input.naming,
        &input.fingerprint,
        &args.out,
        &options,
        progress,
        stop,
    )?)
}

fn from_store(acts: &Path, args: &Args, card: &DictionaryCard) -> anyhow::Result<Input> {
    let store = Store::open(acts)?;
    let manifest = store.manifest();
    let spec = &manifest.spec;
    let reads = card.reads();
    let hooks: Vec<&str> = match (&reads[..], args.hook.as_deref()) {
        // The hook that the dictionary was trained on, if the store has it; else the store's only one.
        ([only], asked) => {
            let trained_on = only.hook.as_deref();
            let trained_on = trained_on.filter(|hook| spec.hooks.iter().any(|h| h.name == *hook));
            vec![&spec.hook(asked.or(trained_on))?.1.name]
        }
        (several, None) => several.iter().map(Place::name).collect(),
        (several, Some(_)) => return Err(several_hooks(several)),
    };
    let fingerprint = |hook: &&str| Ok(Activations::of_store(&store, Some(hook))?.origin().fingerprint);
    let fingerprint = hooks.iter().map(fingerprint).collect::<anyhow::Result<Vec<String>>>()?;
    let tokens = args.text.tokens();
    let share = tokens.map_or(1.0, |tokens| (tokens as f64 / manifest.n_tokens.max(1) as f64).min(1.0));
    Ok(Input {
        contexts: Box::new(store.contexts_of(&hooks)?),
        naming: Naming {
            hook: hooks.join(", "),
            model: spec.model.name.clone(),
            corpus: spec.corpus.name.clone(),
        },
        fingerprint: fingerprint.join(" "),
        rows: (manifest.n_rows as f64 * share).ceil() as u64,
        tokens,
        seconds: 0.0, // reading is fast beside encoding
    })
}

fn from_text(args: &Args, card: &DictionaryCard, progress: &dyn Progress) -> anyhow::Result<Input> {
    let hub = Hub::from_env();
    let model = args
        .model
        .as_deref()
        .context("--text needs --model: which model should read it?")?;
    let model: ModelDir = hub.find(model, progress)?;
    let hooks = match (&card.reads()[..], &args.hook) {
        ([_], Some(hook)) => Some(vec![hook.clone()]),
        (several, Some(_)) => return Err(several_hooks(several)),
        (_, None) => hooks_of(card),
    };
    let hooks = hooks.context("the dictionary does not say which hook it belongs to: name it with --hook")?;
    let mut options = HarvestOptions {
        device: args.device,
        precision: args.precision,
        keep_special: args.keep_special,
        ..args.text.options(&model, hooks.clone())
    };
    options.fetch_texts(&hub, progress)?;
    let plan = activations::harvest::plan(&options)?;
    let corpus = plan.corpus();
    let naming = Naming {
        hook: hooks.join(", "),
        model: model.name.clone(),
        corpus: corpus.name().to_owned(),
    };
    // Everything that the activations depend on.
    let fingerprint = json!({
        "model": Transformer::fingerprint(&model.path)?,
        "text": corpus.fingerprint()?,
        "settings": corpus.settings(),
        "tokens": options.tokens,
        "context": corpus.options().context,
        "keep_special": options.keep_special,
        "precision": options.precision.to_string(),
    });
    let (rows, seconds) = (plan.estimate().rows, plan.estimate().seconds());
    Ok(Input {
        contexts: Box::new(ContextStream::new(plan)),
        naming,
        fingerprint: fingerprint.to_string(),
        rows,
        // The stream ends there by itself.
        tokens: None,
        seconds,
    })
}

/// The hooks that a dictionary reads, if it says so.
fn hooks_of(card: &DictionaryCard) -> Option<Vec<String>> {
    card.reads().into_iter().map(|place| place.hook).collect()
}

/// `--hook` beside a dictionary that reads several.
fn several_hooks(reads: &[Place]) -> anyhow::Error {
    let names: Vec<&str> = reads.iter().map(Place::name).collect();
    anyhow::anyhow!(
        "--hook: the dictionary reads several hooks, which it names itself: {}",
        names.join(", ")
    )
}

fn print_manifest(manifest: &CodesManifest, out: &Path) {
    let d_sae = manifest.request.d_sae as u64;
    say!(
        "{} rows with {} entries: L0 {:.2}",
        count(manifest.n_rows),
        count(manifest.n_entries),
        manifest.l0
    );
    if let Some(fvu) = manifest.fvu {
        say!("FVU {fvu:.4} of the reconstruction");
    }
    say!(
        "{} of {} latents never fire here",
        grouped(manifest.dead_latents),
        grouped(d_sae)
    );
    let size = manifest.shards.iter().map(|s| s.rows_bytes + s.codes_bytes).sum();
    say!("codes  {} ({})", out.display(), bytes(size));
}
