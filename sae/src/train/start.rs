//! Where training starts: a sample of the data says how large activations are and where their middle is, and the
//! decoder is random.
//!
//! The encoder starts as the decoder's transpose, at the length that fits the sample: a latent then reads what it writes. Where it writes something else, both
//! are random, and the encoder's bias makes up for the middle of what is read, which is not subtracted there.

use std::ops::Range;

use activations::source::Joined;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainPlan;
use super::sides::{Side, Sides};
use crate::config::{BDecInit, Normalization};
use crate::dictionary::{Place, Scale, Scales};
use crate::error::{Error, Result};

/// Rows of the sample; all of them where there are fewer.
pub const SAMPLE_ROWS: u64 = 16_384;
/// Rows of it that follow each other.
const BLOCK: u64 = 32;
/// Steps of Weiszfeld's iteration: it converges linearly, and where training starts need not be exact.
const MEDIAN_STEPS: usize = 50;

/// How many times as large as the sum of the squares of all other rows that of one row may be. Scaled by such a row, the others
/// would be next to nothing.
const OUTLIER: f64 = 1e6;

/// What a first sample says about the activations of one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Multiplies activations so that `E|x|^2 = d_in`; 1 where the scale is not what they are normalised by.
    pub scale: f32,
    /// `E|x - E x|^2` of the scaled activations, summed over `d_in`.
    pub variance: f64,
    /// Where `b_dec` starts, of the scaled activations. `[d_in]`
    pub middle: Vec<f32>,
}

impl Statistics {
    /// Measures `sample: [n, d_in]`, of the place called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when all rows are equal: there is nothing to learn.
    pub fn measure(sample: &[f32], d_in: usize, name: &str, init: BDecInit, by: Normalization) -> Result<Self> {
        let n = (sample.len() / d_in) as f64;
        let mean = mean(sample, d_in);
        let square: f64 = sample.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        let variance: f64 = sample
            .chunks_exact(d_in)
            .flat_map(|row| row.iter().zip(&mean).map(|(&v, m)| (f64::from(v) - m).powi(2)))
            .sum::<f64>()
            / n;
        if variance <= 0.0 {
            return Err(Error::Invalid(format!(
                "{name}: all rows of a sample of {n} are equal: there is nothing to learn from them"
            )));
        }
        let middle = match init {
            BDecInit::Mean => mean,
            BDecInit::GeometricMedian => geometric_median(sample, mean),
        };
        let scale = match by {
            Normalization::MeanNorm => (d_in as f64 / square).sqrt(),
            Normalization::None | Normalization::PerToken | Normalization::Whitening => 1.0,
        };
        Ok(Self {
            scale: scale as f32,
            variance: variance * scale * scale,
            middle: middle.iter().map(|m| (m * scale) as f32).collect(),
        })
    }
}

/// What a first sample says about both sides of the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// What multiplies activations.
    pub scales: Scales,
    /// `E|y - E y|^2` of what is written, scaled, summed over its width.
    pub variance: f64,
    /// The middle of what is read, scaled. `[d_in]`
    pub read_middle: Vec<f32>,
    /// The middle of what is written, scaled. `[d_out]`
    pub middle: Vec<f32>,
}

impl Start {
    /// Measures each place of `sample: [n, width]`, rows of the data called `name`.
    ///
    /// # Errors
    /// As [`Statistics::measure`].
    pub fn measure(sample: &[f32], sides: &Sides, name: &str, init: BDecInit, by: Normalization) -> Result<Self> {
        let of = |side: &Side| -> Result<Vec<Statistics>> {
            let places = side.places.iter().zip(side.columns());
            let measure = places.map(|(place, columns)| {
                let name = match (&place.hook, sides.width() == columns.len()) {
                    (Some(hook), false) => format!("{hook} of {name}"),
                    _ => name.to_owned(),
                };
                let rows = sample.chunks_exact(sides.width());
                let sample: Vec<f32> = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
                Statistics::measure(&sample, place.width, &name, init, by)
            });
            measure.collect()
        };
        let read = of(&sides.read)?;
        let written = match sides.same() {
            true => read.clone(),
            false => of(&sides.written)?,
        };
        let scales = |side: &Side, found: &[Statistics]| {
            let places = side.places.iter().zip(found);
            let scale = |(place, of): (&Place, &Statistics)| Scale {
                width: place.width,
                scale: of.scale,
            };
            places.map(scale).collect()
        };
        let middle = |found: &[Statistics]| found.iter().flat_map(|of| of.middle.clone()).collect();
        Ok(Self {
            scales: Scales {
                read: scales(&sides.read, &read),
                write: scales(&sides.written, &written),
            },
            variance: written.iter().map(|of| of.variance).sum(),
            read_middle: middle(&read),
            middle: middle(&written),
        })
    }
}

/// Refuses a `sample: [n, width]` of the rows of `plan` with a row that nothing else can be scaled together with.
///
/// # Errors
/// [`Error::Invalid`] naming the row.
pub fn refuse_outlier(sample: &[f32], plan: &TrainPlan) -> Result<()> {
    let sides = &plan.sides;
    for columns in sides.read.columns().chain(sides.written.columns()) {
        let square = |row: &[f32]| row[columns.clone()].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let squares: Vec<f64> = sample.chunks_exact(sides.width()).map(square).collect();
        let largest = squares.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let Some((at, &largest)) = largest else { continue };
        let others: f64 = squares
            .iter()
            .enumerate()
            .filter(|&(i, _)| i != at)
            .map(|(_, s)| s)
            .sum();
        if squares.len() > 2 && largest > OUTLIER * others {
            let row = match plan.streamed {
                true => "a row of the first ones".to_owned(),
                false => format!("row {}", row_of_sample(&plan.train_rows, at as u64)),
            };
            return Err(Error::Invalid(format!(
                "{}: {row} has norm {:.3e}, where the {} others of a sample have {:.3e} together: scaled alike, they would be \
                 nothing beside it; drop or repair the row",
                plan.source,
                largest.sqrt(),
                squares.len() - 1,
                others.sqrt()
            )));
        }
    }
    Ok(())
}

/// Where block `i` of a sample of `n` rows begins, counted from the first of them.
fn block_start(n: u64, i: u64) -> u64 {
    let blocks = SAMPLE_ROWS / BLOCK;
    (u128::from(n - BLOCK) * u128::from(i) / u128::from(blocks - 1)) as u64
}

/// The number of row `at` of the sample of `rows`.
fn row_of_sample(rows: &Range<u64>, at: u64) -> u64 {
    let n = rows.end - rows.start;
    rows.start
        + match n <= SAMPLE_ROWS {
            true => at,
            false => block_start(n, at / BLOCK) + at % BLOCK,
        }
}

/// Blocks of rows spread evenly over `rows`, `[n, width]`.
///
/// # Errors
/// What reading gives.
pub fn sample(acts: &Joined, rows: Range<u64>) -> Result<Vec<f32>> {
    let n = rows.end - rows.start;
    let d_in = acts.d_in();
    if n <= SAMPLE_ROWS {
        let mut all = vec![0.0; n as usize * d_in];
        acts.read_rows(rows, &mut all)?;
        return Ok(all);
    }
    let blocks = SAMPLE_ROWS / BLOCK;
    let mut all = vec![0.0; (blocks * BLOCK) as usize * d_in];
    for (i, block) in (0..blocks).zip(all.chunks_exact_mut(BLOCK as usize * d_in)) {
        let start = rows.start + block_start(n, i);
        acts.read_rows(start..start + BLOCK, block)?;
    }
    Ok(all)
}

fn mean(sample: &[f32], d_in: usize) -> Vec<f64> {
    let mut sum = vec![0.0; d_in];
    for row in sample.chunks_exact(d_in) {
        sum.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
    }
    let n = (sample.len() / d_in) as f64;
    sum.iter().map(|s| s / n).collect()
}

/// Weiszfeld's iteration from `start`: the mean of all rows, each weighted by one over its distance to the last mean.
fn geometric_median(sample: &[f32], start: Vec<f64>) -> Vec<f64> {
    let mut middle = start;
    for _ in 0..MEDIAN_STEPS {
        let (mut weights, mut sum) = (0.0, vec![0.0; middle.len()]);
        for row in sample.chunks_exact(middle.len()) {
            let distance = row
                .iter()
                .zip(&middle)
                .map(|(&v, m)| (f64::from(v) - m).powi(2))
                .sum::<f64>()
                .sqrt();
            // A row that the middle sits on would have infinite weight.
            let weight = 1.0 / distance.max(1e-12);
            weights += weight;
            sum.iter_mut().zip(row).for_each(|(s, &v)| *s += weight * f64::from(v));
        }
        middle.iter_mut().zip(sum).for_each(|(m, s)| *m = s / weights);
    }
    middle
}

/// `[d_sae, d_in]`: rows of length 1, uniform over the directions.
pub fn random_directions(d_sae: usize, d_in: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::with_capacity(d_sae * d_in);
    for _ in 0..d_sae {
        let row: Vec<f64> = (0..d_in).map(|_| normal(&mut rng)).collect();
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        rows.extend(row.iter().map(|v| (v / length) as f32));
    }
    rows
}

/// A standard normal number, after Box and Muller.
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // In (0, 1]: the logarithm stays finite.
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
    radius * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_have_length_one_and_no_preference() {
        let rows = random_directions(4000, 3, 5);
        let mut sums = [0.0f64; 3];
        for row in rows.chunks_exact(3) {
            let length: f32 = row.iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-6);
            sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        }
        // The mean of 4,000 coordinates of variance 1/3 has deviation 0.009.
        assert!(sums.iter().all(|s| (s / 4000.0).abs() < 0.05), "{sums:?}");
        assert_ne!(random_directions(1, 3, 5), random_directions(1, 3, 6));
    }

    #[test]
    fn one_outlier_moves_the_mean_and_not_the_geometric_median() {
        let sample = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0, 600.0, 0.0f32];
        let mean = mean(&sample, 2);
        assert_eq!(mean, [100.0, 0.0]);
        let median = geometric_median(&sample, mean);
        assert!(median[0].abs() < 0.5 && median[1].abs() < 1e-6, "{median:?}");
    }
}
