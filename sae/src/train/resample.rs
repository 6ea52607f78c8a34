//! Resampling dead latents (Bricken et al. 2023, "Towards Monosemanticity", neuron resampling): each begins anew with what a row
//! of the batch is made of that is reconstructed badly.

use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainPlan;
use super::trainer::Trainer;
use crate::code::to_host;
use crate::dictionary::Sae;
use crate::error::Result;
use crate::sparsifier::Gate;

/// Length of new encoder rows over the mean length of those of living latents.
const ENCODER_SHARE: f64 = 0.2;
/// Rows are drawn with a seed of their own.
const SEED: u64 = 0x7265_7361_6d70;

/// When dead latents are resampled, and how many were.
#[derive(Clone, Debug)]
pub struct Resampling {
    /// Steps between.
    pub every: u64,
    /// Where the thresholds of new latents begin, where thresholds are learned.
    pub threshold: Option<f64>,
    /// Latents resampled so far.
    pub count: u64,
}

impl Resampling {
    /// That of `plan`, before the first step.
    pub fn of(plan: &TrainPlan) -> Option<Self> {
        plan.config.train.resample_every.map(|every| Self {
            every,
            threshold: plan.config.threshold_init().filter(|_| plan.config.learns_thresholds()),
            count: 0,
        })
    }

    /// Whether latents are resampled behind step `step`, counted from 1, of `steps`. Behind the last one nothing would train
    /// them.
    pub fn is_due(&self, step: u64, steps: u64) -> bool {
        step.is_multiple_of(self.every) && step < steps
    }
}

/// What resampled latents begin with.
struct Anew<'a> {
    latents: &'a [i32],
    /// Of length 1, one a latent. `[latents, width]`
    directions: Vec<f32>,
    /// Lengths of the encoder's rows, of each of its steps.
    lengths: Vec<f64>,
    threshold: Option<f64>,
}

impl Trainer {
    /// Begins the dead latents anew, behind a step on the scaled rows `x: [batch, width]`, on the plain device, of which each was
    /// reconstructed with the squared error in `errors`. Rows are drawn with probability in proportion to the square of that.
    ///
    /// What is read is what is written, and encoder and decoder are two matrices.
    ///
    /// # Errors
    /// When the device failed.
    pub(super) fn resample(&mut self, x: Tensor<2>, errors: &[f32]) -> Result<()> {
        let dead = self.silence.dead();
        if dead.is_empty() {
            return Ok(());
        }
        let centred: Vec<f32> = to_host((x - self.sae.b_dec.clone().no_grad().unsqueeze()).try_into_data())?;
        let width = self.sae.d_in();
        let length = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        // A row in the middle has no direction.
        let weights = centred
            .chunks_exact(width)
            .zip(errors)
            .map(|(row, error)| match length(row) > 0.0 {
                true => f64::from(*error).powi(2),
                false => 0.0,
            });
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ SEED);
        rng.set_stream(self.done);
        let Some(drawn) = draw(&weights.collect::<Vec<_>>(), dead.len(), &mut rng) else {
            return Ok(());
        };
        let mut directions = Vec::with_capacity(dead.len() * width);
        for row in drawn {
            let row = &centred[row * width..][..width];
            let length = length(row);
            directions.extend(row.iter().map(|v| (f64::from(*v) / length) as f32));
        }
        let matrices = std::iter::once(&self.sae.w_enc).chain(self.sae.steps.iter().map(|step| &step.w_enc));
        let lengths = matrices.map(|w_enc| Ok(ENCODER_SHARE * mean_length_of_others(w_enc, &dead)?));
        let anew = Anew {
            latents: &dead,
            directions,
            lengths: lengths.collect::<Result<_>>()?,
            threshold: self.resampling.as_ref().and_then(|r| r.threshold),
        };
        anew.put_into(&mut self.sae, self.gate.as_mut())?;
        if let Some(average) = &mut self.average {
            anew.put_into(&mut average.sae, average.gate.as_mut())?;
        }
        self.optimizer.forget(&dead);
        self.silence.begin_anew(&dead);
        if let Some(resampling) = &mut self.resampling {
            resampling.count += dead.len() as u64;
        }
        Ok(())
    }
}

impl Anew<'_> {
    /// Sets the latents' parameters.
    fn put_into(&self, sae: &mut Sae, gate: Option<&mut Gate>) -> Result<()> {
        let everywhere = |value: f32| vec![value; self.latents.len()];
        put(&mut sae.w_dec, self.latents, &self.directions)?;
        let steps = sae.steps.iter_mut().map(|step| (&mut step.w_enc, &mut step.b_enc));
        let encoder = std::iter::once((&mut sae.w_enc, &mut sae.b_enc)).chain(steps);
        for ((w_enc, b_enc), length) in encoder.zip(&self.lengths) {
            let rows: Vec<f32> = self
                .directions
                .iter()
                .map(|v| (f64::from(*v) * length) as f32)
                .collect();
            put(w_enc, self.latents, &rows)?;
            put(b_enc, self.latents, &everywhere(0.0))?;
        }
        if let (Some(threshold), Some(value)) = (&mut sae.threshold, self.threshold) {
            put(threshold, self.latents, &everywhere(value as f32))?;
        }
        if let Some(gate) = gate {
            put(&mut gate.r_mag, self.latents, &everywhere(0.0))?;
            put(&mut gate.b_mag, self.latents, &everywhere(0.0))?;
        }
        Ok(())
    }
}

/// Numbers of `n` rows, drawn with probabilities in proportion to `weights`; nothing if all of them are 0.
fn draw(weights: &[f64], n: usize, rng: &mut ChaCha8Rng) -> Option<Vec<usize>> {
    let mut sum = 0.0;
    let sums: Vec<f64> = weights
        .iter()
        .map(|w| {
            sum += w;
            sum
        })
        .collect();
    // The first sum above the point: never a row of weight 0.
    let one = |rng: &mut ChaCha8Rng| {
        let point = rng.random_range(0.0..sum);
        sums.partition_point(|s| *s <= point)
    };
    (sum > 0.0 && sum.is_finite()).then(|| (0..n).map(|_| one(rng)).collect())
}

/// The mean length of the rows that are not among `latents`; of all rows where those are all.
fn mean_length_of_others(matrix: &Tensor<2>, latents: &[i32]) -> Result<f64> {
    let matrix = matrix.clone().no_grad();
    let lengths: Vec<f32> = to_host((matrix.clone() * matrix).sum_dim(1).sqrt().try_into_data())?;
    let mut others = lengths.clone();
    latents.iter().for_each(|&i| others[i as usize] = 0.0);
    let (of, n) = match lengths.len() - latents.len() {
        0 => (&lengths, lengths.len()),
        n => (&others, n),
    };
    Ok(of.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64)
}

/// Puts `rows`, one a latent and one behind the other, where the latents are.
fn put<const D: usize>(tensor: &mut Tensor<D>, latents: &[i32], rows: &[f32]) -> Result<()> {
    let (shape, tracked) = (tensor.dims(), tensor.is_require_grad());
    let plain = tensor.clone().no_grad();
    let device = plain.device();
    let mut values: Vec<f32> = to_host(plain.try_into_data())?;
    let width = rows.len() / latents.len();
    for (&latent, row) in latents.iter().zip(rows.chunks_exact(width)) {
        values[latent as usize * width..][..width].copy_from_slice(row);
    }
    let plain = Tensor::from_data(TensorData::new(values, shape), &device);
    *tensor = match tracked {
        true => Tensor::from_inner(plain).require_grad(),
        false => plain,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_drawn_in_proportion_to_their_weights_and_never_of_none() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let drawn = draw(&[0.0, 1.0, 0.0, 3.0, 0.0], 4000, &mut rng).unwrap();
        let times = |row: usize| drawn.iter().filter(|&&r| r == row).count();
        assert_eq!(times(1) + times(3), 4000);
        assert!((900..1100).contains(&times(1)), "{}", times(1));
        assert_eq!(draw(&[0.0, 0.0], 3, &mut rng), None);
    }

    #[test]
    fn resampling_is_due_every_so_often_and_not_behind_the_last_step() {
        let resampling = Resampling {
            every: 3,
            threshold: None,
            count: 0,
        };
        let due: Vec<u64> = (1..=9).filter(|&step| resampling.is_due(step, 9)).collect();
        assert_eq!(due, [3, 6]);
    }
}
