//! A checkpoint that does not fit is refused, and the error names what is wrong.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "bad_models/fuzz.rs"]
mod fuzz;

use std::fs;
use std::path::{Path, PathBuf};

use activations::Device;
use activations::hooks::{HookPoint, NoHooks, Site};
use activations::model::Transformer;
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama_gqa")
}

/// A copy of the fixture whose `config.json` went through `edit`.
fn with_config(edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture().join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(fixture().join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A copy of the fixture whose safetensors header went through `edit`; the data stays.
fn with_header(edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> TempDir {
    let dir = with_config(|_| {});
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    fs::write(&path, out).unwrap();
    dir
}

fn error(dir: &Path) -> String {
    let loaded = Transformer::load(dir, &Device::Cpu.open().unwrap());
    loaded.err().expect("must be refused").to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} should say {part:?}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_those_known() {
    let dir = with_config(|c| c["model_type"] = json!("mamba"));
    assert_says(&error(dir.path()), &["config.json", "mamba", "known are: llama"]);
    let dir = with_config(|c| drop(c.as_object_mut().unwrap().remove("model_type")));
    assert_says(&error(dir.path()), &["unknown architecture", "LlamaForCausalLM"]);
}

#[test]
fn a_feature_that_is_not_implemented_is_named() {
    let scaled = json!({"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0});
    for (key, value, said) in [
        ("rope_parameters", scaled.clone(), "yarn"),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "lacks low_freq_factor",
        ),
        ("hidden_act", json!("relu2"), "relu2"),
        ("attention_bias", json!("yes"), "attention_bias"),
        ("rms_norm_eps", json!(-1.0), "epsilon is -1"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("head_dim", json!(3), "3 values of each head of 3"),
        ("num_key_value_heads", json!(4), "not a multiple"),
        ("num_attention_heads", json!(0), "number of heads is 0"),
        ("vocab_size", json!(u64::MAX), "the vocabulary is"),
        ("hidden_size", json!(-1), "llama config"),
    ] {
        let dir = with_config(|c| c[key] = value);
        assert_says(&error(dir.path()), &["config.json", said]);
    }
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let dir = with_header(|h| drop(h.remove("model.layers.1.mlp.up_proj.weight")));
    assert_says(
        &error(dir.path()),
        &["model.layers.1.mlp.up_proj.weight is missing", "[24, 24]"],
    );
}

#[test]
fn an_extra_tensor_is_named() {
    let dir = with_header(|h| {
        let bias = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
        h.insert("model.layers.0.self_attn.q_proj.bias".into(), bias);
    });
    assert_says(
        &error(dir.path()),
        &["model.safetensors", "extra tensor model.layers.0.self_attn.q_proj.bias"],
    );
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let dir = with_header(|h| h["lm_head.weight"]["shape"] = json!([24, 61]));
    assert_says(&error(dir.path()), &["lm_head.weight", "[24, 61]", "[61, 24]"]);
}

#[test]
fn a_config_that_promises_more_layers_than_the_file_has_is_refused() {
    let dir = with_config(|c| c["num_hidden_layers"] = json!(50_000));
    assert_says(
        &error(dir.path()),
        &["model.layers.2.mlp.down_proj.weight is missing", "50000 blocks"],
    );
    let dir = with_config(|c| c["num_hidden_layers"] = json!(1_000_000_000));
    assert_says(&error(dir.path()), &["num_hidden_layers is 1000000000"]);
}

/// What is said of a tiny GGUF model one of whose keys or names was changed to another of the same length.
fn gguf_error(model: &str, from: &str, to: &str) -> String {
    assert_eq!(from.len(), to.len());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(model);
    let mut bytes = fs::read(fixture().join("../../gguf").join(model)).unwrap();
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .expect(from);
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(&file, bytes).unwrap();
    error(&file)
}

#[test]
fn a_gguf_that_does_not_fit_is_refused_by_its_own_names() {
    let architecture = "\u{5}\0\0\0\0\0\0\0llama";
    for (model, from, to, parts) in [
        (
            "llama_gqa.gguf",
            architecture,
            "\u{5}\0\0\0\0\0\0\0mamba",
            ["\"mamba\"", "llama, qwen2"],
        ),
        (
            "llama_gqa.gguf",
            "llama.block_count",
            "llama.blocc_count",
            ["llama.block_count", "is missing"],
        ),
        (
            "llama_gqa.gguf",
            "blk.1.ffn_up.weight",
            "blk.9.ffn_up.weight",
            [
                "blk.1.ffn_up.weight is missing",
                "metadata expects it with shape [24, 24]",
            ],
        ),
        (
            "qwen3.gguf",
            "output.weight",
            "outpot.weight",
            ["extra tensor outpot.weight", "metadata describes a qwen3 model"],
        ),
        (
            "llama_linear_biased.gguf",
            "\u{6}\0\0\0\0\0\0\0linear",
            "\u{6}\0\0\0\0\0\0\0dyntwo",
            ["dyntwo", "not supported"],
        ),
    ] {
        let error = gguf_error(model, from, to);
        assert_says(&error, &[model]);
        assert_says(&error, &parts);
    }
}

#[test]
fn missing_files_are_named() {
    assert_says(
        &error(Path::new("/nonexistent/model")),
        &["/nonexistent/model", "config.json"],
    );
    let dir = with_config(|_| {});
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_says(&error(dir.path()), &["no weights", "model.safetensors.index.json"]);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_says(&error(dir.path()), &["config.json"]);
}

#[test]
fn tokens_that_the_model_cannot_take_are_refused() {
    let model = Transformer::load(&fixture(), &Device::Cpu.open().unwrap()).unwrap();
    let error = |tokens: &[Vec<u32>]| model.forward(tokens, &mut NoHooks, None).unwrap_err().to_string();
    assert_says(
        &error(&[vec![1, 2], vec![3, 61]]),
        &["token id 61", "row 1", "vocabulary of 61"],
    );
    assert_says(&error(&[vec![1, u32::MAX]]), &["token id 4294967295"]);
    assert_says(&error(&[vec![1, 2], vec![]]), &["no tokens"]);
    assert_says(&error(&[vec![1; 33]]), &["33 tokens", "32"]);
    assert_says(&error(&[]), &["no tokens"]);
    assert_says(&error(&[vec![]]), &["no tokens"]);
    let until = Some(HookPoint::Block(2, Site::ResidPost));
    let error = model.forward(&[[1]], &mut NoHooks, until).unwrap_err().to_string();
    assert_says(&error, &["no hook \"blocks.2.hook_resid_post\"", "blocks.{0..1}"]);
}
