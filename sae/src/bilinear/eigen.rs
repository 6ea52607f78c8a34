//! The eigenvectors of a symmetric matrix, by Jacobi's rotations: each makes one entry off the diagonal zero, and a few
//! sweeps over all of them leave nothing but the diagonal. Plain, exact to the last bits, and fast enough for one form.

/// Sweeps after which it has converged for any matrix of doubles: convergence is quadratic in the end.
const SWEEPS: usize = 60;

/// Eigenvalues with their vectors, those of the largest magnitude first.
#[derive(Clone, Debug, PartialEq)]
pub struct Eigen {
    /// `[d]`
    pub values: Vec<f64>,
    /// Of length 1, one a row. `[d, d]`
    pub vectors: Vec<f64>,
}

/// Of the symmetric `matrix: [d, d]`.
pub(crate) fn symmetric_eigen(mut matrix: Vec<f64>, d: usize) -> Eigen {
    let mut vectors = vec![0.0; d * d];
    (0..d).for_each(|i| vectors[i * d + i] = 1.0);
    let total: f64 = matrix.iter().map(|v| v * v).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..d)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| matrix[i * d + j].powi(2))
            .sum();
        if off <= total * f64::EPSILON.powi(2) {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                rotate(&mut matrix, &mut vectors, d, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..d).collect();
    let value = |i: usize| matrix[i * d + i];
    order.sort_by(|&a, &b| value(b).abs().total_cmp(&value(a).abs()));
    Eigen {
        values: order.iter().map(|&i| value(i)).collect(),
        vectors: order.iter().flat_map(|&i| vectors[i * d..][..d].to_vec()).collect(),
    }
}

/// Turns the coordinates `p` and `q` so that the entry between them is 0. Eigenvectors are rows of `vectors`.
fn rotate(matrix: &mut [f64], vectors: &mut [f64], d: usize, p: usize, q: usize) {
    let between = matrix[p * d + q];
    if between == 0.0 {
        return;
    }
    let theta = (matrix[q * d + q] - matrix[p * d + p]) / (2.0 * between);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    for i in 0..d {
        let (a, b) = (matrix[i * d + p], matrix[i * d + q]);
        matrix[i * d + p] = cosine * a - sine * b;
        matrix[i * d + q] = sine * a + cosine * b;
    }
    for i in 0..d {
        let (a, b) = (matrix[p * d + i], matrix[q * d + i]);
        matrix[p * d + i] = cosine * a - sine * b;
        matrix[q * d + i] = sine * a + cosine * b;
        let (a, b) = (vectors[p * d + i], vectors[q * d + i]);
        vectors[p * d + i] = cosine * a - sine * b;
        vectors[q * d + i] = sine * a + cosine * b;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn vectors_are_orthonormal_and_make_the_matrix_again() {
        for (d, seed) in [(1, 0), (2, 1), (7, 2), (30, 3)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut matrix = vec![0.0; d * d];
            for i in 0..d {
                for j in 0..=i {
                    let value = rng.random_range(-1.0..1.0);
                    (matrix[i * d + j], matrix[j * d + i]) = (value, value);
                }
            }
            let Eigen { values, vectors } = symmetric_eigen(matrix.clone(), d);
            assert!(values.windows(2).all(|v| v[0].abs() >= v[1].abs()));
            for i in 0..d {
                for j in 0..d {
                    let product: f64 = (0..d).map(|k| vectors[i * d + k] * vectors[j * d + k]).sum();
                    assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
                    let again: f64 = (0..d)
                        .map(|k| values[k] * vectors[k * d + i] * vectors[k * d + j])
                        .sum();
                    assert!((again - matrix[i * d + j]).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn a_matrix_by_hand_and_one_of_zeros() {
        let eigen = symmetric_eigen(vec![2.0, 1.0, 1.0, 2.0], 2);
        assert!((eigen.values[0] - 3.0).abs() < 1e-12 && (eigen.values[1] - 1.0).abs() < 1e-12);
        assert_eq!(symmetric_eigen(vec![0.0; 9], 3).values, [0.0; 3]);
    }
}
