use burn::tensor::Device;

use super::*;
use crate::kernels::tests::{devices, uniform};
use crate::objective::tests::pass;

fn with_decoder(device: &Device, rows: &[f32], d_in: usize, signed: bool) -> (Forward, Tensor<2>) {
    let shape = [rows.len() / d_in, d_in];
    let w_dec = Tensor::<2>::from_data(TensorData::new(rows.to_vec(), shape), device).require_grad();
    let mut pass = pass(device, false);
    (pass.w_dec, pass.signed) = (w_dec.clone(), signed);
    (pass, w_dec)
}

/// Mean over latents of the largest squared cosine with another of its chunk, and its gradient, in f64, by differences.
fn twin(rows: &[f64], d_in: usize, chunks: &[Vec<i32>], absolute: bool) -> f64 {
    let row = |i: i32| &rows[i as usize * d_in..][..d_in];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |i: i32, j: i32| dot(row(i), row(j)) / (dot(row(i), row(i)) * dot(row(j), row(j))).sqrt();
    let mut sum = 0.0;
    for chunk in chunks {
        for &i in chunk {
            let score = |c: f64| if absolute { c.abs() } else { c };
            let others = chunk.iter().filter(|j| **j != i).map(|&j| cosine(i, j));
            sum += others
                .max_by(|a, b| score(*a).total_cmp(&score(*b)))
                .unwrap_or(0.0)
                .powi(2);
        }
    }
    sum / (rows.len() / d_in) as f64
}

#[test]
fn values_and_gradients_equal_a_plain_twin_and_reach_both_rows_of_a_pair() {
    use rand::SeedableRng;
    let (d_in, d_sae) = (5, 23);
    let rows = uniform(&mut ChaCha8Rng::seed_from_u64(5), d_sae * d_in);
    for device in devices() {
        for (chunk, absolute, signed) in [
            (8192, None, false),
            (8, None, true),
            (8, Some(false), true),
            (4, Some(true), false),
        ] {
            let term = Orthogonality {
                chunk,
                absolute,
                ..Orthogonality::default()
            };
            let (pass, w_dec) = with_decoder(&device.clone().autodiff(), &rows, d_in, signed);
            let value = term.value(&pass).unwrap();
            let grads = value.clone().backward();
            let found = value.into_data().to_vec::<f32>().unwrap()[0];
            let gradient = w_dec.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
            let chunks = term.chunks(pass.moment, d_sae);
            assert!(chunks.iter().all(|c| c.len() <= chunk));
            let mut f64s: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
            let absolute = absolute.unwrap_or(signed);
            let expected = twin(&f64s, d_in, &chunks, absolute);
            assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
            for (i, g) in gradient.iter().enumerate() {
                let at = f64s[i];
                let mut shifted = |by: f64| {
                    f64s[i] = at + by;
                    twin(&f64s, d_in, &chunks, absolute)
                };
                let slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                f64s[i] = at;
                assert!((f64::from(*g) - slope).abs() < 1e-4, "{i}: {g} {slope}");
            }
        }
    }
}

#[test]
fn antipodal_rows_escape_the_signed_form_alone() {
    let device = Device::flex();
    let value = |rows: &[f32], absolute: bool| {
        let term = Orthogonality {
            absolute: Some(absolute),
            ..Orthogonality::default()
        };
        let (pass, _) = with_decoder(&device, rows, 2, false);
        term.value(&pass).unwrap().into_data().to_vec::<f32>().unwrap()[0]
    };
    let rows = [1.0, 0.0, -1.0, 0.0];
    // With two rows, the largest signed cosine is the only one, and it is squared all the same.
    assert_eq!((value(&rows, true), value(&rows, false)), (1.0, 1.0));
    let rows = [1.0, 0.0, -1.0, 0.0, 0.0, 1.0];
    assert!((value(&rows, true) - 2.0 / 3.0).abs() < 1e-6);
    assert_eq!(value(&rows, false), 0.0);
}

#[test]
fn chunks_are_fresh_each_step_and_hold_every_latent_once() {
    let term = Orthogonality {
        chunk: 100,
        ..Orthogonality::default()
    };
    let at = |step, seed| term.chunks(Moment { step, steps: 9, seed }, 250);
    for chunks in [at(0, 1), at(1, 1), at(0, 2)] {
        assert_eq!(chunks.len(), 3);
        let mut all = chunks.concat();
        all.sort();
        assert!(all.iter().copied().eq(0..250));
    }
    assert_eq!(at(4, 1), at(4, 1));
    assert_ne!(at(4, 1), at(5, 1));
    assert_ne!(at(4, 1), at(4, 2));
}

#[test]
fn between_its_steps_it_says_nothing_and_at_them_it_weighs_for_all() {
    let device = Device::flex();
    let term = Orthogonality {
        every: 5,
        ..Orthogonality::default()
    };
    let (mut pass, _) = with_decoder(&device, &[1.0, 0.0, 0.6, 0.8], 2, false);
    assert_eq!(term.weight(pass.moment), 1.25);
    for (step, says) in [(0, true), (1, false), (4, false), (5, true)] {
        pass.moment.step = step;
        assert_eq!(term.value(&pass).is_some(), says);
    }
}

#[test]
fn the_nearest_row_is_found_alike_whatever_the_number_of_threads() {
    use rand::SeedableRng;
    let (d_in, d_sae) = (96, 700);
    let rows = uniform(&mut ChaCha8Rng::seed_from_u64(5), d_sae * d_in);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (pass, w_dec) = with_decoder(&Device::flex().autodiff(), &rows, d_in, true);
            let grads = Orthogonality::default().value(&pass).unwrap().backward();
            w_dec.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap()
        })
    };
    let bits = |v: Vec<f32>| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let one = bits(on(1));
    assert!(one == bits(on(2)) && one == bits(on(3)));
}

#[test]
fn a_latent_alone_in_its_chunk_has_no_neighbour_and_one_alone_in_the_dictionary_no_term() {
    let device = Device::flex();
    let term = Orthogonality {
        chunk: 2,
        ..Orthogonality::default()
    };
    let rows = [1.0, 0.0, 0.6, 0.8, -0.8, 0.6];
    let (pass, _) = with_decoder(&device, &rows, 2, true);
    let chunks = term.chunks(pass.moment, 3);
    assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    let expected = twin(&rows.map(f64::from), 2, &chunks, true);
    let found = term.value(&pass).unwrap().into_data().to_vec::<f32>().unwrap()[0];
    assert!((f64::from(found) - expected).abs() < 1e-6, "{found} {expected}");
    let (pass, _) = with_decoder(&device, &rows[..2], 2, true);
    assert!(term.value(&pass).is_none());
}

#[test]
fn a_row_of_zeros_keeps_the_gradient_a_number_and_one_of_no_numbers_is_not_passed_over() {
    let mut rows = [0.0, 0.0, 0.6, 0.8, 1.0, 0.0, 1.0, 0.0];
    let of = |rows: &[f32]| {
        let (pass, w_dec) = with_decoder(&Device::flex().autodiff(), rows, 2, false);
        let value = Orthogonality::default().value(&pass).unwrap();
        let gradient = w_dec.grad(&value.clone().backward()).unwrap();
        let read = |data: TensorData| data.to_vec::<f32>().unwrap();
        (read(value.into_data())[0], read(gradient.into_data()))
    };
    let (value, gradient) = of(&rows);
    // Two equal rows, one at 0.6 from both, and one that is near to nobody; the equal ones cannot be nearer.
    assert!((value - (1.0 + 1.0 + 0.36) / 4.0).abs() < 1e-6, "{value}");
    assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    rows[3] = f32::NAN;
    assert!(of(&rows).0.is_nan());
}

#[test]
fn the_exact_search_finds_the_same_value_and_gradient() {
    use rand::SeedableRng;
    let rows = uniform(&mut ChaCha8Rng::seed_from_u64(8), 400 * 24);
    let of = |search| {
        let (mut pass, w_dec) = with_decoder(&Device::flex().autodiff(), &rows, 24, true);
        pass.search = search;
        let grads = Orthogonality::default().value(&pass).unwrap().backward();
        w_dec.grad(&grads).unwrap().into_data().to_vec::<f32>().unwrap()
    };
    assert_eq!(of(crate::kernels::Search::Auto), of(crate::kernels::Search::Exact));
}
