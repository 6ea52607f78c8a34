//! Harvesting into a store.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use serde::Serialize;

use super::batches::Batches;
use super::recorder::Recorded;
use super::{HarvestOptions, HarvestPlan};
use crate::context::{Context, RowRef};
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::objects::Place;
use crate::progress::{Outcome, Progress, Stop};
use crate::store::{self, CorpusRef, HookSpec, ModelRef, Part, StoreManifest, StoreSpec, StoreWriter, TextCounts};

/// What a harvest did.
#[derive(Clone, Debug, Serialize)]
pub struct HarvestReport {
    /// Tokens that the model read in this call.
    pub tokens: u64,
    /// Seconds of this call.
    pub seconds: f64,
    /// Invalid UTF-8 sequences replaced in the text.
    pub replaced: u64,
    /// Records of the text left out because they were broken or held no string.
    pub bad_records: u64,
    /// The store, or the part of it that was harvested, if that is complete.
    pub manifest: Option<StoreManifest>,
    /// The parts of the store that other processes have still to complete, each with what to do about it.
    pub waiting: Vec<String>,
}

/// The contexts that are to be written: those of the part, from where a resumed one goes on.
#[derive(Clone, Copy)]
struct Own {
    part: Part,
    first: u64,
    per_shard: u64,
}

impl Own {
    fn wants(self, context: u64) -> bool {
        context >= self.first && self.part.owns(context / self.per_shard)
    }
}

/// Runs `plan` into a new store in `out`, a directory or the URL of a prefix in an object store, or continues the unfinished one there, which ends with the same bytes.
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
    let part = plan.options.part;
    let mut writer = match (Place::of(out)?, resume) {
        (Place::Local(out), true) => StoreWriter::resume_part(&out, &spec, part)?,
        (Place::Local(out), false) => StoreWriter::create_part(&out, &spec, part)?,
        (Place::Remote(url), resume) => StoreWriter::remote(&url, &spec, part, resume)?,
    };
    writer.add_file("tokenizer.json", &plan.corpus.tokenizer().json()?)?;
    let own = Own {
        part,
        first: writer.next_context(),
        per_shard: spec.contexts_per_shard,
    };
    // A part says how many contexts there are in all, and counts them from the beginning.
    let from = if part == Part::WHOLE { own.first } else { 0 };
    let batches = Batches::start(&plan.corpus, plan.recorder.batch(), from, plan.tokens);

    progress.begin("harvest", Some(plan.estimate.tokens), "tokens");
    progress.advance(writer.n_tokens());
    let start = Instant::now();
    let mut report = HarvestReport {
        tokens: 0,
        seconds: 0.0,
        replaced: 0,
        bad_records: 0,
        manifest: None,
        waiting: Vec::new(),
    };
    let ((outcome, n_contexts), mut writer) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let writing = scope.spawn(move || write(writer, &receiver));
        let computed = compute(plan, batches, own, progress, stop, &mut report, |done| {
            sender.send(done).is_ok()
        });
        drop(sender);
        // A panic of the writing thread is this thread's, too.
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // If the writer gave up, its error is the cause.
        written.and_then(|writer| Ok((computed?, writer)))
    })?;
    if outcome == Outcome::Finished {
        writer.count_text(TextCounts {
            replaced: report.replaced,
            bad_records: report.bad_records,
        });
        report.manifest = Some(writer.finish_part(n_contexts)?);
        report.waiting = store::waiting(out)?;
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

/// Runs the model over the batches and hands on what is to be written. Gives the number of contexts in all, too.
fn compute(
    plan: &HarvestPlan,
    batches: Batches,
    own: Own,
    progress: &dyn Progress,
    stop: &Stop,
    report: &mut HarvestReport,
    hand_on: impl Fn(Done) -> bool,
) -> Result<(Outcome, u64)> {
    let mut n_contexts = own.first;
    for batch in batches {
        if stop.requested() {
            return Ok((Outcome::Stopped, n_contexts));
        }
        let batch = batch?;
        let tokens = batch.tokens();
        (report.replaced, report.bad_records) = (batch.replaced, batch.bad_records);
        n_contexts = batch
            .contexts
            .last()
            .map_or(n_contexts, |last| n_contexts.max(last.index + 1));
        if !batch.contexts.iter().any(|c| own.wants(c.index)) {
            continue;
        }
        // The whole batch, whoever wants how much of it: the last bits of a product depend on its size.
        let recorded = plan.recorder.record(&batch.contexts)?;
        let (done, new) = only(own, batch.contexts, recorded);
        report.tokens += tokens;
        if !hand_on(done) {
            break;
        }
        progress.advance(new);
    }
    Ok((Outcome::Finished, n_contexts))
}

/// Drops the contexts that are not to be written, and says how many tokens are left.
fn only(own: Own, mut contexts: Vec<Context>, mut recorded: Recorded) -> (Done, u64) {
    let wanted: Vec<bool> = contexts.iter().map(|c| own.wants(c.index)).collect();
    if wanted.contains(&false) {
        let kept: Vec<bool> = recorded.rows.iter().map(|r| wanted[r.context as usize]).collect();
        for acts in &mut recorded.acts {
            let width = acts.len() / kept.len().max(1);
            let mut end = 0;
            for (row, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                acts.copy_within(row * width..(row + 1) * width, end);
                end += width;
            }
            acts.truncate(end);
        }
        // Contexts that stay move up.
        let before = |context: u32| wanted[..context as usize].iter().filter(|w| **w).count() as u32;
        let number: Vec<u32> = (0..wanted.len() as u32).map(before).collect();
        let rows = recorded
            .rows
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| **kept)
            .map(|(r, _)| RowRef {
                context: number[r.context as usize],
                position: r.position,
            });
        recorded.rows = rows.collect();
        contexts.retain(|c| own.wants(c.index));
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
        model_name,
        dtype,
        keep_special,
        tokens,
        precision,
        ..
    } = &plan.options;
    let config = plan.model().config();
    let hooks = plan.recorder.hooks().iter().map(|&(hook, d_in)| HookSpec {
        name: hook.to_string(),
        d_in,
    });
    let absolute = std::path::absolute(model).map_err(Error::io(model))?;
    let name = absolute.file_name().unwrap_or(absolute.as_os_str());
    let model_ref = ModelRef {
        name: model_name
            .clone()
            .unwrap_or_else(|| name.to_string_lossy().into_owned()),
        sha256: Some(Transformer::fingerprint(model)?),
        n_layers: config.n_layers,
        d_model: config.d_model,
        vocab_size: config.d_vocab,
        precision: *precision,
    };
    let corpus = plan.corpus.options();
    let shown = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
    let mut settings = plan.corpus.settings();
    settings.insert("bos".into(), shown(corpus.bos));
    settings.insert("eos".into(), shown(corpus.eos));
    let corpus_ref = CorpusRef {
        name: plan.corpus.name().to_owned(),
        sha256: Some(plan.corpus.fingerprint()?),
        settings,
    };
    let mut spec = StoreSpec::new(hooks.collect(), *dtype, model_ref, corpus_ref, corpus.context);
    spec.skip_special = !keep_special;
    spec.max_tokens = *tokens;
    spec.contexts_per_shard = plan.options.contexts_per_shard.unwrap_or(spec.contexts_per_shard);
    spec.compression = plan.options.compression;
    Ok(spec)
}
