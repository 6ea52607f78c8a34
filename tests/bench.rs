//! `sae bench speed` at tiny sizes: what its JSON holds, what it draws, and what it refuses.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const TINY: &str = "--d-in 16 --d-sae 64 --batch 32";

/// The words of `line` given to `sae bench speed`, which works in `dir`.
fn bench(dir: &TempDir, line: &str) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/storyteller");
    let words = line.split_whitespace().map(|word| match word {
        "MODEL" => model.clone(),
        word => PathBuf::from(word),
    });
    Command::new(env!("CARGO_BIN_EXE_sae"))
        .current_dir(dir.path())
        .env("TMPDIR", dir.path())
        .args(["bench", "speed"])
        .args(words)
        .output()
        .unwrap()
}

/// What a command that must succeed prints as JSON, having left nothing behind but `left`.
fn json(line: &str, left: &[&str]) -> Value {
    let dir = TempDir::new().unwrap();
    let out = bench(&dir, line);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line}\n{said}");
    let found = std::fs::read_dir(dir.path()).unwrap();
    let mut found: Vec<String> = found.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, left, "{line}");
    serde_json::from_slice(&out.stdout).unwrap()
}

/// What a command that must fail says, having left nothing behind.
fn refusal(line: &str) -> String {
    let dir = TempDir::new().unwrap();
    let out = bench(&dir, line);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        matches!(out.status.code(), Some(1 | 2)),
        "{line}: {:?}\n{said}",
        out.status
    );
    assert!(!said.contains("panicked"), "{line}: {said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{line}");
    said
}

/// The number at a key, which is there and above 0.
fn positive(report: &Value, key: &str) -> f64 {
    let number = report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert!(number > 0.0, "{key}: {report}");
    number
}

#[test]
fn a_step_is_told_with_its_parts_and_what_it_takes_at_least() {
    let report = json(&format!("step {TINY} --k 4 --steps 3 --json"), &[]);
    let (step, bound) = (positive(&report, "step_s"), positive(&report, "bound_s"));
    assert!(
        (positive(&report, "tokens_per_s") * step - 32.0).abs() < 1e-6,
        "{report}"
    );
    assert!(
        (positive(&report, "share_of_bound") * step - bound).abs() < 1e-9,
        "{report}"
    );
    for key in ["step_min_s", "step_max_s", "l0", "threads"] {
        positive(&report, key);
    }
    if cfg!(target_os = "linux") {
        positive(&report, "peak_rss_mb");
    }
    let sizes = ["method", "d_in", "d_sae", "k", "batch", "steps"].map(|key| report[key].to_string());
    assert_eq!(sizes, ["\"topk\"", "16", "64", "4", "32", "3"]);
    let levels = ["scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16"];
    let path = report["path"].as_str().unwrap();
    assert!(levels.contains(&path) || path.starts_with("amx"), "{path}");
    for part in ["encode", "decode", "loss", "gradients", "optimizer"] {
        assert!(report["parts_s"][part].as_f64().unwrap() > 0.0, "{part}: {report}");
    }
    assert!(["int8", "bf16", "f32"].contains(&report["bound"]["product_by"].as_str().unwrap()));
}

#[test]
fn another_rate_of_the_product_is_taken_and_said() {
    let report = json(
        &format!("step {TINY} --k 4 --steps 2 --product-gflops 0.001 --json"),
        &[],
    );
    assert_eq!(report["bound"]["product_by"], "given");
    // 2 * 32 * 16 * 64 operations at a million a second, and something through memory.
    let bound = positive(&report, "bound_s");
    assert!((0.065536..0.07).contains(&bound), "{bound}");
}

#[test]
fn a_lesser_path_is_named() {
    let dir = TempDir::new().unwrap();
    let line = format!("bench speed step {TINY} --k 4 --steps 1 --json");
    let out = Command::new(env!("CARGO_BIN_EXE_sae"))
        .env("SAE_CPU", "scalar")
        .env("TMPDIR", dir.path())
        .args(line.split_whitespace())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&report["path"], &report["bound"]["product_by"]),
        (&"scalar".into(), &"f32".into())
    );
}

#[test]
fn methods_without_k_and_dead_latents_are_timed_and_bilinear_has_no_bound() {
    let jump = json(&format!("step {TINY} --method jumprelu --steps 2 --json"), &[]);
    assert!(jump["k"].is_null() && jump["l0"].as_f64().unwrap() > 0.0, "{jump}");
    let dead = json(&format!("step {TINY} --dead-share 0.25 --steps 2 --k 4 --json"), &[]);
    assert_eq!(dead["dead_share"], 0.25);
    let bilinear = json(&format!("step {TINY} --method bilinear --steps 2 --json"), &[]);
    assert!(
        bilinear["bound_s"].is_null() && bilinear["share_of_bound"].is_null(),
        "{bilinear}"
    );
}

#[test]
fn encoding_a_store_and_a_harvest_are_told() {
    let encode = json(&format!("encode {TINY} --k 4 --steps 2 --json"), &[]);
    for key in ["encode_s", "tokens_per_s", "bound_s", "share_of_bound", "l0"] {
        positive(&encode, key);
    }
    let store = json("store --contexts 70 --d-in 8 --dtype f16 --json", &[]);
    positive(&store, "write_gb_s");
    let mixed = positive(&store, "mixed_gb_s_per_core");
    let stores = store["stores"].as_array().unwrap();
    assert_eq!((stores.len(), stores[0]["mixed_gb_s"].as_f64().unwrap()), (2, mixed));
    // All fits the first pool: an exact shuffle.
    let distinct = positive(&stores[0], "share_of_distinct_contexts");
    assert!((distinct - 1.0).abs() < 0.02, "{distinct}");
    let kept = json(
        "store --contexts 70 --d-in 8 --dtype f16 --dir kept --keep --json",
        &["kept"],
    );
    positive(&kept, "write_gb_s");

    let harvest = json(
        "harvest --model MODEL --hook blocks.0.hook_resid_post --tokens 40k --json",
        &[],
    );
    for key in ["tokens", "rows", "tokens_per_s", "estimated_tokens_per_s"] {
        positive(&harvest, key);
    }
}

#[test]
fn charts_are_drawn_and_their_numbers_told() {
    let line = format!("charts {TINY} --k 4 --steps 1 --doublings 1 --out charts --json");
    let dir = TempDir::new().unwrap();
    let out = bench(&dir, &line);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let points: Vec<String> = report["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            positive(p, "step_s");
            format!("{} {}", p["varied"].as_str().unwrap(), p["size"])
        })
        .collect();
    let expected = [
        "d_in 8",
        "d_in 16",
        "d_in 32",
        "d_sae 32",
        "d_sae 64",
        "d_sae 128",
        "batch 16",
        "batch 32",
        "batch 64",
        "k 2",
        "k 4",
        "k 8",
    ];
    assert_eq!(points, expected);
    for (name, words) in [
        ("step-parts.svg", "optimiser"),
        ("step-growth.svg", "milliseconds a step"),
    ] {
        let svg = std::fs::read_to_string(dir.path().join("charts").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains(words), "{name}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_naming_the_flag() {
    for (line, words) in [
        ("step --k 65 --d-sae 64", vec!["--k", "64"]),
        ("step --d-in 0", vec!["--d-in", "0"]),
        ("step --batch 0", vec!["--batch"]),
        ("step --steps 0", vec!["--steps"]),
        ("step --d-sae many", vec!["--d-sae", "many"]),
        (
            "step --d-in 1000000 --d-sae 2000000000 --batch 1",
            vec!["--d-in 1000000", "memory"],
        ),
        ("step --method topkk", vec!["--method", "topkk"]),
        ("step --method relu --k 3", vec!["--k", "relu"]),
        ("step --product-gflops 0", vec!["--product-gflops"]),
        ("step --dead-share 2", vec!["--dead-share"]),
        (
            "step --dead-share 0.5 --method bilinear",
            vec!["--dead-share", "bilinear"],
        ),
        ("step --set sae.k=4", vec!["--set sae.k", "--k"]),
        ("step --set train.learn=4", vec!["train.learn"]),
        ("step --set data.model=x", vec!["--set data.model"]),
        (
            "encode --method feature_choice --d-in 16 --d-sae 64 --batch 32",
            vec!["budgets"],
        ),
        (
            "encode --method bilinear --d-in 16 --d-sae 64 --batch 32",
            vec!["--method", "bilinear"],
        ),
        ("store --contexts 10", vec!["--contexts 10", "64"]),
        ("store --d-in 3", vec!["--d-in 3"]),
        ("store --keep", vec!["--dir"]),
        ("store --dtype f16 --dtype f16", vec!["--dtype f16", "twice"]),
        ("store --dtype f32 --keep --dir .", vec!["--keep", "--dtype"]),
        (
            "store --contexts 2000000 --d-in 100000000",
            vec!["--contexts", "needed"],
        ),
        (
            "harvest --model nowhere --hook blocks.0.hook_resid_post",
            vec!["nowhere"],
        ),
        (
            "harvest --model MODEL --hook blocks.9.hook_resid_post",
            vec!["blocks.9"],
        ),
        (
            "harvest --model MODEL --hook blocks.0.hook_resid_post --tokens 100",
            vec!["--tokens"],
        ),
        (
            "harvest --model MODEL --hook blocks.0.hook_resid_post --field text",
            vec!["--field", "--text"],
        ),
        (
            "charts --out . --d-in 16 --d-sae 64 --batch 8 --k 64",
            vec!["--doublings 2", "d_sae 16"],
        ),
        ("charts --out . --method bilinear", vec!["--method bilinear"]),
        ("charts --out . --doublings 0", vec!["--doublings"]),
    ] {
        let said = refusal(line);
        for word in words {
            assert!(said.contains(word), "{line}: {said}");
        }
    }
}
