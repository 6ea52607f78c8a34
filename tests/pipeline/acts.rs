//! Training on activations that other programs made.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Place;

/// The words of a line, with FOREIGN/ replaced by the directory of what other programs wrote.
fn line(text: &str) -> String {
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("activations/tests/fixtures/foreign/");
    text.replace("FOREIGN/", foreign.to_str().unwrap())
}

const SMALL: &str = "--json --set sae.d_sae=16 --set sae.k=2 --set train.steps=30 --set train.batch=32";

#[test]
fn activations_of_other_programs_train_to_the_same_dictionary_as_an_array_of_them() {
    let place = Place::new();
    let train = |acts: &str, out: &str| place.json(&line(&format!("train --acts FOREIGN/{acts} --out {out} {SMALL}")));
    train("rows.npy", "array");
    let dictionary = |run: &str| fs::read(place.path(run).join("dictionary.safetensors")).unwrap();
    for (acts, out) in [
        ("several.safetensors --hook layer3", "tensor"),
        ("list_f32.parquet", "parquet"),
        ("parts", "parts"),
        ("bytes_bf16.parquet --acts-dtype bf16", "bytes"),
    ] {
        train(acts, out);
        assert!(dictionary(out) == dictionary("array"), "{acts}");
        assert_eq!(
            place.path(out).join("acts.safetensors").exists(),
            out != "tensor",
            "{acts}"
        );
    }
    // The copy is activations, too.
    place.json(&format!("train --acts parquet/acts.safetensors --out again {SMALL}"));
    assert!(dictionary("again") == dictionary("array"));
    let cache = train("saelens_f32", "cache");
    assert_eq!(
        (cache["d_in"].as_u64(), cache["held_out"]["rows"].as_u64()),
        (Some(8), Some(18))
    );
    let card = fs::read_to_string(place.path("cache/dictionary.json")).unwrap();
    assert!(card.contains("blocks.0.hook_resid_post"), "{card}");
}

#[test]
#[cfg(unix)]
fn a_run_that_is_killed_while_it_copies_resumes_to_the_same_bytes() {
    let place = Place::new();
    let train = line(&format!("train --acts FOREIGN/parts {SMALL} --out"));
    place.json(&format!("{train} whole"));
    for milliseconds in [20, 40, 80, 160] {
        let resume = if place.path("killed/run.toml").exists() {
            "--resume"
        } else {
            ""
        };
        place.kill(&format!("{train} killed {resume}"), Duration::from_millis(milliseconds));
    }
    let resume = if place.path("killed/run.toml").exists() {
        "--resume"
    } else {
        ""
    };
    place.json(&format!("{train} killed {resume}"));
    let clock = ["timings.jsonl", "summary.json", "checkpoint"];
    assert_eq!(place.files("killed", &clock), place.files("whole", &clock));
}

#[test]
fn inspect_says_what_other_programs_files_hold() {
    let place = Place::new();
    for (path, kind, rows, d_in, column) in [
        ("rows_f16.npy", "array", 300, 6, "rows_f16"),
        ("one.safetensors", "tensors", 300, 6, "layer3"),
        ("contexts.parquet", "parquet", 300, 6, "acts"),
        ("parts", "parquet", 300, 6, "vector"),
        ("saelens_f16", "dataset", 192, 8, "blocks.0.hook_resid_post"),
    ] {
        let seen = place.json(&line(&format!("inspect FOREIGN/{path} --json")));
        assert_eq!(seen["kind"], kind, "{seen}");
        assert_eq!(
            (seen["rows"].as_u64(), seen["d_in"].as_u64()),
            (Some(rows), Some(d_in)),
            "{seen}"
        );
        assert!(seen[column].is_string(), "{seen}");
    }
    let bytes = place.json(&line("inspect FOREIGN/bytes_f32.parquet --json"));
    assert_eq!(
        (bytes["vector"].as_str(), bytes["rows"].as_u64()),
        (Some("binary"), Some(300))
    );
    let several = place.json(&line("inspect FOREIGN/several.safetensors --json"));
    assert_eq!(several["layer4"], "F32 [300, 6]");
    assert!(
        place
            .error(&line("train --acts FOREIGN/several.safetensors --out x"))
            .contains("--hook")
    );
    assert!(
        place
            .error(&line("train --acts FOREIGN/bytes_f32.parquet --out x"))
            .contains("--acts-dtype")
    );
}
