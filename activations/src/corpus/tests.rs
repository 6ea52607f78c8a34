mod damage;
mod formats;
mod layouts;
mod spans;

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::tokenizer::tests::{byte_level, bytes_of, load, sentencepiece};

const BOS: u32 = 1;

fn options(context: usize) -> CorpusOptions {
    CorpusOptions {
        context,
        bos: Some(BOS),
        eos: Some(2),
        layout: Layout::Pack,
        before: Vec::new(),
        after: Vec::new(),
        reading: Reading::default(),
    }
}

fn separated(context: usize) -> CorpusOptions {
    CorpusOptions {
        reading: Reading {
            separator: Some("<|end|>".into()),
            ..Reading::default()
        },
        ..options(context)
    }
}

fn dir_with(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn corpus(dir: &TempDir, options: CorpusOptions) -> Corpus {
    Corpus::open(&[dir.path().to_owned()], &load(&sentencepiece()).unwrap(), options).unwrap()
}

fn all(corpus: &Corpus) -> Vec<Context> {
    corpus.contexts().collect::<Result<_>>().unwrap()
}

fn open_error(paths: &[PathBuf], options: CorpusOptions) -> String {
    let opened = Corpus::open(paths, &load(&sentencepiece()).unwrap(), options);
    opened.err().expect("must be refused").to_string()
}

/// The texts of the documents, put together again from the contexts.
fn documents(contexts: &[Context], tokenizer: &Tokenizer) -> Vec<String> {
    let mut documents: Vec<Vec<u32>> = Vec::new();
    for context in contexts {
        let (first, rest) = context.tokens.split_first().unwrap();
        assert_eq!(*first, BOS);
        if documents.len() as u64 == context.document {
            documents.push(Vec::new());
        }
        for &id in rest {
            match id {
                BOS => documents.push(Vec::new()),
                _ => documents.last_mut().unwrap().push(id),
            }
        }
    }
    let text = |ids: &Vec<u32>| String::from_utf8(bytes_of(tokenizer, ids)).unwrap();
    documents.iter().map(text).collect()
}

#[test]
fn documents_are_packed_with_bos_first_and_between() {
    let dir = dir_with(&[("b.txt", b"cd"), ("a.txt", b"ab\n"), ("sub/c.txt", b"e")]);
    let contexts = all(&corpus(&dir, options(4)));
    // "ab\n" is 266 13; "cd" is 259 262 263 with its leading space, "e" is 259 264.
    let tokens: Vec<_> = contexts.iter().map(|c| c.tokens.clone()).collect();
    assert_eq!(tokens, [vec![1, 266, 13, 1], vec![1, 259, 262, 263], vec![1, 259, 264]]);
    let numbers: Vec<_> = contexts.iter().map(|c| (c.index, c.document)).collect();
    assert_eq!(numbers, [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn a_model_without_bos_gets_eos_between_documents() {
    let dir = dir_with(&[("a.txt", b"ab"), ("b.txt", b"ab")]);
    let contexts = all(&corpus(
        &dir,
        CorpusOptions {
            bos: None,
            ..options(8)
        },
    ));
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0].tokens, [266, 2, 266]);
}

#[test]
fn separator_lines_part_documents_and_empty_ones_do_not_count() {
    let text = b"ab\ncd\r\n<|end|>\r\n \n<|end|>\nab\n\n <|end|> \ncd <|end|>\nd\n";
    let dir = dir_with(&[("a.txt", text)]);
    let corpus = corpus(&dir, separated(64));
    assert_eq!(
        documents(&all(&corpus), corpus.tokenizer()),
        [" ab\ncd", " ab\n", " cd <|end|>\nd"]
    );
}

#[test]
fn hidden_files_and_other_kinds_in_a_directory_are_left_out() {
    let dir = dir_with(&[("a.txt", b"ab"), (".b.txt", b"cd"), ("c.md", b"cd"), ("d.TXT", b"e")]);
    assert_eq!(corpus(&dir, options(8)).files().count(), 2);
    let named = [dir.path().join("c.md")];
    let corpus = Corpus::open(&named, &load(&sentencepiece()).unwrap(), options(8)).unwrap();
    assert!(corpus.files().eq(&named));
    assert_eq!((corpus.name(), corpus.bytes()), ("c.md", 2));
}

#[test]
fn a_stream_continues_at_any_context() {
    let dir = dir_with(&[("a.txt", "ab cd e\n".repeat(9000).as_bytes()), ("b.txt", b"cde")]);
    let corpus = corpus(&dir, options(50));
    let whole = all(&corpus);
    assert!(whole.len() > 1000);
    for first in [0, 1, 700, whole.len() as u64 - 1, whole.len() as u64] {
        let rest: Vec<_> = corpus.contexts_from(first).collect::<Result<_>>().unwrap();
        assert_eq!(rest, whole[first as usize..]);
    }
}

#[test]
fn threads_do_not_change_a_token() {
    let dir = dir_with(&[("a.txt", "abc de\n".repeat(20_000).as_bytes())]);
    let corpus = corpus(&dir, options(64));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| all(&corpus))
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn long_documents_keep_every_byte_and_gain_no_space() {
    let lines = "abcde ab\n".repeat(10_000);
    let endless = "abcde ab ".repeat(30_000);
    let solid = "abcdé".repeat(40_000);
    for text in [&lines, &endless, &solid, &"\n".repeat(90_000).replacen('\n', "a", 1)] {
        let dir = dir_with(&[("a.txt", text.as_bytes())]);
        let corpus = corpus(&dir, options(512));
        let found = documents(&all(&corpus), corpus.tokenizer());
        assert_eq!(found.len(), 1);
        assert!(found[0] == format!(" {text}"), "{:?}...", &text[..20]);
    }
}

#[test]
fn a_piece_of_a_line_is_no_separator() {
    let text = format!("{}<|end|>\nab", "x".repeat(pieces::LONGEST));
    let dir = dir_with(&[("a.txt", text.as_bytes())]);
    assert_eq!(all(&corpus(&dir, separated(256))).last().unwrap().document, 0);
}

#[test]
fn invalid_utf8_is_refused_by_file_and_byte_or_replaced_and_counted() {
    let text = b"ab\xffcd \xe2\x82x\xe2\x82";
    let dir = dir_with(&[("a.txt", text)]);
    let error = corpus(&dir, options(8))
        .contexts()
        .next()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(error.contains("a.txt") && error.contains("byte 2 (0xFF)"), "{error}");

    let corpus = corpus(
        &dir,
        CorpusOptions {
            reading: Reading {
                invalid_utf8: InvalidUtf8::Replace,
                ..Reading::default()
            },
            ..options(64)
        },
    );
    let mut contexts = corpus.contexts();
    let read: Vec<_> = contexts.by_ref().collect::<Result<_>>().unwrap();
    assert_eq!(contexts.replaced(), 3);
    assert_eq!(
        documents(&read, corpus.tokenizer()),
        [format!(" {}", String::from_utf8_lossy(text))]
    );
}

#[test]
fn contexts_before_an_error_are_given_out_and_nothing_after_it() {
    let mut text = "ab\n".repeat(400_000).into_bytes();
    let offset = text.len();
    text.extend(b"\xc0");
    let dir = dir_with(&[("a.txt", &text)]);
    let mut contexts = corpus(&dir, options(100)).contexts();
    assert!(contexts.next().unwrap().is_ok());
    let error = contexts.by_ref().find_map(Result::err).unwrap().to_string();
    assert!(error.contains(&format!("byte {offset}")), "{error}");
    assert!(contexts.next().is_none());
}

#[test]
fn texts_that_are_missing_or_empty_are_named() {
    let dir = dir_with(&[("empty.txt", b""), ("blank.txt", b" \n\t\n"), ("none/x.md", b"ab")]);
    let path = |name: &str| dir.path().join(name);
    let says = |error: String, parts: &[&str]| {
        for part in parts {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    };
    says(open_error(&[path("gone.txt")], options(8)), &["gone.txt"]);
    says(open_error(&[], options(8)), &["no text given"]);
    says(open_error(&[path("none")], options(8)), &["none", "no text file"]);
    says(
        open_error(&[path("empty.txt")], options(8)),
        &["no text in", "empty.txt"],
    );
    says(open_error(&[path("blank.txt")], options(1)), &["context of 1 tokens"]);
    let bad = CorpusOptions {
        reading: Reading {
            separator: Some(" ".into()),
            ..Reading::default()
        },
        ..options(8)
    };
    says(open_error(&[path("blank.txt")], bad), &["separator"]);
    let blank = Corpus::open(&[path("blank.txt")], &load(&sentencepiece()).unwrap(), options(8)).unwrap();
    says(
        blank.contexts().next().unwrap().unwrap_err().to_string(),
        &["no text in", "blank.txt"],
    );
}

#[test]
fn the_fingerprint_follows_the_contents_and_not_the_names() {
    let print = |files: &[(&str, &[u8])]| corpus(&dir_with(files), options(8)).fingerprint().unwrap();
    let large = |last: u8| {
        let mut text = vec![b'a'; 3 << 20];
        *text.last_mut().unwrap() = last;
        text
    };
    let a = print(&[("a.txt", b"ab"), ("b.txt", b"c")]);
    assert_eq!(a, print(&[("x.txt", b"ab"), ("y.txt", b"c")]));
    assert_ne!(a, print(&[("a.txt", b"a"), ("b.txt", b"bc")]));
    assert_ne!(print(&[("a.txt", &large(b'a'))]), print(&[("a.txt", &large(b'b'))]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn contexts_hold_exactly_the_documents(
        texts in proptest::collection::vec("[a-e \n]{1,30}", 1..5),
        context in 2usize..20,
    ) {
        let files: Vec<_> = (0..).map(|i| format!("{i}.txt")).zip(&texts).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
        let dir = dir_with(&files);
        let tokenizer = load(&byte_level()).unwrap();
        // 257 is a special token of that vocabulary.
        let corpus = Corpus::open(&[dir.path().to_owned()], &tokenizer, CorpusOptions { bos: Some(257), ..options(context) });
        let contexts: Vec<_> = corpus.unwrap().contexts().filter_map(Result::ok).collect();
        let expected: String = texts.iter().filter(|t| !t.trim().is_empty()).map(String::as_str).collect();
        let ids: Vec<u32> = contexts.iter().flat_map(|c| c.tokens.clone()).filter(|&id| id != 257).collect();
        prop_assert_eq!(bytes_of(&tokenizer, &ids), expected.as_bytes());
        let short = contexts.iter().filter(|c| c.tokens.len() != context).count();
        prop_assert!(short <= 1 && contexts.iter().all(|c| c.tokens[0] == 257 && c.tokens.len() <= context));
    }
}
