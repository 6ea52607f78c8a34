//! Other programs' files that are not what they should be: each is answered with what is wrong and what there is.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use activations::source::Activations;
use activations::{ActDtype, Silent, Stop};
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

use crate::fixture;

/// A Parquet file of these columns.
fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, of)| (name, of, true))).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn lists(rows: &[&[f32]]) -> ArrayRef {
    let rows = rows
        .iter()
        .map(|row| Some(row.iter().map(|&v| Some(v)).collect::<Vec<_>>()));
    Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows))
}

fn ids(n: i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(0..n))
}

/// What opening and reading everything says.
fn said(path: &Path, hook: Option<&str>, dtype: Option<ActDtype>) -> String {
    let copies = tempfile::tempdir().unwrap();
    let read = || {
        let acts = Activations::open_as(path, hook, dtype)?;
        let (_, acts) = acts.prepare(&copies.path().join("copy.safetensors"), &Silent, &Stop::new())?;
        let acts = acts.unwrap();
        acts.read_rows(0..acts.n_rows(), &mut vec![0.0; acts.n_rows() as usize * acts.d_in()])
    };
    read().unwrap_err().to_string()
}

fn says(path: &Path, hook: Option<&str>, dtype: Option<ActDtype>, words: &[&str]) {
    let said = said(path, hook, dtype);
    for word in words {
        assert!(said.contains(word), "{said}\nshould say {word}");
    }
}

#[test]
fn a_tensor_or_column_that_must_be_named_or_is_not_there_is_answered_with_those_that_are() {
    let several = fixture("several.safetensors");
    says(
        &several,
        None,
        None,
        &[
            "several tensors",
            "--hook",
            "layer3 (F16 [300, 6])",
            "layer4 (F32 [300, 6])",
        ],
    );
    says(
        &several,
        Some("layer9"),
        None,
        &["no tensor \"layer9\"", "layer3", "layer4", "bias", "ids"],
    );
    says(&several, Some("bias"), None, &["bias is F32 [6]", "expected", "layer3"]);
    says(&several, Some("ids"), None, &["ids is I64 [6, 2]"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let two = |path: &Path| {
        write(
            path,
            vec![("a", lists(&[&[1.0]])), ("b", lists(&[&[2.0]])), ("id", ids(1))],
        );
    };
    two(&path);
    says(
        &path,
        None,
        None,
        &["several columns", "--hook", "a (list of float32), b (list of float32)"],
    );
    says(&path, Some("c"), None, &["no column \"c\"", "a (", "b (", "id (int64)"]);
    says(&path, Some("id"), None, &["id is int64", "expected lists of float16"]);
    write(&path, vec![("id", ids(3))]);
    says(&path, None, None, &["no column of activations", "id (int64)"]);
    says(
        &fixture("saelens_f32"),
        Some("nope"),
        None,
        &["no column \"nope\"", "blocks.0.hook_resid_post", "token_ids"],
    );
}

#[test]
fn bytes_of_unknown_numbers_are_refused_with_what_to_give() {
    let bytes = fixture("bytes_bf16.parquet");
    says(&bytes, None, None, &["column vector", "--acts-dtype f16, bf16 or f32"]);
    says(
        &fixture("list_f32.parquet"),
        None,
        Some(ActDtype::F16),
        &["read as f32", "--acts-dtype"],
    );
    says(
        &fixture("rows.npy"),
        None,
        Some(ActDtype::F16),
        &["holds f32", "--acts-dtype"],
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let binary = |rows: Vec<&[u8]>| Arc::new(BinaryArray::from_vec(rows)) as ArrayRef;
    write(&path, vec![("x", binary(vec![b"123456", b"123456"]))]);
    says(&path, None, Some(ActDtype::F32), &["rows of 6 bytes", "f32"]);
    write(&path, vec![("x", binary(vec![b"1234", b"12345678"]))]);
    says(&path, None, Some(ActDtype::F32), &["row 1 has 8 values", "4"]);
}

#[test]
fn a_row_that_is_missing_or_of_another_width_or_not_finite_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write(&path, vec![("x", lists(&[&[1.0, 2.0], &[3.0, 4.0], &[5.0]]))]);
    says(
        &path,
        None,
        None,
        &["x.parquet", "column x", "row 2 has 1 values and the ones before it 2"],
    );
    let holes = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0)]), None]);
    write(&path, vec![("x", Arc::new(holes))]);
    says(&path, None, None, &["row 1 has no value"]);
    let parts = dir.path().join("parts");
    fs::create_dir(&parts).unwrap();
    write(
        &parts.join("a.parquet"),
        vec![("x", lists(&[&[1.0, 2.0], &[3.0, 4.0]]))],
    );
    write(
        &parts.join("b.parquet"),
        vec![("x", lists(&[&[1.0, 2.0], &[3.0, f32::NAN]]))],
    );
    says(&parts, None, None, &["b.parquet", "row 1 holds a NaN", "column 1"]);
    write(&parts.join("b.parquet"), vec![("x", lists(&[&[1.0, 2.0, 3.0]]))]);
    says(&parts, None, None, &["b.parquet", "shape [3]", "[2]"]);
    write(&parts.join("b.parquet"), vec![("y", lists(&[&[1.0, 2.0]]))]);
    says(&parts, None, None, &["b.parquet", "no column \"x\""]);
    fs::write(parts.join("c.arrow"), "").unwrap();
    says(&parts, None, None, &["both .parquet and .arrow"]);
}

/// A directory with the files of a fixture.
fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

#[test]
fn caches_with_missing_cut_or_foreign_files_are_refused_by_the_file() {
    let dir = copy_of("saelens_f32");
    let second = dir.path().join("data-00001-of-00003.arrow");
    let good = fs::read(&second).unwrap();
    for (bytes, words) in [
        (&good[..good.len() - 200], &["data-00001", "truncated"][..]),
        (&good[..20], &["data-00001", "truncated"]),
        (b"", &["data-00001", "does not begin with a schema"]),
        (b"ARROW1\0\0", &["random-access"]),
        (b"PAR1 and more of it", &["data-00001"]),
    ] {
        fs::write(&second, bytes).unwrap();
        says(dir.path(), None, None, words);
    }
    // A value that is not finite, in the second context of the file.
    let mut bad = good.clone();
    let values = good.windows(4).rposition(|w| w.iter().any(|&b| b != 0)).unwrap();
    let acts = Activations::open(&fixture("saelens_f32"), None).unwrap();
    let mut row = [0.0; 8];
    acts.read_rows(48 + 8..48 + 9, &mut row).unwrap();
    let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
    let at = good.windows(32).position(|w| w == bytes).unwrap();
    assert!(at < values);
    bad[at + 4..at + 8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&second, &bad).unwrap();
    says(
        dir.path(),
        None,
        None,
        &["data-00001", "row 8 (context 1, position 2)", "column 1"],
    );
    fs::remove_file(&second).unwrap();
    says(
        dir.path(),
        None,
        None,
        &["data-00001-of-00003.arrow", "missing", "state.json"],
    );
    for (state, word) in [
        ("{}", "_data_files"),
        (r#"{"_data_files":[{"filename":"../x.arrow"}]}"#, "plain file name"),
        (r#"{"_data_files":[]}"#, "no data files"),
    ] {
        fs::write(dir.path().join("state.json"), state).unwrap();
        says(dir.path(), None, None, &["state.json", word]);
    }
    fs::remove_file(dir.path().join("state.json")).unwrap();
    fs::write(dir.path().join("dataset_dict.json"), "{}").unwrap();
    says(dir.path(), None, None, &["several splits"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    // 30,000 were tried once.
    #[test]
    fn no_bytes_in_a_dataset_or_parquet_file_make_a_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
        parquet in any::<bool>(),
    ) {
        let name = if parquet { "parts/part-0.parquet" } else { "saelens_f16/data-00000-of-00002.arrow" };
        let mut bytes = fs::read(fixture(name)).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(if parquet { "x.parquet" } else { "x.arrow" });
        fs::write(&path, &bytes).unwrap();
        if let Ok(acts) = Activations::open(&path, None)
            && let Ok((_, Some(acts))) = acts.prepare(&dir.path().join("copy.safetensors"), &Silent, &Stop::new())
        {
            let _ = acts.read_rows(0..1, &mut vec![0.0; acts.d_in()]);
        }
    }
}
