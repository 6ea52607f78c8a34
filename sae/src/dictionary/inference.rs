//! The inference form: thresholds instead of budgets.
//!
//! A budget that a batch shares cannot be used for one token, and a number people compare must not depend on batches.
//! So a trained dictionary becomes one in which a latent fires when its score is above a threshold. The threshold is
//! the quantile that gives the wanted L0 on activations that training did not see: a running mean of the batches'
//! least winners, as it is often done, is biased low, since the least of a sample is no quantile of it.
//!
//! One threshold for all latents keeps what mutual choice is (the largest scores win, whoever has them). One a latent
//! keeps how often each latent fired, which is what an allocation by latents needs.

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Calibration, Sae};
use crate::code::{HostCode, to_host};
use crate::error::{Error, Result};
use crate::kernels::{Candidate, Pool, Search, Selection, encode};
use crate::sparsifier::{Allocation, Score, Sparsifier};

/// What becomes of the training's allocation in the saved dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InferenceForm {
    /// It stays, where a token's code depends on nothing but the token.
    AsTrained,
    /// One threshold for all latents.
    Threshold,
    /// A threshold for each latent, so that it fires as often as it did in training.
    ThresholdPerLatent,
}

/// Shows rows of activations, `[n, d_in]` at a time, in the same order whenever it is called.
pub type Visit<'a> = dyn Fn(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> + 'a;

impl Sae {
    /// The dictionary with thresholds calibrated to `target_l0` active latents a token on the rows that `calibration`
    /// shows, and how that went on the rows that `measured` shows. Other parameters stay what they are.
    ///
    /// Where fewer latents score at all than are wanted, every score above the least possible one fires. Passes over
    /// the rows once for one threshold, twice for one a latent; needs memory for `2 * target_l0` scores a row.
    ///
    /// # Errors
    /// [`Error::Invalid`] for [`InferenceForm::AsTrained`] of a budget that batches share, for no rows, or a
    /// `target_l0` that is not positive or over `d_sae`; what encoding gives.
    pub fn into_inference(
        self,
        form: InferenceForm,
        target_l0: f64,
        calibration: &Visit,
        measured: &Visit,
    ) -> Result<(Self, Option<Calibration>)> {
        self.into_inference_with(None, form, target_l0, calibration, measured)
    }

    /// [`Sae::into_inference`] where each latent is to fire in proportion to `shares`, `[d_sae]`, rather than as often as
    /// it does in the training's form, if it gets a threshold of its own.
    pub(crate) fn into_inference_with(
        self,
        shares: Option<&[f64]>,
        form: InferenceForm,
        target_l0: f64,
        calibration: &Visit,
        measured: &Visit,
    ) -> Result<(Self, Option<Calibration>)> {
        let trained_as = self.sparsifier;
        if form == InferenceForm::AsTrained {
            return match trained_as.is_inference_form() {
                true => Ok((self, None)),
                false => Err(Error::Invalid(format!(
                    "{} shares a budget between the tokens of a batch: it needs a threshold to be used for one",
                    trained_as.name()
                ))),
            };
        }
        if !trained_as.encoder.is_linear() {
            return Err(Error::Invalid(format!(
                "{} is used as it was trained: thresholds are set on the scores of one product",
                trained_as.name()
            )));
        }
        if !(target_l0 > 0.0 && target_l0 <= self.d_sae() as f64) {
            return Err(Error::Invalid(format!(
                "no threshold makes {target_l0} of {} latents fire",
                self.d_sae()
            )));
        }
        let rows = count_rows(calibration, self.d_in())?;
        let thresholds = match form {
            InferenceForm::ThresholdPerLatent => {
                let fired = match shares {
                    Some(shares) => shares.to_vec(),
                    None => self.fired(calibration)?,
                };
                self.threshold_per_latent(&fired, target_l0, rows, calibration)?
            }
            _ => vec![self.one_threshold(target_l0, rows, calibration)?; self.d_sae()],
        };
        let one = thresholds[0];
        let device = self.device();
        let d_sae = self.d_sae();
        let sae = Self {
            threshold: Some(Tensor::from_data(TensorData::new(thresholds, [d_sae]), &device)),
            sparsifier: Sparsifier {
                allocation: Allocation::Threshold,
                ..trained_as
            },
            ..self
        };
        let (mut active, mut measured_rows) = (0u64, 0u64);
        measured(&mut |x| {
            let code = sae.encode_rows(x)?;
            active += code.values.iter().filter(|v| **v != 0.0).count() as u64;
            measured_rows += code.batch() as u64;
            Ok(())
        })?;
        let calibration = Calibration {
            trained_as,
            threshold: (form == InferenceForm::Threshold).then_some(one),
            target_l0,
            l0: active as f64 / measured_rows.max(1) as f64,
            calibration_rows: rows,
            rows: measured_rows,
        };
        Ok((sae, Some(calibration)))
    }

    /// The scores above `bars` of rows `x`.
    fn scores_above(&self, x: &[f32], bars: &[f32]) -> Result<HostCode> {
        let score = self.sparsifier.score;
        let bars = Tensor::<1>::from_data(TensorData::new(bars.to_vec(), [bars.len()]), &self.device());
        let mut all = HostCode::default();
        for piece in self.pieces(x, self.d_sae())? {
            let centred = self.centred(piece);
            let selection = Selection::Above {
                score,
                bars: bars.clone(),
            };
            let code = encode(
                centred,
                self.w_enc.clone(),
                self.b_enc.clone(),
                selection,
                None,
                Search::Auto,
            )
            .main;
            all.append(code.to_host()?);
        }
        Ok(all)
    }

    /// Between the last score that is to fire and the first that is not.
    fn one_threshold(&self, target_l0: f64, rows: u64, calibration: &Visit) -> Result<f32> {
        let score = self.sparsifier.score;
        let wanted = ((target_l0 * rows as f64).round() as usize).max(1);
        let mut pool = Pool::new(score, wanted + 1);
        calibration(&mut |x| {
            let code = self.scores_above(x, &vec![pool.bar(); self.d_sae()])?;
            pool.extend(entries(&code, score).map(|(i, u)| Candidate::new(score, 0, i, u)));
            Ok(())
        })?;
        Ok(between(&pool.scores(), wanted, score))
    }

    /// How often each latent fires on the rows. `[d_sae]`
    fn fired(&self, calibration: &Visit) -> Result<Vec<f64>> {
        let mut fired = vec![0.0; self.d_sae()];
        calibration(&mut |x| {
            let code = self.encode_rows(x)?;
            entries(&code, self.sparsifier.score).for_each(|(i, _)| fired[i as usize] += 1.0);
            Ok(())
        })?;
        Ok(fired)
    }

    /// For each latent, between the last of its scores that is to fire and the first that is not: in proportion to
    /// `fired`, `target_l0` a row.
    fn threshold_per_latent(&self, fired: &[f64], target_l0: f64, rows: u64, calibration: &Visit) -> Result<Vec<f32>> {
        let score = self.sparsifier.score;
        let all: f64 = fired.iter().sum();
        let share = target_l0 * rows as f64 / if all > 0.0 { all } else { 1.0 };
        // Rounded so that the sum is right: each takes what the ones before it left over.
        let mut sum = 0.0;
        let budgets: Vec<usize> = fired
            .iter()
            .map(|n| {
                let before = (sum * share).round();
                sum += n;
                ((sum * share).round() - before) as usize
            })
            .collect();
        let mut pools: Vec<Pool> = budgets.iter().map(|n| Pool::new(score, n + 1)).collect();
        calibration(&mut |x| {
            let bars: Vec<f32> = pools.iter().map(Pool::bar).collect();
            let code = self.scores_above(x, &bars)?;
            entries(&code, score).for_each(|(i, u)| pools[i as usize].extend([Candidate::new(score, 0, 0, u)]));
            Ok(())
        })?;
        let thresholds = pools.into_iter().zip(budgets);
        Ok(thresholds.map(|(pool, n)| between(&pool.scores(), n, score)).collect())
    }

    /// The thresholds on the host, `[d_sae]`, where there are any.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what the device said.
    pub fn thresholds(&self) -> Result<Option<Vec<f32>>> {
        let read = |t: &Tensor<1>| to_host(t.clone().try_into_data());
        self.threshold.as_ref().map(read).transpose()
    }
}

/// The active entries of a code: latent and value.
fn entries(code: &HostCode, score: Score) -> impl Iterator<Item = (u32, f32)> + '_ {
    let all = code.indices.iter().zip(&code.values);
    all.filter(move |(_, v)| **v != 0.0 && score.of(**v) > score.floor())
        .map(|(&i, &v)| (i as u32, v))
}

/// A threshold that the first `n` of descending `scores` are above and the rest are not.
fn between(scores: &[f32], n: usize, score: Score) -> f32 {
    let least_above = |n: usize| scores.get(n).copied();
    match (n.checked_sub(1).and_then(least_above), least_above(n)) {
        // Nothing fires: not the largest score either, however its sum is rounded next time.
        (None, Some(largest)) => largest + 1e-5 * largest.abs(),
        (Some(last), Some(next)) => {
            let middle = ((f64::from(last) + f64::from(next)) / 2.0) as f32;
            if middle < last { middle.max(next) } else { next }
        }
        // Fewer score at all than are wanted.
        (_, None) => score.floor(),
    }
}

fn count_rows(visit: &Visit, d_in: usize) -> Result<u64> {
    let mut rows = 0;
    visit(&mut |x| {
        rows += (x.len() / d_in) as u64;
        Ok(())
    })?;
    match rows {
        0 => Err(Error::Invalid("there are no rows to calibrate thresholds on".into())),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests;
