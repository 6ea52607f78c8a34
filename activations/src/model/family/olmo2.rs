//! OLMo 2: norms behind both halves of a block and none before, and norms of all heads' queries and keys together.

use super::fields::{Fields, LlamaDefaults};
use super::{Family, llama};
use crate::model::config::{Biases, ModelConfig, Placement, QkNorm};

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    config,
    ..llama::FAMILY
};

fn config(fields: &Fields) -> Result<ModelConfig, String> {
    let bias = fields.flag("attention_bias", false)?;
    let mut config = fields.llama_like(&LlamaDefaults {
        eps: 1e-5,
        ..LlamaDefaults::LLAMA
    })?;
    config.placement = Placement::Behind;
    config.attention.qk_norm = Some(QkNorm::Heads);
    config.biases = Biases {
        qkv: bias,
        o: bias,
        mlp: false,
    };
    Ok(config)
}
