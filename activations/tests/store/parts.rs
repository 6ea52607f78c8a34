//! Stores that several writers make, each a part.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use activations::source::Activations;
use activations::store::{Part, Store, StoreSpec, StoreState, StoreWriter, state, waiting};
use activations::{ActDtype, Context, ContextSource};
use proptest::prelude::*;

use crate::fixture::{context, files, harvest, spec, store};

const HOOK: &str = "blocks.0.hook_resid_post";

fn part(number: usize, of: usize) -> Part {
    Part { number, of }
}

/// Pushes the contexts of the writer's part below `end`, one at a time.
fn push(writer: &mut StoreWriter, end: u64) {
    while writer.next_context() < end {
        let contexts: Vec<Context> = vec![context(writer.next_context())];
        let (rows, acts) = harvest(&contexts);
        let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
        writer.push(&contexts, &rows, &acts).unwrap();
    }
}

fn write_part(dir: &Path, spec: &StoreSpec, which: Part, n: u64) {
    let mut writer = StoreWriter::create_part(dir, spec, which).unwrap();
    push(&mut writer, n);
    writer.finish_part(n).unwrap();
}

/// A store of `n` contexts in `of` parts, the last one first.
fn in_parts(n: u64, of: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in (1..=of).rev() {
        write_part(dir.path(), &spec(ActDtype::F16), part(number, of), n);
    }
    dir
}

/// Every file but manifests.
fn data(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let parquet = files(dir)
        .into_iter()
        .filter(|(name, _)| name.extension().is_some_and(|e| e == "parquet"));
    parquet.collect()
}

fn refused(dir: &Path) -> String {
    Store::open(dir).err().unwrap().to_string()
}

#[test]
fn any_number_of_parts_makes_the_files_of_one_writer_and_reads_as_one_store() {
    // 17 contexts in shards of 5: four shards, the last one of 2. With 7 parts some have none.
    for n in [1, 5, 17, 20] {
        let whole = store(n, ActDtype::F16);
        let expected = Activations::open(whole.path(), Some(HOOK)).unwrap();
        let mut rows = vec![0.0; expected.n_rows() as usize * 24];
        expected.read_rows(0..expected.n_rows(), &mut rows).unwrap();
        for of in [2, 3, 7] {
            let dir = in_parts(n, of);
            assert!(data(dir.path()) == data(whole.path()), "{n} contexts in {of} parts");
            assert_eq!(
                Store::open(dir.path()).unwrap().manifest(),
                Store::open(whole.path()).unwrap().manifest()
            );
            assert!(matches!(state(dir.path()).unwrap(), StoreState::Finished(_)));
            assert_eq!(waiting(dir.path()).unwrap(), [""; 0]);
            let acts = Activations::open(dir.path(), Some(HOOK)).unwrap();
            assert_eq!(acts.origin().fingerprint, expected.origin().fingerprint);
            let mut found = vec![0.0; rows.len()];
            acts.read_rows(0..acts.n_rows(), &mut found).unwrap();
            assert_eq!(found, rows);
            let mut contexts = Store::open(dir.path()).unwrap().contexts(HOOK).unwrap();
            let mut next = 0;
            while let Some(batch) = contexts.next_batch().unwrap() {
                for c in batch.contexts {
                    assert_eq!(c, context(next));
                    next += 1;
                }
            }
            assert_eq!(next, n);
        }
    }
}

#[test]
fn a_part_that_was_killed_resumes_to_the_same_bytes_and_leaves_the_others_alone() {
    let spec = spec(ActDtype::F16);
    let whole = in_parts(27, 2);
    let dir = tempfile::tempdir().unwrap();
    write_part(dir.path(), &spec, part(2, 2), 27);
    let other = files(dir.path());
    // Shards 0, 2 and 4 are the first part's.
    let mut writer = StoreWriter::create_part(dir.path(), &spec, part(1, 2)).unwrap();
    push(&mut writer, 13);
    assert_eq!(writer.next_context(), 13);
    // What kill -9 leaves: the file in the middle has another name.
    fs::write(dir.path().join("acts-00004.parquet.tmp"), "half").unwrap();
    fs::write(dir.path().join("acts-00003.parquet.tmp"), "another part's, just now").unwrap();
    std::mem::forget(writer);
    assert!(matches!(state(dir.path()).unwrap(), StoreState::Unfinished(_)));
    for word in ["part 1/2", "not finished", "--resume"] {
        assert!(refused(dir.path()).contains(word), "{}", refused(dir.path()));
    }
    let again = StoreWriter::create_part(dir.path(), &spec, part(1, 2))
        .err()
        .unwrap()
        .to_string();
    assert!(again.contains("--resume"), "{again}");
    // The lock is the forgotten writer's, so another process would be told; here a copy of the directory goes on.
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in files(dir.path()) {
        fs::write(copy.path().join(name), bytes).unwrap();
    }
    let mut writer = StoreWriter::resume_part(copy.path(), &spec, part(1, 2)).unwrap();
    assert_eq!(
        writer.next_context(),
        10,
        "the first shard is whole, the next of this part begins at 10"
    );
    assert!(!copy.path().join("acts-00004.parquet.tmp").exists());
    assert!(
        copy.path().join("acts-00003.parquet.tmp").exists(),
        "it belongs to another part"
    );
    fs::remove_file(copy.path().join("acts-00003.parquet.tmp")).unwrap();
    push(&mut writer, 27);
    writer.finish_part(27).unwrap();
    assert!(files(copy.path()) == files(whole.path()));
    assert!(
        other
            .iter()
            .all(|(name, bytes)| fs::read(copy.path().join(name)).unwrap() == *bytes)
    );
}

#[test]
fn a_missing_part_is_named_with_the_command_that_makes_it() {
    let dir = in_parts(17, 3);
    fs::remove_file(dir.path().join("part-2-of-3.json")).unwrap();
    let said = refused(dir.path());
    assert!(
        said.contains("part 2/3 is missing") && said.contains("--shard 2/3"),
        "{said}"
    );
    assert!(!said.contains("1/3"), "{said}");
    assert_eq!(waiting(dir.path()).unwrap().len(), 1);
    write_part(dir.path(), &spec(ActDtype::F16), part(2, 3), 17);
    Store::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("acts-00002.parquet")).unwrap();
    let said = refused(dir.path());
    assert!(
        said.contains("acts-00002.parquet") && said.contains("missing"),
        "{said}"
    );
}

#[test]
fn parts_that_overlap_or_do_not_belong_together_are_refused_by_name() {
    let f16 = spec(ActDtype::F16);
    let create =
        |dir: &Path, spec: &StoreSpec, which| StoreWriter::create_part(dir, spec, which).err().unwrap().to_string();
    let dir = in_parts(17, 2);
    let said = create(dir.path(), &f16, part(1, 3));
    assert!(
        said.contains("parts of 2") && said.contains("1/3") && said.contains("overlap"),
        "{said}"
    );
    let said = create(dir.path(), &f16, part(1, 2));
    assert!(said.contains("already holds part 1/2"), "{said}");
    let said = StoreWriter::resume_part(dir.path(), &f16, part(1, 2))
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("finished"), "{said}");
    fs::remove_file(dir.path().join("part-1-of-2.json")).unwrap();
    let said = create(dir.path(), &spec(ActDtype::F32), part(1, 2));
    assert!(
        said.contains("part 1/2") && said.contains("2/2") && said.contains("dtype was \"f16\""),
        "{said}"
    );
    let said = StoreWriter::resume(dir.path(), &f16).err().unwrap().to_string();
    assert!(said.contains("--shard"), "{said}");

    // Directories filled elsewhere and copied together.
    let merge = |from: &Path, name: &str, to: &Path| fs::copy(from.join(name), to.join(name)).unwrap();
    let (two, three) = (in_parts(17, 2), in_parts(17, 3));
    merge(three.path(), "part-1-of-3.json", two.path());
    assert!(refused(two.path()).contains("overlap"), "{}", refused(two.path()));
    let two = in_parts(17, 2);
    for (other, words) in [
        (in_parts(18, 2), &["part-2-of-2.json", "another text"][..]),
        (
            {
                let dir = tempfile::tempdir().unwrap();
                write_part(dir.path(), &spec(ActDtype::F32), part(2, 2), 17);
                dir
            },
            &["part-2-of-2.json", "dtype was \"f16\" and now is \"f32\""],
        ),
    ] {
        merge(other.path(), "part-2-of-2.json", two.path());
        let said = refused(two.path());
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    let two = in_parts(17, 2);
    let renamed = fs::read_to_string(two.path().join("part-1-of-2.json")).unwrap();
    fs::write(two.path().join("part-2-of-2.json"), &renamed).unwrap();
    assert!(refused(two.path()).contains("renamed"), "{}", refused(two.path()));
    fs::write(
        two.path().join("part-2-of-2.json"),
        renamed.replace("\"number\": 1", "\"number\": 2"),
    )
    .unwrap();
    let said = refused(two.path());
    assert!(said.contains("part-2-of-2.json") && said.contains("overlaps"), "{said}");

    let whole = store(17, ActDtype::F16);
    let said = create(whole.path(), &f16, part(1, 2));
    assert!(said.contains("not in parts"), "{said}");
    merge(whole.path(), "manifest.json", dir.path());
    assert!(refused(dir.path()).contains("manifest.json"), "{}", refused(dir.path()));
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("thesis.txt"), "").unwrap();
    assert!(create(foreign.path(), &f16, part(1, 2)).contains("thesis.txt"));
}

#[test]
fn a_part_is_not_completed_before_all_of_its_contexts_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create_part(dir.path(), &spec(ActDtype::F16), part(2, 2)).unwrap();
    assert_eq!(writer.next_context(), 5);
    let (rows, acts) = harvest(&[context(4)]);
    let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
    let said = writer.push(&[context(4)], &rows, &acts).unwrap_err().to_string();
    assert!(said.contains("expected 5, got 4"), "{said}");
    push(&mut writer, 9);
    assert_eq!(writer.next_context(), 9);
    let said = writer.finish_part(10).unwrap_err().to_string();
    assert!(said.contains("part 2/2") && said.contains("context 9"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_numbers_in_the_manifest_of_a_part_make_a_panic_or_another_store(
        digits in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(b'0'..=b'9', 1..21)), 1..3),
    ) {
        static STORE: LazyLock<(tempfile::TempDir, Vec<u8>)> = LazyLock::new(|| {
            let dir = in_parts(17, 2);
            let text = fs::read(dir.path().join("part-2-of-2.json")).unwrap();
            (dir, text)
        });
        let (dir, text) = &*STORE;
        let path = dir.path().join("part-2-of-2.json");
        let mut text = text.clone();
        for (at, new) in digits {
            let numbers: Vec<usize> = (0..text.len()).filter(|&i| text[i].is_ascii_digit()).collect();
            let at = numbers[at.index(numbers.len())];
            text.splice(at..=at, new);
        }
        fs::write(&path, text).unwrap();
        // Digests and the program's name may be anything; rows and contexts are checked against the files.
        if let Ok(acts) = Activations::open(dir.path(), Some(HOOK)) {
            let rows: usize = (0..17).map(|c| context(c).tokens.len() - 1).sum();
            prop_assert_eq!(acts.n_rows(), rows as u64);
        }
        if let Ok(mut contexts) = Store::open(dir.path()).and_then(|store| store.contexts(HOOK)) {
            while let Ok(Some(_)) = contexts.next_batch() {}
        }
    }
}
