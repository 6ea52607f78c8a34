//! What the loop carries from step to step, and what a step does.

mod forward;
pub mod update;

use std::borrow::Cow;

use burn::tensor::{Device, Tensor, TensorData};

pub use self::update::Optimizer;
pub(super) use self::update::gradient;
use super::TrainPlan;
use super::average::Average;
use super::course::Course;
use super::dead::Silence;
use super::density::Density;
use super::initial::parameters;
use super::laps::{Laps, Part};
use super::resample::Resampling;
use super::schedule::Schedule;
use super::sides::Sides;
use super::start::{self, Start};
use crate::code::to_host;
use crate::config::Normalization;
use crate::dictionary::{Sae, Scales, Whitening, per_token};
use crate::encoder::unrolled::EncoderStep;
use crate::error::Result;
use crate::kernels::Search;
use crate::objective::{Moment, Objective};
use crate::optimizer::{Moments, clip_scale};
use crate::sparsifier::Gate;

/// A dictionary in training. It sees activations times `scales`, white ones where they are to be; [`Trainer::dictionary`] folds
/// that back out.
pub struct Trainer {
    /// On the autodiff device, requiring gradients, for scaled activations.
    pub sae: Sae,
    /// The parameters of magnitudes where there are gates, as those of `sae`.
    pub gate: Option<Gate>,
    pub optimizer: Optimizer,
    /// What is measured and saved instead of the parameters.
    pub average: Option<Average>,
    pub silence: Silence,
    /// Where dead latents begin anew.
    pub resampling: Option<Resampling>,
    /// How often latents fire, where the selection depends on it.
    pub density: Option<Density>,
    pub course: Course,
    /// What of a row is read and what is written.
    pub sides: Sides,
    /// Multiply activations so that `E|x|^2` is the width of each place.
    pub scales: Scales,
    /// Whether each is divided by its norm instead.
    pub per_token: bool,
    /// What makes them white behind that, if they are to be.
    pub whitening: Option<Whitening>,
    /// Of the scaled activations, see [`Forward::variance`].
    pub variance: f64,
    pub objective: Objective,
    pub schedule: Schedule,
    /// Most that the norm of all gradients together may be.
    pub clip_norm: Option<f64>,
    /// Most latents of the auxiliary code.
    pub aux_k: usize,
    /// Of the gradient of thresholds that are learned, see [`Near`].
    pub bandwidth: f64,
    /// How winners are looked for.
    pub search: Search,
    /// Of the run.
    pub seed: u64,
    /// Steps taken.
    pub done: u64,
    /// Where the time goes, if somebody asks.
    pub laps: Laps,
}

/// What happened in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Counted from 1.
    pub number: u64,
    pub lr: f64,
    /// Not [`usable`]: training has diverged, and the parameters are those before the step.
    pub loss: f32,
    /// Norm of all gradients together before clipping, where they are clipped. Not finite: as for `loss`.
    pub gradient_norm: Option<f64>,
    /// Error of reconstruction over the variance of the data: 1 is what predicting the mean gives.
    pub error: f32,
    /// Named parts of the loss before weighting.
    pub parts: Vec<(&'static str, f32)>,
    /// Mean over the batch of the latents that fired.
    pub l0: f32,
    /// Share of latents that are dead: silent for `dead_after_tokens`.
    pub dead_share: f32,
    /// Latents resampled so far, where they are.
    pub resampled: Option<u64>,
}

impl Step {
    /// Whether the step was taken. If not, training has diverged, and the parameters are those before it.
    pub fn is_taken(&self) -> bool {
        usable(self.loss) && self.gradient_norm.is_none_or(f64::is_finite)
    }
}

/// The largest loss whose gradients are taken: their squares, which Adam keeps, would soon not be numbers any more, and the
/// parameters that they belong to would never move again.
const MOST_LOSS: f32 = 1e18;

/// Whether a step can be taken for this loss.
pub fn usable(loss: f32) -> bool {
    loss.is_finite() && loss.abs() < MOST_LOSS
}

impl Trainer {
    /// The state before the first step, from rows that say how large activations are: `sample: [n, width]`. See
    /// [`parameters`] for where parameters begin; moments begin at 0.
    ///
    /// # Errors
    /// When there is nothing to learn from the sample, or the dictionary that is gone on from cannot be loaded.
    pub fn start(plan: &TrainPlan, sample: &[f32], device: &Device) -> Result<Self> {
        let (by, init) = (plan.config.data.normalize, plan.config.train.b_dec_init);
        let sample = match by {
            Normalization::PerToken => Cow::Owned(per_token::normalised_rows(sample, plan.d_in())),
            _ => {
                start::refuse_outlier(sample, plan)?;
                Cow::Borrowed(sample)
            }
        };
        let mut start = Start::measure(&sample, &plan.sides, &plan.source, init, by)?;
        let mut whitening = None;
        if by == Normalization::Whitening {
            let (found, variance) = Whitening::of(&sample, plan.d_in(), device)?;
            let middle = TensorData::new(start.middle, [1, plan.d_in()]);
            start.middle = to_host(found.whiten(Tensor::from_data(middle, device)).try_into_data())?;
            start.read_middle.clone_from(&start.middle);
            start.variance = variance;
            whitening = Some(found);
        }
        let (sae, gate) = parameters(plan, &start, whitening.as_ref(), &sample, device)?;
        let (d_in, d_out, d_sae) = (plan.d_in(), plan.d_out(), plan.d_sae);
        let learned = plan.config.learns_thresholds();
        let optimizer = Optimizer {
            adam: plan.adam(),
            w_enc: (!plan.config.is_tied()).then(|| plan.matrix_state([d_sae, d_in], device)),
            b_enc: Moments::new([d_sae], device),
            w_dec: plan.matrix_state([d_sae, d_out], device),
            b_dec: Moments::new([d_out], device),
            steps: sae
                .steps
                .iter()
                .map(|_| (plan.matrix_state([d_sae, d_in], device), Moments::new([d_sae], device)))
                .collect(),
            skip: sae.skip.is_some().then(|| Moments::new([d_out, d_in], device)),
            threshold: learned.then(|| Moments::new([d_sae], device)),
            gate: gate
                .is_some()
                .then(|| [Moments::new([d_sae], device), Moments::new([d_sae], device)]),
        };
        let silence = Silence::new(d_sae, plan.dead_after_tokens);
        let density = plan
            .needs_density()
            .then(|| Density::new(d_sae, plan.dead_after_tokens));
        let average = Average::of(&plan.config, &sae, gate.as_ref());
        Ok(Self::new(
            plan,
            sae,
            gate,
            optimizer,
            average,
            silence,
            density,
            start.scales,
            whitening,
            start.variance,
            0,
        ))
    }

    /// A state of the loop of `plan` from its parts. `sae`, `gate` and `average` are on a plain device.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the state")]
    pub fn new(
        plan: &TrainPlan,
        sae: Sae,
        gate: Option<Gate>,
        optimizer: Optimizer,
        average: Option<Average>,
        silence: Silence,
        density: Option<Density>,
        scales: Scales,
        whitening: Option<Whitening>,
        variance: f64,
        done: u64,
    ) -> Self {
        let w_dec = Tensor::from_inner(sae.w_dec).require_grad();
        let w_enc = match optimizer.w_enc {
            Some(_) => Tensor::from_inner(sae.w_enc).require_grad(),
            // The same leaf, which gets the gradients of both uses.
            None => w_dec.clone(),
        };
        Self {
            sae: Sae {
                per_token: false,
                w_enc,
                b_enc: Tensor::from_inner(sae.b_enc).require_grad(),
                w_dec,
                b_dec: Tensor::from_inner(sae.b_dec).require_grad(),
                apply_b_dec_to_input: sae.apply_b_dec_to_input,
                steps: sae.steps.into_iter().map(lifted).collect(),
                skip: sae.skip.map(|s| Tensor::from_inner(s).require_grad()),
                threshold: sae.threshold.map(|t| Tensor::from_inner(t).require_grad()),
                sparsifier: sae.sparsifier,
            },
            gate: gate.map(|gate| Gate {
                r_mag: Tensor::from_inner(gate.r_mag).require_grad(),
                b_mag: Tensor::from_inner(gate.b_mag).require_grad(),
            }),
            optimizer,
            average,
            silence,
            resampling: Resampling::of(plan),
            density,
            course: Course::of(&plan.config),
            sides: plan.sides.clone(),
            scales,
            per_token: plan.config.data.normalize == Normalization::PerToken,
            whitening,
            variance,
            objective: plan.objective(),
            schedule: plan.schedule,
            clip_norm: plan.config.train.clip_norm,
            aux_k: plan.aux_k,
            bandwidth: plan.config.sae.bandwidth.unwrap_or(0.0),
            search: plan.config.train.select,
            seed: plan.config.train.seed,
            done,
            laps: Laps::default(),
        }
    }

    /// Steps taken.
    pub fn steps_done(&self) -> u64 {
        self.done
    }

    /// The dictionary as it is now, for raw activations, without gradients and gates: the average, where there is one.
    pub fn dictionary(&self) -> Sae {
        let (inside, gate) = match &self.average {
            Some(average) => (average.sae.clone(), average.gate.as_ref()),
            None => (self.inside(), self.gate.as_ref()),
        };
        let ungated = match gate {
            Some(gate) => gate.ungated(inside),
            None => inside,
        };
        let unit = match &self.average {
            Some(average) => average.unit(ungated),
            None => ungated,
        };
        let white = unit.fold_scales(&self.scales);
        let folded = match &self.whitening {
            Some(whitening) => white.fold_whitening(whitening),
            None => white,
        };
        Sae {
            per_token: self.per_token,
            ..folded
        }
    }

    /// The gates as they are now, without gradients.
    pub fn inside_gate(&self) -> Option<Gate> {
        self.gate.as_ref().map(|gate| Gate {
            r_mag: gate.r_mag.clone().no_grad(),
            b_mag: gate.b_mag.clone().no_grad(),
        })
    }

    /// The parameters as they are now, for scaled activations, without gradients.
    pub fn inside(&self) -> Sae {
        Sae {
            per_token: false,
            w_enc: self.sae.w_enc.clone().no_grad(),
            b_enc: self.sae.b_enc.clone().no_grad(),
            w_dec: self.sae.w_dec.clone().no_grad(),
            b_dec: self.sae.b_dec.clone().no_grad(),
            apply_b_dec_to_input: self.sae.apply_b_dec_to_input,
            steps: self
                .sae
                .steps
                .iter()
                .map(|step| EncoderStep {
                    w_enc: step.w_enc.clone().no_grad(),
                    b_enc: step.b_enc.clone().no_grad(),
                })
                .collect(),
            skip: self.sae.skip.as_ref().map(|s| s.clone().no_grad()),
            threshold: self.sae.threshold.as_ref().map(|t| t.clone().no_grad()),
            sparsifier: self.sae.sparsifier,
        }
    }

    /// The share of tokens that each latent is to fire for, where latents have budgets. `[d_sae]`
    pub fn lawful_shares(&self) -> Option<Vec<f64>> {
        let (law, _) = self.course.choice?;
        let k = self.sae.sparsifier.k()? as f64;
        Some(self.density.as_ref()?.lawful_shares(law, k))
    }

    /// Where in the run it is.
    fn moment(&self) -> Moment {
        Moment {
            step: self.done,
            steps: self.schedule.steps,
            seed: self.seed,
        }
    }

    /// The thresholds, if they are parameters that training moves.
    fn learned_threshold(&self) -> Option<&Tensor<1>> {
        self.sae
            .threshold
            .as_ref()
            .filter(|_| self.optimizer.threshold.is_some())
    }

    /// One step on `rows`, those of a batch of raw activations one behind the other.
    ///
    /// # Errors
    /// When the device failed.
    pub fn step(&mut self, rows: Vec<f32>) -> Result<Step> {
        let batch = rows.len() / self.sides.width();
        let (x, target) = self.sides.tensors(rows, &self.sae.device().inner());
        let x = match self.per_token {
            true => per_token::normalised(x),
            false => self.scales.scale_read(x),
        };
        let x = match &self.whitening {
            Some(whitening) => whitening.whiten(x),
            None => x,
        };
        let target = match self.sides.same() {
            true => x.clone(),
            false => self.scales.scale_written(target),
        };
        self.laps.mark(Part::Scale);
        let dead = self.silence.dead();

        let due = |r: &Resampling| r.is_due(self.done + 1, self.schedule.steps);
        let resamples = self.resampling.as_ref().is_some_and(due).then(|| x.clone());
        let aux_latents = self.aux_latents(&dead, batch);
        self.laps.mark(Part::Counters);
        let pass = self.forward(x, target, &aux_latents);
        let loss = self.objective.loss(&pass);
        // Here the host waits for the device.
        let (total, parts) = loss.read()?;
        let code = pass.code.to_host()?;
        let errors = match &resamples {
            Some(_) => {
                let error = (pass.recon.clone() - pass.target.clone()).no_grad();
                to_host((error.clone() * error).sum_dim(1).try_into_data())?
            }
            None => Vec::new(),
        };
        drop(pass);
        self.laps.mark(Part::Loss);
        let active = code.values.iter().filter(|&&v| v != 0.0).count();
        let mut step = Step {
            number: self.done + 1,
            lr: self.schedule.at(self.done),
            loss: total,
            gradient_norm: None,
            error: self.objective.error(&parts, self.variance),
            parts,
            l0: active as f32 / batch as f32,
            dead_share: dead.len() as f32 / self.sae.d_sae() as f32,
            resampled: None,
        };
        if !step.is_taken() {
            return Ok(step);
        }
        let gradients = self.gradients(loss);
        let mut scale = 1.0;
        if let Some(most) = self.clip_norm {
            let norm = gradients.norm()?;
            step.gradient_norm = Some(norm);
            if !step.is_taken() {
                return Ok(step);
            }
            scale = clip_scale(norm, most);
        }
        self.laps.mark(Part::Gradients);
        self.update(gradients, step.lr, scale);
        self.laps.mark(Part::Optimizer);
        self.silence.add(&code);
        if let Some(density) = &mut self.density {
            density.add(&code);
        }
        self.done += 1;
        if let Some(x) = resamples {
            self.resample(x, &errors)?;
        }
        step.resampled = self.resampling.as_ref().map(|r| r.count);
        if self.average.is_some() {
            let (now, gate) = (self.inside(), self.inside_gate());
            if let Some(average) = &mut self.average {
                average.add(&now, gate.as_ref(), self.done);
            }
        }
        self.laps.mark(Part::Counters);
        Ok(step)
    }
}

/// A step's parameters as leaves.
fn lifted(step: EncoderStep) -> EncoderStep {
    EncoderStep {
        w_enc: Tensor::from_inner(step.w_enc).require_grad(),
        b_enc: Tensor::from_inner(step.b_enc).require_grad(),
    }
}
