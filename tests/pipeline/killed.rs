//! A long harvest of a real model, killed at random moments. By hand: it takes minutes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::{Place, chance};

#[test]
#[cfg(unix)]
#[ignore = "needs models/stories15M and text/gutenberg in SAE_TEST_DATA, and minutes: run it with --release"]
fn two_million_tokens_killed_five_times_at_random_end_in_the_same_bytes() {
    let data = std::env::var("SAE_TEST_DATA").expect("SAE_TEST_DATA is not set");
    let place = Place::new();
    let line = format!(
        "harvest --model {data}/models/stories15M --text {data}/text/gutenberg --hook blocks.3.hook_resid_post \
         --tokens 2M --json"
    );
    let start = Instant::now();
    place.json(&format!("{line} --out whole"));
    let whole = start.elapsed();
    for _ in 1..=5 {
        let after = whole.mul_f64(0.3 * chance());
        place.kill(&format!("{line} --out killed{}", resume(&place)), after);
        assert!(
            !place.path("killed/manifest.json").exists(),
            "it ended before it was killed"
        );
        let files = fs::read_dir(place.path("killed")).map_or(0, |dir| dir.count());
        println!(
            "killed after {:.1} s of at most {:.1}: {files} files",
            after.as_secs_f64(),
            whole.as_secs_f64()
        );
    }
    place.json(&format!("{line} --out killed{}", resume(&place)));
    let (whole, killed) = (names(&place.path("whole")), names(&place.path("killed")));
    assert_eq!(killed, whole);
    for name in &whole {
        let bytes = |store: &str| fs::read(place.path(store).join(name)).unwrap();
        assert!(bytes("killed") == bytes("whole"), "{name} differs");
    }
    println!("{} files are the same", whole.len());
}

/// The flag, if there is something to resume.
fn resume(place: &Place) -> &'static str {
    match place.path("killed/unfinished.json").exists() {
        true => " --resume",
        false => "",
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
