use std::path::{Path, PathBuf};

use super::*;
use crate::gguf_file::tests::{Writer, text};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::byte_level as byte_level_json;

fn load(writer: &Writer) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    Tokenizer::load(&path)
}

fn storyteller() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/storyteller")
}

/// A `tokenizer.json`'s tokens in the order of their ids, and their kinds.
fn tokens(json: &Value) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str)> = vocabulary
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), &token[..]))
        .collect();
    tokens.sort_unstable();
    let added: Vec<u64> = json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["id"].as_u64().unwrap())
        .collect();
    let kind = |&(id, token): &(u64, &str)| match token {
        "<unk>" => kind::UNKNOWN,
        _ if added.contains(&id) => 3, // of the control tokens
        _ if token.starts_with("<0x") => kind::BYTE,
        _ => kind::NORMAL,
    };
    let kinds = tokens
        .iter()
        .map(|token| (kind(token) as i32).to_le_bytes().into())
        .collect();
    (tokens.into_iter().map(|(_, token)| text(token)).collect(), kinds)
}

/// As sentencepiece has it: the earlier a piece is merged the higher its score.
fn sentencepiece_file(json: &Value) -> Writer {
    let (tokens, kinds) = tokens(json);
    let mut rank = HashMap::new();
    for (n, merge) in json["model"]["merges"].as_array().unwrap().iter().enumerate() {
        let part = |i: usize| merge[i].as_str().unwrap();
        rank.entry(text(&(part(0).to_owned() + part(1)))).or_insert(-(n as f32));
    }
    let scores: Vec<Vec<u8>> = tokens
        .iter()
        .map(|token| rank.get(token).copied().unwrap_or(-1e9).to_le_bytes().into())
        .collect();
    Writer::default()
        .text("tokenizer.ggml.model", "llama")
        .array("tokenizer.ggml.tokens", 8, &tokens)
        .array("tokenizer.ggml.token_type", 5, &kinds)
        .array("tokenizer.ggml.scores", 6, &scores)
}

#[test]
fn pieces_with_scores_cut_a_text_as_the_merges_they_came_from() {
    let json: Value = serde_json::from_slice(&std::fs::read(storyteller().join("tokenizer.json")).unwrap()).unwrap();
    let ours = load(&sentencepiece_file(&json)).unwrap();
    let theirs = Tokenizer::load(&storyteller()).unwrap();
    assert_eq!(ours.vocabulary(), theirs.vocabulary());
    assert_eq!(ours.special(), theirs.special());
    let stories = std::fs::read_to_string(storyteller().join("stories.txt")).unwrap();
    let odd = "</s> is text, as is <0x0A>; Ünïcode 日本語 \u{1f600}\t\r\n  and   spaces ";
    for text in stories.split("<|end|>").take(400).chain([odd, "", " ", "\n"]) {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text:?}");
    }
    // What a store keeps can be read without the model.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), ours.json().unwrap()).unwrap();
    let kept = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(kept.encode(odd).unwrap(), ours.encode(odd).unwrap());
}

fn byte_level_file(json: &Value, pre: &str) -> Writer {
    let (tokens, kinds) = tokens(json);
    let merges: Vec<_> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| text(m.as_str().unwrap()))
        .collect();
    Writer::default()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .array("tokenizer.ggml.tokens", 8, &tokens)
        .array("tokenizer.ggml.token_type", 5, &kinds)
        .array("tokenizer.ggml.merges", 8, &merges)
}

#[test]
fn bytes_of_a_byte_level_text_come_back_whatever_its_words() {
    let odd = "It's 1234 o'clock:\r\n\n  日本語 a a";
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2", "dbrx"] {
        let tokenizer = load(&byte_level_file(&byte_level_json(), pre)).unwrap();
        let ids = tokenizer.encode(odd).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), odd, "{pre}");
    }
}

#[test]
fn a_tokenizer_of_another_kind_says_where_to_put_its_json() {
    let good = || byte_level_file(&byte_level_json(), "gpt-2");
    for (writer, parts) in [
        (Writer::default(), ["tokenizer.ggml.tokens is missing", "no tokenizer"]),
        (
            byte_level_file(&byte_level_json(), "poro"),
            ["tokenizer.ggml.pre is \"poro\"", "NAME.tokenizer.json"],
        ),
        (
            Writer::default()
                .array("tokenizer.ggml.tokens", 8, &[text("a")])
                .text("tokenizer.ggml.model", "bert"),
            ["model \"bert\"", "NAME.tokenizer.json"],
        ),
        (
            Writer::default().array("tokenizer.ggml.tokens", 8, &[text("a")]).array(
                "tokenizer.ggml.token_type",
                5,
                &[],
            ),
            ["token_type has 0 entries", "tokens 1"],
        ),
    ] {
        let error = load(&writer).err().expect(parts[0]).to_string();
        assert!(
            parts.iter().all(|part| error.contains(part)),
            "{error} should say {parts:?}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, Writer::default().bytes()).unwrap();
    assert!(Tokenizer::load(&path).is_err());
    std::fs::copy(
        storyteller().join("tokenizer.json"),
        dir.path().join("x.tokenizer.json"),
    )
    .unwrap();
    assert_eq!(Tokenizer::load(&path).unwrap().vocab_len(), 3072);
    assert!(load(&good()).is_ok());
}
