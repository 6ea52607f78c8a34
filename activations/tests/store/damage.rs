//! Stores that are not what they should be, and activations that cannot be stored.

use std::fs;
use std::path::Path;

use activations::source::{Activations, MixOptions};
use activations::store::{MANIFEST, Store, StoreWriter};
use activations::{ActDtype, Context, ContextSource, Result, Spans};
use proptest::prelude::*;

use crate::fixture::{HOOKS, context, harvest, npy, spec, store};

/// Reads everything that there is to read in a store.
pub fn read_all(dir: &Path) -> Result<u64> {
    let store = Store::open(dir)?;
    let mut rows = 0;
    for (hook, _) in HOOKS {
        let mut contexts = store.contexts(hook)?;
        while let Some(batch) = contexts.next_batch()? {
            rows += batch.rows.len() as u64;
        }
        let source = Activations::of_store(&store, Some(hook))?;
        let mut all = vec![0.0; source.n_rows() as usize * source.d_in()];
        let options = MixOptions {
            seed: 0,
            memory_bytes: 1 << 20,
        };
        source.mixed(0..source.n_rows(), &options)?.next_batch(&mut all)?;
    }
    Ok(rows)
}

fn problem(dir: &Path) -> String {
    read_all(dir).unwrap_err().to_string()
}

/// Replaces text in the manifest.
fn forge(dir: &Path, from: &str, to: &str) {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in the manifest");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn missing_truncated_foreign_and_unlisted_files_are_named() {
    let acts = "acts-00001.parquet";
    type Case = (fn(&Path), [&'static str; 2]);
    let cases: [Case; 7] = [
        (
            |d| fs::remove_file(d.join("acts-00001.parquet")).unwrap(),
            ["acts-00001", "missing"],
        ),
        (
            |d| fs::remove_file(d.join("contexts-00000.parquet")).unwrap(),
            ["contexts-00000", "missing"],
        ),
        (
            |d| {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(d.join("acts-00001.parquet"))
                    .unwrap();
                file.set_len(500).unwrap();
            },
            ["acts-00001", "truncated"],
        ),
        (
            |d| {
                fs::write(
                    d.join("acts-00007.parquet"),
                    fs::read(d.join("acts-00000.parquet")).unwrap(),
                )
                .unwrap()
            },
            ["acts-00007", "not listed"],
        ),
        (
            // Another file of the same length.
            |d| {
                let length = fs::metadata(d.join("acts-00001.parquet")).unwrap().len();
                fs::write(d.join("acts-00001.parquet"), vec![7; length as usize]).unwrap();
            },
            ["acts-00001", "not a Parquet file"],
        ),
        (
            |d| {
                let length = fs::metadata(d.join("contexts-00001.parquet")).unwrap().len();
                fs::write(d.join("contexts-00001.parquet"), vec![7; length as usize]).unwrap();
            },
            ["contexts-00001", "damaged"],
        ),
        (
            |d| fs::write(d.join(MANIFEST), "{\"format\": \"sae-features\"}").unwrap(),
            [MANIFEST, "sae-activations"],
        ),
    ];
    for (damage, words) in cases {
        let dir = store(17, ActDtype::F16);
        assert!(dir.path().join(acts).exists());
        damage(dir.path());
        let problem = problem(dir.path());
        assert!(words.iter().all(|w| problem.contains(w)), "{problem}");
    }
}

#[test]
fn manifests_that_contradict_themselves_or_come_from_the_future_are_refused() {
    for (from, to, word) in [
        (
            "\"version\": 2",
            "\"version\": 4",
            "version 4, and this program reads versions 2 and 3: update",
        ),
        (
            "\"version\": 2",
            "\"version\": 1",
            "version 1, and this program reads versions 2 and 3: harvest again",
        ),
        (
            "\"version\": 2",
            "\"version\": 3",
            "a store with this compression is of version 2",
        ),
        ("\"spec\": {", "\"spec\": { \"compression\": \"lz4\",", "expected zstd"),
        ("\"n_contexts\": 17", "\"n_contexts\": 18", "contradicts"),
        ("\"first_context\": 5", "\"first_context\": 6", "contradicts"),
        ("\"d_in\": 24", "\"d_in\": 25", "FIXED_LEN_BYTE_ARRAY of 48 bytes"),
        (
            "\"context_length\": 12",
            "\"context_length\": 18446744073709551615",
            "context_length",
        ),
        ("\"dtype\": \"f16\"", "\"dtype\": \"f64\"", "f64"),
        ("\"spec\": {", "\"colour\": 1, \"spec\": {", "colour"),
        ("\"n_rows\": ", "\"n_rows\": -", "integer"),
    ] {
        let dir = store(17, ActDtype::F16);
        forge(dir.path(), from, to);
        let problem = problem(dir.path());
        assert!(problem.contains(word), "{from} -> {to}: {problem}");
    }
}

#[test]
fn what_is_no_store_is_called_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Activations::open(path, None).err().unwrap().to_string();
    assert!(open(&dir.path().join("nowhere")).contains("does not exist"));
    assert!(open(dir.path()).contains("no manifest.json"));
    let text = dir.path().join("a.txt");
    fs::write(&text, "words").unwrap();
    assert!(open(&text).contains("expected the directory of an activation store, a .npy"));
    let shard = dir.path().join("acts-00000.parquet");
    fs::write(&shard, "PAR1").unwrap();
    assert!(open(dir.path()).contains("acts-00000.parquet"));
    fs::remove_file(&shard).unwrap();
    let parquet = dir.path().join("train-00000.parquet");
    fs::write(&parquet, "PAR1").unwrap();
    assert!(open(&parquet).contains("no Parquet file that can be read"));
    assert!(open(dir.path()).contains("train-00000.parquet"));
    fs::remove_file(&parquet).unwrap();
    let array = dir.path().join("a.npy");
    npy(&array, 2, &[1.0, 2.0, 3.0, f32::NAN]);
    assert!(
        Activations::open(&array, Some("blocks.0.hook_resid_post"))
            .err()
            .unwrap()
            .to_string()
            .contains("no hooks")
    );
    let source = Activations::open(&array, None).unwrap();
    let options = MixOptions {
        seed: 0,
        memory_bytes: 1 << 20,
    };
    for error in [
        source.read_rows(0..2, &mut [0.0; 4]).unwrap_err(),
        source
            .mixed(0..2, &options)
            .unwrap()
            .next_batch(&mut [0.0; 2])
            .unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("row 1") && error.contains("column 1"), "{error}");
    }
    assert!(
        source
            .read_rows(0..3, &mut [0.0; 6])
            .unwrap_err()
            .to_string()
            .contains("0..3")
    );
    assert!(
        source
            .read_rows(0..1, &mut [0.0; 3])
            .unwrap_err()
            .to_string()
            .contains("3 values")
    );
    assert!(
        source
            .mixed(1..1, &options)
            .err()
            .unwrap()
            .to_string()
            .contains("no rows")
    );
}

#[test]
fn a_hook_that_is_not_there_is_refused_with_the_ones_that_are() {
    let dir = store(6, ActDtype::F16);
    let refused = Activations::open(dir.path(), Some("blocks.7.hook_resid_post"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("blocks.7") && HOOKS.iter().all(|(name, _)| refused.contains(name)),
        "{refused}"
    );
    let refused = Activations::open(dir.path(), None).err().unwrap().to_string();
    assert!(refused.contains("several hooks"), "{refused}");
}

#[test]
fn values_that_a_format_cannot_hold_are_refused_with_hook_place_and_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let contexts: Vec<Context> = (0..3).map(context).collect();
    let push = |dtype, bad: f32| {
        let dir = dir.path().join(format!("{dtype}-{bad}"));
        let mut writer = StoreWriter::create(&dir, &spec(dtype)).unwrap();
        let (rows, mut acts) = harvest(&contexts);
        acts[1][7 + 2] = bad;
        acts[1][7] = bad.min(0.5);
        let slices: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
        let pushed = writer.push(&contexts, &rows, &slices);
        assert_eq!(writer.next_context(), if pushed.is_ok() { 3 } else { 0 });
        pushed
    };
    let place = format!("context {}, position {}", 1, 1);
    let overflow = push(ActDtype::F16, 70_000.0).unwrap_err().to_string();
    for word in [HOOKS[1].0, &place, "70000", "65504", "bf16 or f32"] {
        assert!(overflow.contains(word), "{word}: {overflow}");
    }
    push(ActDtype::Bf16, 70_000.0).unwrap();
    push(ActDtype::F16, 65_504.0).unwrap();
    let overflow = push(ActDtype::Bf16, f32::MAX).unwrap_err().to_string();
    assert!(overflow.contains("harvest as f32"), "{overflow}");
    push(ActDtype::F32, f32::MAX).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let refused = push(ActDtype::F32, bad).unwrap_err().to_string();
        assert!(refused.contains(HOOKS[1].0) && refused.contains("finite"), "{refused}");
        assert!(refused.contains(&place), "{refused}");
    }
}

#[test]
fn contexts_rows_and_activations_must_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
    let contexts: Vec<Context> = (0..3).map(context).collect();
    let (rows, acts) = harvest(&contexts);
    let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
    let mut refused =
        |contexts: &[Context], rows: &[_], acts: &[&[f32]]| writer.push(contexts, rows, acts).unwrap_err().to_string();
    assert!(refused(&contexts[1..], &rows, &acts).contains("expected 0, got 1"));
    assert!(refused(&contexts, &rows, &acts[..1]).contains("1 hooks"));
    assert!(refused(&contexts, &rows, &[acts[1], acts[0]]).contains(HOOKS[0].0));
    let mut swapped = rows.clone();
    swapped.swap(0, 1);
    assert!(refused(&contexts, &swapped, &acts).contains("ascending"));
    assert!(refused(&contexts[..2], &rows, &acts).contains("point at tokens"));
    let mut long = contexts.clone();
    long[1].tokens = vec![0; 13];
    assert!(refused(&long, &rows, &acts).contains("13 tokens"));
    let without_ends = |spans: &mut Spans| spans.ends.truncate(1);
    let swapped = |spans: &mut Spans| spans.documents.swap(0, 1);
    let beyond = |spans: &mut Spans| spans.documents[1].position = 12;
    let twice = |spans: &mut Spans| spans.documents[1].document = spans.documents[0].document;
    for change in [without_ends, swapped, beyond, twice] as [fn(&mut Spans); 4] {
        let mut wrong = contexts.clone();
        change(&mut wrong[1].spans);
        assert!(refused(&wrong, &rows, &acts).contains("spans of context 1 do not fit"));
    }
    writer.push(&contexts, &rows, &acts).unwrap();
}

#[test]
fn rows_with_nan_in_a_store_are_named_by_context_and_position() {
    let dir = store(17, ActDtype::F32);
    let path = dir.path().join("acts-00002.parquet");
    let mut bytes = fs::read(&path).unwrap();
    // The first row of the shard: context 10, position 1.
    let first: Vec<u8> = (0..24)
        .flat_map(|c| crate::fixture::value(0, 10, 1, c).to_le_bytes())
        .collect();
    let at = bytes.windows(first.len()).position(|w| w == first).unwrap();
    bytes[at + 4..at + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let problem = problem(dir.path());
    assert!(
        problem.contains("context 10, position 1") && problem.contains("column 1"),
        "{problem}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_makes_the_reader_panic(
        name in prop::sample::select(vec!["acts-00001.parquet", "contexts-00001.parquet", "manifest.json"]),
        footer in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let dir = store(12, ActDtype::F16);
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let start = if footer { bytes.len() - bytes.len().min(900) } else { 0 };
        for (at, byte) in edits {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        // Either it is noticed, or it was in the values of an activation; then the number of rows is what it was.
        if let Ok(rows) = read_all(dir.path()) {
            prop_assert_eq!(rows, 2 * (0..12).map(|i| context(i).tokens.len() as u64 - 1).sum::<u64>());
        }
        let _ = StoreWriter::resume(dir.path(), &spec(ActDtype::F16));
    }

    #[test]
    fn no_damage_makes_a_resumed_writer_panic(
        name in prop::sample::select(vec!["acts-00001.parquet", "contexts-00001.parquet", "unfinished.json"]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
        crate::fixture::push_until(&mut writer, 11, 4);
        drop(writer);
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fs::write(&path, bytes).unwrap();
        let _ = StoreWriter::resume(dir.path(), &spec(ActDtype::F16));
    }
}
