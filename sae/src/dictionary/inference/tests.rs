use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::sparsifier::Shrink;

const D_IN: usize = 9;
const D_SAE: usize = 40;

fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn sae(sparsifier: Sparsifier) -> Sae {
    let device = Device::flex();
    let matrix = |seed| Tensor::from_data(TensorData::new(uniform(D_SAE * D_IN, seed), [D_SAE, D_IN]), &device);
    let vector = |n, seed| Tensor::from_data(TensorData::new(uniform(n, seed), [n]), &device);
    Sae {
        per_token: false,
        w_enc: matrix(1),
        b_enc: vector(D_SAE, 2),
        w_dec: matrix(3),
        b_dec: vector(D_IN, 4),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier,
    }
}

/// Shows `x` so many rows at a time.
fn shown(x: &[f32], rows: usize) -> Box<Visit<'_>> {
    Box::new(move |see| x.chunks(rows * D_IN).try_for_each(see))
}

const FORMS: [InferenceForm; 2] = [InferenceForm::Threshold, InferenceForm::ThresholdPerLatent];

fn methods() -> Vec<Sparsifier> {
    let mut methods = Vec::new();
    for score in [Score::Positive, Score::Magnitude, Score::Value] {
        methods.push(Sparsifier::new(score, Allocation::PerToken { k: 4 }));
        methods.push(Sparsifier::new(score, Allocation::PerBatch { k: 4 }));
    }
    methods.push(Sparsifier::new(Score::Positive, Allocation::All));
    for shrink in [Shrink::Soft, Shrink::Half, Shrink::Cel0 { eta: 0.5 }] {
        methods.push(Sparsifier::batch_top_k(4).shrunk(shrink));
    }
    methods
}

#[test]
fn thresholds_reach_the_wanted_l0_exactly_where_they_were_set() {
    let x = uniform(300 * D_IN, 7);
    for sparsifier in methods() {
        for form in FORMS {
            for target in [1.0, 3.7] {
                let seen = shown(&x, 64);
                let (after, calibration) = sae(sparsifier).into_inference(form, target, &seen, &seen).unwrap();
                let calibration = calibration.unwrap();
                let expected = Sparsifier::new(sparsifier.score, Allocation::Threshold).shrunk(sparsifier.shrink);
                assert_eq!(after.sparsifier, expected);
                // 300 rows: a latent more or less on one of them.
                let off = (calibration.l0 - target).abs();
                assert!(off <= 1.0 / 300.0 + 1e-9, "{sparsifier:?} {form:?}: {calibration:?}");
                assert_eq!((calibration.rows, calibration.calibration_rows), (300, 300));
                assert_eq!(calibration.trained_as, sparsifier);
                assert_eq!(calibration.threshold.is_some(), form == InferenceForm::Threshold);
            }
        }
    }
}

#[test]
fn one_threshold_of_batch_topk_keeps_the_winners_of_the_batch() {
    let x = uniform(50 * D_IN, 8);
    for score in [Score::Positive, Score::Magnitude] {
        let trained = sae(Sparsifier::new(score, Allocation::PerBatch { k: 5 }));
        let before = trained.encode_rows(&x).unwrap();
        let seen = shown(&x, 50);
        let (after, _) = trained
            .into_inference(InferenceForm::Threshold, 5.0, &seen, &seen)
            .unwrap();
        let found = after.encode_rows(&x).unwrap();
        for row in 0..50 {
            let sorted = |code: &HostCode| {
                let mut row: Vec<(usize, f32)> = code.row(row).collect();
                row.sort_by_key(|e| e.0);
                row
            };
            assert_eq!(sorted(&before), sorted(&found));
        }
    }
}

#[test]
fn thresholds_of_each_latent_keep_how_often_it_fires() {
    let x = uniform(400 * D_IN, 9);
    let trained = sae(Sparsifier::top_k(4));
    let counts = |code: &HostCode| {
        let mut counts = vec![0u64; D_SAE];
        entries(code, Score::Positive).for_each(|(i, _)| counts[i as usize] += 1);
        counts
    };
    let before = counts(&trained.encode_rows(&x).unwrap());
    let seen = shown(&x, 100);
    let all = before.iter().sum::<u64>() as f64 / 400.0;
    let form = InferenceForm::ThresholdPerLatent;
    let (after, calibration) = trained.into_inference(form, all, &seen, &seen).unwrap();
    assert_eq!(counts(&after.encode_rows(&x).unwrap()), before);
    assert_eq!(calibration.unwrap().threshold, None);
}

#[test]
fn the_l0_that_was_reached_is_that_of_other_rows() {
    let (x, other) = (uniform(200 * D_IN, 10), vec![0.0; 30 * D_IN]);
    let (after, calibration) = sae(Sparsifier::batch_top_k(4))
        .into_inference(InferenceForm::Threshold, 4.0, &shown(&x, 70), &shown(&other, 7))
        .unwrap();
    let calibration = calibration.unwrap();
    let active = after.encode_rows(&other).unwrap().values.len() as f64;
    assert_eq!((calibration.rows, calibration.calibration_rows), (30, 200));
    assert!(
        (calibration.l0 - active / 30.0).abs() < 1.0 / 30.0,
        "{calibration:?} {active}"
    );
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let x = uniform(20 * D_IN, 1);
    let (seen, none) = (shown(&x, 5), shown(&[], 5));
    let batch = || sae(Sparsifier::batch_top_k(4));
    let refused = |result: Result<(Sae, Option<Calibration>)>, word: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(
        batch().into_inference(InferenceForm::AsTrained, 4.0, &seen, &seen),
        "BatchTopK(4)",
    );
    refused(
        batch().into_inference(InferenceForm::Threshold, 0.0, &seen, &seen),
        "0 of 40",
    );
    refused(
        batch().into_inference(InferenceForm::Threshold, 41.0, &seen, &seen),
        "41 of 40",
    );
    refused(
        batch().into_inference(InferenceForm::Threshold, 4.0, &none, &seen),
        "no rows",
    );
    let top_k = sae(Sparsifier::top_k(4));
    let (same, calibration) = top_k
        .into_inference(InferenceForm::AsTrained, 4.0, &none, &none)
        .unwrap();
    assert_eq!((same.sparsifier, calibration), (Sparsifier::top_k(4), None));
}

#[test]
fn equal_scores_at_the_border_stay_silent_and_too_few_all_fire() {
    assert_eq!(between(&[5.0, 3.0, 3.0, 1.0], 2, Score::Positive), 3.0);
    assert_eq!(between(&[5.0, 3.0, 1.0], 2, Score::Positive), 2.0);
    let above_all = between(&[5.0], 0, Score::Positive);
    assert!((5.0..5.001).contains(&above_all));
    assert_eq!(between(&[5.0], 1, Score::Positive), 0.0);
    assert_eq!(between(&[], 3, Score::Value), f32::MIN);
    let a = 1.0f32;
    let next = a.next_down();
    let middle = between(&[a, next], 1, Score::Positive);
    assert!(next <= middle && middle < a);
}
