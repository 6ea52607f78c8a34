//! Runs that go on from a dictionary: before they move they do what it does, and what they cannot go on from is refused.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/results.rs"]
mod results;
#[path = "support/npy.rs"]
mod support;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use activations::Stop;
use results::results;
use sae::config::RunConfig;
use sae::dictionary::{DictionaryCard, Shape, digest};
use sae::train::{self, RunSummary};
use sae::{Allocation, Sae, Score, Sparsifier};
use support::npy;
use synthetic::{D_IN, Interrupt, Place, sparse_rows};

const STEPS: [(&str, &str); 2] = [("train.steps", "150"), ("train.lr", "3e-3")];
/// A run that does not move.
const STILL: [(&str, &str); 3] = [("train.steps", "1"), ("train.lr", "1e-30"), ("train.warmup_steps", "0")];

fn load(dir: &Path) -> (Sae, DictionaryCard) {
    Sae::load(dir, &activations::Device::Cpu.open().unwrap()).unwrap()
}

fn values<const D: usize>(t: &burn::tensor::Tensor<D>) -> Vec<f32> {
    t.clone().into_data().to_vec().unwrap()
}

/// All parameters, by their names.
fn parameters(sae: &Sae) -> Vec<(&'static str, Vec<f32>)> {
    let mut all = vec![
        ("w_enc", values(&sae.w_enc)),
        ("b_enc", values(&sae.b_enc)),
        ("w_dec", values(&sae.w_dec)),
        ("b_dec", values(&sae.b_dec)),
    ];
    let steps = sae.steps.iter();
    all.extend(steps.flat_map(|s| {
        [
            ("w_enc of a step", values(&s.w_enc)),
            ("b_enc of a step", values(&s.b_enc)),
        ]
    }));
    all.extend(sae.skip.as_ref().map(|t| ("skip", values(t))));
    all.extend(sae.threshold.as_ref().map(|t| ("threshold", values(t))));
    all
}

fn close(a: &[f32], b: &[f32], name: &str) {
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_eq!(a.len(), b.len(), "{name}");
    let off = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= 1e-5 * largest, "{name}: off by {off} of {largest}");
}

fn sets<'a>(own: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    own.iter().chain(more).copied().collect()
}

/// A run on `acts` that names nothing of the dictionary but where it is.
fn going_on(acts: &Path, init: &Path, out: &Path, more: &[(&str, &str)], resume: bool) -> sae::Result<RunSummary> {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let (acts, init) = (quoted(acts), quoted(init));
    let own = [
        ("data.acts", acts.as_str()),
        ("sae.init", init.as_str()),
        ("train.batch", "128"),
    ];
    let sets = own.iter().chain(more).map(|&(k, v)| (k.to_owned(), v.to_owned()));
    let config = RunConfig::from_toml("", &sets.collect::<Vec<_>>())?;
    let (_, summary) = train::run(&config, out, resume, &activations::Silent, &Stop::new())?;
    Ok(summary.unwrap())
}

fn finished(config: &RunConfig, out: &Path) {
    let (outcome, _) = train::run(config, out, false, &activations::Silent, &Stop::new()).unwrap();
    assert_eq!(outcome, activations::Outcome::Finished);
}

/// The rows of a place, in other units.
fn other_units(place: &Place, signed: bool) -> std::path::PathBuf {
    let rows: Vec<f32> = sparse_rows(signed).iter().map(|v| v / 170.0).collect();
    npy(&place.out("other.npy"), &rows, D_IN)
}

#[test]
fn before_it_moves_a_run_is_the_dictionary_that_it_goes_on_from_whatever_the_units_of_its_data() {
    for (signed, own, of_run) in [
        (false, &[("sae.method", "topk")][..], &[][..]),
        (true, &[("sae.method", "abs_topk")], &[]),
        (false, &[("sae.method", "ksparse"), ("sae.tied", "true")], &[]),
        (false, &[("sae.method", "relu"), ("objective.l1.weight", "0.3")], &[]),
        (
            false,
            &[("sae.method", "jumprelu"), ("objective.l0.weight", "0.02")],
            &[],
        ),
        (false, &[("sae.method", "gated")], &[]),
        (false, &[("sae.method", "gated")], &[("sae.method", "gated")]),
        (
            false,
            &[
                ("sae.method", "topk"),
                ("sae.encoder", "unrolled"),
                ("sae.encoder_steps", "2"),
            ],
            &[],
        ),
        (
            true,
            &[("sae.method", "abs_topk"), ("sae.encoder", "orthogonal_pursuit")],
            &[],
        ),
        (
            true,
            &[
                ("sae.method", "abs_topk"),
                ("sae.encoder", "unrolled"),
                ("sae.encoder_weights", "learned"),
            ],
            &[],
        ),
    ] {
        let place = Place::new(signed);
        place.run(&sets(&STEPS, own), "old", false).unwrap();
        let (before, card) = load(&place.out("old"));
        let out = place.out("new");
        let summary = going_on(&place.acts, &place.out("old"), &out, &sets(&STILL, of_run), false).unwrap();
        let (after, new_card) = load(&out);
        assert_eq!(after.sparsifier, before.sparsifier, "{own:?}");
        for ((name, a), (_, b)) in parameters(&after).iter().zip(&parameters(&before)) {
            close(a, b, &format!("{own:?} {name}"));
        }
        let (was, is) = (card.held_out.unwrap(), summary.held_out);
        assert!(
            (was.fvu - is.fvu).abs() < 1e-5 && (was.l0 - is.l0).abs() < 0.01,
            "{own:?}: {was:?} {is:?}"
        );
        let from = new_card.initialised_from.unwrap();
        assert_eq!(
            (from.name.as_str(), from.sha256),
            ("old", digest(&place.out("old")).unwrap())
        );
        // The same function of activations that are a 170th as large.
        let small = place.out("small");
        going_on(
            &other_units(&place, signed),
            &place.out("old"),
            &small,
            &sets(&STILL, of_run),
            false,
        )
        .unwrap();
        for ((name, a), (_, b)) in parameters(&load(&small).0).iter().zip(&parameters(&before)) {
            close(a, b, &format!("{own:?} {name} in other units"));
        }
    }
}

#[test]
fn budgets_of_a_batch_go_on_as_such_or_with_the_thresholds_that_were_calibrated() {
    let place = Place::new(false);
    let old = place.out("old");
    let own = [("sae.method", "batch_topk"), ("sae.inference_l0", "2.5")];
    let before = place.run(&sets(&STEPS, &own), "old", false).unwrap();
    let again = going_on(&place.acts, &old, &place.out("again"), &STILL, false).unwrap();
    assert_eq!(again.method, "BatchTopK(3)");
    let (was, is) = (before.calibration.unwrap(), again.calibration.unwrap());
    assert_eq!((is.target_l0, is.trained_as), (2.5, was.trained_as));
    assert!(
        (was.threshold.unwrap() / is.threshold.unwrap() - 1.0).abs() < 1e-4,
        "{was:?} {is:?}"
    );
    assert!((before.held_out.fvu - again.held_out.fvu).abs() < 1e-4);
    // As thresholds that are learned on.
    let jump = sets(&STILL, &[("sae.method", "jumprelu")]);
    let jump = going_on(&place.acts, &old, &place.out("jump"), &jump, false).unwrap();
    let (sae, _) = load(&place.out("jump"));
    assert_eq!(sae.sparsifier, Sparsifier::new(Score::Positive, Allocation::Threshold));
    close(
        &sae.thresholds().unwrap().unwrap(),
        &load(&old).0.thresholds().unwrap().unwrap(),
        "thresholds",
    );
    assert!((before.held_out.fvu - jump.held_out.fvu).abs() < 1e-5);
}

#[test]
fn latents_that_are_added_come_behind_the_old_ones_and_are_not_in_their_way() {
    for (signed, own) in [
        (false, &[("sae.method", "topk")][..]),
        (true, &[("sae.method", "abs_topk")]),
        (false, &[("sae.method", "relu"), ("objective.l1.weight", "0.3")]),
        (false, &[("sae.method", "jumprelu"), ("objective.l0.weight", "0.02")]),
        (false, &[("sae.method", "gated")]),
        (
            false,
            &[
                ("sae.method", "topk"),
                ("sae.encoder", "unrolled"),
                ("sae.encoder_weights", "learned"),
            ],
        ),
    ] {
        let place = Place::new(signed);
        place.run(&sets(&STEPS, own), "old", false).unwrap();
        let (before, card) = load(&place.out("old"));
        let summary = going_on(
            &place.acts,
            &place.out("old"),
            &place.out("new"),
            &sets(&STILL, &[("sae.d_sae", "192")]),
            false,
        )
        .unwrap();
        let (after, _) = load(&place.out("new"));
        assert_eq!((after.d_sae(), summary.d_sae), (192, 192));
        for ((name, a), (_, b)) in parameters(&after).iter().zip(&parameters(&before)) {
            close(&a[..b.len()], b, &format!("{own:?} {name}"));
        }
        let (w_dec, w_enc) = (values(&after.w_dec), values(&after.w_enc));
        for (d, e) in w_dec.chunks(D_IN).zip(w_enc.chunks(D_IN)).skip(96) {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            assert!((dot(d, d) - 1.0).abs() < 1e-5 && (dot(d, e) - 0.03).abs() < 1e-5);
        }
        let (was, is) = (card.held_out.unwrap(), summary.held_out);
        assert!(is.fvu < 1.05 * was.fvu + 0.005, "{own:?}: {was:?} {is:?}");
    }
    // Those of a tied encoder are as long as the decoder's.
    let place = Place::new(false);
    place.run(&sets(&STEPS, &[("sae.tied", "true")]), "old", false).unwrap();
    let wider = sets(&STILL, &[("sae.d_sae", "100")]);
    going_on(&place.acts, &place.out("old"), &place.out("new"), &wider, false).unwrap();
    let (after, _) = load(&place.out("new"));
    assert_eq!(values(&after.w_enc), values(&after.w_dec));
}

#[test]
fn going_on_with_more_latents_leaves_less_unexplained() {
    let place = Place::new(false);
    // Fewer latents than there are directions.
    let before = place
        .run(
            &sets(&STEPS, &[("sae.d_sae", "24"), ("train.steps", "400")]),
            "old",
            false,
        )
        .unwrap();
    let more = sets(
        &STEPS,
        &[
            ("sae.d_sae", "72"),
            ("train.steps", "400"),
            ("train.dead_after_tokens", "2000"),
        ],
    );
    let after = going_on(&place.acts, &place.out("old"), &place.out("new"), &more, false).unwrap();
    println!("{before:?} {after:?}");
    assert!(after.held_out.fvu < 0.7 * before.held_out.fvu, "{before:?} {after:?}");
}

#[test]
fn a_skip_transcoder_goes_on_as_what_it_is_whatever_the_units_of_either_place() {
    let place = Place::new(false);
    let rows = sparse_rows(false);
    // Two halves of the coordinates, in units a hundred apart.
    let halves = |factor: f32, name: &str| {
        let half = D_IN / 2;
        let [left, right] = [0, half].map(|from| -> Vec<f32> {
            let rows = rows.chunks_exact(D_IN);
            rows.flat_map(|row| {
                row[from..from + half]
                    .iter()
                    .map(|v| v * if from == 0 { factor } else { 1.0 })
            })
            .collect()
        });
        (
            npy(&place.out(&format!("{name}-a.npy")), &left, half),
            npy(&place.out(&format!("{name}-b.npy")), &right, half),
        )
    };
    let (read, written) = halves(0.01, "old");
    let to = |path: &Path| format!("{:?}", path.display().to_string());
    let (acts, target) = (to(&read), to(&written));
    let transcoder = [
        ("data.acts", acts.as_str()),
        ("data.target_acts", &target),
        ("sae.skip", "true"),
    ];
    place.run(&sets(&STEPS, &transcoder), "old", false).unwrap();
    let (before, card) = load(&place.out("old"));
    assert_eq!(card.shape(), Shape::SkipTranscoder);
    let still = sets(&STILL, &[("data.target_acts", &target)]);
    let summary = going_on(&read, &place.out("old"), &place.out("new"), &still, false).unwrap();
    assert!((summary.held_out.fvu - card.held_out.unwrap().fvu).abs() < 1e-5);
    for ((name, a), (_, b)) in parameters(&load(&place.out("new")).0).iter().zip(&parameters(&before)) {
        close(a, b, name);
    }
    // A place in other units: the function is the same.
    let (read, written) = halves(3.0, "other");
    let target = to(&written);
    let still = sets(&STILL, &[("data.target_acts", &target)]);
    going_on(&read, &place.out("old"), &place.out("units"), &still, false).unwrap();
    for ((name, a), (_, b)) in parameters(&load(&place.out("units")).0)
        .iter()
        .zip(&parameters(&before))
    {
        close(a, b, name);
    }
    let error = going_on(&read, &place.out("old"), &place.out("x"), &STILL, false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("sae.init") && error.contains("data.target"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_before_any_work() {
    let place = Place::new(false);
    place.run(&sets(&STEPS, &[]), "old", false).unwrap();
    let narrow = npy(&place.out("narrow.npy"), &sparse_rows(false), D_IN / 2);
    let refused = |acts: &Path, init: &str, more: &[(&str, &str)]| {
        let out = place.out("refused");
        let error = going_on(acts, &place.out(init), &out, &sets(&STILL, more), false).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    let error = refused(&narrow, "old", &[]);
    for name in ["sae.init", "[24]", "[12]", "data.hook"] {
        assert!(error.contains(name), "{error}");
    }
    for (more, key) in [
        (("sae.d_sae", "95"), "sae.d_sae"),
        (("sae.expansion", "2"), "sae.expansion"),
        (("sae.method", "abs_topk"), "sae.method"),
        (("sae.tied", "true"), "sae.tied"),
    ] {
        let error = refused(&place.acts, "old", &[more]);
        assert!(error.contains(key) && error.contains("sae.init"), "{error}");
    }
    assert!(refused(&place.acts, "nowhere", &[]).contains("nowhere"));
    let acts = place.acts.display().to_string();
    let bilinear = [
        ("data.acts", acts.as_str()),
        ("sae.method", "bilinear"),
        ("sae.d_sae", "16"),
        ("train.steps", "2"),
        ("train.batch", "128"),
    ];
    let bilinear = bilinear.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let config = RunConfig::from_toml("", &bilinear).unwrap();
    finished(&config, &place.out("bilinear"));
    assert!(refused(&place.acts, "bilinear", &[]).contains("bilinear"));
}

#[test]
fn a_run_that_went_on_resumes_to_the_same_bytes_and_only_from_the_same_dictionary() {
    let place = Place::new(false);
    place
        .run(&sets(&STEPS, &[("sae.method", "jumprelu")]), "old", false)
        .unwrap();
    place
        .run(
            &sets(&STEPS, &[("sae.method", "jumprelu"), ("train.seed", "3")]),
            "another",
            false,
        )
        .unwrap();
    let init = format!("{:?}", place.out("old").display().to_string());
    let sets = [
        ("sae.init", init.as_str()),
        ("sae.method", "jumprelu"),
        ("sae.d_sae", "130"),
        ("objective.tilted.t", "2"),
        ("train.steps", "30"),
        ("train.log_every", "2"),
        ("train.eval_every", "10"),
        ("train.checkpoint_every", "8"),
        ("train.dead_after_tokens", "500"),
    ];
    place.run(&sets, "whole", false).unwrap();
    let kill = |out: &Path, at: u64| {
        let interrupt = Interrupt::new(at, None);
        let run = || train::run(&place.config(&sets), out, false, &interrupt, &Stop::new());
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    };
    // Behind a checkpoint, and before the first one.
    for (name, at) in [("killed", 21), ("early", 3)] {
        let out = place.out(name);
        kill(&out, at);
        let moved = place.out("moved");
        fs::rename(place.out("old"), &moved).unwrap();
        fs::rename(place.out("another"), place.out("old")).unwrap();
        let error = place.run(&sets, name, true).unwrap_err().to_string();
        assert!(error.contains("sae.init_digest"), "{error}");
        fs::rename(place.out("old"), place.out("another")).unwrap();
        fs::rename(&moved, place.out("old")).unwrap();
        place.run(&sets, name, true).unwrap();
        assert!(results(&out) == results(&place.out("whole")), "{name}");
    }
    // What a run wrote down is whole: as a configuration it makes the same run.
    let config = RunConfig::load(Some(&place.out("whole/run.toml")), &[]).unwrap();
    finished(&config, &place.out("again"));
    assert!(results(&place.out("again")) == results(&place.out("whole")));
}
