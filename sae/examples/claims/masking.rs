//! Masked reconstruction against plain reconstruction, with orthogonal matching pursuit (arXiv 2302.12715).

use super::data::Recipe;
use super::run::{interval, train};

/// Tokens in all; a sixth is held out.
const TOKENS: usize = 1_200;

/// The masking objective recovers more of the true dictionary than reconstruction.
pub fn masked(seeds: u64) {
    println!("\n7. 200 true atoms in 100 dimensions, k = 5, 1,000 tokens; mean over atoms of the smallest 1 - |cos|\n");
    println!(
        "| encoder | noise | latents | reconstruction | masked | masked is nearer in |\n|---|---|---|---|---|---|"
    );
    for (encoder, steps, lr) in [("orthogonal_pursuit", "1000", "3e-3"), ("linear", "1000", "3e-3")] {
        for noise in [0.1, 0.01] {
            for d_sae in ["200", "400", "800"] {
                let off = |seed: u64, objective: &str| {
                    let recipe = Recipe {
                        d_in: 100,
                        atoms: 200,
                        active: (5, 5),
                        zipf: 0.0,
                        signed: true,
                        noise,
                    };
                    let data = recipe.make(TOKENS, seed, 0);
                    let sets = [
                        ("sae.method", "abs_topk"),
                        ("sae.k", "5"),
                        ("sae.encoder", encoder),
                        ("sae.d_sae", d_sae),
                        ("train.batch", "200"),
                        ("train.steps", steps),
                        ("train.lr", lr),
                        ("train.aux_weight", "0"),
                        ("data.held_out_rows", "200"),
                        (objective, "1"),
                    ];
                    let sets: Vec<_> = sets.iter().map(|&(key, value)| (key, value.to_owned())).collect();
                    let measured = train(&data, &data, seed, &sets);
                    let nearest = data.nearest(&measured.decoder);
                    1.0 - nearest.iter().sum::<f64>() / nearest.len() as f64
                };
                let of = |objective: &str| (0..seeds).map(|seed| off(seed, objective)).collect::<Vec<f64>>();
                let (plain, masked) = (of("objective.mse.weight"), of("objective.masked.weight"));
                let wins = plain.iter().zip(&masked).filter(|(p, m)| m < p).count();
                println!(
                    "| {encoder} | {noise} | {d_sae} | {} | {} | {wins} of {seeds} |",
                    interval(&plain),
                    interval(&masked)
                );
            }
        }
    }
}
