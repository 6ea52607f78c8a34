//! Transcoders and crosscoders end to end: what they learn, what is saved of them, that they resume, and what is refused.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/results.rs"]
mod results;
#[path = "support/npy.rs"]
mod support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use activations::harvest::{self, HarvestOptions};
use activations::{Outcome, Progress, Silent, Stop};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use results::results;
use sae::config::RunConfig;
use sae::dictionary::{DictionaryCard, Shape};
use sae::metrics::Quality;
use sae::train::{self, RunSummary};
use sae::{Error, Sae};
use support::npy;

const ROWS: usize = 6000;
const HELD: usize = 600;
const READ: usize = 24;
const WRITTEN: usize = 16;
const N_TRUE: usize = 40;

fn matrix(n: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<f32> = (0..n * width).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    for row in rows.chunks_mut(width) {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    rows
}

/// Three of forty features, each with a direction in both places; units far from 1 and from each other, and a mean. With
/// `linear`, what is written has a linear part of what is read besides. `[ROWS, READ]`, `[ROWS, WRITTEN]`.
fn pairs(linear: f32) -> (Vec<f32>, Vec<f32>) {
    let (ins, outs) = (matrix(N_TRUE, READ, 1), matrix(N_TRUE, WRITTEN, 2));
    let map = matrix(WRITTEN, READ, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for _ in 0..ROWS {
        let (mut read, mut written) = (vec![0.3f32; READ], vec![-0.2f32; WRITTEN]);
        for _ in 0..3 {
            let (d, c) = (rng.random_range(0..N_TRUE), rng.random_range(1.0f32..2.0));
            read.iter_mut().zip(&ins[d * READ..]).for_each(|(v, d)| *v += c * d);
            written
                .iter_mut()
                .zip(&outs[d * WRITTEN..])
                .for_each(|(v, d)| *v += c * d);
        }
        for (v, row) in written.iter_mut().zip(map.chunks(READ)) {
            *v += linear * row.iter().zip(&read).map(|(a, b)| a * b).sum::<f32>();
        }
        x.extend(read.iter().map(|v| 30.0 * v));
        y.extend(written.iter().map(|v| 0.05 * v));
    }
    (x, y)
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    /// With `x.npy` and `y.npy`.
    fn of_pairs(linear: f32) -> Self {
        let place = Self::new();
        let (x, y) = pairs(linear);
        npy(&place.path("x.npy"), &x, READ);
        npy(&place.path("y.npy"), &y, WRITTEN);
        place
    }

    /// With a store `acts` of both residual streams and an MLP of a small model over a text.
    fn of_store() -> Self {
        let place = Self::new();
        fs::write(place.path("text.jsonl"), text(350)).unwrap();
        place.harvest("acts", &HOOKS);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn harvest(&self, out: &str, hooks: &[&str]) {
        let options = HarvestOptions {
            hooks: hooks.iter().map(ToString::to_string).collect(),
            context: Some(16),
            dtype: activations::ActDtype::F32,
            ..HarvestOptions::new(model(), vec![self.path("text.jsonl")], "")
        };
        let plan = harvest::plan(&options).unwrap();
        let (outcome, _) = harvest::run(&plan, &self.path(out), false, &Silent, &Stop::new()).unwrap();
        assert_eq!(outcome, Outcome::Finished);
    }

    fn quoted(&self, name: &str) -> String {
        format!("{:?}", self.path(name).display().to_string())
    }

    /// A run on the pairs.
    fn paired(&self, sets: &[(&str, &str)]) -> RunConfig {
        let (x, y) = (self.quoted("x.npy"), self.quoted("y.npy"));
        let own = [
            ("data.acts", x.as_str()),
            ("data.target_acts", y.as_str()),
            ("sae.d_sae", "96"),
            ("sae.k", "3"),
            ("train.batch", "128"),
            ("train.lr", "3e-3"),
            ("train.steps", "900"),
        ];
        config(&[&own[..], sets].concat())
    }

    /// A run on the store.
    fn on_store(&self, sets: &[(&str, &str)]) -> RunConfig {
        let acts = self.quoted("acts");
        let own = [
            ("data.acts", acts.as_str()),
            ("data.held_out_rows", "500"),
            ("sae.d_sae", "48"),
            ("sae.k", "3"),
            ("train.batch", "64"),
            ("train.lr", "3e-3"),
            ("train.steps", "200"),
        ];
        config(&[&own[..], sets].concat())
    }

    fn run(&self, config: &RunConfig, name: &str, resume: bool) -> RunSummary {
        let (outcome, summary) = train::run(config, &self.path(name), resume, &Silent, &Stop::new()).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        summary.unwrap()
    }

    fn load(&self, name: &str) -> (Sae, DictionaryCard) {
        Sae::load(&self.path(name), &activations::Device::Cpu.open().unwrap()).unwrap()
    }
}

const HOOKS: [&str; 3] = [
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post",
    "blocks.1.hook_mlp_out",
];
const BOTH: &str = "[\"blocks.0.hook_resid_post\", \"blocks.1.hook_resid_post\"]";

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../activations/tests/fixtures/tiny/llama_gqa")
}

fn text(lines: usize) -> String {
    let animals = ["hare", "hound", "cat", "rat", "hen"];
    let record = |n: usize| {
        let (one, other) = (animals[n % 5], animals[n / 5 % 5]);
        format!("{{\"text\": \"the {one} and the {other} {n} ran in the rain.\"}}\n")
    };
    (0..lines).map(record).collect()
}

fn config(sets: &[(&str, &str)]) -> RunConfig {
    let sets: Vec<_> = sets.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    RunConfig::from_toml("", &sets).unwrap()
}

/// Dies, or stops, behind so many batches.
struct Interrupt {
    batch: u64,
    left: AtomicU64,
    stop: Option<Stop>,
}

impl Progress for Interrupt {
    fn advance(&self, n: u64) {
        // Resumed runs begin by reporting what is done.
        if n == self.batch && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            match &self.stop {
                Some(stop) => stop.request(),
                None => std::panic::resume_unwind(Box::new("killed")),
            }
        }
    }
}

#[test]
fn a_transcoder_learns_what_goes_with_what_and_its_dictionary_takes_and_gives_raw_activations() {
    let place = Place::of_pairs(0.0);
    for (name, sets) in [
        ("topk", &[][..]),
        ("batch", &[("sae.method", "batch_topk")]),
        ("jump", &[("sae.method", "topk"), ("sae.inference", "threshold")]),
    ] {
        let summary = place.run(&place.paired(sets), name, false);
        assert!(summary.held_out.fvu < 0.25, "{name}: {summary:?}");
        assert_eq!((summary.d_in, summary.d_out), (READ, Some(WRITTEN)));
        let (sae, card) = place.load(name);
        assert_eq!((card.shape(), card.d_out()), (Shape::Transcoder, WRITTEN));
        assert!(!sae.apply_b_dec_to_input && sae.skip.is_none());
        let (x, y) = pairs(0.0);
        let (x, y) = (&x[(ROWS - HELD) * READ..], &y[(ROWS - HELD) * WRITTEN..]);
        let mut quality = Quality::new(WRITTEN);
        quality.add(y, &sae.recon_rows(x, &sae.encode_rows(x).unwrap()).unwrap());
        assert!((quality.fvu().unwrap() - summary.held_out.fvu).abs() < 1e-9);
        // A latent's value is the length of what it writes.
        for row in sae.decoder_rows().unwrap().chunks(WRITTEN) {
            assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}

#[test]
fn a_skip_connection_takes_what_is_linear_and_leaves_latents_to_the_rest() {
    let place = Place::of_pairs(3.0);
    let plain = place.run(&place.paired(&[]), "plain", false);
    let skip = place.run(&place.paired(&[("sae.skip", "true")]), "skip", false);
    assert!(
        skip.held_out.fvu < 0.5 * plain.held_out.fvu,
        "{} with, {} without",
        skip.held_out.fvu,
        plain.held_out.fvu
    );
    let (sae, card) = place.load("skip");
    assert_eq!(card.shape(), Shape::SkipTranscoder);
    let (x, y) = pairs(3.0);
    let (x, y) = (&x[(ROWS - HELD) * READ..], &y[(ROWS - HELD) * WRITTEN..]);
    let code = sae.encode_rows(x).unwrap();
    let mut quality = Quality::new(WRITTEN);
    quality.add(y, &sae.recon_rows(x, &code).unwrap());
    assert!((quality.fvu().unwrap() - skip.held_out.fvu).abs() < 1e-9);
    let error = sae.recon_rows(&x[READ..], &code).unwrap_err().to_string();
    assert!(error.contains("600 rows"), "{error}");
}

#[test]
fn a_crosscoder_reads_and_writes_every_hook_and_its_quality_is_known_of_each() {
    let place = Place::of_store();
    // Hooks of different units: the second stream is that of the first and more.
    let sets = [
        ("data.hooks", "[\"blocks.*.hook_resid_post\"]"),
        ("train.eval_every", "100"),
    ];
    let summary = place.run(&place.on_store(&sets), "cross", false);
    let hooks: Vec<&str> = summary.fvu_by_hook.keys().map(String::as_str).collect();
    assert_eq!(hooks, &HOOKS[..2]);
    assert!(summary.fvu_by_hook.values().all(|fvu| *fvu < 0.5), "{summary:?}");
    let (sae, card) = place.load("cross");
    assert_eq!(
        (card.shape(), card.hook.clone(), card.writes()),
        (Shape::Crosscoder, None, card.reads())
    );
    assert!(sae.apply_b_dec_to_input);
    // From the store's rows, raw: the last 500, whole contexts.
    let open = |hook| activations::source::Activations::open(&place.path("acts"), Some(hook)).unwrap();
    let parts = [open(HOOKS[0]), open(HOOKS[1])];
    let (widths, n) = ([parts[0].d_in(), parts[1].d_in()], parts[0].n_rows());
    let held = parts[0].split(500).unwrap().held_out;
    let read = |part: &activations::source::Activations| {
        let mut rows = vec![0.0; (held.end - held.start) as usize * part.d_in()];
        part.read_rows(held.clone(), &mut rows).unwrap();
        rows
    };
    let [one, other] = [read(&parts[0]), read(&parts[1])];
    let both: Vec<f32> = one
        .chunks(widths[0])
        .zip(other.chunks(widths[1]))
        .flat_map(|(a, b)| [a, b].concat())
        .collect();
    let recon = sae.recon_rows(&both, &sae.encode_rows(&both).unwrap()).unwrap();
    let d = widths[0] + widths[1];
    for (i, hook) in HOOKS[..2].iter().enumerate() {
        let columns = if i == 0 { 0..widths[0] } else { widths[0]..d };
        let part = |rows: &[f32]| -> Vec<f32> { rows.chunks(d).flat_map(|r| &r[columns.clone()]).copied().collect() };
        let mut quality = Quality::new(widths[i]);
        quality.add(&part(&both), &part(&recon));
        assert!(
            (quality.fvu().unwrap() - summary.fvu_by_hook[*hook]).abs() < 1e-9,
            "{hook} of {n}"
        );
    }
    let log = fs::read_to_string(place.path("cross/metrics.jsonl")).unwrap();
    let with: Vec<&str> = log.lines().filter(|line| line.contains("fvu_by_hook")).collect();
    assert_eq!(with.len(), 2);
    assert!(with[0].contains(HOOKS[0]) && with[0].contains(HOOKS[1]), "{}", with[0]);
}

#[test]
fn hooks_of_a_store_of_two_stores_and_of_a_model_over_a_text_are_the_same_rows() {
    let place = Place::of_store();
    place.harvest("outputs", &[HOOKS[2]]);
    let transcoder = [("data.hook", HOOKS[0]), ("data.target", HOOKS[2])];
    place.run(&place.on_store(&transcoder), "one", false);
    let outputs = place.quoted("outputs");
    place.run(
        &place.on_store(&[&transcoder[..], &[("data.target_acts", &outputs)]].concat()),
        "two",
        false,
    );
    let dictionary = |run: &str| fs::read(place.path(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("one") == dictionary("two"));
    assert!(results(&place.path("one"))[0] == results(&place.path("two"))[0]);
    let (_, card) = place.load("one");
    let named = |places: Vec<sae::dictionary::Place>| places[0].hook.clone().unwrap();
    assert_eq!(
        (named(card.reads()), named(card.writes())),
        (HOOKS[0].into(), HOOKS[2].into())
    );

    // The same tokens, in another order: as good, and not the same bytes.
    let (model, text) = (
        format!("{:?}", model().display().to_string()),
        format!("[{}]", place.quoted("text.jsonl")),
    );
    let streamed = config(
        &[
            &[
                ("data.model", model.as_str()),
                ("data.text", text.as_str()),
                ("data.context", "16"),
                ("data.held_out_rows", "500"),
                ("sae.d_sae", "48"),
                ("sae.k", "3"),
                ("train.batch", "64"),
                ("train.lr", "3e-3"),
                ("train.steps", "200"),
            ][..],
            &transcoder,
        ]
        .concat(),
    );
    let summary = place.run(&streamed, "streamed", false);
    let stored = fs::read_to_string(place.path("one/summary.json")).unwrap();
    let stored: RunSummary = serde_json::from_str(&stored).unwrap();
    let ratio = summary.held_out.fvu / stored.held_out.fvu;
    assert!(
        (0.7..1.4).contains(&ratio),
        "{} {}",
        summary.held_out.fvu,
        stored.held_out.fvu
    );
    let (_, card) = place.load("streamed");
    assert_eq!(
        (named(card.reads()), named(card.writes())),
        (HOOKS[0].into(), HOOKS[2].into())
    );
}

#[test]
fn every_shape_resumes_to_the_same_bytes_after_being_killed_and_stopped() {
    let place = Place::of_store();
    let (model, text) = (
        format!("{:?}", model().display().to_string()),
        format!("[{}]", place.quoted("text.jsonl")),
    );
    let logged = [
        ("train.steps", "30"),
        ("train.log_every", "2"),
        ("train.eval_every", "10"),
        ("train.checkpoint_every", "8"),
        ("train.dead_after_tokens", "300"),
    ];
    let skip = [("data.hook", HOOKS[0]), ("data.target", HOOKS[2]), ("sae.skip", "true")];
    let cross = [("data.hooks", BOTH), ("sae.method", "batch_topk")];
    let streamed = config(
        &[
            &[
                ("data.model", model.as_str()),
                ("data.text", text.as_str()),
                ("data.context", "16"),
                ("data.held_out_rows", "500"),
                ("data.mix_memory_mib", "2"),
                ("data.hooks", "[\"blocks.*.hook_resid_post\"]"),
                ("data.target", HOOKS[2]),
                ("sae.k", "3"),
                ("sae.d_sae", "48"),
                ("train.batch", "64"),
            ][..],
            &logged,
        ]
        .concat(),
    );
    for (name, config) in [
        ("skip", place.on_store(&[&logged[..], &skip].concat())),
        ("cross", place.on_store(&[&logged[..], &cross].concat())),
        ("streamed", streamed),
    ] {
        place.run(&config, name, false);
        let out = place.path(&format!("{name}-killed"));
        let interrupt = Interrupt {
            batch: 64,
            left: AtomicU64::new(21),
            stop: None,
        };
        let kill = || train::run(&config, &out, false, &interrupt, &Stop::new());
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        place.run(&config, &format!("{name}-killed"), true);
        assert!(results(&out) == results(&place.path(name)), "{name}");
        let stop = Stop::new();
        let interrupt = Interrupt {
            batch: 64,
            left: AtomicU64::new(11),
            stop: Some(stop.clone()),
        };
        let out = place.path(&format!("{name}-stopped"));
        let (outcome, _) = train::run(&config, &out, false, &interrupt, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
        // What the run wrote down suffices to go on.
        let written = RunConfig::load(Some(&out.join("run.toml")), &[]).unwrap();
        place.run(&written, &format!("{name}-stopped"), true);
        assert!(results(&out) == results(&place.path(name)), "{name}");
    }
}

#[test]
fn hooks_that_are_not_there_and_rows_of_other_tokens_are_refused_before_anything_is_written() {
    let place = Place::of_store();
    fs::write(place.path("text.jsonl"), text(300)).unwrap();
    place.harvest("shorter", &[HOOKS[2]]);
    let (x, y) = pairs(0.0);
    npy(&place.path("x.npy"), &x, READ);
    npy(&place.path("y.npy"), &y[WRITTEN..], WRITTEN);
    let (shorter, x, y) = (place.quoted("shorter"), place.quoted("x.npy"), place.quoted("y.npy"));
    for (sets, parts) in [
        (
            &[("data.hook", HOOKS[0]), ("data.target", "blocks.7.hook_mlp_out")][..],
            &["data.target", "blocks.7.hook_mlp_out", HOOKS[1], HOOKS[2]][..],
        ),
        (
            &[("data.hooks", "[\"blocks.9.x\"]")],
            &["data.hooks", "blocks.9.x", HOOKS[0]],
        ),
        (
            &[("data.hooks", "[\"blocks.*.attn.hook_q\"]")],
            &["data.hooks", "blocks.*.attn.hook_q", HOOKS[0]],
        ),
        (&[("data.target", HOOKS[2])], &["data.hook", "several hooks", HOOKS[0]]),
        (
            &[("data.hook", HOOKS[0]), ("data.target_acts", &shorter)],
            &["not of the same tokens", "rows"],
        ),
        (
            &[("data.acts", &x), ("data.target_acts", &y)],
            &["not of the same tokens", "6000", "5999"],
        ),
    ] {
        let error = train::run(&place.on_store(sets), &place.path("no"), false, &Silent, &Stop::new()).unwrap_err();
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!place.path("no").exists());
    }
}

#[test]
fn a_run_does_not_resume_as_another_shape() {
    let place = Place::of_store();
    let transcoder = [("data.hook", HOOKS[0]), ("data.target", HOOKS[2]), ("train.steps", "5")];
    place.run(&place.on_store(&transcoder), "run", false);
    fs::remove_file(place.path("run/summary.json")).unwrap();
    let other = place.on_store(&[("data.hook", HOOKS[0]), ("data.target", HOOKS[1]), ("train.steps", "5")]);
    let error = train::run(&other, &place.path("run"), true, &Silent, &Stop::new()).unwrap_err();
    assert!(matches!(error, Error::BadFile { .. }));
    let error = error.to_string();
    assert!(
        error.contains("data.target is") && error.contains(HOOKS[1]) && error.contains(HOOKS[2]),
        "{error}"
    );
}
