use serde_json::{Value, json};

use super::*;
use crate::model::config::{Placement, Positions};
use crate::model::rope::{Rope, RopeScaling};

fn parse(value: &Value) -> std::result::Result<ModelConfig, String> {
    let name = value["model_type"].as_str().unwrap();
    let family = KNOWN.into_iter().find(|f| f.model_type == name).unwrap();
    (family.config)(&Fields::new(family.model_type, value))
}

/// The fields that every family of Llama's kin needs.
fn llama_like(model_type: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    config
}

fn ropes(config: &ModelConfig) -> (Rope, Rope) {
    match config.positions.clone() {
        Positions::Rotary { everywhere, windowed } => (everywhere, windowed),
        Positions::Learned => panic!("learned positions"),
    }
}

#[test]
fn rotary_fields_are_read_in_the_form_of_version_4_and_of_version_5() {
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"});
    let old = llama_like("llama", json!({"rope_theta": 5e5, "rope_scaling": scaling}));
    let mut inner = scaling.clone();
    inner["rope_theta"] = json!(5e5);
    let new = llama_like("llama", json!({"rope_parameters": inner}));
    let (old, new) = (ropes(&parse(&old).unwrap()).0, ropes(&parse(&new).unwrap()).0);
    assert_eq!(old, new);
    assert_eq!((old.theta, old.width), (5e5, 16));
    assert!(matches!(old.scaling, RopeScaling::Llama3 { high: 4.0, .. }));

    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    let linear = ropes(&parse(&llama_like("llama", linear)).unwrap()).0;
    assert_eq!((linear.theta, linear.scaling), (1e4, RopeScaling::Linear(2.0)));
}

#[test]
fn pythia_turns_a_quarter_of_each_head_in_both_forms() {
    let base = json!({"model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 100});
    for more in [
        json!({}),
        json!({"rotary_pct": 0.25, "rotary_emb_base": 10000}),
        json!({"rope_parameters":
        {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"}}),
    ] {
        let mut config = base.clone();
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let config = parse(&config).unwrap();
        assert_eq!((ropes(&config).0.width, ropes(&config).0.theta), (8, 1e4));
        assert_eq!(config.placement, Placement::Parallel);
    }
}

#[test]
fn gemma_3_turns_otherwise_in_layers_with_a_window() {
    let old = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 512,
        "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let new = json!({"sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    let [old, new] = [old, new].map(|more| parse(&llama_like("gemma3_text", more)).unwrap());
    assert_eq!(old, new);
    let (everywhere, windowed) = ropes(&old);
    assert_eq!((everywhere.theta, everywhere.scaling), (1e6, RopeScaling::Linear(8.0)));
    assert_eq!((windowed.theta, windowed.scaling), (1e4, RopeScaling::None));
    assert_eq!(old.attention.windows, [Some(512), None, Some(512), None]);
}

#[test]
fn windows_are_where_each_family_has_them() {
    let windows = |kind: &str, more: Value| parse(&llama_like(kind, more)).unwrap().attention.windows;
    assert_eq!(windows("mistral", json!({"sliding_window": 9})), [Some(9); 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 4]);
    assert_eq!(
        windows("gemma2", json!({"sliding_window": 9})),
        [Some(9), None, Some(9), None]
    );
    assert_eq!(
        windows("qwen2", json!({"sliding_window": 9, "use_sliding_window": false})),
        [None; 4]
    );
    let some = json!({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(windows("qwen2", some), [None, None, None, Some(9)]);
}

#[test]
fn what_is_promised_and_not_implemented_is_named() {
    for (kind, more, said) in [
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "yarn",
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "llama3"}}),
            "lacks factor",
        ),
        (
            "phi3",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}),
            "longrope",
        ),
        (
            "gemma3_text",
            json!({"use_bidirectional_attention": true}),
            "use_bidirectional_attention",
        ),
        ("gemma2", json!({"hidden_activation": "quick_gelu"}), "quick_gelu"),
        (
            "mistral",
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config",
        ),
        (
            "mistral",
            json!({"sliding_window": 4, "layer_types": ["full_attention"]}),
            "layer_types",
        ),
        ("qwen3", json!({"num_hidden_layers": 1u64 << 40}), "num_hidden_layers"),
        ("qwen3", json!({"eos_token_id": "x"}), "eos_token_id"),
    ] {
        let error = parse(&llama_like(kind, more)).unwrap_err();
        assert!(error.contains(said), "{error:?} should say {said:?}");
    }
    for (kind, key) in [("gpt2", "scale_attn_by_inverse_layer_idx"), ("bert", "is_decoder")] {
        let error = parse(&json!({"model_type": kind, key: true})).unwrap_err();
        assert!(error.contains(key), "{error:?}");
    }
}

#[test]
fn a_part_of_a_tensor_is_its_rows() {
    let values: Vec<f32> = (0..12).map(|v| v as f32).collect(); // 6 rows of 2
    let part = |first, block, stride| Part {
        first,
        block,
        stride,
        of: 6,
    };
    assert_eq!(part(2, 2, 6).take(values.clone(), 2, 2), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(part(1, 1, 3).take(values.clone(), 2, 2), [2.0, 3.0, 8.0, 9.0]);
    assert_eq!(part(0, 6, 6).take(values.clone(), 6, 2), values);
}
