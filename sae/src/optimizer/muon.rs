//! Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps of a matrix whose singular values are all about 1.
//!
//! A step is the gradient's momentum with Nesterov's look ahead, orthogonalised: `U V^T` of its singular value decomposition, by
//! five steps of Newton-Schulz. All directions of the matrix then move alike, those of small gradients too.

use burn::tensor::{Device, Tensor, TensorData};

use super::{Adam, Constraint, Leaf, Moments, without_rows};
use crate::code::to_host;
use crate::error::{Error, Result};

/// Of the quintic `a x + b x^3 + c x^5`, as chosen by Jordan et al.: it pulls singular values from near 0 to between .7 and 1.2
/// in five steps, the steepest that stays bounded.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Steps of it.
const STEPS: usize = 5;
/// Root mean square of a step of rate 1: that of Adam, as in arXiv 2502.16982, so that one learning rate serves both.
const RMS: f64 = 0.2;

/// The state of a matrix that Muon updates.
#[derive(Debug)]
pub struct Muon {
    /// Decay of the sum of gradients.
    momentum: f64,
    /// That sum, of the matrix's shape.
    sum: Tensor<2>,
}

impl Muon {
    /// The state before the first step.
    pub fn new(momentum: f64, shape: [usize; 2], device: &Device) -> Self {
        let sum = Tensor::zeros(shape, &device.clone().inner());
        Self { momentum, sum }
    }

    /// The state as [`read`](Self::read) gave it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the length is not that of `shape`.
    pub fn from_host(momentum: f64, shape: [usize; 2], sum: Vec<f32>, device: &Device) -> Result<Self> {
        if sum.len() != shape[0] * shape[1] {
            return Err(Error::Invalid(format!(
                "Muon's momentum has {} elements, but its matrix has shape {shape:?}",
                sum.len()
            )));
        }
        let sum = Tensor::from_data(TensorData::new(sum, shape), &device.clone().inner());
        Ok(Self { momentum, sum })
    }

    /// The momentum, exactly, row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the device failed.
    pub fn read(&self) -> Result<Vec<f32>> {
        to_host(self.sum.clone().try_into_data())
    }

    /// The momentum, `[rows, width]`.
    pub(crate) fn tensor(&self) -> &Tensor<2> {
        &self.sum
    }

    /// One step of `param` down `grad` times `grad_scale`: `p -= lr * 0.2 sqrt(max(rows, width)) * orthogonalised(..)`, a step with
    /// the root mean square 0.2 that Adam's have (arXiv 2502.16982).
    ///
    /// The result is where `param` was, as that of [`Adam::step`] is. Rows of length 1 move only across themselves
    /// but for what orthogonalising mixes in, and are brought back to it.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn step(
        &mut self,
        param: Tensor<2>,
        grad: Tensor<2>,
        lr: f64,
        grad_scale: f64,
        constraint: Constraint,
    ) -> Tensor<2> {
        assert_eq!(param.dims(), grad.dims(), "a gradient has the shape of its parameter");
        let leaf = Leaf::of(&param);
        let [rows, width] = param.dims();
        let param = param.no_grad();
        let mut grad = grad.no_grad() * grad_scale;
        if constraint == Constraint::UnitRows {
            let along = (grad.clone() * param.clone()).sum_dim(1);
            grad = grad - param.clone() * along;
        }
        self.sum = self.sum.extract() * self.momentum + grad.clone();
        let ahead = grad + self.sum.clone() * self.momentum;
        let size = lr * RMS * (rows.max(width) as f64).sqrt();
        let mut param = param - orthogonalised(ahead) * size;
        if constraint == Constraint::UnitRows {
            let lengths = (param.clone() * param.clone()).sum_dim(1).sqrt();
            let none = lengths.clone().equal_elem(0.0);
            param = param / lengths.mask_fill(none, 1.0);
        }
        leaf.put_back(param)
    }
}

/// About `U V^T` of `matrix = U S V^T`: singular values between .7 and 1.2 where they were at least a thousandth of the matrix's
/// norm. Zeros for zeros. Products are of the smaller side.
pub fn orthogonalised(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, width] = matrix.dims();
    let tall = rows > width;
    let x = if tall { matrix.transpose() } else { matrix };
    let norm = (x.clone() * x.clone()).sum().sqrt().clamp_min(1e-30);
    let mut x = x / norm.unsqueeze::<2>();
    let [a, b, c] = QUINTIC;
    for _ in 0..STEPS {
        let gram = x.clone().matmul(x.clone().transpose());
        let of_gram = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + of_gram.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

/// The state of a matrix, of whichever optimiser updates it.
#[derive(Debug)]
pub enum MatrixState {
    /// Adam's moments.
    Adam(Moments<2>),
    /// Muon's momentum.
    Muon(Muon),
}

impl MatrixState {
    /// Begins anew for `rows`: their moments, or momentum, are 0.
    pub fn forget(&mut self, rows: &[i32]) {
        match self {
            Self::Adam(moments) => moments.forget(rows),
            Self::Muon(muon) => muon.sum = without_rows(muon.sum.extract(), rows),
        }
    }

    /// One step by its optimiser: [`Adam::step`] with `adam`, or [`Muon::step`].
    pub fn step(
        &mut self,
        adam: &Adam,
        param: Tensor<2>,
        grad: Tensor<2>,
        lr: f64,
        grad_scale: f64,
        constraint: Constraint,
    ) -> Tensor<2> {
        match self {
            Self::Adam(moments) => adam.step(param, grad, moments, lr, grad_scale, constraint),
            Self::Muon(muon) => muon.step(param, grad, lr, grad_scale, constraint),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kernels::tests::{devices, uniform};

    fn matrix(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
        let values = uniform(&mut ChaCha8Rng::seed_from_u64(seed), shape[0] * shape[1]);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn read(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().to_vec().unwrap()
    }

    /// `v^T G v` of the Gram matrix of the smaller side, for random directions `v` of length 1 and for each axis: squares of
    /// weighted means of singular values.
    fn squares(x: &Tensor<2>) -> Vec<f64> {
        let [rows, width] = x.dims();
        let x = if rows > width { x.clone().transpose() } else { x.clone() };
        let small = rows.min(width);
        let directions = read(matrix([20, small], 99, &x.device()));
        let axes = (0..small * small).map(|i| if i % (small + 1) == 0 { 1.0 } else { 0.0 });
        let all: Vec<f32> = directions.into_iter().chain(axes).collect();
        let gram = read(x.clone().matmul(x.transpose()));
        all.chunks(small)
            .map(|v| {
                let gv = gram
                    .chunks(small)
                    .map(|g| g.iter().zip(v).map(|(g, v)| f64::from(g * v)).sum::<f64>());
                let form: f64 = gv.zip(v).map(|(gv, v)| gv * f64::from(*v)).sum();
                form / v.iter().map(|v| f64::from(v * v)).sum::<f64>()
            })
            .collect()
    }

    #[test]
    fn singular_values_come_to_about_one_on_the_smaller_side_whatever_they_were() {
        for device in devices() {
            for shape in [[40, 12], [12, 40]] {
                // Directions of very different sizes.
                let sizes: Vec<f32> = (0..12).map(|i| 10f32.powi(-(i % 3))).collect();
                let sizes = Tensor::<1>::from_data(TensorData::new(sizes, [12]), &device);
                let sizes: Tensor<2> = match shape[0] == 12 {
                    true => sizes.reshape([12, 1]),
                    false => sizes.reshape([1, 12]),
                };
                let before = matrix(shape, 3, &device) * sizes;
                let spread = |squares: Vec<f64>| {
                    let least = squares.iter().copied().fold(f64::INFINITY, f64::min);
                    (least, squares.into_iter().fold(0.0, f64::max))
                };
                let (least, most) = spread(squares(&before));
                assert!(most / least > 1000.0, "{least} {most}");
                // Between .6 and 1.3, squared.
                let (least, most) = spread(squares(&orthogonalised(before)));
                assert!(least > 0.36 && most < 1.69, "{shape:?}: {least} {most}");
            }
        }
        let zeros = orthogonalised(Tensor::zeros([3, 5], &Device::flex()));
        assert_eq!(read(zeros), [0.0; 15]);
    }

    #[test]
    fn an_orthogonal_matrix_keeps_its_directions() {
        let device = Device::flex();
        let sign = |i: usize| if i.is_multiple_of(4) { 3.0 } else { -3.0 };
        let signs: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { sign(i) } else { 0.0 }).collect();
        let matrix = Tensor::<2>::from_data(TensorData::new(signs.clone(), [5, 5]), &device);
        for (found, before) in read(orthogonalised(matrix)).into_iter().zip(signs) {
            assert!(before != 0.0 || found.abs() < 1e-6, "{found} {before}");
            assert!(
                before == 0.0 || (0.6..1.3).contains(&(found / before * 3.0)),
                "{found} {before}"
            );
        }
    }

    #[test]
    fn a_step_has_the_root_mean_square_of_adams_and_follows_momentum_with_a_look_ahead() {
        let device = Device::flex();
        let shape = [48, 16];
        let (first, second) = (matrix(shape, 1, &device), matrix(shape, 2, &device));
        let mut muon = Muon::new(0.9, shape, &device);
        let start = matrix(shape, 5, &device);
        let param = muon.step(start.clone(), first.clone(), 0.01, 0.5, Constraint::Free);
        let moved = read(start.clone() - param.clone());
        let rms = (moved.iter().map(|v| v * v).sum::<f32>() / moved.len() as f32).sqrt();
        assert!((0.0014..0.0025).contains(&rms), "{rms}");
        let after = muon.step(param.clone(), second.clone(), 0.01, 1.0, Constraint::Free);
        let sum = first * 0.45 + second.clone();
        let by_hand = param - orthogonalised(second + sum.clone() * 0.9) * (0.01 * 0.2 * 48f64.sqrt());
        for (found, by_hand) in read(after).into_iter().zip(read(by_hand)) {
            assert!((found - by_hand).abs() < 1e-6, "{found} {by_hand}");
        }
        for (found, by_hand) in muon.read().unwrap().into_iter().zip(read(sum)) {
            assert!((found - by_hand).abs() < 1e-6, "{found} {by_hand}");
        }
        let again = Muon::from_host(0.9, shape, muon.read().unwrap(), &device).unwrap();
        assert_eq!(again.read().unwrap(), muon.read().unwrap());
        assert!(Muon::from_host(0.9, shape, vec![0.0; 3], &device).is_err());
    }

    #[test]
    fn rows_stay_at_length_one() {
        let device = Device::flex();
        let start = matrix([30, 8], 7, &device);
        let lengths = (start.clone() * start.clone()).sum_dim(1).sqrt();
        let mut muon = Muon::new(0.95, [30, 8], &device);
        let mut param = start / lengths;
        for seed in 0..4 {
            param = muon.step(param, matrix([30, 8], seed, &device), 0.1, 1.0, Constraint::UnitRows);
        }
        for row in read(param).chunks(8) {
            assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
