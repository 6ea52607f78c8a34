//! Codes against the code of each row alone, in shards of any size, stopped anywhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use activations::lock::Lock;
use activations::{Context, ContextBatch, ContextSource, Outcome, RowRef, Silent, Stop};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type, UInt64Type};
use burn::tensor::{Device, Tensor, TensorData};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{CodesManifest, CodesOptions, MANIFEST, encode};
use crate::index::Naming;
use crate::metrics::Quality;
use crate::{Allocation, DictionaryCard, Sae, Score, Sparsifier};

const D_IN: usize = 12;
const D_SAE: usize = 40;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A dictionary in which nothing fires for some rows, and latent 7 never.
fn dictionary() -> Sae {
    let device = Device::flex();
    let matrix = |seed| Tensor::from_data(TensorData::new(random(D_SAE * D_IN, seed), [D_SAE, D_IN]), &device);
    let vector = |values: Vec<f32>| {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &device)
    };
    let mut threshold = vec![4.2; D_SAE];
    threshold[7] = 1e9;
    Sae {
        per_token: false,
        w_enc: matrix(1),
        b_enc: vector(random(D_SAE, 2)),
        w_dec: matrix(3),
        b_dec: vector(random(D_IN, 4)),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: Some(vector(threshold)),
        sparsifier: Sparsifier::new(Score::Magnitude, Allocation::Threshold),
    }
}

fn card() -> DictionaryCard {
    DictionaryCard {
        hook: Some(naming().hook),
        trained_tokens: 5,
        ..DictionaryCard::of(&dictionary())
    }
}

/// Contexts of different lengths, numbers left out, every first position without a row; some have no row at all.
#[derive(Clone)]
struct Source {
    contexts: Vec<Context>,
    next: usize,
    per_batch: usize,
    /// Stops the run when this context is asked for.
    stop_at: Option<(usize, Stop)>,
}

impl Source {
    fn new(n: usize, per_batch: usize) -> Self {
        let context = |i: usize| Context {
            index: i as u64 + i as u64 / 5,
            document: 0,
            tokens: (0..1 + (i * 7 + 3) % 9).map(|p| (i * 31 + p) as u32 % 100).collect(),
            ..Context::default()
        };
        Self {
            contexts: (0..n).map(context).collect(),
            next: 0,
            per_batch,
            stop_at: None,
        }
    }

    fn row(context: &Context, position: u32) -> Vec<f32> {
        random(D_IN, context.index * 1000 + u64::from(position))
    }

    /// Every row: its context, position, token and activation.
    fn rows(&self) -> Vec<(u64, u32, u32, Vec<f32>)> {
        let of = |c: &Context| -> Vec<_> {
            (1..c.tokens.len() as u32)
                .map(|p| (c.index, p, c.tokens[p as usize], Self::row(c, p)))
                .collect()
        };
        self.contexts.iter().flat_map(of).collect()
    }
}

impl ContextSource for Source {
    fn d_in(&self) -> usize {
        D_IN
    }
    fn n_contexts(&self) -> Option<u64> {
        None
    }
    fn start_at(&mut self, context: u64) {
        // Whole batches are passed over; one may begin before the context that is wanted.
        let before = self.contexts.partition_point(|c| c.index < context);
        self.next = before - before % self.per_batch;
    }
    fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
        let range = self.next..self.contexts.len().min(self.next + self.per_batch);
        self.next = range.end;
        if let Some((at, stop)) = &self.stop_at
            && range.end > *at
        {
            stop.request();
        }
        let mut batch = ContextBatch::default();
        for context in &self.contexts[range] {
            let number = batch.contexts.len() as u32;
            for position in 1..context.tokens.len() as u32 {
                batch.rows.push(RowRef {
                    context: number,
                    position,
                });
                batch.acts.extend(Self::row(context, position));
            }
            batch.contexts.push(context.clone());
        }
        Ok((!batch.contexts.is_empty()).then_some(batch))
    }
}

fn naming() -> Naming {
    Naming {
        hook: "blocks.1.hook_mlp_out".into(),
        model: "tiny".into(),
        corpus: "tales".into(),
    }
}

fn run(dir: &Path, mut source: Source, options: &CodesOptions) -> crate::Result<(Outcome, Option<CodesManifest>)> {
    let stop = source.stop_at.as_ref().map_or_else(Stop::new, |(_, stop)| stop.clone());
    encode(
        &dictionary(),
        &card(),
        "digest",
        &mut source,
        &naming(),
        "print",
        dir,
        options,
        &Silent,
        &stop,
    )
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    paths
        .map(|path| (path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

fn table(dir: &Path, name: &str, shards: usize) -> Vec<RecordBatch> {
    let read = |n: usize| {
        let file = File::open(dir.join(format!("{name}-{n:05}.parquet"))).unwrap();
        ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap()
    };
    (0..shards).flat_map(read).map(Result::unwrap).collect()
}

/// A row of activations: context, position, token, entries by latent.
type Row = (u64, u32, u32, Vec<(u32, f32)>);

/// What a directory says, put together from both tables.
fn read(dir: &Path, shards: usize) -> Vec<Row> {
    let mut entries = Vec::new();
    for batch in table(dir, "codes", shards) {
        let (context, position) = (
            batch.column(0).as_primitive::<UInt64Type>(),
            batch.column(1).as_primitive::<UInt32Type>(),
        );
        let (latent, value) = (
            batch.column(2).as_primitive::<UInt32Type>(),
            batch.column(3).as_primitive::<Float32Type>(),
        );
        entries.extend(
            (0..batch.num_rows()).map(|i| (context.value(i), position.value(i), latent.value(i), value.value(i))),
        );
    }
    let mut entries = entries.into_iter();
    let mut rows = Vec::new();
    for batch in table(dir, "rows", shards) {
        let context = batch.column(0).as_primitive::<UInt64Type>();
        let [position, token, active] = [1, 2, 3].map(|c| batch.column(c).as_primitive::<UInt32Type>());
        for i in 0..batch.num_rows() {
            let own: Vec<_> = entries.by_ref().take(active.value(i) as usize).collect();
            assert!(own.iter().all(|e| (e.0, e.1) == (context.value(i), position.value(i))));
            let own = own.into_iter().map(|(_, _, latent, value)| (latent, value)).collect();
            rows.push((context.value(i), position.value(i), token.value(i), own));
        }
    }
    assert!(entries.next().is_none(), "every entry belongs to a row");
    rows
}

/// The code of every row, each alone.
fn twin(rows: &[(u64, u32, u32, Vec<f32>)]) -> Vec<Row> {
    let sae = dictionary();
    let row = |(context, position, token, x): &(u64, u32, u32, Vec<f32>)| {
        let code = sae.encode_rows(x).unwrap();
        let mut entries: Vec<(u32, f32)> = code.row(0).map(|(i, v)| (i as u32, v)).collect();
        entries.sort_by_key(|e| e.0);
        (*context, *position, *token, entries)
    };
    rows.iter().map(row).collect()
}

fn assert_close(found: &[Row], expected: &[Row]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert_eq!((a.0, a.1, a.2), (b.0, b.1, b.2));
        let latents = |row: &Row| row.3.iter().map(|e| e.0).collect::<Vec<_>>();
        assert_eq!(latents(a), latents(b));
        assert!(a.3.iter().zip(&b.3).all(|(a, b)| (a.1 - b.1).abs() < 1e-5));
    }
}

#[test]
fn codes_are_those_of_each_row_alone_and_the_summary_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(60, 7);
    let rows = source.rows();
    let options = CodesOptions {
        rows_per_shard: Some(50),
        ..CodesOptions::default()
    };
    let (outcome, manifest) = run(dir.path(), source, &options).unwrap();
    let manifest = manifest.unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let expected = twin(&rows);
    assert!(
        expected.iter().any(|row| row.3.is_empty()),
        "a row in which nothing fires is among them"
    );
    assert_close(&read(dir.path(), manifest.shards.len()), &expected);

    // A shard ends with the context that has its fiftieth row.
    assert!(manifest.shards.len() > 2);
    let (last, full) = manifest.shards.split_last().unwrap();
    assert!(full.iter().all(|s| (50..58).contains(&s.n_rows)) && last.n_rows < 58);

    let entries: usize = expected.iter().map(|row| row.3.len()).sum();
    assert_eq!(
        (manifest.n_rows, manifest.n_entries),
        (rows.len() as u64, entries as u64)
    );
    assert_eq!(manifest.l0, entries as f64 / rows.len() as f64);
    let fired = |latent: u32| expected.iter().any(|row| row.3.iter().any(|e| e.0 == latent));
    assert_eq!(
        manifest.dead_latents,
        (0..D_SAE as u32).filter(|&i| !fired(i)).count() as u64
    );
    assert!(manifest.dead_latents >= 1);
    let (sae, mut quality) = (dictionary(), Quality::new(D_IN));
    for (.., x) in &rows {
        quality.add(x, &sae.decode_rows(&sae.encode_rows(x).unwrap()).unwrap());
    }
    assert!((manifest.fvu.unwrap() - quality.fvu().unwrap()).abs() < 1e-5);
    let said: CodesManifest = serde_json::from_slice(&fs::read(dir.path().join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(said, manifest);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn stopped_anywhere_and_read_in_any_batches_a_run_ends_with_the_same_bytes(
        per_batch in 1usize..20,
        stops in prop::collection::vec(0usize..60, 0..4),
        rows_per_shard in 1u64..120,
        tokens in prop::option::of(1u64..300),
    ) {
        let options = CodesOptions { rows_per_shard: Some(rows_per_shard), tokens, ..CodesOptions::default() };
        let whole = tempfile::tempdir().unwrap();
        let finished = run(whole.path(), Source::new(60, 5), &options);
        let dir = tempfile::tempdir().unwrap();
        let mut options = options;
        for at in stops {
            let source = Source { stop_at: Some((at, Stop::new())), ..Source::new(60, per_batch) };
            if let Ok((Outcome::Stopped, none)) = run(dir.path(), source, &options) {
                prop_assert!(none.is_none() && !dir.path().join(MANIFEST).exists());
            }
            options.resume = dir.path().join("unfinished.json").exists();
            if dir.path().join(MANIFEST).exists() {
                break;
            }
        }
        if !dir.path().join(MANIFEST).exists() {
            let ended = run(dir.path(), Source::new(60, per_batch), &options);
            prop_assert_eq!(ended.is_ok(), finished.is_ok());
        }
        if finished.is_ok() {
            prop_assert!(files(dir.path()) == files(whole.path()));
        }
    }
}

#[test]
fn the_codes_of_a_transcoder_say_nothing_about_a_reconstruction() {
    let dir = tempfile::tempdir().unwrap();
    let mut card = card();
    card.writes = vec![crate::dictionary::Place {
        hook: Some("blocks.1.hook_resid_post".into()),
        width: D_IN,
    }];
    let manifest = encode(
        &dictionary(),
        &card,
        "digest",
        &mut Source::new(30, 4),
        &naming(),
        "print",
        dir.path(),
        &CodesOptions::default(),
        &Silent,
        &Stop::new(),
    );
    let manifest = manifest.unwrap().1.unwrap();
    assert_eq!(manifest.fvu, None);
    assert!(manifest.l0 > 0.0);
}

#[test]
fn a_limit_takes_whole_contexts_until_they_hold_so_many_tokens() {
    for tokens in [1, 4, 5, 40, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::new(30, 4);
        let mut held = 0;
        let taken: Vec<u64> = source
            .contexts
            .iter()
            .take_while(|c| {
                held += c.tokens.len() as u64;
                held - (c.tokens.len() as u64) < tokens
            })
            .map(|c| c.index)
            .collect();
        let expected: Vec<_> = source.rows().into_iter().filter(|row| taken.contains(&row.0)).collect();
        let options = CodesOptions {
            tokens: Some(tokens),
            ..CodesOptions::default()
        };
        let manifest = run(dir.path(), source, &options).unwrap().1.unwrap();
        assert_close(&read(dir.path(), manifest.shards.len()), &twin(&expected));
    }
}

#[test]
fn dense_codes_are_one_array_that_says_its_shape_and_are_refused_where_they_are_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(30, 4);
    let expected = twin(&source.rows());
    let bytes = (expected.len() * D_SAE * 4) as u64;
    let options = |dense_bytes, about_rows| CodesOptions {
        dense_bytes: Some(dense_bytes),
        about_rows,
        ..CodesOptions::default()
    };
    let refused = run(
        dir.path(),
        source.clone(),
        &options(bytes - 1, Some(expected.len() as u64)),
    )
    .unwrap_err();
    assert!(refused.to_string().contains("--dense-limit"), "{refused}");
    assert!(files(dir.path()).is_empty(), "it is refused before anything is written");
    let short = dir.path().join("short");
    let refused = run(&short, source.clone(), &options(bytes - 1, None)).unwrap_err();
    assert!(refused.to_string().contains("--dense-limit"), "{refused}");
    let out = dir.path().join("out");
    assert_eq!(run(&out, source, &options(bytes, None)).unwrap().0, Outcome::Finished);
    let array = activations::npy::Npy::open(&out.join("codes.npy")).unwrap();
    assert_eq!((array.n_rows(), array.d_in()), (expected.len(), D_SAE));
    let mut values = vec![0.0; expected.len() * D_SAE];
    array.read(0..expected.len(), &mut values).unwrap();
    for (row, expected) in values.chunks(D_SAE).zip(&expected) {
        let found: Vec<u32> = (0..D_SAE as u32).filter(|&i| row[i as usize] != 0.0).collect();
        assert_eq!(found, expected.3.iter().map(|e| e.0).collect::<Vec<_>>());
        assert!(expected.3.iter().all(|&(i, v)| (row[i as usize] - v).abs() < 1e-5));
    }
    let names: Vec<_> = files(&out).into_keys().collect();
    assert_eq!(
        names,
        ["codes.npy", "manifest.json", "rows-00000.parquet"].map(PathBuf::from)
    );
}

#[test]
#[cfg(unix)]
fn a_directory_that_another_process_writes_is_refused_new_or_continued() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::of_directory(dir.path(), "these codes").unwrap();
    for resume in [false, true] {
        let options = CodesOptions {
            resume,
            ..CodesOptions::default()
        };
        let error = run(dir.path(), Source::new(10, 3), &options).unwrap_err().to_string();
        assert!(error.contains("another process is writing these codes"), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    drop(lock);
    let (outcome, _) = run(dir.path(), Source::new(10, 3), &CodesOptions::default()).unwrap();
    assert_eq!(outcome, Outcome::Finished);
}

#[test]
fn what_is_there_is_never_written_over_and_other_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = CodesOptions {
        rows_per_shard: Some(20),
        ..CodesOptions::default()
    };
    let stopped = Source {
        stop_at: Some((25, Stop::new())),
        ..Source::new(60, 5)
    };
    assert_eq!(run(dir.path(), stopped, &options).unwrap().0, Outcome::Stopped);
    let before = files(dir.path());
    let again = run(dir.path(), Source::new(60, 5), &options).unwrap_err().to_string();
    assert!(again.contains("--resume"), "{again}");
    let resume = |change: fn(&mut CodesOptions)| {
        let mut options = options.clone();
        options.resume = true;
        change(&mut options);
        run(dir.path(), Source::new(60, 5), &options)
    };
    let other = resume(|o| o.tokens = Some(9)).unwrap_err().to_string();
    assert!(other.contains("max_tokens was absent and now is 9"), "{other}");
    assert_eq!(files(dir.path()), before);
    // A shard that lost its end.
    fs::write(dir.path().join("codes-00000.parquet"), "PAR1").unwrap();
    let damaged = resume(|_| ()).unwrap_err().to_string();
    assert!(
        damaged.contains("codes-00000.parquet") && damaged.contains("begin anew"),
        "{damaged}"
    );
    for (name, bytes) in &before {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    assert_eq!(resume(|_| ()).unwrap().0, Outcome::Finished);
    let finished = resume(|_| ()).unwrap_err().to_string();
    assert!(finished.contains("nothing to resume"), "{finished}");
    let finished = run(dir.path(), Source::new(60, 5), &options).unwrap_err().to_string();
    assert!(finished.contains("already holds"), "{finished}");
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.tex"), "").unwrap();
    let refused = run(other.path(), Source::new(60, 5), &options).unwrap_err().to_string();
    assert!(refused.contains("thesis.tex"), "{refused}");
    let empty = tempfile::tempdir().unwrap();
    let refused = run(empty.path(), Source::new(0, 5), &options).unwrap_err().to_string();
    assert!(refused.contains("no activations"), "{refused}");
}
