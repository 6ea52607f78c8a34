//! A compressed store from the command line: killed, in parts, and read by everything that reads a plain one.

use std::time::Duration;

use super::{HARVEST, HOOK, Place};

const SETTINGS: &str = "--json --set sae.d_sae=256 --set sae.k=8 --set train.steps=40 --set train.batch=256";

#[test]
fn a_compressed_store_trains_the_same_dictionary_and_makes_the_same_index_as_a_plain_one() {
    let place = Place::new();
    for (out, flags) in [("plain", ""), ("packed", "--compress zstd")] {
        place.json(&format!("{HARVEST} --hook {HOOK} --dtype bf16 {flags} --out {out}"));
        place.json(&format!("train --acts {out} --out run-{out} {SETTINGS}"));
        place.json(&format!(
            "features --sae run-{out} --acts {out} --out features-{out} --json"
        ));
    }
    let inspected = |store: &str| place.json(&format!("inspect {store} --json"));
    let (plain, packed) = (inspected("plain"), inspected("packed"));
    assert_eq!(
        (&packed["compression"], &plain["compression"]),
        (&"zstd:1".into(), &serde_json::Value::Null)
    );
    let share = packed["size"].as_f64().unwrap() / plain["size"].as_f64().unwrap();
    println!("bf16 with zstd: {share:.3} of the bytes");
    assert!((0.6..0.9).contains(&share), "{share}");
    // Fingerprints of the two stores differ; what is learned and what is seen do not.
    let dictionary = |run: &str| std::fs::read(place.path(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("run-plain") == dictionary("run-packed"));
    assert!(!place.path("run-packed/acts.safetensors").exists(), "nothing is copied");
    assert!(place.files("features-plain", &[]) == place.files("features-packed", &[]));
}

#[test]
#[cfg(unix)]
fn a_compressed_harvest_killed_at_any_moment_resumes_to_the_same_bytes_also_in_parts() {
    let place = Place::new();
    let line = format!("{HARVEST} --hook {HOOK} --compress zstd:5 --contexts-per-file 3");
    place.json(&format!("{line} --out whole"));
    for (nth, part) in ["1/1", "1/2", "2/2"].into_iter().enumerate() {
        let out = if part == "1/1" { "killed" } else { "parts" };
        place.kill(
            &format!("{line} --shard {part} --out {out}"),
            Duration::from_millis(400 + 300 * nth as u64),
        );
        let journal = match part {
            "1/1" => place.path("killed/unfinished.json"),
            part => place.path(&format!("parts/part-{}.unfinished.json", part.replace('/', "-of-"))),
        };
        // Killed before it began, it is begun.
        let resume = if journal.exists() { "--resume" } else { "" };
        place.json(&format!("{line} --shard {part} --out {out} {resume}"));
    }
    assert!(place.files("killed", &[]) == place.files("whole", &[]));
    let manifests = ["manifest.json", "part-"];
    assert!(place.files("parts", &manifests) == place.files("whole", &manifests));
    let said = place.error(&format!("{HARVEST} --hook {HOOK} --out other --compress lz4"));
    assert!(said.contains("zstd:LEVEL"), "{said}");
}
