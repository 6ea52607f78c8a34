//! The mixed reader: every row once an epoch, in an order that depends on nothing but the state, in bounded memory.

use std::collections::HashSet;

use activations::source::{Activations, MixOptions, MixState, MixedReader};
use activations::store::{CorpusRef, HookSpec, ModelRef, StoreSpec, StoreWriter};
use activations::{ActDtype, Context, RowRef};
use proptest::prelude::*;

use crate::fixture::npy;

/// An array whose row `r` holds `r` and `-r`.
fn array(n: usize) -> (tempfile::TempDir, Activations) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let values: Vec<f32> = (0..n).flat_map(|r| [r as f32, -(r as f32)]).collect();
    npy(&path, 2, &values);
    let source = Activations::open(&path, None).unwrap();
    (dir, source)
}

fn options(seed: u64, memory_bytes: u64) -> MixOptions {
    MixOptions { seed, memory_bytes }
}

/// The next `n` rows, by their first value.
fn draw(reader: &mut MixedReader, n: usize) -> Vec<u64> {
    let mut out = vec![0.0; n * reader.d_in()];
    reader.next_batch(&mut out).unwrap();
    out.chunks_exact(reader.d_in()).map(|row| row[0] as u64).collect()
}

/// The least memory in which `n` rows of the array can be mixed: four chunks of 64 rows, and bookkeeping.
fn least(n: u64) -> u64 {
    4 * 64 * (8 + 16) + n.div_ceil(64) * 8
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_row_comes_once_an_epoch_and_states_continue_exactly(
        n in 1usize..3000,
        trim in 0u64..70,
        seed in any::<u64>(),
        extra in 0u64..20_000,
        batches in prop::collection::vec(1usize..700, 1..12),
    ) {
        let (_dir, source) = array(n);
        let range = trim.min(n as u64 - 1)..n as u64;
        let rows = (range.end - range.start) as usize;
        let options = options(seed, least(range.end - range.start) + extra);
        let mut reader = source.mixed(range.clone(), &options).unwrap();
        let mut stream = Vec::new();
        for batch in &batches {
            let state = reader.state();
            let mut other = source.mixed(range.clone(), &options).unwrap();
            other.restore(state).unwrap();
            let next = draw(&mut reader, *batch);
            prop_assert_eq!(&draw(&mut other, *batch), &next);
            prop_assert_eq!(other.state(), reader.state());
            stream.extend(next);
            prop_assert!(reader.pool_bytes() as u64 <= options.memory_bytes, "{}", reader.pool_bytes());
        }
        let rest = rows - stream.len() % rows;
        stream.extend(draw(&mut reader, rest));
        prop_assert_eq!(reader.epoch() as usize, stream.len() / rows);
        for epoch in stream.chunks_exact(rows) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(range.clone()));
        }
        // The size of batches changes nothing.
        let mut again = source.mixed(range, &options).unwrap();
        prop_assert_eq!(draw(&mut again, stream.len()), stream);
    }
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    for memory in [least(2000), 1 << 20] {
        let (_dir, source) = array(2000);
        let mut reader = source.mixed(0..2000, &options(1, memory)).unwrap();
        let (first, second) = (draw(&mut reader, 2000), draw(&mut reader, 2000));
        assert_ne!(first, second);
        let mut other = source.mixed(0..2000, &options(2, memory)).unwrap();
        assert_ne!(draw(&mut other, 2000), first);
    }
}

#[test]
fn a_pool_that_holds_everything_gives_an_exact_shuffle() {
    // 100 rows, 20,000 epochs: at every place every row comes up equally often, within five standard deviations.
    let (_dir, source) = array(100);
    let mut reader = source.mixed(0..100, &options(5, 1 << 20)).unwrap();
    let mut counts = vec![[0u32; 100]; 100];
    for _ in 0..20_000 {
        for (place, row) in draw(&mut reader, 100).into_iter().enumerate() {
            counts[place][row as usize] += 1;
        }
    }
    let worst = counts.iter().flatten().map(|&c| c.abs_diff(200)).max().unwrap();
    assert!(worst < 72, "a row came {worst} times more or less often than 200");
}

#[test]
fn states_that_cannot_be_and_memory_that_cannot_do_are_refused() {
    let (_dir, source) = array(2000);
    let mut reader = source.mixed(0..2000, &options(1, least(2000))).unwrap();
    draw(&mut reader, 10);
    let good = reader.state();
    for bad in [
        MixState { windows: 1000, ..good },
        MixState { draws: 1 << 40, ..good },
        MixState {
            epoch: u64::MAX,
            ..good
        },
    ] {
        let refused = reader.restore(bad).unwrap_err().to_string();
        assert!(refused.contains("changed"), "{refused}");
        assert_eq!(reader.state(), good);
    }
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<MixState>(&json).unwrap(), good);
    let refused = source
        .mixed(0..2000, &options(1, least(2000) - 1))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains(&format!("the least is {}", least(2000))), "{refused}");
    assert!(
        reader
            .next_batch(&mut [0.0; 3])
            .unwrap_err()
            .to_string()
            .contains("whole rows")
    );
}

#[test]
fn an_error_in_the_middle_of_a_batch_leaves_the_state_before_it() {
    let (dir, source) = array(4000);
    let mut reader = source.mixed(0..4000, &options(1, least(4000))).unwrap();
    draw(&mut reader, 100);
    let (state, path) = (reader.state(), dir.path().join("a.npy"));
    let whole = std::fs::read(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(300).unwrap();
    let error = reader.next_batch(&mut vec![0.0; 2 * 2000]).unwrap_err().to_string();
    assert!(error.contains("shorter"), "{error}");
    assert_eq!(reader.state(), state);
    std::io::Write::write_all(&mut &file, &whole).unwrap();
    let mut other = source.mixed(0..4000, &options(1, least(4000))).unwrap();
    draw(&mut other, 100);
    assert_eq!(draw(&mut reader, 2000), draw(&mut other, 2000));
}

#[test]
fn a_reader_can_move_to_another_thread() {
    let (_dir, source) = array(500);
    let mut reader = source.mixed(0..500, &options(1, 1 << 20)).unwrap();
    let rows = std::thread::spawn(move || draw(&mut reader, 500)).join().unwrap();
    assert_eq!(rows.into_iter().collect::<HashSet<_>>().len(), 500);
}

/// Distinct contexts in a batch of `batch` rows, averaged over an epoch, as a share of what an exact shuffle gives.
fn share_of_contexts(contexts: u64, per_context: u64, batch: usize, pool_rows: u64) -> f64 {
    // Two bytes a row keep the test small: a chunk is then 64 rows, longer than a row group of a real store would make.
    let dir = tempfile::tempdir().unwrap();
    let hooks = vec![HookSpec {
        name: "blocks.0.hook_resid_post".into(),
        d_in: 4,
    }];
    let length = per_context as usize;
    let spec = StoreSpec::new(hooks, ActDtype::F32, ModelRef::default(), CorpusRef::default(), length);
    let mut writer = StoreWriter::create(dir.path(), &spec).unwrap();
    for index in 0..contexts {
        let context = Context {
            index,
            document: index,
            tokens: vec![0; length],
            ..Context::default()
        };
        let row = |position| RowRef { context: 0, position };
        let rows: Vec<RowRef> = (0..per_context as u32).map(row).collect();
        writer
            .push(&[context], &rows, &[&vec![index as f32; 4 * length]])
            .unwrap();
    }
    writer.finish().unwrap();
    let source = Activations::open(dir.path(), None).unwrap();
    let n = source.n_rows();
    let mut reader = source
        .mixed(0..n, &options(7, pool_rows * (16 + 16) + n.div_ceil(64) * 8))
        .unwrap();
    let batches = n as usize / batch;
    let distinct: usize = (0..batches)
        .map(|_| draw(&mut reader, batch).into_iter().collect::<HashSet<_>>().len())
        .sum();
    let c = contexts as f64;
    let global = c * (1.0 - (1.0 - 1.0 / c).powi(batch as i32));
    distinct as f64 / batches as f64 / global
}

#[test]
fn a_pool_of_a_fraction_of_the_rows_gives_batches_of_most_contexts() {
    // A store of 20,000 contexts of 128 rows at d 768 in f16 is 3.9 GB, and 1 GiB holds 693,000 of its rows, in chunks
    // of 42: here the same in the small, 2,500 contexts, an eighth of everything and longer chunks.
    let share = share_of_contexts(2500, 128, 512, 86_000);
    assert!(share > 0.85, "{share}");
    // Where the store fits, an exact shuffle.
    let share = share_of_contexts(500, 64, 512, 40_000);
    assert!(share > 0.98, "{share}");
}
