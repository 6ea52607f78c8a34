//! Transcoders and crosscoders from the command line: trained, indexed, inspected, and refused.

use std::fs;

use super::Place;

const RESID: [&str; 2] = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"];
const MID: &str = "blocks.2.hook_resid_mid";
const MLP: &str = "blocks.2.hook_mlp_out";
const SMALL: &str = "--json --set sae.d_sae=64 --set sae.k=4 --set train.steps=60 --set train.batch=64";

fn harvested(place: &Place) {
    let hooks = [RESID[0], RESID[1], MID, MLP].map(|hook| format!("--hook {hook}"));
    place.json(&format!(
        "harvest --model MODEL --text TEXT {} --tokens 6k --out acts --json",
        hooks.join(" ")
    ));
}

#[test]
fn a_transcoder_is_trained_indexed_with_the_logits_of_what_it_writes_and_inspected() {
    let place = Place::new();
    harvested(&place);
    let skip = "--set sae.skip=true";
    let summary = place.json(&format!(
        "train --acts acts --hook {MID} --target {MLP} --out run {skip} {SMALL}"
    ));
    assert!(summary["held_out"]["fvu"].as_f64().unwrap() < 1.0, "{summary}");
    assert_eq!(summary["d_in"], summary["d_out"]);
    let facts = place.json("inspect run --json");
    assert_eq!(facts["shape"], "skip transcoder");
    let text = |key: &str| facts[key].as_str().unwrap();
    assert!(text("reads").contains(MID) && text("writes").contains(MLP), "{facts}");
    // From the store, and from the model over the text, which is the same.
    for (source, out) in [
        ("--acts acts --model MODEL", "from-store"),
        ("--model MODEL --text TEXT --tokens 6k", "from-text"),
    ] {
        let manifest = place.json(&format!("features --sae run {source} --out {out} --json"));
        assert_eq!(manifest["hook"], MID);
        let activation = manifest["dictionary"]["activation"].as_str().unwrap();
        assert_eq!(activation, format!("TopK(4) skip transcoder to {MLP}"));
        assert_eq!(place.json(&format!("inspect {out} --json"))["features"], 64);
    }
    // What a run wrote down is all that it needs.
    place.json("train --resume --out run --json");
    // The same from the text, with nothing stored.
    let streamed = place.json(&format!(
        "train --model MODEL --text TEXT --tokens 6k --hook {MID} --target {MLP} --out streamed {SMALL}"
    ));
    assert!(streamed["held_out"]["fvu"].as_f64().unwrap() < 1.0, "{streamed}");
}

#[test]
fn a_crosscoder_is_trained_indexed_and_inspected_with_the_quality_of_every_hook() {
    let place = Place::new();
    harvested(&place);
    let hooks = RESID.map(|hook| format!("--hook {hook}")).join(" ");
    let summary = place.json(&format!("train --acts acts {hooks} --out run {SMALL}"));
    for hook in RESID {
        assert!(summary["fvu_by_hook"][hook].as_f64().unwrap() < 1.0, "{summary}");
    }
    let said = place.run(&format!(
        "train --acts acts {hooks} --out other {}",
        &SMALL["--json".len()..]
    ));
    let (text, plan) = (
        String::from_utf8(said.stdout).unwrap(),
        String::from_utf8(said.stderr).unwrap(),
    );
    assert!(RESID.iter().all(|hook| text.contains(hook)), "{text}");
    assert!(plan.contains("TopK(4) crosscoder with d_sae 64 over 2 hooks"), "{plan}");
    let facts = place.json("inspect run --json");
    assert_eq!(facts["shape"], "crosscoder");
    let manifest = place.json("features --sae run --acts acts --model MODEL --out index --json");
    assert_eq!(manifest["hook"], RESID.join(", "));
    assert_eq!(manifest["dictionary"]["activation"], "TopK(4) crosscoder");
    // A pattern names the same two, and the run wrote them down.
    place.json(&format!(
        "train --acts acts --hook blocks.*.hook_resid_post --out pattern {SMALL}"
    ));
    let dictionary = |run: &str| fs::read(place.path(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("pattern") == dictionary("run"));
    assert!(
        fs::read_to_string(place.path("pattern/run.toml"))
            .unwrap()
            .contains(RESID[0])
    );
    let from_text = place.json("features --sae run --model MODEL --text TEXT --tokens 6k --out from-text --json");
    assert_eq!(from_text["d_in"], manifest["d_in"]);
}

#[test]
fn shapes_that_cannot_be_are_refused_by_their_keys_and_nothing_is_written() {
    let place = Place::new();
    harvested(&place);
    fs::create_dir(place.path("empty")).unwrap();
    for (line, parts) in [
        (
            format!("--acts acts --hook {MID} --set sae.skip=true"),
            vec!["sae.skip", "data.target"],
        ),
        (
            format!("--acts acts --hook {MID} --target blocks.0.hook_mlp_out"),
            vec!["data.target", "blocks.0.hook_mlp_out", MLP, MID],
        ),
        (
            format!("--acts acts --hook {MID} --target {MID}"),
            vec!["data.target", "data.hook"],
        ),
        (
            format!("--acts acts --target {MLP}"),
            vec!["data.hook", "several hooks", MID],
        ),
        (
            format!("--model MODEL --text TEXT --hook {MID} --target-acts acts"),
            vec!["data.target_acts", "data.acts"],
        ),
        (
            format!("--model MODEL --text TEXT --hook {MID} --target blocks.9.hook_mlp_out"),
            vec!["blocks.9.hook_mlp_out"],
        ),
    ] {
        let error = place.error(&format!("train {line} --out no {SMALL}"));
        assert!(parts.iter().all(|part| error.contains(part)), "{line}\n{error}");
        assert!(!place.path("no").exists());
    }
    // A dictionary that needs hooks which the store has not.
    place.json(&format!(
        "harvest --model MODEL --text TEXT --hook {MID} --tokens 2k --out one --json"
    ));
    let hooks = RESID.map(|hook| format!("--hook {hook}")).join(" ");
    place.json(&format!("train --acts acts {hooks} --out run {SMALL}"));
    let error = place.error("features --sae run --acts one --out index");
    assert!(error.contains(RESID[0]) && error.contains(MID), "{error}");
}

#[test]
fn a_bilinear_autoencoder_is_trained_resumed_and_inspected_and_has_no_index() {
    let place = Place::new();
    harvested(&place);
    let sets = "--json --set sae.method=bilinear --set sae.d_sae=32 --set train.steps=40 --set train.batch=64";
    let line = format!("train --acts acts --hook {MID} --set bilinear.form=combined --out run {sets}");
    let summary = place.json(&line);
    assert_eq!(summary["method"], "Bilinear(combined)");
    let facts = place.json("inspect run --json");
    assert_eq!(
        (&facts["shape"], &facts["form"]),
        (&"bilinear autoencoder".into(), &"combined".into())
    );
    assert_eq!(
        (facts["clusters"].as_u64(), facts["d_sae"].as_u64()),
        (Some(32), Some(32))
    );
    place.json("train --resume --out run --json");
    let error = place.error("features --sae run --acts acts --out index");
    assert!(
        error.contains("bilinear autoencoder") && error.contains("docs/shapes.md"),
        "{error}"
    );
    let error = place.error(&format!("{line}2 --set sae.k=3"));
    assert!(error.contains("sae.k") && error.contains("bilinear"), "{error}");
}
