//! The whole configuration of a training run: `run.toml`.
//!
//! The one decision: **a configuration is data until it is complete.** The file and the `--set` overrides become one
//! TOML tree, the tree becomes a [`RunConfig`] in which whatever was left out is `None`, and
//! [`plan`](crate::train::plan()) fills the gaps from the activations. The filled-in file lies beside the run, so that
//! nothing about a run depends on a default that a later build changes.
//!
//! ```
//! use sae::config::RunConfig;
//! let config = RunConfig::from_toml("[sae]\nk = 16", &[("train.lr".into(), "1e-4".into())])?;
//! assert_eq!((config.sae.k, config.train.lr), (Some(16), Some(1e-4)));
//! let error = RunConfig::from_toml("[train]\nlearn = 1.0", &[]).unwrap_err().to_string();
//! assert!(error.contains("train.learn"));
//! # Ok::<(), sae::Error>(())
//! ```

mod bilinear;
mod course;
mod data;
mod encoder;
mod grid;
mod init;
mod keys;
mod method;
mod optimizer;
mod places;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::bilinear::BilinearConfig;
pub use self::data::{DataConfig, Normalization};
pub use self::encoder::EncoderName;
pub use self::grid::{GRID_TOML, Grid};
pub use self::method::Method;
pub use self::optimizer::{Decay, OptimizerName};
use crate::dictionary::InferenceForm;
use crate::encoder::Weights;
use crate::error::{Error, Result};
use crate::kernels::Search;
use crate::objective::ObjectiveConfig;

/// Name of the configuration in a run's directory.
pub const RUN_TOML: &str = "run.toml";

/// Everything that decides a run's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// `[data]`: which activations.
    pub data: DataConfig,
    /// `[sae]`: which dictionary.
    pub sae: SaeConfig,
    /// `[objective]`: what training minimises; a table a term.
    pub objective: ObjectiveConfig,
    /// `[train]`: how it is trained.
    pub train: TrainConfig,
    /// `[bilinear]`: for `sae.method = "bilinear"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bilinear: Option<BilinearConfig>,
}

/// `[sae]`: which dictionary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaeConfig {
    /// A dictionary to go on from: a run's directory, or any with a `dictionary.json`. What is left open of `[sae]`, and of
    /// the hooks, is then as it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// That dictionary's digest, which a run writes down: [`digest`](crate::dictionary::digest).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_digest: Option<String>,
    /// The activation function. Default: `topk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Latents that may fire for a token, or on average for a token of a batch. Default: 32, where the method has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Where `k` starts, and comes down from in a line. Default: `k`, from the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_start: Option<usize>,
    /// Share of the run over which it does. Default: 0.1 beside `k_start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_share: Option<f64>,
    /// Exponent of the law that latents' densities follow by their rank, `(rank + zipf_offset)^-zipf_exponent`. Default: 1
    /// for feature choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipf_exponent: Option<f64>,
    /// What is added to ranks in that law. Default: `k` for feature choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipf_offset: Option<f64>,
    /// Share of the run in which feature choice is mutual choice still, so that densities have something to go by.
    /// Default: 0.1 for feature choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mutual_share: Option<f64>,
    /// Whether the encoder is the decoder's transpose all along, one matrix. Default: false, it only starts as that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// How pre-activations come about. Default: `linear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderName>,
    /// Proximal steps of the unrolled encoder. Default: 3 for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_steps: Option<usize>,
    /// Whether these steps are `shared`, one matrix and bias for all, or `learned`, each its own. Default: `shared`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_weights: Option<Weights>,
    /// Number of latents. Default: `expansion` times the width of the widest hook that is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_sae: Option<usize>,
    /// Latents per dimension of the activations, where `d_sae` is not given. Default: 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expansion: Option<usize>,
    /// Where learned thresholds start, in the units of the trainer (`E|x|^2 = d_in`), of latents that `init` has none of.
    /// Default: 0.01 for jumprelu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_init: Option<f64>,
    /// How far from a threshold pre-activations are that it learns from. Default: 0.05 for jumprelu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<f64>,
    /// Strength of the penalty whose threshold the soft, hard, half and CEL0 methods apply, in the units of the trainer,
    /// instead of the one that makes `k` latents a token fire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// Whether those methods threshold magnitudes, so that values have signs. Default: true for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<bool>,
    /// CEL0's step, between 0 (soft) and 1 (hard). Default: 0.5 for cel0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Whether a transcoder also has a matrix from what it reads to what it writes, so that latents need not do what is
    /// linear.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// What the allocation becomes in the saved dictionary. Default: it stays where a token's code depends on nothing
    /// but the token; otherwise one threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceForm>,
    /// Active latents a token that thresholds of the saved dictionary are set to. Default: `k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_l0: Option<f64>,
    /// Latents a token that the saved dictionary selects, where a token has a budget, if they are not as many as in training.
    /// Default: `k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_k: Option<usize>,
}

/// `[train]`: how the dictionary is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps. Default: from `tokens`; or one pass over the data, but at least 1,000 steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Tokens to train on, repetitions counted: an alternative to `steps`, rounded up to whole batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Tokens a step. Default: 4,096, or less where there are few rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Highest learning rate. Default: `2e-4 / sqrt(d_sae / 2^14)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Steps over which the learning rate rises from 0. Default: 1,000, at most a twentieth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// How the learning rate falls to 0 at the end of the run: `linear`, `cosine` or `constant`, which is not at all.
    pub decay: Decay,
    /// Share of the run, at its end, over which it does. Default: 0.2, unless it is constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_share: Option<f64>,
    /// Most that the norm of all gradients together may be: longer ones are shortened to it. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decay a step of an exponential moving average of all parameters, which is then what is measured and saved. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// What updates the matrices of encoder and decoder: `adam` or `muon`. Adam has the rest.
    pub optimizer: OptimizerName,
    /// Muon's decay of the sum of gradients. Default: 0.95 for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon_momentum: Option<f64>,
    /// Adam's decay of the mean of gradients.
    pub beta1: f64,
    /// Adam's decay of the mean of squared gradients.
    pub beta2: f64,
    /// Weight of the auxiliary loss that revives dead latents; 0 switches it off.
    pub aux_weight: f64,
    /// Which latents it revives. Default: `aux_k`, the dead ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<Aux>,
    /// Below which share of what Zipf's law gives its rank a latent is used too little. Default: 0.5 for `aux_zipf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_zipf_share: Option<f64>,
    /// Most dead latents that the auxiliary loss gives a token. Default: half the width of what is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_k: Option<usize>,
    /// A latent that has not fired for so many tokens is dead. Default: 5% of the run's tokens, at most 10 million.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_after_tokens: Option<u64>,
    /// Steps between resampling dead latents. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resample_every: Option<u64>,
    /// Training stops when the error of reconstruction is so many times what it was before the first step, or than predicting
    /// the mean gives if that is more, for ten steps in a row; 0: it never does.
    pub explosion: f64,
    /// Where `b_dec` starts.
    pub b_dec_init: BDecInit,
    /// How the latents that fire, and the decoder rows that lie closest, are looked for in training: `auto`, or `exact` for f32
    /// alone.
    pub select: Search,
    /// Of the first decoder and of the order of the data.
    pub seed: u64,
    /// Steps between measurements on the whole held-out set. Default: a twentieth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Steps between lines of the log. Default: a two-hundredth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_every: Option<u64>,
    /// Steps between checkpoints. Default: a tenth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// `cpu`, `cuda[:i]` or `vulkan[:i]`.
    pub device: String,
}

/// Which latents the auxiliary loss revives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aux {
    /// Those that have not fired for `dead_after_tokens`.
    AuxK,
    /// Those that fired, over so many tokens, less than a share of what Zipf's law gives their rank.
    AuxZipf,
}

/// Where `b_dec` starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BDecInit {
    /// The mean of a first sample.
    #[default]
    Mean,
    /// The point with the smallest mean distance to a first sample: outliers pull it less.
    GeometricMedian,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: None,
            tokens: None,
            batch: None,
            lr: None,
            warmup_steps: None,
            decay: Decay::default(),
            decay_share: None,
            clip_norm: None,
            ema: None,
            optimizer: OptimizerName::default(),
            muon_momentum: None,
            beta1: 0.9,
            beta2: 0.99,
            aux_weight: 1.0 / 32.0,
            aux: None,
            aux_zipf_share: None,
            aux_k: None,
            dead_after_tokens: None,
            resample_every: None,
            explosion: 100.0,
            b_dec_init: BDecInit::default(),
            select: Search::default(),
            seed: 0,
            eval_every: None,
            log_every: None,
            checkpoint_every: None,
            device: "cpu".into(),
        }
    }
}

impl RunConfig {
    /// Reads `text` with `overrides`, pairs such as `("sae.k", "32")` whose values are written as in TOML; a value that
    /// is not TOML is a string, so that `("sae.method", "abs_topk")` needs no quotes. Validates what can be without
    /// the activations.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that is unknown (and the nearest known one), of another type, or whose value
    /// cannot be; [`Error::Invalid`] where the text is not TOML.
    pub fn from_toml(text: &str, overrides: &[(String, String)]) -> Result<Self> {
        let mut tree = keys::read(text)?;
        for (key, value) in overrides {
            keys::set(&mut tree, key, value)?;
        }
        Self::from_tree(tree)
    }

    fn from_tree(tree: toml::Table) -> Result<Self> {
        keys::refuse_unknown(&tree)?;
        let config: Self = keys::parse(tree)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads the file at `path`, or starts from nothing but defaults, with `overrides`: see [`RunConfig::from_toml`].
    ///
    /// # Errors
    /// As [`RunConfig::from_toml`], naming the file; what the system says when there is none.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Self> {
        read_file(path, |text| Self::from_toml(text, overrides))
    }

    /// As a file. What is `None` is left out.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Invalid(format!("the configuration cannot be written as TOML: {e}")))
    }

    /// Every key that has a value, as in `("sae.k", "32")`, with that.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that is not UTF-8.
    pub fn values(&self) -> Result<std::collections::BTreeMap<String, String>> {
        keys::values(self)
    }

    /// The keys in which two configurations differ, each with both values: `sae.k: 32 here, 16 there`.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        keys::differences(self, other)
    }

    /// The keys in which two configurations differ.
    fn differing_keys(&self, other: &Self) -> Result<Vec<String>> {
        let differences = keys::values_that_differ(self, other)?;
        Ok(differences.into_iter().map(|(key, ..)| key).collect())
    }

    /// Checks every value that can be checked without the activations.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first key whose value cannot be.
    pub fn validate(&self) -> Result<()> {
        let TrainConfig { steps, tokens, .. } = self.train;
        if steps.is_some() && tokens.is_some() {
            return Err(Error::config(
                "train.tokens",
                "is given beside train.steps: give one of the two",
            ));
        }
        if self.sae.d_sae.is_some() && self.sae.expansion.is_some() {
            return Err(Error::config(
                "sae.expansion",
                "is given beside sae.d_sae: give one of the two",
            ));
        }
        self.data.validate()?;
        self.validate_counts()?;
        self.validate_numbers()?;
        self.validate_optimizer()?;
        self.validate_init()?;
        if !self.waits_for_init() {
            self.validate_shape()?;
            self.validate_normalization()?;
            self.validate_method(self.sae.d_sae)?;
        }
        let device: activations::Result<activations::Device> = self.train.device.parse();
        device.map_err(|e| Error::config("train.device", e.to_string()))?;
        Ok(())
    }

    fn validate_counts(&self) -> Result<()> {
        let (sae, train) = (&self.sae, &self.train);
        let at_least_one = [
            ("sae.d_sae", sae.d_sae.map(|n| n as u64)),
            ("sae.k", sae.k.map(|n| n as u64)),
            ("sae.inference_k", sae.inference_k.map(|n| n as u64)),
            ("sae.expansion", sae.expansion.map(|n| n as u64)),
            ("train.steps", train.steps),
            ("train.tokens", train.tokens),
            ("train.batch", train.batch.map(|n| n as u64)),
            ("train.aux_k", train.aux_k.map(|n| n as u64)),
            ("train.dead_after_tokens", train.dead_after_tokens),
            ("train.resample_every", train.resample_every),
            ("train.eval_every", train.eval_every),
            ("train.log_every", train.log_every),
            ("train.checkpoint_every", train.checkpoint_every),
        ];
        for (key, value) in at_least_one {
            if value == Some(0) {
                return Err(Error::config(key, "is 0, expected at least 1"));
            }
        }
        // Latents are numbered by i32 on every device.
        match sae.d_sae {
            Some(n) if n > i32::MAX as usize => {
                Err(Error::config("sae.d_sae", format!("is {n}, at most {}", i32::MAX)))
            }
            _ => Ok(()),
        }
    }

    fn validate_numbers(&self) -> Result<()> {
        let train = &self.train;
        let check = |key: &str, value: f64, expected: &str, good: bool| match good && value.is_finite() {
            true => Ok(()),
            false => Err(Error::config(key, format!("is {value}, expected {expected}"))),
        };
        if let Some(lr) = train.lr {
            check("train.lr", lr, "a positive number", lr > 0.0)?;
        }
        for (key, beta) in [("train.beta1", train.beta1), ("train.beta2", train.beta2)] {
            check(key, beta, "0 or more and less than 1", (0.0..1.0).contains(&beta))?;
        }
        let aux = train.aux_weight;
        check("train.aux_weight", aux, "0 or more", aux >= 0.0)?;
        let explosion = train.explosion;
        check(
            "train.explosion",
            explosion,
            "more than 1, or 0 for never",
            explosion == 0.0 || explosion > 1.0,
        )
    }
}

/// What `parse` makes of the file at `path`, which errors then name, or of nothing.
fn read_file<T>(path: Option<&Path>, parse: impl Fn(&str) -> Result<T>) -> Result<T> {
    let Some(path) = path else {
        return parse("");
    };
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(&text).map_err(|error| match error {
        Error::Config { key, problem } => Error::bad_file(path, format!("{key}: {problem}")),
        Error::Invalid(problem) => Error::bad_file(path, problem),
        other => other,
    })
}

#[cfg(test)]
mod tests;
