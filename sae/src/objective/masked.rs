//! Masked reconstruction (arXiv 2302.12715): some coordinates of every token are hidden from the encoder, and the error
//! is counted on those alone, over their share of the variance of the data.
//!
//! A code that fits what it sees too well, by mixing atoms that are no part of the data, is of no use for what it does not
//! see; so on noisy data with a dictionary that is larger than the true one, this recovers more of the truth than
//! reconstruction does. The paper codes with orthogonal matching pursuit on the visible coordinates, which is
//! `sae.encoder = "orthogonal_pursuit"`; an encoder of products, which sees hidden coordinates as `b_dec` has them, is an
//! extension of ours.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check, check_weight};
use crate::error::Result;

/// `[objective.masked]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Masked {
    /// 1.
    pub weight: f64,
    /// Share of the coordinates that are hidden, drawn anew for every token. 0.1.
    pub hidden: f64,
}

impl Default for Masked {
    fn default() -> Self {
        Self {
            weight: 1.0,
            hidden: 0.1,
        }
    }
}

/// A second pass over the batch, which did not see all of it.
pub struct MaskedPass {
    /// The reconstruction, `b_dec` included. `[batch, d_in]`
    pub recon: Tensor<2>,
    /// 1 where a coordinate was hidden, 0 elsewhere. `[batch, d_in]`
    pub hidden: Tensor<2>,
}

impl Masked {
    pub(super) fn complete() -> Self {
        Self::default()
    }

    /// Coordinates of a token that are hidden: at least one, and not all where there are two.
    fn hidden_of(&self, d_in: usize) -> usize {
        ((self.hidden * d_in as f64).round() as usize).clamp(1, d_in.saturating_sub(1).max(1))
    }

    /// What is hidden in a step, 1 for what is: a function of seed and step alone. `[batch, d_in]`
    pub fn draw(&self, moment: Moment, [batch, d_in]: [usize; 2], device: &Device) -> Tensor<2> {
        // Other terms draw from the seed itself.
        let mut rng = ChaCha8Rng::seed_from_u64(moment.seed ^ 0x6d61_736b);
        rng.set_stream(moment.step);
        let n = self.hidden_of(d_in);
        let mut mask = vec![0.0f32; batch * d_in];
        let mut coordinates: Vec<usize> = (0..d_in).collect();
        for row in mask.chunks_exact_mut(d_in) {
            for at in 0..n {
                coordinates.swap(at, rng.random_range(at..d_in));
                row[coordinates[at]] = 1.0;
            }
        }
        Tensor::from_data(TensorData::new(mask, [batch, d_in]), device)
    }
}

impl Face for Masked {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let MaskedPass { recon, hidden } = pass.masked.as_ref()?;
        let [batch, d_in] = pass.target.dims();
        let error = (recon.clone() - pass.target.clone()) * hidden.clone();
        let share = self.hidden_of(d_in) as f64 / d_in as f64;
        Some((error.clone() * error).sum() / (batch as f64 * share * pass.variance))
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        let good = self.hidden > 0.0 && self.hidden < 1.0;
        check(
            key,
            "hidden",
            self.hidden,
            "a share of the coordinates between 0 and 1",
            good,
        )?;
        check_weight(key, self.weight, None)
    }

    fn reconstructs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_coordinates_as_asked_for_are_hidden_in_every_row_and_others_in_every_step() {
        let masked = Masked {
            hidden: 0.3,
            ..Masked::default()
        };
        let at = |step: u64| {
            let moment = Moment {
                step,
                steps: 10,
                seed: 4,
            };
            let mask = masked.draw(moment, [50, 10], &Device::flex());
            mask.into_data().to_vec::<f32>().unwrap()
        };
        let mask = at(3);
        assert!(mask.chunks(10).all(|row| row.iter().sum::<f32>() == 3.0));
        let by_coordinate = |j: usize| mask.iter().skip(j).step_by(10).sum::<f32>();
        assert!((0..10).all(|j| (5.0..27.0).contains(&by_coordinate(j))));
        assert_eq!(at(3), mask);
        assert_ne!(at(4), mask);
        let one = |d_in| masked.hidden_of(d_in);
        assert_eq!([one(1), one(2), one(100)], [1, 1, 30]);
    }
}
