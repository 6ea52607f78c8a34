//! GGUF, llama.cpp's format: the metadata become the fields of the `config.json` that the model was converted from, which
//! its family then reads, and the tensors have llama.cpp's names.
//!
//! What its conversion does to tensors is undone: it puts the rows of Llama's queries and keys that turn together side by
//! side ([`Place::paired`]), adds one to Gemma's gains, and stores the factors of Llama 3's rotary scaling instead of its
//! parameters. What it leaves out is filled in as llama.cpp does: the scale of Gemma's scores, and the rotary base of Gemma
//! 3's layers with a window. (`convert_hf_to_gguf.py` and `llama-model.cpp` of llama.cpp; keys: ggml's `docs/gguf.md`.)

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Family, Param, Place, gemma, llama, olmo2, phi3, qwen};
use crate::error::{Error, Result};
use crate::gguf_file::GgufFile;
use crate::model::config::{ModelConfig, Positions};
use crate::model::rope::RopeScaling;

/// The factors of the rotary frequencies, where Llama 3's scaling is in use.
const DIVISORS: &str = "rope_freqs.weight";

/// An architecture of llama.cpp's.
struct Architecture {
    /// `general.architecture`, and what its keys begin with.
    name: &'static str,
    family: Family,
    /// Adds fields that only this family has.
    fields: fn(&Metadata, &mut Map<String, Value>) -> Result<()>,
}

const fn converted(family: Family, place: fn(&ModelConfig, Param) -> Option<Place>) -> Family {
    Family {
        place,
        prefixes: &[""],
        ignored: |name| name == DIVISORS,
        ..family
    }
}

static KNOWN: [Architecture; 7] = [
    Architecture {
        name: "llama",
        family: converted(llama::FAMILY, paired),
        fields: llama_fields,
    },
    Architecture {
        name: "qwen2",
        family: converted(qwen::QWEN2, place),
        fields: |_, _| Ok(()),
    },
    Architecture {
        name: "qwen3",
        family: converted(qwen::QWEN3, place),
        fields: biases,
    },
    Architecture {
        name: "gemma2",
        family: converted(gemma::GEMMA2, place),
        fields: |file, fields| gemma_fields(file, fields, 46),
    },
    Architecture {
        name: "gemma3",
        family: converted(gemma::GEMMA3, place),
        fields: |file, fields| {
            let local = file.number("rope.freq_base_swa")?.unwrap_or(1e4);
            fields.insert("rope_local_base_freq".into(), json!(local));
            gemma_fields(file, fields, 62)
        },
    },
    Architecture {
        name: "olmo2",
        family: converted(olmo2::FAMILY, place),
        fields: biases,
    },
    Architecture {
        name: "phi3",
        family: converted(phi3::FAMILY, fused),
        fields: |file, fields| file.window(fields),
    },
];

/// Reads the metadata of a file.
pub(super) fn read(file: &GgufFile) -> Result<(&'static Family, ModelConfig)> {
    let bad = |problem: String| Error::bad_file(file.path(), problem);
    if let Some(parts @ 2..) = file.integer("split.count")? {
        return Err(bad(format!(
            "is one of {parts} parts of a model: join them first (`llama-gguf-split --merge FIRST-PART OUT.gguf`)"
        )));
    }
    let name = file.text("general.architecture")?.unwrap_or_default();
    let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
        let names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
        return Err(bad(format!(
            "architecture {name:?} is not read from GGUF; those that are: {}. Other models are read from safetensors",
            names.join(", ")
        )));
    };
    let fields = Metadata { file, name }.fields(known)?;
    let mut config = (known.family.config)(&Fields::new(known.family.model_type, &fields)).map_err(bad)?;
    // One was added to the gains when the file was made.
    config.norm.gain_from_one = false;
    if file.shape(DIVISORS).is_some()
        && let Positions::Rotary { everywhere, windowed } = &mut config.positions
    {
        everywhere.scaling = RopeScaling::Divided(file.read_f32(DIVISORS)?);
        windowed.scaling = everywhere.scaling.clone();
    }
    match config.problem() {
        Some(problem) => Err(bad(problem)),
        None => Ok((&known.family, config)),
    }
}

/// The keys of a file that belong to its architecture.
struct Metadata<'a> {
    file: &'a GgufFile,
    name: &'a str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.file.integer(&self.key(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.file.number(&self.key(key))
    }

    fn size(&self, key: &str) -> Result<u64> {
        let missing = || Error::bad_file(self.file.path(), format!("{} is missing", self.key(key)));
        self.integer(key)?.ok_or_else(missing)
    }

    fn refused(&self, key: &str, problem: &str) -> Error {
        Error::bad_file(self.file.path(), format!("{} {problem}", self.key(key)))
    }

    /// Puts the value of a key, if there is one, into a field.
    fn copy(&self, key: &str, field: &str, fields: &mut Map<String, Value>) -> Result<()> {
        if let Some(value) = self.number(key)? {
            let whole = self.integer(key).ok().flatten();
            fields.insert(field.into(), whole.map_or_else(|| json!(value), Value::from));
        }
        Ok(())
    }

    /// How many tokens layers with a window see; 0 is how the conversion says that there are none.
    fn window(&self, fields: &mut Map<String, Value>) -> Result<()> {
        if let Some(window @ 1..) = self.integer("attention.sliding_window")? {
            fields.insert("sliding_window".into(), window.into());
        }
        Ok(())
    }

    /// Whether block 0 has a tensor of that name.
    fn has(&self, tensor: &str) -> bool {
        self.file.shape(&format!("blk.0.{tensor}")).is_some()
    }

    /// The `config.json` that the file was made from, as far as its family reads it.
    fn fields(&self, known: &Architecture) -> Result<Value> {
        if self.integer("expert_count")?.unwrap_or(0) > 0 {
            return Err(self.refused("expert_count", "is set: mixtures of experts are not supported"));
        }
        let (d_model, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let d_head = match self.integer("attention.key_length")? {
            Some(length) => length,
            None => d_model.checked_div(heads).unwrap_or(0),
        };
        if self
            .integer("attention.value_length")?
            .is_some_and(|length| length != d_head)
        {
            return Err(self.refused("attention.value_length", "is not attention.key_length: not supported"));
        }
        let embedding = self.file.shape("token_embd.weight");
        let vocabulary = embedding
            .and_then(|shape| shape.first())
            .ok_or_else(|| Error::bad_file(self.file.path(), "tensor token_embd.weight is missing".to_owned()))?;
        let eps = self
            .number("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| self.refused("attention.layer_norm_rms_epsilon", "is missing"))?;
        let fields = json!({
            "hidden_size": d_model,
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": d_head,
            "num_hidden_layers": self.size("block_count")?,
            "intermediate_size": self.size("feed_forward_length")?,
            "max_position_embeddings": self.size("context_length")?,
            "rms_norm_eps": eps,
            "vocab_size": vocabulary,
            "tie_word_embeddings": self.file.shape("output.weight").is_none(),
            "bos_token_id": self.file.integer("tokenizer.ggml.bos_token_id")?,
            "eos_token_id": self.file.integer("tokenizer.ggml.eos_token_id")?,
            "rope_parameters": self.rope(d_head)?,
        });
        let Value::Object(mut fields) = fields else {
            return Ok(fields);
        };
        (known.fields)(self, &mut fields)?;
        Ok(Value::Object(fields))
    }

    /// The rotary positions, but for the factors that lie among the tensors.
    fn rope(&self, d_head: u64) -> Result<Value> {
        let turning = self.integer("rope.dimension_count")?.unwrap_or(d_head);
        let kind = self.key("rope.scaling.type");
        let (kind, factor) = match (self.file.text(&kind)?, self.number("rope.scale_linear")?) {
            (None | Some("none"), None) => ("default", None),
            // What the key was before there were several kinds.
            (None | Some("none"), Some(factor)) => ("linear", Some(factor)),
            (Some(kind), _) => (kind, self.number("rope.scaling.factor")?),
        };
        Ok(json!({
            "rope_type": kind,
            "factor": factor,
            "rope_theta": self.number("rope.freq_base")?.unwrap_or(1e4),
            "partial_rotary_factor": turning as f64 / d_head as f64,
        }))
    }
}

/// Which products have a bias is not in the metadata, only among the tensors.
fn biases(file: &Metadata, fields: &mut Map<String, Value>) -> Result<()> {
    fields.insert("attention_bias".into(), file.has("attn_q.bias").into());
    fields.insert("mlp_bias".into(), file.has("ffn_up.bias").into());
    Ok(())
}

fn llama_fields(file: &Metadata, fields: &mut Map<String, Value>) -> Result<()> {
    if file.integer("attention.sliding_window")?.unwrap_or(0) > 0 {
        return Err(file.refused("attention.sliding_window", "is set, which is not supported for llama"));
    }
    biases(file, fields)
}

/// `whole` is the number of blocks of the one model whose scores are scaled by the stream's width over the heads instead
/// of by a head's width, which llama.cpp knows and the metadata do not say.
fn gemma_fields(file: &Metadata, fields: &mut Map<String, Value>, whole: u64) -> Result<()> {
    let of_stream = fields["num_hidden_layers"] == whole;
    let scalar = match (of_stream, fields["num_attention_heads"].as_u64()) {
        (true, Some(heads @ 1..)) => fields["hidden_size"].as_u64().map(|d_model| d_model / heads),
        _ => fields["head_dim"].as_u64(),
    };
    fields.insert("query_pre_attn_scalar".into(), json!(scalar));
    file.window(fields)?;
    file.copy("attention.sliding_window_pattern", "sliding_window_pattern", fields)?;
    file.copy("attn_logit_softcapping", "attn_logit_softcapping", fields)?;
    file.copy("final_logit_softcapping", "final_logit_softcapping", fields)?;
    biases(file, fields)
}

/// llama.cpp's names, which are the same for all architectures.
fn place(_: &ModelConfig, param: Param) -> Option<Place> {
    let block = |i: usize, name: &str| Place::whole(format!("blk.{i}.{name}"));
    Some(match param {
        Param::Embed => Place::whole("token_embd"),
        Param::Unembed => Place::whole("output"),
        Param::FinalNorm => Place::whole("output_norm"),
        Param::AttnNorm(i) => block(i, "attn_norm"),
        Param::Q(i) => block(i, "attn_q"),
        Param::K(i) => block(i, "attn_k"),
        Param::V(i) => block(i, "attn_v"),
        Param::QNorm(i) => block(i, "attn_q_norm"),
        Param::KNorm(i) => block(i, "attn_k_norm"),
        Param::O(i) => block(i, "attn_output"),
        Param::AttnBehind(i) => block(i, "post_attention_norm"),
        Param::MlpNorm(i) => block(i, "ffn_norm"),
        Param::Gate(i) => block(i, "ffn_gate"),
        Param::Up(i) => block(i, "ffn_up"),
        Param::Down(i) => block(i, "ffn_down"),
        Param::MlpBehind(i) => block(i, "post_ffw_norm"),
        Param::Positions | Param::EmbedNorm => return None,
    })
}

fn paired(config: &ModelConfig, param: Param) -> Option<Place> {
    Some(Place {
        paired: matches!(param, Param::Q(_) | Param::K(_)),
        ..place(config, param)?
    })
}

fn fused(config: &ModelConfig, param: Param) -> Option<Place> {
    let block = |i: usize, name: &str| format!("blk.{i}.{name}");
    phi3::fused(config, param, |i| block(i, "attn_qkv"), |i| block(i, "ffn_up")).or_else(|| place(config, param))
}
