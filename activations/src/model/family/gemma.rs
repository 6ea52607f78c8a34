//! Gemma 2 and 3: norms around both halves of a block, gains stored less one, embeddings scaled, alternating windows.
//! Gemma 2 caps scores and logits; Gemma 3 normalises queries and keys and turns them otherwise in layers with a window.

use super::fields::{Fields, LlamaDefaults, RotaryDefaults};
use super::{Family, Param, Place, llama};
use crate::model::config::{Biases, ModelConfig, Placement, Positions, QkNorm};

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    config: gemma2,
    place,
    ..llama::FAMILY
};

pub(super) const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    config: gemma3,
    place,
    ..llama::FAMILY
};

fn gemma2(fields: &Fields) -> Result<ModelConfig, String> {
    let mut config = base(fields, 8192, 1e4)?;
    config.attention.windows = fields.windows(config.n_layers, |layer| layer % 2 == 0)?;
    Ok(config)
}

fn gemma3(fields: &Fields) -> Result<ModelConfig, String> {
    let mut config = base(fields, 131_072, 1e6)?;
    let pattern = ["sliding_window_pattern", "_sliding_window_pattern"];
    let pattern = pattern.map(|key| fields.maybe_size(key));
    let [new, old] = pattern;
    let pattern = new?.or(old?).unwrap_or(6).max(1);
    config.attention.windows = fields.windows(config.n_layers, |layer| (layer + 1) % pattern != 0)?;
    config.attention.qk_norm = Some(QkNorm::Head);
    config.positions = positions(fields, config.d_head)?;
    Ok(config)
}

/// Version 5 has an object for each kind of layer; version 4 had `rope_local_base_freq` for layers with a window, which
/// scaling did not concern.
fn positions(fields: &Fields, d_head: usize) -> Result<Positions, String> {
    let default = |theta| RotaryDefaults { theta, share: 1.0 };
    if let Some(parts) = fields
        .part("rope_parameters")
        .filter(|p| p.get("full_attention").is_some())
    {
        let windowed = parts.get("sliding_attention").unwrap_or(&serde_json::Value::Null);
        return Ok(Positions::Rotary {
            everywhere: fields.rope(&parts["full_attention"], d_head, &default(1e6))?,
            windowed: fields.rope(windowed, d_head, &default(1e4))?,
        });
    }
    let local = serde_json::json!({ "rope_theta": fields.number("rope_local_base_freq", 1e4)? });
    match fields.rotary(d_head, default(1e6))? {
        Positions::Rotary { everywhere, .. } => Ok(Positions::Rotary {
            everywhere,
            windowed: fields.rope(&local, d_head, &default(1e4))?,
        }),
        other => Ok(other),
    }
}

fn base(fields: &Fields, max_context: usize, theta: f64) -> Result<ModelConfig, String> {
    fields.refuse(&["use_bidirectional_attention"])?;
    let bias = fields.flag("attention_bias", false)?;
    let mut config = fields.llama_like(&LlamaDefaults {
        max_context,
        theta,
        tied: true,
        n_kv_heads: Some(4),
        d_head: Some(256),
        ..LlamaDefaults::LLAMA
    })?;
    config.activation = fields.activation("hidden_activation", "gelu_pytorch_tanh")?;
    config.norm.gain_from_one = true;
    config.placement = Placement::Around;
    config.embed_scale = (config.d_model as f64).sqrt();
    config.attention.scale = fields.number("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    config.attention.cap = fields.maybe_number("attn_logit_softcapping")?;
    config.logit_cap = fields.maybe_number("final_logit_softcapping")?;
    config.biases = Biases {
        qkv: bias,
        o: bias,
        mlp: false,
    };
    Ok(config)
}

fn place(config: &ModelConfig, param: Param) -> Option<Place> {
    match param {
        Param::MlpNorm(i) => Some(Place::whole(format!("layers.{i}.pre_feedforward_layernorm"))),
        _ => llama::place(config, param),
    }
}
