//! Codes from the command line: of a store and of a text, killed, dense, and with everything wrong.

use std::time::Duration;

use super::{HOOK, Place, harvest};

const TRAIN: &str =
    "train --acts acts --out run --json --set sae.d_sae=256 --set sae.k=8 --set train.steps=60 --set train.batch=256";
const TEXT: &str = "--model MODEL --text TEXT --separator <|end|> --tokens 20k";

#[test]
fn codes_of_a_store_are_those_of_its_text_and_as_good_as_training_said() {
    let place = Place::new();
    let rows = harvest(&place, "acts")["manifest"]["n_rows"].clone();
    let run = place.json(TRAIN);
    let codes = place.json("encode --sae run --acts acts --out codes --json");
    assert_eq!((&codes["n_rows"], &codes["l0"]), (&rows, &8.0.into()));
    assert_eq!(codes["n_entries"].as_u64().unwrap(), 8 * rows.as_u64().unwrap());
    assert_eq!(codes["request"]["hook"], HOOK);
    // Of all rows, where training measured the held-out ones.
    let (all, held_out) = (codes["fvu"].as_f64().unwrap(), run["held_out"]["fvu"].as_f64().unwrap());
    assert!((all - held_out).abs() < 0.2 * held_out, "{all} {held_out}");
    assert!(codes["dead_latents"].as_u64().unwrap() <= 256);

    let direct = place.json(&format!("encode --sae run {TEXT} --out direct --json"));
    assert_eq!(direct["n_rows"], codes["n_rows"]);
    assert!(
        (direct["fvu"].as_f64().unwrap() - all).abs() < 1e-3 * all,
        "f16 costs next to nothing"
    );

    let few = place.json("encode --sae run --acts acts --tokens 2k --out few --json");
    let dense = place.json("encode --sae run --acts acts --tokens 2k --dense --out dense --json");
    for key in ["n_rows", "n_entries", "l0", "fvu", "dead_latents"] {
        assert_eq!(few[key], dense[key], "{key}");
    }
    let bytes = dense["shards"][0]["codes_bytes"].as_u64().unwrap();
    assert_eq!(bytes, 128 + 4 * 256 * dense["n_rows"].as_u64().unwrap());
}

#[test]
#[cfg(unix)]
fn an_encoding_that_is_killed_resumes_to_the_same_bytes_from_a_store_and_from_a_text() {
    let place = Place::new();
    harvest(&place, "acts");
    place.json(TRAIN);
    for (name, input) in [("store", "--acts acts"), ("text", TEXT)] {
        let line = |out: &str| format!("encode --sae run {input} --rows-per-file 2k --out {out} --json");
        let (whole, killed) = (format!("whole-{name}"), format!("killed-{name}"));
        place.json(&line(&whole));
        for milliseconds in [200, 500, 900] {
            let begun = place.path(&format!("{killed}/unfinished.json")).exists();
            if place.path(&format!("{killed}/manifest.json")).exists() {
                break;
            }
            let resume = if begun { "--resume" } else { "" };
            place.kill(
                &format!("{} {resume}", line(&killed)),
                Duration::from_millis(milliseconds),
            );
        }
        if !place.path(&format!("{killed}/manifest.json")).exists() {
            let begun = place.path(&format!("{killed}/unfinished.json")).exists();
            let resume = if begun { "--resume" } else { "" };
            place.json(&format!("{} {resume}", line(&killed)));
        }
        let files = place.files(&whole, &[]);
        assert!(files.len() > 10, "several shards");
        assert!(place.files(&killed, &[]) == files, "{name}");
    }
}

#[test]
fn mistakes_of_encoding_are_answered_with_what_is_wrong() {
    let place = Place::new();
    harvest(&place, "acts");
    place.json(TRAIN);
    place.json("encode --sae run --acts acts --out codes --json");
    let cases: &[(&str, &[&str])] = &[
        ("encode --sae nowhere --acts acts --out x", &["nowhere"]),
        ("encode --sae run --acts nowhere --out x", &["nowhere"]),
        ("encode --sae run --out x", &["--acts", "--text"]),
        ("encode --sae run --text TEXT --out x", &["--model"]),
        (
            "encode --sae run --acts acts --text TEXT --model MODEL --out x",
            &["--acts and --text"],
        ),
        (
            "encode --sae run --acts acts --hook hook_embed --out x",
            &["hook_embed", HOOK],
        ),
        ("encode --sae run --acts acts --out codes", &["codes", "already holds"]),
        (
            "encode --sae run --acts acts --out codes --resume",
            &["nothing to resume"],
        ),
        ("encode --sae run --acts acts --out run", &["run", "not empty"]),
        (
            "encode --sae run --acts acts --dense --dense-limit 0 --out x",
            &["GiB", "--dense-limit"],
        ),
    ];
    for (line, fragments) in cases {
        let said = place.error(line);
        for fragment in *fragments {
            assert!(
                said.contains(fragment),
                "sae {line}\nsays {said}but nothing of {fragment:?}"
            );
        }
        assert!(!place.path("x").exists(), "sae {line} left something");
    }
}
