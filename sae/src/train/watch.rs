//! Whether training comes apart while its loss is still a number.
//!
//! The one decision: **what is watched is the error of reconstruction over the variance of the data**, and not the loss.
//! Weights of penalties rise along a run, budgets come down and objectives have scales of their own; but 1 is always what
//! predicting the mean gives, and a dictionary that is worse than that by orders of magnitude, batch after batch, is none
//! any more. A wide ReLU begins far above 1, so the first batch, which no step has touched, counts, too. One batch may be bad
//! for reasons of its own, a row of another magnitude in it; ten in a row are not.

use activations::source::MixState;
use serde::{Deserialize, Serialize};

/// How many batches in a row are an explosion.
const IN_A_ROW: u64 = 10;

/// What has been seen of a run's errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The error of the first batch, or that of predicting the mean if it is larger; nothing before the first step.
    pub reference: Option<f32>,
    /// The first of the last batches in a row whose errors were too large, if the last one's was.
    pub since: Option<Since>,
}

/// A batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// Its step, counted from 1.
    pub step: u64,
    /// Where the reader was before it.
    pub reader: MixState,
}

impl Watch {
    /// Takes in the `error` of the batch of a step, over the variance, and says whether it is the last of so many in a row that
    /// are more than `factor` times the reference; never for a factor of 0.
    pub fn sees(&mut self, error: f32, factor: f64, now: Since) -> bool {
        let reference = f64::from(*self.reference.get_or_insert(error.max(1.0)));
        if factor == 0.0 || f64::from(error) <= factor * reference {
            self.since = None;
            return false;
        }
        let since = self.since.get_or_insert(now);
        now.step + 1 >= since.step + IN_A_ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64) -> Since {
        let reader = MixState {
            draws: step,
            ..MixState::default()
        };
        Since { step, reader }
    }

    /// The steps, from 1 on, at which `errors` are an explosion.
    fn explosions(errors: &[f32], factor: f64) -> (Vec<usize>, Watch) {
        let mut watch = Watch::default();
        let seen = (1..).zip(errors);
        let found = seen.filter(|&(step, &error)| watch.sees(error, factor, at(step as u64)));
        (found.map(|(step, _)| step).collect(), watch)
    }

    #[test]
    fn ten_batches_in_a_row_are_an_explosion_and_nine_are_none() {
        let mut errors = vec![0.5f32; 30];
        errors[4..13].fill(101.0);
        assert_eq!(explosions(&errors, 100.0), (Vec::new(), explosions(&[0.5], 100.0).1));
        errors[13] = 101.0;
        let (found, _) = explosions(&errors, 100.0);
        assert_eq!(found, [14]);
        let (_, watch) = explosions(&errors[..14], 100.0);
        assert_eq!(watch.since, Some(at(5)));
        assert_eq!(explosions(&errors, 0.0).0, [0usize; 0]);
        assert_eq!(explosions(&errors, 102.0).0, [0usize; 0]);
    }

    #[test]
    fn what_a_run_begins_with_is_no_explosion_however_large() {
        let falling: Vec<f32> = (0..40).map(|n| 3000.0 / (1.0 + n as f32)).collect();
        assert_eq!(explosions(&falling, 100.0).0, [0usize; 0]);
        // And one that begins with nearly nothing is held against predicting the mean.
        let mut rising = vec![99.0f32; 40];
        rising[0] = 1e-6;
        assert_eq!(explosions(&rising, 100.0).0, [0usize; 0]);
    }
}
