//! How long a feature index takes: synthetic activations, a random dictionary, one JSON line.
//!
//! `cargo run --release -p sae --example index_bench -- --tokens 1000000 --d-in 288 --d-sae 4096 --k 32`;
//! `--out DIR` keeps the index there.
//!
//! Activations are sums of a few decoder rows that persist over neighbouring tokens, with frequencies that fall like
//! 1 / rank, plus noise: features then differ in density and come in runs, as those of a language model do.

use std::collections::HashMap;
use std::time::Instant;

use activations::{Context, ContextBatch, ContextSource, Progress, RowRef, Silent, Stop};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae::index::{BuildOptions, FeatureIndex, Naming, Unembedding, build, estimate};
use sae::{DictionaryCard, Sae, Sparsifier};

const CONTEXT: usize = 128;
const D_VOCAB: usize = 4096;
/// Contexts a batch.
const BATCH: usize = 32;
/// Features that are on at a time.
const ON: usize = 12;

struct Synthetic {
    d_in: usize,
    directions: Vec<f32>,
    contexts_left: u64,
    next: u64,
    rng: ChaCha8Rng,
}

impl Synthetic {
    /// A feature with frequency about 1 / rank.
    fn pick(&mut self) -> usize {
        let d_sae = self.directions.len() / self.d_in;
        ((d_sae as f32).powf(self.rng.random::<f32>()) as usize).min(d_sae - 1)
    }
}

impl ContextSource for Synthetic {
    fn d_in(&self) -> usize {
        self.d_in
    }

    fn n_contexts(&self) -> Option<u64> {
        Some(self.contexts_left + self.next)
    }

    fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
        let n = self.contexts_left.min(BATCH as u64);
        if n == 0 {
            return Ok(None);
        }
        let mut batch = ContextBatch::default();
        for c in 0..n as u32 {
            let mut on: Vec<(usize, f32)> = (0..ON).map(|_| (self.pick(), 1.0)).collect();
            for position in 0..CONTEXT as u32 {
                let mut row: Vec<f32> = (0..self.d_in).map(|_| self.rng.random_range(-0.05..0.05)).collect();
                for slot in &mut on {
                    if self.rng.random::<f32>() < 0.2 {
                        *slot = (self.pick(), self.rng.random_range(0.5..4.0));
                    }
                    let (feature, strength) = *slot;
                    let direction = &self.directions[feature * self.d_in..][..self.d_in];
                    row.iter_mut().zip(direction).for_each(|(x, d)| *x += strength * d);
                }
                batch.rows.push(RowRef { context: c, position });
                batch.acts.extend(row);
            }
            batch.contexts.push(Context {
                index: self.next,
                document: self.next / 8,
                tokens: (0..CONTEXT).map(|_| self.rng.random_range(0..D_VOCAB as u32)).collect(),
                ..Context::default()
            });
            self.next += 1;
        }
        self.contexts_left -= n;
        Ok(Some(batch))
    }
}

/// Adds up the time that the source itself takes: making synthetic activations is not building an index.
struct Timed(Synthetic, f64);

impl ContextSource for Timed {
    fn d_in(&self) -> usize {
        self.0.d_in()
    }
    fn n_contexts(&self) -> Option<u64> {
        self.0.n_contexts()
    }
    fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
        let start = Instant::now();
        let batch = self.0.next_batch();
        self.1 += start.elapsed().as_secs_f64();
        batch
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given: HashMap<&str, &str> = arguments
        .chunks_exact(2)
        .map(|a| (a[0].as_str(), a[1].as_str()))
        .collect();
    let number = |name: &str, default: usize| given.get(name).map_or(Ok(default), |value| value.parse());
    let (tokens, d_in) = (number("--tokens", 1_000_000)?, number("--d-in", 288)?);
    let (d_sae, k) = (number("--d-sae", 4096)?, number("--k", 32)?);
    let (sae, directions) = dictionary(d_in, d_sae, k);
    let card = DictionaryCard::of(&sae);
    let vocabulary: Vec<Vec<u8>> = (0..D_VOCAB).map(|t| format!(" t{t}").into_bytes()).collect();
    let unembedding = Unembedding {
        values: normal(D_VOCAB * d_in, 2),
        columns: 0..d_in,
    };
    let naming = Naming {
        hook: "blocks.0.hook_resid_post".into(),
        model: "none".into(),
        corpus: "synthetic".into(),
    };
    let mut source = Timed(
        Synthetic {
            d_in,
            directions,
            contexts_left: (tokens / CONTEXT) as u64,
            next: 0,
            rng: ChaCha8Rng::seed_from_u64(3),
        },
        0.0,
    );
    let temporary = std::env::temp_dir().join(format!("index_bench-{}", std::process::id()));
    let dir = given.get("--out").map_or(temporary, std::path::PathBuf::from);
    let options = BuildOptions::default();
    let (progress, start) = (Stages::default(), Instant::now());
    let built = build(
        &sae,
        &card,
        &mut source,
        &vocabulary,
        Some(&unembedding),
        &dir,
        &options,
        &naming,
        &progress,
        &Stop::new(),
    );
    let seconds = start.elapsed().as_secs_f64() - source.1;
    let (_, manifest) = built?;
    let manifest = manifest.ok_or("nobody asked to stop")?;
    let start = Instant::now();
    let index = FeatureIndex::open(&dir)?;
    let open_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for feature in (0..d_sae as u32).step_by((d_sae / 200).max(1)) {
        index.feature(feature)?;
    }
    let feature_ms = start.elapsed().as_secs_f64() * 1000.0 / d_sae.div_ceil((d_sae / 200).max(1)) as f64;
    let files = std::fs::read_dir(&dir)?.map(|entry| Ok(entry?.metadata()?.len()));
    let bytes: u64 = files.sum::<std::io::Result<u64>>()?;
    let expected = estimate(d_in, d_sae, k, D_VOCAB, manifest.tokens, &options);
    let figures = serde_json::json!({
        "seconds": seconds,
        "tokens_per_s": manifest.tokens as f64 / seconds,
        "features_seconds": progress.last_stage_seconds(),
        "source_seconds": source.1,
        "peak_rss_mb": peak_rss_mb(),
        "bytes_on_disk": bytes,
        "open_seconds": open_seconds,
        "feature_ms": feature_ms,
        "dead": manifest.dictionary.dead,
        "estimated_memory_mb": expected.memory_bytes >> 20,
        "estimated_disk_bytes": expected.disk_bytes,
    });
    println!("{figures}");
    if !given.contains_key("--out") {
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// Times the last stage.
#[derive(Default)]
struct Stages(std::sync::Mutex<Option<(Instant, f64)>>);

impl Stages {
    fn last_stage_seconds(&self) -> f64 {
        self.0
            .lock()
            .map_or(0.0, |last| last.map_or(0.0, |(_, seconds)| seconds))
    }
}

impl Progress for Stages {
    fn begin(&self, stage: &str, total: Option<u64>, unit: &str) {
        Silent.begin(stage, total, unit);
        if let Ok(mut last) = self.0.lock() {
            *last = Some((Instant::now(), 0.0));
        }
    }
    fn finish(&self) {
        if let Ok(mut last) = self.0.lock() {
            *last = last.map(|(start, _)| (start, start.elapsed().as_secs_f64()));
        }
    }
}

/// A tied dictionary of random unit rows, and the rows.
fn dictionary(d_in: usize, d_sae: usize, k: usize) -> (Sae, Vec<f32>) {
    let device = Device::flex();
    let mut rows = normal(d_sae * d_in, 1);
    for row in rows.chunks_exact_mut(d_in) {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    let matrix = Tensor::from_data(TensorData::new(rows.clone(), [d_sae, d_in]), &device);
    let sae = Sae {
        per_token: false,
        w_enc: matrix.clone(),
        b_enc: Tensor::zeros([d_sae], &device),
        w_dec: matrix,
        b_dec: Tensor::zeros([d_in], &device),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier: Sparsifier::top_k(k),
    };
    (sae, rows)
}

/// Nearly normal: the sum of four uniform numbers.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|_| (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum())
        .collect()
}

/// The largest resident set so far, where the system says it.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}
