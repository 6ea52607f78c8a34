//! Texts and stores in an object store, against a real S3 server that is started here, and with everything wrong that a
//! network can do.
//!
//! The server is moto's, from PyPI (`tests/objects/requirements.txt`); `SAE_TEST_PYTHON` names the interpreter that has
//! it, else `.venv/bin/python`. `.ci/run` installs it and runs these tests; a bare `cargo test` says that they were
//! ignored.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "objects/faults.rs"]
mod faults;
#[path = "objects/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use server::Server;
use tempfile::TempDir;

const HOOK: &str = "blocks.2.hook_resid_post";

/// A directory to work in, a server, and the binary that is told of it.
struct Place {
    dir: TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: TempDir::new().unwrap(),
            server: Server::start(),
        };
        place.server.put("/lab", b"");
        fs::create_dir(place.path("tmp")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The words of `line`, with MODEL and TEXT replaced, at the endpoint of an S3 server.
    fn command_at(&self, endpoint: &str, line: &str) -> Command {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/storyteller");
        let text = model.join("stories.txt");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae"));
        command
            .current_dir(self.dir.path())
            .env("TMPDIR", self.path("tmp"))
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1")
            .args(line.split_whitespace().map(|word| match word {
                "MODEL" => model.to_str().unwrap(),
                "TEXT" => text.to_str().unwrap(),
                word => word,
            }));
        command
    }

    fn command(&self, line: &str) -> Command {
        self.command_at(&self.server.endpoint, line)
    }

    /// What a command that must succeed prints as JSON.
    fn json(&self, line: &str) -> Value {
        json_of(line, self.command(line).output().unwrap())
    }

    /// What a command that must fail says; never a panic.
    fn error(&self, line: &str) -> String {
        error_of(line, self.command(line).output().unwrap())
    }

    /// Every file directly in `name` with its bytes.
    fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        named.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
    }

    /// Nothing is left in the directory for temporary files.
    fn is_tidy(&self) -> bool {
        fs::read_dir(self.path("tmp")).unwrap().next().is_none()
    }
}

fn json_of(line: &str, out: Output) -> Value {
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "sae {line}\n{said}");
    serde_json::from_slice(&out.stdout).unwrap()
}

fn error_of(line: &str, out: Output) -> String {
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        matches!(out.status.code(), Some(1 | 2)),
        "sae {line}: {:?}\n{said}",
        out.status
    );
    assert!(!said.contains("panicked"), "{said}");
    said
}

const HARVEST: &str = "harvest --model MODEL --text TEXT --separator <|end|> --tokens 20k --json";

/// Ten files of eight contexts.
fn harvest(out: &str) -> String {
    format!("{HARVEST} --hook {HOOK} --contexts-per-file 8 --out {out}")
}

/// What trains in a moment.
const SMALL: &str = "--json --set sae.d_sae=64 --set sae.k=4 --set train.steps=20 --set train.batch=128";

/// Stories as records, in several files.
fn records(place: &Place) -> Vec<String> {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/storyteller/stories.txt");
    let stories = fs::read_to_string(text).unwrap();
    let stories: Vec<&str> = stories.split("<|end|>").take(60).collect();
    let mut names = Vec::new();
    for (n, part) in stories.chunks(20).enumerate() {
        let lines: Vec<String> = part
            .iter()
            .map(|s| serde_json::json!({ "text": s }).to_string())
            .collect();
        let name = format!("part-{n}.jsonl");
        fs::write(place.path(&name), lines.join("\n")).unwrap();
        assert!(Command::new("gzip").arg(place.path(&name)).status().unwrap().success());
        names.push(format!("{name}.gz"));
    }
    names
}

/// Writes a Parquet file with the columns `id` and `text`, in several row groups.
fn write_parquet(path: &Path, texts: &[String]) {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message m { required int64 id; required binary text (UTF8); }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.into(), Default::default()).unwrap();
    for (n, part) in texts.chunks(1000).enumerate() {
        let mut group = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..part.len()).map(|i| (n * 1000 + i) as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = part.iter().map(|text| text.as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// The values in a store's files, without the footers, which say where the text came from.
fn data(files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut tables: BTreeMap<_, _> = files
        .into_iter()
        .filter(|(name, _)| name.ends_with(".parquet"))
        .collect();
    for bytes in tables.values_mut() {
        let end = bytes.len() - 8;
        let footer = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap());
        bytes.truncate(end - footer as usize);
        assert!(bytes.len() > 1000);
    }
    tables
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_texts_are_those_of_the_same_files_on_the_disk() {
    let place = Place::new();
    let names = records(&place);
    fs::create_dir(place.path("crawl")).unwrap();
    for name in &names {
        let bytes = fs::read(place.path(name)).unwrap();
        place.server.put(&format!("/lab/crawl/{name}"), &bytes);
        fs::write(place.path("crawl").join(name), bytes).unwrap();
    }
    place
        .server
        .put("/lab/crawl/.hidden.jsonl", b"{\"text\": \"not this\"}");
    place.server.put("/lab/crawl/README.md", b"nor this");
    let line = |text: &str, out: &str| {
        format!("harvest --model MODEL --hook {HOOK} --context 64 --json --text {text} --out {out}")
    };
    place.json(&line("crawl", "disk"));
    let disk = data(place.files("disk"));
    for (text, out) in [
        ("s3://lab/crawl", "prefix"),
        ("s3://lab/crawl/", "slash"),
        ("s3://lab/**/part-*.jsonl.gz", "pattern"),
        (
            "s3://lab/crawl/part-0.jsonl.gz s3://lab/crawl/part-1.jsonl.gz s3://lab/crawl/part-2.jsonl.gz",
            "named",
        ),
    ] {
        place.json(&line(text, out));
        assert!(data(place.files(out)) == disk, "{text}");
    }
    let url = format!("file://{}", place.path("crawl").display());
    place.json(&line(&url, "url"));
    assert!(place.files("url") == place.files("disk"), "a file:// URL is its path");

    // Parquet of several blocks and row groups, of which one column is read, in the order of the file and shuffled.
    let texts: Vec<String> = (0..3000)
        .map(|i| format!("story {i} {}", "of a cat and a king ".repeat(200 + i % 50)))
        .collect();
    write_parquet(&place.path("big.parquet"), &texts);
    place
        .server
        .put("/lab/big.parquet", &fs::read(place.path("big.parquet")).unwrap());
    assert!(fs::metadata(place.path("big.parquet")).unwrap().len() > 9 << 20);
    for (n, seed) in ["", "--seed 3"].into_iter().enumerate() {
        let few = |text: &str, out: String| format!("{} --tokens 3k {seed}", line(text, &out));
        place.json(&few("big.parquet", format!("d{n}")));
        place.json(&few("s3://lab/big.parquet", format!("o{n}")));
        assert!(
            data(place.files(&format!("o{n}"))) == data(place.files(&format!("d{n}"))),
            "{seed:?}"
        );
    }

    // The stored digest is of the objects: one that was replaced is noticed.
    let killed = line("s3://lab/crawl", "later --contexts-per-file 2");
    let mut child = place
        .command(&killed)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !place.path("later/acts-00000.parquet").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("later/manifest.json").exists());
    place.server.put(
        "/lab/crawl/part-1.jsonl.gz",
        &fs::read(place.path("part-0.jsonl.gz")).unwrap(),
    );
    let said = place.error(&format!("{killed} --resume"));
    assert!(said.contains("other settings") && said.contains("corpus"), "{said}");
    assert!(place.is_tidy());
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_harvest_that_is_killed_resumes_to_the_bytes_of_a_directory() {
    killed_harvest("");
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_compressed_harvest_that_is_killed_resumes_to_the_bytes_of_a_directory() {
    killed_harvest(" --compress zstd");
}

fn killed_harvest(flags: &str) {
    let harvest = |out: &str| harvest(out) + flags;
    let place = Place::new();
    place.json(&harvest("disk"));
    let whole = place.files("disk");
    let mut kills = 0;
    // Each time after another shard has arrived.
    for shards in [0, 1, 2, 4, 6] {
        let resume = match place.server.get("/lab/acts/unfinished.json") {
            Some(_) => "--resume",
            None => "",
        };
        let line = format!("{} {resume}", harvest("s3://lab/acts"));
        let mut child = place
            .command(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = format!("/lab/acts/acts-{shards:05}.parquet");
        while place.server.get(&wanted).is_none() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(!out.status.success(), "it was to be killed");
        kills += 1;
        let names = place.server.list("lab", "acts/");
        assert!(
            names.contains(&"unfinished.json".to_owned()) && !names.contains(&"manifest.json".to_owned()),
            "{names:?}"
        );
        // Whatever is there is whole.
        for name in names.iter().filter(|name| name.ends_with(".parquet")) {
            assert!(
                place.server.get(&format!("/lab/acts/{name}")).unwrap() == whole[name],
                "{name}"
            );
        }
    }
    assert_eq!(kills, 5);
    let seen = place.command("inspect s3://lab/acts").output().unwrap();
    assert_eq!(seen.status.code(), Some(1));
    assert!(String::from_utf8(seen.stdout).unwrap().contains("--resume"));
    let said = place.error("train --acts s3://lab/acts --out run");
    assert!(said.contains("s3://lab/acts") && said.contains("--resume"), "{said}");
    let said = place.error(&harvest("s3://lab/acts"));
    assert!(said.contains("s3://lab/acts") && said.contains("--resume"), "{said}");
    let said = place.error(&format!("{} --dtype f32 --resume", harvest("s3://lab/acts")));
    assert!(said.contains("s3://lab/acts") && said.contains("dtype"), "{said}");

    // What was sent is not made again: it would not be what is put here meanwhile.
    let first = &whole["acts-00000.parquet"];
    place.server.put("/lab/acts/acts-00000.parquet", &vec![7; first.len()]);
    place.json(&format!("{} --resume", harvest("s3://lab/acts")));
    assert!(place.server.get("/lab/acts/acts-00000.parquet").unwrap() == vec![7; first.len()]);
    place.server.put("/lab/acts/acts-00000.parquet", first);
    let names = place.server.list("lab", "acts/");
    assert_eq!(names, whole.keys().cloned().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(
            place.server.get(&format!("/lab/acts/{name}")).unwrap() == *bytes,
            "{name}"
        );
    }
    let said = place.error(&harvest("s3://lab/acts"));
    assert!(said.contains("already holds a store"), "{said}");
    assert!(place.is_tidy(), "what a killed process left is removed by the next");
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_parts_make_one_store_that_is_inspected_trained_on_and_indexed() {
    parts("");
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_compressed_parts_make_one_store_that_is_inspected_trained_on_and_indexed() {
    parts(" --compress zstd");
}

fn parts(flags: &str) {
    let harvest = |out: &str| harvest(out) + flags;
    let place = Place::new();
    place.json(&harvest("disk"));
    let second = place.json(&format!("{} --shard 2/2", harvest("s3://lab/deep/acts")));
    assert!(
        second["waiting"][0].as_str().unwrap().contains("--shard 1/2"),
        "{second}"
    );
    let said = place.error("train --acts s3://lab/deep/acts --out run");
    assert!(said.contains("--shard 1/2"), "{said}");
    let first = place.json(&format!("{} --shard 1/2", harvest("s3://lab/deep/acts")));
    assert_eq!(first["waiting"].as_array().unwrap().len(), 0, "{first}");
    let whole = place.files("disk");
    for (name, bytes) in whole.iter().filter(|(name, _)| *name != "manifest.json") {
        assert!(
            place.server.get(&format!("/lab/deep/acts/{name}")).unwrap() == *bytes,
            "{name}"
        );
    }

    let (disk, bucket) = (
        place.json("inspect disk --json"),
        place.json("inspect s3://lab/deep/acts --json"),
    );
    for key in ["kind", "whole", "rows", "tokens", "contexts", "shards", "hooks", "size"] {
        assert_eq!(disk[key], bucket[key], "{key}");
    }
    place.json(&format!("train --acts disk --out a {SMALL}"));
    place.json(&format!("train --acts s3://lab/deep/acts --out b {SMALL}"));
    let dictionary = |run: &str| fs::read(place.path(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("a") == dictionary("b"));
    assert!(data(place.files("b/acts")) == data(whole));
    // The copy is a store, and it is not fetched twice: the rest of a run needs no network.
    fs::remove_file(place.path("b/summary.json")).unwrap();
    let resume = "train --out b --resume --json";
    json_of(resume, place.command_at("http://127.0.0.1:1", resume).output().unwrap());
    assert!(dictionary("a") == dictionary("b"));

    place.json("features --sae a --acts disk --out index-a --json");
    place.json("features --sae a --acts s3://lab/deep/acts --out index-b --json");
    assert!(place.files("index-a") == place.files("index-b"));
    assert!(!place.path("index-b.acts").exists() && place.is_tidy());

    // A copy that lost a file, and an object that was replaced.
    fs::remove_file(place.path("b/acts/acts-00003.parquet")).unwrap();
    place.server.put(
        "/lab/deep/acts/contexts-00001.parquet",
        b"PAR1, and as long as it should not be",
    );
    let said = place.error(&format!("train --acts s3://lab/deep/acts --out b --resume {SMALL}"));
    assert!(
        said.contains("contexts-00001.parquet") && said.contains("manifest"),
        "{said}"
    );
}

#[test]
#[ignore = "needs Python with moto[server]: .ci/run"]
fn object_store_files_larger_than_a_part_arrive_whole() {
    let place = Place::new();
    let line = |out: &str| format!("{HARVEST} --hook {HOOK} --dtype f32 --out {out}");
    place.json(&line("disk"));
    place.json(&line("s3://lab/wide"));
    let acts = fs::read(place.path("disk/acts-00000.parquet")).unwrap();
    assert!(acts.len() > 8 << 20, "{}", acts.len());
    assert!(place.server.get("/lab/wide/acts-00000.parquet").unwrap() == acts);
    assert!(place.is_tidy());
}
