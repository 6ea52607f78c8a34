use std::fs;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::encoder::{Encoder, Weights};
use crate::sparsifier::{Score, Shrink};

/// `n` values between -1 and 1.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0)
        .collect()
}

fn sae(d_in: usize, d_sae: usize, sparsifier: Sparsifier) -> Sae {
    let device = Device::flex();
    let matrix = |seed| Tensor::from_data(TensorData::new(noise(d_sae * d_in, seed), [d_sae, d_in]), &device);
    let steps = (0..sparsifier.encoder.own_steps() as u64).map(|n| EncoderStep {
        w_enc: matrix(10 + n) * 0.2,
        b_enc: Tensor::from_data(TensorData::new(noise(d_sae, 20 + n), [d_sae]), &device),
    });
    Sae {
        per_token: false,
        steps: steps.collect(),
        w_enc: matrix(1),
        b_enc: Tensor::from_data(TensorData::new(noise(d_sae, 2), [d_sae]), &device),
        w_dec: matrix(3),
        b_dec: Tensor::from_data(TensorData::new(noise(d_in, 4), [d_in]), &device),
        apply_b_dec_to_input: true,
        skip: None,
        threshold: sparsifier
            .has_threshold()
            .then(|| Tensor::from_data(TensorData::new(noise(d_sae, 5), [d_sae]), &device).abs()),
        sparsifier,
    }
}

fn card(sae: &Sae) -> DictionaryCard {
    DictionaryCard {
        hook: Some("blocks.3.hook_resid_post".into()),
        trained_tokens: 123,
        seed: 7,
        held_out: Some(HeldOut {
            rows: 10,
            fvu: 0.25,
            l0: 3.0,
            dead_share: 0.0,
        }),
        ..DictionaryCard::of(sae)
    }
}

/// Every sparsifier that codes each token by itself.
fn inference_forms() -> Vec<Sparsifier> {
    let mut forms = vec![Sparsifier::new(Score::Positive, Allocation::All)];
    for score in [Score::Positive, Score::Magnitude, Score::Value] {
        forms.push(Sparsifier::new(score, Allocation::PerToken { k: 3 }));
        forms.push(Sparsifier::new(score, Allocation::Threshold));
    }
    for (n, shrink) in [Shrink::Soft, Shrink::Half, Shrink::Cel0 { eta: 0.4 }]
        .into_iter()
        .enumerate()
    {
        let score = [Score::Positive, Score::Magnitude][n % 2];
        forms.push(Sparsifier::new(score, Allocation::Threshold).shrunk(shrink));
    }
    forms
}

/// What is left of a score `s` above the cutoff `t`.
fn shrunk(shrink: Shrink, s: f64, t: f64) -> f64 {
    match shrink {
        Shrink::None => s,
        Shrink::Soft => s - t,
        Shrink::Cel0 { eta } => s.min((s - t) / (1.0 - eta)),
        // Where the slope of 1/2 (z - s)^2 + lambda sqrt(z) is 0, by halving.
        Shrink::Half => {
            let lambda = 4.0 * t.powf(1.5) / 54f64.sqrt();
            let slope = |z: f64| z - s + lambda / 2.0 / z.sqrt();
            let (mut low, mut high) = (2.0 / 3.0 * t, s);
            for _ in 0..100 {
                let middle = (low + high) / 2.0;
                if slope(middle) < 0.0 {
                    low = middle
                } else {
                    high = middle
                }
            }
            low
        }
    }
}

/// The whole dictionary in f64, dense and plain.
fn twin(sae: &Sae, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let f64s = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    let (w_enc, w_dec) = (
        f64s(to_host(sae.w_enc.clone().try_into_data()).unwrap()),
        f64s(sae.decoder_rows().unwrap()),
    );
    let (b_enc, b_dec) = (
        f64s(to_host(sae.b_enc.clone().try_into_data()).unwrap()),
        f64s(to_host(sae.b_dec.clone().try_into_data()).unwrap()),
    );
    let d_in = sae.d_in();
    let pre: Vec<f64> = (0..sae.d_sae())
        .map(|i| {
            b_enc[i]
                + (0..d_in)
                    .map(|j| (f64::from(x[j]) - b_dec[j]) * w_enc[i * d_in + j])
                    .sum::<f64>()
        })
        .collect();
    let score = |u: f64| match sae.sparsifier.score {
        Score::Positive => u.max(0.0),
        Score::Magnitude => u.abs(),
        Score::Value => u,
    };
    let mut order: Vec<usize> = (0..pre.len()).collect();
    order.sort_by(|&a, &b| score(pre[b]).total_cmp(&score(pre[a])));
    let thresholds = sae.thresholds().unwrap().unwrap_or(vec![0.0; pre.len()]);
    if let Some(k) = sae.sparsifier.k() {
        order.truncate(k);
    } else {
        order.retain(|&i| score(pre[i]) > f64::from(thresholds[i]));
    }
    let mut z = vec![0.0; pre.len()];
    for &i in &order {
        let fires = score(pre[i]) > 0.0 || sae.sparsifier.score == Score::Value;
        z[i] = if fires { pre[i] } else { 0.0 };
        if !sae.sparsifier.shrink.is_none() {
            z[i] = shrunk(sae.sparsifier.shrink, z[i].abs(), f64::from(thresholds[i])) * z[i].signum();
        }
    }
    let recon = (0..d_in)
        .map(|j| b_dec[j] + z.iter().enumerate().map(|(i, z)| z * w_dec[i * d_in + j]).sum::<f64>())
        .collect();
    (z, recon)
}

#[test]
fn coding_agrees_with_a_dense_twin_for_every_inference_form() {
    for sparsifier in inference_forms() {
        let sae = sae(6, 20, sparsifier);
        let x = noise(4 * 6, 9);
        let code = sae.encode_rows(&x).unwrap();
        let recon = sae.decode_rows(&code).unwrap();
        for row in 0..4 {
            let (z, expected) = twin(&sae, &x[row * 6..][..6]);
            let mut dense = vec![0.0; 20];
            code.row(row).for_each(|(i, v)| dense[i] = f64::from(v));
            assert!(
                z.iter().zip(&dense).all(|(a, b)| (a - b).abs() < 1e-5),
                "{z:?} {dense:?}"
            );
            let recon = &recon[row * 6..][..6];
            assert!(
                expected
                    .iter()
                    .zip(recon)
                    .all(|(a, &b)| (a - f64::from(b)).abs() < 1e-5)
            );
        }
    }
}

#[test]
fn folding_the_input_scale_changes_nothing_but_units() {
    // 3.7 is no power of two: division rounds.
    for (sparsifier, scale) in inference_forms().into_iter().zip([3.7f32, 0.013].into_iter().cycle()) {
        let trained = sae(6, 20, sparsifier);
        let folded = trained.clone().fold_scales(&Scales::one(6, scale));
        let x: Vec<f32> = noise(50 * 6, 11).iter().map(|v| v / scale).collect();
        let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
        let (raw, inside) = (folded.encode_rows(&x).unwrap(), trained.encode_rows(&scaled).unwrap());
        assert_eq!(raw.indices, inside.indices);
        for (a, b) in raw.values.iter().zip(&inside.values) {
            assert!((a * scale - b).abs() < 1e-5, "{a} {b}");
        }
        let (a, b) = (folded.decode_rows(&raw).unwrap(), trained.decode_rows(&inside).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a * scale - b).abs() < 1e-5));
    }
}

fn parameters(sae: &Sae) -> Vec<Vec<f32>> {
    let vector = |t: &Tensor<1>| to_host::<f32>(t.clone().try_into_data()).unwrap();
    let matrix = |t: &Tensor<2>| to_host::<f32>(t.clone().try_into_data()).unwrap();
    let mut all = vec![matrix(&sae.w_dec), vector(&sae.b_dec)];
    all.extend((0..=sae.steps.len()).flat_map(|n| [matrix(sae.step(n).0), vector(sae.step(n).1)]));
    all.extend(sae.threshold.as_ref().map(vector));
    all.extend(sae.skip.as_ref().map(matrix));
    all
}

fn assert_close(a: &Sae, b: &Sae) {
    for (a, b) in parameters(a).iter().zip(&parameters(b)) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs())));
    }
}

#[test]
fn unfolding_takes_back_what_folding_did_of_every_place_and_step() {
    let scale = |width, scale| Scale { width, scale };
    let read = vec![scale(4, 3.7), scale(2, 0.02)];
    let elsewhere = vec![scale(3, 90.0), scale(5, 0.3)];
    let learned = Encoder::Unrolled {
        steps: 3,
        weights: Weights::Learned,
    };
    for (sparsifier, same, skip) in [
        (Sparsifier::new(Score::Positive, Allocation::Threshold), true, false),
        (Sparsifier::top_k(2).encoded_by(learned), true, false),
        (Sparsifier::top_k(2), false, true),
    ] {
        let (before, _) = of_places(sparsifier, same, skip);
        let write = if same { read.clone() } else { elsewhere.clone() };
        let scales = Scales {
            read: read.clone(),
            write,
        };
        assert_close(&before.clone().fold_scales(&scales).unfold_scales(&scales), &before);
        assert_close(&before.clone().unfold_scales(&scales).fold_scales(&scales), &before);
    }
}

#[test]
fn rows_brought_to_length_one_and_a_bias_that_moves_change_no_reconstruction() {
    let learned = Encoder::Unrolled {
        steps: 2,
        weights: Weights::Learned,
    };
    let thresholds = Sparsifier::new(Score::Positive, Allocation::Threshold);
    for sparsifier in [thresholds, thresholds.encoded_by(learned)] {
        let mut before = sae(6, 20, sparsifier);
        before.w_enc = before.w_enc * 0.2;
        let x = noise(50 * 6, 11);
        let recon = |sae: &Sae| sae.decode_rows(&sae.encode_rows(&x).unwrap()).unwrap();
        let expected = recon(&before);
        let unit = before.clone().with_unit_rows();
        for row in unit.decoder_rows().unwrap().chunks(6) {
            assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        let again = unit.clone().with_unit_rows();
        assert_eq!(
            parameters(&again),
            parameters(&unit),
            "what has length 1 stays to the bit"
        );
        assert!(recon(&unit).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
        assert_close(
            &before.clone().with_b_dec_applied(false).with_b_dec_applied(true),
            &before,
        );
        if sparsifier.encoder.is_linear() {
            let moved = before.clone().with_b_dec_applied(false);
            assert!(!moved.apply_b_dec_to_input);
            assert!(recon(&moved).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }
}

#[test]
fn folding_a_power_of_two_is_exact_to_the_bit() {
    for sparsifier in inference_forms() {
        let trained = sae(6, 20, sparsifier);
        let folded = trained.clone().fold_scales(&Scales::one(6, 8.0));
        let x = noise(50 * 6, 11);
        let scaled: Vec<f32> = x.iter().map(|v| v * 8.0).collect();
        let (raw, inside) = (folded.encode_rows(&x).unwrap(), trained.encode_rows(&scaled).unwrap());
        let recon: Vec<f32> = folded.decode_rows(&raw).unwrap().iter().map(|v| v * 8.0).collect();
        assert_eq!(recon, trained.decode_rows(&inside).unwrap());
    }
}

#[test]
fn a_saved_dictionary_loads_to_the_same_bits() {
    for sparsifier in inference_forms() {
        let dir = tempfile::tempdir().unwrap();
        let before = sae(5, 8, sparsifier);
        before.save(dir.path(), &card(&before)).unwrap();
        let (after, card_after) = Sae::load(dir.path(), &Device::flex()).unwrap();
        assert_eq!(card_after, card(&before));
        let bits = |sae: &Sae| {
            let mut all = to_host::<f32>(sae.w_enc.clone().try_into_data()).unwrap();
            all.extend(to_host::<f32>(sae.b_enc.clone().try_into_data()).unwrap());
            all.extend(sae.decoder_rows().unwrap());
            all.extend(to_host::<f32>(sae.b_dec.clone().try_into_data()).unwrap());
            all.extend(sae.thresholds().unwrap().unwrap_or_default());
            all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&after), bits(&before));
        // Saving again over it is no accident.
        before.save(dir.path(), &card(&before)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn a_dictionary_of_the_first_version_still_loads() {
    let dir = tempfile::tempdir().unwrap();
    let before = sae(5, 8, Sparsifier::abs_top_k(2));
    before.save(dir.path(), &card(&before)).unwrap();
    // As the first version wrote it.
    let text = r#"{"version":1,"d_in":5,"d_sae":8,
        "sparsifier":{"score":"magnitude","allocation":{"kind":"per_token","k":2}},
        "trained_tokens":123,"seed":7}"#;
    fs::write(dir.path().join(CARD), text).unwrap();
    let (after, card) = Sae::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!((card.version, after.sparsifier), (1, Sparsifier::abs_top_k(2)));
    assert_eq!(after.decoder_rows().unwrap(), before.decoder_rows().unwrap());
}

#[test]
fn thresholds_that_cannot_be_or_are_missing_are_refused() {
    let jump = Sparsifier::new(Score::Positive, Allocation::Threshold);
    let saved = |sparsifier, claimed: Sparsifier, negate: bool| {
        let dir = tempfile::tempdir().unwrap();
        let mut sae = sae(5, 8, sparsifier);
        if negate {
            sae.threshold = sae.threshold.map(|t| -t);
        }
        sae.save(dir.path(), &card(&sae)).unwrap();
        let json = serde_json::to_string(&DictionaryCard {
            sparsifier: claimed,
            ..card(&sae)
        });
        fs::write(dir.path().join(CARD), json.unwrap()).unwrap();
        Sae::load(dir.path(), &Device::flex()).unwrap_err().to_string()
    };
    let negative = saved(jump, jump, true);
    assert!(
        negative.contains("threshold") && negative.contains("at least 0"),
        "{negative}"
    );
    let missing = saved(Sparsifier::top_k(2), jump, false);
    assert!(missing.contains("tensor threshold is missing"), "{missing}");
    let extra = saved(jump, Sparsifier::top_k(2), false);
    assert!(
        extra.contains("extra tensor threshold") && extra.contains("TopK(2)"),
        "{extra}"
    );
    let mut without = sae(5, 8, jump);
    without.threshold = None;
    let dir = tempfile::tempdir().unwrap();
    let error = without.save(dir.path(), &card(&without)).unwrap_err().to_string();
    assert!(error.contains("JumpReLU"), "{error}");
}

#[test]
fn dictionaries_that_cannot_be_are_refused_by_name() {
    let good = sae(5, 8, Sparsifier::top_k(2));
    let refused = |spoil: &dyn Fn(&std::path::Path), names: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        good.save(dir.path(), &card(&good)).unwrap();
        spoil(dir.path());
        let error = Sae::load(dir.path(), &Device::flex()).unwrap_err().to_string();
        assert!(names.iter().all(|n| error.contains(n)), "{error}");
    };
    let edit = |dir: &std::path::Path, from: &str, to: &str| {
        let path = dir.join(CARD);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    refused(&|dir| fs::remove_file(dir.join(CARD)).unwrap(), &["dictionary.json"]);
    refused(&|dir| fs::remove_file(dir.join(PARAMETERS)).unwrap(), &[PARAMETERS]);
    refused(
        &|dir| {
            fs::remove_file(dir.join(CARD)).unwrap();
            fs::write(dir.join("run.toml"), "").unwrap();
        },
        &["--resume"],
    );
    refused(
        &|dir| edit(dir, "\"version\": 4", "\"version\": 9"),
        &["version 9", "versions 1 to 4"],
    );
    refused(&|dir| edit(dir, "\"d_in\": 5", "\"d_in\": 6"), &["b_dec", "[5]", "[6]"]);
    refused(&|dir| edit(dir, "\"k\": 2", "\"k\": 9"), &["sae.k", "9"]);
    refused(&|dir| edit(dir, "\"seed\"", "\"sead\""), &["sead"]);
    refused(
        &|dir| {
            let path = dir.join(PARAMETERS);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        },
        &[PARAMETERS, "truncated"],
    );
    refused(
        &|dir| {
            let path = dir.join(PARAMETERS);
            let mut bytes = fs::read(&path).unwrap();
            // The last value of the last tensor.
            let end = bytes.len() - 4;
            bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
            fs::write(&path, bytes).unwrap();
        },
        &[PARAMETERS, "b_dec", "NaN"],
    );
}

#[test]
fn forms_for_training_alone_are_neither_saved_nor_loaded() {
    for sparsifier in [
        Sparsifier::batch_top_k(2),
        Sparsifier::new(Score::Positive, Allocation::Gate),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let training = sae(5, 8, sparsifier);
        let error = training.save(dir.path(), &card(&training)).unwrap_err().to_string();
        assert!(
            error.contains("form for training") && error.contains("threshold"),
            "{error}"
        );
        let saved = sae(5, 8, Sparsifier::top_k(2));
        saved.save(dir.path(), &card(&saved)).unwrap();
        fs::write(dir.path().join(CARD), serde_json::to_string(&card(&training)).unwrap()).unwrap();
        let error = Sae::load(dir.path(), &Device::flex()).unwrap_err().to_string();
        assert!(
            error.contains("dictionary.json") && error.contains("form for training"),
            "{error}"
        );
    }
}

#[test]
fn encoders_of_several_steps_are_saved_fold_scales_and_get_no_thresholds() {
    let score = Score::Magnitude;
    let k = Allocation::PerToken { k: 3 };
    for (allocation, encoder) in [
        (k, Encoder::unrolled(3)),
        (Allocation::Threshold, Encoder::unrolled(2)),
        (
            k,
            Encoder::Unrolled {
                steps: 3,
                weights: Weights::Learned,
            },
        ),
        (k, Encoder::MatchingPursuit),
        (k, Encoder::OrthogonalPursuit),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut before = sae(6, 20, Sparsifier::new(score, allocation).encoded_by(encoder));
        // Not so far off that steps run away.
        before.w_enc = before.w_enc * 0.2;
        if encoder.is_pursuit() {
            before.w_dec = before.w_dec.clone() / (before.w_dec.clone() * before.w_dec).sum_dim(1).sqrt();
            before.w_enc = before.w_dec.clone();
            before.b_enc = before.b_enc.zeros_like();
        }
        before.save(dir.path(), &card(&before)).unwrap();
        let json = fs::read_to_string(dir.path().join(CARD)).unwrap();
        assert!(
            json.contains("\"encoder\""),
            "an older reader knows no such key: {json}"
        );
        let (after, _) = Sae::load(dir.path(), &Device::flex()).unwrap();
        let x = noise(50 * 6, 11);
        let code = before.encode_rows(&x).unwrap();
        assert_eq!(after.encode_rows(&x).unwrap(), code);
        // Two hooks, each with a scale of its own.
        let places = vec![Scale { width: 2, scale: 8.0 }, Scale { width: 4, scale: 0.25 }];
        let scales = Scales {
            read: places.clone(),
            write: places,
        };
        let raw: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(n, v)| v / if n % 6 < 2 { 8.0 } else { 0.25 })
            .collect();
        let found = before.clone().fold_scales(&scales).encode_rows(&raw).unwrap();
        for row in 0..50 {
            let sorted = |code: &HostCode| {
                let mut row: Vec<(usize, f32)> = code.row(row).collect();
                row.sort_by_key(|e| e.0);
                row
            };
            for (a, b) in sorted(&found).iter().zip(sorted(&code)) {
                assert!(
                    a.0 == b.0 && (a.1 * scales.code() - b.1).abs() < 1e-4,
                    "{encoder:?}: {a:?} {b:?}"
                );
            }
        }
        let rows = |see: &mut dyn FnMut(&[f32]) -> Result<()>| see(&x);
        let refused = before
            .into_inference(InferenceForm::Threshold, 3.0, &rows, &rows)
            .unwrap_err();
        assert!(refused.to_string().contains("one product"), "{refused}");
    }
}

#[test]
fn rows_of_another_width_are_refused() {
    let sae = sae(6, 20, Sparsifier::top_k(3));
    let error = sae.encode_rows(&[0.0; 13]).unwrap_err().to_string();
    assert!(error.contains("13") && error.contains("d_in 6"), "{error}");
    let x = Tensor::<2>::zeros([2, 7], &Device::flex());
    assert!(sae.encode(x).unwrap_err().to_string().contains("d_in 7"));
    let code = HostCode::equal(1, vec![20], vec![1.0]);
    assert!(sae.decode_rows(&code).unwrap_err().to_string().contains("latent 20"));
}

#[test]
fn a_batchs_budget_is_spent_over_all_rows_however_many_and_empty_codes_decode_to_the_bias() {
    let sae = sae(6, 20, Sparsifier::batch_top_k(2));
    let x = noise(40 * 6, 3);
    let code = sae.encode_rows(&x).unwrap();
    assert_eq!((code.batch(), code.values.len()), (40, 80));
    let lengths: Vec<usize> = code.rows.ranges().map(|r| r.len()).collect();
    assert!(lengths.iter().any(|n| *n != 2), "{lengths:?}");
    let empty = HostCode {
        rows: crate::code::Rows::from_lengths([0, 0]),
        ..HostCode::default()
    };
    let b_dec = to_host::<f32>(sae.b_dec.clone().try_into_data()).unwrap();
    assert_eq!(sae.decode_rows(&empty).unwrap(), [b_dec.clone(), b_dec].concat());
}

/// A dictionary that reads places of widths 4 and 2 and writes places of widths 3 and 5, or what it reads.
fn of_places(sparsifier: Sparsifier, same: bool, skip: bool) -> (Sae, DictionaryCard) {
    let device = Device::flex();
    let (d_in, d_out, d_sae) = (6, if same { 6 } else { 8 }, 20);
    let tensor = |n, width, seed| Tensor::from_data(TensorData::new(noise(n * width, seed), [n, width]), &device);
    let sae = Sae {
        w_dec: tensor(d_sae, d_out, 3),
        b_dec: Tensor::from_data(TensorData::new(noise(d_out, 4), [d_out]), &device),
        apply_b_dec_to_input: same,
        skip: skip.then(|| tensor(d_out, d_in, 6)),
        ..sae(d_in, d_sae, sparsifier)
    };
    let place = |hook: &str, width| Place {
        hook: Some(hook.into()),
        width,
    };
    let card = DictionaryCard {
        hook: None,
        reads: vec![place("a", 4), place("b", 2)],
        writes: match same {
            true => Vec::new(),
            false => vec![place("c", 3), place("d", 5)],
        },
        ..card(&sae)
    };
    (sae, card)
}

#[test]
fn folding_a_scale_for_every_place_changes_nothing_but_units() {
    let scale = |width, scale| Scale { width, scale };
    let read = vec![scale(4, 3.7), scale(2, 0.013)];
    for sparsifier in inference_forms() {
        for (same, skip) in [(true, false), (false, false), (false, true)] {
            let write = match same {
                true => read.clone(),
                false => vec![scale(3, 0.2), scale(5, 21.0)],
            };
            let scales = Scales {
                read: read.clone(),
                write,
            };
            let (trained, _) = of_places(sparsifier, same, skip);
            let folded = trained.clone().fold_scales(&scales);
            let scaled = noise(50 * 6, 11);
            // Raw activations: divided by the scale of their place.
            let factors = |of: &[Scale]| of.iter().flat_map(|s| vec![s.scale; s.width]).collect::<Vec<_>>();
            let (in_factors, out_factors) = (factors(&scales.read), factors(&scales.write));
            let x: Vec<f32> = scaled.iter().enumerate().map(|(i, v)| v / in_factors[i % 6]).collect();
            let (raw, inside) = (folded.encode_rows(&x).unwrap(), trained.encode_rows(&scaled).unwrap());
            assert_eq!(raw.indices, inside.indices);
            let code = scales.code();
            for (a, b) in raw.values.iter().zip(&inside.values) {
                assert!((a * code - b).abs() < 1e-4, "{a} {b}");
            }
            let (a, b) = (
                folded.recon_rows(&x, &raw).unwrap(),
                trained.recon_rows(&scaled, &inside).unwrap(),
            );
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                let back = a * out_factors[i % out_factors.len()];
                assert!((back - b).abs() < 1e-4 * (1.0 + b.abs()), "{back} {b}");
            }
        }
    }
    // Of one written place a latent's direction stays what it was, and its value is a length in raw units.
    let (trained, _) = of_places(Sparsifier::top_k(2), false, false);
    let scales = Scales {
        read,
        write: vec![scale(8, 0.5)],
    };
    assert_eq!(scales.code(), 0.5);
    let before = trained.decoder_rows().unwrap();
    assert_eq!(trained.fold_scales(&scales).decoder_rows().unwrap(), before);
}

#[test]
fn a_row_of_several_places_has_the_scale_that_it_would_have_as_one() {
    let scale = |width, scale| Scale { width, scale };
    // E|y|^2 is 4 / 4 and 12 / (1/4): 49 over a width of 16.
    let scales = Scales {
        read: vec![scale(1, 1.0)],
        write: vec![scale(4, 2.0), scale(12, 0.5)],
    };
    assert!((f64::from(scales.code()) - (16.0f64 / 49.0).sqrt()).abs() < 1e-6);
}

#[test]
fn every_shape_saves_and_loads_to_the_same_bits_and_says_what_it_is() {
    for (same, skip, shape) in [
        (true, false, Shape::Crosscoder),
        (false, false, Shape::Transcoder),
        (false, true, Shape::SkipTranscoder),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (before, card) = of_places(Sparsifier::top_k(2), same, skip);
        before.save(dir.path(), &card).unwrap();
        let (after, loaded) = Sae::load(dir.path(), &Device::flex()).unwrap();
        assert_eq!(loaded, card);
        assert_eq!((loaded.shape(), loaded.d_out()), (shape, if same { 6 } else { 8 }));
        assert_eq!(after.decoder_rows().unwrap(), before.decoder_rows().unwrap());
        assert_eq!(after.apply_b_dec_to_input, same);
        let x = noise(6 * 9, 8);
        let recon = |sae: &Sae| sae.recon_rows(&x, &sae.encode_rows(&x).unwrap()).unwrap();
        assert_eq!(recon(&after), recon(&before));
        // A build of the second version says that this one is newer; its own check is this comparison.
        assert!(loaded.version > 2);
    }
    let plain = card(&sae(6, 20, Sparsifier::top_k(2)));
    assert_eq!(plain.shape(), Shape::Autoencoder);
}

#[test]
fn cards_whose_places_cannot_be_are_refused() {
    let (good, good_card) = of_places(Sparsifier::top_k(2), false, true);
    let refused = |change: &dyn Fn(&mut DictionaryCard), says: &str| {
        let dir = tempfile::tempdir().unwrap();
        good.save(dir.path(), &good_card).unwrap();
        let mut card = good_card.clone();
        change(&mut card);
        assert!(good.save(&dir.path().join("elsewhere"), &card).is_err());
        fs::write(dir.path().join(CARD), serde_json::to_string(&card).unwrap()).unwrap();
        let error = Sae::load(dir.path(), &Device::flex()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&|card| card.reads[0].width = 5, "not so wide together");
    refused(&|card| card.reads[0].width = usize::MAX, "not so wide together");
    refused(&|card| card.writes[0].width = 4, "tensor b_dec has shape [8]");
    refused(&|card| card.writes[0].width = usize::MAX, "tensor b_dec has shape [8]");
    refused(&|card| card.writes[0].width = 0, "width 0");
    refused(&|card| card.writes.clear(), "writes what it reads");
    refused(&|card| card.skip = false, "extra tensor skip: a TopK(2) transcoder");
    refused(&|card| card.apply_b_dec_to_input = true, "subtracts b_dec of width 8");
    let (_, without) = of_places(Sparsifier::top_k(2), false, false);
    let dir = tempfile::tempdir().unwrap();
    let error = good.save(dir.path(), &without).unwrap_err().to_string();
    assert!(error.contains("skip"), "{error}");
}
