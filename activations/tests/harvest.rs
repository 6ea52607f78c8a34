//! Harvesting: the same bytes however it went, nothing lost when it is stopped, and bad input refused by name.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use activations::corpus::{InvalidUtf8, Layout, Reading};
use activations::harvest::{ContextStream, HarvestOptions, HarvestPlan, plan, run};
use activations::hooks::{HookPoint, Record};
use activations::model::Transformer;
use activations::store::Store;
use activations::{ActDtype, ContextBatch, ContextSource, Device, Outcome, Progress, Silent, Stop};
use tempfile::TempDir;

const HOOK: &str = "blocks.1.hook_resid_post";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama_gqa")
}

/// Text of several documents, of about 30 tokens a line.
fn text_of(lines: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..lines)
        .map(|n| {
            format!(
                "the hare and the hound {n} ran in the rain.\n{}",
                if n % 7 == 6 { "<|end|>\n" } else { "" }
            )
        })
        .collect();
    fs::write(dir.path().join("text.txt"), text).unwrap();
    dir
}

fn options(text: &TempDir) -> HarvestOptions {
    HarvestOptions {
        reading: Reading {
            separator: Some("<|end|>".into()),
            ..Reading::default()
        },
        context: Some(16),
        dtype: ActDtype::F32,
        ..HarvestOptions::new(fixture(), vec![text.path().to_owned()], HOOK)
    }
}

fn planned(options: &HarvestOptions) -> HarvestPlan {
    plan(options).unwrap()
}

fn harvest(options: &HarvestOptions, out: &Path) -> Outcome {
    run(&planned(options), out, false, &Silent, &Stop::new()).unwrap().0
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|p| {
            (
                p.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(p).unwrap(),
            )
        })
        .collect()
}

fn drain(source: &mut dyn ContextSource) -> ContextBatch {
    let mut all = ContextBatch::default();
    while let Some(batch) = source.next_batch().unwrap() {
        let before = all.contexts.len() as u32;
        all.contexts.extend(batch.contexts);
        all.rows.extend(batch.rows.into_iter().map(|mut r| {
            r.context += before;
            r
        }));
        all.acts.extend(batch.acts);
    }
    all
}

#[test]
fn a_gguf_harvests_the_store_of_the_checkpoint_it_was_made_from() {
    // Its tokenizer is the checkpoint's but for the lower case, which GGUF cannot say.
    let text = text_of(40);
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = options(&text);
    let gguf = HarvestOptions {
        model: fixture().join("../../gguf/llama_gqa.gguf"),
        ..checkpoint.clone()
    };
    assert_eq!(harvest(&checkpoint, one.path()), Outcome::Finished);
    assert_eq!(harvest(&gguf, other.path()), Outcome::Finished);
    let read = |dir: &Path| {
        let all = drain(&mut Store::open(dir).unwrap().contexts(HOOK).unwrap());
        let tokens: Vec<_> = all.contexts.into_iter().map(|context| context.tokens).collect();
        (tokens, all.rows, all.acts)
    };
    assert_eq!(read(one.path()), read(other.path()));
    let (one, other) = (Store::open(one.path()).unwrap(), Store::open(other.path()).unwrap());
    assert_eq!(other.manifest().spec.model.name, "llama_gqa.gguf");
    assert_ne!(other.manifest().spec.model.sha256, one.manifest().spec.model.sha256);
    let vocabulary = |store: &Store| {
        let file = store.file("tokenizer.json").expect("travels with the store");
        activations::tokenizer::Tokenizer::load(&file).unwrap().vocabulary()
    };
    assert_eq!(vocabulary(&one), vocabulary(&other));
}

fn error(options: &HarvestOptions) -> String {
    plan(options).err().expect("must be refused").to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} should say {part:?}");
    }
}

#[test]
fn a_store_and_a_stream_hold_what_the_model_gives() {
    let text = text_of(30);
    let mut options = options(&text);
    let streamed = drain(&mut ContextStream::new(planned(&options)));
    options.hooks.insert(0, "blocks.0.attn.hook_k".into());
    let out = tempfile::tempdir().unwrap();
    assert_eq!(harvest(&options, out.path()), Outcome::Finished);
    let store = Store::open(out.path()).unwrap();
    let stored = drain(&mut store.contexts(HOOK).unwrap());
    assert_eq!(stored.contexts, streamed.contexts);
    assert_eq!((&stored.rows, &stored.acts), (&streamed.rows, &streamed.acts));
    assert!(store.file("tokenizer.json").is_some());
    assert_eq!(store.contexts("blocks.0.attn.hook_k").unwrap().d_in(), 8);

    let model = Transformer::load(&fixture(), &Device::Cpu.open().unwrap()).unwrap();
    let hook: HookPoint = HOOK.parse().unwrap();
    let mut rows = stored.rows.iter().zip(stored.acts.chunks_exact(24)).peekable();
    for (number, context) in stored.contexts.iter().enumerate() {
        let mut record = Record::new([hook]);
        model.forward(&[&context.tokens], &mut record, Some(hook)).unwrap();
        let expected = record.take(hook).unwrap().into_data().into_vec::<f32>().unwrap();
        for (position, (&id, expected)) in context.tokens.iter().zip(expected.chunks_exact(24)).enumerate() {
            if id == 1 {
                continue; // BOS has no row.
            }
            let (row, acts) = rows.next().unwrap();
            assert_eq!((row.context as usize, row.position as usize), (number, position));
            assert!(acts.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }
    assert!(rows.peek().is_none());
}

#[test]
fn special_tokens_get_rows_when_asked() {
    let text = text_of(5);
    let kept = HarvestOptions {
        keep_special: true,
        ..options(&text)
    };
    let batch = drain(&mut ContextStream::new(planned(&kept)));
    assert_eq!(
        batch.rows.len(),
        batch.contexts.iter().map(|c| c.tokens.len()).sum::<usize>()
    );
}

#[test]
fn a_limit_of_tokens_takes_whole_contexts_and_the_estimate_knows() {
    let text = text_of(100);
    let limited = HarvestOptions {
        tokens: Some(100),
        ..options(&text)
    };
    let plan = planned(&limited);
    let estimate = *plan.estimate();
    assert_eq!((estimate.contexts, estimate.tokens), (7, 112));
    assert!(estimate.tokens_per_second > 0.0 && estimate.memory_bytes > 1 << 20);
    let out = tempfile::tempdir().unwrap();
    let (outcome, report) = run(&plan, out.path(), false, &Silent, &Stop::new()).unwrap();
    assert_eq!((outcome, report.tokens), (Outcome::Finished, 112));
    assert_eq!(
        drain(&mut Store::open(out.path()).unwrap().contexts(HOOK).unwrap())
            .contexts
            .len(),
        7
    );
}

/// Asks to stop once `after` tokens are done.
struct StopAfter {
    after: u64,
    done: AtomicU64,
    stop: Stop,
}

impl Progress for StopAfter {
    fn advance(&self, n: u64) {
        if self.done.fetch_add(n, Ordering::SeqCst) + n >= self.after {
            self.stop.request();
        }
    }
}

#[test]
fn a_stopped_harvest_resumes_to_the_same_bytes_whatever_the_threads() {
    // Several batches of 16 Ki tokens; shards end within batches, so that resuming begins within one.
    let text = text_of(2500);
    let options = HarvestOptions {
        contexts_per_shard: Some(700),
        hooks: vec![HOOK.into(), "hook_embed".into()],
        ..options(&text)
    };
    let whole = tempfile::tempdir().unwrap();
    assert_eq!(harvest(&options, whole.path()), Outcome::Finished);

    let parts = tempfile::tempdir().unwrap();
    let stop = Stop::new();
    let progress = StopAfter {
        after: 20_000,
        done: AtomicU64::new(0),
        stop: stop.clone(),
    };
    let (outcome, report) = run(&planned(&options), parts.path(), false, &progress, &stop).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    assert!(report.manifest.is_none());
    assert!(
        parts.path().join("acts-00001.parquet").exists(),
        "some shards are complete"
    );
    let unfinished = Store::open(parts.path()).err().unwrap().to_string();
    assert_says(&unfinished, &["unfinished"]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (outcome, _) = pool
        .install(|| run(&planned(&options), parts.path(), true, &Silent, &Stop::new()))
        .unwrap();
    assert_eq!(outcome, Outcome::Finished);
    assert!(files(whole.path()) == files(parts.path()), "the files differ");
}

#[test]
fn shuffled_documents_of_their_own_resume_to_the_same_bytes_with_their_counts() {
    // Lengths differ, so that contexts do not have as many tokens as they may.
    let text = tempfile::tempdir().unwrap();
    let line = |n: usize| match n % 50 {
        7 => "broken\n".to_owned(),
        _ => format!("{{\"text\": \"{}in the rain {n}\"}}\n", "the hound ran ".repeat(n % 9)),
    };
    fs::write(text.path().join("a.jsonl"), (0..2600).map(line).collect::<String>()).unwrap();
    for layout in [Layout::Truncate, Layout::Split] {
        let options = HarvestOptions {
            reading: Reading {
                skip_bad: true,
                seed: Some(5),
                ..Reading::default()
            },
            layout: Some(layout),
            tokens: Some(33_000),
            contexts_per_shard: Some(250),
            ..options(&text)
        };
        let whole = tempfile::tempdir().unwrap();
        let (_, report) = run(&planned(&options), whole.path(), false, &Silent, &Stop::new()).unwrap();
        let manifest = report.manifest.unwrap();
        assert_eq!((manifest.text.bad_records, report.bad_records), (52, 52));
        assert!((33_000..33_016).contains(&manifest.n_tokens), "{}", manifest.n_tokens);
        let settings = &manifest.spec.corpus.settings;
        assert_eq!(
            (settings["documents"].as_str(), settings["seed"].as_str()),
            (layout.name(), "5")
        );

        let parts = tempfile::tempdir().unwrap();
        let stop = Stop::new();
        let progress = StopAfter {
            after: 16_000,
            done: AtomicU64::new(0),
            stop: stop.clone(),
        };
        let (outcome, _) = run(&planned(&options), parts.path(), false, &progress, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        let (outcome, _) = run(&planned(&options), parts.path(), true, &Silent, &Stop::new()).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        assert!(files(whole.path()) == files(parts.path()), "the files differ");
        // Every document is in contexts of its own.
        let store = Store::open(whole.path()).unwrap();
        let contexts = drain(&mut store.contexts(HOOK).unwrap()).contexts;
        assert!(
            contexts
                .iter()
                .all(|c| c.spans.documents.len() == 1 && c.tokens[0] == 1)
        );
        let again = planned(&HarvestOptions {
            reading: Reading {
                seed: Some(6),
                ..options.reading.clone()
            },
            ..options.clone()
        });
        let stop = Stop::new();
        stop.request();
        let other = tempfile::tempdir().unwrap();
        let (outcome, _) = run(&again, other.path(), false, &Silent, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        let refused = run(&planned(&options), other.path(), true, &Silent, &Stop::new());
        assert_says(&refused.unwrap_err().to_string(), &["corpus.settings.seed"]);
    }
}

#[test]
fn other_settings_or_another_text_do_not_continue_a_store() {
    let (text, out) = (text_of(40), tempfile::tempdir().unwrap());
    let options = options(&text);
    let stop = Stop::new();
    stop.request();
    assert_eq!(
        run(&planned(&options), out.path(), false, &Silent, &stop).unwrap().0,
        Outcome::Stopped
    );
    let again = |options: &HarvestOptions| {
        let resumed = run(&planned(options), out.path(), true, &Silent, &Stop::new());
        resumed.unwrap_err().to_string()
    };
    assert_says(
        &again(&HarvestOptions {
            context: Some(8),
            ..options.clone()
        }),
        &["context_length"],
    );
    fs::write(text.path().join("text.txt"), "another text").unwrap();
    assert_says(&again(&options), &["corpus.sha256"]);
}

#[test]
fn what_does_not_fit_is_refused_before_the_model_runs() {
    let text = text_of(3);
    let options = options(&text);
    let with = |change: fn(&mut HarvestOptions)| {
        let mut changed = options.clone();
        change(&mut changed);
        error(&changed)
    };
    assert_says(
        &with(|o| o.hooks[0] = "blocks.2.hook_resid_post".into()),
        &["no hook", "blocks.{0..1}"],
    );
    assert_says(&with(|o| o.hooks.clear()), &["no hook given"]);
    assert_says(&with(|o| o.context = Some(33)), &["33 tokens", "model's 32"]);
    assert_says(&with(|o| o.context = Some(1)), &["context of 1 tokens"]);
    assert_says(
        &with(|o| o.text = vec!["/nonexistent/text".into()]),
        &["/nonexistent/text"],
    );
    assert_says(
        &with(|o| o.model = "/nonexistent/model".into()),
        &["/nonexistent/model"],
    );
    assert_says(&with(|o| o.tokens = Some(0)), &["0 tokens"]);
}

#[test]
fn a_tokenizer_that_is_absent_or_belongs_to_another_model_is_refused() {
    let text = text_of(3);
    let model = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture().join(name), model.path().join(name)).unwrap();
    }
    let options = HarvestOptions {
        model: model.path().to_owned(),
        ..options(&text)
    };
    assert_says(&error(&options), &["tokenizer.json", "no such tokenizer"]);
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture().join("tokenizer.json")).unwrap()).unwrap();
    json["model"]["vocab"]["zebra"] = 61.into();
    fs::write(model.path().join("tokenizer.json"), json.to_string()).unwrap();
    assert_says(
        &error(&options),
        &["tokenizer.json", "ids up to 61", "vocabulary is 61"],
    );
}

#[test]
fn a_value_beyond_f16_names_the_hook_and_what_to_do() {
    let text = text_of(3);
    let model = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(fixture().join(name), model.path().join(name)).unwrap();
    }
    // The last bytes of the file are weights of some tensor; the embedding is found by its name in the header.
    let mut bytes = fs::read(fixture().join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offsets = &header["model.embed_tokens.weight"]["data_offsets"];
    let (from, to) = (
        offsets[0].as_u64().unwrap() as usize,
        offsets[1].as_u64().unwrap() as usize,
    );
    for value in bytes[8 + length + from..8 + length + to].chunks_exact_mut(4) {
        value.copy_from_slice(&1e6f32.to_le_bytes());
    }
    fs::write(model.path().join("model.safetensors"), bytes).unwrap();
    let options = HarvestOptions {
        model: model.path().to_owned(),
        hooks: vec!["hook_embed".into()],
        dtype: ActDtype::F16,
        ..options(&text)
    };
    let out = tempfile::tempdir().unwrap();
    let error = run(&planned(&options), out.path(), false, &Silent, &Stop::new())
        .err()
        .unwrap()
        .to_string();
    assert_says(&error, &["hook_embed", "1000000", "bf16 or f32"]);
    let wide = HarvestOptions {
        dtype: ActDtype::Bf16,
        ..options
    };
    assert_eq!(harvest(&wide, &out.path().join("bf16")), Outcome::Finished);
}

#[test]
fn invalid_utf8_behind_the_beginning_of_the_text_ends_the_harvest_with_the_file_and_byte() {
    let text = text_of(7000);
    let path = text.path().join("text.txt");
    let mut bytes = fs::read(&path).unwrap();
    let offset = bytes.len();
    bytes.push(0xFF);
    fs::write(&path, bytes).unwrap();
    let mut options = options(&text);
    let out = tempfile::tempdir().unwrap();
    let error = run(&planned(&options), out.path(), false, &Silent, &Stop::new())
        .err()
        .unwrap()
        .to_string();
    assert_says(&error, &["text.txt", &format!("byte {offset}")]);
    options.reading.invalid_utf8 = InvalidUtf8::Replace;
    let replaced = tempfile::tempdir().unwrap();
    let (_, report) = run(&planned(&options), replaced.path(), false, &Silent, &Stop::new()).unwrap();
    assert_eq!(report.replaced, 1);
}

#[test]
fn an_encoder_reads_each_document_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("a.txt");
    fs::write(&text, "the\n<|end|>\na cat and the rat\n").unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/bert");
    let mut options = HarvestOptions::new(model, vec![text], "blocks.1.hook_normalized_resid_post");
    options.reading.separator = Some("<|end|>".into());
    options.layout = Some(Layout::Pack);
    let error = plan(&options).err().unwrap().to_string();
    assert!(error.contains("one document a context"), "{error}");

    options.layout = None;
    let mut stream = ContextStream::new(plan(&options).unwrap());
    let both = stream.next_batch().unwrap().unwrap();
    assert_eq!(both.contexts.len(), 2);
    let tokens: usize = both.contexts.iter().map(|c| c.tokens.len()).sum();
    assert_eq!(
        (both.rows.len(), both.acts.len()),
        (tokens, tokens * 16),
        "a row a token, none for padding"
    );
    // Beside a longer one, a document has the values that it has alone.
    fs::write(&options.text[0], "the\n").unwrap();
    let mut stream = ContextStream::new(plan(&options).unwrap());
    let alone = stream.next_batch().unwrap().unwrap();
    assert_eq!(alone.contexts[0].tokens, both.contexts[0].tokens);
    let worst = alone
        .acts
        .iter()
        .zip(&both.acts)
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(!alone.acts.is_empty() && worst < 1e-5, "{worst:e}");
}
