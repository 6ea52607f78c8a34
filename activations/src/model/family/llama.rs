//! Llama, and Mistral, which is Llama with a window.

use super::fields::{Fields, LlamaDefaults};
use super::{Family, Param, Place};
use crate::model::config::{Biases, ModelConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    config: llama,
    place,
    prefixes: PREFIXES,
    token_types: None,
    ignored,
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    config: mistral,
    ..FAMILY
};

/// A model saved without its head has no prefix.
pub(super) const PREFIXES: &[&str] = &["model.", ""];

/// Older versions saved the rotary frequencies.
pub(super) fn ignored(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

fn llama(fields: &Fields) -> Result<ModelConfig, String> {
    let qkvo = fields.flag("attention_bias", false)?;
    Ok(ModelConfig {
        biases: Biases {
            qkv: qkvo,
            o: qkvo,
            mlp: fields.flag("mlp_bias", false)?,
        },
        ..fields.llama_like(&LlamaDefaults::LLAMA)?
    })
}

fn mistral(fields: &Fields) -> Result<ModelConfig, String> {
    let mut config = fields.llama_like(&LlamaDefaults {
        max_context: 4096 * 32,
        n_kv_heads: Some(8),
        ..LlamaDefaults::LLAMA
    })?;
    config.attention.windows = fields.windows(config.n_layers, |_| true)?;
    Ok(config)
}

/// The names of Llama's tensors, which the families after it kept.
pub(super) fn place(_: &ModelConfig, param: Param) -> Option<Place> {
    let layer = |i: usize, name: &str| Place::whole(format!("layers.{i}.{name}"));
    Some(match param {
        Param::Embed => Place::whole("embed_tokens"),
        Param::Unembed => Place::whole("lm_head"),
        Param::FinalNorm => Place::whole("norm"),
        Param::AttnNorm(i) => layer(i, "input_layernorm"),
        Param::Q(i) => layer(i, "self_attn.q_proj"),
        Param::K(i) => layer(i, "self_attn.k_proj"),
        Param::V(i) => layer(i, "self_attn.v_proj"),
        Param::QNorm(i) => layer(i, "self_attn.q_norm"),
        Param::KNorm(i) => layer(i, "self_attn.k_norm"),
        Param::O(i) => layer(i, "self_attn.o_proj"),
        Param::MlpNorm(i) => layer(i, "post_attention_layernorm"),
        Param::Gate(i) => layer(i, "mlp.gate_proj"),
        Param::Up(i) => layer(i, "mlp.up_proj"),
        Param::Down(i) => layer(i, "mlp.down_proj"),
        Param::AttnBehind(i) => layer(i, "post_attention_layernorm"),
        Param::MlpBehind(i) => layer(i, "post_feedforward_layernorm"),
        Param::Positions | Param::EmbedNorm => return None,
    })
}
