//! Dictionaries that go on from others, from the command line.

use std::fs;
use std::time::Duration;

use super::{HOOK, Place, harvest};

const SMALL: &str = "--json --set train.batch=128 --set train.checkpoint_every=10";

/// Activations of other stories than those of `acts`.
fn other(place: &Place) {
    let stories = fs::read_to_string(super::storyteller().join("stories.txt")).unwrap();
    let half: Vec<&str> = stories.split("<|end|>").collect();
    fs::write(place.path("other.txt"), half[half.len() / 2..].join("<|end|>")).unwrap();
    place.json(&format!(
        "harvest --model MODEL --text other.txt --separator <|end|> --tokens 12k --json --hook {HOOK} --hook hook_embed --out other"
    ));
}

#[test]
#[cfg(unix)]
fn a_dictionary_goes_on_with_other_data_and_more_latents_to_the_same_bytes_however_often_it_is_killed() {
    let place = Place::new();
    harvest(&place, "acts");
    other(&place);
    place.json(&format!(
        "train --acts acts --out old --set sae.d_sae=64 --set sae.k=4 --set train.steps=100 {SMALL}"
    ));
    // Nothing of the old one is said again: k, and which of the two hooks.
    let line = format!(
        "train --acts other --init old --set sae.d_sae=96 --set objective.tilted.t=1 --set train.steps=300 {SMALL}"
    );
    let whole = place.json(&format!("{line} --out whole"));
    assert_eq!((&whole["method"], &whole["d_sae"]), (&"TopK(4)".into(), &96.into()));
    for milliseconds in [250, 400, 550] {
        let resume = if place.path("killed/run.toml").exists() {
            "--resume"
        } else {
            ""
        };
        place.kill(
            &format!("{line} --out killed {resume}"),
            Duration::from_millis(milliseconds),
        );
    }
    // A run knows where it came from.
    let line = match place.path("killed/run.toml").exists() {
        true => "train --out killed --resume --json".to_owned(),
        false => format!("{line} --out killed"),
    };
    place.json(&line);
    let clock = ["timings.jsonl", "summary.json", "checkpoint"];
    assert_eq!(place.files("killed", &clock), place.files("whole", &clock));

    let facts = place.json("inspect whole --json");
    let card = &facts["card"]["initialised_from"];
    assert_eq!(card["name"], "old");
    let digest = card["sha256"].as_str().unwrap();
    assert!(
        facts["initialised_from"].as_str().unwrap().contains(&digest[..12]),
        "{facts}"
    );
    let toml = fs::read_to_string(place.path("whole/run.toml")).unwrap();
    assert!(toml.contains(digest) && toml.contains(HOOK), "{toml}");
    let runs = place.json("runs . --json");
    let of = |name: &str| {
        let mut all = runs.as_array().unwrap().iter();
        all.find(|run| run["path"].as_str().unwrap().ends_with(name))
            .unwrap()
            .clone()
    };
    assert_eq!((&of("whole")["init"], of("old").get("init")), (&"old".into(), None));
    let table = String::from_utf8(place.run("runs .").stdout).unwrap();
    assert!(table.lines().next().unwrap().contains("from"), "{table}");
}

#[test]
fn what_is_gone_on_from_is_said_before_the_run_and_what_does_not_fit_is_refused() {
    let place = Place::new();
    harvest(&place, "acts");
    other(&place);
    place.json(&format!(
        "train --acts acts --out old --set sae.d_sae=64 --set sae.k=4 --set train.steps=20 {SMALL}"
    ));
    let out = place.run(&format!(
        "train --acts other --hook hook_embed --init old --out new --set sae.d_sae=80 --set train.steps=20 {SMALL}"
    ));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{said}");
    for part in [
        "goes on from old: TopK(4) of 64 latents",
        "16 random",
        HOOK,
        "hook_embed",
    ] {
        assert!(said.contains(part), "{said}");
    }
    for (more, words) in [
        ("--init old --set sae.d_sae=32", ["sae.d_sae", "old"]),
        ("--init old --set sae.method=abs_topk", ["sae.method", "old"]),
        ("--init acts", ["acts", "dictionary.json"]),
        ("--init nowhere", ["nowhere", "does not exist"]),
        ("--init old --target hook_embed", ["data.target", "old"]),
    ] {
        let said = place.error(&format!("train --acts other --hook {HOOK} --out x {more}"));
        assert!(words.iter().all(|word| said.contains(word)), "{more}: {said}");
        assert!(!place.path("x").exists(), "{more}");
    }
    // Each of a grid from its own.
    place.json(&format!(
        "train --acts acts --out older --set sae.d_sae=64 --set sae.k=8 --set train.steps=20 {SMALL}"
    ));
    let grid = place.json(&format!(
        "train --acts acts --out grid --set sae.init=[\"old\",\"older\"] --set train.steps=20 {SMALL}"
    ));
    assert_eq!(
        (&grid["init-old"]["method"], &grid["init-older"]["method"]),
        (&"TopK(4)".into(), &"TopK(8)".into())
    );
}

#[test]
fn crosscoders_and_transcoders_go_on_with_their_hooks_as_what_they_are() {
    let place = Place::new();
    let hooks = ["blocks.1.hook_resid_post", HOOK];
    let line = format!("--hook {} --hook {}", hooks[0], hooks[1]);
    place.json(&format!(
        "harvest --model MODEL --text TEXT {line} --tokens 6k --out acts --json"
    ));
    for (shape, line) in [
        ("crosscoder", line),
        ("transcoder", format!("--hook {} --target {}", hooks[0], hooks[1])),
    ] {
        let old = place.json(&format!(
            "train --acts acts {line} --out {shape} --set sae.d_sae=64 --set sae.k=4 --set train.steps=60 {SMALL}"
        ));
        // A step that does not move.
        let still = place.json(&format!(
            "train --acts acts --init {shape} --out still-{shape} --set train.steps=1 --set train.lr=1e-30 --set \
             train.warmup_steps=0 {SMALL}"
        ));
        let [was, is] = [&old, &still].map(|run| run["held_out"]["fvu"].as_f64().unwrap());
        assert!((was - is).abs() < 1e-5, "{shape}: {was} {is}");
        let facts = place.json(&format!("inspect still-{shape} --json"));
        assert_eq!(facts["shape"], shape);
        let named = format!("{} {}", facts["reads"], facts["writes"]);
        assert!(hooks.iter().all(|hook| named.contains(hook)), "{named}");
    }
}
