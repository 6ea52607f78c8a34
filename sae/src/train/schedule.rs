//! The learning rate: up over the warm-up, flat, and down to nothing over the last share of the run.

use std::f64::consts::PI;

use crate::config::Decay;

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub lr: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps over which the rate rises.
    pub warmup_steps: u64,
    /// How it falls.
    pub decay: Decay,
    /// Steps at the end over which it does.
    pub decay_steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. Neither the first nor the last step has rate 0: both would be wasted.
    pub fn at(&self, step: u64) -> f64 {
        let part = |n: u64, of: u64| if n < of { n as f64 / of as f64 } else { 1.0 };
        let up = part(step + 1, self.warmup_steps + 1);
        let left = part(self.steps.saturating_sub(step), self.decay_steps + 1);
        let down = match self.decay {
            Decay::Linear => left,
            Decay::Cosine => (1.0 - (PI * left).cos()) / 2.0,
            Decay::Constant => 1.0,
        };
        self.lr * up.min(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay) -> Vec<f64> {
        let schedule = Schedule {
            lr: 8.0,
            steps: 10,
            warmup_steps: 3,
            decay,
            decay_steps: 3,
        };
        (0..10).map(|step| schedule.at(step)).collect()
    }

    #[test]
    fn the_rate_rises_stays_and_falls_by_hand() {
        assert_eq!(rates(Decay::Linear), [2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]);
    }

    #[test]
    fn the_rate_follows_a_cosine_by_hand() {
        // Of 8, (1 - cos(pi / 4)) / 2 is left in the last step, and half of it two steps from the end.
        let root = 0.5f64.sqrt();
        let by_hand = [
            2.0,
            4.0,
            6.0,
            8.0,
            8.0,
            8.0,
            8.0,
            4.0 + 4.0 * root,
            4.0,
            4.0 - 4.0 * root,
        ];
        for (rate, by_hand) in rates(Decay::Cosine).into_iter().zip(by_hand) {
            assert!((rate - by_hand).abs() < 1e-12, "{rate} {by_hand}");
        }
    }

    #[test]
    fn a_constant_rate_rises_and_never_falls() {
        assert_eq!(
            rates(Decay::Constant),
            [2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]
        );
    }

    #[test]
    fn without_warm_up_and_decay_the_rate_is_constant() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let schedule = Schedule {
                lr: 8.0,
                steps: 3,
                warmup_steps: 0,
                decay,
                decay_steps: 0,
            };
            assert!((0..3).all(|step| schedule.at(step) == 8.0));
        }
    }
}
