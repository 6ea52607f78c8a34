//! The copy of rows that cannot be read in place: interrupted, reused, and read by others.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use activations::safetensors_file::SafeTensors;
use activations::source::Activations;
use activations::{Outcome, Progress, Silent, Stop};
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, FixedSizeListArray, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::{fixture, npy, prepared, rows};

/// Asks to stop once a number of rows are copied.
struct StopAfter(AtomicU64, Stop);

impl Progress for StopAfter {
    fn advance(&self, n: u64) {
        if self.0.fetch_sub(n.min(self.0.load(Ordering::SeqCst)), Ordering::SeqCst) <= n {
            self.1.request();
        }
    }
}

const WIDTH: usize = 1024;
const ROWS: usize = 9000;

fn value(at: usize) -> f32 {
    (at % 1021) as f32 - 500.0
}

/// 36 MiB in row groups of 2,500 rows: nine decoded batches.
fn large(path: &std::path::Path) {
    let mut out = None;
    for start in (0..ROWS).step_by(1000) {
        let row = |r: usize| Some((0..WIDTH).map(move |c| Some(value(r * WIDTH + c))).collect::<Vec<_>>());
        let list =
            FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>((start..start + 1000).map(row), WIDTH as i32);
        let batch = RecordBatch::try_from_iter([("x", Arc::new(list) as ArrayRef)]).unwrap();
        let writer = out.get_or_insert_with(|| {
            let properties = WriterProperties::builder()
                .set_max_row_group_row_count(Some(2500))
                .build();
            ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap()
        });
        writer.write(&batch).unwrap();
    }
    out.unwrap().close().unwrap();
}

#[test]
fn a_copy_that_is_stopped_again_and_again_ends_with_the_bytes_of_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("x.parquet");
    large(&source);
    let open = || Activations::open(&source, None).unwrap();
    assert_eq!(open().copy_bytes(), (ROWS * WIDTH * 4) as u64);
    let whole = dir.path().join("whole.safetensors");
    let acts = prepared(open(), &whole);
    let mut row = vec![0.0; WIDTH];
    for at in [0, 2499, 2500, 8999] {
        acts.read_rows(at..at + 1, &mut row).unwrap();
        assert!((0..WIDTH).all(|c| row[c] == value(at as usize * WIDTH + c)), "row {at}");
    }
    let copy = dir.path().join("copy.safetensors");
    let mut calls = 0;
    loop {
        calls += 1;
        let stop = Stop::new();
        let progress = StopAfter(AtomicU64::new(2000), stop.clone());
        // Rows that are there already count as progress, so that the last calls stop at once: let them run.
        let (outcome, acts) = match calls {
            ..5 => open().prepare(&copy, &progress, &stop).unwrap(),
            _ => open().prepare(&copy, &Silent, &Stop::new()).unwrap(),
        };
        assert_eq!(outcome == Outcome::Finished, acts.is_some());
        if outcome == Outcome::Finished {
            break;
        }
        assert!(!copy.exists(), "what is not whole has another name");
    }
    assert!(calls > 2, "{calls} calls");
    assert!(fs::read(&copy).unwrap() == fs::read(&whole).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
}

#[test]
fn rows_behind_the_last_note_and_copies_of_other_data_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let expected = npy("rows.npy");
    let open = || Activations::open(&fixture("list_f32.parquet"), None).unwrap();
    let copy = dir.path().join("acts.safetensors");
    prepared(open(), &copy);
    let good = fs::read(&copy).unwrap();
    let temporary = dir.path().join("acts.safetensors.tmp");
    let journal = dir.path().join("acts.progress.json");
    let header = good.len() - 300 * 6 * 4;
    // Killed: 40 rows noted, and behind them what the disk made of the rest.
    let mut killed = good[..header + 40 * 24].to_vec();
    killed.resize(header + 100 * 24, 0xff);
    let mut other = good.clone();
    other[header - 10] ^= 1;
    for (bytes, note) in [
        (killed.clone(), r#"{"rows":40}"#),
        (killed.clone(), r#"{"rows":4000}"#),
        (killed.clone(), "{"),
        (other[..header + 40 * 24].to_vec(), r#"{"rows":40}"#),
        (good[..header + 39 * 24].to_vec(), r#"{"rows":40}"#),
    ] {
        let _ = fs::remove_file(&copy);
        fs::write(&temporary, &bytes).unwrap();
        fs::write(&journal, note).unwrap();
        assert_eq!(rows(&prepared(open(), &copy)), expected, "{note}");
        assert!(fs::read(&copy).unwrap() == good && !temporary.exists() && !journal.exists());
    }
    // A finished copy of other data, and one that was cut.
    for bytes in [&other[..], &good[..good.len() - 1]] {
        fs::write(&copy, bytes).unwrap();
        assert_eq!(rows(&prepared(open(), &copy)), expected);
    }
    // One of the same data is used: it is not written again.
    let written = fs::metadata(&copy).unwrap().modified().unwrap();
    prepared(open(), &copy);
    assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), written);
}

#[test]
fn a_copy_is_a_safetensors_file_to_train_on() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("acts.safetensors");
    let acts = Activations::open(&fixture("contexts.parquet"), None).unwrap();
    let said = acts.read_rows(0..1, &mut [0.0; 6]).unwrap_err().to_string();
    assert!(said.contains("has to be copied"), "{said}");
    prepared(acts, &copy);
    assert_eq!(SafeTensors::open(&copy).unwrap().shape("acts"), Some(&[300, 6][..]));
    assert_eq!(rows(&Activations::open(&copy, None).unwrap()), npy("rows.npy"));
}
