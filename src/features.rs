//! `sae features`: what every feature of a dictionary does on a text, as an index that can be browsed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use activations::harvest::{ContextStream, HarvestOptions};
use activations::hooks::{HookPoint, Site};
use activations::hub::{Hub, ModelDir};
use activations::model::Transformer;
use activations::product::Precision;
use activations::store::Store;
use activations::tokenizer::Tokenizer;
use activations::{ContextSource, Device, Outcome, Progress, Stop};
use anyhow::{Context, bail};
use sae::dictionary::{DictionaryCard, Place, Sae};
use sae::index::{BuildOptions, IndexManifest, Naming, Unembedding, build, estimate};

use crate::bars::{Bars, count, grouped};
use crate::harvest::Text;
use crate::say;
use crate::{interrupt, limits, remote};

/// Build the feature index of a dictionary
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae features --sae runs/a --acts acts/ --out features/
  sae features --sae runs/a --acts acts/ --model DIR --out features/         # with the logits of every feature
  sae features --sae runs/a --model DIR --text stories.txt --tokens 1M --out features/

The index is plain Parquet (features.parquet, examples.parquet, contexts.parquet, vocabulary.parquet); look at it with
`sae serve`.")]
pub struct Args {
    /// A run's directory, or one with a dictionary.json
    #[arg(long, value_name = "DIR")]
    sae: PathBuf,
    /// A store made by `sae harvest`: a directory, or a URL such as s3://bucket/acts, which is fetched beside --out and
    /// removed afterwards
    #[arg(long, value_name = "DIR|URL", required_unless_present = "text")]
    acts: Option<PathBuf>,
    /// A model's directory, .gguf file or hub id; beside --acts it gives the features' logits
    #[arg(long, value_name = "DIR|GGUF|ID")]
    model: Option<String>,
    #[command(flatten)]
    text: Text,
    /// Directory of the index
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace an index that is there, once the new one is complete
    #[arg(long)]
    overwrite: bool,
    /// Contexts of the largest values of a feature
    #[arg(long, value_name = "N", default_value_t = BuildOptions::default().top_contexts)]
    top: usize,
    /// Quantiles of a feature's values that examples are shown of
    #[arg(long, value_name = "N", default_value_t = BuildOptions::default().quantiles)]
    quantiles: u32,
    /// Of the sampled examples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// cpu, cuda[:i] or vulkan[:i]
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// What the model multiplies, with --text: f32 or bf16, as `sae harvest` has it
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    precision: Precision,
    /// Print the index's manifest as JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// Builds the index, and says what is in it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = BuildOptions {
        top_contexts: args.top,
        quantiles: args.quantiles,
        seed: args.seed,
        overwrite: args.overwrite,
        ..BuildOptions::default()
    };
    if !args.text.is_empty() && args.acts.is_some() {
        bail!("--acts and --text: an index is built from one of them");
    }
    let progress = Bars::default();
    let hub = Hub::from_env();
    let model = args.model.as_deref().map(|model| hub.find(model, &progress));
    let model = model.transpose()?;
    let stop = interrupt::listen()?;
    let again = "the same command: nothing half-made was left";
    let copy = fetched(&args.out);
    let acts = match &args.acts {
        Some(acts) => match remote::local(acts, &copy, &progress, &stop)? {
            Some(local) => Some(local),
            None => return Ok(interrupt::exit_code(Outcome::Stopped, again)),
        },
        None => None,
    };
    let source = match (&acts, &model) {
        (Some(acts), model) => Source::Store {
            acts,
            model: model.as_ref().map(|model| model.path.as_path()),
        },
        (None, Some(model)) => Source::Text {
            model,
            text: &args.text,
            precision: args.precision,
        },
        (None, None) => bail!("--text needs --model: which model should read it?"),
    };
    let (outcome, manifest) = features(&args.sae, source, &args.out, &options, args.device, &progress, &stop)?;
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

/// Beside what is made of it, the copy of a store that is not on this machine; it is removed once that is there.
pub fn fetched(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".acts");
    out.with_file_name(name)
}

/// Where the activations come from.
pub enum Source<'a> {
    /// A store, with a model where logits are wanted.
    Store {
        /// The store's directory.
        acts: &'a Path,
        /// The model's directory.
        model: Option<&'a Path>,
    },
    /// A model over a text, in memory.
    Text {
        /// The model.
        model: &'a ModelDir,
        /// The text.
        text: &'a Text,
        /// What the model multiplies.
        precision: Precision,
    },
}

/// Latents that fire for a token: as many as the dictionary allows, or as were seen.
fn active(sae: &Sae, card: &DictionaryCard) -> usize {
    let seen = card.held_out.map(|quality| quality.l0.ceil() as usize);
    sae.sparsifier.k().or(seen).unwrap_or(sae.d_sae())
}

/// Estimates, refuses what cannot fit, and builds the index of the dictionary `sae` in `out`.
pub fn features(
    sae: &Path,
    source: Source<'_>,
    out: &Path,
    options: &BuildOptions,
    device: Device,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<(Outcome, Option<IndexManifest>)> {
    options.validate()?;
    let (sae, card) = Sae::load(sae, &device.open()?)?;
    let mut input = match source {
        Source::Store { acts, model } => from_store(acts, model, &card, device)?,
        Source::Text { model, text, precision } => from_text(model, text, &card, device, precision, progress)?,
    };
    let d_vocab = input.unembedding.as_ref().map_or(0, Unembedding::d_vocab);
    let needs = estimate(
        sae.d_out(),
        sae.d_sae(),
        active(&sae, &card),
        d_vocab,
        input.tokens,
        options,
    );
    let seconds = input.seconds + input.tokens as f64 * encoding_time(&sae)?;
    eprintln!(
        "{} with {} features over about {} tokens of {}; {}",
        card.sparsifier.name(),
        sae.d_sae(),
        count(input.tokens),
        input.naming.corpus,
        limits::estimate(needs.disk_bytes, needs.memory_bytes, seconds)
    );
    limits::check(out, needs.disk_bytes, needs.memory_bytes)?;
    Ok(build(
        &sae,
        &card,
        input.contexts.as_mut(),
        &input.vocabulary,
        input.unembedding.as_ref(),
        out,
        options,
        &input.naming,
        progress,
        stop,
    )?)
}

/// What an index is built from.
struct Input {
    contexts: Box<dyn ContextSource>,
    vocabulary: Vec<Vec<u8>>,
    /// Where the dictionary writes to the residual stream.
    unembedding: Option<Unembedding>,
    naming: Naming,
    /// How many tokens there are, about.
    tokens: u64,
    /// What the source itself takes of the time, about.
    seconds: f64,
}

/// Seconds to encode a row, measured: that is most of the work.
pub fn encoding_time(sae: &Sae) -> anyhow::Result<f64> {
    const ROWS: usize = 256;
    // Any values will do, as long as they are not all the same.
    let x: Vec<f32> = (0..ROWS * sae.d_in()).map(|i| (i % 97) as f32 / 97.0).collect();
    sae.encode_rows(&x)?; // warms up
    let clock = Instant::now();
    sae.encode_rows(&x)?;
    Ok(clock.elapsed().as_secs_f64() / ROWS as f64)
}

fn from_store(acts: &Path, model: Option<&Path>, card: &DictionaryCard, device: Device) -> anyhow::Result<Input> {
    let store = Store::open(acts)?;
    let manifest = store.manifest();
    let spec = &manifest.spec;
    let reads = card.reads();
    let hooks: Vec<&str> = match &reads[..] {
        // The hook that the dictionary was trained on, if the store has it; else the store's only one.
        [only] => {
            let wanted = only
                .hook
                .as_deref()
                .filter(|hook| spec.hooks.iter().any(|h| h.name == *hook));
            vec![&spec.hook(wanted)?.1.name]
        }
        several => several.iter().map(Place::name).collect(),
    };
    let tokenizer = match store.file("tokenizer.json") {
        Some(path) => path,
        None => model.map(Path::to_owned).with_context(|| {
            format!(
                "{}: the store has no tokenizer.json; name the model with --model",
                acts.display()
            )
        })?,
    };
    let unembedding = match model {
        Some(model) => logit_directions(&Transformer::load(model, &device.open()?)?, card, &hooks)?,
        None => None,
    };
    Ok(Input {
        contexts: Box::new(store.contexts_of(&hooks)?),
        vocabulary: Tokenizer::load(&tokenizer)?.vocabulary(),
        unembedding,
        naming: Naming {
            hook: hooks.join(", "),
            model: spec.model.name.clone(),
            corpus: spec.corpus.name.clone(),
        },
        tokens: manifest.n_rows,
        seconds: 0.0, // reading is fast beside encoding
    })
}

fn from_text(
    model: &ModelDir,
    text: &Text,
    card: &DictionaryCard,
    device: Device,
    precision: Precision,
    progress: &dyn Progress,
) -> anyhow::Result<Input> {
    let hooks: Option<Vec<String>> = card.reads().into_iter().map(|place| place.hook).collect();
    let hooks = hooks.context("the dictionary does not say which hook it belongs to: build its index from --acts")?;
    let mut options = HarvestOptions {
        device,
        precision,
        ..text.options(model, hooks.clone())
    };
    options.fetch_texts(&Hub::from_env(), progress)?;
    let plan = activations::harvest::plan(&options)?;
    let (tokens, seconds) = (plan.estimate().tokens, plan.estimate().seconds());
    let naming = Naming {
        hook: hooks.join(", "),
        model: model.name.clone(),
        corpus: plan.corpus().name().to_owned(),
    };
    let vocabulary = plan.corpus().tokenizer().vocabulary();
    let hooks: Vec<&str> = hooks.iter().map(String::as_str).collect();
    let unembedding = logit_directions(plan.model(), card, &hooks)?;
    Ok(Input {
        contexts: Box::new(ContextStream::new(plan)),
        vocabulary,
        unembedding,
        naming,
        tokens,
        seconds,
    })
}

/// The directions that logits read from what a dictionary writes; nothing where that is not added to the residual stream,
/// so that it has no direct path to the logits. A crosscoder writes to several places: its last is looked at. `reads` are the
/// hooks whose activations are there, which an autoencoder writes, whatever hook it was trained on.
fn logit_directions(model: &Transformer, card: &DictionaryCard, reads: &[&str]) -> anyhow::Result<Option<Unembedding>> {
    let writes = card.writes();
    let hook = match card.writes.is_empty() {
        true => reads.last().copied(),
        false => writes.last().and_then(|place| place.hook.as_deref()),
    };
    let (Some(hook), Some(width)) = (hook, writes.last().map(|place| place.width)) else {
        return Ok(None);
    };
    let direct = model.has_logits()
        && match model.config().hook(hook)? {
            HookPoint::Embed | HookPoint::PosEmbed | HookPoint::FinalNormalized => true,
            HookPoint::Block(_, site) => matches!(
                site,
                Site::ResidPre | Site::ResidMid | Site::ResidPost | Site::AttnOut | Site::MlpOut
            ),
        };
    if direct && model.config().d_model != width {
        bail!(
            "activations of {hook} have width {width}, but the model's residual stream has {}",
            model.config().d_model
        );
    }
    Ok(match direct {
        true => Some(Unembedding {
            values: model.unembedding()?,
            columns: card.d_out() - width..card.d_out(),
        }),
        false => None,
    })
}

fn print_manifest(manifest: &IndexManifest, out: &Path) {
    let dictionary = &manifest.dictionary;
    say!(
        "{} features over {} tokens in {} contexts",
        grouped(manifest.d_sae as u64),
        count(manifest.tokens),
        count(manifest.contexts)
    );
    if let (Some(l0), Some(dead)) = (dictionary.l0, dictionary.dead) {
        say!("L0 {l0:.1}, {:.1}% never fire here", 100.0 * dead);
    }
    say!("index  {}   look at it: sae serve {}", out.display(), out.display());
}
