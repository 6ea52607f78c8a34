//! What a threshold does to the values that pass it: the proximal operators beside the step.
//!
//! `prox(u) = argmin_z 1/2 (z - u)^2 + penalty(z)` is 0 up to a cutoff `t` and, above it, smaller than `u` by an amount
//! that says what the penalty is. Every one here is homogeneous: with `u` and `t` doubled, so is the value. So **the
//! cutoff is the only parameter of a strength**: it is the threshold by which a latent is selected
//! ([`Allocation::Threshold`](super::Allocation)), or, where a batch shares a budget, the score of its least winner, and
//! the value follows from it. Dictionaries are then compared at equal L0, where a penalty's strength means nothing.
//!
//! | | penalty | cutoff of strength `s` | value above the cutoff, of `u > 0` |
//! |---|---|---|---|
//! | `none` (hard) | `s [z != 0]` | `sqrt(2 s)` | `u` |
//! | `soft` | `s abs(z)` | `s` | `u - t` |
//! | `half` | `s sqrt(abs(z))` (Xu et al. 2012) | `54^(1/3) / 4 (2 s)^(2/3)` | `2/3 u (1 + cos(2 pi / 3 - 2/3 acos((t / u)^1.5 / sqrt 2)))` |
//! | `cel0` | the continuous exact relaxation of hard's (Soubies et al. 2015), step `eta` | `sqrt(2 s) eta` | `min(u, (u - t) / (1 - eta))` |

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Scores up to so many times the least winner's say how the cutoff of a batch moves.
const ABOUT: f64 = 1.1;

/// What becomes of the values of winners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shrink {
    /// They stay what they are: hard thresholding.
    #[default]
    None,
    /// All lose the cutoff.
    Soft,
    /// They lose up to a third of the cutoff, and less the larger they are.
    Half,
    /// Just above the cutoff they are near 0, and from `cutoff / eta` on they lose nothing: between soft (`eta` near 0)
    /// and hard (near 1).
    Cel0 {
        /// The step of the iteration that it comes from, between 0 and 1.
        eta: f64,
    },
}

impl Shrink {
    /// Whether values stay what they are.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The cutoff of a penalty of strength `lambda`.
    pub fn cutoff(self, lambda: f64) -> f64 {
        match self {
            Self::None => (2.0 * lambda).sqrt(),
            Self::Soft => lambda,
            Self::Half => 54f64.cbrt() / 4.0 * (2.0 * lambda).cbrt().powi(2),
            Self::Cel0 { eta } => (2.0 * lambda).sqrt() * eta,
        }
    }

    /// The values of winners with pre-activations `u`, whose magnitudes are at least their `cutoffs`. `[entries]` each;
    /// an entry of 0 stays one. Differentiable in both.
    pub fn values(self, u: Tensor<1>, cutoffs: Tensor<1>) -> Tensor<1> {
        let above = |u: &Tensor<1>| (u.clone().abs() - cutoffs.clone()).clamp_min(0.0);
        match self {
            Self::None => u,
            Self::Soft => above(&u) * u.sign(),
            Self::Half => {
                // Not below the cutoff, and never 0, so that the ratio is one for entries that are no winners, too.
                let sizes = u.clone().abs().max_pair(cutoffs.clone()).clamp_min(f32::MIN_POSITIVE);
                let angle = ((cutoffs / sizes).powf_scalar(1.5) * FRAC_1_SQRT_2).acos();
                let cosine = (angle * (-2.0 / 3.0) + 2.0 * PI / 3.0).cos();
                u * (cosine + 1.0) * (2.0 / 3.0)
            }
            Self::Cel0 { eta } => (above(&u) / (1.0 - eta)).min_pair(u.clone().abs()) * u.sign(),
        }
    }

    /// The cutoff of a budget that a batch shares: the score of the least of the winners, whose pre-activations are `u`,
    /// `[entries]`. `[1]`
    ///
    /// It moves with the parameters as the values do. Taken as a constant, the loss would seem to fall as all scores grow
    /// together, which nothing would end. As a quantile it moves by the mean of the scores about it, for which those up
    /// to a tenth larger stand: the least alone would put the whole gradient on one entry.
    pub fn shared_cutoff(u: &Tensor<1>) -> Tensor<1> {
        let sizes = u.clone().abs();
        let constant = sizes.clone().detach();
        let least = constant.clone().min();
        let about = constant.clone().lower_equal(least.clone() * ABOUT).float();
        let share = about.clone() / about.sum();
        least + ((sizes - constant) * share).sum()
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "hard",
            Self::Soft => "soft",
            Self::Half => "half",
            Self::Cel0 { .. } => "CEL0",
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::kernels::tests::devices;

    const ALL: [Shrink; 5] = [
        Shrink::None,
        Shrink::Soft,
        Shrink::Half,
        Shrink::Cel0 { eta: 0.3 },
        Shrink::Cel0 { eta: 0.8 },
    ];

    /// What each penalises, in the units of `1/2 (z - u)^2`.
    fn penalty(shrink: Shrink, lambda: f64, z: f64) -> f64 {
        let z = z.abs();
        match shrink {
            Shrink::None => lambda * f64::from(z != 0.0),
            Shrink::Soft => lambda * z,
            Shrink::Half => lambda * z.sqrt(),
            // Of a dictionary of unit columns, times the step of the iteration.
            Shrink::Cel0 { eta } => {
                let off = (2.0 * lambda).sqrt() - z;
                eta * (lambda - if off > 0.0 { off * off / 2.0 } else { 0.0 })
            }
        }
    }

    /// The best of a fine grid, and of a finer one about that.
    fn minimise(objective: impl Fn(f64) -> f64) -> f64 {
        let best = |middle: f64, step: f64| {
            let grid = (-4000..=4000).map(|n| middle + f64::from(n) * step);
            grid.min_by(|a, b| objective(*a).total_cmp(&objective(*b))).unwrap()
        };
        let (coarse, zero) = (best(0.0, 1e-3), objective(0.0));
        let fine = best(coarse, 1e-6);
        if zero <= objective(fine) { 0.0 } else { fine }
    }

    fn vector(values: &[f32], device: &Device) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
    }

    /// The whole operator: 0 up to the cutoff.
    fn prox(shrink: Shrink, lambda: f64, u: f64, device: &Device) -> f64 {
        let cutoff = shrink.cutoff(lambda);
        if u.abs() <= cutoff {
            return 0.0;
        }
        let values = shrink.values(vector(&[u as f32], device), vector(&[cutoff as f32], device));
        f64::from(values.into_data().to_vec::<f32>().unwrap()[0])
    }

    #[test]
    fn every_operator_is_the_minimiser_of_its_penalty() {
        for device in devices() {
            for shrink in ALL {
                for lambda in [0.05, 0.3, 1.1] {
                    for n in -30..=30 {
                        // Off the cutoffs, where two minima are equal.
                        let u = f64::from(n) * 0.1 + 0.0137;
                        if (u.abs() - shrink.cutoff(lambda)).abs() < 2e-3 {
                            continue;
                        }
                        let expected = minimise(|z| (z - u).powi(2) / 2.0 + penalty(shrink, lambda, z));
                        let found = prox(shrink, lambda, u, &device);
                        assert!(
                            (found - expected).abs() < 2e-3,
                            "{shrink:?} of strength {lambda} at {u}: {found}, least at {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for device in devices() {
            let u = [1.3f32, -0.9, 2.5, -4.0, 0.62, 0.7];
            let weights = [1.0f32, 2.0, -1.0, 0.5, 3.0, 1.0];
            let cutoff = [0.6f32; 6];
            for shrink in ALL {
                let on = device.clone().autodiff();
                let leaf = vector(&u, &on).require_grad();
                let values = shrink.values(leaf.clone(), vector(&cutoff, &on));
                let grads = (values * vector(&weights, &on)).sum().backward();
                let found: Vec<f32> = leaf.grad(&grads).unwrap().into_data().to_vec().unwrap();
                for (i, found) in found.iter().enumerate() {
                    let at = |off: f32| -> f32 {
                        let moved = vector(&[u[i] + off], &device);
                        shrink
                            .values(moved, vector(&cutoff[..1], &device))
                            .into_data()
                            .to_vec()
                            .unwrap()[0]
                    };
                    let expected = weights[i] * (at(5e-3) - at(-5e-3)) / 1e-2;
                    assert!(
                        (found - expected).abs() < 2e-2 * (1.0 + expected.abs()),
                        "{shrink:?} {i}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_cutoff_of_a_batch_is_its_least_winner_and_moves_with_the_scores_about_it() {
        let device = Device::flex().autodiff();
        let leaf = vector(&[1.0, -1.05, 3.0, -2.0], &device).require_grad();
        let cutoff = Shrink::shared_cutoff(&leaf);
        assert_eq!(cutoff.clone().into_data().to_vec::<f32>().unwrap(), [1.0]);
        let grads = cutoff.sum().backward();
        let gradient: Vec<f32> = leaf.grad(&grads).unwrap().into_data().to_vec().unwrap();
        assert_eq!(gradient, [0.5, -0.5, 0.0, 0.0]);
    }

    #[test]
    fn an_entry_of_zero_stays_one_and_has_a_finite_gradient() {
        let device = Device::flex().autodiff();
        for shrink in ALL {
            for cutoff in [0.0, 0.5] {
                let leaf = vector(&[0.0, 2.0], &device).require_grad();
                let values = shrink.values(leaf.clone(), vector(&[cutoff, cutoff], &device));
                assert_eq!(values.clone().into_data().to_vec::<f32>().unwrap()[0], 0.0);
                let grads = values.sum().backward();
                let gradient: Vec<f32> = leaf.grad(&grads).unwrap().into_data().to_vec().unwrap();
                assert!(gradient.iter().all(|g| g.is_finite()), "{shrink:?}: {gradient:?}");
            }
        }
    }
}
