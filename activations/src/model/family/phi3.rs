//! Phi-3: Llama with one tensor for queries, keys and values, one for gate and up, and a window in some checkpoints.

use super::fields::{Fields, LlamaDefaults};
use super::{Family, Param, Place, llama};
use crate::model::config::ModelConfig;

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    config,
    place,
    ..llama::FAMILY
};

fn config(fields: &Fields) -> Result<ModelConfig, String> {
    let mut config = fields.llama_like(&LlamaDefaults {
        max_context: 4096,
        eps: 1e-5,
        ..LlamaDefaults::LLAMA
    })?;
    config.attention.windows = fields.windows(config.n_layers, |_| true)?;
    Ok(config)
}

fn place(config: &ModelConfig, param: Param) -> Option<Place> {
    let layer = |i: usize, name: &str| format!("layers.{i}.{name}");
    let qkv = |i| layer(i, "self_attn.qkv_proj");
    fused(config, param, qkv, |i| layer(i, "mlp.gate_up_proj")).or_else(|| llama::place(config, param))
}

/// Where a parameter lies that shares a tensor with others; the tensors' names depend on the kind of file.
pub(super) fn fused(
    config: &ModelConfig,
    param: Param,
    qkv: impl Fn(usize) -> String,
    gate_up: impl Fn(usize) -> String,
) -> Option<Place> {
    let (d_q, d_kv, d_mlp) = (config.d_q(), config.d_kv(), config.d_mlp);
    let qkv = |i, first, rows| Place::rows(qkv(i), first, rows, d_q + 2 * d_kv);
    let mlp = |i, first| Place::rows(gate_up(i), first, d_mlp, 2 * d_mlp);
    Some(match param {
        Param::Q(i) => qkv(i, 0, d_q),
        Param::K(i) => qkv(i, d_q, d_kv),
        Param::V(i) => qkv(i, d_q + d_kv, d_kv),
        Param::Gate(i) => mlp(i, 0),
        Param::Up(i) => mlp(i, d_mlp),
        _ => return None,
    })
}
