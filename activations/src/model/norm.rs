//! Normalisation, on the processor and in burn's operations.

use burn::tensor::Tensor;

use super::config::{Norm, NormKind};
use super::host;
use super::weights::Affine;

/// Normalises values the way of one model.
pub(super) struct Normalizer {
    kind: NormKind,
    eps: f64,
    on_host: bool,
}

impl Normalizer {
    pub(super) fn new(norm: Norm, on_host: bool) -> Self {
        Self {
            kind: norm.kind,
            eps: norm.eps,
            on_host,
        }
    }

    /// Each row of `x: [.., width]` without gain and bias.
    pub(super) fn plain(&self, x: Tensor<3>) -> Tensor<3> {
        let eps = self.eps;
        if self.on_host {
            return host::map(x, |values, width| match self.kind {
                NormKind::Rms => host::divide_by_rms(values, width, eps as f32),
                NormKind::Layer => host::standardize(values, width, eps as f32),
            });
        }
        let x = match self.kind {
            NormKind::Rms => x,
            NormKind::Layer => x.clone() - x.mean_dim(2),
        };
        let mean_square = x.clone().square().mean_dim(2);
        x / (mean_square + eps).sqrt()
    }

    /// Each row of `x`, with gain and bias.
    pub(super) fn apply(&self, x: Tensor<3>, affine: &Affine) -> Tensor<3> {
        self.affine(self.plain(x), affine)
    }

    /// Gain and bias alone.
    pub(super) fn affine(&self, x: Tensor<3>, affine: &Affine) -> Tensor<3> {
        let Affine { gain, bias } = affine;
        if self.on_host {
            let bias = bias.as_ref().map(|b| &b.values[..]);
            return host::map(x, |values, _| host::affine(values, &gain.values, bias));
        }
        let x = x * gain.tensor.clone().unsqueeze();
        match bias {
            Some(bias) => x + bias.tensor.clone().unsqueeze(),
            None => x,
        }
    }

    /// As [`Normalizer::apply`], each `width` values of a row by themselves: `x: [batch, seq, n * width]`.
    pub(super) fn apply_by(&self, width: usize, x: Tensor<3>, affine: &Affine) -> Tensor<3> {
        let [batch, seq, all] = x.dims();
        let parts = x.reshape([batch, seq * (all / width), width]);
        self.apply(parts, affine).reshape([batch, seq, all])
    }
}
