use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The sentencepiece bytes, `▁`, the letters a to e, two merges and a special token.
pub(crate) fn sentencepiece() -> Value {
    let mut vocabulary = serde_json::Map::new();
    let mut push = |token: String| {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
    };
    for token in ["<unk>", "<s>", "</s>"] {
        push(token.into());
    }
    (0..=255u8).for_each(|b| push(format!("<0x{b:02X}>")));
    for token in ["▁", "a", "b", "c", "d", "e", "ab", "▁ab"] {
        push(token.into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    json!({
        "version": "1.0", "truncation": {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": null, "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocabulary, "merges": ["a b", "▁ ab"]}
    })
}

/// GPT-2's alphabet with `Ġa` merged, a special token and an added token that is not special.
pub(crate) fn byte_level() -> Value {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect();
    alphabet.sort_unstable();
    let mut vocabulary = serde_json::Map::new();
    for token in alphabet.into_iter().map(String::from).chain(["Ġa".into()]) {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 257, "content": "<|endoftext|>", "special": true, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
            {"id": 258, "content": "   ", "special": false, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": ["Ġ a"]}
    })
}

pub(crate) fn load(json: &Value) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(dir.path())
}

pub(crate) fn bytes_of(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_bytes_of_the_tokens_are_the_text(text in "([a-e]|\\PC|[ \n\t\r\u{0}]|</s>){0,40}") {
        let sentencepiece = load(&sentencepiece()).unwrap();
        let ids = sentencepiece.encode(&text).unwrap();
        // Sentencepiece has one spelling for the space and for its own sign, and puts a space before.
        let expected = if text.is_empty() { String::new() } else { format!(" {}", text.replace('▁', " ")) };
        prop_assert_eq!(bytes_of(&sentencepiece, &ids), expected.as_bytes());
        let byte_level = load(&byte_level()).unwrap();
        let ids = byte_level.encode(&text).unwrap();
        prop_assert_eq!(bytes_of(&byte_level, &ids), text.as_bytes());
    }

    #[test]
    fn a_text_cut_after_a_line_break_has_the_same_bytes(head in "[a-e ]{1,20}", tail in "[a-e \n]{1,20}") {
        for json in [sentencepiece(), byte_level()] {
            let tokenizer = load(&json).unwrap();
            let whole = tokenizer.encode(&format!("{head}\n{tail}")).unwrap();
            let mut parts = tokenizer.encode(&format!("{head}\n")).unwrap();
            parts.extend(tokenizer.encode_continuation(&tail).unwrap());
            prop_assert_eq!(bytes_of(&tokenizer, &parts), bytes_of(&tokenizer, &whole));
        }
    }
}

#[test]
fn sentencepiece_spaces_and_bytes_are_decoded() {
    let tokenizer = load(&sentencepiece()).unwrap();
    assert_eq!(tokenizer.encode("ab\n").unwrap(), [266, 13]);
    assert_eq!(tokenizer.token_bytes(266).unwrap(), b" ab");
    assert_eq!(tokenizer.token_bytes(13).unwrap(), [10]);
    assert_eq!(tokenizer.token_bytes(1).unwrap(), b"<s>");
    assert_eq!(tokenizer.token_bytes(267), None);
    assert_eq!(
        tokenizer.encode_continuation("ab").unwrap(),
        [265],
        "no space within a text"
    );
    assert_eq!((tokenizer.vocab_len(), tokenizer.special()), (267, &[0, 1, 2][..]));
}

#[test]
fn byte_level_characters_are_decoded_and_added_tokens_are_text() {
    let tokenizer = load(&byte_level()).unwrap();
    let a = tokenizer.encode(" a").unwrap();
    assert_eq!(a, [256]);
    assert_eq!(tokenizer.token_bytes(256).unwrap(), b" a");
    assert_eq!(tokenizer.token_bytes(257).unwrap(), b"<|endoftext|>");
    assert_eq!(tokenizer.token_bytes(258).unwrap(), b"   ");
    let mut single: Vec<_> = (0..256).map(|id| tokenizer.token_bytes(id).unwrap()).collect();
    single.sort_unstable();
    assert_eq!(single, (0..=255u8).map(|b| vec![b]).collect::<Vec<_>>());
}

#[test]
fn text_that_looks_like_a_special_token_stays_text() {
    let tokenizer = load(&byte_level()).unwrap();
    assert!(!tokenizer.encode("a<|endoftext|>a").unwrap().contains(&257));
}

#[test]
fn truncation_that_the_file_asks_for_is_not_done() {
    let tokenizer = load(&sentencepiece()).unwrap();
    assert_eq!(tokenizer.encode("cdcdcdcd").unwrap().len(), 9);
}

#[test]
fn a_missing_or_broken_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("tokenizer.json") && error.contains("no such tokenizer"),
        "{error}"
    );
    for text in [
        "",
        "{",
        "{}",
        "[1]",
        r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json: not a tokenizer.json"), "{error}");
    }
    let mut hostile = byte_level();
    hostile["model"]["vocab"]["far away"] = json!(u32::MAX);
    let error = load(&hostile).err().unwrap().to_string();
    assert!(error.contains("4294967295"), "{error}");
}

#[test]
fn a_model_with_a_smaller_vocabulary_is_refused() {
    let tokenizer = load(&byte_level()).unwrap();
    tokenizer.check_model(259).unwrap();
    tokenizer.check_model(320).unwrap();
    let error = tokenizer.check_model(258).unwrap_err().to_string();
    assert!(
        error.contains("258") && error.contains("do not belong together"),
        "{error}"
    );
}

#[test]
fn a_word_pieces_vocabulary_begins_words_with_a_space() {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let vocabulary: serde_json::Map<_, _> = ["[UNK]", "[CLS]", "play", "##ing", "##", "."]
        .iter()
        .zip(0..)
        .map(|(token, id)| ((*token).to_owned(), json!(id)))
        .collect();
    let tokenizer = load(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(1, "[CLS]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary}
    }))
    .unwrap();
    let ids = tokenizer.encode("Playing. play").unwrap();
    assert_eq!(bytes_of(&tokenizer, &ids), b" playing . play");
    assert_eq!(tokenizer.token_bytes(1).unwrap(), b"[CLS]");
    assert_eq!(
        tokenizer.token_bytes(4).unwrap(),
        b" ##",
        "the mark alone is a token of its own"
    );
}

#[test]
fn bytes_of_a_character_have_the_span_of_the_character() {
    let tokenizer = load(&sentencepiece()).unwrap();
    let encoded = tokenizer.encode_with_spans("ab é\n", false).unwrap();
    // " ab", then the space, the two bytes of é and the line break by themselves.
    assert_eq!(encoded.ids, [266, 259, 3 + 0xC3, 3 + 0xA9, 3 + 0x0A]);
    assert_eq!(encoded.starts, [0, 2, 3, 3, 4]);
    assert_eq!(encoded.ends, [2, 3, 4, 4, 5]);
    let lone = tokenizer.encode_with_spans("c", false).unwrap();
    assert_eq!(
        (lone.starts, lone.ends),
        (vec![0, 0], vec![0, 1]),
        "the space before the text is not in it"
    );
    let continued = tokenizer.encode_with_spans("ab", true).unwrap();
    assert_eq!((continued.ids, continued.ends), (vec![265], vec![2]));
}

#[test]
fn a_text_that_is_normalised_is_accounted_for_by_the_tokenizer() {
    let mut json = byte_level();
    json["normalizer"] = json!({"type": "Lowercase"});
    let tokenizer = load(&json).unwrap();
    let encoded = tokenizer.encode_with_spans("É A", false).unwrap();
    assert_eq!(encoded.ids.len(), 3, "two bytes of é, and the space with its letter");
    assert_eq!(encoded.starts, [0, 0, 1]);
    assert_eq!(encoded.ends, [1, 1, 3]);
    let mut json = sentencepiece();
    json["model"]["byte_fallback"] = json!(false);
    let tokenizer = load(&json).unwrap();
    // What has no token is unknown, and the spans are still its.
    let encoded = tokenizer.encode_with_spans("ab?cd", false).unwrap();
    assert_eq!(encoded.ids, [266, 0, 262, 263]);
    assert_eq!((encoded.starts, encoded.ends), (vec![0, 2, 3, 4], vec![2, 3, 4, 5]));
}

#[test]
fn what_the_tokenizer_puts_around_a_text_is_known() {
    assert_eq!(load(&byte_level()).unwrap().around().unwrap(), (vec![], vec![]));
    let mut json = sentencepiece();
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                           "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}
    });
    assert_eq!(load(&json).unwrap().around().unwrap(), (vec![1], vec![2]));
}
