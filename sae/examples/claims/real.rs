//! Claims about a model's activations: orthogonal dictionaries, and one dictionary for every k.

use std::path::PathBuf;

use activations::source::Activations;
use sae::Sparsifier;

use super::data::Data;
use super::run::{Measured, interval, measure, train_on};

/// Rows at the end of the store that are measured on; training sets the same ones apart.
const HELD_OUT: u64 = 16_384;

/// A store of activations and the rows of it that nothing is trained on.
pub struct Acts {
    path: PathBuf,
    hook: String,
    rows: u64,
    test: Data,
}

impl Acts {
    pub fn open(path: &str) -> Result<Self, String> {
        let acts = Activations::open(path.as_ref(), None).map_err(|e| e.to_string())?;
        let split = acts.split(HELD_OUT).map_err(|e| e.to_string())?;
        let n = (split.held_out.end - split.held_out.start) as usize;
        let mut rows = vec![0.0; n * acts.d_in()];
        acts.read_rows(split.held_out, &mut rows).map_err(|e| e.to_string())?;
        Ok(Self {
            path: path.into(),
            hook: acts.origin().hook.unwrap_or_default(),
            rows: acts.n_rows(),
            test: Data {
                d_in: acts.d_in(),
                atoms: Vec::new(),
                rows,
                active: Vec::new(),
            },
        })
    }

    pub fn d_in(&self) -> usize {
        self.test.d_in
    }

    pub fn describe(&self) -> String {
        format!("`{}`, {} rows of width {}", self.hook, self.rows, self.d_in())
    }

    /// One dictionary a seed: k = 32, 1,000 steps of 1,024 tokens, unless `sets` says otherwise.
    pub fn runs(&self, seeds: u64, sets: &[(&str, String)]) -> Vec<Measured> {
        let mut all = vec![
            ("sae.k", "32".to_owned()),
            ("train.steps", "1000".to_owned()),
            ("train.batch", "1024".to_owned()),
            ("train.lr", "2e-3".to_owned()),
            ("data.held_out_rows", HELD_OUT.to_string()),
        ];
        all.extend_from_slice(sets);
        (0..seeds)
            .map(|seed| train_on(&self.path, &self.test, seed, &all))
            .collect()
    }
}

/// The mean over runs of a figure.
pub fn of(runs: &[Measured], value: impl Fn(&Measured) -> f64) -> String {
    interval(&runs.iter().map(value).collect::<Vec<_>>())
}

/// The mean over decoder rows of the largest cosine with another one, as OrtSAE reports it.
fn mean_max_cosine(decoder: &[f32], width: usize) -> f64 {
    let n = decoder.len() / width;
    let row = |i: usize| &decoder[i * width..][..width];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths: Vec<f32> = (0..n).map(|i| dot(row(i), row(i)).sqrt().max(1e-12)).collect();
    let mut nearest = vec![f32::MIN; n];
    for i in 0..n {
        for j in i + 1..n {
            let cosine = dot(row(i), row(j)) / (lengths[i] * lengths[j]);
            nearest[i] = nearest[i].max(cosine);
            nearest[j] = nearest[j].max(cosine);
        }
    }
    nearest.iter().map(|&c| f64::from(c)).sum::<f64>() / n as f64
}

/// The penalty halves the mean largest cosine for little reconstruction (arXiv 2509.22033).
pub fn orthogonality(seeds: u64, acts: &Acts) {
    let d_sae = 8 * acts.d_in();
    println!(
        "\n2. {}, `batch_topk` of {d_sae} latents, k = 32, as saved\n",
        acts.describe()
    );
    println!("| orthogonality | L0 | explained variance | mean largest cosine | dead latents |\n|---|---|---|---|---|");
    let weight = |w: &str| vec![("objective.orthogonality.weight", w.to_owned())];
    for (name, sets) in [
        ("none", vec![]),
        ("weight 0.25", weight("0.25")),
        (
            "weight 0.25, every fifth step",
            [weight("0.25"), vec![("objective.orthogonality.every", "5".to_owned())]].concat(),
        ),
        ("weight 1", weight("1")),
    ] {
        let common = [
            ("sae.method", "batch_topk".to_owned()),
            ("sae.d_sae", d_sae.to_string()),
        ];
        let runs = acts.runs(seeds, &[&common[..], &sets].concat());
        println!(
            "| {name} | {} | {} | {} | {} |",
            of(&runs, |m| m.l0),
            of(&runs, |m| 1.0 - m.fvu),
            of(&runs, |m| mean_max_cosine(&m.decoder, acts.d_in())),
            of(&runs, |m| m.dead)
        );
    }
}

/// One hierarchical dictionary is nearly as good at every k as one trained for it (arXiv 2505.24473).
pub fn hierarchical(seeds: u64, acts: &Acts) {
    let d_sae = (8 * acts.d_in()).to_string();
    println!("\n3. {}, {d_sae} latents, held-out FVU\n", acts.describe());
    println!(
        "| k | TopK trained for it | one hierarchical | its excess | TopK of 32, cut to k |\n|---|---|---|---|---|"
    );
    let d_sae = ("sae.d_sae", d_sae);
    let nested = acts.runs(
        seeds,
        &[d_sae.clone(), ("objective.hierarchical.weight", "1".to_owned())],
    );
    let widest = acts.runs(seeds, std::slice::from_ref(&d_sae));
    let cut = |runs: &[Measured], k: usize| -> Vec<f64> {
        let at = |m: &Measured| {
            let mut sae = m.sae.clone();
            sae.sparsifier = Sparsifier::top_k(k);
            measure(sae, &acts.test).fvu
        };
        runs.iter().map(at).collect()
    };
    for k in [4, 8, 16, 32] {
        let trained: Vec<f64> = match k {
            32 => widest.iter().map(|m| m.fvu).collect(),
            _ => {
                let runs = acts.runs(seeds, &[d_sae.clone(), ("sae.k", k.to_string())]);
                runs.iter().map(|m| m.fvu).collect()
            }
        };
        let one = cut(&nested, k);
        let excess: Vec<f64> = one.iter().zip(&trained).map(|(one, own)| one / own - 1.0).collect();
        println!(
            "| {k} | {} | {} | {} | {} |",
            interval(&trained),
            interval(&one),
            interval(&excess),
            interval(&cut(&widest, k))
        );
    }
}
