//! AbsTopK of F latents against TopK of 2 F (arXiv 2510.00404).

use super::claims::{RECIPE, column, mean_nearest, runs, share};
use super::data::Recipe;
use super::real::{Acts, of};
use super::run::Measured;

/// Of a latent with two poles, the least share of its firings that each has.
const POLE: f64 = 0.05;

/// The share of the latents that fire which do so with both signs.
fn bidirectional(measured: &Measured) -> f64 {
    let mut signs = vec![[0u64; 2]; measured.sae.d_sae()];
    for (&latent, &value) in measured.code.indices.iter().zip(&measured.code.values) {
        if value != 0.0 {
            signs[latent as usize][usize::from(value > 0.0)] += 1;
        }
    }
    let alive = signs.iter().filter(|[minus, plus]| minus + plus > 0);
    let rarer: Vec<f64> = alive
        .map(|[minus, plus]| *minus.min(plus) as f64 / (minus + plus) as f64)
        .collect();
    share(&rarer, |part| part >= POLE)
}

/// On tokens of signed directions.
pub fn planted(seeds: u64) {
    println!("\n1. Signed data of 4 of 64 directions in 32 dimensions, k = 4\n");
    println!(
        "| method | latents | FVU | mean cosine with the truth | recovered (cosine over 0.9) | bidirectional |\n\
         |---|---|---|---|---|---|"
    );
    let recipe = Recipe { signed: true, ..RECIPE };
    for (method, d_sae) in [("topk", "64"), ("topk", "128"), ("abs_topk", "64"), ("abs_topk", "128")] {
        let sets = [("sae.method", method), ("sae.k", "4"), ("sae.d_sae", d_sae)];
        let runs = runs(seeds, &recipe, &sets);
        println!(
            "| {method} | {d_sae} | {} | {} | {} | {} |",
            column(&runs, |m, _| m.fvu),
            column(&runs, mean_nearest),
            column(&runs, |m, data| share(&data.nearest(&m.decoder), |c| c > 0.9)),
            column(&runs, |m, _| bidirectional(m))
        );
    }
}

/// On a model's activations, where the truth is not known.
pub fn of_a_model(seeds: u64, acts: &Acts) {
    println!("\n1. {}, k = 32\n", acts.describe());
    println!("| method | latents | FVU | dead latents | bidirectional |\n|---|---|---|---|---|");
    let width = 4 * acts.d_in();
    for (method, d_sae) in [("topk", width), ("topk", 2 * width), ("abs_topk", width)] {
        let sets = [("sae.method", method.to_owned()), ("sae.d_sae", d_sae.to_string())];
        let runs = acts.runs(seeds, &sets);
        println!(
            "| {method} | {d_sae} | {} | {} | {} |",
            of(&runs, |m| m.fvu),
            of(&runs, |m| m.dead),
            of(&runs, bidirectional)
        );
    }
}
