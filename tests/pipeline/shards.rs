//! Harvests in parts: independent processes, one store.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::{HARVEST, HOOK, Place};

/// Ten files of eight contexts of 256 tokens.
fn line(out: &str, shard: &str) -> String {
    format!("{HARVEST} --hook {HOOK} --contexts-per-file 8 --out {out} --shard {shard}")
}

fn whole(place: &Place) {
    place.json(&line("whole", "1/1"));
}

/// Every file of a store but what says how it was divided.
fn data(place: &Place, store: &str) -> BTreeMap<String, Vec<u8>> {
    place.files(store, &["manifest.json", "part-"])
}

#[test]
fn processes_that_share_a_directory_make_the_store_of_one() {
    let place = Place::new();
    whole(&place);
    let children: Vec<Child> = ["3/3", "1/3", "2/3"]
        .map(|shard| {
            let mut command = place.command(&line("parts", shard));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .into();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(data(&place, "parts") == data(&place, "whole"));
    let (one, other) = (place.json("inspect whole --json"), place.json("inspect parts --json"));
    for key in ["kind", "whole", "rows", "tokens", "contexts", "shards", "hooks", "size"] {
        assert_eq!(one[key], other[key], "{key}");
    }
    assert_eq!(other["shards"], 10);
    let train = "--json --set sae.d_sae=64 --set sae.k=4 --set train.steps=20 --set train.batch=128";
    place.json(&format!("train --acts whole --out a {train}"));
    place.json(&format!("train --acts parts --out b {train}"));
    let dictionary = |run: &str| place.files(run, &[]).remove("dictionary.safetensors").unwrap();
    assert!(dictionary("a") == dictionary("b"));
    let features = place.json("features --sae b --acts parts --out features --json");
    assert_eq!(features["tokens"], one["rows"]);
}

#[test]
#[cfg(unix)]
fn a_part_that_is_killed_is_named_and_resumes_while_the_others_stay() {
    let place = Place::new();
    whole(&place);
    let last = place.json(&line("parts", "2/2"));
    assert_eq!(last["waiting"].as_array().unwrap().len(), 1, "{last}");
    assert!(last["waiting"][0].as_str().unwrap().contains("--shard 1/2"), "{last}");
    let before = place.files("parts", &[]);
    for milliseconds in [300, 500, 700] {
        let resume = match place.path("parts/part-1-of-2.unfinished.json").exists() {
            true => "--resume",
            false => "",
        };
        if place.path("parts/part-1-of-2.json").exists() {
            break;
        }
        place.kill(
            &format!("{} {resume}", line("parts", "1/2")),
            Duration::from_millis(milliseconds),
        );
    }
    if !place.path("parts/part-1-of-2.json").exists() {
        let begun = place.path("parts/part-1-of-2.unfinished.json").exists();
        let word = if begun { "--resume" } else { "--shard 1/2" };
        let said = place.error("train --acts parts --out run");
        assert!(said.contains("part 1/2") && said.contains(word), "{said}");
        let seen = place.run("inspect parts");
        assert_eq!(seen.status.code(), Some(1));
        assert!(String::from_utf8(seen.stdout).unwrap().contains("part 1/2"));
        let resume = if begun { "--resume" } else { "" };
        let done = place.json(&format!("{} {resume}", line("parts", "1/2")));
        assert_eq!(done["waiting"].as_array().unwrap().len(), 0, "{done}");
    }
    let after = place.files("parts", &[]);
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
    assert!(data(&place, "parts") == data(&place, "whole"));
}

#[test]
fn parts_that_do_not_fit_those_that_are_there_are_refused() {
    let place = Place::new();
    place.json(&line("parts", "2/3"));
    for (command, words) in [
        (line("parts", "1/2"), &["parts of 3", "1/2"][..]),
        (line("parts", "2/3"), &["already holds part 2/3"]),
        (line("parts", "4/3"), &["4/3", "2/5"]),
        (format!("{} --dtype f32", line("parts", "1/3")), &["part 2/3", "dtype"]),
        (
            format!("{} --resume", line("parts", "1/3")),
            &["no unfinished part 1/3"],
        ),
        (line("parts", "1/1"), &["--shard"]),
    ] {
        let said = place.error(&command);
        assert!(words.iter().all(|word| said.contains(word)), "sae {command}\n{said}");
    }
}
