//! `[bilinear]`: what `sae.method = "bilinear"` trains, and what does not go with it.

use serde::{Deserialize, Serialize};

use super::{Method, RunConfig, keys};
use crate::bilinear::Form;
use crate::error::{Error, Result};

/// `[bilinear]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BilinearConfig {
    /// What is asked of latents besides reconstructing: `plain`, `ordered`, `mixed` or `combined`. ordered.
    pub form: Form,
    /// Clusters that latents are mixed in, for `mixed` and `combined`. Default: twice the width of the activations, at most
    /// as many as latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clusters: Option<usize>,
    /// Weight of the Hoyer density of each latent over the batch, 0 where it fires once and 1 where it is the same for all. 0.1.
    pub hoyer: f64,
    /// Steps over which that weight rises from 0. 256.
    pub hoyer_steps: u64,
}

/// Keys of `[train]` that are for sparse dictionaries alone.
const SPARSE_TRAINING: [&str; 5] = [
    "train.clip_norm",
    "train.ema",
    "train.optimizer",
    "train.muon_momentum",
    "train.resample_every",
];

impl Default for BilinearConfig {
    fn default() -> Self {
        Self {
            form: Form::default(),
            clusters: None,
            hoyer: 0.1,
            hoyer_steps: 256,
        }
    }
}

impl BilinearConfig {
    /// With nothing left out, for the list of all keys.
    pub(super) fn complete() -> Self {
        Self {
            clusters: Some(1),
            ..Self::default()
        }
    }
}

impl RunConfig {
    /// Whether it trains a bilinear autoencoder, and not a sparse dictionary.
    pub(crate) fn is_bilinear(&self) -> bool {
        self.method() == Method::Bilinear
    }

    /// Refuses `[bilinear]` without its method, and whatever is about selecting latents beside it.
    pub(super) fn validate_bilinear(&self) -> Result<()> {
        if !self.is_bilinear() {
            return match &self.bilinear {
                None => Ok(()),
                Some(_) => Err(Error::config(
                    "bilinear.form",
                    format!(
                        "is in the configuration, but sae.method is {}: [bilinear] is for sae.method = \"bilinear\"",
                        self.method().key()
                    ),
                )),
            };
        }
        for key in keys::given(self)? {
            // It is always written down.
            let plain = key == "train.optimizer" && self.muon().is_none();
            if SPARSE_TRAINING.contains(&key.as_str()) && !plain {
                return Err(Error::config(
                    key,
                    "is given, but sae.method is bilinear, which is trained by plain Adam: leave it out",
                ));
            }
            let about_sparsity = match key.split_once('.') {
                Some(("sae", name)) => !["method", "d_sae", "expansion"].contains(&name),
                Some(("objective", _)) => true,
                Some(("data", name)) => ["hooks", "target", "target_acts"].contains(&name),
                _ => false,
            };
            if about_sparsity {
                return Err(Error::config(
                    key,
                    "is given, but sae.method is bilinear, which reads and writes one hook, selects no latents and has its \
                     own objective: its keys are in [bilinear]",
                ));
            }
        }
        let Some(bilinear) = &self.bilinear else { return Ok(()) };
        let form = bilinear.form.key();
        match bilinear.clusters {
            Some(0) => return Err(Error::config("bilinear.clusters", "is 0, expected at least 1")),
            Some(_) if !bilinear.form.mixes() => {
                return Err(Error::config(
                    "bilinear.clusters",
                    format!("is given, but bilinear.form is {form}: only mixed and combined have clusters"),
                ));
            }
            _ => {}
        }
        match bilinear.hoyer >= 0.0 && bilinear.hoyer.is_finite() {
            true => Ok(()),
            false => Err(Error::config(
                "bilinear.hoyer",
                format!("is {}, expected 0 or more", bilinear.hoyer),
            )),
        }
    }
}
