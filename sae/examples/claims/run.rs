//! Training by configuration, as `sae train` does it, and measuring on fresh tokens.

#[path = "../../tests/support/npy.rs"]
#[expect(clippy::unwrap_used, reason = "a helper of the tests")]
mod support;

use std::path::Path;

use activations::{Outcome, Silent, Stop};
use sae::config::RunConfig;
use sae::metrics::{Firing, Quality};
use sae::{HostCode, Sae};

use super::data::Data;

/// A dictionary's quality on tokens that training never saw.
pub struct Measured {
    pub fvu: f64,
    pub l0: f64,
    pub dead: f64,
    /// Share of tokens each latent fires for.
    pub densities: Vec<f64>,
    pub code: HostCode,
    pub decoder: Vec<f32>,
    /// What was saved.
    pub sae: Sae,
}

/// Trains on `train` with the keys of `sets`, and measures on `test`.
pub fn train(train: &Data, test: &Data, seed: u64, sets: &[(&str, String)]) -> Measured {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let acts = support::npy(&dir.path().join("acts.npy"), &train.rows, train.d_in);
    train_on(&acts, test, seed, sets)
}

/// Trains on the activations at `acts` with the keys of `sets`, and measures on `test`.
pub fn train_on(acts: &Path, test: &Data, seed: u64, sets: &[(&str, String)]) -> Measured {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut all = vec![
        ("data.acts".to_owned(), format!("{:?}", acts.display().to_string())),
        ("train.seed".to_owned(), seed.to_string()),
        ("train.warmup_steps".to_owned(), "50".to_owned()),
        // Adam's own, with which docs/methods.md's table was made; the default came later.
        ("train.beta2".to_owned(), "0.999".to_owned()),
        ("train.eval_every".to_owned(), "1000000".to_owned()),
        ("train.checkpoint_every".to_owned(), "1000000".to_owned()),
    ];
    all.extend(sets.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let config = RunConfig::from_toml("", &all).expect("a configuration that can be");
    let out = dir.path().join("run");
    let (outcome, _) = sae::train::run(&config, &out, false, &Silent, &Stop::new()).expect("training goes well");
    assert_eq!(outcome, Outcome::Finished, "nobody stops it");
    let device = activations::Device::Cpu.open().expect("there is a processor");
    let (sae, _) = Sae::load(&out, &device).expect("what was saved loads");
    measure(sae, test)
}

/// The quality of `sae` on `test`.
pub fn measure(sae: Sae, test: &Data) -> Measured {
    let (mut quality, mut firing) = (Quality::new(test.d_in), Firing::new(sae.d_sae()));
    let code = sae.encode_rows(&test.rows).expect("rows of its width");
    quality.add(&test.rows, &sae.decode_rows(&code).expect("a code of its own"));
    firing.add(code.batch(), &code.indices, &code.values);
    let tokens = code.batch() as f64;
    Measured {
        fvu: quality.fvu().expect("tokens differ"),
        l0: firing.l0().expect("there are tokens"),
        dead: firing.dead_share().expect("there are tokens"),
        densities: firing.counts().iter().map(|&n| n as f64 / tokens).collect(),
        decoder: sae.decoder_rows().expect("a device that works"),
        code,
        sae,
    }
}

/// A mean over seeds, with the half-width of its 95% interval after Student.
pub fn interval(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return format!("{mean:.3}");
    }
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    // Two-sided, by degrees of freedom.
    let student = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    let t = student.get(values.len() - 2).copied().unwrap_or(2.0);
    format!("{mean:.3} ± {:.3}", t * deviation / n.sqrt())
}
