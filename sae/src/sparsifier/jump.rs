//! Learning thresholds (JumpReLU, arXiv 2407.14435): `z = u H(u - theta)`.
//!
//! The step `H` has no slope anywhere, so no gradient reaches `theta` but an estimated one: a rectangle of width
//! `bandwidth` stands for the derivative of the step, which gives `-theta / bandwidth` for the value and
//! `-1 / bandwidth` for the step, where `|u - theta| < bandwidth / 2`, and 0 elsewhere. Only entries in that band learn
//! anything, those below the threshold too; so in training the code keeps everybody above `theta - bandwidth / 2`, and
//! those that do not fire have value 0. Pre-activations get the gradient of what fired, and none from the step.
//!
//! The threshold itself is the parameter, kept at 0 or more, and not its logarithm: Adam moves a parameter by about the
//! learning rate a step, and a logarithm would hold a small threshold where it starts.

use burn::tensor::{Int, Tensor};

/// The entries of a code that are above their thresholds or near them.
#[derive(Clone, Debug)]
pub struct Near {
    /// Pre-activations. `[entries]`
    pub pre: Tensor<1>,
    /// The thresholds of their latents. `[entries]`
    pub threshold: Tensor<1>,
    /// Width of the rectangle.
    pub bandwidth: f64,
}

impl Near {
    /// `indices`, `pre`: a code of everybody above [`Near::bars`]; `threshold`: `[d_sae]`.
    pub fn new(indices: Tensor<1, Int>, pre: Tensor<1>, threshold: Tensor<1>, bandwidth: f64) -> Self {
        Self {
            threshold: threshold.select(0, indices),
            pre,
            bandwidth,
        }
    }

    /// What a pre-activation has to be above for its threshold to learn from it, `[d_sae]`.
    pub fn bars(threshold: &Tensor<1>, bandwidth: f64) -> Tensor<1> {
        threshold.clone().no_grad() - bandwidth / 2.0
    }

    /// `u H(u - theta)`, `[entries]`.
    pub fn values(&self) -> Tensor<1> {
        let slope = self.threshold.clone().detach() * self.rectangle();
        self.pre.clone() * self.step() - self.pass_back(slope)
    }

    /// `H(u - theta)`: 1 for who fires, `[entries]`.
    pub fn fires(&self) -> Tensor<1> {
        self.step() - self.pass_back(self.rectangle())
    }

    fn step(&self) -> Tensor<1> {
        self.pre.clone().greater(self.threshold.clone()).float()
    }

    /// `1 / bandwidth` within the band, 0 outside. No gradient flows through it.
    fn rectangle(&self) -> Tensor<1> {
        let off = (self.pre.clone() - self.threshold.clone()).detach().abs() / self.bandwidth;
        off.lower_elem(0.5).float() / self.bandwidth
    }

    /// 0, whose gradient with respect to the thresholds is `slope`.
    fn pass_back(&self, slope: Tensor<1>) -> Tensor<1> {
        slope * (self.threshold.clone() - self.threshold.clone().detach())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::kernels::tests::devices;

    fn near(device: &Device) -> (Near, Tensor<1>, Tensor<1>) {
        let pre = Tensor::<1>::from_floats([0.5, 0.30, 0.15, -0.1], device).require_grad();
        let threshold = Tensor::<1>::from_floats([0.2, 0.25], device).require_grad();
        let indices = Tensor::<1, Int>::from_ints([0, 1, 0, 1], device);
        (Near::new(indices, pre.clone(), threshold.clone(), 0.2), pre, threshold)
    }

    fn read(t: Tensor<1>) -> Vec<f32> {
        t.into_data().to_vec().unwrap()
    }

    fn close(found: Vec<f32>, expected: &[f32]) {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(found.iter().zip(expected).all(near), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn values_and_their_gradients_are_the_papers_by_hand() {
        for device in devices() {
            let (near, pre, threshold) = near(&device.autodiff());
            assert_eq!(read(near.values()), [0.5, 0.30, 0.0, 0.0]);
            let grads = (near.values() * Tensor::from_floats([1.0, 2.0, 3.0, 4.0], &near.pre.device()))
                .sum()
                .backward();
            close(read(pre.grad(&grads).unwrap()), &[1.0, 2.0, 0.0, 0.0]);
            // In the band are the second (0.05 off) and the third (0.05 below): -theta / 0.2 times 2 and 3.
            close(
                read(threshold.grad(&grads).unwrap()),
                &[-0.2 / 0.2 * 3.0, -0.25 / 0.2 * 2.0],
            );
        }
    }

    #[test]
    fn the_step_counts_who_fires_and_its_gradient_reaches_thresholds_alone() {
        for device in devices() {
            let (near, pre, threshold) = near(&device.autodiff());
            assert_eq!(read(near.fires()), [1.0, 1.0, 0.0, 0.0]);
            let grads = near.fires().sum().backward();
            assert!(pre.grad(&grads).is_none_or(|g| read(g).iter().all(|g| *g == 0.0)));
            close(read(threshold.grad(&grads).unwrap()), &[-5.0, -5.0]);
        }
    }
}
