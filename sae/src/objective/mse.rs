//! Reconstruction: `|x - recon|^2` summed over `d_in`, mean over the batch, over the variance of the data.
//!
//! The variance is a constant of the run, not of the batch, so that a batch of easy tokens does not count more.

use burn::tensor::Tensor;

use super::Forward;

pub(super) fn value(pass: &Forward) -> Tensor<1> {
    let [batch, _] = pass.x.dims();
    let error = pass.recon.clone() - pass.x.clone();
    (error.clone() * error).sum() / (batch as f64 * pass.variance)
}
