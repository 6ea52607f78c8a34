use activations::source::Activations;
use activations::{Silent, Stop};

use super::*;
use crate::config::RunConfig;
use crate::train::{Part, Times, Timing, Training};

const D_IN: usize = 8;
const D_SAE: usize = 32;
const BATCH: usize = 16;

/// A run of five steps on rows in `dir`.
fn training(dir: &std::path::Path, settings: &[(&str, &str)]) -> Training {
    let path = dir.join("rows.npy");
    write_rows(&path, 8 * BATCH, D_IN, D_SAE, 3).unwrap();
    let acts = format!("{:?}", path.to_str().unwrap());
    let own = [("data.acts", acts.as_str()), ("sae.d_sae", "32"), ("train.batch", "16")];
    let more = [("train.steps", "5"), ("train.dead_after_tokens", "100000")];
    let all = own.iter().chain(&more).chain(settings);
    let overrides: Vec<(String, String)> = all.map(|&(k, v)| (k.into(), v.into())).collect();
    Training::open(&RunConfig::from_toml("", &overrides).unwrap(), &Silent).unwrap()
}

fn timed(settings: &[(&str, &str)], timing: Timing) -> Times {
    let dir = tempfile::tempdir().unwrap();
    let training = training(dir.path(), settings);
    training.time_steps(timing, &Silent, &Stop::new()).unwrap().unwrap()
}

#[test]
fn the_median_is_the_middle_one_or_the_mean_of_two() {
    assert_eq!(median([5.0, 1.0, 2.0]), 2.0);
    assert_eq!(median([4.0, 1.0, 3.0, 100.0]), 3.5);
    assert_eq!(median([]), 0.0);
}

#[test]
fn short_times_keep_their_digits() {
    assert_eq!(
        [milliseconds(0.3), milliseconds(0.0123), milliseconds(0.00001)],
        ["300 ms", "12.3 ms", "0.010 ms"]
    );
}

#[test]
fn the_bound_of_a_step_is_what_its_definition_gives_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let training = training(dir.path(), &[("sae.k", "4")]);
    let work = Work::of_step(training.plan(), 4.0).unwrap();
    // Two matrices and two biases, each with two moments, read and written; 4 B k d floats of rows.
    let state = 2 * 4 * 3 * (2 * D_IN * D_SAE + D_IN + D_SAE);
    let rows = 4 * BATCH * 4 * D_IN * 4;
    assert_eq!(work.bytes, (state + rows) as f64);
    assert_eq!(work.flops(), (2 * BATCH * D_IN * D_SAE) as f64);
    let rates = Rates {
        product: ProductRate {
            flops_per_s: 2.0,
            by: ProductBy::Given,
        },
        copy_bytes_per_s: 4.0,
    };
    assert_eq!(
        work.bound(&rates),
        (BATCH * D_IN * D_SAE) as f64 + (state + rows) as f64 / 4.0
    );
}

#[test]
fn muon_keeps_one_moment_of_a_matrix_and_a_tied_encoder_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let values = |settings: &[(&str, &str)]| training(dir.path(), settings).plan().state_values().unwrap();
    let (matrix, biases) = ((D_IN * D_SAE) as u64, (D_IN + D_SAE) as u64);
    assert_eq!(values(&[]), 3 * (2 * matrix + biases));
    assert_eq!(values(&[("sae.tied", "true")]), 3 * (matrix + biases));
    assert_eq!(values(&[("train.optimizer", "muon")]), 2 * 2 * matrix + 3 * biases);
    assert_eq!(values(&[("train.ema", "0.9")]), 4 * (2 * matrix + biases));
}

#[test]
fn an_encoder_of_several_products_has_to_do_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let products = |encoder: &str| {
        let training = training(dir.path(), &[("sae.k", "5"), ("sae.encoder", encoder)]);
        Work::of_step(training.plan(), 5.0).unwrap().products
    };
    assert_eq!(
        [products("linear"), products("unrolled"), products("matching_pursuit")],
        [1, 3, 5]
    );
}

#[test]
fn the_parts_of_a_step_are_all_of_it_and_the_warm_up_is_not_counted() {
    let timing = Timing {
        warm_up: 2,
        dead_share: 0.0,
    };
    let times = timed(&[("sae.k", "4")], timing);
    assert_eq!((times.seconds.len(), times.parts.len()), (3, 3));
    for (whole, parts) in times.seconds.iter().zip(&times.parts) {
        let sum: f64 = parts.iter().sum();
        assert!(sum <= *whole && sum > 0.5 * whole, "{sum} of {whole}: {parts:?}");
    }
    for part in [Part::Encode, Part::Decode, Part::Loss, Part::Gradients, Part::Optimizer] {
        assert!(times.part(part) > 0.0, "{}", part.name());
    }
    assert!(times.l0 > 0.0 && times.l0 <= 4.0, "{}", times.l0);
}

#[test]
fn every_method_can_be_timed_and_one_without_a_sparse_code_has_no_bound() {
    for method in ["batch_topk", "feature_choice", "jumprelu", "gated", "hard", "bilinear"] {
        let times = timed(&[("sae.method", method)], Timing::default());
        assert_eq!(times.seconds.len(), 5, "{method}");
        assert_eq!(times.work.is_none(), method == "bilinear", "{method}");
    }
}

#[test]
fn timing_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let training = training(dir.path(), &[("sae.k", "4")]);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    let times = training.time_steps(Timing::default(), &Silent, &Stop::new()).unwrap();
    assert_eq!(times.unwrap().seconds.len(), 5);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn encoding_alone_is_timed_for_codes_of_tokens_and_refused_for_budgets_of_latents() {
    let dir = tempfile::tempdir().unwrap();
    let timing = Timing {
        warm_up: 1,
        dead_share: 0.0,
    };
    let topk = training(dir.path(), &[("sae.k", "4")]);
    let times = topk.time_encoding(timing, &Silent, &Stop::new()).unwrap().unwrap();
    assert_eq!(times.seconds.len(), 4);
    let work = times.work.unwrap();
    let values = D_IN * D_SAE + BATCH * D_IN;
    assert_eq!(work.bytes, 4.0 * (values as f64 + 2.0 * BATCH as f64 * 4.0));
    for method in ["feature_choice", "bilinear"] {
        let training = training(dir.path(), &[("sae.method", method)]);
        assert!(
            training.time_encoding(timing, &Silent, &Stop::new()).is_err(),
            "{method}"
        );
    }
}

#[test]
fn a_stop_ends_the_timing() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::new();
    stop.request();
    let times = training(dir.path(), &[]).time_steps(Timing::default(), &Silent, &stop);
    assert_eq!(times.unwrap(), None);
}

#[test]
fn rows_are_made_from_the_seed_alone_and_are_sparse_sums_of_directions() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |name: &str, n: usize, seed: u64| {
        let path = dir.path().join(name);
        write_rows(&path, n, D_IN, D_SAE, seed).unwrap();
        let acts = Activations::open(&path, None).unwrap();
        assert_eq!((acts.n_rows(), acts.d_in()), (n as u64, D_IN));
        let mut out = vec![0.0; n * D_IN];
        acts.read_rows(0..n as u64, &mut out).unwrap();
        out
    };
    let all = rows("a.npy", 1500, 1);
    assert_eq!(all, rows("b.npy", 1500, 1));
    assert_eq!(all[..200 * D_IN], rows("c.npy", 200, 1));
    assert_ne!(all[..200 * D_IN], rows("d.npy", 200, 2));
    // 24 magnitudes of mean 1.5 and variance 1 on directions that are next to independent: |x|^2 is 24 * 3.25 about, and
    // directions that come several times make it more.
    let square: f64 = all.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1500.0;
    assert!((60.0..200.0).contains(&square), "{square}");
}

#[test]
fn ceilings_are_those_of_some_machine() {
    let product = product_rate([64, 32, 96]);
    assert!(product.flops_per_s > 1e6 && product.flops_per_s < 1e16, "{product:?}");
    assert_ne!(product.by, ProductBy::Given);
    let copy = copy_bytes_per_s();
    assert!(copy > 1e7 && copy < 1e14, "{copy}");
}

#[test]
fn charts_name_every_part_and_every_size_with_its_unit() {
    let bars = |name: &str, scale: f64| Bars {
        name: name.into(),
        parts: [0.001, 0.002, 0.2, 0.03, 0.01, 0.05, 0.04, 0.001].map(|s| s * scale),
    };
    let svg = parts_chart("a step", &[bars("nobody", 1.0), bars("a quarter", 2.0)]).unwrap();
    for part in Part::ALL {
        assert!(svg.contains(part.label()), "{}", part.name());
    }
    assert!(
        svg.contains("milliseconds a step") && svg.contains("nobody: 334 ms"),
        "{svg}"
    );

    let growth = |name: &str| Growth {
        name: name.into(),
        points: [1, 2, 4]
            .map(|n| Point {
                size: 192 * n,
                step_s: 0.1 * n as f64,
                bound_s: 0.05 * n as f64,
            })
            .to_vec(),
        base: 384,
    };
    let svg = growth_chart("growth", &["d_in", "d_sae", "k", "batch"].map(growth)).unwrap();
    for text in ["d_in", "d_sae", "batch", "192", "768", "measured", "in proportion"] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(growth_chart("nothing", &[]).is_err());
}
