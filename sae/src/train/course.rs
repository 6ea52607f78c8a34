//! What of a selection depends on where in the run a step is: a budget that shrinks, and latents' budgets.
//!
//! k-sparse autoencoders (arXiv 1312.5663) start with many active latents, so that all learn something, and end with
//! `k`. Feature choice (arXiv 2411.02124) starts as mutual choice: budgets go by how often latents fire, which a
//! dictionary of random directions knows nothing of.

use burn::tensor::{Device, Tensor, TensorData};

use super::density::{Density, Zipf};
use crate::config::RunConfig;
use crate::kernels::Selection;
use crate::objective::Moment;
use crate::sparsifier::{Allocation, Sparsifier};

/// What changes along a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Where the budget starts, and the share of the run over which it comes to what it is in the end.
    pub annealing: Option<(usize, f64)>,
    /// The law of latents' budgets, and the share of the run before there are any.
    pub choice: Option<(Zipf, f64)>,
    /// The law by which latents are used too little, and below which share of what it gives them.
    pub under_used: Option<(Zipf, f64)>,
}

impl Course {
    /// That of a configuration without gaps.
    pub fn of(config: &RunConfig) -> Self {
        let sae = &config.sae;
        let choice = matches!(config.sparsifier().allocation, Allocation::PerLatent { .. });
        Self {
            annealing: sae.k_start.zip(sae.k_share),
            choice: choice.then(|| (config.zipf(), sae.mutual_share.unwrap_or(0.0))),
            under_used: config.under_used_share().map(|share| (config.zipf(), share)),
        }
    }

    /// The activation function of a step.
    pub fn sparsifier(&self, end: Sparsifier, moment: Moment) -> Sparsifier {
        let passed = |share: f64| moment.step as f64 / (share * moment.steps as f64).max(1.0);
        let k = match (self.annealing, end.k()) {
            (Some((start, share)), Some(k)) => {
                let passed = passed(share).min(1.0);
                (start as f64 + (k as f64 - start as f64) * passed).round() as usize
            }
            (_, k) => k.unwrap_or(0),
        };
        let now = end.with_k(k);
        match (self.choice, now.allocation) {
            (Some((_, share)), Allocation::PerLatent { k }) if (moment.step as f64) < share * moment.steps as f64 => {
                Sparsifier {
                    allocation: Allocation::PerBatch { k },
                    ..now
                }
            }
            _ => now,
        }
    }

    /// The selection of latents' budgets, where `now` has them, in a batch of so many rows.
    pub fn per_latent(
        &self,
        now: Sparsifier,
        density: Option<&Density>,
        batch: usize,
        device: &Device,
    ) -> Option<Selection> {
        let (Allocation::PerLatent { k }, Some((law, _)), Some(density)) = (now.allocation, self.choice, density)
        else {
            return None;
        };
        let budgets = density.budgets(law, k, batch);
        let shape = [budgets.len()];
        Some(Selection::PerLatent {
            score: now.score,
            budgets: Tensor::from_data(TensorData::new(budgets, shape), device),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparsifier::Score;

    fn at(step: u64) -> Moment {
        Moment {
            step,
            steps: 100,
            seed: 0,
        }
    }

    #[test]
    fn a_budget_comes_down_in_a_line_and_stays() {
        let course = Course {
            annealing: Some((50, 0.2)),
            ..Course::default()
        };
        let k = |step| course.sparsifier(Sparsifier::top_k(10), at(step)).k().unwrap();
        assert_eq!([k(0), k(5), k(10), k(19), k(20), k(99)], [50, 40, 30, 12, 10, 10]);
        let plain = Course::default();
        assert_eq!(plain.sparsifier(Sparsifier::top_k(10), at(0)), Sparsifier::top_k(10));
        let none = Sparsifier::new(Score::Positive, Allocation::All);
        assert_eq!(course.sparsifier(none, at(0)), none);
    }

    #[test]
    fn feature_choice_begins_as_mutual_choice() {
        let law = Zipf {
            exponent: 1.0,
            offset: 1.0,
        };
        let course = Course {
            choice: Some((law, 0.1)),
            ..Course::default()
        };
        let end = Sparsifier::new(Score::Positive, Allocation::PerLatent { k: 3 });
        assert_eq!(course.sparsifier(end, at(9)), Sparsifier::batch_top_k(3));
        assert_eq!(course.sparsifier(end, at(10)), end);
    }
}
