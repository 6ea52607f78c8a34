//! Reading the tensors of a checkpoint, every one of which has to be there, of its shape, and finite.

use std::path::PathBuf;

use activations::safetensors_file::SafeTensors;
use burn::tensor::{Device, Tensor, TensorData};

use crate::dictionary::{Sae, read_finite, step_names};
use crate::encoder::unrolled::EncoderStep;
use crate::error::{Error, Result};
use crate::optimizer::{MatrixState, Moments, Muon};
use crate::sparsifier::{Allocation, Gate};
use crate::train::TrainPlan;

/// The tensors of a checkpoint.
pub struct Tensors<'a> {
    pub file: SafeTensors,
    pub path: PathBuf,
    pub device: &'a Device,
}

impl Tensors<'_> {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        match self.file.shape(name) {
            Some(found) if found == shape => Ok(()),
            Some(found) => Err(Error::bad_file(
                &self.path,
                format!("tensor {name} has shape {found:?}; this run's is {shape:?}"),
            )),
            None => Err(Error::bad_file(&self.path, format!("tensor {name} is missing"))),
        }
    }

    /// Values of f32, all finite.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        read_finite(&self.file, &self.path, name)
    }

    /// A tensor of them.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        let values = self.values(name, &shape)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    /// The parameters of a run of `plan`, their names behind `prefix`, and those of its gates.
    pub fn parameters(&self, prefix: &str, plan: &TrainPlan) -> Result<(Sae, Option<Gate>)> {
        let (d_in, d_out, d_sae, sparsifier) = (plan.d_in(), plan.d_out(), plan.d_sae, plan.config.sparsifier());
        let matrix = |name: &str, shape: [usize; 2]| self.tensor(&format!("{prefix}{name}"), shape);
        let of_latents = |name: &str| self.tensor(&format!("{prefix}{name}"), [d_sae]);
        let w_dec = matrix("w_dec", [d_sae, d_out])?;
        let step = |[w_enc, b_enc]: [String; 2]| {
            Ok(EncoderStep {
                w_enc: matrix(&w_enc, [d_sae, d_in])?,
                b_enc: of_latents(&b_enc)?,
            })
        };
        let sae = Sae {
            per_token: false,
            w_enc: match plan.config.is_tied() {
                true => w_dec.clone(),
                false => matrix("w_enc", [d_sae, d_in])?,
            },
            b_enc: of_latents("b_enc")?,
            w_dec,
            b_dec: self.tensor(&format!("{prefix}b_dec"), [d_out])?,
            apply_b_dec_to_input: plan.sides.same(),
            steps: step_names(sparsifier.encoder).map(step).collect::<Result<_>>()?,
            skip: match plan.config.sae.skip {
                true => Some(matrix("skip", [d_out, d_in])?),
                false => None,
            },
            threshold: match sparsifier.has_threshold() {
                true => Some(of_latents("threshold")?),
                false => None,
            },
            sparsifier,
        };
        let gate = match sparsifier.allocation == Allocation::Gate {
            true => Some(Gate {
                r_mag: of_latents("r_mag")?,
                b_mag: of_latents("b_mag")?,
            }),
            false => None,
        };
        Ok((sae, gate))
    }

    /// Adam's state of a parameter.
    pub fn moments<const D: usize>(&self, name: &str, shape: [usize; D], steps: u64) -> Result<Moments<D>> {
        let mean = self.values(&format!("{name}.mean"), &shape)?;
        let square = self.values(&format!("{name}.square"), &shape)?;
        Moments::from_host(shape, mean, square, steps, self.device)
    }

    /// The state of a matrix, of the optimiser of `plan`.
    pub fn matrix_state(&self, name: &str, shape: [usize; 2], steps: u64, plan: &TrainPlan) -> Result<MatrixState> {
        Ok(match plan.config.muon() {
            Some(momentum) => {
                let sum = self.values(&format!("{name}.momentum"), &shape)?;
                MatrixState::Muon(Muon::from_host(momentum, shape, sum, self.device)?)
            }
            None => MatrixState::Adam(self.moments(name, shape, steps)?),
        })
    }

    /// `n` numbers of 0 or more.
    pub fn counts(&self, name: &str, n: usize) -> Result<Vec<u64>> {
        self.check(name, &[n])?;
        let counts = self.file.read_i64(name)?.into_iter();
        let negative = || Error::bad_file(&self.path, format!("tensor {name} counts below zero"));
        counts.map(|n| u64::try_from(n).map_err(|_| negative())).collect()
    }
}
