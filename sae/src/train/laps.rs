//! Where the time of a step goes, for those who ask.
//!
//! The one decision: **a step says where it is, and not what it does.** Each part ends with a mark; what passed since the mark
//! before is its time. Nobody's work moves into a closure, the parts add up to the whole, and where nobody asks a mark is a
//! look at a pointer.
//!
//! On a device that works on its own, such as a GPU, what passes here is the time of asking it: times of parts mean something on
//! the processor alone.

use std::cell::Cell;
use std::time::Instant;

/// A part of a step, in the order of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Waiting for the rows of the batch, which another thread reads ahead.
    Read,
    /// Rows to tensors, scaled.
    Scale,
    /// The encoder's product with the selection of winners, those of the auxiliary code among them.
    Encode,
    /// The reconstruction.
    Decode,
    /// The terms of the objective, with the reconstruction from the auxiliary code.
    Loss,
    /// From the loss back to every parameter.
    Gradients,
    /// The optimiser's update.
    Optimizer,
    /// Who is silent, how often latents fire, resampling, averages.
    Counters,
}

impl Part {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of the work.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Scale,
        Self::Encode,
        Self::Decode,
        Self::Loss,
        Self::Gradients,
        Self::Optimizer,
        Self::Counters,
    ];

    /// As a key.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Scale => "scale",
            Self::Encode => "encode",
            Self::Decode => "decode",
            Self::Loss => "loss",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Counters => "counters",
        }
    }

    /// As people read it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "waiting for rows",
            Self::Scale => "scaling rows",
            Self::Encode => "encoding, selecting",
            Self::Decode => "decoding",
            Self::Loss => "objective",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimiser",
            Self::Counters => "counters",
        }
    }
}

/// Seconds of each part, by its place in [`Part::ALL`].
pub type Parts = [f64; Part::COUNT];

/// A watch that is off until it is started.
#[derive(Debug, Default)]
pub struct Laps(Option<Box<Running>>);

#[derive(Debug)]
struct Running {
    last: Cell<Instant>,
    parts: Cell<Parts>,
}

impl Laps {
    /// A watch that runs from now on.
    pub fn running() -> Self {
        Self(Some(Box::new(Running {
            last: Cell::new(Instant::now()),
            parts: Cell::default(),
        })))
    }

    /// Here ends `part`.
    pub fn mark(&self, part: Part) {
        let Some(running) = &self.0 else { return };
        let now = Instant::now();
        let mut parts = running.parts.get();
        parts[part as usize] += (now - running.last.replace(now)).as_secs_f64();
        running.parts.set(parts);
    }

    /// What has been gathered, which begins anew with the next part now.
    pub fn take(&self) -> Parts {
        let Some(running) = &self.0 else {
            return Parts::default();
        };
        running.last.set(Instant::now());
        running.parts.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn parts_add_up_to_what_passed_and_begin_anew() {
        let laps = Laps::running();
        let start = Instant::now();
        laps.take();
        std::thread::sleep(Duration::from_millis(3));
        laps.mark(Part::Encode);
        std::thread::sleep(Duration::from_millis(1));
        laps.mark(Part::Decode);
        laps.mark(Part::Encode);
        let passed = start.elapsed().as_secs_f64();
        let parts = laps.take();
        assert!(
            parts[Part::Encode as usize] >= 3e-3 && parts[Part::Decode as usize] >= 1e-3,
            "{parts:?}"
        );
        let sum: f64 = parts.iter().sum();
        assert!(sum <= passed && sum >= 4e-3, "{sum} of {passed}");
        assert_eq!(laps.take(), Parts::default());
    }

    #[test]
    fn a_watch_that_was_not_started_gathers_nothing() {
        let laps = Laps::default();
        laps.mark(Part::Encode);
        assert_eq!(laps.take(), Parts::default());
    }

    #[test]
    fn parts_are_numbered_by_their_place() {
        let places = Part::ALL.map(|part| part as usize);
        assert!(places.into_iter().eq(0..Part::COUNT));
    }
}
