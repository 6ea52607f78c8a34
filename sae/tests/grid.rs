//! Grids: dictionaries on one stream of batches, each the one that its own `run.toml` makes alone.

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

use activations::{Outcome, Progress, Silent, Stop};
use results::results;
use sae::config::{GRID_TOML, Grid};
use sae::train::{Summaries, Training};
use synthetic::{Interrupt, Place};

const SETS: [(&str, &str); 6] = [
    ("sae.d_sae", "96"),
    ("train.batch", "128"),
    ("train.steps", "50"),
    ("train.log_every", "2"),
    ("train.eval_every", "10"),
    ("train.checkpoint_every", "20"),
];

fn grid(place: &Place, swept: &[(&str, &str)]) -> Grid {
    let acts = format!("{:?}", place.acts.display().to_string());
    let own = [("data.acts", acts.as_str())];
    let sets = own.iter().chain(&SETS).chain(swept);
    let sets: Vec<_> = sets.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Grid::from_toml("", &sets).unwrap()
}

fn run(
    grid: &Grid,
    out: &Path,
    resume: bool,
    progress: &dyn Progress,
    stop: &Stop,
) -> sae::Result<(Outcome, Option<Summaries>)> {
    Training::open_grid(grid, &Silent)?.run(out, resume, progress, stop)
}

fn train_all(grid: &Grid, out: &Path, resume: bool) -> sae::Result<Summaries> {
    Ok(run(grid, out, resume, &Silent, &Stop::new())?.1.unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

#[test]
fn every_dictionary_of_a_grid_has_the_bytes_of_its_run_alone() {
    let place = Place::new(false);
    let swept = [
        ("sae.method", "[\"topk\", \"batch_topk\"]"),
        ("sae.k", "[2, 3]"),
        ("train.seed", "[0, 7]"),
    ];
    let grid = grid(&place, &swept);
    let out = place.out("grid");
    let summaries = train_all(&grid, &out, false).unwrap();
    let names: Vec<_> = summaries.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[1], "k-2_method-topk_seed-7");
    for (name, own) in [
        (&names[1], [("sae.method", "topk"), ("sae.k", "2"), ("train.seed", "7")]),
        (
            &names[6],
            [("sae.method", "batch_topk"), ("sae.k", "3"), ("train.seed", "0")],
        ),
    ] {
        let sets: Vec<_> = SETS.iter().chain(&own).copied().chain([("data.seed", "0")]).collect();
        place.run(&sets, name, false).unwrap();
        assert!(results(&place.out(name)) == results(&out.join(name)), "{name}");
    }
    assert_eq!(Grid::load(Some(&out.join(GRID_TOML)), &[]).unwrap(), grid);
    let error = train_all(&grid, &out, false).unwrap_err().to_string();
    assert!(error.contains(GRID_TOML) && error.contains("--resume"), "{error}");
    let untimed = |all: &Summaries| {
        all.iter()
            .map(|(name, s)| (name.clone(), s.held_out))
            .collect::<Vec<_>>()
    };
    assert_eq!(untimed(&train_all(&grid, &out, true).unwrap()), untimed(&summaries));
}

#[test]
fn a_grid_that_was_killed_or_stopped_resumes_to_the_same_bytes_even_where_runs_are_apart() {
    let place = Place::new(false);
    let grid = grid(&place, &[("sae.k", "[2, 3, 4]")]);
    let whole = place.out("whole");
    train_all(&grid, &whole, false).unwrap();
    let check = |out: &Path| {
        train_all(&grid, out, true).unwrap();
        for name in ["k-2", "k-3", "k-4"] {
            assert!(results(&out.join(name)) == results(&whole.join(name)), "{name}");
        }
    };
    for at in [7, 33] {
        let out = place.out(&format!("killed-{at}"));
        let kill = || run(&grid, &out, false, &Interrupt::new(at, None), &Stop::new());
        assert!(catch_unwind(AssertUnwindSafe(kill)).is_err());
        check(&out);
    }
    // Killed between the checkpoints of two runs, and before a third was begun: one is of step 40, one of step 20.
    let out = place.out("apart");
    let kill = |at, resume| {
        let killed = || run(&grid, &out, resume, &Interrupt::new(at, None), &Stop::new());
        assert!(catch_unwind(AssertUnwindSafe(killed)).is_err());
    };
    kill(33, false);
    copy(&out.join("k-3"), &place.out("aside"));
    kill(23, true);
    assert!(
        fs::read_to_string(out.join("k-2/checkpoint/state.json"))
            .unwrap()
            .contains("\"step\": 40")
    );
    fs::remove_dir_all(out.join("k-3")).unwrap();
    copy(&place.out("aside"), &out.join("k-3"));
    fs::remove_dir_all(out.join("k-4")).unwrap();
    check(&out);
    let stopped = place.out("stopped");
    let stop = Stop::new();
    let (outcome, none) = run(&grid, &stopped, false, &Interrupt::new(11, Some(stop.clone())), &stop).unwrap();
    assert_eq!((outcome, none), (Outcome::Stopped, None));
    check(&stopped);
}

#[test]
fn a_dictionary_that_diverges_is_named_and_does_not_stop_the_others() {
    let place = Place::new(false);
    let grid = grid(&place, &[("train.lr", "[1e38, 1e-3]"), ("train.warmup_steps", "0")]);
    let out = place.out("grid");
    let error = train_all(&grid, &out, false).unwrap_err().to_string();
    assert!(error.contains("lr-1e38") && error.contains("diverged"), "{error}");
    assert!(out.join("lr-0.001/summary.json").exists());
    assert!(!out.join("lr-1e38/summary.json").exists());
}
