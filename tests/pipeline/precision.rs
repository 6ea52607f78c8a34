//! Levels of the processor: products in bf16 are the same at each, and runs resume exactly at each.

use std::process::{Command, Stdio};

use activations::ActDtype;
use activations::cpu::Level;
use activations::product::Precision;
use activations::source::Activations;
use activations::store::Store;

use super::{HOOK, Place};

#[test]
fn a_harvest_in_bf16_writes_the_same_bytes_at_every_level_of_the_processor() {
    let place = Place::new();
    let harvest = |out: &str, flags: &str| {
        let mut command = place.command(&format!(
            "harvest --model MODEL --text TEXT --hook {HOOK} --tokens 1k --out {out} {flags}"
        ));
        let (_, level) = out.split_once('-').unwrap_or_default();
        if !level.is_empty() {
            command.env("SAE_CPU", level);
        }
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    harvest("best", "--precision bf16");
    for level in ["store-scalar", "store-avx2", "store-avx512", "store-avx512_vnni"] {
        harvest(level, "--precision bf16");
        assert_eq!(place.files(level, &[]), place.files("best", &[]), "{level}");
    }
    harvest("plain", "");
    let spec = |store: &str| Store::open(&place.path(store)).unwrap().manifest().spec.clone();
    assert_eq!(spec("best").model.precision, Precision::Bf16);
    assert_eq!(spec("plain").model.precision, Precision::F32);
    let rows = |store: &str| {
        let acts = Activations::open_as(&place.path(store), None, Some(ActDtype::F16)).unwrap();
        let mut rows = vec![0.0; acts.n_rows() as usize * acts.d_in()];
        acts.read_rows(0..acts.n_rows(), &mut rows).unwrap();
        rows
    };
    let (rounded, plain) = (rows("best"), rows("plain"));
    let largest = plain.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = plain.iter().zip(&rounded).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    // Not the same, and near: rounding is seen, and it is all that is seen.
    assert!(worst > 1e-4 * largest && worst < 0.1 * largest, "{worst} of {largest}");
}

#[test]
fn a_level_that_does_not_exist_is_refused_by_name() {
    let place = Place::new();
    let out = place.command("inspect MODEL").env("SAE_CPU", "avx3").output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("SAE_CPU=avx3") && said.contains("avx512_bf16"), "{said}");
}

#[test]
#[cfg(unix)]
fn a_killed_run_resumes_to_the_same_bytes_at_every_level_of_the_processor() {
    let place = Place::new();
    place.run(&format!(
        "harvest --model MODEL --text TEXT --hook {HOOK} --tokens 2k --out acts"
    ));
    for level in Level::ALL.into_iter().filter(|&l| l <= activations::cpu::level()) {
        let train = |out: &str, flags: &str| {
            let mut command = place.command(&format!("train --out {out} {flags}"));
            command.env("SAE_CPU", level.name());
            command
        };
        // Wide and long enough for winners to be nominated in few bits, where the level does that.
        let flags = "--acts acts --set sae.d_sae=1024 --set sae.k=8 --set train.batch=160 --set train.steps=60 \
                     --set train.lr=1e-3 --set train.checkpoint_every=5 --set data.held_out_rows=200";
        let finish = |mut command: Command| {
            let out = command.output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        let (whole, killed) = (format!("whole-{}", level.name()), format!("killed-{}", level.name()));
        finish(train(&whole, flags));
        let mut child = train(&killed, flags).stderr(Stdio::null()).spawn().unwrap();
        while !place.path(&killed).join("checkpoint").exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!place.path(&killed).join("summary.json").exists());
        finish(train(&killed, "--resume"));
        // What depends on the clock is in three files alone.
        let clocks = ["timings.jsonl", "summary.json", "checkpoint/state.json"];
        let (found, expected) = (place.files(&killed, &clocks), place.files(&whole, &clocks));
        assert!(expected.contains_key("dictionary.safetensors") && found.keys().eq(expected.keys()));
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{name} at {}", level.name());
        }
    }
}
