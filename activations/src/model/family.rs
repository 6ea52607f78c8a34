//! Model families: each maps its `config.json` to behaviours and its tensor names to ours. One small file a family.

mod llama;

use std::path::Path;

use serde::Deserialize;

use super::config::ModelConfig;
use crate::error::{Error, Result};

/// What a family contributes.
pub(super) struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `config.json` to behaviours; the error says which field is wrong or not supported.
    pub config: fn(&serde_json::Value) -> std::result::Result<ModelConfig, String>,
    /// Our name of a tensor to the checkpoint's.
    pub tensor_name: fn(Param) -> String,
    /// Whether a tensor of the checkpoint that no parameter claims may be left out: buffers that older versions saved.
    pub ignored: fn(&str) -> bool,
}

/// A parameter of the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Param {
    Embed,
    Unembed,
    FinalNorm,
    AttnNorm(usize),
    Q(usize),
    K(usize),
    V(usize),
    O(usize),
    MlpNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
}

const KNOWN: [&Family; 1] = [&llama::FAMILY];

#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
}

/// Reads `config.json` in `dir`.
///
/// # Errors
/// When it is missing, not JSON, of an unknown architecture, or promises something the transformer does not do.
pub(super) fn read(dir: &Path) -> Result<(&'static Family, ModelConfig)> {
    if !dir.is_dir() {
        return Err(Error::bad_file(
            dir,
            "no such model directory: expected one in Hugging Face's layout (config.json, model.safetensors, tokenizer.json)",
        ));
    }
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let bad = |problem: String| Error::bad_file(&path, problem);
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(format!("not JSON: {e}")))?;
    let kind: Kind = serde_json::from_value(value.clone()).map_err(|e| bad(format!("not a model config: {e}")))?;
    let name = kind.model_type.as_deref().unwrap_or_default();
    let Some(family) = KNOWN.into_iter().find(|f| f.model_type == name) else {
        let known: Vec<_> = KNOWN.iter().map(|f| f.model_type).collect();
        let architectures = kind.architectures.join(", ");
        return Err(bad(format!(
            "unknown architecture: model_type {name:?} (architectures: [{architectures}]); known are: {}",
            known.join(", ")
        )));
    };
    let config = (family.config)(&value).map_err(bad)?;
    match config.problem() {
        Some(problem) => Err(bad(problem)),
        None => Ok((family, config)),
    }
}
