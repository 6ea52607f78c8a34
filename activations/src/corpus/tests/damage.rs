//! Readers under arbitrary and damaged bytes: an error or other text, never a panic and never without end.

use arrow_array::ArrayRef;
use parquet::basic::Compression;
use proptest::sample::Index;

use super::formats::{DOCUMENTS, csv, gzip, jsonl, parquet, read, strings, zstd};
use super::*;

/// A well-made file of each kind.
fn specimens() -> Vec<(&'static str, Vec<u8>)> {
    let texts: Vec<&str> = DOCUMENTS.into_iter().chain(["a\tb"]).collect();
    let array = serde_json::to_vec_pretty(&texts.iter().map(|t| serde_json::json!({"text": t})).collect::<Vec<_>>());
    let column = || -> Vec<(&str, ArrayRef)> { vec![("text", strings(&texts))] };
    vec![
        ("a.txt", texts.join("\n").into_bytes()),
        ("a.jsonl", jsonl(&texts)),
        ("a.json", array.unwrap()),
        ("a.csv", csv(&texts)),
        ("a.jsonl.gz", gzip(&jsonl(&texts))),
        ("a.csv.zst", zstd(&csv(&texts))),
        ("plain.parquet", parquet(column(), Compression::UNCOMPRESSED)),
        ("snappy.parquet", parquet(column(), Compression::SNAPPY)),
        ("zstd.parquet", parquet(column(), Compression::ZSTD(Default::default()))),
        ("gzip.parquet", parquet(column(), Compression::GZIP(Default::default()))),
    ]
}

/// Reads, with and without bad records, and only must come back.
fn survives(name: &str, bytes: &[u8]) {
    let dir = dir_with(&[(name, bytes)]);
    for skip_bad in [false, true] {
        let reading = Reading {
            skip_bad,
            invalid_utf8: if skip_bad {
                InvalidUtf8::Replace
            } else {
                InvalidUtf8::Refuse
            },
            ..Reading::default()
        };
        if let Err(error) = read(&[dir.path().join(name)], &reading) {
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn damage_is_an_error_or_other_text(
        specimen in any::<Index>(),
        edits in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..5),
        cut in proptest::option::weighted(0.3, any::<Index>()),
    ) {
        let all = specimens();
        let (name, mut bytes) = all[specimen.index(all.len())].clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives(name, &bytes);
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_some_text(
        name in proptest::sample::select(vec!["a.txt", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.parquet"]),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        survives(name, &bytes);
    }

    #[test]
    fn text_that_looks_like_a_format_is_read_or_refused(
        name in proptest::sample::select(vec!["a.jsonl", "a.json", "a.csv"]),
        text in "([\\[\\]{},:\"\\\\\n 1a]|\"text\"|\"text\": \"a\"|\\{\"text\": \"b\"\\}|\u{e9}){0,24}",
    ) {
        survives(name, text.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_a_writer_wrote_comes_back(texts in proptest::collection::vec(".{0,12}|[a\n\r\",;]{0,9}", 1..8)) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let expected: Vec<&str> = texts.iter().copied().filter(|text| !text.trim().is_empty()).collect();
        let objects: Vec<_> = texts.iter().map(|t| serde_json::json!({"n": [t, {"text": 1}], "text": t})).collect();
        let column: Vec<(&str, ArrayRef)> = vec![("text", strings(&texts))];
        for (name, bytes) in [
            ("a.jsonl", jsonl(&texts)),
            ("a.json", serde_json::to_vec(&objects).unwrap()),
            ("b.json", serde_json::to_vec_pretty(&objects).unwrap()),
            ("a.csv", csv(&texts)),
            ("a.parquet", parquet(column, Compression::SNAPPY)),
        ] {
            let dir = dir_with(&[(name, &bytes)]);
            prop_assert_eq!(&read(&[dir.path().join(name)], &Reading::default()).unwrap(), &expected, "{}", name);
        }
    }
}
