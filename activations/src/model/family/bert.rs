//! BERT and the sentence encoders made from it (MiniLM): learned positions, no causal mask, norms of the sums.
//!
//! Every token counts as of the first type, which is what encoding one text does. Heads and the pooler are not part of
//! the transformer: there are no logits.

use super::fields::Fields;
use super::{Family, Param, Place};
use crate::model::config::{AttentionConfig, Biases, ModelConfig, Norm, NormKind, Placement, Positions, Unembed};

pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    config,
    place,
    prefixes: &["", "bert."],
    token_types: Some("embeddings.token_type_embeddings"),
    ignored: |name| {
        let name = name.strip_prefix("bert.").unwrap_or(name);
        let heads = ["pooler.", "cls.", "classifier.", "qa_outputs."];
        name == "embeddings.position_ids" || heads.iter().any(|head| name.starts_with(head))
    },
};

fn config(fields: &Fields) -> Result<ModelConfig, String> {
    fields.refuse(&["quantization_config", "is_decoder", "add_cross_attention"])?;
    if let Some(kind) = fields.part("position_embedding_type").filter(|k| *k != "absolute") {
        return Err(format!(
            "position_embedding_type {kind} is not supported; known is \"absolute\""
        ));
    }
    let (d_model, n_heads, d_head) = fields.even_heads("hidden_size", "num_attention_heads")?;
    let n_layers = fields.layers("num_hidden_layers")?;
    Ok(ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: fields.size("intermediate_size")?,
        d_vocab: fields.size("vocab_size")?,
        max_context: fields.maybe_size("max_position_embeddings")?.unwrap_or(512),
        norm: Norm {
            kind: NormKind::Layer,
            eps: fields.number("layer_norm_eps", 1e-12)?,
            gain_from_one: false,
        },
        placement: Placement::OfSum,
        positions: Positions::Learned,
        attention: AttentionConfig::plain(false, d_head, n_layers),
        activation: fields.activation("hidden_act", "gelu")?,
        gated: false,
        biases: Biases {
            qkv: true,
            o: true,
            mlp: true,
        },
        embed_scale: 1.0,
        unembed: Unembed::None,
        logit_cap: None,
        bos: None,
        eos: Vec::new(),
    })
}

fn place(_: &ModelConfig, param: Param) -> Option<Place> {
    let layer = |i: usize, name: &str| Place::whole(format!("encoder.layer.{i}.{name}"));
    Some(match param {
        Param::Embed => Place::whole("embeddings.word_embeddings"),
        Param::Positions => Place::whole("embeddings.position_embeddings"),
        Param::EmbedNorm => Place::whole("embeddings.LayerNorm"),
        Param::Q(i) => layer(i, "attention.self.query"),
        Param::K(i) => layer(i, "attention.self.key"),
        Param::V(i) => layer(i, "attention.self.value"),
        Param::O(i) => layer(i, "attention.output.dense"),
        Param::AttnBehind(i) => layer(i, "attention.output.LayerNorm"),
        Param::Up(i) => layer(i, "intermediate.dense"),
        Param::Down(i) => layer(i, "output.dense"),
        Param::MlpBehind(i) => layer(i, "output.LayerNorm"),
        _ => return None,
    })
}
