//! `sae inspect`: what a file or directory is.

mod facts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activations::gguf_file::GgufFile;
use activations::model::Transformer;
use activations::objects::{Place, Remote};
use activations::source::{Activations, listing};
use activations::store::{Store, StoreManifest, StoreSpec, StoreState};
use activations::tokenizer::Tokenizer;
use anyhow::{Context, bail};
use sae::bilinear::Bilinear;
use sae::dictionary::{self, CARD, Sae, Shape};
use sae::index::FeatureIndex;
use serde_json::json;

use self::facts::Facts;

use crate::{print, say};
/// Say what a file or directory is: its shape, where it comes from, its size, whether it is whole
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae inspect acts/               # a store: hook, rows, model, text, shards
  sae inspect s3://lab/acts       # the same of a store in an object store; nothing but its manifest is fetched
  sae inspect runs/a              # a run: how far it is, its dictionary and quality
  sae inspect features/           # an index: features alive, tokens seen
  sae inspect models/stories15M   # a model: sizes, and the hooks it has
  sae inspect SmolLM2.Q4_K.gguf   # the same of llama.cpp's format
  sae inspect vision.npy --json   # rows, width, number format
  sae inspect embeddings/         # Parquet, or a dataset such as SAELens' cache: the columns to train on

Exits with 1 where something is damaged or unfinished, and says what to do.")]
pub struct Args {
    /// A store or its URL, a run or dictionary, an index, a model's directory or .gguf; a .npy, .safetensors, .parquet or dataset
    path: PathBuf,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// Looks, and prints.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let facts = look(&args.path)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&facts.json())?);
    } else {
        print::text(format_args!("{facts}"));
    }
    Ok(if facts.whole() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn look(path: &Path) -> anyhow::Result<Facts> {
    match Place::of(path)? {
        Place::Local(path) => local(&path),
        Place::Remote(url) => match Remote::look(&url)? {
            Remote::Store(found) => store(path, found.manifest()),
            Remote::Other(StoreState::Unfinished(spec), _) => unfinished(path, &spec),
            Remote::Other(_, error) => Err(error.into()),
        },
    }
}

fn local(path: &Path) -> anyhow::Result<Facts> {
    if !path.exists() {
        bail!("{}: no such file or directory", path.display());
    }
    if GgufFile::of_model(path)?.is_some() {
        return model(path);
    }
    if path.is_file() {
        return foreign(path)?.with_context(|| {
            format!(
                "{}: nothing that is known; directories are looked at whole",
                path.display()
            )
        });
    }
    let has = |name: &str| path.join(name).exists();
    if has("features.parquet") || has("features.parquet.tmp") {
        return index(path);
    }
    match activations::store::state(path)? {
        // Opening checks that every shard is there.
        StoreState::Finished(_) => return store(path, Store::open(path)?.manifest()),
        StoreState::Unfinished(spec) => return unfinished(path, &spec),
        StoreState::Absent | StoreState::Foreign(_) => {}
    }
    if has(CARD) || has(sae::bilinear::CARD) || has("run.toml") {
        return run_or_dictionary(path);
    }
    if has("config.json") {
        return model(path);
    }
    foreign(path)?.with_context(|| {
        format!(
            "{}: nothing that is known: a store or index has a manifest.json, a run a run.toml, a dictionary a {CARD}, \
             a model a config.json or is a .gguf, other programs' activations .parquet or .arrow files",
            path.display()
        )
    })
}

/// Activations, or tensors, of another program.
fn foreign(path: &Path) -> anyhow::Result<Option<Facts>> {
    let Some(listing) = listing(path)? else { return Ok(None) };
    let mut facts = Facts::new(listing.kind, path);
    let trainable: Vec<_> = listing.columns.iter().filter(|(.., good)| *good).collect();
    match trainable[..] {
        // Opening it checks it as `sae train` would. What bytes mean, only the user knows.
        [(_, what, _)] if !what.starts_with("binary") => {
            let acts = Activations::open(path, None)?;
            facts.number("rows", acts.n_rows());
            facts.number("d_in", acts.d_in() as u64);
            facts.say("dtype", acts.dtype().to_string());
        }
        _ => {
            if let Some(rows) = listing.rows {
                facts.number("rows", rows);
            }
        }
    }
    for (name, what, _) in &listing.columns {
        facts.say(name.as_str(), what.as_str());
    }
    if listing.files > 1 {
        facts.number("files", listing.files as u64);
    }
    facts.size(listing.bytes);
    Ok(Some(facts))
}

fn hooks(spec: &StoreSpec) -> String {
    let one = |h: &activations::store::HookSpec| format!("{} (d_in {})", h.name, h.d_in);
    spec.hooks.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn unfinished(path: &Path, spec: &StoreSpec) -> anyhow::Result<Facts> {
    let mut facts = Facts::new("store", path);
    facts.say("hooks", hooks(spec));
    facts.say("model", spec.model.name.clone());
    match activations::store::waiting(path)? {
        parts if parts.is_empty() => {
            facts.broken("unfinished: continue with the same `sae harvest` command and --resume");
        }
        parts => facts.broken(format!("unfinished: {}", parts.join("; "))),
    }
    Ok(facts)
}

fn store(path: &Path, manifest: &StoreManifest) -> anyhow::Result<Facts> {
    let spec = &manifest.spec;
    let mut facts = Facts::new("store", path);
    facts.say("hooks", hooks(spec));
    facts.number("rows", manifest.n_rows);
    facts.number("tokens", manifest.n_tokens);
    facts.number("contexts", manifest.n_contexts);
    facts.number("context_length", spec.context_length as u64);
    facts.say("dtype", spec.dtype.to_string());
    facts.optional("compression", spec.compression.map(|c| c.to_string()));
    facts.say("model", spec.model.name.clone());
    facts.say("text", spec.corpus.name.clone());
    facts.say(
        "special tokens",
        if spec.skip_special { "have no rows" } else { "have rows" },
    );
    for (what, n) in [
        ("bad records left out", manifest.text.bad_records),
        ("sequences not UTF-8", manifest.text.replaced),
    ] {
        if n > 0 {
            facts.number(what, n);
        }
    }
    facts.number("shards", manifest.shards.len() as u64);
    facts.size(manifest.bytes());
    facts.detail("manifest", serde_json::to_value(manifest)?);
    Ok(facts)
}

fn run_or_dictionary(path: &Path) -> anyhow::Result<Facts> {
    let run = path.join("run.toml").exists();
    let mut facts = Facts::new(if run { "run" } else { "dictionary" }, path);
    if path.join(sae::bilinear::CARD).exists() {
        return bilinear(facts, path);
    }
    if !path.join(CARD).exists() {
        facts.broken(format!(
            "unfinished: continue with sae train --out {} --resume",
            path.display()
        ));
        return Ok(facts);
    }
    // Loading checks every parameter: names, shapes, finite values.
    let (_, card) = Sae::load(path, &activations::Device::Cpu.open()?)?;
    facts.say("method", card.sparsifier.name());
    let trained_as = card.trained_as();
    facts.optional("trained as", (trained_as != card.sparsifier).then(|| trained_as.name()));
    facts.number("d_sae", card.d_sae as u64);
    facts.number("d_in", card.d_in as u64);
    facts.optional("hook", card.hook.clone());
    if card.shape() != Shape::Autoencoder {
        let names = |places: Vec<dictionary::Place>| {
            let one = |place: &dictionary::Place| format!("{} ({})", place.name(), place.width);
            places.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        facts.say("shape", card.shape().name());
        facts.say("reads", names(card.reads()));
        facts.say("writes", names(card.writes()));
    }
    facts.optional("model", card.model.as_ref().map(|m| m.name.clone()));
    facts.number("trained tokens", card.trained_tokens);
    facts.optional(
        "initialised from",
        card.initialised_from
            .as_ref()
            .map(|from| format!("{} ({})", from.name, &from.sha256.get(..12).unwrap_or(&from.sha256))),
    );
    if let Some(quality) = card.held_out {
        facts.figure("fvu", quality.fvu, 4);
        facts.figure("l0", quality.l0, 2);
        facts.figure("dead share", quality.dead_share, 4);
        facts.number("held-out rows", quality.rows);
    }
    facts.size(std::fs::metadata(path.join(sae::dictionary::PARAMETERS))?.len());
    facts.detail("card", serde_json::to_value(&card)?);
    Ok(facts)
}

fn bilinear(mut facts: Facts, path: &Path) -> anyhow::Result<Facts> {
    // Loading checks every parameter: names, shapes, finite values.
    let (_, card) = Bilinear::load(path, &activations::Device::Cpu.open()?)?;
    facts.say("shape", "bilinear autoencoder");
    facts.say("form", card.form.key());
    facts.number("d_sae", card.d_sae as u64);
    facts.number("d_in", card.d_in as u64);
    if let Some(clusters) = card.clusters {
        facts.number("clusters", clusters as u64);
    }
    facts.optional("hook", card.hook.clone());
    facts.optional("model", card.model.as_ref().map(|m| m.name.clone()));
    facts.number("trained tokens", card.trained_tokens);
    if let Some(quality) = card.held_out {
        facts.figure("fvu of products", quality.fvu, 4);
        facts.number("held-out rows", quality.rows);
    }
    facts.size(std::fs::metadata(path.join(sae::bilinear::PARAMETERS))?.len());
    facts.detail("card", serde_json::to_value(&card)?);
    Ok(facts)
}

fn index(path: &Path) -> anyhow::Result<Facts> {
    let index = FeatureIndex::open(path)?;
    let manifest = index.manifest();
    let alive = index.summaries().iter().filter(|f| f.alive).count();
    let mut facts = Facts::new("index", path);
    facts.number("features", manifest.d_sae as u64);
    facts.number("alive", alive as u64);
    facts.say("method", manifest.dictionary.activation.clone());
    facts.say("hook", manifest.hook.clone());
    facts.say("model", manifest.model.clone());
    facts.say("text", manifest.corpus.clone());
    facts.number("tokens", manifest.tokens);
    facts.number("contexts", manifest.contexts);
    if let Some(l0) = manifest.dictionary.l0 {
        facts.figure("l0", l0, 2);
    }
    let files = [
        "features.parquet",
        "examples.parquet",
        "contexts.parquet",
        "vocabulary.parquet",
    ];
    let mut size = 0;
    for name in files {
        size += std::fs::metadata(path.join(name))?.len();
    }
    facts.size(size);
    facts.detail("manifest", json!(manifest));
    Ok(facts)
}

fn model(path: &Path) -> anyhow::Result<Facts> {
    // Loading checks that every tensor is there and has the shape that the configuration promises.
    let model = Transformer::load(path, &activations::Device::Cpu.open()?)?;
    let config = model.config();
    let mut facts = Facts::new("model", path);
    facts.number("layers", config.n_layers as u64);
    facts.number("d_model", config.d_model as u64);
    facts.number("heads", config.n_heads as u64);
    facts.number("key and value heads", config.n_kv_heads as u64);
    facts.number("d_mlp", config.d_mlp as u64);
    facts.number("vocabulary", config.d_vocab as u64);
    facts.number("longest context", config.max_context as u64);
    facts.number("parameters", model.num_parameters());
    facts.say("hooks", config.hook_listing());
    let tokenizer = match Tokenizer::load(path) {
        Ok(tokenizer) => tokenizer.path().file_name().unwrap_or_default().display().to_string(),
        Err(error) => format!("none that `sae harvest` can use: {error}"),
    };
    facts.say("tokenizer", tokenizer);
    Ok(facts)
}
