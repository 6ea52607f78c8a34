//! From a model and a text to activations: into a store ([`run`]), or in memory, whole contexts in order
//! ([`ContextStream`]) or mixed rows to train on ([`RowStream`]).
//!
//! The one decision: **every number depends on the plan alone.** Contexts are grouped into the same products whatever
//! the number of threads and wherever a run was interrupted, because the last bits of a product depend on its shape.
//! [`plan`] does everything that can fail early: it checks hooks, vocabulary and context length, loads the model, reads
//! the beginning of the text, and times the model on it, so that the estimate is measured and not guessed.
//!
//! The text is tokenised on one thread and the store written on another while the model computes. All hooks are
//! recorded in one pass, which ends after the last of them.

mod batches;
mod mixed;
mod recorder;
mod run;
mod stream;

use std::path::PathBuf;
use std::time::Instant;

pub use self::mixed::{HeldOut, RowStream, StreamNeeds, StreamOptions, StreamReader};
use self::recorder::Recorder;
pub use self::run::{HarvestReport, run};
pub use self::stream::ContextStream;
use crate::context::Context;
use crate::corpus::{Corpus, CorpusOptions, Layout, Reading};
use crate::device::Device;
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::hooks::HookPoint;
use crate::hub::{Hub, is_url};
use crate::model::Transformer;
use crate::product::Precision;
use crate::progress::Progress;
use crate::store::{Compression, Part, SHARD_BYTES};
use crate::tokenizer::Tokenizer;

/// The longest context unless another is asked for; a model's own limit where that is shorter.
pub const DEFAULT_CONTEXT: usize = 1024;

/// What to harvest.
#[derive(Clone, Debug, PartialEq)]
pub struct HarvestOptions {
    /// Model directory: `config.json`, `model.safetensors`, `tokenizer.json`. Or a GGUF file.
    pub model: PathBuf,
    /// What the store should call the model; the name of its directory if absent.
    pub model_name: Option<String>,
    /// Text files, directories of them, patterns such as `books/*.txt`, or `-`: see [`Corpus::open`].
    pub text: Vec<PathBuf>,
    /// What the store should call the text; the last part of the first path if absent.
    pub text_name: Option<String>,
    /// How documents are found in the files.
    pub reading: Reading,
    /// How documents become contexts; packed for decoders and split for encoders if absent. An encoder refuses to be
    /// packed.
    pub layout: Option<Layout>,
    /// Names of the hooks, such as `blocks.3.hook_resid_post`, or `blocks.*.hook_resid_post` for every block.
    pub hooks: Vec<String>,
    /// How many tokens the model should read, special tokens included: whole contexts are taken from the beginning of
    /// the text until they hold so many. All of the text if absent.
    pub tokens: Option<u64>,
    /// Tokens of a context, BOS included; the model's longest, but at most [`DEFAULT_CONTEXT`], if absent.
    pub context: Option<usize>,
    /// Number format of the store.
    pub dtype: ActDtype,
    /// Whether BOS and EOS get rows, too. BOS is an attention sink in most models: its activations are several times
    /// longer than all others and alike everywhere, so that a dictionary would waste itself on them.
    pub keep_special: bool,
    /// Contexts in each shard of the store; as many as make about 64 MiB if absent. A harvest that is stopped loses the
    /// shard that it is in the middle of.
    pub contexts_per_shard: Option<u64>,
    /// How the store is compressed, if it is.
    pub compression: Option<Compression>,
    /// Which part of the store is harvested: the others are other processes'. `tokens` is about all of them together.
    pub part: Part,
    /// Where the model runs.
    pub device: Device,
    /// What the model multiplies.
    pub precision: Precision,
}

impl HarvestOptions {
    /// One hook over all of a text, everything else as it is by default.
    pub fn new(model: impl Into<PathBuf>, text: Vec<PathBuf>, hook: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            model_name: None,
            text,
            text_name: None,
            reading: Reading::default(),
            layout: None,
            hooks: vec![hook.into()],
            tokens: None,
            context: None,
            dtype: ActDtype::F16,
            keep_special: false,
            contexts_per_shard: None,
            compression: None,
            part: Part::WHOLE,
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }

    /// Puts the hub's data sets among the texts on this machine: they are fetched if they are not in its cache.
    ///
    /// # Errors
    /// As [`Hub::texts`].
    pub fn fetch_texts(&mut self, hub: &Hub, progress: &dyn Progress) -> Result<()> {
        let named = std::mem::take(&mut self.text);
        for path in &named {
            if !is_url(path) {
                self.text.push(path.clone());
                continue;
            }
            let found = hub.texts(&path.to_string_lossy(), self.reading.format, progress)?;
            self.text.extend(found.files);
            self.text_name.get_or_insert(match named.len() {
                1 => found.name,
                n => format!("{} and {} more", found.name, n - 1),
            });
        }
        Ok(())
    }
}

/// What a harvest will take, known before it starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Contexts, about: the beginning of the text says how many tokens a byte makes.
    pub contexts: u64,
    /// Tokens that the model reads, about.
    pub tokens: u64,
    /// Activation rows, about.
    pub rows: u64,
    /// Bytes of the store, about; before compression, which takes away what nobody knows beforehand.
    pub disk_bytes: u64,
    /// Bytes of memory at most, about.
    pub memory_bytes: u64,
    /// Tokens a second, measured on the beginning of the text.
    pub tokens_per_second: f64,
}

impl Estimate {
    /// How long it takes, about.
    pub fn seconds(&self) -> f64 {
        self.tokens as f64 / self.tokens_per_second
    }
}

/// A harvest that can start: model and text are open and fit each other.
pub struct HarvestPlan {
    recorder: Recorder,
    corpus: Corpus,
    tokens: Option<u64>,
    options: HarvestOptions,
    estimate: Estimate,
}

impl HarvestPlan {
    /// What it will take.
    pub fn estimate(&self) -> &Estimate {
        &self.estimate
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        self.recorder.model()
    }

    /// The text.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Bytes of a shard of the store, about; of the largest where the last is smaller.
    pub fn shard_bytes(&self) -> u64 {
        let Estimate {
            contexts, disk_bytes, ..
        } = self.estimate;
        let per_context = disk_bytes / contexts.max(1) + 1;
        match self.options.contexts_per_shard {
            Some(contexts) => contexts.saturating_mul(per_context),
            None => SHARD_BYTES.max(per_context),
        }
    }

    /// Width of the rows of each hook, in the order of the store.
    pub fn widths(&self) -> Vec<usize> {
        self.recorder.hooks().iter().map(|&(_, width)| width).collect()
    }
}

/// Opens model and text, checks that everything fits, and measures.
///
/// # Errors
/// Whatever is wrong with the model, the tokenizer, the hooks or the text, by name.
pub fn plan(options: &HarvestOptions) -> Result<HarvestPlan> {
    let config = Transformer::read_config(&options.model)?;
    let hooks: Vec<(HookPoint, usize)> = config
        .expand_hooks(&options.hooks)?
        .into_iter()
        .map(|hook| Ok((hook, config.hook_width(hook).ok_or_else(|| not_storable(hook))?)))
        .collect::<Result<_>>()?;
    let tokenizer = Tokenizer::load(&options.model)?;
    tokenizer.check_model(config.d_vocab)?;
    let context = options.context.unwrap_or(config.max_context.min(DEFAULT_CONTEXT));
    if context > config.max_context {
        return Err(Error::Invalid(format!(
            "contexts of {context} tokens are longer than the model's {}",
            config.max_context
        )));
    }
    if options.tokens == Some(0) {
        return Err(Error::Invalid(
            "0 tokens are asked for: there is nothing to harvest".into(),
        ));
    }
    // An encoder never saw a context without its special tokens, nor one of two documents.
    let layout = match options.layout {
        Some(Layout::Pack) if !config.attention.causal => {
            return Err(Error::Invalid(
                "an encoder reads one document a context: take the layout truncate or split instead of pack".into(),
            ));
        }
        Some(layout) => layout,
        None if config.attention.causal => Layout::Pack,
        None => Layout::Split,
    };
    let (mut before, after) = match layout {
        Layout::Pack => (Vec::new(), Vec::new()),
        Layout::Truncate | Layout::Split => tokenizer.around()?,
    };
    if layout != Layout::Pack && before.is_empty() {
        before.extend(config.bos);
    }
    let special = [&before[..], &after[..]].concat();
    let corpus = CorpusOptions {
        context,
        bos: config.bos,
        eos: config.eos.first().copied(),
        layout,
        before,
        after,
        reading: options.reading.clone(),
    };
    let mut corpus = Corpus::open(&options.text, &tokenizer, corpus)?;
    if let Some(name) = &options.text_name {
        corpus = corpus.named(name);
    }
    let skipped = match options.keep_special {
        true => Vec::new(),
        false => config
            .bos
            .into_iter()
            .chain(config.eos.iter().copied())
            .chain(special)
            .collect(),
    };
    let model = Transformer::load_in(&options.model, &options.device.open()?, options.precision)?;
    let recorder = Recorder::new(model, hooks, skipped, context, options.device)?;
    let estimate = estimate(&recorder, &corpus, options)?;
    Ok(HarvestPlan {
        recorder,
        corpus,
        tokens: options.tokens,
        options: options.clone(),
        estimate,
    })
}

fn not_storable(hook: HookPoint) -> Error {
    Error::Invalid(format!(
        "{hook} can be seen and replaced during a pass, but not stored: a row of it is as wide as its context is long"
    ))
}

/// Measures on the first batch of the text.
fn estimate(recorder: &Recorder, corpus: &Corpus, options: &HarvestOptions) -> Result<Estimate> {
    let mut contexts = corpus.contexts();
    let sample: Vec<Context> = contexts.by_ref().take(recorder.batch()).collect::<Result<_>>()?;
    let sampled: u64 = sample.iter().map(|c| c.tokens.len() as u64).sum();
    let tokens = if sample.len() < recorder.batch() {
        sampled
    } else {
        let per_byte = contexts.tokens_packed() as f64 / contexts.bytes_read().max(1) as f64;
        ((corpus.bytes() as f64 * per_byte) as u64).max(sampled)
    };
    let tokens_per_second = measure(recorder, &sample)?;
    let with_rows = sample
        .iter()
        .flat_map(|c| &c.tokens)
        .filter(|&&id| recorder.has_row(id));
    let rows_per_token = with_rows.count() as f64 / sampled.max(1) as f64;
    // Documents of their own are shorter than contexts are at most.
    let context = match corpus.options().layout {
        Layout::Pack => corpus.options().context as u64,
        Layout::Truncate | Layout::Split => (sampled / sample.len().max(1) as u64).max(1),
    };
    // A limit takes whole contexts.
    let tokens = options
        .tokens
        .map_or(tokens, |limit| tokens.min(limit.div_ceil(context) * context));
    // Parts are equal but for a shard.
    let tokens = tokens.div_ceil(options.part.of as u64);
    let rows = (tokens as f64 * rows_per_token).ceil() as u64;
    let widths: usize = recorder.hooks().iter().map(|(_, width)| width).sum();
    let row_bytes: usize = recorder
        .hooks()
        .iter()
        .map(|&(_, width)| options.dtype.row_bytes(width))
        .sum();
    // Context, position and token beside each row; the token ids of the contexts and their places in the text.
    let disk_bytes = rows * (row_bytes + 12) as u64 + tokens * 6;
    Ok(Estimate {
        contexts: tokens.div_ceil(context),
        tokens,
        rows,
        disk_bytes,
        memory_bytes: memory(recorder, corpus, widths, options.precision),
        tokens_per_second,
    })
}

/// Tokens a second. The first unit alone takes what the first call costs; on a slow model it must do.
fn measure(recorder: &Recorder, sample: &[Context]) -> Result<f64> {
    let time = |contexts: &[Context]| {
        let start = Instant::now();
        recorder.record(contexts)?;
        let tokens: usize = contexts.iter().map(|c| c.tokens.len()).sum();
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        Ok((seconds, tokens as f64 / seconds))
    };
    let first = &sample[..sample.len().min(recorder.unit())];
    let (seconds, speed) = time(first)?;
    if seconds * (sample.len() / first.len()) as f64 > 2.0 {
        return Ok(speed);
    }
    Ok(time(sample)?.1)
}

/// Parameters, the values of the passes that run side by side, and the batches between the threads.
fn memory(recorder: &Recorder, corpus: &Corpus, widths: usize, precision: Precision) -> u64 {
    let config = recorder.model().config();
    let context = corpus.options().context;
    let in_flight = (recorder.unit() * rayon::current_num_threads())
        .min(recorder.batch())
        .max(recorder.unit())
        * context;
    let per_token =
        8 * config.d_model + 2 * config.d_q() + 2 * config.d_kv() + 4 * config.d_mlp + config.n_heads * context;
    let batches = 5 * recorder.batch() * context * widths;
    let shuffled = match corpus.options().reading.seed {
        Some(_) => 64 << 20,
        None => 0,
    };
    let fixed = (96 << 20) + shuffled;
    let parameter = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    parameter * recorder.model().num_parameters() + 4 * (in_flight * per_token + batches) as u64 + fixed
}
