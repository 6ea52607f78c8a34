//! Documents of their own, and documents in another order.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::ArrayRef;
use parquet::basic::Compression;

use super::formats::{jsonl, parquet, strings};
use super::*;
use crate::corpus::order::Ordered;
use crate::corpus::pieces::Pieces;

fn alone(layout: Layout, context: usize) -> CorpusOptions {
    CorpusOptions {
        layout,
        before: vec![BOS],
        after: vec![2],
        ..options(context)
    }
}

fn shuffled(seed: u64) -> Reading {
    Reading {
        seed: Some(seed),
        ..Reading::default()
    }
}

#[test]
fn one_document_a_context_is_truncated_or_split_with_special_tokens_around_each() {
    let dir = dir_with(&[("a.jsonl", &jsonl(&["ab", "cdcd", " ", "e"]))]);
    let tokens = |layout| -> Vec<_> {
        let contexts = all(&corpus(&dir, alone(layout, 5)));
        let indices: Vec<_> = contexts.iter().map(|c| c.index).collect();
        assert_eq!(indices, (0..contexts.len() as u64).collect::<Vec<_>>());
        contexts.into_iter().map(|c| (c.document, c.tokens)).collect()
    };
    // " ab" is one token; " cdcd" is five, " e" two.
    let truncated = [
        (0, vec![1, 266, 2]),
        (1, vec![1, 259, 262, 263, 2]),
        (2, vec![1, 259, 264, 2]),
    ];
    assert_eq!(tokens(Layout::Truncate), truncated);
    let split = [
        truncated[0].clone(),
        truncated[1].clone(),
        (1, vec![1, 262, 263, 2]),
        truncated[2].clone(),
    ];
    assert_eq!(tokens(Layout::Split), split);
    let short = open_error(&[dir.path().to_owned()], alone(Layout::Split, 2));
    assert!(short.contains("context of 2 tokens is too short: 3"), "{short}");
}

#[test]
fn a_long_document_is_truncated_to_its_beginning_and_split_without_loss() {
    let text = "abcde ab\n".repeat(20_000);
    let dir = dir_with(&[("a.txt", text.as_bytes()), ("b.txt", b"ab")]);
    let truncated = all(&corpus(&dir, alone(Layout::Truncate, 40)));
    let lengths: Vec<_> = truncated.iter().map(|c| c.tokens.len()).collect();
    assert_eq!(lengths, [40, 3]);
    let corpus = corpus(&dir, alone(Layout::Split, 40));
    let split = all(&corpus);
    let ids: Vec<u32> = split
        .iter()
        .filter(|c| c.document == 0)
        .flat_map(|c| c.tokens.clone())
        .collect();
    let ids: Vec<u32> = ids.into_iter().filter(|&id| id > 2).collect();
    assert!(String::from_utf8(bytes_of(corpus.tokenizer(), &ids)).unwrap() == format!(" {text}"));
}

/// The documents in order, through a window of so many bytes.
fn order(paths: &[PathBuf], seed: u64, window: usize) -> Vec<String> {
    let reading = shuffled(seed);
    let pieces = Pieces::new(&files::find(paths, None).unwrap(), &reading);
    let mut texts: Vec<String> = Vec::new();
    for piece in Ordered::with_window(pieces, Some(seed), window) {
        let piece = piece.unwrap();
        if piece.starts {
            texts.push(String::new());
        }
        assert_eq!(piece.document as usize, texts.len() - 1);
        texts.last_mut().unwrap().push_str(&piece.text);
    }
    texts
}

#[test]
fn a_seed_shuffles_documents_and_loses_none() {
    let texts: Vec<String> = (0..500).map(|n| format!("document {n}")).collect();
    let long = "a long line of a long document\n".repeat(5000);
    let texts: Vec<&str> = texts.iter().map(String::as_str).chain([long.as_str()]).collect();
    let (first, second) = texts.split_at(200);
    let dir = dir_with(&[("a.jsonl", &jsonl(first)), ("b.jsonl", &jsonl(second))]);
    let path = [dir.path().to_owned()];
    for window in [1 << 20, 20_000, 500, 1] {
        let one = order(&path, 1, window);
        assert_eq!(one, order(&path, 1, window), "the same seed gives the same order");
        let expected: BTreeSet<&str> = texts.iter().copied().collect();
        let found: BTreeSet<&str> = one.iter().map(String::as_str).collect();
        assert!(one.len() == texts.len() && found == expected, "{window}");
        if window > 1 {
            assert_ne!(one, order(&path, 2, window));
        }
    }
    // All in the window: first and last quarter are mixed.
    let one = order(&path, 1, 1 << 20);
    let early = one[..125]
        .iter()
        .filter(|text| texts[..125].contains(&text.as_str()))
        .count();
    assert!(
        (10..60).contains(&early),
        "{early} of the first 125 documents come first"
    );
}

#[test]
fn row_groups_of_parquet_are_drawn_and_rows_keep_their_numbers() {
    let texts: Vec<String> = (0..60).map(|n| format!("row {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![("text", strings(&texts))];
    let dir = dir_with(&[("a.parquet", &parquet(columns, Compression::SNAPPY))]);
    // A window that holds one document: only the row groups, of two rows each, move.
    let found = order(&[dir.path().to_owned()], 3, 1);
    assert!(
        found
            .chunks(2)
            .all(|pair| texts.windows(2).any(|w| w[0] == pair[0] && w[1] == pair[1]))
    );
    assert_ne!(found, texts);
    let corpus = corpus(
        &dir,
        CorpusOptions {
            reading: shuffled(3),
            ..alone(Layout::Split, 40)
        },
    );
    for context in all(&corpus) {
        let source = &context.spans.documents[0];
        let ids: Vec<u32> = context.tokens.iter().copied().filter(|&id| id > 2).collect();
        let text = String::from_utf8(bytes_of(corpus.tokenizer(), &ids)).unwrap();
        assert_eq!(text, format!(" row {}", source.record));
        assert_eq!(
            (&source.file, source.document),
            (&Arc::from("a.parquet"), context.document)
        );
    }
}

#[test]
fn shuffled_contexts_continue_anywhere_whatever_the_threads() {
    let texts: Vec<String> = (0..900).map(|n| "ab cde ".repeat(n % 37)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let dir = dir_with(&[("a.jsonl", &jsonl(&texts[..400])), ("b.jsonl", &jsonl(&texts[400..]))]);
    for layout in [Layout::Pack, Layout::Truncate, Layout::Split] {
        let corpus = corpus(
            &dir,
            CorpusOptions {
                reading: shuffled(7),
                ..alone(layout, 24)
            },
        );
        let whole = all(&corpus);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for first in [0, 1, 333, whole.len() as u64] {
            let mut contexts = corpus.contexts_from(first);
            let passed = pool.install(|| contexts.pass()).unwrap();
            assert_eq!(
                passed,
                whole[..first as usize]
                    .iter()
                    .map(|c| c.tokens.len() as u64)
                    .sum::<u64>()
            );
            let rest: Vec<_> = pool.install(|| contexts.collect::<Result<_>>()).unwrap();
            assert_eq!(rest, whole[first as usize..]);
        }
    }
}
