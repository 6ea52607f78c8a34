//! The auxiliary loss for dead latents (arXiv 2406.04093, appendix A.2): the best `k_aux` of them reconstruct what the
//! living ones leave.
//!
//! `|residual - recon_aux|^2` summed over `d_in` and the batch, over the same sum for the residual about its mean. The
//! residual is a target: no gradient flows into it. The auxiliary code decodes without `b_dec`. A few dead latents
//! cannot explain much, so the value is scaled by `min(n_dead / full_at, 1)`.
//!
//! The gradient reaches the encoder because the code carries pre-activations that were not cut at zero
//! ([`AuxSelection`](crate::kernels::AuxSelection)): cut, a dead latent would have none.
//!
//! `aux_zipf` (after arXiv 2411.02124) is the same over latents that are used too little, dead or not: who fires less than
//! a share of what Zipf's law gives its rank.

use burn::tensor::Tensor;

use super::{About, Face, Forward, Moment};
use crate::error::Result;
use crate::kernels::decode;

/// The term, of `train.aux_weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuxK {
    /// What it enters the loss with.
    pub weight: f64,
    /// The number of dead latents from which on it has its full weight.
    pub full_at: usize,
    /// `aux_k` over dead latents, `aux_zipf` over those that fire less than Zipf's law has it.
    pub name: &'static str,
}

impl Face for AuxK {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let code = pass.aux.as_ref()?;
        let [batch, d_out] = pass.target.dims();
        let residual = (pass.target.clone() - pass.recon.clone()).detach();
        let about_mean = residual.clone() - residual.clone().mean_dim(0).expand([batch, d_out]);
        // A perfect reconstruction leaves nothing to explain; the smallest number keeps 0 / 0 out of the loss.
        let variance = (about_mean.clone() * about_mean).sum().clamp_min(f32::MIN_POSITIVE);
        let error = residual - decode(code, pass.w_dec.clone());
        let scale = (pass.n_dead as f64 / self.full_at as f64).min(1.0);
        Some((error.clone() * error).sum() / variance * scale)
    }

    /// Its keys are those of `[train]`.
    fn validate(&self, _: &str, _: About) -> Result<()> {
        Ok(())
    }
}
