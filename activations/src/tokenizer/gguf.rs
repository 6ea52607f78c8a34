//! The tokenizer that a GGUF file carries, as the `tokenizer.json` it was converted from, as far as that can be known.
//!
//! Two kinds are read. `gpt2` is byte-level BPE: its merges are in the file, and how text is cut into words before is named
//! by `tokenizer.ggml.pre` (`llama-vocab.cpp` of llama.cpp has the expressions that the names stand for). `llama` is
//! sentencepiece's BPE: there the best pair is the one whose piece has the highest score, so that the merges are the
//! splits of every piece into two others, in the order of scores.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::gguf_file::GgufFile;

/// `tokenizer.ggml.token_type`
mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const USER_DEFINED: u64 = 4;
    pub const BYTE: u64 = 6;
}

/// How GPT-4's and Llama 3's tokenizers cut text into words.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`LLAMA3`], each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The entries of the vocabulary.
struct Entries<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
}

/// The `tokenizer.json` of `file`.
pub(super) fn json(file: &GgufFile) -> Result<Value> {
    let bad = |problem: String| Error::bad_file(file.path(), problem);
    let missing = |key: &str| bad(format!("{key} is missing: the file has no tokenizer"));
    let key = "tokenizer.ggml.tokens";
    let tokens = file.texts(key)?.ok_or_else(|| missing(key))?;
    let kinds = file.integers("tokenizer.ggml.token_type")?;
    let kinds = kinds.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
    if kinds.len() != tokens.len() {
        return Err(bad(format!(
            "tokenizer.ggml.token_type has {} entries, tokenizer.ggml.tokens {}",
            kinds.len(),
            tokens.len()
        )));
    }
    let entries = Entries { tokens, kinds };
    let model = file.text("tokenizer.ggml.model")?;
    let (model, normalizer, words) = match model.ok_or_else(|| missing("tokenizer.ggml.model"))? {
        "gpt2" => {
            let key = "tokenizer.ggml.merges";
            let merges = file.texts(key)?.ok_or_else(|| missing(key))?;
            byte_level(&entries, &merges, file.text("tokenizer.ggml.pre")?).map_err(bad)?
        }
        "llama" => {
            let key = "tokenizer.ggml.scores";
            let scores = file.numbers(key)?.ok_or_else(|| missing(key))?;
            if scores.len() != entries.tokens.len() {
                return Err(bad(format!("{key} has {} entries, not one a token", scores.len())));
            }
            sentencepiece(
                &entries,
                &scores,
                file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
            )
        }
        other => {
            return Err(bad(format!(
                "tokenizers of model {other:?} are not read from GGUF; {BESIDE}"
            )));
        }
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": entries.added(),
        "normalizer": normalizer,
        "pre_tokenizer": words,
        "model": model,
    }))
}

/// What to do about a tokenizer that cannot be read.
const BESIDE: &str = "put the model's tokenizer.json beside the file, as NAME.tokenizer.json for NAME.gguf";

/// Model, normalizer and pre-tokenizer.
type Parts = (Value, Value, Value);

impl Entries<'_> {
    fn vocabulary(&self) -> HashMap<&str, usize> {
        // An entry that is there twice is the first.
        self.tokens
            .iter()
            .enumerate()
            .rev()
            .map(|(id, &token)| (token, id))
            .collect()
    }

    /// What is found in a text before it is cut into words, and what is never found there: special tokens.
    fn added(&self) -> Vec<Value> {
        let entries = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = entries.filter(|(_, (_, kind))| matches!(**kind, kind::UNKNOWN..=kind::USER_DEFINED));
        added
            .map(|(id, (token, &kind))| {
                json!({
                    "id": id, "content": token, "special": kind != kind::USER_DEFINED, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false,
                })
            })
            .collect()
    }
}

fn byte_level(entries: &Entries, merges: &[&str], pre: Option<&str>) -> std::result::Result<Parts, String> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let both = |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let cut = |by: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": by}, "behavior": "Isolated", "invert": false});
        both(split, bytes(false))
    };
    let (words, normalizer, whole_words) = match pre {
        Some("gpt-2" | "olmo" | "phi-2" | "mpt" | "jais") => (bytes(true), Value::Null, false),
        Some("smollm") => (
            both(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Value::Null,
            false,
        ),
        Some("llama-bpe" | "llama3" | "llama-v3") => (cut(LLAMA3), Value::Null, true),
        Some("dbrx") => (cut(LLAMA3), Value::Null, false),
        Some("qwen2") => (cut(QWEN2), json!({"type": "NFC"}), false),
        other => {
            let name = other.unwrap_or("none");
            return Err(format!(
                "tokenizer.ggml.pre is {name:?}, whose words are not known; {BESIDE}"
            ));
        }
    };
    let pair = |merge: &&str| {
        // The first half has at least one character, which may be a space.
        let from = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge[from..].find(' ').map(|at| at + from);
        at.map(|at| [merge[..at].to_owned(), merge[at + 1..].to_owned()])
            .ok_or_else(|| format!("tokenizer.ggml.merges has {merge:?}, which is no pair"))
    };
    let merges: Vec<[String; 2]> = merges.iter().map(pair).collect::<std::result::Result<_, _>>()?;
    let model = json!({
        "type": "BPE", "vocab": entries.vocabulary(), "merges": merges, "ignore_merges": whole_words,
    });
    Ok((model, normalizer, words))
}

fn sentencepiece(entries: &Entries, scores: &[f64], space_before: bool) -> Parts {
    let vocabulary = entries.vocabulary();
    let normal = |id: usize| entries.kinds[id] == kind::NORMAL;
    let part = |text: &str| vocabulary.get(text).is_some_and(|&id| normal(id));
    let mut ids: Vec<usize> = (0..entries.tokens.len()).filter(|&id| normal(id)).collect();
    ids.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut merges = Vec::new();
    for token in ids.into_iter().map(|id| entries.tokens[id]) {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        merges.extend(splits.filter(|(left, right)| part(left) && part(right)));
    }
    let unknown = entries.kinds.iter().position(|&kind| kind == kind::UNKNOWN);
    let model = json!({
        "type": "BPE", "vocab": vocabulary, "merges": merges, "fuse_unk": true,
        "unk_token": unknown.map(|id| entries.tokens[id]), "byte_fallback": entries.kinds.contains(&kind::BYTE),
    });
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    if space_before {
        steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
    }
    (model, json!({"type": "Sequence", "normalizers": steps}), Value::Null)
}

#[cfg(test)]
mod tests;
