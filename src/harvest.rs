//! `sae harvest`: a model over a text, its activations to a store.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use activations::corpus::{Format, InvalidUtf8, Layout, Reading};
use activations::harvest::{self, HarvestOptions, HarvestPlan, HarvestReport};
use activations::hub::{Hub, ModelDir};
use activations::objects::{Place, staging_root};
use activations::product::Precision;
use activations::store::{Compression, Part};
use activations::{ActDtype, Device, Outcome, Progress, Stop};
use anyhow::Context;
use clap::ValueEnum;

use crate::bars::{Bars, bytes, count, parse_count};
use crate::say;
use crate::{interrupt, limits};

/// Record a model's activations over a text, into a Parquet store
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae harvest --model stories15M/ --text stories.txt --hook blocks.3.hook_resid_post --tokens 1M --out acts/
  sae harvest --model stories15M/ --text books/ --hook blocks.2.hook_mlp_out --hook blocks.3.hook_resid_post --out acts/
  sae harvest --model DIR --text 'crawl/*.jsonl.zst' --field content --skip-bad --hook blocks.3.hook_resid_post --out acts/
  zcat dump.gz | sae harvest --model DIR --text - --format jsonl --documents truncate --context 256 --seed 1 --hook … --out acts/
  sae harvest … --out acts/ --shard 2/5   # the second of five processes, on any machines, that fill one directory
  sae harvest --model EleutherAI/pythia-70m --text books/ --hook 'blocks.*.hook_resid_post' --out acts/
  sae harvest --model DIR --text 'hf://datasets/roneneldan/TinyStories/data/train-*' --hook blocks.3.hook_resid_post --out acts/
  sae harvest --model DIR --text 's3://corpora/crawl/*.jsonl.zst' --hook blocks.3.hook_resid_post --out s3://lab/acts
  sae harvest … --dtype bf16 --compress zstd --out s3://lab/acts
  sae harvest … --out acts/ --resume      # after Ctrl-C, a crash or kill -9: the same bytes as if never stopped

Texts are .txt, .jsonl, .json and .csv, plain, .gz or .zst, and .parquet: docs/texts.md; object stores: docs/object-stores.md. Hooks have TransformerLens'
names; a wrong one is answered with those that the model has. BOS and EOS get no rows (BOS is an attention sink) unless
--keep-special. Three lines of Python read the store: activations/STORE.md.")]
pub struct Args {
    /// A model: a directory (config.json, model.safetensors or shards, tokenizer.json), a .gguf file, or a hub id,
    /// org/name[@revision]
    #[arg(long, value_name = "DIR|GGUF|ID")]
    model: String,
    #[command(flatten)]
    text: Text,
    /// Where in the model, such as blocks.3.hook_resid_post (repeatable: one pass records all)
    #[arg(long = "hook", value_name = "HOOK", required = true)]
    hooks: Vec<String>,
    /// Directory of the store, or a prefix in an object store (s3://bucket/acts); must be new or empty, unless --resume
    #[arg(long, value_name = "DIR|URL")]
    out: PathBuf,
    /// Number format of the store: f16, bf16, f32, or int8 with a scale a row (half of f16; see activations/STORE.md)
    #[arg(long, value_name = "DTYPE", default_value = "f16")]
    dtype: ActDtype,
    /// Compress the store: zstd, or zstd:LEVEL from 1 to 22. Saves 8% of f16 and a fifth of bf16, and everything reads it as
    /// before: for object stores and for sharing (activations/STORE.md)
    #[arg(long, value_name = "HOW")]
    compress: Option<Compression>,
    /// Give BOS and EOS rows, too
    #[arg(long)]
    keep_special: bool,
    /// cpu, cuda[:i] or vulkan[:i]
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// What the model multiplies: f32, or bf16 with sums in f32, up to twice as fast where the processor has AVX-512-BF16
    /// (cpu only; recorded in the store)
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    precision: Precision,
    /// Shuffle the documents with this seed (default: the order of the files)
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Continue an unfinished store in --out
    #[arg(long)]
    resume: bool,
    /// Harvest the I-th of N parts of the store; --tokens is about all of them together
    #[arg(long, value_name = "I/N", default_value = "1/1", hide_default_value = true)]
    shard: Part,
    /// Contexts in each file of the store (default: as many as make about 64 MiB). Smaller files are lost less of when
    /// a harvest is killed, and divide more evenly among --shard; the store's bytes depend on it
    #[arg(long, value_name = "COUNT", value_parser = parse_count)]
    contexts_per_file: Option<u64>,
    /// Print a JSON summary on the standard output
    #[arg(long)]
    json: bool,
}

/// Which text, and how it is cut: shared by `harvest`, `train`, `features` and `encode`.
#[derive(clap::Args, Clone, Default)]
pub struct Text {
    /// Text files, directories of them, patterns such as 'books/*.txt' in quotes, the same in an object store (s3://, gs://,
    /// az://), a data set of the hub (hf://datasets/org/name[@revision][/path]), or - for the standard input
    #[arg(id = "text", long, value_name = "PATH", num_args = 1..)]
    paths: Vec<PathBuf>,
    /// Stop after so many tokens: 250000, 250k, 1.5M (default: all of the text)
    #[arg(long, value_name = "COUNT", value_parser = parse_count)]
    tokens: Option<u64>,
    /// Tokens of a context, BOS included (default: the model's longest, at most 1024)
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// What the files are (default: what their names say, and txt for any other name)
    #[arg(long, value_name = "FORMAT")]
    format: Option<TextFormat>,
    /// The field of .jsonl and .json, or the column of .csv and .parquet, that is the text (default: text)
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// How documents become contexts (default: pack; split for encoders such as BERT)
    #[arg(long, value_name = "HOW")]
    documents: Option<Documents>,
    /// Leave out records that are broken or whose field is no string, and count them, instead of stopping
    #[arg(long)]
    skip_bad: bool,
    /// A line that separates documents within a text, such as '<|end|>' (default: a text is a document)
    #[arg(long, value_name = "LINE")]
    separator: Option<String>,
    /// What to do about bytes that are not UTF-8 (default: refuse)
    #[arg(long, value_name = "HOW")]
    invalid_utf8: Option<Invalid>,
}

/// [`Format`] as a flag.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TextFormat {
    /// Plain text: a file is a document, or several with --separator
    Txt,
    /// A JSON object a line
    Jsonl,
    /// A JSON array of objects, or objects one after the other
    Json,
    /// Comma-separated values with a line of column names
    Csv,
    /// Parquet, such as datasets on the hub are
    Parquet,
}

impl From<TextFormat> for Format {
    fn from(format: TextFormat) -> Self {
        match format {
            TextFormat::Txt => Self::Txt,
            TextFormat::Jsonl => Self::Jsonl,
            TextFormat::Json => Self::Json,
            TextFormat::Csv => Self::Csv,
            TextFormat::Parquet => Self::Parquet,
        }
    }
}

/// [`Layout`] as a flag.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Documents {
    /// One after the other, BOS between them, cut into contexts of --context tokens
    Pack,
    /// A context a document, from its beginning; what does not fit is left out
    Truncate,
    /// As many contexts as a document needs, each of this document alone
    Split,
}

impl From<Documents> for Layout {
    fn from(how: Documents) -> Self {
        match how {
            Documents::Pack => Self::Pack,
            Documents::Truncate => Self::Truncate,
            Documents::Split => Self::Split,
        }
    }
}

/// [`InvalidUtf8`] as a flag.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Invalid {
    /// Stop with an error naming the file and the byte
    Refuse,
    /// Put U+FFFD in their place and count them
    Replace,
}

impl Invalid {
    /// As run.toml has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Replace => "replace",
        }
    }
}

impl From<Invalid> for InvalidUtf8 {
    fn from(how: Invalid) -> Self {
        match how {
            Invalid::Refuse => Self::Refuse,
            Invalid::Replace => Self::Replace,
        }
    }
}

impl Text {
    /// All of one file, whose documents lie between lines that are `separator`.
    pub fn of(path: &Path, separator: &str) -> Self {
        Self {
            paths: vec![path.to_owned()],
            separator: Some(separator.to_owned()),
            ..Self::default()
        }
    }

    /// With a limit where none was given.
    pub fn with_tokens(self, tokens: u64) -> Self {
        Self {
            tokens: self.tokens.or(Some(tokens)),
            ..self
        }
    }

    /// Where none was named, as [`Text::of`], cut as the flags have it.
    ///
    /// # Errors
    /// For flags about how another file is read.
    pub fn over(self, path: &Path, separator: &str) -> anyhow::Result<Self> {
        let given = [
            ("--format", self.format.is_some()),
            ("--field", self.field.is_some()),
            ("--separator", self.separator.is_some()),
            ("--skip-bad", self.skip_bad),
            ("--invalid-utf8", self.invalid_utf8.is_some()),
        ];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
            anyhow::bail!("{flag} is about a text, and none is named with --text");
        }
        Ok(Self {
            tokens: self.tokens,
            context: self.context,
            documents: self.documents,
            ..Self::of(path, separator)
        })
    }

    /// Whether none was named.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// After how many tokens to stop.
    pub fn tokens(&self) -> Option<u64> {
        self.tokens
    }

    /// The keys of run.toml that say the same, of the flags that were given.
    ///
    /// # Errors
    /// For a path that is not UTF-8.
    pub fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let paths = self.paths.iter().map(|path| {
            let text = path.to_str();
            text.with_context(|| format!("{}: a path in run.toml must be UTF-8", path.display()))
        });
        let paths: Vec<&str> = paths.collect::<anyhow::Result<_>>()?;
        // JSON writes lists and strings as TOML does.
        let shown = |value: serde_json::Value| value.to_string();
        let given = [
            ("text", (!paths.is_empty()).then(|| shown(paths.into()))),
            ("tokens", self.tokens.map(|n| n.to_string())),
            ("context", self.context.map(|n| n.to_string())),
            (
                "format",
                self.format.map(|format| shown(Format::from(format).name().into())),
            ),
            ("field", self.field.clone().map(|field| shown(field.into()))),
            (
                "documents",
                self.documents.map(|how| shown(Layout::from(how).name().into())),
            ),
            ("skip_bad", self.skip_bad.then(|| "true".to_owned())),
            ("separator", self.separator.clone().map(|line| shown(line.into()))),
            ("invalid_utf8", self.invalid_utf8.map(|how| shown(how.name().into()))),
        ];
        let settings = given
            .into_iter()
            .filter_map(|(key, value)| Some((format!("data.{key}"), value?)));
        Ok(settings.collect())
    }

    /// The text read by `model` at `hooks`.
    pub fn options(&self, model: &ModelDir, hooks: Vec<String>) -> HarvestOptions {
        HarvestOptions {
            hooks,
            model_name: Some(model.name.clone()),
            tokens: self.tokens,
            context: self.context,
            reading: Reading {
                format: self.format.map(Format::from),
                field: self.field.clone().unwrap_or_else(|| Reading::default().field),
                skip_bad: self.skip_bad,
                invalid_utf8: self.invalid_utf8.map_or_else(Default::default, InvalidUtf8::from),
                separator: self.separator.clone(),
                seed: None,
            },
            layout: self.documents.map(Layout::from),
            ..HarvestOptions::new(&model.path, self.paths.clone(), String::new())
        }
    }
}

/// Harvests, and says what was made.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.text.is_empty() {
        anyhow::bail!("no text: name files or directories with --text");
    }
    let progress = Bars::default();
    let hub = Hub::from_env();
    let model = hub.find(&args.model, &progress)?;
    let mut options = HarvestOptions {
        dtype: args.dtype,
        compression: args.compress,
        keep_special: args.keep_special,
        device: args.device,
        precision: args.precision,
        part: args.shard,
        contexts_per_shard: args.contexts_per_file,
        ..args.text.options(&model, args.hooks.clone())
    };
    options.reading.seed = args.seed;
    options.fetch_texts(&hub, &progress)?;
    let stop = interrupt::listen()?;
    let (outcome, report) = harvest(&options, &args.out, args.resume, &progress, &stop)?;
    if outcome == Outcome::Finished {
        if args.json {
            say!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print_report(&report, &args.out);
        }
    }
    Ok(interrupt::exit_code(outcome, "the same command and --resume"))
}

/// Estimates, refuses what cannot fit, and harvests into `out`.
pub fn harvest(
    options: &HarvestOptions,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> anyhow::Result<(Outcome, HarvestReport)> {
    let plan = harvest::plan(options)?;
    let needs = plan.estimate();
    eprintln!(
        "about {} tokens of {} in {} contexts; {}",
        count(needs.tokens),
        plan.corpus().name(),
        count(needs.contexts),
        limits::estimate(needs.disk_bytes, needs.memory_bytes, needs.seconds())
    );
    let (place, disk) = room(out, &plan)?;
    limits::check(&place, disk, needs.memory_bytes)?;
    Ok(harvest::run(&plan, out, resume, progress, stop)?)
}

/// Which disk a harvest into `out` fills, and with how many bytes: of a store that is sent away there are never more than
/// a few shards here.
fn room(out: &Path, plan: &HarvestPlan) -> anyhow::Result<(PathBuf, u64)> {
    let needs = plan.estimate();
    Ok(match Place::of(out)? {
        Place::Local(out) => (out, needs.disk_bytes),
        Place::Remote(_) => {
            let shards = needs.disk_bytes.div_ceil(plan.shard_bytes()).min(4);
            (staging_root(), shards.saturating_mul(plan.shard_bytes()))
        }
    })
}

fn print_report(report: &HarvestReport, out: &Path) {
    if let Some(manifest) = &report.manifest {
        say!(
            "{} rows of {} tokens in {} contexts",
            count(manifest.n_rows),
            count(manifest.n_tokens),
            count(manifest.n_contexts)
        );
        say!("store  {} ({})", out.display(), bytes(manifest.bytes()));
    }
    for part in &report.waiting {
        say!("{part}");
    }
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    say!(
        "{} in {}, {} tokens/s",
        count(report.tokens),
        limits::duration(report.seconds),
        count(rate as u64)
    );
    if report.replaced > 0 {
        say!("{} sequences were not UTF-8 and were replaced", report.replaced);
    }
    if report.bad_records > 0 {
        say!("{} bad records of the text were left out", report.bad_records);
    }
}
