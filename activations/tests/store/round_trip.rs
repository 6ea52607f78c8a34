//! What goes in comes out.

use activations::source::Activations;
use activations::store::{Store, StoreState, StoreWriter, state};
use activations::{ActDtype, Context, ContextSource};

use crate::fixture::{HOOKS, context, files, harvest, npy, push_until, spec, store, store_of};

#[test]
fn what_is_written_comes_back_in_natural_order_in_every_format() {
    for dtype in [ActDtype::F16, ActDtype::Bf16, ActDtype::F32] {
        let dir = store(17, dtype);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.manifest().shards.len(), 4);
        for (hook, (name, d_in)) in HOOKS.iter().enumerate() {
            let mut source = store.contexts(name).unwrap();
            assert_eq!((source.d_in(), source.n_contexts()), (*d_in, Some(17)));
            let (mut next, mut all) = (0, Vec::new());
            while let Some(batch) = source.next_batch().unwrap() {
                let contexts: Vec<Context> = (next..next + batch.contexts.len() as u64).map(context).collect();
                assert_eq!(batch.contexts, contexts);
                let (rows, acts) = harvest(&contexts);
                assert_eq!(batch.rows, rows);
                assert_eq!(batch.acts, acts[hook]);
                next += contexts.len() as u64;
                all.extend(batch.acts);
            }
            assert_eq!(next, 17);
            let source = Activations::open(dir.path(), Some(name)).unwrap();
            assert_eq!((source.n_rows() as usize * d_in, source.d_in()), (all.len(), *d_in));
            let mut read = vec![0.0; all.len()];
            source.read_rows(0..source.n_rows(), &mut read).unwrap();
            assert_eq!(read, all);
            let middle = 3..source.n_rows() - 2;
            source
                .read_rows(middle.clone(), &mut read[..(middle.end - 3) as usize * d_in])
                .unwrap();
            assert_eq!(read[0], all[3 * d_in]);
        }
    }
}

#[test]
fn contexts_can_be_read_from_any_one_on() {
    let dir = store(17, ActDtype::F16);
    let store = Store::open(dir.path()).unwrap();
    for first in 0..=18 {
        let mut source = store.contexts(HOOKS[0].0).unwrap();
        source.start_at(first);
        let (mut contexts, mut acts, mut skip) = (Vec::new(), Vec::new(), 0);
        while let Some(batch) = source.next_batch().unwrap() {
            let before = batch
                .rows
                .partition_point(|r| batch.contexts[r.context as usize].index < first);
            acts.extend_from_slice(&batch.acts[before * HOOKS[0].1..]);
            skip += batch.contexts.iter().filter(|c| c.index < first).count();
            contexts.extend(batch.contexts.into_iter().filter(|c| c.index >= first));
        }
        let expected: Vec<Context> = (first..17).map(context).collect();
        assert_eq!(acts, harvest(&expected).1[0]);
        assert_eq!(contexts, expected);
        assert!(skip < 5, "only the shard that it lies in is opened");
    }
}

#[test]
fn contexts_without_rows_keep_their_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F32)).unwrap();
    let lonely = |index| Context {
        index,
        document: 0,
        tokens: vec![1],
        ..Context::default()
    };
    let contexts: Vec<Context> = (0..6).map(lonely).chain([context(6)]).collect();
    let (rows, acts) = harvest(&contexts);
    let acts: Vec<&[f32]> = acts.iter().map(Vec::as_slice).collect();
    writer.push(&contexts, &rows, &acts).unwrap();
    writer.finish().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.manifest().shards[0].n_rows, 0);
    let mut source = store.contexts(HOOKS[0].0).unwrap();
    let mut all = Vec::new();
    while let Some(batch) = source.next_batch().unwrap() {
        assert_eq!(batch.acts.len(), batch.rows.len() * HOOKS[0].1);
        all.extend(batch.contexts);
    }
    assert_eq!(all, contexts);
}

#[test]
fn how_contexts_are_grouped_into_calls_changes_no_byte() {
    let write = |step| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::Bf16)).unwrap();
        push_until(&mut writer, 23, step);
        writer.finish().unwrap();
        files(dir.path())
    };
    let one = write(1);
    assert_eq!(one, write(7));
    assert_eq!(one, write(23));
}

#[test]
fn row_groups_and_pages_that_fill_up_change_nothing_for_the_reader() {
    // 600 rows of 32 KiB: more than one row group of 512 rows, and pages of 32 rows.
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(ActDtype::F32);
    spec.hooks.truncate(1);
    spec.hooks[0].d_in = 8192;
    spec.context_length = 100;
    spec.contexts_per_shard = 8;
    let mut writer = StoreWriter::create(dir.path(), &spec).unwrap();
    let contexts: Vec<Context> = (0..8)
        .map(|index| Context {
            index,
            document: 0,
            tokens: vec![7; 75],
            ..Context::default()
        })
        .collect();
    let (rows, _) = harvest(&contexts);
    let acts: Vec<f32> = (0..rows.len() * 8192).map(|i| (i / 8192 * 10 + i % 7) as f32).collect();
    writer.push(&contexts, &rows, &[&acts]).unwrap();
    writer.finish().unwrap();
    let source = Activations::open(dir.path(), None).unwrap();
    assert_eq!(source.n_rows(), 8 * 74);
    let mut read = vec![0.0; acts.len()];
    source.read_rows(0..source.n_rows(), &mut read).unwrap();
    assert!(read == acts);
}

#[test]
fn a_directory_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(state(&dir.path().join("nowhere")).unwrap(), StoreState::Absent);
    assert_eq!(state(dir.path()).unwrap(), StoreState::Absent);
    let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
    push_until(&mut writer, 7, 3);
    assert_eq!(
        state(dir.path()).unwrap(),
        StoreState::Unfinished(Box::new(spec(ActDtype::F16)))
    );
    let manifest = writer.finish().unwrap();
    assert_eq!(state(dir.path()).unwrap(), StoreState::Finished(Box::new(manifest)));
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("thesis.tex"), "").unwrap();
    assert_eq!(state(other.path()).unwrap(), StoreState::Foreign("thesis.tex".into()));
}

#[test]
fn the_tokenizer_travels_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), &spec(ActDtype::F16)).unwrap();
    writer.add_file("tokenizer.json", b"{}").unwrap();
    let refused = writer.add_file("acts-00000.parquet", b"").unwrap_err();
    assert!(refused.to_string().contains("acts-00000"), "{refused}");
    push_until(&mut writer, 3, 3);
    writer.finish().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let copy = store.file("tokenizer.json").unwrap();
    assert_eq!(copy, dir.path().join("tokenizer.json"));
    assert_eq!(std::fs::read(copy).unwrap(), b"{}");
    assert_eq!(store.file("vocabulary.txt"), None);
}

#[test]
fn held_out_rows_begin_with_a_context_in_a_store_and_anywhere_in_an_array() {
    let dir = store(17, ActDtype::F16);
    let source = Activations::open(dir.path(), Some(HOOKS[0].0)).unwrap();
    let borders: Vec<u64> = (0..17)
        .scan(0, |row, index| {
            let start = *row;
            *row += context(index).tokens.len() as u64 - 1;
            Some(start)
        })
        .collect();
    for held_out in 0..source.n_rows() {
        let expected = borders
            .iter()
            .copied()
            .chain([source.n_rows()])
            .rfind(|&b| b <= source.n_rows() - held_out)
            .unwrap();
        match source.split(held_out) {
            Ok(split) => {
                assert_eq!(split.train, 0..expected, "{held_out}");
                assert_eq!(split.held_out, expected..source.n_rows());
            }
            Err(error) => assert!(
                expected == 0 && error.to_string().contains("none would remain"),
                "{error}"
            ),
        }
    }
    assert!(source.split(u64::MAX).is_err());

    let array = dir.path().join("a.npy");
    npy(&array, 2, &[0.0; 20]);
    let split = Activations::open(&array, None).unwrap().split(3).unwrap();
    assert_eq!((split.train, split.held_out), (0..7, 7..10));
}

#[test]
fn origins_name_what_is_known_and_fingerprints_follow_the_data() {
    let dir = store(17, ActDtype::F16);
    let open = |dir: &std::path::Path, hook: usize| Activations::open(dir, Some(HOOKS[hook].0)).unwrap().origin();
    let origin = open(dir.path(), 0);
    assert_eq!(origin.hook.as_deref(), Some(HOOKS[0].0));
    assert_eq!(origin.model.as_ref().unwrap().name, "tiny");
    let again = store(17, ActDtype::F16);
    assert_eq!(origin.fingerprint, open(again.path(), 0).fingerprint);
    let others = [
        open(dir.path(), 1),
        open(store(16, ActDtype::F16).path(), 0),
        open(store(17, ActDtype::F32).path(), 0),
    ];
    assert!(others.iter().all(|other| other.fingerprint != origin.fingerprint));

    let array = dir.path().join("a.npy");
    let mut values = vec![1.0; 60];
    npy(&array, 2, &values);
    let before = Activations::open(&array, None).unwrap().origin();
    assert_eq!((before.hook, before.model), (None, None));
    values[59] = 2.0;
    npy(&array, 2, &values);
    assert_ne!(
        Activations::open(&array, None).unwrap().origin().fingerprint,
        before.fingerprint
    );
}

#[test]
fn a_store_of_int8_holds_every_row_to_half_a_step_and_resumes_and_mixes_like_any_other() {
    let exact = store(17, ActDtype::F32);
    let dir = store(17, ActDtype::Int8);
    for (name, d_in) in HOOKS {
        let open = |dir: &std::path::Path| Activations::open(dir, Some(name)).unwrap();
        let (exact, int8) = (open(exact.path()), open(dir.path()));
        assert_eq!(
            (int8.dtype(), int8.n_rows(), int8.d_in()),
            (ActDtype::Int8, exact.n_rows(), d_in)
        );
        let n = exact.n_rows();
        let (mut x, mut x8) = (vec![0.0; n as usize * d_in], vec![0.0; n as usize * d_in]);
        exact.read_rows(0..n, &mut x).unwrap();
        int8.read_rows(0..n, &mut x8).unwrap();
        for (row, row8) in x.chunks(d_in).zip(x8.chunks(d_in)) {
            let step = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            assert!(
                row.iter().zip(row8).all(|(a, b)| (a - b).abs() <= 0.501 * step),
                "{row:?} {row8:?}"
            );
        }
        let mut mixed = int8
            .mixed(
                0..n,
                &activations::source::MixOptions {
                    seed: 1,
                    memory_bytes: 1 << 20,
                },
            )
            .unwrap();
        let mut drawn = vec![0.0; n as usize * d_in];
        mixed.next_batch(&mut drawn).unwrap();
        let sorted = |rows: &[f32]| {
            let mut rows: Vec<Vec<u32>> = rows
                .chunks(d_in)
                .map(|r| r.iter().map(|v| v.to_bits()).collect())
                .collect();
            rows.sort();
            rows
        };
        assert_eq!(sorted(&drawn), sorted(&x8));
    }
}

#[test]
fn reading_a_hook_touches_no_byte_of_another() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    for (dtype, compression) in [
        (ActDtype::F16, None),
        (ActDtype::Int8, None),
        (ActDtype::F16, Some("zstd")),
    ] {
        let mut spec = spec(dtype);
        spec.compression = compression.map(|name| name.parse().unwrap());
        let dir = store_of(17, &spec);
        let read = |hook: usize| {
            let acts = Activations::open(dir.path(), Some(HOOKS[hook].0))?;
            let mut rows = vec![0.0; acts.n_rows() as usize * acts.d_in()];
            acts.read_rows(0..acts.n_rows(), &mut rows)?;
            Ok::<_, activations::Error>(rows)
        };
        let before = read(0).unwrap();
        // Everything of the other hook, the headers of its pages included.
        for shard in 0..4 {
            let path = dir.path().join(format!("acts-{shard:05}.parquet"));
            let mut bytes = std::fs::read(&path).unwrap();
            let footer = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
            for group in footer.metadata().row_groups() {
                let column = group
                    .columns()
                    .iter()
                    .find(|c| c.column_path().parts() == [HOOKS[1].0])
                    .unwrap();
                let (start, length) = column.byte_range();
                bytes[start as usize..(start + length) as usize].fill(0xff);
            }
            std::fs::write(&path, bytes).unwrap();
        }
        assert_eq!(read(0).unwrap(), before);
        assert!(read(1).is_err());
    }
}
