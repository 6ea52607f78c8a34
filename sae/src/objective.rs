//! What training minimises: a list of named terms with weights, one file a term.
//!
//! Every term has the same face: it sees the [`Forward`] pass and gives one number, or nothing where it has no say
//! about this batch. Its value is reported under its name, unweighted; the weighted sum is the loss. A term divides by
//! a variance, so that weights mean the same whatever the units of the activations.
//!
//! The struct of a term *is* its table in `run.toml`: `[objective.l1]` is [`L1`]. Adding one is a file and a line in
//! the list below.

mod aux_k;
mod gate;
mod hierarchical;
mod l0;
mod l1;
mod masked;
mod matryoshka;
mod mse;
mod orthogonality;
mod tanh;
mod tilted;

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

pub use self::aux_k::AuxK;
pub use self::gate::GateError;
pub use self::hierarchical::Hierarchical;
pub use self::l0::L0;
pub use self::l1::L1;
pub use self::masked::{Masked, MaskedPass};
pub use self::matryoshka::Matryoshka;
pub use self::mse::{Mse, Normalize};
pub use self::orthogonality::Orthogonality;
pub use self::tanh::Tanh;
pub use self::tilted::Tilted;
use crate::code::{SparseCode, to_host};
use crate::config::Method;
use crate::error::{Error, Result};
use crate::kernels::{Search, decode, nested_errors};
use crate::sparsifier::Near;

/// Squares of norms below this count as this, so that their roots have a slope.
const LEAST_SQUARE: f32 = 1e-12;

/// One pass over a batch, as the terms see it. All in the units of the trainer, on the autodiff device.
pub struct Forward {
    /// The activations that are to be written, not tracked: of an autoencoder, those that it read. `[batch, d_out]`
    pub target: Tensor<2>,
    /// Their reconstruction, [`base`](Self::base) included. `[batch, d_out]`
    pub recon: Tensor<2>,
    /// The code.
    pub code: SparseCode,
    /// Whether values can be negative.
    pub signed: bool,
    /// The code over the dead latents, if there are any.
    pub aux: Option<SparseCode>,
    /// The pre-activations and thresholds of the code's entries, where thresholds are learned.
    pub near: Option<Near>,
    /// The pre-activations of the gates that are open, where there are gates: of the code's entries. `[entries]`
    pub gate: Option<Tensor<1>>,
    /// A pass that did not see all of the batch, where a term asks for one.
    pub masked: Option<MaskedPass>,
    /// The decoder, for terms that decode on their own. `[d_sae, d_out]`
    pub w_dec: Tensor<2>,
    /// What is written without any latent: the decoder's bias, `[1, d_out]`, or with what a skip connection adds,
    /// `[batch, d_out]`.
    pub base: Tensor<2>,
    /// Widths of the places that are written, in the order of the columns.
    pub written: Vec<usize>,
    /// Number of dead latents.
    pub n_dead: usize,
    /// Mean over the data of `|target - mean|^2`, summed over `d_out`: the error of the best constant.
    pub variance: f64,
    /// How whatever is searched for is searched for.
    pub search: Search,
    /// Which step of the run this is.
    pub moment: Moment,
}

/// A step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Counted from 0.
    pub step: u64,
    /// Of the whole run.
    pub steps: u64,
    /// Of the run: what a term draws depends on this and on the step alone.
    pub seed: u64,
}

impl Moment {
    /// The share of a weight that rises over the first `share` of the run: 1 from there on, and never 0.
    pub fn warmed_up(&self, share: f64) -> f64 {
        let steps = share * self.steps as f64;
        ((self.step + 1) as f64 / (steps + 1.0)).min(1.0)
    }
}

/// What a term may have to know of the dictionary to say that its configuration cannot be.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The method of `sae.method`.
    pub method: Method,
    /// Number of latents, once it is known.
    pub d_sae: Option<usize>,
}

/// The face of a term.
trait Face {
    /// What its value is multiplied by at a step; 0 where it is reported and not minimised.
    fn weight(&self, moment: Moment) -> f64;

    /// Its value for a pass, `[1]`; `None` where it has nothing to say.
    fn value(&self, pass: &Forward) -> Option<Tensor<1>>;

    /// Refuses what cannot be. `key` is its table, `objective.l1`.
    fn validate(&self, key: &str, about: About) -> Result<()>;

    /// Whether it is an error of reconstruction: without any, there is the mean squared error.
    fn reconstructs(&self) -> bool {
        false
    }

    /// Whether it keeps latents silent.
    fn sparsifies(&self) -> bool {
        false
    }
}

/// From a list of terms, `[objective]` with a table each, and the enum of them.
macro_rules! terms {
    ($($(#[$meta:meta])* $name:ident: $term:ident),* $(,)?) => {
        /// `[objective]`: the terms of the loss, a table each.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ObjectiveConfig {
            $(
                $(#[$meta])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$term>,
            )*
        }

        /// One term.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Term {
            $($(#[$meta])* $term($term),)*
            /// How well dead latents, or such as are used too little, explain what the others leave, `train.aux_weight`.
            AuxK(AuxK),
        }

        impl ObjectiveConfig {
            /// The terms that are asked for.
            fn terms(&self) -> Vec<Term> {
                let mut terms = Vec::new();
                $(terms.extend(self.$name.clone().map(Term::$term));)*
                terms
            }

            /// Every term, for the list of all keys.
            pub(crate) fn complete() -> Self {
                Self { $($name: Some($term::complete()),)* }
            }
        }

        impl Term {
            /// The name it is reported under.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$term(_) => stringify!($name),)*
                    Self::AuxK(term) => term.name,
                }
            }

            fn face(&self) -> &dyn Face {
                match self {
                    $(Self::$term(term) => term,)*
                    Self::AuxK(term) => term,
                }
            }
        }
    };
}

terms! {
    /// The mean squared error.
    mse: Mse,
    /// Nested widths: the first latents have to reconstruct on their own.
    matryoshka: Matryoshka,
    /// Nested ranks: the best latents of a token have to reconstruct it, however many are kept.
    hierarchical: Hierarchical,
    /// Reconstruction of what the encoder did not see.
    masked: Masked,
    /// Tilted risk: rare and hard tokens count more.
    tilted: Tilted,
    /// How well open gates reconstruct on their own.
    gate: GateError,
    /// The sum of the values, weighted by the decoder's norms.
    l1: L1,
    /// The number of latents that fire, through learned thresholds.
    l0: L0,
    /// The number of latents that fire, smoothly.
    tanh: Tanh,
    /// How close decoder rows lie to each other.
    orthogonality: Orthogonality,
}

impl ObjectiveConfig {
    /// # Errors
    /// [`Error::Config`] naming the keys of a term that cannot be, or that does not go with the method.
    pub fn validate(&self, about: About) -> Result<()> {
        for term in self.terms() {
            term.face().validate(&format!("objective.{}", term.name()), about)?;
        }
        Ok(())
    }

    /// Whether a term keeps latents silent.
    pub fn sparsifies(&self) -> bool {
        self.terms().iter().any(|term| term.face().sparsifies())
    }
}

/// Terms with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// The mean squared error is always the first.
    pub terms: Vec<Term>,
}

/// The value of an objective for a pass.
pub struct Loss {
    /// The weighted sum, `[1]`.
    pub total: Tensor<1>,
    /// Each term's name and value before weighting, `[1]`.
    pub parts: Vec<(&'static str, Tensor<1>)>,
}

impl Objective {
    /// The terms of `config`, and the auxiliary loss for dead latents where its weight is not 0.
    ///
    /// The mean squared error is there whether asked for or not, so that runs under different objectives can be
    /// compared; it is minimised only if it is asked for or nothing else reconstructs.
    pub fn new(config: &ObjectiveConfig, aux_weight: f64, full_at: usize) -> Self {
        let mut terms = config.terms();
        if config.mse.is_none() {
            let weight = match terms.iter().any(|term| term.face().reconstructs()) {
                true => 0.0,
                false => 1.0,
            };
            let mse = Mse {
                weight,
                ..Mse::default()
            };
            terms.insert(0, Term::Mse(mse));
        }
        if aux_weight > 0.0 {
            terms.push(Term::AuxK(AuxK {
                weight: aux_weight,
                full_at,
                name: "aux_k",
            }));
        }
        Self { terms }
    }

    /// The same with the auxiliary loss for latents that are used too little, which is told apart by its name.
    pub fn with_aux_zipf(mut self) -> Self {
        for term in &mut self.terms {
            if let Term::AuxK(aux) = term {
                aux.name = "aux_zipf";
            }
        }
        self
    }

    /// The term that asks for a pass over part of what there is.
    pub fn masked(&self) -> Option<&Masked> {
        self.terms.iter().find_map(|term| match term {
            Term::Masked(masked) => Some(masked),
            _ => None,
        })
    }

    /// The mean squared error over `variance`, that of the data, from what the terms gave: close to 1 for what predicts the
    /// mean, however it is normalised for the loss.
    pub fn error(&self, parts: &[(&'static str, f32)], variance: f64) -> f32 {
        let mse = parts
            .iter()
            .find(|(name, _)| *name == "mse")
            .map_or(0.0, |(_, value)| *value);
        match &self.terms[..] {
            [Term::Mse(term), ..] if term.normalize == Normalize::None => (f64::from(mse) / variance) as f32,
            _ => mse,
        }
    }

    /// Evaluates every term.
    ///
    /// # Panics
    /// If no term has anything to say: an objective reconstructs.
    pub fn loss(&self, pass: &Forward) -> Loss {
        let mut parts = Vec::with_capacity(self.terms.len());
        let mut total: Option<Tensor<1>> = None;
        for term in &self.terms {
            let Some(value) = term.face().value(pass) else { continue };
            let weight = term.face().weight(pass.moment);
            if weight != 0.0 {
                let weighted = value.clone() * weight;
                total = Some(match total {
                    Some(total) => total + weighted,
                    None => weighted,
                });
            }
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

/// `|target - recon|^2` summed over `d_out`: `[batch, 1]`.
fn row_errors(pass: &Forward) -> Tensor<2> {
    let error = pass.recon.clone() - pass.target.clone();
    (error.clone() * error).sum_dim(1)
}

/// The values of the code, or the pre-activations of its gates, times the norms of their latents' decoder rows, summed
/// over the places that are written (crosscoders: a latent pays for every hook that it writes to): `[entries]`.
fn weighted_values(pass: &Forward) -> Tensor<1> {
    let [d_sae, d_out] = pass.w_dec.dims();
    let mut start = 0;
    let norms = pass.written.iter().map(|&width| {
        start += width;
        let rows = match width == d_out {
            true => pass.w_dec.clone(),
            false => pass.w_dec.clone().narrow(1, start - width, width),
        };
        let squares = (rows.clone() * rows).sum_dim(1);
        // The root has no slope at 0: where there are several, a latent may write nothing to one.
        let squares = if width == d_out {
            squares
        } else {
            squares.clamp_min(LEAST_SQUARE)
        };
        squares.sqrt()
    });
    let norms = norms.reduce(|a, b| a + b).expect("at least one place is written");
    let norms = norms.reshape([d_sae]).select(0, pass.code.indices.clone());
    // Values that are never negative are their own size, and the slope at 0 reaches thresholds just above them.
    let sizes = match &pass.gate {
        Some(gate) => gate.clone(),
        None if pass.signed => pass.code.values.clone().abs(),
        None => pass.code.values.clone(),
    };
    sizes * norms
}

/// The sums over each row of `values`, which belong to the entries of the code: `[batch, 1]`.
fn row_sums(pass: &Forward, values: Tensor<1>) -> Tensor<2> {
    let [d_sae, _] = pass.w_dec.dims();
    let code = SparseCode {
        values,
        ..pass.code.clone()
    };
    decode(&code, Tensor::ones([d_sae, 1], &pass.w_dec.device()))
}

/// The mean over `n` levels of the error with the entries of levels up to each decoded, over the variance of the data.
/// `levels`: of every entry, `[entries]`.
fn nested_mean(pass: &Forward, levels: Tensor<1, Int>, n: usize) -> Tensor<1> {
    let batch = pass.code.batch() as f64;
    let start = pass.base.clone() - pass.target.clone();
    let weights = vec![1.0 / n as f32; n];
    let errors = nested_errors(&pass.code, levels, weights.into(), pass.w_dec.clone(), start);
    errors.sum() / (batch * pass.variance)
}

/// Refuses a number that is not finite or not in the range that `good` tells.
fn check(key: &str, name: &str, value: f64, expected: &str, good: bool) -> Result<()> {
    match good && value.is_finite() {
        true => Ok(()),
        false => Err(Error::config(
            format!("{key}.{name}"),
            format!("is {value}, expected {expected}"),
        )),
    }
}

/// Refuses a weight that is negative, or a warm-up that is no share of the run.
fn check_weight(key: &str, weight: f64, warmup_share: Option<f64>) -> Result<()> {
    check(key, "weight", weight, "0 or more", weight >= 0.0)?;
    match warmup_share {
        Some(share) => check(
            key,
            "warmup_share",
            share,
            "a share of the run between 0 and 1",
            (0.0..=1.0).contains(&share),
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
