//! Matryoshka (arXiv 2503.17547): the latents below each of a few widths have to reconstruct on their own, so that the
//! first latents learn what is general and cannot leave it to the later ones.
//!
//! The mean over the widths of the error by the latents below each, over the variance of the data; the whole width is
//! always one of them. Either the widths are fixed, or, with `sampled`, so many are drawn anew for each batch from a
//! Pareto law with exponent 1/2 (a width `w` is drawn in proportion to `w^-1.5`), which asks every prefix to be of use
//! rather than a few.

use burn::tensor::{Int, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight, nested_mean};
use crate::error::{Error, Result};

/// `[objective.matryoshka]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matryoshka {
    /// 1.
    pub weight: f64,
    /// Fixed widths, ascending, each below `sae.d_sae`. Without widths and `sampled`: a sixteenth, an eighth, a
    /// quarter and a half of `sae.d_sae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
    /// Widths that are drawn for each batch, instead of fixed ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<usize>,
}

impl Default for Matryoshka {
    fn default() -> Self {
        Self {
            weight: 1.0,
            widths: None,
            sampled: None,
        }
    }
}

impl Matryoshka {
    pub(super) fn complete() -> Self {
        Self {
            widths: Some(vec![1]),
            sampled: Some(1),
            ..Self::default()
        }
    }

    /// The widths at a step, ascending, the last `d_sae`.
    fn widths_at(&self, moment: Moment, d_sae: usize) -> Vec<usize> {
        let mut widths = match (&self.widths, self.sampled) {
            (Some(widths), _) => widths.clone(),
            (None, Some(n)) => {
                let mut rng = ChaCha8Rng::seed_from_u64(moment.seed);
                rng.set_stream(moment.step);
                (0..n).map(|_| pareto(rng.random_range(0.0..1.0), d_sae)).collect()
            }
            (None, None) => [16, 8, 4, 2].map(|part| d_sae / part).to_vec(),
        };
        widths.push(d_sae);
        widths.retain(|w| *w > 0);
        widths.sort_unstable();
        widths.dedup();
        widths
    }
}

/// A width from 1 to `d_sae` by a number from 0 to 1, after a Pareto law cut off at `d_sae`.
fn pareto(u: f64, d_sae: usize) -> usize {
    let least = (d_sae as f64).powf(-0.5);
    let width = (1.0 - u * (1.0 - least)).powi(-2);
    (width as usize).clamp(1, d_sae)
}

impl Face for Matryoshka {
    fn weight(&self, _: Moment) -> f64 {
        self.weight
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let [d_sae, _] = pass.w_dec.dims();
        let widths = self.widths_at(pass.moment, d_sae);
        let indices = &pass.code.indices;
        // A latent's level is the number of widths that it is not below.
        let levels = widths[..widths.len() - 1]
            .iter()
            .map(|&width| indices.clone().greater_equal_elem(width as i64).int())
            .reduce(|a, b| a + b)
            .unwrap_or_else(|| Tensor::<1, Int>::zeros(indices.dims(), &indices.device()));
        Some(nested_mean(pass, levels, widths.len()))
    }

    fn validate(&self, key: &str, about: About) -> Result<()> {
        check_weight(key, self.weight, None)?;
        match (&self.widths, self.sampled) {
            (Some(_), Some(_)) => {
                return Err(Error::config(
                    format!("{key}.sampled"),
                    format!("is given beside {key}.widths: give one of the two"),
                ));
            }
            (None, Some(0)) => return Err(Error::config(format!("{key}.sampled"), "is 0, expected at least 1")),
            _ => {}
        }
        let widths = self.widths.as_deref().unwrap_or_default();
        let key = format!("{key}.widths");
        if self.widths.is_some() && (widths.is_empty() || !widths.is_sorted_by(|a, b| a < b) || widths[0] == 0) {
            return Err(Error::config(
                key,
                format!("is {widths:?}, expected ascending numbers of at least 1"),
            ));
        }
        match (widths.last(), about.d_sae) {
            (Some(last), Some(d_sae)) if *last > d_sae => Err(Error::config(
                key,
                format!("has {last}, more than the {d_sae} latents of sae.d_sae"),
            )),
            _ => Ok(()),
        }
    }

    fn reconstructs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_widths_depend_on_the_step_alone_and_small_ones_come_often() {
        let term = Matryoshka {
            sampled: Some(5),
            ..Matryoshka::default()
        };
        let at = |step| {
            let moment = Moment {
                step,
                steps: 10,
                seed: 3,
            };
            term.widths_at(moment, 1024)
        };
        assert_eq!(at(1), at(1));
        assert_ne!(at(1), at(2));
        let all: Vec<usize> = (0..400).flat_map(at).filter(|w| *w < 1024).collect();
        assert!((0..400).map(at).all(|w| w.last() == Some(&1024)));
        // Half of the law lies below 3.76: (1 - 0.5 (1 - 1/32))^-2.
        let small = all.iter().filter(|w| **w <= 3).count() as f64 / all.len() as f64;
        assert!((0.35..0.6).contains(&small), "{small}");
        assert_eq!((pareto(0.0, 1024), pareto(1.0, 1024)), (1, 1024));
    }

    #[test]
    fn fixed_widths_end_with_all_latents_once() {
        let moment = Moment {
            step: 0,
            steps: 1,
            seed: 0,
        };
        let of = |widths: Option<Vec<usize>>, d_sae| {
            let term = Matryoshka {
                widths,
                ..Matryoshka::default()
            };
            term.widths_at(moment, d_sae)
        };
        assert_eq!(of(Some(vec![2, 8]), 8), [2, 8]);
        assert_eq!(of(Some(vec![2, 4]), 8), [2, 4, 8]);
        assert_eq!(of(None, 64), [4, 8, 16, 32, 64]);
        assert_eq!(of(None, 3), [1, 3]);
    }
}
