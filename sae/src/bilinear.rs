//! Bilinear autoencoders (arXiv 2510.16820): latents are products of two linear maps, and what is reconstructed is the
//! product of the activation with itself.
//!
//! With `x` of length 1, `f_j = (l_j . x)(r_j . x)`, and `x x^T` is to be `sum_j g_j l_j r_j^T`, with `g = f`, or mixed in
//! clusters, `h = D f` and `g = D^T h`. A latent is a quadratic form, and so is a cluster, whose eigenvectors span what it
//! is about: a manifold, not a direction.
//!
//! The one decision: **nothing of width `d_in^2` is ever made.** Encoder and decoder are the same matrices, so the error is a
//! function of `f` and of the kernel `K = (L L^T) * (R R^T)`, entry by entry:
//! `|x x^T - sum_j g_j l_j r_j^T|^2 = |x|^4 - 2 f . g + g^T K g`. With an order, it is the mean of that over all prefixes of the
//! latents, which are weights of the kernel's entries: `(n - max(i, j) + 1) / n`, counted from 1.
//!
//! This is no [`Sae`](crate::Sae): nothing is selected, codes are dense, there are no biases, and a decoder row is a
//! matrix. It shares the run (input, order, log, checkpoints), and not the dictionary.

pub(crate) mod eigen;
mod file;
#[cfg(test)]
mod tests;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

pub use self::eigen::Eigen;
use self::eigen::symmetric_eigen;
pub use self::file::{BilinearCard, CARD, PARAMETERS};
use crate::code::to_host;
use crate::error::{Error, Result};

/// What is asked of latents besides reconstructing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Nothing.
    Plain,
    /// That every prefix of them reconstructs: the first ones learn what is general.
    #[default]
    Ordered,
    /// That clusters of them do.
    Mixed,
    /// Both.
    Combined,
}

impl Form {
    /// Whether prefixes reconstruct.
    pub fn orders(self) -> bool {
        matches!(self, Self::Ordered | Self::Combined)
    }

    /// Whether there are clusters.
    pub fn mixes(self) -> bool {
        matches!(self, Self::Mixed | Self::Combined)
    }

    /// As `bilinear.form` says it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Ordered => "ordered",
            Self::Mixed => "mixed",
            Self::Combined => "combined",
        }
    }
}

/// A bilinear autoencoder. It takes raw activations, whose lengths it does not see.
#[derive(Clone, Debug)]
pub struct Bilinear {
    /// `[d_sae, d_in]`
    pub left: Tensor<2>,
    /// `[d_sae, d_in]`
    pub right: Tensor<2>,
    /// Which latents are how much of a cluster, `[clusters, d_sae]`; there if [`Form::mixes`].
    pub mix: Option<Tensor<2>>,
    /// What was asked of latents.
    pub form: Form,
}

impl Bilinear {
    /// Width of an activation.
    pub fn d_in(&self) -> usize {
        self.left.dims()[1]
    }

    /// Number of latents.
    pub fn d_sae(&self) -> usize {
        self.left.dims()[0]
    }

    /// Number of quadratic forms that can be looked at: clusters, or latents where there are none.
    pub fn n_forms(&self) -> usize {
        self.mix.as_ref().map_or(self.d_sae(), |mix| mix.dims()[0])
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.left.device()
    }

    /// `x: [batch, d_in]` with rows of length 1; a row of zeros stays one.
    pub fn normalised(x: Tensor<2>) -> Tensor<2> {
        let lengths = (x.clone() * x.clone()).sum_dim(1).sqrt();
        x / lengths.clamp_min(f32::MIN_POSITIVE)
    }

    /// The latents of `x: [batch, d_in]`, rows of length 1: `[batch, d_sae]`.
    pub fn latents(&self, x: Tensor<2>) -> Tensor<2> {
        x.clone().matmul(self.left.clone().transpose()) * x.matmul(self.right.clone().transpose())
    }

    /// `|x x^T - sum_j g_j l_j r_j^T|^2` for `x: [batch, d_in]`, rows of length 1, and their `latents`: `[batch, 1]`. With
    /// `ordered`, the mean over all prefixes of latents.
    pub fn errors(&self, x: Tensor<2>, latents: Tensor<2>, ordered: bool) -> Tensor<2> {
        let coefficients = match &self.mix {
            Some(mix) => latents.clone().matmul(mix.clone().transpose()).matmul(mix.clone()),
            None => latents.clone(),
        };
        let gram = |m: &Tensor<2>| m.clone().matmul(m.clone().transpose());
        let mut kernel = gram(&self.left) * gram(&self.right);
        let mut cross = coefficients.clone() * latents;
        if ordered {
            let n = self.d_sae();
            // The share of the prefixes that a latent is in; a pair is in those that its later one is in.
            let shares: Vec<f32> = (0..n).map(|i| (n - i) as f32 / n as f32).collect();
            let shares = Tensor::<2>::from_data(TensorData::new(shares, [1, n]), &self.device());
            let of_pairs = shares
                .clone()
                .expand([n, n])
                .min_pair(shares.clone().transpose().expand([n, n]));
            (kernel, cross) = (kernel * of_pairs, cross * shares);
        }
        let squares = (x.clone() * x).sum_dim(1);
        let of_recon = (coefficients.clone().matmul(kernel) * coefficients).sum_dim(1);
        squares.clone() * squares - cross.sum_dim(1) * 2.0 + of_recon
    }

    /// The symmetric matrix of a form (a cluster, or a latent where there are none), `[d_in, d_in]`: its value for `x` is
    /// `x^T Q x`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are not so many, or with what the device said.
    pub fn matrix(&self, form: usize) -> Result<Vec<f64>> {
        if form >= self.n_forms() {
            return Err(Error::Invalid(format!(
                "there is no form {form}: the autoencoder has {}",
                self.n_forms()
            )));
        }
        let host = |t: &Tensor<2>| to_host::<f32>(t.clone().try_into_data());
        let (left, right) = (host(&self.left)?, host(&self.right)?);
        let shares = match &self.mix {
            Some(mix) => host(&mix.clone().narrow(0, form, 1))?,
            None => (0..self.d_sae()).map(|j| f32::from(u8::from(j == form))).collect(),
        };
        let d = self.d_in();
        let mut matrix = vec![0.0; d * d];
        let rows = left.chunks_exact(d).zip(right.chunks_exact(d));
        for ((l, r), share) in rows.zip(shares).filter(|(_, share)| *share != 0.0) {
            let half = f64::from(share) / 2.0;
            for (a, row) in matrix.chunks_exact_mut(d).enumerate() {
                let (la, ra) = (half * f64::from(l[a]), half * f64::from(r[a]));
                for (value, (lb, rb)) in row.iter_mut().zip(l.iter().zip(r)) {
                    *value += la * f64::from(*rb) + ra * f64::from(*lb);
                }
            }
        }
        Ok(matrix)
    }

    /// The eigenvalues and eigenvectors of a form, those of the largest magnitude first. Takes `d_in^3` steps.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub fn eigen(&self, form: usize) -> Result<Eigen> {
        Ok(symmetric_eigen(self.matrix(form)?, self.d_in()))
    }
}
