//! Scales of activations: what a trainer multiplies by, and how a dictionary takes them back.
//!
//! Every place has a scale of its own, since activations of two places can differ by orders of magnitude, and a loss
//! over both would be one over the larger. Selecting and decoding are homogeneous: a code may be divided by one number,
//! the same for all latents, or other latents would be selected. So a saved dictionary has codes in the units of what it
//! writes: the code is divided by the scale of the written row as a whole ([`Scales::code`]), and what is left of each
//! place's own scale goes into the columns of the matrices.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::Sae;

/// What multiplies the activations of one place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Width of the place.
    pub width: usize,
    /// The factor that makes `E|x|^2 = width`.
    pub scale: f32,
}

/// What multiplies each place that is read, and each that is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    /// In the order of the columns of what is read.
    pub read: Vec<Scale>,
    /// In the order of the columns of what is written.
    pub write: Vec<Scale>,
}

impl Scales {
    /// One scale for one place of `width` values that is read and written.
    pub fn one(width: usize, scale: f32) -> Self {
        let places = vec![Scale { width, scale }];
        Self {
            read: places.clone(),
            write: places,
        }
    }

    /// The scale of the written row as a whole: with it alone `E|y|^2` would be its width.
    pub fn code(&self) -> f32 {
        match self.write[..] {
            [Scale { scale, .. }] => scale,
            ref places => {
                let square = |s: &Scale| s.width as f64 / f64::from(s.scale).powi(2);
                let width: usize = places.iter().map(|s| s.width).sum();
                (width as f64 / places.iter().map(square).sum::<f64>()).sqrt() as f32
            }
        }
    }

    /// Multiplies activations that are read, `[batch, d_in]`.
    pub fn scale_read(&self, x: Tensor<2>) -> Tensor<2> {
        scaled(x, &self.read)
    }

    /// Multiplies activations that are written, `[batch, d_out]`.
    pub fn scale_written(&self, y: Tensor<2>) -> Tensor<2> {
        scaled(y, &self.write)
    }
}

fn scaled(x: Tensor<2>, places: &[Scale]) -> Tensor<2> {
    match places {
        [only] => x * only.scale,
        several => {
            let row = columns(several, |scale| scale, &x);
            x * row
        }
    }
}

/// Where each place's columns are.
fn ranges(places: &[Scale]) -> impl Iterator<Item = (Range<usize>, f32)> + '_ {
    let mut start = 0;
    places.iter().map(move |place| {
        start += place.width;
        (start - place.width..start, place.scale)
    })
}

/// A row of `of` each place's scale, `[1, width]`, where `like` is.
fn columns(places: &[Scale], of: impl Fn(f32) -> f32, like: &Tensor<2>) -> Tensor<2> {
    let values: Vec<f32> = ranges(places)
        .flat_map(|(range, scale)| vec![of(scale); range.len()])
        .collect();
    let shape = [1, values.len()];
    Tensor::from_data(TensorData::new(values, shape), &like.device())
}

/// `matrix` with each place's columns multiplied by `of` its scale; itself where that is 1 everywhere.
fn times(matrix: Tensor<2>, places: &[Scale], of: impl Fn(f32) -> f32) -> Tensor<2> {
    match places.iter().all(|place| of(place.scale) == 1.0) {
        true => matrix,
        false => {
            let row = columns(places, of, &matrix);
            matrix * row
        }
    }
}

/// Rows of a decoder whose lengths are so near to 1 have length 1 but for rounding.
const UNIT_WITHIN: f32 = 1e-4;

impl Sae {
    /// The dictionary of raw activations that does what this one does to scaled ones.
    ///
    /// With `s` the scale of a place and `c` = [`Scales::code`], codes are `1 / c` times what they were: biases and
    /// thresholds of latents are divided by `c`, the columns of `w_enc` (of every step) multiplied by `s / c` and those of `w_dec` by
    /// `c / s`, `b_dec` divided by `s`. Of one place that is read and written all factors are 1 but those of biases. Where
    /// one place is written, the decoder keeps its unit rows, and a latent's value is the length of what it writes; of a
    /// crosscoder the rows have length 1 in the scaled units of training.
    pub fn fold_scales(self, scales: &Scales) -> Self {
        let code = scales.code();
        let b_dec = self.b_dec.unsqueeze::<2>();
        let [_, d_out] = b_dec.dims();
        // Divided, not multiplied by the inverse: a power of two is then exact.
        let b_dec = match &scales.write[..] {
            [only] => b_dec / only.scale,
            several => {
                let row = columns(several, |scale| scale, &b_dec);
                b_dec / row
            }
        };
        let skip = self.skip.map(|skip| {
            let by_read = times(skip, &scales.read, |scale| scale);
            times(by_read.transpose(), &scales.write, |scale| 1.0 / scale).transpose()
        });
        let folded = Self {
            w_dec: times(self.w_dec, &scales.write, |scale| code / scale),
            b_dec: b_dec.reshape([d_out]),
            threshold: self.threshold.map(|t| t / code),
            skip,
            ..self
        };
        folded.map_encoder(|w_enc, b_enc| (times(w_enc, &scales.read, |scale| scale / code), b_enc / code))
    }
    /// The dictionary of scaled activations that does what this one does to raw ones: the opposite of
    /// [`fold_scales`](Self::fold_scales), for training that goes on from a saved dictionary.
    pub fn unfold_scales(self, scales: &Scales) -> Self {
        let code = scales.code();
        let [d_out] = self.b_dec.dims();
        let skip = self.skip.map(|skip| {
            let by_read = times(skip, &scales.read, |scale| 1.0 / scale);
            times(by_read.transpose(), &scales.write, |scale| scale).transpose()
        });
        let unfolded = Self {
            w_dec: times(self.w_dec, &scales.write, |scale| scale / code),
            b_dec: scales.scale_written(self.b_dec.unsqueeze()).reshape([d_out]),
            threshold: self.threshold.map(|t| t * code),
            skip,
            ..self
        };
        unfolded.map_encoder(|w_enc, b_enc| (times(w_enc, &scales.read, |scale| code / scale), b_enc * code))
    }

    /// The same dictionary with decoder rows of length 1, whose latents' values are so much larger. Rows that have it but
    /// for rounding, and rows of zeros, stay as they are.
    ///
    /// Reconstructions are the same for thresholds and ReLU; under a budget, latents compete with their new values.
    pub(crate) fn with_unit_rows(self) -> Self {
        self.with_rows_of_length_one(UNIT_WITHIN)
    }

    /// [`with_unit_rows`](Self::with_unit_rows), which leaves alone what is `within` of it.
    pub(crate) fn with_rows_of_length_one(self, within: f32) -> Self {
        let lengths = (self.w_dec.clone() * self.w_dec.clone()).sum_dim(1).sqrt();
        let near = (lengths.clone() - 1.0).abs().lower_equal_elem(within);
        let none = lengths.clone().equal_elem(0.0);
        let lengths = lengths.mask_fill(near, 1.0).mask_fill(none, 1.0);
        let of_latents = lengths.clone().reshape([self.d_sae()]);
        let unit = Self {
            w_dec: self.w_dec / lengths.clone(),
            threshold: self.threshold.map(|t| t * of_latents.clone()),
            ..self
        };
        unit.map_encoder(|w_enc, b_enc| (w_enc * lengths.clone(), b_enc * of_latents.clone()))
    }

    /// The same dictionary with `b_dec` subtracted from what is read, or not: the encoder's bias makes up for it. Only where
    /// what is written is as wide as what is read.
    pub(crate) fn with_b_dec_applied(self, apply: bool) -> Self {
        if apply == self.apply_b_dec_to_input {
            return self;
        }
        let (d_sae, d_out) = (self.d_sae(), self.d_out());
        let b_dec = self.b_dec.clone().reshape([d_out, 1]);
        let moved = self.map_encoder(|w_enc, b_enc| {
            let by = w_enc.clone().matmul(b_dec.clone()).reshape([d_sae]);
            let b_enc = match apply {
                true => b_enc + by,
                false => b_enc - by,
            };
            (w_enc, b_enc)
        });
        Self {
            apply_b_dec_to_input: apply,
            ..moved
        }
    }
}
