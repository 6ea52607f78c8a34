use std::fs;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

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
    Sae {
        w_enc: matrix(1),
        b_enc: Tensor::from_data(TensorData::new(noise(d_sae, 2), [d_sae]), &device),
        w_dec: matrix(3),
        b_dec: Tensor::from_data(TensorData::new(noise(d_in, 4), [d_in]), &device),
        sparsifier,
    }
}

fn card(sae: &Sae) -> DictionaryCard {
    DictionaryCard {
        version: DictionaryCard::VERSION,
        d_in: sae.d_in(),
        d_sae: sae.d_sae(),
        sparsifier: sae.sparsifier,
        hook: Some("blocks.3.hook_resid_post".into()),
        model: None,
        corpus: None,
        trained_tokens: 123,
        seed: 7,
        held_out: Some(HeldOut {
            rows: 10,
            fvu: 0.25,
            l0: 3.0,
            dead_share: 0.0,
        }),
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
    let score = |u: f64| {
        if sae.sparsifier.is_signed() {
            u.abs()
        } else {
            u.max(0.0)
        }
    };
    let mut order: Vec<usize> = (0..pre.len()).collect();
    order.sort_by(|&a, &b| score(pre[b]).total_cmp(&score(pre[a])));
    let mut z = vec![0.0; pre.len()];
    for &i in &order[..sae.sparsifier.slots()] {
        z[i] = if score(pre[i]) > 0.0 { pre[i] } else { 0.0 };
    }
    let recon = (0..d_in)
        .map(|j| b_dec[j] + z.iter().enumerate().map(|(i, z)| z * w_dec[i * d_in + j]).sum::<f64>())
        .collect();
    (z, recon)
}

#[test]
fn coding_agrees_with_a_dense_twin_under_both_scores() {
    for sparsifier in [Sparsifier::top_k(3), Sparsifier::abs_top_k(5)] {
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
    for (sparsifier, scale) in [(Sparsifier::top_k(3), 3.7f32), (Sparsifier::abs_top_k(4), 0.013)] {
        let trained = sae(6, 20, sparsifier);
        let folded = trained.clone().fold_input_scale(scale);
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

#[test]
fn folding_a_power_of_two_is_exact_to_the_bit() {
    let trained = sae(6, 20, Sparsifier::abs_top_k(4));
    let folded = trained.clone().fold_input_scale(8.0);
    let x = noise(50 * 6, 11);
    let scaled: Vec<f32> = x.iter().map(|v| v * 8.0).collect();
    let (raw, inside) = (folded.encode_rows(&x).unwrap(), trained.encode_rows(&scaled).unwrap());
    let recon: Vec<f32> = folded.decode_rows(&raw).unwrap().iter().map(|v| v * 8.0).collect();
    assert_eq!(recon, trained.decode_rows(&inside).unwrap());
}

#[test]
fn a_saved_dictionary_loads_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let before = sae(5, 8, Sparsifier::abs_top_k(2));
    before.save(dir.path(), &card(&before)).unwrap();
    let (after, card_after) = Sae::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(card_after, card(&before));
    let bits = |sae: &Sae| {
        let mut all = to_host::<f32>(sae.w_enc.clone().try_into_data()).unwrap();
        all.extend(to_host::<f32>(sae.b_enc.clone().try_into_data()).unwrap());
        all.extend(sae.decoder_rows().unwrap());
        all.extend(to_host::<f32>(sae.b_dec.clone().try_into_data()).unwrap());
        all.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&after), bits(&before));
    // Saving again over it is no accident.
    before.save(dir.path(), &card(&before)).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
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
        &|dir| edit(dir, "\"version\": 1", "\"version\": 9"),
        &["version 9", "version 1"],
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
fn rows_of_another_width_are_refused() {
    let sae = sae(6, 20, Sparsifier::top_k(3));
    let error = sae.encode_rows(&[0.0; 13]).unwrap_err().to_string();
    assert!(error.contains("13") && error.contains("d_in 6"), "{error}");
    let x = Tensor::<2>::zeros([2, 7], &Device::flex());
    assert!(sae.encode(x).unwrap_err().to_string().contains("d_in 7"));
    let code = HostCode {
        slots: 1,
        indices: vec![20],
        values: vec![1.0],
    };
    assert!(sae.decode_rows(&code).unwrap_err().to_string().contains("latent 20"));
}
