//! Model families: each maps its `config.json` to behaviours and its tensor names to ours. One small file a family, and one
//! for GGUF, whose metadata become the fields of a `config.json` first.

mod bert;
mod fields;
mod gemma;
mod gguf;
mod gpt2;
mod llama;
mod neox;
mod olmo2;
mod phi3;
mod qwen;

use std::path::Path;

use serde::Deserialize;

use self::fields::Fields;
use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf_file::GgufFile;

/// What a family contributes.
pub(super) struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `config.json` to behaviours; the error says which field is wrong or not supported.
    pub config: fn(&Fields) -> std::result::Result<ModelConfig, String>,
    /// Where a parameter lies; `None` for one that no model of the family has.
    pub place: fn(&ModelConfig, Param) -> Option<Place>,
    /// What may stand before every name but the unembedding's, the usual one first.
    pub prefixes: &'static [&'static str],
    /// The embedding of token types, whose first row is added everywhere.
    pub token_types: Option<&'static str>,
    /// Whether a tensor of the checkpoint that no parameter claims may be left out: buffers that older versions saved,
    /// and heads that are not part of the transformer.
    pub ignored: fn(&str) -> bool,
}

/// A parameter of the transformer; the number is the block's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Param {
    Embed,
    Positions,
    EmbedNorm,
    Unembed,
    FinalNorm,
    AttnNorm(usize),
    Q(usize),
    K(usize),
    V(usize),
    QNorm(usize),
    KNorm(usize),
    O(usize),
    AttnBehind(usize),
    MlpNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
    MlpBehind(usize),
}

/// Where a parameter lies in a checkpoint.
pub(super) struct Place {
    /// The tensor's name, without `.weight` or `.bias`.
    pub name: String,
    /// Which of its rows, if it holds several parameters.
    pub part: Option<Part>,
    /// Whether it is stored as `[d_in, d_out]`.
    pub transposed: bool,
    /// Whether the rows of a head that turn together are neighbours, as llama.cpp wants them, and not half a head apart.
    pub paired: bool,
}

/// Rows of a tensor: blocks of `block` rows at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// The first row.
    pub first: usize,
    /// Rows of a block.
    pub block: usize,
    /// From the start of a block to that of the next.
    pub stride: usize,
    /// Rows of the whole tensor.
    pub of: usize,
}

impl Part {
    /// The part's `rows` rows of `values: [of, columns]`.
    pub(super) fn take(self, values: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
        if rows == self.of {
            return values;
        }
        let blocks = values[self.first * columns..].chunks(self.stride * columns);
        let mut out = Vec::with_capacity(rows * columns);
        blocks.for_each(|block| out.extend_from_slice(&block[..self.block * columns]));
        out
    }
}

impl Place {
    /// A tensor of its own, stored as `[d_out, d_in]`.
    fn whole(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            part: None,
            transposed: false,
            paired: false,
        }
    }

    /// Rows `first` to `first + rows` of a tensor of `of` rows.
    fn rows(name: String, first: usize, rows: usize, of: usize) -> Self {
        let part = Part {
            first,
            block: rows,
            stride: of,
            of,
        };
        Self {
            part: Some(part),
            ..Self::whole(name)
        }
    }
}

const KNOWN: [&Family; 11] = [
    &llama::FAMILY,
    &llama::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &olmo2::FAMILY,
    &phi3::FAMILY,
    &gpt2::FAMILY,
    &neox::FAMILY,
    &bert::FAMILY,
];

#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
}

/// Reads the configuration of the checkpoint at `dir`: its `config.json`, or a GGUF's metadata.
pub(super) fn read(dir: &Path) -> Result<(&'static Family, ModelConfig)> {
    if let Some(path) = GgufFile::of_model(dir)? {
        return gguf::read(&GgufFile::open(&path)?);
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
    let config = (family.config)(&Fields::new(family.model_type, &value)).map_err(bad)?;
    match config.problem() {
        Some(problem) => Err(bad(problem)),
        None => Ok((family, config)),
    }
}

#[cfg(test)]
mod tests;
