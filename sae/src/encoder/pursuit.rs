//! Matching pursuit (Mallat and Zhang 1993; as an encoder of sparse autoencoders 2506.03093), and its orthogonal form.
//!
//! `k` times, the latent whose decoder row is nearest to the residual joins the code, and what it explains leaves the
//! residual. Orthogonal pursuit then fits the values of all chosen latents together (least squares), so that none is chosen
//! twice; plain pursuit adds to a value when it chooses a latent again. The code is a constant to the gradient: dictionary
//! learning alternates between coding and moving the decoder (arXiv 2302.12715), where 2506.03093 trains through the
//! steps.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::code::{HostCode, Rows, SparseCode, to_host};
use crate::kernels::{Search, Selection, decode, encode};
use crate::sparsifier::Score;

/// Pivots of the normal equations below this share of a row's length are numerically none: a row is in the span already.
const PIVOT: f64 = 1e-6;

/// A pursuit of so many steps, by positive scores or magnitudes.
#[derive(Clone, Copy, Debug)]
pub struct Pursuit {
    /// What latents are chosen by.
    pub score: Score,
    /// Choices.
    pub k: usize,
    /// Whether values are fitted together.
    pub orthogonal: bool,
}

impl Pursuit {
    /// The code of `x: [batch, d_in]`, without `b_dec`, in the rows of `w_dec: [d_sae, d_in]`; all without a graph. The rows
    /// of `w_enc` have what multiplies a residual: the same rows, of length 1, but where each hook of several has a scale
    /// of its own, which then is in both. `k` entries a row in the order in which they were chosen, of value 0 where nothing was.
    ///
    /// Of a masked token only the coordinates where `visible`, `[batch, d_in]`, is 1 are looked at, 0 elsewhere.
    ///
    /// # Panics
    /// If the device fails while it is read.
    pub fn code(
        self,
        x: Tensor<2>,
        w_enc: Tensor<2>,
        w_dec: Tensor<2>,
        visible: Option<Tensor<2>>,
        search: Search,
    ) -> HostCode {
        let ([batch, _], device) = (x.dims(), x.device());
        let seen = |x: Tensor<2>| match &visible {
            Some(visible) => x * visible.clone(),
            None => x,
        };
        let [d_sae, _] = w_dec.dims();
        let x = seen(x);
        let mut code = HostCode::equal(self.k, vec![0; batch * self.k], vec![0.0; batch * self.k]);
        let mut fits = match self.orthogonal {
            true => Some(Fits::new(&x, [&w_enc, &w_dec], visible.as_ref(), self.k)),
            false => None,
        };
        let mut residual = x.clone();
        for step in 0..self.k {
            let best = Selection::PerToken {
                score: self.score,
                k: 1,
            };
            let zeros = Tensor::zeros([d_sae], &device);
            let chosen = encode(residual.clone(), w_enc.clone(), zeros, best, None, search).main;
            let host = chosen.to_host().expect("a device that works can be read");
            match &mut fits {
                Some(fits) => fits.choose(step, &host, &mut code),
                None => add(step, &host, &mut code),
            }
            if step + 1 == self.k {
                break;
            }
            // What plain pursuit chose leaves the residual; fitted values have all moved.
            residual = match self.orthogonal {
                false => seen(residual - decode(&chosen, w_dec.clone())),
                true => seen(x.clone() - decode(&SparseCode::from_host(code.clone(), &device), w_dec.clone())),
            };
        }
        code
    }
}

/// Adds the choices of a step to the values of plain pursuit.
fn add(step: usize, chosen: &HostCode, code: &mut HostCode) {
    let Rows::Equal { slots, .. } = code.rows else { return };
    for (row, (&latent, &value)) in chosen.indices.iter().zip(&chosen.values).enumerate() {
        let first = row * slots;
        let before = code.indices[first..first + step].iter().position(|&i| i == latent);
        // An empty slot names latent 0, and so may be met before that is chosen.
        match before.filter(|&at| code.values[first + at] != 0.0) {
            Some(at) => code.values[first + at] += value,
            None => (code.indices[first + step], code.values[first + step]) = (latent, value),
        }
    }
}

/// The least squares of every row, a triangle that grows by a row with every choice.
struct Fits {
    d_in: usize,
    k: usize,
    /// `[batch, d_in]`, what is visible of it.
    x: Vec<f32>,
    /// `w_enc` and `w_dec`, `[d_sae, d_in]`.
    matrices: [Vec<f32>; 2],
    visible: Option<Vec<f32>>,
    rows: Vec<Fit>,
}

#[derive(Clone, Default)]
struct Fit {
    chosen: Vec<usize>,
    /// Cholesky's factor of the chosen rows' products, row behind row, `n (n + 1) / 2`.
    factor: Vec<f64>,
    /// The products of the chosen rows with the activation.
    right: Vec<f64>,
    /// Nothing can be added any more.
    done: bool,
}

impl Fits {
    fn new(x: &Tensor<2>, matrices: [&Tensor<2>; 2], visible: Option<&Tensor<2>>, k: usize) -> Self {
        let [batch, d_in] = x.dims();
        let read = |t: &Tensor<2>| to_host::<f32>(t.clone().try_into_data()).expect("a device that works can be read");
        Self {
            d_in,
            k,
            x: read(x),
            matrices: matrices.map(read),
            visible: visible.map(read),
            rows: vec![Fit::default(); batch],
        }
    }

    /// Adds a latent to every row that has use for it, and writes all values anew.
    fn choose(&mut self, step: usize, chosen: &HostCode, code: &mut HostCode) {
        let (d_in, k) = (self.d_in, self.k);
        let (x, matrices, visible) = (&self.x, &self.matrices, self.visible.as_deref());
        let slots = code.indices.par_chunks_mut(k).zip(code.values.par_chunks_mut(k));
        let rows = self.rows.par_iter_mut().zip(slots).enumerate();
        rows.for_each(|(row, (fit, (indices, values)))| {
            let latent = chosen.indices[row];
            // A residual of nothing has nobody near it, and one of rounding errors those that are chosen already.
            fit.done = fit.done || chosen.values[row] == 0.0 || fit.chosen.contains(&(latent as usize));
            if fit.done {
                return;
            }
            let of_row = row * d_in..(row + 1) * d_in;
            let visible = visible.map(|v| &v[of_row.clone()]);
            if !fit.add(latent as usize, &x[of_row], matrices, visible) {
                fit.done = true;
                return;
            }
            indices[step] = latent;
            for (value, found) in values.iter_mut().zip(fit.solve()) {
                *value = found as f32;
            }
        });
    }
}

impl Fit {
    /// Takes another latent in; false if its row is in the span of the others.
    fn add(&mut self, latent: usize, x: &[f32], matrices: &[Vec<f32>; 2], visible: Option<&[f32]>) -> bool {
        let d_in = x.len();
        let row = |of: usize, i: usize| &matrices[of][i * d_in..(i + 1) * d_in];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            match visible {
                Some(visible) => products.zip(visible).map(|(p, v)| p * f64::from(*v)).sum(),
                None => products.sum(),
            }
        };
        let new = row(0, latent);
        let n = self.chosen.len();
        let mut line = Vec::with_capacity(n + 1);
        for (i, &other) in self.chosen.iter().enumerate() {
            let of_i = &self.factor[i * (i + 1) / 2..][..=i];
            let before: f64 = of_i[..i].iter().zip(&line).map(|(a, b): (&f64, &f64)| a * b).sum();
            line.push((dot(new, row(1, other)) - before) / of_i[i]);
        }
        let square = dot(new, row(1, latent));
        let pivot = square - line.iter().map(|v| v * v).sum::<f64>();
        if pivot <= PIVOT * square || !pivot.is_finite() {
            return false;
        }
        line.push(pivot.sqrt());
        self.factor.extend(line);
        self.right.push(dot(new, x));
        self.chosen.push(latent);
        true
    }

    /// The values of all chosen latents.
    fn solve(&self) -> Vec<f64> {
        let n = self.chosen.len();
        let at = |i: usize, j: usize| self.factor[i * (i + 1) / 2 + j];
        let mut z = self.right.clone();
        for i in 0..n {
            let before: f64 = (0..i).map(|j| at(i, j) * z[j]).sum();
            z[i] = (z[i] - before) / at(i, i);
        }
        for i in (0..n).rev() {
            let behind: f64 = (i + 1..n).map(|j| at(j, i) * z[j]).sum();
            z[i] = (z[i] - behind) / at(i, i);
        }
        z
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const D_IN: usize = 12;
    const D_SAE: usize = 30;

    fn matrix(values: &[f32], device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / D_IN, D_IN]), device)
    }

    fn unit_rows(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows: Vec<f32> = (0..n * D_IN).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        for row in rows.chunks_mut(D_IN) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= length);
        }
        rows
    }

    /// The pursuit of one row in f64, plain: every residual anew, the least squares by steepest descent to the end.
    fn twin(pursuit: Pursuit, x: &[f32], w: &[f32], visible: &[f64]) -> Vec<f64> {
        let x: Vec<f64> = x.iter().zip(visible).map(|(x, v)| f64::from(*x) * v).collect();
        let w: Vec<Vec<f64>> = w
            .chunks(D_IN)
            .map(|row| row.iter().zip(visible).map(|(w, v)| f64::from(*w) * v).collect())
            .collect();
        let mut z = vec![0.0; D_SAE];
        let mut support: Vec<usize> = Vec::new();
        let residual = |z: &[f64]| -> Vec<f64> {
            (0..D_IN)
                .map(|j| x[j] - z.iter().zip(&w).map(|(z, w)| z * w[j]).sum::<f64>())
                .collect()
        };
        for _ in 0..pursuit.k {
            let r = residual(&z);
            let scores: Vec<f64> = w.iter().map(|w| w.iter().zip(&r).map(|(a, b)| a * b).sum()).collect();
            let of = |u: f64| if pursuit.score == Score::Magnitude { u.abs() } else { u };
            let best = (0..D_SAE)
                .max_by(|&a, &b| of(scores[a]).total_cmp(&of(scores[b])))
                .unwrap();
            if of(scores[best]) <= 0.0 {
                break;
            }
            if !pursuit.orthogonal {
                z[best] += scores[best];
                continue;
            }
            support.push(best);
            for _ in 0..20_000 {
                let r = residual(&z);
                for &i in &support {
                    z[i] += 0.2 * w[i].iter().zip(&r).map(|(a, b)| a * b).sum::<f64>();
                }
            }
        }
        z
    }

    fn dense(code: &HostCode, row: usize) -> Vec<f64> {
        let mut z = vec![0.0; D_SAE];
        code.row(row).for_each(|(i, v)| z[i] += f64::from(v));
        z
    }

    #[test]
    fn pursuits_agree_with_their_plain_twins_masked_or_not() {
        let device = Device::flex();
        let (w, x) = (unit_rows(1, D_SAE), unit_rows(2, 6));
        let visible: Vec<f32> = (0..6 * D_IN).map(|n| f32::from(n % 5 != 0)).collect();
        for (score, orthogonal, masked) in [
            (Score::Positive, false, false),
            (Score::Magnitude, false, false),
            (Score::Magnitude, false, true),
            (Score::Magnitude, true, false),
            (Score::Magnitude, true, true),
        ] {
            let pursuit = Pursuit {
                score,
                k: 4,
                orthogonal,
            };
            let mask = masked.then(|| matrix(&visible, &device));
            let code = pursuit.code(
                matrix(&x, &device),
                matrix(&w, &device),
                matrix(&w, &device),
                mask,
                Search::Auto,
            );
            for row in 0..6 {
                let seen: Vec<f64> = match masked {
                    true => visible[row * D_IN..][..D_IN].iter().map(|&v| f64::from(v)).collect(),
                    false => vec![1.0; D_IN],
                };
                let expected = twin(pursuit, &x[row * D_IN..][..D_IN], &w, &seen);
                for (i, (a, b)) in dense(&code, row).iter().zip(&expected).enumerate() {
                    assert!(
                        (a - b).abs() < 1e-4,
                        "{pursuit:?} {masked} row {row} latent {i}: {a} {b}"
                    );
                }
                let mut latents: Vec<usize> = code.row(row).map(|e| e.0).collect();
                latents.sort_unstable();
                latents.dedup();
                assert_eq!(latents.len(), code.row(row).count(), "a latent twice in a row");
            }
        }
    }

    #[test]
    fn a_latent_that_is_chosen_again_adds_to_its_value_and_nothing_is_chosen_for_nothing() {
        let device = Device::flex();
        // Two rows at 60 degrees: pursuit goes to and fro between them.
        let mut w = vec![0.0f32; 2 * D_IN];
        (w[0], w[D_IN], w[D_IN + 1]) = (1.0, 0.5, 0.75f32.sqrt());
        let mut x = vec![0.0f32; 2 * D_IN];
        (x[0], x[1]) = (1.0, 1.0);
        for orthogonal in [false, true] {
            let pursuit = Pursuit {
                score: Score::Magnitude,
                k: 2 + 2 * usize::from(!orthogonal),
                orthogonal,
            };
            let code = pursuit.code(
                matrix(&x, &device),
                matrix(&w, &device),
                matrix(&w, &device),
                None,
                Search::Auto,
            );
            assert_eq!(code.row(0).count(), 2);
            assert_eq!(code.row(1).count(), 0);
            let z: Vec<(usize, f32)> = code.row(0).collect();
            // x = (1 - 1 / sqrt 3) w_0 + 2 / sqrt 3 w_1.
            let exact = [1.0 - 3f32.powf(-0.5), 2.0 * 3f32.powf(-0.5)];
            let most = if orthogonal { 1e-5 } else { 0.2 };
            assert!(z.iter().all(|&(i, v)| (v - exact[i]).abs() < most), "{z:?}");
        }
    }
}
