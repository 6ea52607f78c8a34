//! Every method, end to end on synthetic activations: what it learns, what is saved of it, and that it resumes.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

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
use sae::train::{self, RunSummary};
use sae::{Allocation, Encoder, Sae, Score, Shrink, Sparsifier, Weights};
use synthetic::{D_IN, Interrupt, Place, ROWS, sparse_rows};

/// Keys that make a run of 600 steps, and `more`.
fn sets<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let own = [("sae.method", method), ("train.steps", "600"), ("train.lr", "3e-3")];
    own.into_iter().chain(more.iter().copied()).collect()
}

/// Holds what is saved against what was measured: on all held-out rows, in the units of the activations, and alike
/// whatever the batches.
fn check_saved(place: &Place, name: &str, summary: &RunSummary, signed: bool) -> Sae {
    let (sae, card) = Sae::load(&place.out(name), &activations::Device::Cpu.open().unwrap()).unwrap();
    assert_eq!(
        (card.held_out, card.calibration),
        (Some(summary.held_out), summary.calibration)
    );
    assert!(sae.sparsifier.is_inference_form());
    let x = &sparse_rows(signed)[(ROWS - 600) * D_IN..];
    let mut quality = sae::metrics::Quality::new(D_IN);
    let mut active = 0;
    for x in x.chunks(37 * D_IN) {
        let code = sae.encode_rows(x).unwrap();
        active += code.values.iter().filter(|v| **v != 0.0).count();
        quality.add(x, &sae.recon_rows(x, &code).unwrap());
    }
    let fvu = quality.fvu().unwrap();
    assert!((fvu - summary.held_out.fvu).abs() < 1e-6, "{name}: {fvu} {summary:?}");
    assert!(
        (active as f64 / 600.0 - summary.held_out.l0).abs() < 0.01,
        "{name}: {active} {summary:?}"
    );
    sae
}

#[test]
fn budgets_of_a_batch_are_saved_with_a_threshold_that_reaches_their_l0() {
    for (method, signed) in [("batch_topk", false), ("abs_batch_topk", true)] {
        let place = Place::new(signed);
        // With two poles, half as many latents have a direction each.
        let d_sae = if signed { "48" } else { "96" };
        let summary = place
            .run(&sets(method, &[("sae.d_sae", d_sae)]), method, false)
            .unwrap();
        let sae = check_saved(&place, method, &summary, signed);
        assert_eq!(sae.sparsifier.allocation, Allocation::Threshold);
        let calibration = summary.calibration.unwrap();
        assert_eq!(
            (calibration.target_l0, calibration.calibration_rows, calibration.rows),
            (3.0, 300, 300)
        );
        assert!((calibration.l0 - 3.0).abs() < 0.4, "{calibration:?}");
        assert!(summary.held_out.fvu < if signed { 0.3 } else { 0.15 }, "{summary:?}");
        assert!(summary.method.contains("BatchTopK(3)"), "{summary:?}");
        assert!(calibration.threshold.unwrap() > 0.0);
    }
}

#[test]
fn penalised_methods_learn_sparse_codes() {
    let place = Place::new(false);
    let relu = sets("relu", &[("objective.l1.weight", "0.3")]);
    let jump = sets(
        "jumprelu",
        &[
            ("objective.l0.weight", "0.02"),
            ("sae.bandwidth", "0.5"),
            ("sae.threshold_init", "0.5"),
        ],
    );
    let tanh = sets("relu", &[("objective.tanh.weight", "0.02")]);
    let gated = sets("gated", &[("objective.l1.weight", "0.3")]);
    for (name, sets) in [("relu", relu), ("jumprelu", jump), ("tanh", tanh), ("gated", gated)] {
        let summary = place.run(&sets, name, false).unwrap();
        check_saved(&place, name, &summary, false);
        // A random dictionary has half of its 96 latents active.
        assert!(
            summary.held_out.fvu < 0.3 && summary.held_out.l0 < 20.0,
            "{name}: {summary:?}"
        );
        assert_eq!(summary.calibration, None);
    }
}

#[test]
fn thresholds_that_shrink_values_reach_the_l0_asked_for_and_are_saved_with_their_kind() {
    for signed in [true, false] {
        let place = Place::new(signed);
        let d_sae = if signed { "48" } else { "96" };
        let mut fvu = Vec::new();
        for (method, shrink) in [
            ("hard", Shrink::None),
            ("soft", Shrink::Soft),
            ("half", Shrink::Half),
            ("cel0", Shrink::Cel0 { eta: 0.5 }),
        ] {
            let more = [
                ("sae.signed", if signed { "true" } else { "false" }),
                ("sae.d_sae", d_sae),
            ];
            let summary = place.run(&sets(method, &more), method, false).unwrap();
            let sae = check_saved(&place, method, &summary, signed);
            let score = if signed { Score::Magnitude } else { Score::Positive };
            let expected = Sparsifier::new(score, Allocation::Threshold).shrunk(shrink);
            assert_eq!(sae.sparsifier, expected);
            let calibration = summary.calibration.unwrap();
            assert!((calibration.l0 - 3.0).abs() < 0.5, "{method}: {calibration:?}");
            fvu.push(summary.held_out.fvu);
        }
        // What is taken off the values costs, and soft takes the most.
        let soft = fvu[1];
        assert!(soft < 0.5 && [0, 2, 3].iter().all(|&i| fvu[i] < 0.9 * soft), "{fvu:?}");
    }
}

#[test]
fn a_strength_given_sets_the_threshold_and_the_l0_follows_from_it() {
    let place = Place::new(false);
    let l0 = |lambda: &str| {
        let more = [("sae.lambda", lambda), ("sae.signed", "false")];
        let summary = place.run(&sets("soft", &more), lambda, false).unwrap();
        let sae = check_saved(&place, lambda, &summary, false);
        assert_eq!(
            (sae.sparsifier.allocation, summary.calibration),
            (Allocation::Threshold, None)
        );
        summary.held_out.l0
    };
    let (weak, strong) = (l0("0.2"), l0("0.8"));
    assert!(strong < 0.8 * weak, "{weak} {strong}");
}

#[test]
fn feature_choice_gives_every_latent_its_share_and_is_saved_with_a_threshold_for_each() {
    for (method, signed) in [("feature_choice", false), ("abs_feature_choice", true)] {
        let place = Place::new(signed);
        let d_sae = if signed { "48" } else { "96" };
        // Forty directions are equally frequent: the law must not ask for more than they have.
        let more = [("sae.d_sae", d_sae), ("sae.zipf_exponent", "0.3")];
        let summary = place.run(&sets(method, &more), method, false).unwrap();
        let sae = check_saved(&place, method, &summary, signed);
        assert_eq!(sae.sparsifier.allocation, Allocation::Threshold);
        let calibration = summary.calibration.unwrap();
        assert_eq!((calibration.threshold, calibration.target_l0), (None, 3.0));
        assert!((calibration.l0 - 3.0).abs() < 0.5, "{calibration:?}");
        assert!(
            summary.held_out.fvu < 0.45 && summary.held_out.dead_share < 0.1,
            "{summary:?}"
        );
        assert!(summary.method.ends_with("FeatureChoice(3)"), "{summary:?}");
    }
}

#[test]
fn budgets_of_less_than_a_token_are_refused_before_any_work() {
    let place = Place::new(false);
    let error = place
        .run(
            &[("sae.method", "feature_choice"), ("sae.expansion", "40")],
            "run",
            false,
        )
        .unwrap_err()
        .to_string();
    for name in ["train.batch", "128", "960", "sae.d_sae", "sae.k"] {
        assert!(error.contains(name), "{error}");
    }
    assert!(!place.out("run").exists());
}

#[test]
fn a_tied_encoder_is_the_decoder_before_and_after_training() {
    let place = Place::new(false);
    for method in ["ksparse", "topk"] {
        let more = [("sae.tied", "true"), ("sae.k_start", "20")];
        let summary = place.run(&sets(method, &more), method, false).unwrap();
        let sae = check_saved(&place, method, &summary, false);
        let w_enc: Vec<f32> = sae.w_enc.clone().into_data().to_vec().unwrap();
        assert_eq!(w_enc, sae.decoder_rows().unwrap());
        assert!(summary.held_out.fvu < 0.3, "{method}: {summary:?}");
    }
}

#[test]
fn a_budget_that_comes_down_is_logged_as_it_does() {
    let place = Place::new(false);
    let more = [("sae.k_start", "40"), ("sae.k_share", "0.5"), ("train.log_every", "1")];
    let summary = place.run(&sets("ksparse", &more), "run", false).unwrap();
    assert_eq!(summary.held_out.l0, 3.0);
    let log = fs::read_to_string(place.out("run/metrics.jsonl")).unwrap();
    let l0 = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["l0"]
            .as_f64()
            .unwrap()
    };
    let all: Vec<f64> = log.lines().map(l0).collect();
    assert_eq!((all[0], all[300], all[599]), (40.0, 3.0, 3.0));
    assert!(all.is_sorted_by(|a, b| a >= b), "{all:?}");
}

#[test]
fn encoders_of_several_steps_are_saved_as_such_and_code_better_than_one_product() {
    let place = Place::new(false);
    // One matrix for both, so that what is better is the code.
    let tied = ("sae.tied", "true");
    let linear = place.run(&sets("topk", &[tied]), "linear", false).unwrap();
    for (encoder, method) in [
        ("unrolled", "topk"),
        ("matching_pursuit", "topk"),
        ("orthogonal_pursuit", "abs_topk"),
    ] {
        let more = [tied, ("sae.encoder", encoder)];
        let summary = place.run(&sets(method, &more), encoder, false).unwrap();
        let sae = check_saved(&place, encoder, &summary, false);
        assert_eq!(sae.sparsifier.k(), Some(3));
        let expected = match encoder {
            "unrolled" => Encoder::unrolled(3),
            "matching_pursuit" => Encoder::MatchingPursuit,
            _ => Encoder::OrthogonalPursuit,
        };
        assert_eq!((sae.sparsifier.encoder, summary.calibration), (expected, None));
        println!("{encoder}: {} {}", summary.held_out.fvu, linear.held_out.fvu);
        assert!(
            summary.held_out.fvu < linear.held_out.fvu,
            "{encoder}: {summary:?} {linear:?}"
        );
    }
    let more = [("sae.encoder", "unrolled"), ("sae.encoder_steps", "2")];
    let summary = place.run(&sets("jumprelu", &more), "jumprelu", false).unwrap();
    check_saved(&place, "jumprelu", &summary, false);
    assert!(summary.held_out.fvu < 0.3, "{summary:?}");
}

#[test]
fn steps_with_matrices_of_their_own_code_better_than_steps_that_share_one() {
    let place = Place::new(false);
    let unrolled = [("sae.encoder", "unrolled"), ("train.steps", "1200")];
    let shared = place.run(&sets("topk", &unrolled), "shared", false).unwrap();
    let learned: Vec<_> = unrolled
        .into_iter()
        .chain([("sae.encoder_weights", "learned")])
        .collect();
    let learned = place.run(&sets("topk", &learned), "learned", false).unwrap();
    let sae = check_saved(&place, "learned", &learned, false);
    let expected = Encoder::Unrolled {
        steps: 3,
        weights: Weights::Learned,
    };
    assert_eq!((sae.sparsifier.encoder, sae.steps.len()), (expected, 2));
    println!("{} {}", learned.held_out.fvu, shared.held_out.fvu);
    assert!(learned.held_out.fvu < shared.held_out.fvu, "{learned:?} {shared:?}");
    let text = fs::read_to_string(place.out("learned/run.toml")).unwrap();
    assert!(text.contains("encoder_weights = \"learned\""), "{text}");
}

#[test]
fn hidden_coordinates_are_reconstructed_from_the_visible_ones() {
    let place = Place::new(true);
    for (name, method, encoder) in [
        ("product", "abs_topk", "linear"),
        ("pursuit", "abs_topk", "orthogonal_pursuit"),
        ("batch", "abs_batch_topk", "linear"),
    ] {
        let more = [
            ("objective.masked.hidden", "0.1"),
            ("sae.encoder", encoder),
            ("sae.d_sae", "48"),
        ];
        let summary = place.run(&sets(method, &more), name, false).unwrap();
        check_saved(&place, name, &summary, true);
        let log = fs::read_to_string(place.out(name).join("metrics.jsonl")).unwrap();
        let part = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["parts"]["masked"]
                .as_f64()
                .unwrap()
        };
        let (first, last) = (part(log.lines().next().unwrap()), part(log.lines().last().unwrap()));
        println!("{name}: {first} {last} {}", summary.held_out.fvu);
        assert!(last < 0.8 * first, "{name}: {first} {last}");
    }
}

#[test]
fn the_auxiliary_loss_for_under_used_latents_is_logged_by_its_name() {
    let place = Place::new(false);
    let more = [
        ("train.aux", "aux_zipf"),
        ("sae.zipf_exponent", "0"),
        ("train.dead_after_tokens", "1000"),
        ("train.log_every", "1"),
    ];
    let summary = place.run(&sets("topk", &more), "run", false).unwrap();
    check_saved(&place, "run", &summary, false);
    let log = fs::read_to_string(place.out("run/metrics.jsonl")).unwrap();
    // Not before densities have had 1,000 tokens.
    let with: Vec<bool> = log.lines().map(|line| line.contains("\"aux_zipf\"")).collect();
    assert!(!with[..7].contains(&true) && with[8..].contains(&true), "{with:?}");
    assert!(!log.contains("\"aux_k\""));
    let toml = fs::read_to_string(place.out("run/run.toml")).unwrap();
    assert!(toml.contains("aux_zipf_share = 0.5"), "{toml}");
}

#[test]
fn an_l0_to_aim_at_is_reached_from_either_side() {
    let place = Place::new(false);
    for target in ["5.0", "10.0"] {
        let more = [
            ("objective.l0.target", target),
            ("objective.l0.weight", "0.1"),
            ("sae.bandwidth", "0.5"),
            ("sae.threshold_init", "0.5"),
        ];
        let summary = place.run(&sets("jumprelu", &more), target, false).unwrap();
        let off = summary.held_out.l0 / target.parse::<f64>().unwrap();
        assert!((0.75..1.25).contains(&off), "{target}: {summary:?}");
    }
}

#[test]
fn a_linear_k_sparse_code_recovers_sparse_data() {
    let place = Place::new(false);
    let summary = place.run(&sets("ksparse", &[]), "ksparse", false).unwrap();
    check_saved(&place, "ksparse", &summary, false);
    assert!(summary.held_out.fvu < 0.2, "{summary:?}");
    assert_eq!((summary.held_out.l0, summary.calibration), (3.0, None));
}

#[test]
fn a_budget_for_inference_is_that_of_what_is_saved_and_measured_and_not_of_training() {
    let place = Place::new(false);
    let plain = place.run(&sets("ksparse", &[]), "plain", false).unwrap();
    let more = [("sae.inference_k", "9")];
    let summary = place.run(&sets("ksparse", &more), "run", false).unwrap();
    let sae = check_saved(&place, "run", &summary, false);
    assert_eq!((sae.sparsifier.k(), summary.held_out.l0), (Some(9), 9.0));
    assert_eq!(
        (summary.method.as_str(), summary.calibration),
        (plain.method.as_str(), None)
    );
    // Training did not know of it.
    let parameters = |name: &str| fs::read(place.out(name).join("dictionary.safetensors")).unwrap();
    assert!(parameters("run") == parameters("plain"));
    let card = sae::DictionaryCard::load(&place.out("run")).unwrap();
    assert_eq!(card.trained_as().k(), Some(3));
    for (method, encoder) in [("topk", "matching_pursuit"), ("topk", "unrolled")] {
        let more = [("sae.inference_k", "6"), ("sae.encoder", encoder)];
        let summary = place.run(&sets(method, &more), encoder, false).unwrap();
        let sae = check_saved(&place, encoder, &summary, false);
        assert_eq!(sae.sparsifier.k(), Some(6));
    }
}

#[test]
fn per_token_budgets_become_thresholds_where_they_are_asked_for() {
    let place = Place::new(false);
    for form in ["threshold", "threshold_per_latent"] {
        let more = [("sae.inference", form), ("sae.inference_l0", "2.5")];
        let summary = place.run(&sets("topk", &more), form, false).unwrap();
        check_saved(&place, form, &summary, false);
        let calibration = summary.calibration.unwrap();
        assert_eq!(calibration.threshold.is_some(), form == "threshold");
        assert!((calibration.l0 - 2.5).abs() < 0.4, "{calibration:?}");
        assert_eq!(summary.method, "TopK(3)");
    }
}

#[test]
fn runs_of_every_allocation_resume_to_the_same_bytes_after_being_killed() {
    for (method, more) in [
        ("batch_topk", &[("objective.matryoshka.sampled", "3")][..]),
        ("batch_topk", &[("train.clip_norm", "0.5"), ("train.decay", "cosine")]),
        (
            "jumprelu",
            &[
                ("objective.tilted.t", "3"),
                ("train.ema", "0.9"),
                ("train.resample_every", "7"),
            ],
        ),
        (
            "relu",
            &[("objective.orthogonality.every", "3"), ("train.resample_every", "5")],
        ),
        (
            "gated",
            &[
                ("objective.tilted.t", "3"),
                ("train.ema", "0.9"),
                ("train.resample_every", "7"),
            ],
        ),
        ("half", &[("objective.tilted.t", "3"), ("train.optimizer", "muon")]),
        ("soft", &[("sae.lambda", "3")]),
        ("feature_choice", &[("sae.mutual_share", "0.4")]),
        ("ksparse", &[("sae.k_start", "30"), ("train.aux", "aux_zipf")]),
        (
            "topk",
            &[("sae.tied", "true"), ("sae.encoder", "unrolled"), ("train.ema", "0.9")],
        ),
        (
            "jumprelu",
            &[("sae.encoder", "unrolled"), ("objective.masked.hidden", "0.2")],
        ),
        (
            "abs_topk",
            &[
                ("sae.encoder", "unrolled"),
                ("sae.encoder_weights", "learned"),
                ("objective.masked.hidden", "0.2"),
                ("train.ema", "0.9"),
            ],
        ),
        (
            "topk",
            &[("sae.encoder", "matching_pursuit"), ("train.optimizer", "muon")],
        ),
        (
            "abs_topk",
            &[
                ("sae.encoder", "unrolled"),
                ("sae.encoder_weights", "learned"),
                ("train.optimizer", "muon"),
                ("train.resample_every", "7"),
                ("train.ema", "0.9"),
                ("train.clip_norm", "0.5"),
            ],
        ),
        ("jumprelu", &[("data.normalize", "whitening")]),
        ("gated", &[("data.normalize", "none")]),
        ("batch_topk", &[("data.normalize", "per_token")]),
        (
            "abs_topk",
            &[("sae.encoder", "orthogonal_pursuit"), ("objective.masked.weight", "1")],
        ),
    ] {
        let method = (method, more);
        let sets = [("sae.method", method.0)]
            .into_iter()
            .chain(more.iter().copied())
            .chain([
                ("train.steps", "30"),
                ("train.log_every", "2"),
                ("train.eval_every", "10"),
                ("train.checkpoint_every", "8"),
                ("train.dead_after_tokens", "500"),
            ]);
        let sets: Vec<(&str, &str)> = sets.collect();
        let place = Place::new(false);
        place.run(&sets, "whole", false).unwrap();
        let out = place.out("killed");
        let interrupt = Interrupt::new(21, None);
        let kill = || train::run(&place.config(&sets), &out, false, &interrupt, &Stop::new());
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        place.run(&sets, "killed", true).unwrap();
        assert!(results(&out) == results(&place.out("whole")), "{method:?}");
        let stopped = place.out("stopped");
        let stop = Stop::new();
        let interrupt = Interrupt::new(11, Some(stop.clone()));
        let (outcome, _) = train::run(&place.config(&sets), &stopped, false, &interrupt, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        place.run(&sets, "stopped", true).unwrap();
        assert!(results(&stopped) == results(&place.out("whole")), "{method:?}");
    }
}

#[test]
fn the_norm_of_gradients_is_logged_where_they_are_clipped_and_clipping_changes_the_run() {
    let place = Place::new(false);
    let plain = [("train.steps", "20"), ("train.log_every", "1")];
    let clipped = [
        plain[0],
        plain[1],
        ("train.clip_norm", "0.01"),
        ("train.decay", "constant"),
    ];
    let lines = |name: &str| -> Vec<serde_json::Value> {
        let log = fs::read_to_string(place.out(name).join("metrics.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let [a, b] = [("plain", &plain[..]), ("clipped", &clipped)].map(|(name, sets)| {
        place.run(sets, name, false).unwrap();
        lines(name)
    });
    assert!(a.iter().all(|line| line.get("gradient_norm").is_none()));
    assert!(b.iter().all(|line| line["gradient_norm"].as_f64().unwrap() > 0.01));
    // A constant rate does not fall at the end.
    assert_eq!(b[19]["lr"], b[10]["lr"]);
    assert!(a[19]["lr"].as_f64().unwrap() < a[10]["lr"].as_f64().unwrap());
    assert_ne!(a[19]["loss"], b[19]["loss"]);
    let toml = fs::read_to_string(place.out("clipped/run.toml")).unwrap();
    assert!(
        toml.contains("decay = \"constant\"") && !toml.contains("decay_share"),
        "{toml}"
    );
}

#[test]
fn resampled_latents_are_counted_along_the_run() {
    let place = Place::new(false);
    let more = [
        ("train.resample_every", "40"),
        ("train.dead_after_tokens", "2000"),
        ("train.log_every", "40"),
    ];
    let summary = place.run(&sets("topk", &more), "run", false).unwrap();
    check_saved(&place, "run", &summary, false);
    assert!(summary.held_out.fvu < 0.15, "{summary:?}");
    let log = fs::read_to_string(place.out("run/metrics.jsonl")).unwrap();
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let at = |step: u64| log.lines().map(line).find(|l| l["step"] == step).unwrap()["resampled"].clone();
    let counts: Vec<u64> = (1..=15).map(|n| at(40 * n).as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts[13] > 0, "{counts:?}");
    // Behind the last step nobody would train them.
    assert_eq!(counts[14], counts[13]);
}

#[test]
fn muon_learns_sparse_data_and_keeps_decoder_rows_at_length_one() {
    let place = Place::new(false);
    for tied in ["false", "true"] {
        let more = [("train.optimizer", "muon"), ("sae.tied", tied)];
        let summary = place.run(&sets("topk", &more), tied, false).unwrap();
        let sae = check_saved(&place, tied, &summary, false);
        println!("muon, tied {tied}: {}", summary.held_out.fvu);
        assert!(summary.held_out.fvu < 0.2, "{summary:?}");
        for row in sae.decoder_rows().unwrap().chunks(D_IN) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
        let toml = fs::read_to_string(place.out(tied).join("run.toml")).unwrap();
        assert!(toml.contains("muon_momentum = 0.95"), "{toml}");
    }
}

#[test]
fn an_average_of_the_parameters_is_saved_with_unit_rows_and_measured() {
    for (method, signed, more) in [
        ("topk", false, &[][..]),
        ("topk", false, &[("sae.tied", "true")]),
        ("gated", false, &[("objective.l1.weight", "0.3")]),
        ("abs_batch_topk", true, &[]),
    ] {
        let place = Place::new(signed);
        // Without a decay of the rate the last parameters jitter about their mean.
        let rate = [("train.decay", "constant"), ("train.lr", "2e-2")];
        let more: Vec<_> = more.iter().copied().chain(rate).collect();
        let plain = place.run(&sets(method, &more), "plain", false).unwrap();
        let more: Vec<_> = more.into_iter().chain([("train.ema", "0.98")]).collect();
        let summary = place.run(&sets(method, &more), "run", false).unwrap();
        let sae = check_saved(&place, "run", &summary, signed);
        for row in sae.decoder_rows().unwrap().chunks(D_IN) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{method}: {length}");
        }
        println!("{method}: {} {}", summary.held_out.fvu, plain.held_out.fvu);
        assert!(
            summary.held_out.fvu < plain.held_out.fvu,
            "{method}: {summary:?} {plain:?}"
        );
    }
}

#[test]
fn activations_are_normalised_as_asked_and_what_is_saved_takes_raw_ones_all_the_same() {
    let place = Place::new(false);
    let plain = place.run(&sets("topk", &[]), "plain", false).unwrap();
    let named = place
        .run(&sets("topk", &[("data.normalize", "mean_norm")]), "named", false)
        .unwrap();
    assert_eq!(plain.held_out, named.held_out);
    assert!(results(&place.out("plain")) == results(&place.out("named")));
    for (method, normalize) in [
        ("topk", "whitening"),
        ("batch_topk", "whitening"),
        ("gated", "whitening"),
        ("topk", "none"),
        ("topk", "per_token"),
        ("batch_topk", "per_token"),
    ] {
        let name = format!("{method}-{normalize}");
        let more = [("data.normalize", normalize)];
        let summary = place.run(&sets(method, &more), &name, false).unwrap();
        let sae = check_saved(&place, &name, &summary, false);
        println!("{name}: {:?}", summary.held_out);
        assert!(summary.held_out.fvu < 0.4, "{name}: {summary:?}");
        let lengths: Vec<f32> = sae
            .decoder_rows()
            .unwrap()
            .chunks_exact(D_IN)
            .map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt())
            .collect();
        let unit = lengths.iter().all(|l| (l - 1.0).abs() < 1e-4);
        assert_eq!(unit, normalize != "whitening", "{name}");
        let text = fs::read_to_string(place.out(&name).join("dictionary.json")).unwrap();
        assert_eq!(text.contains("per_token\": true"), normalize == "per_token", "{text}");
    }
    // It goes on from a dictionary that divides by norms if it does so itself.
    let init = place.out("topk-per_token");
    let init = ("sae.init", init.to_str().unwrap());
    let error = place.run(&sets("topk", &[init]), "on", false).unwrap_err().to_string();
    assert!(
        error.contains("data.normalize") && error.contains("sae.init"),
        "{error}"
    );
    let more = [init, ("data.normalize", "per_token")];
    let summary = place.run(&sets("topk", &more), "on", false).unwrap();
    check_saved(&place, "on", &summary, false);
    for (more, names) in [
        (("sae.encoder", "matching_pursuit"), ["data.normalize", "sae.encoder"]),
        (
            ("data.target_acts", "elsewhere"),
            ["data.normalize", "data.target_acts"],
        ),
        (("data.hooks", "[\"a\", \"b\"]"), ["data.normalize", "data.hooks"]),
    ] {
        let sets = [more, ("data.normalize", "whitening"), ("data.acts", "acts")];
        let sets: Vec<_> = sets.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let error = sae::config::RunConfig::from_toml("", &sets).unwrap_err().to_string();
        assert!(names.iter().all(|name| error.contains(name)), "{error}");
    }
}

#[test]
fn parts_of_the_loss_are_logged_by_name_and_the_thresholds_are_in_the_card() {
    let place = Place::new(false);
    let sets = [
        ("sae.method", "jumprelu"),
        ("train.steps", "10"),
        ("objective.l1.weight", "0.01"),
        ("objective.l0.weight", "0.01"),
    ];
    place.run(&sets, "run", false).unwrap();
    let log = fs::read_to_string(place.out("run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    for part in ["mse", "l1", "l0"] {
        assert!(last["parts"][part].is_number(), "{part}: {last}");
    }
    // The step's value is the number of latents that fired, whatever its gradient does.
    let (l0, fired) = (last["parts"]["l0"].as_f64().unwrap(), last["l0"].as_f64().unwrap());
    assert!((l0 - fired).abs() < 1e-3 * fired, "{l0} {fired}");
    let summary = fs::read_to_string(place.out("run/summary.json")).unwrap();
    assert!(summary.contains("JumpReLU"), "{summary}");
}

/// FVU on the held-out rows of what `keep` leaves of each row's entries, numbered best first.
fn fvu_of_kept(place: &Place, name: &str, keep: impl Fn(usize, usize) -> bool) -> f64 {
    let (sae, _) = Sae::load(&place.out(name), &activations::Device::Cpu.open().unwrap()).unwrap();
    let x = &sparse_rows(false)[(ROWS - 600) * D_IN..];
    let mut code = sae.encode_rows(x).unwrap();
    for range in code.rows.clone().ranges() {
        for (rank, n) in range.enumerate() {
            if !keep(rank, code.indices[n] as usize) {
                code.values[n] = 0.0;
            }
        }
    }
    let mut quality = sae::metrics::Quality::new(D_IN);
    quality.add(x, &sae.decode_rows(&code).unwrap());
    quality.fvu().unwrap()
}

#[test]
fn one_hierarchical_dictionary_serves_a_smaller_k_better_than_topk_cut_short() {
    let place = Place::new(false);
    let k = [("sae.k", "6")];
    place.run(&sets("topk", &k), "plain", false).unwrap();
    place
        .run(
            &sets("topk", &[k[0], ("objective.hierarchical.weight", "1.0")]),
            "nested",
            false,
        )
        .unwrap();
    for cut in [1, 2, 3] {
        let [plain, nested] = ["plain", "nested"].map(|name| fvu_of_kept(&place, name, |rank, _| rank < cut));
        assert!(nested < plain, "cut at {cut}: {nested} {plain}");
    }
}

#[test]
fn the_first_latents_of_a_matryoshka_reconstruct_better_on_their_own() {
    let place = Place::new(false);
    let batch = [("sae.inference_l0", "3.0")];
    place.run(&sets("batch_topk", &batch), "plain", false).unwrap();
    for (name, more) in [
        ("fixed", ("objective.matryoshka.widths", "[24, 48]")),
        ("sampled", ("objective.matryoshka.sampled", "3")),
    ] {
        let summary = place.run(&sets("batch_topk", &[batch[0], more]), name, false).unwrap();
        let [plain, nested] = ["plain", name].map(|name| fvu_of_kept(&place, name, |_, latent| latent < 24));
        assert!(nested < 0.9 * plain, "{name}: {nested} {plain}; {summary:?}");
    }
}

#[test]
fn orthogonality_takes_decoder_rows_apart_and_its_part_is_logged_when_it_speaks() {
    let place = Place::new(false);
    place.run(&sets("topk", &[]), "plain", false).unwrap();
    let more = [
        ("objective.orthogonality.weight", "0.25"),
        ("objective.orthogonality.every", "5"),
        ("train.log_every", "1"),
    ];
    let summary = place.run(&sets("topk", &more), "apart", false).unwrap();
    let mean_max_cosine = |name: &str| {
        let (sae, _) = Sae::load(&place.out(name), &activations::Device::Cpu.open().unwrap()).unwrap();
        let rows = sae.decoder_rows().unwrap();
        let rows: Vec<&[f32]> = rows.chunks(D_IN).collect();
        let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let largest = |i: usize| {
            let others = (0..rows.len()).filter(|j| *j != i);
            others.map(|j| cosine(rows[i], rows[j])).fold(-1.0, f32::max)
        };
        (0..rows.len()).map(largest).sum::<f32>() / rows.len() as f32
    };
    let (plain, apart) = (mean_max_cosine("plain"), mean_max_cosine("apart"));
    assert!(apart < 0.8 * plain, "{apart} {plain}; {summary:?}");
    let log = fs::read_to_string(place.out("apart/metrics.jsonl")).unwrap();
    let with = log.lines().filter(|line| line.contains("\"orthogonality\"")).count();
    assert_eq!((log.lines().count(), with), (600, 120));
}
