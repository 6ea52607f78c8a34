//! The transformer gives transformers' values at every hook. The references come from
//! `fixtures/make_tiny_llama.py`, which also makes those of the heavy test.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

use std::path::{Path, PathBuf};

use activations::Device;
use activations::hooks::{HookPoint, Hooks, NoHooks, Record, Site};
use activations::model::Transformer;
use activations::safetensors_file::SafeTensors;
use burn::tensor::Tensor;

/// The bound of the parity tests, relative to the largest value of the reference.
const BOUND: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn hooks_of(n_layers: usize) -> Vec<HookPoint> {
    let blocks = (0..n_layers).flat_map(|layer| Site::ALL.map(|site| HookPoint::Block(layer, site)));
    [HookPoint::Embed]
        .into_iter()
        .chain(blocks)
        .chain([HookPoint::FinalNormalized])
        .collect()
}

fn tokens_of(reference: &SafeTensors) -> Vec<Vec<u32>> {
    let seq = reference.shape("tokens").unwrap()[1];
    let ids: Vec<u32> = reference
        .read_i64("tokens")
        .unwrap()
        .iter()
        .map(|&id| id as u32)
        .collect();
    ids.chunks_exact(seq).map(<[u32]>::to_vec).collect()
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

fn check(model: &Path, reference: &Path) {
    let device = Device::Cpu.open().unwrap();
    check_on(&device, model, reference);
    // Where gradients are tracked, the steps between products are burn's operations, as on a GPU.
    check_on(&device.autodiff(), model, reference);
}

fn check_on(device: &burn::tensor::Device, model: &Path, reference: &Path) {
    let model = Transformer::load(model, device).unwrap();
    let reference = SafeTensors::open(reference).unwrap();
    let hooks = hooks_of(model.config().n_layers);
    let mut record = Record::new(hooks.clone());
    let logits = model
        .forward(&tokens_of(&reference), &mut record, None)
        .unwrap()
        .unwrap();
    for hook in hooks {
        let value = record.take(hook).expect("every hook is visited");
        assert_eq!(value.dims()[2], model.hook_width(hook), "{hook}");
        let error = difference(&reference, &hook.to_string(), value);
        assert!(error < BOUND, "{hook}: {error:e}");
    }
    let error = difference(&reference, "logits", logits);
    assert!(error < BOUND, "logits: {error:e}");
}

#[test]
fn grouped_heads_untied_agrees_with_transformers_at_every_hook() {
    let dir = fixture("tiny_llama_gqa");
    check(&dir, &dir.join("reference.safetensors"));
}

#[test]
fn wide_heads_tied_agrees_with_transformers_at_every_hook() {
    let dir = fixture("tiny_llama_tied");
    check(&dir, &dir.join("reference.safetensors"));
}

/// `SAE_TEST_DATA` names a folder with `models/stories15M`. The reference holds every eighth position and the first
/// eight columns of each hook: `make_tiny_llama.py --sample` wrote it.
#[test]
#[ignore = "needs SAE_TEST_DATA"]
fn stories15m_agrees_with_transformers_at_every_hook() {
    let data = std::env::var("SAE_TEST_DATA").expect("SAE_TEST_DATA is not set");
    let model = Path::new(&data).join("models/stories15M");
    let model = Transformer::load(&model, &Device::Cpu.open().unwrap()).unwrap();
    let reference = SafeTensors::open(&fixture("stories15m_sample.safetensors")).unwrap();
    let hooks = hooks_of(model.config().n_layers);
    let mut record = Record::new(hooks.clone());
    let logits = model.forward(&tokens_of(&reference), &mut record, None).unwrap();
    let values = hooks
        .into_iter()
        .map(|hook| (hook.to_string(), record.take(hook).unwrap()))
        .chain([("logits".to_owned(), logits.unwrap())]);
    for (name, value) in values {
        let largest = value.clone().abs().max().into_scalar::<f32>();
        let ours = value.slice([0..1, 0..24, 0..8]).into_data().into_vec::<f32>().unwrap();
        let theirs = reference.read_f32(&name).unwrap();
        assert_eq!(reference.shape(&name).unwrap(), [1, 3, 8], "{name}");
        for (row, expected) in ours.chunks_exact(8).step_by(8).zip(theirs.chunks_exact(8)) {
            for (a, b) in row.iter().zip(expected) {
                assert!((a - b).abs() < BOUND * largest, "{name}: {a} should be {b}");
            }
        }
    }
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
    let model = Transformer::load(&fixture("tiny_llama_gqa"), &Device::Cpu.open().unwrap()).unwrap();
    let order = hooks_of(2);
    for (i, &last) in order.iter().enumerate() {
        let mut seen = Seen(Vec::new());
        let logits = model.forward(&[[1, 2, 3]], &mut seen, Some(last)).unwrap();
        assert!(logits.is_none());
        assert_eq!(seen.0, order[..=i], "hooks sort as they are visited");
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
    let model = Transformer::load(&fixture("tiny_llama_gqa"), &Device::Cpu.open().unwrap()).unwrap();
    let logits = |hooks: &mut dyn Hooks| {
        let x = model.forward(&[[5, 6, 7, 8]], hooks, None).unwrap().unwrap();
        x.into_data().into_vec::<f32>().unwrap()
    };
    let plain = logits(&mut NoHooks);
    for hook in hooks_of(2) {
        assert_ne!(logits(&mut Zero(hook)), plain, "{hook} has an effect");
    }
}
