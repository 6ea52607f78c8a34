//! A run's state on disk: `checkpoint/`, from which it goes on to the same bytes.
//!
//! `state.json` names the file that holds the tensors. A new checkpoint writes its tensors under a new name, then
//! replaces `state.json`, then removes the old tensors: killed anywhere in between, there is one whole checkpoint.

mod tensors;

use std::fs;
use std::path::Path;

use activations::atomic;
use activations::safetensors_file::SafeTensors;
use activations::source::MixState;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use self::tensors::Tensors;
use super::TrainPlan;
use super::average::Average;
use super::dead::Silence;
use super::density::Density;
use super::learner::Learner;
use super::log::Lengths;
use super::quadratic::Quadratic;
use super::trainer::{Optimizer, Trainer};
use super::watch::Watch;
use crate::bilinear::Bilinear;
use crate::config::Normalization;
use crate::dictionary::{Sae, Scales, Whitening, step_names};
use crate::error::{Error, Result};
use crate::optimizer::{MatrixState, Moments};
use crate::sparsifier::Gate;
use crate::tensor_file::{self, Entry, Values};

/// The layout that this build writes and reads.
const VERSION: u32 = 3;
const STATE: &str = "state.json";
/// What the names of averaged parameters begin with.
const AVERAGE: &str = "average.";

/// Everything of a checkpoint that is not a tensor: `checkpoint/state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// Steps taken.
    pub step: u64,
    /// Where the reader is.
    pub reader: MixState,
    /// Lengths of the logs.
    pub log: Lengths,
    /// What has been seen of the run's errors.
    pub watch: Watch,
    /// Wall-clock time of the loop so far.
    pub seconds: f64,
    /// Of the activations.
    pub fingerprint: String,
    /// What multiplies activations; of a sparse dictionary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scales: Option<Scales>,
    /// Of what is written, scaled; of a sparse dictionary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variance: Option<f64>,
    /// Latents resampled so far, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resampled: Option<u64>,
    /// The file beside this one that holds the tensors.
    tensors: String,
}

#[derive(Deserialize)]
struct Layout {
    version: u32,
}

/// Writes the state of `learner` into `dir`, which is created if it is missing.
///
/// # Errors
/// [`Error::Invalid`] naming a parameter that is not finite: the checkpoint before stays; what the system says.
pub fn save(
    dir: &Path,
    learner: &Learner,
    watch: Watch,
    reader: MixState,
    log: Lengths,
    seconds: f64,
    fingerprint: &str,
) -> Result<State> {
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let state = State {
        version: VERSION,
        step: learner.steps_done(),
        reader,
        log,
        watch,
        seconds,
        fingerprint: fingerprint.to_owned(),
        scales: learner.sparse().map(|trainer| trainer.scales.clone()),
        variance: learner.sparse().map(|trainer| trainer.variance),
        resampled: learner
            .sparse()
            .and_then(|trainer| trainer.resampling.as_ref().map(|r| r.count)),
        tensors: format!("tensors-{:08}.safetensors", learner.steps_done()),
    };
    let path = dir.join(&state.tensors);
    match learner {
        Learner::Sparse(trainer) => write_sparse(&path, trainer)?,
        Learner::Bilinear(quadratic) => write_bilinear(&path, quadratic)?,
    }
    let json = serde_json::to_vec_pretty(&state)
        .map_err(|e| Error::Invalid(format!("the state of training does not serialise: {e}")))?;
    atomic::write(&dir.join(STATE), &json)?;
    remove_others(dir, &state.tensors)?;
    Ok(state)
}

/// Writes the tensors of a sparse dictionary in training.
fn write_sparse(path: &Path, trainer: &Trainer) -> Result<()> {
    let (sae, gate, opt) = (trainer.inside(), trainer.inside_gate(), &trainer.optimizer);
    let tied = opt.w_enc.is_none();
    let mut entries = parameters("", &sae, gate.as_ref(), tied);
    if let Some(average) = &trainer.average {
        entries.extend(parameters(AVERAGE, &average.sae, average.gate.as_ref(), tied));
    }
    entries.push(Entry::new("silence", Values::Counts(trainer.silence.tokens())));
    if let Some(of_w_enc) = &opt.w_enc {
        entries.extend(matrix_state("w_enc", of_w_enc));
    }
    entries.extend(vector_moments("b_enc", &opt.b_enc));
    entries.extend(matrix_state("w_dec", &opt.w_dec));
    entries.extend(vector_moments("b_dec", &opt.b_dec));
    for ([w_enc, b_enc], (of_w_enc, of_b_enc)) in step_names(sae.sparsifier.encoder).zip(&opt.steps) {
        entries.extend(matrix_state(&w_enc, of_w_enc));
        entries.extend(vector_moments(&b_enc, of_b_enc));
    }
    if let Some(of_skip) = &opt.skip {
        entries.extend(matrix_moments("skip", of_skip));
    }
    if let Some(of_threshold) = &opt.threshold {
        entries.extend(vector_moments("threshold", of_threshold));
    }
    if let Some([of_r_mag, of_b_mag]) = &opt.gate {
        entries.extend(vector_moments("r_mag", of_r_mag));
        entries.extend(vector_moments("b_mag", of_b_mag));
    }
    if let Some(whitening) = &trainer.whitening {
        entries.push(Entry::new("white", Values::Matrix(&whitening.white)));
        entries.push(Entry::new("raw", Values::Matrix(&whitening.raw)));
    }
    if let Some(density) = &trainer.density {
        entries.push(Entry::new("density", Values::Floats(density.shares())));
    }
    tensor_file::write(path, &entries)
}

/// The parameters of a dictionary in training, their names behind `prefix`.
fn parameters<'a>(prefix: &str, sae: &'a Sae, gate: Option<&'a Gate>, tied: bool) -> Vec<Entry<'a>> {
    let matrix = |name: &str, t: &'a Tensor<2>| Entry::new(format!("{prefix}{name}"), Values::Matrix(t));
    let vector = |name: &str, t: &'a Tensor<1>| Entry::new(format!("{prefix}{name}"), Values::Vector(t));
    let mut entries = vec![
        vector("b_enc", &sae.b_enc),
        matrix("w_dec", &sae.w_dec),
        vector("b_dec", &sae.b_dec),
    ];
    if !tied {
        entries.push(matrix("w_enc", &sae.w_enc));
    }
    for ([w_enc, b_enc], step) in step_names(sae.sparsifier.encoder).zip(&sae.steps) {
        entries.extend([matrix(&w_enc, &step.w_enc), vector(&b_enc, &step.b_enc)]);
    }
    entries.extend(sae.skip.iter().map(|skip| matrix("skip", skip)));
    entries.extend(sae.threshold.iter().map(|threshold| vector("threshold", threshold)));
    if let Some(gate) = gate {
        entries.extend([vector("r_mag", &gate.r_mag), vector("b_mag", &gate.b_mag)]);
    }
    entries
}

/// Writes the tensors of a bilinear autoencoder in training.
fn write_bilinear(path: &Path, quadratic: &Quadratic) -> Result<()> {
    let of = quadratic.inside();
    let mut entries = vec![
        Entry::new("left", Values::Matrix(&of.left)),
        Entry::new("right", Values::Matrix(&of.right)),
    ];
    entries.extend(matrix_moments("left", &quadratic.left));
    entries.extend(matrix_moments("right", &quadratic.right));
    if let (Some(mix), Some(of_mix)) = (&of.mix, &quadratic.mix) {
        entries.push(Entry::new("mix", Values::Matrix(mix)));
        entries.extend(matrix_moments("mix", of_mix));
    }
    tensor_file::write(path, &entries)
}

/// The two moments of a matrix.
fn matrix_moments<'a>(name: &str, of: &'a Moments<2>) -> [Entry<'a>; 2] {
    let [mean, square] = of.tensors().map(Values::Matrix);
    named_moments(name, mean, square)
}

/// The two moments of a vector.
fn vector_moments<'a>(name: &str, of: &'a Moments<1>) -> [Entry<'a>; 2] {
    let [mean, square] = of.tensors().map(Values::Vector);
    named_moments(name, mean, square)
}

fn named_moments<'a>(name: &str, mean: Values<'a>, square: Values<'a>) -> [Entry<'a>; 2] {
    [
        Entry::new(format!("{name}.mean"), mean),
        Entry::new(format!("{name}.square"), square),
    ]
}

/// The state of a matrix.
fn matrix_state<'a>(name: &str, state: &'a MatrixState) -> Vec<Entry<'a>> {
    match state {
        MatrixState::Adam(of) => matrix_moments(name, of).into(),
        MatrixState::Muon(muon) => {
            vec![Entry::new(format!("{name}.momentum"), Values::Matrix(muon.tensor()))]
        }
    }
}

/// Removes tensors that no state speaks of.
fn remove_others(dir: &Path, keep: &str) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("tensors-") && name != keep {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// The state of the checkpoint in `dir`, if there is one.
///
/// # Errors
/// [`Error::BadFile`] when it is not one of this build.
pub fn read_state(dir: &Path) -> Result<Option<State>> {
    let path = dir.join(STATE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(Error::io(&path))?;
    let bad = |problem: String| Error::bad_file(&path, problem);
    let not_a_state = |e: serde_json::Error| bad(format!("not the state of a run: {e}"));
    // Of other versions only this much is known.
    let layout: Layout = serde_json::from_slice(&bytes).map_err(not_a_state)?;
    if layout.version != VERSION {
        let who = match layout.version > VERSION {
            true => "a newer build",
            false => "an older build",
        };
        return Err(bad(format!(
            "has version {}, this build reads version {VERSION}: it was written by {who}; finish the run with that, or begin \
             another one",
            layout.version
        )));
    }
    let state: State = serde_json::from_slice(&bytes).map_err(not_a_state)?;
    if Path::new(&state.tensors).components().count() != 1 {
        return Err(bad(format!(
            "names tensors {:?}, expected a plain file name",
            state.tensors
        )));
    }
    Ok(Some(state))
}

/// What `state`, of the checkpoint in `dir`, was saved from.
///
/// # Errors
/// [`Error::BadFile`] naming the tensor that is missing, misshapen or not finite.
pub fn restore(dir: &Path, state: &State, plan: &TrainPlan, device: &Device) -> Result<Learner> {
    let path = dir.join(&state.tensors);
    let from = Tensors {
        file: SafeTensors::open(&path)?,
        path,
        device,
    };
    Ok(match plan.config.is_bilinear() {
        true => Learner::Bilinear(Box::new(read_bilinear(&from, state, plan)?)),
        false => Learner::Sparse(Box::new(read_sparse(&from, state, plan)?)),
    })
}

fn read_bilinear(from: &Tensors, state: &State, plan: &TrainPlan) -> Result<Quadratic> {
    let (rows, config, steps) = ([plan.d_sae, plan.d_in()], plan.bilinear(), state.step);
    let mix = config.clusters.map(|clusters| [clusters, plan.d_sae]);
    let bilinear = Bilinear {
        left: from.tensor("left", rows)?,
        right: from.tensor("right", rows)?,
        mix: mix.map(|shape| from.tensor("mix", shape)).transpose()?,
        form: config.form,
    };
    let (left, right) = (from.moments("left", rows, steps)?, from.moments("right", rows, steps)?);
    let mix = mix.map(|shape| from.moments("mix", shape, steps)).transpose()?;
    Ok(Quadratic::new(plan, bilinear, left, right, mix, steps))
}

fn read_sparse(from: &Tensors, state: &State, plan: &TrainPlan) -> Result<Trainer> {
    let (Some(scales), Some(variance)) = (&state.scales, state.variance) else {
        return Err(Error::bad_file(
            &from.path,
            "its state.json has no scales or no variance",
        ));
    };
    let (d_in, d_out, d_sae, steps) = (plan.d_in(), plan.d_out(), plan.d_sae, state.step);
    let (sparsifier, learned) = (plan.config.sparsifier(), plan.config.learns_thresholds());
    let of_step = |[w_enc, b_enc]: [String; 2]| {
        let of_w_enc = from.matrix_state(&w_enc, [d_sae, d_in], steps, plan)?;
        Ok((of_w_enc, from.moments(&b_enc, [d_sae], steps)?))
    };
    let (tied, skips) = (plan.config.is_tied(), plan.config.sae.skip);
    let (sae, gate) = from.parameters("", plan)?;
    let average = match plan.config.train.ema {
        Some(_) => {
            let (sae, gate) = from.parameters(AVERAGE, plan)?;
            Average::of(&plan.config, &sae, gate.as_ref())
        }
        None => None,
    };
    let optimizer = Optimizer {
        adam: plan.adam(),
        w_enc: (!tied)
            .then(|| from.matrix_state("w_enc", [d_sae, d_in], steps, plan))
            .transpose()?,
        b_enc: from.moments("b_enc", [d_sae], steps)?,
        w_dec: from.matrix_state("w_dec", [d_sae, d_out], steps, plan)?,
        b_dec: from.moments("b_dec", [d_out], steps)?,
        steps: step_names(sparsifier.encoder).map(of_step).collect::<Result<_>>()?,
        skip: skips.then(|| from.moments("skip", [d_out, d_in], steps)).transpose()?,
        threshold: learned.then(|| from.moments("threshold", [d_sae], steps)).transpose()?,
        gate: match gate {
            Some(_) => Some([
                from.moments("r_mag", [d_sae], steps)?,
                from.moments("b_mag", [d_sae], steps)?,
            ]),
            None => None,
        },
    };
    let counts = from.counts("silence", d_sae)?;
    let silence = Silence::from_tokens(counts, plan.dead_after_tokens);
    let density = match plan.needs_density() {
        true => Some(Density::from_shares(
            from.values("density", &[d_sae])?,
            plan.dead_after_tokens,
        )),
        false => None,
    };
    let whitening = match plan.config.data.normalize {
        Normalization::Whitening => Some(Whitening {
            white: from.tensor("white", [d_in, d_in])?,
            raw: from.tensor("raw", [d_in, d_in])?,
        }),
        _ => None,
    };
    let mut trainer = Trainer::new(
        plan,
        sae,
        gate,
        optimizer,
        average,
        silence,
        density,
        scales.clone(),
        whitening,
        variance,
        steps,
    );
    if let Some(resampling) = &mut trainer.resampling {
        let missing = || {
            Error::bad_file(
                &from.path,
                "its state.json does not say how many latents were resampled",
            )
        };
        resampling.count = state.resampled.ok_or_else(missing)?;
    }
    Ok(trainer)
}
