//! The learning rate: up over the warm-up, flat, and down to nothing over the last share of the run.

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub lr: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps over which the rate rises.
    pub warmup_steps: u64,
    /// Steps at the end over which it falls.
    pub decay_steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. Neither the first nor the last step has rate 0: both would be wasted.
    pub fn at(&self, step: u64) -> f64 {
        let part = |n: u64, of: u64| if n < of { n as f64 / of as f64 } else { 1.0 };
        let up = part(step + 1, self.warmup_steps + 1);
        let down = part(self.steps.saturating_sub(step), self.decay_steps + 1);
        self.lr * up.min(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_stays_and_falls_by_hand() {
        let schedule = Schedule {
            lr: 8.0,
            steps: 10,
            warmup_steps: 3,
            decay_steps: 3,
        };
        let rates: Vec<f64> = (0..10).map(|step| schedule.at(step)).collect();
        assert_eq!(rates, [2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]);
    }

    #[test]
    fn without_warm_up_and_decay_the_rate_is_constant() {
        let schedule = Schedule {
            lr: 8.0,
            steps: 3,
            warmup_steps: 0,
            decay_steps: 0,
        };
        assert!((0..3).all(|step| schedule.at(step) == 8.0));
    }
}
