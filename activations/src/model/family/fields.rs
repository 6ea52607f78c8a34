//! Reading `config.json` field by field: what is missing, of another kind or not supported is named.
//!
//! transformers leaves out what equals its defaults and moved the rotary fields into `rope_parameters` in version 5, so
//! every getter has a default where transformers has one, and the rotary reader knows both forms.

use serde_json::Value;

use crate::model::config::{
    Activation, AttentionConfig, Biases, ModelConfig, Norm, NormKind, Placement, Positions, Unembed,
};
use crate::model::rope::{Rope, RopeScaling};

type Result<T> = std::result::Result<T, String>;

/// More blocks than any model has.
const MOST_LAYERS: usize = 1 << 16;

/// The fields of a `config.json`.
pub(in crate::model) struct Fields<'a> {
    family: &'static str,
    value: &'a Value,
}

impl<'a> Fields<'a> {
    pub(super) fn new(family: &'static str, value: &'a Value) -> Self {
        Self { family, value }
    }

    /// The field, if it is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        let found = self.value.get(key).unwrap_or(&Value::Null);
        format!("{} config: {key} is {found}, expected {expected}", self.family)
    }

    /// A size that may be absent.
    pub(super) fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        let parse = |v: &Value| {
            let n = v.as_u64().and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| self.wrong(key, "a whole number"))
        };
        self.get(key).map(parse).transpose()
    }

    /// A size that must be there.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let missing = || format!("{} config: {key} is missing", self.family);
        self.maybe_size(key)?.ok_or_else(missing)
    }

    /// The number of blocks: small enough to make a list of them.
    pub(super) fn layers(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            n if n <= MOST_LAYERS => Ok(n),
            _ => Err(self.wrong(key, "at most 65536")),
        }
    }

    /// A number that may be absent.
    pub(super) fn maybe_number(&self, key: &str) -> Result<Option<f64>> {
        let parse = |v: &Value| v.as_f64().ok_or_else(|| self.wrong(key, "a number"));
        self.get(key).map(parse).transpose()
    }

    /// A number with transformers' default.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.maybe_number(key)?.unwrap_or(default))
    }

    /// A flag with transformers' default.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let parse = |v: &Value| v.as_bool().ok_or_else(|| self.wrong(key, "true or false"));
        self.get(key).map_or(Ok(default), parse)
    }

    /// Token ids: one, several or none.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| {
            let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| self.wrong(key, "a token id"))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }

    /// Refuses a flag that promises what is not implemented.
    pub(super) fn refuse(&self, keys: &[&str]) -> Result<()> {
        for &key in keys {
            if self.get(key).is_some_and(|v| *v != Value::Bool(false)) {
                return Err(format!("{key} is set, which is not supported for {}", self.family));
            }
        }
        Ok(())
    }

    /// The non-linearity that `key` names.
    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = match self.get(key) {
            None => default,
            Some(v) => v.as_str().ok_or_else(|| self.wrong(key, "a name"))?,
        };
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(format!(
                "{key} {other:?} is not supported; known are silu, gelu, gelu_new, gelu_pytorch_tanh, relu"
            )),
        }
    }

    /// Which layers have a window of `sliding_window` tokens: those that `layer_types` says, else those that `otherwise`
    /// says.
    pub(super) fn windows(&self, layers: usize, otherwise: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        let Some(window) = self.maybe_size("sliding_window")? else {
            return Ok(vec![None; layers]);
        };
        let Some(types) = self.get("layer_types") else {
            return Ok((0..layers).map(|i| otherwise(i).then_some(window)).collect());
        };
        let expected = format!("{layers} times sliding_attention or full_attention");
        let types = types.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| self.wrong("layer_types", &expected))?;
        let one = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(Some(window)),
            Some("full_attention") => Ok(None),
            _ => Err(self.wrong("layer_types", &expected)),
        };
        types.iter().map(one).collect()
    }

    /// Rotary positions that are the same in all layers.
    pub(super) fn rotary(&self, d_head: usize, default: RotaryDefaults) -> Result<Positions> {
        let rope = self.rope(self.value, d_head, &default)?;
        Ok(Positions::Rotary {
            everywhere: rope.clone(),
            windowed: rope,
        })
    }

    /// Rotary positions as the object `at` describes them, which is `config.json` or a part of it.
    pub(super) fn rope(&self, at: &Value, d_head: usize, default: &RotaryDefaults) -> Result<Rope> {
        // Version 5 has one object; version 4 had the scaling in one and the rest beside it.
        let inner = ["rope_parameters", "rope_scaling"].map(|key| at.get(key).filter(|v| v.is_object()));
        let places: Vec<&Value> = inner.into_iter().flatten().chain([at]).collect();
        let find = |key: &str| places.iter().find_map(|p| p.get(key).filter(|v| !v.is_null()));
        let number = |key: &str| match find(key) {
            None => Ok(None),
            Some(v) => v
                .as_f64()
                .map(Some)
                .ok_or_else(|| format!("{key} is {v}, expected a number")),
        };
        let needed = |key: &str| {
            let missing = || format!("{} config: the rotary scaling lacks {key}", self.family);
            number(key)?.ok_or_else(missing)
        };
        let theta = match number("rope_theta")? {
            Some(theta) => theta,
            None => number("rotary_emb_base")?.unwrap_or(default.theta),
        };
        let share = match number("partial_rotary_factor")? {
            Some(share) => share,
            None => number("rotary_pct")?.unwrap_or(default.share),
        };
        let kind = find("rope_type").or_else(|| inner.into_iter().flatten().find_map(|p| p.get("type")));
        let scaling = match kind.and_then(Value::as_str) {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear(needed("factor")?),
            Some("llama3") => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: needed("original_max_position_embeddings")?,
            },
            Some(other) => {
                return Err(format!(
                    "rotary scaling of type {other:?} is not supported; known are \"default\", \"linear\", \"llama3\""
                ));
            }
        };
        Ok(Rope {
            theta,
            width: (d_head as f64 * share) as usize,
            scaling,
        })
    }

    /// Width of the residual stream, heads, and width of a head, in families whose heads share the stream evenly.
    pub(super) fn even_heads(&self, d_model: &str, n_heads: &str) -> Result<(usize, usize, usize)> {
        let (width, heads) = (self.size(d_model)?, self.size(n_heads)?);
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(format!("{d_model} {width} is not a multiple of {n_heads} {heads}"));
        }
        Ok((width, heads, width / heads))
    }

    /// Whether the unembedding is the embedding, with transformers' default.
    pub(super) fn unembed(&self, tied: bool) -> Result<Unembed> {
        Ok(match self.flag("tie_word_embeddings", tied)? {
            true => Unembed::Tied,
            false => Unembed::Own,
        })
    }

    /// The object at `key`, if it is there.
    pub(super) fn part(&self, key: &str) -> Option<&'a Value> {
        self.get(key)
    }

    /// What Llama and the families after it share; each says what it does otherwise.
    pub(super) fn llama_like(&self, default: &LlamaDefaults) -> Result<ModelConfig> {
        self.refuse(&["quantization_config"])?;
        let n_heads = self.size("num_attention_heads")?;
        let d_model = self.size("hidden_size")?;
        let n_layers = self.layers("num_hidden_layers")?;
        let n_kv_heads = match default.n_kv_heads {
            Some(n) => self.maybe_size("num_key_value_heads")?.unwrap_or(n),
            None => self.maybe_size("num_key_value_heads")?.unwrap_or(n_heads),
        };
        let d_head = match (self.maybe_size("head_dim")?, default.d_head) {
            (Some(d), _) | (None, Some(d)) => d,
            (None, None) if n_heads == 0 => return Err("num_attention_heads is 0".into()),
            (None, None) => d_model / n_heads,
        };
        let rotary = RotaryDefaults {
            theta: default.theta,
            share: 1.0,
        };
        Ok(ModelConfig {
            d_model,
            n_layers,
            n_heads,
            n_kv_heads,
            d_head,
            d_mlp: self.size("intermediate_size")?,
            d_vocab: self.size("vocab_size")?,
            max_context: self
                .maybe_size("max_position_embeddings")?
                .unwrap_or(default.max_context),
            norm: Norm {
                kind: NormKind::Rms,
                eps: self.number("rms_norm_eps", default.eps)?,
                gain_from_one: false,
            },
            placement: Placement::Before,
            positions: self.rotary(d_head, rotary)?,
            attention: AttentionConfig::plain(true, d_head, n_layers),
            activation: self.activation("hidden_act", "silu")?,
            gated: true,
            biases: Biases::default(),
            embed_scale: 1.0,
            unembed: self.unembed(default.tied)?,
            logit_cap: None,
            bos: self.ids("bos_token_id")?.first().copied(),
            eos: self.ids("eos_token_id")?,
        })
    }
}

/// What transformers takes for rotary fields that are absent.
pub(super) struct RotaryDefaults {
    pub theta: f64,
    /// Which share of a head turns.
    pub share: f64,
}

/// What transformers takes for fields that are absent.
pub(super) struct LlamaDefaults {
    pub max_context: usize,
    pub eps: f64,
    pub theta: f64,
    pub tied: bool,
    /// As many as heads, if `None`.
    pub n_kv_heads: Option<usize>,
    /// The residual stream's width over the heads, if `None`.
    pub d_head: Option<usize>,
}

impl LlamaDefaults {
    pub(super) const LLAMA: Self = Self {
        max_context: 2048,
        eps: 1e-6,
        theta: 10_000.0,
        tied: false,
        n_kv_heads: None,
        d_head: None,
    };
}
