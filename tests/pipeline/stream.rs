//! Training on a model over a text, without a store.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{HOOK, Place};

const TEXT: &str = "--model MODEL --text TEXT --separator <|end|>";
const SMALL: &str = "--set sae.d_sae=256 --set sae.k=8 --set train.batch=256";

fn resume(place: &Place, run: &str) -> &'static str {
    match place.path(run).join("run.toml").exists() {
        true => "--resume",
        false => "",
    }
}

#[test]
fn a_streamed_training_is_as_good_as_one_on_a_store_and_features_continue_from_it() {
    let place = Place::new();
    place.json(&format!(
        "harvest {TEXT} --tokens 60k --hook {HOOK} --seed 0 --dtype f32 --out acts --json"
    ));
    let steps = format!("{SMALL} --set train.tokens=50k --json");
    let stored = place.json(&format!("train --acts acts --out stored {steps}"));
    let streamed = place.json(&format!(
        "train {TEXT} --tokens 60k --hook {HOOK} --out streamed {steps}"
    ));
    assert_eq!(streamed["tokens"], 50_176);
    let fvu = |run: &serde_json::Value| run["held_out"]["fvu"].as_f64().unwrap();
    println!("FVU: stored {:.4}, streamed {:.4}", fvu(&stored), fvu(&streamed));
    // They are held-out rows of other stories: what remains is noise.
    let ratio = fvu(&streamed) / fvu(&stored);
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    let card = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(place.path(run).join("dictionary.json")).unwrap()).unwrap()
    };
    for key in ["hook", "model", "corpus", "sparsifier", "d_in", "d_sae"] {
        assert_eq!(card("streamed")[key], card("stored")[key], "{key}");
    }
    let features = place.json(&format!(
        "features --sae streamed {TEXT} --tokens 20k --out features --json"
    ));
    assert_eq!(
        (features["d_sae"].as_u64(), features["hook"].as_str()),
        (Some(256), Some(HOOK))
    );
    let seen = place.json("inspect streamed --json");
    assert_eq!(
        (seen["kind"].as_str(), seen["model"].as_str()),
        (Some("run"), Some("storyteller"))
    );
    // The run's own file says everything.
    place.json("train --config streamed/run.toml --out again --json");
    let same = ["dictionary.safetensors", "metrics.jsonl", "run.toml"];
    let (one, other) = (place.files("streamed", &[]), place.files("again", &[]));
    assert!(same.iter().all(|&name| one[name] == other[name]));
}

#[test]
#[cfg(unix)]
fn a_streamed_training_that_is_killed_over_and_over_ends_with_the_same_bytes() {
    let place = Place::new();
    // Memory for windows of a few thousand rows: kills fall on several of them, and the text begins again.
    let settings = format!(
        "{TEXT} --hook {HOOK} --tokens 15k --json {SMALL} --set train.steps=100 --set train.checkpoint_every=5 \
         --set data.mix_memory_mib=8 --set data.held_out_rows=1000"
    );
    place.json(&format!("train --out whole {settings}"));
    let log = fs::read_to_string(place.path("whole/metrics.jsonl")).unwrap();
    assert!(
        log.lines().last().unwrap().contains("\"epoch\":1"),
        "the text began again"
    );
    let mut moment = std::process::id() as u64; // another one each time
    for kill in 0..6 {
        moment = moment
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let milliseconds = 300 + 300 * kill + (moment >> 33) % 700;
        let mut command = place.command(&format!("train --out killed {settings} {}", resume(&place, "killed")));
        // On any number of threads.
        let threads = (1 + kill % 3).to_string();
        let command = command.env("RAYON_NUM_THREADS", threads);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    match resume(&place, "killed") {
        "" => place.json(&format!("train --out killed {settings}")),
        // Everything is in run.toml.
        _ => place.json("train --out killed --resume --json"),
    };
    let clock = ["timings.jsonl", "summary.json", "checkpoint"];
    assert!(place.files("killed", &clock) == place.files("whole", &clock));
}

#[test]
#[cfg(unix)]
fn ctrl_c_stops_a_streamed_training_promptly_and_it_resumes() {
    let place = Place::new();
    let line =
        format!("train {TEXT} --hook {HOOK} --out run {SMALL} --set train.steps=100000 --set data.mix_memory_mib=64");
    for round in 0..2 {
        let resume = resume(&place, "run");
        let child = place
            .command(&format!("{line} {resume}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Once while the pool fills, and once in the loop.
        if round == 1 {
            // However long a busy machine takes to fill the pool.
            let trains = || fs::metadata(place.path("run/timings.jsonl")).is_ok_and(|m| m.len() > 0);
            for _ in 0..6000 {
                if trains() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(trains(), "no step was made in five minutes");
        } else {
            std::thread::sleep(Duration::from_millis(1500));
        }
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let clock = std::time::Instant::now();
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(130), "{said}");
        assert!(said.contains("sae train --out run --resume"), "{said}");
        assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
        assert!(place.path("run/run.toml").exists());
    }
    assert!(place.path("run/checkpoint/state.json").exists());
}

#[test]
fn mistakes_about_text_and_activations_are_named() {
    let place = Place::new();
    fs::write(place.path("rows.txt"), "a few words").unwrap();
    fs::write(
        place.path("wrong.toml"),
        "[data]\nacts = \"acts\"\nmodel = \"m\"\ntext = [\"t\"]",
    )
    .unwrap();
    for (line, fragments) in [
        (
            "train --acts a --model MODEL --text TEXT --out x",
            &["data.model", "data.acts"][..],
        ),
        ("train --acts a --text TEXT --out x", &["data.text", "data.acts"]),
        ("train --acts a --context 64 --out x", &["data.context", "data.acts"]),
        ("train --text TEXT --out x", &["data.model", "data.text"]),
        ("train --model MODEL --out x", &["data.text", "data.model"]),
        ("train --out x", &["--acts", "--model", "--text"]),
        (
            "train --config wrong.toml --out x",
            &["wrong.toml", "data.model", "data.acts"],
        ),
        (
            "train --model MODEL --text TEXT --out x",
            &["data.hook", "blocks.{0..4}"],
        ),
        (
            "train --model MODEL --text TEXT --hook blocks.9.hook_resid_post --out x",
            &["blocks.9", "blocks.{0..4}"],
        ),
        (
            "train --model nowhere --text TEXT --hook hook_embed --out x",
            &["nowhere"],
        ),
        (
            "train --model MODEL --text none.txt --hook hook_embed --out x",
            &["none.txt"],
        ),
        (
            "train --model MODEL --text rows.txt --hook hook_embed --out x",
            &["rows.txt", "too short"],
        ),
        (
            "train --model MODEL --text TEXT --hook hook_embed --out x --set data.mix_memory_mib=1",
            &["1 MiB", "data.mix_memory_mib must be at least"],
        ),
        (
            "train --model MODEL --text TEXT --hook hook_embed --out x --set data.contexts=64",
            &["data.contexts", "data.context?"],
        ),
    ] {
        let said = place.error(line);
        let missing = fragments.iter().find(|fragment| !said.contains(**fragment));
        assert!(missing.is_none(), "sae {line}\nsays {said}but nothing of {missing:?}");
        assert!(!place.path("x").exists(), "sae {line} left a directory");
    }
}
