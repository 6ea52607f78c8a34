//! Activations each divided by its own norm, and multiplied by `sqrt(d_in)`: all are equally long then, and directions are
//! all that there is to learn. No parameter can take that back, since it is another factor for each activation, so the
//! dictionary says that it does it.

use burn::tensor::Tensor;

/// `x: [batch, d_in]` with rows of length `sqrt(d_in)`; rows of zeros stay.
pub(crate) fn normalised(x: Tensor<2>) -> Tensor<2> {
    let [_, d_in] = x.dims();
    // Brought near 1 first, so that no square is out of range.
    let largest = x.clone().abs().max_dim(1).clamp_min(f32::MIN_POSITIVE);
    let x = x / largest;
    let lengths = (x.clone() * x.clone()).sum_dim(1).sqrt().clamp_min(f32::MIN_POSITIVE);
    x * (d_in as f64).sqrt() / lengths
}

/// What the row `x` is divided by.
pub(crate) fn factor(x: &[f32]) -> f64 {
    let square: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
    (square / x.len() as f64).sqrt()
}

/// [`normalised`] on the host, for a sample: `[n, d_in]`.
pub(crate) fn normalised_rows(x: &[f32], d_in: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let factor = factor(row).max(f64::MIN_POSITIVE);
        row.iter().map(|&v| (f64::from(v) / factor) as f32).collect::<Vec<_>>()
    };
    x.chunks_exact(d_in).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn rows_of_any_length_become_equally_long_and_rows_of_zeros_stay() {
        let rows = [3.0f32, 4.0, 0.0, 0.0, 3e30, -4e30, 3e-30, 4e-30];
        let expected = [0.6f64, 0.8, 0.0, 0.0, 0.6, -0.8, 0.6, 0.8].map(|v| v * 2f64.sqrt());
        let x = Tensor::<2>::from_data(TensorData::new(rows.to_vec(), [4, 2]), &Device::flex());
        let device: Vec<f32> = normalised(x).into_data().to_vec().unwrap();
        for found in [device, normalised_rows(&rows, 2)] {
            for (a, b) in found.iter().zip(expected) {
                assert!((f64::from(*a) - b).abs() < 1e-6, "{found:?}");
            }
        }
        assert!((factor(&rows[4..6]) / 5e30 * 2f64.sqrt() - 1.0).abs() < 1e-6);
    }
}
