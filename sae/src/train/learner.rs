//! What is trained: a sparse dictionary, or a bilinear autoencoder. The loop asks the same of both.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;

use super::evaluate::Evaluation;
use super::input::Input;
use super::quadratic::Quadratic;
use super::trainer::{Step, Trainer};
use super::{TrainPlan, evaluate};
use crate::bilinear::{Bilinear, BilinearCard};
use crate::dictionary::{Calibration, DictionaryCard, HeldOut, Place, Sae};
use crate::error::Result;
use crate::metrics::Densities;

/// What is trained.
pub enum Learner {
    /// A sparse dictionary.
    Sparse(Box<Trainer>),
    /// A bilinear autoencoder.
    Bilinear(Box<Quadratic>),
}

/// What would be saved now.
pub enum Trained {
    /// A sparse dictionary, for raw activations.
    Sparse(Box<Sae>),
    /// A bilinear autoencoder.
    Bilinear(Box<Bilinear>),
}

/// What would be saved now, and its quality.
pub struct Measured {
    pub trained: Trained,
    pub calibration: Option<Calibration>,
    pub held_out: HeldOut,
    /// The FVU of each hook, where several are written.
    pub fvu_by_hook: BTreeMap<String, f64>,
    /// How densities lie over the latents, where they are not all 1.
    pub density: Option<Densities>,
}

impl Learner {
    /// The state before the first step, from rows that say how large activations are: `[n, width]`.
    ///
    /// # Errors
    /// When there is nothing to learn from the sample.
    pub fn start(plan: &TrainPlan, sample: &[f32], device: &Device) -> Result<Self> {
        Ok(match plan.config.is_bilinear() {
            true => Self::Bilinear(Box::new(Quadratic::start(plan, device))),
            false => Self::Sparse(Box::new(Trainer::start(plan, sample, device)?)),
        })
    }

    /// The trainer of a sparse dictionary, if that is what is trained.
    pub fn sparse(&self) -> Option<&Trainer> {
        match self {
            Self::Sparse(trainer) => Some(trainer),
            Self::Bilinear(_) => None,
        }
    }

    /// Steps taken.
    pub fn steps_done(&self) -> u64 {
        match self {
            Self::Sparse(trainer) => trainer.steps_done(),
            Self::Bilinear(quadratic) => quadratic.done,
        }
    }

    /// One step on the rows of a batch of raw activations, one behind the other.
    ///
    /// # Errors
    /// When the device failed.
    pub fn step(&mut self, rows: Vec<f32>, plan: &TrainPlan) -> Result<Step> {
        match self {
            Self::Sparse(trainer) => trainer.step(rows),
            Self::Bilinear(quadratic) => {
                let device = quadratic.bilinear.device().inner();
                quadratic.step(plan.sides.tensors(rows, &device).0)
            }
        }
    }

    /// What would be saved now, measured on all held-out rows.
    ///
    /// # Errors
    /// What reading and encoding give.
    pub fn measure(&self, input: &Input, plan: &TrainPlan) -> Result<Measured> {
        match self {
            Self::Sparse(trainer) => {
                let (sae, calibration) = evaluate::inference(trainer, input, plan)?;
                let Evaluation {
                    held_out,
                    fvu_by_hook,
                    density,
                } = evaluate::held_out(&sae, input, plan)?;
                Ok(Measured {
                    trained: Trained::Sparse(Box::new(sae)),
                    calibration,
                    held_out,
                    fvu_by_hook,
                    density,
                })
            }
            Self::Bilinear(quadratic) => {
                let bilinear = quadratic.inside();
                let held_out = evaluate::products(&bilinear, input, plan)?;
                Ok(Measured {
                    trained: Trained::Bilinear(Box::new(bilinear)),
                    calibration: None,
                    held_out,
                    fvu_by_hook: BTreeMap::new(),
                    density: None,
                })
            }
        }
    }
}

impl Trained {
    /// Writes it into `out` with its card.
    ///
    /// # Errors
    /// What the system says, naming the file.
    pub fn save(
        &self,
        out: &Path,
        plan: &TrainPlan,
        input: &Input,
        calibration: Option<Calibration>,
        held_out: HeldOut,
    ) -> Result<()> {
        match self {
            Self::Sparse(sae) => sae.save(out, &card(sae, plan, input, calibration, held_out)),
            Self::Bilinear(bilinear) => {
                let origin = input.origin();
                let card = BilinearCard {
                    version: BilinearCard::VERSION,
                    form: bilinear.form,
                    d_in: bilinear.d_in(),
                    d_sae: bilinear.d_sae(),
                    clusters: bilinear.mix.as_ref().map(|mix| mix.dims()[0]),
                    hook: plan.config.data.hook.clone(),
                    model: origin.model,
                    corpus: origin.corpus,
                    trained_tokens: plan.tokens(),
                    seed: plan.config.train.seed,
                    held_out: Some(held_out),
                };
                bilinear.save(out, &card)
            }
        }
    }
}

/// What there is to say about a sparse dictionary.
fn card(
    sae: &Sae,
    plan: &TrainPlan,
    input: &Input,
    calibration: Option<Calibration>,
    held_out: HeldOut,
) -> DictionaryCard {
    let (origin, sides) = (input.origin(), input.sides());
    let several = |places: &[Place]| match places.len() > 1 {
        true => places.to_vec(),
        false => Vec::new(),
    };
    DictionaryCard {
        calibration,
        trained_as: plan.config.sae.inference_k.map(|_| plan.config.sparsifier()),
        initialised_from: plan.going_on.as_ref().map(|going_on| going_on.named.clone()),
        hook: plan.config.data.hook.clone(),
        reads: several(&sides.read.places),
        writes: match sides.same() {
            true => Vec::new(),
            false => sides.written.places.clone(),
        },
        model: origin.model,
        corpus: origin.corpus,
        trained_tokens: plan.tokens(),
        seed: plan.config.train.seed,
        held_out: Some(held_out),
        ..DictionaryCard::of(sae)
    }
}
