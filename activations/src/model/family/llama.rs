//! Llama: RMS norms, rotary positions over whole heads, grouped heads, a gated MLP, no biases.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, Param};
use crate::model::config::{Activation, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    config,
    tensor_name,
    ignored: |name| name.ends_with("rotary_emb.inv_freq"),
};

/// The fields of `config.json` that decide what the forward pass computes.
#[derive(Deserialize)]
struct Llama {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "max_position_embeddings")]
    max_position_embeddings: usize,
    #[serde(default = "rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    #[serde(default = "hidden_act")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    quantization_config: Option<Value>,
}

// transformers leaves out of `config.json` what equals its defaults; these are LlamaConfig's.
fn max_position_embeddings() -> usize {
    2048
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn hidden_act() -> String {
    "silu".into()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

fn config(value: &Value) -> Result<ModelConfig, String> {
    let c: Llama = serde_json::from_value(value.clone()).map_err(|e| format!("llama config: {e}"))?;
    for (name, promised) in [
        ("attention_bias", c.attention_bias),
        ("mlp_bias", c.mlp_bias),
        ("quantization_config", c.quantization_config.is_some()),
        (
            "partial_rotary_factor",
            c.partial_rotary_factor.is_some_and(|f| f != 1.0),
        ),
    ] {
        if promised {
            return Err(format!("{name} is set, which is not supported for llama"));
        }
    }
    let rope_theta = rope_theta(&c)?;
    if c.num_attention_heads == 0 {
        return Err("num_attention_heads is 0".into());
    }
    Ok(ModelConfig {
        d_model: c.hidden_size,
        n_layers: c.num_hidden_layers,
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
        d_head: c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads),
        d_mlp: c.intermediate_size,
        d_vocab: c.vocab_size,
        max_context: c.max_position_embeddings,
        norm_eps: c.rms_norm_eps,
        rope_theta,
        activation: match c.hidden_act.as_str() {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            other => {
                return Err(format!(
                    "hidden_act {other:?} is not supported; known are silu, gelu, gelu_pytorch_tanh"
                ));
            }
        },
        tied: c.tie_word_embeddings,
        bos: c.bos_token_id,
        eos: match c.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        },
    })
}

/// The rotary base. transformers writes it as `rope_theta` up to version 4 and inside `rope_parameters` since 5.
fn rope_theta(c: &Llama) -> Result<f64, String> {
    let mut theta = c.rope_theta.unwrap_or(10_000.0);
    for (key, value) in [
        ("rope_scaling", &c.rope_scaling),
        ("rope_parameters", &c.rope_parameters),
    ] {
        let Some(value) = value else { continue };
        let kind = value
            .get("rope_type")
            .or_else(|| value.get("type"))
            .and_then(Value::as_str);
        if kind.is_some_and(|k| k != "default") {
            return Err(format!(
                "{key} of type {:?} is not supported; known is \"default\"",
                kind.unwrap_or("")
            ));
        }
        if let Some(factor) = value
            .get("partial_rotary_factor")
            .and_then(Value::as_f64)
            .filter(|f| *f != 1.0)
        {
            return Err(format!(
                "{key}: partial_rotary_factor {factor} is not supported for llama"
            ));
        }
        if let Some(inner) = value.get("rope_theta") {
            theta = inner
                .as_f64()
                .ok_or_else(|| format!("{key}: rope_theta is not a number"))?;
        }
    }
    Ok(theta)
}

fn tensor_name(param: Param) -> String {
    let layer = |i: usize, name: &str| format!("model.layers.{i}.{name}.weight");
    match param {
        Param::Embed => "model.embed_tokens.weight".into(),
        Param::Unembed => "lm_head.weight".into(),
        Param::FinalNorm => "model.norm.weight".into(),
        Param::AttnNorm(i) => layer(i, "input_layernorm"),
        Param::Q(i) => layer(i, "self_attn.q_proj"),
        Param::K(i) => layer(i, "self_attn.k_proj"),
        Param::V(i) => layer(i, "self_attn.v_proj"),
        Param::O(i) => layer(i, "self_attn.o_proj"),
        Param::MlpNorm(i) => layer(i, "post_attention_layernorm"),
        Param::Gate(i) => layer(i, "mlp.gate_proj"),
        Param::Up(i) => layer(i, "mlp.up_proj"),
        Param::Down(i) => layer(i, "mlp.down_proj"),
    }
}
