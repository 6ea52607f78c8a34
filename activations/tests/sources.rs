//! Activations of other programs, through the interface that training uses. `fixtures/foreign` holds the same rows in
//! every form, written by the programs that people write them with, and the scripts.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "sources/copies.rs"]
mod copies;
#[path = "sources/damage.rs"]
mod damage;

use std::path::{Path, PathBuf};

use activations::source::{Activations, Joined, MixOptions, RowReader};
use activations::{ActDtype, Outcome, Silent, Stop};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/foreign")
        .join(name)
}

fn prepared(acts: Activations, copy: &Path) -> Activations {
    let (outcome, acts) = acts.prepare(copy, &Silent, &Stop::new()).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    acts.unwrap()
}

fn rows(acts: &Activations) -> Vec<f32> {
    let mut out = vec![0.0; acts.n_rows() as usize * acts.d_in()];
    acts.read_rows(0..acts.n_rows(), &mut out).unwrap();
    out
}

fn npy(name: &str) -> Vec<f32> {
    rows(&Activations::open(&fixture(name), None).unwrap())
}

/// File, hook, number format to say, number format found, rows of a context.
type Form = (&'static str, Option<&'static str>, Option<ActDtype>, ActDtype, u64);

/// Everything that holds the rows of `rows.npy`.
const FORMS: [Form; 11] = [
    ("rows.npy", None, None, ActDtype::F32, 1),
    ("rows_f16.npy", None, None, ActDtype::F16, 1),
    ("one.safetensors", None, None, ActDtype::Bf16, 1),
    ("several.safetensors", Some("layer3"), None, ActDtype::F16, 1),
    ("list_f32.parquet", None, None, ActDtype::F32, 1),
    ("list_f64.parquet", Some("vector"), None, ActDtype::F32, 1),
    ("fixed_f16.parquet", None, None, ActDtype::F16, 1),
    ("bytes_f32.parquet", None, Some(ActDtype::F32), ActDtype::F32, 1),
    ("bytes_bf16.parquet", None, Some(ActDtype::Bf16), ActDtype::Bf16, 1),
    ("contexts.parquet", None, None, ActDtype::F32, 5),
    ("parts", None, None, ActDtype::F32, 1),
];

#[test]
fn every_form_gives_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let expected = npy("rows.npy");
    for (name, hook, say, dtype, context) in FORMS {
        let acts = Activations::open_as(&fixture(name), hook, say).unwrap();
        assert_eq!((acts.n_rows(), acts.d_in(), acts.dtype()), (300, 6, dtype), "{name}");
        let parquet = name.ends_with(".parquet") || name == "parts";
        let bytes = if parquet { 300 * 6 * dtype.size() as u64 } else { 0 };
        assert_eq!(acts.copy_bytes(), bytes, "{name}");
        let acts = prepared(acts, &dir.path().join(name).with_extension("safetensors"));
        assert_eq!(rows(&acts), expected, "{name}");
        // 13 rows are held out, and in contexts of 5 as many more as complete one.
        let border = acts.split(13).unwrap().train.end;
        assert_eq!(border, 287 - 287 % context, "{name}");
        let expected_hook = match name {
            "rows.npy" | "rows_f16.npy" => None,
            "one.safetensors" | "several.safetensors" => Some("layer3"),
            "contexts.parquet" => Some("acts"),
            _ => Some("vector"),
        };
        assert_eq!(acts.origin().hook.as_deref(), expected_hook, "{name}");
    }
    let negative = rows(&Activations::open(&fixture("several.safetensors"), Some("layer4")).unwrap());
    assert!(negative.iter().zip(&expected).all(|(a, b)| *a == -b));
}

#[test]
fn caches_that_saelens_wrote_read_as_datasets_reads_them() {
    for (name, dtype, contexts) in [("saelens_f32", ActDtype::F32, 24), ("saelens_f16", ActDtype::F16, 32)] {
        let acts = Activations::open(&fixture(name), None).unwrap();
        assert_eq!((acts.n_rows(), acts.d_in(), acts.dtype()), (contexts * 6, 8, dtype));
        assert_eq!(acts.copy_bytes(), 0, "read in place");
        assert_eq!(acts.origin().hook.as_deref(), Some("blocks.0.hook_resid_post"));
        assert_eq!(rows(&acts), npy(&format!("{name}.npy")));
        assert_eq!(acts.split(1).unwrap().held_out, (contexts - 1) * 6..contexts * 6);
        let file = fixture(name).join(format!(
            "data-00001-of-0000{}.arrow",
            if dtype == ActDtype::F32 { 3 } else { 2 }
        ));
        let part = Activations::open(&file, Some("blocks.0.hook_resid_post")).unwrap();
        let first = if dtype == ActDtype::F32 { 8 } else { 16 } * 6 * 8;
        assert_eq!(rows(&part), rows(&acts)[first..first + part.n_rows() as usize * 8]);
    }
}

#[test]
fn all_forms_are_mixed_in_one_order_and_continue_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let draw = |acts: &Activations, skip: usize| {
        let options = MixOptions {
            seed: 3,
            memory_bytes: 1 << 20,
        };
        let mut reader = acts.mixed(0..acts.n_rows(), &options).unwrap();
        let mut out = vec![0.0; 500 * 6];
        reader.next_batch(&mut out[..skip * 6]).unwrap();
        let mut other = acts.mixed(0..acts.n_rows(), &options).unwrap();
        other.restore(reader.state()).unwrap();
        other.next_batch(&mut out[skip * 6..]).unwrap();
        out
    };
    let expected = draw(&Activations::open(&fixture("rows.npy"), None).unwrap(), 0);
    for (name, hook, say, ..) in FORMS {
        let acts = Activations::open_as(&fixture(name), hook, say).unwrap();
        let acts = prepared(acts, &dir.path().join(name).with_extension("safetensors"));
        assert_eq!(draw(&acts, 123), expected, "{name}");
    }
}

#[test]
fn the_numbers_of_the_rows_behind_any_state_are_known_without_reading_them() {
    let acts = Joined::from(Activations::open(&fixture("rows.npy"), None).unwrap());
    // Room for four of five chunks, so that there are windows; and for all. Both go over the border of an epoch.
    for memory_bytes in [10_300, 1 << 20] {
        let options = MixOptions { seed: 3, memory_bytes };
        let range = 20..acts.n_rows();
        let mut reader = acts.mixed(range.clone(), &options).unwrap();
        let mut batch = vec![0.0; 130 * 6];
        let mut seen = Vec::new();
        for _ in 0..9 {
            let state = RowReader::state(&reader);
            reader.next_batch(&mut batch).unwrap();
            let numbers = acts.numbers(range.clone(), &options, state, 130).unwrap();
            for (&number, given) in numbers.iter().zip(batch.chunks_exact(6)) {
                let mut row = [0.0; 6];
                acts.read_rows(number..number + 1, &mut row).unwrap();
                assert_eq!(row, given, "{number} behind {state:?}");
            }
            seen.extend(numbers);
        }
        assert!(RowReader::state(&reader).epoch > 0 && seen.iter().all(|n| range.contains(n)));
    }
    assert_eq!(acts.row_name(7), "row 7");
}

#[test]
fn a_fingerprint_changes_with_the_data_and_the_column() {
    let of = |name: &str, hook: Option<&str>| {
        let acts = Activations::open(&fixture(name), hook).unwrap();
        acts.origin().fingerprint
    };
    let all = [
        of("several.safetensors", Some("layer3")),
        of("several.safetensors", Some("layer4")),
        of("list_f32.parquet", None),
        of("parts", None),
        of("saelens_f32", None),
        of("saelens_f16", None),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(!all[..i].contains(one), "{i}");
    }
    assert_eq!(of("list_f32.parquet", None), all[2]);
}
