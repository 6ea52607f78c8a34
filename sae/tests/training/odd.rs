//! Activations that are not what activations usually are: trained on, or refused by name before any work.

use super::support::npy;
use super::synthetic::{D_IN, Place, sparse_rows};

/// The error of a run that must not have begun.
fn refused(place: &Place, sets: &[(&str, &str)]) -> String {
    let error = place.run(sets, "refused", false).unwrap_err().to_string();
    assert!(!place.out("refused").exists(), "{error}");
    error
}

#[test]
fn constant_rows_are_refused_and_a_constant_coordinate_is_not() {
    let place = Place::new(false);
    for value in [0.0, 0.1, 2.5, 3e20] {
        npy(&place.acts, &vec![value; 100 * D_IN], D_IN);
        let error = refused(&place, &[("train.steps", "10")]);
        assert!(error.contains("acts.npy") && error.contains("equal"), "{error}");
    }
    let mut rows = sparse_rows(false);
    rows.chunks_exact_mut(D_IN).for_each(|row| row[3] = 77.0);
    npy(&place.acts, &rows, D_IN);
    let sets = [("train.steps", "300"), ("train.lr", "3e-3")];
    let summary = place.run(&sets, "run", false).unwrap();
    assert!(summary.held_out.fvu < 0.3, "{summary:?}");
}

#[test]
fn rows_of_zeros_among_others_are_learned_like_any() {
    let place = Place::new(false);
    let mut rows = sparse_rows(false);
    let every_third = rows.chunks_exact_mut(D_IN).step_by(3);
    every_third.for_each(|row| row.fill(0.0));
    npy(&place.acts, &rows, D_IN);
    let sets = [("train.steps", "300"), ("train.lr", "3e-3")];
    // Relative to its length, the error of a row of zeros would be infinite.
    for (name, key, value) in [
        ("plain", "sae.method", "topk"),
        ("threshold", "sae.method", "batch_topk"),
        ("row", "objective.mse.normalize", "row"),
    ] {
        let summary = place.run(&[&sets[..], &[(key, value)]].concat(), name, false).unwrap();
        assert!(summary.held_out.fvu < 0.4, "{name}: {summary:?}");
    }
}

#[test]
fn a_row_beside_which_all_others_are_nothing_is_refused_and_named() {
    let place = Place::new(false);
    for value in [1e10, 1e20, 1e30] {
        let mut rows = sparse_rows(false);
        rows[4321 * D_IN..][..D_IN].fill(value);
        npy(&place.acts, &rows, D_IN);
        let error = refused(&place, &[("train.steps", "10")]);
        assert!(
            error.contains("acts.npy") && error.contains("row 4321 has norm"),
            "{error}"
        );
    }
    // A hundred times as long as the others, it is one of them.
    let mut rows = sparse_rows(false);
    rows[4321 * D_IN..][..D_IN].iter_mut().for_each(|v| *v *= 100.0);
    npy(&place.acts, &rows, D_IN);
    let sets = [("train.steps", "600"), ("train.lr", "3e-3")];
    let summary = place.run(&sets, "run", false).unwrap();
    assert!(summary.held_out.fvu < 0.3, "{summary:?}");
}

#[test]
fn a_row_whose_squares_overflow_stops_the_run_when_it_comes_and_is_named() {
    let place = Place::new(false);
    let mut rows = [
        sparse_rows(false),
        sparse_rows(false),
        sparse_rows(false),
        sparse_rows(false),
    ]
    .concat();
    // Of so many rows the sample has blocks: 0 to 31, and then from 42 on.
    for value in [1e16, 1e20, 1e30] {
        rows[35 * D_IN..][..D_IN].fill(value);
        npy(&place.acts, &rows, D_IN);
        let name = format!("run-{value}");
        let sets = [("train.steps", "190"), ("train.checkpoint_every", "1")];
        let error = place.run(&sets, &name, false).unwrap_err().to_string();
        for part in [
            "diverged",
            "the longest of them is row 35, with norm",
            "the last good checkpoint",
        ] {
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}

#[test]
fn files_too_short_for_rows_to_train_on_and_rows_to_measure_on_are_refused() {
    let place = Place::new(false);
    let rows = sparse_rows(false);
    let of = |n: usize| npy(&place.acts, &rows[..n * D_IN], D_IN);
    of(1);
    assert!(refused(&place, &[("train.steps", "10")]).contains("none would remain to train on"));
    // One row to train on is no variance, and one to measure on is none either.
    of(2);
    assert!(refused(&place, &[("train.steps", "10")]).contains("equal"));
    of(3);
    let error = refused(&place, &[("train.steps", "10")]);
    assert!(
        error.contains("held-out") && error.contains("data.held_out_rows"),
        "{error}"
    );
    // Fewer rows than a batch are repeated.
    of(9);
    let sets = [("train.steps", "10"), ("data.held_out_rows", "4")];
    assert!(place.run(&sets, "run", false).unwrap().held_out.fvu.is_finite());
}
