//! Every format gives the documents that were put into it, however it is compressed.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, DictionaryArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::*;
use crate::corpus::pieces::Pieces;

/// Documents that a careless reader gets wrong.
pub(super) const DOCUMENTS: [&str; 6] = [
    "once upon a time",
    "a \"quoted\", comma'd\nand broken line\r\n",
    "naïve 日本 \u{1F980} \\u0041 \\",
    " ",
    "\u{feff}{\"text\": [1]}",
    "the end",
];

/// The texts of the documents that count.
pub(super) fn read(paths: &[PathBuf], reading: &Reading) -> Result<Vec<String>> {
    let mut pieces = Pieces::new(&files::find(paths, reading.format)?, reading);
    let mut texts: Vec<String> = Vec::new();
    for piece in pieces.by_ref() {
        let piece = piece?;
        if piece.starts {
            texts.push(String::new());
        }
        texts.last_mut().unwrap().push_str(&piece.text);
        assert_eq!(piece.document as usize, texts.len() - 1);
    }
    Ok(texts)
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

pub(super) fn jsonl(texts: &[&str]) -> Vec<u8> {
    let line = |(id, text): (usize, &&str)| format!("{}\n", json!({"id": id, "text": text, "meta": {"text": "no"}}));
    texts.iter().enumerate().map(line).collect::<String>().into_bytes()
}

pub(super) fn csv(texts: &[&str]) -> Vec<u8> {
    let mut out = ::csv::Writer::from_writer(Vec::new());
    out.write_record(["id", "text"]).unwrap();
    for (id, text) in texts.iter().enumerate() {
        out.write_record([&id.to_string(), *text]).unwrap();
    }
    out.into_inner().unwrap()
}

/// A Parquet file of `columns`, in row groups of two rows.
pub(super) fn parquet(columns: Vec<(&str, ArrayRef)>, compression: Compression) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(2))
        .build();
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    out
}

pub(super) fn strings(texts: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

fn says(error: Error, parts: &[&str]) {
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} should say {part:?}");
    }
}

fn skipping() -> Reading {
    Reading {
        skip_bad: true,
        ..Reading::default()
    }
}

#[test]
fn every_format_and_compression_gives_the_documents_put_in() {
    let expected: Vec<&str> = DOCUMENTS.into_iter().filter(|text| !text.trim().is_empty()).collect();
    let array = serde_json::to_vec_pretty(&DOCUMENTS.map(|text| json!({"n": [1, {"a": "]"}], "text": text}))).unwrap();
    let sequence: String = DOCUMENTS.map(|text| format!("{:#}", json!({"text": text}))).concat();
    let mut bom = "\u{feff}".as_bytes().to_vec();
    bom.extend(jsonl(&DOCUMENTS));
    for (name, bytes) in [
        ("a.jsonl", jsonl(&DOCUMENTS)),
        ("b.jsonl", bom),
        ("lines.json", jsonl(&DOCUMENTS)),
        ("array.json", array),
        ("sequence.json", sequence.into_bytes()),
        ("a.csv", csv(&DOCUMENTS)),
    ] {
        let (gz, zst) = (format!("{name}.gz"), format!("{name}.zst"));
        let two_members = [gzip(&bytes[..9]), gzip(&bytes[9..])].concat();
        let two_frames = [zstd(&bytes[..9]), zstd(&bytes[9..])].concat();
        let dir = dir_with(&[(name, &bytes), (&gz, &two_members), (&zst, &two_frames)]);
        for name in [name, &gz, &zst] {
            let read = read(&[dir.path().join(name)], &Reading::default()).unwrap();
            assert_eq!(read, expected, "{name}");
        }
    }
    // What a name does not say, its bytes do.
    let dir = dir_with(&[("zipped.txt", &gzip(b"once\n")), ("whole.txt.zst", &zstd(b"upon"))]);
    assert_eq!(
        read(
            &[dir.path().join("zipped.txt"), dir.path().join("whole.txt.zst")],
            &Reading::default()
        )
        .unwrap(),
        ["once\n", "upon"]
    );
}

#[test]
fn parquet_columns_of_every_kind_of_string_are_read() {
    let expected: Vec<&str> = DOCUMENTS.into_iter().filter(|text| !text.trim().is_empty()).collect();
    let dictionary: DictionaryArray<arrow_array::types::Int32Type> = DOCUMENTS.into_iter().collect();
    let nulls: StringArray = DOCUMENTS.into_iter().flat_map(|text| [None, Some(text)]).collect();
    let bytes = BinaryArray::from_iter_values(DOCUMENTS);
    let arrays: [ArrayRef; 4] = [
        strings(&DOCUMENTS),
        Arc::new(dictionary),
        Arc::new(nulls),
        Arc::new(bytes),
    ];
    let zstd = Compression::ZSTD(Default::default());
    let gzip = Compression::GZIP(Default::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, gzip] {
        for array in &arrays {
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..array.len() as i64));
            let nested = StructArray::from(vec![(
                Arc::new(arrow_schema::Field::new("text", array.data_type().clone(), true)),
                array.clone(),
            )]);
            let columns = vec![
                ("id", ids),
                ("text", array.clone()),
                ("meta", Arc::new(nested) as ArrayRef),
            ];
            let dir = dir_with(&[("a.parquet", &parquet(columns, compression))]);
            for field in ["text", "meta.text"] {
                let reading = Reading {
                    field: field.into(),
                    ..Reading::default()
                };
                assert_eq!(
                    read(&[dir.path().to_owned()], &reading).unwrap(),
                    expected,
                    "{compression}"
                );
            }
        }
    }
}

#[test]
fn a_record_of_many_megabytes_is_read_and_cut() {
    let text = "abcde ab\n".repeat(600_000);
    let dir = dir_with(&[("a.jsonl.gz", &gzip(&jsonl(&["ab", &text, "cd"])))]);
    let read = read(&[dir.path().to_owned()], &Reading::default()).unwrap();
    assert_eq!(read.len(), 3);
    assert!(read[1] == text);
}

#[test]
fn a_wrong_field_is_refused_with_those_there_are() {
    let lists = ListArray::from_iter_primitive::<arrow_array::types::Int32Type, _, _>([Some([Some(1)])]);
    let id: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let columns = vec![
        ("id", id),
        ("body", strings(&["ab"])),
        ("list", Arc::new(lists) as ArrayRef),
    ];
    let dir = dir_with(&[
        ("a.jsonl", b"{\"id\": 7, \"body\": \"ab\"}"),
        ("a.json", b"[{\"id\": 7, \"body\": \"ab\"}]"),
        ("a.csv", b"id,body\n7,ab\n"),
        ("a.parquet", &parquet(columns, Compression::SNAPPY)),
    ]);
    let with = |name: &str, field: &str| {
        let reading = Reading {
            field: field.into(),
            ..Reading::default()
        };
        read(&[dir.path().join(name)], &reading)
    };
    for name in ["a.jsonl", "a.json", "a.csv", "a.parquet"] {
        says(
            with(name, "text").unwrap_err(),
            &[name, "\"text\"", "\"id\", \"body\"", "--field"],
        );
        assert_eq!(with(name, "body").unwrap(), ["ab"]);
    }
    for name in ["a.jsonl", "a.json"] {
        says(with(name, "id").unwrap_err(), &[name, "a number", "expected a string"]);
    }
    says(with("a.parquet", "id").unwrap_err(), &["INT64", "strings are \"body\""]);
    says(with("a.parquet", "list.list.item").unwrap_err(), &["lists", "\"body\""]);
}

#[test]
fn bad_records_are_named_by_line_and_row_or_left_out_and_counted() {
    let jsonl = "{\"text\": \"ab\"}\n\n{\"text\": \"c\n[1]\n{\"text\": 5}\n{\"text\": null}\n{\"text\": \"\\ud800\"}\n\
                 {\"text\": \"d\"} {}\n{\"text\": \"cd\"}";
    let json = "[{\"text\": \"ab\"},\n {\"text\": {}}, {x}, 7, {\"text\": \"\"},\n{\"text\": \"cd\"}]";
    let csv = "id,text\n1,ab\n2\n3,\"c,\nd\",e\n4,\n5,cd\n";
    let dir = dir_with(&[
        ("a.jsonl", jsonl.as_bytes()),
        ("a.json", json.as_bytes()),
        ("a.csv", csv.as_bytes()),
    ]);
    for (name, words, bad) in [
        ("a.jsonl", ["line 3 is not JSON", "--skip-bad"], 5),
        ("a.json", ["value 1 in line 2 has an object", "--skip-bad"], 3),
        ("a.csv", ["row 1 in line 3 has 1 columns, expected 2", "--skip-bad"], 2),
    ] {
        let path = [dir.path().join(name)];
        says(
            read(&path, &Reading::default()).unwrap_err(),
            &[name, words[0], words[1]],
        );
        assert_eq!(read(&path, &skipping()).unwrap(), ["ab", "cd"], "{name}");
        let corpus = Corpus::open(
            &path,
            &load(&sentencepiece()).unwrap(),
            CorpusOptions {
                reading: skipping(),
                ..options(64)
            },
        );
        let mut contexts = corpus.unwrap().contexts();
        assert!(contexts.by_ref().all(|context| context.is_ok()));
        assert_eq!(contexts.bad_records(), bad, "{name}");
    }
}

#[test]
fn a_text_of_nothing_but_bad_records_says_what_is_wrong_with_the_first() {
    let dir = dir_with(&[("a.jsonl", b"\n{\"body\": \"ab\"}\n{\"body\": \"cd\"}\n")]);
    let corpus = corpus(
        &dir,
        CorpusOptions {
            reading: skipping(),
            ..options(8)
        },
    );
    let error = corpus.contexts().next().unwrap().unwrap_err();
    says(
        error,
        &["no text in", "a.jsonl: line 2 has no field \"text\"", "\"body\""],
    );
}

#[test]
fn invalid_utf8_in_records_is_refused_replaced_or_left_out() {
    let bytes = BinaryArray::from_vec(vec![b"ab", b"c\xff\xfed", b"e"]);
    let parquet = parquet(vec![("text", Arc::new(bytes) as ArrayRef)], Compression::SNAPPY);
    let dir = dir_with(&[
        (
            "a.jsonl",
            b"{\"text\": \"ab\"}\n{\"text\": \"c\xff\xfed\"}\n{\"text\": \"e\"}",
        ),
        ("a.csv", b"text\nab\nc\xff\xfed\ne"),
        ("a.parquet", &parquet),
    ]);
    for (name, place) in [
        ("a.jsonl", "line 2"),
        ("a.csv", "row 1 in line 3"),
        ("a.parquet", "row 1"),
    ] {
        let path = [dir.path().join(name)];
        says(
            read(&path, &Reading::default()).unwrap_err(),
            &[name, place, "not UTF-8", "0xFF"],
        );
        assert_eq!(read(&path, &skipping()).unwrap(), ["ab", "e"]);
        let replacing = Reading {
            invalid_utf8: InvalidUtf8::Replace,
            ..Reading::default()
        };
        assert_eq!(read(&path, &replacing).unwrap(), ["ab", "c\u{fffd}\u{fffd}d", "e"]);
    }
}

#[test]
fn truncated_and_mislabelled_files_are_refused() {
    let long: Vec<String> = (0..3000).map(|n| format!("document {n} {}", n * n)).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let lines = jsonl(&long);
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let table = parquet(vec![("text", strings(&long))], Compression::SNAPPY);
    for (name, bytes, words) in [
        ("a.jsonl.gz", half(gzip(&lines)), "truncated: its gzip data"),
        ("a.jsonl.zst", half(zstd(&lines)), "truncated: its zstd data"),
        ("a.parquet", half(table.clone()), "no Parquet footer"),
        ("a.parquet", Vec::new(), "no text in"),
        ("a.jsonl.gz", lines.clone(), "no gzip data"),
        ("a.txt", table.clone(), "is a Parquet file"),
        ("a.parquet.gz", gzip(&table), "Parquet within gzip"),
        ("a.parquet", lines.clone(), "no Parquet"),
        (
            "a.json",
            b"[{\"text\": \"ab\"}, {\"text\": ".to_vec(),
            "value 1, which begins in line 1, has no end",
        ),
        (
            "a.json",
            b"[{\"text\": \"ab\"}\n{}]".to_vec(),
            "line 2, after 1 values: expected a comma",
        ),
        ("a.json", b"[{\"text\": \"ab\"}] 7".to_vec(), "nothing behind the array"),
        ("a.json", b"[{\"text\": \"ab\"},".to_vec(), "the file ends"),
    ] {
        let dir = dir_with(&[(name, &bytes)]);
        let path = [dir.path().join(name)];
        let opened = Corpus::open(&path, &load(&sentencepiece()).unwrap(), options(64));
        let error = opened
            .and_then(|corpus| corpus.contexts().collect::<Result<Vec<_>>>())
            .unwrap_err();
        says(error, &[name, words]);
    }
}

#[test]
fn directories_give_one_kind_and_patterns_what_they_match() {
    let dir = dir_with(&[
        ("b.csv", &csv(&["from csv"])),
        ("sub/a.jsonl", &jsonl(&["from jsonl"])),
        ("sub/c.jsonl.gz", &gzip(&jsonl(&["zipped"]))),
        ("sub/.hidden.jsonl", b"broken"),
        ("notes.md", b"notes"),
    ]);
    let path = |name: &str| dir.path().join(name);
    says(
        read(&[path("")], &Reading::default()).unwrap_err(),
        &["2 .jsonl, 1 .csv", "--format"],
    );
    assert_eq!(
        read(&[path("sub")], &Reading::default()).unwrap(),
        ["from jsonl", "zipped"]
    );
    let csv = Reading {
        format: Some(Format::Csv),
        ..Reading::default()
    };
    assert_eq!(read(&[path("")], &csv).unwrap(), ["from csv"]);
    assert_eq!(
        read(&[path("**/*.jsonl*"), path("*.csv")], &Reading::default()).unwrap(),
        ["from jsonl", "zipped", "from csv"]
    );
    says(
        read(&[path("*.txt")], &Reading::default()).unwrap_err(),
        &["*.txt", "no file matches"],
    );
    says(
        read(&[path("a[.txt")], &Reading::default()).unwrap_err(),
        &["a[.txt", "no pattern"],
    );
    let twice = ["-".into(), "-".into()];
    says(
        read(&twice, &Reading::default()).unwrap_err(),
        &["standard input", "once"],
    );
}

#[test]
fn only_settings_that_matter_are_recorded() {
    let dir = dir_with(&[
        ("a.txt", b"ab"),
        ("a.csv", b"text\nab\n"),
        ("b.jsonl", b"{\"text\": \"ab\"}"),
    ]);
    let settings = |names: &[&str], reading: Reading| {
        let paths: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
        let corpus = Corpus::open(
            &paths,
            &load(&sentencepiece()).unwrap(),
            CorpusOptions { reading, ..options(8) },
        );
        let settings = corpus.unwrap().settings();
        settings
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(settings(&["a.txt"], skipping()), "invalid_utf8=refuse");
    assert_eq!(
        settings(&["b.jsonl", "a.csv"], skipping()),
        "field=text format=jsonl csv invalid_utf8=refuse skip_bad=true"
    );
}
