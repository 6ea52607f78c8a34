use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::kernels::tests::devices;

const FORMS: [Form; 4] = [Form::Plain, Form::Ordered, Form::Mixed, Form::Combined];

fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn bilinear(d_in: usize, d_sae: usize, form: Form, device: &Device) -> Bilinear {
    let tensor = |n, width, seed| Tensor::from_data(TensorData::new(uniform(n * width, seed), [n, width]), device);
    Bilinear {
        left: tensor(d_sae, d_in, 1),
        right: tensor(d_sae, d_in, 2),
        mix: form.mixes().then(|| tensor(4, d_sae, 3)),
        form,
    }
}

fn f64s(t: &Tensor<2>) -> Vec<f64> {
    let host = to_host::<f32>(t.clone().try_into_data()).unwrap();
    host.into_iter().map(f64::from).collect()
}

/// `|x x^T - sum_(j < prefix) g_j l_j r_j^T|^2` with every matrix written down.
fn explicit(of: &Bilinear, x: &[f64], prefix: usize) -> f64 {
    let (d, n) = (of.d_in(), of.d_sae());
    let (left, right) = (f64s(&of.left), f64s(&of.right));
    let dot = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
    let f: Vec<f64> = (0..n)
        .map(|j| dot(&left[j * d..][..d]) * dot(&right[j * d..][..d]))
        .collect();
    let g = match &of.mix {
        None => f,
        Some(mix) => {
            let mix = f64s(mix);
            let h: Vec<f64> = mix
                .chunks(n)
                .map(|row| row.iter().zip(&f).map(|(a, b)| a * b).sum())
                .collect();
            (0..n)
                .map(|j| h.iter().enumerate().map(|(c, h)| h * mix[c * n + j]).sum())
                .collect()
        }
    };
    let mut error = 0.0;
    for a in 0..d {
        for b in 0..d {
            let recon: f64 = (0..prefix).map(|j| g[j] * left[j * d + a] * right[j * d + b]).sum();
            error += (x[a] * x[b] - recon).powi(2);
        }
    }
    error
}

#[test]
fn the_kernels_error_is_the_explicit_one_for_every_form() {
    for device in devices() {
        for (form, d_in, d_sae) in FORMS.into_iter().flat_map(|f| [(f, 5, 9), (f, 7, 1), (f, 1, 6)]) {
            let of = bilinear(d_in, d_sae, form, &device);
            let x = Tensor::<2>::from_data(TensorData::new(uniform(6 * d_in, 8), [6, d_in]), &device);
            let x = Bilinear::normalised(x);
            for ordered in [false, true] {
                let found = f64s(&of.errors(x.clone(), of.latents(x.clone()), ordered));
                for (row, found) in f64s(&x).chunks(d_in).zip(found) {
                    let expected = match ordered {
                        false => explicit(&of, row, d_sae),
                        true => (1..=d_sae).map(|t| explicit(&of, row, t)).sum::<f64>() / d_sae as f64,
                    };
                    assert!(
                        (found - expected).abs() < 1e-5 * (1.0 + expected),
                        "{form:?} {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_of_the_error_agree_with_finite_differences() {
    for form in FORMS {
        let plain = bilinear(4, 6, form, &Device::flex());
        let x = Tensor::<2>::from_data(TensorData::new(uniform(5 * 4, 8), [5, 4]), &Device::flex());
        let x = Bilinear::normalised(x);
        let lift = |t: &Tensor<2>| Tensor::from_inner(t.clone()).require_grad();
        let tracked = Bilinear {
            left: lift(&plain.left),
            right: lift(&plain.right),
            mix: plain.mix.as_ref().map(lift),
            form,
        };
        let x_tracked = Tensor::from_inner(x.clone());
        let loss = tracked
            .errors(x_tracked.clone(), tracked.latents(x_tracked), form.orders())
            .sum();
        let grads = loss.backward();
        let value = |of: &Bilinear| -> f64 {
            f64s(&x)
                .chunks(4)
                .map(|row| match form.orders() {
                    false => explicit(of, row, 6),
                    true => (1..=6).map(|t| explicit(of, row, t)).sum::<f64>() / 6.0,
                })
                .sum()
        };
        let mut params: Vec<fn(&mut Bilinear) -> &mut Tensor<2>> = vec![|of| &mut of.left, |of| &mut of.right];
        if form.mixes() {
            params.push(|of| of.mix.as_mut().unwrap());
        }
        for param in params {
            let mut copy = tracked.clone();
            let found = f64s(&param(&mut copy).grad(&grads).unwrap());
            for (i, found) in found.iter().enumerate() {
                let shifted = |by: f32| {
                    let mut moved = plain.clone();
                    let tensor = param(&mut moved);
                    let (mut values, shape) = (to_host::<f32>(tensor.clone().try_into_data()).unwrap(), tensor.dims());
                    values[i] += by;
                    *tensor = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
                    value(&moved)
                };
                let expected = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
                assert!(
                    (found - expected).abs() < 1e-2 * (1.0 + expected.abs()),
                    "{form:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_forms_matrix_gives_its_value_and_its_eigenvectors_its_directions() {
    for form in FORMS {
        let of = bilinear(5, 9, form, &Device::flex());
        assert_eq!(of.n_forms(), if form.mixes() { 4 } else { 9 });
        let x = Bilinear::normalised(Tensor::from_data(
            TensorData::new(uniform(3 * 5, 8), [3, 5]),
            &Device::flex(),
        ));
        let latents = of.latents(x.clone());
        let values = match &of.mix {
            Some(mix) => f64s(&latents.matmul(mix.clone().transpose())),
            None => f64s(&latents),
        };
        for (row, x) in f64s(&x).chunks(5).enumerate() {
            for n in 0..of.n_forms() {
                let matrix = of.matrix(n).unwrap();
                let found: f64 = (0..25).map(|i| matrix[i] * x[i / 5] * x[i % 5]).sum();
                assert!((found - values[row * of.n_forms() + n]).abs() < 1e-5);
                // A latent is of rank two.
                let eigen = of.eigen(n).unwrap();
                assert_eq!(form.mixes(), eigen.values[2].abs() > 1e-6);
            }
        }
        assert!(of.matrix(of.n_forms()).unwrap_err().to_string().contains("no form"));
    }
}

#[test]
fn a_row_of_zeros_has_no_length_to_divide_by_and_no_error() {
    let of = bilinear(5, 9, Form::Ordered, &Device::flex());
    let x = Bilinear::normalised(Tensor::zeros([2, 5], &Device::flex()));
    assert_eq!(f64s(&of.errors(x.clone(), of.latents(x), true)), [0.0, 0.0]);
}

#[test]
fn a_saved_autoencoder_loads_to_the_same_bits_and_what_cannot_be_is_refused() {
    for form in FORMS {
        let dir = tempfile::tempdir().unwrap();
        let before = bilinear(5, 9, form, &Device::flex());
        let card = BilinearCard {
            version: BilinearCard::VERSION,
            form,
            d_in: 5,
            d_sae: 9,
            clusters: form.mixes().then_some(4),
            hook: None,
            model: None,
            corpus: None,
            trained_tokens: 7,
            seed: 1,
            held_out: None,
        };
        before.save(dir.path(), &card).unwrap();
        let (after, loaded) = Bilinear::load(dir.path(), &Device::flex()).unwrap();
        assert_eq!(loaded, card);
        assert_eq!(f64s(&after.left), f64s(&before.left));
        assert_eq!(after.mix.as_ref().map(f64s), before.mix.as_ref().map(f64s));
        let sae = crate::Sae::load(dir.path(), &Device::flex()).unwrap_err().to_string();
        assert!(sae.contains("bilinear autoencoder"), "{sae}");
        for (from, to, says) in [
            ("\"d_sae\": 9", "\"d_sae\": 8", "left"),
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"d_in\": 5", "\"d_in\": 0", "d_in 0"),
            ("\"seed\"", "\"sead\"", "sead"),
        ] {
            before.save(dir.path(), &card).unwrap();
            let path = dir.path().join(CARD);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = Bilinear::load(dir.path(), &Device::flex()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let other = BilinearCard { d_in: 6, ..card };
        assert!(before.save(dir.path(), &other).is_err());
    }
}
