//! What training minimises: a list of named terms with weights, one file a term.
//!
//! Every term has the same face: it sees the [`Forward`] pass and gives one number, or nothing where it has no say
//! about this batch. Its value is reported under its name, unweighted; the weighted sum is the loss. A term divides by
//! a variance, so that weights mean the same whatever the units of the activations.

mod aux_k;
mod mse;

use burn::tensor::Tensor;

use crate::code::to_host;
use crate::error::Result;
use crate::kernels::Selected;

/// One pass over a batch, as the terms see it. All in the units of the trainer, on the autodiff device.
pub struct Forward {
    /// The activations, not tracked. `[batch, d_in]`
    pub x: Tensor<2>,
    /// Their reconstruction, `b_dec` included. `[batch, d_in]`
    pub recon: Tensor<2>,
    /// The codes: the main one, and one over the dead latents if there are any.
    pub selected: Selected,
    /// The decoder, for terms that decode on their own. `[d_sae, d_in]`
    pub w_dec: Tensor<2>,
    /// Number of dead latents.
    pub n_dead: usize,
    /// Mean over the data of `|x - mean|^2`, summed over `d_in`: the error of the best constant.
    pub variance: f64,
}

/// One term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// Reconstruction error over the variance: the training batch's FVU. See `objective/mse.rs`.
    Mse,
    /// How well dead latents explain what the others leave. See `objective/aux_k.rs`.
    AuxK {
        /// The number of dead latents from which on the term has its full weight.
        full_at: usize,
    },
}

impl Term {
    /// The name it is reported under.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mse => "mse",
            Self::AuxK { .. } => "aux_k",
        }
    }

    /// Its value for a pass, `[1]`; `None` where it has nothing to say.
    pub fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        match *self {
            Self::Mse => Some(mse::value(pass)),
            Self::AuxK { full_at } => aux_k::value(pass, full_at),
        }
    }
}

/// Terms with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Each with the weight that it enters the loss with.
    pub terms: Vec<(Term, f64)>,
}

/// The value of an objective for a pass.
pub struct Loss {
    /// The weighted sum, `[1]`.
    pub total: Tensor<1>,
    /// Each term's name and value before weighting, `[1]`.
    pub parts: Vec<(&'static str, Tensor<1>)>,
}

impl Objective {
    /// Reconstruction, and the auxiliary loss for dead latents where its weight is not 0.
    pub fn standard(aux_weight: f64, full_at: usize) -> Self {
        let mut terms = vec![(Term::Mse, 1.0)];
        if aux_weight > 0.0 {
            terms.push((Term::AuxK { full_at }, aux_weight));
        }
        Self { terms }
    }

    /// Evaluates every term.
    ///
    /// # Panics
    /// If no term has anything to say: an objective reconstructs.
    pub fn loss(&self, pass: &Forward) -> Loss {
        let mut parts = Vec::with_capacity(self.terms.len());
        let mut total: Option<Tensor<1>> = None;
        for (term, weight) in &self.terms {
            let Some(value) = term.value(pass) else { continue };
            let weighted = value.clone() * *weight;
            total = Some(match total {
                Some(total) => total + weighted,
                None => weighted,
            });
            parts.push((term.name(), value));
        }
        Loss {
            total: total.expect("an objective has a reconstruction term"),
            parts,
        }
    }
}

impl Loss {
    /// The total and the parts on the host: waits for the device.
    ///
    /// # Errors
    /// When the device failed.
    pub fn read(&self) -> Result<(f32, Vec<(&'static str, f32)>)> {
        let number = |t: &Tensor<1>| -> Result<f32> { Ok(to_host::<f32>(t.clone().try_into_data())?[0]) };
        let parts = self.parts.iter().map(|(name, t)| Ok((*name, number(t)?)));
        Ok((number(&self.total)?, parts.collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests;
