//! Bilinear autoencoders end to end: what they find, what is saved of them, and that they resume.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/npy.rs"]
mod support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use activations::{Outcome, Progress, Silent, Stop};
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae::bilinear::{Bilinear, BilinearCard};
use sae::config::RunConfig;
use sae::train::{self, RunSummary};
use support::npy;

const D_IN: usize = 12;
const ROWS: usize = 12_000;
const HELD: usize = 1_000;

/// Orthonormal rows, `[D_IN, D_IN]`.
fn frame(rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut rows: Vec<f64> = (0..D_IN * D_IN).map(|_| rng.random_range(-1.0..1.0)).collect();
    for i in 0..D_IN {
        let (before, row) = rows.split_at_mut(i * D_IN);
        let row = &mut row[..D_IN];
        for other in before.chunks(D_IN) {
            let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
        }
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    rows
}

/// One of nine features a row, or sums of two: a circle in the plane of the first two axes of a random frame, and eight
/// directions. With the frame.
fn planted(seed: u64, active: usize) -> (Vec<f32>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let frame = frame(&mut rng);
    let mut rows = Vec::with_capacity(ROWS * D_IN);
    for _ in 0..ROWS {
        let mut row = [0.0; D_IN];
        let mut add = |axis: usize, c: f64| {
            let axis = &frame[axis * D_IN..][..D_IN];
            row.iter_mut().zip(axis).for_each(|(v, a)| *v += c * a);
        };
        let first = rng.random_range(0..9);
        let second = (first + rng.random_range(1..9)) % 9;
        for feature in [first, second].into_iter().take(active) {
            if feature == 0 {
                let angle: f64 = rng.random_range(0.0..std::f64::consts::TAU);
                add(0, angle.cos());
                add(1, angle.sin());
            } else {
                add(1 + feature, rng.random_range(0.5..1.5));
            }
        }
        rows.extend(row.iter().map(|v| 7.0 * *v as f32));
    }
    (rows, frame)
}

struct Place(tempfile::TempDir);

impl Place {
    fn new(seed: u64, active: usize) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        npy(&place.path("x.npy"), &planted(seed, active).0, D_IN);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, sets: &[(&str, &str)]) -> RunConfig {
        let acts = format!("{:?}", self.path("x.npy").display().to_string());
        let own = [
            ("data.acts", acts.as_str()),
            ("data.held_out_rows", "1000"),
            ("sae.method", "bilinear"),
            ("sae.d_sae", "48"),
            ("train.batch", "256"),
            ("train.lr", "1e-2"),
        ];
        let sets = own.iter().chain(sets).map(|&(k, v)| (k.to_owned(), v.to_owned()));
        RunConfig::from_toml("", &sets.collect::<Vec<_>>()).unwrap()
    }

    fn run(&self, sets: &[(&str, &str)], name: &str, resume: bool) -> RunSummary {
        let (outcome, summary) =
            train::run(&self.config(sets), &self.path(name), resume, &Silent, &Stop::new()).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        summary.unwrap()
    }

    fn load(&self, name: &str) -> (Bilinear, BilinearCard) {
        Bilinear::load(&self.path(name), &activations::Device::Cpu.open().unwrap()).unwrap()
    }
}

/// The latent whose two leading eigenvectors, of eigenvalues of one size, lie in the planted circle's plane the most: how
/// much of them does, how alike the sizes are, and the larger.
fn nearest_to_the_circle(bilinear: &Bilinear, frame: &[f64]) -> (f64, f64, f64) {
    let of = |n: usize| {
        let eigen = bilinear.eigen(n).unwrap();
        let vectors = eigen.vectors[..2 * D_IN].chunks(D_IN);
        let inside: f64 = vectors
            .flat_map(|v| frame[..2 * D_IN].chunks(D_IN).map(move |axis| (v, axis)))
            .map(|(v, axis)| v.iter().zip(axis).map(|(a, b)| a * b).sum::<f64>().powi(2))
            .sum();
        (
            inside / 2.0,
            (eigen.values[1] / eigen.values[0]).abs(),
            eigen.values[0].abs(),
        )
    };
    let two_dimensional = (0..bilinear.n_forms())
        .map(of)
        .filter(|(_, alike, size)| *alike > 0.5 && *size > 0.05);
    two_dimensional.fold((0.0, 0.0, 0.0), |a: (f64, f64, f64), b| if b.0 > a.0 { b } else { a })
}

#[test]
fn a_planted_circle_comes_back_as_a_two_dimensional_eigenspace_for_five_seeds() {
    for seed in 0..5 {
        let place = Place::new(seed, 1);
        let (_, frame) = planted(seed, 1);
        let seed_text = seed.to_string();
        let sets = [
            ("train.steps", "800"),
            ("train.decay_share", "0.5"),
            ("train.seed", &*seed_text),
        ];
        let summary = place.run(&sets, "run", false);
        assert!(summary.held_out.fvu < 0.4, "{summary:?}");
        let (bilinear, _) = place.load("run");
        let best = nearest_to_the_circle(&bilinear, &frame);
        println!("seed {seed}: {best:?}, fvu {}", summary.held_out.fvu);
        assert!(best.0 > 0.98, "seed {seed}: {best:?}");
        // No latent begins there.
        place.run(&[("train.steps", "1"), ("train.seed", &*seed_text)], "begun", false);
        let begun = nearest_to_the_circle(&place.load("begun").0, &frame);
        assert!(begun.0 < 0.8, "seed {seed}: {begun:?}");
    }
}

#[test]
fn every_form_learns_and_what_is_saved_has_the_quality_that_was_measured() {
    let place = Place::new(1, 2);
    let (rows, _) = planted(1, 2);
    for form in ["plain", "ordered", "mixed", "combined"] {
        let sets = [
            ("train.steps", "500"),
            ("bilinear.form", form),
            ("train.eval_every", "250"),
        ];
        let summary = place.run(&sets, form, false);
        assert_eq!(summary.method, format!("Bilinear({form})"));
        assert!(summary.held_out.fvu < 0.5, "{summary:?}");
        let (bilinear, card) = place.load(form);
        assert_eq!((card.form.key(), card.held_out), (form, Some(summary.held_out)));
        assert_eq!(card.clusters, card.form.mixes().then_some(24));
        let x = TensorData::new(rows[(ROWS - HELD) * D_IN..].to_vec(), [HELD, D_IN]);
        let x = Bilinear::normalised(Tensor::<2>::from_data(x, &bilinear.device()));
        let errors = bilinear.errors(x.clone(), bilinear.latents(x.clone()), false);
        let error: f32 = errors.into_data().to_vec::<f32>().unwrap().iter().sum::<f32>() / HELD as f32;
        let mean = x.clone().transpose().matmul(x) / HELD as f32;
        let of_mean: f32 = (mean.clone() * mean).sum().into_data().to_vec::<f32>().unwrap()[0];
        let fvu = f64::from(error / (1.0 - of_mean));
        assert!((fvu - summary.held_out.fvu).abs() < 1e-4, "{fvu} {summary:?}");
        let log = fs::read_to_string(place.path(form).join("metrics.jsonl")).unwrap();
        assert!(log.contains("\"product\"") && log.contains("\"hoyer\""), "{form}");
    }
}

/// Dies, or stops, behind so many batches.
struct Interrupt {
    left: AtomicU64,
    stop: Option<Stop>,
}

impl Progress for Interrupt {
    fn advance(&self, n: u64) {
        // Resumed runs begin by reporting what is done.
        if n == 256 && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            match &self.stop {
                Some(stop) => stop.request(),
                None => std::panic::resume_unwind(Box::new("killed")),
            }
        }
    }
}

#[test]
fn runs_resume_to_the_same_bytes_after_being_killed_and_stopped() {
    let place = Place::new(1, 2);
    let results = |name: &str| {
        let names = [
            "metrics.jsonl",
            "bilinear.safetensors",
            "bilinear.json",
            "run.toml",
            "curves.svg",
        ];
        names.map(|file| fs::read(place.path(name).join(file)).unwrap())
    };
    for form in ["ordered", "combined"] {
        let sets = [
            ("bilinear.form", form),
            ("train.steps", "30"),
            ("train.log_every", "2"),
            ("train.eval_every", "10"),
            ("train.checkpoint_every", "8"),
        ];
        let [killed, stopped] = ["killed", "stopped"].map(|how| format!("{form}-{how}"));
        place.run(&sets, form, false);
        let interrupt = Interrupt {
            left: AtomicU64::new(21),
            stop: None,
        };
        let kill = || {
            train::run(
                &place.config(&sets),
                &place.path(&killed),
                false,
                &interrupt,
                &Stop::new(),
            )
        };
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        place.run(&sets, &killed, true);
        assert!(results(&killed) == results(form), "{form}");
        let stop = Stop::new();
        let interrupt = Interrupt {
            left: AtomicU64::new(11),
            stop: Some(stop.clone()),
        };
        let (outcome, _) = train::run(&place.config(&sets), &place.path(&stopped), false, &interrupt, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        place.run(&sets, &stopped, true);
        assert!(results(&stopped) == results(form), "{form}");
    }
    // A directory that holds one is not written over.
    fs::remove_file(place.path("ordered/run.toml")).unwrap();
    let again = train::run(&place.config(&[]), &place.path("ordered"), false, &Silent, &Stop::new());
    assert!(again.unwrap_err().to_string().contains("already holds"));
}
