//! The binary from a model and a text to an index: by hand, killed in the middle, and with everything wrong.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "pipeline/acts.rs"]
mod acts;
#[path = "pipeline/compressed.rs"]
mod compressed;
#[path = "pipeline/encode.rs"]
mod encode;
#[path = "pipeline/init.rs"]
mod init;
#[path = "pipeline/int8.rs"]
mod int8;
#[path = "pipeline/killed.rs"]
mod killed;
#[path = "pipeline/precision.rs"]
mod precision;
#[path = "pipeline/runs.rs"]
mod runs;
#[path = "pipeline/shapes.rs"]
mod shapes;
#[path = "pipeline/shards.rs"]
mod shards;
#[path = "pipeline/stream.rs"]
mod stream;
#[path = "pipeline/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const HOOK: &str = "blocks.2.hook_resid_post";

fn storyteller() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/storyteller")
}

/// A directory to work in, and the binary started there.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The words of `line`, with MODEL and TEXT replaced.
    fn command(&self, line: &str) -> Command {
        let model = storyteller();
        let text = model.join("stories.txt");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae"));
        command
            .current_dir(self.0.path())
            .args(line.split_whitespace().map(|word| match word {
                "MODEL" => model.to_str().unwrap(),
                "TEXT" => text.to_str().unwrap(),
                word => word,
            }));
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a command that must succeed prints as JSON.
    fn json(&self, line: &str) -> Value {
        let out = self.run(line);
        assert!(
            out.status.success(),
            "sae {line}\n{}",
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// What a command that must fail says; never a panic.
    fn error(&self, line: &str) -> String {
        let out = self.run(line);
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(
            matches!(out.status.code(), Some(1 | 2)),
            "sae {line}: {:?}\n{text}",
            out.status
        );
        assert!(!text.contains("panicked"), "{text}");
        text
    }

    /// Starts a command and kills it with SIGKILL after `after`, if it has not ended by then.
    fn kill(&self, line: &str, after: Duration) {
        let mut child = self
            .command(line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Every file below `name` with its bytes, but those in `except`.
    fn files(&self, name: &str, except: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(name);
        let mut found = BTreeMap::new();
        let mut open = vec![root.clone()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let short = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                if except.iter().any(|e| short.starts_with(e)) {
                    continue;
                }
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.insert(short, fs::read(path).unwrap());
                }
            }
        }
        found
    }
}

const HARVEST: &str = "harvest --model MODEL --text TEXT --separator <|end|> --tokens 20k --json";

/// A number between 0 and 1 that is another one each time.
fn chance() -> f64 {
    // The standard library's only source of it.
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

fn harvest(place: &Place, out: &str) -> Value {
    place.json(&format!("{HARVEST} --hook {HOOK} --out {out}"))
}

#[test]
fn every_stage_by_hand_ends_in_an_index_that_says_where_it_comes_from() {
    let place = Place::new();
    let store = harvest(&place, "acts");
    let rows = store["manifest"]["n_rows"].as_u64().unwrap();
    assert!(
        (19_000..20_480).contains(&rows),
        "{rows} rows of 20k tokens less the special ones"
    );

    let run = place.json("train --acts acts --out run --json --set sae.d_sae=256 --set sae.k=8 --set train.steps=60 --set train.batch=256");
    let fvu = run["held_out"]["fvu"].as_f64().unwrap();
    assert!(
        0.0 < fvu && fvu < 1.0,
        "FVU {fvu}: better than the mean, and no miracle"
    );
    assert_eq!(run["held_out"]["l0"], 8.0);

    let from_store = place.json("features --sae run --acts acts --model MODEL --out features --json");
    assert_eq!(
        (from_store["d_sae"].as_u64(), from_store["hook"].as_str()),
        (Some(256), Some(HOOK))
    );
    assert_eq!(from_store["tokens"].as_u64(), Some(rows));
    // Without a store: the same passes of the model, in f32.
    let from_text =
        place.json("features --sae run --model MODEL --text TEXT --separator <|end|> --tokens 20k --out direct --json");
    assert_eq!(from_text["tokens"], from_store["tokens"]);

    for (path, kind) in [("acts", "store"), ("run", "run"), ("features", "index")] {
        let seen = place.json(&format!("inspect {path} --json"));
        assert_eq!(
            (seen["kind"].as_str(), seen["whole"].as_bool()),
            (Some(kind), Some(true))
        );
        assert_eq!(seen["model"], "storyteller", "{seen}");
    }
    assert_eq!(place.json("inspect MODEL --json")["layers"], 5);
    for name in [
        "run.toml",
        "metrics.jsonl",
        "curves.svg",
        "dictionary.json",
        "dictionary.safetensors",
    ] {
        assert!(place.path("run").join(name).exists(), "{name}");
    }
}

#[test]
#[cfg(unix)]
fn a_harvest_that_is_killed_says_so_and_resumes_to_the_same_bytes() {
    let place = Place::new();
    harvest(&place, "whole");
    let line = format!("{HARVEST} --hook {HOOK} --out killed");
    place.kill(&line, Duration::from_millis(400));
    if !place.path("killed/manifest.json").exists() {
        if place.path("killed/unfinished.json").exists() {
            let out = place.run("inspect killed");
            assert_eq!(out.status.code(), Some(1));
            assert!(String::from_utf8(out.stdout).unwrap().contains("--resume"));
            assert!(place.error("train --acts killed --out run").contains("--resume"));
            place.json(&format!("{line} --resume"));
        } else {
            place.json(&line); // killed before it began
        }
    }
    assert_eq!(place.files("killed", &[]), place.files("whole", &[]));
}

#[test]
#[cfg(unix)]
fn a_training_that_is_killed_ten_times_at_random_ends_with_the_same_bytes() {
    let place = Place::new();
    harvest(&place, "acts");
    let settings = "--acts acts --json --set sae.d_sae=256 --set sae.k=8 --set train.steps=400 --set train.batch=256 --set train.checkpoint_every=20";
    let start = Instant::now();
    place.json(&format!("train --out whole {settings}"));
    let whole = start.elapsed();
    let line = |place: &Place| match place.path("killed/run.toml").exists() {
        true => format!("train --out killed {settings} --resume"),
        false => format!("train --out killed {settings}"),
    };
    for _ in 0..10 {
        place.kill(&line(&place), whole.mul_f64(0.5 * chance()));
    }
    place.json(&line(&place));
    // What depends on the clock is in these two; a checkpoint also says how long the run took.
    let clock = ["timings.jsonl", "summary.json", "checkpoint"];
    assert_eq!(place.files("killed", &clock), place.files("whole", &clock));
}

#[test]
#[cfg(unix)]
fn ctrl_c_checkpoints_and_exits_with_130() {
    let place = Place::new();
    harvest(&place, "acts");
    let line = "train --acts acts --out run --set sae.d_sae=256 --set train.steps=100000 --set train.batch=256";
    let child = place
        .command(line)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Steps are under way once there is a line in the log.
    for _ in 0..600 {
        if fs::metadata(place.path("run/timings.jsonl")).is_ok_and(|m| m.len() > 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    assert!(place.path("run/checkpoint/state.json").exists());
}

#[test]
fn a_run_that_diverges_names_a_row_of_the_store_with_its_context_and_position() {
    let place = Place::new();
    harvest(&place, "acts");
    let wild = "--set sae.d_sae=64 --set sae.k=4 --set train.batch=32 --set train.steps=20 --set train.warmup_steps=0 \
                --set train.lr=1e38";
    let said = place.error(&format!("train --acts acts --out run {wild}"));
    for part in [
        "diverged",
        "and 27 others of",
        "the longest of them is row ",
        "(context ",
        ", position ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let stream = "--model MODEL --text TEXT --hook blocks.3.hook_resid_post";
    let said = place.error(&format!("train {stream} --out stream {wild}"));
    assert!(said.contains("diverged") && said.contains("have no numbers"), "{said}");
}

#[test]
fn mistakes_are_answered_with_what_is_wrong_and_what_there_is() {
    let place = Place::new();
    harvest(&place, "acts");
    fs::write(place.path("empty.txt"), "").unwrap();
    fs::write(place.path("latin.txt"), b"caf\xe9 and tea").unwrap();
    fs::write(place.path("short.npy"), b"\x93NUMPY\x01\x00").unwrap();
    fs::create_dir(place.path("gpt9")).unwrap();
    fs::write(place.path("gpt9/config.json"), r#"{"model_type": "gpt9"}"#).unwrap();
    let cases: &[(&str, &[&str])] = &[
        (
            "harvest --model nowhere --text TEXT --hook hook_embed --out x",
            &["nowhere"],
        ),
        (
            "harvest --model gpt9 --text TEXT --hook hook_embed --out x",
            &["gpt9", "llama"],
        ),
        (
            "harvest --model MODEL --text TEXT --hook blocks.9.hook_resid_post --out x",
            &["blocks.9", "blocks.{0..4}"],
        ),
        (
            "harvest --model MODEL --text nowhere.txt --hook hook_embed --out x",
            &["nowhere.txt"],
        ),
        (
            "harvest --model MODEL --text empty.txt --hook hook_embed --out x",
            &["empty.txt"],
        ),
        (
            "harvest --model MODEL --text latin.txt --hook hook_embed --out x",
            &["latin.txt", "UTF-8"],
        ),
        (
            "harvest --model MODEL --text TEXT --hook hook_embed --out acts",
            &["acts", "already"],
        ),
        (
            "harvest --model MODEL --text TEXT --hook hook_embed --context 9999 --out x",
            &["9999", "256"],
        ),
        (
            "harvest --model MODEL --text TEXT --hook hook_embed --precision f8 --out x",
            &["f8", "bf16"],
        ),
        ("train --acts nowhere --out x", &["nowhere"]),
        (
            "train --model MODEL --text empty.txt --hook hook_embed --out x",
            &["empty.txt"],
        ),
        ("train --acts short.npy --out x", &["short.npy"]),
        ("train --acts acts --out x --set sae.kk=3", &["sae.kk", "sae.k"]),
        (
            "train --acts acts --out x --set sae.k=99 --set sae.d_sae=64",
            &["sae.k", "99", "64"],
        ),
        ("train --acts acts --out x --set train.lr=fast", &["train.lr"]),
        ("train --acts acts --out x --device abacus", &["abacus"]),
        ("train --out x --resume", &["x", "resume"]),
        ("features --sae nowhere --acts acts --out y", &["nowhere"]),
        ("serve nowhere", &["nowhere"]),
        ("serve acts", &["acts"]),
        ("inspect nowhere", &["nowhere"]),
        ("inspect latin.txt", &["latin.txt"]),
    ];
    for (line, fragments) in cases {
        let said = place.error(line);
        for fragment in *fragments {
            assert!(
                said.contains(fragment),
                "sae {line}\nsays {said}but nothing of {fragment:?}"
            );
        }
        assert!(
            !place.path("x").join("manifest.json").exists(),
            "sae {line} left a store"
        );
    }
}

#[test]
fn a_text_from_the_standard_input_makes_the_same_activations_as_one_from_a_file() {
    let place = Place::new();
    let stories = fs::read_to_string(storyteller().join("stories.txt")).unwrap();
    let records = stories
        .split("<|end|>")
        .take(40)
        .map(|story| serde_json::json!({ "story": story }).to_string());
    let lines = records.collect::<Vec<_>>().join("\n{\"story\": 7}\n");
    fs::write(place.path("stories.jsonl"), &lines).unwrap();
    let line = format!("harvest --model MODEL --hook {HOOK} --field story --skip-bad --context 64 --json");
    let report = place.json(&format!("{line} --text stories.jsonl --out file"));
    assert_eq!(report["bad_records"], 39);
    let mut child = place
        .command(&format!("{line} --text - --format jsonl --out pipe"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let manifest = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(place.path(name).join("manifest.json")).unwrap()).unwrap()
    };
    let (file, pipe) = (manifest("file"), manifest("pipe"));
    assert_eq!(pipe["spec"]["corpus"]["name"], "standard input");
    assert_eq!(pipe["spec"]["corpus"]["sha256"], file["spec"]["corpus"]["sha256"]);
    assert_eq!(pipe["shards"][0]["sample_sha256"], file["shards"][0]["sample_sha256"]);
    let wrong = place.error(&format!(
        "harvest --model MODEL --hook {HOOK} --text stories.jsonl --out wrong"
    ));
    assert!(
        wrong.contains("line 1 has no field") && wrong.contains("story"),
        "{wrong}"
    );
    let none = place.error(&format!("harvest --model MODEL --hook {HOOK} --text *.csv --out none"));
    assert!(none.contains("*.csv: no file matches this pattern"), "{none}");
}

#[test]
fn a_taken_port_is_an_error_that_names_the_flag() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = place.error(&format!("demo --port {port}"));
    assert!(said.contains("--port") && said.contains(&port.to_string()), "{said}");
    assert!(
        !place.path("sae-demo").exists(),
        "nothing is made before the port is known to be free"
    );
}

#[test]
fn fresh_leaves_alone_what_the_demo_did_not_make() {
    let place = Place::new();
    fs::create_dir(place.path("thesis")).unwrap();
    fs::write(place.path("thesis/draft.txt"), "years of work").unwrap();
    let said = place.error("demo --no-serve --fresh --out thesis");
    assert!(said.contains("thesis") && said.contains("--out"), "{said}");
    assert!(place.error("demo --no-serve --out thesis").contains("--out"));
    assert_eq!(
        fs::read_to_string(place.path("thesis/draft.txt")).unwrap(),
        "years of work"
    );
}
