//! Compressed stores: whoever reads a plain one reads them, and writing, continuing and damage are what they are there.

use std::fs;
use std::path::Path;

use activations::source::{Activations, MixOptions};
use activations::store::{MANIFEST, Part, Store, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, ContextSource};
use proptest::prelude::*;

use crate::damage::read_all;
use crate::fixture::{HOOKS, context, files, harvest, push_until, spec, store_of};

/// A specification like the fixture's, compressed.
fn packed(dtype: ActDtype) -> StoreSpec {
    let mut spec = spec(dtype);
    spec.compression = Some("zstd:3".parse().unwrap());
    spec
}

/// The pairs of a plain and a compressed store that tests read side by side: shards of a few rows, and one shard of
/// several row groups and many pages. With the hooks.
fn pairs() -> Vec<(tempfile::TempDir, tempfile::TempDir, Vec<&'static str>)> {
    let mut all = Vec::new();
    for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32, ActDtype::Int8] {
        let of = |spec: &StoreSpec| store_of(17, spec);
        all.push((
            of(&spec(dtype)),
            of(&packed(dtype)),
            HOOKS.map(|(name, _)| name).to_vec(),
        ));
    }
    // 592 rows of 32 KiB: more than one row group of 512 rows, and pages of two rows.
    let wide = |mut spec: StoreSpec| {
        spec.hooks.truncate(1);
        spec.hooks[0].d_in = 8192;
        (spec.context_length, spec.contexts_per_shard) = (100, 8);
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path(), &spec).unwrap();
        let contexts: Vec<Context> = (0..8)
            .map(|index| Context {
                index,
                tokens: vec![7; 75],
                ..Context::default()
            })
            .collect();
        let (rows, _) = harvest(&contexts);
        let acts: Vec<f32> = (0..rows.len() * 8192).map(|i| (i / 8192 * 10 + i % 7) as f32).collect();
        writer.push(&contexts, &rows, &[&acts]).unwrap();
        writer.finish().unwrap();
        dir
    };
    all.push((wide(spec(ActDtype::F32)), wide(packed(ActDtype::F32)), vec![HOOKS[0].0]));
    all
}

#[test]
fn a_compressed_store_is_read_in_order_at_positions_and_mixed_as_a_plain_one_is() {
    for (plain, packed, hooks) in pairs() {
        for hook in hooks {
            let contexts = |dir: &Path| {
                let mut source = Store::open(dir).unwrap().contexts(hook).unwrap();
                let mut all = Vec::new();
                while let Some(batch) = source.next_batch().unwrap() {
                    all.push((batch.contexts, batch.rows, batch.acts));
                }
                all
            };
            assert!(contexts(plain.path()) == contexts(packed.path()));
            let open = |dir: &Path| Activations::open(dir, Some(hook)).unwrap();
            let (plain, packed) = (open(plain.path()), open(packed.path()));
            let (n, d_in) = (plain.n_rows(), plain.d_in());
            assert_eq!(
                (packed.n_rows(), packed.d_in(), packed.dtype()),
                (n, d_in, plain.dtype())
            );
            assert_eq!(packed.copy_bytes(), 0, "it is read in place");
            assert_eq!(packed.split(n / 3).unwrap(), plain.split(n / 3).unwrap());
            // Forwards, backwards and across pages.
            for rows in [0..n, n - 1..n, n / 2..n / 2 + 3, 0..1, n / 3..n, 0..0] {
                let read = |acts: &Activations| {
                    let mut out = vec![0.0; (rows.end - rows.start) as usize * d_in];
                    acts.read_rows(rows.clone(), &mut out).unwrap();
                    out
                };
                assert!(read(&plain) == read(&packed), "{rows:?}");
            }
            // The whole store in the pool, and a part of it.
            for memory_bytes in [1 << 30, 1 << 21] {
                let mixed = |acts: &Activations| {
                    let mut reader = acts.mixed(0..n, &MixOptions { seed: 5, memory_bytes }).unwrap();
                    let mut out = vec![0.0; (n as usize + n as usize / 2) * d_in];
                    reader.next_batch(&mut out).unwrap();
                    out
                };
                assert!(mixed(&plain) == mixed(&packed));
            }
        }
    }
}

#[test]
fn compression_makes_files_smaller_and_keeps_keys_as_they_are() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let (plain, packed, _) = pairs().pop().unwrap();
    let size = |dir: &Path, name: &str| fs::metadata(dir.join(name)).unwrap().len();
    // Most of such a small file of contexts is metadata.
    for (name, times) in [("acts-00000.parquet", 2), ("contexts-00000.parquet", 1)] {
        assert!(times * size(packed.path(), name) < size(plain.path(), name), "{name}");
    }
    let file = fs::File::open(packed.path().join("acts-00000.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let group = reader.metadata().row_group(0);
    let codecs: Vec<String> = group.columns().iter().map(|c| c.compression().to_string()).collect();
    assert!(
        codecs[..3].iter().all(|c| c == "UNCOMPRESSED") && codecs[3].starts_with("ZSTD"),
        "{codecs:?}"
    );
}

#[test]
fn a_compressed_store_dropped_after_any_context_continues_to_the_same_bytes() {
    const N: u64 = 17;
    let spec = packed(ActDtype::F16);
    let whole = files(store_of(N, &spec).path());
    for killed_after in 0..=N {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path(), &spec).unwrap();
        push_until(&mut writer, killed_after, 3);
        drop(writer);
        let mut writer = StoreWriter::resume(dir.path(), &spec).unwrap();
        assert_eq!(writer.next_context(), killed_after / 5 * 5, "complete shards are kept");
        push_until(&mut writer, N, 2);
        writer.finish().unwrap();
        assert_eq!(files(dir.path()), whole, "killed after {killed_after}");
    }
}

#[test]
fn a_store_is_not_continued_with_another_compression() {
    let dir = tempfile::tempdir().unwrap();
    drop(StoreWriter::create(dir.path(), &packed(ActDtype::F16)).unwrap());
    let refused = StoreWriter::resume(dir.path(), &spec(ActDtype::F16))
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("compression was \"zstd:3\" and now is absent"),
        "{refused}"
    );
    StoreWriter::resume(dir.path(), &packed(ActDtype::F16)).unwrap();
}

#[test]
fn parts_of_a_compressed_store_are_its_files() {
    let spec = packed(ActDtype::Bf16);
    let whole = store_of(17, &spec);
    let dir = tempfile::tempdir().unwrap();
    for number in [2, 1] {
        let mut writer = StoreWriter::create_part(dir.path(), &spec, Part { number, of: 2 }).unwrap();
        while writer.next_context() < 17 {
            let contexts = vec![context(writer.next_context())];
            let (rows, acts) = harvest(&contexts);
            let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
            writer.push(&contexts, &rows, &acts).unwrap();
        }
        writer.finish_part(17).unwrap();
    }
    let data = |dir: &Path| {
        let mut files = files(dir);
        files.retain(|name, _| name.extension().is_some_and(|e| e == "parquet"));
        files
    };
    assert_eq!(data(dir.path()), data(whole.path()));
    assert_eq!(read_all(dir.path()).unwrap(), read_all(whole.path()).unwrap());
}

#[test]
fn a_manifest_and_files_that_disagree_about_compression_are_refused() {
    let plain = store_of(17, &spec(ActDtype::F16));
    let packed = store_of(17, &packed(ActDtype::F16));
    // The manifest of the one with the files of the other: their lengths differ, so lengths are forged, too.
    for (manifest, data, word) in [
        (&plain, &packed, "is compressed (ZSTD"),
        (&packed, &plain, "not compressed"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files(data.path()) {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let mut of: serde_json::Value =
            serde_json::from_slice(&fs::read(manifest.path().join(MANIFEST)).unwrap()).unwrap();
        let theirs: serde_json::Value = serde_json::from_slice(&fs::read(data.path().join(MANIFEST)).unwrap()).unwrap();
        of["shards"] = theirs["shards"].clone();
        fs::write(dir.path().join(MANIFEST), of.to_string()).unwrap();
        let problem = read_all(dir.path()).unwrap_err().to_string();
        assert!(problem.contains("acts-00000") && problem.contains(word), "{problem}");
    }
}

#[test]
fn damaged_pages_are_named_by_their_file_when_they_are_read() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let dir = store_of(17, &packed(ActDtype::F32));
    let path = dir.path().join("acts-00002.parquet");
    let footer = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let (start, length) = footer.metadata().row_group(0).column(3).byte_range();
    let whole = fs::read(&path).unwrap();
    let (start, end) = (start as usize, (start + length) as usize);
    // The header of the page, what is compressed, and the end of that.
    for at in [start..start + 4, start + 60..end, end - 4..end] {
        let mut bytes = whole.clone();
        bytes[at.clone()].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let problem = read_all(dir.path()).unwrap_err().to_string();
        assert!(problem.contains("acts-00002"), "{at:?}: {problem}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_makes_the_reader_of_a_compressed_store_panic(
        name in prop::sample::select(vec!["acts-00001.parquet", "contexts-00001.parquet", "manifest.json"]),
        footer in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let dir = store_of(12, &packed(ActDtype::F16));
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let start = if footer { bytes.len() - bytes.len().min(1400) } else { 0 };
        for (at, byte) in edits {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(rows) = read_all(dir.path()) {
            prop_assert_eq!(rows, 2 * (0..12).map(|i| context(i).tokens.len() as u64 - 1).sum::<u64>());
        }
        fs::rename(dir.path().join(MANIFEST), dir.path().join("kept.json")).unwrap();
        let other = tempfile::tempdir().unwrap();
        drop(StoreWriter::create(other.path(), &packed(ActDtype::F16)).unwrap());
        fs::copy(other.path().join("unfinished.json"), dir.path().join("unfinished.json")).unwrap();
        let _ = StoreWriter::resume(dir.path(), &packed(ActDtype::F16));
    }
}
