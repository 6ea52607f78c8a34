//! Methods by the names of their papers, what each needs, and which keys contradict each other.

use serde::{Deserialize, Serialize};

use super::RunConfig;
use crate::dictionary::InferenceForm;
use crate::error::{Error, Result};
use crate::objective::About;
use crate::sparsifier::{Allocation, Score, Shrink, Sparsifier};

/// An activation function by the name of its paper; see [`Sparsifier`] for the table they are cells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// TopK (arXiv 2406.04093): the k largest positive pre-activations.
    #[default]
    #[serde(rename = "topk")]
    TopK,
    /// AbsTopK (arXiv 2510.00404): the k largest magnitudes, signed.
    #[serde(rename = "abs_topk")]
    AbsTopK,
    /// k-sparse (arXiv 1312.5663): the k largest pre-activations, below zero too.
    #[serde(rename = "ksparse")]
    KSparse,
    /// BatchTopK (arXiv 2412.06410), mutual choice (arXiv 2411.02124): the k * batch largest of a batch.
    #[serde(rename = "batch_topk")]
    BatchTopK,
    /// BatchTopK by magnitude, signed.
    #[serde(rename = "abs_batch_topk")]
    AbsBatchTopK,
    /// Feature choice (arXiv 2411.02124): the best tokens of a batch for every latent, as many as Zipf's law gives it.
    FeatureChoice,
    /// Feature choice by magnitude, signed.
    AbsFeatureChoice,
    /// ReLU (arXiv 2309.08600): all that are positive, and a penalty.
    #[serde(rename = "relu")]
    ReLU,
    /// Gated (arXiv 2404.16014): all whose gate is open, and a penalty on the gates.
    Gated,
    /// JumpReLU (arXiv 2407.14435): all above learned thresholds, and a penalty.
    #[serde(rename = "jumprelu")]
    JumpReLU,
    /// Hard thresholding: what is above a cutoff, as it is.
    Hard,
    /// Soft thresholding, the proximal operator of the L1 penalty: what is above a cutoff, less the cutoff.
    Soft,
    /// Half thresholding, the proximal operator of the square root's penalty.
    Half,
    /// CEL0 thresholding, between soft and hard.
    Cel0,
    /// A bilinear autoencoder (arXiv 2510.16820), which selects nothing: `[bilinear]`.
    Bilinear,
}

/// Latents a token where `sae.k` is not given.
const K: usize = 32;
/// CEL0's step where `sae.eta` is not given.
const ETA: f64 = 0.5;

impl Method {
    /// As `sae.method` says it.
    pub fn key(self) -> &'static str {
        match self {
            Self::TopK => "topk",
            Self::AbsTopK => "abs_topk",
            Self::KSparse => "ksparse",
            Self::BatchTopK => "batch_topk",
            Self::AbsBatchTopK => "abs_batch_topk",
            Self::FeatureChoice => "feature_choice",
            Self::AbsFeatureChoice => "abs_feature_choice",
            Self::ReLU => "relu",
            Self::Gated => "gated",
            Self::JumpReLU => "jumprelu",
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::Half => "half",
            Self::Cel0 => "cel0",
            Self::Bilinear => "bilinear",
        }
    }

    /// The sparsifier, with `k` where it has one.
    pub fn sparsifier(self, k: usize) -> Sparsifier {
        let (score, allocation) = match self {
            Self::TopK => (Score::Positive, Allocation::PerToken { k }),
            Self::AbsTopK => (Score::Magnitude, Allocation::PerToken { k }),
            Self::KSparse => (Score::Value, Allocation::PerToken { k }),
            Self::BatchTopK => (Score::Positive, Allocation::PerBatch { k }),
            Self::AbsBatchTopK => (Score::Magnitude, Allocation::PerBatch { k }),
            Self::FeatureChoice => (Score::Positive, Allocation::PerLatent { k }),
            Self::AbsFeatureChoice => (Score::Magnitude, Allocation::PerLatent { k }),
            Self::ReLU => (Score::Positive, Allocation::All),
            Self::Gated => (Score::Positive, Allocation::Gate),
            Self::JumpReLU => (Score::Positive, Allocation::Threshold),
            // Every latent has its value.
            Self::Bilinear => (Score::Value, Allocation::All),
            Self::Hard | Self::Soft | Self::Half | Self::Cel0 => (Score::Magnitude, Allocation::PerBatch { k }),
        };
        let shrink = match self {
            Self::Soft => Shrink::Soft,
            Self::Half => Shrink::Half,
            Self::Cel0 => Shrink::Cel0 { eta: ETA },
            _ => Shrink::None,
        };
        Sparsifier::new(score, allocation).shrunk(shrink)
    }

    /// The method that trains it, where there is one: an inference form of a budget of signed values has none.
    pub(super) fn of(sparsifier: Sparsifier) -> Option<Self> {
        let Sparsifier { score, allocation, .. } = sparsifier;
        Some(match (sparsifier.shrink, allocation, score) {
            (Shrink::Soft, ..) => Self::Soft,
            (Shrink::Half, ..) => Self::Half,
            (Shrink::Cel0 { .. }, ..) => Self::Cel0,
            (_, Allocation::PerToken { .. }, Score::Positive) => Self::TopK,
            (_, Allocation::PerToken { .. }, Score::Magnitude) => Self::AbsTopK,
            (_, Allocation::PerToken { .. }, Score::Value) => Self::KSparse,
            (_, Allocation::PerBatch { .. }, Score::Positive) => Self::BatchTopK,
            (_, Allocation::PerBatch { .. }, _) => Self::AbsBatchTopK,
            (_, Allocation::PerLatent { .. }, Score::Positive) => Self::FeatureChoice,
            (_, Allocation::PerLatent { .. }, _) => Self::AbsFeatureChoice,
            (_, Allocation::All, _) => Self::ReLU,
            (_, Allocation::Gate, _) => Self::Gated,
            (_, Allocation::Threshold, Score::Positive) => Self::JumpReLU,
            (_, Allocation::Threshold, Score::Magnitude) => Self::Hard,
            (_, Allocation::Threshold, Score::Value) => return None,
        })
    }

    /// Whether it is a threshold that a penalty's strength sets.
    pub(super) fn is_thresholding(self) -> bool {
        matches!(self, Self::Hard | Self::Soft | Self::Half | Self::Cel0)
    }
}

impl RunConfig {
    /// The method.
    pub fn method(&self) -> Method {
        self.sae.method.unwrap_or_default()
    }

    /// The activation function in training.
    pub fn sparsifier(&self) -> Sparsifier {
        let (sae, method) = (&self.sae, self.method());
        let mut sparsifier = method.sparsifier(sae.k.unwrap_or(K));
        if method.is_thresholding() {
            if sae.lambda.is_some() {
                sparsifier.allocation = Allocation::Threshold;
            }
            if sae.signed == Some(false) {
                sparsifier.score = Score::Positive;
            }
        }
        if let (Shrink::Cel0 { eta }, Some(given)) = (&mut sparsifier.shrink, sae.eta) {
            *eta = given;
        }
        sparsifier.encoded_by(self.encoder())
    }

    /// Whether thresholds are parameters that training moves.
    pub(crate) fn learns_thresholds(&self) -> bool {
        self.method() == Method::JumpReLU
    }

    /// Where thresholds start in the units of the trainer, where there are any in training.
    pub(crate) fn threshold_init(&self) -> Option<f64> {
        let sparsifier = self.sparsifier();
        match (self.sae.lambda, self.learns_thresholds()) {
            (Some(lambda), _) => Some(sparsifier.shrink.cutoff(lambda)),
            (None, true) => Some(self.sae.threshold_init.unwrap_or(0.0)),
            (None, false) => None,
        }
    }

    /// What becomes of the allocation in the saved dictionary, and the L0 that thresholds are set to (0 where none
    /// are).
    pub fn inference(&self) -> (InferenceForm, f64) {
        let sparsifier = self.sparsifier();
        let default = match sparsifier.allocation {
            Allocation::PerLatent { .. } => InferenceForm::ThresholdPerLatent,
            Allocation::PerBatch { .. } => InferenceForm::Threshold,
            _ => InferenceForm::AsTrained,
        };
        let l0 = self.sae.inference_l0.unwrap_or(sparsifier.k().unwrap_or(0) as f64);
        (self.sae.inference.unwrap_or(default), l0)
    }

    /// Fills in what the method leaves open.
    pub(crate) fn fill_method(&mut self) {
        let method = self.method();
        let (sae, objective) = (&mut self.sae, &mut self.objective);
        sae.method = Some(method);
        match method {
            Method::ReLU if !objective.sparsifies() => objective.l1 = Some(Default::default()),
            Method::Gated => {
                objective.gate.get_or_insert_default();
                if !objective.sparsifies() {
                    objective.l1 = Some(Default::default());
                }
            }
            Method::JumpReLU => {
                sae.threshold_init.get_or_insert(0.01);
                sae.bandwidth.get_or_insert(0.05);
                if !objective.sparsifies() {
                    objective.l0 = Some(Default::default());
                }
            }
            Method::Cel0 => {
                sae.eta.get_or_insert(ETA);
            }
            Method::Bilinear => {
                self.bilinear.get_or_insert_default();
            }
            _ => {}
        }
        if method.is_thresholding() {
            sae.signed.get_or_insert(true);
            // A threshold alone keeps nobody silent: the encoder grows past it.
            if sae.lambda.is_some() && !objective.sparsifies() {
                objective.l1 = Some(Default::default());
            }
        }
        if self.sparsifier().k().is_some() {
            self.sae.k.get_or_insert(K);
        }
        self.fill_encoder();
        self.fill_course();
        if !self.sparsifier().is_inference_form() {
            let (form, l0) = self.inference();
            (self.sae.inference, self.sae.inference_l0) = (Some(form), Some(l0));
        }
    }

    /// Refuses keys that contradict the method or each other; with `d_sae`, what is over it.
    pub(crate) fn validate_method(&self, d_sae: Option<usize>) -> Result<()> {
        self.validate_bilinear()?;
        if self.is_bilinear() {
            // Nothing is selected.
            return Ok(());
        }
        let sae = &self.sae;
        let method = self.method().key();
        self.validate_thresholding()?;
        if sae.k.is_some() && self.sparsifier().k().is_none() {
            return Err(Error::config(
                "sae.k",
                format!(
                    "is given, but sae.method is {method}, which has no k: a penalty decides how many latents fire, such \
                     as objective.l1.weight"
                ),
            ));
        }
        for (key, value, expected) in [
            ("sae.threshold_init", sae.threshold_init, "0 or more"),
            ("sae.bandwidth", sae.bandwidth, "a positive number"),
        ] {
            let Some(value) = value else { continue };
            if self.method() != Method::JumpReLU {
                return Err(Error::config(
                    key,
                    format!("is given, but sae.method is {method}: only jumprelu learns thresholds"),
                ));
            }
            let good = value > 0.0 || (value == 0.0 && key == "sae.threshold_init");
            if !(good && value.is_finite()) {
                return Err(Error::config(key, format!("is {value}, expected {expected}")));
            }
        }
        self.validate_encoder()?;
        self.validate_resampling()?;
        self.validate_course(d_sae)?;
        self.sparsifier().validate(d_sae.unwrap_or(usize::MAX))?;
        self.validate_inference(d_sae)?;
        self.objective.validate(About {
            method: self.method(),
            d_sae,
        })
    }

    /// Refuses the keys of soft, hard, half and CEL0 thresholds elsewhere, and a strength beside the L0 it is to reach.
    fn validate_thresholding(&self) -> Result<()> {
        let sae = &self.sae;
        let method = self.method().key();
        for (key, given) in [
            ("sae.lambda", sae.lambda.is_some()),
            ("sae.signed", sae.signed.is_some()),
        ] {
            if given && !self.method().is_thresholding() {
                return Err(Error::config(
                    key,
                    format!("is given, but sae.method is {method}: it is for soft, hard, half and cel0"),
                ));
            }
        }
        if sae.eta.is_some() && self.method() != Method::Cel0 {
            return Err(Error::config(
                "sae.eta",
                format!("is given, but sae.method is {method}: it is cel0's"),
            ));
        }
        match sae.lambda {
            Some(_) if sae.k.is_some() => Err(Error::config(
                "sae.lambda",
                "is given beside sae.k: give the strength, or the latents a token that it is to leave",
            )),
            Some(lambda) if !(lambda > 0.0 && lambda.is_finite()) => Err(Error::config(
                "sae.lambda",
                format!("is {lambda}, expected a positive number"),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses another budget of the saved dictionary where tokens have none, or it has thresholds.
    fn validate_inference_k(&self, k: usize, form: InferenceForm, d_sae: Option<usize>) -> Result<()> {
        let method = self.method().key();
        let problem = match (self.sparsifier().allocation, form) {
            (Allocation::PerToken { .. }, InferenceForm::AsTrained) if k <= d_sae.unwrap_or(usize::MAX) => {
                return Ok(());
            }
            (Allocation::PerToken { .. }, InferenceForm::AsTrained) => {
                format!("is {k}, but there are {} latents of sae.d_sae", d_sae.unwrap_or(0))
            }
            (Allocation::PerToken { .. }, _) => "is given, but sae.inference asks for thresholds, which are set to \
                                                 sae.inference_l0: leave one of them out"
                .into(),
            _ => format!(
                "is given, but sae.method is {method}, in which a token has no budget of its own: it is for topk, \
                 abs_topk and ksparse; thresholds are set to sae.inference_l0"
            ),
        };
        Err(Error::config("sae.inference_k", problem))
    }

    fn validate_inference(&self, d_sae: Option<usize>) -> Result<()> {
        let method = self.method().key();
        let (form, l0) = self.inference();
        if let Some(k) = self.sae.inference_k {
            self.validate_inference_k(k, form, d_sae)?;
        }
        if form == InferenceForm::AsTrained {
            if !self.sparsifier().is_inference_form() {
                return Err(Error::config(
                    "sae.inference",
                    format!(
                        "is as_trained, but sae.method {method} shares a budget between the tokens of a batch: the \
                         saved dictionary needs threshold or threshold_per_latent"
                    ),
                ));
            }
            if self.sae.inference_l0.is_some() {
                return Err(Error::config(
                    "sae.inference_l0",
                    "is given, but sae.inference is as_trained: only thresholds are set to an L0",
                ));
            }
            return Ok(());
        }
        if self.sae.inference_l0.is_none() && self.sparsifier().k().is_none() {
            return Err(Error::config(
                "sae.inference_l0",
                format!(
                    "is missing: sae.inference asks for thresholds, and sae.method {method} has no k to set them to"
                ),
            ));
        }
        if !(l0.is_finite() && l0 > 0.0 && l0 <= d_sae.unwrap_or(usize::MAX) as f64) {
            return Err(Error::config(
                "sae.inference_l0",
                format!("is {l0}, expected a positive number up to sae.d_sae"),
            ));
        }
        Ok(())
    }
}
