//! Training runs end to end on synthetic activations: what they learn, and how they stop, resume and refuse.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "training/odd.rs"]
mod odd;
#[path = "support/results.rs"]
mod results;
#[path = "support/npy.rs"]
mod support;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use activations::{Outcome, Stop};
use results::results;
use sae::Sae;
use sae::config::RunConfig;
use sae::train;
use support::npy;
use synthetic::{D_IN, Interrupt, Place, ROWS, sparse_rows};

#[test]
fn topk_recovers_sparse_data() {
    let place = Place::new(false);
    let summary = place
        .run(&[("train.steps", "600"), ("train.lr", "3e-3")], "run", false)
        .unwrap();
    assert_eq!(summary.held_out.rows, 600);
    assert!(summary.held_out.fvu < 0.15, "{summary:?}");
    assert!(summary.held_out.l0 > 2.5 && summary.held_out.l0 <= 3.0, "{summary:?}");
    // What is saved is what was measured, in the units of the activations.
    let (sae, card) = Sae::load(&place.out("run"), &activations::Device::Cpu.open().unwrap()).unwrap();
    assert_eq!(card.held_out, Some(summary.held_out));
    let x = &sparse_rows(false)[(ROWS - 600) * D_IN..];
    let mut quality = sae::metrics::Quality::new(D_IN);
    quality.add(x, &sae.decode_rows(&sae.encode_rows(x).unwrap()).unwrap());
    assert!((quality.fvu().unwrap() - summary.held_out.fvu).abs() < 1e-9);
}

#[test]
fn abs_topk_recovers_signed_data_that_topk_of_the_same_width_does_not() {
    let place = Place::new(true);
    let sets = |method| {
        [
            ("sae.method", method),
            ("sae.d_sae", "48"),
            ("train.steps", "600"),
            ("train.lr", "3e-3"),
        ]
    };
    let signed = place.run(&sets("abs_topk"), "signed", false).unwrap();
    let positive = place.run(&sets("topk"), "positive", false).unwrap();
    assert!(signed.held_out.fvu < 0.15, "{signed:?}");
    assert!(
        signed.held_out.fvu < 0.7 * positive.held_out.fvu,
        "{signed:?} {positive:?}"
    );
    // Both poles are used: some latent fires with either sign.
    let (sae, _) = Sae::load(&place.out("signed"), &activations::Device::Cpu.open().unwrap()).unwrap();
    let code = sae.encode_rows(&sparse_rows(true)[..1000 * D_IN]).unwrap();
    let fires = |latent: usize, sign: f32| {
        code.indices
            .iter()
            .zip(&code.values)
            .any(|(&i, &v)| i as usize == latent && v * sign > 0.0)
    };
    assert!((0..48).filter(|&i| fires(i, 1.0) && fires(i, -1.0)).count() > 20);
}

#[test]
fn a_run_that_was_stopped_resumes_to_the_same_bytes() {
    let place = Place::new(false);
    for (method, at) in [("topk", 37), ("abs_topk", 8)] {
        let sets = [
            ("sae.method", method),
            ("train.steps", "60"),
            ("train.log_every", "3"),
            ("train.eval_every", "20"),
            ("train.dead_after_tokens", "500"),
        ];
        let whole = format!("{method}-whole");
        place.run(&sets, &whole, false).unwrap();
        let out = place.out(&format!("{method}-stopped"));
        let stop = Stop::new();
        let interrupt = Interrupt::new(at, Some(stop.clone()));
        let (outcome, summary) = train::run(&place.config(&sets), &out, false, &interrupt, &stop).unwrap();
        assert_eq!((outcome, summary), (Outcome::Stopped, None));
        assert!(!out.join("dictionary.json").exists());
        let absent = Sae::load(&out, &activations::Device::Cpu.open().unwrap()).unwrap_err();
        assert!(absent.to_string().contains("--resume"), "{absent}");
        place.run(&sets, &format!("{method}-stopped"), true).unwrap();
        assert!(results(&out) == results(&place.out(&whole)), "{method}");
    }
}

#[test]
fn a_checkpoint_of_another_build_is_refused_by_its_version_whatever_else_it_says() {
    let place = Place::new(false);
    let sets = [("train.steps", "60")];
    let stop = Stop::new();
    let interrupt = Interrupt::new(8, Some(stop.clone()));
    let out = place.out("stopped");
    let (outcome, _) = train::run(&place.config(&sets), &out, false, &interrupt, &stop).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    let path = out.join("checkpoint/state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (version, who) in [(99, "newer"), (0, "older")] {
        let mut other = state.clone();
        other["version"] = version.into();
        other["something"] = "of that version".into();
        fs::write(&path, other.to_string()).unwrap();
        let error = place.run(&sets, "stopped", true).unwrap_err().to_string();
        assert!(error.contains("state.json") && error.contains(who), "{error}");
    }
    fs::write(&path, state.to_string()).unwrap();
    place.run(&sets, "stopped", true).unwrap();
}

#[test]
fn a_run_that_was_killed_resumes_from_its_checkpoint_to_the_same_bytes() {
    let place = Place::new(false);
    let sets = [
        ("train.steps", "50"),
        ("train.log_every", "2"),
        ("train.eval_every", "10"),
        ("train.checkpoint_every", "20"),
    ];
    place.run(&sets, "whole", false).unwrap();
    // Before the first checkpoint, behind it, and behind the last.
    for at in [7, 33, 49] {
        let out = place.out(&format!("killed-{at}"));
        let kill = || {
            train::run(
                &place.config(&sets),
                &out,
                false,
                &Interrupt::new(at, None),
                &Stop::new(),
            )
        };
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        assert_eq!(
            log.lines().count() as u64,
            (at - 1) / 2,
            "lines behind the checkpoint are there to be cut"
        );
        // A line that was being written.
        fs::write(out.join("metrics.jsonl"), log + "{\"step\":").unwrap();
        place.run(&sets, &format!("killed-{at}"), true).unwrap();
        assert!(results(&out) == results(&place.out("whole")), "killed at {at}");
    }
    let checkpoint: Vec<_> = fs::read_dir(place.out("killed-33/checkpoint")).unwrap().collect();
    assert_eq!(checkpoint.len(), 2, "one state and its tensors: {checkpoint:?}");
}

#[test]
fn a_directory_with_a_run_is_refused_and_a_finished_run_gives_its_summary() {
    let place = Place::new(false);
    let sets = [("train.steps", "4")];
    let first = place.run(&sets, "run", false).unwrap();
    let before = results(&place.out("run"));
    let error = place.run(&sets, "run", false).unwrap_err().to_string();
    assert!(
        error.contains("run") && error.contains("--resume") && error.contains("--out"),
        "{error}"
    );
    assert_eq!(place.run(&sets, "run", true).unwrap(), first);
    assert!(results(&place.out("run")) == before);
    let error = place.run(&sets, "nothing", true).unwrap_err().to_string();
    assert!(error.contains("no run to resume"), "{error}");
}

/// Starts a second run in the directory of one that is on its way.
struct Second<'a> {
    place: &'a Place,
    said: std::sync::Mutex<Vec<String>>,
}

impl activations::Progress for Second<'_> {
    fn advance(&self, n: u64) {
        if n == 128 {
            let error = self.place.run(&[("train.steps", "4")], "run", true).unwrap_err();
            self.said.lock().unwrap().push(error.to_string());
        }
    }
}

#[test]
#[cfg(unix)]
fn a_run_that_is_on_its_way_is_not_resumed_by_a_second_process() {
    let place = Place::new(false);
    let second = Second {
        place: &place,
        said: Default::default(),
    };
    let config = place.config(&[("train.steps", "4")]);
    let (outcome, _) = train::run(&config, &place.out("run"), false, &second, &Stop::new()).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let said = second.said.into_inner().unwrap();
    assert_eq!(said.len(), 4);
    assert!(
        said.iter().all(|e| e.contains("another process is writing this run")),
        "{said:?}"
    );
    place.run(&[("train.steps", "4")], "run", true).unwrap();
}

#[test]
fn a_changed_configuration_or_changed_data_is_refused_on_resume() {
    let place = Place::new(false);
    let stop = Stop::new();
    let interrupt = Interrupt::new(3, Some(stop.clone()));
    let config = place.config(&[("train.steps", "9")]);
    let (outcome, _) = train::run(&config, &place.out("run"), false, &interrupt, &stop).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    let error = place
        .run(&[("train.steps", "9"), ("sae.k", "5")], "run", true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("sae.k is 5, was 3"), "{error}");
    let mut rows = sparse_rows(false);
    rows[0] += 1.0;
    npy(&place.acts, &rows, D_IN);
    let error = place.run(&[("train.steps", "9")], "run", true).unwrap_err().to_string();
    assert!(error.contains("other activations"), "{error}");
}

#[test]
fn divergence_names_the_step_and_the_last_good_checkpoint() {
    let place = Place::new(false);
    let sets = [
        ("train.steps", "100"),
        ("train.checkpoint_every", "1"),
        ("train.warmup_steps", "50"),
        ("train.lr", "1e38"),
    ];
    let error = place.run(&sets, "run", false).unwrap_err().to_string();
    assert!(
        error.contains("diverged") && error.contains("train.lr") && error.contains("at step"),
        "{error}"
    );
    assert!(error.contains("the last good checkpoint is of step"), "{error}");
    for part in [
        "the batch of step",
        "was rows",
        "and 123 others of",
        "acts.npy",
        "is row",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_explosion_that_stays_finite_stops_the_run_and_keeps_the_checkpoint_from_before() {
    let place = Place::new(false);
    let sets = [
        ("train.steps", "60"),
        ("train.checkpoint_every", "1"),
        ("train.warmup_steps", "0"),
        ("train.lr", "100"),
    ];
    let error = place.run(&sets, "run", false).unwrap_err().to_string();
    for part in [
        "diverged",
        "train.explosion",
        "at step 11",
        "since step 2",
        "the batch of step 2 was rows",
        "train.lr",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.contains("the last good checkpoint is of step 1 in"), "{error}");
    let state = fs::read_to_string(place.out("run/checkpoint/state.json")).unwrap();
    assert!(state.contains("\"step\": 1"), "{state}");
    // Stopped in between and resumed, it ends at the same step with the same words but for the checkpoint.
    let stop = Stop::new();
    let interrupt = Interrupt::new(6, Some(stop.clone()));
    let (outcome, _) = train::run(&place.config(&sets), &place.out("stopped"), false, &interrupt, &stop).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    let again = place.run(&sets, "stopped", true).unwrap_err().to_string();
    let words = |error: &str| error.split("; the last").next().unwrap().to_owned();
    assert_eq!(words(&again), words(&error));
    assert!(again.contains("is of step 6") && again.contains("had begun"), "{again}");
    // Asked for, it goes on.
    let more = [("train.explosion", "0")];
    place.run(&[&sets[..], &more].concat(), "on", false).unwrap();
}

#[test]
fn bad_activations_and_sizes_are_refused_by_name() {
    let place = Place::new(false);
    let refused = |sets: &[(&str, &str)], names: &[&str]| {
        let error = place.run(sets, "refused", false).unwrap_err().to_string();
        assert!(names.iter().all(|n| error.contains(n)), "{error}");
        // Nothing is in the way of another try.
        assert!(!place.out("refused/run.toml").exists());
    };
    // 24 wide times 1 is fewer than k.
    let acts = place.config(&[]);
    assert!(train::plan(&acts).is_ok());
    let mut few = acts.clone();
    (few.sae.d_sae, few.sae.expansion, few.sae.k) = (None, Some(1), Some(25));
    let error = train::plan(&few).unwrap_err().to_string();
    assert!(
        error.contains("sae.k") && error.contains("25") && error.contains("24"),
        "{error}"
    );
    refused(&[("data.acts", "no/such/place")], &["no/such/place"]);
    refused(&[("data.hook", "blocks.0.hook_resid_post")], &["acts.npy", "hook"]);
    refused(&[("data.held_out_rows", "6000")], &["6000"]);
    refused(&[("train.device", "cuda:0")], &["cuda"]);
    let error = train::plan(&RunConfig::default()).unwrap_err().to_string();
    assert!(error.contains("data.acts"), "{error}");

    let mut rows = sparse_rows(false);
    rows[4321 * D_IN + 7] = f32::NAN;
    npy(&place.acts, &rows, D_IN);
    refused(&[("train.steps", "100")], &["acts.npy", "row 4321"]);
    npy(&place.acts, &vec![2.5; 100 * D_IN], D_IN);
    refused(&[("train.steps", "100")], &["acts.npy", "equal"]);
}

#[test]
fn the_plan_fills_every_gap_and_its_run_toml_says_so() {
    let place = Place::new(false);
    let mut config = RunConfig::default();
    config.data.acts = Some(place.acts.clone());
    let plan = train::plan(&config).unwrap();
    // 5,400 rows to train on: an eighth is 675.
    assert_eq!((plan.d_sae, plan.batch, plan.steps), (8 * D_IN, 512, 1000));
    assert_eq!(plan.held_out_rows, 5400..6000);
    assert_eq!(plan.dead_after_tokens, 1000 * 512 / 20);
    assert!((plan.config.train.lr.unwrap() - 2e-4 / (192.0f64 / 16384.0).sqrt()).abs() < 1e-12);
    let text = plan.to_string();
    for part in [
        "TopK(32)",
        "25600 silent tokens",
        "1000 steps of 512 tokens",
        "MiB of memory",
        "MiB of disk",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Nothing is left open: the written file makes the same plan.
    let written = RunConfig::from_toml(&plan.config.to_toml().unwrap(), &[]).unwrap();
    let again = train::plan(&written).unwrap();
    assert_eq!(again.config, plan.config);
    assert_eq!(plan.config.to_toml().unwrap().matches('=').count(), 27);
}

#[test]
fn the_log_holds_every_part_and_nothing_of_the_clock() {
    let place = Place::new(false);
    let summary = place
        .run(
            &[("train.steps", "40"), ("train.dead_after_tokens", "256")],
            "run",
            false,
        )
        .unwrap();
    let log = fs::read_to_string(place.out("run/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 40);
    let last = lines.last().unwrap();
    for key in ["step", "tokens", "epoch", "lr", "loss", "l0", "dead_share"] {
        assert!(last[key].is_number(), "{key}: {last}");
    }
    assert!(
        last["parts"]["mse"].is_number() && last["held_out"]["fvu"].is_number(),
        "{last}"
    );
    assert!(lines.iter().any(|l| l["parts"]["aux_k"].is_number()));
    // Densities are there where held-out rows were measured, and account for every latent.
    for line in &lines {
        assert_eq!(line["density"].is_object(), line["held_out"].is_object(), "{line}");
    }
    let density = &last["density"];
    let fired: u64 = density["histogram"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .sum();
    let (never, d_sae) = (density["never"].as_u64().unwrap() as f64, summary.d_sae as f64);
    assert_eq!(fired as f64 + never, d_sae);
    assert_eq!(last["held_out"]["dead_share"].as_f64().unwrap(), never / d_sae);
    assert_eq!(density["quantiles"].as_array().unwrap().len(), 9);
    assert!(!log.contains("second"));
    let timings = fs::read_to_string(place.out("run/timings.jsonl")).unwrap();
    assert!(timings.lines().count() == 40 && timings.contains("tokens_per_second"));
    let svg = fs::read_to_string(place.out("run/curves.svg")).unwrap();
    for text in [
        "fraction of variance unexplained",
        "dead latents, %",
        "(L0)",
        "tokens",
        "held out",
        "polyline",
    ] {
        assert!(svg.contains(text), "{text}");
    }
}
