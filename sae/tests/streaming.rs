//! Training on a model over a text: the bytes of a run do not depend on how it went, and what cannot be is refused.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "support/results.rs"]
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use activations::{Outcome, Progress, Silent, Stop};
use results::results;
use sae::Sae;
use sae::config::RunConfig;
use sae::train::{self, RunSummary};

const BATCH: u64 = 64;

/// A directory with a text of `lines` documents, of about 30 tokens each, and the runs.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(lines: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        fs::write(place.text(), records(0..lines)).unwrap();
        place
    }

    fn text(&self) -> PathBuf {
        self.dir.path().join("text.jsonl")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, sets: &[(&str, &str)]) -> RunConfig {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../activations/tests/fixtures/tiny/llama_gqa");
        let (model, text) = (
            format!("{:?}", model.display().to_string()),
            format!("[{:?}]", self.text().display().to_string()),
        );
        let own = [
            ("data.model", model.as_str()),
            ("data.text", text.as_str()),
            ("data.hook", "blocks.1.hook_resid_post"),
            ("data.context", "16"),
            ("data.held_out_rows", "500"),
            // Room for three or four units of the model: many windows.
            ("data.mix_memory_mib", "1"),
            ("sae.d_sae", "48"),
            ("sae.k", "3"),
            ("train.batch", "64"),
        ];
        let sets = own.iter().chain(sets).map(|&(k, v)| (k.to_owned(), v.to_owned()));
        RunConfig::from_toml("", &sets.collect::<Vec<_>>()).unwrap()
    }

    fn try_run(&self, sets: &[(&str, &str)], name: &str, resume: bool) -> sae::Result<RunSummary> {
        let (outcome, summary) = train::run(&self.config(sets), &self.out(name), resume, &Silent, &Stop::new())?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(summary.expect("a finished run has a summary"))
    }

    fn run(&self, sets: &[(&str, &str)], name: &str, resume: bool) -> RunSummary {
        self.try_run(sets, name, resume).unwrap()
    }

    fn error(&self, sets: &[(&str, &str)], name: &str, resume: bool) -> String {
        self.try_run(sets, name, resume).unwrap_err().to_string()
    }

    /// Begins a run that is stopped behind `steps` steps.
    fn stopped(&self, sets: &[(&str, &str)], name: &str, resume: bool, steps: u64) {
        let stop = Stop::new();
        let interrupt = Interrupt {
            left: AtomicU64::new(steps),
            stop: stop.clone(),
        };
        let (outcome, _) = train::run(&self.config(sets), &self.out(name), resume, &interrupt, &stop).unwrap();
        assert_eq!(outcome, Outcome::Stopped);
    }
}

/// Records with a story each.
fn records(lines: std::ops::Range<usize>) -> String {
    let animals = ["hare", "hound", "cat", "rat", "hen"];
    let record = |n: usize| {
        let (one, other) = (animals[n % 5], animals[n / 5 % 5]);
        format!("{{\"text\": \"the {one} and the {other} {n} ran in the rain.\"}}\n")
    };
    lines.map(record).collect()
}

struct Interrupt {
    left: AtomicU64,
    stop: Stop,
}

impl Progress for Interrupt {
    fn advance(&self, n: u64) {
        // Resumed runs begin by reporting what is done.
        if n == BATCH && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.stop.request();
        }
    }
}

/// Several windows of a pass, and two passes and a half; or a text that stays in the pool.
const WINDOWS: [(&str, &str); 3] = [
    ("train.steps", "400"),
    ("train.eval_every", "80"),
    ("train.checkpoint_every", "90"),
];
const KEPT: [(&str, &str); 4] = [
    ("train.steps", "400"),
    ("train.eval_every", "80"),
    ("train.checkpoint_every", "90"),
    ("data.mix_memory_mib", "64"),
];

#[test]
fn a_streamed_run_that_is_stopped_anywhere_resumes_to_the_same_bytes() {
    let place = Place::new(350);
    for (name, sets) in [("windows", &WINDOWS[..]), ("kept", &KEPT)] {
        place.run(sets, name, false);
        let log = fs::read_to_string(place.out(name).join("metrics.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let epochs = last["epoch"].as_u64().unwrap();
        assert!((2..4).contains(&epochs), "{epochs} passes: the text begins again");
        let stopped = format!("{name}-stopped");
        place.stopped(sets, &stopped, false, 3);
        for steps in [50, 1, 130] {
            place.stopped(sets, &stopped, true, steps);
        }
        place.run(sets, &stopped, true);
        assert!(results(&place.out(&stopped)) == results(&place.out(name)), "{name}");
    }
    // Memory decides the order, so that the two are not the same run.
    assert!(results(&place.out("windows")) != results(&place.out("kept")));
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let place = Place::new(350);
    for (name, threads) in [("one", 1), ("three", 3)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // The model's thread is not of this pool, the trainer is.
        pool.install(|| place.run(&WINDOWS, name, false));
    }
    assert!(results(&place.out("one")) == results(&place.out("three")));
}

#[test]
fn the_card_says_model_text_and_hook_and_the_plan_what_a_run_takes() {
    let place = Place::new(350);
    let training = train::Training::open(&place.config(&WINDOWS), &Silent)
        .unwrap()
        .with_time()
        .unwrap();
    let plan = training.plan().clone();
    assert!(plan.streamed && plan.seconds.is_some());
    // Whole contexts, in which some tokens are BOS between documents.
    let held_out = plan.held_out_rows.end;
    assert!((500..515).contains(&held_out), "{held_out}");
    let text = plan.to_string();
    for part in [
        "llama_gqa",
        "text.jsonl",
        "about",
        "MiB of memory",
        &format!("{held_out} rows are held out"),
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (_, summaries) = training.run(&place.out("run"), false, &Silent, &Stop::new()).unwrap();
    let (_, summary) = summaries.unwrap().remove(0);
    assert_eq!((summary.tokens, summary.held_out.rows), (400 * BATCH, held_out));
    assert!(summary.held_out.fvu < 1.0, "{summary:?}");
    let (_, card) = Sae::load(&place.out("run"), &activations::Device::Cpu.open().unwrap()).unwrap();
    assert_eq!(card.hook.as_deref(), Some("blocks.1.hook_resid_post"));
    assert_eq!(card.model.unwrap().name, "llama_gqa");
    let corpus = card.corpus.unwrap();
    assert_eq!(
        (corpus.name.as_str(), corpus.settings["seed"].as_str()),
        ("text.jsonl", "0")
    );
    // Nothing but what every run leaves.
    let mut names: Vec<String> = fs::read_dir(place.out("run"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "checkpoint",
        "curves.svg",
        "dictionary.json",
        "dictionary.safetensors",
        "metrics.jsonl",
        "run.toml",
        "summary.json",
        "timings.jsonl",
    ];
    assert_eq!(names, expected);
    // The resolved file leaves nothing open and makes the same plan.
    let written = RunConfig::load(Some(&place.out("run/run.toml")), &[]).unwrap();
    assert_eq!(train::plan(&written).unwrap().config, plan.config);
}

#[test]
fn a_text_that_is_too_short_is_refused_before_anything_is_written() {
    let place = Place::new(30);
    let all: u64 = train::plan(&place.config(&[("data.held_out_rows", "30")]))
        .unwrap()
        .train_rows
        .end;
    for sets in [
        [("data.held_out_rows", "100000"), ("train.steps", "5")],
        [("data.held_out_rows", "500"), ("train.batch", "5000")],
    ] {
        let error = place.error(&sets, "short", false);
        for part in ["text.jsonl", "too short", &format!("{all} rows"), "data.held_out_rows"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!place.out("short").exists());
    }
}

#[test]
fn a_bad_record_in_the_middle_is_the_runs_error_and_the_checkpoint_before_it_stays() {
    let place = Place::new(0);
    let good = records(0..1500);
    fs::write(
        place.text(),
        format!("{good}{{\"text\": \"the hare\n{}", records(1500..1600)),
    )
    .unwrap();
    let sets = [
        ("train.steps", "2000"),
        ("train.eval_every", "1000"),
        ("train.checkpoint_every", "5"),
        // A line after the other: with a shuffle, all of so small a text is read at once.
        ("data.tokens", "1000000"),
    ];
    let error = place.error(&sets, "run", false);
    assert!(error.contains("text.jsonl") && error.contains("line 1501"), "{error}");
    assert!(!place.out("run/dictionary.json").exists());
    // Left out, it makes the run of a text without it.
    let skip = [("train.steps", "30"), ("data.skip_bad", "true")];
    place.run(&skip, "skipped", false);
    fs::write(place.text(), format!("{good}{}", records(1500..1600))).unwrap();
    place.run(&[("train.steps", "30")], "whole", false);
    let dictionary = |run: &str| fs::read(place.out(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("skipped") == dictionary("whole"));
}

#[test]
fn a_text_that_changed_is_refused_on_resume_and_one_that_moved_is_not() {
    let place = Place::new(350);
    let sets = [("train.steps", "40"), ("train.checkpoint_every", "10")];
    place.run(&sets, "whole", false);
    place.stopped(&sets, "run", false, 15);
    let before = fs::read(place.text()).unwrap();
    fs::write(place.text(), records(0..349)).unwrap();
    let error = place.error(&sets, "run", true);
    assert!(
        error.contains("other activations") && error.contains("changed"),
        "{error}"
    );
    let error = place.error(&[sets[0], sets[1], ("data.context", "15")], "run", true);
    assert!(error.contains("data.context is 15, was 16"), "{error}");
    fs::create_dir(place.out("elsewhere")).unwrap();
    fs::write(place.out("elsewhere/text.jsonl"), before).unwrap();
    fs::remove_file(place.text()).unwrap();
    let moved = format!("[{:?}]", place.out("elsewhere/text.jsonl").display().to_string());
    place.run(&[sets[0], sets[1], ("data.text", &moved)], "run", true);
    let dictionary = |run: &str| fs::read(place.out(run).join("dictionary.safetensors")).unwrap();
    assert!(dictionary("run") == dictionary("whole"));
}

#[test]
fn too_little_memory_several_hooks_and_a_hook_that_is_not_there_are_refused_by_name() {
    let place = Place::new(350);
    for (sets, parts) in [
        (
            &[("data.hook", "blocks.*.hook_resid_post")][..],
            &["one hook", "2 are asked"][..],
        ),
        (
            &[("data.hook", "blocks.7.hook_resid_post")],
            &["blocks.7", "blocks.{0..1}"],
        ),
        (&[("data.context", "33")], &["33", "32"]),
        (&[("data.text", "[\"nowhere.txt\"]")], &["nowhere.txt"]),
        (&[("data.model", "nowhere/")], &["nowhere"]),
    ] {
        let error = place.error(sets, "refused", false);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!place.out("refused").exists());
    }
    let mut config = place.config(&[]);
    config.data.hook = None;
    let error = train::plan(&config).unwrap_err().to_string();
    assert!(
        error.contains("data.hook") && error.contains("blocks.{0..1}"),
        "{error}"
    );
}
