//! GPT-NeoX (Pythia): layer norms, biases, a part of each head turns, attention and MLP side by side, and each head's
//! query, key and value next to each other in one tensor.

use super::fields::{Fields, RotaryDefaults};
use super::{Family, Param, Part, Place};
use crate::model::config::{AttentionConfig, Biases, ModelConfig, Norm, NormKind, Placement};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    config,
    place,
    prefixes: &["gpt_neox.", ""],
    token_types: None,
    // The causal mask and the rotary frequencies, which older versions saved.
    ignored: |name| {
        let buffers = [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"];
        buffers.iter().any(|end| name.ends_with(end))
    },
};

fn config(fields: &Fields) -> Result<ModelConfig, String> {
    fields.refuse(&["quantization_config"])?;
    let (d_model, n_heads, d_head) = fields.even_heads("hidden_size", "num_attention_heads")?;
    let n_layers = fields.layers("num_hidden_layers")?;
    let bias = fields.flag("attention_bias", true)?;
    Ok(ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: fields.size("intermediate_size")?,
        d_vocab: fields.size("vocab_size")?,
        max_context: fields.maybe_size("max_position_embeddings")?.unwrap_or(2048),
        norm: Norm {
            kind: NormKind::Layer,
            eps: fields.number("layer_norm_eps", 1e-5)?,
            gain_from_one: false,
        },
        placement: match fields.flag("use_parallel_residual", true)? {
            true => Placement::Parallel,
            false => Placement::Before,
        },
        positions: fields.rotary(
            d_head,
            RotaryDefaults {
                theta: 10_000.0,
                share: 0.25,
            },
        )?,
        attention: AttentionConfig::plain(true, d_head, n_layers),
        activation: fields.activation("hidden_act", "gelu")?,
        gated: false,
        biases: Biases {
            qkv: bias,
            o: bias,
            mlp: true,
        },
        embed_scale: 1.0,
        unembed: fields.unembed(false)?,
        logit_cap: None,
        bos: fields.ids("bos_token_id")?.first().copied(),
        eos: fields.ids("eos_token_id")?,
    })
}

fn place(config: &ModelConfig, param: Param) -> Option<Place> {
    let layer = |i: usize, name: &str| Place::whole(format!("layers.{i}.{name}"));
    let third = |i: usize, n: usize| Place {
        part: Some(Part {
            first: n * config.d_head,
            block: config.d_head,
            stride: 3 * config.d_head,
            of: 3 * config.d_q(),
        }),
        ..layer(i, "attention.query_key_value")
    };
    Some(match param {
        Param::Embed => Place::whole("embed_in"),
        Param::Unembed => Place::whole("embed_out"),
        Param::FinalNorm => Place::whole("final_layer_norm"),
        Param::AttnNorm(i) => layer(i, "input_layernorm"),
        Param::Q(i) => third(i, 0),
        Param::K(i) => third(i, 1),
        Param::V(i) => third(i, 2),
        Param::O(i) => layer(i, "attention.dense"),
        Param::MlpNorm(i) => layer(i, "post_attention_layernorm"),
        Param::Up(i) => layer(i, "mlp.dense_h_to_4h"),
        Param::Down(i) => layer(i, "mlp.dense_4h_to_h"),
        _ => return None,
    })
}
