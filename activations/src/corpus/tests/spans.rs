//! Every token is found again where its span says, in a text read by other means.

use std::collections::BTreeMap;

use serde_json::Value;

use super::formats::{csv, jsonl};
use super::*;

/// The text of each record of a directory, by file and record.
type Records = BTreeMap<(String, u64), Vec<char>>;

fn insert(records: &mut Records, file: &str, record: usize, text: &str) {
    records.insert((file.into(), record as u64), text.chars().collect());
}

/// Checks every span of `contexts`; special tokens are those below `special` or above.
fn check(contexts: &[Context], records: &Records, tokenizer: &Tokenizer, special: &[u32]) {
    assert!(!contexts.is_empty());
    for context in contexts {
        let spans = &context.spans;
        assert!(spans.fit(context.tokens.len()));
        assert_eq!(spans.documents[0].document, context.document);
        for (position, &id) in context.tokens.iter().enumerate() {
            let source = spans
                .documents
                .iter()
                .rfind(|d| d.position as usize <= position)
                .unwrap();
            let text = &records[&(source.file.to_string(), source.record)];
            let (start, end) = (spans.starts[position] as usize, spans.ends[position] as usize);
            let there: String = text[start..end].iter().collect();
            if special.contains(&id) {
                assert_eq!(start, end, "a special token has no text");
                continue;
            }
            let bytes = tokenizer.token_bytes(id).unwrap();
            match std::str::from_utf8(&bytes) {
                // The space that sentencepiece puts before a text is not in it.
                Ok(token) => assert!(
                    there == token || format!(" {there}") == token,
                    "{there:?} is not {token:?}"
                ),
                Err(_) => {
                    let around = there.as_bytes();
                    assert!(
                        around.windows(bytes.len()).any(|w| w == bytes),
                        "{bytes:?} in {there:?}"
                    );
                    assert!(there.chars().count() <= bytes.len());
                }
            }
        }
    }
}

#[test]
fn tokens_of_every_format_are_found_again_in_the_text() {
    let texts = ["ab cde", "", "日本 naïve\r\n\r\nab \u{1F980}", "  ab", "e\n"];
    let stories = "\u{feff}ab é\ncd\r\n<|end|>\n \n<|end|>\r\nab\n\n <|end|>\ncde ab\n";
    let long = format!("{}{}", "ab é cde\n".repeat(9000), "é".repeat(70_000));
    let dir = dir_with(&[
        ("text/a.jsonl", &jsonl(&texts)),
        ("text/sub/b.csv", &csv(&texts)),
        ("text/stories.txt", stories.as_bytes()),
        ("text/long.txt", long.as_bytes()),
    ]);
    let mut records = Records::new();
    for (n, line) in String::from_utf8(jsonl(&texts)).unwrap().lines().enumerate() {
        let value: Value = serde_json::from_str(line).unwrap();
        insert(&mut records, "a.jsonl", n, value["text"].as_str().unwrap());
    }
    texts
        .iter()
        .enumerate()
        .for_each(|(n, text)| insert(&mut records, "sub/b.csv", n, text));
    insert(&mut records, "stories.txt", 0, stories.trim_start_matches('\u{feff}'));
    insert(&mut records, "long.txt", 0, &long);

    let paths = ["a.jsonl", "sub/b.csv", "stories.txt", "long.txt"].map(|name| dir.path().join("text").join(name));
    for (json, bos) in [(sentencepiece(), 1), (byte_level(), 257)] {
        let tokenizer = load(&json).unwrap();
        for layout in [Layout::Pack, Layout::Split, Layout::Truncate] {
            for seed in [None, Some(1)] {
                let options = CorpusOptions {
                    bos: Some(bos),
                    layout,
                    before: vec![bos],
                    after: vec![bos],
                    reading: Reading {
                        seed,
                        ..separated(64).reading
                    },
                    ..options(64)
                };
                let contexts = all(&Corpus::open(&paths, &tokenizer, options).unwrap());
                check(&contexts, &records, &tokenizer, &[bos]);
                let last = contexts
                    .iter()
                    .map(|c| c.spans.documents.last().unwrap().document)
                    .max();
                assert_eq!(
                    last,
                    Some(11),
                    "4 of the JSON, 4 of the CSV, 3 stories and the long one"
                );
            }
        }
    }
}

#[test]
fn spans_of_a_packed_document_follow_each_other() {
    let dir = dir_with(&[("a.txt", "ab é cde ".repeat(9000).as_bytes())]);
    let contexts = all(&corpus(&dir, options(50)));
    let spans: Vec<(u64, u64)> = contexts
        .iter()
        .flat_map(|c| c.tokens.iter().zip(c.spans.starts.iter().zip(&c.spans.ends)))
        .filter(|(id, _)| **id != BOS)
        .map(|(_, (&start, &end))| (start, end))
        .collect();
    assert_eq!(spans.first(), Some(&(0, 2)));
    assert_eq!(spans.last().unwrap().1, 9 * 9000);
    // The two bytes of é are two tokens of the same character.
    let follows = |pair: &[(u64, u64)]| pair[1].0 == pair[0].1 || pair[1] == pair[0];
    assert!(spans.windows(2).all(follows));
}

#[test]
fn names_of_files_are_those_below_their_common_folder() {
    let dir = dir_with(&[("x/a.txt", b"ab"), ("x/y/b.txt", b"ab"), ("z/a.txt", b"ab")]);
    let names = |paths: &[&str]| -> Vec<String> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| dir.path().join(path)).collect();
        let files = files::find(&paths, None).unwrap();
        files.iter().map(|file| file.name().to_string()).collect()
    };
    assert_eq!(names(&["x/y/b.txt"]), ["b.txt"]);
    assert_eq!(names(&["x"]), ["a.txt", "y/b.txt"]);
    assert_eq!(names(&["x/../z", "x/*.txt"]), ["z/a.txt", "x/a.txt"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_is_found_again(texts in proptest::collection::vec("([a-e ]|\\PC|[\n\r\t]){0,30}", 1..4), context in 4usize..20) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.contains('▁')).collect();
        prop_assume!(texts.iter().any(|text| !text.trim().is_empty()));
        let dir = dir_with(&[("a.jsonl", &jsonl(&texts))]);
        let mut records = Records::new();
        texts.iter().enumerate().for_each(|(n, text)| insert(&mut records, "a.jsonl", n, text));
        for (json, bos) in [(sentencepiece(), 1), (byte_level(), 257)] {
            let tokenizer = load(&json).unwrap();
            let options = CorpusOptions { bos: Some(bos), ..options(context) };
            let contexts = all(&Corpus::open(&[dir.path().to_owned()], &tokenizer, options).unwrap());
            check(&contexts, &records, &tokenizer, &[bos]);
        }
    }
}
