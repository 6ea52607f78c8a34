//! Gates (arXiv 2404.16014): one linear map says whether a latent fires, a second how strongly.
//!
//! `z = H(u) max(exp(r) (u - b_gate) + b_mag, 0)` with `u = W_enc (x - b_dec) + b_gate`: the magnitude shares the gate's
//! directions and has its own scale and bias, so that a penalty on `u`, which keeps gates shut, does not shrink values.
//! No gradient of the values reaches the step, so the gate learns from the penalty and from reconstructing on its own
//! (`[objective.gate]`).
//!
//! A gated dictionary **is** a JumpReLU one: `u > 0` where the magnitude is above `b_mag - exp(r) b_gate`. That is how it
//! is saved ([`Gate::ungated`]), exactly, and nothing downstream knows of gates.

use burn::tensor::{Int, Tensor};

use super::{Allocation, Score, Sparsifier};
use crate::dictionary::Sae;

/// The parameters of magnitudes; those of gates are the encoder's.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Logarithms of the scales. `[d_sae]`
    pub r_mag: Tensor<1>,
    /// `[d_sae]`
    pub b_mag: Tensor<1>,
}

impl Gate {
    /// The values of the latents `indices` whose gates have pre-activations `u`, all above 0. `[entries]`
    ///
    /// `b_gate` is not differentiated: see [`Gate::gate_bias_gradient`].
    pub fn values(&self, indices: Tensor<1, Int>, u: Tensor<1>, b_gate: &Tensor<1>) -> Tensor<1> {
        let of_entries = |t: Tensor<1>| t.select(0, indices.clone());
        let linear = u - of_entries(b_gate.clone().detach());
        let magnitude = linear * of_entries(self.r_mag.clone().exp()) + of_entries(self.b_mag.clone());
        magnitude.clamp_min(0.0)
    }

    /// The gradient of `b_gate`, from that of everything that moves `u`: magnitudes do not depend on it.
    pub fn gate_bias_gradient(&self, of_u: Tensor<1>, of_b_mag: Tensor<1>) -> Tensor<1> {
        of_u - of_b_mag * self.r_mag.clone().no_grad().exp()
    }

    /// The same dictionary without gates: `sae` with its encoder scaled, and thresholds.
    pub fn ungated(&self, sae: Sae) -> Sae {
        let scale = self.r_mag.clone().no_grad().exp();
        let b_mag = self.b_mag.clone().no_grad();
        // A magnitude below 0 has value 0 whatever the gate says.
        let threshold = (b_mag.clone() - scale.clone() * sae.b_enc).clamp_min(0.0);
        Sae {
            w_enc: sae.w_enc * scale.unsqueeze_dim(1),
            b_enc: b_mag,
            threshold: Some(threshold),
            sparsifier: Sparsifier::new(Score::Positive, Allocation::Threshold),
            ..sae
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::code::HostCode;

    const D_IN: usize = 7;
    const D_SAE: usize = 30;

    #[test]
    fn a_gated_dictionary_is_the_jumprelu_that_it_is_saved_as() {
        let device = Device::flex();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut uniform = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
        let mut vector = |n: usize| Tensor::<1>::from_data(TensorData::new(uniform(n), [n]), &device);
        let matrix = |t: Tensor<1>| t.reshape([D_SAE, D_IN]);
        let sae = Sae {
            per_token: false,
            w_enc: matrix(vector(D_SAE * D_IN)),
            b_enc: vector(D_SAE),
            w_dec: matrix(vector(D_SAE * D_IN)),
            b_dec: vector(D_IN),
            apply_b_dec_to_input: true,
            steps: Vec::new(),
            skip: None,
            threshold: None,
            sparsifier: Sparsifier::new(Score::Positive, Allocation::Gate),
        };
        let gate = Gate {
            r_mag: vector(D_SAE),
            b_mag: vector(D_SAE),
        };
        let x = vector(40 * D_IN);
        let open = sae.encode(x.clone().reshape([40, D_IN])).unwrap();
        let values = gate.values(open.indices.clone(), open.values.clone(), &sae.b_enc);
        let gated = crate::SparseCode { values, ..open }.to_host().unwrap();
        let x: Vec<f32> = x.into_data().to_vec().unwrap();
        let ungated = gate.ungated(sae).encode_rows(&x).unwrap();
        let mut shut = 0;
        for row in 0..40 {
            let sorted = |code: &HostCode| {
                let mut row: Vec<(usize, f32)> = code.row(row).collect();
                row.sort_by_key(|e| e.0);
                row
            };
            let (a, b) = (sorted(&gated), sorted(&ungated));
            let latents = |row: &[(usize, f32)]| row.iter().map(|e| e.0).collect::<Vec<_>>();
            assert_eq!(latents(&a), latents(&b));
            assert!(a.iter().zip(&b).all(|(a, b)| (a.1 - b.1).abs() < 1e-5));
            shut += gated.rows.range(row).len() - a.len();
        }
        // Some open gates have a magnitude below 0.
        assert!(shut > 0);
    }
}
