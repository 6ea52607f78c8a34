//! White activations: what a trainer may turn activations into, and how a dictionary takes it back.
//!
//! ZCA (Bell and Sejnowski 1997) is the symmetric matrix `P = U max(L, f)^-1/2 U^T`, with `L` and `U` eigenvalues and
//! eigenvectors of the covariance: all directions become equally large, and among the matrices that do that it leaves
//! coordinates nearest to what they were. It is one linear map, so it folds into a dictionary's matrices to the last number
//! that a reader could ask for: codes, thresholds and biases of latents stay, and nobody downstream knows of it. What does
//! change is that decoder rows have length 1 in white units alone.

use burn::tensor::{Device, Tensor, TensorData};

use super::Sae;
use crate::bilinear::eigen::symmetric_eigen;
use crate::code::to_host;
use crate::error::Result;

/// Eigenvalues below this share of their mean count as that: directions in which there is next to nothing, rounding
/// included, are not made as large as the others.
const FLOOR: f64 = 1e-3;
/// The widest activations that are whitened.
pub(crate) const MOST_WHITENED: usize = 4096;

/// A symmetric matrix that makes activations white, and its inverse.
#[derive(Clone, Debug)]
pub struct Whitening {
    /// What white activations are raw ones times. `[d, d]`
    pub white: Tensor<2>,
    /// The inverse. `[d, d]`
    pub raw: Tensor<2>,
}

impl Whitening {
    /// Of `sample: [n, d]`, and the variance of the sample once it is white, summed over `d`: `d`, or less where eigenvalues
    /// are below the floor.
    ///
    /// # Errors
    /// When the device failed.
    pub fn of(sample: &[f32], d: usize, device: &Device) -> Result<(Self, f64)> {
        let n = sample.len() / d;
        let x = Tensor::<2>::from_data(TensorData::new(sample.to_vec(), [n, d]), device);
        // Brought near 1 first, so that no square is out of range.
        let largest = sample
            .iter()
            .fold(0.0f32, |most, v| most.max(v.abs()))
            .max(f32::MIN_POSITIVE);
        let x = x / largest;
        let centred = x.clone() - x.mean_dim(0);
        let covariance = to_host::<f32>((centred.clone().transpose().matmul(centred) / n as f64).try_into_data())?;
        let square = f64::from(largest).powi(2);
        // The product is symmetric but for rounding.
        let entry = |i: usize, j: usize| f64::from(covariance[i * d + j] + covariance[j * d + i]) / 2.0 * square;
        let matrix = (0..d * d).map(|at| entry(at / d, at % d)).collect();
        let eigen = symmetric_eigen(matrix, d);
        let floor = FLOOR * eigen.values.iter().sum::<f64>() / d as f64;
        let variance = eigen.values.iter().map(|v| v.max(0.0) / v.max(floor)).sum();
        let of = |power: f64| {
            let scales: Vec<f64> = eigen.values.iter().map(|v| v.max(floor).powf(power)).collect();
            let mut sum = vec![0.0f64; d * d];
            for (vector, scale) in eigen.vectors.chunks_exact(d).zip(scales) {
                for (row, &a) in sum.chunks_exact_mut(d).zip(vector) {
                    row.iter_mut().zip(vector).for_each(|(v, &b)| *v += scale * a * b);
                }
            }
            let sum: Vec<f32> = sum.into_iter().map(|v| v as f32).collect();
            Tensor::from_data(TensorData::new(sum, [d, d]), device)
        };
        Ok((
            Self {
                white: of(-0.5),
                raw: of(0.5),
            },
            variance,
        ))
    }

    /// White activations of raw ones, `[batch, d]`.
    pub fn whiten(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.white.clone())
    }
}

impl Sae {
    /// The dictionary of raw activations that does what this one does to white ones: the encoder's matrices are multiplied
    /// by what makes activations white, the decoder and `b_dec` by its inverse; codes are the same. Of an autoencoder.
    pub fn fold_whitening(self, of: &Whitening) -> Self {
        let [d_out] = self.b_dec.dims();
        let raw = |rows: Tensor<2>| rows.matmul(of.raw.clone());
        let folded = Self {
            w_dec: raw(self.w_dec),
            b_dec: raw(self.b_dec.unsqueeze()).reshape([d_out]),
            ..self
        };
        folded.map_encoder(|w_enc, b_enc| (w_enc.matmul(of.white.clone()), b_enc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::start::random_directions;

    #[test]
    fn the_covariance_of_white_rows_is_the_identity_but_for_what_is_below_the_floor() {
        // Three directions of very different sizes about a large mean, and a fourth in which there is nothing.
        let (d, n) = (4, 500);
        let normal = random_directions(n, d, 3);
        let rows: Vec<f32> = normal
            .chunks_exact(d)
            .flat_map(|r| [100.0 * r[0] + 7.0, r[1] + r[0] - 50.0, 10.0 * r[2] + 3.0, 1e3])
            .collect();
        let device = Device::flex();
        let (whitening, variance) = Whitening::of(&rows, d, &device).unwrap();
        let x = Tensor::<2>::from_data(TensorData::new(rows, [n, d]), &device);
        let white = to_host::<f32>(whitening.whiten(x).try_into_data()).unwrap();
        let mean = |f: &dyn Fn(&[f32]) -> f64| white.chunks_exact(d).map(f).sum::<f64>() / n as f64;
        let means: Vec<f64> = (0..d).map(|i| mean(&|row| f64::from(row[i]))).collect();
        let mut total = 0.0;
        for i in 0..d {
            total += mean(&|row| (f64::from(row[i]) - means[i]).powi(2));
        }
        assert!((total - variance).abs() < 0.05, "{total} {variance}");
        // 100, 1 and 10: the least of the three is a ten-thousandth of the largest in squares, below the floor.
        for (i, expected) in [(0, 1.0), (2, 1.0), (3, 0.0)] {
            let found = mean(&|row| (f64::from(row[i]) - means[i]).powi(2));
            assert!((found - expected).abs() < 0.05, "{i}: {found}");
        }
        let identity = to_host::<f32>(whitening.white.matmul(whitening.raw).try_into_data()).unwrap();
        for (at, v) in identity.iter().enumerate() {
            assert!((v - f32::from(u8::from(at / d == at % d))).abs() < 1e-3, "{identity:?}");
        }
    }
}
