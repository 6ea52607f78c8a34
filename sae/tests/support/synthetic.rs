//! Synthetic activations with known directions, and runs on them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use activations::{Outcome, Progress, Silent, Stop};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae::config::RunConfig;
use sae::train::{self, RunSummary};

use super::support::npy;

pub const D_IN: usize = 24;
const N_TRUE: usize = 40;
const ACTIVE: usize = 3;
pub const ROWS: usize = 6000;

/// Sums of three of forty random directions with coefficients between 1 and 2, of either sign if `signed`, about a
/// mean, in units far from 1. `[ROWS, D_IN]`
pub fn sparse_rows(signed: bool) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let mut uniform = |low: f32, high: f32| rng.random_range(low..high);
    let mut directions: Vec<f32> = (0..N_TRUE * D_IN).map(|_| uniform(-1.0, 1.0)).collect();
    for d in directions.chunks_mut(D_IN) {
        let length = d.iter().map(|v| v * v).sum::<f32>().sqrt();
        d.iter_mut().for_each(|v| *v /= length);
    }
    let mean: Vec<f32> = (0..D_IN).map(|_| uniform(-0.5, 0.5)).collect();
    let mut rows = Vec::with_capacity(ROWS * D_IN);
    for _ in 0..ROWS {
        let mut row = mean.clone();
        for _ in 0..ACTIVE {
            let d = uniform(0.0, N_TRUE as f32) as usize % N_TRUE;
            let sign = if signed && uniform(0.0, 1.0) < 0.5 { -1.0 } else { 1.0 };
            let c = sign * uniform(1.0, 2.0);
            row.iter_mut()
                .zip(&directions[d * D_IN..])
                .for_each(|(v, d)| *v += c * d);
        }
        rows.extend(row.iter().map(|v| 30.0 * v));
    }
    rows
}

/// A directory with the synthetic rows.
pub struct Place {
    dir: tempfile::TempDir,
    pub acts: PathBuf,
}

impl Place {
    pub fn new(signed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let acts = npy(&dir.path().join("acts.npy"), &sparse_rows(signed), D_IN);
        Self { dir, acts }
    }

    pub fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self, sets: &[(&str, &str)]) -> RunConfig {
        let acts = format!("{:?}", self.acts.display().to_string());
        let own = [
            ("data.acts", acts.as_str()),
            ("sae.d_sae", "96"),
            ("sae.k", "3"),
            ("train.batch", "128"),
        ];
        // A penalty decides for these, and a k beside it is refused.
        let free = ["relu", "jumprelu", "gated"];
        let free = sets
            .iter()
            .any(|(key, value)| *key == "sae.lambda" || *key == "sae.method" && free.contains(value));
        let own = own.iter().filter(|s| !(free && s.0 == "sae.k"));
        let sets = own.chain(sets).map(|&(k, v)| (k.to_owned(), v.to_owned()));
        RunConfig::from_toml("", &sets.collect::<Vec<_>>()).unwrap()
    }

    /// Trains to the end.
    pub fn run(&self, sets: &[(&str, &str)], name: &str, resume: bool) -> sae::Result<RunSummary> {
        let (outcome, summary) = train::run(&self.config(sets), &self.out(name), resume, &Silent, &Stop::new())?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(summary.expect("a finished run has a summary"))
    }
}

/// Stops, or dies, at a batch.
pub struct Interrupt {
    batches: AtomicU64,
    at: u64,
    stop: Option<Stop>,
}

impl Interrupt {
    pub fn new(at: u64, stop: Option<Stop>) -> Self {
        let batches = AtomicU64::new(0);
        Self { batches, at, stop }
    }
}

impl Progress for Interrupt {
    fn advance(&self, n: u64) {
        // Resumed runs begin by reporting what is done.
        if n == 128 && self.batches.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            match &self.stop {
                Some(stop) => stop.request(),
                None => std::panic::resume_unwind(Box::new("killed")),
            }
        }
    }
}
