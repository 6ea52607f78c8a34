//! Which dictionary is trained or encodes, at which sizes, and the rows that it sees: shared by `step`, `encode` and `charts`.

use std::path::{Path, PathBuf};

use activations::Silent;
use anyhow::{Context, bail};
use sae::config::RunConfig;
use sae::speed::{self, ProductBy, ProductRate, Rates, Work};
use sae::train::Training;
use serde::Serialize;

use super::{parse_rate, parse_size, scratch::Scratch};
use crate::limits;
use crate::train::parse_setting;

/// Steps that are not counted: the first ones make the buffers that later ones use again.
pub const WARM_UP: u64 = 2;
/// Batches of different rows; more steps see them again in another order.
const BATCHES: usize = 8;

/// The keys of run.toml that have a flag here, and those that would take the place of one.
const KEYS: [(&str, &str); 8] = [
    ("sae.method", "--method"),
    ("sae.d_sae", "--d-sae"),
    ("sae.expansion", "--d-sae"),
    ("sae.k", "--k"),
    ("train.batch", "--batch"),
    ("train.steps", "--steps"),
    ("train.tokens", "--steps"),
    ("train.seed", "--seed"),
];
/// Keys of `[data]` that rows made here do not decide.
const DATA_KEYS: [&str; 2] = ["data.normalize", "data.mix_memory_mib"];

/// A dictionary and its rows.
#[derive(clap::Args, Clone, Debug)]
pub struct Sizes {
    /// The method: topk, batch_topk, jumprelu ..: docs/methods.md
    #[arg(long, value_name = "METHOD", default_value = "topk")]
    pub method: String,
    /// Width of an activation
    #[arg(long, value_name = "N", default_value = "768", value_parser = parse_size)]
    pub d_in: usize,
    /// Number of latents
    #[arg(long, value_name = "N", default_value = "16384", value_parser = parse_size)]
    pub d_sae: usize,
    /// Latents that fire for a token, where the method has so many (default: 32)
    #[arg(long, value_name = "N", value_parser = parse_size)]
    pub k: Option<usize>,
    /// Tokens a step
    #[arg(long, value_name = "N", default_value = "4096", value_parser = parse_size)]
    pub batch: usize,
    /// Of the rows and of the dictionary
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u32,
    /// Set any other key, as `sae train` has it: --set train.optimizer=muon (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub set: Vec<(String, String)>,
    /// Where the rows are written meanwhile (default: where the system has temporary files)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Compare with a product that makes so many GFLOP/s at this shape, such as another library's, instead of our fastest
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub product_gflops: Option<f64>,
}

impl Sizes {
    /// The run of so many steps on the rows in `rows`.
    ///
    /// # Errors
    /// For values that cannot be, naming the flag.
    pub fn config(&self, rows: &Path, steps: u64) -> anyhow::Result<RunConfig> {
        let rows = rows
            .to_str()
            .context("the directory for the rows must be UTF-8: --dir")?;
        let mut overrides = vec![
            ("data.acts".to_owned(), serde_json::Value::from(rows).to_string()),
            ("data.held_out_rows".into(), "1".into()),
            ("sae.method".into(), self.method.clone()),
            ("sae.d_sae".into(), self.d_sae.to_string()),
            ("train.batch".into(), self.batch.to_string()),
            ("train.steps".into(), (steps + WARM_UP).to_string()),
            ("train.seed".into(), self.seed.to_string()),
            // As in a run of ordinary length, nobody is dead so early.
            ("train.dead_after_tokens".into(), "10000000".into()),
        ];
        overrides.extend(self.k.map(|k| ("sae.k".into(), k.to_string())));
        for (key, value) in &self.set {
            if let Some((_, flag)) = KEYS.iter().find(|(known, _)| known == key) {
                bail!("--set {key}: give it as {flag}");
            }
            if key.starts_with("data.") && !DATA_KEYS.contains(&key.as_str()) {
                bail!("--set {key}: the rows are made here, from --d-in, --batch and --seed");
            }
            if key == "train.device" && value != "cpu" {
                bail!("--set {key}={value}: what is measured is the processor, and what it could do");
            }
            overrides.push((key.clone(), value.clone()));
        }
        RunConfig::from_toml("", &overrides).map_err(named)
    }

    /// Refuses what fits neither the memory nor the disk of `dir`, before anything is made. Of `sae train` the plan is as
    /// strict, but that needs the rows.
    pub fn check(&self, dir: &Path) -> anyhow::Result<()> {
        let (d_in, d_sae, batch) = (self.d_in as f64, self.d_sae as f64, self.batch as f64);
        let matrix = 4.0 * d_in * d_sae;
        let rows = 4.0 * self.n_rows() as f64 * d_in;
        // Encoder and decoder with a gradient and two moments each, and half a matrix in bf16; the rows in the pool and of some
        // batches on their way.
        let training = 8.5 * matrix + rows + 8.0 * 4.0 * batch * d_in;
        // The directions that rows are made of, and a piece of these.
        let making = 4.0 * speed::directions(self.d_sae) as f64 * d_in;
        let copies = 2.0 * speed::COPY_BYTES as f64;
        let memory = training.max(making + rows / BATCHES as f64).max(copies);
        limits::check(dir, rows as u64, memory as u64).with_context(|| self.named())
    }

    /// The sizes, as flags.
    fn named(&self) -> String {
        format!("--d-in {} --d-sae {} --batch {}", self.d_in, self.d_sae, self.batch)
    }

    /// Rows that are made: some batches, and one that is held out.
    fn n_rows(&self) -> usize {
        self.batch.saturating_mul(BATCHES).saturating_add(1)
    }

    /// Makes the rows, in `scratch`, and opens the run of so many steps on them.
    ///
    /// # Errors
    /// For sizes that do not fit or contradict each other, before anything is made.
    pub fn prepare(&self, scratch: &Scratch, steps: u64) -> anyhow::Result<Training> {
        let rows = scratch.path().join("rows.npy");
        let config = self.config(&rows, steps)?;
        self.check(scratch.path())?;
        speed::write_rows(&rows, self.n_rows(), self.d_in, self.d_sae, self.seed.into())?;
        let training = Training::open(&config, &Silent).map_err(named)?;
        limits::check(scratch.path(), 0, training.plan().memory_bytes).with_context(|| self.named())?;
        Ok(training)
    }

    /// What the machine does in a second, at the shape of `work`.
    pub fn rates(&self, work: &Work) -> Rates {
        Rates {
            product: self.product_rate(work),
            copy_bytes_per_s: speed::copy_bytes_per_s(),
        }
    }

    /// The rate of the encoder's product: the one given, or that of the fastest one here.
    pub fn product_rate(&self, work: &Work) -> ProductRate {
        match self.product_gflops {
            Some(gflops) => ProductRate {
                flops_per_s: gflops * 1e9,
                by: ProductBy::Given,
            },
            None => speed::product_rate([work.batch, work.d_in, work.d_sae]),
        }
    }
}

/// What a step is compared with.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BoundReport {
    /// Seconds that it takes at least.
    pub bound_s: f64,
    /// Rate of the encoder's product.
    pub product_gflops: f64,
    /// Whose: `int8`, `bf16`, `f32`, or `given`.
    pub product_by: ProductBy,
    /// GB/s that a copy reads and writes.
    pub copy_gb_s: f64,
    /// GB that pass through memory.
    pub memory_gb: f64,
}

impl BoundReport {
    pub fn new(work: &Work, rates: &Rates) -> Self {
        Self {
            bound_s: work.bound(rates),
            product_gflops: rates.product.flops_per_s / 1e9,
            product_by: rates.product.by,
            copy_gb_s: rates.copy_bytes_per_s / 1e9,
            memory_gb: work.bytes / 1e9,
        }
    }
}

/// An error about a key that has a flag here, about that.
pub fn named(error: sae::Error) -> anyhow::Error {
    match error {
        sae::Error::Config { key, problem } => match KEYS.iter().find(|(known, _)| *known == key) {
            Some((_, flag)) => anyhow::anyhow!("{flag}: {problem}"),
            None => anyhow::anyhow!("--set {key}: {problem}"),
        },
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sizes: Sizes,
    }

    fn sizes(line: &str) -> Sizes {
        Line::parse_from(std::iter::once("bench").chain(line.split_whitespace())).sizes
    }

    fn refusal(line: &str) -> String {
        let error = sizes(line).config("rows.npy".as_ref(), 10).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn what_cannot_be_is_refused_naming_the_flag() {
        for (line, words) in [
            ("--k 65 --d-sae 64", "--k: "),
            ("--method topkk", "--method: "),
            ("--method relu --k 3", "--k: "),
            ("--set sae.k=3", "--set sae.k: give it as --k"),
            ("--set data.acts=x", "--set data.acts: the rows are made here"),
            ("--set train.device=cuda", "--set train.device=cuda: "),
            ("--set train.lr=-1", "--set train.lr: "),
            ("--set sae.expansion=8", "--set sae.expansion: give it as --d-sae"),
            ("--set train.tokens=80", "--set train.tokens: give it as --steps"),
        ] {
            let said = refusal(line);
            assert!(said.starts_with(words), "{line}: {said}");
        }
    }

    #[test]
    fn sizes_that_no_machine_holds_are_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        for line in [
            "--d-in 1000000 --d-sae 2000000000",
            "--batch 1000000000000",
            "--d-in 18446744073709551615",
        ] {
            let said = format!("{:#}", sizes(line).check(dir.path()).unwrap_err());
            assert!(said.contains("--d-in") && said.contains("needed"), "{line}: {said}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_keys_are_those_of_train() {
        let line = "--d-sae 64 --set train.optimizer=muon --set data.normalize=none";
        let config = sizes(line).config("rows.npy".as_ref(), 10).unwrap();
        assert_eq!(config.train.steps, Some(12));
        assert_eq!(config.sae.d_sae, Some(64));
        assert!(config.values().unwrap()["train.optimizer"].contains("muon"));
    }
}
