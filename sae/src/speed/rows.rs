//! Rows to measure on: sparse sums of directions, as dictionaries are meant to find them, from nothing but a seed.
//!
//! A row is the sum of 24 unit directions, drawn with probabilities after Zipf's law and with exponential magnitudes of 0.5
//! and more, under noise of deviation 0.05: as the comparison with other tools has it (`benches/peers/make_acts.py`). Every
//! row has a stream of random numbers of its own, so neither threads nor pieces decide what is in it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use activations::npy;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::train::start::{normal, random_directions};

/// Directions in a row.
const ACTIVE: usize = 24;
/// What is added to ranks in Zipf's law.
const OFFSET: f64 = 50.0;
/// The least magnitude.
const LEAST: f64 = 0.5;
/// Deviation of the noise.
const NOISE: f64 = 0.05;
/// Most directions.
const MOST_DIRECTIONS: usize = 16_384;
/// Rows that are in memory at a time.
const PIECE_ROWS: usize = 1024;

/// How many directions rows are made of that `d_sae` latents are to be trained on.
pub fn directions(d_sae: usize) -> usize {
    d_sae.clamp(1, MOST_DIRECTIONS)
}

/// Writes `n_rows` rows of width `d_in` made of [`directions`] for `d_sae` latents to `path`, an `.npy` of f32.
///
/// # Errors
/// What the system says, naming the file.
pub fn write_rows(path: &Path, n_rows: usize, d_in: usize, d_sae: usize, seed: u64) -> Result<()> {
    let n = directions(d_sae);
    let rows = random_directions(n, d_in, seed);
    let mut sum = 0.0;
    // Up to each direction, the probabilities of it and those before.
    let up_to: Vec<f64> = (0..n)
        .map(|i| {
            sum += 1.0 / (i as f64 + OFFSET);
            sum
        })
        .collect();
    let file = File::create(path).map_err(Error::io(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
    put(&npy::header(n_rows as u64, d_in))?;
    let mut piece = vec![0.0f32; PIECE_ROWS.min(n_rows) * d_in];
    for first in (0..n_rows).step_by(PIECE_ROWS) {
        let piece = &mut piece[..PIECE_ROWS.min(n_rows - first) * d_in];
        piece.par_chunks_mut(d_in).enumerate().for_each(|(i, row)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream((first + i) as u64 + 1);
            fill(row, &rows, &up_to, &mut rng);
        });
        let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
        put(&bytes)?;
    }
    out.flush().map_err(Error::io(path))
}

/// Makes one row. `directions`: `[n, d_in]`; `up_to`: `[n]`, sums of their probabilities, times whatever.
fn fill(row: &mut [f32], directions: &[f32], up_to: &[f64], rng: &mut ChaCha8Rng) {
    row.iter_mut().for_each(|v| *v = (NOISE * normal(rng)) as f32);
    for _ in 0..ACTIVE {
        let which = drawn(up_to, rng);
        // In (0, 1]: the logarithm stays finite.
        let size = (LEAST - (1.0 - uniform(rng)).ln()) as f32;
        let direction = &directions[which * row.len()..][..row.len()];
        row.iter_mut().zip(direction).for_each(|(v, d)| *v += size * d);
    }
}

/// A place in `up_to`, as probable as it adds to the sum.
fn drawn(up_to: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let last = up_to.len() - 1;
    let at = up_to[last] * uniform(rng);
    up_to.partition_point(|&sum| sum <= at).min(last)
}

/// In [0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_drawn_as_often_as_their_probabilities_say() {
        let probabilities = [0.5, 0.125, 0.0, 0.25, 0.125];
        let mut sum = 0.0;
        let up_to = probabilities.map(|p| {
            sum += p;
            sum
        });
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut counts = [0.0; 5];
        let draws = 40_000;
        (0..draws).for_each(|_| counts[drawn(&up_to, &mut rng)] += 1.0);
        for (count, p) in counts.into_iter().zip(probabilities) {
            // Six deviations of a count.
            let spread = 6.0 * (f64::from(draws) * p * (1.0 - p)).sqrt();
            let expected = f64::from(draws) * p;
            assert!((count - expected).abs() <= spread, "{count} of {expected}");
        }
    }
}
