//! Harvesting into a store.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use serde::Serialize;

use super::batches::Batches;
use super::recorder::Recorded;
use super::{HarvestOptions, HarvestPlan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::progress::{Outcome, Progress, Stop};
use crate::store::{CorpusRef, HookSpec, ModelRef, StoreManifest, StoreSpec, StoreWriter};

/// What a harvest did.
#[derive(Clone, Debug, Serialize)]
pub struct HarvestReport {
    /// Tokens that the model read in this call.
    pub tokens: u64,
    /// Seconds of this call.
    pub seconds: f64,
    /// Invalid UTF-8 sequences replaced in the text.
    pub replaced: u64,
    /// The store, if it is complete.
    pub manifest: Option<StoreManifest>,
}

/// Runs `plan` into a new store in `out`, or continues the unfinished one there, which ends with the same bytes.
///
/// The stage's units are tokens. [`Stop`] is honoured between batches; the store then says that it is unfinished.
///
/// # Errors
/// What the text, the model and the store give: invalid UTF-8, a token outside the vocabulary, activations that are not
/// finite or do not fit the format, a directory that is not empty, a full disk. The store stays resumable.
pub fn run(
    plan: &HarvestPlan,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<(Outcome, HarvestReport)> {
    let spec = spec(plan)?;
    let mut writer = match resume {
        true => StoreWriter::resume(out, &spec)?,
        false => StoreWriter::create(out, &spec)?,
    };
    writer.add_file(plan.corpus.tokenizer().path())?;
    let first = writer.next_context();
    let batches = Batches::start(&plan.corpus, plan.recorder.batch(), first, plan.tokens);

    progress.begin("harvest", Some(plan.estimate.tokens), "tokens");
    progress.advance(writer.n_tokens());
    let start = Instant::now();
    let mut report = HarvestReport {
        tokens: 0,
        seconds: 0.0,
        replaced: 0,
        manifest: None,
    };
    let (outcome, writer) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let writing = scope.spawn(move || write(writer, &receiver));
        let computed = compute(plan, batches, first, progress, stop, &mut report, |done| {
            sender.send(done).is_ok()
        });
        drop(sender);
        // A panic of the writing thread is this thread's, too.
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // If the writer gave up, its error is the cause.
        written.and_then(|writer| Ok((computed?, writer)))
    })?;
    if outcome == Outcome::Finished {
        report.manifest = Some(writer.finish()?);
    }
    report.seconds = start.elapsed().as_secs_f64();
    progress.finish();
    Ok((outcome, report))
}

/// Contexts with their activations, on the way to the store.
struct Done {
    contexts: Vec<Context>,
    recorded: Recorded,
}

/// Runs the model over the batches and hands on what a resumed store does not have yet.
fn compute(
    plan: &HarvestPlan,
    batches: Batches,
    first: u64,
    progress: &dyn Progress,
    stop: &Stop,
    report: &mut HarvestReport,
    hand_on: impl Fn(Done) -> bool,
) -> Result<Outcome> {
    for batch in batches {
        if stop.requested() {
            return Ok(Outcome::Stopped);
        }
        let batch = batch?;
        let tokens = batch.tokens();
        report.replaced = batch.replaced;
        let recorded = plan.recorder.record(&batch.contexts)?;
        let (done, new) = without_first(plan, batch.contexts, recorded, first);
        report.tokens += tokens;
        if !hand_on(done) {
            break;
        }
        progress.advance(new);
    }
    Ok(Outcome::Finished)
}

/// Drops the contexts before number `first`, and says how many tokens are left.
fn without_first(plan: &HarvestPlan, mut contexts: Vec<Context>, mut recorded: Recorded, first: u64) -> (Done, u64) {
    let before = contexts.iter().take_while(|c| c.index < first).count();
    if before > 0 {
        let rows = recorded
            .rows
            .iter()
            .take_while(|r| (r.context as usize) < before)
            .count();
        contexts.drain(..before);
        recorded.rows.drain(..rows);
        recorded.rows.iter_mut().for_each(|r| r.context -= before as u32);
        for (acts, &hook) in recorded.acts.iter_mut().zip(plan.recorder.hooks()) {
            acts.drain(..rows * plan.recorder.model().hook_width(hook));
        }
    }
    let tokens = contexts.iter().map(|c| c.tokens.len() as u64).sum();
    (Done { contexts, recorded }, tokens)
}

/// Writes what arrives until nothing more does.
fn write(mut writer: StoreWriter, receiver: &Receiver<Done>) -> Result<StoreWriter> {
    while let Ok(Done { contexts, recorded }) = receiver.recv() {
        let acts: Vec<&[f32]> = recorded.acts.iter().map(Vec::as_slice).collect();
        writer.push(&contexts, &recorded.rows, &acts)?;
    }
    Ok(writer)
}

/// What the store says about itself: everything that its bytes depend on.
pub(super) fn spec(plan: &HarvestPlan) -> Result<StoreSpec> {
    let HarvestOptions {
        model,
        dtype,
        keep_special,
        tokens,
        ..
    } = &plan.options;
    let config = plan.model().config();
    let hooks = plan.recorder.hooks().iter().map(|&hook| HookSpec {
        name: hook.to_string(),
        d_in: config.hook_width(hook),
    });
    let absolute = std::path::absolute(model).map_err(Error::io(model))?;
    let name = absolute.file_name().unwrap_or(absolute.as_os_str());
    let model_ref = ModelRef {
        name: name.to_string_lossy().into_owned(),
        sha256: Some(Transformer::fingerprint(model)?),
        n_layers: config.n_layers,
        d_model: config.d_model,
        vocab_size: config.d_vocab,
    };
    let corpus = plan.corpus.options();
    let shown = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
    let mut settings = vec![
        ("bos", shown(corpus.bos)),
        ("eos", shown(corpus.eos)),
        ("invalid_utf8", format!("{:?}", corpus.invalid_utf8).to_lowercase()),
    ];
    settings.extend(corpus.separator.clone().map(|s| ("separator", s)));
    let corpus_ref = CorpusRef {
        name: plan.corpus.name().to_owned(),
        sha256: Some(plan.corpus.fingerprint()?),
        settings: settings
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    };
    let mut spec = StoreSpec::new(hooks.collect(), *dtype, model_ref, corpus_ref, corpus.context);
    spec.skip_special = !keep_special;
    spec.max_tokens = *tokens;
    spec.contexts_per_shard = plan.options.contexts_per_shard.unwrap_or(spec.contexts_per_shard);
    Ok(spec)
}
