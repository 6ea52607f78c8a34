//! Activations whose true directions are known, and how many of those a dictionary has found.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What activations are made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub d_in: usize,
    /// True directions.
    pub atoms: usize,
    /// Fewest and most that a token has; as many as the mean where they go by frequency.
    pub active: (usize, usize),
    /// Exponent of the frequencies by rank; 0 for equal ones.
    pub zipf: f64,
    /// Whether coefficients have signs.
    pub signed: bool,
    /// Deviation of the noise of every coordinate.
    pub noise: f64,
}

/// Activations and what they were made of.
pub struct Data {
    pub d_in: usize,
    /// `[atoms, d_in]`, rows of length 1.
    pub atoms: Vec<f64>,
    /// `[n, d_in]`
    pub rows: Vec<f32>,
    /// True directions of each token.
    pub active: Vec<usize>,
}

pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random_range(0.0..1.0), rng.random_range(0.0..1.0));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Random directions, `[n, d_in]`.
pub fn directions(rng: &mut ChaCha8Rng, n: usize, d_in: usize) -> Vec<f64> {
    let mut rows: Vec<f64> = (0..n * d_in).map(|_| normal(rng)).collect();
    for row in rows.chunks_mut(d_in) {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    rows
}

impl Recipe {
    /// `n` tokens; `seed` decides directions, `part` which tokens.
    pub fn make(&self, n: usize, seed: u64, part: u64) -> Data {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let atoms = directions(&mut rng, self.atoms, self.d_in);
        rng.set_stream(1 + part);
        let weights: Vec<f64> = (1..=self.atoms).map(|rank| (rank as f64).powf(-self.zipf)).collect();
        let mut rows = Vec::with_capacity(n * self.d_in);
        let mut active = Vec::with_capacity(n);
        for _ in 0..n {
            let k = rng.random_range(self.active.0..=self.active.1);
            let mut row: Vec<f64> = (0..self.d_in).map(|_| self.noise * normal(&mut rng)).collect();
            let mut chosen = Vec::with_capacity(k);
            while chosen.len() < k {
                let atom = draw(&mut rng, &weights);
                if !chosen.contains(&atom) {
                    chosen.push(atom);
                }
            }
            for atom in chosen {
                let sign = if self.signed && rng.random_range(0..2) == 0 {
                    -1.0
                } else {
                    1.0
                };
                let c = sign * rng.random_range(0.5..1.5);
                let direction = &atoms[atom * self.d_in..];
                row.iter_mut().zip(direction).for_each(|(x, d)| *x += c * d);
            }
            rows.extend(row.iter().map(|&v| v as f32));
            active.push(k);
        }
        Data {
            d_in: self.d_in,
            atoms,
            rows,
            active,
        }
    }
}

/// A number with probability in proportion to its weight.
fn draw(rng: &mut ChaCha8Rng, weights: &[f64]) -> usize {
    let mut left = rng.random_range(0.0..weights.iter().sum::<f64>());
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return i;
        }
    }
    weights.len() - 1
}

impl Data {
    /// For each true direction, the largest `|cos|` with a decoder row.
    pub fn nearest(&self, decoder: &[f32]) -> Vec<f64> {
        let rows: Vec<(Vec<f64>, f64)> = decoder
            .chunks(self.d_in)
            .map(|row| {
                let row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
                let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                (row, length.max(1e-12))
            })
            .collect();
        let of = |atom: &[f64]| {
            let cosine =
                |(row, length): &(Vec<f64>, f64)| atom.iter().zip(row).map(|(a, b)| a * b).sum::<f64>().abs() / length;
            rows.iter().map(cosine).fold(0.0, f64::max)
        };
        self.atoms.chunks(self.d_in).map(of).collect()
    }
}
