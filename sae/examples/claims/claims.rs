//! Claims about sparsifiers and terms, each a table.

use super::data::Recipe;
use super::run::{Measured, interval, train};

/// Tokens that are trained on, and those that are measured on.
const TOKENS: usize = 24_000;
const FRESH: usize = 6_000;

/// Directions that are all as frequent.
pub const RECIPE: Recipe = Recipe {
    d_in: 32,
    atoms: 64,
    active: (4, 4),
    zipf: 0.0,
    signed: false,
    noise: 0.02,
};

/// One dictionary a seed, with the data it is measured on.
pub fn runs(seeds: u64, recipe: &Recipe, sets: &[(&str, &str)]) -> Vec<(Measured, super::data::Data)> {
    let mut all = vec![
        ("train.steps", "3000".to_owned()),
        ("train.batch", "256".to_owned()),
        ("train.lr", "2e-3".to_owned()),
        ("sae.d_sae", "96".to_owned()),
    ];
    all.extend(sets.iter().map(|&(key, value)| (key, value.to_owned())));
    let one = |seed| {
        let (seen, fresh) = (recipe.make(TOKENS, seed, 0), recipe.make(FRESH, seed, 1));
        (train(&seen, &fresh, seed, &all), fresh)
    };
    (0..seeds).map(one).collect()
}

pub fn column(runs: &[(Measured, super::data::Data)], of: impl Fn(&Measured, &super::data::Data) -> f64) -> String {
    let values: Vec<f64> = runs.iter().map(|(measured, data)| of(measured, data)).collect();
    interval(&values)
}

pub fn mean_nearest(measured: &Measured, data: &super::data::Data) -> f64 {
    let nearest = data.nearest(&measured.decoder);
    nearest.iter().sum::<f64>() / nearest.len() as f64
}

/// Soft thresholding is dominated at equal L0 by hard, half and CEL0.
pub fn thresholds(seeds: u64) {
    println!("\n8. Thresholds at equal L0, signed data of 4 of 64 directions in 32 dimensions\n");
    println!("| k | latents | method | L0 | FVU | mean cosine with the truth |\n|---|---|---|---|---|---|");
    let recipe = Recipe { signed: true, ..RECIPE };
    for (k, d_sae, methods) in [
        ("2", "96", &["soft", "cel0", "half", "hard"][..]),
        ("4", "96", &["soft", "cel0", "half", "hard"]),
        ("8", "96", &["soft", "cel0", "half", "hard"]),
        ("4", "384", &["soft"]),
    ] {
        for method in methods {
            let runs = runs(
                seeds,
                &recipe,
                &[("sae.method", method), ("sae.k", k), ("sae.d_sae", d_sae)],
            );
            println!(
                "| {k} | {d_sae} | {method} | {} | {} | {} |",
                column(&runs, |m, _| m.l0),
                column(&runs, |m, _| m.fvu),
                column(&runs, mean_nearest)
            );
        }
    }
}

/// Pearson's correlation.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let products =
        |x: &[f64], mx: f64, y: &[f64], my: f64| x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>();
    products(a, ma, b, mb) / (products(a, ma, a, ma) * products(b, mb, b, mb)).sqrt().max(1e-12)
}

/// Mutual choice beats token choice on tokens of varying complexity, and its L0 follows it.
pub fn mutual_choice(seeds: u64) {
    println!("\n4. Tokens of 1 to 9 of 64 directions in 32 dimensions, k = 5, as saved (thresholds)\n");
    println!("| method | L0 | FVU | correlation of L0 with the truth | dead latents |\n|---|---|---|---|---|");
    let recipe = Recipe {
        active: (1, 9),
        ..RECIPE
    };
    for (name, sets) in [
        ("token choice (`topk`)", &[("sae.method", "topk")][..]),
        ("mutual choice (`batch_topk`)", &[("sae.method", "batch_topk")]),
        (
            "feature choice, Zipf exponent 1",
            &[("sae.method", "feature_choice"), ("sae.zipf_exponent", "1")],
        ),
        (
            "feature choice, equal budgets",
            &[("sae.method", "feature_choice"), ("sae.zipf_exponent", "0")],
        ),
    ] {
        let sets: Vec<_> = [("sae.k", "5")].into_iter().chain(sets.iter().copied()).collect();
        let runs = runs(seeds, &recipe, &sets);
        let follows = |m: &Measured, data: &super::data::Data| {
            let found: Vec<f64> = (0..m.code.batch()).map(|row| m.code.row(row).count() as f64).collect();
            let truth: Vec<f64> = data.active.iter().map(|&n| n as f64).collect();
            correlation(&found, &truth)
        };
        println!(
            "| {name} | {} | {} | {} | {} |",
            column(&runs, |m, _| m.l0),
            column(&runs, |m, _| m.fvu),
            column(&runs, follows),
            column(&runs, |m, _| m.dead)
        );
    }
}

/// Directions as frequent as Zipf's law has it.
const ZIPF: Recipe = Recipe { zipf: 1.0, ..RECIPE };

/// aux-zipf leaves fewer under-used latents than aux-k at equal FVU.
pub fn aux_zipf(seeds: u64) {
    println!("\n5. Directions by Zipf's law, four times as many latents, k = 4\n");
    println!(
        "| auxiliary loss | FVU | dead | fire for < 0.1% of tokens | < half of Zipf's law |\n|---|---|---|---|---|"
    );
    for (name, sets) in [
        ("none", &[("train.aux_weight", "0")][..]),
        ("aux-k", &[]),
        ("aux-zipf", &[("train.aux", "aux_zipf")]),
        (
            "aux-zipf, weight 1/8",
            &[("train.aux", "aux_zipf"), ("train.aux_weight", "0.125")],
        ),
        ("aux-k, weight 1/8", &[("train.aux_weight", "0.125")]),
    ] {
        let common = [
            ("sae.method", "topk"),
            ("sae.k", "4"),
            ("sae.d_sae", "256"),
            ("train.dead_after_tokens", "20000"),
        ];
        let sets: Vec<_> = common.into_iter().chain(sets.iter().copied()).collect();
        let runs = runs(seeds, &ZIPF, &sets);
        println!(
            "| {name} | {} | {} | {} | {} |",
            column(&runs, |m, _| m.fvu),
            column(&runs, |m, _| m.dead),
            column(&runs, |m, _| share(&m.densities, |d| d < 1e-3)),
            column(&runs, |m, _| under_used(&m.densities, 4.0))
        );
    }
}

pub fn share(values: &[f64], good: impl Fn(f64) -> bool) -> f64 {
    values.iter().filter(|v| good(**v)).count() as f64 / values.len() as f64
}

/// The share of latents that fire less than half of what `(rank + offset)^-1` gives them.
fn under_used(densities: &[f64], offset: f64) -> f64 {
    let mut sorted = densities.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let law: Vec<f64> = (1..=sorted.len()).map(|rank| 1.0 / (rank as f64 + offset)).collect();
    let scale = sorted.iter().sum::<f64>() / law.iter().sum::<f64>();
    let under = sorted
        .iter()
        .zip(&law)
        .filter(|(found, law)| **found < 0.5 * scale * **law);
    under.count() as f64 / sorted.len() as f64
}

/// Tilted risk finds more of the rare features, at a cost in the mean.
pub fn tilted(seeds: u64) {
    println!("\n6. Directions by Zipf's law (exponent 1.5), TopK of k = 4, recovered: cosine over 0.9\n");
    println!(
        "| objective | FVU | rarest half recovered | rarest quarter | most frequent quarter |\n|---|---|---|---|---|"
    );
    let recipe = Recipe { zipf: 1.5, ..RECIPE };
    for (name, t) in [
        ("mean", None),
        ("t = 0.5", Some("0.5")),
        ("t = 1", Some("1")),
        ("t = 2", Some("2")),
        ("t = 4", Some("4")),
        ("t = 8", Some("8")),
    ] {
        let mut sets = vec![("sae.method", "topk"), ("sae.k", "4"), ("sae.d_sae", "64")];
        sets.extend(t.map(|t| ("objective.tilted.t", t)));
        let runs = runs(seeds, &recipe, &sets);
        let part = |from: usize, to: usize| {
            column(&runs, move |m, data| {
                share(&data.nearest(&m.decoder)[from..to], |c| c > 0.9)
            })
        };
        println!(
            "| {name} | {} | {} | {} | {} |",
            column(&runs, |m, _| m.fvu),
            part(32, 64),
            part(48, 64),
            part(0, 16)
        );
    }
}
