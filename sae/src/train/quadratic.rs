//! The trainer of bilinear autoencoders: what the loop carries from step to step, and what a step does.

use burn::tensor::{Device, Tensor};

use super::TrainPlan;
use super::schedule::Schedule;
use super::start::random_directions;
use super::trainer::{Step, gradient, usable};
use crate::bilinear::Bilinear;
use crate::code::to_host;
use crate::error::Result;
use crate::optimizer::{Adam, Constraint, Moments};

/// The matrices are drawn with seeds of their own.
const SEEDS: [u64; 3] = [0x6c65_6674, 0x7269_6768, 0x6d69_7865];

/// A bilinear autoencoder in training.
pub struct Quadratic {
    /// On the autodiff device, requiring gradients.
    pub bilinear: Bilinear,
    pub left: Moments<2>,
    pub right: Moments<2>,
    /// Where there are clusters.
    pub mix: Option<Moments<2>>,
    adam: Adam,
    schedule: Schedule,
    /// Weight of the Hoyer density, and the steps over which it rises.
    hoyer: (f64, u64),
    /// Steps taken.
    pub done: u64,
}

impl Quadratic {
    /// The state before the first step: rows of length 1, uniform over the directions.
    pub fn start(plan: &TrainPlan, device: &Device) -> Self {
        let (d_in, d_sae, config) = (plan.d_in(), plan.d_sae, plan.bilinear());
        let matrix = |rows: usize, width: usize, seed: u64| -> Tensor<2> {
            let values = random_directions(rows, width, plan.config.train.seed ^ seed);
            Tensor::from_data(burn::tensor::TensorData::new(values, [rows, width]), device)
        };
        let [left, right, mix] = SEEDS;
        let bilinear = Bilinear {
            left: matrix(d_sae, d_in, left),
            right: matrix(d_sae, d_in, right),
            mix: config.clusters.map(|clusters| matrix(clusters, d_sae, mix)),
            form: config.form,
        };
        let rows = || Moments::new([d_sae, d_in], device);
        let of_mix = config.clusters.map(|clusters| Moments::new([clusters, d_sae], device));
        Self::new(plan, bilinear, rows(), rows(), of_mix, 0)
    }

    /// A state of the loop of `plan` from its parts. `bilinear` is on a plain device.
    pub fn new(
        plan: &TrainPlan,
        bilinear: Bilinear,
        left: Moments<2>,
        right: Moments<2>,
        mix: Option<Moments<2>>,
        done: u64,
    ) -> Self {
        let config = plan.bilinear();
        let lift = |t: Tensor<2>| Tensor::from_inner(t).require_grad();
        Self {
            bilinear: Bilinear {
                left: lift(bilinear.left),
                right: lift(bilinear.right),
                mix: bilinear.mix.map(lift),
                form: bilinear.form,
            },
            left,
            right,
            mix,
            adam: plan.adam(),
            schedule: plan.schedule,
            hoyer: (config.hoyer, config.hoyer_steps),
            done,
        }
    }

    /// The autoencoder as it is now, without gradients.
    pub fn inside(&self) -> Bilinear {
        Bilinear {
            left: self.bilinear.left.clone().no_grad(),
            right: self.bilinear.right.clone().no_grad(),
            mix: self.bilinear.mix.as_ref().map(|mix| mix.clone().no_grad()),
            form: self.bilinear.form,
        }
    }

    /// One step on `x: [batch, d_in]`, raw activations on the plain device.
    ///
    /// # Errors
    /// When the device failed.
    pub fn step(&mut self, x: Tensor<2>) -> Result<Step> {
        let of = &self.bilinear;
        let x = Tensor::from_inner(Bilinear::normalised(x));
        let latents = of.latents(x.clone());
        let error = of.errors(x, latents.clone(), of.form.orders()).mean();
        let density = hoyer_density(latents);
        let (weight, steps) = self.hoyer;
        let weight = weight * ((self.done + 1) as f64 / steps.max(1) as f64).min(1.0);
        let total = error.clone() + density.clone() * weight;
        let number = |t: &Tensor<1>| -> Result<f32> { Ok(to_host::<f32>(t.clone().try_into_data())?[0]) };
        let (loss, parts) = (
            number(&total)?,
            [("product", number(&error)?), ("hoyer", number(&density)?)],
        );
        drop((error, density));
        let lr = self.schedule.at(self.done);
        if usable(loss) {
            self.update(total, lr);
            self.done += 1;
        }
        Ok(Step {
            number: self.done + u64::from(!usable(loss)),
            lr,
            loss,
            gradient_norm: None,
            // Of products of length 1.
            error: parts[0].1,
            parts: parts.to_vec(),
            // Codes are dense.
            l0: self.bilinear.d_sae() as f32,
            dead_share: 0.0,
            resampled: None,
        })
    }

    /// Adam on every matrix, in place. Consumes the loss's graph first, so that parameters are not shared any more.
    fn update(&mut self, loss: Tensor<1>, lr: f64) {
        let (of, adam, free) = (&mut self.bilinear, self.adam, Constraint::Free);
        let mut grads = loss.backward();
        drop(loss);
        let (left, right) = (gradient(&of.left, &mut grads), gradient(&of.right, &mut grads));
        let mix = of.mix.as_ref().map(|mix| gradient(mix, &mut grads));
        drop(grads);
        of.left = adam.step(of.left.extract(), left, &mut self.left, lr, 1.0, free);
        of.right = adam.step(of.right.extract(), right, &mut self.right, lr, 1.0, free);
        let stepped = of.mix.take().zip(mix).zip(self.mix.as_mut());
        of.mix = stepped.map(|((mix, gradient), moments)| adam.step(mix, gradient, moments, lr, 1.0, free));
    }
}

/// How evenly a latent is spread over the batch, mean over latents: `(|f|_1 / |f|_2 - 1) / (sqrt(batch) - 1)`, 0 where it is
/// there for one row alone and 1 where it is the same for all. `latents`: `[batch, d_sae]`.
fn hoyer_density(latents: Tensor<2>) -> Tensor<1> {
    let [batch, _] = latents.dims();
    let sums = latents.clone().abs().sum_dim(0);
    // A latent that nothing moves has no slope to divide by.
    let lengths = (latents.clone() * latents).sum_dim(0).clamp_min(1e-20).sqrt();
    let most = ((batch as f64).sqrt() - 1.0).max(f64::EPSILON);
    ((sums / lengths - 1.0) / most).mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hoyer_density_is_nothing_for_a_spike_and_one_for_a_constant() {
        let latents = |rows: [[f32; 1]; 4]| Tensor::<2>::from_floats(rows, &Device::flex());
        let of = |rows| hoyer_density(latents(rows)).into_data().to_vec::<f32>().unwrap()[0];
        assert!(of([[0.0], [-3.0], [0.0], [0.0]]).abs() < 1e-6);
        assert!((of([[2.0], [-2.0], [2.0], [2.0]]) - 1.0).abs() < 1e-6);
        // (3 / sqrt(5) - 1) / (2 - 1).
        assert!((of([[2.0], [1.0], [0.0], [0.0]]) - (3.0 / 5.0f32.sqrt() - 1.0)).abs() < 1e-6);
        assert!(of([[0.0]; 4]).is_finite());
    }
}
