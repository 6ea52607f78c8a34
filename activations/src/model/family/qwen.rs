//! Qwen 2 (and 2.5): biases on queries, keys and values. Qwen 3: norms of each head's queries and keys instead.

use super::fields::{Fields, LlamaDefaults};
use super::{Family, llama};
use crate::model::config::{Biases, ModelConfig, QkNorm};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    config: qwen2,
    ..llama::FAMILY
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    config: qwen3,
    ..llama::FAMILY
};

fn qwen2(fields: &Fields) -> Result<ModelConfig, String> {
    Ok(ModelConfig {
        biases: Biases {
            qkv: true,
            ..Biases::default()
        },
        ..base(fields, None)?
    })
}

fn qwen3(fields: &Fields) -> Result<ModelConfig, String> {
    let bias = fields.flag("attention_bias", false)?;
    let mut config = base(fields, Some(128))?;
    config.attention.qk_norm = Some(QkNorm::Head);
    config.biases = Biases {
        qkv: bias,
        o: bias,
        mlp: false,
    };
    Ok(config)
}

fn base(fields: &Fields, d_head: Option<usize>) -> Result<ModelConfig, String> {
    let mut config = fields.llama_like(&LlamaDefaults {
        max_context: 32_768,
        n_kv_heads: Some(32),
        d_head,
        ..LlamaDefaults::LLAMA
    })?;
    // The field is there in all checkpoints and means nothing unless the flag is set.
    if fields.flag("use_sliding_window", false)? {
        let first = fields.maybe_size("max_window_layers")?.unwrap_or(28);
        config.attention.windows = fields.windows(config.n_layers, |layer| layer >= first)?;
    }
    Ok(config)
}
