//! `metrics.jsonl` and `timings.jsonl`: a JSON object a line.
//!
//! They are two files because the first is a function of the configuration and the data, to the byte, and the second
//! of the clock.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainPlan;
use super::trainer::Step;
use crate::dictionary::HeldOut;
use crate::error::{Error, Result};
use crate::metrics::Densities;

/// What is measured in training.
pub const METRICS: &str = "metrics.jsonl";
/// How fast it went.
pub const TIMINGS: &str = "timings.jsonl";

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps taken.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Passes over the training rows.
    pub epoch: u64,
    /// Learning rate of the step.
    pub lr: f64,
    /// The weighted sum of `parts`, of the step's batch.
    pub loss: f32,
    /// Named parts of the loss before weighting.
    pub parts: BTreeMap<String, f32>,
    /// Norm of all gradients together before clipping, where they are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Mean number of latents that fired for a token of the batch.
    pub l0: f32,
    /// Share of latents silent for `train.dead_after_tokens`.
    pub dead_share: f32,
    /// Latents resampled so far, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resampled: Option<u64>,
    /// On all held-out rows, where they were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
    /// The FVU of each hook, where several are written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fvu_by_hook: BTreeMap<String, f64>,
    /// How densities lie over the latents on the held-out rows; absent of a bilinear autoencoder, whose latents always fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<Densities>,
}

impl Line {
    /// The line for `step`, behind which `done` steps are taken.
    pub fn new(step: &Step, done: u64, plan: &TrainPlan, epoch: u64, held_out: Option<HeldOut>) -> Self {
        Self {
            step: done,
            tokens: done * plan.batch as u64,
            epoch,
            lr: step.lr,
            loss: step.loss,
            parts: step.parts.iter().map(|&(name, v)| (name.to_owned(), v)).collect(),
            gradient_norm: step.gradient_norm,
            l0: step.l0,
            dead_share: step.dead_share,
            resampled: step.resampled,
            held_out,
            fvu_by_hook: BTreeMap::new(),
            density: None,
        }
    }
}

/// A line of `timings.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Steps taken.
    pub step: u64,
    /// Since the run began, interruptions left out.
    pub seconds: f64,
    /// Mean over that time, measurements included.
    pub tokens_per_second: f64,
}

impl Timing {
    /// The line behind `done` steps and `seconds`.
    pub fn new(done: u64, plan: &TrainPlan, seconds: f64) -> Self {
        Self {
            step: done,
            seconds,
            tokens_per_second: (done * plan.batch as u64) as f64 / seconds.max(1e-9),
        }
    }

    /// Tokens seen.
    pub(super) fn tokens(&self) -> f64 {
        self.tokens_per_second * self.seconds
    }
}

/// Both files, open at their ends.
pub struct Log {
    metrics: Appended,
    timings: Appended,
}

/// Bytes of both files at a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    metrics: u64,
    timings: u64,
}

struct Appended {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens the files in `dir` and cuts both back to `lengths`: what was written behind a checkpoint will be again.
    ///
    /// # Errors
    /// When a file is shorter than it was at the checkpoint.
    pub fn open(dir: &Path, lengths: Lengths) -> Result<Self> {
        Ok(Self {
            metrics: Appended::open(dir.join(METRICS), lengths.metrics)?,
            timings: Appended::open(dir.join(TIMINGS), lengths.timings)?,
        })
    }

    /// Appends to `metrics.jsonl`.
    pub fn metrics(&mut self, line: &Line) -> Result<()> {
        self.metrics.append(line)
    }

    /// Appends to `timings.jsonl`.
    pub fn timing(&mut self, timing: &Timing) -> Result<()> {
        self.timings.append(timing)
    }

    /// Flushes both to the disk and says how long they are.
    pub fn sync(&mut self) -> Result<Lengths> {
        Ok(Lengths {
            metrics: self.metrics.sync()?,
            timings: self.timings.sync()?,
        })
    }
}

impl Appended {
    fn open(path: PathBuf, length: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        let found = file.metadata().map_err(Error::io(&path))?.len();
        if found < length {
            return Err(Error::bad_file(
                &path,
                format!("has {found} bytes, but had {length} at the checkpoint: it was cut or replaced"),
            ));
        }
        file.set_len(length).map_err(Error::io(&path))?;
        Ok(Self { path, file, length })
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line)
            .map_err(|e| Error::Invalid(format!("a line of {} does not serialise: {e}", self.path.display())))?;
        text.push('\n');
        self.length += text.len() as u64;
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }

    fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io(&self.path))?;
        Ok(self.length)
    }
}

/// All lines of the `metrics.jsonl` in `dir`.
pub fn read(dir: &Path) -> Result<Vec<Line>> {
    let path = dir.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let lines = text.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|e| Error::bad_file(&path, format!("line {}: {e}", i + 1)))
    });
    lines.collect()
}
