//! Damaged configurations of every family: refused with a reason, or a model that runs; never a panic, and never memory
//! that the file does not justify.

use std::fs;
use std::path::{Path, PathBuf};

use activations::Device;
use activations::hooks::NoHooks;
use activations::model::Transformer;
use activations::tokenizer::Tokenizer;
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Every tiny checkpoint, sorted.
fn checkpoints() -> Vec<PathBuf> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
    let mut dirs: Vec<PathBuf> = fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    dirs
}

/// What should not stand in a configuration, and now and then what may.
fn nasty(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..16) {
        0 => Value::Null,
        1 => json!(0),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(rng.random_range(0..40)),
        5 => json!(1u64 << rng.random_range(0..63)),
        6 => json!(1e308),
        7 => json!(-0.0),
        8 => json!(rng.random_range(0.0..2.0)),
        9 => json!(""),
        10 => json!("gelu"),
        11 => json!([]),
        12 => json!([0, -3, "full_attention", null]),
        13 => json!({}),
        14 => json!({"rope_type": "linear", "factor": 0.0, "rope_theta": -1.0}),
        _ => json!(rng.random_bool(0.5)),
    }
}

/// Replaces, adds or removes a few fields, here or in an object inside.
fn damage(config: &mut Value, rng: &mut ChaCha8Rng) {
    const OTHERS: [&str; 8] = [
        "rope_parameters",
        "rope_scaling",
        "head_dim",
        "sliding_window",
        "layer_types",
        "num_key_value_heads",
        "attn_logit_softcapping",
        "quantization_config",
    ];
    let Some(object) = config.as_object_mut() else { return };
    let mut keys: Vec<String> = object.keys().cloned().chain(OTHERS.map(str::to_owned)).collect();
    // The family decides who reads the rest.
    keys.retain(|key| key != "model_type" || rng.random_ratio(1, 20));
    for _ in 0..rng.random_range(1..4) {
        let key = &keys[rng.random_range(0..keys.len())];
        match rng.random_range(0..4) {
            0 => drop(object.remove(key)),
            1 if object.get(key).is_some_and(Value::is_object) => damage(&mut object[key], rng),
            _ => drop(object.insert(key.clone(), nasty(rng))),
        }
    }
}

/// Loads the model that lies there, and runs it where it loads. Whether it did.
fn survives(model: &Path) -> bool {
    let device = Device::Cpu.open().unwrap();
    let model = match Transformer::load(model, &device) {
        Ok(model) => model,
        Err(error) => {
            assert!(error.to_string().len() > 10, "{error}");
            return false;
        }
    };
    let tokens: Vec<u32> = (0..model.config().max_context.min(5) as u32)
        .map(|id| id % model.config().d_vocab as u32)
        .collect();
    if !tokens.is_empty() {
        model.forward(&[tokens], &mut NoHooks, None).unwrap();
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// 15 checkpoints a case, each once with changed fields and once with changed bytes: 3,000 configurations. (12,000 were tried.)
    #[test]
    fn a_damaged_configuration_is_refused_or_runs(seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for checkpoint in checkpoints() {
            let dir = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(&checkpoint).unwrap() {
                let from = entry.unwrap().path();
                let name = from.file_name().unwrap().to_str().unwrap();
                if name.starts_with("model") {
                    fs::hard_link(&from, dir.path().join(name)).or_else(|_| fs::copy(&from, dir.path().join(name)).map(drop)).unwrap();
                }
            }
            let text = fs::read_to_string(checkpoint.join("config.json")).unwrap();
            let mut config: Value = serde_json::from_str(&text).unwrap();
            damage(&mut config, &mut rng);
            fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            survives(dir.path());

            let mut bytes = text.into_bytes();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes[at] = rng.next_u32() as u8,
                    1 => bytes[at] = b'0' + bytes[at] % 10,
                    _ => bytes.truncate(at.max(1)),
                }
            }
            fs::write(dir.path().join("config.json"), bytes).unwrap();
            survives(dir.path());
        }
    }
}

/// The tiny GGUF models, sorted.
fn gguf_models() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "gguf") && !path.ends_with("formats.gguf"));
    files.sort();
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// 9 models a case: 900 files, changed where the metadata and the list of tensors are. (20,000 were tried.)
    #[test]
    fn a_damaged_gguf_is_refused_or_runs(seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        for model in gguf_models() {
            let mut bytes = fs::read(model).unwrap();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..5_000.min(bytes.len()));
                match rng.random_range(0..8) {
                    0 => bytes.truncate(at.max(1)),
                    1..4 => bytes[at] = rng.next_u32() as u8,
                    _ => bytes[at] = bytes[at].wrapping_add(1),
                }
            }
            fs::write(&path, bytes).unwrap();
            survives(&path);
            if let Err(error) = Tokenizer::load(&path) {
                assert!(error.to_string().contains("x.gguf"), "{error}");
            }
        }
    }
}

#[test]
fn an_intact_checkpoint_is_among_those_that_run() {
    assert!(checkpoints().iter().chain(&gguf_models()).all(|model| survives(model)));
}
