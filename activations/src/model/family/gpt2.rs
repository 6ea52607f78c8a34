//! GPT-2: learned positions, layer norms, biases everywhere, and matrices stored as `[d_in, d_out]`.

use super::fields::Fields;
use super::{Family, Param, Place};
use crate::model::config::{AttentionConfig, Biases, ModelConfig, Norm, NormKind, Placement, Positions};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    config,
    place,
    prefixes: &["transformer.", ""],
    token_types: None,
    // The causal mask, which older versions saved.
    ignored: |name| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
};

fn config(fields: &Fields) -> Result<ModelConfig, String> {
    fields.refuse(&[
        "quantization_config",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
    ])?;
    let (d_model, n_heads, d_head) = fields.even_heads("n_embd", "n_head")?;
    let n_layers = fields.layers("n_layer")?;
    let attention = AttentionConfig::plain(true, d_head, n_layers);
    Ok(ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: fields.maybe_size("n_inner")?.unwrap_or(d_model.saturating_mul(4)),
        d_vocab: fields.size("vocab_size")?,
        max_context: fields.maybe_size("n_positions")?.unwrap_or(1024),
        norm: Norm {
            kind: NormKind::Layer,
            eps: fields.number("layer_norm_epsilon", 1e-5)?,
            gain_from_one: false,
        },
        placement: Placement::Before,
        positions: Positions::Learned,
        attention: AttentionConfig {
            scale: match fields.flag("scale_attn_weights", true)? {
                true => attention.scale,
                false => 1.0,
            },
            ..attention
        },
        activation: fields.activation("activation_function", "gelu_new")?,
        gated: false,
        biases: Biases {
            qkv: true,
            o: true,
            mlp: true,
        },
        embed_scale: 1.0,
        unembed: fields.unembed(true)?,
        logit_cap: None,
        bos: fields.ids("bos_token_id")?.first().copied(),
        eos: fields.ids("eos_token_id")?,
    })
}

fn place(config: &ModelConfig, param: Param) -> Option<Place> {
    let d = config.d_model;
    let norm = |i: usize, name: &str| Place::whole(format!("h.{i}.{name}"));
    let matrix = |i: usize, name: &str| Place {
        transposed: true,
        ..Place::whole(format!("h.{i}.{name}"))
    };
    let third = |i: usize, n: usize| Place {
        transposed: true,
        ..Place::rows(format!("h.{i}.attn.c_attn"), n * d, d, 3 * d)
    };
    Some(match param {
        Param::Embed => Place::whole("wte"),
        Param::Positions => Place::whole("wpe"),
        Param::Unembed => Place::whole("lm_head"),
        Param::FinalNorm => Place::whole("ln_f"),
        Param::AttnNorm(i) => norm(i, "ln_1"),
        Param::Q(i) => third(i, 0),
        Param::K(i) => third(i, 1),
        Param::V(i) => third(i, 2),
        Param::O(i) => matrix(i, "attn.c_proj"),
        Param::MlpNorm(i) => norm(i, "ln_2"),
        Param::Up(i) => matrix(i, "mlp.c_fc"),
        Param::Down(i) => matrix(i, "mlp.c_proj"),
        _ => return None,
    })
}
