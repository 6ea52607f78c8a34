//! Adam (arXiv 1412.6980) for parameters that are updated in one pass, with a decoder whose rows keep norm 1.
//!
//! The one decision: **the constraint is part of the step.** A decoder's row is projected, updated and renormalised
//! while it is in the cache, instead of in three passes over the largest matrix there is.
//!
//! State is two tensors a parameter and a count, read and written exactly, so that a run resumes to the same bytes.

mod muon;

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

pub use self::muon::{MatrixState, Muon, orthogonalised};
use crate::code::to_host;
use crate::error::{Error, Result};
use crate::kernels::ops::OptimizerOps;
use crate::kernels::{AdamStep, sum_of_squares};

/// The constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adam {
    /// Decay of the mean of gradients.
    pub beta_1: f64,
    /// Decay of the mean of their squares.
    pub beta_2: f64,
    /// Keeps the division finite.
    pub eps: f64,
}

impl Default for Adam {
    /// Those of the paper.
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            eps: 1e-8,
        }
    }
}

/// What has to hold of a parameter after every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Nothing.
    Free,
    /// Every row has norm 1, and moves only across itself: the component of the gradient along the row is removed.
    /// Rows must have norm 1 before, too. A row of zeros stays one.
    UnitRows,
}

/// The state of one parameter: moments of its shape, and the steps taken.
#[derive(Debug)]
pub struct Moments<const D: usize> {
    mean: Tensor<D>,
    square: Tensor<D>,
    steps: u64,
}

impl<const D: usize> Moments<D> {
    /// The state before the first step.
    pub fn new(shape: [usize; D], device: &Device) -> Self {
        let device = device.clone().inner();
        Self {
            mean: Tensor::zeros(shape, &device),
            square: Tensor::zeros(shape, &device),
            steps: 0,
        }
    }

    /// The state as [`read`](Self::read) gave it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a length is not that of `shape`.
    pub fn from_host(shape: [usize; D], mean: Vec<f32>, square: Vec<f32>, steps: u64, device: &Device) -> Result<Self> {
        let wanted: usize = shape.iter().product();
        for (name, found) in [("mean", mean.len()), ("square", square.len())] {
            if found != wanted {
                return Err(Error::Invalid(format!(
                    "the {name} of Adam's gradients has {found} elements, but a parameter of shape {shape:?} has {wanted}"
                )));
            }
        }
        let device = device.clone().inner();
        Ok(Self {
            mean: Tensor::from_data(TensorData::new(mean, shape), &device),
            square: Tensor::from_data(TensorData::new(square, shape), &device),
            steps,
        })
    }

    /// Mean and mean square of the gradients, exactly, row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the device failed.
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((
            to_host(self.mean.clone().try_into_data())?,
            to_host(self.square.clone().try_into_data())?,
        ))
    }

    /// Mean and mean square of the gradients.
    pub(crate) fn tensors(&self) -> [&Tensor<D>; 2] {
        [&self.mean, &self.square]
    }

    /// Begins anew for `rows`, those of latents or their elements: their moments are 0, and the count of steps stays.
    pub fn forget(&mut self, rows: &[i32]) {
        self.mean = without_rows(self.mean.extract(), rows);
        self.square = without_rows(self.square.extract(), rows);
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

/// `tensor` with zeros in `rows`.
fn without_rows<const D: usize>(tensor: Tensor<D>, rows: &[i32]) -> Tensor<D> {
    let n = tensor.dims()[0];
    let mut kept = vec![1.0f32; n];
    rows.iter().for_each(|&row| kept[row as usize] = 0.0);
    let mut shape = [1; D];
    shape[0] = n;
    let kept = Tensor::<D>::from_data(TensorData::new(kept, shape), &tensor.device());
    tensor * kept
}

impl Adam {
    /// One step of `param` down `grad`: `p -= lr * m' / (sqrt(v') + eps)` with bias-corrected moments.
    ///
    /// `param` and `grad` may be on an autodiff device or not; the result is where `param` was, a fresh leaf that
    /// requires a gradient if `param` did. `grad_scale` multiplies the gradient first (clipping; 1 for none).
    ///
    /// Takes `param` by value to update it in place. If another tensor still shares its buffer (a clone, or a graph
    /// that was not consumed), that tensor keeps the old values at the price of a copy.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn step<const D: usize>(
        &self,
        param: Tensor<D>,
        grad: Tensor<D>,
        moments: &mut Moments<D>,
        lr: f64,
        grad_scale: f64,
        constraint: Constraint,
    ) -> Tensor<D> {
        assert_eq!(param.dims(), grad.dims(), "a gradient has the shape of its parameter");
        assert_eq!(
            param.dims(),
            moments.mean.dims(),
            "moments have the shape of their parameter"
        );
        assert!(constraint == Constraint::Free || D == 2, "only a matrix has rows");
        moments.steps += 1;
        let t = moments.steps as f64;
        let step = AdamStep {
            beta_1: self.beta_1 as f32,
            beta_2: self.beta_2 as f32,
            eps: self.eps as f32,
            rate: (lr / (1.0 - self.beta_1.powf(t))) as f32,
            root_correction: (1.0 / (1.0 - self.beta_2.powf(t)).sqrt()) as f32,
            grad_scale: grad_scale as f32,
            unit_rows: constraint == Constraint::UnitRows,
        };
        let leaf = Leaf::of(&param);
        let (param, mean, square) = Dispatch::adam_step(
            param.no_grad().into_dispatch(),
            grad.no_grad().into_dispatch(),
            moments.mean.extract().into_dispatch(),
            moments.square.extract().into_dispatch(),
            step,
        );
        moments.mean = Tensor::from_dispatch(mean);
        moments.square = Tensor::from_dispatch(square);
        leaf.put_back(Tensor::from_dispatch(param))
    }
}

/// Where a parameter was, so that its new values can be put there.
struct Leaf {
    autodiff: bool,
    tracked: bool,
}

impl Leaf {
    fn of<const D: usize>(param: &Tensor<D>) -> Self {
        Self {
            autodiff: param.device().is_autodiff(),
            tracked: param.is_require_grad(),
        }
    }

    /// `param`, on a plain device, as what the parameter was: a tensor there, or one with or without a gradient.
    fn put_back<const D: usize>(&self, param: Tensor<D>) -> Tensor<D> {
        match (self.autodiff, self.tracked) {
            (false, _) => param,
            (true, false) => Tensor::from_inner(param),
            (true, true) => Tensor::from_inner(param).require_grad(),
        }
    }
}

/// The sum of the squares of a tensor: add those of all gradients and take the root for their global norm.
///
/// On the CPU in f64 and in one order; elsewhere as the device sums, in f32. Waits for the device.
///
/// # Errors
/// [`Error::Invalid`] when the device failed.
pub fn squared_norm<const D: usize>(tensor: &Tensor<D>) -> Result<f64> {
    let tensor = tensor.clone().no_grad();
    match tensor.clone().try_into_primitive::<burn::backend::Flex>() {
        Ok(on_cpu) => {
            let on_cpu = on_cpu.to_contiguous();
            Ok(sum_of_squares(on_cpu.storage()))
        }
        Err(_) => {
            let squared: Vec<f32> = to_host((tensor.clone() * tensor).sum().try_into_data())?;
            Ok(f64::from(squared[0]))
        }
    }
}

/// What to multiply gradients by so that their global norm is at most `max_norm` (arXiv 1211.5063).
///
/// `norm`: of all gradients together, finite.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    if norm > max_norm { max_norm / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kernels::tests::{devices, uniform};

    fn unit_rows(values: &mut [f32], width: usize) {
        for row in values.chunks_mut(width) {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
    }

    fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().to_vec().unwrap()
    }

    /// Adam as the paper writes it, in f64, element by element.
    struct Twin {
        p: Vec<f64>,
        m: Vec<f64>,
        v: Vec<f64>,
        t: i32,
    }

    impl Twin {
        fn new(p: &[f32]) -> Self {
            Self {
                p: p.iter().map(|&p| f64::from(p)).collect(),
                m: vec![0.0; p.len()],
                v: vec![0.0; p.len()],
                t: 0,
            }
        }

        fn step(&mut self, adam: &Adam, grad: &[f32], lr: f64, scale: f64, rows: Option<usize>) {
            self.t += 1;
            let mut grad: Vec<f64> = grad.iter().map(|&g| f64::from(g) * scale).collect();
            if let Some(width) = rows {
                for (g, p) in grad.chunks_mut(width).zip(self.p.chunks(width)) {
                    let along: f64 = g.iter().zip(p).map(|(g, p)| g * p).sum();
                    g.iter_mut().zip(p).for_each(|(g, p)| *g -= along * p);
                }
            }
            for (i, g) in grad.iter().enumerate() {
                self.m[i] = adam.beta_1 * self.m[i] + (1.0 - adam.beta_1) * g;
                self.v[i] = adam.beta_2 * self.v[i] + (1.0 - adam.beta_2) * g * g;
                let m = self.m[i] / (1.0 - adam.beta_1.powi(self.t));
                let v = self.v[i] / (1.0 - adam.beta_2.powi(self.t));
                self.p[i] -= lr * m / (v.sqrt() + adam.eps);
            }
            for row in self.p.chunks_mut(rows.unwrap_or(usize::MAX)).filter(|_| rows.is_some()) {
                let norm = row.iter().map(|p| p * p).sum::<f64>().sqrt();
                row.iter_mut().for_each(|p| *p /= norm);
            }
        }
    }

    #[test]
    fn steps_equal_the_papers_formula_and_keep_rows_at_unit_norm() {
        let adam = Adam {
            beta_2: 0.99,
            ..Adam::default()
        };
        for (device, constraint) in devices()
            .into_iter()
            .flat_map(|d| [(d.clone(), Constraint::Free), (d, Constraint::UnitRows)])
        {
            let mut rng = ChaCha8Rng::seed_from_u64(4);
            let shape = [37, 75];
            let mut start = uniform(&mut rng, 37 * 75);
            unit_rows(&mut start, 75);
            let mut twin = Twin::new(&start);
            let mut param = Tensor::<2>::from_data(TensorData::new(start, shape), &device);
            let mut moments = Moments::new(shape, &device);
            for _ in 0..5 {
                let grad = uniform(&mut rng, 37 * 75);
                let rows = (constraint == Constraint::UnitRows).then_some(75);
                twin.step(&adam, &grad, 0.01, 0.5, rows);
                let grad = Tensor::from_data(TensorData::new(grad, shape), &device);
                param = adam.step(param, grad, &mut moments, 0.01, 0.5, constraint);
            }
            let found = read(param);
            for (a, b) in found.iter().zip(&twin.p) {
                assert!((f64::from(*a) - b).abs() < 1e-5, "{a} and {b}");
            }
            if constraint == Constraint::UnitRows {
                for row in found.chunks(75) {
                    let norm = row.iter().map(|p| p * p).sum::<f32>().sqrt();
                    assert!((norm - 1.0).abs() < 1e-6, "{norm}");
                }
            }
            assert_eq!(moments.steps(), 5);
        }
    }

    #[test]
    fn state_that_was_written_and_read_goes_on_to_the_same_bytes() {
        let device = Device::flex();
        let adam = Adam::default();
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut grad = || Tensor::<1>::from_data(TensorData::new(uniform(&mut rng, 100), [100]), &device);
        let mut moments = Moments::new([100], &device);
        let param = adam.step(
            Tensor::ones([100], &device),
            grad(),
            &mut moments,
            0.1,
            1.0,
            Constraint::Free,
        );
        let (mean, square) = moments.read().unwrap();
        let mut resumed = Moments::from_host([100], mean, square, moments.steps(), &device).unwrap();
        let grad = grad();
        let copy = Tensor::from_data(param.clone().into_data(), &device);
        let went_on = adam.step(param, grad.clone(), &mut moments, 0.1, 1.0, Constraint::Free);
        let resumed_param = adam.step(copy, grad, &mut resumed, 0.1, 1.0, Constraint::Free);
        assert_eq!(read(went_on), read(resumed_param));
        assert_eq!(moments.read().unwrap(), resumed.read().unwrap());
        assert!(Moments::<1>::from_host([100], vec![0.0; 99], vec![0.0; 100], 1, &device).is_err());
    }

    #[test]
    fn a_parameter_nobody_else_holds_is_updated_where_it_lies() {
        let device = Device::flex().autodiff();
        let mut moments = Moments::new([64, 8], &device);
        let mut param = Tensor::<2>::ones([64, 8], &device).require_grad();
        let address = |t: &Tensor<2>| {
            let flex = t.clone().no_grad().try_into_primitive::<burn::backend::Flex>().unwrap();
            flex.storage::<f32>().as_ptr() as usize
        };
        let before = address(&param);
        for _ in 0..2 {
            let loss = (param.clone() * param.clone()).sum();
            let mut grads = loss.backward();
            let grad = param.grad_remove(&mut grads).unwrap();
            drop((loss, grads));
            param = Adam::default().step(param, grad, &mut moments, 0.1, 1.0, Constraint::Free);
            assert_eq!(address(&param), before);
            assert!(param.is_require_grad());
        }
    }

    #[test]
    fn a_clone_of_the_parameter_keeps_its_values() {
        let device = Device::flex();
        let param = Tensor::<1>::ones([8], &device);
        let clone = param.clone();
        let mut moments = Moments::new([8], &device);
        let after = Adam::default().step(
            param,
            Tensor::ones([8], &device),
            &mut moments,
            0.1,
            1.0,
            Constraint::Free,
        );
        assert_eq!(read(clone), [1.0; 8]);
        assert!(read(after).iter().all(|p| (p - 0.9).abs() < 1e-5));
    }

    #[test]
    fn clipping_brings_the_global_norm_down_to_the_limit() {
        for device in devices() {
            let a = Tensor::<1>::from_floats([3.0, 0.0], &device);
            let b = Tensor::<2>::from_floats([[0.0, -4.0]], &device);
            let squared = squared_norm(&a).unwrap() + squared_norm(&b).unwrap();
            assert_eq!(squared, 25.0);
            assert_eq!(clip_scale(squared.sqrt(), 1.0), 0.2);
            assert_eq!(clip_scale(squared.sqrt(), 6.0), 1.0);
        }
    }
}
