//! What a store of int8 costs: measured on the activations of a model, and on a dictionary trained on them.

use activations::source::Activations;

use super::{HARVEST, HOOK, Place};

/// All rows of a store, and their width.
fn rows(place: &Place, store: &str) -> (Vec<f32>, usize) {
    let acts = Activations::open(&place.path(store), None).unwrap();
    let mut rows = vec![0.0; acts.n_rows() as usize * acts.d_in()];
    acts.read_rows(0..acts.n_rows(), &mut rows).unwrap();
    (rows, acts.d_in())
}

/// The share of the variance of `x` that `y` does not explain.
fn fvu(x: &[f32], y: &[f32], d_in: usize) -> f64 {
    let mut mean = vec![0.0f64; d_in];
    for row in x.chunks(d_in) {
        mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
    }
    let n = (x.len() / d_in) as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    let variance: f64 = x
        .chunks(d_in)
        .flat_map(|row| row.iter().zip(&mean))
        .map(|(&v, m)| (f64::from(v) - m).powi(2))
        .sum();
    let error: f64 = x
        .iter()
        .zip(y)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
        .sum();
    error / variance
}

#[test]
fn int8_costs_less_than_a_thousandth_of_the_variance_and_half_of_the_bytes() {
    let place = Place::new();
    for dtype in ["f32", "f16", "int8"] {
        place.json(&format!("{HARVEST} --hook {HOOK} --dtype {dtype} --out {dtype}"));
    }
    let (x, d_in) = rows(&place, "f32");
    let cost = |store: &str| fvu(&x, &rows(&place, store).0, d_in);
    let (f16, int8) = (cost("f16"), cost("int8"));
    println!("FVU of the store at {HOOK}: f16 {f16:.1e}, int8 {int8:.1e}");
    assert!(f16 < 1e-6 && f16 < int8 && int8 < 1e-3, "f16 {f16}, int8 {int8}");
    let size = |store: &str| place.json(&format!("inspect {store} --json"))["size"].as_f64().unwrap();
    let ratio = size("int8") / size("f16");
    assert!((0.5..0.56).contains(&ratio), "{ratio}");
    let settings = "--json --set sae.d_sae=256 --set sae.k=8 --set train.steps=200 --set train.batch=256";
    let train = |store: &str| {
        let run = place.json(&format!("train --acts {store} --out run-{store} {settings}"));
        run["held_out"]["fvu"].as_f64().unwrap()
    };
    let (exact, rounded) = (train("f32"), train("int8"));
    println!("FVU of a dictionary after 200 steps: f32 {exact:.4}, int8 {rounded:.4}");
    assert!((exact - rounded).abs() < 0.01 * exact, "f32 {exact}, int8 {rounded}");
}
