//! Runs listed, compared and pruned, among them damaged ones.

use std::fs;

use serde_json::Value;

use super::{Place, harvest};

const SMALL: &str =
    "--json --set sae.d_sae=64 --set train.steps=20 --set train.batch=128 --set train.checkpoint_every=10";

/// The runs of a list by their names.
fn by_name(list: &Value) -> std::collections::BTreeMap<String, Value> {
    let named = |run: &Value| {
        let path = run["path"].as_str().unwrap().to_owned();
        (path.rsplit('/').next().unwrap().to_owned(), run.clone())
    };
    list.as_array().unwrap().iter().map(named).collect()
}

#[test]
fn runs_are_listed_with_their_numbers_and_damaged_ones_with_the_reason() {
    let place = Place::new();
    harvest(&place, "acts");
    let a = place.json(&format!("train --acts acts --out runs/a --set sae.k=4 {SMALL}"));
    place.json(&format!("train --acts acts --out runs/deep/b --set sae.k=8 {SMALL}"));
    for (name, file, text) in [("c", "summary.json", "{\"method\": 3"), ("d", "run.toml", "sae = [")] {
        let dir = place.path("runs").join(name);
        fs::create_dir_all(&dir).unwrap();
        for copied in ["run.toml", "summary.json", "dictionary.json"] {
            fs::copy(place.path("runs/a").join(copied), dir.join(copied)).unwrap();
        }
        fs::write(dir.join(file), text).unwrap();
    }
    // As one that was stopped behind its first checkpoint.
    place.json(&format!("train --acts acts --out runs/e --set sae.k=4 {SMALL}"));
    for file in ["summary.json", "dictionary.json", "dictionary.safetensors"] {
        fs::remove_file(place.path("runs/e").join(file)).unwrap();
    }
    let runs = by_name(&place.json("runs runs --json"));
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    let (first, stopped) = (&runs["a"], &runs["e"]);
    assert_eq!(first["fvu"], a["held_out"]["fvu"]);
    assert_eq!(
        (&first["l0"], &first["k"], &first["d_sae"]),
        (&4.0.into(), &4.into(), &64.into())
    );
    assert_eq!(
        (&first["method"], &first["state"]),
        (&"topk".into(), &"finished".into())
    );
    assert_eq!((&first["steps_done"], &first["steps"]), (&20.into(), &20.into()));
    assert!(first["bytes"].as_u64().unwrap() > 0);
    assert_eq!(
        (&stopped["state"], &stopped["steps_done"]),
        (&"stopped".into(), &20.into())
    );
    assert_eq!(stopped["fvu"], a["held_out"]["fvu"], "the last measurement in its log");
    for (name, word) in [("c", "summary.json"), ("d", "run.toml")] {
        assert_eq!(runs[name]["state"], "unreadable");
        assert!(runs[name]["problem"].as_str().unwrap().contains(word), "{}", runs[name]);
    }
    let text = String::from_utf8(place.run("runs runs").stdout).unwrap();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains("unreadable: ") && text.contains("20/20"), "{text}");

    let compared = place.json("runs --compare runs/a runs/deep/b --json");
    let keys: Vec<&String> = compared["differences"].as_object().unwrap().keys().collect();
    assert!(
        keys.contains(&&"sae.k".to_owned()) && !keys.contains(&&"sae.d_sae".to_owned()),
        "{keys:?}"
    );
    assert_eq!(compared["differences"]["sae.k"], serde_json::json!(["4", "8"]));
    let text = String::from_utf8(place.run("runs --compare runs/a runs/deep/b").stdout).unwrap();
    assert!(text.contains("sae.k") && text.contains("FVU"), "{text}");
    assert!(place.error("runs --compare runs/a acts").contains("run.toml"));
    assert!(place.error("runs nowhere").contains("nowhere"));
}

#[test]
fn pruning_says_what_it_would_remove_and_removes_nothing_that_a_run_still_needs() {
    let place = Place::new();
    harvest(&place, "acts");
    let line = format!("train --acts acts --out runs/a {SMALL} --set sae.k=4");
    let before = place.json(&line);
    fs::write(place.path("runs/a/acts.safetensors"), vec![0; 1000]).unwrap();
    fs::write(place.path("runs/a/notes.txt"), "mine").unwrap();
    // One that is not finished keeps everything.
    place.json(&format!("train --acts acts --out runs/b {SMALL} --set sae.k=4"));
    fs::remove_file(place.path("runs/b/summary.json")).unwrap();
    let (all, b) = (place.files("runs/a", &[]), place.files("runs/b", &[]));

    let dry = place.json("runs --prune runs --json");
    assert_eq!(dry["removed"], false);
    let files: Vec<&str> = dry["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["path"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["runs/a/acts.safetensors", "runs/a/checkpoint"]);
    assert!(dry["bytes"].as_u64().unwrap() > 1000);
    assert!(place.files("runs/a", &[]) == all, "a dry run removes nothing");
    assert!(place.error("runs --yes").contains("--prune"));

    let text = String::from_utf8(place.run("runs --prune runs --yes").stdout).unwrap();
    assert!(text.contains("runs/a/checkpoint") && text.contains("removed"), "{text}");
    let mut kept = all;
    kept.retain(|name, _| !name.starts_with("checkpoint") && name != "acts.safetensors");
    assert!(place.files("runs/a", &[]) == kept && place.files("runs/b", &[]) == b);
    assert_eq!(place.json("runs --prune runs --json")["bytes"], 0);
    // The run is still what it was.
    let again = place.json(&format!("{line} --resume"));
    assert_eq!(again["held_out"], before["held_out"]);
    place.json("features --sae runs/a --acts acts --out features --json");
}
