//! A harvest that was killed continues to the same bytes.

use std::fs;

use activations::ActDtype;
use activations::store::{JOURNAL, MANIFEST, Store, StoreWriter};

use crate::fixture::{files, push_until, spec, store};

const N: u64 = 17;

#[test]
fn a_writer_dropped_after_any_context_continues_to_the_same_bytes() {
    let whole = files(store(N, ActDtype::F16).path());
    for killed_after in 0..=N {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
        push_until(&mut writer, killed_after, 3);
        drop(writer);
        let refused = Store::open(dir.path()).err().unwrap().to_string();
        assert!(
            refused.contains("unfinished") && refused.contains("--resume"),
            "{refused}"
        );
        let mut writer = StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).unwrap();
        assert_eq!(writer.next_context(), killed_after / 5 * 5, "complete shards are kept");
        push_until(&mut writer, N, 2);
        writer.finish().unwrap();
        assert_eq!(files(dir.path()), whole, "killed after {killed_after}");
    }
}

/// An unfinished store with everything of a whole one but the manifest, which a test then damages.
fn unfinished() -> tempfile::TempDir {
    let dir = store(N, ActDtype::F16);
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(StoreWriter::create(other.path(), &spec(ActDtype::F16)).unwrap());
    fs::copy(other.path().join(JOURNAL), dir.path().join(JOURNAL)).unwrap();
    dir
}

#[test]
fn whatever_a_kill_leaves_behind_the_bytes_in_the_end_are_the_same() {
    let whole = files(store(N, ActDtype::F16).path());
    type Damage = (&'static str, fn(&std::path::Path), u64);
    let damages: [Damage; 7] = [
        ("killed before the manifest", |_| {}, 15),
        (
            "killed between the two files of a shard",
            |d| fs::remove_file(d.join("acts-00001.parquet")).unwrap(),
            5,
        ),
        (
            "the contexts of a shard deleted",
            |d| fs::remove_file(d.join("contexts-00002.parquet")).unwrap(),
            10,
        ),
        (
            "a temporary file",
            |d| fs::write(d.join("acts-00003.parquet.tmp"), b"PAR1half").unwrap(),
            15,
        ),
        (
            "a temporary manifest",
            |d| fs::write(d.join("manifest.json.tmp"), b"{\"for").unwrap(),
            15,
        ),
        (
            "a shard cut short by a disk that lost power",
            |d| {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(d.join("acts-00000.parquet"))
                    .unwrap();
                file.set_len(1000).unwrap();
            },
            0,
        ),
        (
            "the last shard deleted",
            |d| {
                fs::remove_file(d.join("acts-00003.parquet")).unwrap();
                fs::remove_file(d.join("contexts-00003.parquet")).unwrap();
            },
            15,
        ),
    ];
    for (name, damage, next) in damages {
        let dir = unfinished();
        damage(dir.path());
        let mut writer = StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).unwrap();
        assert_eq!(writer.next_context(), next, "{name}");
        push_until(&mut writer, N, 4);
        writer.finish().unwrap();
        assert_eq!(files(dir.path()), whole, "{name}");
    }
}

#[test]
fn a_kill_between_the_manifest_and_the_end_leaves_a_finished_store() {
    let dir = store(N, ActDtype::F16);
    let journal = unfinished();
    fs::copy(journal.path().join(JOURNAL), dir.path().join(JOURNAL)).unwrap();
    Store::open(dir.path()).unwrap();
    let refused = StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).err().unwrap();
    assert!(refused.to_string().contains("finished"), "{refused}");
}

#[test]
fn other_settings_are_refused_by_name_and_nothing_is_lost() {
    let dir = unfinished();
    let before = files(dir.path());
    let mut other = spec(ActDtype::F16);
    other.max_tokens = Some(7);
    let refused = StoreWriter::resume(dir.path(), &other).err().unwrap().to_string();
    assert!(refused.contains("max_tokens was absent and now is 7"), "{refused}");
    let refused = StoreWriter::create(dir.path(), &spec(ActDtype::F16))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("--resume"), "{refused}");
    assert_eq!(files(dir.path()), before);
}

#[test]
fn stores_and_other_things_are_never_written_over() {
    let dir = store(N, ActDtype::F16);
    let before = files(dir.path());
    for refused in [
        StoreWriter::create(dir.path(), &spec(ActDtype::F16)).err().unwrap(),
        StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).err().unwrap(),
    ] {
        assert!(refused.to_string().contains("store"), "{refused}");
    }
    assert_eq!(files(dir.path()), before);
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.tex"), "").unwrap();
    let refused = StoreWriter::create(other.path(), &spec(ActDtype::F16)).err().unwrap();
    assert!(refused.to_string().contains("thesis.tex"), "{refused}");
    let refused = StoreWriter::resume(other.path(), &spec(ActDtype::F16)).err().unwrap();
    assert!(refused.to_string().contains("nothing to resume"), "{refused}");
}

#[test]
fn two_writers_cannot_have_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
    let refused = StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).err().unwrap();
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(writer);
    StoreWriter::resume(dir.path(), &spec(ActDtype::F16)).unwrap();
}

#[test]
fn a_text_without_contexts_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
    let refused = writer.finish().err().unwrap();
    assert!(refused.to_string().contains("at least one context"), "{refused}");
}
