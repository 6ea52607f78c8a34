//! Several hooks, stores and files side by side: rows of the same tokens in the same order, or a refusal.

use std::path::Path;

use activations::source::{Activations, Joined, MixOptions, RowReader};
use activations::store::Store;
use activations::{ActDtype, ContextSource};
use proptest::prelude::*;

use crate::fixture::{HOOKS, context, harvest, npy, spec, value};

/// Writes a store of `contexts` contexts.
fn store(dir: &Path, contexts: u64, dtype: ActDtype, first: u64) {
    let contexts: Vec<_> = (first..first + contexts)
        .map(|i| activations::Context {
            index: i - first,
            ..context(i)
        })
        .collect();
    let (rows, acts) = harvest(&contexts);
    let mut writer = activations::store::StoreWriter::create(dir, &spec(dtype)).unwrap();
    let acts: Vec<&[f32]> = acts.iter().map(|a| &a[..]).collect();
    writer.push(&contexts, &rows, &acts).unwrap();
    writer.finish().unwrap();
}

fn both(dir: &Path) -> Joined {
    let part = |(hook, _): (&str, usize)| Activations::open(dir, Some(hook)).unwrap();
    Joined::new(HOOKS.map(part).into()).unwrap()
}

#[test]
fn hooks_of_a_store_side_by_side_are_its_columns_row_by_row() {
    for dtype in [ActDtype::F32, ActDtype::F16, ActDtype::Int8] {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), 23, dtype, 0);
        let joined = both(dir.path());
        assert_eq!((joined.widths(), joined.d_in()), (vec![24, 7], 31));
        let n = joined.n_rows();
        let mut rows = vec![0.0; n as usize * 31];
        joined.read_rows(0..n, &mut rows).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let drain = |mut contexts: activations::store::StoreContexts| {
            let (mut acts, mut at) = (Vec::new(), Vec::new());
            while let Some(batch) = contexts.next_batch().unwrap() {
                let place = |r: &activations::RowRef| (batch.contexts[r.context as usize].index, r.position);
                at.extend(batch.rows.iter().map(place));
                acts.extend(batch.acts);
            }
            (acts, at)
        };
        let [one, other] = HOOKS.map(|(hook, _)| drain(store.contexts(hook).unwrap()));
        let (side_by_side, places) = drain(store.contexts_of(&[HOOKS[0].0, HOOKS[1].0]).unwrap());
        assert_eq!((&places, &side_by_side), (&one.1, &rows));
        for (row, (a, b)) in rows.chunks(31).zip(one.0.chunks(24).zip(other.0.chunks(7))) {
            assert_eq!((&row[..24], &row[24..]), (a, b));
        }
        if dtype == ActDtype::F32 {
            let (index, position) = places[5];
            assert_eq!(rows[5 * 31 + 24 + 3], value(1, index, position, 3));
        }
        // Held-out rows begin with a context, as those of one hook do.
        let alone = Activations::open(dir.path(), Some(HOOKS[0].0)).unwrap();
        assert_eq!(joined.split(10).unwrap(), alone.split(10).unwrap());
        assert_ne!(joined.origin().fingerprint, alone.origin().fingerprint);
        assert_eq!(Joined::from(alone).origin().hook.as_deref(), Some(HOOKS[0].0));
    }
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), 3, ActDtype::F32, 0);
    assert!(Store::open(dir.path()).unwrap().contexts_of(&[]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn parts_of_any_widths_are_mixed_in_one_order_and_states_continue_exactly(
        n in 1usize..1500,
        widths in prop::collection::vec(1usize..40, 1..4),
        seed in any::<u64>(),
        extra in 0u64..60_000,
        batches in prop::collection::vec(1usize..400, 1..8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        // A row holds its number, part by part with another offset.
        let parts = widths.iter().enumerate().map(|(i, &width)| {
            let path = dir.path().join(format!("{i}.npy"));
            let values: Vec<f32> = (0..n).flat_map(|r| vec![(r + 10_000 * i) as f32; width]).collect();
            npy(&path, width, &values);
            Activations::open(&path, None).unwrap()
        });
        let joined = Joined::new(parts.collect()).unwrap();
        let d_in = joined.d_in();
        let least = 4 * 64 * (4 * d_in + 16 * widths.len()) + n.div_ceil(64) * 8 * widths.len();
        let options = MixOptions { seed, memory_bytes: least as u64 + extra };
        let mut reader = joined.mixed(0..n as u64, &options).unwrap();
        let mut seen = vec![0u32; n];
        let mut given = 0;
        for batch in batches {
            let mut other = joined.mixed(0..n as u64, &options).unwrap();
            other.restore(reader.state()).unwrap();
            let mut rows = vec![0.0; batch * d_in];
            reader.next_batch(&mut rows).unwrap();
            let mut again = vec![0.0; batch * d_in];
            other.next_batch(&mut again).unwrap();
            prop_assert_eq!(&rows, &again);
            for row in rows.chunks(d_in) {
                let number = row[0] as usize;
                let expected: Vec<f32> = widths.iter().enumerate()
                    .flat_map(|(i, &width)| vec![(number + 10_000 * i) as f32; width])
                    .collect();
                prop_assert_eq!(row, &expected[..]);
                seen[number] += 1;
            }
            given += batch;
        }
        // Every row once an epoch.
        let (low, high) = ((given / n) as u32, given.div_ceil(n) as u32);
        prop_assert!(seen.iter().all(|&times| (low..=high).contains(&times)));
        prop_assert!(joined.mixed(0..n as u64 + 1, &options).is_err());
    }
}

#[test]
fn a_bad_row_of_one_part_is_named_and_leaves_all_parts_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut values: Vec<f32> = (0..400).map(|v| v as f32).collect();
    npy(&dir.path().join("a.npy"), 2, &values);
    values[333] = f32::NAN;
    npy(&dir.path().join("b.npy"), 2, &values);
    let open = |name: &str| Activations::open(&dir.path().join(name), None).unwrap();
    let joined = Joined::new(vec![open("a.npy"), open("b.npy")]).unwrap();
    let options = MixOptions {
        seed: 3,
        memory_bytes: 1 << 20,
    };
    let mut reader = joined.mixed(0..200, &options).unwrap();
    let before = reader.state();
    let error = reader.next_batch(&mut [0.0; 40]).unwrap_err().to_string();
    assert!(error.contains("b.npy") && error.contains("row 166"), "{error}");
    assert_eq!(reader.state(), before);
    assert!(
        reader
            .next_batch(&mut [0.0; 41])
            .unwrap_err()
            .to_string()
            .contains("whole rows")
    );
}

#[test]
fn activations_of_other_tokens_are_refused_naming_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    store(&path("a"), 12, ActDtype::F32, 0);
    store(&path("same"), 12, ActDtype::F16, 0);
    store(&path("short"), 11, ActDtype::F32, 0);
    let open = |name: &str, hook: usize| Activations::open(&path(name), Some(HOOKS[hook].0)).unwrap();
    // Another number format, another directory: the same tokens.
    assert!(Joined::new(vec![open("a", 0), open("same", 1)]).is_ok());
    let error = Joined::new(vec![open("a", 0), open("short", 1)])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("same tokens") && error.contains("short"), "{error}");
    // As many rows, in contexts of other lengths.
    store(&path("nine"), 9, ActDtype::F32, 0);
    store(&path("other"), 8, ActDtype::F32, 2);
    assert_eq!(open("nine", 0).n_rows(), open("other", 0).n_rows());
    let error = Joined::new(vec![open("nine", 0), open("other", 0)])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("row") && error.contains("position"), "{error}");
    assert!(Joined::new(Vec::new()).is_err());
}
